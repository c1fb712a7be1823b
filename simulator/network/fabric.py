"""The live network as a fluid: flows drain at max-min fair rates, shared anew when a flow or a link changes.

Model: a flow waits for the latency of its path and then shares its links until it is drained (the flow-level model of
SimGrid; Velho et al. 2013). All changes of one nanosecond are shared out at once, after all else in it.
"""

import heapq
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal

from simpy import Event

from simulator.clock import NETWORK, Alarm, Clock
from simulator.errors import InvariantError
from simulator.network.component import NEVER_NS, ComponentShares, Start
from simulator.network.detour import detour
from simulator.network.routing import Routing, Spread, ecmp, split_bytes
from simulator.network.transport import PLAIN, Transport
from simulator.topology.graph import Path, Topology

if TYPE_CHECKING:
    from simulator.network.incremental import IncrementalShares

TOLERANCE = 1e-9
COMPILED_FROM = 100  # flows under way; with fewer, loading the compiled solver costs more than it saves

LinkRow = tuple[int, str, str, str, int, int, int, float, float, int]
OnDeadLink = Literal["fail", "stall", "reroute"]


class DeadLinkError(Exception):
    """The value of a transfer's event when a link that one of its flows had to cross is dead."""


class Transfer(Event):
    """Fires when the last of its shards has arrived, fails when one is lost; `outstanding` counts those under way."""

    outstanding = 0


class _Flow:
    __slots__ = ("ends", "name", "path", "private", "transfer", "weight", "wire_bytes")

    def __init__(self, transfer: Transfer, name: int, path: Path, wire_bytes: int, weight: float) -> None:
        self.transfer = transfer
        self.name = name  # its number in the order of sending
        self.path = path
        self.wire_bytes = wire_bytes
        self.weight = weight
        self.ends: tuple[int, int] | None = None  # devices, of a flow that may be routed again
        self.private: int | None = None  # the link that stands for its cap


