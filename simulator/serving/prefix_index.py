"""Which prefix caches hold which units: one walk over a prompt's keys tells what every cache of a pool has of it.

Source: KV indexers of cluster routers (NVIDIA Dynamo, llm-d); here without delay, each cache says what comes and goes.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

from simulator.errors import InvariantError
from simulator.serving.stretches import Stretch, Stretches


class Indexed(Protocol):
    """A cache that tells an index of the units that it takes in or gives up."""

    index: "PrefixIndex | None"
    bit: int

    def __iter__(self) -> Iterator[Stretch]:
        """Yield the stretches of units that it holds."""


class Held(Stretch):
    """Units that the same caches hold, as bits of one number."""

    __slots__ = ("holders",)

    def __init__(self, keys: Sequence[int], begin: int, end: int, holders: int) -> None:
        super().__init__(keys, begin, end)
        self.holders = holders

    def goes_on(self, before: "Held") -> bool:
        """Return whether the same caches hold both."""
        return self.holders == before.holders

    def copy(self) -> "Held":
        """Return another one of the same units that the same caches hold."""
        return Held(self.keys, self.begin, self.end, self.holders)


class PrefixIndex:
    """The caches that hold each unit, as bits of one number; a cache keeps its bit for as long as it is here."""

    def __init__(self) -> None:
        self._stretches: Stretches[Held] = Stretches()
        self._bits = 0  # of all caches that are here
        self._next = 1

    def __iter__(self) -> Iterator[Held]:
        """Yield the stretches that the same caches hold."""
        return iter(self._stretches)

    def join(self, cache: Indexed) -> None:
        """Take in a cache and what it holds."""
        cache.index, cache.bit = self, self._next
        self._bits |= self._next
        self._next <<= 1
        for stretch in cache:
            self.add(stretch.keys, stretch.begin, stretch.end, cache.bit)

    def leave(self, cache: Indexed) -> None:
        """Forget a cache."""
        for stretch in cache:
            self.drop(stretch.keys, stretch.begin, stretch.end, cache.bit)
        self._bits &= ~cache.bit
        cache.index = None

    def add(self, keys: Sequence[int], first: int, last: int, bit: int) -> None:
        """Note that a cache holds `keys[first:last]`, all different, now."""
        stretches = self._stretches
        while first < last:
            if keys[first] not in stretches:
                first += stretches.add(Held(keys, first, last, bit))
                continue
            here = stretches.here(keys, first, last)
            for stretch in stretches.cut(keys, first, first + here):
                stretch.holders |= bit
                stretches.settle(stretch)
            first += here

    def drop(self, keys: Sequence[int], first: int, last: int, bit: int) -> None:
        """Note that a cache holds `keys[first:last]` no longer."""
        stretches = self._stretches
        for stretch, before, units in stretches.along(keys, first, last):
            if stretch.holders == bit and before + units == len(stretch):
                stretches.remove(stretch, units)  # most often what goes is the end of what one cache alone holds
            else:
                self._drop_shared(keys, first, first + units, bit)
            first += units

    def _drop_shared(self, keys: Sequence[int], first: int, last: int, bit: int) -> None:
        for stretch in self._stretches.cut(keys, first, last):
            stretch.holders &= ~bit
            if stretch.holders:
                self._stretches.settle(stretch)
            else:
                self._stretches.remove(stretch, len(stretch))

    def units(self, keys: Sequence[int], most: int) -> dict[int, int]:
        """Return by bit how many of the first `most` units a cache has, from the first on; none: it is left out."""
        found: dict[int, int] = {}
        held, count = self._bits, 0
        for stretch, _, units in self._stretches.along(keys, 0, min(most, len(keys))):
            both = held & stretch.holders
            if both != held:
                _note(found, held ^ both, count)
                held = both
                if not held:
                    return found
            count += units
        _note(found, held, count)
        return found

    def check(self, caches: Iterable[Indexed]) -> None:
        """Raise InvariantError unless it knows exactly what these caches hold."""
        self._stretches.check()
        held: dict[int, int] = {}
        for cache in caches:
            for stretch in cache:
                for key in stretch.units:
                    held[key] = held.get(key, 0) | cache.bit
        if held != {key: stretch.holders for stretch in self for key in stretch.units}:
            raise InvariantError("prefix index: it knows of other units than the caches hold")


def _note(found: dict[int, int], bits: int, count: int) -> None:
    """Write down that the caches of so many bits have so many units."""
    while count and bits:
        bit = bits & -bits
        found[bit] = count
        bits ^= bit
