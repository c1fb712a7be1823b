"""A cluster's fabric: an immutable directed multigraph of devices, NICs and switches, routed up and down.

Model: every cable is two directed links of its own (parallel cables stay apart, so that hash collisions are real);
traffic climbs to the lowest common switch and comes down. Source: Leiserson 1985; Al-Fares et al., SIGCOMM 2008.
"""

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING, Literal, overload

if TYPE_CHECKING:
    import networkx

Path = tuple[int, ...]
"""A route as the indices of its directed links, in order of travel."""

Ascent = dict[str, tuple[list[Path], list[Path]]]
"""The switches of one height above some switch: by name, every way up from it and every way down to it."""

CACHED_SWITCH_PAIRS = 16_384


@dataclass(frozen=True, slots=True)
class Link:
    """One direction of one cable; `latency_ns` includes the switch that the link enters."""

    index: int
    source: str
    target: str
    capacity_bytes_per_s: int
    latency_ns: int
    tier: str


@dataclass(frozen=True, slots=True)
class Site:
    """The place of one accelerator: its dense index, its vertex name, its node and its slot in the node."""

    index: int
    name: str
    node: int
    slot: int


@dataclass(frozen=True, slots=True)
class Vertex:
    """A device, NIC, NVLink domain or switch; `group` is its leaf group or pod, `slot` its number within it."""

    name: str
    kind: Literal["device", "nic", "nvswitch", "switch"]
    tier: str
    node: int | None = None
    slot: int | None = None
    group: int | None = None


@dataclass(frozen=True, slots=True)
class Climb:
    """One cable from a vertex up to a switch: the link up, the switch, and the link back down."""

    up: int
    switch: str
    down: int


@dataclass(frozen=True, slots=True)
class Access:
    """How one device reaches its first switch: the links from it to the switch and from the switch back to it."""

    switch: str
    outward: Path
    inward: Path


class Meetings(Sequence[Path]):
    """The paths between two switches: for each switch where they meet, every way up joined to every way down.

    A path is put together when it is asked for, so that choosing one of very many is cheap.
    """

    __slots__ = ("_ends", "_ways")

    def __init__(self, ways: Sequence[tuple[Sequence[Path], Sequence[Path]]]) -> None:
        self._ways = ways
        self._ends = list(accumulate(len(ups) * len(downs) for ups, downs in ways))

    def __len__(self) -> int:
        return self._ends[-1]

    @overload
    def __getitem__(self, index: int) -> Path: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Path]: ...
    def __getitem__(self, index: int | slice) -> Path | Sequence[Path]:
        if isinstance(index, slice):
            return tuple(self[at] for at in range(*index.indices(len(self))))
        index = range(len(self))[index]  # negative ones count from the end, those outside are refused
        meeting = bisect_right(self._ends, index)
        ups, downs = self._ways[meeting]
        up, down = divmod(index - (self._ends[meeting - 1] if meeting else 0), len(downs))
        return ups[up] + downs[down]


class EqualCostPaths(Sequence[Path]):
    """Every shortest path between two devices, each put together only when it is asked for."""

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


NOWHERE = EqualCostPaths((), ((),), ())


