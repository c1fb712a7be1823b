"""The constants by which real kernels fall short of a device's published peaks, one set per device and format.

Source: fitted by benchmarks/calibrate.py on measured operator tables, named in each sheet; never per model or shape.
"""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

from simulator.model.precision import FORMATS, VALUES
from simulator.strict import Bandwidth, Count, Duration, Size, Strict

Share = Annotated[float, Field(gt=0, le=1)]


class Quantise(Strict):
    """Fitted constants of a kernel that gives a product's activations their scales; one block of threads a row."""

    row: float = Field(ge=0)
    """Time in ns of each row."""
    chunk: float = Field(ge=0)
    """Time in ns of each 2048 elements of a row, or part of them."""


class Gemm(Strict):
    """Fitted constants of dense matrix products in one format; see `simulator.device.gemm`."""

    compute: Share
    """Share of the peak that an endless inner product reaches on a full device, in a short kernel."""
    sustained: Share = 1.0
    """Share of `compute` that is left in a long kernel, when the clock has come down to what the power allows."""
    memory: Share
    """Share of the peak bandwidth that a large operand streams at."""
    launch: Duration
    """Time from one kernel's end to the first useful cycle of the next."""
    fill: float = Field(ge=0)
    """Pipeline fill of one tile, as elements of the inner dimension."""
    step: float = Field(ge=0)
    """Overhead of each step along the inner dimension, as elements of the tile: large tiles pay less of it."""
    latency: float = Field(default=0.0, ge=0)
    """Shortest time in ns of one element of the inner dimension, however little a processor has to do for it."""
    waves: float = Field(default=1.0, ge=0, le=1)
    """Cost of a wave's idle processors: 1 when tiles run in whole waves, 0 when they are cut to fill the last one."""
    split: Duration | None = None
    """Time of adding up the parts of a split inner dimension; None: the library does not split it."""
    quantise: Quantise | None = None
    """Cost of a kernel of its own that quantises the activations."""


class Experts(Strict):
    """Fitted constants of the routed experts of a rank in one format; see `simulator.device.experts`."""

    compute: Share
    """Share of the peak that an endless grouped product reaches on a full device."""
    memory: Share
    """Share of the peak bandwidth that weights stream at."""
    launch: Duration
    """Time of all kernels of a layer when they have next to nothing to do: routing, sorting, products, sums."""
    tile_loss: float = Field(ge=0)
    """Cost of small tiles, as that of a dense product."""
    cache: Size
    """Bytes of one expert's weights that stay on chip between two blocks of its rows."""
    move: Share
    """Share of the peak bandwidth at which rows are permuted, activated and summed."""
    remote: float = Field(ge=0, le=1)
    """Share of the pairs of a token and an expert of another rank that still pass through those kernels."""


class PromptAttention(Strict):
    """Fitted constants of fused attention over a prompt, by format of the cache; see `simulator.device.attention`."""

    compute: Share
    """Share of the 16-bit peak at which a tile is multiplied with keys and values."""
    softmax: float = Field(ge=0)
    """Picoseconds of one processor on each score that multiplying does not hide: maximum, exponential, sum."""
    tile: Duration
    """Time of one tile beyond its walk: queries loaded, pipeline filled, results written."""
    straggler: float = Field(ge=0, le=1)
    """Share of the longest tile that the device waits for at the end, most of it idle."""
    write: Share
    """Share of the peak bandwidth at which new keys and values are scattered over the cache."""
    launch: Duration
    """Fixed time of one call, that of the write to the cache included."""
    rows: Count = 128
    """Query rows of one tile."""
    packed: bool = True
    """Whether the queries of all heads that share a KV head fill tiles together."""
    decodes: Literal["along", "apart"] = "along"
    """Whether sequences that decode in the same step go along in this call, or have one of their own (TensorRT-LLM)."""
    registers: Count = 256
    """Head dimension up to which the results of a tile stay in registers."""
    wide: Share = 1.0
    """Share of `compute` that is left to wider heads."""


