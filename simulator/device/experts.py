"""Time of the routed experts of one rank: routing, two grouped products, activation, and moving rows there and back.

Source: grouped products in blocks of rows padded per expert, as in MegaBlocks (arXiv:2211.15841) and the fused kernels
of vLLM and TensorRT-LLM; the load of the fullest rank from `simulator.model.expert_load`.
"""

from simulator.device.accelerator import Accelerator
from simulator.device.kernels import Kernel, compute_floor_ns, memory_floor_ns
from simulator.model.expert_load import Load, rank_load
from simulator.model.operators import Experts
from simulator.model.precision import FORMATS

BLOCKS = (16, 32, 64, 128)
"""Rows of a tile that kernels choose among."""
WIDTH = 128
"""Columns of a tile."""
VALUE_BYTES = 2
"""Bytes of a value between the products."""


def experts(shape: Experts, accelerator: Accelerator) -> Kernel:
    """Return gate and up, activation and down of the tokens sent to the fullest rank, under the power law of `shape`."""
    load = rank_load(shape.tokens, shape.topk, shape.experts, shape.local, shape.skew)
    return loaded_experts(shape, load, accelerator)


def loaded_experts(shape: Experts, load: Load, accelerator: Accelerator) -> Kernel:
    """Return the same for a load that is known, in place of the one that `skew` implies.

    Each product takes the block of rows that is fastest. Weights of the experts used are read once, and what exceeds
    `cache` of an expert's once per block of its rows. The products follow each other, so the longer of arithmetic and
    memory of the whole carries the sum of the longer terms of each; moving rows is on top of both.
    """
    fit = accelerator.fitted.experts_in(shape.format)
    form = FORMATS[shape.format]
    pairs, used = load.total, load.experts_used
    blocks = [(block, _blocks(load, block)) for block in BLOCKS]
    compute_ns = memory_ns = longer_ns = size_bytes = 0.0
    widths = (2 if shape.gated else 1) * shape.intermediate
    for columns, inner in ((widths, shape.hidden), (shape.hidden, shape.intermediate)):
        weight = columns * inner * form.weight_bits / 8
        rows = pairs * (inner * form.activation_bits / 8 + columns * VALUE_BYTES)
        missed = max(0.0, 1 - fit.cache / weight)
        tile = -(-columns // WIDTH) * WIDTH * inner
        best = (float("inf"), 0.0, 0.0)
        for block, count in blocks:
            area = block * tile * (1 + fit.tile_loss * (1 / block + 1 / WIDTH))
            least = accelerator.processors / -(-columns // WIDTH)  # one tile each at least: a wave is never shorter
            arithmetic = compute_floor_ns(2 * max(count, least) * area, accelerator, form.compute) / fit.compute
            traffic = weight * (used + (count - used) * missed) + rows
            streaming = memory_floor_ns(traffic, accelerator) / fit.memory
            best = min(best, (max(arithmetic, streaming), arithmetic, streaming))
        longer_ns += best[0]
        compute_ns += best[1]
        memory_ns += best[2]
        size_bytes += used * weight + rows
    moved = _moved_bytes(shape, pairs, fit.remote)
    moving_ns = memory_floor_ns(moved, accelerator) / fit.move
    if compute_ns > memory_ns:
        compute_ns = longer_ns
    else:
        memory_ns = longer_ns
    return Kernel(
        flops=2 * pairs * shape.hidden * shape.intermediate * (3 if shape.gated else 2),
        size_bytes=size_bytes + moved,
        compute_ns=compute_ns + moving_ns,
        memory_ns=memory_ns + moving_ns,
        fixed_ns=fit.launch,
    )


def _blocks(load: Load, block: int) -> float:
    """Return the expected blocks of rows: one per expert used, and the last of each half full on average."""
    return load.count * sum(
        max(used, rows / block + used / 2) for rows, used in zip(load.rows, load.used, strict=True)
    )


def _moved_bytes(shape: Experts, pairs: float, remote: float) -> float:
    """Return the bytes between the products and around them: routing, permutation, activation, weighted sum.

    `remote` is the share of the pairs of other ranks that the kernels touch all the same.
    """
    touched = pairs + remote * max(shape.tokens * shape.topk - pairs, 0.0)
    between = touched * ((3 if shape.gated else 2) * shape.intermediate + shape.hidden) + pairs * shape.hidden
    around = shape.tokens * (2 * shape.hidden + 2 * shape.experts)
    return VALUE_BYTES * (between + around)
