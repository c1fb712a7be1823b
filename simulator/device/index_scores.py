"""Time of an index that chooses the positions to attend to: scores of pairs in 8 bits, then the highest of each query.

Source: DeepSeek-V3.2 (arXiv:2512.02556) for the shapes. Products reach the share of the peak of a long dense one in 8
bits, keys stream as large operands do; no constant is fitted on an index.
"""

from simulator.device.accelerator import Accelerator
from simulator.device.gemm import sustained_share
from simulator.device.kernels import Kernel, compute_floor_ns, memory_floor_ns
from simulator.model.operators import IndexScores


def index_scores(shape: IndexScores, accelerator: Accelerator) -> Kernel:
    """Return the scores and, after them, the choice among them, which reads each once."""
    scores, fit = scores_alone(shape, accelerator), accelerator.fitted
    choice_ns = memory_floor_ns(shape.sums_bytes, accelerator) / fit.gemm["bf16"].memory
    return scores._replace(
        size_bytes=shape.size_bytes,
        compute_ns=scores.compute_ns + choice_ns,
        memory_ns=scores.memory_ns + choice_ns,
        fixed_ns=2 * fit.kernel_launch,
    )


def scores_alone(shape: IndexScores, accelerator: Accelerator) -> Kernel:
    """Return the kernel of the scores."""
    form = next((name for name in ("fp8", "int8") if name in accelerator.peak), "bf16")
    ideal_ns = compute_floor_ns(shape.flops, accelerator, form)
    size_bytes = shape.size_bytes - shape.sums_bytes
    fit = accelerator.fitted
    return Kernel(
        flops=shape.flops,
        size_bytes=size_bytes,
        compute_ns=ideal_ns / sustained_share(fit.gemm_in(form), ideal_ns),
        memory_ns=memory_floor_ns(size_bytes, accelerator) / fit.gemm["bf16"].memory,
        fixed_ns=fit.kernel_launch,
    )
