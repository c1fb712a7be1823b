"""A sweep on a terminal: what was run, its figures with intervals over the seeds, frontiers, answers and errors."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from simulator.report.text import NOTHING, duration, number
from simulator.results.metrics import UNITS
from simulator.results.statistics import interval
from simulator.sweep.dataset import DONE, by_setting

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
SHORT = {
    "throughput.output_tokens_per_s_per_device": "tokens/s per device",
    "throughput.requests_per_s": "requests/s",
    "throughput.prompt_tokens_per_s": "prompt tokens/s",
    "throughput.output_tokens_per_s": "output tokens/s",
    "price.dollars_per_h": "$ per hour",
    "price.dollars_per_request": "$ per request",
    "price.dollars": "$",
    "price.dollars_per_million_output_tokens": "$ per M tokens",
}


def figure_text(name: str, value: float) -> str:
    """Return a metric's value with its unit, to three digits or so."""
    if math.isnan(value):
        return NOTHING
    return duration(value) if UNITS[name] == "s" else number(value)


def with_interval(name: str, values: Sequence[float], confidence: float) -> str:
    """Return the mean of a metric over seeds and half of its interval."""
    found = interval(values, confidence)
    text = figure_text(name, found.mean)
    return f"{text} ± {figure_text(name, found.half)}" if found.observations > 1 and found.half > 0 else text


def print_sweep(result: Any, console: Console) -> None:
    """Print the figures of a sweep."""
    manifest, summary, frame = result.manifest, result.summary, result.points
    status = summary["status"]
    parts = [f"{summary['points']:,} points"] + [f"{count:,} {name}" for name, count in status.items()]
    console.print(Text(f"{manifest['name']} · {' · '.join(parts)}", style="bold"))
    done = frame[frame["status"] == DONE]
    if len(done):
        _print_points(result, done, console)
    for note in summary["notes"]:
        console.print(Text(f"note: {note}", style="yellow"), soft_wrap=True)
    for section in summary["frontiers"]:
        _print_frontier(section, console)
    for answer in summary.get("answers", ()):
        _print_answer(answer, console)
    _print_errors(frame[frame["status"] != DONE], console)
    console.print(f"\nResults  {result.store.location}")


def _print_points(result: Any, done: Any, console: Console) -> None:
    paths = [path for path in result.axes if path != "seed"]
    names = [name for name in FIGURES if done[name].notna().any()]
    table = Table(box=None, pad_edge=False, header_style="dim")
    for path in paths:
        table.add_column(_short(path, paths), overflow="fold")
    for name in names:
        table.add_column(SHORT.get(name, name), justify="right")
    groups = by_setting(done, paths)
    for setting, rows in groups[:MOST_ROWS]:
        values = [str(value) for value in setting.values()]
        figures = [with_interval(name, list(rows[name]), result.manifest["confidence"]) for name in names]
        table.add_row(*values, *figures)
    console.print()
    console.print(table)
    if len(groups) > MOST_ROWS:
        console.print(Text(f"... and {len(groups) - MOST_ROWS:,} more", style="dim"))
    if len(seeds := result.manifest["seeds"]) > 1:
        level = f"{result.manifest['confidence']:.0%}"
        console.print(Text(f"means over {len(seeds)} seeds ± half of the {level} interval", style="dim"))


def _short(path: str, paths: Sequence[str]) -> str:
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
    return ", ".join(f"{_short(path, paths)} {value}" for path, value in setting.items()) or AS_IT_IS


def _print_frontier(section: Mapping[str, Any], console: Console) -> None:
    if len(section["settings"]) < 2:  # one point that is best in everything is in the table already
        return
    wanted = [f"more {SHORT.get(name, name)}" for name in section["maximise"]]
    wanted += [f"less {SHORT.get(name, name)}" for name in section["minimise"]]
    console.print(Text(f"\nFrontier: {', '.join(wanted)}", style="bold"))
    for setting in section["settings"][:MOST_ROWS]:
        console.print(f"  {setting_text(setting)}")


def _print_answer(answer: Mapping[str, Any], console: Console) -> None:
    count = f"{answer['evaluations']} settings tried"
    if answer["setting"] is None:
        console.print(Text(f"\nAnswer: none ({count})", style="bold"))
    else:
        console.print(Text(f"\nAnswer: {setting_text(answer['setting'])} ({count})", style="bold"))
        shown = [name for name in FIGURES if name in answer["figures"]]
        console.print("  " + " · ".join(f"{SHORT.get(n, n)} {figure_text(n, answer['figures'][n])}" for n in shown))
    if answer["binding"]:
        console.print(f"  bound by {'; '.join(answer['binding'])}")
    for note in answer["notes"]:
        console.print(f"  note: {note}")


def _print_errors(frame: Any, console: Console) -> None:
    if frame.empty:
        return
    console.print(Text("\nPoints without figures", style="bold"))
    for (status, error), rows in list(frame.groupby(["status", "error"], sort=False))[:MOST_ROWS]:
        console.print(Text(f"  {len(rows):,} {status}: {error}"), soft_wrap=True)
