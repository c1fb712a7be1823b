"""Direct networks, where devices hang from every router: Slim Fly, Dragonfly and the torus, as references.

Sources: Slim Fly, Besta and Hoefler, SC 2014 (graphs of McKay, Miller and Siran 1998); Dragonfly, Kim et al., ISCA
2008, with cables between groups laid out as a circulant; torus, Dally 1990.
"""

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from itertools import count, product
from math import prod
from typing import Annotated, Self

from pydantic import Field, model_validator

from simulator.strict import Count
from simulator.topology.galois import FiniteField, is_prime_power
from simulator.topology.graph import Topology
from simulator.topology.paths import HERE, Joined, Path, shortest
from simulator.topology.search import FewestHops
from simulator.topology.wiring import NodeParameters, Wiring


class SlimFlyParameters(NodeParameters):
    """A Slim Fly: 2q² routers, each joined to (3q - delta) / 2 others, any two of them at most two cables apart."""

    q: Annotated[int, Field(ge=3, le=200)]
    """A power of a prime other than 2 itself: 4w + delta, with delta -1, 0 or 1."""
    concentration: Count | None = None
    """Devices below a router; default: half its cables to others, rounded up."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if not is_prime_power(self.q):
            below, above = _fields_near(self.q)
            raise ValueError(f"q must be a power of a prime, found {self.q}; the nearest are {below} and {above}")
        if self.degree + self.below > self.switch.radix:
            raise ValueError(f"a router needs {self.degree + self.below} ports, a switch has {self.switch.radix}")
        _whole_nodes(2 * self.q**2 * self.below, self.devices_per_node)
        return self

    @property
    def degree(self) -> int:
        """Cables of a router to others."""
        return slim_fly_degree(self.q)

    @property
    def below(self) -> int:
        """Devices below a router."""
        return self.concentration or -(-self.degree // 2)

    @property
    def nodes(self) -> int:
        """Nodes of the whole network."""
        return 2 * self.q**2 * self.below // self.devices_per_node


class DragonflyParameters(NodeParameters):
    """A Dragonfly: groups of fully joined routers, each with devices below it and cables to other groups."""

    below: Count
    """Devices below a router (p)."""
    routers: Annotated[int, Field(ge=2)]
    """Routers of a group (a); balanced: 2p."""
    across: Count
    """Cables of a router to other groups (h); balanced: p."""
    groups: Annotated[int, Field(ge=2)]
    """Groups; at most a x h + 1."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.groups > self.routers * self.across + 1:
            raise ValueError(f"{self.groups} groups; the largest that fits is {self.routers * self.across + 1}")
        ports = self.below + self.routers - 1 + self.across
        if ports > self.switch.radix:
            raise ValueError(f"a router needs {ports} ports, a switch has {self.switch.radix}")
        _whole_nodes(self.below * self.routers * self.groups, self.devices_per_node)
        return self

    @property
    def nodes(self) -> int:
        """Nodes of the whole network."""
        return self.below * self.routers * self.groups // self.devices_per_node


