"""The data sheet of one accelerator: published peaks, memory tiers, ports, power and price, and fitted efficiencies.

Source: the vendors' data sheets for peaks; measured operator tables, named in each sheet, for the fitted constants.
"""

from functools import partial
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from simulator import catalog
from simulator.device.efficiency import AllReduce, Efficiency, Protocol
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
    """The domain of tensor parallelism among neighbouring devices: NVLink, Infinity Fabric, UB, ICI, or the host."""

    bandwidth: Bandwidth
    """Bytes per second of one device, one way."""
    ranks: Count
    """Devices in one domain."""
    joined: Literal["switch", "mesh", "host"] = "switch"
    """By switches; or each to each by a link of its own, n ranks then having (n - 1) / (ranks - 1) of the bandwidth; or
    through the host, whose processor and not the slot sets the pace (NCCL's topo.h has a rate per processor)."""
    like: str | None = None
    """Another sheet, whose all-reduce times stand for this domain's; default: that of the sheet's own `like`."""
    all_reduce: dict[str, AllReduce] | None = None
    """Fitted on this domain, where all else is borrowed; as `Efficiency.all_reduce`."""


class Port(Strict):
    """One kind of link that leaves the device or its host for it."""

    bandwidth: Bandwidth
    """Bytes per second of one port, one way."""
    count: Count = 1


class Clock(Strict):
    """Range of the clock of the compute units."""

    boost: Frequency
    """The clock at which the peaks hold; a driver may go beyond it for a while."""
    base: Frequency | None = None
    minimum: Frequency | None = None


class Draw(Strict):
    """Electrical power of one device; what a sheet leaves out is taken as a share of `tdp`, see `device.power`."""

    tdp: Power
    idle: Power | None = None
    """Drawn with nothing loaded."""
    active: Power | None = None
    """Drawn on top once an engine holds the device: clocks up, nothing computed."""
    compute: Power | None = None
    """Drawn on top for arithmetic at the dense peak, at the clock `boost`."""
    memory: Power | None = None
    """Drawn on top for traffic at the full memory bandwidth."""
    link: Power | None = None
    """Drawn on top while links are busy."""


class Cost(Strict):
    """What one device costs."""

    purchase: Price | None = None
    hourly: HourlyPrice | None = None
    """Rent of one device in a cloud, on demand."""


class Accelerator(Strict):
    """One accelerator: peaks, memory, link, power and fitted constants; `sources` says where each number is from."""

    name: str
    title: str | None = None
    """What it is called in full."""
    processors: Count
    """Streaming multiprocessors, compute units, matrix units or cores: that over which tiles are spread in waves."""
    peak: dict[str, Compute]
    """Dense operations per second by data type of the multipliers, never the sparse figure."""
    memory: Memory
    tiers: dict[str, Tier] = Field(default_factory=dict)
    """Further memories by name: sram, host, cxl, nvme, pool."""
    scale_up: ScaleUp | None = None
    """None: a device that works alone."""
    ports: dict[str, Port] = Field(default_factory=dict)
    """Other links by name: pcie, nic, c2c."""
    power: Draw
    clock: Clock | None = None
    price: Cost = Cost()
    like: str | None = None
    """Another sheet whose fitted efficiencies this device borrows, for nothing of it was measured."""
    attention_like: str | None = None
    """Another sheet, whose fused attention kernels run here; default: those of `like`."""
    efficiency: Efficiency | None = None
    """Fitted constants; a sheet has these or `like`."""
    sources: dict[str, str]

    @model_validator(mode="after")
    def _sheet_is_whole(self) -> Self:
        if "bf16" not in self.peak and "fp16" not in self.peak:
            raise LocatedError(Fault(("peak",), "needs an entry for bf16 or fp16"))
        if (self.like is None) == (self.efficiency is None):
            raise LocatedError(Fault((), "a sheet has fitted `efficiency` or borrows it from another by `like`"))
        if self.scale_up is None:
            return self
        given: list[tuple[tuple[str, str], dict[str, AllReduce] | str | None]] = [
            (("efficiency", "all_reduce"), self.efficiency.all_reduce if self.efficiency else None),
            (("scale_up", "all_reduce"), self.scale_up.all_reduce),
            (("scale_up", "like"), self.scale_up.like),
        ]
        ways = [(path, value) for path, value in given if value is not None]
        if len(ways) > 1:
            raise LocatedError(Fault(ways[1][0], f"the all-reduce is given by {'.'.join(ways[0][0])} already"))
        for path, table in ways:
            if isinstance(table, dict) and not (
                all(key.isdecimal() for key in table) and str(self.scale_up.ranks) in table
            ):
                what = f"is keyed by numbers of ranks and needs one for all {self.scale_up.ranks}"
                raise LocatedError(Fault(path, what))
        return self

    @property
    def domain(self) -> int:
        """Devices of one scale-up domain, 1 when there is none."""
        return self.scale_up.ranks if self.scale_up else 1

    @property
    def attention_processors(self) -> int:
        """Processors that tiles of attention are spread over, of the kind on which its constants were fitted."""
        return self.fitted.attention_processors or self.processors

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
    """Return the data sheet `name` of `topologies/devices`, or of a path relative to `beside`; borrows what it must.

    A borrowed all-reduce moves its bytes at the lender's share of the link: its bandwidths are scaled by the ratio of
    the two domains' (and the size at which the protocol changes with them), its latencies stay. Borrowed attention has
    times of one of the lender's processors: a device of fewer and larger ones counts as many as its peak has of those.
    """
    return _load(name, beside, ())


