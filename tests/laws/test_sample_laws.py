"""Laws of parallel samples: first tokens as of one answer, KV memory in closed form, and what is refused."""

import json
from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_batcher_laws import case
from test_batcher_twins import BLOCK, run
from test_decode_jumps import Seen

from simulator.build.workload import plan_workload
from simulator.clock import Clock
from simulator.errors import InputError
from simulator.scenario.load import load
from simulator.serving.admission import Admission
from simulator.serving.lone_rank import kind_of
from simulator.serving.paging import Paging
from simulator.serving.prefix_cache import PrefixCache
from simulator.serving.request import Request, Traits
from simulator.workload.parquet import write_trace
from simulator.workload.schema import make_batch


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

    assert Admission(100, 100, 100, 8, [(8, Paging(4))]).refusal(asked(3)) is None
    assert Admission(100, 100, 100, 8, [(7, Paging(4))]).refusal(asked(3)) == "larger than the decode KV cache"
    assert Admission(100, 100, 100, 2, [(8, Paging(4))]).refusal(asked(3)) == "more samples than seats"


def test_answers_that_end_at_different_times_by_hand():
    """A prompt of 10 in blocks of 4; answers of 1, 3 and 7 tokens: three, then two sequences decode, then one."""
    done, seen = run([(0, 10, 3, 0, 1, 3, [1, 7])], case("continuous", "fcfs", blocks=100))
    r = done[0]
    assert (r.output_tokens, r.made_tokens, r.samples) == (7, 11, 1)
    assert seen.tokens == 11
    assert seen.gaps_total == 8
    # With two tokens more (12 held) there are the prompt's 2 full blocks and one each; the longest holds 16 in the end.
    assert seen.kv_max == 2 + 2
    costs = case("continuous", "fcfs").costs
    contexts = [2 * 11, 2 * 12, 13, 14, 15, 16]
    steps = [fixed + slope * c for c in contexts for fixed, slope, _ in [costs.decode(2 if c > 20 else 1, c)]]
    assert r.finish_ns - r.first_token_ns == pytest.approx(sum(steps), abs=1)


def test_whole_and_most_blocks_in_closed_form():
    def asked(*further):
        return Request(0, 0, 10, 6, traits=Traits(samples=1 + len(further), sample_tokens=further))

    # 15 tokens at most are 4 blocks, 2 of them shared; an answer of 2 holds 11 (1 of its own), one of 1 nothing.
    assert (Paging(4).whole(asked(2, 1)), Paging(4).most(asked(2, 1))) == (2 + 2 + 1, 2 + 2)
    assert (Paging(4).whole(asked(6, 6)), Paging(4).most(asked(6, 6))) == (2 + 6, 2 + 6)
    assert (Paging(4).whole(asked(3, 3)), Paging(4).most(asked(3, 3))) == (2 + 2 + 1 + 1, 2 + 3)
    assert Admission(100, 100, 100, 8, [(5, Paging(4))]).refusal(asked(3, 3)) is None
    assert Admission(100, 100, 100, 8, [(4, Paging(4))]).refusal(asked(3, 3)) == "larger than the decode KV cache"
    assert Admission(16, 100, 100, 8).refusal(asked(7)) == "longer than max_context"


