"""The constants by which real kernels fall short of a device's published peaks, one set per device and format.

Source: fitted by benchmarks/calibrate.py on measured operator tables, named in each sheet; never per model or shape.
"""

from typing import Annotated

from pydantic import Field

from simulator.model.precision import FORMATS
from simulator.strict import Bandwidth, Duration, Size, Strict

Share = Annotated[float, Field(gt=0, le=1)]


class Gemm(Strict):
    """Fitted constants of dense matrix products in one format; see `simulator.device.gemm`."""

    compute: Share
    """Share of the peak that an endless inner product reaches on a full device."""
    memory: Share
    """Share of the peak bandwidth that a large operand streams at."""
    launch: Duration
    """Time from one kernel's end to the first useful cycle of the next."""
    fill: float = Field(ge=0)
    """Pipeline fill of one tile, as elements of the inner dimension."""
    tile_loss: float = Field(ge=0)
    """Cost of small tiles: a tile of a x b runs at 1 / (1 + tile_loss (1/a + 1/b)) of the rate of an endless one."""


class PromptAttention(Strict):
    """Fitted constants of fused attention over a prompt; see `simulator.device.attention`."""

    compute: Share
    """Share of the peak that long sequences reach."""
    launch: Duration
    """Fixed time of one call, the write of the new keys and values included."""
    overhang: float = Field(ge=0)
    """Extra key positions that block-wise kernels compute for each query."""


class TokenAttention(Strict):
    """Fitted constants of fused attention for one new token; see `simulator.device.attention`."""

    memory: Share
    """Share of the peak bandwidth at which keys and values stream."""
    launch: Duration
    """Fixed time of one call, the write of the new keys and values included."""
    overhang: float = Field(ge=0)
    """Extra key positions that block-wise kernels read for each sequence."""


class Protocol(Strict):
    """Latency and bandwidth of one way to all-reduce; see `simulator.device.links`."""

    latency: Duration
    bandwidth: Bandwidth
    """Bus bandwidth: 2 (n - 1) / n of the message is moved at this rate (in-switch reduction may pass the link's)."""


class AllReduce(Strict):
    """Fitted constants of an all-reduce over one number of ranks: engines change protocol with the message size."""

    switch: Size
    """Messages of this size and more take the `large` protocol."""
    small: Protocol
    large: Protocol

    def protocol(self, size_bytes: float) -> Protocol:
        """Return the protocol of a message of `size_bytes`."""
        return self.small if size_bytes < self.switch else self.large


class Efficiency(Strict):
    """Everything fitted on measured tables, per device and never per model."""

    gemm: dict[str, Gemm]
    """By format of the product; see `simulator.model.precision.FORMATS`."""
    prompt_attention: PromptAttention
    token_attention: TokenAttention
    kernel_launch: Duration
    """Time of a kernel that has next to nothing to do: norms, rotary, activation at few tokens."""
    all_reduce: dict[str, AllReduce]
    """By number of ranks; a number between two entries takes the next larger."""

    def gemm_in(self, form: str) -> Gemm:
        """Return the constants of products in `form`, or those of the nearest format that was measured."""
        return self.gemm[self.lender(form)]

    def lender(self, form: str) -> str:
        """Return the measured format whose constants stand for `form`: itself, one on the same units, or bf16."""
        if form in self.gemm:
            return form
        compute = FORMATS[form].compute
        alike = (name for name in self.gemm if FORMATS[name].compute == compute)
        narrow = (name for name in self.gemm if FORMATS[form].activation_bits <= 8 and FORMATS[name].compute == "fp8")
        return next(alike, next(narrow, "bf16"))
