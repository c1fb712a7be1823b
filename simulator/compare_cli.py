"""The `simulate compare` command: two runs, or two settings of sweeps, with intervals and verdicts."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from simulator.report.comparison import Comparison


@click.command()
@click.argument("first", metavar="A")
@click.argument("second", metavar="[B]", required=False)
@click.option("--by", metavar="PATH", help="Compare the settings of one sweep A along this axis.")
@click.option("--confidence", type=click.FloatRange(0.5, 0.9999), default=0.95, show_default=True, help="Of intervals.")
@click.option("--all", "everything", is_flag=True, help="Show every figure that differs.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def compare(first: str, second: str | None, by: str | None, confidence: float, everything: bool, as_json: bool) -> int:
    """Compare runs A and B, or the settings of a sweep.

    A and B are folders of runs, or of sweeps whose settings and seeds are the same; B is held against A.
    """
    comparisons = comparisons_of(first, second, by, confidence)
    if as_json:
        click.echo(json.dumps([as_data(each) for each in comparisons], indent=2))
        return 0
    from rich.console import Console

    from simulator.report.compare_terminal import print_comparison

    console = Console()
    for at, each in enumerate(comparisons):
        if at:
            console.rule()
        print_comparison(each, console, everything)
    return 0


def comparisons_of(first: str, second: str | None, by: str | None, confidence: float) -> "list[Comparison]":
    """Return the comparisons that the arguments ask for; raises InputError when they do not go together."""
    from simulator.errors import InputError, Problem
    from simulator.report.comparison import compare_runs
    from simulator.report.sweep_comparison import along, between
    from simulator.results.run import load_run
    from simulator.sweep.dataset import BEGUN, load_sweep

    sweeps = [
        name for name in (first, second) if name is not None and ("://" in name or (Path(name) / BEGUN).is_file())
    ]
    if by is not None:
        if second is not None:
            raise InputError(Problem("--by compares the settings of one sweep", allowed="one folder"))
        return along(load_sweep(first), by, confidence)
    if second is None:
        raise InputError(Problem("one folder: nothing to compare it with", allowed="two, or --by PATH of a sweep"))
    if len(sweeps) == 1:
        raise InputError(Problem(f"{sweeps[0]} is a sweep and the other is not", allowed="two runs, or two sweeps"))
    if sweeps:
        return between(load_sweep(first), load_sweep(second), confidence)
    return [compare_runs(load_run(first), load_run(second), confidence)]


def as_data(comparison: "Comparison") -> dict[str, Any]:
    """Return a comparison as JSON has it."""
    return {
        "a": comparison.names[0],
        "b": comparison.names[1],
        "keys": [{"path": path, "a": first, "b": second} for path, first, second in comparison.keys],
        "intervals": comparison.how,
        "notes": list(comparison.notes),
        "figures": [
            {
                "metric": row.metric,
                "a": row.first,
                "b": row.second,
                "low": None if row.change is None else row.change.low,
                "high": None if row.change is None else row.change.high,
                "verdict": {True: "better", False: "worse", None: None}[row.better],
            }
            for row in comparison.differences
        ],
    }
