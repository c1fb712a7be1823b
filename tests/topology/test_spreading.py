"""Structural loads against the sum over every path of every pair, for every family."""

import itertools
import json
import re

import numpy as np
import pytest
from fabrics import LINK, build
from hypothesis import assume, given, reject, settings
from hypothesis import strategies as st

from simulator.errors import InputError
from simulator.topology import build_topology
from simulator.topology.exchange import PairByPairError, exchange
from simulator.topology.explicit import graph_topology
from simulator.topology.paths import Climb, UpDown
from simulator.topology.plane import Access, Plane
from simulator.topology.presets import BUILDERS
from simulator.topology.spreading import exchange_loads, path_weights, shard_loads
from simulator.topology.switch_loads import add_loads

SUPER = {
    "supernodes": 2,
    "nodes_per_supernode": 3,
    "npus_per_node": 2,
    "upper_ports": 4,
    "upper_chips": 2,
    "sub_planes": 3,
    "die_link": {"bandwidth": "60 GB/s"},
    "cpu_link": {"bandwidth": "60 GB/s"},
}
SINGLE = {"device": "test", "link": LINK}
WIRE = {"bandwidth": "1 GB/s", "latency": "1 us"}
PCIE = {"device": "test", "shared_ports": [[1, 2]], "slot": WIRE, "port": WIRE, "memory": WIRE}


def of(builder, **more):
    family = BUILDERS[builder]
    return family.build("x", family.parameters.model_validate(more))


FABRICS = {
    "one tier": lambda: build("clos", nodes=3, devices_per_node=2, attachment="node"),
    "rails": lambda: build("clos", 8, nodes=12, devices_per_node=2),
    "rails, tapered": lambda: build("clos", 8, nodes=11, devices_per_node=2, taper=2),
    "by node": lambda: build("clos", 8, nodes=7, devices_per_node=3, attachment="node"),
    "several NICs": lambda: build("clos", 8, nodes=6, devices_per_node=2, nics_per_node=4),
    "several NICs by node": lambda: build("clos", 12, nodes=5, devices_per_node=2, nics_per_node=4, attachment="node"),
    "shared NICs": lambda: build("clos", 8, nodes=6, devices_per_node=4, nics_per_node=2),
    "three tiers": lambda: build("clos", 4, nodes=7, devices_per_node=2, tiers=3),
    "three tiers, tapered": lambda: build("clos", 6, nodes=16, devices_per_node=1, tiers=3, taper=2, spine_taper=2),
    "split": lambda: build("clos", 8, nodes=10, devices_per_node=2, split=2),
    "two zones": lambda: build("two_zone", 12, nodes=12, devices_per_node=2, zone_links=2),
    "two zones of one leaf": lambda: build("two_zone", 12, nodes=6, devices_per_node=1, nics_per_node=1, zone_links=2),
    "zones of PCIe nodes": lambda: of(
        "pcie_two_zone",
        **PCIE,
        nodes=10,
        devices_per_node=3,
        zone_links=1,
        peer=WIRE,
        link=WIRE,
        switch={"radix": 4, "latency": "1 us"},
    ),
    "fat-tree": lambda: build("fat_tree", 4, devices_per_node=2),
    "rail-only": lambda: build("rail_only", 4, nodes=5, devices_per_node=3),
    "multi-plane": lambda: build("multi_plane", 4, nodes=7, devices_per_node=2, tiers=2),
    "supernodes": lambda: build_topology("cloudmatrix384", SUPER),
    "Slim Fly": lambda: build("slim_fly", q=4, devices_per_node=3),
    "Slim Fly, q = 5": lambda: build("slim_fly", q=5, concentration=1, devices_per_node=2),
    "Dragonfly": lambda: build("dragonfly", below=1, routers=3, across=2, groups=5, devices_per_node=1),
    "Dragonfly, several cables": lambda: build("dragonfly", below=2, routers=4, across=2, groups=3, devices_per_node=2),
    "ring": lambda: build("torus", dimensions=[7], devices_per_node=2),
    "torus": lambda: build("torus", dimensions=[4, 2, 3], devices_per_node=1),
    "torus, even": lambda: build("torus", dimensions=[4, 4], devices_per_node=2),
    "NVSwitch": lambda: of("nvswitch", **SINGLE, devices_per_node=5, switches=3),
    "mesh": lambda: of("mesh", **SINGLE, devices_per_node=5),
    "PCIe": lambda: of("pcie", **PCIE, devices_per_node=5),
}


