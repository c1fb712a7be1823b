"""The page of a sweep: metrics over its axes with intervals over seeds, maps of two axes, frontiers, its points."""

from collections.abc import Mapping, Sequence
from html import escape
from math import isfinite
from typing import TYPE_CHECKING, Any, Literal

from simulator.report.page.charts import PALETTE, Axis, Line, Spec, heat, lines, plain
from simulator.report.page.html import Absent, Block, Card, Chart, Choice, Section
from simulator.report.page.points import SEED, Places, means, series, value_text, varied, with_texts
from simulator.results.html import Table, rows_of
from simulator.results.metrics import METRICS, UNITS
from simulator.results.text import NOTHING
from simulator.sweep.dataset import DONE, by_setting
from simulator.sweep.frontier import DEFAULT, frontier
from simulator.sweep.schema import Frontier
from simulator.sweep.view import AS_IT_IS

if TYPE_CHECKING:
    import pandas as pd

MOST_POINTS, MOST_METRICS = 2000, 60
FIRST = ("goodput", "ttft.p99", "tpot.p99", "throughput.output_tokens_per_s_per_device")
IN_TABLE = (
    "goodput",
    "ttft.p50",
    "ttft.p99",
    "tpot.mean",
    "tpot.p99",
    "throughput.output_tokens_per_s_per_device",
    "price.dollars_per_million_output_tokens",
    "fct.p99",
    "slowdown.p99",
    "collective.mean",
)


def cards(points: "pd.DataFrame", axes: Mapping[str, Sequence[Any]]) -> tuple[Card, ...]:
    """Return how many points there are, how they ended, and what was varied."""
    done = int((points["status"] == DONE).sum())
    failed = len(points) - done
    varied = ", ".join(f"{path}: {points[path].map(value_text).nunique():,}" for path in axes)
    return (
        Card("Points", f"{len(points):,}", varied),
        Card("Done", f"{done:,}", "", "good" if done == len(points) else ""),
        Card("Failed", f"{failed:,}", "listed below" if failed else "", "bad" if failed else ""),
    )


def sections(
    points: "pd.DataFrame",
    axes: Mapping[str, Sequence[Any]],
    wanted: Sequence[Frontier] = DEFAULT,
    confidence: float = 0.95,
) -> tuple[Section, ...]:
    """Return all sections of the page; `confidence` is that of intervals over seeds."""
    points = with_texts(points, list(axes))
    done = points[points["status"] == DONE]
    metrics = metrics_of(done)
    return (
        Section("Metrics", tuple(_metrics(done, axes, metrics, confidence))),
        Section("Trade-offs", tuple(_trade_offs(done, axes, wanted))),
        Section("Points", tuple(_points(points, axes, metrics))),
    )


def metrics_of(done: "pd.DataFrame") -> list[str]:
    """Return the metrics that some point has, those most asked for first."""
    there = [metric.name for metric in METRICS if metric.name in done.columns and done[metric.name].notna().any()]
    first = [name for name in FIRST if name in there]
    return [*first, *(name for name in there if name not in first)][:MOST_METRICS]


def _metrics(
    done: "pd.DataFrame", axes: Mapping[str, Sequence[Any]], metrics: Sequence[str], confidence: float
) -> list[Block]:
    if not metrics:
        return [Absent("Metrics over the axes", "no point is done.")]
    found = varied(axes, done)
    if not found:
        return [Absent("Metrics over the axes", "nothing but the seed was varied; the points are below.")]
    blocks: list[Block] = [
        _over_axis(done, axis, [other for other in found if other is not axis], metrics, confidence) for axis in found
    ]
    surface = _map(done, found[0], found[1], metrics) if len(found) == 2 else None
    return [*blocks, surface] if surface is not None else blocks


