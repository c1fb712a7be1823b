"""Policies of role switching are pure and do not go to and fro; engines that switch lose nothing."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator import load, simulate
from simulator.errors import InputError
from simulator.serving.role_policies import Balance, PoolLoad, Thresholds, View, balance, thresholds

SCENARIO = """
schema: 1
seed: 3
topology: {preset: clos-h100, nodes: 1}
workload:
  requests: 500
  arrivals: {poisson: {rate: 60 / s}}
  prompt_tokens: {lognormal: {median: 1500, sigma: 0.8, max: 8000}}
  output_tokens: {lognormal: {median: 60, sigma: 0.8, max: 500}}
serving:
  model: llama-3.1-8b
  router: least_loaded
  role_switch: {policy: thresholds, interval: 500 ms, delay: 300 ms}
  prefill: {instances: 6}
  decode: {instances: 2, kv: {blocks: 1500}}
"""

loads = st.builds(PoolLoad, st.integers(1, 20), st.integers(0, 200), st.integers(0, 500), st.floats(0, 1))
policies = st.one_of(
    st.builds(Thresholds, queued=st.integers(1, 20), kv_share=st.floats(0.1, 1), margin=st.floats(0, 0.9)).map(
        lambda limits: (thresholds, limits)
    ),
    st.builds(
        Balance,
        prefill_requests=st.integers(1, 10),
        decode_requests=st.integers(1, 100),
        margin=st.floats(0.5, 3),
    ).map(lambda limits: (balance, limits)),
)


def moved(load, engines):
    """The same requests and blocks on another number of engines."""
    return load._replace(engines=engines, kv_share=load.kv_share * load.engines / engines)


@given(loads, loads, policies)
def test_an_engine_is_not_sent_back_while_the_load_stays(prefill, decode, policy):
    decide, limits = policy
    giver = decide(limits, View(prefill, decode))
    step = {None: 0, "prefill": -1, "decode": 1}[giver]
    if step:
        after = View(moved(prefill, prefill.engines + step), moved(decode, decode.engines - step))
        assert min(after.prefill.engines, after.decode.engines) >= 1
        back = decide(limits, after)
        assert back in (None, giver)


def test_where_engines_go():
    idle, few = PoolLoad(4, 0, 0, 0.1), PoolLoad(4, 3, 4, 0.5)
    assert thresholds(Thresholds(), View(few, few._replace(queued=0))) is None
    assert thresholds(Thresholds(), View(PoolLoad(4, 40, 4, 0.5), idle)) == "decode"
    assert thresholds(Thresholds(), View(idle, PoolLoad(4, 5, 100, 0.95))) == "prefill"
    assert thresholds(Thresholds(), View(PoolLoad(4, 40, 4, 0.5), PoolLoad(4, 5, 100, 0.95))) is None
    assert thresholds(Thresholds(), View(PoolLoad(1, 0, 0, 0.0), PoolLoad(4, 5, 100, 0.95))) is None
    assert balance(Balance(), View(PoolLoad(2, 10, 2, 0.5), PoolLoad(6, 0, 32, 0.5))) == "decode"
    assert balance(Balance(), View(idle, idle)) is None


def run(tmp_path, *overrides, name="run"):
    path = tmp_path / "scenario.yaml"
    path.write_text(SCENARIO)
    return simulate(load(path, overrides), out=tmp_path / name, check=True)


@pytest.mark.parametrize("extra", [(), ("serving.kv_transfer={mode: layerwise, reserve: on_arrival}",)])
def test_engines_that_switch_lose_nothing_and_help(tmp_path, extra):
    still = run(tmp_path, "serving.role_switch=null", *extra, name="stays")
    found = run(tmp_path, *extra)
    counts = [[pool["instances"] for pool in one.summary["utilisation"].values()] for one in (still, found)]
    assert sum(counts[1]) == pytest.approx(sum(counts[0]), abs=2e-3)  # an engine is counted once, whatever it is called
    assert counts[1] != counts[0]
    requests, instances, events = found.requests, found.instances, found.events
    assert (requests.outcome == "finished").all()
    assert (requests.generated_tokens == requests.output_tokens).all()
    leaves, joins = (events[events.kind == f"{what} pool"] for what in ("leaves", "joins"))
    assert len(leaves) - len(joins) in (0, 1)
    assert len(joins) >= 1
    assert joins.iloc[0].subject == "decode-2"
    assert joins.iloc[0].time_ns - leaves.iloc[0].time_ns >= 300_000_000
    left = leaves.iloc[0]
    mine = requests[requests.prefill_instance == left.subject]
    assert (mine.queued_ns <= left.time_ns).all()  # nothing is sent to an engine that leaves
    mine = instances[instances.instance == left.subject]
    assert mine.end_ns.max() == joins.iloc[0].time_ns
    assert instances[instances.instance == "decode-2"].start_ns.min() == joins.iloc[0].time_ns
    mean = [(r.finish_ns - r.arrival_ns).mean() for r in (still.requests, requests)]
    assert mean[1] < mean[0] / 2
    roles = found.summary["utilisation"]
    end_ns = instances.end_ns.max()
    more = joins.subject.str.startswith("prefill") * 2 - 1  # one on its way is still of its old role
    there = 6 + sum(more * (end_ns - joins.time_ns)) / end_ns
    assert roles["prefill"]["instances"] == pytest.approx(there)
    assert roles["prefill"]["instances"] + roles["decode"]["instances"] == pytest.approx(8)


def test_engines_that_need_not_switch_do_not(tmp_path):
    calm = ["workload.arrivals.poisson.rate=2 / s", "workload.requests=40"]
    stays = run(tmp_path, "serving.role_switch=null", *calm, name="stays")
    found = run(tmp_path, *calm)
    assert found.requests.equals(stays.requests)


SHARING = """
schema: 1
seed: 7
topology: {preset: cloudmatrix384}
workload:
  requests: 150
  arrivals: {poisson: {rate: 20 / s}}
  prefixes: {count: 8, tokens: 4096, exponent: 0}
  prompt_tokens: {lognormal: {median: 1500, sigma: 0.9, max: 8000}}
  output_tokens: {lognormal: {median: 60, sigma: 0.8, max: 500}}
