"""Laws of matrix products and of kernels that move bytes.

One product of M x N x K on P processors of peak F, in tiles of a x b, M N / (a b) = w P of them, at a share c of the
peak: the arithmetic takes max(w 2 (a b + step) P / (c F), latency) (K + fill).
"""

from dataclasses import dataclass
from math import ceil, hypot

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator import catalog
from simulator.device import efficiency
from simulator.device.accelerator import Accelerator, load_accelerator
from simulator.device.gemm import SOAK_NS, gemm
from simulator.device.kernels import Kernel, elementwise
from simulator.device.timing import time_of
from simulator.errors import InputError
from simulator.model.operators import Elementwise, Gemm
from simulator.model.precision import FORMATS

DEVICES = [load_accelerator(name) for name in catalog.names("topologies/devices")]
H100, A100, B200 = (load_accelerator(name) for name in ("h100-sxm-80gb", "a100-sxm-80gb", "b200-sxm"))
device_of = st.sampled_from(DEVICES)
size = st.integers(1, 70_000)


@dataclass(frozen=True)
class Case:
    """A format and a device that multiplies in it."""

    form: str
    device: Accelerator


def multiplies(device: Accelerator, form: str) -> bool:
    try:
        device.rate(FORMATS[form].compute)
    except InputError:
        return False
    return True


CASES = [Case(form, device) for device in DEVICES for form in FORMATS if multiplies(device, form)]
case_of = st.sampled_from(CASES)


@given(case_of, size, size, size, st.integers(1, 64), st.booleans())
def test_a_product_counts_its_work_and_never_beats_the_roofline(case, rows, columns, inner, batch, quantise) -> None:
    shape = Gemm(rows, columns, inner, case.form, batch, quantise=quantise)
    kernel, form = gemm(shape, case.device), FORMATS[case.form]
    operands = inner * (rows * form.activation_bits + columns * form.weight_bits)
    assert kernel.flops == 2 * batch * rows * columns * inner
    assert kernel.size_bytes == pytest.approx(batch * (operands + 16 * rows * columns) / 8, rel=1e-12)
    floor_s = max(kernel.flops / case.device.rate(form.compute), kernel.size_bytes / case.device.memory.bandwidth)
    launch = case.device.fitted.gemm_in(case.form).launch
    assert kernel.ns >= floor_s * 1e9 * (1 - 1e-12) + launch


@given(
    case_of,
    size,
    size,
    size,
    st.integers(1, 8),
    st.integers(0, 5000),
    st.sampled_from(["rows", "columns", "inner", "batch"]),
)
def test_a_larger_product_is_never_faster(case, rows, columns, inner, batch, more, side) -> None:
    shape = Gemm(rows, columns, inner, case.form, batch, quantise=True)
    larger = shape._replace(**{side: getattr(shape, side) + more})
    assert gemm(larger, case.device).ns >= gemm(shape, case.device).ns * (1 - 1e-12)


@given(device_of, st.integers(1, 300), st.integers(1, 300), st.integers(1, 70_000))
def test_products_of_whole_large_tiles_cost_those_tiles(device, down, across, inner) -> None:
    fit = device.fitted.gemm["bf16"]
    shape = Gemm(256 * down, 128 * across, inner)
    ideal = shape.flops / device.rate("bf16") * 1e9
    tiles, processors = down * across, device.processors
    if tiles < processors:
        waves = 1.0
    else:
        waves = tiles / processors + fit.waves * (ceil(tiles / processors) - tiles / processors)
    share = fit.compute * (1 - (1 - fit.sustained) * ideal / (ideal + SOAK_NS))
    step = waves * 2 * (256 * 128 + fit.step) * processors / device.rate("bf16") * 1e9 / share
    arithmetic = max(step, fit.latency) * (inner + fit.fill)
    kernel = gemm(shape, device)
    memory = kernel.size_bytes / device.memory.bandwidth * 1e9 / fit.memory
    assert kernel.ns <= fit.launch + hypot(arithmetic, memory) * (1 + 1e-12)
    if tiles >= 8 * processors and fit.waves < 1:  # smaller tiles then have nothing to win: no idle processors to fill
        assert kernel.ns == pytest.approx(fit.launch + hypot(arithmetic, memory), rel=0.02)


