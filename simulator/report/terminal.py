"""A run's summary for people at a terminal, in 80 columns; every figure comes from summary.json or the manifest."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from simulator.results.metrics import STATISTICS, lookup, unit_of
from simulator.results.text import duration, number, share
from simulator.scenario.expectation import Expectation
from simulator.units import format_bandwidth, format_bytes

_LATENCIES = {
    "ttft": "TTFT",
    "tpot": "TPOT",
    "itl": "ITL",
    "e2e": "E2E",
    "queue": "Queue",
    "kv_wait": "KV wait",
    "kv_transfer": "KV transfer",
}
_BAR_WIDTH = 24


class _Symbols(NamedTuple):
    """Characters that the terminal's encoding has."""

    dot: str
    arrow: str
    good: str
    bad: str
    work: str
    other_work: str
    rest: str


_UNICODE = _Symbols(" · ", " → ", "✓", "✗", "█", "▓", "░")
_ASCII = _Symbols(", ", " -> ", "+", "x", "#", "=", ".")


def print_summary(
    summary: Mapping[str, Any],
    manifest: Mapping[str, Any],
    warnings: Sequence[str],
    console: Console,
    expectations: Sequence[Expectation] = (),
    folder: Path | None = None,
) -> None:
    """Print the report of a run: headline, outcomes, latencies, goodput, throughput, utilisation, links, warnings.

    The headline uses `scenario`, `model`, `topology`, `seed`, `status`, `wall_s` and `events` of the manifest, those
    that are there. Colour is rich's matter: none when the console is not a terminal.
    """
    symbols = _UNICODE if console.encoding.lower().startswith("utf") else _ASCII
    _headline(summary, manifest, console, symbols)
    if "flows" in summary:
        if summary["flows"]["total"]:
            _flows(summary, console, symbols)
        _collectives(summary, console, symbols)
    else:
        _requests(summary, console, symbols)
        _latencies(summary, console)
        _objectives(summary, console, symbols)
        _throughput(summary, console, symbols)
        _pools(summary, console, symbols)
    _links(summary, console, symbols)
    _expectations(summary, expectations, console, symbols)
    if warnings:
        _title("Warnings", console)
        for warning in warnings:
            _bullet("!", warning, "yellow", console)
    if folder is not None:
        console.print()
        console.print(Text.assemble(("Results  ", "bold"), str(folder)), soft_wrap=True)


def _title(text: str, console: Console, note: str = "") -> None:
    console.print()
    console.print(Text.assemble((text, "bold"), (f"  {note}" if note else "", "dim")))


def _line(text: str | Text, console: Console) -> None:
    console.print(Padding(text if isinstance(text, Text) else Text(text), (0, 0, 0, 2), expand=False))


def _bullet(mark: str, text: str, style: str, console: Console) -> None:
    grid = Table.grid(padding=(0, 1))
    grid.add_row(Text(mark, style=style), Text(text))
    console.print(Padding(grid, (0, 0, 0, 2), expand=False))


def _indented(table: Table, console: Console) -> None:
    console.print(Padding(table, (0, 0, 0, 2), expand=False))


def _grid(columns: Iterable[str], left: int = 1) -> Table:
    """A borderless table whose first `left` columns are left-aligned and the others right."""
    table = Table(box=None, padding=(0, 0, 0, 2), pad_edge=False, header_style="dim")
    for index, name in enumerate(columns):
        table.add_column(Text(name), justify="right" if index >= left else "left", no_wrap=index > 0)
    return table


def _headline(summary: Mapping[str, Any], manifest: Mapping[str, Any], console: Console, symbols: _Symbols) -> None:
    status = manifest.get("status", "complete")
    line = Text.assemble((str(manifest.get("scenario", "run")), "bold cyan"))
    if "seed" in manifest:
        line.append(f"{symbols.dot}seed {manifest['seed']}", "dim")
    if status != "complete":
        line.append(f"{symbols.dot}{status}: cut short, figures cover what was done", "bold yellow")
    console.print(line)
    parts = [str(manifest[key]) for key in ("model",) if manifest.get(key)]
    if manifest.get("topology"):
        parts.append(f"on {manifest['topology']}" if parts else str(manifest["topology"]))
    text = " ".join(parts)
    devices = summary.get("devices")
    console.print(Text(f"{text}{symbols.dot if text else ''}{devices:,} devices leased" if devices else text))
    wall_s = manifest.get("wall_s")
    parts = [f"{duration(summary['simulated_s'])} simulated"]
    if wall_s:
        parts[0] += f" in {duration(wall_s)}"
        parts.append(f"{number(summary['simulated_s'] / wall_s)}x real time")
        if manifest.get("events"):
            parts.append(f"{manifest['events'] / wall_s:,.0f} events/s")
    console.print(Text(symbols.dot.join(parts), style="dim"))


