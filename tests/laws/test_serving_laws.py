"""Serving as a whole: one request is a closed form, nothing is lost, and what must not hurt does not hurt."""

from fractions import Fraction
from math import ceil

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from simulator import load, simulate
from simulator.build import serving
from simulator.device.accelerator import load_accelerator
from simulator.device.cost import RooflineCost
from simulator.model.layout import Layout
from simulator.model.transformer import load_model

SPLIT = """
schema: 1
seed: 3
topology: {preset: clos-h100, nodes: 4}
workload:
  requests: 400
  arrivals: {gamma: {rate: 30 / s, cv: 2}}
  prompt_tokens: {lognormal: {median: 900, sigma: 0.9, max: 8000}}
  output_tokens: {lognormal: {median: 120, sigma: 0.8, max: 800}}
serving:
  model: llama-3.1-8b
  prefill: {instances: 2, layout: {tensor: 2}}
  decode: {instances: 2, layout: {tensor: 2}}
slo: {ttft: 500 ms, tpot: 15 ms}
"""


def run(tmp_path, *overrides, name="run"):
    path = tmp_path / "scenario.yaml"
    path.write_text(SPLIT)
    return simulate(load(path, overrides), out=tmp_path / name, check=True)


def test_one_request_is_a_closed_form(tmp_path):
    # TTFT = prefill(n); KV = path latency + bytes of the largest shard / NIC; then the sum of the decode steps.
    prompt, output = 3000, 50
    requests = run(
        tmp_path, "workload.requests=1", f"workload.prompt_tokens={prompt}", f"workload.output_tokens={output}"
    ).requests
    row = requests.iloc[0]
    model, accelerator = load_model("llama-3.1-8b"), load_accelerator("h100-sxm-80gb")
    cost = RooflineCost(model, Layout(tensor=2), accelerator)
    assert row.first_token_ns - row.arrival_ns == pytest.approx(
        cost.prefill_ns(prompt, prompt * (prompt + 1) // 2, 1), abs=1
    )
    # 4 engines of 2 devices fill one node: the cache crosses NVLink, each rank's half to its peer at 450 GB/s.
    size = prompt * model.kv_bytes_per_token()
    assert row.kv_transfer_bytes == size
    drain_ns = ceil(Fraction(size, 2) * 10**9 / (450 * 10**9))
    assert 0 < row.kv_transfer_ns - drain_ns < 5000  # what is left is the latency of two NVLink hops
    lines = ((prompt + i, cost.decode(1, prompt + i)) for i in range(1, output))
    steps = sum(line.fixed_ns + line.per_context_token_ns * context for context, line in lines)
    assert row.finish_ns - row.decode_start_ns == pytest.approx(steps, abs=2)
    assert row.decode_start_ns == row.first_token_ns + row.kv_transfer_ns


def test_kv_crosses_the_fabric_at_the_nic(tmp_path):
    # 8-device engines fill a node each, so the cache leaves it: each of 8 ranks sends 1/8 over its own 50 GB/s NIC.
    row = run(
        tmp_path,
        "workload.requests=1",
        "workload.prompt_tokens=8000",
        "serving.prefill={instances: 1, layout: {tensor: 8}}",
        "serving.decode={instances: 1, layout: {tensor: 8}}",
    ).requests.iloc[0]
    drain_ns = 8000 * 131072 / 8 / 50
    assert drain_ns <= row.kv_transfer_ns <= drain_ns + 20_000


pool = st.fixed_dictionaries(
    {
        "instances": st.integers(1, 3),
        "tensor": st.sampled_from([1, 2, 4]),
        "blocks": st.one_of(st.none(), st.integers(60, 400)),
        "block_tokens": st.sampled_from([8, 16, 32]),
        "max_running": st.integers(1, 40),
        "budget": st.one_of(st.none(), st.sampled_from([40, 512, 8192])),
        "watermark": st.sampled_from([0, 0.01, 0.2]),
    }
)


def section(p):
    blocks = f"blocks: {p['blocks']}, " if p["blocks"] else ""
    if p["budget"] is None:
        batcher = f"{{continuous: {{max_running: {p['max_running']}}}}}"
    else:
        batcher = f"{{chunked_prefill: {{max_running: {p['max_running']}, max_batch_tokens: {p['budget']}}}}}"
    return (
        f"{{instances: {p['instances']}, layout: {{tensor: {p['tensor']}}}, "
        f"kv: {{{blocks}block_tokens: {p['block_tokens']}, watermark: {p['watermark']}}}, "
        f"batcher: {batcher}}}"
    )


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    split=st.booleans(),
    pools=st.tuples(pool, pool),
    rate=st.sampled_from([2, 20, 200]),
    router=st.sampled_from(["least_loaded", "round_robin"]),
    seed=st.integers(0, 1000),
    until=st.one_of(st.none(), st.integers(1, 20)),
)
def test_nothing_is_lost(tmp_path_factory, split, pools, rate, router, seed, until):
    """Every request ends once; tokens, blocks, leases and link bytes add up, `check` watching all along."""
    if split:
        engines = [f"serving.prefill={section(pools[0])}", f"serving.decode={section(pools[1])}"]
    else:
        engines = ["serving.prefill=null", "serving.decode=null", f"serving.colocated={section(pools[0])}"]
    overrides = [
        *engines,
        f"serving.router={router}",
        f"seed={seed}",
        "workload.requests=120",
        f"workload.arrivals.gamma.rate={rate} / s",
        *([f"until={until} s"] if until else []),
    ]
    found = run(tmp_path_factory.mktemp("laws"), *overrides)
    rows = found.requests
    assert rows.request_id.is_unique
    done, refused = rows[rows.outcome == "finished"], rows[rows.outcome == "rejected"]
    if until is None:
        assert len(rows) == 120 == len(done) + len(refused)
    else:
        assert found.manifest["simulated_ns"] <= until * 10**9
        assert (rows.arrival_ns <= until * 10**9).all()
    assert (done.generated_tokens == done.output_tokens).all()
    assert (rows.generated_tokens <= rows.output_tokens).all()
    for earlier, later in (
        ("arrival_ns", "queued_ns"),
        ("queued_ns", "prefill_start_ns"),
        ("prefill_start_ns", "first_token_ns"),
        ("first_token_ns", "finish_ns"),
    ):
        assert (done[earlier] <= done[later]).all()
    assert found.instances.output_tokens.sum() == rows.generated_tokens.sum()
    assert found.summary["itl"]["count"] == (rows.generated_tokens - 1).clip(lower=0).sum()
    if until is None:  # Little's law on the whole: every request is somewhere from its arrival to its end
        windows = found.instances
        there = ((windows.running + windows.waiting) * (windows.end_ns - windows.start_ns)).sum()
        moving = done.kv_transfer_ns.sum()  # counted as waiting where it is to decode
        assert there == pytest.approx((done.finish_ns - done.queued_ns).sum(), rel=1e-9), moving
    assert (found.instances.kv_blocks_max <= found.instances.kv_total_blocks).all()
    # Bytes: what left the prefill side is what the requests say, once per link of the first hop.
    first_hops = found.links[found.links.source.str.match(r"node\d+/(gpu|device)\d+$")]
    if until is None:
        assert first_hops.bytes.sum() == rows.kv_transfer_bytes.sum()


