"""Two zones of PCIe nodes: what slots, root ports, host and NIC let through, read off the graph; counts; loops."""

from dataclasses import replace
from itertools import product

import networkx as nx
import pytest
from fabrics import greatest_flow, parameters, tiers, trunks, walk
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from simulator.network.collectives_shape import group_shape
from simulator.topology import bill_of_materials, build_topology, check
from simulator.topology.clos import clos_shape
from simulator.topology.presets import BUILDERS

GB, GIB = 10**9, 2**30
HOST = {
    "slot": {"bandwidth": "27 GB/s", "latency": "290 ns"},
    "port": {"bandwidth": "37.5 GB/s", "latency": "290 ns"},
    "peer": {"bandwidth": "9 GiB/s", "latency": "280 ns"},
    "memory": {"bandwidth": "320 GB/s", "latency": "100 ns"},
    "link": {"bandwidth": "200 Gbps", "latency": "50 ns"},
    "switch": {"radix": 40, "latency": "400 ns"},
}


def zones(**more):
    family = BUILDERS["pcie_two_zone"]
    given = {"device": "test", "nodes": 4, "zone_links": 1, "shared_ports": [[5, 6]], **HOST, **more}
    return family.build("x", family.parameters.model_validate(given))


def through(topology, sources, targets):
    """Return the greatest flow from all sources to all targets over the links that their paths take."""
    graph = nx.DiGraph()
    kept = {link for s, t in product(sources, targets) for path in topology.paths(s, t) for link in path}
    for index in sorted(kept):
        link = topology.links[index]
        known = graph.get_edge_data(link.source, link.target, {"capacity": 0})["capacity"]
        graph.add_edge(link.source, link.target, capacity=known + link.capacity_bytes_per_s)
    for source in sources:
        graph.add_edge("all sources", topology.endpoints[source].name)
    for target in targets:
        graph.add_edge(topology.endpoints[target].name, "all sinks")
    return nx.maximum_flow_value(graph, "all sources", "all sinks")


def test_what_a_node_of_fire_flyer_lets_through():
    # slot s = 27 GB/s, shared port r = 37.5 GB/s, peer p = 9 GiB/s a device, NIC n = 25 GB/s:
    #   k devices of a node to another   min(k p, n)     two behind one port to memory, or to others   min(2 s, r) = r
    #   memory to another node           min(s, n) = n   one device to memory                          s
    topology = build_topology("fire-flyer-a100", {"nodes": 4})
    there, memory = range(8, 16), [4 * 8]
    for count in range(1, 9):
        assert through(topology, range(count), there) == min(count * 9 * GIB, 25 * GB)
    assert through(topology, [5, 6], memory) == through(topology, [5, 6], [0, 1, 2]) == 37.5 * GB
    assert through(topology, [5, 7], memory) == 2 * through(topology, [5], memory) == 2 * 27 * GB
    assert through(topology, memory, [4 * 8 + 1]) == 25 * GB
    assert through(topology, memory, [0]) == 27 * GB
    assert through(topology, [5], [6]) == 27 * GB
    # both of one port, when the port is the narrower: r for the way to the NIC too
    narrow = zones(port={"bandwidth": "15 GB/s"} | {"latency": "1 us"})
    assert through(narrow, [5, 6], there) == 15 * GB
    assert through(narrow, [4, 5], there) == 2 * 9 * GIB


def test_an_all_reduce_over_nodes_shares_their_nics():
    topology = build_topology("fire-flyer-a100", {"nodes": 4})
    shape = group_shape(topology, range(16))
    assert shape.rail_bytes_per_s == pytest.approx(25 * GB / 8)  # all eight send at once
    assert shape.cross_bytes_per_s == pytest.approx(25 * GB / 8)
    assert group_shape(topology, [0, 8]).rail_bytes_per_s == pytest.approx(9 * GIB)
    # around the ring of the node every device sends to the next; 5 to 6 turns at their port
    assert shape.local_bytes_per_s == pytest.approx(27 * GB)
    assert group_shape(topology, [5, 0, 6, 7]).local_bytes_per_s == pytest.approx(27 * GB)


