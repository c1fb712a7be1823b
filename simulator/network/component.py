"""Flows shared out in plain Python: exact, at once ready, and fast while few flows are under way.

Model: only flows that share links, transitively, with one that changed are solved anew: max-min rates decompose over
such components, so that is exact. A flow that has all its links to itself needs no search, and no entry in the rows of
its links before it ends. The compiled solver has the same calls and takes over where flows are many.
"""

import heapq
from collections.abc import Iterable, Sequence
from itertools import repeat
from math import ceil, floor
from typing import NamedTuple

from simulator.network.maxmin import maxmin_rates
from simulator.topology.graph import Path
from simulator.units import NS_PER_S

FORGIVEN_NS = 1e-3  # of float error, when a drain time is rounded up
NEVER_NS = 1 << 62
HOPS = 8
"""Links of an ordinary path, or about so many."""
UNSETTLED = 1024
"""Flows that ended and whose links' rows do not say so yet, at most."""


class Start(NamedTuple):
    """A flow to begin: `left` of its `size` bytes are still to be moved, at `weight` times the share of its links.

    A number of equal `flows`, of one path and one start, may go as one with their sizes and weights summed.
    A solver of one lane pays no heed to `lane`. `parts` are equal flows, each of `size` bytes over a path of its own,
    that begin as one object: `path` has all their links, one path after the other, and `name` is that of the first.
    Only `ComponentShares` takes such. `portions`, if any, say how much of the flow crosses each link of its path: one
    that is sprayed over several paths has all their links.
    """

    name: int
    path: Path
    size: int
    left: float
    weight: float = 1
    flows: int = 1
    lane: int = 0
    parts: tuple[tuple[int, Path], ...] = ()
    portions: tuple[float, ...] = ()

    def part(self, link: int) -> float:
        """Return how much of it crosses a link of its path."""
        return self.portions[self.path.index(link)] if self.portions else 1

    def loads(self, rate: float) -> "Iterable[tuple[int, float]]":
        """Return (link, bytes/s) for each link of its path at a rate."""
        if not self.portions:
            return zip(self.path, repeat(rate), strict=False)
        return [(link, rate * part) for link, part in zip(self.path, self.portions, strict=True)]

    def most(self, capacities: Sequence[float]) -> float:
        """Return the rate that its path, or that of each of its parts, has for it alone."""
        if not self.portions:
            return min([capacities[link] for link in (self.parts[0][1] if self.parts else self.path)])
        return min([capacities[link] / part for link, part in zip(self.path, self.portions, strict=True)])

    def apart(self) -> "list[Start]":
        """Return the flows that it is made of."""
        return [self._replace(name=name, path=path, parts=()) for name, path in self.parts] or [self]


class Carried(NamedTuple):
    """What a link has carried: bytes, also of flows under way; ns with a flow; peak bytes/s; flows."""

    moved_bytes: int
    busy_ns: int
    peak_bytes_per_s: float
    flows: int


class _Flow:
    __slots__ = ("alone", "begun_ns", "entry", "finish_ns", "peak", "rate", "remaining", "seen", "since_ns", "start")

    def __init__(self, start: Start, now_ns: int) -> None:
        self.start = start
        self.remaining = start.left  # at `since_ns`
        self.rate = 0.0
        self.since_ns = now_ns
        self.finish_ns = NEVER_NS
        self.seen = 0
        self.alone = True  # it has had all its links to itself since it began, and no row of them knows of it yet
        self.begun_ns = now_ns
        self.entry = 0  # the number of its finish among equal ones
        self.peak = 0.0  # its highest rate while alone

    def left_bytes(self, now_ns: int) -> float:
        return max(0.0, self.remaining - self.rate * (now_ns - self.since_ns) / NS_PER_S)

    def part(self, start: Start, place: int) -> "_Flow":
        """Return one of its parts as a flow of its own, as it is now."""
        flow = _Flow(start, self.begun_ns)
        flow.remaining, flow.rate, flow.since_ns = self.remaining, self.rate, self.since_ns
        flow.finish_ns, flow.seen, flow.peak, flow.entry = self.finish_ns, self.seen, self.peak, self.entry + place
        return flow


