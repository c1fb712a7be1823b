"""Where everything stands in a drawing of a fabric: a pure function from structure to boxes, wires and a legend.

Model: rows by height above the devices, nodes as frames (or one box each), planes side by side; large fabrics are
folded into boxes of many alike. Every cable is in exactly one wire or inside exactly one box. Lengths are in pixels.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from simulator.topology.failure import Structure
from simulator.topology.graph import Topology, Vertex
from simulator.units import format_bandwidth

T = TypeVar("T")

UNFOLDED_VERTICES = 200
UNFOLDED_PAIRS = 1200  # of joined vertices, both directions: more lines than that are a solid block
MOST_BOXES_IN_A_ROW = 16

CHARACTER, LINE, PAD = 7.2, 16, 8
CELL, CELL_GAP, BOX_GAP = 38, 6, 26
BOX_HEIGHT, ROW_GAP, INNER_GAP = 2 * PAD + LINE, 110, 34
ARC, WIDEST = 70, 260
MARGIN, LEFT, TITLE, LEGEND_LINE = 24, 150, 78, 22


@dataclass(frozen=True, slots=True)
class Box:
    """One vertex, or `count` alike in one; `cables_inside` have both ends in it. x and y are its upper left corner."""

    name: str
    lines: tuple[str, ...]
    kind: str
    tier: str
    plane: str | None
    row: int
    count: int
    cables_inside: int = 0
    x: float = 0
    y: float = 0
    width: float = 0
    height: float = 0


@dataclass(frozen=True, slots=True)
class Wire:
    """All cables of one tier between two boxes (indices; `lower` is below `upper` or in its row), from end to end."""

    lower: int
    upper: int
    tier: str
    cables: int
    bytes_per_s: int
    x1: float = 0
    y1: float = 0
    x2: float = 0
    y2: float = 0


@dataclass(frozen=True, slots=True)
class Frame:
    """The outline of one node around its devices, NICs and domain."""

    label: str
    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True, slots=True)
class Label:
    """What a row holds, at its left."""

    text: str
    x: float
    y: float


@dataclass(frozen=True, slots=True)
class Drawing:
    """Everything placed; `legend` has a line of text for each tier of links, `planes` the names in order of colour.

    `box_of` is the index of the box that each vertex is drawn as, or in.
    """

    title: str
    subtitle: str
    boxes: tuple[Box, ...]
    wires: tuple[Wire, ...]
    frames: tuple[Frame, ...]
    labels: tuple[Label, ...]
    legend: tuple[tuple[str, str], ...]
    planes: tuple[str, ...]
    box_of: Mapping[str, int]
    width: float
    height: float


def layout(topology: Topology) -> Drawing:
    """Return the drawing of `topology`: vertex by vertex, or folded into boxes of many alike if there are over 200.

    Fabrics of fewer vertices with over 600 pairs of them joined are folded too, for no line could be told from others.
    """
    structure = Structure(topology)
    rows = _rows(topology, structure)
    pairs = {(link.source, link.target) for link in topology.links}
    unfolded = len(topology.vertices) <= UNFOLDED_VERTICES and len(pairs) <= UNFOLDED_PAIRS
    home = _single(topology) if unfolded else _folded(topology, structure, rows)
    boxes = _boxes(topology, structure, rows, home)
    index = {box.name: at for at, box in enumerate(boxes)}
    box_of = {vertex: index[name] for vertex, name in home.items()}
    boxes, wires = _wires(topology, boxes, box_of)
    legend = _legend(topology, wires, boxes)
    title, subtitle = _titles(topology)
    text = max([len(line) for _, line in legend] + [len(title) * 1.4, len(subtitle)]) * CHARACTER + 80
    if unfolded:
        boxes, frames = _place_in_frames(boxes, wires, {vertex.name: vertex for vertex in topology.vertices})
    else:
        boxes, frames = _place_rows(boxes, max(_inner_width(boxes), text - LEFT), _arched(boxes, wires)), ()
    right = max(box.x + box.width for box in boxes)
    bottom = max([box.y + box.height for box in boxes] + [frame.y + frame.height for frame in frames])
    planes = tuple(dict.fromkeys(structure.planes.values()))
    return Drawing(
        title=title,
        subtitle=subtitle,
        boxes=tuple(boxes),
        wires=tuple(_attach(wires, boxes)),
        frames=frames,
        labels=tuple(_labels(topology, boxes, rows, home)),
        legend=tuple(legend),
        planes=planes,
        box_of=box_of,
        width=max(right, text) + MARGIN,
        height=bottom + 2 * MARGIN + (len(legend) + bool(planes)) * LEGEND_LINE,
    )


def _titles(topology: Topology) -> tuple[str, str]:
    nodes = len({site.node for site in topology.sites})
    kinds = Counter(vertex.kind for vertex in topology.vertices)
    counts = [(nodes, "node", "nodes"), (len(topology.sites), "device", "devices")]
    counts += [(kinds["nic"], "NIC", "NICs"), (kinds["switch"], "switch", "switches")]
    title = f"{topology.name}: " + ", ".join(f"{n:,} {one if n == 1 else many}" for n, one, many in counts if n)
    bisection = format_bandwidth(topology.bisection_bytes_per_s)
    return title, f"bisection {bisection} one way, oversubscription {topology.oversubscription:.3g}:1"


def _rows(topology: Topology, structure: Structure) -> dict[str, int]:
    """Return each vertex's row from the bottom: scale-up domains, then by height; what is of no node on top.

    A host's memory stands just below what it hangs from, so that its line passes no other row.
    """
    heights, top = structure.heights, max(structure.heights.values(), default=0) + 1
    below = [heights[v.name] for v in topology.vertices if v.node is not None and v.name in heights]
    above = [heights[v.name] for v in topology.vertices if v.node is None and v.name in heights]
    shift = max(0, max(below, default=0) + 1 - min(above, default=top))
    rows = {}
    for vertex in topology.vertices:
        if vertex.name in structure.enclosed:
            rows[vertex.name] = -1
        else:
            rows[vertex.name] = heights.get(vertex.name, top) + (0 if vertex.node is not None else shift)
            if vertex.kind == "cpu" and structure.capacity[vertex.name]:
                rows[vertex.name] = max(0, min(heights.get(near, 1) for near in structure.capacity[vertex.name]) - 1)
    return rows


def _single(topology: Topology) -> dict[str, str]:
    return {vertex.name: vertex.name for vertex in topology.vertices}


def _folded(topology: Topology, structure: Structure, rows: Mapping[str, int]) -> dict[str, str]:
    """Return the box of each vertex: of a few ways to fold each row, the finest that gives few enough boxes."""
    nodes: dict[int, list[Vertex]] = defaultdict(list)
    others: dict[int, list[Vertex]] = defaultdict(list)
    for vertex in topology.vertices:
        if vertex.node is None:
            others[rows[vertex.name]].append(vertex)
        else:
            nodes[vertex.node].append(vertex)
    vertices = {vertex.name: vertex for vertex in topology.vertices}
    holds = {node: str(sorted(Counter(v.tier for v in members).items())) for node, members in nodes.items()}
    groups = {node: _groups(members, structure, vertices) for node, members in nodes.items()}
    parts = {node: str(sorted({kin for kin, _ in found})) for node, found in groups.items()}
    of_node = _finest(
        list(nodes),
        lambda node: f"node {node}",
        lambda node: f"nodes of {groups[node]} with {holds[node]}",
        lambda node: f"nodes of {parts[node]} with {holds[node]}",
        lambda node: f"nodes with {holds[node]}",
    )
    home = {vertex.name: of_node(node) for node, members in nodes.items() for vertex in members}
    for _, members in sorted(others.items()):  # from the lowest row up
        number = {box: at for at, box in enumerate(dict.fromkeys(home.values()))}
        below = {v.name: [near for near in structure.capacity[v.name] if near in home] for v in members}
        under = {name: sorted({number[home[near]] for near in nears}) for name, nears in below.items()}
        ways: list[Callable[[Vertex], str]] = [
            lambda vertex: vertex.name,
            lambda vertex, under=under: f"{_kin(vertex)} in {vertex.group} above {under[vertex.name]}",  # type: ignore[misc]
            lambda vertex: f"{_kin(vertex)} in {vertex.group}",
            _kin,
            lambda vertex: f"every {vertex.tier}",
        ]
        # single switches above folded ones would say no more than one box of them
        folded = any(home[near] != near and vertices[near].node is None for nears in below.values() for near in nears)
        of_switch = _finest(members, *ways[folded:])
        home |= {vertex.name: of_switch(vertex) for vertex in members}
    return home


def _kin(vertex: Vertex) -> str:
    """Return the tier, the plane and the part of the fabric (what the name says before the switch) of a switch."""
    return f"{vertex.tier} of {vertex.plane} {vertex.name.rpartition('/')[0]}"


def _groups(members: Iterable[Vertex], structure: Structure, vertices: Mapping[str, Vertex]) -> list[tuple[str, int]]:
    """Return the leaf groups or pods that a node hangs from."""
    outside = {near for vertex in members for near in structure.capacity[vertex.name] if vertices[near].node is None}
    return sorted({(_kin(vertices[near]), vertices[near].group or 0) for near in outside})


def _finest(things: Sequence[T], *ways: Callable[[T], str]) -> Callable[[T], str]:
    for way in ways[:-1]:
        if len({way(thing) for thing in things}) <= MOST_BOXES_IN_A_ROW:
            return way
    return ways[-1]


def _boxes(topology: Topology, structure: Structure, rows: Mapping[str, int], home: Mapping[str, str]) -> list[Box]:
    members: dict[str, list[Vertex]] = defaultdict(list)
    for vertex in topology.vertices:
        members[home[vertex.name]].append(vertex)
    boxes = []
    for name, group in members.items():
        whole_nodes = group[0].node is not None and name != group[0].name
        lines, kind = (_node_lines(group), "node") if whole_nodes else (_switch_lines(group), group[0].kind)
        named = {structure.planes.get(vertex.name) for vertex in group}
        plane = None if whole_nodes or len(named) > 1 else named.pop()
        count = len({vertex.node for vertex in group}) if whole_nodes else len(group)
        tier = "node" if whole_nodes else group[0].tier
        row = min(rows[vertex.name] for vertex in group)
        width = max(map(len, lines)) * CHARACTER + 2 * PAD
        if kind in ("device", "nic", "cpu"):
            width = max(width, CELL)
        boxes.append(Box(name, lines, kind, tier, plane, row, count, width=width, height=2 * PAD + LINE * len(lines)))
    order = {plane: at for at, plane in enumerate(dict.fromkeys(structure.planes.values()))}
    first = {name: at for at, name in enumerate(members)}
    return sorted(boxes, key=lambda box: (box.row, order.get(box.plane or "", -1), first[box.name]))


def _node_lines(group: Sequence[Vertex]) -> tuple[str, ...]:
    nodes = sorted({vertex.node for vertex in group if vertex.node is not None})
    tiers = Counter(vertex.tier for vertex in group)
    if len(nodes) == 1:
        title = f"node {nodes[0]}"
    elif nodes == list(range(nodes[0], nodes[-1] + 1)):
        title = f"nodes {nodes[0]:,}-{nodes[-1]:,}"
    else:
        title = f"nodes {nodes[0]:,} ... {nodes[-1]:,}"
    many = (f"{len(nodes):,} nodes, each",) if len(nodes) > 1 else ()
    return (title, *many, *(f"{count // len(nodes):,} x {tier}" for tier, count in tiers.items()))


def _switch_lines(group: Sequence[Vertex]) -> tuple[str, ...]:
    first = group[0]
    if len(group) == 1:
        inner = first.slot is not None and first.kind in ("device", "nic")
        if first.node is None:
            return (first.name,)
        return (str(first.slot) if inner else first.name.rpartition("/")[2],)
    groups = {vertex.group for vertex in group}
    planes = {vertex.plane for vertex in group}
    parts = {vertex.name.rpartition("/")[0] for vertex in group}
    where = []
    if len(planes) == 1 and None not in planes:
        where.append(f"{planes.pop()}")
    elif len(parts) == 1 and first.node is None:
        where += [part for part in parts if part]
    if len(groups) == 1 and None not in groups:
        where.append(f"group {groups.pop()}")
    return (f"{first.tier} x {len(group):,}", *where)


def _wires(topology: Topology, boxes: Sequence[Box], at: Mapping[str, int]) -> tuple[list[Box], list[Wire]]:
    """Return the boxes with the cables inside them counted, and a wire for each pair of boxes and tier between them."""
    ends: dict[tuple[int, int, str], list[int]] = {}
    inside: Counter[int] = Counter()
    for link in topology.links:
        lower, upper = sorted((at[link.source], at[link.target]))  # boxes are in order of rows
        if lower == upper:
            inside[lower] += 1
        else:
            total = ends.setdefault((lower, upper, link.tier), [0, 0])
            total[0] += 1
            total[1] += link.capacity_bytes_per_s
    drawn = []
    for index, box in enumerate(boxes):
        cables = inside[index] // 2
        if cables and box.kind != "node":
            lines = (*box.lines, f"{cables:,} cables inside")
            width = max(map(len, lines)) * CHARACTER + 2 * PAD
            box = replace(box, lines=lines, width=width, height=box.height + LINE)
        drawn.append(replace(box, cables_inside=cables))
    return drawn, [Wire(*key, cables=links // 2, bytes_per_s=size // 2) for key, (links, size) in ends.items()]


def _inner_width(boxes: Iterable[Box]) -> float:
    rows: dict[int, list[Box]] = defaultdict(list)
    for box in boxes:
        rows[box.row].append(box)
    return max(len(row) * (max(box.width for box in row) + BOX_GAP) for row in rows.values())


def _arched(boxes: Sequence[Box], wires: Iterable[Wire]) -> frozenset[int]:
    """Return the rows with wires between equals, which need room above."""
    return frozenset(boxes[wire.lower].row for wire in wires if boxes[wire.lower].row == boxes[wire.upper].row)


def _place_rows(boxes: Sequence[Box], inner: float, arched: frozenset[int]) -> list[Box]:
    """Place each row of boxes evenly over `inner` pixels, the highest row first."""
    rows: dict[int, list[int]] = defaultdict(list)
    for index, box in enumerate(boxes):
        rows[box.row].append(index)
    placed = list(boxes)
    y = float(TITLE)
    for row in sorted(rows, reverse=True):
        y += ARC if row in arched else 0
        share = inner / len(rows[row])
        for place, index in enumerate(rows[row]):
            box = boxes[index]
            # a row of few boxes gets wide ones, so that their many wires stay apart
            width = max(box.width, min(share / 2, WIDEST)) if box.kind != "node" else box.width
            x = LEFT + (place + 0.5) * share - width / 2
            placed[index] = replace(box, x=round(x, 1), y=y, width=round(width, 1))
        y += max(boxes[index].height for index in rows[row]) + ROW_GAP
    return placed


def _place_in_frames(
    boxes: Sequence[Box], wires: Sequence[Wire], vertices: Mapping[str, Vertex]
) -> tuple[list[Box], tuple[Frame, ...]]:
    """Place the boxes of each node in a frame of its own, frames side by side, and all other boxes in rows above."""
    nodes: dict[int, list[int]] = defaultdict(list)
    above = []
    for index, box in enumerate(boxes):
        node = vertices[box.name].node
        above.append(index) if node is None else nodes[node].append(index)
    inner = {node: _frame_rows(boxes, members) for node, members in nodes.items()}
    widths = {node: max(_row_width(boxes, row) for row in rows.values()) + 2 * PAD for node, rows in inner.items()}
    needed = sum(widths.values()) + BOX_GAP * (len(widths) - 1)
    total = max(needed, _inner_width([boxes[index] for index in above]) if above else 0)
    placed = list(boxes)
    arched = _arched(boxes, wires)
    switches = _place_rows([boxes[index] for index in above], total, arched)
    for index, box in zip(above, switches, strict=True):
        placed[index] = box
    top = max((box.y + box.height for box in switches), default=TITLE - ROW_GAP) + ROW_GAP
    levels = sorted({row for rows in inner.values() for row in rows}, reverse=True)
    frames = []
    x = LEFT + (total - needed) / 2
    for node, rows in sorted(inner.items()):
        y = top + 2 * PAD
        for level in levels:
            row = rows.get(level, [])
            y += ARC if level in arched else 0
            for place, index in enumerate(row):
                box = boxes[index]
                cell = (widths[node] - 2 * PAD) / len(row)
                width = widths[node] - 2 * PAD if level < 0 and len(row) == 1 else box.width
                left = x + PAD + (place + 0.5) * cell - width / 2
                placed[index] = replace(box, x=round(left, 1), y=y, width=round(width, 1))
            y += BOX_HEIGHT + INNER_GAP
        frames.append(Frame(f"node {node}", round(x, 1), top, round(widths[node], 1), y - INNER_GAP + PAD + LINE - top))
        x += widths[node] + BOX_GAP
    return placed, tuple(frames)


def _frame_rows(boxes: Sequence[Box], members: Iterable[int]) -> dict[int, list[int]]:
    rows: dict[int, list[int]] = defaultdict(list)
    for index in members:
        rows[boxes[index].row].append(index)
    return rows


def _row_width(boxes: Sequence[Box], row: Sequence[int]) -> float:
    return len(row) * (max(boxes[index].width for index in row) + CELL_GAP)


def _attach(wires: Sequence[Wire], boxes: Sequence[Box]) -> list[Wire]:
    """Spread the ends of the wires over the edges of their boxes, in the order in which the other ends stand."""
    edges: dict[tuple[int, str], list[tuple[float, int]]] = defaultdict(list)
    for index, wire in enumerate(wires):
        lower, upper = boxes[wire.lower], boxes[wire.upper]
        level = lower.row == upper.row
        edges[wire.lower, "top"].append((upper.x + upper.width / 2, index))
        edges[wire.upper, "top" if level else "bottom"].append((lower.x + lower.width / 2, index))
    ends: dict[tuple[int, int], tuple[float, float]] = {}
    for (at, edge), others in edges.items():
        box = boxes[at]
        for place, (_, index) in enumerate(sorted(others)):
            x = box.x + box.width * (place + 1) / (len(others) + 1)
            ends[index, at] = (round(x, 1), box.y if edge == "top" else box.y + box.height)
    placed = []
    for index, wire in enumerate(wires):
        (x1, y1), (x2, y2) = ends[index, wire.lower], ends[index, wire.upper]
        placed.append(replace(wire, x1=x1, y1=y1, x2=x2, y2=y2))
    return placed


def _legend(topology: Topology, wires: Sequence[Wire], boxes: Sequence[Box]) -> list[tuple[str, str]]:
    """Return each tier of links with its count, bandwidths and what one line stands for."""
    drawn: dict[str, list[Wire]] = defaultdict(list)
    for wire in wires:
        drawn[wire.tier].append(wire)
    cables = Counter(link.tier for link in topology.links)
    each: dict[str, set[int]] = defaultdict(set)
    for link in topology.links:
        each[link.tier].add(link.capacity_bytes_per_s)
    legend = []
    for tier, links in cables.items():
        slow, fast = min(each[tier]), max(each[tier])
        speed = format_bandwidth(fast) if slow == fast else f"{format_bandwidth(slow)} to {format_bandwidth(fast)}"
        text = f"{tier}: {links // 2:,} x {speed} each way"
        counts = [wire.cables for wire in drawn[tier]]
        if counts and max(counts) > 1:
            sizes = [wire.bytes_per_s for wire in drawn[tier]]
            text += f"; one line is {_range(counts)} cables, {_bandwidths(sizes)}"
        if sum(counts) < links // 2:
            text += f"; {links // 2 - sum(counts):,} inside boxes"
        legend.append((tier, text))
    return legend


def _range(counts: Sequence[int]) -> str:
    least, most = min(counts), max(counts)
    return f"{least:,}" if least == most else f"{least:,} to {most:,}"


def _bandwidths(sizes: Sequence[int]) -> str:
    least, most = format_bandwidth(min(sizes)), format_bandwidth(max(sizes))
    return least if least == most else f"{least} to {most}"


def _labels(topology: Topology, boxes: Sequence[Box], rows: Mapping[str, int], home: Mapping[str, str]) -> list[Label]:
    """Return the names of the tiers of each row with their counts, at the left of the row."""
    row_of = {box.name: box.row for box in boxes}
    tiers: dict[int, Counter[str]] = defaultdict(Counter)
    for vertex in topology.vertices:
        if home[vertex.name] == vertex.name or vertex.node is None:
            tiers[row_of[home[vertex.name]]][vertex.tier] += 1
    nodes = sum(box.count for box in boxes if box.kind == "node")
    if nodes:
        tiers[min(row_of.values())]["node"] = nodes
    labels = []
    for row, counts in tiers.items():
        y = min(box.y for box in boxes if box.row == row) + PAD + LINE - 4
        labels += [
            Label(f"{tier} x {count:,}", MARGIN, y + LINE * line) for line, (tier, count) in enumerate(counts.items())
        ]
    return labels
