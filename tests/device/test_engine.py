"""Overlap of two micro-batches and the launch-bound regime: bounds and limits.

Symbols: of one micro-batch in one layer attention and all else a, dispatch d, experts e, combine c; of two streams c
and x; s the share of the processors that the exchange takes. Serially the two take 2 (a + d + e + c).
"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.device.accelerator import load_accelerator
from simulator.device.cost import RooflineCost
from simulator.device.engine import RooflineParameters, TwoBatches, alternating_ns, two_streams_ns
from simulator.model.forward import Work
from simulator.model.layout import Layout
from simulator.model.transformer import Transformer, load_model

times = st.floats(1.0, 1e9)
layers = st.integers(1, 100)


def by_turns(a: float, d: float, e: float, c: float, count: int) -> float:
    """When two micro-batches are through all layers, kernel by kernel, on one device and one link that both share.

    Each begins when the one before it of its own micro-batch, and the one before it on its machine, have ended.
    """
    lasts, machines = {"a": a, "d": d, "e": e, "c": c}, {"a": 0, "e": 0, "d": 1, "c": 1}
    free, done = [0.0, 0.0], [0.0, 0.0]
    for kind, batch in count * [*zip("aadedecc", (0, 1, 0, 0, 1, 1, 0, 1), strict=True)]:
        machine = machines[kind]
        free[machine] = done[batch] = max(free[machine], done[batch]) + lasts[kind]
    return max(done)


@given(times, times, times, times, layers)
def test_two_batches_wait_for_the_longer_of_each_pair(a: float, d: float, e: float, c: float, count: int) -> None:
    # per layer: max(a, c) + max(a, d) + max(e, d) + max(e, c), but at both ends a and c stand alone
    found = alternating_ns(*(count * each for each in (a, e, d, c)), count, TwoBatches())
    assert found == pytest.approx(by_turns(a, d, e, c, count))
    assert max(2 * (a + e), 2 * (d + c)) * count <= found * (1 + 1e-12)
    assert found <= 2 * count * (a + d + e + c) * (1 + 1e-12)


@given(times, times, layers)
def test_of_two_streams_only_one_layer_is_exposed(c: float, x: float, count: int) -> None:
    found = two_streams_ns(c, x, count, TwoBatches())
    assert found == pytest.approx(max(2 * c, 2 * x) + min(c, x) / count)
    assert found <= 2 * (c + x)


@given(times, times, times, times, layers, st.floats(0, 0.9), st.floats(0, 1))
def test_shared_processors_and_interference_only_cost(
    a: float, e: float, d: float, c: float, count: int, s: float, more: float
) -> None:
    free, shared, disturbed = (
        alternating_ns(a, e, d, c, count, TwoBatches(processor_share=share, interference=i))
        for share, i in ((0, 0), (s, 0), (s, more))
    )
    assert free * (1 - 1e-12) <= shared <= free / (1 - s) * (1 + 1e-12)
    assert disturbed >= shared * (1 - 1e-12)


def test_arithmetic_gives_way_while_the_exchange_runs() -> None:
    # a = 10, c = 4, s = 1/2: for 4 the arithmetic runs at half speed and gets 2 of its 10 done, the rest takes 8
    half = TwoBatches(processor_share=0.5)
    assert alternating_ns(10, 0, 0, 4, 10**9, half) == pytest.approx((4 + 8) + 10 + 0 + 4)
    # a = 1, c = 10: the arithmetic takes 2 at half speed and hides
    assert alternating_ns(1, 0, 0, 10, 10**9, half) == pytest.approx(10 + 1 + 0 + 10)


def sparse() -> Transformer:
    part = {"kind": "grouped", "heads": 32, "kv_heads": 4, "head_dim": 128}
    experts = {"experts": 64, "active": 4, "intermediate": 1024, "layers": 30}
    return Transformer.model_validate(
        {
            "name": "x",
            "layers": 32,
            "hidden": 4096,
            "intermediate": 8192,
            "vocabulary": 32000,
            "max_context": 8192,
            "attention": part,
            "experts": experts,
            "sources": {},
        }
    )


def cost(**engine: object) -> RooflineCost:
    layout, device = Layout(data=8, expert=8), load_accelerator("h100-sxm-80gb")
    return RooflineCost(sparse(), layout, device, engine=RooflineParameters.model_validate(engine))


@pytest.mark.parametrize("work", [Work(batch=2048, context=2048 * 500), Work(32768, 32768 * 1024.5, 16)])
def test_two_batches_hide_part_of_the_exchange(work: Work) -> None:
    serial, two = cost(), cost(overlap={})
    half = work.halved()
    assert max(serial.step_ns(half), serial.step_ns(work) / 2) < two.step_ns(work) < 2 * serial.step_ns(half)
    table = two.operators(work)
    hidden = two.step_ns(work) < serial.step_ns(work)  # a small batch reads the weights twice for little
    assert table[-1].name == ("hidden behind the other micro-batch" if hidden else "two smaller micro-batches")
    assert hidden == (work.prompt_tokens > 0)
    assert sum(row.ns for row in table) == pytest.approx(two.step_ns(work))


@pytest.mark.parametrize("work", [Work(batch=2048, context=2048 * 500), Work(32768, 32768 * 1024.5, 16)])
@pytest.mark.parametrize("share", [1 / 3, 0.5, 2 / 3])
def test_attention_and_experts_have_processors_of_their_own(work: Work, share: float) -> None:
    two = cost(overlap={"attention_share": share})
    attention = experts = 0.0
    for operator, kernel in two.kernels(work.halved()):
        arithmetic, rest = kernel.compute_ns, max(kernel.memory_ns, kernel.link_ns)
        if operator.name in ("experts", "dispatch", "combine"):
            experts += operator.calls * (kernel.fixed_ns + max(arithmetic / (1 - share), rest))
        else:
            attention += operator.calls * (kernel.fixed_ns + max(arithmetic / share, rest))
    layers = two.model.layers
    expected = 2 * max(attention, experts) + min(attention, experts) / layers
    assert two.step_ns(work) == pytest.approx(expected, rel=1e-9)
    # no stream is faster than with all processors to itself
    assert two.step_ns(work) >= 2 * sum(row.ns for row in cost().operators(work.halved()) if row.name == "experts")
    assert two.together_ns([Work(*(value / 8 for value in work[:5]))] * 8) == pytest.approx(expected, rel=1e-9)


def test_processors_are_divided_one_way() -> None:
    with pytest.raises(ValueError, match="excludes `processor_share`"):
        TwoBatches(attention_share=0.5, processor_share=0.1)


def test_overlap_does_nothing_without_an_exchange() -> None:
    model, device = load_model("llama-3-8b"), load_accelerator("h100-sxm-80gb")
    costs = [
        RooflineCost(model, Layout(), device, engine=RooflineParameters.model_validate(e))
        for e in ({}, {"overlap": {}})
    ]
    assert costs[0].step_ns(Work(batch=8, context=800)) == costs[1].step_ns(Work(batch=8, context=800))


def test_a_slow_host_sets_the_pace_of_what_is_not_captured() -> None:
    # 100 us per launch is longer than any kernel of a small batch: the step lasts launches x 100 us
    work, slow = Work(batch=8, context=800), {"launch": "100 us"}
    calls = sum(row.calls for row in cost().operators(work))
    assert cost(**slow, graphs="none").step_ns(work) == pytest.approx(calls * 100_000)
    assert cost(**slow).step_ns(work) == cost().step_ns(work)
    prompt = Work(16, 136, 1)
    assert cost(**slow).step_ns(prompt) > 2 * cost(**slow, graphs="all").step_ns(prompt)
    assert cost(**slow, graphs="none").operators(work)[-1].name == "waiting for launches"
    fast = {"launch": "1 ns", "graphs": "none"}
    assert cost(**fast).step_ns(work) == cost().step_ns(work)


@pytest.mark.parametrize("overlap", [{}, {"processor_share": 0.15}, {"attention_share": 0.6}])
@pytest.mark.parametrize("tokens", [512, 4096])
def test_a_rank_cuts_its_one_prompt_into_two_micro_batches(overlap: dict, tokens: int) -> None:
    # both micro-batches had all of it: a step with an exchange to hide lasted twice as long as without overlap
    prompt, two = Work(tokens, tokens * (tokens + 1) / 2, 1), cost(overlap=overlap)
    as_two = [Work(tokens, 2 * (tokens // 2) * (tokens // 2 + 1) / 2, 2)] * 8  # of half the length each
    lasts = two.together_ns([prompt] * 8)
    assert two.together_ns(as_two) < lasts < 1.1 * two.together_ns(as_two)  # less attention, nothing else
    assert two.step_ns(prompt) == pytest.approx(two.together_ns([prompt, *[Work()] * 7]))


def test_one_token_is_no_two_batches() -> None:
    two, serial = cost(overlap={}), cost()
    for work in (Work(batch=1, context=500), Work(1, 1, 1)):
        assert two.together_ns([work] * 8) == serial.together_ns([work] * 8)
    [lasts] = two.decode_together([1] * 8).at(np.full((1, 8), 500.0))
    assert lasts == pytest.approx(serial.step_ns(Work(batch=8, context=4000)))