def test_the_latencies_between_nodes_are_the_published_ones():
    # 64 B over InfiniBand, arXiv 2505.09343: 2.8 us below one leaf, 3.7 us across leaves
    topology = build_topology("fire-flyer-a100", {"nodes": 100})
    assert [topology.path_latency_ns(topology.paths(0, device)[0]) for device in (8, 8 * 49)] == [2800, 3700]


def test_fire_flyer_has_the_published_zones():
    # 40 leaves of 20 ports down and 20 up fill 20 spines of 40: 800 ports a zone, with no port left to cross
    zone = clos_shape(parameters("clos", 40, nodes=800, nics_per_node=1))
    assert (zone.leaves, zone.spines, zone.down, zone.uplinks) == (40, 20, 20, 20)
    with pytest.raises(ValidationError, match=r"1600 nodes do not fit.*the largest that fits is 1560 nodes"):
        zones(nodes=1600)
    # a leaf of n nodes, one port left to cross, needs no spine up to n = 39
    assert [tiers(zones(nodes=2 * n)) for n in (39, 40)] == [{"leaf": 2}, {"leaf": 4, "spine": 2 * 2}]
    topology = build_topology("fire-flyer-a100")
    bill = bill_of_materials(topology)
    assert (bill.devices, bill.nodes, bill.nics) == (10_000, 1250, 1250)
    assert tiers(topology) == {"leaf": 2 * 32, "spine": 2 * 20}
    assert trunks(topology) == 64 * 20 + 20
    assert bill.bisection_bytes_per_s == 20 * 25 * GB
    lost = {domain.what: (domain.count, domain.cut_off) for domain in bill.failures}
    assert lost["nic"] == lost["host"] == (1250, 9)  # eight devices and the memory
    assert lost["leaf"] == (64, 20 * 9)


@given(
    st.integers(1, 4),
    st.integers(1, 6),
    st.lists(st.integers(0, 2), min_size=6, max_size=6),
    st.integers(1, 3),
    st.sampled_from(["9 GiB/s", "2 GB/s"]),
    st.sampled_from(["37.5 GB/s", "5 GB/s"]),
)
@settings(max_examples=30, deadline=None)
def test_bisection_is_the_greatest_flow_and_all_paths_are_whole(half, devices, marks, zone_links, peer, port):
    shared = [[slot for slot in range(devices) if marks[slot] == mark] for mark in (1, 2)]
    topology = zones(
        nodes=2 * half,
        zone_links=zone_links,
        devices_per_node=devices,
        shared_ports=[group for group in shared if group],
        switch={"radix": 6, "latency": "400 ns"},
        peer={"bandwidth": peer, "latency": "1 us"},
        port={"bandwidth": port, "latency": "1 us"},
    )
    check(topology)
    # cables between host and NIC are for one each, which a flow of one commodity does not know: that of memory is left
    # out, and those of devices bound them at their slots, the only other link that is theirs alone
    each = {link.tier: link.capacity_bytes_per_s for link in topology.links}
    own = [link for link in topology.links if link.tier != "memory-nic"]
    for at, link in enumerate(own):
        if link.tier == "device-port":
            own[at] = replace(link, capacity_bytes_per_s=min(each["device-port"], each["peer"]))
    assert topology.bisection_bytes_per_s == greatest_flow(replace(topology, links=tuple(own)))
    ends = range(len(topology.endpoints))
    assert len(ends) == 2 * half * (devices + 1)
    for source, target in product(ends, repeat=2):
        if source != target:
            for path in topology.paths(source, target):
                walk(topology, source, target, path)


def test_a_pcie_node_has_one_nic():
    with pytest.raises(ValidationError, match="nics_per_node"):
        zones(nics_per_node=2)
