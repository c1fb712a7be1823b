"""The page of a run of the network alone: completion times of flows, collectives against their closed forms, links."""

from collections.abc import Mapping, Sequence
from typing import Any

from simulator.report.page.charts import Axis, Line, lines, over_time
from simulator.report.page.html import Absent, Block, Card, Chart, Section
from simulator.report.page.marks import Marks
from simulator.report.page.shared import closing_cards, events_block, links_section
from simulator.report.page.traffic import FlowFigures, Repeats, collective_repeats, flow_figures
from simulator.results.html import Table, rows_of
from simulator.results.metrics import STATISTICS
from simulator.results.run import Run
from simulator.results.text import NOTHING, duration, number, scaled_unit, share, time_unit
from simulator.units import format_bandwidth, format_bytes

_NO_FLOWS = "no flow was started by itself; collectives are below."
_NONE_ARRIVED = "no flow arrived."
_WIDE_RANGE = 20


def cards(summary: Mapping[str, Any]) -> tuple[Card, ...]:
    """Return the headline figures."""
    found = []
    flows, collectives = summary["flows"], summary["collectives"]
    if flows["total"]:
        lost = flows["failed"] + flows["unfinished"]
        detail = f"{flows['failed']:,} failed, {flows['unfinished']:,} unfinished" if lost else "all completed"
        found.append(Card("Flows", f"{flows['total']:,}", detail, "bad" if flows["failed"] else ""))
        fct, slow = summary["fct"], summary["slowdown"]
        found.append(Card("Completion time p50", duration(fct["p50"]), f"p99 {duration(fct['p99'])}"))
        found.append(Card("Slowdown p50", number(slow["p50"]), f"p99 {number(slow['p99'])}"))
        rate = flows["bytes_per_s"]
        moved = format_bytes(flows["bytes_completed"])
        found.append(Card("Delivered", NOTHING if rate is None else format_bandwidth(rate), moved))
    if collectives["total"]:
        times, slow = collectives["time"], collectives["slowdown"]
        done = f"{collectives['completed']:,} reached every rank"
        found.append(Card("Collectives", f"{collectives['total']:,}", done))
        found.append(Card("Collective time mean", duration(times["mean"]), f"p99 {duration(times['p99'])}"))
        found.append(Card("Against closed form", f"{number(slow['mean'])} x", f"p99 {number(slow['p99'])} x"))
    hottest = summary["links"]["utilisation_max"]
    found.append(Card("Hottest link", share(hottest), f"{summary['links']['used']:,} links carried bytes"))
    return (*found, *closing_cards(summary))


def sections(run: Run, marks: Sequence[Marks]) -> tuple[Section, ...]:
    """Return all sections of the page."""
    events = Section("Events", tuple(events_block(marks)))
    return _flows(run, flow_figures(run), marks), _collectives(run, marks), links_section(run), events


def _flows(run: Run, figures: FlowFigures | None, marks: Sequence[Marks]) -> Section:
    if figures is None:
        return Section("Flows", (Absent("Flow completion time", _NO_FLOWS),))
    blocks: list[Block] = []
    values, shares = figures.completion
    if len(values):
        unit = time_unit(float(values[int(shares.searchsorted(0.5))]))
        scaled = values / unit.size
        line = Line("completion time", shares * 100, scaled, step=True)
        blocks.append(_curve("Flow completion time: share of flows at or below", line, f"completion time ({unit.name}"))
    else:
        blocks.append(Absent("Flow completion time", _NONE_ARRIVED))
    slow, shares = figures.slowdown
    if len(slow):
        line = Line("slowdown", shares * 100, slow, step=True)
        blocks.append(_curve("Slowdown: share of flows at or below", line, "completion time over that alone (ratio"))
        blocks.append(_slowdown_by_size(figures))
    else:
        blocks.append(Absent("Slowdown", "no flow arrived whose time alone is known."))
    blocks += _over_time(figures, marks)
    rows = []
    if run.summary["fct"]["count"]:
        rows.append(("completion time", *(duration(run.summary["fct"][name]) for name in STATISTICS)))
    if run.summary["slowdown"]["count"]:
        rows.append(("slowdown", *(number(run.summary["slowdown"][name]) for name in STATISTICS)))
    if rows:
        blocks.append(Table(("", *STATISTICS), rows_of(rows), "Percentiles", "Of completed flows; nearest-rank."))
    return Section("Flows", tuple(blocks))


