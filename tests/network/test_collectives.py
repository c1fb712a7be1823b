"""Collectives: closed forms by hand, the choice, the cache, flows that run on a fabric, and what is refused."""

from itertools import pairwise
from math import inf

import pytest

from simulator.errors import InputError
from simulator.network.collectives import LIBRARY, OPERATIONS, Choice, Collectives, Envelope, choices
from simulator.network.collectives_constants import CollectiveConstants, Kernel, load_constants
from simulator.network.collectives_phases import phases, rings, split, two_trees
from simulator.network.collectives_shape import GroupShape, group_nodes, group_shape
from simulator.topology import build_topology

NS = 10**9
NVLINK, NIC = 450 * NS, 50 * NS
INSTANT = {
    "nvlink": {"latency": "0 ns"},
    "pcie": {"latency": "0 ns"},
    "link": {"latency": "0 ns"},
    "switch": {"latency": "0 ns"},
}
POD = build_topology("clos-h100", INSTANT | {"nodes": 4})
ONE_LEAF = build_topology("clos-h100", INSTANT | {"nodes": 8, "devices_per_node": 1, "attachment": "node"})
FREE = Kernel(base="0 ns", local_hop="0 ns", local_share=1.0)
FAMILIES = ("ring", "tree", "direct", "in_switch", "one_shot", "two_shot")
IDEAL = CollectiveConstants(device="ideal", kernels={name: {"Simple": FREE} for name in FAMILIES}, sources={})
H100 = load_constants("h100-sxm")
SIZE = 840 * 10**9  # a multiple of every number of ranks used


def slope(operation, algorithm, shape):
    """Seconds per byte of the bandwidth term alone."""
    return choices(operation, shape, IDEAL, [algorithm])[0].ns_per_byte / NS


def one_node(ranks):
    return GroupShape(ranks, 1, ranks, NVLINK)


@pytest.mark.parametrize("ranks", [2, 3, 4, 8])
def test_textbook_bandwidth_terms_on_one_switch(ranks):
    once, shape = (ranks - 1) / ranks / NVLINK, one_node(ranks)
    expected = {
        ("all_reduce", "ring"): 2 * once,
        ("all_reduce", "one_shot"): (ranks - 1) / NVLINK,
        ("all_reduce", "two_shot"): 2 * once,
        ("all_reduce", "tree"): 2 / NVLINK if ranks > 2 else None,  # two ranks are a ring
        ("all_reduce", "in_switch"): (1 + 1 / ranks) / NVLINK,
        ("all_reduce", "hierarchical"): 2 * once,
        ("reduce_scatter", "ring"): once,
        ("reduce_scatter", "direct"): once,
        ("all_gather", "ring"): once,
        ("all_gather", "direct"): once,
        ("broadcast", "ring"): 1 / NVLINK,
        ("all_to_all", "direct"): once,
    }
    for (operation, algorithm), seconds in expected.items():
        if seconds is None:
            with pytest.raises(ValueError, match="tree"):
                slope(operation, algorithm, shape)
            continue
        assert slope(operation, algorithm, shape) == pytest.approx(seconds, rel=1e-12), (operation, algorithm)
    assert slope("send_receive", "direct", one_node(2)) == pytest.approx(1 / NVLINK)


def test_bandwidth_terms_across_nodes():
    # two nodes of eight: rings leave by all eight NICs, so a NIC carries an eighth; 8 x 50 GB/s is less than 450 GB/s
    shape = group_shape(POD, range(16))
    assert (shape.ranks, shape.nodes, shape.ranks_per_node) == (16, 2, 8)
    assert (shape.local_bytes_per_s, shape.rail_bytes_per_s) == (NVLINK, NIC)
    assert slope("all_reduce", "ring", shape) == pytest.approx(2 * 15 / 16 / 8 / NIC)
    assert slope("all_reduce", "hierarchical", shape) == pytest.approx(2 * 7 / 8 / NVLINK + 2 * 1 / 2 / 8 / NIC)
    assert slope("all_reduce", "in_switch", shape) == pytest.approx(max((1 + 1 / 8) / NVLINK, 1 / 8 / NIC))
    assert slope("all_to_all", "direct", shape) == pytest.approx(8 / 16 / shape.cross_bytes_per_s)
    assert slope("all_to_all", "pxn", shape) == pytest.approx(1 / 2 / NIC)
    assert slope("all_to_all", "hierarchical", shape) == pytest.approx(7 / 8 / NVLINK + 1 / 2 / NIC)


def test_a_taper_slows_what_crosses_it_and_not_the_rails():
    # 4 nodes of 2 in two groups of 2 below 4-port leaves: at taper 2 a leaf of two NICs has one cable up
    full, tapered = (
        build_topology("clos-h100", {"nodes": 4, "devices_per_node": 2, "switch": {"radix": 4}, "taper": taper})
        for taper in (1, 2)
    )
    assert group_shape(tapered, range(4)).rail_bytes_per_s == NIC  # both nodes below one pair of leaves
    assert group_shape(tapered, range(4)).cross_bytes_per_s == NIC  # half of it goes up, from two NICs to one cable
    assert group_shape(full, range(8)).cross_bytes_per_s == pytest.approx(NIC)
    assert group_shape(tapered, range(8)).cross_bytes_per_s < group_shape(full, range(8)).cross_bytes_per_s


