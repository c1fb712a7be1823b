"""Putting a fabric together cable by cable: what every family's builder shares.

Model: vertices and links are numbered in the order in which they are wired; each cable is two directed links.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Self

from pydantic import Field, model_validator

from simulator.strict import Bandwidth, Count, Duration, Fault, LocatedError, Strict
from simulator.topology.graph import Kind, Link, Operation, Site, Topology, Vertex
from simulator.topology.paths import Between, Climb, UpDown, same_switch
from simulator.topology.plane import Access, Plane


class Wire(Strict):
    """One kind of connection, each way."""

    bandwidth: Bandwidth
    """Bandwidth one way."""
    latency: Duration
    """Time of flight one way, without any switch."""


class Switch(Strict):
    """One kind of switch."""

    radix: Annotated[int, Field(ge=2)]
    """Ports, each of the speed of `link` (or of several: see `split`)."""
    latency: Duration
    """Time from port to port, paid on the link that enters the switch."""


class FamilyParameters(Strict):
    """What every family has."""

    device: str
    """Name of the accelerator's data sheet."""

    def kind_of(self, node: int) -> str:
        """Return the name of the data sheet of the accelerators in a node."""
        return self.device


class FabricParameters(FamilyParameters):
    """What all clusters share: nodes of accelerators with NICs, and the cables and switches between them."""

    devices_per_node: Count = 8
    """Accelerators in a node."""
    link: Wire
    """One cable of the fabric: NIC to leaf, and switch to switch."""
    switch: Switch
    """Every switch of the fabric."""

    @property
    def nic_bytes_per_s(self) -> int:
        """What one NIC can carry: the lesser of its cable and of its ways from the devices."""
        return self.link.bandwidth


class NodesOf(Strict):
    """Nodes that hold another accelerator than the rest."""

    device: str
    """Name of its data sheet."""
    nodes: Count
    """Such nodes."""
    nvlink: Wire | None = None
    """Device to scale-up domain in these nodes; default: as in the others."""


class NodeParameters(FabricParameters):
    """Nodes whose accelerators share one NVLink domain, each with its NIC."""

    nvlink: Wire
    """Device to NVLink domain: the bandwidth of one device, and half the way from device to device."""
    pcie: Wire
    """Device to its NIC."""
    devices: Annotated[tuple[NodesOf, ...], Field(strict=False)] | None = None
    """What the last nodes of the cluster hold, in the order of their numbers; those before them hold `device`."""

    @model_validator(mode="after")
    def _kinds_fit(self) -> Self:
        named, nodes = sum(kind.nodes for kind in self.devices or ()), self._nodes
        if named > nodes:
            raise LocatedError(Fault(("devices",), f"{named:,} nodes are named, the cluster has {nodes:,}"))
        return self

    @property
    def _nodes(self) -> int:
        nodes: int = getattr(self, "nodes", 0)  # a parameter of most families, of some what comes of others
        return nodes

    def nodes_like(self, node: int) -> NodesOf:
        """Return the kind of nodes that a node is of."""
        kinds = self.devices or ()
        first = self._nodes - sum(kind.nodes for kind in kinds)
        for kind in kinds:
            if first <= node < first + kind.nodes:
                return kind
            first += kind.nodes
        return NodesOf.model_construct(device=self.device, nodes=1, nvlink=None)

    def kind_of(self, node: int) -> str:
        """Return the name of the data sheet of the accelerators in a node."""
        return self.nodes_like(node).device

    @property
    def nic_bytes_per_s(self) -> int:
        """What one NIC can carry: the lesser of its cable and of its way from the device."""
        return min(self.link.bandwidth, self.pcie.bandwidth)


