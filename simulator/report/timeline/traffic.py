"""Rows of `flows` and `collectives` as slices, flows on lanes of the node that they leave."""

from collections.abc import Sequence

import numpy as np

from simulator.report.timeline.columns import Batch, Index, Integers, Span, batches
from simulator.report.timeline.encode import Cells
from simulator.report.timeline.lanes import Spans
from simulator.report.timeline.trace import Trace
from simulator.results.run import Run

_TIMES = ("start_ns", "finish_ns")


def write_traffic(trace: Trace, run: Run, window: Span, end_ns: int) -> None:
    """Write the flows and collectives of a network-only run; those still under way last until its end."""
    if "flows" not in run.manifest["tables"]:
        return
    network = trace.process("network")
    _write_collectives(trace, run, window, end_ns, network)
    _write_flows(trace, run, window, end_ns, network)


def _write_flows(trace: Trace, run: Run, window: Span, end_ns: int, network: int) -> None:
    sources: Index = {}
    targets: Index = {}
    branches: dict[int, int] = {}

    def add(source: int) -> int:
        if source not in branches:
            branches[source] = trace.track(network, list(sources)[source], source + 1)
        return trace.track(branches[source], "flows")

    spans = Spans()
    for batch in batches(run, "flows", ("src", *_TIMES)):
        spans.add(batch.codes("src", sources), *_clipped(batch, window, end_ns))
    tracks = spans.tracks(add)
    for batch in batches(run, "flows", ("flow_id", "dst", "bytes", *_TIMES, "ideal_ns", "completed")):
        targets_of = batch.codes("dst", targets)
        names = np.array([trace.name(f"to {target}") for target in targets])[targets_of]
        ideal = batch.integers("ideal_ns")
        notes = [
            trace.numbers("flow", batch.integers("flow_id")),
            trace.numbers("bytes", batch.integers("bytes")),
            trace.numbers("ideal_ns", np.maximum(ideal, 0), ideal >= 0),
            trace.numbers("completed", batch.bools("completed")),
        ]
        _write(trace, "flow", batch, tracks, _clipped(batch, window, end_ns), names, notes)


def _write_collectives(trace: Trace, run: Run, window: Span, end_ns: int, network: int) -> None:
    spans = Spans()
    for batch in batches(run, "collectives", _TIMES):
        spans.add(np.zeros(len(batch), np.int64), *_clipped(batch, window, end_ns))
    tracks = spans.tracks(lambda _: trace.track(network, "collectives"))
    words: dict[str, Index] = {"operation": {}, "algorithm": {}, "protocol": {}}
    counts = ("run", "repeat", "ranks", "groups", "bytes", "ideal_ns")
    for batch in batches(run, "collectives", (*_TIMES, *words, *counts, "completed")):
        codes = {column: batch.codes(column, index) for column, index in words.items()}
        names = np.array([trace.name(operation) for operation in words["operation"]])[codes["operation"]]
        notes = [trace.numbers(column, batch.integers(column)) for column in counts]
        notes += [
            trace.words(column, list(words[column]), np.maximum(codes[column], 0), codes[column] >= 0)
            for column in ("algorithm", "protocol")
        ]
        notes.append(trace.numbers("completed", batch.bools("completed")))
        _write(trace, "collective", batch, tracks, _clipped(batch, window, end_ns), names, notes)


def _clipped(batch: Batch, window: Span, end_ns: int) -> tuple[Integers, Integers]:
    starts, finishes = batch.integers("start_ns"), batch.integers("finish_ns")
    return window.clip(starts), window.clip(np.where(finishes < 0, end_ns, finishes))


def _write(
    trace: Trace,
    category: str,
    batch: Batch,
    tracks: np.ndarray,
    spans: tuple[Integers, Integers],
    names: Integers,
    notes: Sequence[Cells],
) -> None:
    tracks = tracks[batch.rows]
    at = np.flatnonzero(tracks)
    starts, ends = spans
    trace.add_slices(category, tracks[at], starts[at], ends[at], names[at], [cells.of(at) for cells in notes])
