"""The `simulate trace` commands: convert, show, sample and synthesize request traces."""

import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:  # pyarrow and rich are slow to import; --help must not wait for them
    from rich.table import Table

    from simulator.workload.profile import Profile
    from simulator.workload.trace import Report

FORMAT_NAMES = ("azure", "burstgpt", "mooncake", "csv", "servegen", "canonical")
UNIT_NAMES = ("s", "ms", "us", "ns", "iso")
PATH = click.Path(path_type=Path)


@click.group()
def trace() -> None:
    """Convert, look at, cut and make request traces."""


def _command(name: str, *arguments: str, **options: object) -> str:
    """Return the command line that gives the same file again."""
    words = ["simulate", "trace", name, *arguments]
    for option, value in options.items():
        flag = "--" + option.removesuffix("_").replace("_", "-")
        if value is True:
            words.append(flag)
        elif isinstance(value, tuple):
            words += [word for item in value for word in (flag, item)]
        elif value is not None and value is not False:
            words += [flag, str(value)]
    return shlex.join(words)


def _complain(report: "Report", source: Path) -> None:
    if report.bad_rows:
        share = report.bad_rows / report.rows_read
        click.echo(f"{source}: left out {report.bad_rows:,} of {report.rows_read:,} rows ({share:.2%})", err=True)
        for reason in report.reasons():
            click.echo(f"  {reason}", err=True)


def _written(rows: int, out: Path) -> None:
    click.echo(f"{out}: {rows:,} requests")


def _mapping(columns: tuple[str, ...], unit: str | None) -> dict[str, Any] | None:
    """Return the mapping of a plain CSV from `role=column` words, or None without any."""
    from simulator.errors import InputError

    mapping: dict[str, Any] = {}
    for word in columns:
        role, equals, column = word.partition("=")
        if not equals or not role or not column:
            raise InputError(f"--column {word!r} is not of the form role=column, such as prompt_tokens=in")
        if role in mapping:
            raise InputError(f"--column {role} is given twice")
        mapping[role] = column
    if "arrival" in mapping:
        if unit is None:
            raise InputError(f"--arrival-unit is needed with --column arrival=...; one of {', '.join(UNIT_NAMES)}")
        mapping["arrival"] = {"column": mapping["arrival"], "unit": unit}
    elif unit is not None:
        raise InputError("--arrival-unit is only for --column arrival=...")
    return mapping or None


@trace.command()
@click.argument("source", type=PATH)
@click.option("--from", "from_", type=click.Choice(FORMAT_NAMES), required=True, help="Format of SOURCE.")
@click.option("--out", type=PATH, required=True, help="Canonical Parquet file to write.")
@click.option("--strict", is_flag=True, help="Refuse the first bad row; the default counts and leaves it out.")
@click.option("--column", multiple=True, metavar="ROLE=NAME", help="Plain CSV: arrival=t, prompt_tokens=in, ...")
@click.option("--arrival-unit", type=click.Choice(UNIT_NAMES), help="Plain CSV: unit of the arrival column.")
@click.option("--start", help='Begin this long after the start of SOURCE, such as "2 d"; times count from there.')
@click.option("--duration", help='Keep arrivals of this long, such as "10 min".')
@click.option("--seed", type=click.IntRange(0), help="Seed of what is drawn from a servegen profile; default: 0.")
def convert(
    source: Path,
    from_: str,
    out: Path,
    strict: bool,
    column: tuple[str, ...],
    arrival_unit: str | None,
    start: str | None,
    duration: str | None,
    seed: int | None,
) -> None:
    """Convert a public trace or a plain CSV (gzipped or not) to the canonical Parquet form, whole or a part of it.

    A ServeGen profile (SOURCE is X.trace.parquet, with X.dataset.parquet beside it) is not a trace: requests are drawn.
    """
    from simulator.errors import InputError
    from simulator.workload.sampling import Part
    from simulator.workload.trace import PROVENANCE_KEY, open_trace, provenance, write_trace

    if seed is not None and from_ != "servegen":
        raise InputError("--seed is only for --from servegen: nothing is drawn from the other formats")
    opened = open_trace(source, from_, _mapping(column, arrival_unit), strict, seed or 0)
    options = {"from_": from_, "out": out, "strict": strict, "column": column, "arrival_unit": arrival_unit}
    command = _command("convert", str(source), **options, start=start, duration=duration, seed=seed)
    start_ns, duration_ns = _duration_ns("--start", start) or 0, _duration_ns("--duration", duration)
    batches = Part(start_ns, duration_ns).of(opened.batches(start_ns))
    rows = write_trace(out, batches, lambda: {**opened.metadata, PROVENANCE_KEY: provenance(opened, command)})
    for note in opened.notes:
        click.echo(f"{source}: {note}", err=True)
    _complain(opened.report, source)
    _written(rows, out)


