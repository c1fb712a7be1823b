"""Steps under a balance of experts: even ones cost what no balance does, hotter ones more, copies of weights memory."""

import numpy as np
import pytest

from simulator.device.accelerator import load_accelerator
from simulator.device.cost import RooflineCost
from simulator.device.engine import RooflineParameters, TwoBatches
from simulator.device.memory import ledger
from simulator.model.expert_balance import ExpertBalance
from simulator.model.expert_group import Group
from simulator.model.expert_placement import balanced, contiguous
from simulator.model.expert_popularity import uniform, zipf
from simulator.model.forward import Work
from simulator.model.layout import Layout
from simulator.model.operators import Collective, Experts
from simulator.model.precision import Precision
from simulator.model.split import Held, expert_bytes, weight_bytes_per_rank
from simulator.model.transformer import load_model
from simulator.randomness import stream

R1 = load_model("deepseek-r1")
H200 = load_accelerator("h200-sxm-141gb")
FP8 = Precision(weights="fp8_block", kv="fp8")
WORKS = [
    Work(batch=8),
    Work(batch=256, context=256 * 900),
    Work(4096, 4096 * 2048, 4, 64, 64 * 500),
    Work(30_000, 1, 9),
]


def links(shape):
    """Links that cost something by size: 5 us and 100 bytes a ns."""
    return 5000.0, shape.size_bytes / 100, 0.0


def cost(ranks, balance=None, overlap=None):
    engine = RooflineParameters(step_overhead="100 us", overlap=overlap)
    return RooflineCost(R1, Layout(data=ranks, expert=ranks), H200, FP8, engine, links, balance=balance)


def placed(popularity, ranks, redundant=0, shared=0, nodes=1, limit=0):
    group = Group(ranks, (256 + redundant + shared) // ranks, nodes)
    return ExpertBalance(popularity, balanced(popularity, shared, group, 8), group, shared, limit)


@pytest.mark.parametrize("ranks", [8, 16, 32, 64])
@pytest.mark.parametrize("overlap", [None, TwoBatches(processor_share=0.15)])
def test_even_experts_cost_what_no_balance_does(ranks, overlap):
    plain, even = cost(ranks, overlap=overlap), cost(ranks, ExpertBalance.even(58, 256, 8, ranks), overlap)
    for work in WORKS:
        assert even.step_ns(work) == pytest.approx(plain.step_ns(work), rel=1e-9)


@pytest.mark.parametrize("ranks", [8, 32, 144, 320])
def test_hotter_experts_never_cost_less_and_balancing_never_more(ranks):
    # of many tokens: a few that choose alike read the weights of fewer experts, and are done sooner
    redundant, shared = {8: (0, 0), 32: (32, 0), 144: (32, 0), 320: (32, 32)}[ranks]
    group = Group(ranks, (256 + redundant + shared) // ranks)
    works, before = WORKS[2:], [0.0, 0.0]
    for exponent in (0.0, 0.2, 0.4, 0.6):
        popularity = zipf(58, 256, 8, exponent, stream(1, "p"))
        ordered = ExpertBalance(popularity, contiguous(58, 256, shared, group), group, shared)
        at_random = [cost(ranks, ordered).step_ns(work) for work in works]
        even = [cost(ranks, placed(popularity, ranks, redundant, shared)).step_ns(work) for work in works]
        if exponent:
            assert all(a <= b * 1.001 for a, b in zip(before, at_random, strict=True))
            assert all(a <= b * 1.001 for a, b in zip(even, at_random, strict=True))
        before = at_random


def test_a_cost_made_from_another_is_as_one_made_anew():
    first, second = (zipf(58, 256, 8, 0.5, stream(seed, "p")) for seed in (1, 2))
    begun = cost(32, placed(first, 32, 32))
    begun.step_ns(WORKS[1])
    again, anew = begun.rebalanced(placed(second, 32, 32)), cost(32, placed(second, 32, 32))
    old = cost(32, placed(first, 32, 32))
    for work in WORKS:
        assert again.step_ns(work) == anew.step_ns(work)
        assert begun.step_ns(work) == old.step_ns(work)
        ranks = [work] * 32
        assert again.together_ns(ranks) == anew.together_ns(ranks)
        assert again.step_ns(work) == pytest.approx(sum(row.ns for row in again.operators(work)), rel=1e-12)
    sizes, contexts = [4] * 31 + [9], np.array([[4000 + 4 * i] * 31 + [9000 + 9 * i] for i in range(5)])
    left, right = (c.decode_together(sizes).at(contexts).tolist() for c in (again, anew))
    assert left == right


def test_the_busiest_rank_sets_the_exchange_and_a_node_limit_makes_it_cross_less():
    def exchange(balance):
        shapes = [operator.shape for operator, _ in cost(64, balance).kernels(WORKS[1])]
        return next(s for s in shapes if isinstance(s, Collective) and s.operation == "dispatch")

    even = uniform(58, 256, 8)
    free, bound = placed(even, 64, 0, 0, 8), placed(even, 64, 0, 0, 8, limit=4)
    assert exchange(free).relayed == pytest.approx(8 * (1 - (7 / 8) ** 8) / (64 * (1 - (63 / 64) ** 8)), rel=1e-9)
    assert exchange(bound).relayed == pytest.approx(4 * (1 - (3 / 4) ** 8) / (32 * (1 - (31 / 32) ** 8)), rel=1e-9)
    hot = placed(zipf(58, 256, 8, 0.6, stream(1, "p")), 64, 0, 0, 8)
    assert exchange(hot).size_bytes > exchange(free).size_bytes


def test_shared_copies_are_experts_of_ranks_and_leave_the_others_alone():
    balance = placed(uniform(58, 256, 8), 320, 32, 32)
    names = {operator.name: operator.shape for operator, _ in cost(320, balance).kernels(WORKS[1])}
    assert not [name for name in names if name.startswith("shared")]
    assert "shared down projection" in {operator.name for operator, _ in cost(320).kernels(WORKS[1])}
    shape = names["experts"]
    assert isinstance(shape, Experts)
    assert (shape.topk, shape.experts, shape.local) == (9, 257, 1)


def test_copies_take_memory():
    layout = Layout(data=32, expert=32)
    each, plain = 58 * expert_bytes(R1, layout, FP8), weight_bytes_per_rank(R1, layout, FP8)
    assert each == pytest.approx(58 * 3 * 7168 * 2048, rel=1e-3)
    assert weight_bytes_per_rank(R1, layout, FP8, held=Held(8)) == plain
    assert weight_bytes_per_rank(R1, layout, FP8, held=Held(9)) == pytest.approx(plain + each, rel=1e-6)
    assert weight_bytes_per_rank(R1, layout, FP8, held=Held(9, shared=False)) == pytest.approx(plain, rel=1e-6)
    books = [ledger(R1, layout, H200, 4096, precision=FP8, held=held) for held in (None, Held(9))]
    assert books[0].kv_bytes - books[1].kv_bytes == pytest.approx(each, rel=1e-6)
