"""Scenarios of `traffic:` with what flows may ask for (planes, lanes, caps, operations), and with what breaks."""

import json

import pytest

from simulator import load, simulate
from simulator.errors import InputError

LINE = {  # a>b at 1 GB/s and 1 us, b>c likewise
    "directed": True,
    "nodes": [{"id": n} for n in "abc"],
    "edges": [{"source": s, "target": t, "bandwidth_Bps": 10**9, "latency_s": 1e-6} for s, t in ("ab", "bc")],
}


def run(folder, topology, *sections, overrides=()):
    (folder / "line.json").write_text(json.dumps(LINE))
    (folder / "s.yaml").write_text("\n".join(["schema: 1", f"topology: {topology}", *sections]) + "\n")
    return simulate(load(folder / "s.yaml", overrides), out=folder / "run", check=True)


def flows(found):
    return found.table("flows").to_pandas().set_index("flow_id").sort_index()


def took_ns(found):
    rows = flows(found)
    return (rows.finish_ns - rows.start_ns).tolist()


def test_lanes_are_strict(tmp_path):
    # B bytes in lane 0 and in lane 1 over one link of C: the first takes B/C, the second 2 B/C; L before each.
    text = "traffic: {transfers: [{source: a, target: b, bytes: 1 MB, lane: 1}, {source: a, target: b, bytes: 1 MB}]}"
    found = run(tmp_path, "{graph: line.json}", text)
    assert took_ns(found) == [2_001_000, 1_001_000]


def test_the_lane_of_the_traffic_is_that_of_flows_that_name_none(tmp_path):
    text = "traffic: {lane: 3, transfers: [{source: a, target: b, bytes: 1 MB}, "
    text += "{source: a, target: b, bytes: 1 MB, lane: 0}]}"
    assert took_ns(run(tmp_path, "{graph: line.json}", text)) == [2_001_000, 1_001_000]


def test_weights_divide_and_caps_bound(tmp_path):
    # weights 3:1 on C = 1 GB/s: rates 750 and 250 MB/s; the first has 3 MB, the second 1 MB: both end after 4 ms.
    text = (
        "traffic: {transfers: [{source: a, target: b, bytes: 3 MB, weight: 3.0}, {source: a, target: b, bytes: 1 MB}]}"
    )
    assert took_ns(run(tmp_path, "{graph: line.json}", text)) == [4_001_000, 4_001_000]
    # a cap of 100 MB/s leaves 900 to the other: 1 MB takes 10 ms, 9 MB takes 10 ms.
    text = "traffic: {transfers: [{source: a, target: b, bytes: 1 MB, cap: 100 MB/s}, "
    text += "{source: a, target: b, bytes: 9 MB}]}"
    found = run(tmp_path, "{graph: line.json}", text)
    assert took_ns(found) == [10_001_000, 10_001_000]
    assert flows(found).ideal_ns.tolist() == [10_001_000, 9_001_000]


def test_a_csv_may_ask_for_the_same(tmp_path):
    (tmp_path / "f.csv").write_text(
        "flow_id,src,dst,bytes,start_s,path,lane,weight,cap_Bps\n"
        "5,a,b,1000000,0,a>b,1,,\n6,a,b,1000000,0,,0,,\n7,a,c,1000000,0.01,,,,100000000\n"
    )
    found = run(tmp_path, "{graph: line.json}", "traffic: {flows: f.csv}")
    assert took_ns(found) == [2_001_000, 1_001_000, 10_002_000]


def test_background_leaves_the_rest(tmp_path):
    # 60 % of every link is taken: 1 MB at 400 MB/s.
    sections = [
        "network: {background: [{tier: graph, share: 0.6}]}",
        "traffic: {transfers: [{source: a, target: b, bytes: 1 MB}]}",
    ]
    assert took_ns(run(tmp_path, "{graph: line.json}", *sections)) == [2_501_000]


def test_a_pattern_goes_beside_transfers_with_numbers_of_its_own(tmp_path):
    text = "traffic: {transfers: [{source: 0, target: 9, bytes: 1 MB}], pattern: {permutation: {bytes: 1 MB}}}"
    found = run(tmp_path, "{preset: clos-h100, nodes: 2}", text)
    assert flows(found).index.tolist() == list(range(17))


