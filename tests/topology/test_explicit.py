import json
from itertools import pairwise

import networkx as nx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.errors import InputError
from simulator.topology.explicit import graph_topology, path_by_names
from simulator.topology.search import FewestHops

EDGE = {"bandwidth_Bps": 5e9, "latency_s": 1e-6}


def written(tmp_path, graph, **more):
    file = tmp_path / "g.json"
    file.write_text(json.dumps(nx.node_link_data(graph, edges="edges") | more))
    return file


@st.composite
def graphs(draw):
    count = draw(st.integers(2, 9))
    graph = nx.MultiDiGraph()
    graph.add_nodes_from(range(count))
    pair = st.tuples(st.integers(0, count - 1), st.integers(0, count - 1)).filter(lambda ends: ends[0] != ends[1])
    graph.add_edges_from(draw(st.lists(pair, max_size=30)), **EDGE)
    return graph


@given(graphs())
@settings(max_examples=60, deadline=None)
def test_every_shortest_path_is_found_once(tmp_path_factory, graph):
    topology = graph_topology(written(tmp_path_factory.mktemp("g"), graph))
    assert [(link.source, link.target) for link in topology.links] == [(str(a), str(b)) for a, b in graph.edges()]
    simple = nx.DiGraph(graph)
    for source, target in [(s, t) for s in graph for t in graph if s != t]:
        if not nx.has_path(graph, source, target):
            with pytest.raises(InputError, match=f"no path joins {source} and {target}"):
                topology.paths(source, target)
            continue
        expected = 0
        for vertices in nx.all_shortest_paths(simple, source, target):
            ways = 1
            for a, b in pairwise(vertices):
                ways *= graph.number_of_edges(a, b)
            expected += ways
        paths = list(topology.paths(source, target))
        assert len(paths) == len(set(paths)) == expected
        for path in paths:
            names = [topology.links[path[0]].source, *(topology.links[i].target for i in path)]
            assert (names[0], names[-1]) == (str(source), str(target))
            assert all(topology.links[a].target == topology.links[b].source for a, b in pairwise(path))
            assert len(path) == nx.shortest_path_length(graph, source, target)


def test_links_keep_their_numbers_and_paths_their_names(tmp_path):
    graph = nx.DiGraph()
    graph.add_edge("a", "s", bandwidth_Bps=12.5e9, latency_s=1.5e-6)
    graph.add_edge("s", "b", bandwidth_Bps=1e9 / 3, latency_s=0)
    topology = graph_topology(written(tmp_path, graph))
    assert [(e.capacity_bytes_per_s, e.latency_ns) for e in topology.links] == [
        (12_500_000_000, 1500),
        (333_333_333, 0),
    ]
    assert path_by_names(topology, "a>s>b") == path_by_names(topology, ["a", "s", "b"]) == (0, 1)
    assert list(topology.paths(0, 2)) == [(0, 1)]
    for path, message in [
        ("b>s", "no link from 'b' to 's'"),
        ("a>z>b", "no node 'z'"),
        ("a", "has no step"),
        ("", "has no step"),
    ]:
        with pytest.raises(InputError, match=message):
            path_by_names(topology, path)


def test_a_route_by_names_takes_no_link_twice(tmp_path):
    topology = graph_topology(
        written(
            tmp_path,
            nx.complete_graph(3, nx.DiGraph),
            edges=[{"source": a, "target": b, **EDGE} for a, b in [(0, 1), (1, 0)]],
        )
    )
    with pytest.raises(InputError, match="takes a link twice"):
        path_by_names(topology, "0>1>0>1")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"directed": False}, "not directed"),
        ({"edges": None, "links": []}, "missing key 'edges'"),
        ({"edges": [{"source": "a", "target": "q", **EDGE}]}, r"edges\[0\].target: no node 'q'"),
        (
            {"edges": [{"source": "a", "target": "b", "latency_s": 0, "bandwidth_bps": 1}]},
            "did you mean 'bandwidth_bps'",
        ),
        ({"edges": [{"source": "a", "target": "b", "latency_s": -1, "bandwidth_Bps": 1}]}, "not negative, found -1"),
        ({"edges": [{"source": "a", "target": "b", "latency_s": 0, "bandwidth_Bps": 0.3}]}, "too little"),
        ({"edges": [{"source": "a", "target": "a", **EDGE}]}, "to itself"),
        ({"edges": [3]}, r"edges\[0\]: expected a mapping"),
        ({"nodes": [{"id": "a"}, {"id": "a"}], "edges": []}, "a second node 'a'"),
        ({"nodes": [{"id": "a>b"}], "edges": []}, "without '>'"),
        ({"nodes": [{"name": "a"}], "edges": []}, "expected an id"),
    ],
)
def test_what_is_no_such_graph_is_refused_in_full(tmp_path, change, message):
    graph = nx.DiGraph()
    graph.add_edge("a", "b", **EDGE)
    with pytest.raises(InputError, match=message):
        graph_topology(written(tmp_path, graph, **change))


def test_files_that_are_no_json_are_refused(tmp_path):
    (tmp_path / "x.json").write_text("{nodes")
    (tmp_path / "y.json").write_text("[]")
    for name, message in [("x.json", "x.json:1:2: not JSON"), ("y.json", "not a graph"), ("z.json", "cannot read")]:
        with pytest.raises(InputError, match=message):
            graph_topology(tmp_path / name)


def test_a_grid_has_as_many_shortest_paths_as_the_binomial_says():
    edges = []
    for x in range(40):
        for y in range(40):
            edges += [(f"{x}.{y}", f"{x + 1}.{y}"), (f"{x}.{y}", f"{x}.{y + 1}")]
    paths = FewestHops((a, b, i) for i, (a, b) in enumerate(edges))("0.0", "20.20")
    assert len(paths) == 137846528820  # 40 over 20
    assert len({paths[i] for i in (0, 1, len(paths) // 2, len(paths) - 1)}) == 4