@pytest.mark.parametrize("nodes", [4, 40, 64])
def test_all_to_all_on_a_non_blocking_fabric_has_the_rate_of_the_nic(nodes):
    topology = build_topology("clos-h100", {"nodes": nodes})
    assert group_shape(topology, range(8 * nodes)).cross_bytes_per_s == pytest.approx(NIC, rel=1e-9)


def test_all_to_all_over_a_taper_has_the_rate_of_the_uplinks():
    # 64 nodes in groups below rails tapered 2:1: of a rank's bytes all but those for its own leaf climb
    topology = build_topology("clos-h100", {"nodes": 64, "taper": 2})
    leaves = [link.target for link in topology.links if link.tier == "nic-leaf" and "/nic" in link.source]
    below = leaves.count(leaves[0])
    climbing = (512 - 8 - (below - 1)) / (512 - 8)
    uplinks = NIC / topology.oversubscription / climbing
    assert group_shape(topology, range(512)).cross_bytes_per_s == pytest.approx(uplinks, rel=0.03)


def test_latency_counts_hops():
    kernel = Kernel(base="1 us", local_hop="10 ns", network_hop="700 ns", local_share=1.0)
    constants = CollectiveConstants(device="x", kernels={"ring": {"LL": kernel}, "tree": {"LL": kernel}}, sources={})

    def latency(operation, algorithm, shape):
        return choices(operation, shape, constants, [algorithm])[0].latency_ns

    assert latency("all_reduce", "ring", one_node(8)) == 1000 + 14 * 10
    assert latency("all_gather", "ring", one_node(8)) == 1000 + 7 * 10
    assert latency("all_reduce", "tree", GroupShape(32, 32, 1, inf, NIC, NIC)) == 1000 + 10 * 700
    assert latency("all_reduce", "halving_doubling", one_node(8)) == 1000 + 6 * 10
    wide = GroupShape(32, 4, 8, NVLINK, NIC, NIC)
    assert latency("all_reduce", "ring", wide) == 1000 + 8 * 700 + (62 - 8) * 10
    far = GroupShape(32, 4, 8, NVLINK, NIC, NIC, latency_ns=5000)  # a hop is never less than the way
    assert latency("all_reduce", "ring", far) == 1000 + 8 * 5000 + (62 - 8) * 10


@pytest.mark.parametrize("nodes", [2, 3, 4, 5, 7])
@pytest.mark.parametrize("width", [1, 2, 3, 4, 8])
def test_rings_are_rings_that_stay_on_their_rails(nodes, width):
    group = tuple(tuple(range(8 * node, 8 * node + width)) for node in range(nodes))
    devices = [device for node in group for device in node]
    found = rings(group)
    assert len(found) == width
    leaving, entering, across = [], [], 0
    for ring in found:
        assert sorted(ring) == devices
        for a, b in pairwise([*ring, ring[0]]):
            if a // 8 != b // 8:
                across += a % 8 != b % 8
                leaving.append(a)
                entering.append(b)
    assert sorted(leaving) == sorted(entering) == devices  # each NIC sends, and gets, for one ring
    assert across == (width if width == 2 and nodes % 2 else 0)  # two colours do not go round an odd circle


def test_an_uneven_group_has_one_ring():
    assert rings(((0, 1, 2), (8,))) == [[0, 1, 2, 8]]


@pytest.mark.parametrize("ranks", range(1, 40))
def test_two_trees_span_and_share_the_work(ranks):
    inner = []
    for parents in two_trees(ranks):
        assert parents.count(None) == 1
        depths = []
        for rank in range(ranks):
            depth, at = 0, rank
            while parents[at] is not None:
                depth, at = depth + 1, parents[at]
                assert depth <= ranks
            depths.append(depth)
        assert max(depths) <= (ranks - 1).bit_length() + 1
        children = [parents.count(rank) for rank in range(ranks)]
        assert max(children) <= 2
        inner.append({rank for rank in range(ranks) if children[rank]})
    assert len(inner[0] & inner[1]) <= (0 if ranks % 2 == 0 else 1)


def test_split_is_whole_and_even():
    assert split(10, 4) == [2, 3, 2, 3]
    assert sum(split(10**15 + 7, 13)) == 10**15 + 7


def test_the_least_time_is_chosen_and_small_messages_take_the_low_latency_protocol():
    collectives = Collectives(POD, H100)
    small = collectives.choose("all_reduce", range(8), 1024)
    large = collectives.choose("all_reduce", range(8), 10**9)
    assert (small.algorithm, small.protocol) == ("ring", "LL")
    assert (large.algorithm, large.protocol) == ("in_switch", "Simple")
    assert collectives.choose("all_reduce", range(4), 10**9).algorithm == "ring"
    for size in (0, 1, 10**3, 10**5, 10**6, 10**7, 10**9):
        lines = choices("all_reduce", group_shape(POD, range(8)), H100)
        assert collectives.time_ns("all_reduce", range(8), size) == min(c.time_ns(size) for c in lines)


