"""Laws of collectives: bounds, monotony in bytes and ranks, invariance, conservation of the data that flows move."""

import pytest
from barrier_rounds import steps
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator import catalog
from simulator.network.collectives import FORMS, LIBRARY, Choice, Collectives, Envelope, choices
from simulator.network.collectives_constants import load_constants
from simulator.network.collectives_phases import phases
from simulator.network.collectives_shape import GroupShape, group_nodes, group_shape
from simulator.topology import build_topology

NS = 10**9
POD = build_topology("clos-h100", {"nodes": 4})
MEASURED = [name for name in catalog.names("topologies/collectives") if name != "ideal"]
DEVICES = [name for name in MEASURED if load_constants(name).kernels]
CONSTANTS = {name: load_constants(name) for name in DEVICES}
COLLECTIVES = {name: Collectives(POD, constants) for name, constants in CONSTANTS.items()}
groups = st.lists(st.integers(0, 31), min_size=2, max_size=12, unique=True)
operations = st.sampled_from(["all_reduce", "reduce_scatter", "all_gather", "broadcast", "all_to_all"])
sizes = st.integers(0, 10**11)
constants = st.sampled_from(DEVICES)


@settings(deadline=None)
@given(groups, operations, sizes, st.integers(0, 10**10), constants)
def test_more_bytes_never_take_less_time(devices, operation, size, more, name):
    collectives = COLLECTIVES[name]
    first, second = (collectives.time_ns(operation, devices, b) for b in (size, size + more))
    assert 0 < first <= second * (1 + 1e-12)


@settings(deadline=None)
@given(groups, operations, sizes, constants, st.randoms(use_true_random=False))
def test_the_order_in_which_ranks_are_named_changes_nothing(devices, operation, size, name, random):
    shuffled = random.sample(devices, len(devices))
    assert group_shape(POD, devices) == group_shape(POD, shuffled)
    collectives = COLLECTIVES[name]
    assert collectives.choose(operation, devices, size) == collectives.choose(operation, shuffled, size)


@settings(deadline=None)
@given(st.integers(2, 7), operations, sizes, constants)
def test_more_ranks_of_a_node_never_take_less_time_by_one_algorithm(ranks, operation, size, name):
    few, many = (GroupShape(n, 1, n, 450e9) for n in (ranks, ranks + 1))
    smaller = {(c.algorithm, c.protocol): c for c in choices(operation, few, CONSTANTS[name])}
    for choice in choices(operation, many, CONSTANTS[name]):
        if choice.algorithm == "in_switch":  # the switch sends one sum back, and a smaller part of it to each
            continue
        if choice.algorithm == "tree" and ranks == 2:  # a chain without a middle is none
            continue
        before = smaller[choice.algorithm, choice.protocol].time_ns(size)
        assert choice.time_ns(size) >= before * (1 - 1e-12), choice


@settings(deadline=None)
@given(st.integers(1, 3), st.sampled_from(["all_reduce", "reduce_scatter", "all_gather"]), sizes, constants)
def test_more_nodes_never_take_less_time(nodes, operation, size, name):
    collectives = COLLECTIVES[name]
    few, many = (
        min(c.time_ns(size) for c in choices(operation, collectives.shape(range(8 * n)), CONSTANTS[name], ["ring"]))
        for n in (nodes, nodes + 1)
    )
    assert many >= few * (1 - 1e-12)


@settings(deadline=None)
@given(groups, sizes, constants)
def test_no_collective_beats_the_links_of_a_rank(devices, size, name):
    """A rank must send or receive (n - 1) / n of an all-gather, twice that of an all-reduce without a switch's sums."""
    collectives, ranks = COLLECTIVES[name], len(devices)
    ports = 450e9 + 50e9
    must = (ranks - 1) / ranks * size / ports * NS
    for operation in ("reduce_scatter", "all_gather", "all_to_all"):
        assert collectives.time_ns(operation, devices, size) >= must
    ring = collectives.choose("all_reduce", devices, size, algorithms=["ring"])
    assert ring.time_ns(size) >= 2 * must
    assert collectives.time_ns("all_reduce", devices, size) >= size / ports * NS
    assert collectives.time_ns("broadcast", devices, size) >= size / ports * NS


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), min_size=1, max_size=12), st.integers(0, 10**4))
def test_the_envelope_is_the_least_line(pairs, tenths):
    lines = [Choice(str(i), "", float(a), float(b)) for i, (a, b) in enumerate(pairs)]
    size = tenths / 10
    assert Envelope(lines).at(size).time_ns(size) == pytest.approx(min(line.time_ns(size) for line in lines), rel=1e-12)


