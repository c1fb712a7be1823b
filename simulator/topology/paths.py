"""Equal-cost paths as sequences that put a path together only when it is asked for, so that one of very many is cheap.

Model: a path goes up to where source and target meet and comes down. Source: Leiserson 1985; Al-Fares et al. 2008.
A sequence also says of what it is put together, so that bytes spread over all of it are known without listing any.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, chain, pairwise, product
from typing import NamedTuple, overload

Path = tuple[int, ...]
"""A route as the indices of its directed links, in order of travel."""

Between = Callable[[str, str], Sequence[Path] | None]
"""Two switches to every equal-cost path between them; None when there is none."""

CACHED_SWITCH_PAIRS = 16_384

Parts = tuple[Path, Sequence[tuple[Sequence[Path], float]]]
"""Links of every path of a sequence, and further sequences with the share of its paths that go on by each."""

HERE: Sequence[Path] = ((),)
"""The one path from a place to itself."""


@dataclass(frozen=True, slots=True)
class Climb:
    """One cable from a vertex up to a switch: the link up, the switch, and the link back down."""

    up: int
    switch: str
    down: int


class PathSequence(Sequence[Path]):
    """What all sequences here share: `at` puts one path together, for an index from 0 to one less than the length."""

    __slots__ = ()

    def at(self, index: int) -> Path:
        """Return the path of a non-negative index within the sequence."""
        raise NotImplementedError

    def parts(self) -> Parts:
        """Return what the paths are put together of; here, each path by itself."""
        return (), [((path,), 1 / len(self)) for path in self]

    @overload
    def __getitem__(self, index: int) -> Path: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Path]: ...
    def __getitem__(self, index: int | slice) -> Path | Sequence[Path]:
        if isinstance(index, slice):
            return tuple(self.at(at) for at in range(*index.indices(len(self))))
        return self.at(range(len(self))[index])  # negative ones count from the end, those outside are refused


class Joined(PathSequence):
    """Every path of the first part, followed by every path of the second, and so on; the last part varies fastest."""

    __slots__ = ("_count", "_parts")

    def __init__(self, *parts: Sequence[Path]) -> None:
        self._parts = parts
        self._count = 1
        for part in parts:
            self._count *= len(part)

    def __len__(self) -> int:
        return self._count

    def at(self, index: int) -> Path:
        """Return the path of a non-negative index."""
        path: Path = ()
        for part in reversed(self._parts):
            index, within = divmod(index, len(part))
            path = part[within] + path
        return path

    def __iter__(self) -> Iterator[Path]:
        return (tuple(chain.from_iterable(ways)) for ways in product(*self._parts))

    def parts(self) -> Parts:
        """Return the parts, each of which every path goes through."""
        return (), [(part, 1.0) for part in self._parts]


class Alternatives(PathSequence):
    """The paths of one sequence after those of another."""

    __slots__ = ("_ends", "_ways")

    def __init__(self, ways: Sequence[Sequence[Path]]) -> None:
        self._ways = ways
        self._ends = list(accumulate(len(way) for way in ways))

    def __len__(self) -> int:
        return self._ends[-1]

    def at(self, index: int) -> Path:
        """Return the path of a non-negative index."""
        way = bisect_right(self._ends, index)
        return self._ways[way][index - (self._ends[way - 1] if way else 0)]

    def __iter__(self) -> Iterator[Path]:
        return chain.from_iterable(self._ways)

    def parts(self) -> Parts:
        """Return the sequences, each with its share of the paths."""
        return (), [(way, len(way) / len(self)) for way in self._ways]


class EqualCostPaths(PathSequence):
    """Every path between two devices: the way out, a path between the switches at its end, and the way in."""

    __slots__ = ("_head", "_middles", "_tail")

    def __init__(self, head: Path, middles: Sequence[Path], tail: Path) -> None:
        self._head, self._middles, self._tail = head, middles, tail

    def __len__(self) -> int:
        return len(self._middles)

    @overload
    def __getitem__(self, index: int) -> Path: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Path]: ...
    def __getitem__(self, index: int | slice) -> Path | Sequence[Path]:
        if isinstance(index, slice):
            return EqualCostPaths(self._head, self._middles[index], self._tail)
        return self._head + self._middles[index] + self._tail

    def at(self, index: int) -> Path:
        """Return the path of a non-negative index."""
        return self._head + self._middles[index] + self._tail

    def __iter__(self) -> Iterator[Path]:
        head, tail = self._head, self._tail
        return (head + middle + tail for middle in self._middles)

    def parts(self) -> Parts:
        """Return the links at both ends and what lies between."""
        return self._head + self._tail, [(self._middles, 1.0)]


@dataclass(frozen=True, slots=True)
class Meetings:
    """Where the ways up from two groups of switches meet: (left, right, paths between), and where each one's end."""

    pairs: Sequence[tuple[str, str, Sequence[Path]]]
    ends: Sequence[int]

    def shares(self) -> list[float]:
        """Return the share of all paths that each pair has."""
        return [(end - before) / self.ends[-1] for before, end in pairwise((0, *self.ends))]


