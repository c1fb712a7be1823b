"""The live network as a fluid: flows drain at max-min fair rates, shared anew when a flow or a link changes.

Model: a flow waits for the latency of its path and then shares its links until it is drained (the flow-level model of
SimGrid; Velho et al. 2013). All changes of one nanosecond are shared out at once, after all else in it. Lanes have
strict priority.
"""

import heapq
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Literal

from simulator.clock import NETWORK, Alarm, Clock
from simulator.errors import InvariantError
from simulator.network.bundle import MOST_SHARDS, Bundle, Flow, Send, Transfer
from simulator.network.certificate import Rated, verify_shares
from simulator.network.component import NEVER_NS, ComponentShares, Start
from simulator.network.detour import Detours
from simulator.network.lanes import PriorityShares, advance
from simulator.network.routing import AdaptiveRouting, Hashed, Routing, Shares, Spread, Way, Ways, ecmp, together
from simulator.network.transport import PLAIN, Transport
from simulator.topology.graph import Path, Topology

if TYPE_CHECKING:
    from simulator.network.incremental import IncrementalShares

COMPILED_FROM = 100  # flows under way; with fewer, loading the compiled solver costs more than it saves

LinkRow = tuple[int, str, str, str, int, int, int, float, float, int]
OnDeadLink = Literal["fail", "stall", "reroute"]


class DeadLinkError(Exception):
    """The value of a transfer's event when a link that one of its flows had to cross is dead."""


