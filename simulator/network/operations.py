"""A collective or an expert exchange as something that runs: a wait, phases of concurrent flows, and a wait.

Model: the waits are the measured start-up and hops; a phase is what a pipelined library does in steady state, all flows
of it at once; ranks move no more than their kernels do (engines), and protocols put more on the wire than the payload.
On a healthy symmetric group that is the closed form, to rounding; with other traffic, or a group that is hurt, the
network says how long a phase takes.
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from math import ceil, inf
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from simpy import Event

from simulator.clock import Clock
from simulator.network.bundle import Send, Transfer
from simulator.network.collectives import FORMS, Collectives, kernel_of
from simulator.network.collectives_constants import Phase as Constants
from simulator.network.collectives_phases import Exchange, Phase, phases
from simulator.network.collectives_shape import between_nodes, group_nodes
from simulator.network.dispatch import Traffic, start_ns, work_ns
from simulator.network.fabric import DeadLinkError
from simulator.network.routing import Way
from simulator.network.step_network import Step, StepNetwork
from simulator.network.transport import PLAIN, Transport
from simulator.topology.graph import Topology
from simulator.topology.spreading import exchange_loads, shard_loads
from simulator.units import NS_PER_S

Key = tuple[int, bool]
"""The kernel of a rank, for what it sends (False) or for what it gets (True)."""

Floats = NDArray[np.float64]


class Network(Protocol):
    """What runs flows: a Fabric, or a StepNetwork."""

    def way(self, source: int, target: int) -> Way | None:
        """Return the way of the next transfer between two endpoints; None within one device."""

    def launch(self, sends: Sequence[Send], lane: int = 0, latency_ns: int | None = None) -> Transfer:
        """Send over chosen paths; `latency_ns` takes the place of theirs."""

    def add_engine(self, bytes_per_s: float) -> int:
        """Return a limit that flows share."""

    def release_engine(self, engine: int) -> None:
        """Give it back."""


@dataclass(frozen=True)
class Operation:
    """What one group runs; rates in bytes/s, times in ns.

    `ideal_ns` is the closed form on the network as it was built (see `timed`). A rank moves at most `engine` of what
    passes its kernel: what it sends to ranks of its own node or, with `engine_for_all`, all that it sends; with
    `engine_in` also what it gets. What leaves a node is 1 / `network_share` of the payload on the wire. The phases take
    `least_ns` at least. `paced`: the flows of a phase wait for each other chunk by chunk, so each claims bandwidth in
    proportion to its bytes. `plane` carries all of it, if there is one that does.
    """

    algorithm: str
    protocol: str | None
    size_bytes: int
    latency_ns: int
    phases: tuple[Phase, ...]
    last_ns: int = 0
    engine: float = inf
    engine_for_all: bool = False
    engine_in: bool = False
    network_share: float = 1.0
    least_ns: int = 0
    paced: bool = True
    ideal_ns: float = 0.0
    plane: str | None = None
    _steps: dict[Transport, tuple[Step, ...]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def steps(self, topology: Topology, transport: Transport) -> tuple[Step, ...]:
        """Return the bytes of each phase on every link, spread evenly over equal-cost paths; worked out once."""
        if transport not in self._steps:
            self._steps[transport] = tuple(_step(topology, transport, self, phase) for phase in self.phases)
        return self._steps[transport]


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
    if len(devices) == 1:
        return Operation(choice.algorithm, None, size_bytes, 0, ())
    kernel = kernel_of(collectives.constants, operation, choice.algorithm, choice.protocol)
    topology, plane, shape = collectives.topology, collectives.plane, collectives.shape(devices)
    load = FORMS[operation][choice.algorithm][1](shape)
    assert load is not None  # it was chosen
    own_ns = 0.0
    if kernel.own_share is not None and shape.local_bytes_per_s < inf:
        own_ns = load.own * size_bytes / (kernel.own_share * shape.local_bytes_per_s) * NS_PER_S
    one = Operation(
        choice.algorithm,
        choice.protocol,
        size_bytes,
        round(choice.latency_ns),
        tuple(phases(topology, operation, choice.algorithm, group_nodes(topology, devices), size_bytes, plane)),
        round(own_ns),
        engine=_engine(kernel.local_share, shape.rate_inside(load.to_all)),
        engine_for_all=choice.algorithm == "ring",
        network_share=kernel.network_share,
        plane=plane,
    )
    return timed(topology, one)


def expert_exchange(
    collectives: Collectives,
    devices: Sequence[int],
    traffic: Traffic,
    constants: Constants,
    form: str,
    processors: int | None = None,
) -> Operation:
    """Return the dispatch or combine of one group: `traffic` between its ranks, in the order of `devices`."""
    topology, local = collectives.topology, collectives.shape(devices).rate_inside(to_all=True)
    shards = [shard for round_ in traffic.rounds(devices) for shard in round_]
    sent: dict[int, int] = {}
    for source, _, size in shards:
        sent[source] = sent.get(source, 0) + size
    one = Operation(
        form,
        None,
        max(sent.values(), default=0),
        start_ns(traffic, constants),
        (Phase(shards),) if shards else (),
        engine=_engine(constants.local_share, local),
        engine_in=True,
        paced=False,
        network_share=constants.network_share,
        least_ns=round(work_ns(traffic, constants, local, processors)),
        plane=collectives.plane,
    )
    return timed(topology, one)


def _engine(local_share: float, bytes_per_s: float) -> float:
    """Return the rate of a rank's kernel: its share of the links to its node; one that reaches all is no limit."""
    return local_share * bytes_per_s if local_share < 1 else inf


