"""Laws of parallel samples: first tokens as of one answer, KV memory in closed form, and what is refused."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_batcher_laws import case
from test_batcher_twins import BLOCK, run

from simulator.build.workload import plan_workload
from simulator.errors import InputError
from simulator.scenario.load import load
from simulator.serving.admission import Admission
from simulator.serving.request import Request, Traits


@settings(max_examples=50, deadline=None)
@given(prompt=st.integers(1, 40), output=st.integers(1, 30), samples=st.integers(1, 6))
def test_memory_is_the_prompt_once_and_each_answer(prompt, output, samples):
    _, seen = run([(0, prompt, output, 0, 1, samples)], case("continuous", "fcfs", blocks=10_000))
    shared = prompt // BLOCK
    whole = -(-(prompt + output - 1) // BLOCK)
    copies = samples if output > 1 else 1
    assert seen.kv_max == shared + copies * (whole - shared)


@settings(max_examples=50, deadline=None)
@given(
    prompts=st.lists(st.integers(1, 40), min_size=1, max_size=6),
    output=st.integers(1, 30),
    samples=st.integers(2, 5),
    batcher=st.sampled_from(["continuous", "static", "orca"]),
)
def test_first_tokens_are_those_of_one_answer(prompts, output, samples, batcher):
    """All arrive at once and there are seats and memory: nobody's prefill waits for who decodes."""
    engine = case(batcher, "fcfs", blocks=10_000, max_running=100, max_batch_tokens=1000)
    first = [
        {i: r.first_token_ns for i, r in run([(0, p, output, 0, 1, n) for p in prompts], engine)[0].items()}
        for n in (1, samples)
    ]
    assert first[0] == first[1]


def test_what_no_engine_could_hold_is_refused():
    # 10 + 6 tokens hold 15 at most, in blocks of 4: two of the prompt for all, and two more for each answer.
    def asked(samples):
        return Request(0, 0, 10, 6, traits=Traits(samples=samples))

    assert Admission(100, 100, 100, 8, {(8, 4)}).refusal(asked(3)) is None
    assert Admission(100, 100, 100, 8, {(7, 4)}).refusal(asked(3)) == "larger than the decode KV cache"
    assert Admission(100, 100, 100, 2, {(8, 4)}).refusal(asked(3)) == "more samples than seats"


@pytest.mark.parametrize(("samples", "refused"), [(1, False), (2, True)])
def test_drafts_are_for_one_answer(tmp_path, samples, refused):
    pool = {"instances": 1, "speculation": {"draft": "ngram", "tokens": 2, "acceptance": 0.5}}
    file = tmp_path / "drafted.yaml"
    workload = {"requests": 3, "arrivals": {"poisson": {"rate": "9 / s"}}, "prompt_tokens": 9, "output_tokens": 9}
    file.write_text(
        json.dumps(
            {
                "schema": 1,
                "topology": {"preset": "clos-h100", "nodes": 1},
                "workload": workload | {"samples": samples},
                "serving": {"model": "llama-3.1-8b", "colocated": pool},
            }
        )
    )
    if not refused:
        plan_workload(load(file), [])
        return
    with pytest.raises(InputError, match="one answer of each prompt only"):
        plan_workload(load(file), [])
