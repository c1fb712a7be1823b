"""Which unit of a prefix cache goes first: orders of eviction, by name, and the units that never go.

Sources: least recently used of whole prefixes (vLLM, SGLang); a lifetime since the last use (prompt caches of clouds).
"""

from collections.abc import Callable
from heapq import heapify, heappop, heappush, heapreplace
from typing import NamedTuple

from pydantic import Field

from simulator.serving.stretches import Cached
from simulator.strict import PositiveDuration, Strict


class Order(NamedTuple):
    """An order of eviction: the lowest rank goes first; among equals who became free first."""

    rank: Callable[[Cached], int]
    first: bool = False
    """Whether ranks grow along a prompt, so that it is given up from its beginning; else all of one use are equal."""
    lifetime_ns: int | None = None
    """How long after its last use a unit may be used."""


class Victims:
    """Stretches that may be given up, in an order; of each the last unit goes first, or the first."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self._heap: list[tuple[int, int, Cached]] = []  # those that are free no longer are passed over
        self._count = 0  # stretches that are free
        self._units = 0  # that ever became free

    def add(self, stretch: Cached, now_ns: int) -> None:
        """Take in a stretch that nobody holds any more."""
        self._units += len(stretch)
        stretch.place, stretch.since_ns = self._units, now_ns
        self.parted(stretch)

    def parted(self, stretch: Cached) -> None:
        """Take in the rest of a stretch that was here, in its place."""
        if stretch.free:
            self._count += 1
            heappush(self._heap, self._entry(stretch))

    def remove(self, stretch: Cached) -> None:
        """Leave out a stretch that somebody holds again, or that is gone."""
        stretch.place = -1
        self._count -= 1
        if len(self._heap) > 4 * self._count + 64:
            self._heap = [entry for entry in self._heap if entry[1] == entry[2].place]
            heapify(self._heap)

    def shrunk(self, stretch: Cached) -> None:
        """Note that the next stretch has given up some of its units, or all."""
        if not len(stretch):
            self.remove(stretch)
        elif self._order.first:
            heapreplace(self._heap, self._entry(stretch))

    def _entry(self, stretch: Cached) -> tuple[int, int, Cached]:
        return self._order.rank(stretch), stretch.place, stretch

    def next(self) -> Cached | None:
        """Return the stretch to give up next, if there is any."""
        while self._heap:
            _, place, stretch = self._heap[0]
            if stretch.place == place:
                return stretch
            heappop(self._heap)
        return None

    def expired(self, now_ns: int) -> Cached | None:
        """Return the next stretch if it may not be used any more."""
        lifetime_ns = self._order.lifetime_ns
        if lifetime_ns is None:
            return None
        stretch = self.next()
        return stretch if stretch is not None and stretch.since_ns + lifetime_ns < now_ns else None


class NoOptions(Strict):
    """A policy without parameters."""


class Lifetime(Strict):
    """Units live for so long after their last use."""

    lifetime: PositiveDuration = 300_000_000_000
    """Time after its last use during which a unit may still be used (cloud services: 5 min)."""


class Eviction(NamedTuple):
    """A registered order of eviction: its parameters, and what makes the order of them."""

    parameters: type[Strict]
    make: Callable[[Strict], Order]


def lru(_: Strict) -> Order:
    """Give up first what nobody has used for longest."""
    return Order(lambda stretch: 0)


def lfu(_: Strict) -> Order:
    """Give up first what was used least often."""
    return Order(lambda stretch: stretch.uses)


def fifo(_: Strict) -> Order:
    """Give up first what came first."""
    return Order(lambda stretch: stretch.born, first=True)


def ttl(parameters: Strict) -> Order:
    """As `lru`, and give up what nobody has used for a lifetime."""
    assert isinstance(parameters, Lifetime)
    return Order(lambda stretch: 0, lifetime_ns=parameters.lifetime)


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
    share: float = Field(default=0.1, gt=0, lt=1)
    """Share of the KV blocks that pinned units may take at most; requests that do not fit beside it are rejected."""