class Fabric:
    """Moves bytes over a topology.

    `on_dead_link` says what becomes of a flow whose path has a link without capacity: its transfer fails, it stalls
    until the link is repaired, or it is routed anew around the dead links, with the bytes moved kept (and stalls where
    there is no way round). `capacities` (bytes/s by link index) are to be read; `set_capacity` changes them.
    `spread`, where given, takes the place of `routing`: a shard's bytes go over several paths in fixed shares, as one
    flow whose slowest path sets its rate.
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
        self._way = Hashed(topology, seed) if routing is ecmp else partial(routing, topology, seed)
        self._spread = spread
        self._ways = Ways(topology, seed, spread) if spread is not None else None
        self._adaptive = spread if isinstance(spread, AdaptiveRouting) else None
        self._on_dead_link = on_dead_link
        self._transport = transport
        self._compiled_from = compiled_from
        self._latency_ns = [link.latency_ns for link in topology.links].__getitem__
        self._names = 0
        self._starting: list[tuple[int, int, Flow]] = []
        self._bundles = 0  # of those that start
        self._flows: dict[int, Flow] = {}
        self._stalled: dict[int, Flow] = {}
        self._dead: dict[int, None] = {}
        self._detours = Detours(topology, spread or routing, seed, self._dead)
        self._taken: dict[int, dict[str, float]] = {}
        self._limits: dict[int, float] = {}  # capacities of links that are not the topology's: caps and engines
        self._engines: dict[int, int] = {}  # flows that go through each, or will
        self._unused: list[int] = []  # links for caps and engines that no flow uses
        self._lane: int | None = None  # the first used; while it is the only one, its solver has all links for itself
        self._shares: ComponentShares | IncrementalShares | PriorityShares = ComponentShares(self.capacities)
        self._next_ns = NEVER_NS
        self._alarm = Alarm(env, NETWORK, self._wake)

    def transfer(self, shards: Sequence[tuple[int, int, int]], defused: bool = False, lane: int = 0) -> Transfer:
        """Send shards of (source device, target device, bytes) at once; the event fires when the last has arrived.

        A shard within one device arrives at once; one of zero bytes takes the latency of its path and no bandwidth.
        Lane 0 has the highest priority. The event fails with DeadLinkError when a shard is lost; `defused` lets that
        pass where nobody waits for it. Raises ValueError for a negative size or lane and IndexError for a device that
        does not exist.
        """
        transfer = Transfer(self.env)
        if defused:
            transfer.defused = True
        plain = self._spread is None and not self._dead
        if plain and 1 < len(shards) <= MOST_SHARDS and isinstance(self._shares, ComponentShares):
            self._launch_together(transfer, shards, lane)
            return self._under_way(transfer)
        for source, target, size_bytes in shards:
            if size_bytes < 0:
                raise ValueError(f"a transfer of {size_bytes} bytes")
            if plain:
                for path, _ in self.route(source, target):
                    self._launch(transfer, path, size_bytes, lane).ends = source, target
            elif way := self.way(source, target):
                flow = self._launch(transfer, way.path, size_bytes, lane)
                flow.ends, flow.path, flow.portions = (source, target), way.links, way.portions
        return self._under_way(transfer)

    def _launch_together(self, transfer: Transfer, shards: Sequence[tuple[int, int, int]], lane: int) -> None:
        """Launch shards, as one object if they are alike and not empty."""
        parts, pairs, costs = [], [], []
        for source, target, size_bytes in shards:
            if size_bytes < 0:
                raise ValueError(f"a transfer of {size_bytes} bytes")
            self._names += 1
            if path := self._way(source, target, self._names):
                parts.append((self._names, path))
                pairs.append((source, target))
                costs.append(self._cost(path, size_bytes))
        if len(parts) > 1 and costs[0][0] and costs.count(costs[0]) == len(costs):
            self._enqueue(Bundle(transfer, parts, pairs, costs[0][0], lane), costs[0][1], len(parts))
            self._bundles += 1
            return
        for (name, path), ends, (wire_bytes, latency_ns) in zip(parts, pairs, costs, strict=True):
            flow = Flow(transfer, name, path, wire_bytes, lane)
            flow.ends = ends
            self._enqueue(flow, latency_ns)

    def route(self, source: int, target: int) -> Shares:
        """Return the paths that the routing has for the next transfer between two endpoints, each with its share.

        Of source and target in one there is none. Raises IndexError for an endpoint that does not exist.
        """
        self._names += 1
        if self._spread is not None:
            return self._spread(self.topology, self.seed, source, target, self._names)
        path = self._route(self.topology, self.seed, source, target, self._names)
        return ((path, 1.0),) if path else ()

    def way(self, source: int, target: int) -> Way | None:
        """Return the way of the next transfer: that of `route`, around dead links if so routed; None within one."""
        if self._ways is not None:
            self._names += 1
            way = self._ways(source, target, self._names)
        else:
            shares = self.route(source, target)
            way = together(self.topology, shares) if shares else None
        return None if way is None else self.alive(way, (source, target), self._names)

    def alive(self, way: Way, ends: tuple[int, int], sequence: int, spread: Spread | None = None) -> Way:
        """Return a way, or that around what is dead on it where flows are routed anew; see `Send.spread`."""
        if self._on_dead_link != "reroute" or self._dead.keys().isdisjoint(way.links):
            return way
        return self._detours(ends, sequence, spread) or way

    def launch(
        self, sends: Sequence[Send], lane: int = 0, latency_ns: int | None = None, defused: bool = False
    ) -> Transfer:
        """Send over paths that the caller chose, all at once; the event fires when the last has arrived.

        `latency_ns` takes the place of the latency of every path and of all that the transport adds to it. Where the
        path of a flow without `ends` dies, it fails or stalls. Raises ValueError, before anything is sent, for an empty
        path, a negative size, cap, latency or lane, a weight that is not positive, or a link that is no engine.
        """
        for send in sends:
            self._refuse_wrong(send)
        if lane < 0 or (latency_ns or 0) < 0:
            raise ValueError(f"flows in lane {lane} with a latency of {latency_ns} ns")
        transfer = Transfer(self.env)
        if defused:
            transfer.defused = True
        for send in sends:
            self._names += 1
            flow = self._launch(transfer, send.path, send.size_bytes, lane, latency_ns)
            flow.weight = send.weight
            flow.ends, flow.spread = send.ends, send.spread
            if send.way is not None:
                flow.path, flow.portions = send.way.links, send.way.portions
            flow.through = send.through
            for engine in send.through:
                self._engines[engine] += 1
            if send.cap_bytes_per_s is not None and send.size_bytes:
                flow.private = self._limit(send.cap_bytes_per_s)
                flow.through = (*send.through, flow.private)
        return self._under_way(transfer)

    def send(
        self,
        path: Path,
        size_bytes: int,
        weight: float = 1,
        cap_bytes_per_s: float | None = None,
        defused: bool = False,
        lane: int = 0,
    ) -> Transfer:
        """Send bytes over a path that the caller chose; see `launch`."""
        return self.launch((Send(path, size_bytes, None, weight, cap_bytes_per_s),), lane, defused=defused)

    def _refuse_wrong(self, send: Send) -> None:
        path, size_bytes, _, weight, cap, through, _, _ = send
        if not path or size_bytes < 0 or weight <= 0 or (cap or 0) < 0:
            raise ValueError(f"a flow of {size_bytes} bytes over {path}, weight {weight}, cap {cap}")
        if through and (any(engine not in self._engines for engine in through) or len(set(through)) < len(through)):
            raise ValueError(f"a flow through {through}: not all of these are engines, or one is there twice")

    def add_engine(self, bytes_per_s: float) -> int:
        """Return a limit that flows share and that is no link of the topology, such as a device's copy kernel.

        Flows name it in `Send.through`; it has no row in `link_rows`. Raises ValueError for a negative rate.
        """
        if bytes_per_s < 0:
            raise ValueError(f"an engine of {bytes_per_s} bytes/s")
        engine = self._limit(bytes_per_s)
        self._engines[engine] = 0
        return engine

    def release_engine(self, engine: int) -> None:
        """Give an engine back; raises ValueError when it is none, or a flow goes through it."""
        if self._engines.get(engine) != 0:
            raise ValueError(f"{engine} is no engine, or a flow goes through it")
        del self._engines[engine]
        self._unused.append(engine)

    def set_capacity(self, links: Sequence[int], bytes_per_s: int) -> None:
        """Give links another capacity from now on; zero is a dead link, and more than zero repairs it.

        Raises ValueError for a negative capacity.
        """
        if bytes_per_s < 0:
            raise ValueError(f"a capacity of {bytes_per_s} bytes/s")
        self._end_due()
        self._unbundle()
        for link in links:
            self.capacities[link] = bytes_per_s
            if bytes_per_s:
                self._dead.pop(link, None)
            else:
                self._dead[link] = None
        self._detours.forget()
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

    def _launch(
        self, transfer: Transfer, path: Path, size_bytes: int, lane: int, latency_ns: int | None = None
    ) -> Flow:
        wire_bytes = size_bytes
        if latency_ns is None or self._transport is not PLAIN:
            wire_bytes, usual_ns = self._cost(path, size_bytes)
            latency_ns = usual_ns if latency_ns is None else latency_ns
        flow = Flow(transfer, self._names, path, wire_bytes, lane)
        self._enqueue(flow, latency_ns)
        if self._adaptive is not None:
            self._adaptive.enters(path)
        return flow

    def _enqueue(self, flow: Flow, latency_ns: int, flows: int = 1) -> None:
        if flow.lane != self._lane:
            self._open(flow.lane)
        flow.transfer.outstanding += flows
        heapq.heappush(self._starting, (self.env.now + latency_ns, flow.name, flow))

    def _cost(self, path: Path, size_bytes: int) -> tuple[int, int]:
        """Return the bytes that a message puts on each link of its path, and the time until it begins to."""
        latency_ns = sum(map(self._latency_ns, path))
        transport = self._transport
        if transport is PLAIN:
            return size_bytes, latency_ns
        added_ns = (transport.message_latency or 0) + self._forwarding_ns(path, size_bytes)
        return transport.wire_bytes(size_bytes), latency_ns + added_ns

    def _forwarding_ns(self, path: Path, size_bytes: int) -> int:
        links = self.topology.links
        return self._transport.forwarding_ns(size_bytes, [links[link].capacity_bytes_per_s for link in path])

    def _under_way(self, transfer: Transfer) -> Transfer:
        if transfer.outstanding:
            self._set_alarm()
        else:
            transfer.succeed()
        return transfer

    def _open(self, lane: int) -> None:
        """Make room for a lane that is not the first that was used."""
        if lane < 0:
            raise ValueError(f"lane {lane}")
        if self._lane is None:
            self._lane = lane
        elif not isinstance(self._shares, PriorityShares):
            self._shares = PriorityShares(self._shares, self._lane, self._next_ns, self.env.now, self._compiled_from)

    def _limit(self, capacity: float) -> int:
        """Return a link of its own for a cap or an engine; where there is none, as many are made as there are.

        To make one costs as much as all links together, where the solver is compiled.
        """
        if not self._unused:
            first, count = len(self.capacities) + len(self._limits), max(1, len(self._limits))
            self._shares.add_links([0.0] * count)
            self._limits.update(dict.fromkeys(range(first, first + count), 0.0))
            self._unused += reversed(range(first, first + count))
        link = self._unused.pop()
        self._shares.set_capacity([link], [capacity], self.env.now)
        self._limits[link] = capacity
        return link

    def _capacity(self, link: int) -> float:
        if link in self._limits:
            return self._limits[link]
        taken = self._taken.get(link)
        if not taken:
            return self.capacities[link]
        return self.capacities[link] * max(0.0, 1.0 - sum(taken.values()))

    def _crosses_dead(self, flow: Flow) -> bool:
        return any(link in self._dead for link in flow.path)

    def _set_alarm(self) -> None:
        at_ns = min(self._starting[0][0], self._next_ns) if self._starting else self._next_ns
        if at_ns < NEVER_NS and at_ns != self._alarm.at_ns:
            self._alarm.set(at_ns)

    def _wake(self) -> None:
        now, starting = self.env.now, self._starting
        if not starting or starting[0][0] > now:
            self._advance(())
            self._set_alarm()
            return
        empty, lost, starts = [], [], []
        while starting and starting[0][0] <= now:
            at_ns, _, flow = heapq.heappop(starting)
            if self._bundles and isinstance(flow, Bundle):
                self._bundles -= 1
                if not self._dead and isinstance(self._shares, ComponentShares):
                    self._flows.update(dict.fromkeys([name for name, _ in flow.parts], flow))
                    starts.append(flow.start())
                    continue
                for part in flow.apart():  # nothing comes between their names
                    heapq.heappush(starting, (at_ns, part.name, part))
            elif not flow.wire_bytes:
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

    def _start(self, flow: Flow, size: int, left: float) -> Start:
        self._flows[flow.name] = flow
        if self._dead and self._crosses_dead(flow):
            self._stalled[flow.name] = flow
        return Start(flow.name, flow.links, size, left, flow.weight, 1, flow.lane, portions=flow.parts_on_links)

    def _unbundle(self) -> None:
        """Have every flow under way for itself."""
        for bundle in {flow.name: flow for flow in self._flows.values() if isinstance(flow, Bundle)}.values():
            for part in bundle.apart():
                if part.name in self._flows:  # else it has ended, after another flow came onto its links
                    self._flows[part.name] = part

    def _end_due(self) -> None:
        if self._next_ns <= self.env.now:
            self._advance(())

    def _advance(self, starts: Sequence[Start]) -> None:
        now = self.env.now
        shares = self._shares
        if isinstance(shares, ComponentShares):
            self._shares, ended, self._next_ns = advance(shares, starts, now, self._compiled_from)
        else:
            ended, self._next_ns = shares.advance(starts, now)
        self.completed_flows += len(ended)
        for name in sorted(ended):
            self._arrive(self._flows.pop(name))

    def _reshare(self, links: Sequence[int]) -> None:
        capacities = [self._capacity(link) for link in links]
        self._next_ns = self._shares.set_capacity(links, capacities, self.env.now)

    def _give_back(self, flow: Flow) -> None:
        for link in flow.through:
            if link == flow.private:
                self._unused.append(link)
            else:
                self._engines[link] -= 1

    def _arrive(self, flow: Flow) -> None:
        if flow.through:
            self._give_back(flow)
        if self._adaptive is not None:
            self._adaptive.leaves(flow.path)
        transfer = flow.transfer
        transfer.outstanding -= 1
        if not transfer.outstanding and not transfer.triggered:
            transfer.succeed()

    def _leave(self, lost: Sequence[Flow], links: Sequence[int]) -> None:
        """Take flows off their dead paths, share what they leave, and fail them or send them another way."""
        lefts = self._shares.stop([flow.name for flow in lost], self.env.now)
        freed = dict.fromkeys([*links, *(link for flow in lost for link in flow.links)])
        self._reshare(list(freed))
        starts = [self._lose(self._flows.pop(flow.name), left) for flow, left in zip(lost, lefts, strict=True)]
        self._advance([start for start in starts if start])

    def _lose(self, flow: Flow, left: float) -> Start | None:
        """Fail a flow that has a dead path, or return it on another path, or to stall where there is none."""
        self._stalled.pop(flow.name, None)
        if self._on_dead_link == "fail":
            self._give_back(flow)
            if self._adaptive is not None:
                self._adaptive.leaves(flow.path)
            links = self.topology.links
            dead = next(links[link] for link in flow.path if link in self._dead)
            if not flow.transfer.triggered:
                said = f"link {dead.index} from {dead.source} to {dead.target} is dead, {left:.0f} bytes were left"
                flow.transfer.fail(DeadLinkError(said))
            return None
        if flow.ends is not None:
            way = self._detours(flow.ends, flow.name, flow.spread)
            if way is not None:
                if self._adaptive is not None:
                    self._adaptive.leaves(flow.path)
                    self._adaptive.enters(way.links)
                flow.path, flow.portions = way.links, way.portions
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
        """Verify capacities, max-min certificates lane by lane and conservation of bytes; raises InvariantError."""
        self._unbundle()
        rates = self._shares.rates()
        if rates.keys() != self._flows.keys():
            raise InvariantError(f"{len(rates)} flows have rates, {len(self._flows)} are under way")
        room = [self._capacity(link) for link in range(len(self.capacities) + len(self._limits))]
        flows = self._flows
        under_way = [(flows[name], rate) for name, rate in rates.items()]
        verify_shares([Rated(f.lane, f.links, rate, f.weight, f.parts_on_links) for f, rate in under_way], room)
        if self._adaptive is not None:
            waiting = [flow for _, _, flow in self._starting]
            hops = sum(len(flow.path) for flow in [*flows.values(), *waiting])
            if hops != sum(self._adaptive.on_way.values()):
                raise InvariantError(f"{sum(self._adaptive.on_way.values())} flows by link, {hops} hops of flows")
        if sum(self._shares.ended_bytes()) != self._shares.byte_hops:
            raise InvariantError(f"{sum(self._shares.ended_bytes())} link bytes, {self._shares.byte_hops} byte hops")
