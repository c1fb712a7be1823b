"""The time of any operator on one device: each kind of shape has its kernel."""

from collections.abc import Callable
from typing import Any

from simulator.device.accelerator import Accelerator
from simulator.device.attention import prompt_attention, token_attention
from simulator.device.experts import experts
from simulator.device.gemm import gemm
from simulator.device.gradients import attention_gradient
from simulator.device.kernels import Kernel, elementwise
from simulator.device.links import collective
from simulator.model.operators import (
    AttentionGradient,
    Collective,
    Elementwise,
    Experts,
    Gemm,
    PromptAttention,
    Shape,
    TokenAttention,
)

KERNELS: dict[type, Callable[[Any, Accelerator], Kernel]] = {
    Gemm: gemm,
    Experts: experts,
    PromptAttention: prompt_attention,
    AttentionGradient: attention_gradient,
    TokenAttention: token_attention,
    Elementwise: lambda shape, accelerator: elementwise(shape.size_bytes, accelerator),
    Collective: collective,
}
"""The kernel of each kind of operator."""


def time_of(shape: Shape, accelerator: Accelerator) -> Kernel:
    """Return the kernel of `shape` on `accelerator`."""
    return KERNELS[type(shape)](shape, accelerator)
