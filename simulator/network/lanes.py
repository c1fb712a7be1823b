"""Priority lanes: flows of a lane share, max-min fairly, what the lanes above leave of each link.

Model: strict priority between virtual lanes (the high-priority table of InfiniBand's VL arbitration, IBTA 1.2 section
7.6.9), as a fluid. Each lane has a solver of its own over residual capacities; a change travels down, never up.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from simulator.network.component import NEVER_NS, Carried, ComponentShares, Start

if TYPE_CHECKING:
    from simulator.network.incremental import IncrementalShares

ROUNDING = 1e-12  # of a link's capacity: what float error leaves, or moves, of it counts as nothing


def advance(
    shares: "ComponentShares | IncrementalShares", starts: Sequence[Start], now_ns: int, compiled_from: int
) -> "tuple[ComponentShares | IncrementalShares, list[int], int]":
    """Do as `advance` of a solver does; beyond `compiled_from` flows under way the compiled one takes over."""
    ended, next_ns = shares.advance(starts, now_ns)
    if isinstance(shares, ComponentShares) and shares.active > compiled_from:
        from simulator.network.incremental import promoted

        shares, more, next_ns = promoted(shares, now_ns)
        ended += more
    return shares, ended, next_ns


class _Lane:
    def __init__(self, number: int, shares: "ComponentShares | IncrementalShares", next_ns: int) -> None:
        self.number = number
        self.shares = shares
        self.next_ns = next_ns
        self.offered = list(shares.capacities)  # what it may use of each link, as it was last told
        self.loads: list[float] = [0] * len(self.offered)  # of its flows, in bytes/s
        self.busy: dict[int, None] = {}  # links with a flow of it
        shares.watch()


class PriorityShares:
    """Flows in several lanes, 0 the highest; the calls are those of one lane's solver, and a flow's `Start` names it.

    What the lanes above leave, if it is less than 1e-12 of a link's capacity, counts as nothing. A flow that gets
    nothing waits.
    """

    def __init__(
        self,
        only: "ComponentShares | IncrementalShares",
        lane: int,
        next_ns: int,
        now_ns: int,
        compiled_from: int,
    ) -> None:
        past = only.carried(now_ns)
        self.capacities = list(only.capacities)
        self._compiled_from = compiled_from
        self._lanes = [_Lane(lane, only, next_ns)]
        self._lane_of = dict.fromkeys(only.rates(), self._lanes[0])
        self._busy_ns = [row.busy_ns for row in past]  # up to now
        self._busy_since_ns = [now_ns] * len(past)
        self._busy_lanes = [0] * len(past)
        self._peak = [row.peak_bytes_per_s for row in past]
        self._note({}, self._lanes[0], now_ns)

    @property
    def active(self) -> int:
        """Flows under way."""
        return len(self._lane_of)

    @property
    def byte_hops(self) -> int:
        """Bytes of the flows that ended, each times the links of its path."""
        return sum(lane.shares.byte_hops for lane in self._lanes)

    def advance(self, starts: Sequence[Start], now_ns: int) -> tuple[list[int], int]:
        """Begin `starts` now, end what is drained by now; return the names of these and the next finish."""
        by_lane: dict[int, list[Start]] = {}
        for start in starts:
            by_lane.setdefault(start.lane, []).append(start)
        for number in sorted(by_lane):
            lane = self._lane(number)
            self._lane_of.update((start.name, lane) for start in by_lane[number])
        ended = self._share(by_lane, (), now_ns)
        for name in ended:
            del self._lane_of[name]
        return ended, self._next_ns()

    def set_capacity(self, links: Sequence[int], capacities: Sequence[float], now_ns: int) -> int:
        """Change capacities and share anew now; flows due by now must have ended. Return the next finish."""
        for link, capacity in zip(links, capacities, strict=True):
            self.capacities[link] = capacity
        self._share(None, links, now_ns)
        return self._next_ns()

    def add_links(self, capacities: Sequence[float]) -> None:
        """Add links that no path has yet, numbered on from those there are."""
        self.capacities += capacities
        count = len(capacities)
        for column in (self._busy_ns, self._busy_since_ns, self._busy_lanes):
            column += [0] * count
        self._peak += [0.0] * count
        for lane in self._lanes:
            lane.shares.add_links(capacities)
            lane.offered += capacities
            lane.loads += [0] * count

    def stop(self, names: Sequence[int], now_ns: int) -> list[float]:
        """Take flows out, and return the bytes that each had still to move; share their links by `set_capacity`."""
        return [self._lane_of.pop(name).shares.stop([name], now_ns)[0] for name in names]

    def on(self, link: int) -> list[int]:
        """Return the names of the flows on a link, in the order of the names."""
        return sorted(name for lane in self._lanes for name in lane.shares.on(link))

    def rates(self) -> dict[int, float]:
        """Return the rate of each flow under way, in bytes/s, by name."""
        return {name: rate for lane in self._lanes for name, rate in lane.shares.rates().items()}

    def carried(self, now_ns: int) -> list[Carried]:
        """Return what each link has carried: bytes and flows of all lanes, the time with a flow of any, their peak."""
        rows = []
        for link, lanes in enumerate(zip(*(lane.shares.carried(now_ns) for lane in self._lanes), strict=True)):
            since_ns = now_ns - self._busy_since_ns[link] if self._busy_lanes[link] else 0
            moved, flows = sum(row.moved_bytes for row in lanes), sum(row.flows for row in lanes)
            rows.append(Carried(moved, self._busy_ns[link] + since_ns, self._peak[link], flows))
        return rows

    def ended_bytes(self) -> list[int]:
        """Return the bytes of ended and stopped flows by link."""
        return [sum(lanes) for lanes in zip(*(lane.shares.ended_bytes() for lane in self._lanes), strict=True)]

    def _next_ns(self) -> int:
        return min(lane.next_ns for lane in self._lanes)

    def _lane(self, number: int) -> _Lane:
        for lane in self._lanes:
            if lane.number == number:
                return lane
        depth = sum(lane.number < number for lane in self._lanes)
        lefts = [self._left(link, depth) for link in range(len(self.capacities))]
        self._lanes.insert(depth, _Lane(number, ComponentShares(lefts), NEVER_NS))
        return self._lanes[depth]

    def _left(self, link: int, depth: int) -> float:
        """Return what the lanes above leave of a link."""
        capacity = self.capacities[link]
        left = capacity
        for lane in self._lanes[:depth]:
            left -= lane.loads[link]
        return left if left > ROUNDING * capacity else 0

    def _share(self, starts: dict[int, list[Start]] | None, links: Sequence[int], now_ns: int) -> list[int]:
        """Bring lane after lane up to date; `links` are shared anew in any case. Return what ended.

        With `starts` None nothing ends, even if it is due.
        """
        ended: list[int] = []
        risen: list[int] = []
        changed: dict[int, None] = dict.fromkeys(links)
        for depth, lane in enumerate(self._lanes):
            before = lane.shares
            if starts is not None and (lane.number in starts or lane.next_ns <= now_ns):
                begin = starts.get(lane.number, ())
                lane.shares, names, lane.next_ns = advance(lane.shares, begin, now_ns, self._compiled_from)
                lane.shares.watch()
                ended += names
            if changed:
                self._offer(lane, depth, changed, links, now_ns)
            risen += self._note(changed, lane, now_ns, lane.shares is not before)
        peaks, lanes = self._peak, self._lanes
        for link in risen:
            load = lanes[0].loads[link]
            for lane in lanes[1:]:
                load += lane.loads[link]
            if load > peaks[link]:
                peaks[link] = max(peaks[link], float(min(load, self.capacities[link])))
        return ended

    def _offer(self, lane: _Lane, depth: int, changed: dict[int, None], links: Sequence[int], now_ns: int) -> None:
        """Pass down what is left of links, where that is news beyond rounding."""
        news = dict.fromkeys(links)
        for link in changed:
            left, offered, capacity = self._left(link, depth), lane.offered[link], self.capacities[link]
            if left != offered and (abs(left - offered) > ROUNDING * capacity or left in (0, capacity)):
                news[link] = None
        for link in news:
            lane.offered[link] = self._left(link, depth)
        if news:
            lane.next_ns = lane.shares.set_capacity(list(news), [lane.offered[link] for link in news], now_ns)

    def _note(self, changed: dict[int, None], lane: _Lane, now_ns: int, anew: bool = False) -> list[int]:
        """Take over the loads of a lane that changed, and where it came to have flows or has none any more.

        Return the links whose load has risen. A solver that has taken over (`anew`) tells of all links with flows, and
        nothing of those whose last flow ended in that very nanosecond.
        """
        risen = []
        loads, occupied = lane.loads, lane.busy
        moved = lane.shares.moved()
        if anew:
            told = {link for link, _, _ in moved}
            moved += [(link, 0, False) for link in occupied if link not in told]
        for link, load, busy in moved:
            if load != loads[link]:
                changed[link] = None
                if load > loads[link]:
                    risen.append(link)
                loads[link] = load
            if busy == (link in occupied):
                continue
            if busy:
                occupied[link] = None
                if not self._busy_lanes[link]:
                    self._busy_since_ns[link] = now_ns
                self._busy_lanes[link] += 1
            else:
                del occupied[link]
                self._busy_lanes[link] -= 1
                if not self._busy_lanes[link]:
                    self._busy_ns[link] += now_ns - self._busy_since_ns[link]
        return risen
