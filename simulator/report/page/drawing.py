"""The fabric as SVG whose lines are coloured, and thick, by how busy they were; its colours follow the page's."""

import math
from html import escape

from simulator.report.page.links import FabricFigures, Heat
from simulator.results.text import share
from simulator.topology.draw import LEGEND_LINE, MARGIN
from simulator.topology.draw_svg import box_group, frames, labels, shape_of, spoken

STEPS = 5
"""Colours between nothing and the busiest; their hues and their thickness both tell them apart."""
FEW_WIRES = 60
"""More wires are drawn thinner, so that they do not run into one block."""


def svg(figures: FabricFigures) -> str:
    """Return the drawing as one inline SVG element, with a tooltip on every box and wire, and a legend below it."""
    drawing = figures.drawing
    hottest = max([one.most for one in (*figures.wires, *figures.boxes.values())], default=0.0)
    bottom = max(box.y + box.height for box in drawing.boxes)
    bottom = max([bottom, *(frame.y + frame.height for frame in drawing.frames)])
    width, height = math.ceil(drawing.width), math.ceil(bottom + 2 * MARGIN + LEGEND_LINE)
    thin = round(max(0.3, min(1.0, FEW_WIRES / max(len(drawing.wires), 1))), 2)
    title = f"Mean utilisation of links: {drawing.title}"
    parts = [
        f'<svg class="fabric" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img"'
        f' style="--natural:{width}px;--thin:{thin:g}" font-size="12"><title>{escape(title)}</title>',
        f'<text class="ink" x="{MARGIN}" y="34" font-size="18" font-weight="bold">{escape(drawing.title)}</text>',
        f'<text class="faint" x="{MARGIN}" y="56">{escape(drawing.subtitle)}</text>',
        *frames(drawing),
    ]
    order = sorted(range(len(figures.wires)), key=lambda at: (figures.wires[at].most, at))  # the busiest in front
    for at in order:
        wire, heat = drawing.wires[at], figures.wires[at]
        step = step_of(heat.most, hottest)
        ends = f"{spoken(drawing.boxes[wire.lower])} to {spoken(drawing.boxes[wire.upper])}"
        what = f"{ends}: {wire.cables:,} x {wire.tier}; {_said(heat, wire.cables)}"
        shape = shape_of(wire, drawing)
        parts.append(f'<path class="line h{step}" d="{shape}"><title>{escape(what)}</title></path>')
    for at, box in enumerate(drawing.boxes):
        inside = figures.boxes.get(at)
        edge = f" h{step_of(inside.most, hottest)}" if inside is not None else ""
        said = spoken(box) if inside is None else f"{spoken(box)}; inside it {_said(inside, box.cables_inside)}"
        parts.append(box_group(box, edge, said))
    return "\n".join([*parts, *labels(drawing), *_legend(hottest, height), "</svg>"])


def step_of(utilisation: float, hottest: float) -> int:
    """Return 0 for nothing and otherwise which of `STEPS` equal parts of the way to the hottest it is in."""
    if not utilisation or not hottest:
        return 0
    return min(STEPS, 1 + int(STEPS * utilisation / hottest))


def _said(heat: Heat, cables: int) -> str:
    text = f"up {share(heat.up)}, down {share(heat.down)}"
    return text if cables == 1 else f"{text}, busiest link {share(heat.busiest)}"


def _legend(hottest: float, height: int) -> list[str]:
    y = height - MARGIN
    parts = [f'<text class="ink" x="{MARGIN}" y="{y + 4}">mean utilisation</text>']
    x = MARGIN + 120
    for step in range(STEPS + 1):
        text = "nothing" if not step else f"to {share(hottest * step / STEPS)}"
        parts.append(f'<path class="line h{step}" d="M{x} {y}h28"/>')
        parts.append(f'<text class="ink" x="{x + 34}" y="{y + 4}">{text}</text>')
        x += 120
    return parts
