"""Parallel layouts: over how many devices one replica of a model is split, and along which dimension.

Source: tensor and pipeline parallelism as in Megatron-LM (arXiv:2104.04473), its sequence parallelism (2205.05198),
experts as in GShard (2006.16668), data-parallel attention as in DeepSeek-V3 (2412.19437), context parallelism as in
arXiv:2411.01783.
"""

from typing import Literal, Self

from pydantic import model_validator

from simulator.strict import Count, Fault, LocatedError, Strict


class Layout(Strict):
    """A parallel layout: over how many devices one instance is split, and how."""

    tensor: Count = 1
    """Tensor-parallel degree: heads, MLP columns and vocabulary are split over this many devices."""
    pipeline: Count = 1
    """Pipeline-parallel degree: layers are split into so many stages."""
    data: Count = 1
    """Data-parallel attention: so many groups of `tensor` devices hold own sequences and step together."""
    context: Count = 1
    """Context-parallel degree: the positions of a sequence are split over this many groups of `tensor` devices."""
    expert: Count = 1
    """Expert-parallel degree: routed experts are split over so many of the devices of a stage."""
    sequence_parallel: bool = False
    """Norms and residuals are split over the tensor ranks by position; an all-reduce becomes a scatter and a gather."""
    context_exchange: Literal["pass_kv", "pass_q"] = "pass_kv"
    """What context-parallel ranks hand around the ring in prefill: keys and values, or queries."""

    @model_validator(mode="after")
    def _experts_fill_a_stage(self) -> Self:
        if self.stage_devices % self.expert:
            what = f"{self.expert} expert-parallel ranks do not divide the {self.stage_devices} devices of a stage"
            raise LocatedError(Fault(("expert",), what, "a divisor of tensor x data x context"))
        if self.sequence_parallel and self.tensor == 1:
            raise LocatedError(Fault(("sequence_parallel",), "sequence parallelism needs a tensor degree of 2 or more"))
        return self

    @property
    def stage_devices(self) -> int:
        """Devices of one pipeline stage."""
        return self.tensor * self.data * self.context

    @property
    def dispatches(self) -> bool:
        """Whether ranks have tokens of their own, so that those of experts elsewhere are sent there and back."""
        return self.data * self.context > 1

    @property
    def devices(self) -> int:
        """Devices of one instance."""
        return self.stage_devices * self.pipeline

    @property
    def expert_tensor(self) -> int:
        """Devices over which one expert is split: what the expert-parallel degree leaves of a stage."""
        return self.stage_devices // self.expert

    def __str__(self) -> str:
        parts = {"TP": self.tensor, "PP": self.pipeline, "DP": self.data, "CP": self.context, "EP": self.expert}
        return " ".join(f"{name}{degree}" for name, degree in parts.items() if degree > 1 or name == "TP")
