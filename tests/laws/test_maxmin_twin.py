"""Max-min sharing against a textbook twin in exact fractions, its defining property, and hand-derived systems."""

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.network.maxmin import maxmin_rates


def textbook(paths, capacities, weights, caps, portions):
    """Progressive filling as in the textbook: raise all unfixed flows together until a link fills or a cap is met."""
    share = [
        {link: Fraction(part) for link, part in zip(path, own, strict=True)}
        for path, own in zip(paths, portions, strict=True)
    ]
    rates = [Fraction(0)] * len(paths)
    rising = set(range(len(paths)))
    while rising:
        steps = [(Fraction(caps[f]) - rates[f]) / Fraction(weights[f]) for f in rising if caps[f] is not None]
        for link, capacity in enumerate(capacities):
            pull = sum(Fraction(weights[f]) * share[f][link] for f in rising if link in paths[f])
            if pull:
                load = sum(rates[f] * share[f][link] for f in range(len(paths)) if link in paths[f])
                steps.append((Fraction(capacity) - load) / pull)
        step = min(steps)
        for f in rising:
            rates[f] += step * Fraction(weights[f])
        full = {
            link
            for link, capacity in enumerate(capacities)
            if sum(rates[f] * share[f][link] for f in range(len(paths)) if link in paths[f]) == capacity
        }
        rising = {f for f in rising if not full & set(paths[f]) and rates[f] != caps[f]}
    return rates


@st.composite
def systems(draw):
    links = draw(st.integers(1, 8))
    capacities = draw(st.lists(st.integers(0, 10**12), min_size=links, max_size=links))
    path = st.lists(st.integers(0, links - 1), min_size=1, max_size=links, unique=True)
    paths = draw(st.lists(path, max_size=14))
    weight = st.sampled_from([1, 2, 3, 0.5, 1.25])
    cap = st.one_of(st.none(), st.integers(0, 10**12))
    weights = draw(st.lists(weight, min_size=len(paths), max_size=len(paths)))
    caps = draw(st.lists(cap, min_size=len(paths), max_size=len(paths)))
    part = st.sampled_from([1, 1, 0.5, 0.25, 0.75]) if draw(st.booleans()) else st.just(1)
    portions = [draw(st.lists(part, min_size=len(path), max_size=len(path))) for path in paths]
    return paths, capacities, weights, caps, portions


@given(systems())
@settings(max_examples=400, deadline=None)
def test_agrees_with_the_textbook(system):
    paths, capacities, weights, caps, portions = system
    open_caps = [float("inf") if cap is None else cap for cap in caps]
    rates = maxmin_rates(paths, capacities, weights, open_caps, portions)
    for rate, exact in zip(rates, textbook(paths, capacities, weights, caps, portions), strict=True):
        assert rate == pytest.approx(float(exact), rel=1e-9, abs=1e-6)


@given(systems(), st.randoms(use_true_random=False))
@settings(max_examples=100, deadline=None)
def test_is_blind_to_the_order_of_flows_and_to_links_nobody_uses(system, random):
    paths, capacities, *_ = system
    rates = maxmin_rates(paths, capacities)
    order = list(range(len(paths)))
    random.shuffle(order)
    shuffled = maxmin_rates([paths[i] for i in order], [*capacities, 7])
    assert shuffled == pytest.approx([rates[i] for i in order], rel=1e-12, abs=1e-6)


def test_one_link_of_capacity_c_gives_each_of_n_flows_c_over_n():
    assert maxmin_rates([(0,)] * 5, [40]) == [8] * 5


def test_no_flows_no_rates():
    assert maxmin_rates([], [10]) == []


def test_a_flow_without_links_is_bound_by_its_cap_alone():
    assert maxmin_rates([(), ()], [], caps=[3, float("inf")]) == [3, float("inf")]


def test_parking_lot():
    # flow L crosses links 0, 1, 2 of capacity c; flow i crosses link i: each link holds two, so all get c/2
    assert maxmin_rates([(0, 1, 2), (0,), (1,), (2,)], [10, 10, 10]) == [5, 5, 5, 5]
    # with c1 = c/2 the long flow is held to c/4 there, and the others take c - c/4 and c/4
    assert maxmin_rates([(0, 1, 2), (0,), (1,), (2,)], [10, 5, 10]) == [2.5, 7.5, 2.5, 7.5]


def test_dumbbell():
    # n senders of access a_i meet a core of capacity c: those with a_i < share keep a_i, the rest divide what is left
    access = [1, 2, 30, 40]
    paths = [(i, 4) for i in range(4)]
    assert maxmin_rates(paths, [*access, 23]) == [1, 2, 10, 10]


def test_incast_is_bound_by_the_receiver():
    # n senders at c into one receiver at c: c/n each
    assert maxmin_rates([(i, 8) for i in range(8)], [50] * 9) == [6.25] * 8


def test_two_paths_to_one_receiver():
    # flows 0 and 1 share uplink A, flow 2 has uplink B alone, all end in a port of capacity p = 3c/2:
    # the port's fair share p/3 = c/2 is also A's: all get c/2; with p = 2c, A holds 0 and 1 to c/2 and 2 gets c
    paths = [(0, 2), (0, 2), (1, 2)]
    assert maxmin_rates(paths, [10, 10, 15]) == [5, 5, 5]
    assert maxmin_rates(paths, [10, 10, 20]) == [5, 5, 10]


def test_weights_divide_a_link_in_proportion():
    # rate_i = w_i c / sum(w)
    assert maxmin_rates([(0,)] * 3, [12], weights=[1, 2, 3]) == [2, 4, 6]


def test_caps_leave_their_rest_to_the_others():
    # a cap k below the share c/3 leaves (c - k)/2 to each of the others; a cap above it changes nothing
    assert maxmin_rates([(0,)] * 3, [12], caps=[2, 100, float("inf")]) == [2, 5, 5]


def test_a_sprayed_flow_is_as_fast_as_its_narrowest_path_lets_it():
    # over a NIC of capacity c and two paths with half of it each: min(c, 2 p1, 2 p2)
    assert maxmin_rates([(0, 1, 2)], [10, 4, 9], portions=[(1, 0.5, 0.5)]) == [8]
    # a flow of its own on path 1 takes r there and the sprayed one r / 2: r = 2 p1 / 3 for both
    assert maxmin_rates([(0, 1, 2), (1,)], [10, 6, 9], portions=[(1, 0.5, 0.5), (1,)]) == [4, 4]


def test_a_dead_link_stops_its_flows_and_frees_the_rest():
    assert maxmin_rates([(0, 1), (1,)], [0, 10]) == [0, 10]


@pytest.mark.parametrize("weights", [[0], [-1]])
def test_weights_that_are_not_positive_are_refused(weights):
    with pytest.raises(ValueError, match="weight"):
        maxmin_rates([(0,)], [1], weights=weights)
