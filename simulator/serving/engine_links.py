"""What the collectives of engines and the rest of the live network do to each other.

Model: a collective goes over many queue pairs at once (DeepEP has one for each peer and channel, or local expert), a
cache over one: while it moves it has the links between nodes for itself, and other flows have them the rest of the
time. Flows outlast steps, so what counts is the mean over a step. Links that are degraded, or dead with others beside
them, slow a collective down as its most loaded link does; without a way between two of its ranks it hangs until there
is one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from itertools import permutations
from math import inf
from typing import Any, NamedTuple, Protocol

import numpy as np

from simulator.clock import Clock
from simulator.device.cost import Cost, RooflineCost
from simulator.device.speculation import LinkedCost
from simulator.errors import InputError
from simulator.model.forward import Work
from simulator.model.operators import Collective
from simulator.network.collectives import Collectives
from simulator.network.collectives_shape import GroupShape, group_nodes, sent_loads, way_loads
from simulator.network.fabric import Fabric
from simulator.network.group_times import GroupTimes, groups, stages
from simulator.serving.across_nodes import AcrossNodes
from simulator.serving.instance import Instance
from simulator.topology.graph import Topology
from simulator.units import NS_PER_S

MOST = 10 / 11
"""Share of a link that collectives take at most: ten queue pairs of eleven, an assumption."""
STEP = 1 / 64
"""By which the share of links that an engine takes has to change before flows hear of it."""
MOST_KNOWN = 256
"""States of the links of engines that are remembered."""
DIGITS = 12
"""Of shares of links: what is left of sums that should be equal is no reason to share anew."""


class Network(Protocol):
    """What runs flows: a Fabric, or a StepNetwork."""

    env: Clock
    capacities: list[int]
    """In bytes/s, by link."""


@dataclass
class _Place:
    """An engine, the links that its groups use, and its collectives at present."""

    instance: AcrossNodes
    times: GroupTimes
    """On its own devices, as built."""
    domain: int
    """Devices of a scale-up domain."""
    to_all: bool
    """Whether its ranks exchange tokens, each with all others, and not only partial sums along the rails."""
    used: Sequence[int]
    """While all of them work."""
    cost: LinkedCost
    shapes: tuple[GroupShape, ...]
    """Of its groups, by which it goes at present."""
    built: Any
    """Bytes on each link for a byte that each rank sends to other nodes, as built."""
    loads: Any
    """The same at present, on each of `ways`."""
    ways: Any
    detours: frozenset[int] | None = None
    """Links by which it goes where some are others than those that it used while all worked; none: without a way."""
    capacities: Any = None
    """Of each of `ways` what background leaves, in bytes/s, at present."""
    fullest: float = 0.0
    """Of the link that sets the rate: its share that a byte per second of each rank takes."""
    rate: float = 0.0
    """Bytes per second that each rank sends to other nodes."""
    since_ns: int = 0
    sent_bytes: float = 0.0
    """What each had sent by then."""
    heard: float = 0.0
    """The rate that flows have heard of."""
    known: bool = False
    """Whether flows have heard of it since the links last changed."""

    def count(self, now_ns: int) -> None:
        """Count what has been sent by now."""
        self.sent_bytes += self.rate * ((now_ns - self.since_ns) / NS_PER_S)
        self.since_ns = now_ns


class _Present(NamedTuple):
    """How an engine goes by links that have changed."""

    times: GroupTimes
    loads: Any
    """On each link; None where some ranks have no way to others."""
    detours: frozenset[int] | None
    """See `_Place.detours`."""


class EngineLinks:
    """Has flows see the collectives of engines, and these the faults of links.

    `left` is the share of each link that background leaves, `retime` has an engine go by another cost, and
    `event(kind, subject, detail)` writes. Of a network without flow fidelity they do not see each other.
    """

    def __init__(
        self,
        network: Network,
        topology: Topology,
        left: Sequence[float],
        retime: Callable[[Instance], None],
        event: Callable[[str, str, str], None],
    ) -> None:
        self._network, self._topology, self._left = network, topology, np.array(left)
        self._fabric: Fabric | None = network if isinstance(network, Fabric) else None
        self._retime, self._event = retime, event
        self._places: dict[str, _Place] = {}
        self._on: dict[int, list[str]] = {}  # engines by the links that they use
        self._sent = np.zeros(len(topology.links))  # bytes of engines that have left
        self._taken = np.zeros(len(topology.links))  # bytes/s of all engines
        self._dead: set[int] = set()
        self._most = np.zeros(len(topology.links))  # of what a link has, at any time
        self._known: dict[tuple[str, bytes], _Present] = {}  # by engine and what its links have
        self._costs: dict[tuple[int, tuple[GroupShape, ...]], tuple[LinkedCost, LinkedCost]] = {}

    def joined(self, instance: AcrossNodes) -> None:
        """Take in an engine, whose cost has a place in the topology; it goes by what its links have now."""
        cost = instance.engine.cost
        assert isinstance(cost, LinkedCost)
        assert isinstance(cost.links, GroupTimes)
        times = GroupTimes(cost.links.collectives, cost.links.layout, instance.devices)
        target = cost if isinstance(cost, RooflineCost) else cost.target
        assert isinstance(target, RooflineCost)
        to_all = _exchanges(target)
        loads = _loads(self._topology, times, to_all)
        ways = np.flatnonzero(loads)
        used = np.flatnonzero(_reach(self._topology, times) + loads).tolist()
        domain = target.accelerator.domain
        shapes = _what_counts(times.shapes(domain), to_all)
        place = _Place(instance, times, domain, to_all, used, cost, shapes, loads, loads[ways], ways)
        self._measure(place)
        self._places[instance.name] = place
        for link in used:
            self._on.setdefault(link, []).append(instance.name)
        if len(ways):
            instance.sends = lambda sent_bytes, lasts_ns: self._runs(place, sent_bytes, lasts_ns)
        built = np.array(times.collectives.capacities)
        if np.any(built[used] != self._capacities()[used]):
            self._follow(place)

    def leaves(self, instance: Instance) -> None:
        """Let an engine go, which is idle."""
        place = self._places.pop(instance.name, None)
        if place is not None:
            self._runs(place, 0.0, 1.0)
            self._settle(place)
            for link in place.used:
                self._on[link].remove(instance.name)

    def sent_bytes(self) -> dict[int, int]:
        """Return what collectives have kept each link between nodes busy with, as bytes at its rate, by link."""
        for place in self._places.values():
            self._settle(place)
        return {int(link): round(float(self._sent[link])) for link in np.flatnonzero(self._sent)}

    def _settle(self, place: _Place) -> None:
        """Count what an engine has sent so far as what has been by the links of its present ways."""
        place.count(self._network.env.now)
        self._sent[place.ways] += place.loads * place.sent_bytes
        place.sent_bytes = 0.0

    def cost_of(self, instance: Instance) -> Cost:
        """Return the present cost of an engine."""
        place = self._places.get(instance.name)
        return instance.engine.cost if place is None else place.cost

    def changed(self, links: Sequence[int]) -> None:
        """Have the engines that use links with another capacity go by it."""
        names = {name: None for link in links for name in self._on.get(link, ())}
        repaired = self._repaired(links)
        for name, place in self._places.items():
            if place.detours is not None and (repaired or not place.detours.isdisjoint(links)):
                names[name] = None
        for name in names:
            self._follow(self._places[name])

    def _repaired(self, links: Sequence[int]) -> bool:
        """Return whether some of these links were dead and no longer are."""
        works = {link for link in links if self._network.capacities[link]}
        repaired = not self._dead.isdisjoint(works)
        self._dead = (self._dead | set(links)) - works
        return repaired

    def _capacities(self) -> Any:
        """Return what background leaves of each link at present, in bytes/s."""
        return np.array(self._network.capacities) * self._left

    def _follow(self, place: _Place) -> None:
        """Have an engine go by what its links have now, and over those that are left."""
        capacities = self._capacities()
        times, loads, place.detours = self._present(place, capacities)
        if loads is not None:  # else it halts after the step under way
            self._move(place, loads)
        self._measure(place)
        if self._fabric is not None and place.heard:
            self._share(self._fabric, place.ways, _parts(self._taken[place.ways], place.capacities))
        self._relink(place, times)

    def _present(self, place: _Place, capacities: Any) -> _Present:
        """Return how an engine goes by what its links have; it is remembered, for the same parts break again."""
        name, have = place.instance.name, capacities[place.used].tobytes()
        known = self._known.get((name, have))
        if known is not None and known.detours is not None:  # which may go by any link
            known = self._known.get((name, blake2b(capacities.tobytes()).digest()))
        if known is None:
            if len(self._known) >= MOST_KNOWN:
                self._known.clear()
            known = self._known[name, have] = self._found(place, capacities)
            if known.detours is not None:
                self._known[name, blake2b(capacities.tobytes()).digest()] = known
        return known

    def _found(self, place: _Place, capacities: Any) -> _Present:
        built = place.times.collectives
        collectives = Collectives(self._topology, built.constants, built.plane, capacities.tolist())
        times = GroupTimes(collectives, place.times.layout, place.instance.devices)
        if capacities[place.used].all():
            return _Present(times, place.built, None)
        try:
            loads = _loads(self._topology, times, place.to_all)
            now = frozenset(np.flatnonzero(loads + _reach(self._topology, times)).tolist())
        except InputError:  # no way between some
            return _Present(times, None, frozenset())
        return _Present(times, loads, None if now.issubset(place.used) else now)

    def _move(self, place: _Place, loads: Any) -> None:
        """Have an engine's bytes go by other links from now on."""
        ways = np.flatnonzero(loads)
        if np.array_equal(ways, place.ways) and np.array_equal(loads[ways], place.loads):
            return
        self._settle(place)
        before = place.ways
        self._taken[before] -= place.heard * place.loads
        place.ways, place.loads = ways, loads[ways]
        self._taken[ways] += place.heard * place.loads
        freed = np.setdiff1d(before, ways)
        if self._fabric is not None and place.heard and len(freed):
            self._share(self._fabric, freed, _parts(self._taken[freed], self._capacities()[freed]))

    def _relink(self, place: _Place, links: GroupTimes) -> None:
        instance = place.instance
        before, now = (_what_counts(times.shapes(place.domain), place.to_all) for times in (place.times, links))
        least = min(map(_rates_left, before, now), default=1.0)
        if least == 0:
            if not instance.halted:
                self._event("engine halted", instance.name, "some of its ranks have no way to others")
                instance.halt()
            return
        if now != place.shapes:
            own = instance.engine.cost
            assert isinstance(own, LinkedCost)
            place.shapes, place.cost = now, own if now == before else self._relinked(own, now, links)
            self._event("engine retimed", instance.name, f"its collectives have {least:.0%} of the links as built")
            self._retime(instance)
        if instance.halted:
            self._event("engine goes on", instance.name, "its ranks have ways to each other again")
            instance.go_on()

    def _relinked(self, own: LinkedCost, shapes: tuple[GroupShape, ...], links: GroupTimes) -> LinkedCost:
        """Return an engine's cost with collectives over other links, one for all whose groups have these shapes."""
        key = id(own), shapes
        if key not in self._costs:
            if len(self._costs) >= MOST_KNOWN:
                self._costs.clear()
            self._costs[key] = own, own.relinked(links)
        return self._costs[key][1]

    def _measure(self, place: _Place) -> None:
        """Note what the links between nodes have now; flows hear anew of what an engine takes of them."""
        place.capacities = self._capacities()[place.ways]
        place.fullest = float(_parts(place.loads, place.capacities).max(initial=0.0))
        place.known = not place.heard

    def _runs(self, place: _Place, sent_bytes: float, lasts_ns: float) -> None:
        """Let flows know what an engine's ranks send to other nodes from now on, unless it is about what they know."""
        rate, before = sent_bytes * NS_PER_S / lasts_ns, place.heard
        if rate != place.rate:
            place.count(self._network.env.now)
            place.rate = rate
        if self._fabric is None or (place.known and abs(rate - before) * place.fullest < STEP and (rate or not before)):
            return
        place.heard, place.known = rate, True
        ways = place.ways
        self._taken[ways] += (rate - before) * place.loads
        asked = _parts(self._taken[ways], place.capacities)
        if all(each.known for each in self._places.values()):  # none still at the pace of links that have changed
            self._most[ways] = np.maximum(self._most[ways], asked)
        self._share(self._fabric, ways, asked)

    def _share(self, fabric: Fabric, ways: Any, asked: Any) -> None:
        """Have flows hear which shares of links collectives ask for."""
        parts = np.clip(asked, 0.0, MOST) * self._left[ways]
        values, like = np.unique(np.round(parts, DIGITS), return_inverse=True)
        for index, share in enumerate(values.tolist()):
            fabric.set_background(ways[like == index].tolist(), "engines", share)

    def notes(self) -> list[str]:
        """Return a note where collectives of several engines together ask more of a link than it has."""
        worst = int(self._most.argmax()) if len(self._most) else 0
        if not len(self._most) or self._most[worst] <= 1 + STEP:
            return []
        link = self._topology.links[worst]
        what = f"collectives of engines ask {self._most[worst]:.2f} times what {link.source} to {link.target} has"
        return [f"network: {what}; they are timed engine by engine, so their steps are too short"]


