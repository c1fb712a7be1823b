"""Supernodes of a unified bus: NPU dies and CPUs on isolated sub-planes of switch chips, beside RDMA and VPC planes.

Model: every die and CPU has one link to each on-board chip (L1) of its node, each chip belongs to one sub-plane and has
one link to each of the sub-plane's upper chips (L2); supernodes are joined by RDMA. Source: CloudMatrix384, arXiv
2506.12708v2.
"""

from fractions import Fraction
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from simulator.strict import Bandwidth, Count, Duration, Strict
from simulator.topology.folded import ClosShape, Demand, add_leaves, add_spines, bisection, clos_of
from simulator.topology.graph import Operation, Site, Topology
from simulator.topology.paths import Path, UpDown
from simulator.topology.plane import Access, Plane
from simulator.topology.wiring import FamilyParameters, Switch, Wire, Wiring

Ways = dict[str, list[Access]]


class Reached(Strict):
    """What one sort of transfer reaches, between two endpoints of one node."""

    bandwidth: Bandwidth
    """Bytes per second of one die, one way."""
    latency: Duration
    """Time of a small message."""


class Operations(Strict):
    """What reads and writes reach."""

    read: Reached
    write: Reached


class Ethernet(Strict):
    """A folded Clos of NICs, all NICs of a node below one leaf."""

    host: Wire
    """From the endpoint to its NIC."""
    link: Wire
    """One cable: NIC to leaf, and switch to switch."""
    switch: Switch
    tiers: Literal[1, 2, 3] = 3
    """Tiers of switches at most."""


