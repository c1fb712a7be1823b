"""Says which operators of a step have times from measured tables, which tables, and what the roofline answers for."""

from collections.abc import Sequence
from typing import NamedTuple

from simulator.device.kernels import Kernel
from simulator.device.measured.interpolation import Estimate
from simulator.device.measured.points import place
from simulator.device.measured.times import MeasuredTimes, Origin
from simulator.model.operators import Operator

BY_FORMAT = {
    "gemm": "table has a matrix product",
    "experts": "table has experts",
    "prompt_attention": "table has attention of prompts over keys",
    "token_attention": "table has attention over keys",
}
"""Kinds of operators that are measured in a number format."""


class Share(NamedTuple):
    """Parts of a step's time by where they are from, and operators by name with the part of each."""

    measured: dict[str, float]
    """At or between points of the very shape (weights, heads, name)."""
    near: dict[str, float]
    """Of other shapes, within a factor of two."""
    held: dict[str, float]
    """Outside the measured range: the ratio to the roofline at its end is held."""
    roofline: dict[str, float]
    """Of which nothing was measured."""


def share_of(times: MeasuredTimes, timed: Sequence[tuple[Operator, Kernel]]) -> Share:
    """Return where the times of a step's operators are from, as parts of their sum."""
    total = sum(operator.calls * kernel.ns for operator, kernel in timed)
    share = Share({}, {}, {}, {})
    for operator, kernel in timed:
        part = _part(share, times.estimate((operator,)))
        part[operator.name] = part.get(operator.name, 0.0) + operator.calls * kernel.ns / total
    return share


def _part(share: Share, found: Estimate | None) -> dict[str, float]:
    if found is None:
        return share.roofline
    if found.beyond > 0:
        return share.held
    return share.near if found.distance > 0 else share.measured


def other_formats(times: MeasuredTimes, operators: Sequence[Operator]) -> list[str]:
    """Return lines on operators that were measured, but not in the number format that they have here."""
    lines = []
    for operator in operators:
        kind, form = (*place((operator,)).exact, "")[:2]
        there = dict.fromkeys(str(exact[1]) for exact in times.families if exact[0] == kind)
        if kind in BY_FORMAT and there and form not in there:
            lines.append(f"serving.cost: no {BY_FORMAT[str(kind)]} in {form}, only in {', '.join(there)}")
    return list(dict.fromkeys(lines))


def share_line(step: str, share: Share) -> str:
    """Return one line on a step, operators of each part by falling time."""
    parts = []
    for label, part in (
        ("from measured points of the same shape", share.measured),
        ("interpolated between shapes", share.near),
        ("outside the measured range, the ratio at its end held", share.held),
        ("from the roofline, nothing like it was measured", share.roofline),
    ):
        if part:
            names = ", ".join(sorted(part, key=lambda name: (-part[name], name)))
            parts.append(f"{100 * sum(part.values()):.0f}% {label} ({names})")
    return f"serving.cost: {step}: " + "; ".join(parts)


def origin_line(origin: Origin) -> str:
    """Return one line on a table: format, rows, who measured, what was assumed."""
    said = origin.provenance
    engine = " ".join(filter(None, (said.get("engine"), said.get("version")))) or "an engine that it does not name"
    where = f" on {said['device']}" if "device" in said else ""
    when = f", {said['date']}" if "date" in said else ", without a date"
    notes = "".join(f"; {note}" for note in origin.notes)
    return f"serving.cost: table {origin.file} ({origin.format}, {origin.rows:,} rows): {engine}{where}{when}{notes}"
