"""Inventory of devices: leases are granted and revoked here and nowhere else; serving and training ask the same one.

Placement: first fit in node order; a lease that fits into a node never straddles two, a larger one takes whole nodes;
none mixes kinds of devices.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from simulator.errors import InputError, InvariantError


class Site(Protocol):
    """Where a device stands (see simulator.topology)."""

    @property
    def index(self) -> int:
        """The device's number in the topology."""

    @property
    def node(self) -> int:
        """The node that holds it; all of a node are of one kind."""

    @property
    def device(self) -> str:
        """Its kind."""


@dataclass(frozen=True, slots=True)
class Lease:
    """Devices granted to one owner; rank i of its layout computes on `devices[i]`."""

    owner: str
    devices: tuple[int, ...]


class Inventory:
    """All devices of a topology, free or leased."""

    def __init__(self, sites: Sequence[Site]) -> None:
        self._free: dict[str, dict[int, list[int]]] = {}  # by kind and node
        for site in sites:
            self._free.setdefault(site.device, {}).setdefault(site.node, []).append(site.index)
        self._node_size = {kind: max(map(len, nodes.values())) for kind, nodes in self._free.items()}
        self._site = {site.index: (site.device, site.node) for site in sites}
        self._leases: dict[str, Lease] = {}

    @property
    def free(self) -> int:
        """Devices that no lease holds."""
        return sum(map(self._free_of, self._free))

    @property
    def leased(self) -> int:
        """Devices that leases hold."""
        return len(self._site) - self.free

    def _free_of(self, kind: str) -> int:
        return sum(map(len, self._free[kind].values()))

    def lease(self, owner: str, count: int, kind: str | None = None) -> Lease:
        """Grant `count` devices of a kind (default: of the only one) to `owner`.

        Raises InputError when no placement fits.
        """
        if owner in self._leases:
            raise InvariantError(f"{owner} already holds a lease")
        [kind] = self._free if kind is None else [kind]
        nodes, size = self._free[kind], self._node_size[kind]
        devices = first_fit(nodes, count, size)
        if devices is None:
            of = f" of {kind}" if len(self._free) > 1 else ""
            total = sum(where[0] == kind for where in self._site.values())
            raise InputError(
                f"{owner} needs {count} devices{' of one node' if count <= size else ' in whole nodes'}, "
                f"but of {total} devices{of} only {self._free_of(kind)} are free"
                f" (most in one node: {max(map(len, nodes.values()), default=0)})"
            )
        for device in devices:
            nodes[self._site[device][1]].remove(device)
        lease = self._leases[owner] = Lease(owner, devices)
        return lease

    def revoke(self, lease: Lease) -> None:
        """Take a lease back; its devices are free again."""
        if self._leases.pop(lease.owner, None) is not lease:
            raise InvariantError(f"{lease.owner} holds no such lease")
        for device in lease.devices:
            kind, node = self._site[device]
            free = self._free[kind][node]
            free.append(device)
            free.sort()

    def check(self) -> None:
        """Raise InvariantError unless every device is free or leased exactly once."""
        held = [device for lease in self._leases.values() for device in lease.devices]
        free = [device for nodes in self._free.values() for devices in nodes.values() for device in devices]
        if sorted(held + free) != sorted(self._site):
            there = len(self._site)
            raise InvariantError(f"devices: {len(held)} leased + {len(free)} free are not the {there} there are")


def first_fit(free: dict[int, list[int]], count: int, node_size: int) -> tuple[int, ...] | None:
    """Return `count` free devices in node order, or None: within one node when they fit one, else whole nodes."""
    if count <= node_size:
        return next((tuple(devices[:count]) for devices in free.values() if len(devices) >= count), None)
    whole = [devices for devices in free.values() if len(devices) == node_size]
    nodes = -(-count // node_size)
    if len(whole) < nodes:
        return None
    return tuple(device for devices in whole[:nodes] for device in devices)[:count]
