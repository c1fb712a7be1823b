from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.errors import InputError
from simulator.network.routing import (
    ROUTINGS,
    Hashed,
    OnPlane,
    Spraying,
    Ways,
    ecmp,
    mix,
    mixed,
    routing,
    together,
    without_loops,
)
from simulator.topology import build_topology

CLOS = build_topology("clos-h100", {"nodes": 4, "devices_per_node": 2, "switch": {"radix": 8}, "taper": 1})
PLANES = build_topology("multi-plane-h800", {"nodes": 4, "devices_per_node": 4})
TORUS = build_topology("torus-8x8x8", {"dimensions": [4, 4]})
DRAGONFLY = build_topology("dragonfly-h4", {"below": 2, "routers": 4, "across": 2, "groups": 9})
FABRICS = {"clos": CLOS, "planes": PLANES, "torus": TORUS, "dragonfly": DRAGONFLY}


def ends(topology, path):
    links = [topology.links[index] for index in path]
    visited = [links[0].source, *(link.target for link in links)]
    assert [link.source for link in links] == visited[:-1]
    assert len(set(visited)) == len(visited)
    return visited[0], visited[-1]


@given(st.sampled_from(sorted(FABRICS)), st.sampled_from(sorted(ROUTINGS)), st.data())
@settings(max_examples=300, deadline=None)
def test_every_routing_gives_whole_simple_paths_and_shares_that_sum_to_one(fabric, name, data):
    topology = FABRICS[fabric]
    device = st.integers(0, len(topology.sites) - 1)
    source, target, seed, sequence = data.draw(device), data.draw(device), data.draw(st.integers(0, 9)), 5
    shares = routing(name)(topology, seed, source, target, sequence)
    assert tuple(shares) == tuple(routing(name)(topology, seed, source, target, sequence))
    assert list(map(shares.__getitem__, range(len(shares)))) == list(shares)  # one by one, and all together
    assert tuple(shares[:1]) == tuple(shares)[:1]
    if source == target:
        assert shares == ()
        return
    assert sum(share for _, share in shares) == pytest.approx(1, abs=1e-12)
    for path, share in shares:
        assert share > 0
        assert ends(topology, path) == (topology.sites[source].name, topology.sites[target].name)


@given(st.integers(0, 7), st.integers(0, 7), st.one_of(st.none(), st.integers(1, 8)), st.integers(0, 9))
def test_a_sprayed_transfer_puts_on_each_link_what_its_paths_do(source, target, paths, sequence):
    shares = routing("spray", Spraying(paths=paths))(CLOS, 0, source, target, sequence)
    if not shares:
        assert source == target
        return
    way = together(CLOS, shares)
    assert way.path in [path for path, _ in shares]
    expected = {}
    for path, share in shares:
        for link in path:
            expected[link] = expected.get(link, 0) + share
    assert dict(zip(way.links, way.portions or [1.0] * len(way.links), strict=True)) == pytest.approx(expected)
    first, last = way.path[0], way.path[-1]
    assert all(way.portions[way.links.index(link)] == 1.0 for link in (first, last) if way.portions)  # no rounding
    known = Ways(CLOS, 0, routing("spray", Spraying(paths=paths)))
    assert known(source, target, sequence) == known(source, target, sequence) == way


def test_shares_that_do_not_sum_to_one_are_refused():
    with pytest.raises(ValueError, match="do not sum to 1"):
        together(CLOS, (((1,), 0.25), ((2,), 0.25)))


def test_spraying_takes_every_path_once():
    paths = list(CLOS.paths(0, 5))
    assert len(paths) > 2
    shares = routing("spray")(CLOS, 0, 0, 5, 1)
    assert sorted(path for path, _ in shares) == sorted(paths)
    assert {share for _, share in shares} == {1 / len(paths)}


@pytest.mark.parametrize("most", range(1, 12))
def test_spraying_over_k_paths_takes_k_different_ones(most):
    count = len(CLOS.paths(0, 5))
    for sequence in range(20):
        shares = routing("spray", Spraying(paths=most))(CLOS, 0, 0, 5, sequence)
        assert len({path for path, _ in shares}) == len(shares) == min(most, count)


def test_as_many_paths_as_lanes_are_one_in_each():
    topology = build_topology("cloudmatrix384", {"nodes_per_supernode": 4})
    lane = {vertex.name: vertex.plane for vertex in topology.vertices}
    for sequence in range(8):
        shares = routing("spray", Spraying(paths=7))(topology, 3, 0, 17, sequence)
        assert sorted(lane[topology.links[path[0]].target] for path, _ in shares) == [f"ub{i}" for i in range(7)]


def test_ecmp_with_shares_is_ecmp():
    for sequence in range(30):
        assert routing("ecmp")(CLOS, 4, 0, 5, sequence) == ((ecmp(CLOS, 4, 0, 5, sequence), 1.0),)


@pytest.mark.parametrize("known_pairs", [1, 5, 10_000])
def test_what_is_kept_of_pairs_changes_no_choice(monkeypatch, known_pairs):
    monkeypatch.setattr("simulator.network.routing.KNOWN_PAIRS", known_pairs)
    way = Hashed(CLOS, 4)
    pairs = [(source, target) for source in range(8) for target in range(8)]
    for sequence in range(6):
        for source, target in pairs:
            assert way(source, target, sequence) == ecmp(CLOS, 4, source, target, sequence)
            assert len(way._single) + len(way._several) <= known_pairs
    assert mixed(mix(3, 4), 5) == mix(3, 4, 5)


def test_a_plane_can_be_fixed():
    path = routing("ecmp", OnPlane(plane="plane2"))(PLANES, 0, 0, 4, 0)[0][0]
    assert {PLANES.links[i].target.partition("/")[0] for i in path if "leaf" in PLANES.links[i].target} == {"plane2"}


def test_rail_aligned_traffic_stays_below_the_leaf_of_its_rail():
    for source, target in ((0, 3), (1, 2), (0, 2)):
        ((path, _),) = routing("rail_aligned")(CLOS, 0, source, target, 0)
        switches = [CLOS.links[i].target for i in path if CLOS.links[i].target.startswith(("leaf", "spine"))]
        assert switches == [f"leaf0.{target % 2}"]


@pytest.mark.parametrize("fabric", ["torus", "dragonfly"])
def test_valiant_spreads_neighbours_over_the_network(fabric):
    topology = FABRICS[fabric]
    target = 1 if fabric == "torus" else 8
    used, end = Counter(), topology.sites[target].name
    for sequence in range(300):
        ((path, _),) = routing("valiant")(topology, 1, 0, target, sequence)
        used.update(topology.links[i].target for i in path)
    assert not any(used[device] for device in (site.name for site in topology.sites[1:]) if device != end)
    places = {vertex.name: vertex.group or vertex.name for vertex in topology.vertices if vertex.kind == "switch"}
    assert {places[name] for name in used if name in places} == set(places.values())


def test_loops_are_cut_out():
    there, back = TORUS.paths(0, 5)[0], TORUS.paths(5, 1)[0]
    simple = without_loops(TORUS, there + back)
    assert ends(TORUS, simple) == (TORUS.sites[0].name, TORUS.sites[1].name)
    assert without_loops(TORUS, there + TORUS.paths(5, 0)[0]) == ()
    assert without_loops(TORUS, there) == there
    assert without_loops(TORUS, ()) == ()


def test_an_unknown_routing_is_refused():
    with pytest.raises(InputError, match="did you mean 'spray'"):
        routing("spary")