def _exchanges(cost: RooflineCost) -> bool:
    """Return whether ranks exchange tokens with experts on others."""
    shapes = [operator.shape for operator, _ in cost.kernels(Work(1, 1, 1, 1, 1))]
    return any(isinstance(shape, Collective) and shape.group == "expert" for shape in shapes)


def _loads(topology: Topology, times: GroupTimes, to_all: bool) -> Any:
    """Return the bytes on each link when each rank of an engine sends a byte to other nodes.

    Within its stage, or where stages are within nodes to its like in the next one. Raises InputError where there is no
    way.
    """
    collectives = times.collectives
    loads = np.zeros(len(topology.links))
    for stage in stages(times.layout, times.devices):
        loads += sent_loads(topology, stage, collectives.shape(stage), collectives.capacities, to_all)
    return loads if np.any(loads) else _between_stages(topology, times)


def _between_stages(topology: Topology, times: GroupTimes) -> Any:
    """Return the bytes on each link when ranks send a byte on average, all of them to their like on another node.

    The ranks of the last stage send nothing, nor do those whose like in the next stage is on their own node.
    """
    loads, turns = np.zeros(len(topology.links)), 0
    for turn in groups(times.layout, "pipeline", times.devices):
        crossing = [(a, b) for a, b in turn if topology.sites[a].node != topology.sites[b].node]
        turns += bool(crossing)
        loads += way_loads(topology, crossing, times.collectives.capacities)
    return loads * (times.layout.pipeline / turns) if turns else loads


