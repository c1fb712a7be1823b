"""A page that opens offline with the roofline of each explained step, and its operator table.

Source: Williams et al., CACM 2009: operations per second over operations per byte, under the device's peaks.
"""

from collections.abc import Iterator, Sequence
from html import escape
from math import ceil, floor, log10

from simulator.device.breakdown import Explanation, StepBreakdown
from simulator.device.cost import OperatorTime
from simulator.report.explain import describe, number
from simulator.units import NS_PER_S, format_bytes, format_duration

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 820, 440, 95, 230, 20, 50
COLOURS = {"compute": "#d9480f", "memory": "#1c7ed6", "link": "#2f9e44", "launch": "#868e96", "host": "#862e9c"}
"""Colour of a dot by what bounds the operator."""

STYLE = """
:root { color-scheme: light dark; --ink: #1a1a1a; --soft: #767676; --line: #d0d0d0; --back: #ffffff; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e8e8; --soft: #9a9a9a; --line: #444; --back: #181818; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--back); margin: 2rem auto;
  max-width: 980px; padding: 0 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
p { color: var(--soft); margin: .3rem 0; }
div.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; width: 100%; }
th, td { text-align: right; padding: .2rem .6rem; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child, td.bound, th.bound { text-align: left; }
th { font-weight: 500; color: var(--soft); }
svg { max-width: 100%; height: auto; } svg text { fill: var(--ink); font: 11px system-ui, sans-serif; }
svg .soft { fill: var(--soft); } svg .grid { stroke: var(--line); stroke-width: 1; } svg .roof { stroke: var(--ink); }
"""


class Scale:
    """A logarithmic axis from a power of ten to another."""

    def __init__(self, low: float, high: float, start: float, end: float) -> None:
        self.first, self.last = floor(log10(low)), ceil(log10(high))
        self.start, self.end = start, end

    def __call__(self, value: float) -> float:
        """Return the place of a value, in pixels."""
        share = (log10(value) - self.first) / (self.last - self.first)
        return self.start + share * (self.end - self.start)

    def ticks(self) -> Iterator[float]:
        """Yield the powers of ten."""
        yield from (10.0**power for power in range(self.first, self.last + 1))


def plotted(step: StepBreakdown) -> list[OperatorTime]:
    """Return the operators with a place on the plot, the longest first: those that compute and read memory."""
    rows = [row for row in step.rows if row.flops and row.size_bytes and row.ns]
    return sorted(rows, key=lambda row: -row.ns)


def roofline_svg(step: StepBreakdown) -> str:
    """Return the roofline of one step as SVG: a dot per operator, its area by its share of the step."""
    rows = plotted(step)
    points = [(row.flops / row.size_bytes, row.flops * NS_PER_S / row.ns) for row in rows]
    ridge = step.peak_per_s / step.bandwidth_per_s
    xs, ys = [x for x, _ in points] + [ridge], [y for _, y in points] + [step.peak_per_s]
    across = Scale(min(xs) / 2, max(xs) * 2, LEFT, WIDTH - RIGHT)
    up = Scale(min(ys) / 2, step.peak_per_s * 1.2, HEIGHT - BOTTOM, TOP)
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT + 10}" role="img" aria-label="Roofline of {escape(step.phase)}">']
    parts += _axes(across, up)
    parts += _roof(step, across, up, ridge)
    for index, (row, (x, y)) in enumerate(zip(rows, points, strict=True)):
        radius = 3 + 12 * (row.ns / step.ns) ** 0.5
        colour = COLOURS.get(row.bound, "#868e96")
        title = f"{row.name}: {format_duration(row.ns)}, {row.ns / step.ns:.1%}, {row.bound}-bound"
        parts.append(
            f'<circle cx="{across(x):.1f}" cy="{up(y):.1f}" r="{radius:.1f}" fill="{colour}" fill-opacity=".65">'
            f"<title>{escape(title)}</title></circle>"
        )
        parts.append(f'<text x="{across(x):.1f}" y="{up(y) + 4:.1f}" text-anchor="middle">{index + 1}</text>')
        if index < 18:
            parts.append(
                f'<text x="{WIDTH - RIGHT + 12}" y="{TOP + 14 + 18 * index}">{index + 1}  {escape(row.name)}</text>'
            )
    for index, (bound, colour) in enumerate(COLOURS.items()):
        x = LEFT + 90 * index
        parts.append(f'<circle cx="{x}" cy="{HEIGHT - 2}" r="5" fill="{colour}" fill-opacity=".65"/>')
        parts.append(f'<text class="soft" x="{x + 9}" y="{HEIGHT + 2}">{bound}</text>')
    return "\n".join([*parts, "</svg>"])


