"""The `network:`, `faults:` and the longer forms of `traffic:`: what is refused, and where the error points."""

import pytest

from simulator import load, simulate
from simulator.errors import InputError
from simulator.scenario.load import json_schema, resolved

FLOW = "traffic: {transfers: [{source: 0, target: 9, bytes: 1 MB}]}"


def write(folder, *sections, topology="{preset: clos-h100, nodes: 2}"):
    text = "\n".join(["schema: 1", f"topology: {topology}", *sections]) + "\n"
    (folder / "s.yaml").write_text(text)
    return folder / "s.yaml"


@pytest.mark.parametrize(
    ("sections", "says"),
    [
        (
            ["network: {fidelity: packet}", FLOW],
            "network.fidelity: unknown value 'packet'; allowed: flow, load, alpha_beta",
        ),
        (["network: {routing: spary}", FLOW], "did you mean 'spray'"),
        (["network: {routing: {spray: {paths: 0}}}", FLOW], "network.routing.spray.paths"),
        (
            ["network: {routing: {ecmp: {plane: rail0}}}", FLOW],
            "network.routing.ecmp.plane: unknown plane of clos-h100",
        ),
        (["network: {transport: rocev2}", FLOW], "did you mean 'roce_v2'"),
        (["network: {background: [{tier: spine, share: 0.5}]}", FLOW], "no links of tier 'spine' in clos-h100"),
        (["network: {background: [{tier: nvlink, share: 1}]}", FLOW], "network.background[0].share"),
        (
            ["network: {fidelity: load, background: [{tier: nvlink, share: 0.5}]}", FLOW],
            "goes with `fidelity: flow`, not load",
        ),
        (
            ["network: {background: [{tier: nvlink, share: 0.5}, {tier: nvlink, share: 0.1}]}", FLOW],
            "network.background[1].tier: tier 'nvlink' stands here twice",
        ),
        (["network: {collectives: h100-sxn}", FLOW], "did you mean 'h100-sxm'"),
        (
            ["faults: [{what: switch, name: leaf0.9, at: 1 ms}]", FLOW],
            "faults[0]: unknown switch of clos-h100 'leaf0.9'",
        ),
        (["faults: [{what: link, name: leaf0.0-spine0, at: 1 ms}]", FLOW], "faults[0]: 'leaf0.0-spine0' is no link"),
        (["faults: [{what: switch, at: 1 ms}]", FLOW], "faults[0]: name needed, or `mtbf`"),
        (["faults: [{what: swich, name: x, at: 1 ms}]", FLOW], "did you mean 'switch'"),
        (["faults: [{what: nic, mtbf: 1 h}]", FLOW], "faults[0].mtbf: needs `repair`"),
        (["faults: [{what: nic, mtbf: 1 h, repair: 1 s}]", FLOW], "faults at random need `until`"),
        (["faults: [{what: nic, mtbf: 1 h, repair: 1 s, tier: leaf}]", "until: 1 s", FLOW], "a nic has no tier"),
        (["faults: [{what: nic, mtbf: 1 h, at: 1 s, repair: 1 s}]", "until: 1 s", FLOW], "does not go with `mtbf`"),
        (["faults: [{what: nic, name: node0/nic0, at: 1 ms, left: 1.0}]", FLOW], "faults[0].left"),
        (["traffic: {transfers: [{source: 0, target: 99, bytes: 1 MB}]}"], "traffic.transfers[0]: no end number 99"),
        (
            ["traffic: {transfers: [{source: node0/device0, target: node1/devise0, bytes: 1 MB}]}"],
            "did you mean 'node1/device0'",
        ),
        (
            ["traffic: {transfers: [{source: 0, target: 9, bytes: 1 MB, operation: read}]}"],
            "traffic.transfers[0]: unknown operation of clos-h100",
        ),
        (["traffic: {transfers: [{source: 0, target: 9, bytes: 1 MB, lane: 16}]}"], "traffic.transfers[0].lane"),
        (["traffic: {transfers: [{source: 0, target: 9, bytes: 1 MB, weight: 0}]}"], "traffic.transfers[0].weight"),
        (["traffic: {transfers: [{source: 0, target: 9, bytes: 1 MB, plane: ub}]}"], "unknown plane of clos-h100 'ub'"),
        (["traffic: {flows: s.yaml, pattern: {permutation: {bytes: 1 MB}}}"], "flows and pattern exclude each other"),
        (["traffic: {collectives: [{run: {allreduce: {bytes: 1 MB}}}]}"], "did you mean 'all_reduce'"),
        (
            ["traffic: {collectives: [{run: {all_reduce: {bytes: 1 MB, algorithm: rings}}}]}"],
            "traffic.collectives[0].run.all_reduce.algorithm",
        ),
        (
            ["traffic: {collectives: [{run: {all_reduce: {bytes: 1 MB}}, group: 5}]}"],
            "traffic.collectives[0]: groups of 5 at stride 1 do not tile 16 devices",
        ),
        (
            ["traffic: {collectives: [{run: {all_reduce: {bytes: 1 MB}}, devices: 17}]}"],
            "traffic.collectives[0]: 17 devices of 16",
        ),
        (
            ["traffic: {collectives: [{run: {dispatch: {tokens: 1, experts: 4, top_k: 8, hidden: 64}}}]}"],
            "8 experts per token of 4 experts",
        ),
        (
            ["traffic: {collectives: [{run: {dispatch: {tokens: 1, experts: 17, top_k: 8, hidden: 64}}}]}"],
            "traffic.collectives[0]: 17 experts",
        ),
        (
            ["traffic: {collectives: [{run: {combine: {tokens: 1, experts: 2, top_k: 1, hidden: 64, loads: [1]}}}]}"],
            "loads: 1 values for 2 experts",
        ),
        (
            [
                "traffic: {collectives: [{run: {combine: {tokens: 1, experts: 2, top_k: 1, hidden: 9, placement: "
                "[0, 16]}}}]}"
            ],
            "traffic.collectives[0]: placement: rank 16 of a group of 16",
        ),
        (
            ["traffic: {collectives: [{run: {send_receive: {bytes: 1 MB}}}]}"],
            "traffic.collectives[0]",
        ),
    ],
)
def test_what_is_refused_says_where(tmp_path, sections, says):
    with pytest.raises(InputError) as caught:
        simulate(load(write(tmp_path, *sections)), out=tmp_path / "run")
    assert says in str(caught.value)
    assert not (tmp_path / "run").exists()


