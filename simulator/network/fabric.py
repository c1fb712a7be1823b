"""The live network as a fluid: flows drain at max-min fair rates, shared anew when one starts or ends.

Model: a flow waits for the latency of its path and then shares its links until it is drained (the flow-level model of
SimGrid; Velho et al. 2013). Only flows that share links, transitively, with one that changed are solved anew: max-min
rates decompose over such components, so that is exact.
"""

import heapq
from collections.abc import Iterator, Sequence
from math import ceil

from simpy import Event

from simulator.clock import Alarm, Clock
from simulator.errors import InvariantError
from simulator.network.maxmin import maxmin_rates
from simulator.network.routing import Routing, ecmp
from simulator.topology.graph import Path, Topology
from simulator.units import NS_PER_S

TOLERANCE = 1e-9
FORGIVEN_NS = 1e-3  # of float error, when a drain time is rounded up
NEVER_NS = 1 << 62

LinkRow = tuple[int, str, str, str, int, int, int, float, float, int]


class Transfer(Event):
    """Fires when the last of its shards has arrived; `outstanding` counts those that have not."""

    outstanding = 0


class _Flow:
    __slots__ = ("bytes", "finish_ns", "path", "rate", "remaining", "seen", "since_ns", "transfer")

    def __init__(self, transfer: Transfer, path: Path, size_bytes: int) -> None:
        self.transfer = transfer
        self.path = path
        self.bytes = size_bytes
        self.remaining: float = size_bytes  # at `since_ns`
        self.rate: float = 0
        self.since_ns = 0
        self.finish_ns = NEVER_NS
        self.seen = 0

    def left_bytes(self, now_ns: int) -> float:
        return max(0.0, self.remaining - self.rate * (now_ns - self.since_ns) / NS_PER_S)


