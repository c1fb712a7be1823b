"""Charts as plotly figure dictionaries: plain data, no style of the page; colours are those of Okabe and Ito (2008).

Text of axes, ink and grid is coloured by the page, so that it follows its light, dark and printed form.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from simulator.report.page.marks import Marks
from simulator.results.text import Unit, time_unit

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Numbers = npt.NDArray[np.float64] | npt.NDArray[np.int64]

Spec = dict[str, Any]

BLUE, ORANGE, GREEN, PURPLE, SKY, VERMILLION = "#2b7fbf", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00"
GREY = "#858d96"
PALETTE = (BLUE, ORANGE, GREEN, PURPLE, SKY, VERMILLION)
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
MARK_STYLES: Mapping[str, tuple[str, str]] = {
    "fault": (VERMILLION, "solid"),
    "repair": (GREEN, "dash"),
    "capacity": (ORANGE, "dashdot"),
    "preempted": (PURPLE, "dot"),
}
_OTHER_MARK = (GREY, "dot")
_DIGITS = 6
NANOSECONDS = Unit("ns", 1.0)


@dataclass(frozen=True)
class Line:
    """One line of a chart: name, values over the chart's x, and whether it is a step (of a distribution)."""

    name: str
    y: "Numbers"
    x: "Numbers | None" = None
    step: bool = False
    points: bool = False
    dash: str | None = None
    colour: str | None = None
    band: "tuple[Numbers, Numbers] | None" = None
    """Lower and upper edge of a shaded band around it."""


@dataclass(frozen=True, slots=True)
class Limit:
    """A limit drawn across the chart, at `value` of the axis x or y."""

    name: str
    value: float
    axis: str = "y"


@dataclass(frozen=True, slots=True)
class Axis:
    """What an axis says: its title with the unit; `log` for a logarithmic one, `format` of its ticks (d3)."""

    title: str
    log: bool = False
    format: str = ""
    from_zero: bool = False


def plain(values: Any) -> list[float | None]:
    """Return numbers with six digits that count, and None where there is no value."""
    import numpy as np

    array = np.asarray(values, dtype=float)
    there = np.isfinite(array) & (array != 0)
    exponents = np.zeros(array.shape)
    exponents[there] = _DIGITS - 1 - np.floor(np.log10(np.abs(array[there])))
    places = np.clip(exponents, -300, 300)
    # one scale is exact: dividing by a power of ten gives the nearest double of the short number
    up, down = 10.0 ** np.maximum(places, 0), 10.0 ** np.maximum(-places, 0)
    rounded = np.round(array * up / down) / up * down
    return [None if value != value else int(value) if value == int(value) else value for value in rounded.tolist()]


def lines(
    x: "Numbers | None",
    drawn: Sequence[Line],
    across: Axis,
    up: Axis,
    limits: Sequence[Limit] = (),
    marks: Sequence[Marks] = (),
    unit: Unit = NANOSECONDS,
) -> Spec:
    """Return a chart of lines over `x`, or each over its own, with limits, and marks on a time axis in `unit`."""
    traces: list[Spec] = []
    for at, line in enumerate(drawn):
        colour = line.colour or PALETTE[at % len(PALETTE)]
        own = line.x if line.x is not None else x
        if line.band is not None:
            traces.append(_band(own, line.band, colour))
        traces.append(
            {
                "type": "scatter",
                "mode": "lines+markers" if line.points or _stands_alone(line.y) else "lines",
                "name": escape(line.name),
                "x": plain(own),
                "y": plain(line.y),
                "line": {
                    "color": colour,
                    "width": 2,
                    "dash": line.dash or DASHES[at % len(DASHES)],
                    "shape": "hv" if line.step else "linear",
                },
                "marker": {"size": 5, "color": colour},
                "hovertemplate": f"%{{y}} at %{{x}}<extra>{escape(line.name)}</extra>",
            }
        )
    layout = _layout(across, up)
    for limit in limits:
        traces.append(_limit(limit, traces, across, up))
    if marks:
        traces += [_marks(found, unit) for found in marks]
        layout["yaxis2"] = {"overlaying": "y", "range": [0, 1], "visible": False, "fixedrange": True}
    layout["showlegend"] = len(traces) > 1
    return {"data": traces, "layout": layout}


def _stands_alone(values: "Numbers") -> bool:
    """Return whether some value has no neighbour to be joined with: as a line it would not be seen."""
    import numpy as np

    there = np.pad(np.isfinite(np.asarray(values, dtype=float)), 1)
    return bool((there[1:-1] & ~there[:-2] & ~there[2:]).any())