class TorusParameters(NodeParameters):
    """A torus of any number of dimensions with one router per node; a dimension of two has one cable."""

    dimensions: Annotated[tuple[Annotated[int, Field(ge=2)], ...], Field(min_length=1, strict=False)]
    """Routers along each dimension, the first of which varies slowest."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        ports = self.devices_per_node + sum(2 if size > 2 else 1 for size in self.dimensions)
        if ports > self.switch.radix:
            raise ValueError(f"a router needs {ports} ports, a switch has {self.switch.radix}")
        return self

    @property
    def nodes(self) -> int:
        """Nodes of the whole network."""
        return prod(self.dimensions)


@dataclass(frozen=True, slots=True)
class Counts:
    """What a direct network consists of."""

    devices: int
    routers: int
    cables: int


def slim_fly_degree(q: int) -> int:
    """Return the cables of a Slim Fly router to others, (3q - delta) / 2 with q = 4w + delta."""
    return (3 * q - _delta(q)) // 2


def _delta(q: int) -> int:
    return {0: 0, 1: 1, 3: -1}[q % 4]


def _fields_near(q: int) -> list[int]:
    """Return the nearest prime powers below and above `q`."""
    return [next(near for near in count(q, step) if is_prime_power(near)) for step in (-1, 1)]


def slim_fly_counts(q: int) -> Counts:
    """Return the counts of a Slim Fly with as many devices below a router as half its cables, rounded up."""
    routers, degree = 2 * q * q, slim_fly_degree(q)
    return Counts(routers * -(-degree // 2), routers, routers * degree // 2)


def dragonfly_counts(below: int, routers: int, across: int, groups: int) -> Counts:
    """Return the counts of a Dragonfly whose routers use all the cables across that come in pairs."""
    inside = groups * routers * (routers - 1) // 2
    return Counts(
        below * routers * groups, routers * groups, inside + sum(1 for _ in group_pairs(routers * across, groups))
    )


def build_slim_fly(name: str, parameters: SlimFlyParameters) -> Topology:
    """Build a Slim Fly over the field of q elements; router (s, x, y) is number s q² + x q + y."""
    wiring, q = Wiring(), parameters.q
    routers = [
        wiring.vertex(f"router{s}.{x}.{y}", "switch", "router", slot=y, group=s * q + x)
        for s, x, y in product(range(2), range(q), range(q))
    ]
    _add_nodes(wiring, parameters, routers, parameters.below)
    pairs = slim_fly_pairs(q)
    # between the two halves every router has q cables, and each of the first serves its own devices over them
    bound = min(parameters.below * parameters.nic_bytes_per_s, q * parameters.link.bandwidth) * q * q
    links = _join(wiring, parameters, routers, pairs, "router-router")
    return wiring.topology(name, parameters.device, wiring.planes(between=FewestHops(_edges(links))), bound)


def slim_fly_pairs(q: int) -> list[tuple[int, int]]:
    """Return the cables of the graph of McKay, Miller and Siran over the field of q elements, as pairs of routers.

    Raises ValueError where there is no such field.
    """
    field = FiniteField(q)
    pairs = []
    for side, steps in enumerate(_generators(field)):
        joined = [(y, z) for y in range(q) for step in steps if y < (z := field.add(y, step))]
        pairs += [((side * q + x) * q + y, (side * q + x) * q + z) for x in range(q) for y, z in sorted(joined)]
    for x, m in product(range(q), repeat=2):  # (0, x, y) and (1, m, c) are joined where y = m x + c
        slope = field.multiply(m, x)
        pairs += [(x * q + y, q * q + m * q + field.subtract(y, slope)) for y in range(q)]
    return pairs


def _generators(field: FiniteField) -> tuple[frozenset[int], frozenset[int]]:
    """Return the two sets of differences that join routers of one column: X and X' of the MMS construction.

    Each holds the negative of each of its elements, so that cables go both ways: the even and the odd powers of a
    primitive element do for delta 1 and, as minus is plus, for 0, where both sets hold 1. For delta -1 minus one is an
    odd power, so that each set takes the even powers (or odd) up to half way and the others from there.
    """
    q, power, delta = field.q, field.powers, _delta(field.q)
    w = (q - delta) // 4
    if delta == 1:
        return frozenset(power[0::2]), frozenset(power[1::2])
    if delta == 0:
        return frozenset(power[0::2]), frozenset((*power[1::2], power[0]))
    first = [*range(0, 2 * w - 1, 2), *range(2 * w - 1, 4 * w - 2, 2)]
    second = [*range(1, 2 * w, 2), *range(2 * w, 4 * w - 1, 2)]
    return frozenset(power[i % (q - 1)] for i in first), frozenset(power[i % (q - 1)] for i in second)


def build_dragonfly(name: str, parameters: DragonflyParameters) -> Topology:
    """Build a Dragonfly; paths are minimal in its own sense: at most one cable across, and one inside each group."""
    wiring, a, groups = Wiring(), parameters.routers, parameters.groups
    routers = [
        wiring.vertex(f"router{group}.{i}", "switch", "router", slot=i, group=group)
        for group in range(groups)
        for i in range(a)
    ]
    _add_nodes(wiring, parameters, routers, parameters.below)
    inside = [(g * a + i, g * a + j) for g in range(groups) for i in range(a) for j in range(i + 1, a)]
    local = _join(wiring, parameters, routers, inside, "router-router")
    used = [0] * groups
    pairs = []
    for left, right in group_pairs(a * parameters.across, groups):
        ends = (left * a + used[left] // parameters.across, right * a + used[right] // parameters.across)
        pairs.append(ends)
        used[left] += 1
        used[right] += 1
    across = _join(wiring, parameters, routers, pairs, "group-group")
    group_of = {name: index // a for index, name in enumerate(routers)}
    planes = wiring.planes(between=Minimal(group_of, local, across))
    return wiring.topology(name, parameters.device, planes, _dragonfly_cut(parameters, pairs))


def group_pairs(ports: int, groups: int) -> list[tuple[int, int]]:
    """Return the pairs of groups that the cables across join: each group to those 1, 2 ... further on, over again.

    Every group has `ports` of them; the offset of half of an even number of groups takes one port of each group, any
    other two. One port of each group stays free when only one is left for an offset that needs two.
    """
    pairs: list[tuple[int, int]] = []
    offset = 0
    while ports > 0:
        offset = offset % (groups // 2) + 1
        half = 2 * offset == groups
        if not half and ports < 2:
            break
        pairs += [(group, (group + offset) % groups) for group in range(groups // 2 if half else groups)]
        ports -= 1 if half else 2
    return pairs


class Minimal:
    """Joins two routers by every shortest path that leaves a group at most once.

    `group_of` is the group of a router, `local` the links inside groups by (router, router), `across` those between two
    groups as (router that they leave, router that they enter, links).
    """

    def __init__(
        self,
        group_of: dict[str, int],
        local: dict[tuple[str, str], list[Path]],
        across: dict[tuple[str, str], list[Path]],
    ) -> None:
        self.group_of, self.local = group_of, local
        self._edges = [*_edges(local), *_edges(across)]
        self.across: dict[tuple[int, int], list[tuple[str, str, list[Path]]]] = {}
        for (source, target), cables in across.items():
            groups = (group_of[source], group_of[target])
            self.across.setdefault(groups, []).append((source, target, cables))

    def __call__(self, source: str, target: str) -> Sequence[Path] | None:
        """Return the paths between two routers, or None where their groups have no cable."""
        groups = (self.group_of[source], self.group_of[target])
        if groups[0] == groups[1]:
            return self._within(source, target)
        ways = [
            Joined(self._within(source, out), cables, self._within(back, target))
            for out, back, cables in self.across.get(groups, ())
        ]
        return shortest(ways)

    def without(self, dead: Container[int]) -> FewestHops:
        """Return the routers joined by the fewest hops without some links, by way of third ones where it must be."""
        return FewestHops(edge for edge in self._edges if edge[2] not in dead)

    def _within(self, source: str, target: str) -> Sequence[Path]:
        return HERE if source == target else self.local[source, target]


def _dragonfly_cut(parameters: DragonflyParameters, pairs: list[tuple[int, int]]) -> int:
    """Return the least of the cuts that leave groups whole, all devices of the first half of the nodes on one side.

    A group of both halves goes to either side, with the devices of the other cut off. Exact for balanced Dragonflies
    of p > 1 (a test says so); otherwise cables inside groups may be narrower still, and this is an upper bound.
    """
    per_group = parameters.below * parameters.routers
    half = parameters.nodes // 2 * parameters.devices_per_node
    middle, inside = divmod(half, per_group)
    nic, cable = parameters.nic_bytes_per_s, parameters.link.bandwidth
    cuts = [half * nic]
    for last, severed in ((middle, inside), (middle + 1, per_group - inside)):
        crossing = sum(
            (left // parameters.routers < last) != (right // parameters.routers < last) for left, right in pairs
        )
        cuts.append(crossing * cable + severed * nic)
    return min(cuts)


def build_torus(name: str, parameters: TorusParameters) -> Topology:
    """Build a torus; node i hangs from router i, the last dimension varies fastest, a group is a place in the first."""
    wiring, sizes = Wiring(), parameters.dimensions
    places = list(product(*map(range, sizes)))
    routers = [
        wiring.vertex("router" + ".".join(map(str, place)), "switch", "router", slot=index, group=place[0])
        for index, place in enumerate(places)
    ]
    _add_nodes(wiring, parameters, routers, parameters.devices_per_node)
    number = {place: index for index, place in enumerate(places)}
    pairs = []
    for place in places:
        for axis, size in enumerate(sizes):
            if size > 2 or place[axis] == 0:
                after = (*place[:axis], (place[axis] + 1) % size, *place[axis + 1 :])
                pairs.append((number[place], number[after]))
    half = parameters.nodes // 2
    crossing = sum((left < half) != (right < half) for left, right in pairs) * parameters.link.bandwidth
    bound = min(crossing, half * parameters.devices_per_node * parameters.nic_bytes_per_s)
    links = _join(wiring, parameters, routers, pairs, "router-router")
    planes = wiring.planes(between=TorusHops(sizes, routers, links))
    return wiring.topology(name, parameters.device, planes, bound)


class TorusHops(FewestHops):
    """Joins the routers of a torus by all paths of the fewest hops; `routers` are in order of place."""

    def __init__(
        self, sizes: tuple[int, ...], routers: Sequence[str], links: Mapping[tuple[str, str], Sequence[Path]]
    ) -> None:
        super().__init__(_edges(links))
        self.sizes = sizes
        self.routers = tuple(routers)


def _whole_nodes(devices: int, per_node: int) -> None:
    if devices % per_node:
        raise ValueError(f"{per_node} devices per node do not divide the {devices} devices of the network")


def _add_nodes(wiring: Wiring, parameters: NodeParameters, routers: list[str], below: int) -> None:
    """Add nodes whose NICs hang from the routers in order, `below` from each."""
    per_node = parameters.devices_per_node
    for node in range(len(routers) * below // per_node):
        nics = range(node * per_node, (node + 1) * per_node)
        wiring.node(node, parameters, [(routers[nic // below], "") for nic in nics], "nic-router")


def _join(
    wiring: Wiring, parameters: NodeParameters, routers: list[str], pairs: list[tuple[int, int]], tier: str
) -> dict[tuple[str, str], list[Path]]:
    """Wire a cable between each two routers; return the links from one to the other as paths."""
    links: dict[tuple[str, str], list[Path]] = {}
    delay = parameters.switch.latency
    for left, right in pairs:
        ends = routers[left], routers[right]
        there, back = wiring.cable(*ends, parameters.link, tier, delay, delay)
        links.setdefault(ends, []).append((there,))
        links.setdefault((ends[1], ends[0]), []).append((back,))
    return links


def _edges(links: Mapping[tuple[str, str], Sequence[Path]]) -> list[tuple[str, str, int]]:
    return [(source, target, path[0]) for (source, target), paths in links.items() for path in paths]
