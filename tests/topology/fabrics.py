"""Slow and obviously right twins for fabrics of every family: greatest flow, shortest paths by search, sound walks."""

from collections import Counter

import networkx as nx

from simulator.topology.presets import BUILDERS

WIRE = {"bandwidth": "450 GB/s", "latency": "1665 ns"}
PCIE = {"bandwidth": "64 GB/s", "latency": "1150 ns"}
LINK = {"bandwidth": "400 Gbps", "latency": "50 ns"}
NIC = 50 * 10**9


def parameters(builder, radix=64, **more):
    """Return validated parameters of a family, with ordinary cables unless `more` says otherwise."""
    common = {"device": "test", "nvlink": WIRE, "pcie": PCIE, "link": LINK}
    switch = {"radix": radix, "latency": "400 ns"}
    return BUILDERS[builder].parameters.model_validate({**common, "switch": switch, **more})


def build(builder, radix=64, **more):
    """Return a small fabric of a family."""
    return BUILDERS[builder].build("x", parameters(builder, radix, **more))


def greatest_flow(topology):
    """Return what the accelerators of the first half of the nodes (of one node: of the slots) can send the others."""
    places = [site.node for site in topology.sites]
    if len(set(places)) == 1 and not any(vertex.kind == "nic" for vertex in topology.vertices):
        places = [site.slot for site in topology.sites]
    half = (max(places) + 1) // 2
    graph = nx.DiGraph()
    graph.add_nodes_from(["all sources", "all sinks"])
    for link in topology.links:
        known = graph.get_edge_data(link.source, link.target, {"capacity": 0})["capacity"]
        graph.add_edge(link.source, link.target, capacity=known + link.capacity_bytes_per_s)
    for site, place in zip(topology.sites, places, strict=True):
        graph.add_edge(*(("all sources", site.name) if place < half else (site.name, "all sinks")))
    return nx.maximum_flow_value(graph, "all sources", "all sinks") if half else 0


def walk(topology, source, target, path):
    """Return the vertices that a path visits, and check that it is whole, simple and joins its ends."""
    links = [topology.links[index] for index in path]
    visited = [topology.endpoints[source].name, *(link.target for link in links)]
    assert [link.source for link in links] == visited[:-1]
    assert visited[-1] == topology.endpoints[target].name
    assert len(set(visited)) == len(visited)
    return visited


def hops(topology, allowed, source, target):
    """Return the fewest links from one endpoint to another over vertices that `allowed` lets pass."""
    ends = {topology.endpoints[source].name, topology.endpoints[target].name}
    kept = [v.name for v in topology.vertices if v.name in ends or allowed(v)]
    graph = nx.DiGraph(topology.graph).subgraph(kept)
    return nx.shortest_path_length(graph, topology.endpoints[source].name, topology.endpoints[target].name)


def tiers(topology):
    """Return how many switches of each tier there are, without scale-up domains."""
    return Counter(vertex.tier for vertex in topology.vertices if vertex.kind == "switch")


def trunks(topology):
    """Return how many cables join two switches."""
    kinds = {vertex.name: vertex.kind for vertex in topology.vertices}
    return sum(kinds[link.source] == kinds[link.target] == "switch" for link in topology.links) // 2
