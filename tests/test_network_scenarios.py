"""Scenarios of flows alone, through the command line's own path: reference cases, faults, patterns, bad files."""

import csv
import json
from pathlib import Path

import pytest

from simulator import load, simulate
from simulator.errors import InputError

REFERENCE = Path(__file__).parent.parent.parent / "shared" / "data" / "reference-flows"
CASES = sorted(REFERENCE.glob("*.json"))


def run(folder, topology, traffic, *overrides, **more):
    """Run a scenario of flows whose sections are given as flow-style YAML."""
    text = f"schema: 1\ntopology: {topology}\ntraffic: {traffic}\n"
    text += "".join(f"{key}: {value}\n" for key, value in more.items())
    (folder / "network.yaml").write_text(text)
    return simulate(load(folder / "network.yaml", overrides), out=folder / "run", check=True)


def write_csv(path, header, rows):
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows([header, *rows])


def write_case(folder, case):
    """Write a reference case in the form that users write: graph, flows and changes."""
    names = {link["id"]: (link["src"], link["dst"]) for link in case["links"]}
    nodes = list(dict.fromkeys(end for pair in names.values() for end in pair))
    edges = [
        {"source": a, "target": b, "bandwidth_Bps": link["bandwidth_Bps"], "latency_s": link["latency_s"]}
        for link in case["links"]
        for a, b in [names[link["id"]]]
    ]
    graph = {"directed": True, "multigraph": False, "graph": {}, "nodes": [{"id": n} for n in nodes], "edges": edges}
    (folder / "graph.json").write_text(json.dumps(graph))
    flows = []
    for flow in case["flows"]:
        path = [names[link] for link in flow["path"]]
        via = ">".join([path[0][0], *(target for _, target in path)])
        flows.append([flow["id"], flow["src"], flow["dst"], int(flow["bytes"]), repr(flow["start_s"]), via])
    write_csv(folder / "flows.csv", ["flow_id", "src", "dst", "bytes", "start_s", "path"], flows)
    changes = [
        [repr(c["time_s"]), *names[c["link"]], int(c["bandwidth_Bps"])] for c in case.get("capacity_changes", [])
    ]
    write_csv(folder / "changes.csv", ["time_s", "src", "dst", "bandwidth_Bps"], changes)


@pytest.mark.skipif(not CASES, reason="the reference cases of a flow-level simulator are not beside the project")
@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_reference_cases(path, tmp_path):
    case = json.loads(path.read_text())
    write_case(tmp_path, case)
    changes = "changes: changes.csv, " if case.get("capacity_changes") else ""
    found = run(tmp_path, "{graph: graph.json}", f"{{flows: flows.csv, {changes}on_dead_link: fail}}")
    rows = found.table("flows").to_pandas().set_index("flow_id")
    assert len(rows) == len(case["flows"])
    for flow in case["flows"]:
        row = rows.loc[flow["id"]]
        assert bool(row.completed) == flow["completed"]
        if flow["completed"]:
            expected_ns = flow["finish_s"] * 1e9
            tolerance_ns = max(10, 1e-6 * (expected_ns - row.start_ns))
            assert abs(row.finish_ns - expected_ns) <= tolerance_ns
    assert found.summary["flows"]["failed"] == sum(not flow["completed"] for flow in case["flows"])


LINE = {
    "directed": True,
    "nodes": [{"id": n} for n in "abcd"],
    "edges": [
        {"source": s, "target": t, "bandwidth_Bps": 10**9, "latency_s": 1e-6}
        for s, t in ("ab", "bd", "ac", "cd", "ba", "db", "ca", "dc")
    ],
}


