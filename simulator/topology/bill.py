"""What a fabric consists of and what its structure promises: counts, cables, bisection, routes; and its own checks.

Source: counts are read from the built fabric, never from a formula, so that they hold for partly filled ones too.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from simulator.errors import InputError, InvariantError
from simulator.topology.failure import ENDS, SWITCHES, FailureDomain, Structure, failure_domains
from simulator.topology.graph import Path, Topology

ALL_PAIRS = 64  # devices up to which routes are looked at from every device
RING = 2048  # devices up to which each is tried with its neighbour
CHECKED_PATHS = 65_536  # of all pairs, and at most 64 of one, evenly spread: a large torus has more than can be listed


@dataclass(frozen=True, slots=True)
class Reach:
    """The devices at one distance from the first device, and how many equal-cost paths lead from each of them to it."""

    hops: int
    devices: int
    latency_ns: int
    least_paths: int
    most_paths: int


@dataclass(frozen=True, slots=True)
class BillOfMaterials:
    """Counts of one fabric; tiers in order from the devices up.

    `accelerators` counts devices by their data sheets, `device_kinds` (CPUs that are endpoints too) and `switches` by
    tier (`scale_up`: NVLink switches and domains among them), `planes` the switches of each plane by tier (empty where
    no switch belongs to one).
    `cables` counts each two-way cable or on-board connection once, `cable_bytes_per_s` is one way, summed;
    `inter_switch_links` are those between two switches of the fabric, `nic_links` those from a NIC to one;
    `transceivers` is two per cable of both sorts (copper needs none).

    `oversubscription` is the down:up capacity of the fullest leaf, 1.0 where there is nothing to climb to, and
    `tier_oversubscription` the same of each tier that has cables up and down; `bisection_bytes_per_s` is one way,
    from the first half of the nodes to the others. `diameter_hops` counts links on the longest route between two
    devices, seen from every device of a fabric of at most 64, else from the first device of each kind. `routes` are
    those of the first device, to `unreachable` devices there is none. `typical_paths` is the number of equal-cost
    paths to the median device of another node, `farthest_paths` to those farthest away (the least of them).
    """

    devices: int
    accelerators: dict[str, int]
    nodes: int
    nics: int
    device_kinds: dict[str, int]
    switches: dict[str, int]
    scale_up: dict[str, int]
    planes: dict[str, dict[str, int]]
    cables: dict[str, int]
    cable_bytes_per_s: dict[str, int]
    inter_switch_links: int
    nic_links: int
    transceivers: int
    oversubscription: float
    tier_oversubscription: dict[str, float]
    bisection_bytes_per_s: int
    diameter_hops: int
    routes: tuple[Reach, ...]
    unreachable: int
    typical_paths: int
    farthest_paths: int
    failures: tuple[FailureDomain, ...]


def bill_of_materials(topology: Topology) -> BillOfMaterials:
    """Count what `topology` is made of, in time that grows with its links and the different places of its devices."""
    structure = Structure(topology)
    kinds = Counter(vertex.kind for vertex in topology.vertices)
    switches = [vertex for vertex in topology.vertices if vertex.kind in SWITCHES]
    planes: dict[str, Counter[str]] = defaultdict(Counter)
    for vertex in switches:
        if (plane := structure.planes.get(vertex.name)) is not None:
            planes[plane][vertex.tier] += 1
    kind_of = structure.kinds
    ends = Counter(tuple(sorted((kind_of[link.source], kind_of[link.target]))) for link in topology.links)
    between = ends["switch", "switch"] // 2
    attached = ends["nic", "switch"] // 2
    width: Counter[str] = Counter()
    for link in topology.links:
        width[link.tier] += link.capacity_bytes_per_s
    first = _reaches(topology, structure, 0)
    far = max((reach.hops for reach in first), default=0)
    return BillOfMaterials(
        devices=len(topology.sites),
        accelerators=dict(topology.kinds),
        nodes=len({site.node for site in topology.sites}),
        nics=kinds["nic"],
        device_kinds=dict(Counter(vertex.tier for vertex in topology.vertices if vertex.kind in ENDS)),
        switches=dict(Counter(vertex.tier for vertex in switches)),
        scale_up=dict(Counter(vertex.tier for vertex in switches if vertex.kind == "nvswitch")),
        planes={plane: dict(tiers) for plane, tiers in planes.items()},
        cables={tier: count // 2 for tier, count in Counter(link.tier for link in topology.links).items()},
        cable_bytes_per_s={tier: capacity // 2 for tier, capacity in width.items()},
        inter_switch_links=between,
        nic_links=attached,
        transceivers=2 * (between + attached),
        oversubscription=topology.oversubscription,
        tier_oversubscription=structure.oversubscription(),
        bisection_bytes_per_s=topology.bisection_bytes_per_s,
        diameter_hops=max(far, _farthest_of_others(topology, structure)),
        routes=_by_hops(first),
        unreachable=len(topology.sites) - 1 - sum(reach.devices for reach in first),
        typical_paths=_median_paths(topology, first),
        farthest_paths=min((reach.least_paths for reach in first if reach.hops == far), default=1),
        failures=failure_domains(topology, structure),
    )


def _reaches(topology: Topology, structure: Structure, source: int) -> list[Reach]:
    """Return a Reach per place that `source` has a route to; devices of one place in other nodes are alike to it."""
    home = topology.sites[source].node
    places: dict[object, list[int]] = {}
    for site in topology.sites:
        if site.index != source:  # node-mates may be joined each in its own way
            place = site.index if site.node == home else structure.place(site.name)
            places.setdefault(place, []).append(site.index)
    reaches = []
    for members in places.values():
        paths = _routes(topology, members[0], source)  # to one target: a searched graph is searched once
        if paths:
            latency_ns = topology.path_latency_ns(paths[0])
            reaches.append(Reach(len(paths[0]), len(members), latency_ns, len(paths), len(paths)))
    return reaches


def _routes(topology: Topology, source: int, target: int) -> Sequence[Path]:
    try:
        return topology.paths(source, target)
    except (InputError, LookupError):  # planes without a relay do not join every pair
        return ()


def _by_hops(reaches: list[Reach]) -> tuple[Reach, ...]:
    distances: dict[tuple[int, int], list[Reach]] = {}
    for reach in reaches:
        distances.setdefault((reach.hops, reach.latency_ns), []).append(reach)
    return tuple(
        Reach(
            hops,
            sum(reach.devices for reach in group),
            latency_ns,
            min(reach.least_paths for reach in group),
            max(reach.most_paths for reach in group),
        )
        for (hops, latency_ns), group in sorted(distances.items())
    )


def _median_paths(topology: Topology, reaches: list[Reach]) -> int:
    """Return the equal-cost paths to the median device by distance and then by paths, node-mates left out."""
    home = topology.sites[0].node
    mates = sum(site.node == home for site in topology.sites) - 1
    ordered = sorted(reaches, key=lambda reach: (reach.hops, reach.least_paths))
    # node-mates are the nearest; where there is nothing else, they are what is typical
    total = sum(reach.devices for reach in ordered)
    place = (mates + total) // 2 if total > mates else total // 2
    for reach in ordered:
        if place < reach.devices:
            return reach.least_paths
        place -= reach.devices
    return ordered[-1].least_paths if ordered else 1


def _farthest_of_others(topology: Topology, structure: Structure) -> int:
    if len(topology.sites) <= ALL_PAIRS:
        sources = {site.index for site in topology.sites}
    else:
        kinds: dict[str, int] = {}
        for site in topology.sites:
            kinds.setdefault(structure.tiers[site.name], site.index)
        sources = set(kinds.values())
    found = (reach.hops for source in sorted(sources - {0}) for reach in _reaches(topology, structure, source))
    return max(found, default=0)


def check(topology: Topology) -> None:
    """Verify the structure: dense indices, cables whole, all devices connected, routes unbroken and loop-free.

    Routes are tried to the first device from one device of every place, and around the ring of all devices (of more
    than 2,048 around 32 of them).
    Raises InvariantError that names the first fault.
    """
    names = {vertex.name for vertex in topology.vertices}
    for index, link in enumerate(topology.links):
        _require(link.index == index, f"link {index} is numbered {link.index}")
        _require(link.source in names and link.target in names, f"link {index} has an end that is no vertex")
        _require(
            link.capacity_bytes_per_s > 0 and link.latency_ns >= 0,
            f"link {index} has no capacity or a negative latency",
        )
    one_way = Counter((link.source, link.target, link.capacity_bytes_per_s) for link in topology.links)
    for (lower, upper, capacity), count in one_way.items():
        _require(one_way[upper, lower, capacity] == count, f"{lower} to {upper} has no equal way back")
    for index, site in enumerate(topology.sites):
        _require(site.index == index and site.name in names, f"device {index} is not where its index says")
    _require(_connected(topology), "some vertex cannot reach some other")
    structure = Structure(topology)
    places = {structure.place(site.name): site.index for site in topology.sites}
    step = max(1, len(topology.sites) // 32) if len(topology.sites) > RING else 1
    ring = [(index, (index + 1) % len(topology.sites)) for index in range(0, len(topology.sites), step)]
    most = max(1, min(64, CHECKED_PATHS // len(places)))
    for source, target in [(index, 0) for index in places.values()] + ring:
        paths = _routes(topology, source, target)
        for index in range(0, len(paths), -(-len(paths) // most) or 1):
            _check_path(topology, source, target, paths[index])


def _connected(topology: Topology) -> bool:
    """Return whether all vertices hang together; every cable goes both ways, so one walk tells."""
    neighbours: dict[str, list[str]] = defaultdict(list)
    for link in topology.links:
        neighbours[link.source].append(link.target)
    seen = {topology.vertices[0].name}
    waiting = list(seen)
    while waiting:
        for near in neighbours[waiting.pop()]:
            if near not in seen:
                seen.add(near)
                waiting.append(near)
    return len(seen) == len(topology.vertices)


def _check_path(topology: Topology, source: int, target: int, path: Path) -> None:
    links = [topology.links[index] for index in path]
    visited = [topology.sites[source].name, *(link.target for link in links)]
    name = f"path {path} from device {source} to {target}"
    _require(visited[-1] == topology.sites[target].name, f"{name} ends elsewhere")
    _require([link.source for link in links] == visited[:-1], f"{name} is broken")
    _require(len(set(visited)) == len(visited), f"{name} has a loop")


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise InvariantError(what)
