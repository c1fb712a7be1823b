"""Time of a dense matrix product: tiles over the processors, and operands from memory, which slow each other down.

Source: tiles, waves and splits of the inner dimension as in NVIDIA's matrix multiplication performance guide and in
stream-K (Osama et al., arXiv:2301.03598); constants fitted per device and format by benchmarks/operators/gemm.py.
"""

from math import hypot

from simulator.device import efficiency
from simulator.device.accelerator import Accelerator
from simulator.device.kernels import Kernel, compute_floor_ns, memory_floor_ns
from simulator.model.operators import Gemm
from simulator.model.precision import FORMATS

TILES = ((256, 128), (128, 128), (64, 64), (8, 64))
"""Output tiles that a matrix library chooses among: rows x columns."""
SPLITS = 16
"""Most parts into which it cuts the inner dimension when the output has fewer tiles than the device processors."""
SOAK_NS = 1e6
"""Time at the peak after which half of the fall to the sustained clock has happened."""
CHUNK = 2048
"""Elements that the threads of one block quantise at a time."""


def gemm(shape: Gemm, accelerator: Accelerator) -> Kernel:
    """Return the products of `shape` by the best tile, with the inner dimension whole or split.

    A tile costs its full size even where it overhangs the output. Raises InputError for a format that the device lacks.
    """
    fit = accelerator.fitted.gemm_in(shape.format)
    flops, size_bytes, processors = shape.flops, shape.size_bytes, accelerator.processors
    ideal_ns = compute_floor_ns(flops, accelerator, FORMATS[shape.format].compute)
    slot_ns = (
        ideal_ns / flops * 2 * processors / sustained_share(fit, ideal_ns)
    )  # one multiply and add on one processor
    compute_ns = min([_tiled_ns(shape, tile, fit, processors, slot_ns) for tile in TILES])
    memory_ns = memory_floor_ns(size_bytes, accelerator) / fit.memory
    together = hypot(compute_ns, memory_ns) / max(compute_ns, memory_ns)
    return Kernel(
        flops=flops,
        size_bytes=size_bytes,
        compute_ns=together * compute_ns,
        memory_ns=together * memory_ns,
        fixed_ns=fit.launch + _quantise_ns(shape, fit, accelerator),
    )


def sustained_share(fit: efficiency.Gemm, ideal_ns: float) -> float:
    """Return the share of the peak that products reach which would take `ideal_ns` at the peak."""
    return fit.compute * (1 - (1 - fit.sustained) * ideal_ns / (ideal_ns + SOAK_NS))


def _tiled_ns(shape: Gemm, tile: tuple[int, int], fit: efficiency.Gemm, processors: int, slot_ns: float) -> float:
    """Return the arithmetic in tiles of one size: the faster of the whole inner dimension and of splitting it."""
    height, width = tile
    tiles = -(-shape.rows // height) * -(-shape.columns // width) * shape.batch
    step_ns = (height * width + fit.step) * slot_ns
    if tiles >= processors:
        waves = tiles / processors + fit.waves * (-(-tiles // processors) - tiles / processors)
        return max(waves * step_ns, fit.latency) * (shape.inner + fit.fill)
    step_ns = max(step_ns, fit.latency)
    whole_ns = step_ns * (shape.inner + fit.fill)
    parts = min(processors // tiles, SPLITS)
    if fit.split is None or parts == 1:
        return whole_ns
    return min(whole_ns, step_ns * (shape.inner / parts + fit.fill) + fit.split)


def _quantise_ns(shape: Gemm, fit: efficiency.Gemm, accelerator: Accelerator) -> float:
    """Return the time of quantising the activations of a product, when a kernel of its own does.

    Where it is borrowed the device may be one of less memory bandwidth: 16 bits are read and a narrow form is written.
    """
    if not shape.quantise or fit.quantise is None:
        return 0.0
    rows = shape.rows * shape.batch
    blocks_ns = rows * (fit.quantise.row + fit.quantise.chunk * -(-shape.inner // CHUNK))
    moved = rows * shape.inner * (2 + FORMATS[shape.format].activation_bits / 8)
    return accelerator.fitted.kernel_launch + max(blocks_ns, memory_floor_ns(moved, accelerator))