@pytest.mark.parametrize(
    ("policy", "finish_ns"),
    # 3 MB at 1 GB/s over a>b>d: 2 us of latency, then 3 ms; a>b is dead from 1.002 ms, 2 MB left, to 11.002 ms.
    [("stall", 13_002_000), ("fail", None)],
)
def test_a_link_dies_and_comes_back(tmp_path, policy, finish_ns):
    (tmp_path / "graph.json").write_text(json.dumps(LINE))
    write_csv(
        tmp_path / "flows.csv",
        ["flow_id", "src", "dst", "bytes", "start_s", "path"],
        [[1, "a", "d", 3_000_000, 0, "a>b>d"]],
    )
    write_csv(
        tmp_path / "changes.csv",
        ["time_s", "src", "dst", "bandwidth_Bps"],
        [[0.001002, "a", "b", 0], [0.011002, "a", "b", 10**9]],
    )
    found = run(tmp_path, "{graph: graph.json}", f"{{flows: flows.csv, changes: changes.csv, on_dead_link: {policy}}}")
    row = found.table("flows").to_pandas().iloc[0]
    if finish_ns is None:
        assert not row.completed
        assert row.finish_ns == 1_002_000
    else:
        assert row.completed
        assert abs(row.finish_ns - finish_ns) <= 1
    assert len(found.events) == 2


def test_rerouted_flows_keep_what_has_moved(tmp_path):
    (tmp_path / "graph.json").write_text(json.dumps(LINE))
    write_csv(tmp_path / "flows.csv", ["flow_id", "src", "dst", "bytes", "start_s"], [[1, "a", "d", 3_000_000, 0]])
    rows = [[0.001002, "a", middle, 0] for middle in "b"]
    write_csv(tmp_path / "changes.csv", ["time_s", "src", "dst", "bandwidth_Bps"], rows)
    found = run(tmp_path, "{graph: graph.json}", "{flows: flows.csv, changes: changes.csv, on_dead_link: reroute}")
    row = found.table("flows").to_pandas().iloc[0]
    assert row.completed
    # Either the hash had chosen a>c>d and nothing happened, or the rest went that way after its latency.
    assert 3_002_000 <= row.finish_ns <= 3_004_001


@pytest.mark.parametrize(
    "preset", ["clos-h100", "clos-h100-tapered", "rail-only-h100", "cloudmatrix384", "torus-8x8x8", "multi-plane-h800"]
)
def test_patterns_run_on_every_kind_of_fabric(tmp_path, preset):
    pattern = "{poisson: {flows: 200, load: 0.1, sizes: {constant: {value: 1 MB}}}}"
    found = run(tmp_path, f"{{preset: {preset}}}", f"{{pattern: {pattern}}}", seed=3)
    assert found.summary["flows"]["completed"] == 200
    rows = found.table("flows").to_pandas()
    assert (rows.finish_ns - rows.start_ns >= rows.ideal_ns * 0.999).all()


def test_a_permutation_on_a_non_blocking_rail_takes_its_ideal_time_within_a_leaf(tmp_path):
    # Two nodes, rail attachment: incast of 1 source is a flow alone, so its slowdown is exactly 1.
    found = run(tmp_path, "{preset: clos-h100, nodes: 2}", "{pattern: {incast: {bytes: 1 GB, sources: 1, target: 0}}}")
    assert found.summary["slowdown"]["max"] == pytest.approx(1, abs=1e-6)


def test_incast_shares_the_last_link(tmp_path):
    # n flows of B bytes into one 50 GB/s NIC from other nodes: all end when n B / 50 GB/s has passed.
    text = "{pattern: {incast: {bytes: 100 MB, sources: 4, target: 4}}}"
    found = run(tmp_path, "{preset: clos-h100, nodes: 5, devices_per_node: 1, attachment: node}", text)
    rows = found.table("flows").to_pandas()
    drain_ns = 4 * 100e6 / 50
    assert ((rows.finish_ns - drain_ns) < 10_000).all()
    assert (rows.finish_ns >= drain_ns).all()


