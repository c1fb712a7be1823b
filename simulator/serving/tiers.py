"""Lower tiers of a prefix cache: units that device memory gave up lie in host memory, a memory pool or on disks.

Sources: hierarchical caches that write back what they evict (SGLang's HiCache, LMCache); a pool that all engines read
(Mooncake, FAST 2025); a request whose prefix is on its way waits with its blocks (vLLM's KV connectors).
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

from simulator.errors import InvariantError
from simulator.serving.engine_view import Step
from simulator.serving.prefix_cache import PrefixCache
from simulator.serving.request import Request
from simulator.strict import Bandwidth, Duration, Size, Strict
from simulator.units import TICKS_PER_NS


class TierSection(Strict):
    """One tier: as much of the whole model's keys and values as it holds, behind one link."""

    capacity: Size
    """Bytes that it holds, the least recently used going first."""
    bandwidth: Bandwidth
    """Of the link from it, which loads one thing after the other."""
    launch: Duration = 10_000
    """Time to start the copy of one unit."""
    shared: bool = False
    """Whether all engines of the pool share it, link and all, or each has its own."""


class Tier:
    """Units by key, the least recently used first, and the link from them to the engines; times in ticks."""

    __slots__ = ("_keys", "_unit_ticks", "_until", "units")

    def __init__(self, section: TierSection, unit_bytes: int) -> None:
        self.units = section.capacity // unit_bytes
        self._unit_ticks = round((section.launch + unit_bytes * 1e9 / section.bandwidth) * TICKS_PER_NS)
        self._until = 0
        self._keys: OrderedDict[int, None] = OrderedDict()

    def __contains__(self, key: int) -> bool:
        return key in self._keys

    def __len__(self) -> int:
        return len(self._keys)

    def put(self, keys: Sequence[int]) -> list[int]:
        """Take in units, the latest last, and return those that had to go for them."""
        there = self._keys
        for key in keys:
            there[key] = None
            there.move_to_end(key)
        return [there.popitem(last=False)[0] for _ in range(len(there) - self.units)]

    def load(self, keys: Sequence[int], now: int) -> int:
        """Copy units to an engine as soon as the link is free; return the tick at which they are there."""
        for key in reversed(keys):  # of one prompt the beginning is the last to go
            self._keys.move_to_end(key)
        self._until = max(self._until, now) + len(keys) * self._unit_ticks
        return self._until

    def check(self) -> None:
        """Raise InvariantError when it holds more than it can."""
        if len(self._keys) > self.units:
            raise InvariantError(f"cache tier: {len(self._keys)} of {self.units} units")


class Loading(NamedTuple):
    """A request whose prefix is on its way: so many units, device memory's included, are there at tick `end`."""

    end: int
    request: Request
    units: int


class LowerTiers:
    """What a rank finds below its device memory, the fastest tier first, and the requests that it loads for."""

    __slots__ = ("loading", "tiers")

    def __init__(self, tiers: Sequence[Tier]) -> None:
        self.tiers = tuple(tiers)
        self.loading: list[Loading] = []

    def keep(self, keys: Sequence[int]) -> None:
        """Take in what device memory has given up; what a tier has no room for goes to the next."""
        for tier in self.tiers:
            if not keys:
                return
            keys = tier.put(keys)

    def match(self, request: Request, prefixes: PrefixCache) -> tuple[int, int]:
        """Return how many units of a request device memory has, and how many after those are in some tier."""
        most = (request.context_tokens - 1) // prefixes.unit_tokens
        first, found = prefixes.match(request.keys, most), 0
        for key in request.keys[first:most]:
            if not any(key in tier for tier in self.tiers):
                break
            found += 1
        return first, found

    def until_load(self, step: Step, head: Request | None, prefixes: PrefixCache) -> Step:
        """Return a step without the new prompts from the first on that has units to load, `head` apart: that waits."""
        for place, (request, _) in enumerate(step.prompts):
            if not request.computed and request is not head and self.match(request, prefixes)[1]:
                return step._replace(prompts=step.prompts[:place])
        return step

    def load(self, request: Request, first: int, units: int, now: int) -> None:
        """Load `units` units of a request from place `first` on, each from the first tier that has it."""
        wanted: list[list[int]] = [[] for _ in self.tiers]
        for key in request.keys[first : first + units]:
            place = next(index for index, tier in enumerate(self.tiers) if key in tier)
            wanted[place].append(key)
        ends = [tier.load(keys, now) for tier, keys in zip(self.tiers, wanted, strict=True) if keys]
        self.loading.append(Loading(max(ends), request, first + units))

    def loaded(self, now: int) -> list[Loading]:
        """Take out those whose prefixes are there, in the order in which they were begun."""
        done = [row for row in self.loading if row.end <= now]
        self.loading = [row for row in self.loading if row.end > now]
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