def _reach(topology: Topology, times: GroupTimes) -> Any:
    """Return loads on all links by which ranks of a node, and likes in stages that follow each other, have ways.

    Raises InputError where some have none.
    """
    ways = [(a, b) for turn in groups(times.layout, "pipeline", times.devices) for a, b in turn]
    for node in group_nodes(topology, times.devices):
        ways += permutations(node, 2)
    return way_loads(topology, ways, times.collectives.capacities)


def _what_counts(shapes: Sequence[GroupShape], to_all: bool) -> tuple[GroupShape, ...]:
    """Return shapes with the rates that collectives hang on: sums go along the rails, whatever is above them."""
    if to_all:
        return tuple(shapes)
    return tuple(replace(s, cross_bytes_per_s=inf, inside_bytes_per_s=None, all_bytes_per_s=None) for s in shapes)


def _parts(loads: Any, capacities: Any) -> Any:
    """Return the shares of links that loads are; of a dead one nothing."""
    return np.divide(loads, capacities, out=np.zeros(len(loads)), where=capacities > 0)


def _rates_left(built: GroupShape, now: GroupShape) -> float:
    """Return the least that is left of the rates of a group, as a share."""
    pairs = [
        (built.local_bytes_per_s, now.local_bytes_per_s),
        (built.rate_inside(to_all=True), now.rate_inside(to_all=True)),
        (built.rail_bytes_per_s, now.rail_bytes_per_s),
        (built.cross_bytes_per_s, now.cross_bytes_per_s),
    ]
    return min((after / before for before, after in pairs if 0 < before < inf), default=1.0)