@pytest.mark.parametrize(
    ("topology", "traffic", "says"),
    [
        ("{preset: clos-h100}", "{}", "at least one of flows, pattern, transfers and collectives"),
        ("{preset: clos-h100}", "{flows: none.csv}", "cannot read"),
        ("{preset: clos-h100}", "{flows: bad.csv}", "no node 'x'"),
        ("{graph: bad.csv}", "{pattern: {permutation: {bytes: 1 MB}}}", "bad.csv"),
        ("{graph: graph.json, nodes: 3}", "{pattern: {permutation: {bytes: 1 MB}}}", "a graph has no parameters"),
        ("{preset: clos-h100, graph: graph.json}", "{pattern: {permutation: {bytes: 1 MB}}}", "exactly one of preset"),
        ("{preset: clos-h100}", "{pattern: {permutation: {bytes: 1 Mb}}}", "'Mb'"),
        ("{preset: clos-h100}", "{pattern: {incast: {bytes: 1 MB, sources: 500}}}", "incast"),
    ],
)
def test_bad_network_scenarios_say_where(tmp_path, topology, traffic, says):
    (tmp_path / "graph.json").write_text(json.dumps(LINE))
    write_csv(tmp_path / "bad.csv", ["flow_id", "src", "dst", "bytes", "start_s"], [[1, "x", "y", 1, 0]])
    with pytest.raises(InputError) as caught:
        run(tmp_path, topology, traffic)
    assert says in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("preset", "network", "said"),
    [
        ("clos3-h100", "{routing: spray}", "network.routing.spray: up to 16,384 paths for each transfer"),
        ("clos3-h100", "{routing: {spray: {paths: 64}}}", None),
        ("clos3-h100", "{routing: spray, fidelity: load}", None),
        ("clos-h100", "{routing: spray}", None),
        ("clos3-h100", "{routing: ecmp}", None),
    ],
)
def test_spraying_over_very_many_paths_is_said_to_be_slow(tmp_path, preset, network, said):
    from simulator.build.traffic import plan

    text = f"schema: 1\ntopology: {{preset: {preset}}}\nnetwork: {network}\n"
    (tmp_path / "s.yaml").write_text(f"{text}traffic: {{transfers: [{{source: 0, target: 100, bytes: 1 MB}}]}}\n")
    scenario = load(tmp_path / "s.yaml")
    notes = [note for note in plan(scenario, scenario.traffic).notes if "spray" in note]
    assert len(notes) == (said is not None)
    assert all(note.startswith(said) for note in notes)


@pytest.mark.parametrize(
    ("network", "said"),
    [
        ("{routing: adaptive}", True),
        ("{routing: adaptive, fidelity: load}", False),
        ("{routing: spray}", False),
        ("{routing: ecmp}", False),
    ],
)
def test_a_routing_that_a_plane_does_not_follow_is_named(tmp_path, network, said):
    from simulator.build.serving import plan as plan_serving
    from simulator.build.traffic import plan

    head = f"schema: 1\ntopology: {{preset: cloudmatrix384}}\nnetwork: {network}\n"
    sends = "[{source: 0, target: 100, bytes: 1 MB}, {source: 0, target: 100, bytes: 1 MB, plane: rdma}]"
    (tmp_path / "s.yaml").write_text(f"{head}traffic: {{transfers: {sends}}}\n")
    scenario = load(tmp_path / "s.yaml")
    end = "flows that are bound to a plane are routed by ecmp there, not by adaptive"
    notes = plan(scenario, scenario.traffic).notes
    assert [note for note in notes if note.endswith(end)] == [f"traffic.transfers[1].plane: {end}"] * said
    pools = "prefill: {instances: 1}, decode: {instances: 1}, kv_transfer: {plane: ub}"
    lengths = "prompt_tokens: 9, output_tokens: 9"
    text = f"{head}workload: {{requests: 1, arrivals: {{constant: {{rate: 1 / s}}}}, {lengths}}}\n"
    (tmp_path / "s.yaml").write_text(f"{text}serving: {{model: llama-3.1-8b, {pools}}}\n")
    notes = plan_serving(load(tmp_path / "s.yaml")).notes
    assert [note for note in notes if note.endswith(end)] == [f"serving.kv_transfer.plane: {end}"] * said
