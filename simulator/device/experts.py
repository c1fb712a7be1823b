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
    """Return gate and up, activation and down of what the fullest rank gets: by its balance, or the law of `shape`."""
    if shape.balance is not None:
        load = shape.balance.load(shape.tokens)
    else:
        load = rank_load(shape.tokens, shape.topk, shape.experts, shape.local, shape.skew)
    return loaded_experts(shape, load, accelerator)


def loaded_experts(shape: Experts, load: Load, accelerator: Accelerator) -> Kernel:
    """Return the same for a load that is known, in place of the one that `skew` implies.

    Each product takes the block of rows that is fastest. Weights of the experts used are read once, and what exceeds
    `cache` of an expert's once per block of its rows. The products follow each other, so the longer of arithmetic and
    memory of the whole carries the sum of the longer terms of each; moving rows is on top of both.
    """
    fit = accelerator.fitted.experts_in(shape.format, shape.dispatched)
    form = FORMATS[shape.format]
    pairs, used = load.total, load.experts_used
    tiles = [(_blocks(load, block), block + fit.tile_loss * (1 + block / WIDTH)) for block in BLOCKS]
    flop_ns = 2 * compute_floor_ns(1, accelerator, form.compute) / fit.compute
    byte_ns = memory_floor_ns(1, accelerator) / fit.memory
    compute_ns = memory_ns = longer_ns = size_bytes = 0.0
    gates = 2 if shape.gated else 1
    for columns, inner in ((gates * shape.intermediate, shape.hidden), (shape.hidden, shape.intermediate)):
        weight = columns * inner * form.weight_bits / 8
        once = used * weight + pairs * (inner * form.activation_bits / 8 + columns * VALUE_BYTES)
        again = max(0.0, weight - fit.cache)
        across = -(-columns // WIDTH)
        least = accelerator.processors / across  # a wave is never shorter than one tile
        longest = float("inf")
        for count, height in tiles:
            arithmetic = max(count, least) * height * across * WIDTH * inner * flop_ns
            streaming = (once + (count - used) * again) * byte_ns
            longer = arithmetic if arithmetic > streaming else streaming
            if longer < longest:
                longest, first, second = longer, arithmetic, streaming
        longer_ns += longest
        compute_ns += first
        memory_ns += second
        size_bytes += once
    moved = moved_bytes(shape, pairs, fit.remote)
    moving_ns = memory_floor_ns(moved, accelerator) / fit.move
    if compute_ns > memory_ns:
        compute_ns = longer_ns
    else:
        memory_ns = longer_ns
    return Kernel(
        flops=2 * pairs * shape.hidden * shape.intermediate * (gates + 1),
        size_bytes=size_bytes + moved,
        compute_ns=compute_ns + moving_ns,
        memory_ns=memory_ns + moving_ns,
        fixed_ns=fit.launch,
    )


def _blocks(load: Load, block: int) -> float:
    """Return the expected blocks of rows: one per expert used, and the last of each half full on average."""
    count = 0.0
    for rows, used in zip(load.rows, load.used, strict=True):
        half = rows / block + used / 2
        count += half if half > used else used
    return load.members * count


def moved_bytes(shape: Experts, pairs: float, remote: float) -> float:
    """Return the bytes between the products and around them: routing, permutation, activation, weighted sum.

    `remote` is the share of the pairs of other ranks that the kernels touch all the same, of tokens that are here.
    """
    tokens = min(shape.tokens, pairs) if shape.dispatched else shape.tokens
    touched = pairs + remote * max(tokens * shape.topk - pairs, 0.0)
    between = touched * ((3 if shape.gated else 2) * shape.intermediate + shape.hidden) + pairs * shape.hidden
    around = tokens * (2 * shape.hidden + 2 * shape.experts)
    return VALUE_BYTES * (between + around)
