"""Workloads in scenarios: what reaches the engines, what has no effect and is said, traces of all kinds replayed."""

import json
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from simulator.build.run import simulate
from simulator.build.workload import plan_workload
from simulator.errors import InputError
from simulator.results.run import Run
from simulator.scenario.load import load
from simulator.serving.recording import Recording
from simulator.serving.request import PLAIN, Request
from simulator.workload.schema import BLOCK_KEY, OPTIONAL, make_batch
from simulator.workload.trace import write_trace

DATA = Path(__file__).parents[2] / "shared" / "data"
DRAWN = {
    "requests": 300,
    "arrivals": {"poisson": {"rate": "20 / s"}},
    "prompt_tokens": {"lognormal": {"median": 200, "sigma": 0.8, "max": 2000}},
    "output_tokens": {"uniform": {"low": 1, "high": 60}},
}


def scenario(folder: Path, workload: dict[str, Any], pool: dict[str, Any] | None = None, **serving: Any) -> Path:
    path = folder / "scenario.yaml"
    colocated = {"instances": 2, "layout": {"tensor": 1}} | (pool or {})
    content = {
        "schema": 1,
        "seed": 5,
        "topology": {"preset": "clos-h100", "nodes": 1},
        "workload": workload,
        "serving": {"model": "llama-3.1-8b", "colocated": colocated} | serving,
    }
    path.write_text(json.dumps(content))
    return path


def run(folder: Path, *arguments: Any, **serving: Any) -> Run:
    return simulate(load(scenario(folder, *arguments, **serving)), out=folder / "run", check=True)


def warnings(of: Run) -> list[str]:
    found: list[str] = json.loads((of.path / "summary.json").read_text())["warnings"]
    return [line for line in found if "workload" in line or "trace" in line or "prefix" in line or "seed" in line]


