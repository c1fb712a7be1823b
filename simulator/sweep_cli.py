"""The `simulate sweep` command: many runs of a scenario on the processors of this machine or of a cluster."""

import json

import click

from simulator.completion import shipped_or_files

DONE, INVALID = 0, 2


@click.command()
@click.argument("file", metavar="FILE", type=click.Path(), shell_complete=shipped_or_files("sweeps"))
@click.option("--out", metavar="DIR|URI", help="Where the results go [results/sweeps/NAME].")
@click.option("--workers", "count", type=click.IntRange(min=1), help="Processes that run points [one a processor].")
@click.option("--scheduler", metavar="ADDRESS", help="A running Dask scheduler, such as tcp://10.0.0.1:8786.")
@click.option("--dry-run", is_flag=True, help="Show the points and what they may cost; run nothing.")
@click.option("--extend", is_flag=True, help="Take over the folder of another sweep: keep the points of both.")
@click.option("--check", is_flag=True, help="Check every conserved quantity during the runs.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
@click.option("--plugin", "plugins", multiple=True, metavar="MODULE", help="Import a module that registers policies.")
def sweep(
    file: str,
    out: str | None,
    count: int | None,
    scheduler: str | None,
    dry_run: bool,
    extend: bool,
    check: bool,
    as_json: bool,
    plugins: tuple[str, ...],
) -> int:
    """Run a sweep, or what is missing of it.

    FILE is a sweep, or the name of a shipped one such as devices.
    """
    from simulator.plugins import import_plugins

    import_plugins(plugins)
    if count is not None and scheduler is not None:
        raise click.UsageError("--workers goes with processes here, and --scheduler names others: give one of the two")
    if dry_run:
        from simulator.sweep.estimate import dry_run_lines

        click.echo("\n".join(dry_run_lines(file, out, count)))
        return DONE
    from simulator.report.progress import SweepProgress
    from simulator.sweep.run import sweep as run_sweep

    with SweepProgress() as line:
        result = run_sweep(file, out, count, scheduler, extend, check, plugins, line)
    if as_json:
        click.echo(json.dumps(result.summary, indent=2))
    else:
        from rich.console import Console

        from simulator.report.sweep import print_sweep

        print_sweep(result, Console())
    return DONE if result.summary["status"].get("done") else INVALID
