"""`simulate report`: one HTML page of a run or a sweep that opens offline, on a phone and on paper."""

from pathlib import Path

import click

from simulator.completion import folders

DONE = 0


@click.command()
@click.argument("results", metavar="RUN|SWEEP", shell_complete=folders)
@click.option("--out", type=click.Path(path_type=Path), metavar="FILE", help="Write it here [RUN/report.html].")
def report(results: str, out: Path | None) -> int:
    """Write one HTML page of a run, or of a sweep; it needs no network to be read.

    RUN|SWEEP is the folder of either, or the URI of a sweep in an object store.
    """
    from simulator.report.page.write import report as write_report

    click.echo(str(write_report(results, out)))
    return DONE
