"""Lower tiers of a prefix cache: copies of its units in host memory, in a memory pool or on disks, behind links.

Sources: hierarchical caches that write through or back and prefetch to the host (SGLang's HiCache, LMCache); pools that
all engines read and write (Mooncake, FAST 2025; EMS, arXiv 2506.12708); a request whose prefix is on its way waits with
its blocks (vLLM's KV connectors).
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

from simpy import Environment

from simulator.device.cost import Cost
from simulator.errors import InvariantError
from simulator.serving.engine_view import Step
from simulator.serving.prefix_cache import PrefixCache, usable_units
from simulator.serving.request import Request
from simulator.strict import Bandwidth, Duration, Size, Strict
from simulator.units import TICK_BITS, TICKS_PER_NS


class TierSection(Strict):
    """One tier: as much of the whole model's keys and values as it holds, behind one link."""

    capacity: Size
    """Bytes that it holds, the least recently used going first."""
    bandwidth: Bandwidth
    """Of the link from it, which loads one thing after the other."""
    write_bandwidth: Bandwidth | None = None
    """Of the link to it, which stores one thing after the other; default: `bandwidth`."""
    launch: Duration = 10_000
    """Time to start the copy of one unit."""
    write: Literal["back", "through"] = "back"
    """Whether units come here when what is above gives them up, or are copied as soon as they are computed."""
    shared: bool = False
    """Whether all engines of the pool share it, links and all, or each has its own."""


class Copy(NamedTuple):
    """A unit and the tick from which on it may be read where it lies."""

    key: int
    since: int


class Tier:
    """Units by key, the least recently used first, and the links from and to the engines; times in ticks."""

    __slots__ = (
        "_load_ticks",
        "_loads_until",
        "_since",
        "_write_ticks",
        "_writes_until",
        "fetched",
        "found",
        "loaded",
        "through",
        "unit_bytes",
        "units",
        "vain",
        "written",
    )

    def __init__(self, section: TierSection, unit_bytes: int) -> None:
        def ticks(bandwidth: float) -> int:
            return round((section.launch + unit_bytes * 1e9 / bandwidth) * TICKS_PER_NS)

        self.units = section.capacity // unit_bytes
        self.through = section.write == "through"
        self.unit_bytes = unit_bytes
        self.found = 0  # units that requests were given from here
        self.loaded = self.written = self.vain = 0  # units that left, that came, that were fetched and gone unused
        self.fetched: set[int] = set()  # units that were fetched and not used yet
        self._load_ticks, self._loads_until = ticks(section.bandwidth), 0
        self._write_ticks, self._writes_until = ticks(section.write_bandwidth or section.bandwidth), 0
        self._since: OrderedDict[int, int] = OrderedDict()  # by key: when the copy is complete

    def __contains__(self, key: int) -> bool:
        return key in self._since

    def __len__(self) -> int:
        return len(self._since)

    def offers(self, key: int, now: int) -> bool:
        """Return whether a unit may be loaded: its copy is complete, or on its way because somebody will want it."""
        since = self._since.get(key)
        return since is not None and (since <= now or key in self.fetched)

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

    def use(self, keys: Sequence[int]) -> None:
        """Note that the beginning of a prompt is used now, as far as it is here; it is the last to go."""
        for key in reversed(keys):
            if key in self._since:
                self._since.move_to_end(key)

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

    def check(self) -> None:
        """Raise InvariantError when it holds more than it can, or fetched units that it does not hold."""
        if len(self._since) > self.units:
            raise InvariantError(f"cache tier: {len(self._since)} of {self.units} units")
        if any(key not in self._since for key in self.fetched):
            raise InvariantError("cache tier: a unit was fetched and is not here")


class Loading(NamedTuple):
    """A request whose prefix is on its way: so many units, device memory's included, are there at tick `end`."""

    end: int
    request: Request
    units: int