@pytest.mark.parametrize(
    ("plane", "rate", "extra_ns"),
    # B = 100 MB alone, at the narrowest: seven links of 28 GB/s (in whole bytes), 25 GB/s of a die, 50 GB/s of a node
    [("ub", 196e9, 0), ("rdma", 25e9, 0), ("vpc", 50e9, 0)],
)
def test_a_plane_carries_what_asks_for_it(tmp_path, plane, rate, extra_ns):
    text = f"traffic: {{transfers: [{{source: node0/npu0.0, target: node1/npu0.0, bytes: 100 MB, plane: {plane}}}]}}"
    found = run(tmp_path, "{preset: cloudmatrix384}", text)
    latency_ns = took_ns(found)[0] - 100e6 / rate * 1e9
    assert 500 < latency_ns < 12_000
    tiers = {row.tier for row in found.table("links").to_pandas().itertuples()}
    assert any(tier.startswith(plane if plane != "ub" else "l1") for tier in tiers)


def test_an_operation_is_as_fast_as_published(tmp_path):
    # NPU to NPU within a node, one way: reads 167 GB/s, writes 137 GB/s and 0.1 us more (arXiv 2506.12708v2).
    times = {}
    for operation in ("read", "write"):
        flow = f"{{source: node0/npu0.0, target: node0/npu1.0, bytes: 1 GB, operation: {operation}}}"
        text = f"traffic: {{transfers: [{flow}]}}"
        found = run(tmp_path, "{preset: cloudmatrix384}", text)
        times[operation] = took_ns(found)[0]
        assert took_ns(found) == pytest.approx(flows(found).ideal_ns.tolist(), abs=10)
    assert times["read"] == pytest.approx(1e9 / 167, abs=3_000)
    assert times["write"] == pytest.approx(1e9 / 137, abs=3_000)


def test_via_passes_the_ends_in_turn(tmp_path):
    by_hand = "{source: node0/npu0.0, target: node1/npu0.0, bytes: 100 MB, plane: vpc, via: [node0/cpu0, node1/cpu0]}"
    by_relay = "{source: node0/npu0.0, target: node1/npu0.0, bytes: 100 MB, plane: vpc}"
    times = [
        took_ns(run(tmp_path, "{preset: cloudmatrix384}", f"traffic: {{transfers: [{text}]}}"))
        for text in (by_hand, by_relay)
    ]
    assert times[0] == times[1]


FOUR = "traffic: {transfers: [{source: 0, target: 8, bytes: 100 MB}], on_dead_link: POLICY}"


@pytest.mark.parametrize(
    ("policy", "expected_ns"),
    # 100 MB at 50 GB/s take 2 ms; the NIC dies after 1 ms for 10 ms; there is no way round it, the rest waits
    [("fail", None), ("stall", 12_000_000), ("reroute", 12_000_000)],
)
def test_a_nic_dies_and_is_repaired(tmp_path, policy, expected_ns):
    faults = "faults: [{what: nic, name: node0/nic0, at: 1 ms, repair: 10 ms}]"
    found = run(tmp_path, "{preset: clos-h100, nodes: 2}", faults, FOUR.replace("POLICY", policy))
    row = flows(found).iloc[0]
    assert bool(row.completed) == (expected_ns is not None)
    if expected_ns is not None:
        assert row.finish_ns == pytest.approx(expected_ns, abs=20_000)
    kinds = found.events.kind.tolist()
    assert kinds == (["fault"] if policy == "fail" else ["fault", "repair"])


def test_a_lost_plane_is_passed_by_relay(tmp_path):
    # 8 planes: a flow within plane 0 loses it after 1 of 2 ms and goes on over NVLink and another plane at once.
    faults = "faults: [{what: plane, name: plane0, at: 1 ms}]"
    found = run(tmp_path, "{preset: multi-plane-h800, nodes: 2}", faults, FOUR.replace("POLICY", "reroute"))
    assert flows(found).iloc[0].finish_ns == pytest.approx(2_000_000, abs=20_000)
    links = found.table("links").to_pandas()
    assert links[links.tier == "nvlink"].bytes.sum() > 0