@dataclass(frozen=True, eq=False)
class Topology:
    """An immutable fabric; build one with `simulator.topology.build_topology`.

    `device` names the accelerator's data sheet; `sites` is indexed by device index, `links` by link index; `local` is
    each device's cable to its NVLink domain (empty when a node holds one device); `access` its way to the first switch;
    `climbs` the cables up from each switch. `bisection_bytes_per_s` is what can flow one way from the first half of the
    nodes to the others (of an odd number the smaller half sends); `oversubscription` is the down:up capacity of a leaf.
    """

    name: str
    device: str
    vertices: tuple[Vertex, ...]
    links: tuple[Link, ...]
    sites: tuple[Site, ...]
    local: tuple[Climb, ...]
    access: tuple[Access, ...]
    climbs: Mapping[str, tuple[Climb, ...]]
    bisection_bytes_per_s: int
    oversubscription: float
    _between: dict[tuple[str, str], Meetings] = field(default_factory=dict, init=False, repr=False)
    _above: dict[str, list[Ascent]] = field(default_factory=dict, init=False, repr=False)

    def paths(self, source: int, target: int) -> Sequence[Path]:
        """Return every equal-cost shortest path between two devices as tuples of link indices.

        The order is fixed by the structure. A device reaches itself by one empty path. Devices of one node meet in its
        NVLink domain; others leave by their own NIC and meet at the lowest switch that both can climb to.
        Raises IndexError for a device that does not exist.
        """
        if source == target:
            return NOWHERE
        if self.sites[source].node == self.sites[target].node:
            return EqualCostPaths((self.local[source].up,), ((),), (self.local[target].down,))
        start, end = self.access[source], self.access[target]
        ends = (start.switch, end.switch)
        middles = self._between.get(ends)
        if middles is None:
            if len(self._between) >= CACHED_SWITCH_PAIRS:
                self._between.clear()
            middles = self._between[ends] = self._meetings(*ends)
        return EqualCostPaths(start.outward, middles, end.inward)

    def _meetings(self, source: str, target: str) -> Meetings:
        for switch in (source, target):
            if switch not in self._above:
                self._above[switch] = list(ascents(self.climbs, switch))
        for rising, falling in zip(self._above[source], self._above[target], strict=False):
            ways = [(ups, falling[switch][1]) for switch, (ups, _) in rising.items() if switch in falling]
            if ways:
                return Meetings(ways)
        raise LookupError(f"no switch stands above both {source} and {target}")

    @cached_property
    def graph(self) -> "networkx.MultiDiGraph[str]":
        """The same fabric as a frozen networkx graph: vertices by name, edges keyed by link index."""
        import networkx

        graph: networkx.MultiDiGraph[str] = networkx.MultiDiGraph(name=self.name)
        for vertex in self.vertices:
            attributes = {"kind": vertex.kind, "tier": vertex.tier}
            places = {"node": vertex.node, "slot": vertex.slot, "group": vertex.group}
            graph.add_node(vertex.name, **attributes, **{key: at for key, at in places.items() if at is not None})
        for link in self.links:
            graph.add_edge(
                link.source,
                link.target,
                key=link.index,
                capacity_bytes_per_s=link.capacity_bytes_per_s,
                latency_ns=link.latency_ns,
                tier=link.tier,
            )
        networkx.freeze(graph)
        return graph

    def path_latency_ns(self, path: Path) -> int:
        """Return the sum of the latencies of a path's links, in nanoseconds."""
        return sum(self.links[index].latency_ns for index in path)


def ascents(climbs: Mapping[str, tuple[Climb, ...]], switch: str) -> Iterator[Ascent]:
    """Yield, for 0, 1, 2 ... cables above `switch`, the switches there with every way up to each and down from it."""
    level: Ascent = {switch: ([()], [()])}
    while level:
        yield level
        higher: Ascent = {}
        for below, (ups, downs) in level.items():
            for climb in climbs.get(below, ()):
                higher_ups, higher_downs = higher.setdefault(climb.switch, ([], []))
                higher_ups += [(*path, climb.up) for path in ups]
                higher_downs += [(climb.down, *path) for path in downs]
        level = higher


def climb_height(climbs: Mapping[str, tuple[Climb, ...]], source: str, target: str) -> int:
    """Return how many cables up the lowest switch above both switches stands, without listing the paths."""
    height, left, right = 0, {source}, {target}
    while not left & right:
        if not left or not right:
            raise LookupError(f"no switch stands above both {source} and {target}")
        left = {climb.switch for switch in left for climb in climbs.get(switch, ())}
        right = {climb.switch for switch in right for climb in climbs.get(switch, ())}
        height += 1
    return height
