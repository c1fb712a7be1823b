"""Closed forms of a training step: the sum of its kernels, the bubble, what overlap hides, rings over a network."""

import pytest

from simulator.device.accelerator import load_accelerator
from simulator.device.timing import time_of
from simulator.device.training_time import Network, collective_kernel, step_time, sustained_speed
from simulator.errors import InputError
from simulator.model.layout import Layout
from simulator.model.operators import AttentionGradient, Collective, PromptAttention
from simulator.model.training import MicroBatch, Recipe, TrainingPass
from simulator.model.transformer import load_model

A100 = load_accelerator("a100-sxm-80gb")
MODEL = load_model("llama-3-8b")
BATCH = MicroBatch(1, 2048)


def test_one_device_sums_its_kernels() -> None:
    training = TrainingPass(MODEL, Layout())
    stage = training.stage(training.slices[0], BATCH)
    once = sum(o.calls * time_of(o.shape, A100).ns for part in stage for o in part)
    update = sum(o.calls * time_of(o.shape, A100).ns for o in training.optimizer(0))
    for n in (1, 7):
        step = step_time(training, A100, BATCH, n)
        assert step.ns == pytest.approx(n * once + update)
        assert (step.links, step.bubble, step.exchange) == (0, 0, 0)


@pytest.mark.parametrize(("p", "v"), [(2, 1), (4, 1), (4, 2), (8, 4)])
def test_the_bubble_is_a_part_of_a_micro_batch(p: int, v: int) -> None:
    """(p - 1) / v of the slowest rank's micro-batch, whatever their number."""
    training = TrainingPass(MODEL, Layout(pipeline=p), Recipe(chunks=v))
    small, large = (step_time(training, A100, BATCH, n) for n in (p, 8 * p))
    each = (large.compute + large.links) / (8 * p)
    assert small.bubble == large.bubble == pytest.approx((p - 1) / v * each)
    assert large.ns - small.ns == pytest.approx(7 * p * each)


def test_overlap_hides_the_exchange_until_it_outlasts_the_pass() -> None:
    training = TrainingPass(MODEL, Layout(), Recipe(replicas=64, zero=1))
    fast, slow = Network(1e15), Network(1e6)
    assert step_time(training, A100, BATCH, 1, fast).exchange == 0
    exposed, whole = (step_time(training, A100, BATCH, 1, slow, overlap=o).exchange for o in (True, False))
    assert 0 < exposed < whole
    sizes = training.parameters(0).total * (4 + 2)
    assert whole == pytest.approx(63 / 64 * sizes / (8 * 1e6) * 1e9)  # a ring through the eight ports of a node


def test_groups_leave_the_domain_where_their_ranks_do() -> None:
    training = TrainingPass(MODEL, Layout(tensor=4), Recipe(replicas=4))
    near, far = (Collective("all_reduce", 1e8, 2, "data"), Collective("all_reduce", 1e8, 4, "data"))
    assert collective_kernel(training, near, A100, None) == time_of(near, A100)
    with pytest.raises(InputError, match="leaves the 8 devices"):
        collective_kernel(training, far, A100, None)
    ring = collective_kernel(training, far, A100, Network(25e9, 5000))
    assert ring.link_ns == pytest.approx(2 * 3 / 4 * 1e8 / (2 * 25e9) * 1e9)
    assert ring.fixed_ns == 5000


def test_attention_backward_takes_five_products_for_two() -> None:
    shape = PromptAttention(16384, 8 * 2048 * 2049 / 2, 16384, 8, 32, 32, 128, 128)
    forward, backward = time_of(shape, A100), time_of(AttentionGradient(shape), A100)
    assert backward.flops == 2.5 * forward.flops
    assert 2.5 < backward.compute_ns / forward.compute_ns < 3.5
    assert backward.ns > 2 * forward.ns


def test_a_capped_clock_stretches_arithmetic_and_nothing_else() -> None:
    training = TrainingPass(MODEL, Layout(tensor=2))
    full, half = (step_time(training, A100, BATCH, 4, speed=s) for s in (1.0, 0.5))
    assert full.compute < half.compute < 2 * full.compute
    assert (half.links, half.optimizer) == (full.links, full.optimizer)
    speeds = [sustained_speed(training, A100, BATCH, cap) for cap in (200.0, 300.0, 1000.0)]
    assert speeds == sorted(speeds)
    assert speeds[-1] == 1
    assert speeds[0] < 0.8