def plain(device: Accelerator, **constants: object) -> Accelerator:
    """Return a device whose products in 16 bits have no loss but the ones given, and that memory never holds up."""
    fit = efficiency.Gemm.model_validate(
        {"compute": 1.0, "memory": 1.0, "launch": "0 ns", "fill": 0.0, "step": 0.0} | constants
    )
    fitted = device.fitted.model_copy(update={"gemm": device.fitted.gemm | {"bf16": fit}})
    memory = device.memory.model_copy(update={"bandwidth": 10**21})
    return device.model_copy(update={"efficiency": fitted, "memory": memory})


def test_without_losses_a_full_device_runs_at_the_root_of_the_sum_of_squares_of_both_peaks() -> None:
    device = plain(H100).model_copy(update={"memory": H100.memory})
    shape = Gemm(256 * 12, 128 * 11, 4096)  # 132 tiles: one wave
    arithmetic = shape.flops / device.rate("bf16") * 1e9
    memory = shape.size_bytes / device.memory.bandwidth * 1e9
    kernel = gemm(shape, device)
    assert kernel.ns == pytest.approx(hypot(arithmetic, memory), rel=1e-12)
    assert kernel.compute_ns / kernel.memory_ns == pytest.approx(arithmetic / memory, rel=1e-12)


def test_a_tile_costs_the_same_however_little_of_it_is_used() -> None:
    device = plain(H100)  # 132 processors; larger tiles than 8 x 64 take at least 8 times as long
    full, over = (gemm(Gemm(rows, 64, 65536), device).ns for rows in (8 * 132, 8 * 132 + 1))
    assert full == pytest.approx(2 * 8 * 64 * 65536 * 132 / H100.rate("bf16") * 1e9, rel=1e-12)
    assert over == pytest.approx(2 * full, rel=1e-12)
    for rows in (8 * 132 - 7, 1):
        assert gemm(Gemm(rows, 1, 65536), device).ns == pytest.approx(full, rel=1e-12)


def test_whole_waves_cost_the_idle_processors_of_the_last_one() -> None:
    shape = Gemm(8 * 133, 64, 65536)
    even, half, whole = (gemm(shape, plain(H100, waves=waves)).ns for waves in (0.0, 0.5, 1.0))
    assert whole / even == pytest.approx(2 / (133 / 132), rel=1e-12)
    assert half == pytest.approx((even + whole) / 2, rel=1e-12)


def test_splitting_the_inner_dimension_pays_when_it_is_long_and_costs_its_sum() -> None:
    device = plain(H100, split="3000 ns")
    tile_ns = 2 * 8 * 64 * 65536 * H100.processors / H100.rate("bf16") * 1e9
    assert gemm(Gemm(8, 64, 65536), plain(H100)).ns == pytest.approx(tile_ns, rel=1e-12)
    assert gemm(Gemm(8, 64, 65536), device).ns == pytest.approx(tile_ns / 16 + 3000, rel=1e-12)
    assert gemm(Gemm(8, 64, 256), device) == gemm(Gemm(8, 64, 256), plain(H100))


def test_a_long_inner_dimension_takes_its_latency_however_small_the_tile() -> None:
    device = plain(H100, latency=1.25)
    assert gemm(Gemm(1, 1, 65536), device).ns == pytest.approx(1.25 * 65536, rel=1e-12)
    assert gemm(Gemm(256 * 12, 128 * 11, 65536), device).ns == gemm(Gemm(256 * 12, 128 * 11, 65536), plain(H100)).ns


