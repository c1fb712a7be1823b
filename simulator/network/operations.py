"""A collective or an expert exchange as something that runs: a wait, phases of concurrent flows, and a wait.

Model: the waits are the measured start-up and hops; a phase is what a pipelined library does in steady state, all flows
of it at once; ranks move no more than their kernels do (engines), and protocols put more on the wire than the payload.
On a healthy symmetric group that is the closed form, to rounding; with other traffic, or a group that is hurt, the
network says how long a phase takes.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from math import ceil, inf
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from simpy import Event

from simulator.clock import Clock
from simulator.network.collectives import FORMS, Collectives, kernel_of
from simulator.network.collectives_constants import Phase as Constants
from simulator.network.collectives_phases import Exchange, Phase, phases
from simulator.network.collectives_shape import between_nodes, group_nodes
from simulator.network.dispatch import Traffic, exchange_ns, start_ns, work_ns
from simulator.network.fabric import Send, Transfer
from simulator.network.routing import Shares, split_bytes
from simulator.network.step_network import StepNetwork
from simulator.topology.graph import Topology
from simulator.topology.spreading import exchange_loads, path_weights
from simulator.units import NS_PER_S


class Network(Protocol):
    """What runs flows: a Fabric, or a StepNetwork."""

    def route(self, source: int, target: int) -> Shares:
        """Return the paths of the next transfer and their shares."""

    def launch(self, sends: Sequence[Send], lane: int = 0, latency_ns: int | None = None) -> Transfer:
        """Send over chosen paths; `latency_ns` takes the place of theirs."""

    def add_engine(self, bytes_per_s: float) -> int:
        """Return a limit that flows share."""

    def release_engine(self, engine: int) -> None:
        """Give it back."""


@dataclass(frozen=True)
class Operation:
    """What one group runs; rates in bytes/s, times in ns.

    `ideal_ns` is the closed form. A rank moves at most `engine` of what passes its kernel: what it sends to ranks of
    its own node or, with `engine_for_all`, all that it sends; with `engine_in` also what it gets. What leaves a node
    is 1 / `network_share` of the payload on the wire. The phases take `least_ns` at least. `paced`: the flows of a
    phase wait for each other chunk by chunk, so each claims bandwidth in proportion to its bytes. `plane` carries all
    of it, if there is one that does.
    """

    algorithm: str
    protocol: str | None
    size_bytes: int
    ideal_ns: float
    latency_ns: int
    phases: tuple[Phase, ...]
    last_ns: int = 0
    engine: float = inf
    engine_for_all: bool = False
    engine_in: bool = False
    network_share: float = 1.0
    least_ns: int = 0
    paced: bool = True
    plane: str | None = None


def collective(
    collectives: Collectives,
    operation: str,
    devices: Sequence[int],
    size_bytes: int,
    algorithm: str | None = None,
    protocol: Any = None,
) -> Operation:
    """Return a collective of one group by the algorithm and protocol of the least time, or those that are named.

    Raises ValueError where nothing applies to the group.
    """
    named = None if algorithm is None else [algorithm]
    choice = collectives.choose(operation, devices, size_bytes, named, protocol)
    ideal_ns = choice.time_ns(size_bytes)
    if len(devices) == 1:
        return Operation(choice.algorithm, None, size_bytes, 0.0, 0, ())
    kernel = kernel_of(collectives.constants, operation, choice.algorithm, choice.protocol)
    shape, nodes = collectives.shape(devices), group_nodes(collectives.topology, devices)
    load = FORMS[operation][choice.algorithm][1](shape)
    assert load is not None  # it was chosen
    own_ns = 0.0
    if kernel.own_share is not None and shape.local_bytes_per_s < inf:
        own_ns = load.own * size_bytes / (kernel.own_share * shape.local_bytes_per_s) * NS_PER_S
    return Operation(
        choice.algorithm,
        choice.protocol,
        size_bytes,
        ideal_ns,
        round(choice.latency_ns),
        tuple(phases(collectives.topology, operation, choice.algorithm, nodes, size_bytes)),
        round(own_ns),
        engine=kernel.local_share * shape.local_bytes_per_s,
        engine_for_all=choice.algorithm == "ring",
        network_share=kernel.network_share,
        plane=collectives.plane,
    )


def expert_exchange(
    collectives: Collectives,
    devices: Sequence[int],
    traffic: Traffic,
    constants: Constants,
    form: str,
    processors: int | None = None,
) -> Operation:
    """Return the dispatch or combine of one group: `traffic` between its ranks, in the order of `devices`."""
    shape, network_rate = collectives.shape(devices), inf
    if shape.nodes > 1:
        network_rate = shape.cross_bytes_per_s if form == "low_latency" else shape.rail_bytes_per_s
    ideal_ns = exchange_ns(traffic, constants, shape.local_bytes_per_s, network_rate, processors)
    shards = [shard for round_ in traffic.rounds(devices) for shard in round_]
    sent: dict[int, int] = {}
    for source, _, size in shards:
        sent[source] = sent.get(source, 0) + size
    return Operation(
        form,
        None,
        max(sent.values(), default=0),
        ideal_ns,
        start_ns(traffic, constants),
        (Phase(shards),) if shards else (),
        engine=constants.local_share * shape.local_bytes_per_s,
        engine_in=True,
        paced=False,
        plane=collectives.plane,
        network_share=constants.network_share,
        least_ns=round(work_ns(traffic, constants, shape.local_bytes_per_s, processors)),
    )


def run(
    env: Clock, network: Network, topology: Topology, operation: Operation, lane: int = 0
) -> Generator[Event, Any, None]:
    """Run an operation of one group on a network: a process, or part of one.

    Raises DeadLinkError as the network's transfers do.
    """
    if operation.latency_ns:
        yield env.timeout(operation.latency_ns)
    begun_ns = env.now
    for phase in operation.phases:
        engines = _Engines(network, operation)
        if phase.exchange is not None and isinstance(network, StepNetwork) and network.spreads_evenly:
            yield network.exchange(*_loads(topology, operation, phase.exchange))
            continue
        sends = _sends(network, topology, operation, phase, engines)
        if sends:
            yield network.launch(sends, lane, latency_ns=0)
        engines.release()  # not after a failure: some flows of the phase may still go through them
    rest_ns = max(0, begun_ns + operation.least_ns - env.now) + operation.last_ns
    if rest_ns:
        yield env.timeout(rest_ns)


def link_bytes(topology: Topology, operation: Operation) -> NDArray[np.float64]:
    """Return the bytes that an operation puts on every link in all, its flows spread evenly over equal-cost paths."""
    total = np.zeros(len(topology.links))
    place = topology.endpoints
    for phase in operation.phases:
        if phase.exchange is not None:
            total += _loads(topology, operation, phase.exchange)[0]
        for source, target, size_bytes in phase.shards:
            share = 1.0 if place[source].node == place[target].node else operation.network_share
            for link, part in path_weights(topology.paths(source, target, operation.plane)).items():
                total[link] += part * size_bytes / share
        for half in phase.halves:
            total[list(half.path)] += half.size_bytes
    return total


def _loads(topology: Topology, operation: Operation, exchange: Exchange) -> tuple[NDArray[np.float64], float]:
    """Return the bytes that an exchange puts on every link, and the time that its engines need."""
    ranks, width = exchange.ranks, max(map(len, exchange.nodes))
    each = exchange.size_bytes / len(ranks)
    loads = exchange_loads(topology, ranks, each, operation.plane)
    if operation.network_share < 1 and len(exchange.nodes) > 1:
        outside = exchange_loads(topology, ranks, each, operation.plane, between_nodes(exchange.nodes))
        loads += outside * (1 / operation.network_share - 1)
    return loads, (width - 1) * each / operation.engine * NS_PER_S


class _Engines:
    """The kernels of a phase's ranks, each a limit on the payload that it moves."""

    def __init__(self, network: Network, operation: Operation) -> None:
        self._network = network
        self._operation = operation
        self._bytes: dict[tuple[int, bool], list[int]] = {}  # payload and what is on the wire, by rank and direction
        self._numbers: dict[tuple[int, bool], int] = {}

    def expect(self, keys: Sequence[tuple[int, bool]], payload: int, wire: int) -> None:
        """Count bytes that will pass; all of them before the first `through`."""
        for key in keys:
            total = self._bytes.setdefault(key, [0, 0])
            total[0] += payload
            total[1] += wire

    def through(self, keys: Sequence[tuple[int, bool]]) -> tuple[int, ...]:
        """Return the engines of these ranks; what protocols add on the wire is no work of theirs."""
        for key in keys:
            if key not in self._numbers:
                payload, wire = self._bytes[key]
                self._numbers[key] = self._network.add_engine(self._operation.engine * wire / payload)
        return tuple(self._numbers[key] for key in keys)

    def release(self) -> None:
        """Give all back."""
        for number in self._numbers.values():
            self._network.release_engine(number)


