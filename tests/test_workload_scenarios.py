"""Workloads in scenarios: what reaches the engines, what has no effect and is said, traces of all kinds replayed."""

import json
from datetime import UTC, datetime, timedelta
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


@pytest.mark.parametrize(
    ("queue", "serving", "said"),
    [
        ("priority", {}, ["serving.colocated.queue: no request has a priority"]),
        ("fair", {}, ["serving.colocated.queue: no request says whose it is: all are one tenant's"]),
        (
            "fcfs",
            {"admission": {"tenant": {"requests": 5}}},
            ["serving.admission.tenant: no request says whose it is: all are one tenant's"],
        ),
    ],
)
def test_what_nothing_is_said_of_makes_no_difference(
    tmp_path: Path, queue: str, serving: dict[str, Any], said: list[str]
) -> None:
    laws = {"tenants": {"a": 1, "b": 2}, "priorities": {"0": 1, "3": 1}}
    silent, known = trace(tmp_path, ("tenant", "priority")), DRAWN | laws
    for workload, expected in ((DRAWN, said), (known, []), ({"trace": str(silent)}, said), (laws, [])):
        notes: list[str] = []
        of = workload if workload is not laws else {"trace": str(silent)} | laws
        plan_workload(load(scenario(tmp_path, of, {"queue": queue}, **serving)), notes)
        assert [note for note in notes if note.startswith("serving")] == expected


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


def of_every_format(folder: Path) -> dict[str, dict[str, Any]]:
    """The same 300 requests, one each 100 ms, in every format; BurstGPT and CSV have a session of each five."""
    rows = [(i / 10, 600 + i, 1 + i % 9, f"s{i // 5}") for i in range(300)]
    at = [datetime(2024, 5, 10, tzinfo=UTC) + timedelta(seconds=second) for second, *_ in rows]
    lines = {
        "azure": ["TIMESTAMP,ContextTokens,GeneratedTokens"]
        + [f"{t:%Y-%m-%d %H:%M:%S.%f},{row[1]},{row[2]}" for t, row in zip(at, rows, strict=True)],
        "burstgpt": ["Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type,Session ID"]
        + [f"{t},m,{prompt},{output},0,x,{session}" for t, prompt, output, session in rows],
        "mooncake": [
            json.dumps({"timestamp": int(t * 1000), "input_length": p, "output_length": o, "hash_ids": [1, i]})
            for i, (t, p, o, _) in enumerate(rows)
        ],
        "csv": ["t,in,out,who"] + [f"{t},{prompt},{output},{session}" for t, prompt, output, session in rows],
    }
    columns = {"arrival": {"column": "t", "unit": "s"}, "prompt_tokens": "in", "output_tokens": "out", "session": "who"}
    sections: dict[str, dict[str, Any]] = {}
    for form, text in lines.items():
        (folder / form).write_text("\n".join(text) + "\n")
        sections[form] = {"trace": str(folder / form), "format": form} | ({"columns": columns} if form == "csv" else {})
    names = ("arrival_ns", "prompt_tokens", "output_tokens", "session")
    values = [[round(row[0] * 10**9) for row in rows], *([row[i] for row in rows] for i in (1, 2, 3))]
    write_trace(folder / "t.parquet", [make_batch(dict(zip(names, values, strict=True)), 300)], {})
    sections["canonical"] = {"trace": str(folder / "t.parquet")}
    return sections


ROW = ["arrival_ns", "prompt_tokens", "output_tokens", "session"]


@pytest.mark.parametrize("form", ["canonical", "azure", "burstgpt", "mooncake", "csv"])
def test_a_fraction_of_any_trace_is_replayed_and_the_rest_is_counted(tmp_path: Path, form: str) -> None:
    section = of_every_format(tmp_path)[form]
    found = {}
    for fraction in (1, 0.5, 0.2):
        made = simulate(load(scenario(tmp_path, section | {"fraction": fraction})), out=tmp_path / str(fraction))
        rows = made.requests.sort_values("request_id")
        found[fraction] = set(rows[ROW].itertuples(index=False, name=None))
        assert any(line.startswith("seed") for line in made.summary["warnings"]) == (fraction == 1)
        told = [line for line in made.summary["warnings"] if line.startswith("workload.fraction")]
        left_out = 300 - len(rows)
        assert made.summary["requests"].get("left_out", 0) == left_out
        assert told == [f"workload.fraction: {left_out} of 300 requests are left out"] * (fraction < 1)
        if form in ("canonical", "burstgpt", "csv"):
            assert set(rows.groupby("session").size()) == {5}
    assert len(found[1]) == 300
    assert found[0.2] < found[0.5] < found[1]
    assert abs(len(found[0.5]) - 150) < 5 * 300**0.5 * 0.5 * 5**0.5  # sessions of five