class SupernodeParameters(FamilyParameters):
    """One or several supernodes; the accelerators are dies, the CPUs are endpoints after them."""

    supernodes: Count = 1
    nodes_per_supernode: Count
    """Nodes of one supernode, each with a port of every upper chip."""
    npus_per_node: Count
    dies_per_npu: Count
    cpus_per_node: Count
    sub_planes: Count
    """Switch chips on a node's board, each the gate to a sub-plane of its own."""
    upper_chips: Count
    """Upper switch chips of one sub-plane."""
    upper_ports: Count
    """Ports of one upper chip, one per node."""
    package: Wire
    """Between two dies of one NPU."""
    die_link: Wire
    """A die to one on-board chip."""
    cpu_link: Wire
    """A CPU to one on-board chip."""
    chip_link: Wire
    """An on-board chip to one upper chip of its sub-plane."""
    npu_npu: Operations
    npu_cpu: Operations
    crossing: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the bandwidth of an operation that is left when it crosses the upper chips."""
    rdma: Ethernet
    """The plane of the dies' own NICs, over all supernodes."""
    vpc: Ethernet
    """The plane of one NIC per node behind its first CPU, for storage and control."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.nodes_per_supernode > self.upper_ports:
            raise ValueError(
                f"{self.nodes_per_supernode} nodes do not fit the {self.upper_ports} ports of an upper chip"
            )
        for plane, nics in ((self.rdma, self.dies), (self.vpc, 1)):
            _ethernet(self, plane, nics)
        for pair, link in ((self.npu_npu, self.die_link), (self.npu_cpu, self.cpu_link)):
            way_ns, rate = self.die_link.latency + link.latency, link.bandwidth * self.sub_planes
            for reached in (pair.read, pair.write):
                if reached.latency < way_ns or reached.bandwidth > rate:
                    raise ValueError("an operation is faster than the links that carry it")
        return self

    @property
    def nodes(self) -> int:
        """Nodes of all supernodes."""
        return self.supernodes * self.nodes_per_supernode

    @property
    def devices_per_node(self) -> int:
        """Dies of a node: an accelerator is a die."""
        return self.dies

    @property
    def dies(self) -> int:
        """Dies of a node."""
        return self.npus_per_node * self.dies_per_npu


def build_supernode(name: str, parameters: SupernodeParameters) -> Topology:
    """Build supernodes joined by RDMA; dies are numbered first, then CPUs, each node by node.

    Planes in the order in which they are tried: `package` (the other die of an NPU), `ub` (lanes `ub0` ...), `rdma`,
    `vpc`. The bisection is that of the accelerators over all planes.
    """
    wiring, ways = Wiring(), [Ways() for _ in range(4)]
    total = parameters.nodes
    shapes = _ethernet(parameters, parameters.rdma, parameters.dies), _ethernet(parameters, parameters.vpc, 1)
    leaves = [add_leaves(wiring, shape, f"{p}/", p) for shape, p in zip(shapes, ("rdma", "vpc"), strict=True)]
    peers: dict[tuple[str, str], list[Path]] = {}
    for node in range(total):
        below = [column[node // shape.nodes_per_group] for column, shape in zip(leaves, shapes, strict=True)]
        _node(wiring, parameters, node, below[0], below[1], ways, peers)
    _upper_chips(wiring, parameters)
    for column, shape, label in zip(leaves, shapes, ("rdma", "vpc"), strict=True):
        plane: Ethernet = getattr(parameters, label)
        add_spines(wiring, shape, column, plane.link, plane.switch.latency, f"{label}/", label)
    endpoints = [site.name for site in wiring.sites + wiring.hosts]
    package, ub, rdma, vpc = (tuple(tuple(way.get(end, ())) for end in endpoints) for way in ways)
    joined = UpDown(wiring.climbs)
    planes = (
        Plane("package", package, UpDown({}, peers)),
        Plane("ub", ub, joined),
        Plane("rdma", rdma, joined),
        Plane("vpc", vpc, joined),
    )
    cut = _bisection(parameters, shapes)
    return wiring.topology(name, parameters.device, planes, cut, 1.0, "spray", _operations(parameters))


def _node(
    wiring: Wiring,
    parameters: SupernodeParameters,
    node: int,
    rdma_leaf: str,
    vpc_leaf: str,
    ways: list[Ways],
    peers: dict[tuple[str, str], list[Path]],
) -> None:
    """Add one node, its endpoints' ways into the four planes, and the links between the dies of one NPU."""
    package, ub, rdma, vpc = ways
    chips = [
        wiring.vertex(f"node{node}/l1.{plane}", "switch", "l1", node, plane, plane=f"ub{plane}")
        for plane in range(parameters.sub_planes)
    ]
    dies = []
    for slot in range(parameters.dies):
        npu, die = divmod(slot, parameters.dies_per_npu)
        name = wiring.vertex(f"node{node}/npu{npu}.{die}", "device", "npu", node, slot)
        wiring.sites.append(Site(len(wiring.sites), name, node, slot))
        dies.append(name)
        package[name] = [Access(name, (), ())]
        for mate in dies[slot - die : slot]:
            there, home = wiring.cable(mate, name, parameters.package, "package")
            peers[mate, name], peers[name, mate] = [(there,)], [(home,)]
        ub[name] = _onto_chips(wiring, name, chips, parameters.die_link, "npu-l1")
        out, back = _nic(wiring, name, f"node{node}/rdma{slot}", node, slot, rdma_leaf, parameters.rdma, "rdma")
        rdma[name] = [Access(rdma_leaf, out, back)]
    cpus = []
    for slot in range(parameters.cpus_per_node):
        name = wiring.host(f"node{node}/cpu{slot}", "cpu", node, slot)
        cpus.append(name)
        ub[name] = _onto_chips(wiring, name, chips, parameters.cpu_link, "cpu-l1")
    out, back = _nic(wiring, cpus[0], f"node{node}/dpu", node, 0, vpc_leaf, parameters.vpc, "vpc")
    vpc[cpus[0]] = [Access(vpc_leaf, out, back)]
    for name in dies + cpus[1:]:
        vpc[name] = [
            Access(vpc_leaf, mine.outward + door.inward + out, back + door.outward + mine.inward)
            for mine, door in zip(ub[name], ub[cpus[0]], strict=True)
        ]


