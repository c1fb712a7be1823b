"""The `simulate timeline` command: a run as a trace file to look at in Perfetto."""

from pathlib import Path

import click

from simulator.completion import folders

PATH = click.Path(path_type=Path)


def _duration_ns(_: click.Context, __: click.Parameter, text: str | None) -> int | None:
    from simulator.units import UnitError, parse_duration_ns

    if text is None:
        return None
    try:
        return parse_duration_ns(text)
    except UnitError as error:
        raise click.BadParameter(str(error)) from None


@click.command()
@click.argument("run", type=PATH, metavar="RUN", shell_complete=folders)
@click.option("--out", type=PATH, metavar="FILE", help="Trace file to write [RUN/timeline.pftrace].")
@click.option("--from", "from_ns", callback=_duration_ns, metavar="TIME", help='Begin here, such as "10 s" [0 s].')
@click.option(
    "--to", "to_ns", callback=_duration_ns, metavar="TIME", help='End here, such as "1 min" [the run\'s end].'
)
def timeline(run: Path, out: Path | None, from_ns: int | None, to_ns: int | None) -> None:
    """Write the run in folder RUN as a trace for https://ui.perfetto.dev: requests, instances, events, flows.

    Times count from the run's start; what reaches beyond --from and --to is cut there.
    """
    from simulator.report.timeline.write import timeline as write_timeline
    from simulator.units import format_duration

    done = write_timeline(run, out, from_ns, to_ns)
    window = f"{format_duration(done.window.start_ns)} to {format_duration(done.window.end_ns)}"
    held = f"{done.slices:,} slices, {done.instants:,} marks and {done.samples:,} samples on {done.tracks:,} tracks"
    click.echo(f"{done.path}: {window}, {held}, {done.size_bytes / 1e6:.1f} MB; open it in https://ui.perfetto.dev")
