"""Folded Clos fabrics: a two-tier leaf-spine with rail or node attachment and a taper, and the k-ary fat-tree.

Source: Clos 1953; Al-Fares, Loukissas, Vahdat, SIGCOMM 2008 (k-ary fat-tree); rails as in NVIDIA's DGX SuperPOD.
"""

from dataclasses import dataclass, field
from fractions import Fraction
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from simulator.strict import Bandwidth, Count, Duration, Strict
from simulator.topology.graph import Access, Climb, Link, Site, Topology, Vertex


class Wire(Strict):
    """One kind of connection, each way."""

    bandwidth: Bandwidth
    """Bandwidth one way."""
    latency: Duration
    """Time of flight one way, without any switch."""


class Switch(Strict):
    """One kind of switch."""

    radix: Annotated[int, Field(ge=2)]
    """Ports, each of the speed of `link`."""
    latency: Duration
    """Time from port to port, paid on the link that enters the switch."""


class NodeParameters(Strict):
    """What every family here shares: nodes of accelerators, each with its NIC, and the cables and switches between."""

    device: str
    """Name of the accelerator's data sheet."""
    devices_per_node: Count = 8
    """Accelerators in a node; each has a NIC of its own, and all of a node share one NVLink domain."""
    nvlink: Wire
    """Device to NVLink domain: the bandwidth of one device, and half the way from device to device."""
    pcie: Wire
    """Device to its NIC."""
    link: Wire
    """One cable of the fabric: NIC to leaf, and switch to switch."""
    switch: Switch
    """Every switch of the fabric."""