def test_long_kernels_fall_to_the_sustained_share() -> None:
    device = plain(H100, sustained=0.8)
    short, long = Gemm(64 * 66, 64 * 32, 64), Gemm(2**17, 2**17, 2**17)
    for shape, share in ((short, 1.0), (long, 0.8)):
        whole = gemm(shape, plain(H100)).compute_ns
        assert whole / gemm(shape, device).compute_ns == pytest.approx(share, rel=0.01)


@pytest.mark.parametrize("form", ["int8_wo", "int4_wo", "fp8_wo", "w4a16_mxfp4"])
@pytest.mark.parametrize("device", DEVICES, ids=lambda device: device.name)
def test_narrow_weights_are_faster_where_memory_bounds_but_no_more_than_they_are_narrow(device, form) -> None:
    launch, narrowing = device.fitted.gemm["bf16"].launch, FORMATS[form].weight_bits / 16
    for rows in (1, 2):
        narrow, wide = (gemm(Gemm(rows, 28672, 8192, name), device) for name in (form, "bf16"))
        assert wide.bound == "memory"
        assert narrowing <= (narrow.ns - launch) / (wide.ns - launch) < 0.95
    narrow, wide = (gemm(Gemm(65536, 8192, 8192, name), device) for name in (form, "bf16"))
    assert narrow.bound == wide.bound == "compute"
    assert 0.98 * wide.ns < narrow.ns <= wide.ns


@pytest.mark.parametrize(("form", "device"), [("fp8", H100), ("fp8_block", H100), ("fp8", B200), ("nvfp4", B200)])
def test_narrow_formats_pay_in_large_products_and_in_large_weights(form, device) -> None:
    for shape in (Gemm(8192, 8192, 8192, form), Gemm(16, 28672, 8192, form)):
        assert gemm(shape, device).ns < 0.8 * gemm(shape._replace(format="bf16"), device).ns


def test_quantising_activations_costs_each_row_and_each_2048_elements_of_it() -> None:
    fit = H100.fitted.gemm["fp8"].quantise
    for rows, inner, chunks in ((1, 1, 1), (7, 2048, 1), (4096, 2049, 2), (100, 8192, 4)):
        shape = Gemm(rows, 4096, inner, "fp8")
        extra = gemm(shape._replace(quantise=True), H100).ns - gemm(shape, H100).ns
        assert extra == pytest.approx(H100.fitted.kernel_launch + rows * (fit.row + chunks * fit.chunk), rel=1e-9)
    assert gemm(Gemm(100, 4096, 4096, quantise=True), H100) == gemm(Gemm(100, 4096, 4096), H100)


def test_formats_that_were_not_measured_borrow_from_their_units_or_from_16_bits() -> None:
    assert H100.fitted.lender("mxfp8") == "fp8"
    assert H100.fitted.lender("int8") == "fp8"
    assert B200.fitted.lender("mxfp4") == "nvfp4"
    assert A100.fitted.lender("int8") == A100.fitted.lender("int4_wo") == "bf16"
    with pytest.raises(InputError, match="does not multiply in fp8"):
        gemm(Gemm(1, 1, 1, "fp8"), A100)


@given(device_of, st.integers(1, 10**11), st.integers(0, 10**9))
def test_bytes_alone_stream_below_the_peak(device, size_bytes, more) -> None:
    kernel = elementwise(size_bytes, device)
    assert kernel == time_of(Elementwise(size_bytes), device)
    assert kernel.ns >= device.fitted.kernel_launch + size_bytes / device.memory.bandwidth * 1e9
    assert elementwise(size_bytes + more, device).ns >= kernel.ns
    assert kernel.flops == kernel.compute_ns == 0


def test_the_bound_is_the_longest_term() -> None:
    assert gemm(Gemm(1, 64, 64), H100).bound == "launch"
    assert gemm(Gemm(1, 8192, 8192), H100).bound == "memory"
    assert gemm(Gemm(8192, 8192, 8192), H100).bound == "compute"
    assert elementwise(1 << 30, H100).bound == "memory"
    assert Kernel(link_ns=2.0, fixed_ns=1.0).bound == "link"
