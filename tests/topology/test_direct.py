"""Identities of direct networks: finite fields, MMS graphs, circulant Dragonflies, tori; published counts."""

from collections import Counter
from itertools import product

import numpy as np
import pytest
from fabrics import build, greatest_flow, parameters, tiers, trunks, walk
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from simulator.topology.direct import dragonfly_counts, group_pairs, slim_fly_counts, slim_fly_pairs
from simulator.topology.galois import FiniteField, is_prime_power

SETTINGS = settings(max_examples=40, deadline=None)


FIELDS = [3, 4, 5, 7, 8, 9, 11, 13, 16, 17, 19, 23, 25, 27, 29, 31, 32]


@pytest.mark.parametrize("q", [*FIELDS, 49, 64, 81])
def test_a_field_is_a_field(q):
    field, some = FiniteField(q), range(q) if q <= 16 else range(1, q, q // 5)
    assert sorted(field.powers) == list(range(1, q))
    for a in range(q):
        assert (field.add(a, 0), field.multiply(a, 1), field.subtract(a, a)) == (a, a, 0)
        for b in range(q):
            assert field.add(field.subtract(a, b), b) == a
            assert field.add(a, b) == field.add(b, a)
            assert field.multiply(a, b) == field.multiply(b, a)
        row = sorted(field.multiply(a, b) for b in range(q))
        assert row == ([0] * q if a == 0 else list(range(q)))
    for a, b, c in product(some, repeat=3):
        assert field.add(field.add(a, b), c) == field.add(a, field.add(b, c))
        assert field.multiply(field.multiply(a, b), c) == field.multiply(a, field.multiply(b, c))
        assert field.multiply(a, field.add(b, c)) == field.add(field.multiply(a, b), field.multiply(a, c))


@given(st.integers(0, 400))
def test_a_field_has_a_power_of_a_prime_of_elements(q):
    primes = [p for p in range(2, 401) if all(p % d for d in range(2, p))]
    assert is_prime_power(q) == any(p**n == q for p in primes for n in range(1, 10))


def test_the_published_slim_fly_has_no_construction():
    # arXiv 2505.09343: 32,928 endpoints, 1,568 switches, 32,928 links. Those are the formulas at q = 28, of which there
    # is no field, and so no such graph by the published construction: with 64 ports it gives, nearest to it,
    #   q = 27: degree 41, 21 devices below, 62 ports, 2 q² 21 = 30,618 endpoints
    #   q = 29: degree 43, 21 devices below (half its cables, 22, would need 65 ports), 2 q² 21 = 35,322 endpoints
    published = slim_fly_counts(28)
    assert (published.devices, published.routers, published.cables) == (32928, 1568, 32928)
    with pytest.raises(ValidationError, match="a power of a prime, found 28; the nearest are 27 and 29"):
        parameters("slim_fly", q=28, devices_per_node=1)
    with pytest.raises(ValueError, match="28 is no power of a prime"):
        slim_fly_pairs(28)
    below, above = (parameters("slim_fly", q=q, concentration=21, devices_per_node=1) for q in (27, 29))
    assert [(chosen.degree, chosen.nodes) for chosen in (below, above)] == [(41, 30618), (43, 35322)]
    with pytest.raises(ValidationError, match="a router needs 65 ports"):
        parameters("slim_fly", q=29, devices_per_node=1)
    counts = slim_fly_counts(27)
    assert (counts.devices, counts.routers, counts.cables) == (30618, 1458, 29889)
    assert len(slim_fly_pairs(27)) == counts.cables


def test_the_published_dragonfly_is_built_of_511_groups():
    # arXiv 2505.09343: 261,632 endpoints, 16,352 switches, 384,272 links. With p = 16, a = 32, h = 16 a router has
    # 16 + 31 + 16 = 63 ports and as many as a h + 1 = 513 groups fit, p a 513 = 262,656 endpoints; the row has two less
    counts, full = dragonfly_counts(16, 32, 16, 511), dragonfly_counts(16, 32, 16, 513)
    assert (counts.devices, counts.routers, counts.cables) == (261632, 16352, 384272)
    assert (full.devices, full.routers, full.cables) == (262656, 16416, 385776)
    assert parameters("dragonfly", below=16, routers=32, across=16, groups=511, devices_per_node=1).nodes == 261632
    for groups in (511, 513):
        pairs = group_pairs(32 * 16, groups)
        assert set(Counter(group for pair in pairs for group in pair).values()) == {32 * 16}
        assert len({frozenset(pair) for pair in pairs}) == groups * (groups - 1) // 2  # every two groups are joined


@pytest.mark.parametrize("q", FIELDS)
def test_every_slim_fly_is_regular_and_of_diameter_two(q):
    # 2 q² routers of degree (3 q - delta) / 2, q = 4 w + delta; a graph of diameter two: A + A² has no zero but itself
    pairs, delta = slim_fly_pairs(q), {0: 0, 1: 1, 3: -1}[q % 4]
    joined = np.zeros((2 * q * q, 2 * q * q), np.float32)
    for left, right in pairs:
        joined[left, right] = joined[right, left] = 1
    assert joined.sum(axis=0).tolist() == [(3 * q - delta) // 2] * (2 * q * q)
    assert joined.sum() == 2 * len(pairs)  # no cable twice
    assert joined.trace() == 0
    assert np.all(joined + joined @ joined + np.eye(2 * q * q) > 0)


@pytest.mark.parametrize("q", [3, 4, 5, 7, 8, 9])
def test_slim_fly_is_regular_and_of_diameter_two(q):
    topology = build("slim_fly", q=q, devices_per_node=1)
    counts = slim_fly_counts(q)
    assert (len(topology.sites), sum(tiers(topology).values()), trunks(topology)) == (
        counts.devices,
        counts.routers,
        counts.cables,
    )
    near = {}
    for link in topology.links:
        if link.tier == "router-router":
            near.setdefault(link.source, set()).add(link.target)
    degrees = {len(others) for others in near.values()}
    assert len(near) == 2 * q * q
    assert degrees == {2 * counts.cables // counts.routers}
    for others in near.values():
        assert len(others.union(*(near[name] for name in others))) == 2 * q * q


def test_slim_fly_bisection_is_the_greatest_flow():
    for more in ({"q": 3}, {"q": 4}, {"q": 5}, {"q": 3, "concentration": 6}):
        topology = build("slim_fly", devices_per_node=1, **more)
        assert topology.bisection_bytes_per_s == greatest_flow(topology)


@given(st.integers(1, 3), st.integers(2, 5), st.integers(1, 3), st.integers(2, 16))
@SETTINGS
def test_dragonfly_counts_ports_and_minimal_paths(below, routers, across, groups):
    assume(groups <= routers * across + 1)
    topology = build("dragonfly", below=below, routers=routers, across=across, groups=groups, devices_per_node=1)
    counts = dragonfly_counts(below, routers, across, groups)
    assert (len(topology.sites), sum(tiers(topology).values()), trunks(topology)) == (
        counts.devices,
        counts.routers,
        counts.cables,
    )
    ports = {}
    for link in topology.links:
        if link.tier == "group-group":
            ports[link.source] = ports.get(link.source, 0) + 1
    assert max(ports.values()) <= across
    if routers * across % 2 == 0 and groups % 2:
        assert counts.cables == groups * (routers * (routers - 1) + routers * across) // 2
    for target in range(1, len(topology.sites)):
        paths = topology.paths(0, target)
        kinds = [[topology.links[i].tier for i in path] for path in paths]
        home = topology.sites[target].index // (below * routers) == 0
        assert all(kind.count("group-group") == (not home) and kind.count("router-router") <= 2 for kind in kinds)
        for path in paths:
            walk(topology, 0, target, path)
    assert topology.bisection_bytes_per_s >= greatest_flow(topology)


@pytest.mark.parametrize("groups", range(2, 10))
def test_balanced_dragonfly_bisection_is_the_greatest_flow(groups):
    topology = build("dragonfly", below=2, routers=4, across=2, groups=groups, devices_per_node=1)
    assert topology.bisection_bytes_per_s == greatest_flow(topology)


@given(st.lists(st.integers(2, 5), min_size=1, max_size=3), st.data())
@SETTINGS
def test_torus_paths_are_all_dimension_orders(sizes, data):
    topology = build("torus", dimensions=sizes, devices_per_node=1)
    cables = sum(len(topology.sites) // (1 if size > 2 else 2) for size in sizes)
    assert trunks(topology) == cables
    target = data.draw(st.integers(1, len(topology.sites) - 1))
    at, rest = [], target
    for size in reversed(sizes):
        rest, place = divmod(rest, size)
        at.insert(0, place)
    steps = [min(place, size - place) for place, size in zip(at, sizes, strict=True)]
    orders = 1
    for before, (step, place, size) in enumerate(zip(steps, at, sizes, strict=True)):
        total = sum(steps[: before + 1])
        for i in range(step):
            orders = orders * (total - i) // (i + 1)
        orders *= 2 if size > 2 and 2 * place == size else 1
    paths = topology.paths(0, target)
    assert len(paths[0]) == 4 + sum(steps)
    assert len(paths) == len(set(paths)) == orders
    walk(topology, 0, target, paths[-1])


@pytest.mark.parametrize("sizes", [(4,), (4, 3), (4, 4), (2, 4, 3), (6, 2)])
def test_torus_bisection_is_the_greatest_flow(sizes):
    topology = build("torus", dimensions=sizes, devices_per_node=2)
    assert topology.bisection_bytes_per_s == greatest_flow(topology)