def test_ends_that_nothing_joins_are_what_a_collective_lacks(tmp_path):
    text = "traffic: {collectives: [{run: {all_to_all: {bytes: 1 MB, algorithm: direct}}}]}"
    with pytest.raises(
        InputError, match=r"all_to_all \(direct\) needs ways between ranks that no working network joins"
    ):
        run(tmp_path, "{preset: multi-plane-h800, nodes: 2, relay: false}", text)


def test_a_degraded_link_slows_by_its_share(tmp_path):
    # half of C is left from 1 of 2 ms on: the second half takes twice as long
    faults = "faults: [{what: link, name: node0/nic0>leaf0.0, at: 1 ms, left: 0.5}]"
    found = run(tmp_path, "{preset: clos-h100, nodes: 2}", faults, FOUR.replace("POLICY", "fail"))
    assert flows(found).iloc[0].finish_ns == pytest.approx(3_000_000, abs=20_000)


def test_faults_after_the_end_are_told(tmp_path):
    faults = "faults: [{what: nic, name: node0/nic0, at: 1 h}]"
    found = run(tmp_path, "{preset: clos-h100, nodes: 2}", faults, FOUR.replace("POLICY", "fail"))
    assert any("come after the end" in warning for warning in found.summary["warnings"])
    assert found.summary["simulated_s"] < 1


def test_random_faults_are_the_same_again_and_another_with_another_seed(tmp_path):
    sections = [
        "until: 200 ms",
        "faults: [{what: link, tier: nic-leaf, mtbf: 1 s, repair: 5 ms}]",
        "traffic: {pattern: {permutation: {bytes: 1 GB}}, on_dead_link: stall}",
    ]
    digests = []
    for number, seed in enumerate((1, 1, 2)):
        (tmp_path / str(number)).mkdir()
        found = run(tmp_path / str(number), "{preset: clos-h100, nodes: 4}", *sections, overrides=[f"seed={seed}"])
        digests.append(found.manifest["digest"])
        assert (found.events.kind == "fault").sum() > 0
    assert digests[0] == digests[1] != digests[2]


def test_engines_wait_for_a_nic_that_comes_back(tmp_path):
    text = "faults: [{what: nic, name: node0/nic0, at: 1 s, repair: 20 s}, "
    text += "{what: nic, name: node1/nic4, at: 30 s, repair: 5 s}]"
    (tmp_path / "s.yaml").write_text(f"schema: 1\nbase: quickstart\n{text}\n")
    found = simulate(load(tmp_path / "s.yaml"), out=tmp_path / "run", check=True)
    assert found.summary["requests"]["finished"] == 2000
    assert found.events.kind.tolist().count("fault") == 2


def test_spraying_is_never_slower_than_hashing_for_a_permutation(tmp_path):
    text = "traffic: {pattern: {permutation: {bytes: 100 MB}}}"
    longest = {
        routing: run(
            tmp_path, "{preset: clos-h100, attachment: node}", f"network: {{routing: {routing}}}", text
        ).summary["fct"]["max"]
        for routing in ("ecmp", "adaptive", "spray", "valiant", "rail_aligned")
    }
    # non-blocking: sprayed, every flow has its NIC for itself, B / 50 GB/s
    assert longest["spray"] == pytest.approx(2e-3, rel=0.01)
    assert longest["ecmp"] > 1.5 * longest["spray"]
    assert longest["spray"] <= longest["adaptive"] < longest["ecmp"]


def test_a_collective_in_the_background_takes_its_share_of_the_links(tmp_path):
    # One rank a node, m = 500 MB: the ring of 2 puts 2 (n - 1) / n m = m on each NIC of C = 50 GB/s, 10 ms of it.
    # In the background it takes all of the NIC for its 10 ms, so a flow of 50 MB (1 ms alone) over it ends after 11 ms.
    text = (
        "{transfers: [{source: 0, target: 1, bytes: 50 MB}], collectives: [{run: {all_reduce: {bytes: 500 MB, "
        "algorithm: ring}}, sharing: background}]}"
    )
    topology = "{preset: clos-h100, nodes: 2, devices_per_node: 1, attachment: node}"
    found = run(tmp_path, topology, "network: {collectives: ideal}", f"traffic: {text}")
    assert took_ns(found)[0] == pytest.approx(11e6, abs=20_000)
    row = found.table("collectives").to_pandas().iloc[0]
    assert row.finish_ns - row.start_ns == row.ideal_ns == pytest.approx(10e6, abs=20_000)
    # as flows the two share the NIC: the flow has half of it, 2 ms; the ring loses 1 ms
    shared = run(tmp_path, topology, "network: {collectives: ideal}", f"traffic: {text.replace('background', 'flows')}")
    assert took_ns(shared)[0] == pytest.approx(2e6, abs=20_000)
    row = shared.table("collectives").to_pandas().iloc[0]
    assert row.finish_ns - row.start_ns == pytest.approx(11e6, abs=30_000)