class LowerTiers:
    """What a rank finds below its device memory, the fastest tier first, and the requests that it loads for."""

    __slots__ = ("_faster", "_prefetches", "_through", "cost", "env", "loading", "now", "tiers")

    def __init__(self, tiers: Sequence[Tier], faster: bool = False, prefetches: bool = False) -> None:
        """`faster`: load only what takes longer to compute; `prefetches`: bring up what those who wait will want."""
        self.tiers = tuple(tiers)
        self.loading: list[Loading] = []
        self.env: Environment | None = None  # the time at which units are written
        self.now = 0  # tick at which the iteration to come begins
        self.cost: Cost | None = None  # of that iteration
        self._faster = faster
        self._prefetches = prefetches and len(self.tiers) > 1
        self._through = any(tier.through for tier in self.tiers)

    def _time(self) -> int:
        return int(self.env.now) << TICK_BITS if self.env is not None else 0

    # -- units that come --------------------------------------------------------------------------------------------

    def keep(self, keys: Sequence[int]) -> None:
        """Take in what device memory has given up; what a tier has no room for goes to the next."""
        now = self._time()
        self._hand_down([Copy(key, now) for key in keys], 0)

    def _hand_down(self, copies: Sequence[Copy], place: int) -> None:
        """Offer units to the tiers from a place on; what is written through came there when it was computed."""
        for tier in self.tiers[place:]:
            if not copies or tier.through:
                return
            copies = tier.put(copies)

    def store(self, keys: Sequence[int]) -> None:
        """Copy the beginning of a prompt that device memory has now to the tiers that are written through."""
        if not self._through:
            return
        now = self._time()
        for place, tier in enumerate(self.tiers):
            if tier.through:
                self._hand_down(tier.store(keys, now), place + 1)

    def prefetch(self, request: Request, prefixes: PrefixCache) -> None:
        """Bring units of a request that waits from slower tiers to the first, as many as fit there."""
        fast = self.tiers[0]
        if not self._prefetches or not fast.units:
            return
        now = self._time()
        first, units = self.find(request, prefixes, now)
        keys = request.keys[first : first + min(units, fast.units)]
        fast.use(keys)
        missing = [key for key in keys if key not in fast]
        ends: dict[int, int] = {}
        for place, wanted in enumerate(self._places(missing, now)):
            if wanted:
                ends.update(zip(wanted, self.tiers[place].load(wanted, now), strict=True))
        self._hand_down(fast.fetch([Copy(key, ends[key]) for key in missing]), 1)

    # -- units that are loaded --------------------------------------------------------------------------------------

    def match(self, request: Request, prefixes: PrefixCache) -> tuple[int, int]:
        """Return how many units of a request device memory has, and how many after those are to be loaded."""
        first, units = self.find(request, prefixes, self.now)
        if units and self._faster and not self._is_faster(request, first, units, prefixes.unit_tokens):
            return first, 0
        return first, units

    def find(self, request: Request, prefixes: PrefixCache, now: int) -> tuple[int, int]:
        """Return how many units of a request device memory has, and how many after those some tier offers."""
        most = usable_units(request, prefixes.unit_tokens)
        first, found = prefixes.match(request.keys, most), 0
        for key in request.keys[first:most]:
            if not any(tier.offers(key, now) for tier in self.tiers):
                break
            found += 1
        return first, found

    def _places(self, keys: Iterable[int], now: int) -> list[list[int]]:
        """Return what to load from each tier: each unit from the first that offers it."""
        wanted: list[list[int]] = [[] for _ in self.tiers]
        for key in keys:
            wanted[next(place for place, tier in enumerate(self.tiers) if tier.offers(key, now))].append(key)
        return wanted

    def _is_faster(self, request: Request, first: int, units: int, unit_tokens: int) -> bool:
        """Return whether a load would end before the engine could have computed as much more of the prompt, alone."""
        wanted = zip(self.tiers, self._places(request.keys[first : first + units], self.now), strict=True)
        end = max(tier.ends(keys, self.now)[-1] for tier, keys in wanted if keys)
        whole = self._prefill_ns(request, first * unit_tokens)
        return end - self.now <= (whole - self._prefill_ns(request, (first + units) * unit_tokens)) * TICKS_PER_NS

    def _prefill_ns(self, request: Request, cached: int) -> float:
        assert self.cost is not None
        tokens = request.prefill_tokens - cached
        return self.cost.prefill_ns(tokens, tokens * cached + tokens * (tokens + 1) // 2, 1)

    def until_load(self, step: Step, head: Request | None, prefixes: PrefixCache) -> Step:
        """Return a step without the new prompts from the first on that has units to load, `head` apart: that waits."""
        for place, (request, _) in enumerate(step.prompts):
            if not request.computed and request is not head and self.match(request, prefixes)[1]:
                return step._replace(prompts=step.prompts[:place])
        return step

    def load(self, request: Request, first: int, units: int) -> None:
        """Load `units` units of a request from place `first` on, each from the first tier that offers it."""
        wanted = self._places(request.keys[first : first + units], self.now)
        ends = [tier.load(keys, self.now)[-1] for tier, keys in zip(self.tiers, wanted, strict=True) if keys]
        for tier, keys in zip(self.tiers, wanted, strict=True):
            tier.found += len(keys)
        self.loading.append(Loading(max(ends), request, first + units))

    def loaded(self) -> list[Loading]:
        """Take out those whose prefixes are there, in the order in which they were begun."""
        done = [row for row in self.loading if row.end <= self.now]
        self.loading = [row for row in self.loading if row.end > self.now]
        return done

    def withdraw(self, request: Request) -> bool:
        """Forget a request; return whether it was being loaded for."""
        before = len(self.loading)
        self.loading = [row for row in self.loading if row.request is not request]
        return len(self.loading) < before

    def __contains__(self, request: object) -> bool:
        return any(row.request is request for row in self.loading)

    def check(self) -> None:
        """Raise InvariantError when a tier holds more than it can."""
        for tier in self.tiers:
            tier.check()
