"""Collectives of engines and the rest of the network: what they leave to caches, what faults and background leave them.

Symbols: an engine of two nodes sends S bytes a rank to the other node in a step of T; its NIC has C. A cache that
leaves meanwhile by the same NIC has C - S / T.
"""

from unittest import mock

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from simulator import execution, load, simulate
from simulator.build.serving import plan
from simulator.clock import Clock
from simulator.model.forward import Work
from simulator.model.operators import Collective
from simulator.network.collectives_shape import group_shape
from simulator.network.fabric import Fabric
from simulator.topology import build_topology

NIC = 50e9
PREFILL = "{instances: 1, layout: {tensor: 16}, batcher: {continuous: {max_batch_tokens: 4096}}}"
SCENARIO = f"""
schema: 1
seed: 3
topology: {{preset: clos-h100, nodes: 4}}
network: {{routing: spray}}
workload:
  requests: 2
  arrivals: {{poisson: {{rate: 1000000 / s}}}}
  prompt_tokens: 4000
  output_tokens: 200
serving:
  model: llama-3.1-70b
  prefill: {PREFILL}
  decode: {{instances: 1, layout: {{tensor: 8}}}}
"""
MOE = """
schema: 1
seed: 3
topology: {preset: clos-h100, nodes: 3}
workload:
  requests: 24
  arrivals: {poisson: {rate: 40 / s}}
  prompt_tokens: {lognormal: {median: 2000, sigma: 0.5, max: 6000}}
  output_tokens: {lognormal: {median: 150, sigma: 0.3, max: 400}}
serving:
  model: qwen3-235b-a22b
  prefill: {instances: 1, layout: {data: 8, expert: 8}}
  decode: {instances: 1, layout: {data: 16, expert: 16}}
"""


def run(tmp_path, *overrides, name="run", text=SCENARIO):
    path = tmp_path / "scenario.yaml"
    path.write_text(text)
    return simulate(load(path, overrides), out=tmp_path / name, check=True)


def cost_of(tmp_path, *overrides, text=SCENARIO, group=0):
    path = tmp_path / "planned.yaml"
    path.write_text(text)
    return plan(load(path, overrides)).groups[group].engine.cost


def happened(found):
    return [(e.time_ns, e.kind, e.subject) for e in found.events.itertuples() if e.kind != "lease"]


def per_token_ns(found, since_ns=0, until_ns=1 << 62):
    rows = found.requests
    rows = rows[(rows.first_token_ns >= since_ns) & (rows.finish_ns < until_ns)]
    return ((rows.finish_ns - rows.first_token_ns) / (rows.output_tokens - 1)).mean()