def _axes(across: Scale, up: Scale) -> Iterator[str]:
    for value in across.ticks():
        x = across(value)
        yield f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>'
        yield f'<text class="soft" x="{x:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{value:g}</text>'
    for value in up.ticks():
        y = up(value)
        yield f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        yield f'<text class="soft" x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{_rate(value)}</text>'
    middle = (LEFT + WIDTH - RIGHT) / 2
    yield f'<text x="{middle}" y="{HEIGHT - 18}" text-anchor="middle">operations per byte</text>'
    yield f'<text transform="translate(14 {HEIGHT / 2}) rotate(-90)" text-anchor="middle">operations per second</text>'


def _roof(step: StepBreakdown, across: Scale, up: Scale, ridge: float) -> Iterator[str]:
    lowest = max(10.0**across.first, 10.0**up.first / step.bandwidth_per_s)
    start, top = up(lowest * step.bandwidth_per_s), up(step.peak_per_s)
    path = f"M {across(lowest):.1f} {start:.1f} L {across(ridge):.1f} {top:.1f}"
    yield f'<path class="roof" d="{path} H {across.end:.1f}" fill="none" stroke-width="2"/>'
    yield f'<text x="{across.end - 4:.1f}" y="{top - 6:.1f}" text-anchor="end">{_rate(step.peak_per_s)}</text>'


def _rate(per_s: float) -> str:
    for scale, unit in ((1e15, "PFLOPS"), (1e12, "TFLOPS"), (1e9, "GFLOPS"), (1e6, "MFLOPS")):
        if per_s >= scale:
            return f"{per_s / scale:.3g} {unit}"
    return f"{per_s:.3g} FLOPS"


def page(found: Sequence[Explanation]) -> str:
    """Return the whole page."""
    parts = ['<!doctype html><html lang="en"><head><meta charset="utf-8">']
    parts.append('<meta name="viewport" content="width=device-width, initial-scale=1">')
    parts.append(f"<title>{escape(found[0].title)}</title><style>{STYLE}</style></head><body>")
    for one in found:
        parts.append(f"<h1>{escape(one.title)}</h1>")
        cost = one.cost
        parts.append(
            f"<p>{escape(f'{cost.model.name} on {cost.accelerator.name}, {cost.layout}, {cost.precision.weights}')}</p>"
        )
        parts += [f"<p>{escape(note)}</p>" for note in one.notes]
        for step in one.steps:
            parts.append(f"<h2>{escape(step.phase)}: {escape(describe(step))}</h2>")
            parts.append(f"<p>{format_duration(step.ns)}, {step.tokens_per_s:,.0f} tokens/s</p>")
            parts += [roofline_svg(step), _table(step)]
        parts.append(_memory(one))
    return "\n".join([*parts, "</body></html>"])


def _table(step: StepBreakdown) -> str:
    heads = "".join(
        f"<th{' class=bound' if name == 'bound' else ''}>{name}</th>"
        for name in ("operator", "calls", "GFLOP", "bytes", "bound", "time", "share")
    )
    rows = "".join(
        f"<tr><td>{escape(row.name)}</td><td>{row.calls:,}</td><td>{number(row.flops / 1e9)}</td>"
        f"<td>{format_bytes(row.size_bytes) if row.size_bytes else '-'}</td><td class=bound>{row.bound}</td>"
        f"<td>{format_duration(row.ns)}</td><td>{row.ns / step.ns:.1%}</td></tr>"
        for row in step.rows
    )
    return f"<div class=wide><table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>"


def _memory(found: Explanation) -> str:
    usable = found.book.usable_bytes
    rows = "".join(
        f"<tr><td>{escape(name)}</td><td>{format_bytes(size)}</td><td>{size / usable:.1%}</td></tr>"
        for name, size in found.memory.items()
        if size
    )
    return f"<h2>Memory of one device</h2><div class=wide><table><tbody>{rows}</tbody></table></div>"