@pytest.mark.parametrize("first", [3, 9])
def test_a_cache_keeps_the_first_answer_when_it_ends(first):
    """Whether the first answer ends before the other or after it, a later turn finds it, and the other never does."""
    env, seen, done = Clock(), Seen(), {}
    engine = case("continuous", "fcfs", blocks=100).engine()._replace(prefixes=lambda: PrefixCache(4, 4))
    instance = kind_of(engine)(env, "colocated-0", engine, (0,), seen, lambda r, _: done.update({r.request_id: r}))
    keys = range(100)
    instance.submit(
        Request(0, 0, 10, first, keys=keys[: (10 + first) // 4], traits=Traits(samples=2, sample_tokens=[6]))
    )
    while env.peek() != inf:
        env.step()
        instance.check()
    instance.submit(Request(1, env.now, 40, 1, keys=keys[:10]))
    while env.peek() != inf:
        env.step()
        instance.check()
    assert done[1].cached_tokens == (10 + first - 1) // 4 * 4


def scenario(tmp_path, workload, **pool):
    file = tmp_path / "several.yaml"
    value = {"schema": 1, "topology": {"preset": "clos-h100", "nodes": 1}}
    value |= {"serving": {"model": "llama-3.1-8b", "colocated": {"instances": 1} | pool}}
    drawn = {"requests": 30, "arrivals": {"poisson": {"rate": "9 / s"}}, "prompt_tokens": 90}
    file.write_text(json.dumps(value | {"workload": (drawn if "trace" not in workload else {}) | workload}))
    return load(file)


def test_drawn_answers_follow_the_law_of_outputs_unless_another_is_given(tmp_path):
    law = {"uniform": {"low": 2, "high": 40}}
    [plain] = plan_workload(scenario(tmp_path, {"output_tokens": law}), []).batches()
    [own] = plan_workload(scenario(tmp_path, {"output_tokens": law, "samples": 3}), []).batches()
    [other] = plan_workload(scenario(tmp_path, {"output_tokens": law, "samples": 3, "sample_tokens": 7}), []).batches()
    for column in plain.schema.names:
        assert (plain.column(column) == own.column(column)) == (column not in ("samples", "sample_tokens")), column
    lengths = own.column("sample_tokens").to_pylist()
    assert all(len(each) == 2 and 2 <= min(each) <= max(each) <= 40 for each in lengths)
    assert len({tuple(each) for each in lengths}) > 20
    assert other.column("sample_tokens").to_pylist() == [[7, 7]] * 30


def test_answers_of_a_trace_are_alike_unless_it_says_how_long_they_are(tmp_path):
    columns = {"arrival_ns": [0, 1], "prompt_tokens": [9, 9], "output_tokens": [5, 6], "samples": [3, 1]}
    for name, more in (("alike", {}), ("said", {"sample_tokens": [[2, 8], None]})):
        write_trace(tmp_path / f"{name}.parquet", [make_batch(columns | more, 2)], {})
        workload = plan_workload(scenario(tmp_path, {"trace": str(tmp_path / f"{name}.parquet")}), [])
        [arrivals] = workload.arrivals(1.0)
        traits = list(arrivals.traits)
        assert [t.samples for t in traits] == [3, 1]
        assert [t.sample_tokens for t in traits] == ([[2, 8], None] if more else [None, None])
    drawn = scenario(tmp_path, {"trace": str(tmp_path / "said.parquet"), "samples": 2})
    notes = []
    [batch] = plan_workload(drawn, notes).batches()
    assert batch.column("sample_tokens").to_pylist() == [None, None]
    assert any("sample_tokens has no effect: it is drawn anew" in note for note in notes)


@pytest.mark.parametrize(
    ("lengths", "what"),
    [
        ([[2], None], "1 lengths, 2 answers after the first"),
        ([[2, 0], None], "0 is not between 1 and"),
        ([None, [4]], "1 lengths, 0 answers after the first"),
    ],
)
def test_lengths_of_a_trace_go_with_its_samples(tmp_path, lengths, what):
    columns = {"arrival_ns": [0, 1], "prompt_tokens": [9, 9], "output_tokens": [5, 6], "samples": [3, 1]}
    write_trace(tmp_path / "wrong.parquet", [make_batch(columns | {"sample_tokens": lengths}, 2)], {})
    with pytest.raises(InputError, match=what):
        list(plan_workload(scenario(tmp_path, {"trace": str(tmp_path / "wrong.parquet")}), []).batches())


def test_lengths_without_samples_are_said_to_have_no_effect(tmp_path):
    notes = []
    plan_workload(scenario(tmp_path, {"output_tokens": 9, "sample_tokens": 7}), notes)
    assert "workload.sample_tokens has no effect: every request wants one answer" in notes


def test_a_cache_of_large_units_cannot_keep_a_first_answer(tmp_path):
    law = {"uniform": {"low": 2, "high": 40}}
    sessions = {"turns": 3, "think_time": {"constant": {"value": "1 s"}}}
    workload = {"output_tokens": law, "samples": 2, "sessions": sessions}
    for tokens, refused in ((16, False), (32, True)):
        found = scenario(tmp_path, workload, kv={"block_tokens": 16, "prefix_cache": {"unit_tokens": tokens}})
        if refused:
            with pytest.raises(InputError, match="cannot keep the first of several answers"):
                plan_workload(found, [])
        else:
            plan_workload(found, [])


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
