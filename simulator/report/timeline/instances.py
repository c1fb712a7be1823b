"""Rows of `instances` and `power` as states and counters, on a branch of tracks for each instance."""

from collections.abc import Iterable

import numpy as np

from simulator.report.timeline.columns import Batch, Index, Integers, Span, batches
from simulator.report.timeline.trace import Trace
from simulator.results.run import Run
from simulator.units import NS_PER_S

COUNTERS = {
    "running": "requests",
    "waiting": "requests",
    "KV blocks in use": "blocks",
    "output tokens/s": "tokens/s",
    "power": "W",
}
"""Name and unit of each; all but the last are of the table `instances`."""
STATE, REQUESTS, QUEUE, EVENTS, FIRST_COUNTER = range(5)
"""Order of the tracks of an instance."""

_PARTS = ("prefill_ns", "decode_ns", "idle_ns")
_WINDOW = ("instance", "start_ns", "end_ns")
_VALUES = ("running", "waiting", "kv_blocks", "output_tokens")


def read_names(run: Run) -> tuple[Index, dict[str, str]]:
    """Return the instances of a run, and the role of each that lived for a while."""
    instances: Index = {}
    roles: Index = {}
    role_of: dict[str, str] = {}
    for batch in batches(run, "instances", ("instance", "role")):
        owners, own = batch.codes("instance", instances), batch.codes("role", roles)
        names, words = list(instances), list(roles)
        known, first = np.unique(owners, return_index=True)
        role_of |= {names[code]: words[own[row]] for code, row in zip(known.tolist(), first.tolist(), strict=True)}
    for batch in batches(run, "requests", ("prefill_instance", "decode_instance")):
        batch.codes("prefill_instance", instances)
        batch.codes("decode_instance", instances)
    return instances, role_of


class Branches:
    """The tracks of every instance: a process for each group of them, in it a branch for each."""

    def __init__(self, trace: Trace, instances: Iterable[str], roles: dict[str, str], metered: bool) -> None:
        names = list(instances)
        groups: dict[str, list[tuple[int, str]]] = {}
        for name in names:
            group, _, number = name.rpartition("-")
            if not number.isdecimal():
                group, number = name, "0"
            groups.setdefault(group, []).append((int(number), name))
        self._branch = np.zeros(len(names), np.int64)
        self.state = np.zeros(len(names), np.int64)
        self.events = np.zeros(len(names), np.int64)
        self.counters = {name: np.zeros(len(names), np.int64) for name in COUNTERS if metered or name != "power"}
        self._trace = trace
        codes = {name: code for code, name in enumerate(names)}
        for group, members in groups.items():
            role = roles.get(members[0][1], group)
            process = trace.process(group if group == role else f"{group} ({role})")
            for rank, name in sorted(members):
                self._grow(process, rank, name, codes[name])

    def _grow(self, process: int, rank: int, name: str, code: int) -> None:
        trace = self._trace
        branch = self._branch[code] = trace.track(process, name, rank)
        self.state[code] = trace.track(int(branch), "state", STATE)
        self.events[code] = trace.track(int(branch), "events", EVENTS)
        for place, (counter, tracks) in enumerate(self.counters.items(), FIRST_COUNTER):
            tracks[code] = trace.counter(int(branch), counter, COUNTERS[counter], place)

    def lane(self, code: int, name: str, rank: int) -> int:
        """Add one more lane of an instance."""
        return self._trace.track(int(self._branch[code]), name, rank)


def write_windows(trace: Trace, run: Run, window: Span, instances: Index, branches: Branches) -> None:
    """Write what each instance did in each window: the state as a slice, the means as samples at its beginning."""
    last = _Last(len(instances))
    states: Index = {}
    for batch in batches(run, "instances", (*_WINDOW, "state", *_PARTS, *_VALUES)):
        owners, starts, ends, at = _within(batch, window, instances)
        last.note(batch, instances)
        state_of = batch.codes("state", states)[at]
        names = np.array([trace.name(state) for state in states])[state_of]
        notes = [trace.numbers(name, batch.integers(name)[at]) for name in _PARTS]
        trace.add_slices("window", branches.state[owners], starts, ends, names, notes)
        lengths_ns = (batch.integers("end_ns") - batch.integers("start_ns"))[at]
        for counter, column in zip(COUNTERS, _VALUES, strict=False):
            values = batch.doubles(column)[at]
            if column == "output_tokens":
                values = values * NS_PER_S / lengths_ns
            trace.add_samples(branches.counters[counter][owners], starts, values)
    last.write(trace, window, [branches.counters[counter] for counter in list(COUNTERS)[: len(_VALUES)]])


def write_power(trace: Trace, run: Run, window: Span, instances: Index, branches: Branches) -> None:
    """Write the mean power of each window as a sample at its beginning."""
    last = _Last(len(instances))
    for batch in batches(run, "power", (*_WINDOW, "power_w")):
        owners, starts, _, at = _within(batch, window, instances)
        last.note(batch, instances)
        trace.add_samples(branches.counters["power"][owners], starts, batch.doubles("power_w")[at])
    if "power" in branches.counters:
        last.write(trace, window, [branches.counters["power"]])


class _Last:
    """When the last window of each instance ended: its counters are zero from then on."""

    def __init__(self, instances: int) -> None:
        self._ends_ns = np.full(instances, -1, np.int64)

    def note(self, batch: Batch, instances: Index) -> None:
        np.maximum.at(self._ends_ns, batch.codes("instance", instances), batch.integers("end_ns"))

    def write(self, trace: Trace, window: Span, counters: list[Integers]) -> None:
        over = np.flatnonzero((self._ends_ns > window.start_ns) & (self._ends_ns <= window.end_ns))
        for tracks in counters:
            trace.add_samples(tracks[over], self._ends_ns[over], np.zeros(len(over)))


def _within(batch: Batch, window: Span, instances: Index) -> tuple[Integers, Integers, Integers, Integers]:
    """Return owner, start and end of the rows that last within the window, clipped to it, and which rows these are."""
    starts, ends = window.clip(batch.integers("start_ns")), window.clip(batch.integers("end_ns"))
    at = np.flatnonzero(ends > starts)
    return batch.codes("instance", instances)[at], starts[at], ends[at], at
