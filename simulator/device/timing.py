"""The time of any operator on one device: each kind of shape has its kernel, or another source of times knows it."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from simulator.device.accelerator import Accelerator
from simulator.device.attention import prompt_attention, token_attention
from simulator.device.experts import experts
from simulator.device.gemm import gemm
from simulator.device.gradients import attention_gradient
from simulator.device.index_scores import index_scores
from simulator.device.kernels import Kernel, elementwise
from simulator.device.links import collective
from simulator.model.operators import (
    AttentionGradient,
    Collective,
    Elementwise,
    Experts,
    Gemm,
    IndexScores,
    Operator,
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
    IndexScores: index_scores,
    Elementwise: lambda shape, accelerator: elementwise(shape.size_bytes, accelerator),
    Collective: collective,
}
"""The kernel of each kind of operator."""


def time_of(shape: Shape, accelerator: Accelerator) -> Kernel:
    """Return the kernel of `shape` on `accelerator`."""
    return KERNELS[type(shape)](shape, accelerator)


class Times(Protocol):
    """A source of the times of operators on one device kind."""

    grows: bool
    """Whether attention over a longer context is never faster, all else the same."""

    def kernel(self, operator: Operator) -> Kernel:
        """Return one call of `operator`."""
        ...

    def attention(self, operators: Sequence[Operator]) -> list[Kernel]:
        """Return one call of each attention kernel of one step, of prompts and of decoding sequences."""
        ...


class Roofline:
    """Times of operators from the device's sheet alone."""

    grows = True

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator

    def kernel(self, operator: Operator) -> Kernel:
        """Return one call of `operator`."""
        return time_of(operator.shape, self.accelerator)

    def attention(self, operators: Sequence[Operator]) -> list[Kernel]:
        """Return one call of each kernel: prompts and decoding sequences take their turns."""
        return [time_of(operator.shape, self.accelerator) for operator in operators]
