"""The fullest rank: equal to the closed form of equal experts, to drawn choices, and to a model's measured routing.

Twins draw every token's experts one by one; measured routing is counted batch by batch in the half of the requests
from which no popularity was taken.
"""

from pathlib import Path

import numpy as np
import pytest

from simulator.model.expert_balance import ExpertBalance, expected_maximum
from simulator.model.expert_group import Group
from simulator.model.expert_load import rank_load
from simulator.model.expert_placement import balanced, contiguous, copies_of
from simulator.model.expert_popularity import counted, uniform, zipf
from simulator.network.expert_routing import ExpertRouting
from simulator.randomness import stream

ESFT = Path(__file__).resolve().parents[3] / "shared" / "data" / "esft"


@pytest.mark.parametrize(("experts", "topk", "ranks"), [(256, 8, 8), (256, 8, 32), (128, 8, 4), (64, 6, 8), (8, 2, 2)])
def test_equal_experts_are_the_closed_form(experts, topk, ranks):
    even = ExpertBalance.even(5, experts, topk, ranks)
    for tokens in (1, 2, 3, 17, 100, 4096, 12_345):
        load, known = even.load(tokens), rank_load(tokens, topk, experts, experts // ranks)
        assert load.total == pytest.approx(known.total, rel=1e-9)
        assert load.experts_used == pytest.approx(known.experts_used, rel=1e-9)
    assert even.copies == pytest.approx(ranks * (1 - (1 - 1 / ranks) ** topk))
    assert even.relayed == pytest.approx(1 / even.copies)  # all on one node
    assert even.evenness == pytest.approx(1)


def test_more_tokens_never_mean_less_and_no_rank_gets_more_than_all():
    popularity = zipf(4, 64, 6, 0.8, stream(1, "p"))
    for ranks, slots in ((8, 8), (16, 5), (72, 1)):
        group = Group(ranks, slots)
        balance = ExpertBalance(popularity, balanced(popularity, 0, group), group)
        before = 0.0
        for tokens in [*range(1, 300), 1000, 5000, 60_000]:
            load = balance.load(tokens)
            assert load.total >= before * (1 - 1e-9)
            assert load.total <= tokens * min(6, slots) * (1 + 1e-9)
            assert load.total >= tokens * 6 / ranks * (1 - 1e-9)
            before = load.total
            assert balance.mean_over_maximum(tokens) <= 1 + 1e-9


def _drawn(routing: ExpertRouting, placement: np.ndarray, tokens: int, seed: int, batches: int) -> np.ndarray:
    """Return the pairs of each rank in batches; tokens come from all ranks, each of which knows its copy."""
    experts, random = placement.max() + 1, np.random.default_rng(seed)
    holders = [np.flatnonzero((placement == e).any(axis=1)) for e in range(experts)]
    found = np.zeros((batches, len(placement)))
    for batch in range(batches):
        chosen = routing.sample(tokens, random)
        source = np.arange(tokens)
        for expert, held in enumerate(holders):
            rows = source[chosen[:, expert]]
            np.add.at(found[batch], held[rows % len(held)], 1)
    return found


@pytest.mark.parametrize("exponent", [0.0, 0.4, 0.8])
@pytest.mark.parametrize(("ranks", "slots"), [(8, 8), (8, 10), (16, 4)])
@pytest.mark.parametrize("place", ["order", "balanced"])
def test_drawn_choices(exponent, ranks, slots, place):
    popularity, group = zipf(1, 64, 6, exponent, stream(5, "p")), Group(ranks, slots)
    placement = contiguous(1, 64, 0, group) if place == "order" else balanced(popularity, 0, group)
    balance = ExpertBalance(popularity, placement, group)
    routing = ExpertRouting((0,) * 64, 6, tuple(popularity[0].tolist()))
    for tokens in (64, 512):
        drawn = _drawn(routing, placement[0], tokens, 7, 120).max(axis=1).mean()
        assert balance.hottest(tokens) == pytest.approx(drawn, rel=0.03)


@pytest.mark.parametrize("exponent", [0.0, 0.3])
def test_drawn_choices_within_a_node_limit(exponent):
    popularity, group = zipf(1, 64, 6, exponent, stream(6, "p")), Group(16, 4, 8)
    placement = contiguous(1, 64, 0, group)
    balance = ExpertBalance(popularity, placement, group, nodes_per_token=4)
    routing = ExpertRouting(tuple(e // 8 for e in range(64)), 6, tuple(popularity[0].tolist()), 4)
    for tokens in (64, 512):
        drawn = _drawn(routing, placement[0], tokens, 8, 200).max(axis=1).mean()
        assert balance.hottest(tokens) == pytest.approx(drawn, rel=0.04)
    places = [range(rank * 4, rank * 4 + 4) for rank in range(16)]
    hits, nodes = routing.hit_probability(places), routing.node_probability()
    assert balance.relayed == pytest.approx(nodes.sum() / hits.sum(), rel=0.05)
    assert balance.copies == pytest.approx(16 * hits.max(), rel=0.1)
    anywhere = ExpertBalance(popularity, placement, group, nodes_per_token=8)
    assert anywhere.nodes_per_token == 0
    assert balance.hottest(512) > anywhere.hottest(512)  # choices come in clumps


def test_expected_maximum_against_draws_and_by_hand():
    means, deviations = np.array([[5.0, 3.0, 1.0], [7.0, 0.0, 0.0]]), np.array([[1.0, 2.0, 0.5], [0.0, 0.0, 0.0]])
    drawn = np.random.default_rng(1).normal(means[0], deviations[0], (200_000, 3)).max(axis=1).mean()
    assert expected_maximum(means, deviations) == pytest.approx([drawn, 7], rel=2e-3)
    assert expected_maximum(np.zeros((1, 2)), np.ones((1, 2)))[0] == pytest.approx(1 / np.sqrt(np.pi), rel=0.02)
    pair = expected_maximum(np.array([[0.0, 1e-6]]), np.ones((1, 2)))  # by the integral
    assert pair[0] == pytest.approx(1 / np.sqrt(np.pi), rel=1e-3)


def test_a_rank_that_everyone_chooses_gets_everyone():
    balance = ExpertBalance(np.array([[1.0, 1.0, 0.0, 0.0]]), contiguous(1, 4, 0, Group(2, 2)), Group(2, 2))
    assert balance.hottest(50) == pytest.approx(100)
    assert balance.load(50).experts_used == pytest.approx(2)
    assert balance.evenness == pytest.approx(0.5)


def test_one_expert_per_rank_as_cloudmatrix_decodes():
    """256 routed experts, 32 copies of some and 32 of the shared one on 320 ranks; 96 sequences on each of 320."""
    group, tokens = Group(320, 1, 20), 320 * 96
    even = uniform(58, 256, 8)
    balance = ExpertBalance(even, balanced(even, 32, group, 8), group, 32)
    assert balance.topk == 9
    assert balance.experts == 257
    assert (copies_of(balance.placement, 257)[:, 256] == 32).all()
    # every copy of the shared expert has a 32nd of the tokens, a routed one without a copy as many and its noise
    assert balance.hottest(tokens) >= tokens / 32
    assert balance.hottest(tokens) <= 1.12 * tokens / 32
    assert balance.load(tokens).members == 1
    skewed = zipf(58, 256, 8, 0.4, stream(1, "p"))
    hot = ExpertBalance(skewed, balanced(skewed, 32, group, 8), group, 32)
    bare = ExpertBalance(skewed, contiguous(58, 256, 0, Group(256, 1)), Group(256, 1))
    assert balance.hottest(tokens) < hot.hottest(tokens) < bare.hottest(tokens)


def esft(task: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (layer, first half of the requests, chosen experts) of a file's rows; skips when it is absent."""
    file = ESFT / f"expert_ids.{task}.parquet"
    if not file.exists():
        pytest.skip("measured routing of ../shared/data/esft is absent")
    pd = pytest.importorskip("pandas")
    frame = pd.read_parquet(file)
    samples = np.sort(frame["sample"].unique())
    first = (frame["sample"] < samples[len(samples) // 2]).to_numpy()
    return frame["layer"].to_numpy(), first, frame[[f"expert_{i}" for i in range(6)]].to_numpy(dtype=np.int64)


@pytest.mark.parametrize("task", ["intent", "summary", "translation"])
@pytest.mark.parametrize("tokens", [64, 256, 1024, 4096])
def test_measured_routing_of_other_requests_over_eight_ranks(task, tokens):
    """DeepSeek-V2-Lite: 64 experts, six choices, 26 layers; a batch mixes tokens of many requests, as decode does."""
    layer, first, chosen = esft(task)
    counts = np.stack([np.bincount(chosen[first & (layer == i)].ravel(), minlength=64) for i in range(1, 27)])
    popularity, group = counted(counts, 6), Group(8, 8)
    balance = ExpertBalance(popularity, contiguous(26, 64, 0, group), group)
    counted_hottest = []
    for i in range(1, 27):
        other, random = chosen[~first & (layer == i)], np.random.default_rng(i)
        batches = [other[random.integers(0, len(other), tokens)] // 8 for _ in range(40)]
        counted_hottest.append(np.mean([np.bincount(batch.ravel(), minlength=8).max() for batch in batches]))
    assert balance.hottest(tokens) == pytest.approx(np.mean(counted_hottest), rel=0.05)


@pytest.mark.parametrize("task", ["intent", "summary", "translation"])
def test_measured_routing_of_the_same_requests_layer_by_layer(task):
    layer, _, chosen = esft(task)
    group = Group(8, 8)
    for i in range(1, 27):
        ids = np.random.default_rng(i).permutation(chosen[layer == i])
        popularity = counted([np.bincount(ids.ravel(), minlength=64)], 6)
        balance = ExpertBalance(popularity, contiguous(1, 64, 0, group), group)
        for tokens in (64, 256, 1024):
            parts = [ids[at : at + tokens] // 8 for at in range(0, len(ids) - tokens + 1, tokens)]
            drawn = np.mean([np.bincount(part.ravel(), minlength=8).max() for part in parts])
            assert balance.hottest(tokens) == pytest.approx(drawn, rel=0.05)