@trace.command()
@click.argument("source", type=PATH)
@click.option("--json", "as_json", is_flag=True, help="Print the statistics as JSON.")
def show(source: Path, as_json: bool) -> None:
    """Print and draw the rate, burstiness, token lengths and reuse of a canonical trace."""
    from simulator.workload.profile import profile
    from simulator.workload.trace import open_trace

    opened = open_trace(source)
    found = profile(opened.batches(), opened.prefix_block_tokens)
    if as_json:
        click.echo(json.dumps(found.record() | {"provenance": opened.origin}, indent=2))
        return
    from rich.console import Console

    console = Console(highlight=False)
    console.print(_facts(found, source), _lengths(found))
    width = max(min(console.width, 100) - 32, 10)
    for title, lines in _charts(found, width):
        console.print(f"\n[bold]{title}[/bold]")
        for line in lines:
            console.print(line, markup=False)


def _facts(found: "Profile", source: Path) -> "Table":
    from rich.table import Table

    from simulator.units import format_duration

    table = Table(title=str(source), title_justify="left", show_header=False, box=None)
    rows = [
        ("requests", f"{found.requests:,}"),
        ("span", format_duration(found.span_ns)),
        ("mean rate", _number(found.rate_per_s, "/ s")),
        ("CV of inter-arrival times", _number(found.interarrival_cv)),
        ("dispersion of counts in 1 s", _number(found.dispersion_1s)),
        ("peak in any 1 s", f"{found.peak_1s:,} requests"),
        ("peak in any 60 s", f"{found.peak_60s:,} requests"),
        ("prompt : output tokens", f"{found.prompt_to_output:.3g} : 1"),
    ]
    if found.reuse_share is not None:
        blocks = f"{found.distinct_blocks:,} of {found.total_blocks:,} blocks distinct"
        rows.append(("prompt tokens reusable", f"{found.reuse_share:.1%} ({blocks})"))
    if found.sessions is not None:
        rows.append(("sessions", f"{found.sessions:,} of {found.turns_per_session:.3g} requests on average"))
    rows += [(f"model {name}", f"{count:,} requests") for name, count in found.models.items()]
    for row in rows:
        table.add_row(*row)
    return table


def _number(value: float | None, unit: str = "") -> str:
    return "-" if value is None else f"{value:.4g} {unit}".rstrip()


def _lengths(found: "Profile") -> "Table":
    from rich.table import Table

    table = Table(box=None)
    table.add_column("tokens")
    for name in found.prompt_tokens:
        table.add_column(name, justify="right")
    for label, summary in (("prompt", found.prompt_tokens), ("output", found.output_tokens)):
        table.add_row(label, *(f"{value:.0f}" for value in summary.values()))
    return table


