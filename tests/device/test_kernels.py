import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator import catalog
from simulator.device import kernels
from simulator.device.accelerator import load_accelerator

DEVICES = [load_accelerator(name) for name in catalog.names("topologies/devices")]
device_of = st.sampled_from(DEVICES)
size = st.integers(1, 70_000)


@given(device_of, size, size, size)
def test_a_matrix_product_counts_its_work_and_never_beats_the_roofline(device, rows, columns, inner) -> None:
    kernel = kernels.gemm(rows, columns, inner, device)
    assert kernel.flops == 2 * rows * columns * inner
    assert kernel.size_bytes == 2 * (rows * inner + inner * columns + rows * columns)
    floor = max(kernel.flops / device.peak["bf16"], kernel.size_bytes / device.memory.bandwidth) * 1e9
    assert kernel.ns >= floor * (1 - 1e-12) + device.efficiency.gemm.launch


@given(device_of, size, size, size, st.integers(0, 5000), st.sampled_from(["rows", "columns", "inner"]))
def test_a_larger_matrix_product_is_never_faster(device, rows, columns, inner, more, side) -> None:
    shape = {"rows": rows, "columns": columns, "inner": inner}
    larger = shape | {side: shape[side] + more}
    low = kernels.gemm(*shape.values(), device).ns
    assert kernels.gemm(*larger.values(), device).ns >= low * (1 - 1e-12)


def test_a_tile_costs_the_same_however_little_of_it_is_used() -> None:
    h100 = load_accelerator("h100-sxm-80gb")
    full = kernels.gemm(256 * 12, 128 * 11, 65536, h100)  # 132 tiles of 256 x 128: one wave
    over = kernels.gemm(256 * 12 + 1, 128 * 11, 65536, h100)
    assert full.bound == over.bound == "compute"
    assert over.ns > 1.05 * full.ns
    assert kernels.gemm(256 * 12 - 1, 128 * 11, 65536, h100).compute_ns == full.compute_ns


@given(
    device_of, st.integers(1, 10_000), st.integers(0, 100_000), st.sampled_from([(32, 8), (64, 8), (8, 1), (32, 32)])
)
def test_prefill_attention_never_beats_the_roofline(device, tokens, cached, heads) -> None:
    pairs = tokens * cached + tokens * (tokens + 1) // 2
    kernel = kernels.prefill_attention(tokens, pairs, tokens + cached, *heads, 128, device)
    assert kernel.flops == 4 * heads[0] * 128 * pairs
    assert kernel.size_bytes == 2 * 128 * (2 * heads[1] * (tokens + cached) + 2 * heads[0] * tokens)
    assert kernel.ns * 1e-9 >= max(kernel.flops / device.peak["bf16"], kernel.size_bytes / device.memory.bandwidth) * (
        1 - 1e-12
    )


@given(device_of, st.integers(1, 512), st.integers(1, 10**7), st.integers(1, 10**7))
def test_decode_attention_is_affine_in_the_context(device, batch, near, far) -> None:
    def ns(context: float) -> float:
        return kernels.decode_attention(batch, context, 64, 8, 128, device).ns

    assert ns((near + far) / 2) == pytest.approx((ns(near) + ns(far)) / 2, rel=1e-12)
    assert ns(near) >= near * 4 * 8 * 128 / device.memory.bandwidth * 1e9


@given(device_of, st.integers(1, 10**10), st.integers(0, 10**9), st.integers(2, 8))
def test_collectives_grow_with_the_message_and_a_gather_moves_half(device, message, more, ranks) -> None:
    reduce, gather = kernels.all_reduce(message, ranks, device), kernels.all_gather(message, ranks, device)
    assert kernels.all_reduce(message + more, ranks, device).ns >= reduce.ns
    assert gather.link_ns * 2 == reduce.link_ns
    assert reduce.fixed_ns == gather.fixed_ns > 0


def test_the_bound_is_the_longest_term() -> None:
    h100 = DEVICES[-1]
    assert kernels.gemm(1, 64, 64, h100).bound == "launch"
    assert kernels.gemm(1, 8192, 8192, h100).bound == "memory"
    assert kernels.gemm(8192, 8192, 8192, h100).bound == "compute"
    assert kernels.all_reduce(1 << 30, 8, h100).bound == "link"
