"""Which unit of a prefix cache goes first: orders of eviction, by name, and the units that never go.

Sources: least recently used of whole prefixes (vLLM, SGLang); a lifetime since the last use (prompt caches of clouds).
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable
from heapq import heappop, heappush
from itertools import count
from typing import NamedTuple, Protocol

from pydantic import Field

from simulator.strict import PositiveDuration, Strict


class Ages(Protocol):
    """What an order may know of the units of a cache."""

    uses: dict[int, int]
    """By key: requests that ever held it."""
    born: dict[int, int]
    """By key: the order in which it came in."""


class Victims(Protocol):
    """The order in which units that nobody references are given up."""

    def add(self, keys: Iterable[int], now_ns: int) -> None:
        """Take in units that nobody references any more, the first to go first."""

    def remove(self, keys: Iterable[int]) -> None:
        """Leave out units that somebody references again."""

    def pop(self) -> int:
        """Take out the unit to give up next; there is one."""

    def expired(self, now_ns: int) -> list[int]:
        """Take out and return the units that may not be used any more."""


class LeastRecent:
    """Least recently used first; with a lifetime, what was not used for so long is gone."""

    def __init__(self, lifetime_ns: int | None = None) -> None:
        self._lifetime_ns = lifetime_ns
        self._since: OrderedDict[int, int] = OrderedDict()

    def add(self, keys: Iterable[int], now_ns: int) -> None:
        """Take in units; see Victims."""
        since = self._since
        for key in keys:
            since[key] = now_ns

    def remove(self, keys: Iterable[int]) -> None:
        """Leave out units; see Victims."""
        since = self._since
        for key in keys:
            del since[key]

    def pop(self) -> int:
        """Take out the unit that was used before all others."""
        return self._since.popitem(last=False)[0]

    def expired(self, now_ns: int) -> list[int]:
        """Take out the units that were last used longer than the lifetime ago."""
        found: list[int] = []
        if self._lifetime_ns is None:
            return found
        while self._since and next(iter(self._since.values())) + self._lifetime_ns < now_ns:
            found.append(self.pop())
        return found


class Ranked:
    """By a rank that a unit has when it becomes free; among equals who became free first goes first."""

    def __init__(self, rank: Callable[[int], int]) -> None:
        self._rank = rank
        self._count = count()
        self._heap: list[tuple[int, int, int]] = []
        self._place: dict[int, int] = {}

    def add(self, keys: Iterable[int], now_ns: int) -> None:
        """Take in units; see Victims."""
        for key in keys:
            self._place[key] = place = next(self._count)
            heappush(self._heap, (self._rank(key), place, key))

    def remove(self, keys: Iterable[int]) -> None:
        """Leave out units; see Victims."""
        for key in keys:
            del self._place[key]

    def pop(self) -> int:
        """Take out the unit of the lowest rank."""
        while True:
            _, place, key = heappop(self._heap)
            if self._place.get(key) == place:
                del self._place[key]
                return key

    def expired(self, now_ns: int) -> list[int]:
        """Return none: nothing expires."""
        return []


class NoOptions(Strict):
    """A policy without parameters."""


class Lifetime(Strict):
    """Units live for so long after their last use."""

    lifetime: PositiveDuration = 300_000_000_000
    """Time after its last use during which a unit may still be used (cloud services: 5 min)."""


class Eviction(NamedTuple):
    """A registered order of eviction: its parameters, and how to make one for a cache."""

    parameters: type[Strict]
    make: Callable[[Ages, Strict], Victims]


def lru(cache: Ages, _: Strict) -> Victims:
    """Give up first what nobody has used for longest."""
    return LeastRecent()


def lfu(cache: Ages, _: Strict) -> Victims:
    """Give up first what was used least often."""
    return Ranked(cache.uses.__getitem__)


def fifo(cache: Ages, _: Strict) -> Victims:
    """Give up first what came first."""
    return Ranked(cache.born.__getitem__)


def ttl(cache: Ages, parameters: Strict) -> Victims:
    """As `lru`, and give up what nobody has used for a lifetime."""
    assert isinstance(parameters, Lifetime)
    return LeastRecent(parameters.lifetime)


EVICTIONS: dict[str, Eviction] = {
    "lru": Eviction(NoOptions, lru),
    "lfu": Eviction(NoOptions, lfu),
    "fifo": Eviction(NoOptions, fifo),
    "ttl": Eviction(Lifetime, ttl),
}


class Pin(Strict):
    """Beginnings of prompts, such as system prompts, that are never given up."""

    units: int = Field(gt=0)
    """First units of every prompt that are pinned."""
    share: float = Field(default=0.1, gt=0, le=1)
    """Share of the KV blocks that pinned units may take at most."""
