"""What breaks in the network, and when: parts of a topology by name, faults at given times or at random, repairs.

Model: up-times are exponential with a mean (MTBF), each part by itself, and a repair takes a fixed time: an alternating
renewal process, so a part is up the share MTBF / (MTBF + repair) of the time.
"""

import heapq
import re
from collections import defaultdict
from collections.abc import Callable, Generator, Sequence
from itertools import count
from typing import Any, NamedTuple, Protocol

import numpy as np
from simpy import Event

from simulator.clock import Clock
from simulator.errors import InputError, unknown
from simulator.topology.graph import Kind, Topology

_CABLE = re.compile(r"(?P<a>[^<>#]+)(?P<way><>|>)(?P<b>[^<>#]+)(#(?P<number>\d{1,6}))?")
_KINDS: dict[str, tuple[Kind, ...]] = {"nic": ("nic",), "switch": ("switch", "nvswitch")}


class Part(NamedTuple):
    """Something that breaks as one, and the directed links that go with it."""

    name: str
    links: tuple[int, ...]


class Fault(NamedTuple):
    """A part that keeps the share `left` of its capacity from `at_ns` on, for `repair_ns` (None: for good)."""

    part: Part
    at_ns: int
    left: float
    repair_ns: int | None


class RandomFaults(NamedTuple):
    """Parts that break at random, each by itself, at a mean of `mtbf_ns` after it was last repaired."""

    parts: tuple[Part, ...]
    mtbf_ns: int
    left: float
    repair_ns: int


class Network(Protocol):
    """What faults do to a network."""

    def set_capacity(self, links: Sequence[int], bytes_per_s: int) -> None:
        """Give links another capacity from now on; zero is dead."""


def part(topology: Topology, what: str, name: str) -> Part:
    """Return the link, NIC, switch, node or plane of this name; raises InputError with the nearest if there is none."""
    if what == "link":
        return _link(topology, name)
    if what == "node":
        nodes = sorted({vertex.node for vertex in topology.vertices if vertex.node is not None})
        if not name.isdecimal() or int(name) not in nodes:
            known = f"{nodes[0]} to {nodes[-1]}" if nodes else "none"
            raise InputError(f"no node {name!r} in {topology.name}; there are {known}")
        inside = {vertex.name for vertex in topology.vertices if vertex.node == int(name)}
        return Part(name, _touching(topology, inside))
    if what == "plane":
        return _plane(topology, name)
    names = [vertex.name for vertex in topology.vertices if vertex.kind in _KINDS[what]]
    if name not in names:
        raise InputError(unknown(f"{what} of {topology.name}", name, names))
    return Part(name, _touching(topology, {name}))


def parts(topology: Topology, what: str, tier: str | None = None) -> tuple[Part, ...]:
    """Return every part of a kind, of one tier only if asked for; a link is a cable, both directions of it.

    Raises InputError when there is none.
    """
    found: list[Part] = []
    if what == "link":
        found = [cable for at, cable in _cables(topology) if tier in (None, at)]
    elif what == "node":
        nodes = dict.fromkeys(vertex.node for vertex in topology.vertices if vertex.node is not None)
        links: dict[int, dict[int, None]] = {node: {} for node in nodes}
        place = {vertex.name: vertex.node for vertex in topology.vertices}
        for link in topology.links:
            for end in (place[link.source], place[link.target]):
                if end is not None:
                    links[end][link.index] = None
        found = [Part(str(node), tuple(touched)) for node, touched in links.items()]
    elif what == "plane":
        names = dict.fromkeys(vertex.plane for vertex in topology.vertices if vertex.plane is not None)
        found = [_plane(topology, name) for name in names]
    else:
        touching: dict[str, list[int]] = defaultdict(list)
        for link in topology.links:
            touching[link.source].append(link.index)
            touching[link.target].append(link.index)
        there = [v for v in topology.vertices if v.kind in _KINDS[what] and tier in (None, v.tier)]
        found = [Part(vertex.name, tuple(touching[vertex.name])) for vertex in there]
    if not found:
        tiers = sorted({link.tier for link in topology.links} | {vertex.tier for vertex in topology.vertices})
        within = f" of tier {tier!r}" if tier is not None else ""
        raise InputError(f"no {what}{within} in {topology.name}; tiers: {', '.join(tiers)}")
    return tuple(found)


def _touching(topology: Topology, names: set[str]) -> tuple[int, ...]:
    return tuple(link.index for link in topology.links if link.source in names or link.target in names)


def _link(topology: Topology, name: str) -> Part:
    match = _CABLE.fullmatch(name)
    if match is None:
        raise InputError(
            f"{name!r} is no link; write 'a>b' (one direction) or 'a<>b' (both), '#1' for the second cable"
        )
    ends = match["a"].strip(), match["b"].strip()
    known = {vertex.name: None for vertex in topology.vertices}
    for end in ends:
        if end not in known:
            raise InputError(unknown(f"node of {topology.name}", end, known))
    found: list[int] = []
    for source, target in (ends,) if match["way"] == ">" else (ends, ends[::-1]):
        between = [link.index for link in topology.links if (link.source, link.target) == (source, target)]
        if not between:
            raise InputError(f"no link from {source!r} to {target!r}")
        if match["number"] is not None:
            if int(match["number"]) >= len(between):
                raise InputError(f"{len(between)} cables from {source!r} to {target!r}, counted from #0")
            between = [between[int(match["number"])]]
        found += between
    return Part(name, tuple(found))


