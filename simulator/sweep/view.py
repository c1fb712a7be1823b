"""What is shown of a sweep, as text: its figures with intervals over the seeds, frontiers, answers and errors.

A terminal and a notebook show the same lines and tables.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from simulator.results.html import Table, fragment
from simulator.results.statistics import interval
from simulator.results.text import SHORT, figure_text
from simulator.sweep.dataset import DONE, SweepResult, by_setting

if TYPE_CHECKING:
    import pandas as pd

MOST_ROWS = 24
AS_IT_IS = "the scenario as it is"
"""Name of a setting in which nothing varies."""
FIGURES = (
    "goodput",
    "ttft.p50",
    "ttft.p99",
    "tpot.p99",
    "throughput.output_tokens_per_s_per_device",
    "price.dollars_per_million_output_tokens",
    "fct.p99",
    "slowdown.p99",
    "collective.mean",
)
"""Metrics of the table, as far as the points have them."""


def shown_points(result: SweepResult) -> "pd.DataFrame":
    """Return of a sweep's points what the lines and tables here are made of."""
    return result.columns(["status", "error", *FIGURES])


def headline(result: SweepResult, points: "pd.DataFrame") -> str:
    """Return the name of a sweep and what became of its points, on one line."""
    counts = points["status"].value_counts(sort=False).items()
    parts = [f"{len(points):,} points"] + [f"{count:,} {status}" for status, count in counts]
    return " · ".join([str(result.manifest["name"]), *parts, *([] if result.complete else ["not ended"])])


def points_table(result: SweepResult, points: "pd.DataFrame") -> Table:
    """Return the main figures of each setting, means over the seeds with half of their interval."""
    done = points[points["status"] == DONE]
    paths = [path for path in result.axes if path != "seed"]
    names = [name for name in FIGURES if done[name].notna().any()]
    confidence = result.manifest["confidence"]
    groups = by_setting(done, paths)
    rows = tuple(
        (*map(str, setting.values()), *(with_interval(name, list(found[name]), confidence) for name in names))
        for setting, found in groups[:MOST_ROWS]
    )
    seeds = len(result.manifest["seeds"])
    notes = [f"... and {len(groups) - MOST_ROWS:,} more"] if len(groups) > MOST_ROWS else []
    notes += [f"means over {seeds} seeds ± half of the {confidence:.0%} interval"] if seeds > 1 else []
    head = (*(short_path(path, paths) for path in paths), *(SHORT.get(name, name) for name in names))
    return Table(head, rows, note="; ".join(notes), text=tuple(range(len(paths))))


def with_interval(name: str, values: Sequence[float], confidence: float) -> str:
    """Return the mean of a metric over seeds and half of its interval."""
    found = interval(values, confidence)
    text = figure_text(name, found.mean)
    return f"{text} ± {figure_text(name, found.half)}" if found.observations > 1 and found.half > 0 else text


def short_path(path: str, paths: Sequence[str]) -> str:
    """Return the last words of a path that tell it from the others."""
    words = path.split(".")
    for count in range(1, len(words) + 1):
        tail = ".".join(words[-count:])
        if sum(other == tail or other.endswith(f".{tail}") for other in paths) == 1:
            return tail
    return path


def setting_text(setting: Mapping[str, Any]) -> str:
    """Return a setting as one line."""
    paths = list(setting)
    return ", ".join(f"{short_path(path, paths)} {value}" for path, value in setting.items()) or AS_IT_IS


def frontier_lines(section: Mapping[str, Any]) -> list[str]:
    """Return what a frontier weighs and below it its settings; nothing of one point, which is in the table already."""
    if len(section["settings"]) < 2:
        return []
    wanted = [f"more {SHORT.get(name, name)}" for name in section["maximise"]]
    wanted += [f"less {SHORT.get(name, name)}" for name in section["minimise"]]
    return [f"Frontier: {', '.join(wanted)}", *map(setting_text, section["settings"][:MOST_ROWS])]


def answer_lines(answer: Mapping[str, Any]) -> list[str]:
    """Return what a search found and below it its figures, what binds it and what to know of it."""
    count = f"{answer['evaluations']} settings tried"
    found = "none" if answer["setting"] is None else setting_text(answer["setting"])
    lines = [f"Answer: {found} ({count})"]
    if answer["setting"] is not None:
        names = [name for name in FIGURES if name in answer["figures"]]
        lines.append(" · ".join(f"{SHORT.get(n, n)} {figure_text(n, answer['figures'][n])}" for n in names))
    if answer["binding"]:
        lines.append(f"bound by {'; '.join(answer['binding'])}")
    return lines + [f"note: {note}" for note in answer["notes"]]


def error_lines(points: "pd.DataFrame") -> list[str]:
    """Return the errors of points that are not done, each with how many have it."""
    groups = list(points[points["status"] != DONE].groupby(["status", "error"], sort=False, dropna=False))
    return [f"{len(rows):,} {status}: {error}" for (status, error), rows in groups[:MOST_ROWS]]


def sweep_html(result: SweepResult) -> str:
    """Return what a notebook shows of a sweep."""
    summary = result.summary
    lines = [f"note: {note}" for note in summary.get("notes", ())]
    for section in summary.get("frontiers", ()):
        lines += frontier_lines(section)
    for answer in summary.get("answers", ()):
        lines += answer_lines(answer)
    points = shown_points(result)
    errors = error_lines(points)
    lines += ["Points without figures:", *errors] if errors else []
    return fragment(headline(result, points), [points_table(result, points), *lines, result.store.location])
