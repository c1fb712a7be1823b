"""Rows of `events` as marks on the instance, or the cluster, that they happened to; faults as slices until repaired."""

from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from simulator.report.timeline.columns import Batch, Index, Span, batches
from simulator.report.timeline.instances import Branches
from simulator.report.timeline.lanes import Spans
from simulator.report.timeline.trace import Trace
from simulator.results.run import Run

_COLUMNS = ("time_ns", "kind", "subject", "detail")
FAULT, REPAIR = "fault", "repair"


class _Fault(NamedTuple):
    start_ns: int
    end_ns: int
    subject: str
    detail: str | None
    repaired: bool


class _Faults:
    """Faults, each with the repair that ends it: of one part, the first that is repaired is the first that broke."""

    def __init__(self) -> None:
        self._open: dict[str, deque[tuple[int, str | None]]] = {}
        self._over: list[_Fault] = []

    def fault(self, time_ns: int, subject: str, detail: str | None) -> None:
        self._open.setdefault(subject, deque()).append((time_ns, detail))

    def repair(self, time_ns: int, subject: str) -> bool:
        """End the oldest fault of a part; return whether there was one."""
        waiting = self._open.get(subject)
        if not waiting:
            return False
        start_ns, detail = waiting.popleft()
        self._over.append(_Fault(start_ns, time_ns, subject, detail, True))
        return True

    def until(self, end_ns: int) -> list[_Fault]:
        """Return all in order of time; those never repaired last until the run's end."""
        left = [_Fault(at, end_ns, subject, detail, False) for subject, row in self._open.items() for at, detail in row]
        return sorted(self._over + left, key=lambda fault: (fault.start_ns, fault.subject))


def write_events(
    trace: Trace, run: Run, window: Span, end_ns: int, cluster: int, instances: Index, branches: Branches
) -> None:
    """Write what happened within the window; `cluster` is the process of what no instance has."""
    everywhere = trace.track(cluster, "events")
    track_of = {name: int(branches.events[code]) for name, code in instances.items()}
    faults = _Faults()
    for batch in batches(run, "events", _COLUMNS):
        _write_marks(trace, window, batch, faults, lambda subject: track_of.get(subject, everywhere))
    _write_faults(trace, window, cluster, faults.until(end_ns))


def _write_marks(trace: Trace, window: Span, batch: Batch, faults: _Faults, track: Callable[[str], int]) -> None:
    kinds = [str(kind) for kind in batch.texts("kind")]
    subjects, details = [str(subject) for subject in batch.texts("subject")], batch.texts("detail")
    times = batch.integers("time_ns")
    drawn = (times >= window.start_ns) & (times <= window.end_ns)
    for row, kind in enumerate(kinds):
        if kind == FAULT:
            faults.fault(int(times[row]), subjects[row], details[row])
            drawn[row] = False
        elif kind == REPAIR and faults.repair(int(times[row]), subjects[row]):
            drawn[row] = False
    at = np.flatnonzero(drawn)
    rows = at.tolist()
    notes = [
        trace.texts("subject", [subjects[row] for row in rows]),
        trace.texts("detail", [details[row] for row in rows]),
    ]
    tracks = np.array([track(subjects[row]) for row in rows], np.int64)
    names = np.array([trace.name(kinds[row]) for row in rows], np.int64)
    trace.add_instants("event", tracks, times[at], names, notes)


def _write_faults(trace: Trace, window: Span, cluster: int, faults: list[_Fault]) -> None:
    starts = window.clip(np.array([fault.start_ns for fault in faults], np.int64))
    ends = window.clip(np.array([fault.end_ns for fault in faults], np.int64))
    spans = Spans()
    spans.add(np.zeros_like(starts), starts, ends)
    tracks = spans.tracks(lambda _: trace.track(cluster, "faults"))
    at = np.flatnonzero(tracks)
    found = [faults[row] for row in at.tolist()]
    notes = [
        trace.texts("detail", [fault.detail for fault in found]),
        trace.numbers("repaired", np.array([fault.repaired for fault in found], np.bool_)),
    ]
    names = np.array([trace.name(fault.subject) for fault in found], np.int64)
    trace.add_slices(FAULT, tracks[at], starts[at], ends[at], names, notes)
