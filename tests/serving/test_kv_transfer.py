"""Ways to move KV caches as a scenario names them: planes, layouts, layers, and what becomes of requests that wait."""

import pytest

from simulator import load, simulate
from simulator.build.serving import plan
from simulator.errors import InputError
from simulator.model.transformer import load_model

SCENARIO = """
schema: 1
seed: 3
topology: {preset: cloudmatrix384}
workload:
  requests: 60
  arrivals: {poisson: {rate: 20 / s}}
  prompt_tokens: {lognormal: {median: 1500, sigma: 0.8, max: 8000}}
  output_tokens: {lognormal: {median: 60, sigma: 0.8, max: 500}}
serving:
  model: llama-3.1-8b
  prefill: {instances: 2, layout: {tensor: 4}}
  decode: {instances: 3, layout: {tensor: 2}}
"""
TOKEN_BYTES = load_model("llama-3.1-8b").kv_bytes_per_token(2)


def run(tmp_path, *overrides, name="run", text=SCENARIO):
    path = tmp_path / "scenario.yaml"
    path.write_text(text)
    return simulate(load(path, overrides), out=tmp_path / name, check=True)


@pytest.mark.parametrize(
    ("plane", "tiers"),
    [
        ("ub", {"npu-l1", "l1-l2"}),
        ("ub3", {"npu-l1", "l1-l2"}),
        ("rdma", {"rdma-host", "rdma-leaf"}),
        ("vpc", {"npu-l1", "cpu-l1", "vpc-host", "vpc-leaf"}),
    ],
)
def test_caches_cross_the_plane_that_is_named(tmp_path, plane, tiers):
    one = ["workload.requests=1", "serving.prefill={instances: 1, layout: {tensor: 8}}"]
    far = ["serving.decode={instances: 1, layout: {tensor: 16}}"]  # whole nodes, so another than that of the prefill
    found = run(tmp_path, *one, *far, f"serving.kv_transfer.plane={plane}")
    row = found.requests.iloc[0]
    assert row.kv_transfer_bytes == 2 * row.prompt_tokens * TOKEN_BYTES  # 16 ranks hold two copies of 8 heads
    assert set(found.links.tier) == tiers
    tiers = found.links.groupby("tier").bytes  # in and out; of sprayed messages each link counts whole bytes
    assert ((tiers.sum() - 2 * row.kv_transfer_bytes).abs() <= tiers.size() / 2).all()
    if plane == "ub3":
        assert {name.split(".")[-1] for name in found.links.target if "/l1." in name} == {"3"}


def test_slower_planes_take_longer(tmp_path):
    means = {
        plane: run(tmp_path, f"serving.kv_transfer.plane={plane}", name=plane).requests.kv_transfer_ns.mean()
        for plane in ("ub", "rdma", "vpc")
    }
    assert means["ub"] < means["rdma"] < means["vpc"]


FAR_OFF = [  # of the sixteen spines of the RDMA plane a cache passes as many as routing says
    "workload={requests: 1, arrivals: {constant: {rate: 1 / s}}, prompt_tokens: 8000, output_tokens: 2}",
    "serving.prefill={instances: 1, layout: {tensor: 8, data: 8}}",
    "serving.decode={instances: 1, layout: {tensor: 8}}",
    "serving.kv_transfer.plane=rdma",
    "network.routing=spray",
]


@pytest.mark.parametrize("after_ns", [-1_000, 2_000_000], ids=["before", "under way"])
def test_a_cache_keeps_to_its_plane_as_long_as_something_is_left_of_it(tmp_path, after_ns):
    whole = run(tmp_path, *FAR_OFF).requests.iloc[0]
    size = 8000 * TOKEN_BYTES // 8
    assert whole.kv_transfer_ns == 2 * (1275 + 50) + 3 * 950 + 2 * 50 + size * 1_000_000_000 // 25_000_000_000
    at = f"{whole.prefill_end_ns + after_ns} ns"
    found = run(tmp_path, *FAR_OFF, f"faults=[{{what: switch, name: rdma/spine0, at: {at}}}]", name="one")
    assert found.requests.iloc[0].kv_transfer_ns == whole.kv_transfer_ns  # a NIC is slower than fifteen spines
    assert {tier.split("-")[0] for tier in found.links.tier} == {"rdma", "leaf"}
    found = run(tmp_path, *FAR_OFF, f"faults=[{{what: plane, name: rdma, at: {at}}}]", name="all")
    assert found.requests.iloc[0].kv_transfer_ns < whole.kv_transfer_ns  # over the bus, which is faster
    assert set(found.links.tier) >= {"npu-l1", "l1-l2"}