class ComponentShares:
    """Flows that drain at max-min fair rates; times are in nanoseconds, and only move forward.

    A name is any number of the caller's, given to one flow at a time. Capacities are bytes/s by link.
    Rounding: a flow ends at the first whole nanosecond at which it is drained. A flow that had its links for itself all
    along is computed in integers; any other may end up to 1 ps early for the float error that is forgiven.
    """

    def __init__(self, capacities: Sequence[float]) -> None:
        self.capacities = list(capacities)
        self.byte_hops = 0
        self._flows: dict[int, _Flow] = {}  # a flow of several parts under each of their names
        self._owner: dict[int, _Flow] = {}  # of the links of flows that are alone
        self._ended: list[tuple[_Flow, int]] = []  # flows that were alone, and when they ended: no row has them yet
        self._shared: set[int] = set()  # links that have flows in `_flows_on`
        self._stamp = 0
        self._entries = 0  # orders equal times
        self._ending: list[tuple[int, int, _Flow]] = []
        count = len(self.capacities)
        self._flows_on: list[dict[_Flow, None]] = [{} for _ in range(count)]
        self._bytes = [0] * count
        self._busy_ns = [0] * count
        self._busy_since_ns = [0] * count
        self._peak: list[float] = [0] * count
        self._flow_count = [0] * count
        self._moved: dict[int, None] | None = None
        self._sprayed = 0  # links of sprayed flows under way
        self._rests: dict[int, float] = {}  # by link: what sprayed flows have carried beyond whole bytes, and a half

    @property
    def active(self) -> int:
        """Flows under way; a sprayed one counts as many as have so many links."""
        return len(self._flows) + self._sprayed // HOPS

    def advance(self, starts: Sequence[Start], now_ns: int) -> tuple[list[int], int]:
        """Begin `starts` now, end what is drained by now; return the names of these and the next finish."""
        touched: list[int] = []
        ended: list[int] = []
        while self._ending and self._ending[0][0] <= now_ns:
            finish_ns, _, flow = heapq.heappop(self._ending)
            if flow.finish_ns == finish_ns:
                if flow.alone:
                    self._end_alone(flow, now_ns, ended)
                else:
                    ended.append(flow.start.name)
                    self._leave(flow, now_ns, flow.start.size, touched)
        for start in starts:
            self._start(start, now_ns, touched)
        if touched:
            self._share(now_ns, touched)
        return ended, self._next_ns()

    def set_capacity(self, links: Sequence[int], capacities: Sequence[float], now_ns: int) -> int:
        """Change capacities and share anew now; flows due by now must have ended. Return the next finish."""
        for link, capacity in zip(links, capacities, strict=True):
            self.capacities[link] = capacity
            if (flow := self._owner.get(link)) is not None and flow.start.parts:
                self._split(flow)
        self._share(now_ns, links)
        return self._next_ns()

    def add_links(self, capacities: Sequence[float]) -> None:
        """Add links that no path has yet, numbered on from those there are."""
        self.capacities += capacities
        count = len(capacities)
        self._flows_on += [{} for _ in range(count)]
        for column in (self._bytes, self._busy_ns, self._busy_since_ns, self._flow_count):
            column += [0] * count
        self._peak += [0] * count

    def watch(self) -> None:
        """Keep account of what `moved` returns from now on."""
        if self._moved is None:
            self._moved = dict.fromkeys(sorted(self._shared.union(self._owner)))

    def moved(self) -> list[tuple[int, float, bool]]:
        """Return (link, load in bytes/s, whether it has a flow) of the links where that may be new since last asked."""
        moved, self._moved = self._moved or {}, {}
        found = [(link, self._on(link)) for link in moved]
        return [
            (link, sum([flow.rate * flow.start.part(link) for flow in flows]), bool(flows)) for link, flows in found
        ]

    def _on(self, link: int) -> list[_Flow]:
        """Return the flows on a link, in the order in which they came."""
        alone = self._owner.get(link)
        return list(self._flows_on[link]) if alone is None else [alone]

    def stop(self, names: Sequence[int], now_ns: int) -> list[float]:
        """Take flows out, and return the bytes that each had still to move; share their links by `set_capacity`."""
        left = []
        for name in names:
            if self._flows[name].start.parts:
                self._split(self._flows[name])
            flow = self._flows[name]
            if flow.alone:
                self._open(flow)
            left.append(flow.left_bytes(now_ns))
            self._leave(flow, now_ns, flow.start.size - ceil(left[-1]), [])
        return left

    def on(self, link: int) -> list[int]:
        """Return the names of the flows on a link, in the order of the names."""
        parts = [part for flow in self._on(link) for part in flow.start.apart()]
        return sorted(part.name for part in parts if link in part.path)

    def rates(self) -> dict[int, float]:
        """Return the rate of each flow under way, in bytes/s, by name."""
        return {name: flow.rate for name, flow in self._flows.items()}

    def under_way(self, now_ns: int) -> list[Start]:
        """Return the flows that have begun and not ended, as they are now."""
        paths = {name: path for flow in self._flows.values() for name, path in flow.start.parts}
        return [
            flow.start._replace(
                name=name, path=paths.get(name, flow.start.path), left=flow.left_bytes(now_ns), parts=()
            )
            for name, flow in self._flows.items()
        ]

    def carried(self, now_ns: int) -> list[Carried]:
        """Return what each link has carried, with the whole bytes that flows under way have moved."""
        self._settle()
        rows = []
        for link in range(len(self.capacities)):
            flows, alone = self._on(link), self._owner.get(link)
            moved = sum(round((f.start.size - ceil(f.left_bytes(now_ns))) * f.start.part(link)) for f in flows)
            since_ns = self._busy_since_ns[link] if alone is None else alone.begun_ns
            busy_ns = self._busy_ns[link] + (now_ns - since_ns if flows else 0)
            peak, count = self._peak[link], self._flow_count[link]
            if alone is not None:
                peak, count = max(peak, alone.peak * alone.start.part(link)), count + alone.start.flows
            rows.append(Carried(self._bytes[link] + moved, busy_ns, float(peak), count))
        return rows

    def past(self, now_ns: int) -> list[Carried]:
        """Return what each link has carried, without the bytes of flows under way."""
        return [row._replace(moved_bytes=ended) for row, ended in zip(self.carried(now_ns), self._bytes, strict=True)]

    def ended_bytes(self) -> list[int]:
        """Return the bytes of ended and stopped flows by link."""
        self._settle()
        return list(self._bytes)

    def _next_ns(self) -> int:
        ending = self._ending
        while ending and ending[0][2].finish_ns != ending[0][0]:  # superseded by a later rate
            heapq.heappop(ending)
        return ending[0][0] if ending else NEVER_NS

    def _start(self, start: Start, now_ns: int, touched: list[int]) -> None:
        path, owner, shared = start.path, self._owner, self._shared
        self._sprayed += len(start.portions)
        if (not shared or shared.isdisjoint(path)) and (not owner or owner.keys().isdisjoint(path)):
            flow = _Flow(start, now_ns)
            links = dict.fromkeys(path, flow)
            parts = start.parts
            if not parts:
                self._flows[start.name] = flow
                touched.append(path[0])
            elif len(links) == len(path) and self._alike(path, parts):
                for name, way in parts:
                    self._flows[name] = flow
                    touched.append(way[0])
            else:
                for part in start.apart():
                    self._start(part, now_ns, touched)
                return
            if owner:
                owner.update(links)
            else:
                self._owner = links
            if self._moved is not None:
                self._moved.update(dict.fromkeys(path))
            return
        for part in start.apart():
            if start.parts:
                self._start(part, now_ns, touched)
            else:
                self._meet(part, now_ns)
                touched.append(path[0])

    def _alike(self, path: Path, parts: Sequence[tuple[int, Path]]) -> bool:
        """Return whether the narrowest links of the parts of a path are equally wide."""
        capacities = [self.capacities[link] for link in path]
        least, at = min(capacities), 0
        for _, way in parts:
            end = at + len(way)
            if least not in capacities[at:end]:
                return False
            at = end
        return True

    def _meet(self, start: Start, now_ns: int) -> None:
        """Begin a flow some of whose links have others."""
        flow = self._flows[start.name] = _Flow(start, now_ns)
        for link in start.path:
            other = self._owner.get(link)
            if other is not None:
                if other.start.parts:
                    self._split(other)
                self._open(self._owner[link])
        self._open(flow)
        if self._moved is not None:
            self._moved.update(dict.fromkeys(start.path))

    def _split(self, whole: _Flow) -> None:
        """Make flows of their own of the parts of one, each as if it had begun so."""
        whole.start, *others = whole.start.apart()
        for place, start in enumerate(others, 1):
            flow = self._flows[start.name] = whole.part(start, place)
            self._owner.update(dict.fromkeys(start.path, flow))
            if flow.finish_ns < NEVER_NS:
                heapq.heappush(self._ending, (flow.finish_ns, flow.entry, flow))

    def _open(self, flow: _Flow) -> None:
        """Enter a flow that was alone into the rows of its links, for it is so no longer."""
        flow.alone = False
        for link, peak in flow.start.loads(flow.peak):
            self._owner.pop(link, None)
            flows = self._flows_on[link]
            if not flows:
                self._busy_since_ns[link] = flow.begun_ns
            flows[flow] = None
            self._flow_count[link] += flow.start.flows
            self._peak[link] = max(self._peak[link], peak)
        self._shared.update(flow.start.path)

    def _end_alone(self, flow: _Flow, now_ns: int, ended: list[int]) -> None:
        flow.finish_ns = NEVER_NS
        start = flow.start
        names = [name for name, _ in start.parts] or [start.name]
        ended += names
        for name in names:
            del self._flows[name]
        path, owner = start.path, self._owner
        if len(path) == len(owner):
            self._owner = {}
        else:
            for link in path:
                del owner[link]
        self._sprayed -= len(start.portions)
        if not start.portions:
            self.byte_hops += start.size * len(path)
        if self._moved is not None:
            self._moved.update(dict.fromkeys(path))
        self._ended.append((flow, now_ns))
        if len(self._ended) == UNSETTLED:
            self._settle()

    def _settle(self) -> None:
        """Enter into the rows of links what flows that were alone have carried.

        Many at once: rows that lie about in memory are fetched the fewer times.
        """
        moved, busy_ns, flows, peaks = self._bytes, self._busy_ns, self._flow_count, self._peak
        for flow, end_ns in self._ended:
            start, peak, lasted_ns = flow.start, flow.peak, end_ns - flow.begun_ns
            size, count = start.size, start.flows
            if start.portions:
                self._settle_sprayed(start, peak, lasted_ns)
                continue
            for link in start.path:
                moved[link] += size
                busy_ns[link] += lasted_ns
                flows[link] += count
                if peak > peaks[link]:
                    peaks[link] = peak
        self._ended.clear()

    def _settle_sprayed(self, start: Start, peak: float, lasted_ns: int) -> None:
        self._credit(start, start.size)
        for link, load in start.loads(peak):
            self._busy_ns[link] += lasted_ns
            self._flow_count[link] += start.flows
            self._peak[link] = max(self._peak[link], load)

    def _credit(self, start: Start, moved: int) -> None:
        """Count what the links of a flow have carried when it has moved so many bytes.

        Of a sprayed one in whole bytes, whose rest is kept: a link is never off by more than half a byte.
        """
        if not start.portions:
            for link in start.path:
                self._bytes[link] += moved
            self.byte_hops += moved * len(start.path)
            return
        for link, part in zip(start.path, start.portions, strict=True):
            carried = moved
            if part != 1:
                exact = moved * part + self._rests.get(link, 0.5)
                carried = floor(exact)
                self._rests[link] = exact - carried
            self._bytes[link] += carried
            self.byte_hops += carried

    def _leave(self, flow: _Flow, now_ns: int, moved: int, touched: list[int]) -> None:
        flow.finish_ns = NEVER_NS
        del self._flows[flow.start.name]
        self._sprayed -= len(flow.start.portions)
        self._credit(flow.start, moved)
        for link in flow.start.path:
            flows = self._flows_on[link]
            del flows[flow]
            if flows:
                touched.append(link)
            else:
                self._shared.remove(link)
                self._busy_ns[link] += now_ns - self._busy_since_ns[link]
        if self._moved is not None:
            self._moved.update(dict.fromkeys(flow.start.path))

    def _share(self, now_ns: int, links: Sequence[int]) -> None:
        """Solve every component that holds one of `links`, each once."""
        self._stamp += 1
        stamp, owner, flows_on = self._stamp, self._owner, self._flows_on
        for link in links:
            alone = owner.get(link)
            if alone is not None:
                if alone.seen != stamp:
                    alone.seen = stamp
                    self._solve_alone(alone, now_ns)
                continue
            for flow in flows_on[link]:
                if flow.seen != stamp:
                    self._solve(self._component(flow), now_ns)
                break  # all flows of a link are of one component
        if len(self._ending) > 64 + 4 * len(self._flows):  # mostly superseded entries
            self._ending = [entry for entry in self._ending if entry[2].finish_ns == entry[0]]
            heapq.heapify(self._ending)

    def _solve_alone(self, flow: _Flow, now_ns: int) -> None:
        start = flow.start
        rate = start.most(self.capacities)
        if rate > flow.peak:
            flow.peak = rate
        self._set_rate(flow, rate, now_ns)

    def _component(self, first: _Flow) -> list[_Flow]:
        stamp, flows_on = self._stamp, self._flows_on
        first.seen = stamp
        component = [first]
        links_seen: set[int] = set()
        for flow in component:  # grows while it is walked
            for link in flow.start.path:
                if len(flows_on[link]) > 1 and link not in links_seen:
                    links_seen.add(link)
                    for other in flows_on[link]:
                        if other.seen != stamp:
                            other.seen = stamp
                            component.append(other)
        return component

    def _solve(self, component: list[_Flow], now_ns: int) -> None:
        peak, capacities = self._peak, self.capacities
        if len(component) == 1:
            flow = component[0]
            rate = flow.start.most(capacities)
            for link, load in flow.start.loads(rate):
                if load > peak[link]:
                    peak[link] = load
            self._set_rate(flow, rate, now_ns)
            return
        weights = [flow.start.weight for flow in component]
        equal = min(weights) == max(weights)
        sprayed = any(flow.start.portions for flow in component)
        portions = [flow.start.portions for flow in component] if sprayed else None
        paths = [flow.start.path for flow in component]
        rates = maxmin_rates(paths, capacities, None if equal else weights, portions=portions)
        loads: dict[int, float] = {}
        for flow, share in zip(component, rates, strict=True):
            for link, load in flow.start.loads(share):
                loads[link] = loads.get(link, 0) + load
            self._set_rate(flow, share, now_ns)
        for link, load in loads.items():
            if load > peak[link]:
                peak[link] = max(peak[link], min(load, capacities[link]))

    def _set_rate(self, flow: _Flow, rate: float, now_ns: int) -> None:
        if rate == flow.rate:
            return
        if flow.rate:
            flow.remaining = flow.left_bytes(now_ns)
        flow.rate, flow.since_ns = rate, now_ns
        if self._moved is not None:
            self._moved.update(dict.fromkeys(flow.start.path))
        if not rate:
            flow.finish_ns = NEVER_NS
            return
        left = flow.remaining
        if isinstance(left, int) and isinstance(rate, int):
            drain_ns = -(-left * NS_PER_S // rate)
        else:
            drain_ns = max(0, ceil(left * NS_PER_S / rate - FORGIVEN_NS))
        flow.finish_ns = now_ns + drain_ns
        flow.entry = self._entries + 1
        self._entries += len(flow.start.parts) or 1  # one for each part, should they have to be told apart
        heapq.heappush(self._ending, (flow.finish_ns, flow.entry, flow))
