"""Parts of an engine that meet: what one of them does must not show in the figures of another."""

import json

import pytest

from simulator.build.run import simulate
from simulator.scenario.load import load

LINEAR = {
    "prefill": {"fixed": "1 ms", "per_token": "10 us", "per_attended": "1 us"},
    "decode": {"fixed": "2 ms", "per_sequence": "100 us", "per_context_token": "1 us"},
}


def run(folder, workload, seed=3, **serving):
    content = {
        "schema": 1,
        "seed": seed,
        "topology": {"preset": "clos-h100", "nodes": 1},
        "workload": workload,
        "serving": {"model": "llama-3.1-8b", "cost": {"linear": LINEAR}} | serving,
        "slo": {"ttft": "100 ms", "tpot": "20 ms"},
    }
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "scenario.yaml"
    file.write_text(json.dumps(content))
    return simulate(load(file), out=folder / "run", check=True).requests.sort_values("request_id", ignore_index=True)


def test_a_padded_batch_attends_to_what_a_cache_holds(tmp_path):
    """Prompts of 32 shared tokens and 8 of their own, one every 2 s: the second computes 8 after 32 cached ones."""
    workload = {
        "requests": 2,
        "arrivals": {"constant": {"rate": "0.5 / s"}},
        "prompt_tokens": 8,
        "output_tokens": 1,
        "prefixes": {"count": 1, "tokens": 32},
    }
    for batcher in ("static", "continuous"):
        engine = {"instances": 1, "batcher": batcher, "kv": {"prefix_cache": {}}}
        rows = run(tmp_path / batcher, workload, colocated=engine)
        assert list(rows.cached_tokens) == [0, 32]
        whole, rest = 1000 + 10 * 40 + 40 * 41 // 2, 1000 + 10 * 8 + 8 * 32 + 8 * 9 // 2
        assert list(rows.finish_ns - rows.prefill_start_ns) == [1000 * whole, 1000 * rest]


@pytest.mark.parametrize("router", ["slo_aware", "cost_aware", "least_tokens", "least_kv"])
@pytest.mark.parametrize("pools", [1, 2])
@pytest.mark.parametrize("reports", ["0 s", "7 ms"])
def test_when_the_first_token_is_sent_changes_nothing_else(tmp_path, router, pools, reports):
    workload = {
        "requests": 150,
        "arrivals": {"gamma": {"rate": "60 / s", "cv": 3.0}},
        "prompt_tokens": {"uniform": {"low": 10, "high": 900}},
        "output_tokens": {"uniform": {"low": 1, "high": 80}},
    }
    engine = {"instances": 3, "batcher": {"continuous": {"max_running": 8, "max_batch_tokens": 1500}}}
    engines = {"colocated": engine} if pools == 1 else {"prefill": engine, "decode": engine}
    common = {"router": router, "router_view": {"report_interval": reports}} | engines
    late = {"stream_interval": 20} | ({"first_token": "decode"} if pools == 2 else {})
    at_once, later = run(tmp_path / "at_once", workload, **common), run(tmp_path / "late", workload, **common, **late)
    assert (later.first_token_ns > at_once.first_token_ns).sum() > 100
    rest = [name for name in at_once.columns if name != "first_token_ns"]
    assert at_once[rest].equals(later[rest])