def edges(rounds):
    """The bytes of each edge over all rounds, those without any left out."""
    found = {}
    for shards in rounds:
        for source, target, size in shards:
            found[source, target] = found.get((source, target), 0) + size
    return {edge: size for edge, size in found.items() if size}


def suits(algorithm, nodes):
    ranks, even = sum(map(len, nodes)), len({len(node) for node in nodes}) == 1
    if algorithm == "halving_doubling":
        return even and not ranks & (ranks - 1)
    return even if algorithm in ("hierarchical", "tree", "pxn") else True


@settings(deadline=None)
@given(groups, st.integers(0, 10**9), st.data())
def test_phases_move_what_the_rounds_of_the_algorithm_move_edge_by_edge(devices, size, data):
    nodes, ranks = group_nodes(POD, devices), len(devices)
    operation = data.draw(st.sampled_from([name for name in FORMS if name != "send_receive" or ranks == 2]))
    algorithm = data.draw(st.sampled_from([a for a in FORMS[operation] if a != "in_switch" and suits(a, nodes)]))
    found = phases(POD, operation, algorithm, nodes, size)
    moved = [phase.exchange.shards() if phase.exchange is not None else phase.shards for phase in found]
    assert edges(moved) == edges(steps(operation, algorithm, nodes, size))
    for shards in moved:
        assert len({(source, target) for source, target, _ in shards}) == len(shards)
        assert all(source in devices and target in devices and source != target for source, target, _ in shards)


@settings(deadline=None)
@given(groups, st.integers(0, 10**9), st.data())
def test_phases_move_exactly_what_the_operation_must_move(devices, size, data):
    nodes, ranks = group_nodes(POD, devices), len(devices)
    operation = data.draw(st.sampled_from(["reduce_scatter", "all_gather", "all_reduce", "broadcast"]))
    algorithm = data.draw(st.sampled_from([a for a in FORMS[operation] if a != "in_switch" and suits(a, nodes)]))
    found = phases(POD, operation, algorithm, nodes, size)
    total = sum(
        amount
        for phase in found
        for _, _, amount in (phase.exchange.shards() if phase.exchange is not None else phase.shards)
    )
    once = (ranks - 1) * size
    factor = {"reduce_scatter": 1, "all_gather": 1, "all_reduce": 2, "broadcast": 1}[operation]
    if algorithm == "one_shot":
        assert total == ranks * once
    elif algorithm == "tree":
        assert total == 2 * once
    else:
        assert total == pytest.approx(factor * once, abs=2 * ranks * ranks)


def test_a_reduce_scatter_sums_each_part_once_and_an_all_gather_brings_it_to_all():
    """Replay the rounds of a ring: who has which contributions to which part, none of them twice."""
    ranks = 8
    rounds = steps("all_reduce", "ring", group_nodes(POD, range(ranks)), ranks)
    assert len(rounds) == 2 * (ranks - 1)
    sums = [[{rank} for _ in range(ranks)] for rank in range(ranks)]  # of each rank and part: whose contributions
    for number, shards in enumerate(rounds):
        sent = [
            (target, (source - number) % ranks, set(sums[source][(source - number) % ranks]))
            for source, target, _ in shards
        ]
        for target, part, contributions in sent:
            if number < ranks - 1:
                assert not sums[target][part] & contributions
                sums[target][part] |= contributions
            else:
                sums[target][part] = contributions
        if number == ranks - 2:
            whole = [[part for part in range(ranks) if len(sums[rank][part]) == ranks] for rank in range(ranks)]
            assert sorted(part for parts in whole for part in parts) == list(range(ranks))
    assert all(len(part) == ranks for parts in sums for part in parts)


@settings(deadline=None)
@given(groups, constants)
def test_every_library_choice_has_finite_times_on_every_group(devices, name):
    shape = group_shape(POD, devices)
    for operation in LIBRARY:
        if operation == "send_receive" and len(devices) != 2:
            continue
        for choice in choices(operation, shape, CONSTANTS[name]):
            assert 0 < choice.latency_ns < 10**9
            assert 0 < choice.ns_per_byte < 10**3