class Fabric:
    """Moves bytes over a topology; all changes of one nanosecond are shared out at once, after all else in it.

    Rounding: a flow ends at the first whole nanosecond at which it is drained. A flow that had its links for itself all
    along is computed in integers; any other may end up to 1 ps early for the float error that is forgiven.
    `capacities` (bytes/s by link index) is live: what changes it then calls `reshare` with the links changed.
    """

    def __init__(self, env: Clock, topology: Topology, seed: int, routing: Routing = ecmp) -> None:
        self.env = env
        self.topology = topology
        self.seed = seed
        self.capacities: list[int] = [link.capacity_bytes_per_s for link in topology.links]
        self.completed_flows = 0
        self._route = routing
        self._latency_ns = [link.latency_ns for link in topology.links]
        self._shards = 0
        self._entries = 0  # orders equal times
        self._stamp = 0
        self._starting: list[tuple[int, int, _Flow]] = []
        self._ending: list[tuple[int, int, _Flow]] = []
        self._active = 0
        self._byte_hops = 0
        count = len(topology.links)
        self._flows_on: list[dict[_Flow, None]] = [{} for _ in range(count)]
        self._bytes = [0] * count
        self._busy_ns = [0] * count
        self._busy_since_ns = [0] * count
        self._peak: list[float] = [0] * count
        self._flow_count = [0] * count
        self._alarm = Alarm(env)
        self._alarm.callbacks.append(self._wake)

    def transfer(self, shards: Sequence[tuple[int, int, int]]) -> Transfer:
        """Send shards of (source device, target device, bytes) at once; the event fires when the last has arrived.

        A shard within one device arrives at once; one of zero bytes takes the latency of its path and no bandwidth.
        Raises ValueError for a negative size and IndexError for a device that does not exist.
        """
        transfer = Transfer(self.env)
        now = self.env.now
        for source, target, size_bytes in shards:
            if size_bytes < 0:
                raise ValueError(f"a transfer of {size_bytes} bytes")
            self._shards += 1
            path = self._route(self.topology, self.seed, source, target, self._shards)
            if path:
                transfer.outstanding += 1
                ready_ns = now + sum([self._latency_ns[link] for link in path])
                heapq.heappush(self._starting, (ready_ns, self._shards, _Flow(transfer, path, size_bytes)))
        if transfer.outstanding:
            self._set_alarm()
        else:
            transfer.succeed()
        return transfer

    def reshare(self, links: Sequence[int]) -> None:
        """Share anew, at once, the bandwidth of links whose entry in `capacities` has changed."""
        self._share(self.env.now, links)
        self._set_alarm()

    def _set_alarm(self) -> None:
        ending = self._ending
        while ending and ending[0][2].finish_ns != ending[0][0]:  # superseded by a later rate
            heapq.heappop(ending)
        at_ns = min(self._starting[0][0] if self._starting else NEVER_NS, ending[0][0] if ending else NEVER_NS)
        if at_ns < NEVER_NS and at_ns != self._alarm.at_ns:
            self._alarm.set(at_ns)

    def _wake(self, alarm: Event) -> None:
        alarm.callbacks.append(self._wake)
        now = self.env.now
        touched: list[int] = []
        while self._ending and self._ending[0][0] <= now:
            finish_ns, _, flow = heapq.heappop(self._ending)
            if flow.finish_ns == finish_ns:
                self._end(flow, now, touched)
        while self._starting and self._starting[0][0] <= now:
            flow = heapq.heappop(self._starting)[2]
            if flow.bytes:
                self._start(flow, now)
                touched.append(flow.path[0])
            else:
                self._arrive(flow)
        self._share(now, touched)
        self._set_alarm()

    def _start(self, flow: _Flow, now: int) -> None:
        flow.since_ns = now
        self._active += 1
        for link in flow.path:
            flows = self._flows_on[link]
            if not flows:
                self._busy_since_ns[link] = now
            flows[flow] = None
            self._flow_count[link] += 1

    def _end(self, flow: _Flow, now: int, touched: list[int]) -> None:
        flow.finish_ns = NEVER_NS
        size_bytes = flow.bytes
        for link in flow.path:
            flows = self._flows_on[link]
            del flows[flow]
            self._bytes[link] += size_bytes
            if flows:
                touched.append(link)
            else:
                self._busy_ns[link] += now - self._busy_since_ns[link]
        self._active -= 1
        self.completed_flows += 1
        self._byte_hops += size_bytes * len(flow.path)
        self._arrive(flow)

    def _arrive(self, flow: _Flow) -> None:
        transfer = flow.transfer
        transfer.outstanding -= 1
        if not transfer.outstanding:
            transfer.succeed()

    def _share(self, now: int, links: Sequence[int]) -> None:
        """Solve every component that holds one of `links`, each once."""
        self._stamp += 1
        for link in links:
            for flow in self._flows_on[link]:
                if flow.seen != self._stamp:
                    self._solve(self._component(flow), now)
                break  # all flows of a link are of one component
        if len(self._ending) > 64 + 4 * self._active:  # mostly superseded entries
            self._ending = [entry for entry in self._ending if entry[2].finish_ns == entry[0]]
            heapq.heapify(self._ending)

    def _component(self, first: _Flow) -> list[_Flow]:
        stamp, flows_on = self._stamp, self._flows_on
        first.seen = stamp
        component = [first]
        links_seen: set[int] = set()
        for flow in component:  # grows while it is walked
            for link in flow.path:
                if len(flows_on[link]) > 1 and link not in links_seen:
                    links_seen.add(link)
                    for other in flows_on[link]:
                        if other.seen != stamp:
                            other.seen = stamp
                            component.append(other)
        return component

    def _solve(self, component: list[_Flow], now: int) -> None:
        peak, capacities = self._peak, self.capacities
        if len(component) == 1:
            flow = component[0]
            rate = min([capacities[link] for link in flow.path])
            for link in flow.path:
                if rate > peak[link]:
                    peak[link] = rate
            self._set_rate(flow, rate, now)
            return
        rates = maxmin_rates([flow.path for flow in component], capacities)
        loads: dict[int, float] = {}
        for flow, share in zip(component, rates, strict=True):
            for link in flow.path:
                loads[link] = loads.get(link, 0) + share
            self._set_rate(flow, share, now)
        for link, load in loads.items():
            if load > peak[link]:
                peak[link] = min(load, capacities[link])

    def _set_rate(self, flow: _Flow, rate: float, now: int) -> None:
        if rate == flow.rate:
            return
        if flow.rate:
            flow.remaining = flow.left_bytes(now)
        flow.rate, flow.since_ns = rate, now
        if not rate:
            flow.finish_ns = NEVER_NS
            return
        left = flow.remaining
        if isinstance(left, int) and isinstance(rate, int):
            drain_ns = -(-left * NS_PER_S // rate)
        else:
            drain_ns = max(0, ceil(left * NS_PER_S / rate - FORGIVEN_NS))
        flow.finish_ns = now + drain_ns
        self._entries += 1
        heapq.heappush(self._ending, (flow.finish_ns, self._entries, flow))

    def link_rows(self, now_ns: int, idle: bool = False) -> Iterator[LinkRow]:
        """Yield a row for each link that carried something, or for all when `idle`, in link order.

        A row is (link index, source, target, tier, capacity in bytes/s, bytes, busy ns, busy fraction of `now_ns`, peak
        bytes/s, flows). Flows under way count with the whole bytes they have moved; busy is any time with a flow.
        """
        for link in self.topology.links:
            index = link.index
            flows = self._flows_on[index]
            if not (idle or self._flow_count[index]):
                continue
            moved = sum(flow.bytes - ceil(flow.left_bytes(now_ns)) for flow in flows)
            busy_ns = self._busy_ns[index] + (now_ns - self._busy_since_ns[index] if flows else 0)
            yield (
                *(index, link.source, link.target, link.tier, link.capacity_bytes_per_s),
                *(self._bytes[index] + moved, busy_ns, busy_ns / now_ns if now_ns else 0.0),
                *(float(self._peak[index]), self._flow_count[index]),
            )

    def check(self) -> None:
        """Verify capacities, each flow's max-min certificate and conservation of bytes; raises InvariantError."""
        loads = [sum(flow.rate for flow in flows) for flows in self._flows_on]
        for index, (load, capacity) in enumerate(zip(loads, self.capacities, strict=True)):
            if load > capacity * (1 + TOLERANCE):
                raise InvariantError(f"link {index} carries {load} of {capacity} bytes/s")
        active = {flow: None for flows in self._flows_on for flow in flows}
        if len(active) != self._active:
            raise InvariantError(f"{len(active)} flows on links, {self._active} active")
        for flow in active:
            if not any(self._limits(flow, link, loads[link]) for link in flow.path):
                raise InvariantError(f"a flow over {flow.path} at {flow.rate} bytes/s has no bottleneck")
        if sum(self._bytes) != self._byte_hops:
            raise InvariantError(f"{sum(self._bytes)} link bytes, {self._byte_hops} byte hops of completed flows")

    def _limits(self, flow: _Flow, link: int, load: float) -> bool:
        full = load >= self.capacities[link] * (1 - TOLERANCE)
        return full and all(other.rate <= flow.rate * (1 + TOLERANCE) for other in self._flows_on[link])
