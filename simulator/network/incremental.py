"""Flows on the compiled solver: names in, names and times of those that ended out; and a replay without any actor.

Model: as `simulator.network.kernels`; this module grows its arrays. Import it only when many flows are to be shared:
it loads the compiler's runtime, and compiles on the first use on a machine.
"""

import sys
import threading
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from simulator.network import entry, kernels
from simulator.network.component import Carried, ComponentShares, Start
from simulator.network.flow_arrays import (
    ACTIVE,
    BYTE_HOPS,
    MOVED,
    NEVER_NS,
    SHIFT,
    WATCHED,
    Starts,
    State,
    empty_state,
    grown,
    longer,
    widened,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

PATIENCE_S = 2.0  # loading what was compiled before takes far less


class Ended(NamedTuple):
    """Names of flows that ended and when, in order of time."""

    names: "NDArray[np.int64]"
    times_ns: "NDArray[np.int64]"


class IncrementalShares:
    """Flows that drain at max-min fair rates; times are in nanoseconds, and only move forward.

    A name is any number of the caller's, given to one flow at a time. Capacities are bytes/s by link.
    """

    def __init__(self, capacities: Sequence[float]) -> None:
        _announce()
        self._starts = _room_for(16, 8 * 16)
        self.state = empty_state(capacities)

    @property
    def state(self) -> State:
        """The arrays of the solver; to give it others is to bind the compiled loops to them."""
        return self._state

    @state.setter
    def state(self, state: State) -> None:
        self._state = state
        self._bind()

    def _bind(self) -> None:
        starts = self._starts
        self._ended = np.empty((2, len(self._state.flows) + len(starts.size)), np.int64)
        self._names = self._ended[0].data
        self._block = entry.block_of(self._state, starts, self._ended)
        self._returned = self._block.data
        self._address = self._block.ctypes.data
        self._fields = tuple(array.data for array in starts)
        self._room = len(starts.size)
        self._hops = min(len(starts.route) // self._room, 1 << int(self._state.numbers[SHIFT]))

    @property
    def active(self) -> int:
        """Flows under way."""
        return int(self.state.numbers[ACTIVE])

    @property
    def capacities(self) -> list[float]:
        """Bytes/s by link."""
        capacities: list[float] = self.state.links["capacity"].tolist()
        return capacities

    @property
    def byte_hops(self) -> int:
        """Bytes of the flows that ended, each times the links of its path."""
        return int(self.state.numbers[BYTE_HOPS])

    def advance(self, starts: Sequence[Start], now_ns: int) -> tuple[list[int], int]:
        """Begin `starts` now, end what is drained by now; return the names of these and the next finish."""
        count = len(starts)
        if count:
            longest = len(starts[0].path) if count == 1 else max([len(start.path) for start in starts])
            if count > self._room or longest > self._hops:
                self._make_room(count, longest)
            _write(self._fields, starts, now_ns)
        next_ns = entry.enter(self._address, 0, count, now_ns)
        returned = self._returned
        ended = returned[entry.ENDED]
        if returned[entry.CURSOR] == count:
            return self._names[:ended].tolist() if ended else [], next_ns
        names, _, next_ns = self._go_on(self._starts, count, now_ns, returned[entry.CURSOR], ended)
        return names.tolist(), next_ns

    def _make_room(self, count: int, hops: int) -> None:
        """Have room for `count` starts at once, each of `hops` links."""
        count, hops = max(2 * count, self._room), max(hops, self._hops)
        self._starts = _room_for(count, count * hops)
        self.state = widened(self._state, hops)

    def run(self, starts: Starts, until_ns: int) -> tuple["NDArray[np.int64]", "NDArray[np.int64]", int]:
        """Begin `starts`, sorted by time, and let flows end up to and with `until_ns`.

        Return the names of those that ended, their times, and the next finish after.
        """
        count, hops = len(starts.ready_ns), int(np.diff(starts.offset).max(initial=1))
        if hops > 1 << int(self.state.numbers[SHIFT]):
            self.state = widened(self.state, hops)
        names, times, next_ns = self._go_on(starts, count, until_ns, 0, 0)
        return names.copy(), times.copy(), next_ns

    def _go_on(
        self, starts: Starts, count: int, until_ns: int, cursor: int, ended: int
    ) -> tuple["NDArray[np.int64]", "NDArray[np.int64]", int]:
        """Begin `starts` from `cursor` on, growing the arrays as need be; `ended` names stand already.

        What is returned holds until the next call.
        """
        written = self._ended[:, :ended]
        both = np.empty((2, max(64, len(self.state.flows) + count + ended)), np.int64)
        both[:, :ended] = written
        names, times = both
        while True:
            cursor, more, next_ns = kernels.advance(
                self.state, starts, cursor, count, until_ns, names[ended:], times[ended:]
            )
            ended += more
            if cursor == count or starts.ready_ns[cursor] > until_ns:
                return names[:ended], times[:ended], next_ns
            flows = len(self.state.flows)
            self.state = grown(self.state, 2 * flows if self.active == flows else flows)

    def set_capacity(self, links: Sequence[int], capacities: Sequence[float], now_ns: int) -> int:
        """Change capacities and share anew now; flows due by now must have ended. Return the next finish."""
        count = len(links)
        if count > self._room:
            self._make_room(count, self._hops)
        left: Any = self._fields[2]
        route: Any = self._fields[7]
        for i, link in enumerate(links):
            left[i] = capacities[i]
            route[i] = link
        return int(entry.recapacitate(self._address, count, now_ns))

    def add_links(self, capacities: Sequence[float]) -> None:
        """Add links that no path has yet, numbered on from those there are."""
        self.state = longer(self.state, capacities)

    def watch(self) -> None:
        """Keep account of what `moved` returns from now on; with flows under way, of all their links at first."""
        if not self.state.numbers[WATCHED]:
            self.state.numbers[WATCHED] = 1
            used = np.flatnonzero(self.state.links["flows"])
            self.state.moved[: len(used)] = used
            self.state.links["moved"][used] = 1
            self.state.numbers[MOVED] = len(used)

    def moved(self) -> list[tuple[int, float, bool]]:
        """Return (link, load in bytes/s, whether it has a flow) of the links where that may be new since last asked."""
        numbers, links = self.state.numbers, self.state.links
        which = self.state.moved[: numbers[MOVED]]
        numbers[MOVED] = 0
        rows = links[which]
        links["moved"][which] = 0
        return list(zip(which.tolist(), rows["load"].tolist(), (rows["flows"] > 0).tolist(), strict=True))

    def stop(self, names: Sequence[int], now_ns: int) -> list[float]:
        """Take flows out, and return the bytes that each had still to move; share their links by `set_capacity`."""
        where = dict(zip(self._active()["name"].tolist(), self.state.active[: self.active].tolist(), strict=True))
        return [float(kernels.stop(self.state, where[name], now_ns)) for name in names]

    def on(self, link: int) -> list[int]:
        """Return the names of the flows on a link, in the order of the names."""
        row = self.state.links[link]
        slots = self.state.members[row["start"] : row["start"] + row["flows"]]
        return sorted(self.state.flows["name"][slots >> self.state.numbers[SHIFT]].tolist())

    def rates(self) -> dict[int, float]:
        """Return the rate of each flow under way, in bytes/s, by name."""
        active = self._active()
        rates = active["weight"] * self.state.shares[active["bottleneck"]]
        return dict(zip(active["name"].tolist(), rates.tolist(), strict=True))

    def carried(self, now_ns: int) -> list[Carried]:
        """Return what each link has carried, with the whole bytes that flows under way have moved."""
        state, links, active = self.state, self.state.links, self._active()
        holder = links[active["bottleneck"]]
        progress = holder["progress"] + state.shares[active["bottleneck"]] * (now_ns - holder["since_ns"]) / 1e9
        left = np.maximum(0, (state.due[holder["start"] + active["place"]] - progress) * active["weight"])
        moved = active["size"] - np.ceil(left).astype(np.int64)
        first = state.active[: self.active].astype(np.int64) << state.numbers[SHIFT]
        on_links = np.zeros(len(links), np.int64)
        for hop in range(int(active["hops"].max(initial=0))):
            has = active["hops"] > hop
            slots = first[has] + hop
            np.add.at(on_links, state.path[slots], carried_bytes(moved[has], state.part[slots]))
        busy = links["busy_ns"] + np.where(links["flows"] > 0, now_ns - links["busy_since_ns"], 0)
        columns = (links["bytes"] + on_links, busy, links["peak"], links["flow_count"])
        return [Carried(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]

    def ended_bytes(self) -> list[int]:
        """Return the bytes of ended and stopped flows by link."""
        total: list[int] = self.state.links["bytes"].tolist()
        return total

    def _active(self) -> "NDArray[Any]":
        flows: NDArray[Any] = self.state.flows[self.state.active[: self.active]]
        return flows


def carried_bytes(moved: "NDArray[np.int64]", part: "NDArray[np.float64]") -> "NDArray[np.int64]":
    """Return the whole bytes that links carry of what flows have moved, of which each has a part."""
    return np.where(part == 1.0, moved, np.rint(moved * part).astype(np.int64))


def promoted(shares: ComponentShares, now_ns: int) -> tuple[IncrementalShares, list[int], int]:
    """Return the same flows and past on the compiled solver, the names of those that end now, and the next finish."""
    other = IncrementalShares(shares.capacities)
    links = other.state.links
    past = shares.past(now_ns)
    links["bytes"], links["busy_ns"], links["peak"], links["flow_count"] = zip(*past, strict=True)
    other.state.numbers[BYTE_HOPS] = shares.byte_hops
    ended, next_ns = other.advance([start._replace(flows=0) for start in shares.under_way(now_ns)], now_ns)
    return other, ended, next_ns


def packed(starts: Sequence[Start], now_ns: int) -> Starts:
    """Return flows that all begin now as arrays."""
    arrays = _room_for(len(starts), sum(len(start.path) for start in starts))
    _write(arrays, starts, now_ns)
    return arrays


def _room_for(flows: int, hops: int) -> Starts:
    whole = np.zeros((4, flows), np.int64)
    real = np.zeros((2, flows), np.float64)
    offset, route, part = np.zeros(flows + 1, np.int64), np.zeros(hops, np.int32), np.ones(hops, np.float64)
    return Starts(whole[0], whole[1], real[0], real[1], whole[2], whole[3], offset, route, part)


def _write(fields: "Sequence[Any]", starts: Sequence[Start], now_ns: int) -> None:
    """Write flows into arrays, or views of arrays, with room for them."""
    ready_ns, size, left, weight, flows, name, offset, route, part = fields
    at = 0
    for i, start in enumerate(starts):
        name[i], path, size[i], left[i], weight[i], flows[i], _, _, portions = start
        ready_ns[i] = now_ns
        if portions:
            end = at + len(path)
            route[at:end], part[at:end] = array("i", path), array("d", portions)
            at = end
        else:
            for link in path:
                route[at], part[at] = link, 1.0
                at += 1
        offset[i + 1] = at


def replay_flows(capacities: Sequence[float], chunks: Iterable[Starts]) -> Iterator[Ended]:
    """Yield what ends while each chunk of flows begins, and at last the rest; chunks follow each other in time.

    `ready_ns` is when a flow begins to share: its start and the latency of its path. Memory follows the chunks and the
    flows under way. A flow over a dead link never ends, and is not yielded.
    """
    shares = IncrementalShares(capacities)
    waiting: Starts | None = None
    for chunk in chunks:
        if waiting is not None and len(chunk.ready_ns):
            names, times, _ = shares.run(waiting, int(chunk.ready_ns[0]) - 1)
            yield Ended(names, times)
        waiting = chunk if len(chunk.ready_ns) else waiting
    if waiting is not None:
        names, times, _ = shares.run(waiting, NEVER_NS - 1)
        yield Ended(names, times)


_announced = threading.Event()


def _announce() -> None:
    """Compile or load the loops once; say so when it takes long."""
    if _announced.is_set():
        return
    _announced.set()
    said = "compiling the flow solver (once per machine) ...\n"
    timer = threading.Timer(PATIENCE_S, lambda: sys.stderr.write(said))
    timer.daemon = True
    timer.start()
    state, starts, ended = empty_state([1.0]), packed((), 0), np.empty((2, 0), np.int64)
    kernels.advance(state, starts, 0, 0, 0, *ended)
    block = entry.block_of(state, starts, ended)
    entry.enter(block.ctypes.data, 0, 0, 0)
    entry.recapacitate(block.ctypes.data, 0, 0)
    timer.cancel()