def test_collectives_repeat_with_gaps_and_say_how_they_went(tmp_path):
    text = "traffic: {collectives: [{run: {all_gather: {bytes: 64 MB}}, group: 8, start: 1 ms, repeat: 3, gap: 2 ms}]}"
    found = run(tmp_path, "{preset: clos-h100, nodes: 2}", text)
    rows = found.table("collectives").to_pandas()
    assert rows.groups.tolist() == [2, 2, 2]
    assert rows.ranks.tolist() == [8, 8, 8]
    assert rows["repeat"].tolist() == [0, 1, 2]
    assert rows.start_ns.iloc[0] == 1_000_000
    assert (rows.start_ns.iloc[1:].to_numpy() - rows.finish_ns.iloc[:-1].to_numpy() == 2_000_000).all()
    assert (rows.finish_ns - rows.start_ns).tolist() == pytest.approx(rows.ideal_ns.tolist(), abs=2)
    [line] = found.summary["collectives"]["runs"]
    # nccl-tests: bus bandwidth of an all-gather is (n - 1) / n of its output over its time
    assert line["bus_bytes_per_s"] == pytest.approx(7 / 8 * 64e6 / line["mean_s"])


def test_a_collective_that_loses_its_link_is_a_row_that_did_not_complete(tmp_path):
    faults = "faults: [{what: nic, name: node0/nic0, at: 1 ms}]"
    text = "traffic: {collectives: [{run: {all_reduce: {bytes: 1 GB}}, repeat: 2}], on_dead_link: POLICY}"
    failed = run(tmp_path, "{preset: clos-h100, nodes: 2}", faults, text.replace("POLICY", "fail"))
    rows = failed.table("collectives").to_pandas()
    assert rows.completed.tolist() == [False, False]
    assert rows.finish_ns.iloc[0] == 1_000_000
    stalled = run(tmp_path, "{preset: clos-h100, nodes: 2}", faults, text.replace("POLICY", "stall"))
    rows = stalled.table("collectives").to_pandas()
    assert rows.completed.tolist() == [False]
    assert rows.finish_ns.isna().tolist() == [True]
    assert any("under way, or stalled" in warning for warning in stalled.summary["warnings"])


def test_an_exchange_of_experts_is_slower_when_they_are_unequally_loaded(tmp_path):
    text = (
        "{tokens: 128, experts: 256, top_k: 8, hidden: 7168, value_bits: 8, scale_block: 128, SKEW form: low_latency}"
    )
    times = {}
    for name, skew in (("even", ""), ("skewed", "skew: {exponent: 0.7},")):
        section = f"traffic: {{collectives: [{{run: {{dispatch: {text.replace('SKEW', skew)}}}}}]}}"
        found = run(tmp_path, "{preset: multi-plane-h800, nodes: 4}", "network: {collectives: h800-sxm}", section)
        times[name] = found.summary["collectives"]["time"]["max"]
    # DeepEP's published table, EP32: 155 us (the constants are fitted on it)
    assert times["even"] == pytest.approx(155e-6, rel=0.05)
    assert times["skewed"] > 1.05 * times["even"]