@dataclass(slots=True)
class Wiring:
    """A fabric under construction; `local` and `outside` are each device's ways into its scale-up domain and out.

    `host_local` and `host_outside` are those of the hosts, which are numbered after all devices in the end.
    """

    vertices: list[Vertex] = field(default_factory=list)
    links: list[Link] = field(default_factory=list)
    sites: list[Site] = field(default_factory=list)
    hosts: list[Site] = field(default_factory=list)
    local: list[tuple[Access, ...]] = field(default_factory=list)
    outside: list[tuple[Access, ...]] = field(default_factory=list)
    host_local: list[tuple[Access, ...]] = field(default_factory=list)
    host_outside: list[tuple[Access, ...]] = field(default_factory=list)
    climbs: dict[str, list[Climb]] = field(default_factory=dict)

    def vertex(
        self,
        name: str,
        kind: Kind,
        tier: str,
        node: int | None = None,
        slot: int | None = None,
        group: int | None = None,
        plane: str | None = None,
    ) -> str:
        """Add a vertex and return its name."""
        self.vertices.append(Vertex(name, kind, tier, node, slot, group, plane))
        return name

    def cable(self, lower: str, upper: str, wire: Wire, tier: str, up_ns: int = 0, down_ns: int = 0) -> tuple[int, int]:
        """Wire one cable and return its links up and down; `up_ns` is what entering `upper` adds, `down_ns` `lower`."""
        up = len(self.links)
        self.links.append(Link(up, lower, upper, wire.bandwidth, wire.latency + up_ns, tier))
        self.links.append(Link(up + 1, upper, lower, wire.bandwidth, wire.latency + down_ns, tier))
        return up, up + 1

    def climb(self, lower: str, upper: str, wire: Wire, switch_ns: int, tier: str) -> None:
        """Wire one cable between two switches, to be climbed by paths."""
        up, down = self.cable(lower, upper, wire, tier, switch_ns, switch_ns)
        self.climbs.setdefault(lower, []).append(Climb(up, upper, down))

    def device(self, node: int, slot: int, kind: str = "") -> str:
        """Add the accelerator in a slot of a node and return its name; `kind` may be left out where all are alike."""
        name = self.vertex(f"node{node}/device{slot}", "device", "device", node, slot)
        self.sites.append(Site(len(self.sites), name, node, slot, kind))
        return name

    def node(
        self,
        node: int,
        parameters: NodeParameters,
        leaves: Sequence[tuple[str, str]],
        tier: str,
        plane: Sequence[str | None] = (),
    ) -> None:
        """Add one node whose NIC i hangs below the switch and in the lane of `leaves[i]`, in the plane `plane[i]`.

        Devices have as many NICs each as the numbers divide into, or share one; a single device needs no NVLink.
        """
        devices, wire, kind = parameters.devices_per_node, parameters.link, parameters.nodes_like(node)
        domain = f"node{node}/nvlink"
        if devices > 1:
            self.vertex(domain, "nvswitch", "nvlink", node=node)
        ways: dict[int, tuple[str, int, int]] = {}
        for slot in range(devices):
            device = self.device(node, slot, kind.device)
            if devices > 1:
                up, down = self.cable(device, domain, kind.nvlink or parameters.nvlink, "nvlink")
                self.local.append((Access(domain, (up,), (down,)),))
            else:
                self.local.append(())
            accesses = []
            for nic in nics_of(slot, devices, len(leaves)):
                leaf, lane = leaves[nic]
                name = f"node{node}/nic{nic}"
                if nic not in ways:
                    self.vertex(name, "nic", "nic", node, nic, plane=plane[nic] if plane else None)
                out, back = self.cable(device, name, parameters.pcie, "pcie")
                if nic not in ways:
                    ways[nic] = (name, *self.cable(name, leaf, wire, tier, parameters.switch.latency))
                _, up, down = ways[nic]
                accesses.append(Access(leaf, (out, up), (down, back), lane))
            self.outside.append(tuple(accesses))

    def host(self, name: str, tier: str, node: int, slot: int) -> str:
        """Add an endpoint that is no accelerator and return its name."""
        self.hosts.append(Site(len(self.hosts), self.vertex(name, "cpu", tier, node, slot), node, slot))
        return name

    def planes(self, relay: bool = False, local: str = "nvlink", between: Between | None = None) -> tuple[Plane, ...]:
        """Return the scale-up plane `local` and the plane `fabric`, where relaying joins them if `relay`.

        Switches of the fabric are joined by `between`, up and down if left out.
        """
        near = Plane(local, (*self.local, *self.host_local), same_switch)
        nodes = tuple(site.node for site in self.sites) if relay else ()
        ways = (*self.outside, *self.host_outside)
        return near, Plane("fabric", ways, between or UpDown(self.climbs), near if relay else None, nodes)

    def topology(
        self,
        name: str,
        device: str,
        planes: tuple[Plane, ...],
        bisection_bytes_per_s: int,
        oversubscription: float = 1.0,
        routing: str = "ecmp",
        operations: Mapping[tuple[str, ...], Operation] | None = None,
    ) -> Topology:
        """Return the finished fabric; accelerators whose kind was not given are of the kind `device`."""
        sites = tuple(site if site.device else replace(site, device=device) for site in self.sites)
        return Topology(
            name=name,
            device=sites[0].device,
            vertices=tuple(self.vertices),
            links=tuple(self.links),
            sites=sites,
            planes=planes,
            hosts=tuple(replace(host, index=len(self.sites) + at) for at, host in enumerate(self.hosts)),
            operations=operations or {},
            bisection_bytes_per_s=bisection_bytes_per_s,
            oversubscription=oversubscription,
            routing=routing,
        )


def nics_of(slot: int, devices: int, nics: int) -> range:
    """Return the NICs of the device in a slot: its equal share of them, or the one that it shares."""
    if nics >= devices:
        each = nics // devices
        return range(slot * each, (slot + 1) * each)
    shared = slot // (devices // nics)
    return range(shared, shared + 1)
