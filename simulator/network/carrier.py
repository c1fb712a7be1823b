"""Transfers between devices that are bound to a plane of the topology, a lane of priority, or a rate of their own."""

from collections.abc import Callable, Sequence
from typing import Protocol

from simpy import Event

from simulator.network.bundle import Send, Transfer
from simulator.network.routing import Spread, Way, Ways
from simulator.topology.graph import Topology

Reach = Callable[[int, int], int | None]
"""Bytes per second that a flow between two endpoints reaches at most; none: all that its links give."""


class Network(Protocol):
    """What runs flows: a Fabric, or a StepNetwork."""

    def way(self, source: int, target: int) -> Way | None:
        """Return the way of the next transfer."""

    def alive(self, way: Way, ends: tuple[int, int], sequence: int, spread: Spread | None = None) -> Way:
        """Return a way, or that around what is dead on it, by `spread` if that has one."""

    def launch(self, sends: Sequence[Send], lane: int = 0, latency_ns: int | None = None) -> Transfer:
        """Send over chosen paths."""


class Carrier:
    """Sends over the paths of `spread`, a routing on a plane, in lane `lane` (0: the highest priority).

    Without a `spread` over those of the network, whose routing may go by all flows under way. A flow whose path is dead
    takes what is left of the plane; where that is nothing it goes as the network routes all. `reach` bounds the rate of
    each flow.
    """

    def __init__(
        self,
        network: Network,
        topology: Topology,
        seed: int,
        spread: Spread | None,
        lane: int = 0,
        reach: Reach | None = None,
    ) -> None:
        self._network, self._lane, self._spread, self._reach = network, lane, spread, reach
        self._ways = None if spread is None else Ways(topology, seed, spread)
        self._sent = 0

    def transfer(self, shards: Sequence[tuple[int, int, int]]) -> Event:
        """Return an event that fires when every (source, target, bytes) has arrived; zero bytes take the latency."""
        sends: list[Send] = []
        for source, target, size_bytes in shards:
            self._sent += 1
            way = self._way(source, target)
            if way is not None:
                ends, cap = (source, target), self._reach(source, target) if self._reach else None
                sends.append(Send(way.path, size_bytes, ends, cap_bytes_per_s=cap, way=way, spread=self._spread))
        return self._network.launch(sends, self._lane)

    def _way(self, source: int, target: int) -> Way | None:
        if self._ways is None:
            return self._network.way(source, target)
        way = self._ways(source, target, self._sent)
        return None if way is None else self._network.alive(way, (source, target), self._sent, self._spread)