class Fabric:
    """Moves bytes over a topology.

    `on_dead_link` says what becomes of a flow whose path has a link without capacity: its transfer fails, it stalls
    until the link is repaired, or it is routed anew around the dead links, with the bytes moved kept (and stalls where
    there is no way round). `capacities` (bytes/s by link index) are to be read; `set_capacity` changes them.
    `spread`, where given, takes the place of `routing`: a shard's bytes go over several paths, as flows of their own.
    From more than `compiled_from` concurrent flows on the compiled solver takes over; rates differ by rounding only.
    """

    def __init__(
        self,
        env: Clock,
        topology: Topology,
        seed: int,
        routing: Routing = ecmp,
        on_dead_link: OnDeadLink = "stall",
        transport: Transport = PLAIN,
        spread: Spread | None = None,
        compiled_from: int = COMPILED_FROM,
    ) -> None:
        self.env = env
        self.topology = topology
        self.seed = seed
        self.capacities: list[int] = [link.capacity_bytes_per_s for link in topology.links]
        self.completed_flows = 0
        self._route = routing
        self._spread = spread
        self._on_dead_link = on_dead_link
        self._transport = transport
        self._compiled_from = compiled_from
        self._latency_ns = [link.latency_ns for link in topology.links]
        self._names = 0
        self._starting: list[tuple[int, int, _Flow]] = []
        self._flows: dict[int, _Flow] = {}
        self._stalled: dict[int, _Flow] = {}
        self._dead: dict[int, None] = {}
        self._taken: dict[int, dict[str, float]] = {}
        self._private: list[int] = []  # links for caps that no flow uses
        self._shares: ComponentShares | IncrementalShares = ComponentShares(self.capacities)
        self._next_ns = NEVER_NS
        self._alarm = Alarm(env, NETWORK)
        self._alarm.callbacks.append(self._wake)

    def transfer(self, shards: Sequence[tuple[int, int, int]], defused: bool = False) -> Transfer:
        """Send shards of (source device, target device, bytes) at once; the event fires when the last has arrived.

        A shard within one device arrives at once; one of zero bytes takes the latency of its path and no bandwidth.
        The event fails with DeadLinkError when a shard is lost; `defused` lets that pass where nobody waits for it.
        Raises ValueError for a negative size and IndexError for a device that does not exist.
        """
        transfer = Transfer(self.env)
        if defused:
            transfer.defused = True
        for source, target, size_bytes in shards:
            if size_bytes < 0:
                raise ValueError(f"a transfer of {size_bytes} bytes")
            self._names += 1
            if self._spread is not None:
                self._scatter(transfer, source, target, size_bytes)
            elif path := self._route(self.topology, self.seed, source, target, self._names):
                self._launch(transfer, path, size_bytes, 1).ends = source, target
        if transfer.outstanding:
            self._set_alarm()
        else:
            transfer.succeed()
        return transfer

    def _scatter(self, transfer: Transfer, source: int, target: int, size_bytes: int) -> None:
        assert self._spread is not None
        shares = self._spread(self.topology, self.seed, source, target, self._names)
        parts = split_bytes(size_bytes, shares) if shares else []
        for (path, _), part in zip(shares, parts, strict=True):
            if part or path is shares[0][0]:
                self._launch(transfer, path, part, 1).ends = source, target
                self._names += 1

    def send(
        self,
        path: Path,
        size_bytes: int,
        weight: float = 1,
        cap_bytes_per_s: float | None = None,
        defused: bool = False,
    ) -> Transfer:
        """Send bytes over a path that the caller chose, at `weight` times the share of its links and at most the cap.

        It is never routed anew: where its path dies it fails or stalls. Raises ValueError for an empty path, a negative
        size or cap, or a weight that is not positive.
        """
        if not path or size_bytes < 0 or weight <= 0 or (cap_bytes_per_s or 0) < 0:
            raise ValueError(f"a flow of {size_bytes} bytes over {path}, weight {weight}, cap {cap_bytes_per_s}")
        transfer = Transfer(self.env)
        if defused:
            transfer.defused = True
        self._names += 1
        flow = self._launch(transfer, path, size_bytes, weight)
        if cap_bytes_per_s is not None and size_bytes:
            flow.private = self._private_link(cap_bytes_per_s)
        self._set_alarm()
        return transfer

    def set_capacity(self, links: Sequence[int], bytes_per_s: int) -> None:
        """Give links another capacity from now on; zero is a dead link, and more than zero repairs it.

        Raises ValueError for a negative capacity.
        """
        if bytes_per_s < 0:
            raise ValueError(f"a capacity of {bytes_per_s} bytes/s")
        self._end_due()
        for link in links:
            self.capacities[link] = bytes_per_s
            if bytes_per_s:
                self._dead.pop(link, None)
            else:
                self._dead[link] = None
        if bytes_per_s:
            self._reshare(links)
            lost = [flow for flow in self._stalled.values() if self._crosses_dead(flow)]
            self._stalled = {flow.name: flow for flow in lost}
        else:
            names = sorted({name for link in links for name in self._shares.on(link)})
            lost = [self._flows[name] for name in names]
        if self._on_dead_link == "stall":
            self._stalled.update((flow.name, flow) for flow in lost)
            lost = []
        self._leave(lost, links)
        self._set_alarm()

    def set_background(self, links: Sequence[int], kind: str, fraction: float) -> None:
        """Take a fraction (0 to 1) of the capacity of links for a kind of traffic that is not simulated.

        Zero gives it back; kinds add up, to all of the capacity at most.
        Raises ValueError for a fraction outside 0 to 1.
        """
        if not 0 <= fraction <= 1:
            raise ValueError(f"a fraction of {fraction}")
        self._end_due()
        for link in links:
            self._taken.setdefault(link, {})[kind] = fraction
        self._reshare(links)
        self._set_alarm()

    def _launch(self, transfer: Transfer, path: Path, size_bytes: int, weight: float) -> _Flow:
        transport = self._transport
        wire_bytes = transport.wire_bytes(size_bytes) if transport is not PLAIN else size_bytes
        flow = _Flow(transfer, self._names, path, wire_bytes, weight)
        ready_ns = self.env.now + sum([self._latency_ns[link] for link in path]) + (transport.message_latency or 0)
        transfer.outstanding += 1
        heapq.heappush(self._starting, (ready_ns, flow.name, flow))
        return flow

    def _private_link(self, capacity: float) -> int:
        if not self._private:
            return self._shares.add_link(capacity)
        link = self._private.pop()
        self._shares.set_capacity([link], [capacity], self.env.now)
        return link

    def _capacity(self, link: int) -> float:
        taken = self._taken.get(link)
        capacity = self.capacities[link]
        return capacity * max(0.0, 1 - sum(taken.values())) if taken else capacity

    def _crosses_dead(self, flow: _Flow) -> bool:
        return any(link in self._dead for link in flow.path)

    def _set_alarm(self) -> None:
        at_ns = min(self._starting[0][0], self._next_ns) if self._starting else self._next_ns
        if at_ns < NEVER_NS and at_ns != self._alarm.at_ns:
            self._alarm.set(at_ns)

    def _wake(self, alarm: Event) -> None:
        alarm.callbacks.append(self._wake)
        now = self.env.now
        empty, lost, starts = [], [], []
        while self._starting and self._starting[0][0] <= now:
            flow = heapq.heappop(self._starting)[2]
            if not flow.wire_bytes:
                empty.append(flow)
            elif self._dead and self._on_dead_link != "stall" and self._crosses_dead(flow):
                lost.append(flow)
            else:
                starts.append(self._start(flow, flow.wire_bytes, flow.wire_bytes))
        self._advance(starts)
        for flow in empty:
            self._arrive(flow)
        if lost:
            self._advance([start for flow in lost if (start := self._lose(flow, flow.wire_bytes))])
        self._set_alarm()

    def _start(self, flow: _Flow, size: int, left: float) -> Start:
        self._flows[flow.name] = flow
        if self._dead and self._crosses_dead(flow):
            self._stalled[flow.name] = flow
        path = flow.path if flow.private is None else (*flow.path, flow.private)
        return Start(flow.name, path, size, left, flow.weight)

    def _end_due(self) -> None:
        if self._next_ns <= self.env.now:
            self._advance(())

    def _advance(self, starts: Sequence[Start]) -> None:
        now = self.env.now
        shares = self._shares
        ended, self._next_ns = shares.advance(starts, now)
        if isinstance(shares, ComponentShares) and shares.active > self._compiled_from:
            from simulator.network.incremental import promoted

            self._shares, more, self._next_ns = promoted(shares, now)
            ended += more
        for name in sorted(ended):
            flow = self._flows.pop(name)
            self.completed_flows += 1
            if flow.private is not None:
                self._private.append(flow.private)
            self._arrive(flow)

    def _reshare(self, links: Sequence[int]) -> None:
        capacities = [self._capacity(link) for link in links]
        self._next_ns = self._shares.set_capacity(links, capacities, self.env.now)

    def _arrive(self, flow: _Flow) -> None:
        transfer = flow.transfer
        transfer.outstanding -= 1
        if not transfer.outstanding and not transfer.triggered:
            transfer.succeed()

    def _leave(self, lost: Sequence[_Flow], links: Sequence[int]) -> None:
        """Take flows off their dead paths, share what they leave, and fail them or send them another way."""
        lefts = self._shares.stop([flow.name for flow in lost], self.env.now)
        freed = dict.fromkeys([*links, *(link for flow in lost for link in flow.path)])
        self._reshare(list(freed))
        starts = [self._lose(self._flows.pop(flow.name), left) for flow, left in zip(lost, lefts, strict=True)]
        self._advance([start for start in starts if start])

    def _lose(self, flow: _Flow, left: float) -> Start | None:
        """Fail a flow that has a dead path, or return it on another path, or to stall where there is none."""
        self._stalled.pop(flow.name, None)
        if self._on_dead_link == "fail":
            if flow.private is not None:
                self._private.append(flow.private)
            links = self.topology.links
            dead = next(links[link] for link in flow.path if link in self._dead)
            if not flow.transfer.triggered:
                said = f"link {dead.index} from {dead.source} to {dead.target} is dead, {left:.0f} bytes were left"
                flow.transfer.fail(DeadLinkError(said))
            return None
        if flow.ends is not None:
            policy = self._route if self._spread is None else self._spread
            way = detour(self.topology, policy, self.seed, flow.ends, flow.name, self._dead)
            flow.path = way or flow.path
        whole = left if isinstance(left, int) else -int(-left // 1)
        return self._start(flow, whole, left)

    def link_rows(self, now_ns: int, idle: bool = False) -> Iterator[LinkRow]:
        """Yield a row for each link that carried something, or for all when `idle`, in link order.

        A row is (link index, source, target, tier, capacity in bytes/s, bytes, busy ns, busy fraction of `now_ns`, peak
        bytes/s, flows). Flows under way count with the whole bytes they have moved; busy is any time with a flow.
        """
        for link, carried in zip(self.topology.links, self._shares.carried(now_ns), strict=False):
            if idle or carried.flows:
                yield (
                    *(link.index, link.source, link.target, link.tier, link.capacity_bytes_per_s),
                    *(carried.moved_bytes, carried.busy_ns, carried.busy_ns / now_ns if now_ns else 0.0),
                    *(carried.peak_bytes_per_s, carried.flows),
                )

    def check(self) -> None:
        """Verify capacities, each flow's max-min certificate and conservation of bytes; raises InvariantError."""
        rates = self._shares.rates()
        if rates.keys() != self._flows.keys():
            raise InvariantError(f"{len(rates)} flows have rates, {len(self._flows)} are under way")
        count = len(self.capacities)
        loads, tops = [0.0] * count, [0.0] * count
        for name, rate in rates.items():
            flow = self._flows[name]
            for link in flow.path:
                loads[link] += rate
                tops[link] = max(tops[link], rate / flow.weight)
        room = [self._capacity(link) for link in range(count)]
        for link, load in enumerate(loads):
            if load > room[link] * (1 + TOLERANCE):
                raise InvariantError(f"link {link} carries {load} of {room[link]} bytes/s")
        full = [load >= capacity * (1 - TOLERANCE) for load, capacity in zip(loads, room, strict=True)]
        for name, rate in rates.items():
            flow = self._flows[name]
            level = rate / flow.weight * (1 + TOLERANCE)
            if flow.private is None and not any(full[link] and tops[link] <= level for link in flow.path):
                raise InvariantError(f"a flow over {flow.path} at {rate} bytes/s has no bottleneck")
        if sum(self._shares.ended_bytes()) != self._shares.byte_hops:
            raise InvariantError(f"{sum(self._shares.ended_bytes())} link bytes, {self._shares.byte_hops} byte hops")
