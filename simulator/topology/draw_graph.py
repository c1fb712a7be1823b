"""A fabric for other programs: GraphML and Graphviz DOT, every vertex and every directed link with its attributes."""

import io

from simulator.topology.graph import Topology


def graphml(topology: Topology) -> str:
    """Return the topology as GraphML, edges with `capacity_bytes_per_s`, `latency_ns` and `tier`."""
    import networkx

    text = io.BytesIO()
    networkx.write_graphml_xml(topology.graph, text)
    return text.getvalue().decode() + "\n"


def dot(topology: Topology) -> str:
    """Return the topology as a DOT digraph; vertices of one tier share a rank, nodes are clusters."""
    lines = [f"digraph {_quoted(topology.name)} {{", "  rankdir=BT;", "  node [shape=box];"]
    nodes: dict[int | None, list[str]] = {}
    for vertex in topology.vertices:
        facts = {
            "kind": vertex.kind,
            "tier": vertex.tier,
            "group": vertex.group,
            "plane": vertex.plane,
        }
        written = ", ".join(f"{key}={_quoted(str(value))}" for key, value in facts.items() if value is not None)
        nodes.setdefault(vertex.node, []).append(f"{_quoted(vertex.name)} [{written}];")
    for node, members in nodes.items():
        if node is None:
            lines += [f"  {member}" for member in members]
        else:
            lines += [f"  subgraph {_quoted(f'cluster_node{node}')} {{", f"    label={_quoted(f'node {node}')};"]
            lines += [f"    {member}" for member in members]
            lines.append("  }")
    for link in topology.links:
        figures = f"capacity_bytes_per_s={link.capacity_bytes_per_s}, latency_ns={link.latency_ns}"
        lines.append(f"  {_quoted(link.source)} -> {_quoted(link.target)} [tier={_quoted(link.tier)}, {figures}];")
    return "\n".join([*lines, "}"]) + "\n"


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