def test_experts_stand_where_they_are_placed_and_are_loaded_as_measured(tmp_path):
    # One node of 8, two experts a rank, one chosen by each token. All load on the experts of rank 0, half on each: it
    # gets the 7 x 128 tokens of the others, 8 times what it gets of equal loads (7 x 128 / 8).
    loads = "[1, 1" + ", 0" * 14 + "]"
    placement = "[" + ", ".join(str(expert // 2) for expert in range(16)) + "]"
    text = f"{{tokens: 128, experts: 16, top_k: 1, hidden: 4096, placement: {placement}, LOADS form: low_latency}}"
    took = []
    for given in ("", f"loads: {loads},"):
        section = f"traffic: {{collectives: [{{run: {{dispatch: {text.replace('LOADS', given)}}}}}]}}"
        found = run(tmp_path, "{preset: dgx-h100}", "network: {collectives: ideal}", section)
        took.append(found.table("collectives").to_pandas().iloc[0])
    even, hot = ((row.finish_ns - row.start_ns) for row in took)
    assert even == pytest.approx(128 * 7 / 8 * 8192 / 450, rel=0.01)
    assert hot == pytest.approx(8 * even, rel=0.01)


def test_engines_move_their_caches_at_every_fidelity(tmp_path):
    # alone in closed form <= shared max-min fairly; and the bound of all that starts with it >= alone
    means = {}
    for fidelity in ("flow", "load", "alpha_beta"):
        (tmp_path / "s.yaml").write_text(f"schema: 1\nbase: quickstart\nnetwork: {{fidelity: {fidelity}}}\n")
        found = simulate(load(tmp_path / "s.yaml"), out=tmp_path / fidelity, check=True)
        assert found.summary["requests"]["finished"] == 2000
        means[fidelity] = found.summary["kv_transfer"]["mean"]
    assert 0 < means["alpha_beta"] <= min(means["flow"], means["load"])


@pytest.mark.parametrize("fidelity", ["flow", "load", "alpha_beta"])
@pytest.mark.parametrize(("plane", "rate"), [("ub", 196e9), ("rdma", 25e9), ("vpc", 50e9 / 16)])
def test_a_plane_that_carries_all_is_known_at_every_fidelity(tmp_path, fidelity, plane, rate):
    # 16 dies of a node send B = 100 MB each to the next node: by UB or RDMA each has a way of its own, by VPC they
    # share the one of their node
    network = f"network: {{fidelity: {fidelity}, routing: {{spray: {{plane: {plane}}}}}, collectives: ideal}}"
    text = "traffic: {collectives: [{run: {send_receive: {bytes: 100 MB}}, devices: 32, group: 2, stride: 16}]}"
    found = run(tmp_path, "{preset: cloudmatrix384}", network, text)
    row = found.table("collectives").to_pandas().iloc[0]
    shared = rate if fidelity != "alpha_beta" or plane != "vpc" else 50e9  # each group by itself knows no other
    assert row.finish_ns - row.start_ns == pytest.approx(100e6 / shared * 1e9, rel=0.02)
    assert row.ideal_ns == pytest.approx(100e6 / (50e9 if plane == "vpc" else rate) * 1e9, rel=0.02)


def test_a_sprayed_flow_claims_no_more_than_a_flow_of_one_path(tmp_path):
    # Two flows of B leave one NIC of C: one within its leaf over one path, one sprayed over all spines. Each has C / 2.
    text = "traffic: {transfers: [{source: 0, target: 8, bytes: 100 MB}, {source: 0, target: 9, bytes: 100 MB}]}"
    found = run(tmp_path, "{preset: clos-h100, nodes: 2}", "network: {routing: spray}", text)
    assert took_ns(found) == pytest.approx([4e6, 4e6], rel=0.01)


def test_links_that_carry_more_than_they_can_at_a_lower_fidelity_are_told(tmp_path):
    # two flows of B over one link, 0.1 B/C apart: each takes B/C as if alone, so the link carries 2 B in 1.1 B/C
    text = "{transfers: [{source: a, target: b, bytes: 1 MB}, {source: a, target: b, bytes: 1 MB, start: 100 us}]}"
    for fidelity, told in (("load", True), ("alpha_beta", True), ("flow", False)):
        found = run(tmp_path, "{graph: line.json}", f"network: {{fidelity: {fidelity}}}", f"traffic: {text}")
        assert any("1 links carried more" in warning for warning in found.summary["warnings"]) == told
        assert took_ns(found)[0] == (1_901_000 if fidelity == "flow" else 1_001_000)


def test_what_only_flows_heed_is_told_at_a_lower_fidelity(tmp_path):
    text = "traffic: {lane: 1, on_dead_link: stall, transfers: [{source: a, target: b, bytes: 1 MB, weight: 2.0}]}"
    for fidelity, told in (("load", 3), ("flow", 0)):
        found = run(tmp_path, "{graph: line.json}", f"network: {{fidelity: {fidelity}}}", text)
        assert sum("no effect at fidelity" in warning for warning in found.summary["warnings"]) == told


def test_adaptive_flows_take_cables_of_their_own_as_long_as_there_are_some(tmp_path):
    # 16 devices of two nodes under one leaf send B each to 16 of another: as many cables lead up as down, and with all
    # paths compared each flow finds one that is free both ways, so it takes B / C; hashed, some share.
    sends = ", ".join(f"{{source: {i}, target: {64 + i}, bytes: 100 MB, start: {i} us}}" for i in range(16))
    longest = {}
    for routing in ("{adaptive: {candidates: 1000}}", "ecmp"):
        network = f"network: {{routing: {routing}}}"
        found = run(tmp_path, "{preset: clos-h100, attachment: node}", network, f"traffic: {{transfers: [{sends}]}}")
        longest[routing] = found.summary["slowdown"]["max"]
    assert longest["{adaptive: {candidates: 1000}}"] == pytest.approx(1, rel=1e-6)
    assert longest["ecmp"] > 1.5


def test_adaptive_routing_forgets_flows_that_end_fail_or_go_another_way(tmp_path):
    # `check` compares the counts with the flows under way after every couple of thousand events, and at the end
    for policy in ("fail", "stall", "reroute"):
        found = run(
            tmp_path,
            "{preset: clos-h100, attachment: node}",
            "network: {routing: adaptive}",
            "until: 20 ms",
            "faults: [{what: link, tier: leaf-spine, mtbf: 5 ms, repair: 1 ms}]",
            "traffic: {pattern: {poisson: {flows: 2000, load: 0.5, sizes: {constant: {value: 10 MB}}}}, "
            f"on_dead_link: {policy}}}",
        )
        assert found.summary["flows"]["completed"] > 0


@pytest.mark.parametrize("fidelity", ["flow", "load", "alpha_beta"])
def test_groups_that_a_dead_node_cuts_off_are_rows_at_every_fidelity(tmp_path, fidelity):
    # eight groups along the rails of four nodes: without node 2 none is whole, nor are all groups of one node each
    runs = "{run: {all_gather: {bytes: 64 MB}}, group: 4, stride: 8, start: 2 ms}, "
    runs += "{run: {all_gather: {bytes: 64 MB}}, group: 8, start: 10 ms}, {run: {all_gather: {bytes: 64 MB}}, group: 8}"
    faults = 'faults: [{what: node, name: "2", at: 1 ms}]'
    network = f"network: {{fidelity: {fidelity}}}"
    found = run(tmp_path, "{preset: clos-h100, nodes: 4}", network, faults, f"traffic: {{collectives: [{runs}]}}")
    rows = found.table("collectives").to_pandas().sort_values("run")
    assert rows.completed.tolist() == [False, False, True]
    links = found.table("links").to_pandas()
    assert links[links.tier == "nvlink"].bytes.sum() > 0


def test_links_carry_the_same_bytes_at_every_fidelity(tmp_path):
    totals = []
    for fidelity in ("flow", "load", "alpha_beta"):
        text = "traffic: {collectives: [{run: {all_reduce: {bytes: 64 MB, algorithm: ring}}}]}"
        found = run(tmp_path, "{preset: clos-h100, nodes: 2}", f"network: {{fidelity: {fidelity}}}", text)
        totals.append(found.table("links").to_pandas().groupby("tier").bytes.sum())
    for total in totals[1:]:
        assert total.tolist() == pytest.approx(totals[0].tolist(), rel=1e-6)


@pytest.mark.parametrize("fidelity", ["load", "alpha_beta"])
def test_below_flow_no_hash_collides_on_a_plane_that_a_flow_names(tmp_path, fidelity):
    # Six flows out of a leaf with eight cables up, each at the rate of its NIC.
    def times(plane):
        ends = [f"{{source: {8 * i}, target: {8 * i + 64}, bytes: 50 MB{plane}}}" for i in range(6)]
        text = f"network: {{fidelity: {fidelity}}}\ntraffic: {{transfers: [{', '.join(ends)}]}}"
        return took_ns(run(tmp_path, "{preset: clos-h100, nodes: 16, switch: {radix: 16}}", text))

    assert times(", plane: fabric") == times("") == [1_003_700] * 6
