"""Power and energy: energy is the integral of power, idle is the floor, clocks and caps act the right way."""

from typing import NamedTuple

import pytest

from simulator.device.accelerator import Accelerator, Clock, load_accelerator
from simulator.device.cost import RooflineCost
from simulator.device.kernels import Kernel
from simulator.device.power import (
    Activity,
    activity,
    activity_of,
    energy_j,
    lowest_speed,
    power_w,
    slowdown,
    speed_of,
    speed_under,
    together,
    voltage,
    waiting,
    watts,
)
from simulator.errors import InputError
from simulator.model.forward import Pass, Work
from simulator.model.layout import Layout
from simulator.model.operators import Elementwise, Gemm, Operator
from simulator.model.precision import Precision
from simulator.model.transformer import load_model


def clocked(name: str) -> Accelerator:
    return load_accelerator(name).model_copy(update={"clock": Clock(boost="1410 MHz", minimum="210 MHz")})


A100 = clocked("a100-sxm-80gb")
MODEL = load_model("llama-3-8b")
PASS = Pass(MODEL, Layout(), Precision())
PREFILL = PASS.operators(Work(8192, 8192 * 8193 / 2, 1))
DECODE = PASS.operators(Work(batch=8, context=8 * 2048))
STREAM = [Operator("copy", 1, Elementwise(1e9))]
PRODUCT = [Operator("product", 1, Gemm(16384, 16384, 16384))]


def test_energy_is_the_integral_of_power() -> None:
    """Stretches after one another draw the sum of their energies; the average power lies between theirs."""
    parts = [activity(operators, A100) for operators in (PREFILL, DECODE)] + [waiting(1e9)]
    whole = together(parts)
    assert whole.ns == pytest.approx(sum(p.ns for p in parts))
    assert energy_j(whole, A100) == pytest.approx(sum(power_w(p, A100) * p.ns / 1e9 for p in parts))
    drawn = [power_w(p, A100) for p in parts]
    assert min(drawn) < power_w(whole, A100) < max(drawn)


def test_the_floor_is_idle_and_what_an_engine_adds() -> None:
    part = watts(A100)
    assert power_w(waiting(5.0), A100) == part.idle + part.active
    for operators in (PREFILL, DECODE, STREAM):
        assert power_w(activity(operators, A100), A100) > part.idle + part.active


def test_a_full_stream_draws_what_the_sheet_says() -> None:
    """At the peak of memory or arithmetic the power is idle, active and that part; half the work, half the part."""
    part = watts(A100)
    for name in ("compute", "memory", "link"):
        for share in (1.0, 0.5):
            what = Activity(ns=2.0)._replace(**{name: 2.0 * share})
            assert power_w(what, A100) == pytest.approx(part.idle + part.active + share * getattr(part, name))


def test_prefill_passes_the_tdp_and_decode_stays_below() -> None:
    """As measured on A100: prompts run into the cap, tokens do not (arXiv:2308.12908)."""
    assert power_w(activity(PREFILL, A100), A100) > A100.power.tdp
    assert power_w(activity(DECODE, A100), A100) < 0.9 * A100.power.tdp


@pytest.mark.parametrize("operators", [PREFILL, DECODE, STREAM, PRODUCT], ids=["prefill", "decode", "copy", "product"])
def test_a_lower_clock_never_draws_more_or_runs_faster(operators: list[Operator]) -> None:
    speeds = [0.2, 0.4, 0.6, 0.8, 0.9, 1.0]
    runs = [activity(operators, A100, speed) for speed in speeds]
    drawn = [power_w(run, A100, speed) for run, speed in zip(runs, speeds, strict=True)]
    assert drawn == sorted(drawn)
    assert [run.ns for run in runs] == sorted((run.ns for run in runs), reverse=True)


