"""What the pages of serving runs and of network runs have in common: links, events, expectations, all figures."""

from collections.abc import Mapping, Sequence
from typing import Any

from simulator.report.page.drawing import svg
from simulator.report.page.html import Absent, Block, Card, Details, Html, Section, preformatted
from simulator.report.page.links import fabric_figures, hottest, tiers
from simulator.report.page.marks import Marks
from simulator.results.folder import SCENARIO
from simulator.results.html import Table, rows_of
from simulator.results.metrics import METRICS, STATISTICS, lookup, unit_of
from simulator.results.run import Run
from simulator.results.text import NOTHING, duration, number, share
from simulator.units import NS_PER_S, format_bandwidth, format_bytes

NOTHING_CARRIED = "No byte crossed a link of the topology; only the number and kind of its devices mattered."


def notices(summary: Mapping[str, Any], complete: bool) -> tuple[tuple[str, str], ...]:
    """Return what a reader must see first: that a run was cut short, expectations that failed, warnings."""
    found = [] if complete else [("bad", "This run was cut short; figures cover what was done until then.")]
    found += [("bad", f"Expectation failed: {_expected(one)}") for one in summary.get("expect", []) if not one["holds"]]
    return tuple(found + [("warn", f"Warning: {text}") for text in summary.get("warnings", [])])


def closing_cards(summary: Mapping[str, Any]) -> list[Card]:
    """Return the cards that every run has: simulated time, expectations, warnings."""
    cards = [Card("Simulated time", duration(summary["simulated_s"]))]
    expected = summary.get("expect", [])
    if expected:
        failed = [one for one in expected if not one["holds"]]
        value = f"{len(expected) - len(failed)} of {len(expected)} hold"
        cards.append(Card("Expectations", value, _expected((failed or expected)[0]), "bad" if failed else "good"))
    else:
        cards.append(Card("Expectations", "none", "no expect: in the scenario"))
    warnings = summary.get("warnings", [])
    cards.append(Card("Warnings", f"{len(warnings):,}", "", "bad" if warnings else ""))
    return cards


def _expected(one: Mapping[str, Any]) -> str:
    return f"{one['metric']} {one['expected']}, found {_observed(one)}"


def _observed(one: Mapping[str, Any]) -> str:
    return "no value" if one["observed"] is None else f"{one['observed']:.6g} {unit_of(one['metric'])}".rstrip()


def statistics_table(summary: Mapping[str, Any], latencies: Mapping[str, str], note: str) -> Block:
    """Return the percentiles of each latency that has values."""
    there = [(name, summary[key]) for key, name in latencies.items() if summary.get(key, {}).get("count")]
    if not there:
        return Absent("Percentiles", "nothing finished, so there is no latency.")
    rows = [(name, f"{s['count']:,}", *(duration(s[statistic]) for statistic in STATISTICS)) for name, s in there]
    return Table(("", "count", *STATISTICS), rows_of(rows), "Percentiles", note)


def links_section(run: Run) -> Section:
    """Return the drawing of the fabric with its heat, its tiers and its hottest links."""
    found = hottest(run)
    if not found:
        return Section("Links", (Absent("Link heat map", NOTHING_CARRIED),))
    figures = fabric_figures(run)
    drawn: Block = (
        Absent("Link heat map", figures)
        if isinstance(figures, str)
        else Html(
            "<h3>Mean utilisation of links on the topology</h3>"
            '<p class="faint">Bytes carried over what the link could have carried in the run, of the busier direction; '
            "colour and thickness both grow with it. Of a fabric drawn in boxes of many alike, a line is all cables "
            "between two boxes. Point at a line for its figures.</p>"
            f'<div class="scroll">{svg(figures)}</div>'
        )
    )
    by_tier = Table(
        ("tier", "links used", "bytes", "mean utilisation", "highest"),
        rows_of(
            [(t.name, f"{t.links:,}", format_bytes(t.size_bytes), share(t.mean), share(t.highest)) for t in tiers(run)]
        ),
        "Tiers",
        "Mean over the links that carried something, weighted by capacity.",
    )
    rows = [
        (
            f"{link['source']} → {link['target']}",
            link["tier"],
            share(link["mean_utilisation"]),
            share(link["busy_fraction"]),
            share(link["peak_bytes_per_s"] / link["capacity_bytes_per_s"]),
            format_bandwidth(link["capacity_bytes_per_s"]),
            format_bytes(link["bytes"]),
            f"{link['flows']:,}",
            format_bytes(link["engine_bytes"]),
        )
        for link in found
    ]
    head = ("link", "tier", "mean", "busy", "peak", "capacity", "bytes", "flows", "engines")
    note = (
        "By mean utilisation; busy is the share of time with a flow, peak the highest rate of flows over the capacity, "
        "engines what their collectives kept the link busy with."
    )
    return Section("Links", (drawn, Table(head, rows_of(rows), "Hottest links", note, text=(0, 1)), by_tier))


def events_block(marks: Sequence[Marks]) -> list[Block]:
    """Return a table of what happened; where a kind is too frequent, its counts by time."""
    if not marks:
        return [Absent("Events", "no fault, repair, preemption or change of role happened.")]
    ordered = sorted(
        (time, at, text) for at, kind in enumerate(marks) for time, text in zip(kind.times_ns, kind.texts, strict=True)
    )
    rows = [(duration(time / NS_PER_S), text) for time, _, text in ordered]
    total = sum(kind.total for kind in marks)
    return [Details(f"Events: {total:,}", Table(("time", "what happened"), rows_of(rows), text=(0, 1)))]


def scenario_section(run: Run) -> Section:
    """Return every figure by the name that `expect:` knows it by, and the scenario with all its defaults."""
    rows = []
    for metric in METRICS:
        value = lookup(run.summary, metric.name)
        if value is not None:
            shown = duration(value) if metric.unit == "s" else number(value) + (" /s" if metric.unit else "")
            rows.append((metric.name, shown, f"{value:.9g}", metric.doc))
    head = ("metric", "value", "exactly", "meaning")
    try:
        text = (run.path / SCENARIO).read_text(encoding="utf-8")
    except (OSError, ValueError):
        text = ""
    scenario = preformatted(text) if text else Html("<p>The run has no readable scenario.yaml.</p>")
    figures = Table(head, rows_of(rows), text=(0, 3))
    held = [
        (one["metric"], one["expected"], _observed(one), "yes" if one["holds"] else "NO")
        for one in run.summary.get("expect", [])
    ]
    expected = (
        [Table(("metric", "expected", "found", "holds"), rows_of(held), "Expectations", text=(0, 1))] if held else []
    )
    return Section(
        "Everything", (*expected, Details("All figures by name", figures), Details("The resolved scenario", scenario))
    )


def lead_of(run: Run) -> str:
    """Return what ran: the description, else what the manifest says."""
    manifest = run.manifest
    parts = [str(manifest[key]) for key in ("model", "topology", "device") if manifest.get(key)]
    return " · ".join(parts) or NOTHING
