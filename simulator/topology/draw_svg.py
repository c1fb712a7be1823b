"""A drawing as SVG text: the same bytes for the same drawing, dark where the reader's screen is."""

import math
from xml.sax.saxutils import escape

from simulator.topology.draw import LEGEND_LINE, LINE, MARGIN, PAD, Box, Drawing, Wire

LIGHT = ("#2563eb", "#c2410c", "#15803d", "#9333ea", "#0e7490", "#be185d", "#a16207", "#475569", "#65a30d", "#dc2626")
DARK = ("#7aa8ff", "#fb923c", "#4ade80", "#d8a4ff", "#22d3ee", "#f9a8d4", "#fde047", "#cbd5e1", "#a3e635", "#f87171")


def svg(drawing: Drawing) -> str:
    """Return the drawing as one SVG document, with a title for screen readers and a tooltip on every box and wire."""
    width, height = math.ceil(drawing.width), math.ceil(drawing.height)
    tiers = {tier: at % len(LIGHT) for at, (tier, _) in enumerate(drawing.legend)}
    planes = {plane: at % len(LIGHT) for at, plane in enumerate(drawing.planes)}
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
        ' role="img" font-family="DejaVu Sans, Verdana, sans-serif" font-size="12">',
        f"<title>{escape(drawing.title)}</title>",
        _style(),
        f'<rect class="page" width="{width}" height="{height}"/>',
        f'<text class="ink" x="{MARGIN}" y="34" font-size="18" font-weight="bold">{escape(drawing.title)}</text>',
        f'<text class="faint" x="{MARGIN}" y="56">{escape(drawing.subtitle)}</text>',
    ]
    parts += frames(drawing)
    parts += [_wire(wire, drawing, tiers[wire.tier]) for wire in drawing.wires]
    parts += [box_group(box, edge_of(box, planes), spoken(box)) for box in drawing.boxes]
    parts += labels(drawing)
    parts += _legend(drawing, tiers, planes, height)
    return "\n".join([*parts, "</svg>\n"])


def frames(drawing: Drawing) -> list[str]:
    """Return the outlines of the nodes, which stand behind all else."""
    parts = []
    for frame in drawing.frames:
        corner = f'x="{_n(frame.x)}" y="{_n(frame.y)}" width="{_n(frame.width)}" height="{_n(frame.height)}"'
        parts.append(f'<rect class="frame" {corner} rx="6"/>')
        at = f'x="{_n(frame.x + PAD)}" y="{_n(frame.y + frame.height - PAD)}"'
        parts.append(f'<text class="faint" {at}>{escape(frame.label)}</text>')
    return parts


def labels(drawing: Drawing) -> list[str]:
    """Return what the rows hold, at their left."""
    return [
        f'<text class="faint" x="{_n(label.x)}" y="{_n(label.y)}">{escape(label.text)}</text>'
        for label in drawing.labels
    ]


def edge_of(box: Box, planes: dict[str, int]) -> str:
    """Return the class of the outline of a box that is of a plane, by the plane's place."""
    return f" p{planes[box.plane]}" if box.plane is not None else ""


def _style() -> str:
    def colours(palette: tuple[str, ...]) -> str:
        strokes = "".join(f".l{at}{{stroke:{colour}}}" for at, colour in enumerate(palette))
        return strokes + "".join(f".p{at}{{stroke:{colour}}}" for at, colour in enumerate(palette))

    light = (
        ".page{fill:#ffffff}.ink{fill:#111827}.faint{fill:#4b5563}.frame{fill:#f3f4f6;stroke:#9ca3af}"
        ".box{fill:#ffffff;stroke:#374151}.line{fill:none;stroke-opacity:.6}"
    )
    dark = (
        ".page{fill:#0f172a}.ink{fill:#f3f4f6}.faint{fill:#cbd5e1}.frame{fill:#1e293b;stroke:#64748b}"
        ".box{fill:#0f172a;stroke:#cbd5e1}"
    )
    return f"<style>{light}{colours(LIGHT)}@media (prefers-color-scheme:dark){{{dark}{colours(DARK)}}}</style>"


