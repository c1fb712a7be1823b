"""A comparison on a terminal: the keys that differ, then the figures that do, with intervals and verdicts."""

import math
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from simulator.report.comparison import Comparison, Difference, changed
from simulator.results.text import NOTHING, SHORT, figure_text

MAIN = (
    *("goodput", "ttft", "tpot", "itl", "e2e", "throughput", "price", "energy", "preemptions", "rejected"),
    *("timed_out", "unfinished", "fct", "slowdown", "collective", "link_utilisation_max", "simulated_s"),
)
STATISTICS = ("mean", "p50", "p99")
MOST_KEYS = 20
MOST_NAMED = 6
COLOURS = {"better": "green", "worse": "red"}


def print_comparison(comparison: Comparison, console: Console, everything: bool = False) -> None:
    """Print a comparison; without `everything` the main figures only."""
    first, second = comparison.names
    console.print(Text(f"A  {first}\nB  {second}", style="bold"), soft_wrap=True)
    _print_keys(comparison, console)
    rows = changed(comparison) if everything else main_rows(changed(comparison))
    if rows:
        _print_figures(rows, console)
    elif comparison.differences:
        console.print("\nNo figure differs.")
    console.print(Text(f"\nIntervals: {comparison.how}", style="dim"))
    for note in comparison.notes:
        console.print(Text(f"note: {note}", style="yellow"), soft_wrap=True)
    console.print(Text(verdict_text(comparison), style="bold"), soft_wrap=True)


def main_rows(rows: Sequence[Difference]) -> list[Difference]:
    """Return the main figures of all."""
    return [row for row in rows if _is_main(row.metric)]


def figure_cells(row: Difference) -> tuple[str, str, str, str, str]:
    """Return A, B, the change over A, its interval and the verdict as text."""
    first, second = (NOTHING if value is None else figure_text(row.metric, value) for value in (row.first, row.second))
    share = NOTHING if row.share is None else f"{row.share:+.1%}"
    return first, second, share, _interval(row), row.verdict or ""


def verdict_text(comparison: Comparison) -> str:
    """Return in one line what is certain: which figures B has better and worse."""
    better = [row.metric for row in comparison.differences if row.better is True]
    worse = [row.metric for row in comparison.differences if row.better is False]
    if not better and not worse:
        return "No verdict: nothing differs by more than chance may explain."
    parts = [f"better in {_listed(better)}"] if better else []
    parts += [f"worse in {_listed(worse)}"] if worse else []
    return f"B is {'; '.join(parts)}."


def _listed(names: list[str]) -> str:
    shown = [name for name in names if _is_main(name)] or names
    return ", ".join(shown[:MOST_NAMED]) + (f" and {len(shown) - MOST_NAMED} more" if len(shown) > MOST_NAMED else "")


def _is_main(metric: str) -> bool:
    words = metric.split(".")
    return words[0] in MAIN and (len(words) == 1 or words[-1] in STATISTICS or words[0] in ("throughput", "price"))


def _print_keys(comparison: Comparison, console: Console) -> None:
    if not comparison.keys:
        console.print("\nThe two have the same configuration.")
        return
    table = Table(box=None, pad_edge=False, header_style="dim", title="Keys that differ", title_justify="left")
    for name in ("", "A", "B"):
        table.add_column(name, overflow="fold")
    for path, first, second in comparison.keys[:MOST_KEYS]:
        table.add_row(path, first, second)
    console.print()
    console.print(table)
    if len(comparison.keys) > MOST_KEYS:
        console.print(Text(f"... and {len(comparison.keys) - MOST_KEYS} more", style="dim"))


def _print_figures(rows: Sequence[Difference], console: Console) -> None:
    table = Table(box=None, pad_edge=False, header_style="dim", title="Figures that differ", title_justify="left")
    table.add_column("", min_width=max(len(SHORT.get(row.metric, row.metric)) for row in rows))
    for name in ("A", "B", "B - A", "interval", ""):
        table.add_column(name, justify="right", overflow="fold")
    for row in rows:
        *cells, word = figure_cells(row)
        table.add_row(SHORT.get(row.metric, row.metric), *cells, Text(word, style=COLOURS.get(word, "")))
    console.print()
    console.print(table)


def _interval(row: Difference) -> str:
    change = row.change
    if change is None or not math.isfinite(change.half):
        return ""
    return f"{_signed(row.metric, change.low)} to {_signed(row.metric, change.high)}"


def _signed(metric: str, value: float) -> str:
    text = figure_text(metric, abs(value))
    return f"-{text}" if value < 0 else f"+{text}"
