import math
from fractions import Fraction
from itertools import pairwise

import networkx as nx
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from simulator.topology.bill import bill_of_materials, check
from simulator.topology.clos import ClosParameters, FatTreeParameters, build_clos, build_fat_tree, clos_shape

NODE = {
    "device": "test",
    "nvlink": {"bandwidth": "450 GB/s", "latency": "1665 ns"},
    "pcie": {"bandwidth": "64 GB/s", "latency": "1150 ns"},
    "link": {"bandwidth": "400 Gbps", "latency": "50 ns"},
}
NIC = 50 * 10**9


def clos(radix, **more):
    switch = {"radix": radix, "latency": "400 ns"}
    return ClosParameters.model_validate({**NODE, "switch": switch, **more})


def fat_tree(k, devices_per_node=1):
    switch = {"radix": k, "latency": "400 ns"}
    return FatTreeParameters.model_validate({**NODE, "switch": switch, "devices_per_node": devices_per_node})


@st.composite
def clos_parameters(draw, largest_nodes=24):
    try:
        return clos(
            draw(st.integers(2, 24)),
            nodes=draw(st.integers(1, largest_nodes)),
            devices_per_node=draw(st.sampled_from([1, 2, 3, 4, 8])),
            taper=draw(st.sampled_from([1, 1.5, 2, 2.5, 3, 4, 7.3])),
            attachment=draw(st.sampled_from(["rail", "node"])),
        )
    except ValidationError as error:
        if "the largest that fits" not in str(error):
            raise
        assume(False)


def flow_graph(topology, sources, sinks):
    graph = nx.DiGraph()
    for link in topology.links:
        known = graph.get_edge_data(link.source, link.target, {"capacity": 0})["capacity"]
        graph.add_edge(link.source, link.target, capacity=known + link.capacity_bytes_per_s)
    for site in sources:
        graph.add_edge("all sources", site.name)
    for site in sinks:
        graph.add_edge(site.name, "all sinks")
    return graph