class MetPaths(PathSequence):
    """Up from one switch, across where the ways meet, and down to the other: one meeting after the other."""

    __slots__ = ("_falling", "_meetings", "_rising")

    def __init__(self, rising: "Above", meetings: Meetings, falling: "Above") -> None:
        self._rising, self._meetings, self._falling = rising, meetings, falling

    def __len__(self) -> int:
        return self._meetings.ends[-1]

    @overload
    def __getitem__(self, index: int) -> Path: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Path]: ...
    def __getitem__(self, index: int | slice) -> Path | Sequence[Path]:
        if isinstance(index, int) and 0 <= index < self._meetings.ends[-1]:  # nearly always
            return self.at(index)
        return super().__getitem__(index)

    def at(self, index: int) -> Path:
        """Return the path of a non-negative index; the ways down vary fastest, the ways up slowest."""
        ends = self._meetings.ends
        place = bisect_right(ends, index)
        left, right, middles = self._meetings.pairs[place]
        downs = self._falling.ways[right][1]
        index, down = divmod(index - ends[place - 1] if place else index, len(downs))
        up, middle = divmod(index, len(middles))
        return self._rising.ways[left][0][up] + middles[middle] + downs[down]

    def __iter__(self) -> Iterator[Path]:
        rising, falling = self._rising.ways, self._falling.ways
        return (
            up + middle + down
            for left, right, middles in self._meetings.pairs
            for up in rising[left][0]
            for middle in middles
            for down in falling[right][1]
        )

    def parts(self) -> Parts:
        """Return the cables up, the paths between and the cables down of each meeting."""
        found: list[tuple[Sequence[Path], float]] = []
        for (left, right, middles), share in zip(self._meetings.pairs, self._meetings.shares(), strict=True):
            found += [(self._rising.ways[left][0], share), (middles, share), (self._falling.ways[right][1], share)]
        return (), found


class Above(NamedTuple):
    """What a switch has above it: links up and back down by switch; the shape is equal where names and counts are."""

    ways: dict[str, tuple[list[Path], list[Path]]]
    shape: int


def shortest(ways: Sequence[Sequence[Path]]) -> Sequence[Path] | None:
    """Return the paths of those sequences (each of equally long paths, none empty) whose paths are shortest."""
    if len(ways) < 2:
        return ways[0] if ways else None
    least = min(len(way[0]) for way in ways)
    kept = [way for way in ways if len(way[0]) == least]
    return kept[0] if len(kept) == 1 else Alternatives(kept)


def same_switch(source: str, target: str) -> Sequence[Path] | None:
    """Join only what hangs on one switch."""
    return HERE if source == target else None


