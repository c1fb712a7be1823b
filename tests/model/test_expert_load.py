"""Loads of experts: conservation, bounds, known cases and a sampling twin.

E experts, k choices of each of n tokens, R ranks of m = E / R experts. Rows conserve n k over all ranks; even loads are
n k / E each; experts used by random choice are E (1 - (1 - k / E)^n).
"""

from math import sqrt

import numpy as np
import pytest

from simulator.model.expert_load import (
    SHARE,
    even_load,
    experts_used,
    largest,
    rank_load,
)

CASES = [(8, 2), (16, 1), (128, 8), (256, 8), (512, 22)]


@pytest.mark.parametrize(("experts", "topk"), CASES)
@pytest.mark.parametrize("skew", [0.0, 0.6, 1.0, 1.01, 1.2, 2.0])
def test_one_rank_has_all_pairs_and_more_ranks_share_them(experts: int, topk: int, skew: float) -> None:
    for tokens in (1, 3, 17, 200, 4096):
        assert rank_load(tokens, topk, experts, experts, skew).total == pytest.approx(tokens * topk)
        mean = tokens * topk
        for ranks in (2, 4, 8):
            load = rank_load(tokens, topk, experts, experts // ranks, skew)
            assert mean / ranks <= load.total * (1 + 1e-9)  # the fullest is not below the mean
            assert load.total <= tokens * min(topk, experts // ranks) * (1 + 1e-9)
            assert load.experts_used <= min(load.total, experts // ranks) * (1 + 1e-9)


@pytest.mark.parametrize(("experts", "topk"), CASES)
@pytest.mark.parametrize("skew", [0.0, 0.8, 1.01, 1.2])
def test_more_tokens_never_mean_fewer_rows_or_experts(experts: int, topk: int, skew: float) -> None:
    for ranks in (1, 2, 8):
        before = rank_load(1, topk, experts, experts // ranks, skew)
        for tokens in [*range(2, 300), 1000, 5000, 60_000]:
            load = rank_load(tokens, topk, experts, experts // ranks, skew)
            assert load.total >= before.total * (1 - 1e-9)
            assert load.experts_used >= before.experts_used * (1 - 1e-9)
            before = load


def test_no_skew_is_even_but_for_the_fluctuation_of_choices() -> None:
    many = rank_load(10_000_000, 8, 256, 32)
    assert many.total == pytest.approx(even_load(10_000_000, 8, 256, 32).total, rel=1e-3)
    few = rank_load(64, 8, 256, 32)
    mean = 64 * 8 / 8
    deviation = sqrt(64 * 8 * (1 / 8) * (7 / 8) * (248 / 255))
    assert few.total == pytest.approx(mean + largest(8)[0] * deviation)
    assert largest(8)[0] == pytest.approx(1.4236, rel=0.02)  # mean of the largest of eight normals


def test_even_loads_use_as_many_experts_as_there_are_choices() -> None:
    assert even_load(4, 8, 256, 256).experts_used == 32
    assert even_load(4, 8, 256, 256).total == 32
    assert even_load(100, 8, 256, 64).total == 200
    assert even_load(100, 8, 256, 64).experts_used == 64


def test_experts_used_by_random_choice() -> None:
    assert experts_used(1, 8, 256) == pytest.approx(8)
    assert experts_used(2, 8, 256) == pytest.approx(256 * (1 - (31 / 32) ** 2))
    assert experts_used(10_000, 8, 256) == pytest.approx(256)


def _drawn(tokens: int, topk: int, experts: int, ranks: int, skew: float, random: np.random.Generator) -> tuple:
    """Return pairs and used experts of the fullest rank, by drawing the loads: the slow twin."""
    low, high = (1.0, SHARE * tokens) if tokens * topk > experts else (0.01, 2.0)
    p = 1 - skew
    loads = ((high**p - low**p) * random.random(experts) + low**p) ** (1 / p)
    loads = loads / loads.sum() * tokens * topk
    for _ in range(50):  # no expert gets more than every token
        over = np.maximum(loads - tokens, 0).sum()
        loads = np.minimum(loads, tokens)
        loads[loads < tokens] *= 1 + over / max(loads[loads < tokens].sum(), 1e-9)
    whole = np.floor(loads) + (random.random(experts) < loads % 1)
    groups = whole.reshape(ranks, -1)
    hot = groups[groups.sum(axis=1).argmax()]
    return hot.sum(), (hot > 0).sum()


@pytest.mark.parametrize("skew", [0.6, 1.01, 1.2])
@pytest.mark.parametrize(
    ("tokens", "topk", "experts", "ranks"),
    [(64, 8, 256, 1), (64, 8, 256, 8), (1024, 8, 128, 8), (1024, 22, 512, 64), (512, 2, 8, 8), (4096, 8, 256, 16)],
)
def test_power_law_agrees_with_drawn_loads(tokens: int, topk: int, experts: int, ranks: int, skew: float) -> None:
    random = np.random.default_rng(5)
    drawn = np.mean([_drawn(tokens, topk, experts, ranks, skew, random) for _ in range(300)], axis=0)
    load = rank_load(tokens, topk, experts, experts // ranks, skew)
    assert load.total == pytest.approx(drawn[0], rel=0.1)
    assert load.experts_used == pytest.approx(drawn[1], rel=0.1)