def closed_ns(operation: Operation, steps: Sequence[Step], drain_ns: Callable[[Step], float]) -> float:
    """Return the closed form: the waits, and the bytes of each phase over its most loaded link or its ranks' kernels.

    `drain_ns` is the time that a step takes on the links' capacities.
    """
    busy_ns = sum(max(drain_ns(step), step.least_ns) for step in steps)
    return operation.latency_ns + max(busy_ns, operation.least_ns) + operation.last_ns


def timed(topology: Topology, operation: Operation) -> Operation:
    """Return the operation with its closed form on the network as it was built, without what a transport adds."""

    def drain_ns(step: Step) -> float:
        capacities = np.array([topology.links[link].capacity_bytes_per_s for link in step.links.tolist()])
        return float((step.bytes / capacities).max(initial=0.0)) * NS_PER_S

    return replace(operation, ideal_ns=closed_ns(operation, operation.steps(topology, PLAIN), drain_ns))


def run(
    env: Clock, network: Network, topology: Topology, operation: Operation, lane: int = 0
) -> Generator[Event, Any, None]:
    """Run an operation of one group on a network, at the network's fidelity: a process, or part of one.

    Raises DeadLinkError as the network's transfers do.
    """
    steps: tuple[Step, ...] | None = None
    if isinstance(network, StepNetwork) and (network.spreads_evenly or network.fidelity == "alpha_beta"):
        steps = operation.steps(topology, network.transport)
        if network.fidelity == "alpha_beta":
            yield network.carry(Step.together(steps), closed_ns(operation, steps, network.drain_ns))
            return
    if operation.latency_ns:
        yield env.timeout(operation.latency_ns)
    begun_ns = env.now
    for at, phase in enumerate(operation.phases):
        if isinstance(network, StepNetwork) and steps is not None:
            yield network.carry(steps[at])
            continue
        engines = _Engines(network, operation)
        sends = _sends(network, topology, operation, phase, engines)
        if sends:
            yield network.launch(sends, lane, latency_ns=0)
        engines.release()  # not after a failure: some flows of the phase may still go through them
    rest_ns = max(0, begun_ns + operation.least_ns - env.now) + operation.last_ns
    if rest_ns:
        yield env.timeout(rest_ns)


def run_together(env: Clock, parts: Sequence[Generator[Event, Any, None]]) -> Generator[Event, Any, None]:
    """Run processes at once, such as the operations of several groups, until all of them have ended.

    Raises the first DeadLinkError, in the order of `parts`, when the last has ended: a lost part stops no other.
    """
    processes = [env.process(part) for part in parts]
    for process in processes:
        process.callbacks.append(_keep)
    lost: DeadLinkError | None = None
    for process in processes:
        try:
            yield process
        except DeadLinkError as error:
            lost = lost or error
    if lost is not None:
        raise lost


def _keep(process: Event) -> None:
    """Let a failure wait until it is asked for; anything but a dead link is at once a defect."""
    if not process.ok and isinstance(process.value, DeadLinkError):
        process.defused = True


def link_bytes(topology: Topology, operation: Operation) -> Floats:
    """Return the bytes that an operation puts on every link in all, its flows spread evenly over equal-cost paths."""
    total: Floats = np.zeros(len(topology.links))
    for step in operation.steps(topology, PLAIN):
        total[step.links] += step.bytes
    return total


Shard = tuple[int, int, int, int, tuple[Key, ...]]
"""Source, target, payload, bytes on the wire, the kernels that it passes."""


def _shards(topology: Topology, operation: Operation, phase: Phase) -> Iterator[Shard]:
    place, limited = topology.endpoints, operation.engine < inf
    for source, target, size_bytes in phase.exchange.shards() if phase.exchange is not None else phase.shards:
        local = place[source].node == place[target].node
        wire_bytes = size_bytes if local else ceil(size_bytes / operation.network_share)
        keys: tuple[Key, ...] = ()
        if limited and size_bytes and (local or operation.engine_for_all):
            keys = ((source, False), (target, True)) if operation.engine_in else ((source, False),)
        yield source, target, size_bytes, wire_bytes, keys


