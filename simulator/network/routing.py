"""Which paths a transfer takes: policies are pure functions of the topology and of the transfer's identity.

Sources: RFC 2992 (equal-cost multi-path by hash; here the finaliser of SplitMix64, Steele, Lea, Flood 2014); packet
spraying, Dixit et al., INFOCOM 2013; rails by relay, arXiv 2307.12169 and NCCL's PXN; Valiant 1982.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import repeat
from typing import Any, NamedTuple, overload

from simulator.errors import InputError, unknown
from simulator.strict import Count, Strict
from simulator.topology.graph import Path, Topology

Routing = Callable[[Topology, int, int, int, int], Path]
"""(topology, seed, source device, target device, sequence number of the flow) to a path."""

Shares = Sequence[tuple[Path, float]]
"""The paths of one transfer, each with its share of the bytes; the shares sum to 1. No path: source is target."""

Spread = Callable[[Topology, int, int, int, int], Shares]
"""The same arguments as those of a Routing to one path or several; `together` makes one flow of them."""

_MASK = (1 << 64) - 1
KNOWN_PAIRS = 16_384
"""Pairs of ends of which a `Hashed` keeps what it found, at most."""
KNOWN_WAYS = 4096
"""Pairs of which a `Ways` keeps all that it has found, at most."""

_DETOUR = 0x7A11A17  # tells the draw of an intermediate from that of a path


def mix(*words: int) -> int:
    """Return a 64-bit hash of integers, equal on every machine and in every process."""
    state = 0
    for word in words:
        state = (state + word + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state


def mixed(state: int, word: int) -> int:
    """Return the hash of some integers and one more, from the `mix` of the former."""
    state = (state + word + 0x9E3779B97F4A7C15) & _MASK
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
    return state ^ (state >> 31)


def ecmp(topology: Topology, seed: int, source: int, target: int, sequence: int) -> Path:
    """Choose one equal-cost path by hash, so that flows may collide on one cable while others stand idle."""
    return _one(topology.paths(source, target), seed, source, target, sequence)


class Hashed:
    """`ecmp` of one topology and seed, (source, target, sequence) to a path; what hangs on the ends alone is kept.

    That is of each pair its one path, or the paths, their number and the hash as far as the ends go.
    """

    def __init__(self, topology: Topology, seed: int) -> None:
        self._topology = topology
        self._seed = seed
        self._single: dict[tuple[int, int], Path] = {}
        self._several: dict[tuple[int, int], tuple[Sequence[Path], int, int]] = {}

    def __call__(self, source: int, target: int, sequence: int) -> Path:
        """Return the path that `ecmp` chooses."""
        ends = source, target
        several = self._several.get(ends)
        if several is None:
            path = self._single.get(ends)
            if path is not None:
                return path
            paths = self._topology.paths(source, target)
            if len(self._single) + len(self._several) >= KNOWN_PAIRS:
                self._single.clear()
                self._several.clear()
            if len(paths) == 1:
                path = self._single[ends] = paths[0]
                return path
            several = self._several[ends] = paths, len(paths), mix(self._seed, source, target)
        paths, count, state = several
        return paths[mixed(state, sequence) % count]


class NoParameters(Strict):
    """A routing without parameters."""


class OnPlane(Strict):
    """Equal-cost multi-path by hash, one path per transfer."""

    plane: str | None = None
    """The plane, or the lane of one, that carries everything; default: the first that joins source and target."""


class Spraying(OnPlane):
    """Packet spraying: a transfer is split evenly over its equal-cost paths, as if every packet took the next one."""

    paths: Count | None = None
    """Paths of one transfer at most, evenly spaced among all; default: all."""


def spray(parameters: Spraying, topology: Topology, seed: int, source: int, target: int, sequence: int) -> Shares:
    """Split evenly over all equal-cost paths, or over as many as `paths` says, begun at a place drawn by hash.

    Paths are ordered lane by lane, so k of k x m paths are one in each of k equal lanes.
    """
    if source == target:
        return ()
    found = topology.paths(source, target, parameters.plane)
    count = len(found)
    chosen = min(parameters.paths or count, count)
    return Sprayed(found, mix(seed, source, target, sequence) % count if chosen < count else 0, chosen)


class Sprayed(Sequence[tuple[Path, float]]):
    """Equal shares of so many of all paths, evenly spaced from the `first` on; put together as they are read."""

    __slots__ = ("_chosen", "_first", "paths")

    def __init__(self, paths: Sequence[Path], first: int, chosen: int) -> None:
        self.paths, self._first, self._chosen = paths, first, chosen

    def __len__(self) -> int:
        return self._chosen

    @property
    def is_whole(self) -> bool:
        """Whether it has all of the paths."""
        return self._chosen == len(self.paths)

    def __iter__(self) -> Iterator[tuple[Path, float]]:
        if self.is_whole:
            return zip(self.paths, repeat(1 / self._chosen), strict=False)
        return map(self._at, range(self._chosen))

    @overload
    def __getitem__(self, index: int) -> tuple[Path, float]: ...
    @overload
    def __getitem__(self, index: slice) -> Shares: ...
    def __getitem__(self, index: int | slice) -> tuple[Path, float] | Shares:
        if isinstance(index, slice):
            return tuple(map(self._at, range(self._chosen)[index]))
        return self._at(range(self._chosen)[index])

    def _at(self, index: int) -> tuple[Path, float]:
        count = len(self.paths)
        return self.paths[(self._first + index * count // self._chosen) % count], 1 / self._chosen


def hashed(parameters: OnPlane, topology: Topology, seed: int, source: int, target: int, sequence: int) -> Shares:
    """Choose as `ecmp` does, on a plane if one is asked for."""
    if source == target:
        return ()
    return ((_one(topology.paths(source, target, parameters.plane), seed, source, target, sequence), 1.0),)


class Adaptive(OnPlane):
    """Each transfer takes the equal-cost path that is least busy when it starts, and keeps it."""

    candidates: Count = 16
    """Paths that are compared at most, evenly spaced among all from a place drawn by hash."""


class AdaptiveRouting:
    """Adaptive routing by flow, as switches that know how many flows each of their ports has (CONGA, SIGCOMM 2014).

    A path is as busy as its busiest link: flows on their way over it, per byte/s. The fabric tells it of them.
    """

    def __init__(self, parameters: Adaptive) -> None:
        self._parameters = parameters
        self.plane = parameters.plane
        self.on_way: dict[int, int] = {}
        """Flows that have been sent and have not arrived, by link."""

    def __call__(self, topology: Topology, seed: int, source: int, target: int, sequence: int) -> Shares:
        """Return the least busy of the candidates, the first of those alike."""
        if source == target:
            return ()
        found = topology.paths(source, target, self._parameters.plane)
        count = len(found)
        first, some = mix(seed, source, target, sequence) % count, min(self._parameters.candidates, count)
        candidates = [found[(first + at * count // some) % count] for at in range(some)]
        links, on_way = topology.links, self.on_way

        def busy(path: Path) -> float:
            return max((1 + on_way.get(link, 0)) / (links[link].capacity_bytes_per_s or 1) for link in path)

        return ((min(candidates, key=busy), 1.0),)

    def enters(self, path: Path) -> None:
        """Count a flow that is sent over a path."""
        for link in path:
            self.on_way[link] = self.on_way.get(link, 0) + 1

    def leaves(self, path: Path) -> None:
        """Count a flow that has arrived, was lost or is sent another way."""
        for link in path:
            self.on_way[link] -= 1


def rail_aligned(
    parameters: NoParameters, topology: Topology, seed: int, source: int, target: int, sequence: int
) -> Shares:
    """Hand over to the device of the own node that has the target's slot, and go on from there within the rail.

    Static: of the equal-cost paths within the rail, that of the target's number modulo their count. Where the relay is
    cut off, straight to the target.
    """
    if source == target:
        return ()
    start, end = topology.endpoints[source], topology.endpoints[target]
    relay = source
    if start.node != end.node and start.slot != end.slot:
        relay = topology.device_at.get((start.node, end.slot), source)
    try:
        head, rail = topology.paths(source, relay)[0], topology.paths(relay, target)
    except InputError:  # something on the way by the relay is dead
        head, rail = (), topology.paths(source, target)
    return ((head + rail[target % len(rail)], 1.0),)


def valiant(parameters: NoParameters, topology: Topology, seed: int, source: int, target: int, sequence: int) -> Shares:
    """Go to the place of a device drawn by hash, then to the target; the way to and from that device is left out.

    Both halves are shortest paths drawn by hash. Loops are cut out, so no vertex is passed twice. Where that device is
    cut off, straight to the target.
    """
    if source == target:
        return ()
    via = mix(seed, _DETOUR, source, target, sequence) % len(topology.sites)
    if topology.sites[via].node in (topology.endpoints[source].node, topology.endpoints[target].node):
        return ((ecmp(topology, seed, source, target, sequence), 1.0),)
    try:
        whole = ecmp(topology, seed, source, via, sequence) + ecmp(topology, seed, via, target, sequence)
    except InputError:  # something on the way by that device is dead
        whole = ecmp(topology, seed, source, target, sequence)
    return ((without_loops(topology, whole), 1.0),)


def without_loops(topology: Topology, path: Path) -> Path:
    """Return the path with every return to a vertex cut out, in the order of travel (Lawler's loop erasure)."""
    kept: list[int] = []
    order = [topology.links[path[0]].source] if path else []
    place = dict.fromkeys(order, 0)
    for index in path:
        name = topology.links[index].target
        if name in place:
            back = place[name]
            for cut in order[back + 1 :]:
                del place[cut]
            del order[back + 1 :], kept[back:]
        else:
            place[name] = len(order)
            order.append(name)
            kept.append(index)
    return tuple(kept)


def _one(paths: Sequence[Path], seed: int, source: int, target: int, sequence: int) -> Path:
    count = len(paths)
    return paths[mix(seed, source, target, sequence) % count if count > 1 else 0]


class Way(NamedTuple):
    """Where a transfer goes as one flow."""

    path: Path
    """The path with the longest latency, which it has."""
    links: Path
    """All that it crosses."""
    portions: tuple[float, ...]
    """How much of it crosses each of these; none: all of it, on each."""


def together(topology: Topology, shares: Shares) -> Way:
    """Return the paths of a transfer as one way, on which it goes as fast as the slowest of them lets it.

    Raises ValueError when there is no path, or the shares do not sum to 1.
    """
    if len(shares) == 1:
        [(path, _)] = shares
        return Way(path, path, ())
    if isinstance(shares, Sprayed) and shares.is_whole:
        from simulator.topology.spreading import path_weights  # a scenario is read without numpy

        portions = path_weights(shares.paths)
    else:
        portions = {}
        for path, share in shares:
            for link in path:
                portions[link] = portions.get(link, 0.0) + share
        if abs(sum([share for _, share in shares]) - 1) > 1e-9:
            raise ValueError(f"shares do not sum to 1: {[share for _, share in shares]}"[:100])
    slowest = max((path for path, _ in shares), key=topology.path_latency_ns)
    exact: dict[float, float] = {}  # few are different
    for portion in portions.values():
        exact[portion] = 1.0 if portion > 1 - 1e-9 else portion
    return Way(slowest, tuple(portions), tuple(map(exact.__getitem__, portions.values())))


class Ways:
    """The way of each transfer by one spread; where that is all paths of its ends, whatever its number, it is kept."""

    def __init__(self, topology: Topology, seed: int, spread: Spread) -> None:
        self._topology, self._seed, self._spread = topology, seed, spread
        self._known: dict[tuple[int, int], Way] = {}

    def __call__(self, source: int, target: int, sequence: int) -> Way | None:
        """Return the way of transfer number `sequence` between two ends; None within one device."""
        ends = source, target
        way = self._known.get(ends)
        if way is not None:
            return way
        shares = self._spread(self._topology, self._seed, source, target, sequence)
        if not shares:
            return None
        way = together(self._topology, shares)
        if isinstance(shares, Sprayed) and shares.is_whole:
            if len(self._known) >= KNOWN_WAYS:
                self._known.clear()
            self._known[ends] = way
        return way


class RoutingKind(NamedTuple):
    """A registered routing: its parameters as they stand in a scenario, and the policy over them.

    `policy` takes the parameters before the arguments of a Spread. One that has to know the flows under way is made
    anew for each fabric by `make`.
    """

    parameters: type[Strict]
    policy: Callable[..., Shares] | None
    make: Callable[[Any], Spread] | None = None


ROUTINGS: dict[str, RoutingKind] = {
    "ecmp": RoutingKind(OnPlane, hashed),
    "spray": RoutingKind(Spraying, spray),
    "adaptive": RoutingKind(Adaptive, None, AdaptiveRouting),
    "rail_aligned": RoutingKind(NoParameters, rail_aligned),
    "valiant": RoutingKind(NoParameters, valiant),
}


def routing(name: str, parameters: Strict | None = None, known: Mapping[str, Any] = ROUTINGS) -> Spread:
    """Return the policy `name` with its parameters (their defaults if left out); raises InputError if unknown."""
    if name not in known:
        raise InputError(unknown("routing", name, known))
    kind = known[name]
    given = parameters if parameters is not None else kind.parameters()
    if kind.make is not None:
        made: Spread = kind.make(given)
        return made
    assert kind.policy is not None
    return partial(kind.policy, given)


def spread_of(topology: Topology) -> Spread | None:
    """Return the routing that a topology's family goes with, or None for plain ECMP, which needs no splitting."""
    return None if topology.routing == "ecmp" else routing(topology.routing)
