"""A cluster's fabric: an immutable directed multigraph of devices, NICs and switches, and the planes that route it.

Model: every cable is two directed links of its own (parallel cables stay apart, so that hash collisions are real);
each plane (a scale-up domain, a fabric of leaves and spines) offers its own paths, and the first that joins two devices
carries them.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from simulator.errors import InputError, unknown
from simulator.topology.paths import HERE, Path
from simulator.topology.plane import Plane

if TYPE_CHECKING:
    import networkx

__all__ = ["Kind", "Link", "Operation", "Path", "Plane", "Site", "Topology", "Vertex"]

Kind = Literal["device", "cpu", "nic", "nvswitch", "switch", "host"]


@dataclass(frozen=True, slots=True)
class Link:
    """One direction of one cable; `latency_ns` includes the switch that the link enters."""

    index: int
    source: str
    target: str
    capacity_bytes_per_s: int
    latency_ns: int
    tier: str


@dataclass(frozen=True, slots=True)
class Site:
    """The place of one endpoint: its dense index, its vertex name, its node and its slot in the node.

    `device` names the data sheet of what stands there, where that is an accelerator.
    """

    index: int
    name: str
    node: int
    slot: int
    device: str = ""


@dataclass(frozen=True, slots=True)
class Vertex:
    """A device, CPU, NIC, scale-up switch, switch, or part of a host (root port, root complex).

    `group` is a switch's leaf group or pod, `slot` its number within it; `plane` the isolated network that it is part
    of, where a fabric has several.
    """

    name: str
    kind: Kind
    tier: str
    node: int | None = None
    slot: int | None = None
    group: int | None = None
    plane: str | None = None


@dataclass(frozen=True, slots=True)
class Operation:
    """How one sort of transfer (a read, a write) falls short of its links: the rate that it reaches, what it adds."""

    bytes_per_s: int
    latency_ns: int


@dataclass(frozen=True, eq=False)
class Topology:
    """An immutable fabric; build one with `simulator.topology.build_topology`.

    `device` names the accelerators' data sheet (of several `kinds` that of the first); `sites` are the accelerators by
    index, `hosts` further endpoints (CPUs) whose indices go on where those of `sites` end; `links` is indexed by link
    index; `planes` are the networks in the order in which they are tried. `operations` has what some operations reach
    (see `operation`).
    `bisection_bytes_per_s` is what can flow one way from the first half of the nodes to the others (of an odd number
    the smaller half sends); `oversubscription` is the down:up capacity of a leaf. `routing` is the policy (of
    `simulator.network.routing`) without which the fabric would not do what it is built for.
    """

    name: str
    device: str
    vertices: tuple[Vertex, ...]
    links: tuple[Link, ...]
    sites: tuple[Site, ...]
    planes: tuple[Plane, ...]
    hosts: tuple[Site, ...]
    operations: Mapping[tuple[str, ...], Operation]
    bisection_bytes_per_s: int
    oversubscription: float
    routing: str = "ecmp"

    def paths(self, source: int, target: int, plane: str | None = None) -> Sequence[Path]:
        """Return every equal-cost shortest path between two endpoints as tuples of link indices.

        The order is fixed by the structure. An endpoint reaches itself by one empty path. `plane` names a plane or one
        lane of it (`rdma`, `ub3`); without it the first plane that joins the two carries them.
        Raises IndexError for an endpoint that does not exist, InputError where nothing joins the two or the plane is
        unknown.
        """
        if source == target:
            return HERE
        if plane is None:
            for candidate in self.planes:
                found = candidate.paths(source, target)
                if found is not None:
                    return found
        else:
            chosen, lane = self.plane(plane)
            found = chosen.paths(source, target, lane)
            if found is not None:
                return found
        raise self._apart(source, target, plane)

    def plane(self, name: str) -> tuple[Plane, str | None]:
        """Return the plane called `name`, or that with a lane of this name and the lane; raises InputError."""
        if name not in self._plane_names:
            raise InputError(unknown(f"plane of {self.name}", name, self._plane_names))
        return self._plane_names[name]

    def operation(self, name: str, source: int, target: int, plane: str | None = None) -> Operation | None:
        """Return what the operation `name` (`read`, `write`) reaches between two endpoints, and adds to their path.

        None where nothing is known of it, so that the links alone count. Raises InputError for an unknown operation.
        """
        known = sorted({key[0] for key in self.operations})
        if name not in known:
            raise InputError(unknown(f"operation of {self.name}", name, known))
        carrier = self.plane(plane)[0] if plane else next(p for p in self.planes if p.paths(source, target) is not None)
        tiers = (self._tier_of[self.endpoints[index].name] for index in (source, target))
        inside = self.endpoints[source].node == self.endpoints[target].node
        return self.operations.get((name, *tiers, carrier.name, "inside" if inside else "across"))

    @cached_property
    def _tier_of(self) -> dict[str, str]:
        return {vertex.name: vertex.tier for vertex in self.vertices}

    @cached_property
    def endpoints(self) -> tuple[Site, ...]:
        """All that sends and receives, by index: the accelerators, then the hosts."""
        return self.sites + self.hosts

    def route_bytes_per_s(self, path: Path) -> int:
        """Return the capacity of the narrowest link of a path."""
        return min(self.links[index].capacity_bytes_per_s for index in path)

    @cached_property
    def kinds(self) -> Mapping[str, int]:
        """How many accelerators there are of each kind (name of a data sheet), in the order of their indices."""
        return Counter(site.device for site in self.sites)

    @cached_property
    def device_at(self) -> Mapping[tuple[int, int], int]:
        """The accelerator at each (node, slot), by index."""
        return {(site.node, site.slot): site.index for site in self.sites}

    @cached_property
    def first_links(self) -> Mapping[tuple[str, str], int]:
        """The first of the links from one vertex to another, by their names."""
        found: dict[tuple[str, str], int] = {}
        for link in self.links:
            found.setdefault((link.source, link.target), link.index)
        return found

    @cached_property
    def _plane_names(self) -> dict[str, tuple[Plane, str | None]]:
        names: dict[str, tuple[Plane, str | None]] = {}
        for plane in self.planes:
            names.setdefault(plane.name, (plane, None))
            for lane in plane.lanes:
                names.setdefault(lane, (plane, lane))
        return names

    def _apart(self, source: int, target: int, plane: str | None) -> InputError:
        """Say why nothing joins two endpoints."""
        places = []
        for index in (source, target):
            ways = [
                (each.name, sorted({way.lane for way in each.access[index] if way.lane}))
                for each in self.planes
                if each.access[index]
            ]
            text = ", ".join(f"{name} ({', '.join(lanes)})" if lanes else name for name, lanes in ways)
            places.append(f"{self.endpoints[index].name} takes part in {text or 'no network'}")
        within = f" in {plane}" if plane else ""
        ends = f"{self.endpoints[source].name} and {self.endpoints[target].name}"
        return InputError(f"no path joins {ends}{within}, and no relay is allowed: {'; '.join(places)}")

    @cached_property
    def graph(self) -> "networkx.MultiDiGraph[str]":
        """The same fabric as a frozen networkx graph: vertices by name, edges keyed by link index."""
        import networkx

        graph: networkx.MultiDiGraph[str] = networkx.MultiDiGraph(name=self.name)
        for vertex in self.vertices:
            attributes = {"kind": vertex.kind, "tier": vertex.tier}
            places = {"node": vertex.node, "slot": vertex.slot, "group": vertex.group, "plane": vertex.plane}
            graph.add_node(vertex.name, **attributes, **{key: at for key, at in places.items() if at is not None})
        for link in self.links:
            graph.add_edge(
                link.source,
                link.target,
                key=link.index,
                capacity_bytes_per_s=link.capacity_bytes_per_s,
                latency_ns=link.latency_ns,
                tier=link.tier,
            )
        networkx.freeze(graph)
        return graph

    def path_latency_ns(self, path: Path) -> int:
        """Return the sum of the latencies of a path's links, in nanoseconds."""
        return sum(self.links[index].latency_ns for index in path)
