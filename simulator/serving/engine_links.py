"""What the collectives of engines and the rest of the live network do to each other.

Model: a collective goes over many queue pairs at once (DeepEP's kernels over ten and more for each peer), a cache over
one: while it moves it has the links between nodes for itself, and other flows have them the rest of the time. Flows
outlast steps, so what counts is the mean over a step. Links that are degraded, or dead with others beside them, slow a
collective down as its most loaded link does; without a way between two of its ranks it hangs until there is one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import inf
from typing import Any, Protocol

import numpy as np

from simulator.clock import Clock
from simulator.device.cost import Cost, RooflineCost
from simulator.device.speculation import LinkedCost
from simulator.network.collectives import Collectives
from simulator.network.collectives_shape import GroupShape, group_nodes, sent_loads
from simulator.network.fabric import Fabric
from simulator.network.group_times import GroupTimes
from simulator.serving.across_nodes import AcrossNodes
from simulator.serving.instance import Instance
from simulator.topology.graph import Topology
from simulator.topology.spreading import exchange_loads, shard_loads
from simulator.units import NS_PER_S

MOST = 10 / 11
"""Share of a link that collectives take at most: ten queue pairs of eleven."""
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
    used: Sequence[int]
    cost: LinkedCost
    loads: Any
    """Bytes on each of `ways` for a byte that each rank sends to other nodes."""
    ways: Any
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
        self._most = np.zeros(len(topology.links))  # of what a link has, at any time
        self._known: dict[tuple[str, bytes], GroupTimes] = {}  # by engine and what its links have
        self._costs: dict[tuple[int, tuple[GroupShape, ...]], tuple[LinkedCost, LinkedCost]] = {}

    def joined(self, instance: AcrossNodes) -> None:
        """Take in an engine, whose cost has a place in the topology."""
        cost = instance.engine.cost
        assert isinstance(cost, LinkedCost)
        assert isinstance(cost.links, GroupTimes)
        times = GroupTimes(cost.links.collectives, cost.links.layout, instance.devices)
        loads = _loads(self._topology, times)
        ways = np.flatnonzero(loads)
        others = [_inside(self._topology, instance.devices), _between_stages(self._topology, times)]
        used = np.flatnonzero(sum(others, loads)).tolist()
        target = cost if isinstance(cost, RooflineCost) else cost.target
        assert isinstance(target, RooflineCost)
        place = _Place(instance, times, target.accelerator.domain, used, cost, loads[ways], ways)
        self._measure(place)
        self._places[instance.name] = place
        for link in used:
            self._on.setdefault(link, []).append(instance.name)
        if len(ways):
            instance.sends = lambda sent_bytes, lasts_ns: self._runs(place, sent_bytes, lasts_ns)

    def leaves(self, instance: Instance) -> None:
        """Let an engine go, which is idle."""
        place = self._places.pop(instance.name, None)
        if place is not None:
            self._runs(place, 0.0, 1.0)
            self._sent += self._sent_by(place)
            for link in place.used:
                self._on[link].remove(instance.name)

    def sent_bytes(self) -> dict[int, int]:
        """Return what collectives have kept each link between nodes busy with, as bytes at its rate, by link."""
        whole = sum((self._sent_by(place) for place in self._places.values()), self._sent)
        return {int(link): round(float(whole[link])) for link in np.flatnonzero(whole)}

    def _sent_by(self, place: _Place) -> Any:
        place.count(self._network.env.now)
        loads = np.zeros(len(self._sent))
        loads[place.ways] = place.loads * place.sent_bytes
        return loads

    def cost_of(self, instance: Instance) -> Cost:
        """Return the present cost of an engine."""
        place = self._places.get(instance.name)
        return instance.engine.cost if place is None else place.cost

    def changed(self, links: Sequence[int]) -> None:
        """Have the engines that use links with another capacity go by it."""
        names = {name: None for link in links for name in self._on.get(link, ())}
        capacities = np.array(self._network.capacities) * self._left
        for name in names:
            place = self._places[name]
            self._measure(place)
            self._relink(place, self._present(place, capacities))

    def _present(self, place: _Place, capacities: Any) -> GroupTimes:
        """Return the times of an engine's collectives on what its links have; the same parts break again and again."""
        key = place.instance.name, capacities[place.used].tobytes()
        known = self._known.get(key)
        if known is None:
            if len(self._known) >= MOST_KNOWN:
                self._known.clear()
            built = place.times.collectives
            collectives = Collectives(self._topology, built.constants, built.plane, capacities.tolist())
            known = self._known[key] = GroupTimes(collectives, place.times.layout, place.instance.devices)
        return known

    def _relink(self, place: _Place, links: GroupTimes) -> None:
        instance = place.instance
        before, now = place.times.shapes(place.domain), links.shapes(place.domain)
        least = min(map(_rates_left, before, now), default=1.0)
        if least == 0:
            if not instance.halted:
                self._event("engine halted", instance.name, "some of its ranks have no way to others")
                instance.halt()
            return
        own = instance.engine.cost
        assert isinstance(own, LinkedCost)
        cost = own
        if before != now:
            key = id(own), now
            if key not in self._costs:
                self._costs[key] = own, own.relinked(links)
            cost = self._costs[key][1]
        if cost is not place.cost:
            place.cost = cost
            self._event("engine retimed", instance.name, f"its collectives have {least:.0%} of the links as built")
            self._retime(instance)
        if instance.halted:
            self._event("engine goes on", instance.name, "its ranks have ways to each other again")
            instance.go_on()

    def _measure(self, place: _Place) -> None:
        """Note what the links between nodes have now; flows hear anew of what an engine takes of them."""
        place.capacities = (np.array(self._network.capacities) * self._left)[place.ways]
        place.fullest = float(_parts(place.loads, place.capacities).max(initial=0.0))
        place.known = False

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
        asked = _parts(np.maximum(0.0, self._taken[ways]), place.capacities)
        self._most[ways] = np.maximum(self._most[ways], asked)
        parts = np.minimum(asked, MOST) * self._left[ways]
        values, groups = np.unique(np.round(parts, DIGITS), return_inverse=True)
        for index, share in enumerate(values.tolist()):
            self._fabric.set_background(ways[groups == index].tolist(), "engines", share)

    def notes(self) -> list[str]:
        """Return a note where collectives of several engines together ask more of a link than it has."""
        worst = int(self._most.argmax()) if len(self._most) else 0
        if not len(self._most) or self._most[worst] <= 1 + STEP:
            return []
        link = self._topology.links[worst]
        what = f"collectives of engines ask {self._most[worst]:.2f} times what {link.source} to {link.target} has"
        return [f"network: {what}; they are timed engine by engine, so their steps are too short"]


def _loads(topology: Topology, times: GroupTimes) -> Any:
    """Return the bytes on each link when each rank of an engine sends a byte to other nodes.

    Evenly to the ranks of its stage there, or where a stage is within a node to its like in the next stage.
    """
    loads = sum(sent_loads(topology, stage, times.collectives.shape(stage)) for stage in _stages(times))
    return loads if np.any(loads) else _between_stages(topology, times)


def _stages(times: GroupTimes) -> list[tuple[int, ...]]:
    devices, size = times.devices, times.layout.stage_devices
    return [devices[first : first + size] for first in range(0, len(devices), size)]


def _between_stages(topology: Topology, times: GroupTimes) -> Any:
    """Return the bytes on each link when each rank sends a byte to its like in the next stage."""
    pairs = [pair for here, there in pairwise(_stages(times)) for pair in zip(here, there, strict=True)]
    return shard_loads(topology, ((*pair, 1.0) for pair in pairs))


def _inside(topology: Topology, devices: Sequence[int]) -> Any:
    """Return the bytes on each link when each device of an engine sends one to all others of its node."""
    return sum(exchange_loads(topology, node, 1.0) for node in group_nodes(topology, devices))


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
