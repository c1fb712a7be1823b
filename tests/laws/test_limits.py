"""Limits from costs alone against runs: no run beats them, and one that never queues comes close."""

import json
import random
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from test_random_scenarios import run, scenarios

from simulator import catalog, load
from simulator.build.limits import SLACK, cut, least_prefill_ns, limits_of
from simulator.build.serving import plan
from simulator.device.accelerator import load_accelerator
from simulator.device.cost import RooflineCost
from simulator.errors import InputError
from simulator.model.layout import Layout
from simulator.model.precision import Precision
from simulator.model.transformer import load_model
from simulator.results.metrics import lookup
from simulator.scenario.expectation import Expectation

LAYOUTS = (("llama-3.1-8b", 1), ("llama-3.1-70b", 4), ("qwen3-30b-a3b", 1), ("gpt-oss-120b", 2))


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(value=scenarios)
def test_no_run_beats_them(tmp_path_factory, value):
    folder = tmp_path_factory.mktemp("limits")
    found = run(folder, value, "run")
    if found is None:
        return
    limits = limits_of(plan(load(folder / "run.yaml")))
    for metric, least in limits.least.items():
        seen = lookup(found.summary, metric)
        assert seen is None or seen >= least * (1 - 1e-9) - 1e-9, (metric, seen, least)
    for metric, most in limits.most.items():
        seen = lookup(found.summary, metric)
        assert seen is None or seen <= most * (1 + 1e-9), (metric, seen, most)


@pytest.mark.parametrize("device", [name.removeprefix("devices/") for name in catalog.names("topologies/devices")])
def test_pieces_and_more_work_take_no_less(device):
    """Unequal pieces take no less than the best equal ones, more work no less time, but for what the fit leaves."""
    draw, bound = random.Random(7), (1 + SLACK) / 2
    for name, tensor in LAYOUTS:
        model = load_model(name)
        try:
            cost = RooflineCost(model, Layout(tensor=tensor), load_accelerator(device), model.checkpoint or Precision())
        except InputError:  # a device without the format, or with too small a domain
            continue
        for _ in range(40):
            whole = draw.choice([draw.randint(4, 300), draw.randint(4, 20_000)])
            cuts = [0, *sorted(draw.sample(range(1, whole), draw.randint(1, 3))), whole]
            pieces = list(pairwise(cuts))
            parts = [cost.prefill_ns(b - a, (b - a) * a + (b - a) * (b - a + 1) // 2, 1) for a, b in pieces]
            together = cost.prefill_ns(whole, whole * (whole + 1) // 2, 1)
            assert sum(parts) >= bound * least_prefill_ns(cost.step_ns, whole), (name, cuts)
            assert together >= bound * parts[0], (name, cuts)
            batch, context = draw.randint(1, 200), draw.randint(1, 8000)
            one = cost.mixed_ns(0, 0, 0, 1, context)
            assert cost.mixed_ns(0, 0, 0, batch, batch * context) >= bound * one, (name, batch, context)
            assert cost.mixed_ns(whole, whole * whole, 1, 1, context) >= bound * max(one, together)


SCENARIO = {
    "schema": 1,
    "topology": {"preset": "clos-h100", "nodes": 1},
    "workload": {
        "requests": 50,
        "arrivals": {"constant": {"rate": "0.1 / s"}},
        "prompt_tokens": {"constant": {"value": 4000}},
        "output_tokens": {"constant": {"value": 50}},
    },
    "serving": {"model": "llama-3.1-8b", "colocated": {"instances": 2, "layout": {"tensor": 1}}},
    "slo": {"ttft": "2 s", "tpot": "50 ms"},
}


def test_a_run_without_queues_is_close_to_them(tmp_path):
    (tmp_path / "run.yaml").write_text(json.dumps(SCENARIO))
    found = run(tmp_path, SCENARIO, "run")
    limits = limits_of(plan(load(tmp_path / "run.yaml")))
    for metric in ("ttft.p99", "ttft.mean", "tpot.p50", "e2e.max"):
        assert lookup(found.summary, metric) == pytest.approx(limits.least[metric] / SLACK, rel=0.03)
    assert limits.most["goodput"] == 1


def test_what_is_cut_and_what_it_says(tmp_path):
    (tmp_path / "run.yaml").write_text(json.dumps(SCENARIO))
    scenario = load(tmp_path / "run.yaml")
    ttft = limits_of(plan(scenario)).least["ttft.p99"]
    assert cut(scenario, [Expectation("ttft.p99", "<=", ttft * 1.01)]) == {}
    (line,) = cut(scenario, [Expectation("ttft.p99", "<=", ttft * 0.99), Expectation("goodput", ">=", 1.0)]).values()
    assert line.startswith("ttft.p99 <= ")
    assert "in any run" in line
    tight = load(tmp_path / "run.yaml", ["slo.ttft=1 ms"])
    assert "goodput >= 0.5 (at most 0 in any run)" in cut(tight, [Expectation("goodput", ">=", 0.5)]).values()
    prices = limits_of(plan(scenario))
    assert prices.least["price.dollars_per_h"] == prices.most["price.dollars_per_h"]


def test_contexts_that_share_their_blocks_are_not_limited_by_their_number(tmp_path):
    """Prompts of 4,000 shared tokens and 40 of their own: 600 blocks hold two contexts alone, and many together."""
    lengths = {"prompt_tokens": 40, "output_tokens": 300, "prefixes": {"count": 1, "tokens": 4000}}
    workload = SCENARIO["workload"] | lengths | {"requests": 60, "arrivals": {"constant": {"rate": "1000 / s"}}}
    engine = {"instances": 1, "kv": {"blocks": 600, "prefix_cache": {}}}
    value = SCENARIO | {"workload": workload, "serving": {"model": "llama-3.1-8b", "colocated": engine}}
    (tmp_path / "run.yaml").write_text(json.dumps(value))
    found = run(tmp_path, value, "run")
    most = limits_of(plan(load(tmp_path / "run.yaml"))).most["throughput.output_tokens_per_s"]
    assert lookup(found.summary, "throughput.output_tokens_per_s") <= most


def test_several_answers_to_a_prompt_leave_only_what_holds_of_each(tmp_path):
    """A request may be refused for its samples and tokens are weighed by them: only the least of all is a limit."""
    lengths = {"prompt_tokens": {"uniform": {"low": 100, "high": 4000}}}
    workload = SCENARIO["workload"] | lengths | {"samples": {"uniform": {"low": 1, "high": 4}}}
    (tmp_path / "run.yaml").write_text(json.dumps(SCENARIO | {"workload": workload}))
    limits = limits_of(plan(load(tmp_path / "run.yaml")))
    assert limits.least["ttft.p50"] == limits.least["ttft.max"]
    assert "throughput.output_tokens_per_s" not in limits.most