def _requests(summary: Mapping[str, Any], console: Console, symbols: _Symbols) -> None:
    counts = summary["requests"]
    _title("Requests", console)
    line = Text(f"{counts['total']:,} arrived{symbols.dot}{counts['finished']:,} finished")
    styles = {"rejected": "red", "timed_out": "red", "cancelled": "yellow", "unfinished": "yellow"}
    for outcome, style in styles.items():
        count = counts.get(outcome, 0)
        if count or outcome in ("rejected", "unfinished"):
            line.append(symbols.dot)
            line.append(f"{count:,} {outcome.replace('_', ' ')}", style if count else "")
    if summary["preemptions"]:
        line.append(f"{symbols.dot}{summary['preemptions']:,} preemptions")
    _line(line, console)
    for reason, count in counts.get("rejected_by", {}).items():
        _line(f"{count:,} rejected: {reason}", console)


def _latencies(summary: Mapping[str, Any], console: Console) -> None:
    counts = summary["requests"]
    left_out = counts["total"] - counts["finished"]
    if not counts["finished"]:
        _title("Latency", console)
        _line("no request finished, so there is no latency", console)
        return
    _title("Latency", console, f"of finished requests; {left_out:,} left out" if left_out else "")
    table = _grid(("", *STATISTICS))
    for key, name in _LATENCIES.items():
        if summary.get(key, {}).get("count"):
            table.add_row(Text(name), *(Text(duration(summary[key][statistic])) for statistic in STATISTICS))
    _indented(table, console)


def _objectives(summary: Mapping[str, Any], console: Console, symbols: _Symbols) -> None:
    goodput = summary["goodput"]
    _title("Goodput", console)
    if not goodput["slo"]:
        _line("no objectives (slo:) given, so every finished request is good", console)
    table = Table.grid(padding=(0, 2))
    total = summary["requests"]["total"]
    for name, objective in goodput["slo"].items():
        missed = round(total * (1 - objective["attained"])) if total else 0
        mark = (symbols.bad, "red") if missed else (symbols.good, "green")
        verdict = f"missed by {missed:,} request{'s' * (missed != 1)}" if missed else "met by every request"
        table.add_row(
            Text(f"{_LATENCIES[name]} <= {duration(objective['limit_s'])}"),
            Text(share(objective["attained"]).rjust(8)),
            Text(f"{mark[0]} {verdict}" if total else "-", mark[1] if total else ""),
        )
    rate = goodput["requests_per_s"]
    detail = "-" if rate is None else f"{number(rate)} requests/s"
    table.add_row(
        Text("all of them" if goodput["slo"] else "finished"),
        Text(share(goodput["fraction"]).rjust(8), "bold"),
        detail,
    )
    _indented(table, console)


def _flows(summary: Mapping[str, Any], console: Console, symbols: _Symbols) -> None:
    counts = summary["flows"]
    _title("Flows", console)
    line = Text(f"{counts['total']:,} started{symbols.dot}{counts['completed']:,} completed")
    for outcome, style in (("failed", "red"), ("unfinished", "yellow")):
        line.append(symbols.dot)
        line.append(f"{counts[outcome]:,} {outcome}", style if counts[outcome] else "")
    _line(line, console)
    rate = counts["bytes_per_s"]
    moved = format_bytes(counts["bytes_completed"])
    _line(moved if rate is None else f"{moved}{symbols.dot}{format_bandwidth(rate)} over the run", console)
    _title("Completion", console, "of completed flows" if counts["completed"] < counts["total"] else "")
    table = _grid(("", *STATISTICS))
    table.add_row(Text("Time"), *(Text(duration(summary["fct"][statistic])) for statistic in STATISTICS))
    table.add_row(Text("Slowdown"), *(Text(number(summary["slowdown"][statistic])) for statistic in STATISTICS))
    _indented(table, console)


