"""What routers go by: of an engine, the time of a step that all its ranks take together."""

import json

import pytest

from simulator import load
from simulator.build.pools import engine_traits
from simulator.build.serving import plan
from simulator.model.forward import Work

LINEAR = {"linear": {"prefill": {"per_token": "1 us"}, "decode": {"fixed": "9 ms", "per_context_token": "80 ns"}}}


@pytest.mark.parametrize(
    ("layout", "cost"),
    [
        ({"data": 4, "expert": 4}, "roofline"),
        ({"tensor": 2, "pipeline": 2}, "roofline"),
        ({"tensor": 4}, "roofline"),
        ({"data": 4, "expert": 4}, LINEAR),
        ({"tensor": 2, "pipeline": 2}, LINEAR),
    ],
)
def test_predictions_are_of_all_ranks_of_an_engine(tmp_path, layout, cost):
    serving = {"model": "qwen3-30b-a3b", "cost": cost, "colocated": {"instances": 1, "layout": layout}}
    lengths = {"prompt_tokens": 100, "output_tokens": 10}
    workload = {"requests": 1, "arrivals": {"constant": {"rate": "1 / s"}}} | lengths
    value = {"schema": 1, "topology": {"preset": "clos-h100", "nodes": 1}, "workload": workload, "serving": serving}
    (tmp_path / "run.yaml").write_text(json.dumps(value))
    engine = plan(load(tmp_path / "run.yaml")).groups[0].engine
    traits, ranks, tokens = engine_traits(engine, 1.0), engine.ranks, engine.limits.max_batch_tokens
    for each in (1, 8, 100):
        step_ns = engine.cost.together_ns([Work(batch=each, context=3000 * each)] * ranks)
        assert traits.step_ns(each * ranks, 3000 * each * ranks) == pytest.approx(step_ns, rel=1e-3)
    full = Work(tokens, tokens * (tokens + 1) // 2, 1)
    prefill_ns = engine.cost.together_ns([full] * ranks) / ranks  # a stage takes up the next as soon as it may
    assert traits.prefill_ns_per_token == pytest.approx(prefill_ns / tokens, rel=1e-9)