def test_doubling_the_speed_never_lowers_the_wait(tmp_path):
    trace = ["workload=null", "workload={trace: conversation-sample, requests: 600}", "serving.prefill.instances=1"]
    waits = [
        run(tmp_path, *trace, f"workload.speedup={speedup}", name=f"s{speedup}").summary["queue"]["mean"]
        for speedup in (4, 8, 16, 32, 64)
    ]
    assert waits == sorted(waits)
    assert waits[-1] > 2 * waits[0]


def test_another_instance_never_lowers_goodput(tmp_path):
    for role in ("prefill", "decode"):
        goodput = [
            run(tmp_path, f"serving.{role}.instances={n}", name=f"{role}{n}").summary["goodput"]["fraction"]
            for n in (1, 2, 3, 4)
        ]
        assert goodput == sorted(goodput), (role, goodput)


def test_no_bytes_equal_infinite_bandwidth(tmp_path, monkeypatch):
    fast = [
        "topology.nvlink.bandwidth=1000 PB/s",
        "topology.link.bandwidth=8000 Pbps",
        "topology.pcie.bandwidth=1000 PB/s",
    ]
    infinite = run(tmp_path, *fast, name="infinite").requests
    original = serving.KVTransfer

    def weightless(env, fabric, prefill, decode, caches, rules):
        return original(env, fabric, prefill, decode, caches._replace(value_bytes=0), rules)

    monkeypatch.setattr(serving, "KVTransfer", weightless)
    nothing = run(tmp_path, name="nothing").requests
    assert (nothing.kv_transfer_bytes == 0).all()
    assert infinite.kv_transfer_bytes.sum() > 10**9
    for column in ("first_token_ns", "finish_ns"):
        assert (infinite.set_index("request_id")[column] - nothing.set_index("request_id")[column]).abs().max() < 5_000


def test_equal_replicas_share_alike_under_round_robin(tmp_path):
    requests = run(tmp_path, "serving.router=round_robin", "serving.prefill.instances=4").requests
    assert requests.groupby("prefill_instance").size().tolist() == [100, 100, 100, 100]


def test_infinite_memory_is_never_preempted(tmp_path):
    tight = ["serving.prefill=null", "serving.decode=null", "workload.arrivals.gamma.rate=200 / s"]
    engine = "serving.colocated={instances: 1, kv: {blocks: %d}}"
    assert run(tmp_path, *tight, engine % 1200, name="tight").requests.preemptions.sum() > 0
    assert run(tmp_path, *tight, engine % 10**6, name="wide").requests.preemptions.sum() == 0