serving:
  model: llama-3.1-8b
  prefill:
    instances: 1
    batcher: chunked_prefill
    kv: {memory_utilisation: 0.4, prefix_cache: {unit_tokens: 512, tiers: [%s]}}
  decode: {instances: 3}
  role_switch: {policy: thresholds, interval: 500 ms, delay: 300 ms}
"""


@pytest.mark.parametrize(
    "tier",
    [
        "{capacity: 1 TiB, fabric: {plane: ub}, write: through}",
        "{capacity: 1 TiB, bandwidth: 100 GB/s, write: through, shared: true}",
    ],
)
def test_an_engine_that_joins_a_pool_shares_its_tiers(tmp_path, tier):
    file = tmp_path / "scenario.yaml"
    file.write_text(SHARING % tier)
    found = simulate(load(file), out=tmp_path / "run", check=True)
    joined = found.events[(found.events.kind == "joins pool") & found.events.subject.str.startswith("prefill")]
    assert len(joined) >= 1
    assert found.requests.prefill_instance.isin(joined.subject).any()
    [tiers] = found.summary["tiers"]["prefill"]
    unit_bytes = 512 * 2 * 32 * 8 * 128 * 2  # tokens, keys and values, layers, heads, channels, bf16
    assert tiers["written_bytes"] == 8 * 4096 // 512 * unit_bytes  # whoever computes a unit, it is kept once


APART = """
schema: 1
topology: {preset: clos-h100, nodes: 5}
workload: {requests: 60, arrivals: {poisson: {rate: 20 / s}}, prompt_tokens: 2000, output_tokens: 100}
serving:
  model: deepseek-v2-lite
  prefill: {instances: 2, layout: {tensor: 8}}
  decode: {instances: 2, layout: {tensor: 4}, expert_servers: {devices: 4}, %s}
  role_switch: {policy: {balance: {prefill_requests: 1, decode_requests: 2}}, interval: 300 ms, delay: 50 ms}
"""


def test_memory_goes_by_where_the_experts_of_an_engine_lie_whatever_its_role(tmp_path):
    # an engine that came from prefill had the KV blocks of one whose experts are on servers, and computed them itself
    file = tmp_path / "scenario.yaml"
    file.write_text(APART % "")
    found = simulate(load(file), out=tmp_path / "run", check=True)
    assert "decode-2" in set(found.events[found.events.kind == "joins pool"].subject)
    blocks = found.instances.groupby("instance").kv_total_blocks.first()
    assert blocks["decode-2"] == blocks["prefill-0"] < blocks["decode-0"]  # the batcher and KV settings are alike


def test_an_engine_that_does_not_fit_in_its_other_role_is_refused_in_its_place(tmp_path):
    file = tmp_path / "scenario.yaml"
    file.write_text((APART % "batcher: {continuous: {max_batch_tokens: 1100000}}").replace("tensor: 4", "tensor: 8"))
    with pytest.raises(InputError, match=r"scenario.yaml:7:\d+: serving.prefill: in the role of decode, .* not fit"):
        simulate(load(file), out=tmp_path / "run")
