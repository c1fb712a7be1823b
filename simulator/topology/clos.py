"""Folded Clos fabrics: leaves, spines and cores with rail or node attachment and tapers, and the k-ary fat-tree.

Source: Clos 1953; Al-Fares, Loukissas, Vahdat, SIGCOMM 2008 (k-ary fat-tree); rails as in NVIDIA's DGX SuperPOD; split
leaf ports as in MegaScale (NSDI 2024); two zones as in Fire-Flyer (SC 2024).
"""

from collections.abc import Sequence
from fractions import Fraction
from functools import partial
from typing import Annotated, ClassVar, Literal, Protocol, Self

from pydantic import Field, model_validator

from simulator.strict import Count
from simulator.topology.folded import ClosShape, Demand, add_leaves, add_spines, bisection, clos_of
from simulator.topology.graph import Topology
from simulator.topology.paths import Path, UpDown
from simulator.topology.wiring import FabricParameters, NodeParameters, Wire, Wiring

Taper = Annotated[float, Field(ge=1)]


class AddNode(Protocol):
    """Adds the node of a number, whose NIC i hangs below the switch and in the lane of `leaves[i]`."""

    def __call__(self, node: int, *, leaves: Sequence[tuple[str, str]]) -> None:
        """Add it."""


class ClosLayout(FabricParameters):
    """A folded Clos of at most `tiers` tiers; the fewest that hold the nodes are built.

    A leaf with d NICs below it has ceil(d / split / taper) cables up, spread evenly over all spines of its pod, of
    which there are as few as the radix permits; likewise spines below cores. So the real oversubscription is never more
    than the tapers, and is in the bill of materials. One leaf that holds every NIC needs no spine.
    """

    zones: ClassVar[int] = 1
    nodes: Count
    """Nodes in the cluster."""
    nics_per_node: Count | None = None
    """NICs of a node, a multiple or a divisor of its devices; one per device if left out."""
    tiers: Literal[1, 2, 3] = 2
    """Tiers of switches at most: leaves, spines, cores."""
    taper: Taper = 1.0
    """Down:up capacity of a leaf that must not be exceeded; 1 is non-blocking."""
    spine_taper: Taper = 1.0
    """The same of a spine below cores."""
    split: Count = 1
    """NIC cables that share one leaf port, which then has the speed of all of them, as has a cable between switches."""
    attachment: Literal["rail", "node"] = "rail"
    """`rail`: leaf r of a group takes NIC r of each node of the group; `node`: a leaf takes all NICs of its nodes."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        devices, nics = self.devices_per_node, self.nics
        if nics % devices and devices % nics:
            raise ValueError(f"{nics} NICs per node are neither a multiple nor a divisor of its {devices} devices")
        clos_shape(self)
        return self

    @property
    def nics(self) -> int:
        """NICs of a node."""
        return self.nics_per_node or self.devices_per_node

    @property
    def across(self) -> int:
        """Ports of each topmost switch that lead to another zone."""
        return 0

    @property
    def trunk(self) -> Wire:
        """One cable between two switches."""
        return Wire.model_construct(bandwidth=self.link.bandwidth * self.split, latency=self.link.latency)


class ClosParameters(ClosLayout, NodeParameters):
    """A folded Clos of at most `tiers` tiers above NVLink nodes; the fewest that hold the nodes are built."""

    @property
    def nic_bytes_per_s(self) -> int:
        """What one NIC can carry: the lesser of its cable and of its ways from the devices that share it."""
        return min(self.link.bandwidth, self.pcie.bandwidth * max(1, self.devices_per_node // self.nics))


class ZoneLayout(ClosLayout):
    """Two equal two-tier Clos zones whose i-th spines are joined by a few cables: `nodes` counts those of both.

    Zones of one leaf, which need no spine, are joined leaf to leaf.
    """

    zones: ClassVar[int] = 2
    zone_links: Count
    """Cables between the i-th spine of one zone and the i-th of the other."""

    @property
    def across(self) -> int:
        """Ports of each topmost switch that lead to the other zone."""
        return self.zone_links

    @model_validator(mode="after")
    def _has_two_zones(self) -> Self:
        if self.nodes % 2:
            raise ValueError(f"two zones need an even number of nodes, found {self.nodes}")
        if self.tiers != 2:
            raise ValueError("each zone has two tiers; found tiers other than 2")
        return self


class TwoZoneParameters(ZoneLayout, ClosParameters):
    """Two equal two-tier Clos zones of NVLink nodes, their i-th spines joined by a few cables."""


class FatTreeParameters(NodeParameters):
    """A k-ary fat-tree, k the switch radix: k pods of k/2 edge and k/2 aggregation switches, k²/4 cores, k³/4 NICs."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        k = self.switch.radix
        if k % 2:
            raise ValueError(f"a k-ary fat-tree needs an even radix, found {k}")
        if k**3 // 4 % self.devices_per_node:
            raise ValueError(f"{self.devices_per_node} devices per node do not divide the {k**3 // 4} NICs of k = {k}")
        return self

    @property
    def nodes(self) -> int:
        """Nodes of the whole tree."""
        return int(self.switch.radix**3 // 4 // self.devices_per_node)


def clos_shape(parameters: ClosLayout) -> ClosShape:
    """Return the Clos of the nodes (of one zone): fewest tiers and groups, evenly filled, then fewest spines.

    Raises ValueError that names the largest number of nodes that fits.
    """
    rails = parameters.attachment == "rail"
    demand = Demand(
        nodes=-(-parameters.nodes // parameters.zones),
        leaves_per_group=parameters.nics if rails else 1,
        nics_per_leaf=1 if rails else parameters.nics,
        radix=parameters.switch.radix,
        tiers=parameters.tiers,
        split=parameters.split,
        taper=Fraction(str(parameters.taper)),
        spine_taper=Fraction(str(parameters.spine_taper)),
        across=parameters.across,
        zones=parameters.zones,
    )
    try:
        return clos_of(demand)
    except ValueError as error:
        raise ValueError(str(error).format(parameters.attachment)) from None


def build_clos(name: str, parameters: ClosParameters) -> Topology:
    """Build a folded Clos; devices are numbered node by node, links in the order in which they are wired."""
    wiring, shape = Wiring(), clos_shape(parameters)
    leaves = add_leaves(wiring, shape)
    node = partial(wiring.node, parameters=parameters, tier="nic-leaf")
    halves = _add_nodes(node, parameters, shape, leaves, range(parameters.nodes), parameters.nodes // 2)
    add_spines(wiring, shape, leaves, parameters.trunk, parameters.switch.latency)
    cut = bisection(shape, halves, parameters.nic_bytes_per_s, parameters.trunk.bandwidth)
    return wiring.topology(name, parameters.device, wiring.planes(), cut, _oversubscription(parameters, shape, halves))


def build_two_zone(name: str, parameters: TwoZoneParameters) -> Topology:
    """Build two Clos zones and the cables across; paths between zones cross once, between spines of one number."""
    wiring = Wiring()
    return zones_of(name, parameters, wiring, partial(wiring.node, parameters=parameters, tier="nic-leaf"))


def zones_of(name: str, parameters: ZoneLayout, wiring: Wiring, add_node: AddNode, local: str = "nvlink") -> Topology:
    """Build two Clos zones of nodes that `add_node` adds, with the scale-up plane `local`."""
    shape, half = clos_shape(parameters), parameters.nodes // 2
    zones, halves = [], []
    for zone in range(2):
        leaves = add_leaves(wiring, shape, f"zone{zone}/")
        nodes = range(zone * half, (zone + 1) * half)
        halves += _add_nodes(add_node, parameters, shape, leaves, nodes, half)
        add_spines(wiring, shape, leaves, parameters.trunk, parameters.switch.latency, f"zone{zone}/")
        zones.append([f"zone{zone}/spine{index}" for index in range(shape.spines)] or leaves)
    peers: dict[tuple[str, str], list[Path]] = {}
    delay = parameters.switch.latency
    for left, right in zip(*zones, strict=True):
        for _ in range(parameters.zone_links):
            there, back = wiring.cable(left, right, parameters.trunk, "zone-zone", delay, delay)
            peers.setdefault((left, right), []).append((there,))
            peers.setdefault((right, left), []).append((back,))
    cut = min(
        len(zones[0]) * parameters.zone_links * parameters.trunk.bandwidth,
        shape.leaves * (shape.uplinks or parameters.zone_links) * parameters.trunk.bandwidth,
        half * parameters.nics * parameters.nic_bytes_per_s,
    )
    planes = wiring.planes(local=local, between=UpDown(wiring.climbs, peers))
    return wiring.topology(name, parameters.device, planes, cut, _oversubscription(parameters, shape, halves))


def _add_nodes(
    add_node: AddNode, parameters: ClosLayout, shape: ClosShape, leaves: list[str], nodes: range, half: int
) -> list[tuple[int, int]]:
    """Add nodes below their leaves; return each leaf's NICs of nodes numbered below `half` and of the others."""
    below = [[0, 0] for _ in leaves]
    for node in nodes:
        first = (node - nodes.start) // shape.nodes_per_group * shape.leaves_per_group
        nic_leaves = [first + nic % shape.leaves_per_group for nic in range(parameters.nics)]
        add_node(node, leaves=[(leaves[leaf], "") for leaf in nic_leaves])
        for leaf in nic_leaves:
            below[leaf][node >= half] += 1
    return [(first, second) for first, second in below]


def _oversubscription(parameters: ClosLayout, shape: ClosShape, halves: list[tuple[int, int]]) -> float:
    fullest = max(first + second for first, second in halves)
    return fullest / (shape.uplinks * parameters.split) if shape.uplinks else 1.0


def build_fat_tree(name: str, parameters: FatTreeParameters) -> Topology:
    """Build a whole k-ary fat-tree; NIC i hangs below edge switch i // (k/2), nodes take NICs in order."""
    half = parameters.switch.radix // 2
    wiring, delay = Wiring(), parameters.switch.latency
    pods = range(2 * half)
    edges = [wiring.vertex(f"edge{pod}.{i}", "switch", "edge", slot=i, group=pod) for pod in pods for i in range(half)]
    for node in range(parameters.nodes):
        first = node * parameters.devices_per_node
        below = [(edges[nic // half], "") for nic in range(first, first + parameters.devices_per_node)]
        wiring.node(node, parameters, below, "nic-edge")
    aggregations = [
        [wiring.vertex(f"aggregation{pod}.{i}", "switch", "aggregation", slot=i, group=pod) for i in range(half)]
        for pod in pods
    ]
    cores = [
        [wiring.vertex(f"core{row}.{i}", "switch", "core", slot=row * half + i) for i in range(half)]
        for row in range(half)
    ]
    for pod in pods:
        for edge in edges[pod * half : (pod + 1) * half]:
            for aggregation in aggregations[pod]:
                wiring.climb(edge, aggregation, parameters.link, delay, "edge-aggregation")
        for aggregation, row in zip(aggregations[pod], cores, strict=True):
            for core in row:
                wiring.climb(aggregation, core, parameters.link, delay, "aggregation-core")
    # non-blocking: the NICs of the smaller half are the narrowest cut
    nics = parameters.nodes // 2 * parameters.devices_per_node
    return wiring.topology(name, parameters.device, wiring.planes(), nics * parameters.nic_bytes_per_s)