class ClosParameters(NodeParameters):
    """A two-tier leaf-spine Clos.

    A leaf with d NICs below it has ceil(d / taper) cables up, spread evenly over all spines, of which there are as few
    as the radix permits. So the real oversubscription is never more than `taper`, and is in the bill of materials.
    One leaf that holds every NIC needs no spine.
    """

    nodes: Count
    """Nodes in the cluster."""
    taper: Annotated[float, Field(ge=1)] = 1.0
    """Down:up capacity of a leaf that must not be exceeded; 1 is non-blocking."""
    attachment: Literal["rail", "node"] = "rail"
    """`rail`: leaf r of a group takes NIC r of each node of the group; `node`: a leaf takes all NICs of its nodes."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        clos_shape(self)
        return self


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


@dataclass(frozen=True, slots=True)
class ClosShape:
    """The integers of a leaf-spine; `down` counts the NICs under a full leaf, `uplinks` the cables up from any leaf."""

    nodes_per_group: int
    leaves_per_group: int
    groups: int
    down: int
    uplinks: int
    spines: int

    @property
    def leaves(self) -> int:
        """Leaves of all groups."""
        return self.groups * self.leaves_per_group


def clos_shape(parameters: ClosParameters) -> ClosShape:
    """Return the leaf-spine that holds the nodes in the fewest groups, evenly filled, with the fewest spines.

    Raises ValueError that names the largest number of nodes that fits.
    """
    per_node, radix, nodes = parameters.devices_per_node, parameters.switch.radix, parameters.nodes
    leaves_per_group, nics_per_leaf = (per_node, 1) if parameters.attachment == "rail" else (1, per_node)
    if leaves_per_group == 1 and nodes * nics_per_leaf <= radix:
        return ClosShape(nodes, 1, 1, nodes * nics_per_leaf, 0, 0)
    taper = Fraction(str(parameters.taper))
    most_up = max(1, int(radix / (1 + taper)))
    most_down = min(radix - most_up, int(most_up * taper))
    nodes_per_group = most_down // nics_per_leaf
    largest = nodes_per_group * (radix // leaves_per_group)
    if leaves_per_group == 1:
        largest = max(largest, radix // nics_per_leaf)
    if nodes > largest:
        what = f"{nodes} nodes do not fit two tiers of {radix}-port switches at taper {parameters.taper:g}"
        raise ValueError(f"{what} with {parameters.attachment} attachment; the largest that fits is {largest} nodes")
    groups = -(-nodes // nodes_per_group)
    nodes_per_group = -(-nodes // groups)
    down = nodes_per_group * nics_per_leaf
    uplinks = -int(-down // taper)
    leaves = groups * leaves_per_group
    spines = next(s for s in range(1, uplinks + 1) if uplinks % s == 0 and leaves * (uplinks // s) <= radix)
    return ClosShape(nodes_per_group, leaves_per_group, groups, down, uplinks, spines)


def build_clos(name: str, parameters: ClosParameters) -> Topology:
    """Build a two-tier leaf-spine; devices are numbered node by node, links in the order in which they are wired."""
    shape = clos_shape(parameters)
    wiring = _Wiring(parameters)
    leaves = [
        wiring.switch(f"leaf{group}.{rail}" if shape.leaves_per_group > 1 else f"leaf{group}", "leaf", group, rail)
        for group in range(shape.groups)
        for rail in range(shape.leaves_per_group)
    ]
    below = [0] * len(leaves)
    halves = [[0, 0] for _ in leaves]
    for node in range(parameters.nodes):
        first = node // shape.nodes_per_group * shape.leaves_per_group
        nic_leaves = [first + slot % shape.leaves_per_group for slot in range(parameters.devices_per_node)]
        wiring.node(node, [leaves[leaf] for leaf in nic_leaves], "nic-leaf")
        for index in nic_leaves:
            below[index] += 1
            halves[index][node >= parameters.nodes // 2] += 1
    spines = [wiring.switch(f"spine{index}", "spine", None, index) for index in range(shape.spines)]
    for leaf in leaves:
        for spine in spines:
            for _ in range(shape.uplinks // shape.spines):
                wiring.climb(leaf, spine, "leaf-spine")
    oversubscription = max(below) / shape.uplinks if shape.uplinks else 1.0
    return wiring.topology(name, _bisection(parameters, halves, shape.uplinks), oversubscription)


def build_fat_tree(name: str, parameters: FatTreeParameters) -> Topology:
    """Build a whole k-ary fat-tree; NIC i hangs below edge switch i // (k/2), nodes take NICs in order."""
    half = parameters.switch.radix // 2
    wiring = _Wiring(parameters)
    pods = range(2 * half)
    edges = [wiring.switch(f"edge{pod}.{i}", "edge", pod, i) for pod in pods for i in range(half)]
    for node in range(parameters.nodes):
        first = node * parameters.devices_per_node
        below = [edges[nic // half] for nic in range(first, first + parameters.devices_per_node)]
        wiring.node(node, below, "nic-edge")
    aggregations = [
        [wiring.switch(f"aggregation{pod}.{i}", "aggregation", pod, i) for i in range(half)] for pod in pods
    ]
    cores = [
        [wiring.switch(f"core{row}.{i}", "core", None, row * half + i) for i in range(half)] for row in range(half)
    ]
    for pod in pods:
        for edge in edges[pod * half : (pod + 1) * half]:
            for aggregation in aggregations[pod]:
                wiring.climb(edge, aggregation, "edge-aggregation")
        for aggregation, row in zip(aggregations[pod], cores, strict=True):
            for core in row:
                wiring.climb(aggregation, core, "aggregation-core")
    # non-blocking: the NICs of the smaller half are the narrowest cut
    nics = parameters.nodes // 2 * parameters.devices_per_node
    return wiring.topology(name, nics * _nic_bytes_per_s(parameters), 1.0)


def _nic_bytes_per_s(parameters: NodeParameters) -> int:
    return min(parameters.link.bandwidth, parameters.pcie.bandwidth)


def _bisection(parameters: ClosParameters, halves: list[list[int]], uplinks: int) -> int:
    """Return the least cut between the first half of the nodes and the rest.

    A leaf on the sending side cuts its links down to the other half, one on the receiving side the links up to it;
    with `a` of L leaves on the sending side, each spine goes to the cheaper side, which cuts min(a, L - a) uplinks.
    """
    nic, link = _nic_bytes_per_s(parameters), parameters.link.bandwidth
    cost = sum(first for first, _ in halves) * nic
    moves = sorted((second - first) * nic for first, second in halves)
    least = cost
    for sending, move in enumerate(moves, start=1):
        cost += move
        least = min(least, cost + min(sending, len(halves) - sending) * uplinks * link)
    return least


@dataclass(slots=True)
class _Wiring:
    parameters: NodeParameters
    vertices: list[Vertex] = field(default_factory=list)
    links: list[Link] = field(default_factory=list)
    sites: list[Site] = field(default_factory=list)
    local: list[Climb] = field(default_factory=list)
    access: list[Access] = field(default_factory=list)
    climbs: dict[str, list[Climb]] = field(default_factory=dict)

    def switch(self, name: str, tier: str, group: int | None, slot: int) -> str:
        self.vertices.append(Vertex(name, "switch", tier, slot=slot, group=group))
        return name

    def cable(self, lower: str, upper: str, wire: Wire, entry_ns: int, tier: str) -> tuple[int, int]:
        """Wire one cable; `entry_ns` is what entering a switch adds: always at `upper`, at `lower` if it is one."""
        up = len(self.links)
        into_lower_ns = entry_ns if lower in self.climbs else 0
        self.links.append(Link(up, lower, upper, wire.bandwidth, wire.latency + entry_ns, tier))
        self.links.append(Link(up + 1, upper, lower, wire.bandwidth, wire.latency + into_lower_ns, tier))
        return up, up + 1

    def climb(self, lower: str, upper: str, tier: str) -> None:
        above = self.climbs.setdefault(lower, [])
        up, down = self.cable(lower, upper, self.parameters.link, self.parameters.switch.latency, tier)
        above.append(Climb(up, upper, down))

    def node(self, node: int, leaves: list[str], tier: str) -> None:
        """Add one node whose NIC in slot s hangs below `leaves[s]`."""
        parameters = self.parameters
        domain = f"node{node}/nvlink"
        if len(leaves) > 1:
            self.vertices.append(Vertex(domain, "nvswitch", "nvlink", node=node))
        for slot, leaf in enumerate(leaves):
            device, nic = f"node{node}/device{slot}", f"node{node}/nic{slot}"
            self.vertices.append(Vertex(device, "device", "device", node, slot))
            self.vertices.append(Vertex(nic, "nic", "nic", node, slot))
            self.sites.append(Site(len(self.sites), device, node, slot))
            if len(leaves) > 1:
                up, down = self.cable(device, domain, parameters.nvlink, 0, "nvlink")
                self.local.append(Climb(up, domain, down))
            out, back = self.cable(device, nic, parameters.pcie, 0, "pcie")
            up, down = self.cable(nic, leaf, parameters.link, parameters.switch.latency, tier)
            self.access.append(Access(leaf, (out, up), (down, back)))

    def topology(self, name: str, bisection_bytes_per_s: int, oversubscription: float) -> Topology:
        return Topology(
            name=name,
            device=self.parameters.device,
            vertices=tuple(self.vertices),
            links=tuple(self.links),
            sites=tuple(self.sites),
            local=tuple(self.local),
            access=tuple(self.access),
            climbs={switch: tuple(above) for switch, above in self.climbs.items()},
            bisection_bytes_per_s=bisection_bytes_per_s,
            oversubscription=oversubscription,
        )
