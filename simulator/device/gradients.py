"""Time of the backward pass of fused attention, from that of its forward pass.

Source: FlashAttention-2 (arXiv:2307.08691): five products against two; at best 63% of the peak against 73% forward.
"""

from simulator.device.accelerator import Accelerator
from simulator.device.attention import prompt_attention
from simulator.device.kernels import Kernel
from simulator.model.operators import AttentionGradient

BACKWARD_SHARE = 63 / 73
"""Rate of the backward kernel's arithmetic over the forward kernel's, both on an A100 at their best."""


def attention_gradient(shape: AttentionGradient, accelerator: Accelerator) -> Kernel:
    """Return the backward pass of attention: more arithmetic than forward at a lower rate, twice the operands."""
    forward = prompt_attention(shape.forward, accelerator)
    more = shape.flops / shape.forward.flops
    return Kernel(
        flops=shape.flops,
        size_bytes=shape.size_bytes,
        compute_ns=forward.compute_ns * more / BACKWARD_SHARE,
        memory_ns=forward.memory_ns * shape.size_bytes / shape.forward.size_bytes,
        fixed_ns=forward.fixed_ns,
    )
