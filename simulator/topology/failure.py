"""What is lost when one switch, NIC, NVLink domain or plane is gone, from the structure of a fabric alone.

Model: heights are distances from the devices; the share of a vertex's way out that survives is the mean of the shares
of what it climbs to, weighted by capacity (fluid, as under ideal load balancing); a switch that devices hang from and
that has only equals around it (torus, Dragonfly, Slim Fly) loses the cables to the equals that are gone.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from simulator.topology.graph import Topology

Rows = dict[str, dict[str, int]]
ENDS = ("device", "cpu")
"""Kinds of vertices that send and receive."""
PASSED = ("nic", "host")
"""Kinds that only one or a few ends of a node go through on their way to a switch."""
SWITCHES = ("switch", "nvswitch")


@dataclass(frozen=True, slots=True)
class FailureDomain:
    """The loss of one thing: `example`, one of `count` of its kind, the worst of them.

    `cut_off` ends keep no way out of their node by NICs of their own (`scope` scale-out) or to their node-mates
    (scale-up); `slowed` ones keep some, the worst of them the share `least_share` of its bandwidth (1.0: none).
    """

    what: str
    example: str
    count: int
    scope: Literal["scale-out", "scale-up"]
    cut_off: int
    slowed: int
    least_share: float


class Structure:
    """Heights, neighbours and places of a fabric's vertices, found once; capacities in bytes per second one way."""

    def __init__(self, topology: Topology) -> None:
        self.kinds = {vertex.name: vertex.kind for vertex in topology.vertices}
        self.tiers = {vertex.name: vertex.tier for vertex in topology.vertices}
        self.nodes = {vertex.name: vertex.node for vertex in topology.vertices}
        named = ((vertex.name, vertex.plane) for vertex in topology.vertices)
        self.planes = {name: str(plane) for name, plane in named if plane is not None}
        self.capacity: Rows = {vertex.name: {} for vertex in topology.vertices}
        for link in topology.links:
            row = self.capacity[link.source]
            row[link.target] = row.get(link.target, 0) + link.capacity_bytes_per_s

    @cached_property
    def enclosed(self) -> frozenset[str]:
        """The scale-up domains: vertices with nothing but devices of one node around them, where others exist."""
        inner = frozenset(
            name
            for name, row in self.capacity.items()
            if self.kinds[name] in SWITCHES
            and all(self.kinds[near] in ENDS for near in row)
            and len({self.nodes[near] for near in row}) <= 1
        )
        outward = any(kind in PASSED or (kind in SWITCHES and name not in inner) for name, kind in self.kinds.items())
        return inner if outward else frozenset()

    @cached_property
    def heights(self) -> dict[str, int]:
        """Links up from the nearest device, or host where no device reaches, scale-up domains left out."""
        heights = {name: 0 for name, kind in self.kinds.items() if kind in ENDS}
        for kind in ENDS:  # devices first: a host's memory stands beside the way out of the devices, not below it
            front = [name for name in heights if self.kinds[name] == kind]
            while front:
                above = []
                for name in front:
                    for near in self.capacity[name]:
                        if near not in heights and near not in self.enclosed:
                            heights[near] = heights[name] + 1
                            above.append(near)
                front = above
        return heights

    @cached_property
    def up(self) -> Rows:
        """What each vertex climbs to, with the capacity there; equals for a switch that only has those."""
        rows: Rows = {}
        for name, height in self.heights.items():
            near = {other: size for other, size in self.capacity[name].items() if other in self.heights}
            rows[name] = {other: size for other, size in near.items() if self.heights[other] > height}
            if not rows[name] and any(self.kinds[other] not in SWITCHES for other in near):
                rows[name] = {other: size for other, size in near.items() if self.heights[other] == height}
        return rows

    def place(self, end: str) -> tuple[str, ...]:
        """Return the first switches that a device hangs from (or what else it touches): equal for devices alike."""
        found: list[str] = []
        front = [end]
        while front:
            above = [
                near for name in front for near in self.capacity[name] if self.heights.get(near, 0) > self.heights[name]
            ]
            found += [near for near in above if self.kinds[near] not in PASSED]
            front = [near for near in above if self.kinds[near] in PASSED]
        return (self.tiers[end], *sorted(found or self.capacity[end]))

    def oversubscription(self) -> dict[str, float]:
        """Return, per tier of switches with cables down and up, the worst down:up capacity of one of its switches."""
        worst: dict[str, float] = {}
        for name, height in self.heights.items():
            if self.kinds[name] not in SWITCHES:
                continue
            row = self.capacity[name]
            up = sum(size for near, size in row.items() if self.heights.get(near, 0) > height)
            down = sum(size for near, size in row.items() if near in self.heights and self.heights[near] < height)
            if up and down:
                worst[self.tiers[name]] = max(worst.get(self.tiers[name], 0.0), down / up)
        return worst

    @cached_property
    def under(self) -> dict[str, list[str]]:
        """The vertices that climb to each one, and its equals that climb nowhere else."""
        rows: dict[str, list[str]] = defaultdict(list)
        for name, row in self.up.items():
            for above in row:
                rows[above].append(name)
        return rows

    def shares(self, lost: frozenset[str]) -> dict[str, float]:
        """Return, for each end that the loss of the vertices `lost` touches, the share of its way out that is left."""
        left = dict.fromkeys(sorted(lost), 0.0)
        touched: dict[int, dict[str, None]] = defaultdict(dict)
        for name in left:
            for near in self.under[name]:
                touched[self.heights[near]][near] = None
        for height in range(max(touched, default=-1), -1, -1):
            for name in touched[height]:
                if name in lost:
                    continue
                left[name] = self._share(name, lost, left)
                for near in self.under[name]:
                    if self.heights[near] < height:
                        touched[self.heights[near]][near] = None
        return {name: share for name, share in left.items() if self.kinds[name] in ENDS}

    def _share(self, name: str, lost: frozenset[str], left: dict[str, float]) -> float:
        row, height = self.up[name], self.heights[name]
        kept = sum(
            size * (left.get(near, 1.0) if self.heights[near] > height else float(near not in lost))
            for near, size in row.items()
        )
        return kept / sum(row.values())