def _sends(network: Network, topology: Topology, operation: Operation, phase: Phase, engines: _Engines) -> list[Send]:
    """Return the flows of a phase, over the paths that the network's routing has for them."""
    place, limited = topology.endpoints, operation.engine < inf
    shards: list[tuple[int, int, int, list[tuple[int, bool]]]] = []
    for source, target, size_bytes in phase.exchange.shards() if phase.exchange is not None else phase.shards:
        local = place[source].node == place[target].node
        wire_bytes = size_bytes if local else ceil(size_bytes / operation.network_share)
        keys: list[tuple[int, bool]] = []
        if limited and size_bytes and (local or operation.engine_for_all):
            keys = [(source, False), (target, True)] if operation.engine_in else [(source, False)]
        engines.expect(keys, size_bytes, wire_bytes)
        shards.append((source, target, wire_bytes, keys))
    halves = [(half, [(half.device, half.inward)] if limited and half.size_bytes else []) for half in phase.halves]
    for half, keys in halves:
        engines.expect(keys, half.size_bytes, half.size_bytes)
    largest = max((size for _, _, size, _ in shards), default=1)
    sends: list[Send] = []
    for source, target, wire_bytes, keys in shards:
        shares, through = network.route(source, target), engines.through(keys)
        weight = wire_bytes / largest if operation.paced else 1.0
        for (path, share), part in zip(shares, split_bytes(wire_bytes, shares) if shares else (), strict=True):
            if part:
                sends.append(Send(path, part, (source, target), weight * share, None, through))
    sends += [
        Send(half.path, half.size_bytes, None, 1, None, engines.through(keys))
        for half, keys in halves
        if half.size_bytes
    ]
    return sends