def _plane(topology: Topology, name: str) -> Part:
    marks = dict.fromkeys(vertex.plane for vertex in topology.vertices if vertex.plane is not None)
    if name in marks:
        return Part(name, _touching(topology, {v.name for v in topology.vertices if v.plane == name}))
    known = [*marks, *(plane.name for plane in topology.planes)]
    if name not in known:
        raise InputError(unknown(f"plane of {topology.name}", name, known))
    plane, _ = topology.plane(name)
    inside = {vertex.name for vertex in topology.vertices if vertex.plane in plane.lanes}
    ways = [link for ways in plane.access for way in ways for link in (*way.outward, *way.inward)]
    return Part(name, tuple(dict.fromkeys([*_touching(topology, inside), *ways])))


def _cables(topology: Topology) -> list[tuple[str, Part]]:
    """Return (tier, cable) of every pair of opposite links, the k-th one way with the k-th of the other."""
    waiting: dict[tuple[str, str], list[int]] = defaultdict(list)
    found: list[tuple[str, Part]] = []
    for link in topology.links:
        back = waiting[link.target, link.source]
        if back:
            found.append((link.tier, Part(f"{link.target}<>{link.source}", (back.pop(0), link.index))))
        else:
            waiting[link.source, link.target].append(link.index)
    links = topology.links
    alone = [index for left in waiting.values() for index in left]
    found += [(links[i].tier, Part(f"{links[i].source}>{links[i].target}", (i,))) for i in alone]
    return sorted(found, key=lambda item: item[1].links)


class LinkHealth:
    """The capacity of every link: what it has by itself, times the least that the faults on it leave."""

    def __init__(
        self, network: Network, topology: Topology, changed: Callable[[Sequence[int]], None] | None = None
    ) -> None:
        """`changed` hears of links that have another capacity."""
        self._network = network
        self._changed = changed
        self._whole = [link.capacity_bytes_per_s for link in topology.links]
        self._left: dict[int, dict[int, float]] = {}
        self._numbers = count()

    def strike(self, links: Sequence[int], left: float) -> int:
        """Leave links the share `left` of their capacity from now on; return the number of this fault."""
        fault = next(self._numbers)
        for link in links:
            self._left.setdefault(link, {})[fault] = left
        self._apply(links)
        return fault

    def heal(self, fault: int, links: Sequence[int]) -> None:
        """End a fault; other faults on its links go on."""
        for link in links:
            del self._left[link][fault]
        self._apply(links)

    def set_whole(self, links: Sequence[int], bytes_per_s: int) -> None:
        """Change what links have by themselves."""
        for link in links:
            self._whole[link] = bytes_per_s
        self._apply(links)

    def _apply(self, links: Sequence[int]) -> None:
        by_capacity: dict[int, list[int]] = {}
        for link in links:
            left = min(self._left.get(link, {}).values(), default=1.0)
            by_capacity.setdefault(round(self._whole[link] * left), []).append(link)
        for bytes_per_s in sorted(by_capacity):  # what dies does so before anything is routed onto what is repaired
            self._network.set_capacity(by_capacity[bytes_per_s], bytes_per_s)
        if self._changed is not None:
            self._changed(links)


Report = Callable[[str, str, str], None]
"""Called with (kind, subject, detail) of what happened."""


def strike_at(env: Clock, health: LinkHealth, fault: Fault, report: Report) -> Generator[Event, Any, None]:
    """Break a part at its time and repair it after; a process."""
    if fault.at_ns > env.now:
        yield env.timeout(fault.at_ns - env.now)
    report("fault", fault.part.name, _what_is_left(fault.part, fault.left))
    number = health.strike(fault.part.links, fault.left)
    if fault.repair_ns is not None:
        yield env.timeout(fault.repair_ns)
        report("repair", fault.part.name, f"{len(fault.part.links)} links")
        health.heal(number, fault.part.links)


def strike_at_random(
    env: Clock, health: LinkHealth, faults: RandomFaults, rng: np.random.Generator, report: Report
) -> Generator[Event, Any, None]:
    """Break parts and repair them, for ever; a process."""
    first = rng.exponential(faults.mtbf_ns, len(faults.parts))
    # (time, part, the fault that ends then or None for one that begins)
    due: list[tuple[int, int, int | None]] = [
        (env.now + round(after), index, None) for index, after in enumerate(first)
    ]
    heapq.heapify(due)
    while True:
        at_ns, index, number = due[0]
        if at_ns > env.now:
            yield env.timeout(at_ns - env.now)
        struck = faults.parts[index]
        if number is None:
            report("fault", struck.name, _what_is_left(struck, faults.left))
            number = health.strike(struck.links, faults.left)
            heapq.heapreplace(due, (at_ns + faults.repair_ns, index, number))
        else:
            report("repair", struck.name, f"{len(struck.links)} links")
            health.heal(number, struck.links)
            heapq.heapreplace(due, (at_ns + round(rng.exponential(faults.mtbf_ns)), index, None))


def _what_is_left(struck: Part, left: float) -> str:
    return f"{len(struck.links)} links " + (f"at {left:g} of their capacity" if left else "dead")
