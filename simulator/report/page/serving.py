"""The page of a serving run: what its requests saw, what its engines did, what it cost."""

from collections.abc import Mapping, Sequence
from typing import Any

from simulator.report.page.charts import Axis, Limit, Line, heat, lines, over_time, stacked
from simulator.report.page.html import Absent, Block, Card, Chart, Details, Section
from simulator.report.page.instances import InstanceFigures, instance_figures, pool_energy
from simulator.report.page.marks import Marks
from simulator.report.page.requests import RequestFigures, request_figures
from simulator.report.page.shared import closing_cards, events_block, links_section, statistics_table
from simulator.results.html import Table, rows_of
from simulator.results.run import Run
from simulator.results.text import NOTHING, duration, number, scaled_unit, share, time_unit
from simulator.units import NS_PER_S

NAMES = {
    "ttft": "TTFT",
    "tpot": "TPOT",
    "itl": "ITL",
    "e2e": "E2E",
    "queue": "Queue",
    "kv_wait": "KV wait",
    "kv_transfer": "KV transfer",
}
LONG = {"ttft": "time to first token", "tpot": "time per output token", "e2e": "end-to-end time"}
MOST_REASONS = 40
_NONE_FINISHED = "no request finished."
_WIDE_RANGE = 20
"""Ratio of the longest to the median time from which an axis is logarithmic."""


def cards(summary: Mapping[str, Any]) -> tuple[Card, ...]:
    """Return the headline figures."""
    counts, goodput, rates = summary["requests"], summary["goodput"], summary["throughput"]
    lost = counts["total"] - counts["finished"]
    detail = f"{counts['finished']:,} finished" + (f", {lost:,} did not" if lost else "")
    found = [Card("Requests", f"{counts['total']:,}", detail)]
    objectives = ", ".join(f"{NAMES[name]} ≤ {duration(slo['limit_s'])}" for name, slo in goodput["slo"].items())
    found.append(Card("Goodput", share(goodput["fraction"]), objectives or "no slo: given, so all that finished"))
    for name in ("ttft", "tpot", "itl"):
        p50, p99 = summary[name].get("p50"), summary[name].get("p99")
        found.append(Card(f"{NAMES[name]} p50", duration(p50), f"p99 {duration(p99)}"))
    per_device = number(rates["output_tokens_per_s_per_device"])
    every = f"{number(rates['output_tokens_per_s'])} tokens/s in all"
    found.append(Card("Output per device", f"{per_device} tokens/s", every))
    price, energy = summary.get("price") or {}, summary.get("energy") or {}
    each = price.get("dollars_per_million_output_tokens")
    rent = f"{number(price['dollars_per_h'])} $/h" if price else "no price for some device"
    found.append(Card("Cost per million tokens", NOTHING if each is None else f"{number(each)} $", rent))
    if energy.get("kwh") is not None:
        joules = number(energy["joules_per_output_token"])
        found.append(Card("Energy", f"{number(energy['kwh'])} kWh", f"{joules} J per output token"))
    else:
        found.append(Card("Energy", NOTHING, "kernels of some engine unknown"))
    found.append(Card("Devices leased", f"{summary['devices']:,}"))
    return (*found, *closing_cards(summary))


def sections(run: Run, interval_ns: int, marks: Sequence[Marks]) -> tuple[Section, ...]:
    """Return all sections of the page; engines are looked at in multiples of `interval_ns`, as they were recorded."""
    requests, engines = request_figures(run), instance_figures(run, interval_ns)
    limits = {name: float(slo["limit_s"]) * NS_PER_S for name, slo in run.summary["goodput"]["slo"].items()}
    return (
        _latency(run, requests, limits, marks),
        _load(requests, engines, marks),
        _engines(engines),
        links_section(run),
        _cost(run, engines, marks),
    )


def _latency(run: Run, figures: RequestFigures, limits: Mapping[str, float], marks: Sequence[Marks]) -> Section:
    blocks: list[Block] = []
    for name in LONG:
        title = f"{NAMES[name]}: share of requests at or below"
        if name not in figures.curves:
            why = "no answer had two tokens." if figures.curves else _NONE_FINISHED
            blocks.append(Absent(title, why))
            continue
        values, shares = figures.curves[name]
        median, longest = float(values[int(shares.searchsorted(0.5))]), float(values[-1])
        log = values[0] > 0 and longest > _WIDE_RANGE * median
        unit = time_unit(median if log else longest)
        across = Axis(f"{LONG[name]} ({unit.name}{', logarithmic' if log else ''})", log=log, from_zero=True)
        objective = (
            [Limit(f"objective {duration(limits[name] / NS_PER_S)}", limits[name] / unit.size, "x")]
            if name in limits
            else []
        )
        line = Line(NAMES[name], shares * 100, values / unit.size, step=True)
        spec = lines(None, [line], across, Axis("requests (%)", from_zero=True), objective)
        blocks.append(Chart(title, spec, size="third", height=290))
    for name in ("ttft", "tpot"):
        title = f"{NAMES[name]} over time"
        if name not in figures.over_time:
            blocks.append(Absent(title, _NONE_FINISHED))
            continue
        blocks.append(_quantiles(title, name, figures, limits, marks))
    table = statistics_table(run.summary, NAMES, "Of finished requests; quantiles are nearest-rank.")
    return Section("Latency", (*blocks, table))