def greatest_flow(topology):
    half = max(site.node for site in topology.sites) + 1
    sources = [site for site in topology.sites if site.node < half // 2]
    if not sources:
        return 0
    sinks = [site for site in topology.sites if site.node >= half // 2]
    return nx.maximum_flow_value(flow_graph(topology, sources, sinks), "all sources", "all sinks")


@given(clos_parameters())
@settings(max_examples=120, deadline=None)
def test_clos_counts(parameters):
    shape = clos_shape(parameters)
    topology = build_clos("x", parameters)
    check(topology)
    bill = bill_of_materials(topology)
    nics = parameters.nodes * parameters.devices_per_node
    assert (bill.nodes, bill.devices, bill.nics) == (parameters.nodes, nics, nics)
    assert bill.switches["leaf"] == shape.leaves
    assert bill.switches.get("spine", 0) == shape.spines
    assert bill.cables["nic-leaf"] == bill.cables["pcie"] == nics
    assert bill.cables.get("leaf-spine", 0) == shape.leaves * shape.uplinks
    assert bill.cables.get("nvlink", 0) == (nics if parameters.devices_per_node > 1 else 0)
    assert bill.transceivers == 2 * (nics + shape.leaves * shape.uplinks)
    assert len(topology.links) == 2 * sum(bill.cables.values())


@given(clos_parameters())
@settings(max_examples=150, deadline=None)
def test_no_switch_has_more_cables_than_ports_and_every_leaf_keeps_to_the_taper(parameters):
    shape = clos_shape(parameters)
    topology = build_clos("x", parameters)
    for vertex in topology.vertices:
        if vertex.kind == "switch":
            assert topology.graph.out_degree(vertex.name) <= parameters.switch.radix
    if shape.spines:
        taper = Fraction(str(parameters.taper))
        assert shape.uplinks - 1 < shape.down / taper <= shape.uplinks  # the fewest cables that keep to it
        assert shape.uplinks % shape.spines == 0
        real = bill_of_materials(topology).oversubscription
        assert real == shape.down / shape.uplinks <= parameters.taper


@given(clos_parameters(largest_nodes=12))
@settings(max_examples=60, deadline=None)
def test_bisection_is_the_greatest_flow_between_the_halves(parameters):
    topology = build_clos("x", parameters)
    assert topology.bisection_bytes_per_s == greatest_flow(topology)


def test_bisection_is_bound_by_a_slow_way_to_the_nic():
    slow = {"bandwidth": "20 GB/s", "latency": "1 us"}
    topology = build_clos("x", clos(8, nodes=8, devices_per_node=2, taper=1, pcie=slow))
    assert topology.bisection_bytes_per_s == greatest_flow(topology) == 8 * 20 * 10**9


@given(clos_parameters(largest_nodes=10))
@settings(max_examples=60, deadline=None)
def test_paths_are_every_shortest_path_without_relay(parameters):
    topology = build_clos("x", parameters)
    shape = clos_shape(parameters)
    switched = nx.MultiDiGraph((e.source, e.target, e.index) for e in topology.links)
    longest = 0
    for source in topology.sites[:3]:
        for target in topology.sites:
            paths = list(topology.paths(source.index, target.index))
            assert len(set(paths)) == len(paths)
            longest = max(longest, len(paths[0]))
            ends = {source.name, target.name}
            relays = [s.name for s in topology.sites if s.name not in ends]
            graph = nx.restricted_view(switched, relays, [])
            if source != target:
                expected = {tuple(e[2] for e in p) for p in shortest_edge_paths(graph, source.name, target.name)}
                assert set(paths) == expected
            leaves = (
                topology.planes[-1].access[source.index][0].switch,
                topology.planes[-1].access[target.index][0].switch,
            )
            if source.node != target.node and leaves[0] != leaves[1]:
                assert len(paths) == shape.uplinks * (shape.uplinks // shape.spines)
    assert bill_of_materials(topology).diameter_hops == longest


def shortest_edge_paths(graph, source, target):
    for vertices in nx.all_shortest_paths(nx.DiGraph(graph), source, target):
        walks = [()]
        for edge in pairwise(vertices):
            walks = [(*walk, (*edge, key)) for walk in walks for key in graph.get_edge_data(*edge)]
        yield from walks


def test_rail_attachment_keeps_a_rail_below_one_leaf_of_its_group():
    # radix 8 at taper 1: 4 nodes per group; 8 nodes of 4 devices fill two groups of 4 leaves
    topology = build_clos("x", clos(8, nodes=8, devices_per_node=4))

    def switches(source, target):
        return [
            topology.links[i].target for i in topology.paths(source, target)[0] if "leaf" in topology.links[i].target
        ]

    assert switches(1, 5) == ["leaf0.1"]  # rail 1 of nodes 0 and 1
    assert switches(1, 6) == ["leaf0.1", "leaf0.2"]  # rails 1 and 2
    assert switches(1, 17) == ["leaf0.1", "leaf1.1"]  # rail 1 of the other group
    assert {len(topology.paths(1, t)[0]) for t in (5, 6, 17)} == {4, 6}
    assert [topology.links[i].target for i in topology.paths(0, 3)[0]] == ["node0/nvlink", "node0/device3"]


def test_node_attachment_keeps_a_node_below_one_leaf():
    topology = build_clos("x", clos(16, nodes=8, devices_per_node=4, attachment="node"))
    for site in topology.sites:
        assert topology.planes[-1].access[site.index][0].switch == f"leaf{site.node // 2}"


@pytest.mark.parametrize(("nodes", "switches", "cables"), [(256, 96, 2048), (32, 12, 256)])
def test_published_counts_of_64_port_two_tier_fat_trees(nodes, switches, cables):
    # 2,048 endpoints, 96 switches, 2,048 cables between them: arXiv 2505.09343; 32 nodes: one DGX SuperPOD unit
    bill = bill_of_materials(build_clos("x", clos(64, nodes=nodes)))
    assert bill.switches["leaf"] + bill.switches["spine"] == switches
    assert bill.cables["leaf-spine"] == cables
    assert bill.transceivers == 4 * bill.nics
    assert bill.bisection_bytes_per_s == nodes * 8 * NIC // 2


@pytest.mark.parametrize("attachment", ["rail", "node"])
@pytest.mark.parametrize("radix", [16, 40, 64])
@pytest.mark.parametrize("taper", [1, 2, 4])
def test_the_largest_that_fits_fits_and_one_more_does_not(radix, taper, attachment):
    with pytest.raises(ValidationError, match="the largest that fits is") as caught:
        clos(radix, nodes=10**6, taper=taper, attachment=attachment)
    largest = int(str(caught.value).split("the largest that fits is ")[1].split()[0])
    assert clos_shape(clos(radix, nodes=largest, taper=taper, attachment=attachment)).leaves <= radix
    with pytest.raises(ValidationError, match=f"the largest that fits is {largest} nodes"):
        clos(radix, nodes=largest + 1, taper=taper, attachment=attachment)


def test_a_single_leaf_needs_no_spine():
    bill = bill_of_materials(build_clos("x", clos(64, nodes=8, attachment="node", taper=4)))
    assert bill.switches == {"leaf": 1, "nvlink": 8}
    assert bill.oversubscription == 1
    assert bill.bisection_bytes_per_s == 32 * NIC


@pytest.mark.parametrize("k", [2, 4, 6, 8])
def test_fat_tree_identities(k):
    topology = build_fat_tree("x", fat_tree(k))
    check(topology)
    bill = bill_of_materials(topology)
    assert bill.nics == k**3 // 4
    assert sum(bill.switches.values()) == 5 * k**2 // 4
    assert bill.switches == {"edge": k * k // 2, "aggregation": k * k // 2, "core": k * k // 4}
    assert set(bill.cables.values()) == {k**3 // 4}
    assert bill.transceivers == 6 * bill.nics
    assert bill.diameter_hops == 8
    assert bill.bisection_bytes_per_s == k**3 // 8 * NIC
    for vertex in topology.vertices:
        if vertex.kind == "switch":
            assert topology.graph.out_degree(vertex.name) == k
    half = k // 2
    for target, count in [(half - 1, 1), (half * half - 1, half), (half * half, half * half)]:
        if target:
            edges = {topology.planes[-1].access[0][0].switch, topology.planes[-1].access[target][0].switch}
            assert len(topology.paths(0, target)) == (1 if len(edges) == 1 else count)


@pytest.mark.parametrize(("k", "devices_per_node"), [(4, 1), (4, 2), (4, 8), (6, 3), (8, 8)])
def test_fat_tree_bisection_is_the_greatest_flow(k, devices_per_node):
    topology = build_fat_tree("x", fat_tree(k, devices_per_node))
    assert topology.bisection_bytes_per_s == greatest_flow(topology)


@pytest.mark.parametrize(("k", "devices_per_node", "message"), [(5, 1, "even"), (4, 3, "do not divide")])
def test_impossible_fat_trees_are_refused(k, devices_per_node, message):
    with pytest.raises(ValidationError, match=message):
        fat_tree(k, devices_per_node)


@given(st.integers(1, 64), st.sampled_from([1, 1.1, 1.7, 3, 9]))
@settings(deadline=None)
def test_more_taper_never_needs_more_cables(nodes, taper):
    full, tapered = (clos_shape(clos(64, nodes=nodes, taper=t)) for t in (1, taper))
    assert tapered.leaves * tapered.uplinks <= full.leaves * full.uplinks
    assert tapered.uplinks == math.ceil(tapered.down / Fraction(str(taper)))


def test_paths_are_a_sequence_in_a_fixed_order():
    paths = build_clos("x", clos(8, nodes=4, devices_per_node=4)).paths(0, 5)
    everything = list(paths)
    assert [paths[index] for index in range(len(paths))] == everything
    assert (paths[-1], list(paths[1:3]), list(paths[::-1])) == (everything[-1], everything[1:3], everything[::-1])
    for outside in (len(paths), -len(paths) - 1):
        with pytest.raises(IndexError):
            paths[outside]
