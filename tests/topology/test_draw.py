import hashlib
import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections import Counter
from io import BytesIO
from itertools import combinations
from pathlib import Path

import networkx as nx
import pytest

from simulator import catalog
from simulator.topology import build_topology
from simulator.topology.draw import CHARACTER, UNFOLDED_PAIRS, UNFOLDED_VERTICES, layout
from simulator.topology.draw_graph import dot, graphml
from simulator.topology.draw_svg import svg

ROOT = Path(__file__).parents[2]
PRESETS = catalog.names("topologies")
CASES = [(name, {}) for name in PRESETS] + [
    ("clos-h100", {"nodes": 1}),
    ("clos-h100", {"nodes": 2}),
    ("clos-h100", {"nodes": 9}),
    ("clos-h100", {"nodes": 64}),
    ("clos-h100", {"nodes": 250}),
    ("clos-h100-tapered", {"nodes": 8, "attachment": "node"}),
    ("multi-plane-h800", {"nodes": 2}),
    ("rail-only-h100", {"nodes": 3}),
    ("fire-flyer-a100", {"nodes": 4}),
    ("torus-8x8x8", {"dimensions": [3, 4]}),
    ("fat-tree-k16", {"switch": {"radix": 4}, "devices_per_node": 2}),
]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: " ".join([case[0], *map(str, case[1].values())]))
def drawn(request):
    topology = build_topology(*request.param)
    return topology, layout(topology)


def test_every_vertex_is_in_one_box(drawn):
    topology, drawing = drawn
    whole_nodes = sum(box.count for box in drawing.boxes if box.kind == "node")
    single = sum(box.count for box in drawing.boxes if box.kind != "node")
    in_nodes = sum(vertex.node is not None for vertex in topology.vertices) if whole_nodes else 0
    assert single + in_nodes == len(topology.vertices)
    if whole_nodes:
        assert whole_nodes == len({vertex.node for vertex in topology.vertices if vertex.node is not None})


def test_every_cable_is_in_one_wire_or_inside_one_box(drawn):
    topology, drawing = drawn
    assert 2 * sum(wire.cables for wire in drawing.wires) + 2 * sum(box.cables_inside for box in drawing.boxes) == len(
        topology.links
    )
    cables = Counter(link.tier for link in topology.links)
    between = Counter()
    for wire in drawing.wires:
        between[wire.tier] += 2 * wire.cables
    assert all(between[tier] <= count for tier, count in cables.items())
    each = {link.tier: set() for link in topology.links}
    for link in topology.links:
        each[link.tier].add(link.capacity_bytes_per_s)
    for wire in drawing.wires:
        assert min(each[wire.tier]) * wire.cables <= wire.bytes_per_s <= max(each[wire.tier]) * wire.cables
        if len(each[wire.tier]) == 1:
            assert wire.bytes_per_s == wire.cables * next(iter(each[wire.tier]))


def test_small_fabrics_are_drawn_whole_and_large_ones_folded(drawn):
    topology, drawing = drawn
    pairs = {(link.source, link.target) for link in topology.links}
    if len(topology.vertices) <= UNFOLDED_VERTICES and len(pairs) <= UNFOLDED_PAIRS:
        assert sorted(box.name for box in drawing.boxes) == sorted(vertex.name for vertex in topology.vertices)
        assert not any(box.cables_inside for box in drawing.boxes)
        assert len(drawing.frames) == len({site.node for site in topology.sites})
    else:
        assert len(drawing.boxes) <= 100
        assert not drawing.frames


def test_boxes_do_not_overlap_and_rows_are_in_order(drawn):
    _, drawing = drawn
    for one, other in combinations(drawing.boxes, 2):
        apart = one.x + one.width <= other.x or other.x + other.width <= one.x
        assert apart or one.y + one.height <= other.y or other.y + other.height <= one.y, (one.name, other.name)
        if one.row < other.row:
            assert one.y > other.y + other.height
        elif one.row == other.row:
            assert one.y == other.y


def test_no_wire_passes_behind_a_box(drawn):
    _, drawing = drawn
    for wire in drawing.wires:
        lower, upper = drawing.boxes[wire.lower], drawing.boxes[wire.upper]
        for box in drawing.boxes:
            if lower.row < box.row < upper.row:
                slope = (wire.x2 - wire.x1) / (wire.y2 - wire.y1)
                ends = [wire.x1 + (y - wire.y1) * slope for y in (box.y, box.y + box.height)]
                assert max(ends) <= box.x or min(ends) >= box.x + box.width, (lower.name, upper.name, box.name)


def test_boxes_of_one_row_are_told_apart(drawn):
    _, drawing = drawn
    switches = [(box.row, box.plane, box.lines) for box in drawing.boxes if box.kind == "switch"]
    assert len(set(switches)) == len(switches)