def _over_axis(
    done: "pd.DataFrame", axis: Places, others: Sequence[Places], metrics: Sequence[str], confidence: float
) -> Chart:
    """Return one metric over one axis, a line for each choice of the others, and a selector of metrics."""
    found = series(done, axis, others)
    unit = f" ({axis.unit})" if axis.unit else ""
    across = Axis(f"{axis.path}{unit}")
    traces: list[Spec] = []
    choices = []
    for metric in metrics:
        drawn = _scattered(done, axis, metric) if found is None else _lines(found, axis, metric, confidence)
        first = len(traces)
        traces += lines(None, drawn, across, Axis(_label(metric)))["data"]
        choices.append(Choice(metric, tuple(range(first, len(traces))), _label(metric)))
    for at, trace in enumerate(traces):
        trace["visible"] = at in choices[0].traces
        if found is None:
            trace["mode"] = "markers"
    layout = lines(None, [], across, Axis(_label(metrics[0])))["layout"]
    layout["showlegend"] = found is not None and len(found) > 1
    if not axis.numeric:
        names = [escape(text) for text in axis.texts]
        layout["xaxis"] |= {"type": "category", "categoryorder": "array", "categoryarray": names}
        for trace in traces:
            trace["x"] = [names[int(place)] for place in trace["x"]]
    size: Literal["half", "wide"] = "half" if others else "wide"
    means_of = f"Mean over seeds; the band is the {confidence:.0%} interval of that mean (Student's t)."
    note = means_of if found is not None else "Every point; the other axes vary as well."
    return Chart(f"Metrics over {axis.path}", {"data": traces, "layout": layout}, note, size, 380, tuple(choices))


def _lines(found: "Sequence[tuple[str, pd.DataFrame]]", axis: Places, metric: str, confidence: float) -> list[Line]:
    drawn = []
    for at, (name, rows) in enumerate(found):
        x, mean, half = means(rows, axis, metric, confidence)
        low, high = ((mean - half) * _scale(metric), (mean + half) * _scale(metric))
        band = (low, high) if half.any() else None
        colour = PALETTE[at % len(PALETTE)]
        if len(x):
            line = Line(name or metric, mean * _scale(metric), x, points=True, colour=colour, band=band)
            drawn.append(line)
    return drawn


def _scattered(done: "pd.DataFrame", axis: Places, metric: str) -> list[Line]:
    import numpy as np

    rows = done[[axis.path, metric]].dropna()
    x = np.array([axis.at[text] for text in rows[axis.path]])
    return [Line(metric, rows[metric].to_numpy(dtype=float) * _scale(metric), x, points=True)]


def _map(done: "pd.DataFrame", across: Places, up: Places, metrics: Sequence[str]) -> Chart | None:
    """Return a metric over two axes as a heat map with a selector of metrics; None where most of it would be empty."""
    import numpy as np

    columns, rows = across.texts, up.texts
    if 2 * len(done[[across.path, up.path]].drop_duplicates()) < len(columns) * len(rows):
        return None
    traces: list[Spec] = []
    choices = []
    layout: Spec = {}
    for metric in metrics:
        table = done.groupby([up.path, across.path])[metric].mean() * _scale(metric)
        values = np.array([[table.get((row, column), np.nan) for column in columns] for row in rows])
        spec = heat(np.arange(len(columns)), rows, values, Axis(across.path), "", top=None, up=up.path)
        trace = spec["data"][0]
        trace["x"] = [escape(column) for column in columns]
        del trace["zmin"]  # colours from the least to the most: a surface is read for its shape
        trace["visible"] = not traces
        layout = spec["layout"]
        layout["xaxis"] |= {"type": "category"}
        choices.append(Choice(_label(metric), (len(traces),)))
        traces.append(trace)
    height = max(300, min(800, 200 + 30 * len(rows)))
    title, note = f"Metrics over {across.path} and {up.path}", "Mean over seeds, in the unit that the selector names."
    return Chart(title, {"data": traces, "layout": layout}, note, "wide", height, tuple(choices))


def _trade_offs(done: "pd.DataFrame", axes: Mapping[str, Sequence[Any]], wanted: Sequence[Frontier]) -> list[Block]:
    """Return each frontier of the settings' means over seeds: a chart of two metrics, a table of more."""
    blocks: list[Block] = []
    for one in wanted:
        metrics = [*one.maximise, *one.minimise]
        title = ", ".join([f"more {name}" for name in one.maximise] + [f"less {name}" for name in one.minimise])
        missing = [name for name in metrics if name not in done.columns or not done[name].notna().any()]
        if missing:
            blocks.append(Absent(f"Frontier: {title}", f"no point has {' and '.join(missing)}."))
            continue
        figures, names = _of_settings(done.dropna(subset=metrics), [path for path in axes if path != SEED], metrics)
        best = frontier(one, figures)
        if len(metrics) == 2:
            blocks.append(_frontier_chart(title, one, metrics, figures, names, best))
        else:
            rows = [(names[at], *(_cell(figures[at][name], _scale(name)) for name in metrics)) for at in best]
            blocks.append(Table(("setting", *map(_label, metrics)), rows_of(rows), f"Frontier: {title}"))
    return blocks