def _quantiles(
    title: str, name: str, figures: RequestFigures, limits: Mapping[str, float], marks: Sequence[Marks]
) -> Chart:
    import numpy as np

    found = figures.over_time[name]
    unit = time_unit(float(np.nanmax(found["p99"])))
    drawn = [Line(quantile, line / unit.size, points=figures.grid.count <= 60) for quantile, line in found.items()]
    limit = [Limit("objective", limits[name] / unit.size)] if name in limits else []
    axis = Axis(f"{LONG[name]} ({unit.name})", from_zero=True)
    window = duration(figures.grid.length_ns / NS_PER_S)
    note = f"Of finished requests by the window of {window} in which they arrived."
    return Chart(title, over_time(figures.grid.middles_ns, drawn, axis, limit, marks), note)


def _load(requests: RequestFigures, engines: InstanceFigures | None, marks: Sequence[Marks]) -> Section:
    drawn = [Line("arrived", requests.arrived_per_s), Line("finished", requests.finished_per_s)]
    spec = over_time(requests.grid.middles_ns, drawn, Axis("requests/s", from_zero=True), marks=marks)
    blocks: list[Block] = [Chart("Requests per second", spec)]
    if engines is None:
        return Section(
            "Load",
            (*blocks, *_unfinished(requests), Absent("Queues and tokens", "the run wrote no rows of its instances.")),
        )
    at = engines.grid.middles_ns
    unit = scaled_unit(float(engines.output_tokens_per_s.max(initial=0)), " tokens/s")
    tokens = [Line("output tokens", engines.output_tokens_per_s / unit.size)]
    axis = Axis(f"output ({unit.name.strip()})", from_zero=True)
    blocks.append(Chart("Output tokens per second", over_time(at, tokens, axis, marks=marks)))
    for title, found, note in (
        ("Requests running", engines.running, "In the batches of all engines of a role, mean over the window."),
        ("Requests waiting", engines.waiting, "In the queues of all engines of a role, mean over the window."),
    ):
        lines_ = [Line(role, line) for role, line in found.items()]
        blocks.append(Chart(title, over_time(at, lines_, Axis("requests", from_zero=True), marks=marks), note))
    return Section("Load", (*blocks, *_unfinished(requests), *events_block(marks)))


def _engines(figures: InstanceFigures | None) -> Section:
    if figures is None:
        return Section("Engines", (Absent("Heat maps", "the run wrote no rows of its instances."),))
    unit = time_unit(float(figures.grid.middles_ns[-1]))
    across = Axis(f"simulated time ({unit.name})")
    x, height = figures.grid.middles_ns / unit.size, min(900, 190 + 22 * len(figures.names))
    notes = ("Share of time in an iteration, prefill or decode.", "KV blocks in use over those there are, mean.")
    many = "" if all(" to " not in name for name in figures.names) else " A row is several engines of one group."
    busy = heat(x, figures.names, figures.busy * 100, across, "busy (%)")
    kv = heat(x, figures.names, figures.kv * 100, across, "KV in use (%)", top=None)
    return Section(
        "Engines",
        (
            Chart("Busy share by engine", busy, notes[0] + many, height=height),
            Chart("KV cache use by engine", kv, notes[1] + many, height=height),
        ),
    )


def _cost(run: Run, engines: InstanceFigures | None, marks: Sequence[Marks]) -> Section:
    summary = run.summary
    energy = pool_energy(run)
    hourly = (summary.get("price") or {}).get("pools", {})
    rows = []
    for pool, figures in _pools(summary):
        own = [price for name, price in hourly.items() if pool in (name, name.rpartition(".")[0])]  # of alike names
        per_h = None if None in own or not own else sum(own)
        joules = energy.get(pool)
        rows.append(
            (
                pool,
                number(figures["instances"]),
                share(figures["busy"]),
                share(figures["kv_mean"]),
                share(figures["kv_max"]),
                number(per_h),
                number(None if per_h is None else per_h * summary["simulated_s"] / 3600),
                number(None if joules is None else joules / 3.6e6),
                number(joules / summary["simulated_s"] if joules is not None and summary["simulated_s"] else None),
            )
        )
    head = ("pool", "engines", "busy", "KV mean", "KV max", "$/h", "$ of the run", "kWh", "mean W")
    blocks: list[Block] = [Table(head, rows_of(rows), "Pools")] if rows else []
    if engines is not None and engines.power_w:
        unit = scaled_unit(max(float(line.max()) for line in engines.power_w.values()), "W")
        drawn = [Line(role, watts / unit.size) for role, watts in engines.power_w.items()]
        scale = time_unit(float(engines.grid.middles_ns[-1]))
        across, up = Axis(f"simulated time ({scale.name})"), Axis(f"power ({unit.name})", from_zero=True)
        spec = stacked(engines.grid.middles_ns / scale.size, drawn, across, up, marks, scale)
        blocks.append(
            Chart("Power of all devices", spec, "Roles on top of each other, idle power included.", size="wide")
        )
    else:
        blocks.append(Absent("Power", "the kernels of some engine are not known one by one, so its power is not."))
    return Section("Pools, cost and energy", tuple(blocks))


def _pools(summary: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    found: list[tuple[str, Mapping[str, Any]]] = []
    for role, figures in summary["utilisation"].items():
        groups = figures.get("groups", {})
        found += [(name if name == role else f"{role}-{name}", group) for name, group in groups.items()]
        if not groups:
            found.append((role, figures))
    return found


def _unfinished(figures: RequestFigures) -> list[Block]:
    """Return how many requests ended how and why, the most frequent first, if any did not finish."""
    if not figures.reasons:
        return []
    rows = [(outcome.replace("_", " "), reason or NOTHING, f"{count:,}") for outcome, reason, count in figures.reasons]
    total = sum(count for _, _, count in figures.reasons)
    table = Table(("outcome", "reason", "requests"), rows_of(rows[:MOST_REASONS]), text=(0, 1))
    return [Details(f"Requests that did not finish: {total:,}", table)]
