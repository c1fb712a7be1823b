"""A topology from a file: any directed graph as networkx node-link JSON, each of its nodes an endpoint.

Model: edges carry `bandwidth_Bps` and `latency_s`; routes are the paths of the fewest hops, or given by node names.
"""

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import isfinite
from pathlib import Path as File
from typing import Any

from simulator.errors import InputError, Problem, nearest
from simulator.topology.graph import Link, Path, Plane, Site, Topology, Vertex
from simulator.topology.plane import Access
from simulator.topology.search import FewestHops
from simulator.units import NS_PER_S

FORM = "networkx node-link JSON: keys directed, nodes, edges; edges with source, target, bandwidth_Bps, latency_s"
ROUNDING = 1e-7  # of a bandwidth, when it is made whole bytes per second
MOST_PROBLEMS = 50


def graph_topology(path: File | str) -> Topology:
    """Read a directed graph (node-link JSON, key `edges`); links are numbered in the order of its edges.

    Every node is an endpoint, in the order of `nodes`, and its name is its `id`. Bandwidths become whole bytes per
    second, latencies whole nanoseconds. Raises InputError with every problem.
    """
    file = File(path)
    value = _read(file)
    problems: list[Problem] = []
    names = _names(file, value["nodes"], problems)
    links = _links(file, value["edges"], names, problems)
    if problems:
        more = len(problems) - MOST_PROBLEMS
        raise InputError(problems[:MOST_PROBLEMS] + [Problem(f"and {more} more", str(file))] * (more > 0))
    joined = FewestHops((link.source, link.target, link.index) for link in links)
    return Topology(
        name=file.stem,
        device="none",
        vertices=tuple(Vertex(name, "device", "node", index, 0) for index, name in enumerate(names)),
        links=tuple(links),
        sites=tuple(Site(index, name, index, 0, "none") for index, name in enumerate(names)),
        planes=(Plane("graph", tuple((Access(name, (), ()),) for name in names), joined),),
        hosts=(),
        operations={},
        bisection_bytes_per_s=0,
        oversubscription=1.0,
    )


def path_by_names(topology: Topology, path: str | Sequence[str]) -> Path:
    """Return the links of a path of node names, `A>B>C` or a sequence; of parallel links the first.

    Raises InputError that names the step that no link takes.
    """
    names = [name.strip() for name in path.split(">")] if isinstance(path, str) else list(path)
    if len(names) < 2:
        raise InputError(f"the path {path!r} has no step; a path is node names joined by '>', such as a>s>b")
    between = topology.first_links
    links = []
    for source, target in pairwise(names):
        if (source, target) not in between:
            known = {vertex.name: None for vertex in topology.vertices}
            wrong = next((name for name in (source, target) if name not in known), None)
            if wrong is not None:
                shown = ">".join(names)
                raise InputError(Problem(f"no node {wrong!r}, in the path {shown}", nearest=nearest(wrong, known)))
            raise InputError(f"no link from {source!r} to {target!r}, in the path {'>'.join(names)}")
        links.append(between[source, target])
    if len(set(links)) < len(links):
        raise InputError(f"the path {'>'.join(names)} takes a link twice")
    return tuple(links)


def _read(file: File) -> Mapping[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(Problem(f"cannot read the graph: {error.strerror or error}", str(file))) from None
    except UnicodeDecodeError:
        raise InputError(Problem("not a text file", str(file), allowed=FORM)) from None
    except json.JSONDecodeError as error:
        raise InputError(Problem(f"not JSON: {error.msg}", str(file), error.lineno, error.colno)) from None
    if not isinstance(value, dict):
        raise InputError(Problem("not a graph", str(file), allowed=FORM))
    problems = [
        Problem(f"missing key {key!r}, or not a list", str(file), allowed=FORM, nearest=nearest(key, value))
        for key in ("nodes", "edges")
        if not isinstance(value.get(key), list)
    ]
    if value.get("directed") is not True:
        problems.append(Problem("the graph is not directed", str(file), path="directed", allowed="true"))
    if problems:
        raise InputError(problems)
    return value


def _names(file: File, nodes: list[Any], problems: list[Problem]) -> dict[str, None]:
    names: dict[str, None] = {}
    for at, node in enumerate(nodes):
        place = f"nodes[{at}]"
        found = node.get("id") if isinstance(node, dict) else None
        if isinstance(found, bool) or not isinstance(found, str | int) or ">" in str(found) or not str(found).strip():
            what = f"expected an id (text without '>', or a number), found {found!r}"
            problems.append(Problem(what, str(file), path=place))
        elif str(found) in names:
            problems.append(Problem(f"a second node {str(found)!r}", str(file), path=place))
        else:
            names[str(found)] = None
    return names


def _links(file: File, edges: list[Any], names: Mapping[str, None], problems: list[Problem]) -> list[Link]:
    links: list[Link] = []
    for at, edge in enumerate(edges):
        place = f"edges[{at}]"
        if not isinstance(edge, dict):
            problems.append(Problem("expected a mapping", str(file), path=place, allowed=FORM))
            continue
        ends = [str(edge.get(key)) for key in ("source", "target")]
        before = len(problems)
        for key, name in zip(("source", "target"), ends, strict=True):
            if name not in names:
                what = f"no node {name!r}"
                problems.append(Problem(what, str(file), path=f"{place}.{key}", nearest=nearest(name, names)))
        if ends[0] == ends[1]:
            problems.append(Problem(f"joins {ends[0]!r} to itself", str(file), path=place))
        bandwidth, latency = (_number(file, edge, place, key, problems) for key in ("bandwidth_Bps", "latency_s"))
        capacity = round(bandwidth)
        if abs(capacity - bandwidth) > ROUNDING * bandwidth:
            what = f"{bandwidth!r} bytes per second is too little to be told in whole ones"
            problems.append(Problem(what, str(file), path=f"{place}.bandwidth_Bps"))
        if len(problems) == before:
            links.append(Link(len(links), ends[0], ends[1], capacity, round(latency * NS_PER_S), "graph"))
    return links


def _number(file: File, edge: Mapping[str, Any], place: str, key: str, problems: list[Problem]) -> float:
    value = edge.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value) or value < 0:
        what = f"expected a number, not negative, found {value!r}" if key in edge else f"missing key {key!r}"
        problems.append(Problem(what, str(file), path=f"{place}.{key}", nearest=nearest(key, edge)))
        return 0.0
    return float(value)
