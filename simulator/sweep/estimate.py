"""What a sweep would run and what that may cost, before it does."""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from simulator.errors import InputError
from simulator.scenario.schema import Scenario
from simulator.sweep.axes import value_text
from simulator.sweep.dataset import DONE, JOURNAL, statuses
from simulator.sweep.farm import cores
from simulator.sweep.plan import Plan, load_plan
from simulator.sweep.store import Store
from simulator.units import NS_PER_S, format_duration

REQUESTS_PER_S = 4000.0
"""Of a processor, where nothing has been measured yet: about what benchmarks/serving.py prints, halved."""
START_S = 0.15
"""Of a point beside its requests."""
MOST_SHOWN = 12


def dry_run_lines(file: str, out: str | None, count: int | None) -> list[str]:
    """Return as text the axes of a sweep, its first points, how many are there already, and seconds for the rest."""
    plan = load_plan(file)
    lines = [f"{plan.sweep.name}: {plan.file}"]
    lines += [f"  {path}: {_values(values)}" for path, values in plan.axes.items()]
    if plan.sweep.search is not None:
        lines.append(f"  search: {len(plan.settings):,} settings to begin with; how many points follow is not known")
        return lines
    store = Store(out if out is not None else Path("results") / "sweeps" / plan.sweep.name)
    there = statuses(store)
    points = dict.fromkeys(point.name for point in plan.points())
    missing = [name for name in points if name not in there]
    lines.append(f"{len(points):,} points, {len(points) - len(missing):,} there already, {len(missing):,} to run")
    for setting in plan.settings[:MOST_SHOWN]:
        lines.append("  " + (", ".join(f"{path}={value_text(value)}" for path, value in setting.items()) or "as it is"))
    if len(plan.settings) > MOST_SHOWN:
        lines.append(f"  ... and {len(plan.settings) - MOST_SHOWN:,} more settings")
    seconds, how = _seconds(plan, store)
    workers = count or cores()
    total = math.ceil(len(missing) / workers) * seconds
    whole = _time(seconds * len(missing))
    lines.append(f"about {whole} of processor time, {_time(total)} on {workers} workers ({how})")
    return lines


def _values(values: list[Any]) -> str:
    texts = [value_text(value) for value in values]
    shown = texts if len(texts) <= MOST_SHOWN else [*texts[: MOST_SHOWN - 1], "...", texts[-1]]
    return f"{len(values):,}: {', '.join(shown)}" if values else "searched"


def _time(seconds: float) -> str:
    return format_duration(round(seconds * NS_PER_S))


def _seconds(plan: Plan, store: Store) -> tuple[float, str]:
    """Return seconds of a point and what they are from."""
    if store.folder is not None and (journal := store.folder / JOURNAL).is_file():
        rows = list(filter(None, map(_entry, journal.read_text(encoding="utf-8").splitlines())))
        times = [row["wall_s"] for row in rows if row["status"] == DONE]
        if times:
            return sum(times) / len(times), f"mean of {len(times):,} points that were run"
    requests = _mean(_requests(point.load()) for point in _some(plan))
    if requests is None:
        return START_S, "the start of a run alone: how long it goes on is not known beforehand"
    return START_S + requests / REQUESTS_PER_S, f"{requests:,.0f} requests a point, {REQUESTS_PER_S:,.0f} a second"


def _entry(line: str) -> dict[str, Any] | None:
    """Return a line of a journal, None for what a killed client has left of one."""
    try:
        return dict(json.loads(line))
    except ValueError:
        return None


def _some(plan: Plan) -> Iterable[Any]:
    for setting in plan.settings[:: max(1, len(plan.settings) // MOST_SHOWN)]:
        point = plan.point(setting)
        try:
            point.load()
        except InputError:
            continue  # its row will say why
        yield point


def _mean(counts: Iterable[int | None]) -> float | None:
    found = [count for count in counts if count is not None]
    return sum(found) / len(found) if found else None


def _requests(scenario: Scenario) -> int | None:
    workload = scenario.workload
    known = getattr(workload, "requests", None)  # of a trace the most that are replayed
    if isinstance(known, int):
        return known
    trace = getattr(workload, "trace", None)
    if trace is None:
        return None
    try:
        import pyarrow.parquet as pq

        from simulator import catalog

        rows = int(pq.read_metadata(catalog.locate("traces", trace)).num_rows)
    except (OSError, ValueError, InputError):
        return None
    return rows