def test_everything_is_on_the_page_and_text_fits_its_box(drawn):
    _, drawing = drawn
    for shape in (*drawing.boxes, *drawing.frames):
        assert shape.x >= 0
        assert shape.y >= 0
        assert shape.x + shape.width <= drawing.width
        assert shape.y + shape.height <= drawing.height
    for box in drawing.boxes:
        assert max(map(len, box.lines)) * CHARACTER <= box.width
    for label in drawing.labels:
        assert label.x + len(label.text) * CHARACTER <= min(box.x for box in drawing.boxes)


def test_frames_hold_their_own_boxes_and_no_others(drawn):
    topology, drawing = drawn
    node_of = {vertex.name: vertex.node for vertex in topology.vertices}
    for frame in drawing.frames:
        for box in drawing.boxes:
            inside = (
                frame.x <= box.x
                and frame.y <= box.y
                and box.x + box.width <= frame.x + frame.width
                and box.y + box.height <= frame.y + frame.height
            )
            assert inside == (frame.label == f"node {node_of[box.name]}")


def test_wires_end_on_their_boxes(drawn):
    _, drawing = drawn
    for wire in drawing.wires:
        lower, upper = drawing.boxes[wire.lower], drawing.boxes[wire.upper]
        assert lower.row <= upper.row
        assert lower.x <= wire.x1 <= lower.x + lower.width
        assert upper.x <= wire.x2 <= upper.x + upper.width
        assert wire.y1 == lower.y
        assert wire.y2 == (upper.y if lower.row == upper.row else upper.y + upper.height)


def test_the_text_is_sound_xml_with_a_shape_for_everything(drawn):
    topology, drawing = drawn
    root = ET.fromstring(svg(drawing))
    name = "{http://www.w3.org/2000/svg}"
    assert root.tag == f"{name}svg"
    assert len(root.findall(f"{name}g")) == len(drawing.boxes)
    assert len(root.findall(f"{name}path")) == len(drawing.wires) + len(drawing.legend)
    assert root.find(f"{name}title").text.startswith(topology.name)
    style = root.find(f"{name}style").text
    assert "prefers-color-scheme:dark" in style
    assert "href" not in svg(drawing)
    assert {link.tier for link in topology.links} == {tier for tier, _ in drawing.legend}
    for plane in drawing.planes:
        assert any(text.text == plane for text in root.iter(f"{name}text"))


def test_planes_stand_side_by_side():
    drawing = layout(build_topology("multi-plane-h800"))
    for tier in ("leaf", "spine"):
        planes = [box.plane for box in sorted(drawing.boxes, key=lambda box: box.x) if box.tier == tier]
        assert planes == list(drawing.planes)
    for wire in drawing.wires:
        if wire.tier == "leaf-spine":
            assert drawing.boxes[wire.lower].plane == drawing.boxes[wire.upper].plane


def test_the_same_bytes_in_every_process():
    code = (
        "import hashlib; from simulator.topology import build_topology; from simulator.topology.draw import layout\n"
        "from simulator.topology.draw_svg import svg\n"
        "print(hashlib.sha256(svg(layout(build_topology('multi-plane-h800'))).encode()).hexdigest())"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout.strip()
        for seed in ("1", "2")
    }
    here = hashlib.sha256(svg(layout(build_topology("multi-plane-h800"))).encode()).hexdigest()
    assert found == {here}


@pytest.mark.parametrize("name", ["clos-h100", "rail-only-h100"])
def test_graphml_comes_back_as_the_same_graph(name):
    topology = build_topology(name)
    back = nx.read_graphml(BytesIO(graphml(topology).encode()), force_multigraph=True)
    assert back.number_of_nodes() == len(topology.vertices)
    edges = Counter((a, b, d["capacity_bytes_per_s"], d["latency_ns"], d["tier"]) for a, b, d in back.edges(data=True))
    assert edges == Counter((e.source, e.target, e.capacity_bytes_per_s, e.latency_ns, e.tier) for e in topology.links)
    for vertex in topology.vertices:
        assert back.nodes[vertex.name]["tier"] == vertex.tier


def test_dot_has_a_line_for_every_vertex_and_link():
    topology = build_topology("clos-h100", {"nodes": 3})
    text = dot(topology)
    assert text.count(" -> ") == len(topology.links)
    assert text.count(" [kind=") == len(topology.vertices)
    assert text.count("subgraph") == 3
    assert text.count("{") == text.count("}")
    assert '"leaf0.0" -> "spine0" [tier="leaf-spine", capacity_bytes_per_s=50000000000, latency_ns=450];' in text