class UpDown:
    """Paths between switches that climb equally high on both sides and meet in one switch, or cross between two peers.

    `climbs` are the cables up from each switch, `peers` the links straight across by (switch, switch). The lowest
    meeting wins. What lies above two groups of switches is found once and shared by all pairs below them.
    """

    def __init__(
        self,
        climbs: Mapping[str, Sequence[Climb]],
        peers: Mapping[tuple[str, str], Sequence[Path]] | None = None,
    ) -> None:
        self.climbs = climbs
        self.peers = peers or {}
        self._groups: dict[str, Above] = {}
        self._reached: dict[str, frozenset[str]] = {}
        self._shapes: dict[tuple[tuple[str, int], ...], int] = {}
        self._between: dict[tuple[str, str], Sequence[Path] | None] = {}
        self._meetings: dict[tuple[int, int], Meetings] = {}

    def __call__(self, source: str, target: str) -> Sequence[Path] | None:
        """Return the equal-cost paths between two switches, or None."""
        if source == target:
            return HERE
        ends = (source, target)
        found = self._between.get(ends)
        if found is None and ends not in self._between:
            if len(self._between) >= CACHED_SWITCH_PAIRS:
                self._between.clear()
            found = self._between[ends] = self.peers.get(ends) or self._meet(source, target)
        return found

    def _meet(self, source: str, target: str) -> Sequence[Path] | None:
        rising, falling = self.above(source), self.above(target)
        meetings = self.meetings(rising, falling)
        return MetPaths(rising, meetings, falling) if meetings.pairs else None

    def meetings(self, rising: Above, falling: Above) -> Meetings:
        """Return where the ways up from two switches meet."""
        key = (rising.shape, falling.shape)
        meetings = self._meetings.get(key)
        if meetings is None:
            if len(self._meetings) >= CACHED_SWITCH_PAIRS:
                self._meetings.clear()
            pairs = self._pairs(tuple(rising.ways), tuple(falling.ways))
            counts = [len(rising.ways[up][0]) * len(paths) * len(falling.ways[down][1]) for up, down, paths in pairs]
            meetings = self._meetings[key] = Meetings(pairs, list(accumulate(counts)))
        return meetings

    def _pairs(self, lefts: tuple[str, ...], rights: tuple[str, ...]) -> list[tuple[str, str, Sequence[Path]]]:
        """Return the pairs of switches, one of each side, with the paths between them, where these are shortest."""
        common = set(lefts) & set(rights)
        if common:
            return [(switch, switch, HERE) for switch in lefts if switch in common]
        found = [
            (left, right, middles)
            for left in lefts
            for right in rights
            if not self._reach(left).isdisjoint(self._reach(right)) and (middles := self(left, right)) is not None
        ]
        least = min((len(middles[0]) for *_, middles in found), default=0)
        return [pair for pair in found if len(pair[2][0]) == least]

    @cached_property
    def peered(self) -> Mapping[str, Sequence[str]]:
        """The switches with links straight across, each with those that these lead to."""
        found: dict[str, list[str]] = {}
        for left, right in self.peers:
            found.setdefault(left, []).append(right)
        return found

    def _reach(self, switch: str) -> frozenset[str]:
        """Return a switch, all that it can climb to, and peers of these: without any in common, no path joins two."""
        if switch not in self._reached:
            higher = (self._reach(above) for above in self.above(switch).ways)
            self._reached[switch] = frozenset((switch, *self.peered.get(switch, ()))).union(*higher)
        return self._reached[switch]

    def above(self, switch: str) -> Above:
        """Return what a switch climbs to."""
        above = self._groups.get(switch)
        if above is None:
            ways: dict[str, tuple[list[Path], list[Path]]] = {}
            for climb in self.climbs.get(switch, ()):
                ups, downs = ways.setdefault(climb.switch, ([], []))
                ups.append((climb.up,))
                downs.append((climb.down,))
            shape = tuple((name, len(ups)) for name, (ups, _) in ways.items())
            above = self._groups[switch] = Above(ways, self._shapes.setdefault(shape, len(self._shapes)))
        return above
