"""The data sheet of one accelerator: published peaks, and the constants by which real kernels fall short of them.

Source: the vendors' data sheets for peaks; measured operator tables, named in each sheet, for the fitted constants.
"""

from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from simulator import catalog
from simulator.strict import Bandwidth, Compute, Count, Duration, Power, Size, Strict

Share = Annotated[float, Field(gt=0, le=1)]


class Memory(Strict):
    """Device memory (HBM)."""

    capacity: Size
    """Bytes that the driver reports."""
    bandwidth: Bandwidth
    """Peak bytes per second."""


class ScaleUp(Strict):
    """The fast domain among neighbouring devices (NVLink)."""

    bandwidth: Bandwidth
    """Bytes per second of one device, one way."""
    ranks: Count
    """Devices in one domain."""


class Draw(Strict):
    """Electrical power of one device."""

    tdp: Power
    idle: Power | None = None


class Gemm(Strict):
    """Fitted constants of dense matrix products; see `simulator.device.kernels.gemm_ns`."""

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


class PrefillAttention(Strict):
    """Fitted constants of fused attention over a prompt; see `simulator.device.kernels.prefill_attention`."""

    compute: Share
    """Share of the peak that long sequences reach."""
    launch: Duration
    """Fixed time of one call, the write of the new keys and values included."""
    overhang: float = Field(ge=0)
    """Extra key positions that block-wise kernels compute for each query."""


class DecodeAttention(Strict):
    """Fitted constants of fused attention for one new token; see `simulator.device.kernels.decode_attention`."""

    memory: Share
    """Share of the peak bandwidth at which keys and values stream."""
    launch: Duration
    """Fixed time of one call, the write of the new keys and values included."""
    overhang: float = Field(ge=0)
    """Extra key positions that block-wise kernels read for each sequence."""


class Protocol(Strict):
    """Latency and bandwidth of one way to all-reduce; see `simulator.device.kernels.all_reduce`."""

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

    gemm: Gemm
    prefill_attention: PrefillAttention
    decode_attention: DecodeAttention
    kernel_launch: Duration
    """Time of a kernel that has next to nothing to do: norms, rotary, activation at few tokens."""
    all_reduce: dict[str, AllReduce]
    """By number of ranks; a number between two entries takes the next larger."""


class Accelerator(Strict):
    """One accelerator: peaks, memory, link, power and fitted constants; `sources` says where each number is from."""

    name: str
    processors: Count
    """Streaming multiprocessors (or the vendor's like): the unit over which tiles are spread in waves."""
    peak: dict[str, Compute]
    """Dense operations per second by data type, never the sparse figure."""
    memory: Memory
    scale_up: ScaleUp
    power: Draw
    efficiency: Efficiency
    sources: dict[str, str]

    @model_validator(mode="after")
    def _tables_are_sound(self) -> Self:
        if "bf16" not in self.peak:
            raise ValueError("peak needs an entry for bf16")
        table = self.efficiency.all_reduce
        if not all(key.isdecimal() for key in table) or str(self.scale_up.ranks) not in table:
            raise ValueError(
                f"efficiency.all_reduce is keyed by numbers of ranks and needs one for all {self.scale_up.ranks}"
            )
        return self

    def in_nodes_of(self, devices: int) -> Self:
        """Return the sheet of this device in nodes that hold `devices` of it: its scale-up domain ends at the node."""
        ranks = min(self.scale_up.ranks, devices)
        return self.model_copy(update={"scale_up": self.scale_up.model_copy(update={"ranks": ranks})})

    def all_reduce(self, ranks: int) -> AllReduce:
        """Return the constants for `ranks` devices, at most `scale_up.ranks`: of the next larger number measured."""
        table = self.efficiency.all_reduce
        measured = sorted(int(key) for key in table)
        return table[str(next(n for n in measured if n >= ranks))]


def load_accelerator(name: str, beside: Path | None = None) -> Accelerator:
    """Return the data sheet `name` of `topologies/devices`, or of a path relative to `beside`."""
    return catalog.load("topologies/devices", name, Accelerator, beside)
