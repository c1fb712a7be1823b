"""Which prefix caches hold which units: one walk over a prompt's keys tells what every cache of a pool has of it.

Source: KV indexers of cluster routers (NVIDIA Dynamo, llm-d); here without delay, each cache says what comes and goes.
"""

from collections.abc import Iterable, Sequence
from typing import Protocol

from simulator.errors import InvariantError


class Indexed(Protocol):
    """A cache that tells an index of each unit that it takes in or gives up."""

    index: "PrefixIndex | None"
    bit: int

    @property
    def keys(self) -> Iterable[int]:
        """The units that it holds."""


class PrefixIndex:
    """The caches that hold each unit, as bits of one number; a cache keeps its bit for as long as it is here."""

    def __init__(self) -> None:
        self.holders: dict[int, int] = {}
        self._bits = 0  # of all caches that are here
        self._next = 1

    def join(self, cache: Indexed) -> None:
        """Take in a cache and what it holds."""
        cache.index, cache.bit = self, self._next
        self._bits |= self._next
        self._next <<= 1
        for key in cache.keys:
            self.add(key, cache.bit)

    def leave(self, cache: Indexed) -> None:
        """Forget a cache."""
        for key in cache.keys:
            self.drop(key, cache.bit)
        self._bits &= ~cache.bit
        cache.index = None

    def add(self, key: int, bit: int) -> None:
        """Note that a cache holds a unit now."""
        self.holders[key] = self.holders.get(key, 0) | bit

    def drop(self, key: int, bit: int) -> None:
        """Note that a cache holds a unit no longer."""
        left = self.holders[key] & ~bit
        if left:
            self.holders[key] = left
        else:
            del self.holders[key]

    def units(self, keys: Sequence[int], most: int) -> dict[int, int]:
        """Return by bit how many of the first `most` units a cache has, from the first on; none: it is left out."""
        found: dict[int, int] = {}
        holders, held, count = self.holders, self._bits, 0
        for key in keys[:most]:
            both = held & holders.get(key, 0)
            if both != held:
                _note(found, held ^ both, count)
                held = both
                if not held:
                    return found
            count += 1
        _note(found, held, count)
        return found

    def check(self, caches: Iterable[Indexed]) -> None:
        """Raise InvariantError unless it knows exactly what these caches hold."""
        held: dict[int, int] = {}
        for cache in caches:
            for key in cache.keys:
                held[key] = held.get(key, 0) | cache.bit
        if held != self.holders:
            raise InvariantError("prefix index: it knows of other units than the caches hold")


def _note(found: dict[int, int], bits: int, count: int) -> None:
    """Write down that the caches of so many bits have so many units."""
    while count and bits:
        bit = bits & -bits
        found[bit] = count
        bits ^= bit