@pytest.mark.parametrize("mode", ["whole", "layerwise"])
@pytest.mark.parametrize(
    ("prefill", "decode", "copies"),
    [
        ("{tensor: 2, pipeline: 2}", "{tensor: 4}", 1),
        ("{tensor: 2, context: 2}", "{tensor: 1, pipeline: 2}", 1),
        ("{tensor: 1}", "{tensor: 2, data: 2}", 1),
        ("{tensor: 8}", "{tensor: 16}", 2),
        ("{tensor: 2, context: 4}", "{tensor: 1, context: 2}", 1),
    ],
)
def test_caches_move_between_any_layouts(tmp_path, prefill, decode, copies, mode):
    layouts = f"serving.prefill.layout={prefill}", f"serving.decode.layout={decode}"
    found = run(tmp_path, *layouts, f"serving.kv_transfer.mode={mode}").requests
    assert (found.outcome == "finished").all()
    moved = found[found.output_tokens > 1]
    assert (moved.kv_transfer_bytes == copies * moved.prompt_tokens * TOKEN_BYTES).all()


def test_layers_that_leave_early_hide_the_transfer(tmp_path):
    slow = "topology={preset: clos-h100, nodes: 4, link: {bandwidth: 20 Gbps}}", "serving.decode.layout={tensor: 8}"
    whole = run(tmp_path, *slow, name="whole").requests
    layered = run(tmp_path, *slow, "serving.kv_transfer.mode=layerwise", name="layers").requests
    pulled = run(tmp_path, *slow, "serving.kv_transfer.direction=pull", name="pull").requests
    assert layered.kv_transfer_ns.mean() < whole.kv_transfer_ns.mean() < pulled.kv_transfer_ns.mean()
    assert layered.kv_transfer_bytes.sum() == whole.kv_transfer_bytes.sum() == pulled.kv_transfer_bytes.sum()


def test_a_cache_that_leaves_as_one_message_leaves_whole(tmp_path):
    # a place is asked for when a prefill begins: not what a whole cache does by default
    tight = "serving.decode.kv={blocks: 520}", "workload.arrivals={poisson: {rate: 10 / s}}"
    one = "serving.kv_transfer={mode: layerwise, layers_per_message: 1000}"
    layers = run(tmp_path, *tight, one, name="layers").requests
    whole = run(tmp_path, *tight, "serving.kv_transfer.reserve=on_prefill_start", name="whole").requests
    late = run(tmp_path, *tight, name="late").requests
    assert whole.equals(layers)
    assert 0 < whole.kv_wait_ns.mean() < late.kv_wait_ns.mean()


@pytest.mark.parametrize("fallback", ["{after: 100 ms}", "{waiting: 2}"])
def test_prefill_engines_decode_what_has_no_place(tmp_path, fallback):
    tight = "serving.decode={instances: 1, kv: {blocks: 700}}", "workload.arrivals.poisson.rate=60 / s"
    waits = run(tmp_path, *tight, name="waits").requests
    found = run(tmp_path, *tight, f"serving.kv_transfer.fallback={fallback}").requests
    assert (found.outcome == "finished").all()
    stayed = found.decode_instance.str.startswith("prefill")
    assert 0 < stayed.sum() < len(found)
    assert (found[stayed].kv_transfer_bytes == 0).all()
    assert found.kv_wait_ns.mean() < waits.kv_wait_ns.mean() / 2


def test_engines_without_a_seat_are_not_asked_in_every_nanosecond(tmp_path):
    seats = (
        "serving.prefill.batcher={continuous: {max_running: 1}}",
        "serving.decode.batcher={continuous: {max_running: 1}}",
    )
    waits = run(tmp_path, *seats, "workload.requests=20", name="waits")
    found = run(tmp_path, *seats, "workload.requests=20", "serving.kv_transfer.fallback={after: 0 s}")
    assert found.summary["requests"]["finished"] == 20
    waited_ms = waits.requests.kv_wait_ns.sum() / 1e6
    assert waited_ms > 100
    assert found.manifest["events"] < waits.manifest["events"] + 5 * waited_ms  # once a millisecond at most


@pytest.mark.parametrize("reserve", ["before_prefill", "on_arrival"])
def test_a_place_that_is_there_before_the_prefill_ends_is_not_waited_for(tmp_path, reserve):
    tight = "serving.decode={instances: 1, kv: {blocks: 700}}", "workload.arrivals.poisson.rate=60 / s"
    late = run(tmp_path, *tight, name="late").requests
    found = run(tmp_path, *tight, f"serving.kv_transfer.reserve={reserve}").requests
    assert (found.outcome == "finished").all()
    assert found.kv_wait_ns.sum() < late.kv_wait_ns.sum()
    if reserve == "before_prefill":
        assert not found.kv_wait_ns.any()
        assert (found.queued_ns > found.arrival_ns).any()  # decode's memory bounds what prefill takes up