def _charts(found: "Profile", width: int) -> Iterator[tuple[str, list[str]]]:
    from simulator.units import NS_PER_S, format_duration

    yield "prompt tokens", _log_bars(found.prompt_histogram, width)
    yield "output tokens", _log_bars(found.output_histogram, width)
    step = -(-len(found.timeline) // 24)
    width_ns = step * found.timeline_ns
    bars = []
    for first in range(0, len(found.timeline), step):
        start_ns = first * found.timeline_ns
        # The last bar ends with the trace, not with its window: its rate would look low for no reason.
        length_ns = max(min(width_ns, found.span_ns - start_ns), 1)
        count = sum(found.timeline[first : first + step])
        bars.append(
            (format_duration(start_ns), count * NS_PER_S / length_ns, f"{count * NS_PER_S / length_ns:.3g} / s")
        )
    if found.span_ns:
        yield f"arrivals, each {format_duration(width_ns)}", _bars(bars, width)


def _log_bars(histogram: tuple[Any, Any], width: int) -> list[str]:
    """Return one bar for each power of two between the least and the greatest value."""
    values, counts = histogram
    total = int(counts.sum())
    bars = []
    for power in range(int(values[0]).bit_length() - 1, int(values[-1]).bit_length()):
        inside = (values >= 2**power) & (values < 2 ** (power + 1))
        share = int(counts[inside].sum()) / total
        bars.append((f"{2**power:,}-{2 ** (power + 1) - 1:,}" if power else "1", share, f"{share:.1%}"))
    return _bars(bars, width)


def _bars(rows: list[tuple[str, float, str]], width: int) -> list[str]:
    """Return lines of label, bar and text; a bar is drawn in eighths of a character."""
    most = max(size for _, size, _ in rows) or 1
    label = max(len(name) for name, _, _ in rows)
    lines = []
    for name, size, text in rows:
        eighths = round(size / most * width * 8)
        bar = "█" * (eighths // 8) + ("", *"▏▎▍▌▋▊▉")[eighths % 8]
        lines.append(f"{name:>{label}} {bar} {text}")
    return lines


@trace.command()
@click.argument("source", type=PATH)
@click.option("--out", type=PATH, required=True, help="Canonical Parquet file to write.")
@click.option("--requests", type=click.IntRange(1), help="Keep the first N requests of what the other options leave.")
@click.option("--duration", help='Keep arrivals of this long, such as "10 min".')
@click.option("--start", help='Begin this long after the start of the trace, such as "5 min".')
@click.option("--fraction", type=click.FloatRange(0, 1, min_open=True), help="Keep this share, chosen at random.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of --fraction.")
def sample(
    source: Path,
    out: Path,
    requests: int | None,
    duration: str | None,
    start: str | None,
    fraction: float | None,
    seed: int,
) -> None:
    """Cut a window out of a canonical trace, thin it, or both, in the order of arrival.

    Times count from --start. --fraction keeps sessions whole and chooses as `workload.fraction` of a scenario does.
    """
    from simulator.workload.sampling import Part
    from simulator.workload.trace import PROVENANCE_KEY, open_trace, provenance, write_trace

    opened = open_trace(source)
    start_ns, duration_ns = _duration_ns("--start", start) or 0, _duration_ns("--duration", duration)
    batches = Part(start_ns, duration_ns, fraction or 1.0, seed, requests).of(opened.batches())
    command = _command(
        "sample", str(source), out=out, requests=requests, duration=duration, start=start, fraction=fraction, seed=seed
    )
    rows = write_trace(out, batches, lambda: {**opened.metadata, PROVENANCE_KEY: provenance(opened, command)})
    _written(rows, out)


def _duration_ns(option: str, text: str | None) -> int | None:
    from simulator.errors import InputError
    from simulator.units import UnitError, parse_duration_ns

    if text is None:
        return None
    try:
        return parse_duration_ns(text)
    except UnitError as error:
        raise InputError(f"{option}: {error}") from None


@trace.command()
@click.option("--requests", type=click.IntRange(1), required=True, help="How many requests.")
@click.option("--arrivals", required=True, help='Arrival process, such as "gamma:rate=10 / s,cv=2".')
@click.option("--prompt", required=True, help='Prompt tokens, such as "lognormal:median=700,sigma=0.9,max=8000".')
@click.option("--output", required=True, help="Output tokens, in the same form.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of all random streams.")
@click.option("--out", type=PATH, required=True, help="Canonical Parquet file to write.")
def synthesize(requests: int, arrivals: str, prompt: str, output: str, seed: int, out: Path) -> None:
    """Make a trace of independent requests from laws of arrivals and lengths.

    Arrivals: constant, poisson, gamma, mmpp (rates=5 / s;50 / s,dwell=10 s;1 s), diurnal (rate, peak_to_mean, period).
    Lengths: lognormal, constant, uniform, exponential, empirical (path, column).
    """
    from simulator.workload.spec import parse_arrivals, parse_lengths
    from simulator.workload.synthesis import synthesize as make
    from simulator.workload.trace import PROVENANCE_KEY, write_trace

    batches = make(seed, requests, parse_arrivals(arrivals), parse_lengths(prompt), parse_lengths(output))
    command = _command(
        "synthesize", requests=requests, arrivals=arrivals, prompt=prompt, output=output, seed=seed, out=out
    )
    _written(write_trace(out, batches, {PROVENANCE_KEY: json.dumps({"command": command, "seed": seed})}), out)
