"""The `simulate compare` command: two runs, or two settings of sweeps, with intervals and verdicts."""

import json

import click

from simulator.completion import folders


@click.command()
@click.argument("first", metavar="A", shell_complete=folders)
@click.argument("others", metavar="[B]...", nargs=-1, shell_complete=folders)
@click.option("--by", metavar="PATH", help="Compare the settings of one sweep A along this axis.")
@click.option("--confidence", type=click.FloatRange(0.5, 0.9999), default=0.95, show_default=True, help="Of intervals.")
@click.option("--all", "everything", is_flag=True, help="Show every figure that differs.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def compare(
    first: str, others: tuple[str, ...], by: str | None, confidence: float, everything: bool, as_json: bool
) -> int:
    """Compare runs A and B, C ..., or the settings of a sweep.

    These are folders of runs, or of sweeps whose settings and seeds are the same; each other is held against A.
    """
    from simulator.report.compare import compare as compared

    comparisons = compared(first, *others, by=by, confidence=confidence)
    if as_json:
        click.echo(json.dumps(comparisons.as_data(), indent=2))
        return 0
    from rich.console import Console

    from simulator.report.compare_terminal import print_comparison

    console = Console()
    for at, each in enumerate(comparisons):
        if at:
            console.rule()
        print_comparison(each, console, everything)
    return 0
