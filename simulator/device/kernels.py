"""Time of one kernel: a roofline with tile and wave quantisation for matrix products, linear forms for the rest.

Source: Williams et al., "Roofline", CACM 2009; tiles and waves as in NVIDIA's matrix multiplication performance guide;
an all-reduce is a latency plus 2 (n - 1) / n of the message over the bus bandwidth (Thakur et al., 2005).
"""

from typing import NamedTuple

from simulator.device.accelerator import Accelerator
from simulator.model.transformer import VALUE_BYTES
from simulator.units import NS_PER_S

TILES = ((256, 128), (128, 256), (128, 128), (128, 64), (64, 128), (64, 64))
"""Output tiles that a matrix library chooses among: rows x columns."""
SPLITS = (1, 2, 4, 8)
"""Parts into which it cuts the inner dimension when the output has few tiles."""


class Kernel(NamedTuple):
    """One kernel's work and its time in ns: fixed, plus the longest of arithmetic, memory traffic and link traffic."""

    flops: float = 0.0
    size_bytes: float = 0.0
    compute_ns: float = 0.0
    memory_ns: float = 0.0
    link_ns: float = 0.0
    fixed_ns: float = 0.0

    @property
    def busy_ns(self) -> float:
        """The longest of arithmetic, memory traffic and link traffic."""
        return max(self.compute_ns, self.memory_ns, self.link_ns)

    @property
    def ns(self) -> float:
        """Duration in ns."""
        return self.fixed_ns + self.busy_ns

    @property
    def bound(self) -> str:
        """What most of the time goes to: compute, memory, link or launch."""
        terms = {"compute": self.compute_ns, "memory": self.memory_ns, "link": self.link_ns, "launch": self.fixed_ns}
        return max(terms, key=terms.__getitem__)


def compute_floor_ns(flops: float, accelerator: Accelerator) -> float:
    """Return the time of `flops` at the dense bf16 peak."""
    return flops * NS_PER_S / accelerator.peak["bf16"]


def memory_floor_ns(size_bytes: float, accelerator: Accelerator) -> float:
    """Return the time of moving `size_bytes` at the peak memory bandwidth."""
    return size_bytes * NS_PER_S / accelerator.memory.bandwidth


def gemm(rows: int, columns: int, inner: int, accelerator: Accelerator) -> Kernel:
    """Return the product of a rows x inner and an inner x columns matrix, by the best tile and split of `inner`.

    A tile costs its full size even where it overhangs the output; the device works in waves of one tile per processor.
    """
    fit = accelerator.efficiency.gemm
    slots = float("inf")
    for height, width in TILES:
        tiles = -(-rows // height) * -(-columns // width)
        area = height * width * (1 + fit.tile_loss * (1 / height + 1 / width))
        for split in SPLITS:
            waves = -(-tiles * split // accelerator.processors)
            slots = min(slots, waves * area * (inner / split + fit.fill))
    size = VALUE_BYTES * (rows * inner + inner * columns + rows * columns)
    return Kernel(
        flops=2 * rows * columns * inner,
        size_bytes=size,
        compute_ns=compute_floor_ns(2 * slots * accelerator.processors, accelerator) / fit.compute,
        memory_ns=memory_floor_ns(size, accelerator) / fit.memory,
        fixed_ns=fit.launch,
    )


def elementwise(size_bytes: float, accelerator: Accelerator) -> Kernel:
    """Return a kernel that only moves bytes: norm, rotary positions, activation, embedding, sampling."""
    fit = accelerator.efficiency
    memory_ns = memory_floor_ns(size_bytes, accelerator) / fit.gemm.memory
    return Kernel(size_bytes=size_bytes, memory_ns=memory_ns, fixed_ns=fit.kernel_launch)


def prefill_attention(
    tokens: int, attended: float, kv_tokens: float, heads: int, kv_heads: int, head_dim: int, accelerator: Accelerator
) -> Kernel:
    """Return fused attention of `tokens` queries over `attended` query-key pairs that read `kv_tokens` keys and values.

    Blocks on the causal edge are computed whole: the fitted overhang is that many more keys for each query.
    """
    fit = accelerator.efficiency.prefill_attention
    pair_flops = 4 * heads * head_dim
    size = VALUE_BYTES * head_dim * (2 * kv_heads * kv_tokens + 2 * heads * tokens)
    return Kernel(
        flops=pair_flops * attended,
        size_bytes=size,
        compute_ns=compute_floor_ns(pair_flops * (attended + fit.overhang * tokens), accelerator) / fit.compute,
        memory_ns=memory_floor_ns(size, accelerator) / accelerator.efficiency.gemm.memory,
        fixed_ns=fit.launch,
    )


def decode_attention(
    batch: int, context: float, heads: int, kv_heads: int, head_dim: int, accelerator: Accelerator
) -> Kernel:
    """Return fused attention of one query per sequence over `context` tokens of keys and values in all.

    Affine in `context`: both arithmetic and stream are proportional to the positions touched, blocks read whole.
    """
    fit = accelerator.efficiency.decode_attention
    touched = context + fit.overhang * batch
    pair_flops, token_bytes = 4 * heads * head_dim, 2 * VALUE_BYTES * kv_heads * head_dim
    return Kernel(
        flops=pair_flops * context,
        size_bytes=token_bytes * context,
        compute_ns=compute_floor_ns(pair_flops * touched, accelerator)
        / accelerator.efficiency.prefill_attention.compute,
        memory_ns=memory_floor_ns(token_bytes * touched, accelerator) / fit.memory,
        fixed_ns=fit.launch,
    )


def all_reduce(size_bytes: float, ranks: int, accelerator: Accelerator) -> Kernel:
    """Return an all-reduce of `size_bytes` on each of `ranks` (two or more) devices of one scale-up domain."""
    fit = accelerator.all_reduce(ranks).protocol(size_bytes)
    link_ns = 2 * (ranks - 1) / ranks * size_bytes * NS_PER_S / fit.bandwidth
    return Kernel(link_ns=link_ns, fixed_ns=fit.latency)


def all_gather(size_bytes: float, ranks: int, accelerator: Accelerator) -> Kernel:
    """Return the gathering of `size_bytes` in all over `ranks` devices: half the traffic of an all-reduce."""
    whole = all_reduce(size_bytes, ranks, accelerator)
    return whole._replace(link_ns=whole.link_ns / 2)