class TokenAttention(Strict):
    """Fitted constants of fused attention in decode, by format of the cache; see `simulator.device.attention`."""

    memory: Share
    """Share of the peak bandwidth at which keys and values stream."""
    feed: float = Field(ge=0)
    """Picoseconds of one processor on each element of a key or value beyond multiplying all rows of a tile with it."""
    tile: Duration
    """Time of one tile beyond its walk."""
    launch: Duration
    """Fixed time of one call, the write of the new keys and values included."""
    combine: Duration = 0
    """Time of putting together what keys split over several processors gave."""
    splits: Literal["always", "grouped"] = "always"
    """Which calls split the keys of a sequence: all, or those whose query heads share KV heads (FlashAttention-2)."""
    registers: Count = 256
    """Head dimension up to which the results of a tile stay in registers."""
    wide: Share = 1.0
    """Share of `compute` that is left to wider heads."""
    regroup: Duration = 0
    """Time of copying queries together that share a KV head, where a kernel of its own does it."""
    gather: Share | None = None
    """Share of the peak bandwidth at which queries reach the kernel and results leave it by copies; none: in place."""


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
    prompt_attention: dict[str, PromptAttention]
    """By format of the cache: bf16, and fp8 where it was measured; `latent`: over explicit keys of a latent cache."""
    token_attention: dict[str, TokenAttention]
    """By format of the cache."""
    latent_attention: dict[str, TokenAttention] | None = None
    """Kernels over a latent cache (MLA) by its format; none: as `token_attention`."""
    kernel_launch: Duration
    """Time of a kernel that has next to nothing to do: norms, rotary, activation at few tokens."""
    all_reduce: dict[str, AllReduce]
    """By number of ranks; a number between two entries takes the next larger."""

    attention_processors: Count | None = None
    """Processors whose times those of attention are; none: the device's. A borrower counts larger ones as several."""

    experts: dict[str, Experts] = Field(default_factory=dict)
    """By format; where nothing was measured, dense products stand for grouped ones, see `experts_in`."""
    dispatched_experts: dict[str, Experts] = Field(default_factory=dict)
    """By format, of experts whose tokens an exchange brings from other ranks: engines have other kernels for them."""

    def experts_in(self, form: str, dispatched: bool = False) -> Experts:
        """Return the constants of routed experts in `form`, or of the measured format that is nearest to it.

        Experts behind an exchange have their own where these were measured in the format.
        Nearest: multiplied on the same units (of 8 bits for narrow activations, else of 16), then by whole bits of a
        weight, then the kernel that reaches most of its peak: an ill-tuned one tells nothing of another format.
        Without any, those of dense products: their shares of the peaks, weights that always stay on chip between
        blocks, and a launch of two products and six small kernels.
        """
        if dispatched and form in self.dispatched_experts:
            return self.dispatched_experts[form]
        if form in self.experts:
            return self.experts[form]
        own = FORMATS[form]
        units = (own.compute, "fp8", "bf16") if own.activation_bits <= 8 else (own.compute, "bf16")
        for unit in units if self.experts else ():
            alike = [name for name in self.experts if FORMATS[name].compute == unit]
            off = {name: round(abs(FORMATS[name].weight_bits - own.weight_bits)) for name in alike}
            if alike:
                return self.experts[min(alike, key=lambda name: (off[name], -self.experts[name].compute))]
        return self._dense(form)

    def _dense(self, form: str) -> Experts:
        """Return the constants of dense products in `form` as those of grouped ones."""
        dense = self.gemm_in(form)
        launch = 2 * dense.launch + 6 * self.kernel_launch
        return Experts.model_construct(
            compute=dense.compute,
            memory=dense.memory,
            launch=launch,
            tile_loss=0.0,
            cache=1 << 40,
            move=dense.memory,
            remote=0.0,
        )

    def gemm_in(self, form: str) -> Gemm:
        """Return the constants of products in `form`, or those of the nearest format that was measured."""
        return self.gemm[self.lender(form)]

    def prompt_attention_in(self, kv: str, latent: bool = False) -> PromptAttention:
        """Return the constants of prompts whose cache is in `kv`."""
        if latent and "latent" in self.prompt_attention:
            return self.prompt_attention["latent"]
        return self.prompt_attention[_cache(kv, self.prompt_attention)]

    def token_attention_in(self, kv: str, latent: bool = False) -> TokenAttention:
        """Return the constants of decode over a cache in `kv`."""
        table = self.latent_attention if latent and self.latent_attention is not None else self.token_attention
        return table[_cache(kv, table)]

    def lender(self, form: str) -> str:
        """Return the measured format whose constants stand for `form`: itself, one on the same units, or bf16."""
        if form in self.gemm:
            return form
        compute = FORMATS[form].compute
        alike = (name for name in self.gemm if FORMATS[name].compute == compute)
        narrow = (name for name in self.gemm if FORMATS[form].activation_bits <= 8 and FORMATS[name].compute == "fp8")
        return next(alike, next(narrow, "bf16"))


def _cache(kv: str, table: Mapping[str, object]) -> str:
    """Return the measured format of a cache that stands for `kv`: itself, 8 bits for fewer, or bf16."""
    if kv in table:
        return kv
    return "fp8" if "fp8" in table and VALUES[kv] <= 8 else "bf16"