def _collectives(summary: Mapping[str, Any], console: Console, symbols: _Symbols) -> None:
    figures = summary["collectives"]
    if not figures["total"]:
        return
    lost = figures["total"] - figures["completed"]
    _title("Collectives", console, f"{lost:,} of {figures['total']:,} did not complete" if lost else "")
    table = _grid(("ranks", "operation", "bytes", "runs", "mean", "ideal", "bus"), left=2)
    for line in figures["runs"]:
        ranks = f"{line['groups']:,} x {line['ranks']:,}" if line["groups"] > 1 else f"{line['ranks']:,}"
        count = (
            f"{line['completed']:,}/{line['count']:,}" if line["completed"] < line["count"] else f"{line['count']:,}"
        )
        cells = (format_bytes(line["bytes"]), count, duration(line["mean_s"]), duration(line["ideal_s"]))
        bus = "-" if line["bus_bytes_per_s"] is None else format_bandwidth(line["bus_bytes_per_s"])
        by = " ".join(line[key] for key in ("algorithm", "protocol") if line[key])
        table.add_row(Text(ranks), Text(f"{line['operation']} {by}"), *map(Text, cells), Text(bus))
    _indented(table, console)


def _throughput(summary: Mapping[str, Any], console: Console, symbols: _Symbols) -> None:
    rates = summary["throughput"]
    _title("Throughput", console)
    parts = [
        f"{number(rates['requests_per_s'])} requests/s",
        f"{number(rates['prompt_tokens_per_s'])} prompt tokens/s",
    ]
    _line(symbols.dot.join(parts), console)
    per_device = number(rates["output_tokens_per_s_per_device"])
    _line(f"{number(rates['output_tokens_per_s'])} output tokens/s{symbols.dot}{per_device} per device", console)
    energy = summary.get("energy")
    if energy and energy["joules_per_output_token"] is not None:
        each, kwh = number(energy["joules_per_output_token"]), number(energy["kwh"])
        power = number(energy["mean_w"] / summary["devices"])
        _line(f"{power} W per device{symbols.dot}{each} J per output token{symbols.dot}{kwh} kWh", console)

    price = summary.get("price")
    if price and price["dollars_per_million_output_tokens"] is not None:
        each = number(price["dollars_per_million_output_tokens"])
        _line(f"{number(price['dollars_per_h'])} $/h{symbols.dot}{each} $ per million output tokens", console)


def _bar(pool: Mapping[str, Any], symbols: _Symbols) -> Text:
    prefill = round(_BAR_WIDTH * (pool["prefill"] or 0))
    busy = round(_BAR_WIDTH * (pool["busy"] or 0))
    return Text.assemble(
        (symbols.work * prefill, "blue"),
        (symbols.other_work * (busy - prefill), "green"),
        (symbols.rest * (_BAR_WIDTH - busy), "dim"),
    )


def _pools(summary: Mapping[str, Any], console: Console, symbols: _Symbols) -> None:
    if not summary["utilisation"]:
        return
    _title("Pools", console, f"{symbols.work} prefill  {symbols.other_work} decode  {symbols.rest} idle")
    table = _grid(("", "time", "busy", "instances", "KV mean", "KV max"), left=2)
    rows = [
        row
        for role, pool in summary["utilisation"].items()
        for row in ((role, pool), *((f"  {name}", group) for name, group in pool.get("groups", {}).items()))
    ]
    for name, pool in rows:
        busy, kv_mean, kv_max = (Text(share(pool[key])) for key in ("busy", "kv_mean", "kv_max"))
        table.add_row(Text(name), _bar(pool, symbols), busy, Text(number(pool["instances"])), kv_mean, kv_max)
    _indented(table, console)


def _links(summary: Mapping[str, Any], console: Console, symbols: _Symbols) -> None:
    hottest = summary["links"]["hottest"]
    if not hottest:
        return
    moved = summary.get("kv_transfer", {}).get("count")
    note = f"KV transfer is {share(summary['kv_transfer_share'])} of end-to-end time" if moved else ""
    _title("Hottest links", console, note)
    table = _grid(("", "tier", "mean", "busy", "peak"), left=2)
    for link in hottest:
        of_flows = (share(link[key]) if link[key] else "-" for key in ("busy_fraction", "peak_utilisation"))
        shares = map(Text, (share(link["mean_utilisation"]), *of_flows))  # collectives of engines are no flows
        table.add_row(Text(f"{link['source']}{symbols.arrow}{link['target']}"), Text(link["tier"]), *shares)
    _indented(table, console)


def _expectations(
    summary: Mapping[str, Any], expectations: Sequence[Expectation], console: Console, symbols: _Symbols
) -> None:
    if not expectations:
        return
    _title("Expectations", console)
    for expectation in expectations:
        value = lookup(summary, expectation.metric)
        passed = expectation.holds(value)
        seconds = unit_of(expectation.metric) == "s"
        found = "no value" if value is None else f"{value:.9g}{' s' if seconds else ''}"
        mark, style = (symbols.good, "green") if passed else (symbols.bad, "bold red")
        text = f"{expectation.metric} {expectation.text}: {'passed' if passed else 'FAILED'} with {found}"
        _bullet(mark, text, style, console)