def _band(x: "Numbers | None", band: "tuple[Numbers, Numbers]", colour: str) -> Spec:
    low, high = (plain(edge) for edge in band)
    over = plain(x)
    return {
        "type": "scatter",
        "mode": "lines",
        "x": over + over[::-1],
        "y": high + low[::-1],
        "fill": "toself",
        "fillcolor": f"rgba({int(colour[1:3], 16)},{int(colour[3:5], 16)},{int(colour[5:7], 16)},0.2)",
        "line": {"width": 0},
        "hoverinfo": "skip",
        "showlegend": False,
    }


def _limit(limit: Limit, traces: Sequence[Spec], across: Axis, up: Axis) -> Spec:
    """Return a limit as a line as long as the data of the other axis, so that it is in the legend and has a tooltip."""
    other = "x" if limit.axis == "y" else "y"
    values = [value for trace in traces for value in trace[other] if value is not None]
    ends = [min(values), max(values)] if values else [0, 1]
    drawn = {limit.axis: plain([limit.value, limit.value]), other: ends}
    return {
        "type": "scatter",
        "mode": "lines",
        "name": escape(limit.name),
        **drawn,
        "line": {"color": GREY, "width": 2, "dash": "longdash"},
        "hovertemplate": f"{escape(limit.name)}<extra></extra>",
    }


def _marks(found: Marks, unit: Unit) -> Spec:
    """Return upright lines at the times of one kind of event, on an axis of their own that is not seen."""
    colour, dash = MARK_STYLES.get(found.kind, _OTHER_MARK)
    times = plain([time / unit.size for time in found.times_ns])
    texts = [escape(text) for text in found.texts]
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": f"{escape(found.kind)} ({found.total:,})",
        "x": [value for time in times for value in (time, time, None)],
        "y": [value for _ in times for value in (0, 1, None)],
        "text": [value for text in texts for value in (text, text, "")],
        "yaxis": "y2",
        "line": {"color": colour, "width": 1.5, "dash": dash},
        "marker": {"color": colour, "size": 6, "symbol": "triangle-down"},
        "hovertemplate": "%{text}<extra></extra>",
    }


def heat(
    x: "Numbers",
    rows: Sequence[str],
    values: "Numbers",
    across: Axis,
    bar: str,
    top: float | None = 100.0,
    up: str = "",
) -> Spec:
    """Return a heat map: a row per name, the first on top; colours go from 0 to `top` or the highest value.

    `up` says what the rows are, where their names do not.
    """
    return {
        "data": [
            {
                "type": "heatmap",
                "x": plain(x),
                "y": [escape(name) for name in rows],
                "z": [plain(row) for row in values],
                "zmin": 0,
                **({} if top is None else {"zmax": top}),
                "colorscale": "Cividis",
                "colorbar": {"title": {"text": bar, "side": "right"}, "thickness": 12, "outlinewidth": 0},
                "hoverongaps": False,
                "hovertemplate": "%{y}<br>%{x}: %{z}<extra></extra>",
            }
        ],
        "layout": _layout(across, Axis(""))
        | {"yaxis": _axis(Axis(up)) | {"type": "category", "autorange": "reversed", "ticks": ""}},
    }


def stacked(x: "Numbers", drawn: Sequence[Line], across: Axis, up: Axis, marks: Sequence[Marks], unit: Unit) -> Spec:
    """Return lines stacked on each other, filled."""
    spec = lines(x, drawn, across, up, marks=marks, unit=unit)
    for trace in spec["data"][: len(drawn)]:
        trace |= {"stackgroup": "all", "line": trace["line"] | {"width": 1, "dash": "solid"}}
    return spec


def over_time(
    x_ns: "Numbers", drawn: Sequence[Line], up: Axis, limits: Sequence[Limit] = (), marks: Sequence[Marks] = ()
) -> Spec:
    """Return lines over the simulated time, in the unit that suits its length."""
    unit = time_unit(float(x_ns[-1])) if len(x_ns) else time_unit(1e9)
    across = Axis(f"simulated time ({unit.name})", from_zero=True)
    return lines(x_ns / unit.size, drawn, across, up, limits, marks, unit)


def _layout(across: Axis, up: Axis) -> Spec:
    return {
        "xaxis": _axis(across),
        "yaxis": _axis(up),
        "showlegend": False,
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        "margin": {"l": 60, "r": 16, "t": 56, "b": 48},
        "hovermode": "closest",
    }


def _axis(axis: Axis) -> Spec:
    found: Spec = {"title": {"text": escape(axis.title), "standoff": 8}, "automargin": True}
    if axis.log:
        found |= {"type": "log", "exponentformat": "none"}
    elif axis.from_zero:
        found |= {"rangemode": "tozero"}
    if axis.format:
        found |= {"tickformat": axis.format}
    return found