def trace(folder: Path, leave_out: tuple[str, ...] = (), rows: int = 60) -> Path:
    """A trace with every optional column but some."""
    columns: dict[str, Any] = {
        "arrival_ns": [i * 20_000_000 for i in range(rows)],
        "prompt_tokens": [640 + i for i in range(rows)],
        "output_tokens": [40] * rows,
        "session": [f"s{i % 7}" for i in range(rows)],
        "turn": [i // 7 for i in range(rows)],
        "prefix_hashes": [[1, 2, i % 7] for i in range(rows)],
        "model": ["m"] * rows,
        "tenant": [("x", "y", None)[i % 3] for i in range(rows)],
        "priority": [i % 2 for i in range(rows)],
        "samples": [1] * rows,
        "predicted_tokens": [30 + i for i in range(rows)],
        "cancel_ns": [1_000_000 if i % 10 == 0 else None for i in range(rows)],
        "prefix": [i % 2 for i in range(rows)],
        "prefix_tokens": [128] * rows,
    }
    kept = {name: values for name, values in columns.items() if name not in leave_out}
    path = folder / "trace.parquet"
    write_trace(path, [make_batch(kept, rows)], {BLOCK_KEY: "128"})
    return path


def without_effect(folder: Path, path: Path, *arguments: Any, **serving: Any) -> set[str]:
    notes: list[str] = []
    plan_workload(load(scenario(folder, {"trace": str(path)}, *arguments, **serving)), notes)
    lines = [note for note in notes if note.startswith("trace column")]
    return {name for line in lines for name in line.removeprefix("trace column ").split(" has")[0].split(", ")}


CACHED = {"kv": {"prefix_cache": {}}}


@pytest.mark.parametrize(
    ("leave_out", "pool", "serving", "read"),
    [
        ((), {}, {}, set()),
        ((), CACHED, {}, {"prefix_hashes"}),
        (("prefix_hashes",), CACHED, {}, {"session", "turn", "prefix", "prefix_tokens"}),
        ((), {"queue": "priority"}, {}, {"priority"}),
        ((), {"queue": "fair"}, {}, {"tenant"}),
        ((), {"queue": "shortest_predicted"}, {}, {"predicted_tokens"}),
        ((), {}, {"router": "least_tokens"}, {"predicted_tokens"}),
        ((), {}, {"router": "session_affinity"}, {"session", "turn"}),
        ((), CACHED, {"router": "session_affinity"}, {"session", "turn", "prefix_hashes"}),
        ((), {}, {"admission": {"tenant": {"requests": 5}}}, {"tenant"}),
    ],
)
def test_columns_that_nothing_reads_are_said(
    tmp_path: Path, leave_out: tuple[str, ...], pool: dict[str, Any], serving: dict[str, Any], read: set[str]
) -> None:
    found = without_effect(tmp_path, trace(tmp_path, leave_out), pool, **serving)
    assert found == set(OPTIONAL) - set(leave_out) - read - {"cancel_ns", "samples", "sample_tokens"}


def test_laws_that_nothing_reads_are_said(tmp_path: Path) -> None:
    more = {
        "tenants": {"a": 1, "b": 2},
        "priorities": {"0": 1, "3": 1},
        "prediction": {},
        "prefixes": {"count": 3, "tokens": 64},
        "sessions": {"turns": 2, "think_time": {"constant": {"value": "1 s"}}},
    }
    notes: list[str] = []
    plan_workload(load(scenario(tmp_path, DRAWN | more)), notes)
    assert [note.split(" ")[0] for note in notes] == [f"workload.{key}" for key in more]
    notes.clear()
    plan_workload(load(scenario(tmp_path, DRAWN | more, CACHED | {"queue": "priority"}, router="least_tokens")), notes)
    assert [note.split(" ")[0] for note in notes] == ["workload.tenants"]


def test_what_callers_say_reaches_the_requests(tmp_path: Path) -> None:
    path = trace(tmp_path)
    plan = plan_workload(load(scenario(tmp_path, {"trace": str(path)})), [])
    [batch] = plan.arrivals(1.0)
    traits = list(batch.traits)
    assert traits[:2] == [("x", 0, 30, 1, 1_000_000, None), ("y", 1, 31, 1, -1, None)]
    assert traits[2].tenant is None
    plain = trace(tmp_path, OPTIONAL)
    [batch] = plan_workload(load(scenario(tmp_path, {"trace": str(plain)})), []).arrivals(1.0)
    assert all(said is PLAIN for said, _ in zip(batch.traits, range(60), strict=False))
    shared = trace(tmp_path, ("predicted_tokens", "cancel_ns"))
    [batch] = plan_workload(load(scenario(tmp_path, {"trace": str(shared)})), []).arrivals(1.0)
    assert len({id(said) for said in list(batch.traits)}) == 6


def test_recorded_cancels_end_requests_in_time(tmp_path: Path) -> None:
    rows = run(tmp_path, {"trace": str(trace(tmp_path))}).requests
    given_up = rows[rows["outcome"] == "cancelled"]
    assert list(given_up["request_id"]) == list(range(0, 60, 10))
    assert (rows[rows["outcome"] != "cancelled"]["outcome"] == "finished").all()


def test_a_queue_by_predicted_length_needs_predictions(tmp_path: Path) -> None:
    pool = {"queue": "shortest_predicted"}
    known, unknown = trace(tmp_path), tmp_path / "other"
    unknown.mkdir()
    plan_workload(load(scenario(tmp_path, {"trace": str(known)}, pool)), [])
    with pytest.raises(InputError, match=r"predicted_tokens"):
        plan_workload(load(scenario(tmp_path, {"trace": str(trace(unknown, ("predicted_tokens",)))}, pool)), [])
    with pytest.raises(InputError, match=r"needs `workload.prediction`"):
        load(scenario(tmp_path, DRAWN, pool))


def test_turns_find_the_turn_before_in_the_cache(tmp_path: Path) -> None:
    """With memory to spare and one engine, a turn finds all full units of the turn before, which has long ended."""
    sessions = {"turns": 3, "think_time": {"constant": {"value": "5 s"}}}
    prefixes = {"count": 2, "tokens": 160}
    pool = {"instances": 1, "kv": {"prefix_cache": {"unit_tokens": 16}}}
    drawn = DRAWN | {"requests": 600, "sessions": sessions, "prefixes": prefixes}
    path = scenario(tmp_path, drawn, pool)
    found: dict[int, int] = {}
    ended = Recording.ended

    def seen(self: Recording, request: Request) -> None:
        found[request.request_id] = request.cached_tokens
        ended(self, request)

    with mock.patch.object(Recording, "ended", seen):
        made = simulate(load(path), out=tmp_path / "run", check=True)
    assert not warnings(made)
    rows = made.requests.set_index("request_id")
    later = 0
    for _, turns in rows.sort_values("turn").groupby("session"):
        contexts = (turns["prompt_tokens"] + turns["output_tokens"]).tolist()
        for number, context in zip(turns.index[1:], contexts, strict=False):
            # The last token of an answer is never an input, so its keys and values are never computed.
            assert context // 16 * 16 - found[number] in (0, 16)
            assert found[number] >= (context - 1) // 16 * 16
            later += 1
    assert later > 100
    first = rows.index[rows["turn"] == 0]
    assert sum(found[number] == 160 for number in first) > 0.8 * len(first)  # but for the first of each prefix


def test_a_closed_loop_has_no_sessions(tmp_path: Path) -> None:
    loop = {"arrivals": {"closed_loop": {"clients": 2}}}
    sessions = {"turns": 3, "think_time": {"constant": {"value": "1 s"}}}
    with pytest.raises(InputError, match="closed loop"):
        load(scenario(tmp_path, DRAWN | loop | {"sessions": sessions}))


@pytest.mark.skipif(not DATA.is_dir(), reason="needs the public traces in ../shared/data")
@pytest.mark.parametrize(
    ("name", "form", "start", "duration"),
    [
        ("servegen/language.m-large.trace.parquet", "servegen", "2 d", "2 s"),
        ("mooncake/conversation_trace.jsonl.gz", "mooncake", "0 s", "10 s"),
        ("azure-llm-2023/AzureLLMInferenceTrace_conv.csv.gz", "azure", "0 s", "10 s"),
    ],
)
def test_public_workloads_are_replayed(tmp_path: Path, name: str, form: str, start: str, duration: str) -> None:
    section = {"trace": str(DATA / name), "format": form, "start": start, "duration": duration}
    made = run(tmp_path, section, CACHED if form == "mooncake" else {}, max_context=131072)
    assert len(made.requests) > 10
    seeded = [line for line in warnings(made) if line.startswith("seed")]
    assert bool(seeded) == (form != "servegen")
