"""Expert routing and exchange: closed forms, conservation, bounds, samples against expectations, flows and times."""

from itertools import combinations
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.clock import Clock
from simulator.network import Fabric
from simulator.network.collectives_constants import Phase
from simulator.network.dispatch import (
    exchange_ns,
    expected_copies,
    high_throughput,
    low_latency,
    sampled_copies,
    token_bytes,
)
from simulator.network.expert_routing import ExpertRouting
from simulator.topology import build_topology

POD = build_topology("clos-h100", {"nodes": 4})
PLAIN = Phase(base="0 ns", network_base="0 ns", local_share=1.0)


def placed(experts, ranks, per_node):
    """Return (rank of each expert, node of each expert), experts spread evenly in order."""
    rank_of = [e * ranks // experts for e in range(experts)]
    return rank_of, tuple(rank // per_node for rank in rank_of)


def by_listing(node_of, k, limit, weights):
    """Expert, and node, probabilities by listing every pair of a node set and a set of experts within it."""
    nodes, total = max(node_of) + 1, 0.0
    expert, node = np.zeros(len(node_of)), np.zeros(nodes)
    for inside in combinations(range(nodes), limit):
        for chosen in combinations([e for e, n in enumerate(node_of) if n in inside], k):
            weight = np.prod([weights[e] for e in chosen])
            total += weight
            expert[list(chosen)] += weight
            node[sorted({node_of[e] for e in chosen})] += weight
    return expert / total, node / total


def test_uniform_routing_has_its_closed_forms():
    _, node_of = placed(256, 64, 8)
    free = ExpertRouting(node_of, 8)
    assert free.expert_probability == pytest.approx(np.full(256, 8 / 256))
    assert free.hit_probability([range(4)])[0] == pytest.approx(1 - comb(252, 8) / comb(256, 8))
    limited = ExpertRouting(node_of, 8, node_limit=4)
    assert limited.expert_probability == pytest.approx(np.full(256, 8 / 256))
    assert limited.hit_probability([range(4)])[0] == pytest.approx(4 / 8 * (1 - comb(124, 8) / comb(128, 8)))
    assert limited.node_probability() == pytest.approx(np.full(8, 4 / 8 * (1 - comb(96, 8) / comb(128, 8))))


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_probabilities_are_those_of_a_listing(data):
    nodes = data.draw(st.integers(1, 4))
    sizes = data.draw(st.lists(st.integers(1, 3), min_size=nodes, max_size=nodes))
    node_of = tuple(node for node, size in enumerate(sizes) for _ in range(size))
    limit = data.draw(st.integers(1, nodes))
    k = data.draw(st.integers(1, sum(sorted(sizes)[-limit:])))
    routing = ExpertRouting(node_of, k, None, limit)
    weights = np.array(data.draw(st.lists(st.floats(0.1, 10), min_size=len(node_of), max_size=len(node_of))))
    routing.__dict__["weights"] = weights
    expert, node = by_listing(node_of, k, limit, weights)
    assert routing.expert_probability == pytest.approx(expert, abs=1e-9)
    assert routing.node_probability() == pytest.approx(node, abs=1e-9)
    assert routing.hit_probability([[e] for e in range(len(node_of))]) == pytest.approx(expert, abs=1e-9)


@given(st.lists(st.floats(0.2, 5), min_size=16, max_size=16), st.integers(1, 3), st.sampled_from([None, 2, 3]))
@settings(max_examples=30, deadline=None)
def test_loads_are_met(loads, k, limit):
    if k * max(loads) > 0.9 * sum(loads):
        return
    _, node_of = placed(16, 8, 2)
    routing = ExpertRouting(node_of, k, tuple(loads), limit)
    assert routing.expert_probability == pytest.approx(k * np.array(loads) / sum(loads), abs=1e-3)
    assert routing.expert_probability.sum() == pytest.approx(k)


@given(st.integers(1, 8), st.sampled_from([None, 2, 3]), st.integers(0, 2**32))
@settings(max_examples=25, deadline=None)
def test_samples_are_distinct_experts_on_few_nodes(k, limit, seed):
    _, node_of = placed(32, 16, 4)
    chosen = ExpertRouting(node_of, k, None, limit).sample(50, np.random.default_rng(seed))
    assert (chosen.sum(axis=1) == k).all()
    assert (chosen.reshape(50, 4, 8).any(axis=2).sum(axis=1) <= (limit or 4)).all()


@pytest.mark.parametrize("limit", [None, 2])
def test_samples_have_the_expected_frequencies(limit):
    _, node_of = placed(32, 16, 4)
    loads = tuple(np.random.default_rng(3).lognormal(0, 0.6, 32))
    routing, tokens = ExpertRouting(node_of, 4, loads, limit), 40_000
    chosen = routing.sample(tokens, np.random.default_rng(5))
    p = routing.expert_probability
    assert (np.abs(chosen.mean(axis=0) - p) < 5 * np.sqrt(p * (1 - p) / tokens)).all()
    q = routing.node_probability()
    on_node = chosen.reshape(tokens, 4, 8).any(axis=2).mean(axis=0)
    assert (np.abs(on_node - q) < 5 * np.sqrt(q * (1 - q) / tokens) + 1e-12).all()


@given(
    st.lists(st.integers(0, 200), min_size=8, max_size=8),
    st.integers(1, 4),
    st.sampled_from([None, 1, 2]),
    st.booleans(),
    st.integers(0, 100),
)
@settings(max_examples=40, deadline=None)
def test_tokens_and_bytes_are_conserved(tokens, k, limit, sampled, seed):
    rank_of, node_of = placed(16, 8, 4)
    routing = ExpertRouting(node_of, k, None, limit)
    copies = sampled_copies(tokens, routing, rank_of, seed) if sampled else expected_copies(tokens, routing, rank_of)
    count = np.array(tokens)
    assert copies.experts.sum(axis=1) == pytest.approx(k * count)
    assert (copies.ranks.sum(axis=1) <= np.minimum(k, 8) * count + 1e-9).all()
    assert (copies.ranks.sum(axis=1) >= copies.nodes.sum(axis=1) - 1e-9).all()
    assert (copies.nodes.sum(axis=1) >= count * (1 - 1e-9)).all()
    assert (copies.nodes.sum(axis=1) <= count * min(k, limit or 2) + 1e-9).all()
    straight, relayed = low_latency(copies, 7392), high_throughput(copies, 7392)
    assert straight.phases[0].sum() == pytest.approx(7392 * k * sum(tokens))
    between, inside = relayed.phases
    assert between.sum() <= 7392 * copies.nodes.sum() + 1e-6
    assert inside.sum() == pytest.approx(7392 * copies.ranks.sum())
    for traffic in (straight, relayed):
        out, back = traffic.ports(), traffic.reversed(14336).ports()
        for kind in ("local", "network"):
            assert out[f"{kind}_out"].sum() == pytest.approx(out[f"{kind}_in"].sum())
            assert back[f"{kind}_in"] == pytest.approx(out[f"{kind}_out"] * 14336 / 7392)
            assert back[f"{kind}_out"] == pytest.approx(out[f"{kind}_in"] * 14336 / 7392)
        moved = sum(size for shards in traffic.rounds(range(8)) for _, _, size in shards)
        assert moved == pytest.approx(sum(out[f"{kind}_out"].sum() for kind in ("local", "network")), abs=64)


def test_samples_come_from_named_streams():
    rank_of, node_of = placed(16, 8, 4)
    routing = ExpertRouting(node_of, 2)
    once = sampled_copies([100] * 8, routing, rank_of, 1)
    again = sampled_copies([50] * 4 + [100] * 4, routing, rank_of, 1)
    assert (once.experts[4:] == again.experts[4:]).all()  # a rank's draws are its own
    assert (once.experts != sampled_copies([100] * 8, routing, rank_of, 2).experts).any()
    assert (once.experts != sampled_copies([100] * 8, routing, rank_of, 1, "other").experts).any()


def test_high_throughput_crosses_the_network_once_per_node():
    rank_of, node_of = placed(256, 32, 8)
    copies = expected_copies([4096] * 32, ExpertRouting(node_of, 8), rank_of)
    straight, relayed = low_latency(copies, 7392).ports(), high_throughput(copies, 7392).ports()
    assert straight["network_out"] == pytest.approx(np.full(32, 4096 * 8 * 24 / 32 * 7392))
    per_node = 1 - comb(192, 8) / comb(256, 8)
    assert relayed["network_out"] == pytest.approx(np.full(32, 4096 * 3 * per_node * 7392))
    limited = expected_copies([4096] * 32, ExpertRouting(node_of, 8, None, 2), rank_of)
    assert high_throughput(limited, 7392).ports()["network_out"].sum() < relayed["network_out"].sum()


def test_skewed_loads_fill_a_port_and_cost_time():
    rank_of, node_of = placed(64, 8, 8)
    even = expected_copies([128] * 8, ExpertRouting(node_of, 4), rank_of)
    loads = tuple(4.0 if e < 8 else 1.0 for e in range(64))
    skewed = expected_copies([128] * 8, ExpertRouting(node_of, 4, loads), rank_of)
    times = [exchange_ns(low_latency(copies, 7392), PLAIN, 450e9, 50e9) for copies in (even, skewed)]
    # rank 0 takes 4 x 8 of 4 x 8 + 56 parts of the copies where it took an eighth
    assert times[1] / times[0] == pytest.approx(32 / 88 * 8)


@pytest.mark.parametrize("nodes", [1, 2])
def test_the_load_form_is_the_time_of_the_flows(nodes):
    ranks = 8 * nodes
    rank_of, node_of = placed(256, ranks, 8)
    copies = expected_copies([10**6] * ranks, ExpertRouting(node_of, 8), rank_of)
    for traffic in (high_throughput(copies, 7392), low_latency(copies, 7392)):
        env = Clock()
        fabric = Fabric(env, POD, 0)

        def play(traffic=traffic, fabric=fabric):
            for shards in traffic.rounds(range(ranks)):
                yield fabric.transfer(shards)

        env.process(play())
        env.run()
        load = exchange_ns(traffic, PLAIN, 450e9, 50e9)
        if nodes == 1:
            assert env.now == pytest.approx(load, rel=1e-4)  # and the latency of the path
        else:
            assert env.now > load * (1 - 1e-6)  # rounds wait for each other, and paths across rails collide


def test_times_add_base_and_the_slower_of_links_and_processors():
    rank_of, node_of = placed(64, 16, 8)
    copies = expected_copies([100] * 16, ExpertRouting(node_of, 4), rank_of)
    traffic = low_latency(copies, 1000)
    phase = Phase(
        base="10 us",
        network_base="5 us",
        local_share=0.5,
        network_share=0.8,
        copy_processor_time=100.0,
        processor_share=0.01,
    )
    links_ns = 10_000 + 5_000 + 200_000 / (0.8 * 50)
    assert exchange_ns(traffic, phase, 450e9, 50e9) == pytest.approx(links_ns)
    slow_ns = 15_000 + 400 * (100 + 1000 / 4.5) / 2
    assert exchange_ns(traffic, phase, 450e9, 50e9, processors=2) == pytest.approx(slow_ns)
    assert exchange_ns(traffic, phase, 450e9, 50e9, processors=1000) == pytest.approx(links_ns)


def test_token_bytes():
    assert token_bytes(7168, 8, 128) == 7168 + 56 * 4
    assert token_bytes(7168, 16) == 14336
    assert token_bytes(7169, 4, 32, 1) == 3585 + 225


def test_what_is_refused():
    rank_of, node_of = placed(16, 8, 4)
    for call, words in (
        (lambda: ExpertRouting(node_of, 17), "17 distinct experts"),
        (lambda: ExpertRouting(node_of, 9, None, 1), "do not exist on 1 nodes"),
        (lambda: ExpertRouting(node_of, 2, None, 3), "3 nodes of 2"),
        (lambda: ExpertRouting(node_of, 2, (1.0,) * 15), "each expert"),
        (lambda: ExpertRouting(node_of, 2, (100.0, *[1.0] * 15)), "twice"),
        (lambda: ExpertRouting(node_of, 2).hit_probability([[0, 15]]), "several nodes"),
        (lambda: expected_copies([1] * 9, ExpertRouting(node_of, 2), rank_of), "without an expert"),
        (lambda: expected_copies([1] * 8, ExpertRouting(node_of, 2), rank_of[1:]), "15 placed experts"),
    ):
        with pytest.raises(ValueError, match=words):
            call()
    uneven = expected_copies([1] * 3, ExpertRouting((0, 0, 1), 1), [0, 1, 2])
    with pytest.raises(ValueError, match="as many ranks"):
        high_throughput(uneven, 1)
