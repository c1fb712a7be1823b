"""`simulate timeline`: the tables of a run, within a window of time, as one trace file that Perfetto opens."""

from pathlib import Path
from typing import NamedTuple

from simulator.errors import InputError, Problem
from simulator.report.timeline.columns import Span
from simulator.report.timeline.events import write_events
from simulator.report.timeline.instances import QUEUE, REQUESTS, Branches, read_names, write_power, write_windows
from simulator.report.timeline.requests import GATEWAY, WAITING, Requests
from simulator.report.timeline.trace import Trace
from simulator.report.timeline.traffic import write_traffic
from simulator.results.folder import MANIFEST, PARTIAL, TIMELINE
from simulator.results.output import replacing
from simulator.results.run import Run, load_run
from simulator.units import UnitError, format_duration, parse_duration_ns


class Written(NamedTuple):
    """What a trace file holds."""

    path: Path
    window: Span
    slices: int
    instants: int
    samples: int
    tracks: int
    size_bytes: int


def timeline(
    run: Run | str | Path,
    out: str | Path | None = None,
    start: str | int | None = None,
    end: str | int | None = None,
) -> Written:
    """Write a run, or the one in a folder, as a trace for Perfetto (default: RUN/timeline.pftrace).

    `start` and `end` cut it: durations such as "10 s" since the run's begin, or nanoseconds. Raises InputError for a
    window that is none, see `write_timeline`.
    """
    times = [_nanoseconds(name, value) for name, value in (("start", start), ("end", end))]
    found = run if isinstance(run, Run) else load_run(run)
    return write_timeline(found, None if out is None else Path(out), times[0] or 0, times[1])


def _nanoseconds(name: str, value: str | int | None) -> int | None:
    try:
        return parse_duration_ns(value) if isinstance(value, str) else value
    except UnitError as error:
        raise InputError(Problem(str(error), path=name)) from None


def write_timeline(run: Run, out: Path | None = None, from_ns: int = 0, to_ns: int | None = None) -> Written:
    """Write the trace of what lies between two times, by default of the whole run into its folder.

    Memory follows the number of requests, or of flows (some 200 bytes each); the file is written whole or not at all.
    Raises InputError when the window is empty or `out` cannot be a file of its own, OutputError when the disk refuses.
    """
    end_ns = run.manifest["simulated_ns"]
    window = _window(from_ns, to_ns, end_ns)
    out = run.path / TIMELINE if out is None else out
    _refuse(run, out)
    with replacing(out) as file:
        trace = Trace(file)
        cluster = trace.process("cluster")
        instances, roles = read_names(run)
        branches = Branches(trace, instances, roles, "power" in run.manifest["tables"])
        if "requests" in run.manifest["tables"]:
            _write_requests(trace, cluster, Requests(run, window, end_ns, instances), branches)
        write_windows(trace, run, window, instances, branches)
        write_power(trace, run, window, instances, branches)
        write_events(trace, run, window, end_ns, cluster, instances, branches)
        write_traffic(trace, run, window, end_ns)
        size = file.tell()
    return Written(out, window, trace.slices, trace.instants, trace.samples, trace.tracks, size)


def _write_requests(trace: Trace, cluster: int, requests: Requests, branches: Branches) -> None:
    def lane(place: int, instance: int) -> int:
        if place == GATEWAY:
            return trace.track(cluster, "gateway", 1)
        return branches.lane(instance, *(("queue", QUEUE) if place == WAITING else ("requests", REQUESTS)))

    requests.assign(lane)
    requests.write(trace, trace.track(cluster, "given up", 2), lambda codes: branches.events[codes])


def _window(from_ns: int, to_ns: int | None, end_ns: int) -> Span:
    if from_ns > end_ns or (to_ns is not None and to_ns <= from_ns):
        shown = f"{format_duration(from_ns)} to {format_duration(end_ns if to_ns is None else to_ns)}"
        raise InputError(f"nothing lies from {shown}; the run lasted {format_duration(end_ns)}")
    return Span(from_ns, end_ns if to_ns is None else min(to_ns, end_ns))


def _refuse(run: Run, out: Path) -> None:
    if out.is_dir():
        raise InputError(Problem("is a folder", file=str(out), allowed="a file to write"))
    if not out.parent.is_dir():
        raise InputError(Problem("there is no such folder", file=str(out.parent)))
    stamps = (*run.manifest["tables"].values(), *run.manifest["files"].values())
    own = {(run.path / name).resolve() for name in (MANIFEST, PARTIAL, *(stamp["file"] for stamp in stamps))}
    if out.resolve() in own:
        raise InputError(Problem("is a file of the run itself", file=str(out)))
