"""Time of a dense matrix product: whole tiles in whole waves over the processors, or its operands once from memory.

Source: tiles and waves as in NVIDIA's matrix multiplication performance guide; constants fitted per device and format.
"""

from simulator.device.accelerator import Accelerator
from simulator.device.kernels import Kernel, compute_floor_ns, memory_floor_ns
from simulator.model.operators import Gemm
from simulator.model.precision import FORMATS

TILES = ((256, 128), (128, 256), (128, 128), (128, 64), (64, 128), (64, 64))
"""Output tiles that a matrix library chooses among: rows x columns."""
SPLITS = (1, 2, 4, 8)
"""Parts into which it cuts the inner dimension when the output has few tiles."""


def gemm(shape: Gemm, accelerator: Accelerator) -> Kernel:
    """Return the products of `shape` by the best tile and split of the inner dimension.

    A tile costs its full size even where it overhangs the output; the device works in waves of one tile per processor.
    """
    form = FORMATS[shape.format]
    fit = accelerator.fitted.gemm_in(shape.format)
    slots = float("inf")
    for height, width in TILES:
        tiles = -(-shape.rows // height) * -(-shape.columns // width) * shape.batch
        area = height * width * (1 + fit.tile_loss * (1 / height + 1 / width))
        for split in SPLITS:
            waves = -(-tiles * split // accelerator.processors)
            slots = min(slots, waves * area * (shape.inner / split + fit.fill))
    return Kernel(
        flops=shape.flops,
        size_bytes=shape.size_bytes,
        compute_ns=compute_floor_ns(2 * slots * accelerator.processors, accelerator, form.compute) / fit.compute,
        memory_ns=memory_floor_ns(shape.size_bytes, accelerator) / fit.memory,
        fixed_ns=fit.launch,
    )