def test_forced_algorithms_and_protocols():
    collectives = Collectives(POD, H100)
    forced = collectives.choose("all_reduce", range(8), 10**9, algorithms=["ring"], protocol="LL")
    assert (forced.algorithm, forced.protocol) == ("ring", "LL")
    assert forced.time_ns(10**9) > collectives.time_ns("all_reduce", range(8), 10**9)
    engine = collectives.choose("all_reduce", range(8), 1 << 16, engine=True)
    assert engine.algorithm == "one_shot"
    assert collectives.choose("all_reduce", range(8), 4 << 20, engine=True).algorithm == "two_shot"
    assert collectives.choose("all_reduce", range(8), 8 << 20, engine=True).algorithm in LIBRARY["all_reduce"]
    assert collectives.choose("all_reduce", range(16), 1 << 16, engine=True).algorithm in LIBRARY["all_reduce"]


def test_the_envelope_drops_lines_that_are_never_least():
    lines = [Choice(name, "", a, b) for name, a, b in (("a", 1, 9), ("b", 5, 5), ("c", 9, 1), ("d", 8, 4), ("e", 1, 9))]
    envelope = Envelope(lines)
    assert [part.algorithm for part in envelope.parts] in (["a", "c"], ["e", "c"])  # b and d lie on or above the others
    for size in (0, 0.5, 0.99, 1.0, 1.01, 3, 100):
        assert envelope.at(size).time_ns(size) == min(line.time_ns(size) for line in lines)


def test_health_changes_the_time_at_once():
    collectives = Collectives(POD, H100)
    before = collectives.time_ns("all_gather", range(16), 10**9)
    assert collectives.health == 0
    slow = [link.capacity_bytes_per_s // (10 if link.source == "node0/nic3" else 1) for link in POD.links]
    collectives.update(slow)
    assert collectives.health == 1
    assert collectives.shape(range(16)).rail_bytes_per_s == NIC / 10
    assert collectives.time_ns("all_gather", range(16), 10**9) > 5 * before
    collectives.update([link.capacity_bytes_per_s for link in POD.links])
    assert collectives.time_ns("all_gather", range(16), 10**9) == before


def test_the_order_of_ranks_does_not_matter():
    assert group_shape(POD, [9, 0, 8, 1]) == group_shape(POD, [0, 1, 8, 9]) == group_shape(POD, [16, 17, 24, 25])
    assert group_nodes(POD, [9, 0, 8, 1]) == ((0, 1), (8, 9))


def test_one_rank_takes_no_time():
    collectives = Collectives(POD, H100)
    assert [collectives.time_ns(operation, [5], 10**9) for operation in OPERATIONS] == [0] * len(OPERATIONS)
    assert phases(POD, "all_reduce", "ring", ((5,),), 10**9) == []


def test_what_is_refused():
    collectives = Collectives(POD, H100)
    for call, words in (
        (lambda: collectives.time_ns("all_reduce", range(8), -1), "-1 bytes"),
        (lambda: collectives.time_ns("gather", range(8), 1), "unknown operation 'gather'"),
        (lambda: collectives.choose("all_gather", range(8), 1, algorithms=["tree"]), "no algorithm 'tree'"),
        (lambda: collectives.choose("all_reduce", range(6), 1, algorithms=["halving_doubling"]), "6 ranks in 1 nodes"),
        (lambda: collectives.time_ns("send_receive", range(3), 1), "3 ranks"),
        (lambda: phases(POD, "all_gather", "tree", ((0, 1),), 1), "no algorithm 'tree'"),
        (lambda: phases(POD, "all_reduce", "halving_doubling", (tuple(range(6)),), 1), "power of two"),
        (lambda: phases(POD, "all_reduce", "hierarchical", ((0, 1), (8,)), 1), "as many ranks"),
        (lambda: phases(POD, "all_reduce", "in_switch", ((0,), (8,)), 1), "two ranks or more"),
        (lambda: phases(POD, "send_receive", "direct", ((0, 1, 2),), 1), "two devices"),
        (lambda: group_shape(POD, []), "one or more"),
        (lambda: group_shape(POD, [1, 1]), "each once"),
    ):
        with pytest.raises(ValueError, match=words):
            call()
    with pytest.raises(IndexError):
        group_shape(POD, [0, 10**6])
    with pytest.raises(InputError, match="h100-sxm"):
        load_constants("h100-sxn")
    with pytest.raises(ValueError, match="own_share"):
        Kernel(base="0 ns", local_hop="0 ns", local_share=0.5, own_share=0.4)


def test_uneven_groups_take_one_ring():
    shape = group_shape(POD, [0, 1, 2, 8])
    assert not shape.even
    assert slope("all_reduce", "ring", shape) == pytest.approx(2 * 3 / 4 / NIC)
