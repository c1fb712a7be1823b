"""Ranks that step together: equal ones are the whole dealt out, the slowest sets the pace, order has no part in it."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from simulator.device.accelerator import load_accelerator
from simulator.device.cost import RooflineCost
from simulator.device.engine import RooflineParameters, TwoBatches
from simulator.device.linear_cost import LinearCost, LinearDecode, LinearParameters, LinearPrefill
from simulator.device.ranks import round_of
from simulator.model.forward import Work, longest
from simulator.model.layout import Layout
from simulator.model.precision import Precision
from simulator.model.transformer import load_model


def links(shape):
    """Links that cost something by size: 5 us and 100 bytes a ns."""
    return 5000.0, shape.size_bytes / 100, 0.0


def cost(data=1, pipeline=1, overlap=None, expert=None):
    layout = Layout(tensor=1, data=data, pipeline=pipeline, expert=expert or data)
    precision = Precision(weights="fp8_block", kv="fp8")
    engine = RooflineParameters(step_overhead="100 us", overlap=overlap)
    device = load_accelerator("h200-sxm-141gb")
    return RooflineCost(load_model("deepseek-v3"), layout, device, precision, engine, links)


EP8 = cost(8)
EP8_OVERLAPPED = cost(8, overlap=TwoBatches(processor_share=0.15))
EP8_APART = cost(8, overlap=TwoBatches(attention_share=0.6))
PIPELINE = cost(1, pipeline=4)
works = st.builds(
    lambda tokens, cached, batch, context: Work(
        tokens, tokens * cached + tokens * (tokens + 1) / 2, min(1, tokens), batch, batch * context
    ),
    st.one_of(st.just(0), st.integers(1, 4096)),
    st.integers(0, 8000),
    st.integers(1, 64),
    st.integers(1, 16_000),
)


@pytest.mark.parametrize("ep8", [EP8, EP8_OVERLAPPED])
@given(work=works)
def test_equal_ranks_are_the_whole_dealt_out(ep8, work):
    whole = Work(*(8 * value for value in work[:5]))
    assert ep8.together_ns([work] * 8) == pytest.approx(ep8.step_ns(whole), rel=1e-12)


@given(work=works)
def test_equal_micro_batches_follow_each_other_without_gaps(work):
    # p of them in p equal stages: the round is the way of one through all, and its first token waits for no other
    whole = Work(batch=4 * work.batch, context=4 * work.context)
    one = Work(batch=work.batch, context=work.context)
    assert PIPELINE.together_ns([one] * 4) == pytest.approx(PIPELINE.step_ns(whole), rel=1e-12)


@given(ranks=st.lists(works, min_size=8, max_size=8), contexts=st.lists(st.integers(64, 10**6), min_size=8, max_size=8))
def test_the_shorter_of_two_contexts_need_not_be_looked_at(ranks, contexts):
    alike = [ranks[i // 4]._replace(context=context) for i, context in enumerate(contexts)]  # two kinds of work
    assert len(longest(alike)) <= 2
    every = cost(8)
    every.times.grows = False
    assert EP8.together_ns(alike) == every.together_ns(alike)


@given(ranks=st.lists(works, min_size=8, max_size=8), order=st.permutations(range(8)))
def test_order_does_not_matter_and_the_slowest_sets_the_pace(ranks, order):
    together = EP8.together_ns(ranks)
    assert EP8.together_ns([ranks[i] for i in order]) == pytest.approx(together, rel=1e-12)
    alone = max(EP8.together_ns([work if i == j else Work() for j in range(8)]) for i, work in enumerate(ranks))
    assert together >= alone * (1 - 1e-12)


@pytest.mark.parametrize("ep8", [EP8, EP8_OVERLAPPED, EP8_APART])
@given(
    sizes=st.lists(st.integers(0, 64), min_size=8, max_size=8).filter(any),
    each=st.lists(st.integers(1, 20_000), min_size=8, max_size=8),
    steps=st.integers(1, 40),
)
@example(sizes=[0, 0, 7, 0, 0, 0, 0, 0], each=[20_000] * 8, steps=1)  # the line bends far out
def test_lines_of_ranks_are_their_steps(ep8, sizes, each, steps):
    contexts = [size * context for size, context in zip(sizes, each, strict=True)]
    lengths = ep8.decode_together(sizes).at(np.array(contexts) + np.array(sizes) * np.arange(steps)[:, None])
    assert lengths.shape == (steps,)
    for i in (0, steps - 1):
        now = [Work(batch=b, context=c + b * i) if b else Work() for b, c in zip(sizes, contexts, strict=True)]
        # lines are exact at their knots and within a thousandth between them
        assert lengths[i] == pytest.approx(ep8.together_ns(now), rel=1e-3)


def test_lines_of_micro_batches_are_rounds():
    lengths = PIPELINE.decode_together([4, 8, 0, 2]).at(np.array([[4000.0, 8000.0, 0.0, 100.0]]))
    each = [
        PIPELINE.step_ns(Work(batch=4 * b, context=4 * c)) if b else 0.0
        for b, c in ((4, 4000), (8, 8000), (0, 0), (2, 100))
    ]
    assert lengths[0] == pytest.approx(round_of(each, 4), rel=2e-3)


def test_one_micro_batch_of_a_few_sequences_keeps_their_whole_context():
    for sequences in (1, 3, 5, 8):
        spread = [sequences // 4 + (stage < sequences % 4) for stage in range(4)]
        works = [Work(batch=n, context=2000 * n) if n else Work() for n in spread]
        whole = Work(batch=sequences, context=2000 * sequences)
        assert PIPELINE.step_ns(whole) == pytest.approx(PIPELINE.together_ns(works), rel=1e-12)


def test_rounds_by_hand():
    # four stages of 1, 1, 1 and 1: four micro-batches of 4 go round in 4, one of 8 alone in 8, both kinds in the longer
    assert round_of([4.0, 4.0, 4.0, 4.0], 4) == 4
    assert round_of([8.0, 0.0, 0.0, 0.0], 4) == 8
    assert round_of([8.0, 8.0, 8.0, 4.0], 4) == 8
    assert np.array_equal(round_of(np.array([[4.0, 4.0], [2.0, 8.0]]), 2), [4.0, 8.0])


def test_linear_constants_are_those_of_one_rank():
    constants = LinearParameters(
        prefill=LinearPrefill(fixed="1 us", per_token="10 ns"),
        decode=LinearDecode(fixed="2 us", per_sequence="3 ns", per_context_token="1 ns"),
    )
    linear = LinearCost(constants, Layout(data=2))
    assert linear.together_ns([Work(batch=4, context=100), Work(100, 5050, 1)]) == max(2000 + 12 + 100, 1000 + 1000)
    contexts = np.array([[100, 500], [104, 502], [108, 504]])
    assert linear.decode_together([4, 2]).at(contexts) == pytest.approx([2506, 2508, 2510])