def _of_settings(
    rows: "pd.DataFrame", paths: Sequence[str], metrics: Sequence[str]
) -> tuple[list[dict[str, float]], list[str]]:
    """Return the means over seeds of each setting, and what the settings are called."""
    found = by_setting(rows, paths)
    figures = [{name: float(group[name].mean()) for name in metrics} for _, group in found]
    names = [", ".join(f"{path} {value}" for path, value in setting.items()) for setting, _ in found]
    return figures, [name or AS_IT_IS for name in names]


def _frontier_chart(
    title: str,
    one: Frontier,
    metrics: Sequence[str],
    figures: Sequence[Mapping[str, float]],
    names: Sequence[str],
    best: Sequence[int],
) -> Chart:
    up, across = metrics
    (y, up_title), (x, across_title) = (_shown(name, name in one.minimise, figures) for name in (up, across))
    spec = lines(None, [], Axis(across_title), Axis(up_title))
    texts = [escape(name) for name in names]
    order = sorted(best, key=lambda at: (x[at], y[at]))
    for name, places, colour, size in (("settings", range(len(x)), PALETTE[4], 7), ("frontier", order, PALETTE[5], 9)):
        spec["data"].append(
            {
                "type": "scatter",
                "mode": "lines+markers" if name == "frontier" else "markers",
                "name": name,
                "x": plain([x[at] for at in places]),
                "y": plain([y[at] for at in places]),
                "text": [texts[at] for at in places],
                "line": {"color": colour, "width": 2},
                "marker": {"color": colour, "size": size, "symbol": "diamond" if name == "frontier" else "circle"},
                "hovertemplate": "%{text}<br>%{x}, %{y}<extra></extra>",
            }
        )
    spec["layout"]["showlegend"] = True
    note = "Means over seeds; a setting is on the frontier if no other is at least as good in both and better in one."
    return Chart(f"Frontier: {title}", spec, note, height=380)


def _shown(metric: str, less: bool, figures: Sequence[Mapping[str, float]]) -> tuple[list[float], str]:
    """Return the values of a metric and its axis; a time per token that should be short is shown as the speed it is."""
    values = [row[metric] for row in figures]
    if less and metric.startswith("tpot.") and all(values):
        return [1 / value for value in values], f"1 / {metric} (tokens/s of one user)"
    return [value * _scale(metric) for value in values], _label(metric)


def _points(points: "pd.DataFrame", axes: Mapping[str, Sequence[Any]], metrics: Sequence[str]) -> list[Block]:
    blocks: list[Block] = []
    failed = points[points["status"] != DONE]
    if len(failed):
        head = ("point", *axes, "status", "error")
        rows = [[row[name] for name in head] for row in failed.head(MOST_POINTS).to_dict("records")]
        table = Table(head, rows_of(rows), "Failed points", text=tuple(range(len(head))))
        blocks.append(table)
    shown = [name for name in IN_TABLE if name in metrics]
    units = [f"{name} ({_unit(name)})" if _unit(name) else name for name in shown]
    rows = []
    for row in points.head(MOST_POINTS).to_dict("records"):
        cells = [_cell(row[name], _scale(name)) for name in shown]
        rows.append([row["point"], *(row[path] for path in axes), row["status"], *cells])
    text = tuple(range(len(axes) + 2))
    note = "A click on a head sorts by it."
    if len(points) > MOST_POINTS:
        note += f" The first {MOST_POINTS:,} of {len(points):,}."
    head = ("point", *axes, "status", *units)
    return [*blocks, Table(head, rows_of(rows), "All points", note, text, sortable=True)]


def _cell(value: Any, scale: float) -> str:
    return NOTHING if value is None or not isfinite(value) else f"{value * scale:.6g}"


def _scale(metric: str) -> float:
    """Return what a value of the table is multiplied by: seconds are shown in milliseconds."""
    return 1000.0 if UNITS[metric] == "s" else 1.0


def _unit(metric: str) -> str:
    return "ms" if UNITS[metric] == "s" else UNITS[metric]


def _label(metric: str) -> str:
    return f"{metric} ({_unit(metric)})" if _unit(metric) else metric
