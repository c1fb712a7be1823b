"""Numbers for people, at a terminal or on a page, and a unit for a whole axis."""

import math
from typing import NamedTuple

from simulator.results.metrics import unit_of
from simulator.units import NS_PER_S, format_duration

NOTHING = "-"
SHORT = {
    "throughput.output_tokens_per_s_per_device": "tokens/s per device",
    "throughput.requests_per_s": "requests/s",
    "throughput.prompt_tokens_per_s": "prompt tokens/s",
    "throughput.output_tokens_per_s": "output tokens/s",
    "price.dollars_per_h": "$ per hour",
    "price.dollars_per_request": "$ per request",
    "price.dollars": "$",
    "price.dollars_per_million_output_tokens": "$ per M tokens",
}
"""Names of metrics for the heads of columns."""


class Unit(NamedTuple):
    """A unit of an axis: what it is called and how many of the base unit make one."""

    name: str
    size: float


_TIMES = (Unit("h", 3600e9), Unit("s", 1e9), Unit("ms", 1e6), Unit("us", 1e3), Unit("ns", 1.0))


def time_unit(most_ns: float) -> Unit:
    """Return the unit in which a time axis that goes to `most_ns` has short numbers."""
    hours = _TIMES[0]
    if most_ns >= 4 * hours.size:
        return hours
    return next((unit for unit in _TIMES[1:] if most_ns >= 2 * unit.size), _TIMES[-1])


def scaled_unit(most: float, name: str) -> Unit:
    """Return `name` with a decimal prefix that gives values up to `most` short numbers."""
    for prefix, size in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if most >= 2 * size:
            return Unit(f"{prefix}{name}", size)
    return Unit(name, 1.0)


def duration(seconds: float | None) -> str:
    """Return seconds for people."""
    if seconds is None:
        return NOTHING
    return format_duration(seconds * NS_PER_S) if seconds else "0 s"


def share(value: float | None) -> str:
    """Return a share in per cent that says 0 or 100 only when it is exactly that."""
    if value is None:
        return NOTHING
    if value in (0, 1):
        return f"{value * 100:.0f} %"
    if 0 < value < 0.001:
        return f"{value * 100:.2g} %" if value >= 0.00001 else "< 0.001 %"
    return "> 99.9 %" if 0.999 < value < 1 else f"{value * 100:.1f} %"


def number(value: float | None) -> str:
    """Return a number with three digits that count, or all of a whole one."""
    if value is None:
        return NOTHING
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:,.3g}"


def figure_text(name: str, value: float) -> str:
    """Return a metric's value with its unit, to three digits or so."""
    if math.isnan(value):
        return NOTHING
    return duration(value) if unit_of(name) == "s" else number(value)
