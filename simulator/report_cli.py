"""`simulate report`: one HTML page of a run or a sweep that opens offline, on a phone and on paper."""

from pathlib import Path

import click

DONE = 0


@click.command()
@click.argument("results", metavar="RUN|SWEEP")
@click.option("--out", type=click.Path(path_type=Path), metavar="FILE", help="Write it here [RUN/report.html].")
def report(results: str, out: Path | None) -> int:
    """Write one HTML page of a run, or of a sweep; it needs no network to be read.

    RUN|SWEEP is the folder of either, or the URI of a sweep in an object store.
    """
    from simulator.errors import InputError
    from simulator.results.folder import REPORT

    if "://" in results and out is None:
        raise click.UsageError("A sweep in an object store needs --out: where the page goes on this machine.")
    page = _page(results)
    target = Path(results) / REPORT if out is None else out
    try:
        target.write_text(page, encoding="utf-8", newline="\n")
    except OSError as error:
        raise InputError(f"cannot write {target}: {error.strerror or error}") from None
    click.echo(str(target))
    return DONE


def _page(results: str) -> str:
    from simulator.results.folder import MANIFEST, PARTIAL, read_manifest

    here = "://" not in results
    if not (here and any(read_manifest(Path(results) / name) for name in (MANIFEST, PARTIAL))):
        from simulator.report.page.sweep_page import holds_sweep, sweep_page  # half a second that a run does not need

        if not here or holds_sweep(results):
            return sweep_page(results)
    from simulator.report.page.run_page import run_page

    return run_page(Path(results))
