from fractions import Fraction

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from simulator.errors import InputError
from simulator.topology import bill_of_materials, build_topology
from simulator.topology.failure import Structure


def failures(name, **overrides):
    return {domain.what: domain for domain in bill_of_materials(build_topology(name, overrides)).failures}


@pytest.mark.parametrize("k", [4, 8, 12])
def test_a_fat_tree_in_closed_form(k):
    # of k/2 cables up from an edge 1 is lost with an aggregation; a core is 1 of (k/2)^2 ways up from every edge
    found = failures("fat-tree-k16", switch={"radix": k}, devices_per_node=4)
    devices = k**3 // 4
    assert (found["edge"].count, found["edge"].cut_off, found["edge"].slowed) == (k * k // 2, k // 2, 0)
    assert (found["aggregation"].cut_off, found["aggregation"].slowed) == (0, k * k // 4)
    assert found["aggregation"].least_share == pytest.approx(1 - 2 / k)
    assert (found["core"].cut_off, found["core"].slowed) == (0, devices)
    assert found["core"].least_share == pytest.approx(1 - 4 / k**2)
    assert (found["nic"].count, found["nic"].cut_off) == (devices, 1)
    assert (found["nvlink"].scope, found["nvlink"].cut_off) == ("scale-up", 4)


def test_a_plane_takes_its_devices_and_no_others():
    found = failures("multi-plane-h800", nodes=128)
    assert (found["plane"].count, found["plane"].cut_off, found["plane"].slowed) == (8, 128, 0)
    assert found["spine"].slowed == 128  # the devices of one plane


def climbing(graph, heights, vertex, lost):
    """The chance that a walk up from `vertex`, each cable as likely as it is wide, meets nothing that is lost."""
    if vertex in lost:
        return Fraction(0)
    above = [(b, data["capacity_bytes_per_s"]) for _, b, data in graph.out_edges(vertex, data=True) if b in heights]
    above = [(b, size) for b, size in above if heights[b] == heights[vertex] + 1]
    if not above:
        return Fraction(1)
    total = sum(size for _, size in above)
    return sum(Fraction(size, total) * climbing(graph, heights, b, lost) for b, size in above)


TIERS = {"device": 0, "nic": 1, "leaf": 2, "spine": 3}


@given(
    nodes=st.integers(1, 12),
    radix=st.integers(4, 16),
    taper=st.sampled_from([1, 1.5, 3]),
    attachment=st.sampled_from(["rail", "node"]),
    pick=st.lists(st.integers(0, 10**6), min_size=1, max_size=3),
)
@settings(max_examples=50, deadline=None)
def test_shares_equal_the_chance_of_a_walk_up_that_tries_every_way(nodes, radix, taper, attachment, pick):
    overrides = {"nodes": nodes, "switch": {"radix": radix}, "taper": taper, "attachment": attachment}
    try:
        topology = build_topology("clos-h100", overrides | {"devices_per_node": 2})
    except InputError:
        assume(False)
    heights = {vertex.name: TIERS[vertex.tier] for vertex in topology.vertices if vertex.tier in TIERS}
    breakable = [name for name, height in heights.items() if height]
    lost = frozenset(breakable[at % len(breakable)] for at in pick)
    shares = Structure(topology).shares(lost)
    for site in topology.sites:
        expected = climbing(topology.graph, heights, site.name, lost)
        assert shares.get(site.name, 1.0) == pytest.approx(float(expected), abs=1e-12)


def test_losing_nothing_costs_nothing():
    assert Structure(build_topology("clos-h100")).shares(frozenset()) == {}


def test_oversubscription_of_each_tier_agrees_with_the_builder():
    for name in ("clos-h100", "clos-h100-tapered", "fat-tree-k16"):
        topology = build_topology(name)
        worst = Structure(topology).oversubscription()
        first = "edge" if name == "fat-tree-k16" else "leaf"
        assert worst[first] == pytest.approx(topology.oversubscription)
