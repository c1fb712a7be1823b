"""Rows of `requests` as slices: what each request waited for and had done to it, on lanes of the instance that had it.

A phase lasts from one mark of the request to the next that is known. A request that was given up has no row for when it
went, so what it was in the middle of is not drawn, only a mark where it was last seen.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np

from simulator.report.timeline.columns import NULL, Batch, Index, Integers, Span, batches
from simulator.report.timeline.encode import Cells
from simulator.report.timeline.lanes import Spans
from simulator.report.timeline.trace import Trace, flows
from simulator.results.run import Run

PHASES = ("gateway", "queue", "prefill", "KV wait", "KV transfer", "decode wait", "decode")
"""Phase i goes from mark i to mark i + 1."""
QUEUED, PREFILL, MOVED, FINISH = 1, 2, 5, 7  # marks
GATEWAY, WAITING, WORK, WORK_ELSEWHERE = range(4)
"""Where a request is: before any instance, in the queue of one, at work there, at work in another that decodes it."""

_TIMES = (
    "arrival_ns",
    "queued_ns",
    "prefill_start_ns",
    "prefill_end_ns",
    "kv_wait_ns",
    "kv_transfer_ns",
    "decode_start_ns",
    "finish_ns",
)
_PLACES = ("prefill_instance", "decode_instance", "outcome")
_NOTES = ("request_id", "prompt_tokens", "output_tokens", "cached_tokens", "preemptions")


def marks(batch: Batch, open_rows: np.ndarray, end_ns: int) -> Integers:
    """Return the 8 marks of each request as rows that never fall.

    One that was jumped over is at the next; those still to come of a request that is open lie at the run's end, of one
    that was given up at the last that it reached. What a preempted request waited and moved after its decode had begun
    is not between these marks.
    """
    arrival, queued, prefill, end, wait, transfer, decode, finish = map(batch.integers, _TIMES)
    placed = np.where(end >= 0, end + wait, NULL)
    moved = np.where(end >= 0, placed + transfer, NULL)
    found = np.stack((arrival, queued, prefill, end, placed, moved, decode, finish))
    found[FINISH] = np.where(open_rows, end_ns, finish)
    for mark in range(FINISH - 1, -1, -1):
        later = found[mark + 1]
        found[mark] = np.where((found[mark] < 0) | ((later >= 0) & (found[mark] > later)), later, found[mark])
    return np.where(found < 0, found.max(axis=0), found)


class _Rows(NamedTuple):
    """What one batch says, its marks clipped to the window."""

    marks: Integers
    last_ns: Integers
    """When it was last seen, not clipped."""
    prefills: Integers
    decodes: Integers
    """Codes of its instances."""
    outcomes: Integers


class Requests:
    """The requests of a run within a window, on the instances that `instances` numbers."""

    def __init__(self, run: Run, window: Span, end_ns: int, instances: Index) -> None:
        self._run = run
        self._window = window
        self._end_ns = end_ns
        self._instances = instances
        self._outcomes: Index = {"unfinished": 0}
        self._tracks: list[np.ndarray] = []  # by place and row

    def assign(self, add: Callable[[int, int], int]) -> None:
        """Give every request its lanes; `add(place, instance)` makes a track of one of GATEWAY, WAITING and WORK."""
        for places in ((GATEWAY,), (WAITING,), (WORK, WORK_ELSEWHERE)):  # one pass each, to hold few spans at once
            spans = Spans()
            for batch in batches(self._run, "requests", (*_TIMES, *_PLACES)):
                rows = self._read(batch)
                parts = [_span(rows, place) for place in places]
                spans.add(*(np.stack(columns, axis=1).ravel() for columns in zip(*parts, strict=True)))
            tracks = spans.tracks(partial(add, places[0]))
            self._tracks += [tracks[place :: len(places)].copy() for place in range(len(places))]

    def write(self, trace: Trace, gateway: int, events: Callable[[Integers], Integers]) -> None:
        """Write the slices of every request, and the marks of those that were given up.

        `events(instances)` are the tracks of marks on instances, `gateway` is that of requests that none has had.
        """
        for batch in batches(self._run, "requests", (*_TIMES, *_PLACES, *_NOTES)):
            rows = self._read(batch)
            request = trace.numbers("request", batch.integers("request_id"))
            more = [trace.numbers(name, batch.integers(name)) for name in _NOTES[1:]]
            more.append(trace.words("outcome", list(self._outcomes), rows.outcomes))
            self._write_phases(trace, batch, rows, [request], [request, *more])
            given_up = (rows.outcomes > 0) & (batch.integers("finish_ns") < 0)
            given_up &= (rows.last_ns >= self._window.start_ns) & (rows.last_ns <= self._window.end_ns)
            at = np.flatnonzero(given_up)
            if len(at):
                where = np.where(rows.decodes >= 0, rows.decodes, rows.prefills)[at]
                tracks = np.full(len(at), gateway)
                tracks[where >= 0] = events(where[where >= 0])  # where nothing was served there are no instances
                names = np.array([trace.name(outcome) for outcome in self._outcomes])[rows.outcomes[at]]
                notes = [cells.of(at) for cells in (request, *more)]
                trace.add_instants("request", tracks, rows.last_ns[at], names, notes)

    def _read(self, batch: Batch) -> _Rows:
        outcomes = batch.codes("outcome", self._outcomes)
        found = marks(batch, outcomes == 0, self._end_ns)
        prefills = batch.codes("prefill_instance", self._instances)
        decodes = batch.codes("decode_instance", self._instances)
        return _Rows(self._window.clip(found), found[FINISH], prefills, decodes, outcomes)

    def _write_phases(
        self, trace: Trace, batch: Batch, rows: _Rows, few: list[Cells], all_of_them: list[Cells]
    ) -> None:
        elsewhere = _elsewhere(rows)
        lengths = np.diff(rows.marks, axis=0)
        arrows = elsewhere & (lengths[PHASES.index("prefill")] > 0) & (lengths[PHASES.index("decode")] > 0)
        ids = batch.integers("request_id") + 1
        for phase, name in enumerate(PHASES):
            at = np.flatnonzero(lengths[phase] > 0)
            if not len(at):
                continue
            tracks = self._tracks[min(phase, WORK)][batch.rows][at]
            if phase >= MOVED:
                tracks = np.where(elsewhere[at], self._tracks[WORK_ELSEWHERE][batch.rows][at], tracks)
            main = name in ("prefill", "decode")
            trace.add_slices(
                "request",
                tracks,
                rows.marks[phase][at],
                rows.marks[phase + 1][at],
                np.full(len(at), trace.name(name)),
                [cells.of(at) for cells in (all_of_them if main else few)],
                flows(ids[at], arrows[at], end=name == "decode") if main else None,
            )


def _elsewhere(rows: _Rows) -> np.ndarray:
    """Return which requests are decoded by another instance than the one that computed their prompt."""
    apart: np.ndarray = (rows.decodes >= 0) & (rows.decodes != rows.prefills)
    return apart


def _span(rows: _Rows, place: int) -> tuple[Integers, Integers, Integers]:
    """Return owner, start and end of each request's time in a place; without length where it was not."""
    found, elsewhere = rows.marks, _elsewhere(rows)
    if place == GATEWAY:
        return np.zeros_like(rows.prefills), found[0], found[QUEUED]
    if place == WAITING:
        return rows.prefills, found[QUEUED], found[PREFILL]
    leaves = np.where(elsewhere, found[MOVED], found[FINISH])
    return (rows.prefills, found[PREFILL], leaves) if place == WORK else (rows.decodes, leaves, found[FINISH])
