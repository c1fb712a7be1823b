"""Routed experts on a device: bounds, monotony, the dense limit, and measured tables.

System: n tokens, E experts of width i over hidden h, k choices, m experts here, w bytes of a weight. Weights of u used
experts are 3 u h i w; arithmetic of the p pairs is 6 p h i; neither is beaten at the peaks.
"""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from simulator.device.accelerator import Accelerator, load_accelerator
from simulator.device.efficiency import Efficiency
from simulator.device.experts import experts, loaded_experts, moved_bytes
from simulator.device.gemm import gemm
from simulator.model.expert_load import even_load, rank_load
from simulator.model.operators import Experts, Gemm
from simulator.model.precision import FORMATS

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
DEVICES = ("a100-sxm-80gb", "h100-sxm-80gb", "b200-sxm", "gb200")
NS = 1e9


def _shape(tokens: int, ranks: int = 1, form: str = "bf16", skew: float = 0.0) -> Experts:
    return Experts(tokens, 4096, 1536, 8, 128, 128 // ranks, form, True, skew)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("ranks", [1, 8, 64])
@pytest.mark.parametrize("skew", [0.0, 1.01, 1.2])
def test_never_faster_than_the_peaks(device: str, ranks: int, skew: float) -> None:
    sheet = load_accelerator(device)
    for form in sheet.fitted.experts:
        own = FORMATS[form]
        for tokens in (1, 7, 64, 500, 4096, 30_000):
            shape = _shape(tokens, ranks, form, skew)
            load = rank_load(tokens, 8, 128, 128 // ranks, skew)
            kernel = experts(shape, sheet)
            weights = 3 * load.experts_used * 4096 * 1536 * own.weight_bits / 8
            arithmetic = 6 * load.total * 4096 * 1536
            assert kernel.flops == pytest.approx(arithmetic)
            assert kernel.ns - kernel.fixed_ns >= weights / sheet.memory.bandwidth * NS
            assert kernel.ns - kernel.fixed_ns >= arithmetic / sheet.rate(own.compute) * NS


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("ranks", [1, 8])
@pytest.mark.parametrize("skew", [0.0, 1.01])
def test_more_tokens_never_take_less_time(device: str, ranks: int, skew: float) -> None:
    sheet = load_accelerator(device)
    for form in sheet.fitted.experts:
        times = [experts(_shape(n, ranks, form, skew), sheet).ns for n in [*range(1, 200), *range(200, 9000, 97)]]
        assert all(b >= a * (1 - 1e-9) for a, b in pairwise(times))


def _lossless(sheet: Accelerator) -> Accelerator:
    """Return the device with the shares of its dense products, for grouped ones too."""
    fit = sheet.fitted
    constants = Efficiency.experts_in(fit.model_copy(update={"experts": {}}), "bf16")
    return sheet.model_copy(update={"efficiency": fit.model_copy(update={"experts": {"bf16": constants}})})


def test_one_expert_chosen_by_all_is_a_dense_gated_mlp() -> None:
    """E = k = 1: two products of n rows, 2 i x h and h x i, the activation between; launches apart."""
    sheet = _lossless(load_accelerator("h100-sxm-80gb"))
    for tokens in (16, 512, 8192):
        kernel = experts(Experts(tokens, 4096, 14336, 1, 1, 1), sheet)
        up, down = gemm(Gemm(tokens, 2 * 14336, 4096), sheet), gemm(Gemm(tokens, 4096, 14336), sheet)
        values = tokens * (3 * 14336 + 2 * 4096) + tokens * (2 * 4096 + 2)
        between = 2 * values / sheet.memory.bandwidth * NS / sheet.fitted.experts["bf16"].move
        assert kernel.flops == up.flops + down.flops
        assert kernel.ns - kernel.fixed_ns - between == pytest.approx(up.busy_ns + down.busy_ns, rel=0.2)


def test_splitting_experts_over_ranks_only_adds_what_skew_and_rounding_cost() -> None:
    sheet = load_accelerator("h100-sxm-80gb")
    whole, part = _shape(4096), _shape(4096, 8)
    all_of_it = loaded_experts(whole, even_load(4096, 8, 128, 128), sheet)
    eighth = loaded_experts(part, even_load(4096, 8, 128, 16), sheet)
    assert 8 * eighth.flops == pytest.approx(all_of_it.flops)
    assert all_of_it.ns / 8 < eighth.ns < all_of_it.ns
    assert experts(_shape(4096, 8, skew=1.01), sheet).ns > eighth.ns


def test_a_narrower_format_reads_fewer_bytes() -> None:
    sheet = load_accelerator("h100-sxm-80gb")
    sizes = [experts(_shape(16, form=form), sheet).size_bytes for form in ("bf16", "fp8", "int4_wo")]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] / sizes[1] == pytest.approx(2, rel=0.05)


def test_formats_that_were_not_measured_borrow_the_nearest() -> None:
    fit = load_accelerator("h100-sxm-80gb").fitted
    assert fit.experts_in("fp16") == fit.experts["bf16"]
    assert fit.experts_in("int8") == fit.experts["fp8_block"]  # of two kernels of 8 bits, the one nearer to the peak
    assert fit.experts_in("fp8_wo") in (fit.experts["int4_wo"], fit.experts["w4a16_mxfp4"])
    without = fit.model_copy(update={"experts": {}})
    assert without.experts_in("bf16").memory == fit.gemm_in("bf16").memory
    assert without.experts_in("bf16").launch == 2 * fit.gemm_in("bf16").launch + 6 * fit.kernel_launch


@pytest.mark.parametrize("device", DEVICES)
def test_measured_layers_of_shapes_left_out_of_the_fit(device: str) -> None:
    """The constants of the sheets on shapes that they never saw: median at most 15%, mean at most 25%."""
    if not (DATA / "aiconfigurator").exists():
        pytest.skip("measured tables of ../shared/data/aiconfigurator are absent")
    pytest.importorskip("pandas")
    measured = pytest.importorskip("benchmarks.operators.experts")
    sheet = load_accelerator(device)
    for form, (frame, mask) in measured.tables(DATA, device).items():
        part = measured.thinned(frame[mask], 500)
        off = np.abs(measured.predict(measured.cases(part, device), sheet) / part["ns"].to_numpy() - 1)
        assert np.median(off) <= 0.15, form
        assert np.mean(off) <= 0.25, form


@pytest.mark.parametrize("ranks", [16, 64, 320])
def test_what_a_rank_moves_after_a_dispatch_does_not_grow_with_the_ranks(ranks: int) -> None:
    # 48 tokens of each rank's own and 8 choices each: as many pairs come to a rank, however many others there are
    def moved(count: int, dispatched: bool) -> float:
        shape = Experts(48 * count, 7168, 2048, 8, 256, 1, "fp8_block", dispatched=dispatched)
        return moved_bytes(shape, 48.0 * 8, 0.02)

    assert moved(ranks, True) == moved(8, True)
    further = 48 * (ranks - 8)  # tokens that are here too without a dispatch: each is read and its sum written, 2 bytes
    assert moved(ranks, False) - moved(8, False) > further * 2 * 2 * 7168