def _wire(wire: Wire, drawing: Drawing, colour: int) -> str:
    lower, upper = drawing.boxes[wire.lower], drawing.boxes[wire.upper]
    what = f"{spoken(lower)} to {spoken(upper)}: {wire.cables:,} x {wire.tier}"
    thickness = round(1 + 0.5 * math.log2(wire.cables), 2)
    drawn = f'<path class="line l{colour}" stroke-width="{_n(thickness)}" d="{shape_of(wire, drawing)}">'
    return f"{drawn}<title>{escape(what)}</title></path>"


def shape_of(wire: Wire, drawing: Drawing) -> str:
    """Return the path of a wire: straight between rows, an arc within one."""
    lower, upper = drawing.boxes[wire.lower], drawing.boxes[wire.upper]
    if lower.row == upper.row:  # equals: over the row, higher the farther apart
        rise = min(60.0, 16 + abs(wire.x2 - wire.x1) / 12)
        middle = f"{_n((wire.x1 + wire.x2) / 2)} {_n(wire.y1 - 2 * rise)}"
        return f"M{_n(wire.x1)} {_n(wire.y1)}Q{middle} {_n(wire.x2)} {_n(wire.y2)}"
    return f"M{_n(wire.x1)} {_n(wire.y1)}L{_n(wire.x2)} {_n(wire.y2)}"


def box_group(box: Box, edge: str, tooltip: str) -> str:
    """Return a box with its text; `edge` are further classes of its outline, each after a blank."""
    middle = _n(box.x + box.width / 2)
    thick = 2 if box.count > 1 or edge else 1
    corner = f'x="{_n(box.x)}" y="{_n(box.y)}" width="{_n(box.width)}" height="{_n(box.height)}"'
    text = "".join(
        f'<text class="{"faint" if line else "ink"}" x="{middle}" y="{_n(box.y + PAD + LINE * (line + 1) - 4)}"'
        f' text-anchor="middle">{escape(words)}</text>'
        for line, words in enumerate(box.lines)
    )
    rectangle = f'<rect class="box{edge}" {corner} rx="4" stroke-width="{thick}"/>'
    return f"<g><title>{escape(tooltip)}</title>{rectangle}{text}</g>"


def spoken(box: Box) -> str:
    """Return what a tooltip calls a box."""
    return box.name if box.count == 1 and box.kind != "node" else ", ".join(box.lines)


def _legend(drawing: Drawing, tiers: dict[str, int], planes: dict[str, int], height: int) -> list[str]:
    lines = []
    y = height - MARGIN - LEGEND_LINE * (len(drawing.legend) + bool(planes)) + LEGEND_LINE / 2
    for tier, text in drawing.legend:
        lines.append(f'<path class="line l{tiers[tier]}" stroke-width="4" d="M{MARGIN} {_n(y)}h28"/>')
        lines.append(f'<text class="ink" x="{MARGIN + 40}" y="{_n(y + 4)}">{escape(text)}</text>')
        y += LEGEND_LINE
    if planes:
        x: float = MARGIN
        lines.append(f'<text class="ink" x="{_n(x)}" y="{_n(y + 4)}">planes</text>')
        x += 60
        for plane, colour in planes.items():
            corner = f'x="{_n(x)}" y="{_n(y - 7)}" width="14" height="14"'
            lines.append(f'<rect class="box p{colour}" {corner} rx="3" stroke-width="2"/>')
            lines.append(f'<text class="ink" x="{_n(x + 20)}" y="{_n(y + 4)}">{escape(plane)}</text>')
            x += 40 + 8 * len(plane)
    return lines


def _n(value: float) -> str:
    return f"{round(value, 1):g}" if abs(value) < 100_000 else f"{value:.0f}"