def _load(name: str, beside: Path | None, borrowers: tuple[str, ...]) -> Accelerator:
    sheet = catalog.load(KIND, name, Accelerator, beside)
    if name in borrowers:
        chain = " -> ".join((*borrowers, name))
        raise InputError(Problem(f"sheets borrow from each other: {chain}", path="like"))
    if sheet.like is None:
        return sheet
    at = catalog.locate(KIND, name, beside).parent
    lend = partial(_load, beside=at, borrowers=(*borrowers, name))
    lender = lend(sheet.like)
    kernels = lend(sheet.attention_like) if sheet.attention_like is not None else lender
    names = ("prompt_attention", "token_attention", "latent_attention")
    attention: dict[str, object] = {name: getattr(kernels.fitted, name) for name in names}
    attention["attention_processors"] = max(sheet.processors, _processors_like(kernels, sheet.rate("bf16")))
    efficiency = lender.fitted.model_copy(update=attention)
    if sheet.scale_up is not None:
        links = lend(sheet.scale_up.like) if sheet.scale_up.like else lender
        table = sheet.scale_up.all_reduce or _scaled_links(links, sheet.scale_up)
        efficiency = efficiency.model_copy(update={"all_reduce": table})
    return sheet.model_copy(update={"efficiency": efficiency})


def _processors_like(lender: Accelerator, peak: float) -> int:
    """Return how many of the lender's processors have a peak."""
    return round(lender.attention_processors * peak / lender.rate("bf16"))


def _scaled_links(lender: Accelerator, domain: ScaleUp) -> dict[str, AllReduce]:
    """Return the all-reduce of `lender` over the links of another `domain`."""
    if lender.scale_up is None:
        what = f"{lender.name} has no scale-up domain whose all-reduce could be borrowed"
        raise InputError(Problem(what, path="scale_up.like", allowed="a sheet with scale_up"))
    ratio = domain.bandwidth / lender.scale_up.bandwidth
    if domain.joined == "host":
        ratio = min(1.0, ratio)

    def over(way: Protocol, part: float) -> Protocol:
        return way.model_copy(update={"bandwidth": max(1, round(way.bandwidth * part))})

    def scaled(ranks: int, fit: AllReduce) -> AllReduce:
        part = ratio
        if domain.joined == "mesh" and ranks < domain.ranks:
            part *= (ranks - 1) / (domain.ranks - 1)
        switch = max(1, round(fit.switch * part))
        small, large = over(fit.small, part), over(fit.large, part)
        return fit.model_copy(update={"switch": switch, "small": small, "large": large})

    return {ranks: scaled(int(ranks), fit) for ranks, fit in lender.fitted.all_reduce.items()}
