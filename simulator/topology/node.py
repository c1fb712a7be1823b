"""Single nodes and scale-up domains by themselves: NVSwitch domains, point-to-point meshes, PCIe trees.

Sources: NVIDIA DGX H100 and GB200 NVL72 data sheets; AMD Instinct MI300X platform (each GPU joined to every other);
Fire-Flyer, arXiv 2408.14158 (PCIe root ports shared by GPUs). The bisection is that of the devices' halves.
"""

from typing import Annotated, Self

from pydantic import Field, model_validator

from simulator.strict import Count
from simulator.topology.graph import Site, Topology
from simulator.topology.paths import Path, UpDown, same_switch
from simulator.topology.plane import Access, Plane
from simulator.topology.wiring import FamilyParameters, Wire, Wiring

Slot = Annotated[int, Field(ge=0)]


class DomainParameters(FamilyParameters):
    """One node or domain of devices."""

    devices_per_node: Annotated[int, Field(ge=2)]
    """Accelerators in the domain."""

    @property
    def nodes(self) -> int:
        """One."""
        return 1


class NvswitchParameters(DomainParameters):
    """Devices with one connection to each of several switch chips."""

    switches: Count
    """Switch chips; a transfer between two devices may pass any one of them."""
    link: Wire
    """A device to one chip: all its lanes to that chip together; half the way from device to device."""


class MeshParameters(DomainParameters):
    """Devices each joined to every other by a link of its own."""

    link: Wire
    """Between two devices."""


class PcieParameters(DomainParameters):
    """Devices below root ports of one host; a port may be shared, and so is the way to memory."""

    shared_ports: Annotated[tuple[Annotated[tuple[Slot, ...], Field(strict=False)], ...], Field(strict=False)] = ()
    """Slots of the devices that share a root port; every other device has its own."""
    slot: Wire
    """A device to its root port."""
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


def build_nvswitch(name: str, parameters: NvswitchParameters) -> Topology:
    """Build an NVSwitch domain; only spraying over all chips gives a device its whole bandwidth."""
    wiring, count = Wiring(), parameters.devices_per_node
    chips = [wiring.vertex(f"nvswitch{i}", "nvswitch", "nvswitch", slot=i) for i in range(parameters.switches)]
    ways = []
    for slot in range(count):
        device = wiring.device(0, slot)
        cables = [(chip, *wiring.cable(device, chip, parameters.link, "nvlink")) for chip in chips]
        ways.append(tuple(Access(chip, (up,), (down,), chip) for chip, up, down in cables))
    cut = count // 2 * parameters.switches * parameters.link.bandwidth
    planes = (Plane("nvlink", tuple(ways), same_switch),)
    return wiring.topology(name, parameters.device, planes, cut, routing="spray" if len(chips) > 1 else "ecmp")


def build_mesh(name: str, parameters: MeshParameters) -> Topology:
    """Build a node of devices joined point to point; there is one path between two devices, the link between them."""
    wiring, count = Wiring(), parameters.devices_per_node
    devices = [wiring.device(0, slot) for slot in range(count)]
    peers: dict[tuple[str, str], list[Path]] = {}
    for left in range(count):
        for right in range(left + 1, count):
            ends = devices[left], devices[right]
            there, back = wiring.cable(*ends, parameters.link, "mesh")
            peers[ends], peers[ends[1], ends[0]] = [(there,)], [(back,)]
    access = tuple((Access(device, (), ()),) for device in devices)
    cut = count // 2 * (count - count // 2) * parameters.link.bandwidth
    return wiring.topology(name, parameters.device, (Plane("mesh", access, UpDown({}, peers)),), cut)


def build_pcie(name: str, parameters: PcieParameters) -> Topology:
    """Build a PCIe node; endpoint `devices_per_node` is the host's memory."""
    wiring, count = Wiring(), parameters.devices_per_node
    host = wiring.vertex("host", "host", "host", node=0)
    shared = {slot: group[0] for group in parameters.shared_ports if group for slot in group}
    ports: dict[int, tuple[str, int, int]] = {}
    ways = []
    halves: dict[int, list[int]] = {}
    for slot in range(count):
        device, owner = wiring.device(0, slot), shared.get(slot, slot)
        if owner not in ports:
            port = wiring.vertex(f"port{owner}", "host", "root-port", 0, owner)
            ports[owner] = (port, *wiring.cable(port, host, parameters.port, "port-host"))
        port, up, down = ports[owner]
        out, back = wiring.cable(device, port, parameters.slot, "device-port")
        near, far = Access(port, (out,), (back,)), Access(host, (out, up), (down, back))
        ways.append((near, far) if slot in shared else (far,))
        halves.setdefault(owner, [0, 0])[slot >= count // 2] += 1
    memory = wiring.vertex("memory", "cpu", "memory", 0, 0)
    wiring.hosts.append(Site(count, memory, 0, 0))
    there, home = wiring.cable(memory, host, parameters.memory, "memory")
    ways.append((Access(host, (there,), (home,)),))
    planes = (Plane("pcie", tuple(ways), same_switch),)
    return wiring.topology(name, parameters.device, planes, _pcie_cut(parameters, list(halves.values())))


def _pcie_cut(parameters: PcieParameters, halves: list[list[int]]) -> int:
    """Return the least cut between the halves of the devices, of which `halves` are below each root port.

    The host, and then each port, stands on the cheaper side.
    """
    slot, port = parameters.slot.bandwidth, parameters.port.bandwidth
    sending = sum(min(second * slot, first * slot + port) for first, second in halves)
    receiving = sum(min(first * slot, second * slot + port) for first, second in halves)
    return min(sending, receiving)
