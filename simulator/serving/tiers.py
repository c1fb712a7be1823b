"""Lower tiers of a prefix cache: copies of its units in host memory, in a memory pool or on disks, behind links.

Sources: hierarchical caches that write through or back and prefetch to the host (SGLang's HiCache, LMCache); pools that
all engines read and write (Mooncake, FAST 2025; EMS, arXiv 2506.12708).
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Annotated, Literal, NamedTuple, Self

from pydantic import Field, model_validator

from simulator.errors import InvariantError
from simulator.strict import Bandwidth, Duration, Fault, LocatedError, Size, Strict
from simulator.units import TICKS_PER_NS


class OnFabric(Strict):
    """Memory of all nodes of the cluster, which engines read and write over its fabric."""

    plane: str | None = None
    """The plane, or the lane of one, that carries units; default: as all other traffic."""
    lane: Annotated[int, Field(ge=0)] = 0
    """Lane of priority of units, 0 the highest."""


class TierSection(Strict):
    """One tier: as much of the whole model's keys and values as it holds, behind one link or all over the fabric."""

    capacity: Size
    """Bytes that it holds, of all nodes together where it lies on the fabric; the least recently used go first."""
    bandwidth: Bandwidth | None = None
    """Of the link from it, which loads one thing after the other."""
    write_bandwidth: Bandwidth | None = None
    """Of the link to it, which stores one thing after the other; default: `bandwidth`."""
    fabric: OnFabric | None = None
    """In the place of both bandwidths: it is memory of the nodes, shared by all engines, and units cross the fabric."""
    launch: Duration = 10_000
    """Time to start the copy of one unit; on the fabric, that of all units that move together."""
    write: Literal["back", "through"] = "back"
    """Whether units come here when what is above gives them up, or are copied as soon as they are computed."""
    shared: bool = False
    """Whether all engines of the pool share it, links and all, or each has its own."""

    @model_validator(mode="after")
    def _behind_a_link_or_on_the_fabric(self) -> Self:
        if self.fabric is None and self.bandwidth is None:
            raise ValueError("`bandwidth` is needed, or `fabric` for memory that is read over the cluster's network")
        if self.fabric is not None:
            given = [key for key in ("bandwidth", "write_bandwidth") if getattr(self, key) is not None]
            if given:
                what = "does not go with `fabric`, whose links say how fast units move"
                raise LocatedError(*(Fault((key,), what) for key in given))
        return self


class Copy(NamedTuple):
    """A unit and the tick from which on it may be read where it lies."""

    key: int
    since: int


class Store:
    """Units by key, the least recently used first, and when each may be read, in ticks."""

    __slots__ = ("_since", "fetched", "found", "loaded", "through", "unit_bytes", "units", "vain", "written")

    def __init__(self, section: TierSection, unit_bytes: int) -> None:
        self.units = section.capacity // unit_bytes
        self.through = section.write == "through"
        self.unit_bytes = unit_bytes
        self.found = 0  # units that requests were given from here
        self.loaded = self.written = self.vain = 0  # units that left, that came, that were fetched and gone unused
        self.fetched: set[int] = set()  # units that were fetched and not used yet
        self._since: OrderedDict[int, int] = OrderedDict()  # by key: when the copy is complete

    def __contains__(self, key: int) -> bool:
        return key in self._since

    def __len__(self) -> int:
        return len(self._since)

    def offers(self, key: int, now: int) -> bool:
        """Return whether a unit may be loaded: its copy is complete, or on its way because somebody will want it."""
        since = self._since.get(key)
        return since is not None and (since <= now or key in self.fetched)

    def use(self, keys: Sequence[int]) -> None:
        """Note that the beginning of a prompt is used now, as far as it is here; it is the last to go."""
        for key in reversed(keys):
            if key in self._since:
                self._since.move_to_end(key)

    def _add(self, copies: Iterable[Copy]) -> list[Copy]:
        there = self._since
        for key, since in copies:
            there.setdefault(key, since)
            there.move_to_end(key)
        gone = [Copy(*there.popitem(last=False)) for _ in range(len(there) - self.units)]
        if self.fetched:
            lost = [key for key, _ in gone if key in self.fetched]
            self.vain += len(lost)
            self.fetched.difference_update(lost)
        return gone

    def check(self) -> None:
        """Raise InvariantError when it holds more than it can, or fetched units that it does not hold."""
        if len(self._since) > self.units:
            raise InvariantError(f"cache tier: {len(self._since)} of {self.units} units")
        if any(key not in self._since for key in self.fetched):
            raise InvariantError("cache tier: a unit was fetched and is not here")


class Tier(Store):
    """A store behind two links of its own, from and to the engines."""

    __slots__ = ("_load_ticks", "_loads_until", "_write_ticks", "_writes_until")

    def __init__(self, section: TierSection, unit_bytes: int) -> None:
        super().__init__(section, unit_bytes)
        assert section.bandwidth is not None

        def ticks(bandwidth: float) -> int:
            return round((section.launch + unit_bytes * 1e9 / bandwidth) * TICKS_PER_NS)

        self._load_ticks, self._loads_until = ticks(section.bandwidth), 0
        self._write_ticks, self._writes_until = ticks(section.write_bandwidth or section.bandwidth), 0

    def put(self, copies: Sequence[Copy]) -> list[Copy]:
        """Write what is not here, one after the other, the latest last; return those that have no place any more."""
        if not self.units:
            return list(copies)
        return self._add([Copy(key, self._end_of_write(key, since)) for key, since in copies])

    def store(self, keys: Sequence[int], now: int) -> list[Copy]:
        """Write of one prompt's beginning what is not here, in order; of it the beginning is the last to go."""
        if not self.units:
            return [Copy(key, now) for key in keys]
        rows = [Copy(key, self._end_of_write(key, now)) for key in keys]
        return self._add(rows[::-1])

    def fetch(self, copies: Sequence[Copy]) -> list[Copy]:
        """Take in units of one prompt that come from a slower tier, each at its time, not over the link to here."""
        self.fetched.update(copy.key for copy in copies)
        return self._add(copies[::-1])

    def _end_of_write(self, key: int, since: int) -> int:
        if key not in self._since:
            self._writes_until = max(self._writes_until, since) + self._write_ticks
            self.written += 1
        return self._writes_until

    def ends(self, keys: Iterable[int], now: int) -> list[int]:
        """Return when units would be at the engine if they were to be loaded in order as soon as the link is free."""
        ends, until = [], max(self._loads_until, now)
        for key in keys:
            until = max(until, self._since[key]) + self._load_ticks
            ends.append(until)
        return ends

    def load(self, keys: Sequence[int], now: int) -> list[int]:
        """Copy units to an engine as soon as the link is free; return the ticks at which they are there."""
        self.use(keys)
        ends = self.ends(keys, now)
        self._loads_until = max([self._loads_until, *ends[-1:]])
        self.loaded += len(keys)
        self.fetched.difference_update(keys)
        return ends
