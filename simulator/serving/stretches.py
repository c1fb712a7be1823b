"""Stretches of KV units that are in one state: found by any of their keys, parted where states begin to differ.

Source: nodes of a radix tree that hold runs of keys and are split where prompts part (SGLang's RadixAttention). A table
of keys stands in the place of the tree, so that prompts may have the same unit at any place.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import compress, count
from operator import ne
from typing import Generic, Self, TypeVar

from simulator.errors import InvariantError


class Stretch:
    """Units `keys[begin:end]` of a prompt, all different; its kinds add the state that all of them are in."""

    __slots__ = ("begin", "end", "keys")

    def __init__(self, keys: Sequence[int], begin: int, end: int) -> None:
        self.keys, self.begin, self.end = keys, begin, end

    def __len__(self) -> int:
        return self.end - self.begin

    @property
    def units(self) -> Sequence[int]:
        """Their keys."""
        return self.keys[self.begin : self.end]

    def goes_on(self, before: Self) -> bool:
        """Return whether it would be in the same state if it were one with that before it in the prompt."""
        raise NotImplementedError

    def skip(self, units: int) -> None:
        """Begin so many units later, or earlier."""
        self.begin += units

    def copy(self) -> Self:
        """Return another one of the same units in the same state."""
        raise NotImplementedError


class Cached(Stretch):
    """Units that the same requests hold and have held; unless they are pinned, those that nobody holds may go."""

    __slots__ = ("born", "pinned", "place", "references", "since_ns", "uses", "windowed")

    def __init__(
        self, keys: Sequence[int], begin: int, end: int, born: int, pinned: bool, windowed: bool = False
    ) -> None:
        super().__init__(keys, begin, end)
        self.windowed = windowed  # whether these are of layers with a window, where units of both kinds give way
        self.references = self.uses = 1  # requests that hold each of them, and that ever did
        self.born = born  # the first came in as number `born` of the cache, the others right after it
        self.pinned = pinned
        self.place = -1  # the first became free as number `place`, the others right before it; not free: -1
        self.since_ns = -1  # when that was

    @property
    def free(self) -> bool:
        """Whether it may be given up."""
        return self.place >= 0

    def goes_on(self, before: "Cached") -> bool:
        """Return whether both have one history; neither is free, for it has just come in, held once."""
        return (
            self.references == before.references
            and self.uses == before.uses
            and self.pinned == before.pinned
            and self.born == before.born + len(before)
        )

    def skip(self, units: int) -> None:
        """Begin so many units later, or earlier."""
        self.begin += units
        self.born += units
        if self.free:
            self.place -= units

    def copy(self) -> "Cached":
        """Return another one of the same units in the same state."""
        twin = Cached(self.keys, self.begin, self.end, self.born, self.pinned, self.windowed)
        twin.references, twin.uses, twin.place, twin.since_ns = self.references, self.uses, self.place, self.since_ns
        return twin


S = TypeVar("S", bound=Stretch)


class Stretches(Generic[S]):
    """Stretches that have no unit in common, and which of them each unit is in."""

    __slots__ = ("_of", "_parted")

    def __init__(self, parted: Callable[[S], None] | None = None) -> None:
        """`parted` hears of the rest of a stretch that is parted."""
        self._of: dict[int, S] = {}
        self._parted = parted

    def __len__(self) -> int:
        """Return how many units are here."""
        return len(self._of)

    def __contains__(self, key: int) -> bool:
        return key in self._of

    def __iter__(self) -> Iterator[S]:
        return iter(dict.fromkeys(self._of.values()))

    # -- units of a prompt ----------------------------------------------------------------------------------------

    def along(self, keys: Sequence[int], first: int, last: int) -> Iterator[tuple[S, int, int]]:
        """Yield (stretch, its units before, its units) of `keys[first:last]`, up to the first unit that is not here."""
        of = self._of
        while first < last:
            key = keys[first]
            stretch = of.get(key)
            if stretch is None:
                return
            theirs, begin = stretch.keys, stretch.begin
            if theirs[begin] != key:
                begin += stretch.units.index(key)
            units = min(stretch.end - begin, last - first)
            if theirs is not keys or begin != first:
                there, here = theirs[begin : begin + units], keys[first : first + units]
                if there != here:
                    units = next(compress(count(), map(ne, there, here)), units)
            yield stretch, begin - stretch.begin, units
            first += units

    def here(self, keys: Sequence[int], first: int, last: int) -> int:
        """Return how many of `keys[first:last]` are here, up to the first that is not."""
        return sum([units for _, _, units in self.along(keys, first, last)])

    def cut(self, keys: Sequence[int], first: int, last: int) -> list[S]:
        """Return the stretches of `keys[first:last]`, which are here, parted so that they have no unit beside those."""
        while True:
            found, place = [], first
            for stretch, before, units in self.along(keys, first, last):
                own = self._part(stretch, before) if before else stretch
                if units < own.end - own.begin:
                    self._part(own, units)
                found.append(own)
                place += units
            if place < last:
                raise InvariantError(f"unit {place} of a prompt is not here")
            if len(found) == 1 or sum(map(len, found)) == last - first:
                return found  # else a unit stands there again, and what had been found was parted the second time

    # -- stretches that come, go and change ---------------------------------------------------------------------------

    def add(self, stretch: S) -> int:
        """Take in a stretch, the first unit of which is not here, up to a unit that is or that it has a second time.

        Return how many units that is.
        """
        before = self._before(stretch)
        home = stretch if before is None else before
        new = dict.fromkeys(stretch.units, home)
        if len(new) < len(stretch) or not self._of.keys().isdisjoint(new):
            stretch.end = stretch.begin + self._new(stretch.units)
            new = dict.fromkeys(stretch.units, home)
        home.end = stretch.end
        self._of.update(new)
        return len(new)

    def _new(self, units: Sequence[int]) -> int:
        seen: set[int] = set()
        for place, key in enumerate(units):
            if key in seen or key in self._of:
                return place
            seen.add(key)
        return len(units)

    def remove(self, stretch: S, units: int, first: bool = False) -> Sequence[int]:
        """Take so many units from the end of a stretch, or from its beginning; return their keys."""
        begin, end = stretch.begin, stretch.end
        if first:
            stretch.skip(units)
            gone = stretch.keys[begin : begin + units]
        else:
            stretch.end -= units
            gone = stretch.keys[end - units : end]
        for key in gone:
            del self._of[key]
        return gone

    def _before(self, stretch: S) -> S | None:
        """Return the stretch that it goes on from, if they may be one."""
        keys, begin = stretch.keys, stretch.begin
        before = self._of.get(keys[begin - 1]) if begin else None
        if before is None or before.keys is not keys or before.end != begin or not stretch.goes_on(before):
            return None
        return before

    def _unite(self, stretch: S) -> S:
        before = self._before(stretch)
        if before is None:
            return stretch
        if len(before) < len(stretch):
            self._of.update(dict.fromkeys(before.units, stretch))
            stretch.skip(-len(before))
            return stretch
        self._of.update(dict.fromkeys(stretch.units, before))
        before.end = stretch.end
        return before

    def settle(self, stretch: S) -> None:
        """Make it one with those around it that are in the state that it is in now."""
        stretch = self._unite(stretch)
        after = self._of.get(stretch.keys[stretch.end]) if stretch.end < len(stretch.keys) else None
        if after is not None:
            self._unite(after)

    def _part(self, stretch: S, units: int) -> S:
        rest = stretch.copy()
        rest.skip(units)
        stretch.end = rest.begin
        self._of.update(dict.fromkeys(rest.units, rest))
        if self._parted is not None:
            self._parted(rest)
        return rest

    def check(self) -> None:
        """Raise InvariantError unless every unit is in the stretch that it is found by."""
        found = {key: stretch for stretch in self for key in stretch.units}
        if found != self._of:
            raise InvariantError(f"stretches: {len(found)} units, {len(self._of)} are found by key")
