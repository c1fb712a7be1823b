"""Time of fused attention: arithmetic over the pairs of a prompt, or the stream of keys and values in decode.

Source: FlashAttention (arXiv:2205.14135) moves each operand once; constants fitted per device.
"""

from simulator.device.accelerator import Accelerator
from simulator.device.kernels import Kernel, compute_floor_ns, memory_floor_ns
from simulator.model.operators import PromptAttention, TokenAttention


def prompt_attention(shape: PromptAttention, accelerator: Accelerator) -> Kernel:
    """Return attention of new positions over the pairs of their prompts.

    Blocks on the causal edge are computed whole: the fitted overhang is that many more keys for each query.
    """
    fit = accelerator.fitted.prompt_attention
    extra = fit.overhang * shape.tokens * 2 * shape.heads * (shape.key_dim + shape.value_dim)
    return Kernel(
        flops=shape.flops,
        size_bytes=shape.size_bytes,
        compute_ns=compute_floor_ns(shape.flops + extra, accelerator) / fit.compute,
        memory_ns=memory_floor_ns(shape.size_bytes, accelerator) / accelerator.fitted.gemm["bf16"].memory,
        fixed_ns=fit.launch,
    )


def token_attention(shape: TokenAttention, accelerator: Accelerator) -> Kernel:
    """Return attention of one query, or a few, per sequence.

    Affine in the context: both arithmetic and stream are proportional to the positions touched, blocks read whole.
    """
    fit = accelerator.fitted.token_attention
    whole = shape._replace(context=shape.context + fit.overhang * shape.batch)
    return Kernel(
        flops=shape.flops,
        size_bytes=shape.size_bytes,
        compute_ns=compute_floor_ns(whole.flops, accelerator) / accelerator.fitted.prompt_attention.compute,
        memory_ns=memory_floor_ns(whole.size_bytes, accelerator) / fit.memory,
        fixed_ns=fit.launch,
    )
