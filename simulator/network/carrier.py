"""Transfers between devices that are bound to a plane of the topology, or to a lane of priority, or to both."""

from collections.abc import Sequence
from typing import Protocol

from simpy import Event

from simulator.network.bundle import Transfer
from simulator.network.fabric import Send
from simulator.network.routing import Spread, Way, Ways
from simulator.topology.graph import Topology


class Network(Protocol):
    """What runs flows: a Fabric, or a StepNetwork."""

    def way(self, source: int, target: int) -> Way | None:
        """Return the way of the next transfer."""

    def launch(self, sends: Sequence[Send], lane: int = 0, latency_ns: int | None = None) -> Transfer:
        """Send over chosen paths."""


class Carrier:
    """Sends over the paths of `spread`, a routing on a plane, in lane `lane` (0: the highest priority).

    Without a `spread` over those of the network, whose routing may go by all flows under way. A flow whose path dies
    is routed anew as the network routes all.
    """

    def __init__(self, network: Network, topology: Topology, seed: int, spread: Spread | None, lane: int = 0) -> None:
        self._network, self._lane = network, lane
        self._ways = None if spread is None else Ways(topology, seed, spread)
        self._sent = 0

    def transfer(self, shards: Sequence[tuple[int, int, int]]) -> Event:
        """Return an event that fires when every (source, target, bytes) has arrived; zero bytes take the latency."""
        sends: list[Send] = []
        for source, target, size_bytes in shards:
            self._sent += 1
            ways = self._ways
            way = self._network.way(source, target) if ways is None else ways(source, target, self._sent)
            if way is not None:
                sends.append(Send(way.path, size_bytes, (source, target), way=way))
        return self._network.launch(sends, self._lane)
