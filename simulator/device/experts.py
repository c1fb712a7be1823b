"""Time of the routed experts of one rank: two grouped products, as many rows per expert as the router sends it.

Source: grouped products as in MegaBlocks (arXiv:2211.15841); loads of a power law of expert popularity.
"""

from simulator.device.accelerator import Accelerator
from simulator.device.gemm import gemm
from simulator.device.kernels import Kernel
from simulator.model.operators import Experts, Gemm


def experts(shape: Experts, accelerator: Accelerator) -> Kernel:
    """Return gate and up, activation and down of all tokens sent to this rank's experts."""
    sent = shape.tokens * shape.topk * shape.local / shape.experts
    used = shape.local * (1 - (1 - shape.topk / shape.experts) ** shape.tokens)
    rows = -(-round(sent) // max(1, round(used)))
    count = max(1, round(used))
    up = Gemm(rows, (2 if shape.gated else 1) * shape.intermediate, shape.hidden, shape.format, count)
    down = Gemm(rows, shape.hidden, shape.intermediate, shape.format, count)
    first, second = gemm(up, accelerator), gemm(down, accelerator)
    return Kernel(*(a + b for a, b in zip(first, second, strict=True)))
