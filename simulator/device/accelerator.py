"""The data sheet of one accelerator: published peaks, memory tiers, ports, power and price, and fitted efficiencies.

Source: the vendors' data sheets for peaks; measured operator tables, named in each sheet, for the fitted constants.
"""

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from simulator import catalog
from simulator.device.efficiency import AllReduce, Efficiency
from simulator.errors import InputError, Problem, nearest
from simulator.strict import (
    Bandwidth,
    Compute,
    Count,
    Duration,
    Fault,
    Frequency,
    HourlyPrice,
    LocatedError,
    Power,
    Price,
    Size,
    Strict,
)

KIND = "topologies/devices"


class Memory(Strict):
    """Memory next to the compute units: HBM, GDDR, or a processor's own DRAM."""

    capacity: Size
    """Bytes that the driver reports."""
    bandwidth: Bandwidth
    """Peak bytes per second."""
    latency: Duration | None = None
    """Time of one dependent load."""


class Tier(Strict):
    """Memory farther away: host DRAM, CXL, NVMe, a pool; or nearer, as on-chip SRAM. Figures are one device's share."""

    capacity: Size
    bandwidth: Bandwidth
    """Bytes per second of one device, one way."""
    latency: Duration | None = None


class ScaleUp(Strict):
    """The fast domain among neighbouring devices (NVLink, Infinity Fabric, UB, ICI)."""

    bandwidth: Bandwidth
    """Bytes per second of one device, one way."""
    ranks: Count
    """Devices in one domain."""


class Port(Strict):
    """One kind of link that leaves the device or its host for it."""

    bandwidth: Bandwidth
    """Bytes per second of one port, one way."""
    count: Count = 1


class Clock(Strict):
    """Range of the clock of the compute units."""

    boost: Frequency
    """Highest clock; the peaks hold at it."""
    base: Frequency | None = None
    minimum: Frequency | None = None


class Draw(Strict):
    """Electrical power of one device."""

    tdp: Power
    idle: Power | None = None


class Cost(Strict):
    """What one device costs."""

    purchase: Price | None = None
    hourly: HourlyPrice | None = None
    """Rent of one device in a cloud, on demand."""


class Accelerator(Strict):
    """One accelerator: peaks, memory, link, power and fitted constants; `sources` says where each number is from."""

    name: str
    processors: Count
    """Streaming multiprocessors (or the vendor's like): the unit over which tiles are spread in waves."""
    peak: dict[str, Compute]
    """Dense operations per second by data type of the multipliers, never the sparse figure."""
    memory: Memory
    tiers: dict[str, Tier] = Field(default_factory=dict)
    """Further memories by name: sram, host, cxl, nvme, pool."""
    scale_up: ScaleUp | None = None
    """None: a device that reaches its neighbours only through its host."""
    ports: dict[str, Port] = Field(default_factory=dict)
    """Other links by name: pcie, nic, c2c."""
    power: Draw
    clock: Clock | None = None
    price: Cost = Cost()
    like: str | None = None
    """Another sheet whose fitted efficiencies this device borrows, for nothing of it was measured."""
    efficiency: Efficiency | None = None
    """Fitted constants; a sheet has these or `like`."""
    sources: dict[str, str]

    @model_validator(mode="after")
    def _sheet_is_whole(self) -> Self:
        if "bf16" not in self.peak and "fp16" not in self.peak:
            raise LocatedError(Fault(("peak",), "needs an entry for bf16 or fp16"))
        if (self.like is None) == (self.efficiency is None):
            raise LocatedError(Fault((), "a sheet has fitted `efficiency` or borrows it from another by `like`"))
        if self.efficiency is not None and self.scale_up is not None:
            table = self.efficiency.all_reduce
            if not all(key.isdecimal() for key in table) or str(self.scale_up.ranks) not in table:
                what = f"is keyed by numbers of ranks and needs one for all {self.scale_up.ranks}"
                raise LocatedError(Fault(("efficiency", "all_reduce"), what))
        return self

    @property
    def domain(self) -> int:
        """Devices of one scale-up domain, 1 when there is none."""
        return self.scale_up.ranks if self.scale_up else 1

    @property
    def fitted(self) -> Efficiency:
        """The efficiencies, own or borrowed; a loaded sheet has them."""
        assert self.efficiency is not None
        return self.efficiency

    def rate(self, compute: str) -> float:
        """Return the dense peak of a data type, in operations per second; fp16 and bf16 stand for each other.

        Raises InputError that names the data types that the device multiplies.
        """
        peak = self.peak.get(compute)
        if peak is None and compute in ("bf16", "fp16"):
            peak = self.peak.get("fp16") or self.peak.get("bf16")
        if peak is None:
            what = f"{self.name} does not multiply in {compute}"
            raise InputError(
                Problem(what, path="precision", allowed=", ".join(self.peak), nearest=nearest(compute, self.peak))
            )
        return peak

    def in_nodes_of(self, devices: int) -> Self:
        """Return the sheet of this device in nodes that hold `devices` of it: its scale-up domain ends at the node."""
        if self.scale_up is None:
            return self
        ranks = min(self.scale_up.ranks, devices)
        return self.model_copy(update={"scale_up": self.scale_up.model_copy(update={"ranks": ranks})})

    def all_reduce(self, ranks: int) -> AllReduce:
        """Return the constants for `ranks` devices, at most `domain`: of the next larger number measured."""
        table = self.fitted.all_reduce
        measured = sorted(int(key) for key in table)
        return table[str(next((n for n in measured if n >= ranks), measured[-1]))]


def load_accelerator(name: str, beside: Path | None = None) -> Accelerator:
    """Return the data sheet `name` of `topologies/devices`, or of a path relative to `beside`; borrows what it must."""
    sheet = catalog.load(KIND, name, Accelerator, beside)
    if sheet.like is None:
        return sheet
    at = catalog.locate(KIND, name, beside).parent
    lender = catalog.load(KIND, sheet.like, Accelerator, at)
    if lender.efficiency is None:
        what = f"{sheet.name} borrows efficiencies from {sheet.like}, which borrows them itself"
        raise InputError(Problem(what, path="like", allowed="a sheet with fitted efficiency"))
    return sheet.model_copy(update={"efficiency": lender.efficiency})
