"""What a fabric consists of and what its structure promises: counts, cables, bisection, diameter; and its own checks.

Source: counts are read from the built fabric, never from a formula, so that they hold for partly filled ones too.
"""

from collections import Counter
from dataclasses import dataclass

from simulator.errors import InvariantError
from simulator.topology.graph import Path, Topology, climb_height

FABRIC_KINDS = ("nic", "switch")


@dataclass(frozen=True, slots=True)
class BillOfMaterials:
    """Counts of one fabric; tiers in order from the devices up.

    `cables` counts each two-way cable or on-board connection once; `transceivers` is two per cable between NICs and
    switches (copper cables would need none); `oversubscription` is the down:up capacity of the fullest leaf, 1.0 where
    there is nothing to climb to; `bisection_bytes_per_s` is one way, from the first half of the nodes to the others;
    `diameter_hops` counts links on the longest shortest path between two devices.
    """

    devices: int
    nodes: int
    nics: int
    switches: dict[str, int]
    cables: dict[str, int]
    transceivers: int
    oversubscription: float
    bisection_bytes_per_s: int
    diameter_hops: int


def bill_of_materials(topology: Topology) -> BillOfMaterials:
    """Count what `topology` is made of."""
    kinds = Counter(vertex.kind for vertex in topology.vertices)
    kind_of = {vertex.name: vertex.kind for vertex in topology.vertices}
    switches = Counter(vertex.tier for vertex in topology.vertices if vertex.kind in ("switch", "nvswitch"))
    cables = Counter(link.tier for link in topology.links)
    ends = ((kind_of[link.source], kind_of[link.target]) for link in topology.links)
    optical = sum(lower in FABRIC_KINDS and upper in FABRIC_KINDS for lower, upper in ends) // 2
    return BillOfMaterials(
        devices=len(topology.sites),
        nodes=len({site.node for site in topology.sites}),
        nics=kinds["nic"],
        switches=dict(switches),
        cables={tier: count // 2 for tier, count in cables.items()},
        transceivers=2 * optical,
        oversubscription=topology.oversubscription,
        bisection_bytes_per_s=topology.bisection_bytes_per_s,
        diameter_hops=_diameter_hops(topology),
    )


def _diameter_hops(topology: Topology) -> int:
    if len(topology.sites) < 2:
        return 0
    # every family here looks the same from each of its leaves, so the first device sees the longest distance
    first, home = topology.sites[0], topology.access[0]
    others = {topology.access[site.index].switch for site in topology.sites if site.node != first.node}
    if not others:
        return 2
    return max(2 * (len(home.outward) + climb_height(topology.climbs, home.switch, switch)) for switch in others)


def check(topology: Topology) -> None:
    """Verify the structure: dense indices, cables whole, all devices connected, routes unbroken and loop-free.

    Routes are tried from the first device to one device behind every switch, and around the ring of all devices.
    Raises InvariantError that names the first fault.
    """
    import networkx

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
    _require(networkx.is_strongly_connected(topology.graph), "some vertex cannot reach some other")
    behind = {access.switch: index for index, access in enumerate(topology.access)}
    ring = [(index, (index + 1) % len(topology.sites)) for index in range(len(topology.sites))]
    for source, target in [(0, index) for index in behind.values()] + ring:
        for path in topology.paths(source, target):
            _check_path(topology, source, target, path)


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