def _onto_chips(wiring: Wiring, name: str, chips: list[str], wire: Wire, tier: str) -> list[Access]:
    ways = []
    for plane, chip in enumerate(chips):
        up, down = wiring.cable(name, chip, wire, tier)
        ways.append(Access(chip, (up,), (down,), f"ub{plane}"))
    return ways


def _nic(
    wiring: Wiring, owner: str, name: str, node: int, slot: int, leaf: str, plane: Ethernet, label: str
) -> tuple[Path, Path]:
    """Add a NIC between an endpoint and a leaf; return the links out and back."""
    wiring.vertex(name, "nic", "dpu" if label == "vpc" else "nic", node, slot, plane=label)
    out, back = wiring.cable(owner, name, plane.host, f"{label}-host")
    up, down = wiring.cable(name, leaf, plane.link, f"{label}-leaf", plane.switch.latency)
    return (out, up), (down, back)


def _upper_chips(wiring: Wiring, parameters: SupernodeParameters) -> None:
    size = parameters.nodes_per_supernode
    for supernode in range(parameters.supernodes):
        nodes = range(supernode * size, (supernode + 1) * size)
        for plane in range(parameters.sub_planes):
            for index in range(parameters.upper_chips):
                chip = f"supernode{supernode}/l2.{plane}.{index}"
                wiring.vertex(chip, "switch", "l2", slot=index, group=supernode, plane=f"ub{plane}")
                for node in nodes:
                    wiring.climb(f"node{node}/l1.{plane}", chip, parameters.chip_link, 0, "l1-l2")


def _ethernet(parameters: SupernodeParameters, plane: Ethernet, nics: int) -> ClosShape:
    nodes = parameters.nodes
    try:
        return clos_of(Demand(nodes, 1, nics, plane.switch.radix, plane.tiers, 1, Fraction(1), Fraction(1)))
    except ValueError as error:
        raise ValueError(str(error).format("node")) from None


def _bisection(parameters: SupernodeParameters, shapes: tuple[ClosShape, ClosShape]) -> int:
    """Return what the accelerators of the first half of the nodes can send to those of the others.

    Over UB a supernode whose nodes are split passes what its smaller part can climb; the VPC plane is reached over the
    same ports of the dies as UB is.
    """
    total = parameters.nodes
    half = total // 2
    cuts = []
    for shape, plane, nics in zip(shapes, (parameters.rdma, parameters.vpc), (parameters.dies, 1), strict=True):
        halves = []
        for leaf in range(shape.leaves):
            first, last = leaf * shape.nodes_per_group, min((leaf + 1) * shape.nodes_per_group, total)
            sending = min(max(half - first, 0), last - first)
            halves.append((sending * nics, (last - first - sending) * nics))
        cuts.append(bisection(shape, halves, min(plane.link.bandwidth, plane.host.bandwidth), plane.link.bandwidth))
    split = half % parameters.nodes_per_supernode
    ports = parameters.dies * parameters.sub_planes * parameters.die_link.bandwidth
    climb = parameters.sub_planes * parameters.upper_chips * parameters.chip_link.bandwidth
    ub = min(split, parameters.nodes_per_supernode - split) * min(climb, ports)
    return min(half * ports, ub + cuts[1]) + cuts[0]


def _operations(parameters: SupernodeParameters) -> dict[tuple[str, ...], Operation]:
    """Return what an operation reaches and adds, by (operation, tier, tier, plane, inside or across nodes)."""
    found: dict[tuple[str, ...], Operation] = {}
    pairs = (("npu", parameters.npu_npu, parameters.die_link), ("cpu", parameters.npu_cpu, parameters.cpu_link))
    for tier, operations, link in pairs:
        for name in ("read", "write"):
            reached: Reached = getattr(operations, name)
            extra_ns = reached.latency - parameters.die_link.latency - link.latency
            across = int(reached.bandwidth * Fraction(str(parameters.crossing)))
            for ends in (("npu", tier), (tier, "npu")):
                found[name, *ends, "ub", "inside"] = Operation(reached.bandwidth, extra_ns)
                found[name, *ends, "ub", "across"] = Operation(across, extra_ns)
    return found