@pytest.fixture(params=FABRICS, name="fabric")
def the_fabric(request):
    return FABRICS[request.param]()


def every_path(topology, pairs, plane=None):
    """Return the bytes on each link, path by path."""
    loads = np.zeros(len(topology.links))
    for source, target, size in pairs:
        paths = topology.paths(source, target, plane)
        for path in paths:
            for link in path:
                loads[link] += size / len(paths)
    return loads


def all_pairs(devices, size=1.0):
    return [(a, b, size) for a in devices for b in devices if a != b]


def test_an_exchange_is_the_sum_over_every_path_of_every_pair(fabric):
    devices = range(len(fabric.sites))
    expected = every_path(fabric, all_pairs(devices, 3.0))
    assert expected.any()
    np.testing.assert_allclose(exchange_loads(fabric, devices, 3.0), expected, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(shard_loads(fabric, all_pairs(devices, 3.0)), expected, rtol=1e-12, atol=1e-12)


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_so_is_that_of_any_of_its_ends(data):
    topology = FABRICS[data.draw(st.sampled_from(sorted(FABRICS)))]()
    ends = data.draw(st.lists(st.integers(0, len(topology.endpoints) - 1), unique=True, max_size=12))
    known = [None, *(plane.name for plane in topology.planes), *(lane for p in topology.planes for lane in p.lanes)]
    plane = data.draw(st.sampled_from(known))
    try:
        expected = every_path(topology, all_pairs(ends), plane)
    except InputError as error:
        with pytest.raises(InputError, match=re.escape(str(error))):
            exchange_loads(topology, ends, 1, plane)
        return
    np.testing.assert_allclose(exchange_loads(topology, ends, 1, plane), expected, rtol=1e-12, atol=1e-12)


def test_what_crosses_nodes_is_an_exchange_without_what_stays_in_them(fabric, monkeypatch):
    devices = [site.index for site in fabric.sites if site.index % 5]
    nodes = [fabric.sites[device].node for device in devices]
    pairs = [(a, b, 2.0) for a, b, _ in all_pairs(devices) if fabric.sites[a].node != fabric.sites[b].node]
    monkeypatch.setattr("simulator.topology.spreading.shard_loads", None)
    crossing = exchange_loads(fabric, devices, 2, None, nodes)
    np.testing.assert_allclose(crossing, every_path(fabric, pairs), rtol=1e-12, atol=1e-12)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_blocks_send_each_other_nothing(data):
    topology = FABRICS[data.draw(st.sampled_from(sorted(FABRICS)))]()
    devices = data.draw(st.lists(st.integers(0, len(topology.sites) - 1), unique=True, max_size=10))
    blocks = [data.draw(st.integers(0, 3)) for _ in devices]
    numbered = list(zip(devices, blocks, strict=True))
    expected = every_path(topology, [(a, b, 1.0) for a, i in numbered for b, j in numbered if i != j])
    np.testing.assert_allclose(exchange_loads(topology, devices, 1, None, blocks), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["rail-only", "multi-plane"])
def test_a_lane_asked_for_is_handed_over_at_both_ends(name):
    topology = FABRICS[name]()
    nodes = {}
    for site in topology.sites:
        nodes.setdefault(site.node, []).append(site.index)
    ends = [mates[node % len(mates)] for node, mates in nodes.items()]
    for lane in topology.planes[-1].lanes:
        expected = every_path(topology, all_pairs(ends), lane)
        tiers = {topology.links[link].tier for link in np.nonzero(expected)[0]}
        assert "nvlink" in tiers
        np.testing.assert_allclose(exchange_loads(topology, ends, 1, lane), expected, rtol=1e-12)


@st.composite
def planes(draw):
    """Draw ends with several ways of unequal lengths onto leaves with unequal cables to some of a few spines."""
    counter = itertools.count()
    climbs, access = {}, []
    for leaf in range(draw(st.integers(1, 4))):
        cables = draw(st.lists(st.integers(0, 2), min_size=1, max_size=4))
        climbs[f"leaf{leaf}"] = [Climb(next(counter), f"spine{spine}", next(counter)) for spine in cables]
    for _ in range(draw(st.integers(2, 6))):
        ways = draw(st.lists(st.tuples(st.sampled_from(sorted(climbs)), st.integers(1, 2)), min_size=1, max_size=3))
        access.append(
            tuple(
                Access(leaf, tuple(next(counter) for _ in range(hops)), (next(counter),), draw(st.sampled_from("ab")))
                for leaf, hops in ways
            )
        )
    return Plane("drawn", access, UpDown(climbs)), next(counter)


@given(planes())
@settings(max_examples=200, deadline=None)
def test_any_plane_that_joins_all_its_ends_is_told_by_classes(drawn):
    plane, links = drawn
    ends, expected = range(len(plane.access)), np.zeros(links)
    for source, target in itertools.permutations(ends, 2):
        paths = plane.paths(source, target)
        assume(paths is not None)
        for path in paths:
            np.add.at(expected, list(path), 1 / len(paths))
    loads = np.zeros(links)
    try:
        exchange([plane], None, ends, ends, loads)
    except PairByPairError:  # every two have a lane in common, but all together have none
        reject()
    np.testing.assert_allclose(loads, expected, rtol=1e-12, atol=1e-12)


def test_leaves_of_unequal_cables_to_the_same_spines_are_not_alike():
    # leaf i has c(i, s) cables to spine s: from i to j, spine s carries c(i, s) c(j, s) of the sum of that over s
    counter, cables = itertools.count(), {"a": (2, 1), "b": (1, 2), "c": (1, 1), "d": (3, 1)}
    between = UpDown(
        {
            leaf: [Climb(next(counter), f"spine{s}", next(counter)) for s, n in enumerate(counts) for _ in range(n)]
            for leaf, counts in cables.items()
        }
    )
    demand = np.arange(16.0).reshape(4, 4) + 1
    expected = np.zeros(next(counter))
    for (i, here), (j, there) in itertools.permutations(enumerate(cables), 2):
        for link, share in path_weights(between(here, there)).items():
            expected[link] += demand[i, j] * share
    assert path_weights(between("a", "b"))[0] == 1 / 4  # 2 x 1 of 2 x 1 + 1 x 2 paths over spine 0, by two cables
    loads = np.zeros(len(expected))
    add_loads(between, list(cables), list(cables), demand, loads)
    np.testing.assert_allclose(loads, expected, rtol=1e-12)


def test_an_exchange_is_told_by_classes_and_not_pair_by_pair(fabric, monkeypatch):
    monkeypatch.setattr("simulator.topology.spreading.shard_loads", None)
    exchange_loads(fabric, range(len(fabric.sites)), 1)
    for plane in fabric.planes:
        ends = [end for end in range(len(fabric.sites)) if plane.access[end]]
        if plane.relay is not None:  # which joins nodes alone
            ends = [end for end in ends if fabric.sites[end].slot == 1]
        if len(ends) > 1 and plane.name not in ("nvlink", "pcie", "package", "ub"):
            exchange_loads(fabric, ends, 1, plane.name)


def test_shards_may_be_uneven_and_repeat(fabric):
    count = len(fabric.endpoints)
    shards = [(i % count, (7 * i + 1) % len(fabric.sites), 1.5 * i) for i in range(60)]
    shards = [(a % len(fabric.sites), b, size) for a, b, size in shards]
    np.testing.assert_allclose(shard_loads(fabric, shards), every_path(fabric, shards), rtol=1e-12, atol=1e-12)


def test_weights_are_the_mean_over_the_paths(fabric):
    for target in range(1, len(fabric.sites)):
        paths = fabric.paths(0, target)
        weights = path_weights(paths)
        counts = {}
        for path in paths:
            for link in path:
                counts[link] = counts.get(link, 0) + 1
        assert weights == pytest.approx({link: count / len(paths) for link, count in counts.items()}, rel=1e-12)
        assert sum(weights.values()) == pytest.approx(len(paths[0]))  # every path is as long


def test_weights_of_very_many_paths():
    # 16,384 = 32 spines x 16² cables x 2 cores; each cable of a tier carries its share of all
    topology = build_topology("clos3-h100")
    paths = topology.paths(0, len(topology.sites) - 8)
    assert len(paths) == 16384
    weights = path_weights(paths)
    by_tier = {}
    for link, weight in weights.items():
        by_tier.setdefault((topology.links[link].tier, weight), []).append(link)
    assert {key: len(links) for key, links in by_tier.items() if key[0] == "leaf-spine"} == {
        ("leaf-spine", 1 / 32): 64  # up and down
    }
    assert sum(weight for link, weight in weights.items() if topology.links[link].tier == "spine-core") == 2
    # of a torus, 9!/(3!)³ = 1,680 ways for 3 steps each way and 12!/(4!)³ x 2³ across the middle of it
    torus = build_topology("torus-8x8x8")
    paths = torus.paths(0, 4 * 64 + 4 * 8 + 4)
    assert len(paths) == 34650 * 8
    assert sum(path_weights(paths).values()) == pytest.approx(4 + 12)


def test_slices_and_lists_of_paths_have_weights_too():
    topology = FABRICS["three tiers"]()
    paths = topology.paths(0, len(topology.sites) - 2)
    assert path_weights(paths[1:2]) == dict.fromkeys(paths[1], 1.0)
    assert path_weights(list(paths)) == pytest.approx(path_weights(paths))
    assert path_weights(topology.paths(0, 0)) == {}
    with pytest.raises(ValueError, match="no path"):
        path_weights(())


def test_a_graph_of_one_way_links_is_spread_pair_by_pair(tmp_path):
    edges = [("a", "b"), ("b", "c"), ("c", "a"), ("a", "d"), ("d", "c"), ("c", "d")]
    value = {
        "directed": True,
        "nodes": [{"id": name} for name in "abcd"],
        "edges": [{"source": a, "target": b, "bandwidth_Bps": 1e9, "latency_s": 1e-6} for a, b in edges],
    }
    (tmp_path / "g.json").write_text(json.dumps(value))
    topology = graph_topology(tmp_path / "g.json")
    np.testing.assert_allclose(exchange_loads(topology, range(4), 2), every_path(topology, all_pairs(range(4), 2)))


def test_groups_are_sound():
    topology = FABRICS["rails"]()
    assert not exchange_loads(topology, [], 1).any()
    assert not exchange_loads(topology, [3], 1).any()
    with pytest.raises(ValueError, match="each device once"):
        exchange_loads(topology, [1, 2, 1], 1)
    with pytest.raises(ValueError, match="1 blocks for 2 devices"):
        exchange_loads(topology, [1, 2], 1, None, [0])
    with pytest.raises(IndexError):
        exchange_loads(topology, [0, len(topology.sites)], 1)
    with pytest.raises(InputError, match="did you mean 'fabric'"):
        exchange_loads(topology, [0, 1], 1, "fabrik")