def test_a_cache_has_what_the_collectives_of_the_next_prompt_leave(tmp_path):
    cost = cost_of(tmp_path)
    work = Work(4000, 4000 * 4001 // 2, 1)
    lasts_ns = cost.step_ns(work)
    share = cost.sent_bytes([work]) / (lasts_ns * 1e-9) / NIC
    assert 0.1 < share < 0.9
    first, last = run(tmp_path).requests.sort_values("prefill_end_ns").itertuples()
    assert last.prefill_end_ns - first.prefill_end_ns == pytest.approx(lasts_ns, abs=1)
    # 16 ranks hold eight heads twice, and one copy leaves: eight flows, each by a NIC of its own
    head = 4000 * 80 * 2 * 128 * 2
    assert first.kv_transfer_bytes == 8 * head
    alone_ns = head / NIC * 1e9
    latency_ns = last.kv_transfer_ns - alone_ns
    assert 3000 < latency_ns < 6000
    assert first.kv_transfer_ns - latency_ns == pytest.approx(alone_ns / (1 - share), abs=1)


def test_what_a_step_sends_by_hand(tmp_path):
    """Two all-reduces a layer of 4,000 x 8,192 values: the sums of a node go to the other, an eighth by each NIC."""
    cost = cost_of(tmp_path)
    collectives = cost.links.collectives
    size = 4000 * 8192 * 2
    choice = collectives.choose("all_reduce", range(16), size)
    assert choice.algorithm == "in_switch"
    [kernel] = [k for name, k in collectives.constants.kernels["in_switch"].items() if name == choice.protocol]
    one = 2 * 1 / 2 * size / 8 / kernel.network_share
    assert cost.sent_bytes([Work(4000, 8_002_000, 1)]) == pytest.approx(160 * one, rel=0.01)  # embedding and logits


def test_the_mean_over_a_step_is_what_bursts_come_to():
    """A flow by a link that is taken whole for 30 us of every 100, and by one that has 70 % all along."""
    topology = build_topology("clos-h100", {"nodes": 2})
    size, period_ns, on_ns = 400_000_000, 100_000, 30_000
    links = [link.index for link in topology.links if link.tier == "nic-leaf"]

    def moved(bursts):
        env = Clock()
        fabric = Fabric(env, topology, 1)
        done = fabric.transfer([(0, 8, size)])

        def toggles():
            while not done.triggered:
                fabric.set_background(links, "engines", 1.0)
                yield env.timeout(on_ns)
                fabric.set_background(links, "engines", 0.0)
                yield env.timeout(period_ns - on_ns)

        if bursts:
            env.process(toggles())
        else:
            fabric.set_background(links, "engines", on_ns / period_ns)
        env.run(until=done)
        return env.now

    assert moved(False) == pytest.approx(size / (0.7 * NIC) * 1e9, rel=1e-3)
    assert abs(moved(True) - moved(False)) <= period_ns


def test_other_fidelities_say_that_they_do_not_share(tmp_path):
    found = run(tmp_path, "network.fidelity=alpha_beta", "network.routing=spray")
    first, last = found.requests.sort_values("prefill_end_ns").itertuples()
    assert first.kv_transfer_ns == last.kv_transfer_ns
    assert any("do not share links" in note for note in found.summary["warnings"])


def test_engines_within_nodes_are_as_ever(tmp_path):
    """Nothing of them goes where caches do."""
    text = SCENARIO.replace("tensor: 16", "tensor: 8")
    first, last = run(tmp_path, text=text).requests.sort_values("prefill_end_ns").itertuples()
    assert first.kv_transfer_ns == last.kv_transfer_ns


def test_background_is_as_narrower_links(tmp_path):
    """Half of all links between nodes taken: collectives and caches as on NICs of half the bandwidth."""
    tiers = ", ".join(f"{{tier: {tier}, share: 0.5}}" for tier in ("nic-leaf", "leaf-spine"))
    taken = run(tmp_path, f"network.background=[{tiers}]", name="taken", text=MOE).requests
    narrow = run(tmp_path, "topology.link.bandwidth=200 Gbps", name="narrow", text=MOE).requests
    whole = run(tmp_path, name="whole", text=MOE).requests
    for column in ("prefill_end_ns", "kv_transfer_ns", "finish_ns"):
        assert (taken[column] - narrow[column]).abs().max() <= 2
    assert (taken.finish_ns > whole.finish_ns).all()


@pytest.mark.parametrize("left", [0.5, 0.25])
def test_a_slow_nic_sets_the_pace_until_it_is_repaired(tmp_path, left):
    """The exchange of all ranks goes at the pace of the slowest way out; the rest of a step stays."""
    fault = f"faults=[{{what: nic, name: node1/nic0, at: 0 s, left: {left}, repair: 1 h}}]"
    hurt = run(tmp_path, fault, name="hurt", text=MOE)
    cost = cost_of(tmp_path, text=MOE, group=1)
    collectives = cost.links.collectives
    slow = type(collectives)(
        collectives.topology,
        collectives.constants,
        capacities=[
            c * (left if "node1/nic0" in (k.source, k.target) else 1)
            for c, k in zip(collectives.capacities, collectives.topology.links, strict=True)
        ],
    )
    shape = Collective("dispatch", 1e7, 16, "expert", choices=8)
    before, after = cost.links(shape), type(cost.links)(slow, cost.links.layout, cost.links.devices)(shape)
    assert after.link_ns == pytest.approx(before.link_ns / left)
    slowed = cost.relinked(type(cost.links)(slow, cost.links.layout, cost.links.devices))
    whole = run(tmp_path, name="whole", text=MOE)
    assert per_token_ns(hurt) > per_token_ns(whole)
    # alone, a request's steps are those of the slowed cost
    one = ["workload.requests=1", "workload.prompt_tokens=1000", "workload.output_tokens=101"]
    [row] = run(tmp_path, fault, *one, name="one", text=MOE).requests.itertuples()
    steps = [slowed.decode_together([1] + [0] * 15).at(_contexts(1001 + n))[0] for n in range(100)]
    assert row.finish_ns - row.decode_start_ns == pytest.approx(sum(steps), abs=2)
    assert sum(steps) > 1.001 * sum(cost.decode_together([1] + [0] * 15).at(_contexts(1001 + n))[0] for n in range(100))
    assert [kind for _, kind, _ in happened(hurt)] == ["fault", "engine retimed"]


def _contexts(context):
    return np.array([[context] + [0] * 15])


def test_after_the_repair_all_is_as_it_was(tmp_path):
    one = ["workload.requests=1", "workload.prompt_tokens=1000", "workload.output_tokens=1500"]
    path = "faults=[{what: nic, name: node1/nic0, at: 2 s, left: 0.2, repair: 3 s}]"
    hurt = run(tmp_path, *one, path, name="hurt", text=MOE)
    assert happened(hurt) == [
        (2_000_000_000, "fault", "node1/nic0"),
        (2_000_000_000, "engine retimed", "decode-0"),
        (5_000_000_000, "repair", "node1/nic0"),
        (5_000_000_000, "engine retimed", "decode-0"),
    ]
    late = run(tmp_path, *one, path.replace("2 s", "1 h"), name="late", text=MOE)
    assert hurt.requests.finish_ns[0] > late.requests.finish_ns[0]


def test_an_engine_without_a_way_between_its_ranks_waits_for_the_repair(tmp_path):
    """Of three seconds without its NIC, a request of an engine loses all but the step under way."""
    one = ["workload.requests=1", "workload.prompt_tokens=1000", "workload.output_tokens=400"]
    path = "faults=[{what: nic, name: node2/nic3, at: 2 s, repair: 3 s}]"
    whole = run(tmp_path, *one, path.replace("at: 2 s", "at: 1 h"), name="whole", text=MOE).requests
    assert whole.decode_start_ns[0] < 2e9 < whole.finish_ns[0]
    hurt = run(tmp_path, *one, path, name="hurt", text=MOE)
    step_ns = per_token_ns(type("Rows", (), {"requests": whole}))
    lost = hurt.requests.finish_ns[0] - whole.finish_ns[0]
    assert 3e9 - 1.1 * step_ns <= lost <= 3e9
    assert happened(hurt)[1:] == [
        (2_000_000_000, "engine halted", "decode-0"),
        (5_000_000_000, "repair", "node2/nic3"),
        (5_000_000_000, "engine goes on", "decode-0"),
    ]


def test_for_good_without_a_way_requests_are_unfinished_and_say_so(tmp_path):
    found = run(tmp_path, "faults=[{what: nic, name: node2/nic3, at: 1 s}]", text=MOE)
    assert found.summary["requests"]["unfinished"] > 0
    assert sum(found.requests.outcome.value_counts()) == 24


def test_collectives_that_ask_more_of_a_link_than_it_has_are_named(tmp_path):
    """Six engines of two nodes, whose ways meet in spines with a quarter of what the leaves have."""
    text = MOE.replace("nodes: 3", "nodes: 16, taper: 4")
    text = text.replace("prefill: {instances: 1, layout: {data: 8, expert: 8}}", "prefill: {instances: 6, layout: SIX}")
    text = text.replace("SIX", "{data: 16, expert: 16}")
    many = run(tmp_path, "workload.arrivals={poisson: {rate: 9000 / s}}", name="many", text=text)
    assert any("collectives of engines ask 1." in note for note in many.summary["warnings"])
    few = run(
        tmp_path, "serving.prefill.instances=1", "serving.decode.layout={data: 8, expert: 8}", name="few", text=text
    )
    assert not any("collectives of engines ask" in note for note in few.summary["warnings"])


@pytest.mark.parametrize("lost", [1, 4, 8])
def test_of_dead_links_those_beside_them_are_left(lost):
    """A leaf for each of eight rails, 16 nodes on it and as many cables up; 105 of 120 ranks elsewhere: on other rails.

    So 16 x 105 / 120 NICs' worth go up by 16 cables, or by those that are left.
    """
    topology = build_topology("clos-h100", {"nodes": 16})
    devices = tuple(range(128))
    up = [link.index for link in topology.links if link.tier == "leaf-spine" and link.source == "leaf0.0"]
    assert len(up) == 16
    capacities = [0 if link.index in up[:lost] else link.capacity_bytes_per_s for link in topology.links]
    found = group_shape(topology, devices, capacities)
    assert found.cross_bytes_per_s == pytest.approx(min(NIC, NIC * (16 - lost) / (16 * 105 / 120)))
    assert found.rail_bytes_per_s == pytest.approx(NIC)  # within leaves


def test_with_none_left_a_group_is_cut_off():
    topology = build_topology("clos-h100", {"nodes": 4})
    dead = [0 if "node3/nic5" in (k.source, k.target) else k.capacity_bytes_per_s for k in topology.links]
    found = group_shape(topology, tuple(range(32)), dead)
    assert found.cross_bytes_per_s == found.rail_bytes_per_s == 0
    assert group_shape(topology, tuple(range(24)), dead) == group_shape(topology, tuple(range(24)))


@given(
    rate=st.integers(5, 200),
    prefill=st.sampled_from(
        [
            "{data: 16, expert: 16}",
            "{data: 1, expert: 1, tensor: 16}",
            "{data: 1, expert: 1, tensor: 8, pipeline: 2}",
            "{data: 8, expert: 8}",
        ]
    ),
    mtbf=st.sampled_from(["3 s", "20 s"]),
    left=st.sampled_from([0.0, 0.3]),
    what=st.sampled_from(["nic", "link", "switch"]),
    seed=st.integers(0, 99),
    more=st.sampled_from(
        [
            [],
            ["serving.kv_transfer={mode: layerwise, reserve: on_prefill_start}"],
            ["serving.timeout={total: 3 s}"],
            ["serving.role_switch={policy: thresholds, interval: 100 ms, delay: 50 ms}", "serving.decode.instances=2"],
            ["serving.decode.experts={popularity: {zipf: {exponent: 0.4}}, drift: {interval: 300 ms, share: 0.1}}"],
            ["serving.decode.speculation={tokens: 2, acceptance: 0.6, draft: ngram}"],
        ]
    ),
)
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_nothing_is_lost_whatever_breaks(tmp_path, rate, prefill, mtbf, left, what, seed, more):
    folder = tmp_path / f"{len(list(tmp_path.iterdir()))}"
    folder.mkdir()
    fault = f"faults=[{{what: {what}, mtbf: {mtbf}, repair: 40 ms, left: {left}}}]"
    given = [
        f"seed={seed}",
        f"workload.arrivals={{poisson: {{rate: {rate} / s}}}}",
        f"serving.prefill.layout={prefill}",
    ]
    rest = ["topology.nodes=6", "until=4 s", fault, *more]
    with mock.patch.object(execution, "BEAT_EVENTS", 16):
        found = run(folder, *given, *rest, name="a", text=MOE)
    rows = found.requests
    assert sorted(rows.request_id) == list(range(len(rows)))
    done = rows[rows.outcome == "finished"]
    assert (done.generated_tokens == done.output_tokens).all()
    assert int(found.instances.output_tokens.sum()) == int(rows.generated_tokens.sum())
    again = run(folder, *given, *rest, name="b", text=MOE)
    assert again.requests.equals(rows)
    assert again.events.equals(found.events)


def test_links_within_a_node_slow_its_expert_exchange_but_not_tensor_parallelism(tmp_path):
    """Tensor-parallel ranks of a scale-up domain go by constants of their device, whatever breaks there."""
    fault = "faults=[{what: switch, name: node0/nvlink, at: 0 s, left: 0.1}]"
    few = ["workload.requests=4"]
    experts = run(tmp_path, *few, fault, name="experts", text=MOE)
    whole = run(tmp_path, *few, name="whole", text=MOE)
    assert ("engine retimed", "prefill-0") in [(kind, name) for _, kind, name in happened(experts)]
    assert experts.requests.prefill_end_ns.iloc[0] > whole.requests.prefill_end_ns.iloc[0]
    text = MOE.replace(
        "prefill: {instances: 1, layout: {data: 8, expert: 8}}", "prefill: {instances: 1, layout: {tensor: 8}}"
    )
    tensor = run(tmp_path, *few, fault, name="tensor", text=text)
    assert "engine retimed" not in [kind for _, kind, name in happened(tensor) if name == "prefill-0"]


def test_what_links_are_said_to_carry_is_what_steps_sent(tmp_path):
    """One request, one prefill of 1,000 tokens over two nodes: each NIC has a rank's bytes of the prefill, no more."""
    prefill = "serving.prefill.layout={data: 16, expert: 16}"
    one = ["workload.requests=1", "workload.prompt_tokens=1000", "workload.output_tokens=1"]
    found = run(tmp_path, *one, prefill, "topology.nodes=4", text=MOE)
    cost = cost_of(tmp_path, prefill, "topology.nodes=4", text=MOE)
    sent = cost.sent_bytes([Work(1000, 500_500, 1)] + [Work()] * 15)
    out = found.links[found.links.tier == "nic-leaf"]
    assert len(out) == 32  # 16 NICs, both ways
    assert (out.engine_bytes - sent).abs().max() <= 1e-6 * sent
    assert (out.bytes == 0).all()


PIPELINE = """
schema: 1
seed: 3
topology: {preset: clos-h100, nodes: 2}
workload: {requests: 1, arrivals: {poisson: {rate: 1000 / s}}, prompt_tokens: 4000, output_tokens: 1}
serving:
  model: llama-3.1-70b
  colocated: {instances: 1, layout: {tensor: 8, pipeline: 2}}
"""


def busy(found, tier="nic-leaf"):
    """Links of a tier that collectives have kept busy."""
    return found.links[(found.links.engine_bytes > 0) & (found.links.tier == tier)]


@pytest.mark.parametrize(
    ("layout", "slots"), [("{tensor: 8, pipeline: 2}", range(8)), ("{tensor: 4, pipeline: 4}", range(4, 8))]
)
def test_what_stages_send_each_other_by_hand(tmp_path, layout, slots):
    """Each rank sends its part of every token's row to its like in the next stage: once over the network, one way."""
    found = busy(run(tmp_path, f"serving.colocated.layout={layout}", text=PIPELINE))
    out = found[found.source.str.startswith("node")]
    assert sorted(out.source) == [f"node0/nic{slot}" for slot in slots]
    assert sorted(found[~found.index.isin(out.index)].target) == [
        f"node1/nic{slot % len(slots)}" for slot in range(len(slots))
    ]
    collectives = cost_of(tmp_path, text=PIPELINE).links.collectives
    row = 4000 * 8192 * 2 / len(slots)
    share = 1 / (collectives.choose("send_receive", (0, 8), round(row)).ns_per_byte * NIC * 1e-9)
    assert found.engine_bytes.to_numpy() == pytest.approx(row / share, abs=1)


def test_sums_stay_on_their_rails(tmp_path):
    """Ranks of a dense model send along the rails, by which they are timed: nothing of theirs goes up to the spines."""
    found = run(tmp_path, text=PIPELINE.replace("tensor: 8, pipeline: 2", "tensor: 16"))
    assert len(busy(found)) == 32
    assert not len(busy(found, "leaf-spine"))


ALONE = """
schema: 1
seed: 3
topology: {preset: clos-h100, nodes: 2}
workload: {requests: 4, arrivals: {poisson: {rate: 10 / s}}, prompt_tokens: 1000, output_tokens: 100}
serving:
  model: qwen3-235b-a22b
  colocated: {instances: 1, layout: {tensor: 16}}
until: 60 s
"""


SPINE = "{what: switch, name: spine0, at: 500 ms}"
CABLE = "{what: link, name: leaf0.1<>spine0#0, at: 500 ms, left: 0.05}"


@pytest.mark.parametrize(("faults", "kind"), [(SPINE, "engine halted"), (CABLE, "engine retimed")])
def test_sums_along_the_rails_do_not_mind_what_is_above_them(tmp_path, faults, kind):
    """Leaves join the ranks of two nodes rail by rail: without spines only an exchange is cut off.

    A NIC at half has an engine look at what all of its links have.
    """
    nic = "{what: nic, name: node0/nic3, at: 600 ms, left: 0.5}"
    below, both = (run(tmp_path, f"faults=[{f}]", name=f"{len(f)}", text=ALONE) for f in (nic, f"{faults}, {nic}"))
    assert both.requests.finish_ns.tolist() == below.requests.finish_ns.tolist()
    for found in (below, both):
        assert [event[1] for event in happened(found) if event[1].startswith("engine")] == ["engine retimed"]
    exchange = "serving.colocated.layout={tensor: 1, data: 16, expert: 16}"
    moe = run(tmp_path, exchange, f"faults=[{faults}]", name="moe", text=ALONE)
    assert [event[1] for event in happened(moe) if event[1].startswith("engine")] == [kind]


@pytest.mark.parametrize(
    ("layout", "model", "nodes", "nic"),
    [
        ("{tensor: 8, pipeline: 2}", "llama-3.1-70b", 2, "node1/nic3"),
        ("{tensor: 4, pipeline: 3}", "llama-3.1-70b", 2, "node0/nic6"),
        ("{tensor: 8, context: 2}", "llama-3.1-70b", 2, "node1/nic3"),
        ("{data: 16, expert: 16, pipeline: 2}", "qwen3-235b-a22b", 4, "node3/nic3"),
    ],
)
def test_every_rank_needs_its_ways(tmp_path, layout, model, nodes, nic):
    """Whichever NIC is slow or dead, not only one of the first group, and whichever stage it serves."""
    given = [f"serving.model={model}", f"topology.nodes={nodes}", "workload.output_tokens=400"]
    text = PIPELINE.replace("{tensor: 8, pipeline: 2}", layout)
    whole = run(tmp_path, *given, name="whole", text=text).requests
    slow = f"faults=[{{what: nic, name: {nic}, at: 0 s, left: 0.05}}]"
    hurt = run(tmp_path, *given, slow, name="hurt", text=text)
    assert hurt.requests.finish_ns[0] > whole.finish_ns[0] + 1e6
    dead = run(tmp_path, *given, f"faults=[{{what: nic, name: {nic}, at: 1 s, repair: 3 s}}]", name="dead", text=text)
    assert [kind for _, kind, _ in happened(dead)] == ["fault", "engine halted", "repair", "engine goes on"]
    assert 2.9e9 < dead.requests.finish_ns[0] - whole.finish_ns[0] <= 3e9


def test_an_engine_that_comes_to_hurt_links_goes_by_what_they_have(tmp_path):
    """Of two decode engines the second becomes one for prompts; its NIC is slow, or dead until 3.05 s."""
    text = MOE.replace("{data: 8, expert: 8}", "{data: 16, expert: 16}").replace("nodes: 3", "nodes: 6")
    text = text.replace("decode: {instances: 1", "decode: {instances: 2").replace("requests: 24", "requests: 60")
    text += "  role_switch: {policy: thresholds, interval: 100 ms, delay: 50 ms}\n"
    many = ["workload.arrivals={poisson: {rate: 60 / s}}", "workload.output_tokens=30", "workload.prompt_tokens=3000"]
    fault = "{what: nic, name: node4/nic0, at: 50 ms, repair: 3 s, left: LEFT}"
    for left, kinds in (("0.1", {"engine retimed"}), ("0", {"engine halted", "engine goes on"})):
        found = run(tmp_path, *many, f"faults=[{fault.replace('LEFT', left)}]", name=f"at{left}", text=text)
        assert {kind for _, kind, name in happened(found) if name == "prefill-1"} - {"joins pool"} == kinds
        assert not any("collectives of engines ask" in note for note in found.summary["warnings"])
        if left == "0":
            rows = found.requests[found.requests.prefill_instance == "prefill-1"]
            assert rows.prefill_end_ns.min() > 3.05e9


def test_bytes_go_by_the_links_that_are_left(tmp_path):
    """Two cables from a leaf to its spine, one dead: the other carries what both did, and the dead one nothing."""
    given = ["topology.nodes=2", "workload.requests=1", "workload.output_tokens=20"]
    text = MOE.replace("decode: {instances: 1, layout: {data: 16, expert: 16}}", "").replace(
        "prefill: {instances: 1, layout: {data: 8, expert: 8}}",
        "colocated: {instances: 1, layout: {data: 16, expert: 16}}",
    )
    whole, hurt = (
        busy(run(tmp_path, *given, *fault, name=f"run{len(fault)}", text=text), "leaf-spine")
        for fault in ([], ["faults=[{what: link, name: leaf0.0<>spine0#0, at: 0 s}]"])
    )
    up = [
        found[(found.source == "leaf0.0") & (found.target == "spine0")].engine_bytes.tolist() for found in (whole, hurt)
    ]
    assert len(up[0]) == 2
    assert up[1] == [pytest.approx(sum(up[0]), rel=1e-8)]


def test_an_engine_on_detours_hears_of_links_that_it_did_not_use(tmp_path):
    """A ring of dies: the cable between two is dead, so that they meet the other way round, which is then slow."""
    text = PIPELINE.replace("preset: clos-h100, nodes: 2", "preset: torus-8x8x8, dimensions: [4]")
    text = (
        text.replace("llama-3.1-70b", "llama-3.1-8b")
        .replace("tensor: 8, ", "")
        .replace("output_tokens: 1}", "output_tokens: 500}")
    )
    dead = "{what: link, name: router0<>router1, at: 0 s}"
    slow = "{what: link, name: router2<>router3, at: 1 s, left: 0.001, repair: 1 s}"
    found = run(tmp_path, f"faults=[{dead}, {slow}]", text=text)
    assert [(at, kind) for at, kind, name in happened(found) if name == "colocated-0"] == [
        (1_000_000_000, "engine retimed"),
        (2_000_000_000, "engine retimed"),
    ]
    carried = busy(found, "router-router")
    assert not any({"router0", "router1"} == {a, b} for a, b in zip(carried.source, carried.target, strict=True))
    assert carried.engine_bytes.nunique() == 1
    assert len(carried) == 3
