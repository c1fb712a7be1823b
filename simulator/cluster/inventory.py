"""Inventory of devices: leases are granted and revoked here and nowhere else; serving and training ask the same one.

Placement: first fit in node order; a lease that fits into a node never straddles two, a larger one takes whole nodes.
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
        """The node that holds it."""


@dataclass(frozen=True, slots=True)
class Lease:
    """Devices granted to one owner; rank i of its layout computes on `devices[i]`."""

    owner: str
    devices: tuple[int, ...]


class Inventory:
    """All devices of a topology, free or leased."""

    def __init__(self, sites: Sequence[Site]) -> None:
        self._total = len(sites)
        self._free: dict[int, list[int]] = {}
        for site in sites:
            self._free.setdefault(site.node, []).append(site.index)
        self._node_size = max((len(devices) for devices in self._free.values()), default=0)
        self._node_of = {site.index: site.node for site in sites}
        self._leases: dict[str, Lease] = {}

    @property
    def free(self) -> int:
        """Devices that no lease holds."""
        return sum(len(devices) for devices in self._free.values())

    @property
    def leased(self) -> int:
        """Devices that leases hold."""
        return self._total - self.free

    def lease(self, owner: str, count: int) -> Lease:
        """Grant `count` devices to `owner`; raises InputError when no placement fits."""
        if owner in self._leases:
            raise InvariantError(f"{owner} already holds a lease")
        devices = first_fit(self._free, count, self._node_size)
        if devices is None:
            raise InputError(
                f"{owner} needs {count} devices{' of one node' if count <= self._node_size else ' in whole nodes'}, "
                f"but of {self._total} devices only {self.free} are free"
                f" (most in one node: {max(map(len, self._free.values()), default=0)})"
            )
        for device in devices:
            self._free[self._node_of[device]].remove(device)
        lease = self._leases[owner] = Lease(owner, devices)
        return lease

    def revoke(self, lease: Lease) -> None:
        """Take a lease back; its devices are free again."""
        if self._leases.pop(lease.owner, None) is not lease:
            raise InvariantError(f"{lease.owner} holds no such lease")
        for device in lease.devices:
            free = self._free[self._node_of[device]]
            free.append(device)
            free.sort()

    def check(self) -> None:
        """Raise InvariantError unless every device is free or leased exactly once."""
        held = [device for lease in self._leases.values() for device in lease.devices]
        free = [device for devices in self._free.values() for device in devices]
        if sorted(held + free) != sorted(self._node_of):
            raise InvariantError(f"devices: {len(held)} leased + {len(free)} free are not the {self._total} there are")


def first_fit(free: dict[int, list[int]], count: int, node_size: int) -> tuple[int, ...] | None:
    """Return `count` free devices in node order, or None: within one node when they fit one, else whole nodes."""
    if count <= node_size:
        return next((tuple(devices[:count]) for devices in free.values() if len(devices) >= count), None)
    whole = [devices for devices in free.values() if len(devices) == node_size]
    nodes = -(-count // node_size)
    if len(whole) < nodes:
        return None
    return tuple(device for devices in whole[:nodes] for device in devices)[:count]