def _curve(title: str, line: Line, across: str) -> Chart:
    assert line.x is not None
    low, median, high = (float(line.x[at]) for at in (0, int(line.y.searchsorted(50.0)), -1))
    log = low > 0 and high > _WIDE_RANGE * median
    axis = Axis(f"{across}{', logarithmic' if log else ''})", log=log)
    return Chart(title, lines(None, [line], axis, Axis("flows (%)", from_zero=True)))


def _slowdown_by_size(figures: FlowFigures) -> Chart:
    drawn = [Line(name, values, points=True) for name, values in figures.slowdown_by_size.items()]
    across = Axis("size of the flow (bytes, logarithmic)", log=True, format="~s")
    spec = lines(figures.sizes_bytes, drawn, across, Axis("slowdown (ratio)"))
    return Chart("Slowdown by size of flow", spec, "Completion time over that of the flow alone in the network.")


def _over_time(figures: FlowFigures, marks: Sequence[Marks]) -> list[Block]:
    at = figures.grid.middles_ns
    unit = scaled_unit(float(figures.arrived_bytes_per_s.max(initial=0)), "B/s")
    rate = [Line("arrived", figures.arrived_bytes_per_s / unit.size)]
    axis = Axis(f"bytes of flows that ended ({unit.name})", from_zero=True)
    open_ = [Line("under way", figures.under_way)]
    return [
        Chart("Bytes delivered", over_time(at, rate, axis, marks=marks), "Counted when the flow ends."),
        Chart(
            "Flows under way", over_time(at, open_, Axis("flows, mean over the window", from_zero=True), marks=marks)
        ),
    ]


def _collectives(run: Run, marks: Sequence[Marks]) -> Section:
    figures = run.summary["collectives"]
    if not figures["total"]:
        return Section("Collectives", (Absent("Time of collectives", "no collective ran."),))
    repeats = collective_repeats(run)
    rows = [
        (
            line["operation"],
            " ".join(line[key] for key in ("algorithm", "protocol") if line[key]),
            f"{line['groups']:,} x {line['ranks']:,}" if line["groups"] > 1 else f"{line['ranks']:,}",
            format_bytes(line["bytes"]),
            f"{line['completed']:,} of {line['count']:,}",
            duration(line["mean_s"]),
            duration(line["ideal_s"]),
            number(line["mean_s"] / line["ideal_s"] if line["mean_s"] and line["ideal_s"] else None),
            NOTHING if line["bus_bytes_per_s"] is None else format_bandwidth(line["bus_bytes_per_s"]),
        )
        for line in figures["runs"]
    ]
    head = ("operation", "algorithm", "ranks", "bytes", "completed", "mean", "closed form", "ratio", "bus bandwidth")
    note = (
        "The closed form is that of the same operation by itself on the healthy network; bus bandwidth as nccl-tests."
    )
    table = Table(head, rows_of(rows), "Collectives by place in the scenario", note, text=(0, 1))
    if not repeats:
        return Section("Collectives", (Absent("Time of collectives", "none reached every rank."), table))
    return Section("Collectives", (_times(repeats, marks), table))


def _times(repeats: Sequence[Repeats], marks: Sequence[Marks]) -> Chart:
    unit = time_unit(max(float(one.time_ns.max()) for one in repeats))
    last = max(float((one.start_ns + one.time_ns).max()) for one in repeats)
    scale = time_unit(last)
    drawn = []
    for one in repeats:
        name = f"{one.run}: {one.name}"
        x = one.start_ns / scale.size
        drawn.append(Line(name, one.time_ns / unit.size, x, points=True, dash="solid"))
    ideal = [
        Line(f"{one.run}: closed form", one.ideal_ns / unit.size, one.start_ns / scale.size, dash="dash")
        for one in repeats
    ]
    across = Axis(f"start, simulated time ({scale.name})")
    up = Axis(f"time ({unit.name})", from_zero=True)
    spec = lines(None, [*drawn, *ideal], across, up, marks=marks, unit=scale)
    count = len(drawn)
    for own, closed in zip(spec["data"][:count], spec["data"][count : 2 * count], strict=True):
        closed["line"]["color"] = own["line"]["color"]
    return Chart("Time of each collective", spec, "By when it started, with its closed form.", size="wide", height=380)
