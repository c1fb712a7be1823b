"""Who sends a request's first tokens, and how many together: what clients see moves, what engines do does not."""

from typing import Any

import pytest

from simulator import load, simulate
from simulator.errors import InputError

BASE = {
    "schema": 1,
    "seed": 5,
    "topology": {"preset": "clos-h100", "nodes": 2},
    "workload": {
        "requests": 200,
        "arrivals": {"poisson": {"rate": "20 / s"}},
        "prompt_tokens": {"lognormal": {"median": 500, "sigma": 0.8, "max": 4000}},
        "output_tokens": {"lognormal": {"median": 60, "sigma": 1.0, "max": 400}},
    },
    "slo": {"ttft": "1 s"},
}
LAYOUT = {"instances": 2, "layout": {"tensor": 2}}
ONE = {"model": "llama-3.1-8b", "colocated": LAYOUT}
TWO = {"model": "llama-3.1-8b", "prefill": LAYOUT, "decode": LAYOUT}
ENGINE = ("prefill_start_ns", "prefill_end_ns", "decode_start_ns", "finish_ns", "kv_wait_ns", "kv_transfer_ns")


def run(tmp_path: Any, serving: dict[str, Any], **more: Any) -> Any:
    scenario = load(BASE | {"serving": serving | more})
    return simulate(scenario, out=tmp_path / "-".join(["run", *map(str, more.values())]), check=True)


@pytest.mark.parametrize("serving", [ONE, TWO], ids=["colocated", "pools"])
def test_tokens_sent_together_come_with_the_last_of_them_and_change_nothing_else(tmp_path: Any, serving: Any) -> None:
    whose = {"first_token": "decode"} if serving is TWO else {}
    plain, many = run(tmp_path, serving), run(tmp_path, serving, stream_interval=20, **whose)
    before, after = (found.requests.set_index("request_id").sort_index() for found in (plain, many))
    for column in ENGINE:
        assert (before[column] == after[column]).all(), column
    assert (before.first_token_ns == before.prefill_end_ns).all()
    assert (after.first_token_ns > after.prefill_end_ns).where(after.output_tokens > 1, True).all()
    short = after[after.output_tokens <= 20]
    assert len(short) > 5
    assert (short.first_token_ns == short.finish_ns).all()
    long = after[after.output_tokens > 200]
    share = (long.first_token_ns - long.decode_start_ns) / (long.finish_ns - long.decode_start_ns)
    assert (share * (long.output_tokens - 1) / 19).median() == pytest.approx(1, rel=0.1)  # prompts come in between
    ours, theirs = many.summary, plain.summary
    assert ours["ttft"]["mean"] > theirs["ttft"]["mean"] + 10 * theirs["tpot"]["p50"]
    assert ours["tpot"]["mean"] < theirs["tpot"]["mean"]
    assert ours["itl"] == pytest.approx(theirs["itl"], rel=1e-6)  # sums of whole ns over jumps cut elsewhere
    assert ours["throughput"] == theirs["throughput"]


def test_a_decode_engine_sends_the_first_token_when_it_has_the_cache(tmp_path: Any) -> None:
    found = run(tmp_path, TWO, first_token="decode").requests
    moved = found[found.output_tokens > 1]
    there = moved.prefill_end_ns + moved.kv_wait_ns + moved.kv_transfer_ns
    assert (moved.first_token_ns >= there).all()
    assert (moved.first_token_ns <= moved.decode_start_ns).all()
    alone = found[found.output_tokens == 1]
    assert (alone.first_token_ns == alone.prefill_end_ns).all()


@pytest.mark.parametrize(
    ("serving", "more", "path", "said"),
    [
        (ONE, {"first_token": "decode"}, "serving.first_token", "one pool for both"),
        (TWO, {"stream_interval": 20}, "serving.stream_interval", "the prefill engine sends the first token alone"),
        (ONE, {"stream_interval": 0}, "serving.stream_interval", ""),
        (TWO, {"first_token": "decoder"}, "serving.first_token", "decode"),
    ],
)
def test_what_says_nothing_is_refused(serving: Any, more: Any, path: str, said: str) -> None:
    with pytest.raises(InputError) as caught:
        load(BASE | {"serving": serving | more})
    [problem] = caught.value.problems
    assert problem.path == path
    assert said in str(problem)
