"""Single nodes and scale-up domains by themselves: NVSwitch domains and point-to-point meshes.

Sources: NVIDIA DGX H100 and GB200 NVL72 data sheets; AMD Instinct MI300X platform (each GPU joined to every other).
The bisection is that of the devices' halves.
"""

from typing import Annotated

from pydantic import Field

from simulator.strict import Count
from simulator.topology.graph import Topology
from simulator.topology.paths import Path, UpDown, same_switch
from simulator.topology.plane import Access, Plane
from simulator.topology.wiring import FamilyParameters, Wire, Wiring


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
