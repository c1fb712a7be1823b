"""A sweep on a terminal: what was run, its figures with intervals over the seeds, frontiers, answers and errors."""

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from simulator.results import html
from simulator.sweep.dataset import SweepResult
from simulator.sweep.view import answer_lines, error_lines, frontier_lines, headline, points_table, shown_points


def print_sweep(result: SweepResult, console: Console) -> None:
    """Print the figures of a sweep."""
    summary, points = result.summary, shown_points(result)
    console.print(Text(headline(result, points), style="bold"))
    _print_table(points_table(result, points), console)
    for note in summary["notes"]:
        console.print(Text(f"note: {note}", style="yellow"), soft_wrap=True)
    for section in summary["frontiers"]:
        _print_lines(frontier_lines(section), console)
    for answer in summary.get("answers", ()):
        _print_lines(answer_lines(answer), console)
    errors = error_lines(points)
    _print_lines(["Points without figures", *errors] if errors else [], console)
    console.print(f"\nResults  {result.store.location}")


WHOLE = 16
"""Characters of a cell below which it stays on one line."""
_ANY_WIDTH = 10_000


def _print_table(found: html.Table, console: Console) -> None:
    if not found.rows:
        return
    table = Table(box=None, pad_edge=False, header_style="dim")
    for at, name in enumerate(found.head):  # heads may be folded; a quantity is never cut, nor parted from its unit
        longest = max(len(row[at]) for row in found.rows)
        least = longest if longest < WHOLE or at not in found.text else None
        table.add_column(name, overflow="fold", justify="left" if at in found.text else "right", min_width=least)
    for row in found.rows:
        table.add_row(*row)
    console.print()
    _print_whole(table, console)
    if found.note:
        console.print(Text(found.note, style="dim"))


def _print_whole(table: Table, console: Console) -> None:
    """Print a table at the console's width or, when that would cut columns away, at its own; then lines are longer."""
    needs = Measurement.get(console, console.options.update_width(_ANY_WIDTH), table)
    if needs.minimum <= console.width:
        console.print(table)
    else:
        console.print(table, width=needs.maximum, crop=False, no_wrap=True, overflow="ignore")


def _print_lines(lines: list[str], console: Console) -> None:
    """Print the first as a heading, the others below it."""
    if lines:
        console.print(Text(f"\n{lines[0]}", style="bold"))
    for line in lines[1:]:
        console.print(Text(f"  {line}"), soft_wrap=True)