def failure_domains(topology: Topology, structure: Structure) -> tuple[FailureDomain, ...]:
    """Return what the loss of one NIC, of one switch of each tier and of one plane does, from the devices up.

    Of things of one tier that differ, the worst counts: the one with the most capacity of each plane is looked at.
    """
    tiers: dict[str, dict[str | None, list[str]]] = defaultdict(lambda: defaultdict(list))
    planes: dict[str, set[str]] = defaultdict(set)
    for vertex in topology.vertices:
        if vertex.kind not in ENDS:
            tiers[vertex.tier][vertex.plane].append(vertex.name)
        if vertex.kind in SWITCHES and vertex.plane is not None:
            planes[vertex.plane].add(vertex.name)
    found = []
    for tier, lanes in tiers.items():
        count = sum(map(len, lanes.values()))
        largest = [max(names, key=lambda name: sum(structure.capacity[name].values())) for names in lanes.values()]
        if largest[0] in structure.enclosed:
            mates = len(structure.capacity[largest[0]])
            found.append(FailureDomain(tier, largest[0], count, "scale-up", mates, 0, 1.0))
        else:
            found.append(_worst(_domain(tier, name, count, structure.shares(frozenset((name,)))) for name in largest))
    found.sort(key=lambda domain: structure.heights.get(domain.example, 0))
    if planes:
        each = ((plane, structure.shares(frozenset(members))) for plane, members in planes.items())
        found.append(_worst(_domain("plane", plane, len(planes), shares) for plane, shares in each))
    return tuple(found)


def _worst(domains: Iterable[FailureDomain]) -> FailureDomain:
    return max(domains, key=lambda domain: (domain.cut_off, 1 - domain.least_share, domain.slowed))


def _domain(what: str, example: str, count: int, shares: dict[str, float]) -> FailureDomain:
    slowed = [share for share in shares.values() if 0.0 < share < 1.0]
    cut_off = sum(share == 0.0 for share in shares.values())
    return FailureDomain(what, example, count, "scale-out", cut_off, len(slowed), min(slowed, default=1.0))