ENGINES = """
workload: {requests: 20, arrivals: {poisson: {rate: 40 / s}}, prompt_tokens: {constant: {value: 500}}, output_tokens: \
{constant: {value: 20}}}
"""
POOLS = (
    "{model: llama-3.1-8b, prefill: {instances: 1, layout: {tensor: 8}}, decode: {instances: 1, layout: {tensor: 8}}}"
)
EXPERTS = """{model: deepseek-v3, colocated: {instances: 1, layout: {data: 16, expert: 16}, experts: {placement: eplb, \
rebalance: {interval: 1 s}}}}"""


@pytest.mark.parametrize("fidelity", ["load", "alpha_beta"])
@pytest.mark.parametrize(("what", "name"), [("nic", "node0/nic0"), ("link", "node0/nic0<>leaf0.0")])
def test_caches_do_not_cross_dead_links_where_nothing_is_routed_anew(tmp_path, fidelity, what, name):
    fault = f"{{what: {what}, name: {name}, at: 10 ms, repair: 1 s}}"
    path = write(tmp_path, ENGINES, f"serving: {POOLS}", f"faults: [{fault}]")
    assert simulate(load(path), out=tmp_path / "flow").complete
    with pytest.raises(InputError, match=r"faults\[0\]: with KV caches .* `network.fidelity: flow`") as caught:
        load(path, [f"network.fidelity={fidelity}"])
    assert len(caught.value.problems) == 1
    slower = load(path, [f"network.fidelity={fidelity}", "faults[0].left=0.5"])
    assert simulate(slower, out=tmp_path / "slow").complete


def test_experts_do_not_cross_dead_links_where_nothing_is_routed_anew(tmp_path):
    faults = "faults: [{what: nic, name: node0/nic0, at: 10 ms}]"
    path = write(tmp_path, ENGINES, f"serving: {EXPERTS}", faults)
    load(path)
    with pytest.raises(InputError, match=r"faults\[0\]: with experts that move dead links"):
        load(path, ["network.fidelity=load"])
    load(path, ["network.fidelity=load", "serving.colocated.experts.rebalance.moves=free"])


def test_more_flows_than_memory_holds_are_refused_before_anything_runs(tmp_path):
    section = "traffic: {collectives: [{run: {all_to_all: {bytes: 1 GB, algorithm: direct}}}]}"
    path = write(tmp_path, "network: {collectives: h100-sxm}", section, topology="{preset: clos3-h100}")
    with pytest.raises(InputError, match="16,773,120 flows at once"):
        simulate(load(path), out=tmp_path / "run")
    lower = simulate(load(path, ["network.fidelity=load"]), out=tmp_path / "run")
    assert lower.summary["collectives"]["completed"] == 1
    path = write(tmp_path, "traffic: {pattern: {all_to_all: {bytes: 1 MB}}}", topology="{preset: clos3-h100}")
    with pytest.raises(InputError, match="16,773,120 flows at once"):
        simulate(load(path), out=tmp_path / "other")


def test_what_is_resolved_loads_back_equal(tmp_path):
    sections = [
        "network: {routing: {spray: {paths: 4}}, transport: {roce_v2: {message_latency: 1 us}}, background: "
        "[{tier: nvlink, share: 0.5}]}",
        "faults: [{what: nic, name: node0/nic0, at: 1 ms, repair: 1 s, left: 0.5}]",
        "traffic: {transfers: [{source: node0/device0, target: 9, bytes: 1 MB, cap: 1 GB/s}], collectives: [{run: "
        "{all_reduce: {bytes: 1 MB}}, group: 8}, {run: {dispatch: {tokens: 4, experts: 16, top_k: 2, hidden: 64}}}]}",
    ]
    scenario = load(write(tmp_path, *sections))
    (tmp_path / "again.yaml").write_text(resolved(scenario, tmp_path))
    assert load(tmp_path / "again.yaml") == scenario


def test_the_schema_knows_the_sections():
    definitions = json_schema()["$defs"]
    assert {"network", "faults", "traffic"} <= definitions["Scenario"]["properties"].keys()
    assert definitions["FaultSection"]["properties"]["left"]["description"].startswith("Share of the capacity")