@pytest.mark.parametrize(
    ("override", "what"),
    [
        ("serving.kv_transfer.plane=ubb", "serving.kv_transfer.plane"),
        ("serving.kv_transfer={mode: layerwise, reserve: on_prefill_end}", "need a place before it ends"),
        ("serving.kv_transfer={layers_per_message: 4}", "only `mode: layerwise` sends by layers"),
        ("serving.kv_transfer={fallback: {}}", "a fallback needs `after`, `waiting` or both"),
        ("serving.decode.expert_servers={devices: 8}", "has no experts"),
        ("serving.decode.batcher=static", "one by one as their caches come, so there are no static batches"),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path, override, what):
    with pytest.raises(InputError, match=what):
        run(tmp_path, override)


def test_prefills_in_another_order_than_places_are_refused(tmp_path):
    # a random scenario found it: those who were prefilled first held all blocks there, those with places all of decode
    (tmp_path / "s.yaml").write_text(SCENARIO)
    shuffled, ordered = "serving.prefill.queue={priority: {preempt: false}}", "serving.decode.queue=priority"
    drawn, arrival = "workload.priorities={0: 1, 1: 1}", "serving.kv_transfer={reserve: on_arrival}"
    with pytest.raises(InputError, match=r"serving\.prefill\.queue: places are given in the order of arrival"):
        load(tmp_path / "s.yaml", [shuffled, drawn, arrival])
    load(tmp_path / "s.yaml", [ordered, drawn, arrival])
    load(tmp_path / "s.yaml", [shuffled, drawn, "serving.kv_transfer={reserve: before_prefill}"])


@pytest.mark.parametrize("key", ["kv_transfer={direction: pull}", "role_switch={}"])
def test_one_pool_has_no_transfer(tmp_path, key):
    text = SCENARIO.split("  prefill:")[0] + "  colocated: {instances: 1}\n"
    with pytest.raises(InputError, match="goes with `prefill` and `decode` pools"):
        run(tmp_path, f"serving.{key}", text=text)


def test_what_has_no_effect_is_said(tmp_path):
    alone = "serving.prefill.instances=1", "serving.decode.instances=1"
    notes = run(tmp_path, *alone, "serving.kv_transfer.lane=2", "serving.role_switch={}").summary["warnings"]
    assert any(note.startswith("serving.kv_transfer.lane:") for note in notes)
    assert any(note.startswith("serving.role_switch:") for note in notes)


def test_weights_of_experts_cross_the_network_beside_the_caches(tmp_path):
    model = "serving.model=deepseek-v2-lite", "serving.kv_transfer.lane=2", "workload.requests=2"
    experts = "{placement: eplb, popularity: {zipf: {exponent: 1}}, rebalance: {interval: 1 s}}"
    path = tmp_path / "scenario.yaml"
    path.write_text(SCENARIO)
    decode = f"serving.decode={{instances: 1, layout: {{data: 8, expert: 8}}, experts: {experts}}}"
    assert not [note for note in plan(load(path, [*model, decode])).notes if "kv_transfer.lane" in note]


PINNED = """
schema: 1
seed: 1
topology: {preset: clos-h100, nodes: 1}
workload:
  requests: 12
  arrivals: {constant: {rate: 100 / s}}
  prefixes: {count: 4, tokens: 16, exponent: 0}
  prompt_tokens: 270
  output_tokens: 25
serving:
  model: llama-3.1-8b
  prefill:
    instances: 1
    kv: {block_tokens: 1, blocks: 320, watermark: 0, prefix_cache: {unit_tokens: 16, pin: {units: 1, share: 0.05}}}
  decode: {instances: 1, kv: {block_tokens: 1, blocks: 330}}
  kv_transfer: {fallback: {after: 1 ms}}
"""


@pytest.mark.parametrize(("output", "kept"), [(25, False), (15, True)])
def test_a_prefill_engine_keeps_only_who_fits_beside_its_pinned_units(tmp_path, output, kept):
    # 304 blocks are left beside one pinned unit of 16: enough for 286 + 14 tokens, not for 286 + 24
    rows = run(tmp_path, f"workload.output_tokens={output}", text=PINNED).requests
    assert (rows.outcome == "finished").all()
    assert rows.decode_instance.str.startswith("prefill").any() == kept


@pytest.mark.parametrize(
    ("reserve", "mode", "fallback"),
    [
        ("on_prefill_end", "whole", "null"),
        ("on_prefill_end", "whole", "{after: 1500 ms}"),
        ("on_prefill_start", "whole", "null"),
        ("on_prefill_start", "layerwise", "null"),
        ("before_prefill", "whole", "null"),
        ("before_prefill", "layerwise", "null"),
        ("on_arrival", "whole", "null"),
        ("on_arrival", "layerwise", "{waiting: 50}"),
    ],
)
def test_who_is_given_up_while_waiting_for_a_place_goes_at_once(tmp_path, reserve, mode, fallback):
    """Decode has room for some two requests, so most wait for a place until their time is up."""
    few = ["serving.prefill={instances: 2, layout: {tensor: 4}, kv: {blocks: 4000}}"]
    few += ["serving.decode={instances: 1, layout: {tensor: 2}, kv: {blocks: 600}}", "workload.output_tokens=400"]
    few += ["workload.arrivals={poisson: {rate: 2000 / s}}"]  # nearly at once: their time is up at once too
    rules = f"serving.kv_transfer={{reserve: {reserve}, mode: {mode}, fallback: {fallback}}}"
    found = run(tmp_path, *few, rules, "serving.timeout={total: 2 s}").requests
    assert set(found.outcome) <= {"timed_out", "finished", "rejected"}
    late = found[found.outcome == "timed_out"]
    waited = late[late.decode_start_ns.isna() & (late.kv_transfer_bytes == 0)]
    assert len(waited) > 15
    computed = waited[waited.kv_wait_ns > 0]
    assert (computed.prefill_end_ns + computed.kv_wait_ns - computed.arrival_ns == 2_000_000_000).all()
    if reserve == "before_prefill":
        assert waited.prefill_start_ns.isna().sum() > 15  # nothing is computed for them
    else:
        assert len(computed) > 15


PLACES = """
schema: 1
topology: {preset: cloudmatrix384}
workload:
  trace: three.csv
  format: csv
  columns: {arrival: {column: at, unit: ms}, prompt_tokens: prompt, output_tokens: answer, cancel: left}
serving:
  model: llama-3.1-8b
  prefill: {instances: 1}
  decode: {instances: 1, kv: {blocks: 100, watermark: 0}}
  kv_transfer: {reserve: before_prefill}
"""


def test_a_place_that_nobody_will_take_holds_back_nobody(tmp_path):
    """The second asks for 90 of 100 blocks and goes after 49 ms; the third, which asks for 5, is routed then."""
    (tmp_path / "three.csv").write_text("at,prompt,answer,left\n0,640,200,\n1,1440,10,49\n2,80,10,\n")
    found = run(tmp_path, text=PLACES).requests.set_index("request_id")
    assert list(found.outcome.sort_index()) == ["finished", "cancelled", "finished"]
    assert found.prefill_start_ns.isna()[1]
    assert found.queued_ns[2] == 50_000_000


@pytest.mark.parametrize("fidelity", ["flow", "load", "alpha_beta"])
@pytest.mark.parametrize(
    ("direction", "plane", "bytes_per_s", "crossings"),
    [("push", "null", 137, 1), ("push", "ub", 137, 1), ("pull", "null", 167, 3), ("push", "rdma", 25, 0)],
)
def test_caches_move_at_the_rate_that_reads_and_writes_reach(
    tmp_path, direction, plane, bytes_per_s, crossings, fidelity
):
    """8,000 tokens of 320 KiB over eight dies of a node: a UB port gives 196 GB/s, a write reaches 137, a read 167.

    A die's way over UB takes 1,200 ns, and a pull asks before; over RDMA below one leaf 3,600 ns and the NIC's 25 GB/s.
    """
    text = SCENARIO.replace("llama-3.1-8b", "llama-3.1-70b").replace("requests: 60", "requests: 1")
    text = text.replace("{lognormal: {median: 1500, sigma: 0.8, max: 8000}}", "8000")
    text = text.replace("{instances: 2, layout: {tensor: 4}}", "{instances: 1, layout: {tensor: 8}}")
    text = text.replace("{instances: 3, layout: {tensor: 2}}", "{instances: 1, layout: {tensor: 8}}")
    kv = f"serving.kv_transfer={{mode: whole, direction: {direction}, plane: {plane}}}"
    [moved] = run(tmp_path, kv, f"network.fidelity={fidelity}", text=text).requests.kv_transfer_ns
    share = 8000 * 327_680 // 8
    assert moved == -(-share // bytes_per_s) + (1200 * crossings or 3600)
