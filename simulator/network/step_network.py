"""The network at lower fidelity: what starts together is a step, and its most loaded link says how long it takes.

Model: a flow ends after the latency of its path and the longest drain among its links, where a link drains all bytes
that the step puts on it at its capacity. `load` counts all that starts in the same nanosecond as a step, `alpha_beta`
each transfer by itself (Hockney 1994; for a step of many flows the bound of Valiant 1990, h-relations). Steps do not
see each other, and a step under way keeps its pace when a link changes.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import accumulate
from math import ceil
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from simpy import Event

from simulator.clock import NETWORK, Alarm, Clock
from simulator.errors import InvariantError
from simulator.network.bundle import Send, Transfer
from simulator.network.component import FORGIVEN_NS
from simulator.network.fabric import DeadLinkError, LinkRow
from simulator.network.routing import KNOWN_WAYS, Shares, Spread, Way, together
from simulator.network.transport import PLAIN, Transport
from simulator.topology.graph import Path, Topology
from simulator.topology.spreading import path_weights
from simulator.units import NS_PER_S

Fidelity = Literal["load", "alpha_beta"]
Floats = NDArray[np.float64]
FEWER = 1e-6
"""Of a flow: rounding in an expected number of them."""


class Step(NamedTuple):
    """Bytes and flows on some links, no link twice, of `total` flows in all that take `least_ns` at least."""

    links: NDArray[np.intp]
    bytes: Floats
    flows: NDArray[np.int64]
    total: int
    least_ns: float

    @staticmethod
    def of(loads: Floats, flows: Floats, total: int, least_ns: float) -> "Step":
        """Return the step of bytes and of expected numbers of flows by link index; what is expected is rounded up."""
        links = np.flatnonzero(loads)
        return Step(links, loads[links], np.ceil(flows[links] - FEWER).astype(np.int64), total, least_ns)

    @staticmethod
    def together(steps: Sequence["Step"]) -> "Step":
        """Return the sum of steps that follow one another."""
        if not steps:
            return Step(np.zeros(0, np.intp), np.zeros(0), np.zeros(0, np.int64), 0, 0.0)
        links, place = np.unique(np.concatenate([step.links for step in steps]), return_inverse=True)
        loads: Floats = np.bincount(place, np.concatenate([step.bytes for step in steps]), len(links)).astype(
            np.float64
        )
        flows = np.bincount(place, np.concatenate([step.flows for step in steps]), len(links)).astype(np.int64)
        return Step(links, loads, flows, sum(step.total for step in steps), sum(step.least_ns for step in steps))


class _OnLinks(NamedTuple):
    """Where a flow goes: its share of the bytes on each of some limits, and the path whose latency it has."""

    limits: NDArray[np.intp]
    shares: Floats
    path: Path
    latency_ns: int

    @staticmethod
    def of(topology: Topology, shares: dict[int, float], path: Path) -> "_OnLinks":
        count = len(shares)
        limits, parts = np.fromiter(shares.keys(), np.intp, count), np.fromiter(shares.values(), np.float64, count)
        return _OnLinks(limits, parts, path, topology.path_latency_ns(path))


class _Flow(NamedTuple):
    """Bytes on each of some limits (links, then engines), no limit twice; as many flows on each, `total` in all."""

    transfer: Transfer
    latency_ns: int
    limits: NDArray[np.intp]
    bytes: Floats
    least_ns: float
    flows: NDArray[np.int64] | int = 1
    total: int = 1


def _joined(flows: Sequence[_Flow]) -> tuple[NDArray[np.intp], Floats]:
    """Return the limits of flows and the bytes on each, one flow after the other."""
    return np.concatenate([flow.limits for flow in flows]), np.concatenate([flow.bytes for flow in flows])


def _highest(values: Floats, sizes: Sequence[int]) -> list[float]:
    """Return the highest of each of several runs of values of these sizes, none of which is below zero."""
    ends = list(accumulate(sizes))
    if 0 in sizes:
        return [float(values[end - size : end].max(initial=0.0)) for end, size in zip(ends, sizes, strict=True)]
    highest: list[float] = np.maximum.reduceat(values, [0, *ends[:-1]]).tolist()
    return highest


def _arrived(transfer: Transfer, event: Event) -> None:
    transfer.succeed()


class StepNetwork:
    """Moves bytes over a topology without simulating how they share it; the calls are those of a Fabric.

    Without a `spread` bytes go evenly over all equal-cost paths (of `plane`, if one carries everything): hash
    collisions are not seen. Lanes and weights have no effect. A flow over a dead link fails.
    """

    def __init__(
        self,
        env: Clock,
        topology: Topology,
        seed: int,
        fidelity: Fidelity,
        spread: Spread | None = None,
        transport: Transport = PLAIN,
        plane: str | None = None,
    ) -> None:
        self.env = env
        self.topology = topology
        self.seed = seed
        self.capacities: list[int] = [link.capacity_bytes_per_s for link in topology.links]
        self.completed_flows = 0
        self.fidelity = fidelity
        self.transport = transport
        self._spread = spread
        self._plane = plane
        self._names = 0
        self._limits = np.array(self.capacities, dtype=np.float64)  # then engines
        self._unused: list[int] = []
        self._pending: list[_Flow] = []
        count = len(self.capacities)
        self._moved, self._busy_ns, self._peak = np.zeros(count), np.zeros(count), np.zeros(count)
        self._flows = np.zeros(count, np.int64)
        self._byte_hops = 0.0
        self._scratch = np.zeros(count)  # bytes on each limit, within a step; zero between steps
        self._known: dict[tuple[int, int], _OnLinks] = {}
        self._alarm = Alarm(env, NETWORK, self._settle)

    def route(self, source: int, target: int) -> Shares:
        """Return the paths that the routing has for the next transfer, each with its share."""
        self._names += 1
        if source == target:
            return ()
        if self._spread is not None:
            return tuple(self._spread(self.topology, self.seed, source, target, self._names))
        paths = self.topology.paths(source, target, self._plane)
        return tuple((path, 1 / len(paths)) for path in paths)

    def way(self, source: int, target: int) -> Way | None:
        """Return the way of the next transfer, as `route` has it; None within one device."""
        shares = self.route(source, target)
        return together(self.topology, shares) if shares else None

    def alive(self, way: Way, ends: tuple[int, int], sequence: int, spread: Spread | None = None) -> Way:
        """Return the way itself: nothing is routed around what is dead."""
        return way

    def transfer(self, shards: Sequence[tuple[int, int, int]], defused: bool = False, lane: int = 0) -> Transfer:
        """Send shards of (source, target, bytes) at once; the event fires when the last has arrived."""
        transfer = self._begun(defused)
        for source, target, size_bytes in shards:
            if size_bytes < 0:
                raise ValueError(f"a transfer of {size_bytes} bytes")
            if source == target:
                continue
            on_links = self._evenly(source, target) if self._spread is None else self._routed(source, target)
            self._add(transfer, on_links, size_bytes)
        return self._under_way(transfer)

    def _evenly(self, source: int, target: int) -> "_OnLinks":
        """Return where a transfer goes that is spread over all paths; it is kept, for the same ends come again."""
        ends = source, target
        known = self._known.get(ends)
        if known is None:
            if len(self._known) >= KNOWN_WAYS:
                self._known.clear()
            paths = self.topology.paths(source, target, self._plane)
            known = self._known[ends] = _OnLinks.of(self.topology, path_weights(paths), paths[0])
        return known

    def _routed(self, source: int, target: int) -> "_OnLinks":
        shares = self.route(source, target)
        loads: dict[int, float] = {}
        for path, share in shares:
            for link in path:
                loads[link] = loads.get(link, 0.0) + share
        return _OnLinks.of(self.topology, loads, max((path for path, _ in shares), key=self.topology.path_latency_ns))

    def launch(
        self, sends: Sequence[Send], lane: int = 0, latency_ns: int | None = None, defused: bool = False
    ) -> Transfer:
        """Send over paths that the caller chose, all at once; `latency_ns` takes the place of that of every path."""
        transfer = self._begun(defused)
        for send in sends:
            loads = dict.fromkeys((*send.path, *send.through), 1.0)
            if send.way is not None and send.way.portions:
                loads = dict(zip(send.way.links, send.way.portions, strict=True)) | dict.fromkeys(send.through, 1.0)
            cap = send.cap_bytes_per_s
            least_ns = send.size_bytes * NS_PER_S / cap if cap else 0.0
            self._add(transfer, _OnLinks.of(self.topology, loads, send.path), send.size_bytes, latency_ns, least_ns)
        return self._under_way(transfer)

    @property
    def spreads_evenly(self) -> bool:
        """Whether every flow goes over all its equal-cost paths alike, so that exchanges may be taken as a whole."""
        return self._spread is None

    def carry(self, step: Step, exactly_ns: float | None = None) -> Transfer:
        """Put a step on its links; the event fires when all has drained, or after `exactly_ns` whatever the links say.

        It takes no latency. The event fails with DeadLinkError when a link of it is dead.
        """
        transfer = self._begun(defused=False)
        flow = _Flow(transfer, 0, step.links, step.bytes, step.least_ns, step.flows, step.total)
        if exactly_ns is None:
            transfer.outstanding += 1
            self._pending.append(flow)
            return self._under_way(transfer)
        dead = step.links[self._limits[step.links] == 0]
        if len(dead):
            transfer.fail(self._lost(int(dead[0])))
            return transfer
        self._count([flow], flow.limits, flow.bytes)
        self._occupy(step.links, step.bytes, exactly_ns)
        self.env.timeout(round(exactly_ns)).callbacks.append(partial(_arrived, transfer))
        return transfer

    def drain_ns(self, step: Step) -> float:
        """Return the time of a step alone under the present capacities; raises DeadLinkError."""
        rates = self._limits[step.links]
        if not rates.all():
            raise self._lost(int(step.links[np.argmin(rates)]))
        return max(float((step.bytes / rates).max(initial=0.0)) * NS_PER_S, step.least_ns)

    def _lost(self, link: int) -> DeadLinkError:
        dead = self.topology.links[link]
        return DeadLinkError(f"link {link} from {dead.source} to {dead.target} is dead")

    def add_engine(self, bytes_per_s: float) -> int:
        """Return a limit that flows share and that is no link of the topology."""
        if self._unused:
            engine = self._unused.pop()
            self._limits[engine] = bytes_per_s
            return engine
        self._limits, self._scratch = np.append(self._limits, bytes_per_s), np.append(self._scratch, 0.0)
        return len(self._limits) - 1

    def release_engine(self, engine: int) -> None:
        """Give an engine back."""
        self._unused.append(engine)

    def set_capacity(self, links: Sequence[int], bytes_per_s: int) -> None:
        """Give links another capacity for the steps that start from now on; zero is a dead link."""
        if bytes_per_s < 0:
            raise ValueError(f"a capacity of {bytes_per_s} bytes/s")
        for link in links:
            self.capacities[link] = bytes_per_s
            self._limits[link] = bytes_per_s

    def _begun(self, defused: bool) -> Transfer:
        transfer = Transfer(self.env)
        if defused:
            transfer.defused = True
        return transfer

    def _add(
        self,
        transfer: Transfer,
        on_links: "_OnLinks",
        size_bytes: int,
        latency_ns: int | None = None,
        least_ns: float = 0.0,
    ) -> None:
        transport, (limits, shares, path, usual_ns) = self.transport, on_links
        wire = size_bytes if transport is PLAIN else transport.wire_bytes(size_bytes)
        if latency_ns is None:
            latency_ns = usual_ns
            if transport is not PLAIN:
                capacities = [self.topology.links[link].capacity_bytes_per_s for link in path]
                latency_ns += (transport.message_latency or 0) + transport.forwarding_ns(size_bytes, capacities)
        transfer.outstanding += 1
        self._pending.append(_Flow(transfer, latency_ns, limits, shares * wire, least_ns))

    def _under_way(self, transfer: Transfer) -> Transfer:
        if not transfer.outstanding:
            transfer.succeed()
        elif self._alarm.at_ns is None:
            self._alarm.set(self.env.now)
        return transfer

    def _settle(self) -> None:
        """Bound what started in this nanosecond, as one step or transfer by transfer."""
        pending, self._pending = self._pending, []
        if self.fidelity == "load":
            self._step(pending)
            return
        by_transfer: dict[int, list[_Flow]] = {}
        for flow in pending:
            by_transfer.setdefault(id(flow.transfer), []).append(flow)
        for flows in by_transfer.values():
            self._step(flows)

    def _step(self, flows: list[_Flow]) -> None:
        sizes = [len(flow.limits) for flow in flows]
        limits, moved = _joined(flows)
        rates, loads = self._limits[limits], self._sums(limits, moved)
        dead = rates == 0
        drain_ns = np.divide(loads * NS_PER_S, rates, out=np.zeros(len(limits)), where=~dead)
        slowest_ns = _highest(drain_ns, sizes)
        lost: dict[Transfer, int] = {}
        if dead.any():
            owners = np.repeat(range(len(flows)), sizes)[dead].tolist()
            for owner, limit in zip(owners, limits[dead].tolist(), strict=True):
                lost.setdefault(flows[owner].transfer, limit)
            hit = _highest(dead.astype(np.float64), sizes)
            slowest_ns = [slow for slow, is_hit in zip(slowest_ns, hit, strict=True) if not is_hit]
            flows = [flow for flow, is_hit in zip(flows, hit, strict=True) if not is_hit]
        self._occupy(limits, loads, float(drain_ns.max(initial=0.0)))
        if flows:
            self._count(flows, *(_joined(flows) if lost else (limits, moved)))
        ends: dict[Transfer, int] = {}
        for flow, slow in zip(flows, slowest_ns, strict=True):
            arrival_ns = flow.latency_ns + max(0, ceil(max(slow, flow.least_ns) - FORGIVEN_NS))
            ends[flow.transfer] = max(ends.get(flow.transfer, 0), arrival_ns)
        for transfer, link in lost.items():
            transfer.fail(self._lost(link))
        for transfer, after_ns in ends.items():
            if transfer not in lost:
                self.env.timeout(after_ns).callbacks.append(partial(_arrived, transfer))

    def _sums(self, limits: NDArray[np.intp], some_bytes: Floats) -> Floats:
        """Return for each place in `limits`, where one may be several times, all the bytes on that limit."""
        on_limits = self._scratch
        np.add.at(on_limits, limits, some_bytes)
        sums: Floats = on_limits[limits]
        on_limits[limits] = 0.0
        return sums

    def _count(self, flows: Sequence[_Flow], limits: NDArray[np.intp], moved: Floats) -> None:
        """Count what flows put on their limits, one after the other as `_joined` has them."""
        if all(isinstance(flow.flows, int) for flow in flows):
            each = np.ones(len(limits), np.int64)
        else:
            each = np.concatenate([np.broadcast_to(flow.flows, len(flow.limits)) for flow in flows])
        if len(self._limits) > len(self.capacities):
            inside = limits < len(self.capacities)
            limits, moved, each = limits[inside], moved[inside], each[inside]
        np.add.at(self._moved, limits, moved)
        np.add.at(self._flows, limits, each)
        self._byte_hops += float(moved.sum())
        self.completed_flows += sum([flow.total for flow in flows])

    def _occupy(self, limits: NDArray[np.intp], loads: Floats, step_ns: float) -> None:
        """Links carry their bytes evenly over the time of the step; one that is there several times counts once."""
        if not step_ns:
            return
        if len(self._limits) > len(self.capacities):
            inside = limits < len(self.capacities)
            limits, loads = limits[inside], loads[inside]
        self._busy_ns[limits] += step_ns
        self._peak[limits] = np.maximum(self._peak[limits], loads * NS_PER_S / step_ns)

    def link_rows(self, now_ns: int, idle: bool = False) -> Iterator[LinkRow]:
        """Yield rows as a Fabric does; busy is the time of the steps that used the link, at most all of the time."""
        for link in self.topology.links:
            at = link.index
            if idle or self._flows[at]:
                busy_ns = min(round(self._busy_ns[at]), now_ns)
                yield (
                    *(at, link.source, link.target, link.tier, link.capacity_bytes_per_s),
                    *(round(self._moved[at]), busy_ns, busy_ns / now_ns if now_ns else 0.0),
                    *(float(self._peak[at]), int(self._flows[at])),
                )

    def overloaded(self, now_ns: int) -> int:
        """Return how many links carried more than they could have in the time: steps that overlapped on them."""
        room = np.array([link.capacity_bytes_per_s for link in self.topology.links]) * (now_ns / NS_PER_S)
        return int((self._moved > room * (1 + 1e-6) + 1).sum())

    def check(self) -> None:
        """Verify that links carried the bytes of the flows; raises InvariantError."""
        total = float(self._moved.sum())
        if abs(total - self._byte_hops) > 1e-9 * max(total, 1.0):
            raise InvariantError(f"{total} link bytes, {self._byte_hops} byte hops")