def test_arithmetic_follows_the_clock_and_traffic_does_not() -> None:
    compute, memory = Kernel(compute_ns=1000.0, memory_ns=100.0), Kernel(compute_ns=100.0, memory_ns=1000.0)
    assert slowdown(compute, 0.5) == 2
    assert slowdown(memory, 0.5) == 1
    assert slowdown(Kernel(compute_ns=600.0, memory_ns=1000.0, fixed_ns=200.0), 0.5) == pytest.approx(1400 / 1200)
    assert slowdown(compute, 1.0) == 1


def test_power_falls_faster_than_the_clock() -> None:
    """Of a long product the dynamic part is f V^2: at r of the clock r V(r)^2 of it, with r of the rate."""
    part = watts(A100)
    for speed in (0.5, 0.8):
        run, full = activity(PRODUCT, A100, speed), activity(PRODUCT, A100)
        assert run.ns == pytest.approx(full.ns / speed, rel=0.01)
        memory = part.memory * run.memory / run.ns
        dynamic = power_w(run, A100, speed) - part.idle - memory
        before = power_w(full, A100) - part.idle - part.memory * full.memory / full.ns
        assert dynamic == pytest.approx(speed * voltage(speed) ** 2 * before, rel=0.01)
        assert dynamic < speed * before


@pytest.mark.parametrize("cap", [200.0, 300.0, 400.0])
def test_a_cap_is_kept_and_used_up(cap: float) -> None:
    speed = speed_under(PREFILL, A100, cap)
    assert speed < 1
    drawn = power_w(activity(PREFILL, A100, speed), A100, speed)
    assert cap * (1 - 1e-6) < drawn <= cap
    assert speed_under(PREFILL, A100) == speed_under(PREFILL, A100, 400.0)


def test_a_cap_that_decode_does_not_reach_costs_nothing() -> None:
    assert speed_under(DECODE, A100, 350.0) == 1.0
    with pytest.raises(InputError, match="cannot run at 50 W"):
        speed_under(PREFILL, A100, 50.0)


def test_a_step_draws_what_its_kernels_do_and_waits_for_the_rest() -> None:
    """The kernels of a cost model and the operators themselves agree; what the engine adds is waiting."""
    cost, work = RooflineCost(MODEL, Layout(), A100), Work(2048, 2048 * 2049 / 2, 1)
    busy = activity_of(cost.kernels(work), A100)
    assert energy_j(busy, A100) == pytest.approx(energy_j(activity(PASS.operators(work), A100), A100))
    assert busy.ns == pytest.approx(cost.step_ns(work))
    longer, part = busy._replace(ns=busy.ns + 1e6), watts(A100)
    assert energy_j(longer, A100) - energy_j(busy, A100) == pytest.approx((part.idle + part.active) * 1e-3)


def test_narrow_formats_run_hotter_only_as_they_use_their_own_peak() -> None:
    """Twice the operations a second on twice the peak are the same use of the multipliers."""
    h100 = load_accelerator("h100-sxm-80gb")
    wide, narrow = (activity([Operator("product", 1, Gemm(8192, 8192, 8192, form))], h100) for form in ("bf16", "fp8"))
    assert wide.compute == pytest.approx(2 * narrow.compute, rel=0.01)


class Point(NamedTuple):
    frequency: float | None
    speed: float


def test_clocks_are_in_the_range_of_the_sheet() -> None:
    for point in (Point(None, 1.0), Point(1410e6, 1.0), Point(705e6, 0.5)):
        assert speed_of(A100, point.frequency) == point.speed
    for wrong in (1500e6, 100e6):
        with pytest.raises(InputError, match="210 to 1410 MHz"):
            speed_of(A100, wrong)
    bare = load_accelerator("a100-sxm-80gb").model_copy(update={"clock": None})
    with pytest.raises(InputError, match="has no clock"):
        speed_of(bare, 1e9)
    assert lowest_speed(A100) == pytest.approx(210 / 1410)


def test_a_sheet_s_own_figures_come_before_shares() -> None:
    own = A100.model_copy(update={"power": A100.power.model_copy(update={"idle": 33.0, "memory": 200.0})})
    assert (watts(own).idle, watts(own).memory) == (33.0, 200.0)
    assert watts(own).compute == watts(A100).compute == pytest.approx(1.16 * 400)