def _step(topology: Topology, transport: Transport, operation: Operation, phase: Phase) -> Step:
    """Return the bytes of a phase on every link, and the time that its engines need."""
    if phase.exchange is not None:
        return _exchange_step(topology, transport, operation, phase.exchange)
    through: dict[Key, float] = {}
    sent: list[tuple[int, int, float]] = []
    for source, target, size_bytes, wire_bytes, keys in _shards(topology, operation, phase):
        if not size_bytes:
            continue
        framed = transport.wire_bytes(wire_bytes)  # a fabric's engines move its transport's headers too
        sent.append((source, target, framed))
        for key in keys:
            through[key] = through.get(key, 0.0) + size_bytes * framed / wire_bytes
    loads = shard_loads(topology, sent, operation.plane)
    flows = shard_loads(topology, ((source, target, 1.0) for source, target, _ in sent), operation.plane)
    for half in phase.halves:
        framed = transport.wire_bytes(half.size_bytes)
        loads[list(half.path)] += framed
        flows[list(half.path)] += 1
        key = half.device, half.inward
        through[key] = through.get(key, 0.0) + framed
    least_ns = max(through.values(), default=0.0) / operation.engine * NS_PER_S
    return Step.of(loads, flows, len(sent) + len(phase.halves), least_ns)


def _exchange_step(topology: Topology, transport: Transport, operation: Operation, exchange: Exchange) -> Step:
    ranks, width = exchange.ranks, max(map(len, exchange.nodes))
    each = exchange.size_bytes / len(ranks)

    def wire(size_bytes: float) -> float:
        return size_bytes + transport.wire_bytes(ceil(size_bytes)) - ceil(size_bytes)

    both = exchange_loads(topology, ranks, 1.0, operation.plane)
    outside: Floats = np.zeros(len(topology.links))
    if len(exchange.nodes) > 1:
        outside = exchange_loads(topology, ranks, 1.0, operation.plane, between_nodes(exchange.nodes))
    loads = both * wire(each) + outside * (wire(each / operation.network_share) - wire(each))
    least_ns = (width - 1) * wire(each) / operation.engine * NS_PER_S
    return Step.of(loads, both, len(ranks) * (len(ranks) - 1), least_ns)


class _Engines:
    """The kernels of a phase's ranks, each a limit on the payload that it moves."""

    def __init__(self, network: Network, operation: Operation) -> None:
        self._network = network
        self._operation = operation
        self._bytes: dict[Key, list[int]] = {}  # payload and what is on the wire, by rank and direction
        self._numbers: dict[Key, int] = {}

    def expect(self, keys: Sequence[Key], payload: int, wire: int) -> None:
        """Count bytes that will pass; all of them before the first `through`."""
        for key in keys:
            total = self._bytes.setdefault(key, [0, 0])
            total[0] += payload
            total[1] += wire

    def through(self, keys: Sequence[Key]) -> tuple[int, ...]:
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
    shards = list(_shards(topology, operation, phase))
    for _, _, size_bytes, wire_bytes, keys in shards:
        engines.expect(keys, size_bytes, wire_bytes)
    limited = operation.engine < inf
    halves = [(half, ((half.device, half.inward),) if limited else ()) for half in phase.halves if half.size_bytes]
    for half, keys in halves:
        engines.expect(keys, half.size_bytes, half.size_bytes)
    unit = _unit_bytes(topology, shards, [half.size_bytes for half, _ in halves]) if operation.paced else None
    sends: list[Send] = []
    for source, target, _, wire_bytes, keys in shards:
        if not wire_bytes:
            continue
        way, through = network.way(source, target), engines.through(keys)
        weight = wire_bytes / unit if unit is not None else 1.0
        if way is not None:
            sends.append(Send(way.path, wire_bytes, (source, target), weight, None, through, way))
    for half, keys in halves:
        weight = half.size_bytes / unit if unit is not None else 1.0
        sends.append(Send(half.path, half.size_bytes, None, weight, None, engines.through(keys)))
    return sends


def _unit_bytes(topology: Topology, shards: Sequence[Shard], halves: Sequence[int]) -> int:
    """Return the bytes of a phase that claim as much bandwidth as one flow of other traffic.

    Those of the largest flow between nodes: a ring has one on each rail, and within a node an edge of many rings is as
    many flows. Within one node those of the largest flow.
    """
    place = topology.endpoints
    between = [wire for source, target, _, wire, _ in shards if place[source].node != place[target].node]
    return max(between, default=0) or max([*halves, *(wire for *_, wire, _ in shards)], default=1)
