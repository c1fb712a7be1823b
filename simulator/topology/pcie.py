"""Nodes whose devices hang below PCIe root ports of one host: one by itself, and two zones of them with a NIC each.

Model: bytes between two devices, or to the host's memory, go over root ports and the host; a NIC has a root port of its
own, to which the host passes the bytes of each device at a limited rate. Source: Fire-Flyer, arXiv 2408.14158.
"""

from collections.abc import Sequence
from functools import partial
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from simulator.strict import Count
from simulator.topology.clos import ZoneLayout, zones_of
from simulator.topology.graph import Topology
from simulator.topology.node import DomainParameters
from simulator.topology.paths import Path, same_switch
from simulator.topology.plane import Access, Plane
from simulator.topology.wiring import FamilyParameters, Wire, Wiring

Slot = Annotated[int, Field(ge=0)]


class PcieTree(FamilyParameters):
    """Devices below root ports of one host; a port may be shared, and so is the way to memory."""

    devices_per_node: Count
    """Accelerators below one host."""
    shared_ports: Annotated[tuple[Annotated[tuple[Slot, ...], Field(strict=False)], ...], Field(strict=False)] = ()
    """Slots of the devices that share a root port; every other device has its own."""
    slot: Wire
    """A device to its root port, and a root port to its NIC."""
    port: Wire
    """A root port to the host."""
    memory: Wire
    """The host to its memory, which is an endpoint of its own."""

    @model_validator(mode="after")
    def _slots_are_sound(self) -> Self:
        slots = [slot for group in self.shared_ports for slot in group]
        if len(set(slots)) < len(slots) or max(slots, default=0) >= self.devices_per_node:
            raise ValueError(f"shared_ports must name each of the slots 0 to {self.devices_per_node - 1} once at most")
        return self

    @property
    def port_of(self) -> tuple[int, ...]:
        """The root port of each slot, named after the first that it serves."""
        shared = {slot: group[0] for group in self.shared_ports if group for slot in group}
        return tuple(shared.get(slot, slot) for slot in range(self.devices_per_node))


class PcieParameters(DomainParameters, PcieTree):
    """One PCIe node: devices below root ports of one host; a port may be shared, and so is the way to memory."""


class PcieZonesParameters(ZoneLayout, PcieTree):
    """Two equal two-tier Clos zones, as `two_zone` has them, of PCIe nodes with one NIC each."""

    nics_per_node: Literal[1] = 1
    """NICs of a node, which all its devices share: one."""
    peer: Wire
    """The host to the root port of the NIC, for the bytes of one device; those of its memory are held by the slot."""

    @property
    def nic_bytes_per_s(self) -> int:
        """What the devices of a node can send by their NIC: the least of cable, slot, and what the host passes on."""
        each = min(self.slot.bandwidth, self.peer.bandwidth)
        ports = [self.port_of.count(port) for port in sorted(set(self.port_of))]
        passed = sum(min(self.port.bandwidth, sharing * each) for sharing in ports)
        return min(self.link.bandwidth, self.slot.bandwidth, passed)


def build_pcie(name: str, parameters: PcieParameters) -> Topology:
    """Build a PCIe node; endpoint `devices_per_node` is the host's memory."""
    wiring = Wiring()
    _add_tree(wiring, parameters, 0)
    planes = (Plane("pcie", (*wiring.local, *wiring.host_local), same_switch),)
    return wiring.topology(name, parameters.device, planes, _pcie_cut(parameters))


def build_pcie_two_zone(name: str, parameters: PcieZonesParameters) -> Topology:
    """Build two zones of PCIe nodes; the memory of node i is endpoint i after the devices, and has a way out too."""
    wiring = Wiring()
    return zones_of(name, parameters, wiring, partial(_add_node, wiring, parameters), "pcie")


def _add_node(wiring: Wiring, parameters: PcieZonesParameters, node: int, *, leaves: Sequence[tuple[str, str]]) -> None:
    """Add a PCIe node and its NIC; the cables from the host to the NIC's root port are one for each that sends."""
    ways = _add_tree(wiring, parameters, node)
    port = wiring.vertex(f"node{node}/nic-port", "host", "root-port", node)
    nic = wiring.vertex(f"node{node}/nic", "nic", "nic", node, 0)
    to_nic, from_nic = wiring.cable(port, nic, parameters.slot, "port-nic")
    (leaf, lane), delay = leaves[0], parameters.switch.latency
    up, down = wiring.cable(nic, leaf, parameters.link, "nic-leaf", delay)
    accesses = []
    for place, (out, back) in enumerate(ways):
        wire, tier = (parameters.peer, "peer") if place < len(ways) - 1 else (parameters.slot, "memory-nic")
        over, home = wiring.cable(f"node{node}/host", port, wire, tier)
        accesses.append((Access(leaf, (*out, over, to_nic, up), (down, from_nic, home, *back), lane),))
    wiring.outside += accesses[:-1]
    wiring.host_outside.append(accesses[-1])


def _add_tree(wiring: Wiring, parameters: PcieTree, node: int) -> list[tuple[Path, Path]]:
    """Add the devices, root ports, host and memory of a node; return the ways to the host and back, memory's last."""
    host = wiring.vertex(f"node{node}/host", "host", "host", node)
    ports: dict[int, tuple[str, int, int]] = {}
    ways: list[tuple[Path, Path]] = []
    owners = parameters.port_of
    for slot, owner in enumerate(owners):
        device = wiring.device(node, slot)
        if owner not in ports:
            port = wiring.vertex(f"node{node}/port{owner}", "host", "root-port", node, owner)
            ports[owner] = (port, *wiring.cable(port, host, parameters.port, "port-host"))
        port, up, down = ports[owner]
        out, back = wiring.cable(device, port, parameters.slot, "device-port")
        near, far = Access(port, (out,), (back,)), Access(host, (out, up), (down, back))
        wiring.local.append((near, far) if owners.count(owner) > 1 else (far,))
        ways.append((far.outward, far.inward))
    memory = wiring.host(f"node{node}/memory", "memory", node, 0)
    there, home = wiring.cable(memory, host, parameters.memory, "memory")
    wiring.host_local.append((Access(host, (there,), (home,)),))
    return [*ways, ((there,), (home,))]


def _pcie_cut(parameters: PcieParameters) -> int:
    """Return the least cut between the halves of the devices.

    The host, and then each port, stands on the cheaper side.
    """
    owners, middle = parameters.port_of, parameters.devices_per_node // 2
    halves = [(owners[:middle].count(owner), owners[middle:].count(owner)) for owner in sorted(set(owners))]
    slot, port = parameters.slot.bandwidth, parameters.port.bandwidth
    sending = sum(min(second * slot, first * slot + port) for first, second in halves)
    receiving = sum(min(first * slot, second * slot + port) for first, second in halves)
    return min(sending, receiving)