def test_the_choice_depends_on_nothing_but_the_seed(tmp_path: Path) -> None:
    section = of_every_format(tmp_path)["azure"] | {"fraction": 0.3}

    def prompts(number: int = 5, **more: Any) -> list[int]:
        made = load(scenario(tmp_path, section | more)).model_copy(update={"seed": number})
        return [count for batch in plan_workload(made, []).arrivals(1.0) for count in batch.prompt_tokens]

    whole = prompts()
    assert prompts(speedup=7, tenants={"a": 1}, strict_rows=True) == whole
    cut = [count for count in whole if 600 + 100 <= count < 600 + 150]
    assert prompts(start="10 s", duration="5 s") == cut
    assert prompts(start="10 s", requests=7) == [count for count in whole if count >= 700][:7]
    assert prompts(6) != whole


def test_a_run_that_stops_says_what_was_left_out_of_what_it_read(tmp_path: Path) -> None:
    path = scenario(tmp_path, of_every_format(tmp_path)["azure"] | {"fraction": 0.3})
    stopped = simulate(load(path, ["until=5 s"]), out=tmp_path / "run")
    [line] = [line for line in stopped.summary["warnings"] if line.startswith("workload.fraction")]
    assert line.endswith(" of 300 requests are left out")


@pytest.mark.parametrize(
    ("workload", "words"),
    [
        (DRAWN | {"fraction": 0.5}, "no trace to take a fraction of: draw fewer requests, at a lower rate"),
        ({"fraction": 0}, "workload.fraction: expected greater than 0"),
        ({"fraction": 1.5}, "workload.fraction: expected less than or equal to 1"),
        ({"fraction": "5%"}, "workload.fraction: expected a number, found '5%'"),
        ({"requests": 9, "fraction": 1e-9}, "none of the 300 requests of azure in the part that is replayed is kept"),
    ],
)
def test_fractions_that_mean_nothing_are_refused(tmp_path: Path, workload: dict[str, Any], words: str) -> None:
    section = workload if "arrivals" in workload else of_every_format(tmp_path)["azure"] | workload
    with pytest.raises(InputError) as refused:
        run(tmp_path, section)
    assert words in str(refused.value)
    assert "workload.fraction" in str(refused.value)


def test_a_fraction_of_drawn_requests_is_refused_with_all_else_that_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(InputError) as refused:
        load(scenario(tmp_path, DRAWN | {"fraction": 0.5, "requests": "x", "speedup": 2}))
    assert [problem.path for problem in refused.value.problems] == [
        f"workload.{key}" for key in ("requests", "fraction", "speedup")
    ]


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


def test_one_answer_is_not_several(tmp_path: Path) -> None:
    """With sessions, units above a block are refused for several answers only."""
    sessions = {"turns": 2, "think_time": {"constant": {"value": "1 s"}}}
    pool = {"kv": {"prefix_cache": {"unit_tokens": 32}}}
    plain = run(tmp_path, DRAWN | {"sessions": sessions}, pool)
    one = run(tmp_path, DRAWN | {"sessions": sessions, "samples": 1}, pool)
    assert one.manifest["digest"] == plain.manifest["digest"]
    with pytest.raises(InputError, match="several answers"):
        run(tmp_path, DRAWN | {"sessions": sessions, "samples": 2}, pool)


def test_clients_that_are_rejected_at_once_are_warned_of(tmp_path: Path) -> None:
    work = DRAWN | {"requests": 20, "arrivals": {"closed_loop": {"clients": 8}}}
    limits: dict[str, Any] = {"max_outstanding": {"requests": 4}}
    found = run(tmp_path, work, admission=limits)
    assert found.summary["requests"]["rejected"] == 16
    assert any("8 clients of a closed loop meet a limit of 4" in line for line in found.summary["warnings"])
    assert sum("closed loop" in line for line in found.summary["warnings"]) == 1
    for front in ({"gateway": {"service": "1 ms", "queue": 3}}, {"admission": {"tenant": {"requests": 4}}}):
        found = run(tmp_path, work, **front)
        many = found.summary["requests"]["rejected"]
        assert many > 10
        assert any(f"{many} requests of a closed loop were rejected" in line for line in found.summary["warnings"])
    waits = run(tmp_path, work, admission=limits | {"when_full": "queue"})
    assert waits.summary["requests"]["finished"] == 20
    assert not any("closed loop" in line for line in waits.summary["warnings"])


def test_a_run_that_stops_before_the_first_arrival_says_so(tmp_path: Path) -> None:
    path = scenario(tmp_path, DRAWN)
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"until": "1 ns"}))
    found = simulate(load(path), out=tmp_path / "none")
    assert "until: the run stopped before the first request arrived" in found.summary["warnings"]
