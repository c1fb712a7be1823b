"""Merging of bases and overrides, paths of several folders, and what a loaded scenario holds."""

import json
import shutil
from pathlib import Path

import pytest

from simulator import catalog
from simulator.documents import parse_document
from simulator.errors import InputError
from simulator.scenario.load import load, resolved, scenario_digest
from simulator.scenario.merge import CHOICES, merge, parse_override
from simulator.scenario.reference import REFERENCES
from simulator.scenario.schema import Scenario
from simulator.scenario.workload import SyntheticWorkload, TraceWorkload
from simulator.strict import OneOf, Strict

BASE = """\
schema: 1
topology: {preset: clos-h100, nodes: 4}
workload:
  requests: 10
  arrivals: {gamma: {rate: 5 / s, cv: 2}}
  prompt_tokens: 100
  output_tokens: 20
serving:
  model: llama-3-8b
  colocated: {instances: 2, layout: {tensor: 2}, batcher: {continuous: {max_running: 8}}}
slo: {ttft: 1 s, tpot: 50 ms}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base.yaml").write_text(BASE)
    return tmp_path


def child(folder: Path, text: str, *overrides: str) -> Scenario:
    (folder / "child.yaml").write_text(f"schema: 1\nbase: base.yaml\n{text}\n")
    return load(folder / "child.yaml", overrides)


def test_a_base_alone_gives_the_same_scenario_but_for_its_name(folder: Path) -> None:
    base, extended = load("base.yaml"), child(folder, "")
    assert (base.name, extended.name) == ("base", "child")
    assert extended.model_copy(update={"name": "base"}) == base


def test_the_later_value_wins_and_the_rest_stays(folder: Path) -> None:
    scenario = child(folder, "slo: {ttft: 2 s}\nserving: {colocated: {instances: 3}}")
    assert scenario.slo.ttft == 2_000_000_000
    assert scenario.slo.tpot == 50_000_000
    pool = scenario.serving.colocated
    assert (pool.instances, pool.layout.tensor, pool.batcher.parameters.max_running) == (3, 2, 8)


def test_overrides_apply_in_order_after_all_files(folder: Path) -> None:
    scenario = child(folder, "seed: 1", "seed=2", "seed=3", "slo={e2e: 9 s}")
    assert scenario.seed == 3
    assert scenario.slo.e2e == 9_000_000_000
    assert scenario.slo.ttft == 1_000_000_000


def test_null_takes_away_what_the_base_has(folder: Path) -> None:
    assert child(folder, "slo: {ttft: null}").slo.ttft is None
    assert child(folder, "slo: null").slo.tpot is None
    assert child(folder, "", "slo.tpot=null").slo.tpot is None
    assert child(folder, "", "serving.colocated.batcher=null").serving.colocated.batcher.name == "continuous"


def test_another_law_replaces_the_first_and_the_same_law_merges(folder: Path) -> None:
    other = child(folder, "workload: {arrivals: {poisson: {rate: 9 / s}}}").workload
    assert isinstance(other, SyntheticWorkload)
    assert (other.arrivals.name, other.arrivals.parameters.rate) == ("poisson", 9.0)
    same = child(folder, "", "workload.arrivals.gamma.cv=3").workload
    assert isinstance(same, SyntheticWorkload)
    assert (same.arrivals.parameters.rate, same.arrivals.parameters.cv) == (5.0, 3.0)


def test_a_trace_replaces_drawn_requests_and_the_other_way_round(folder: Path) -> None:
    traced = child(folder, "workload: {trace: conversation-sample, speedup: 2}")
    assert isinstance(traced.workload, TraceWorkload)
    (folder / "grandchild.yaml").write_text(
        "schema: 1\nbase: child.yaml\nworkload: {requests: 5, arrivals: {poisson: {rate: 1 / s}},"
        " prompt_tokens: 1, output_tokens: {uniform: {low: 1, high: 2}}}\n"
    )
    assert isinstance(load(folder / "grandchild.yaml").workload, SyntheticWorkload)


def test_pools_replace_colocated_engines_and_the_other_way_round(folder: Path) -> None:
    split = child(folder, "serving: {prefill: {instances: 1}, decode: {instances: 3}}")
    assert list(split.serving.roles) == ["prefill", "decode"]
    assert split.serving.model == "llama-3-8b"
    (folder / "grandchild.yaml").write_text("schema: 1\nbase: child.yaml\nserving: {colocated: {instances: 5}}\n")
    again = load(folder / "grandchild.yaml")
    assert list(again.serving.roles) == ["colocated"]
    assert again.serving.colocated.layout.tensor == 1  # nothing of the first base comes back


def test_another_preset_drops_the_overrides_of_the_first(folder: Path) -> None:
    assert child(folder, "topology: {preset: clos-a100}").topology.parameters["nodes"] == 16
    assert child(folder, "topology: {taper: 2}").topology.parameters["nodes"] == 4


def test_lists_are_replaced_whole_but_overrides_reach_into_them(folder: Path) -> None:
    states = "workload: {arrivals: {mmpp: {states: [{rate: 1 / s, dwell: 1 s}, {rate: 2 / s, dwell: 2 s}]}}}"
    workload = child(folder, states, "workload.arrivals.mmpp.states[1].rate=7 / s").workload
    assert isinstance(workload, SyntheticWorkload)
    assert [(s.rate, s.dwell) for s in workload.arrivals.parameters.states] == [(1.0, 10**9), (7.0, 2 * 10**9)]


def test_a_metric_with_dots_can_be_overridden(folder: Path) -> None:
    expect = child(folder, 'expect: {ttft.p95: "<= 3 s"}', "expect.ttft.p95=<= 2 s", "expect.goodput=>= 0.9").expect
    assert [(e.metric, e.comparison, e.bound) for e in expect] == [("ttft.p95", "<=", 2.0), ("goodput", ">=", 0.9)]
    assert expect[0].holds(2.0)
    assert not expect[0].holds(2.000001)
    assert not expect[0].holds(None)


def test_positions_are_those_of_the_file_that_wrote_the_value(folder: Path) -> None:
    with pytest.raises(InputError) as caught:
        child(folder, "slo: {e2e: 4}", "topology.nodes=0")
    assert [(p.file, p.line, p.path) for p in caught.value.problems] == [
        ("--set topology.nodes=0", None, "topology.nodes"),
        (str(folder / "child.yaml"), 3, "slo.e2e"),
    ]
    (folder / "base.yaml").write_text(BASE.replace("1 s", "1"))
    with pytest.raises(InputError) as caught:
        child(folder, "slo: {e2e: 4 s}")
    assert [(p.file, p.line, p.path) for p in caught.value.problems] == [(str(folder / "base.yaml"), 11, "slo.ttft")]


def test_a_problem_of_a_merged_list_keeps_the_place_of_its_untouched_items(folder: Path) -> None:
    items = "{rate: 1 / s, dwell: 1 s},\n  {rate: 2, dwell: 2 s}"
    states = f"workload: {{arrivals: {{mmpp: {{states: [{items}]}}}}}}"
    with pytest.raises(InputError) as caught:
        child(folder, states, "workload.arrivals.mmpp.states[0].dwell=3 s")
    [problem] = caught.value.problems
    assert (problem.line, problem.path) == (4, "workload.arrivals.mmpp.states[1].rate")


def test_paths_start_at_the_folder_of_the_file_that_wrote_them(folder: Path) -> None:
    for name in ("one", "one/cards", "two"):
        (folder / name).mkdir()
    sample = catalog.locate("traces", "conversation-sample")
    shutil.copy(sample, folder / "one" / "t.parquet")
    shutil.copy(catalog.locate("workloads/models", "llama-3-8b"), folder / "one" / "cards" / "mine.yaml")
    shutil.copy(catalog.locate("topologies", "clos-h100"), folder / "two" / "net.yaml")
    base = BASE[: BASE.index("workload:")] + "workload: {trace: t.parquet}\n" + BASE[BASE.index("serving:") :]
    (folder / "one" / "base.yaml").write_text(base.replace("llama-3-8b", "cards/mine.yaml"))
    (folder / "two" / "child.yaml").write_text("schema: 1\nbase: ../one/base.yaml\ntopology: {preset: ./net.yaml}\n")
    scenario = load(folder / "two" / "child.yaml")
    assert isinstance(scenario.workload, TraceWorkload)
    assert scenario.workload.trace == str(folder / "one" / "t.parquet")
    assert scenario.serving.model == str(folder / "one" / "cards" / "mine.yaml")
    assert scenario.topology.preset == str(folder / "two" / "net.yaml")
    again = load(folder / "two" / "child.yaml", ["workload.trace=one/t.parquet"])  # from the current folder
    assert again == scenario


def test_a_path_to_shipped_data_becomes_its_name(folder: Path) -> None:
    trace = catalog.folder("traces") / "conversation-sample.parquet"
    scenario = child(folder, f"workload: {{trace: {trace}}}")
    assert isinstance(scenario.workload, TraceWorkload)
    assert scenario.workload.trace == "conversation-sample"


def test_a_moved_scenario_has_the_same_digest_and_resolves_to_runnable_text(folder: Path) -> None:
    digests = set()
    for place in ("here", "there"):
        (folder / place / "data").mkdir(parents=True)
        shutil.copy(catalog.locate("traces", "conversation-sample"), folder / place / "data" / "t.parquet")
        text = BASE[: BASE.index("workload:")] + "workload: {trace: data/t.parquet}\n" + BASE[BASE.index("serving:") :]
        (folder / place / f"{place}.yaml").write_text(text)
        scenario = load(folder / place / f"{place}.yaml")
        digests.add(scenario_digest(scenario))
        run = folder / place / "run"
        run.mkdir()
        (run / "scenario.yaml").write_text(resolved(scenario, run))
        assert "../data/t.parquet" in (run / "scenario.yaml").read_text()
        assert load(run / "scenario.yaml") == scenario
    assert len(digests) == 1
    (folder / "here" / "data" / "t.parquet").write_bytes(b"PAR1 other")
    assert scenario_digest(load(folder / "here" / "here.yaml")) not in digests


@pytest.mark.parametrize("override", ["seed=9", "slo.ttft=3 s", "topology.nodes=5", "workload.requests=11"])
def test_what_changes_the_meaning_changes_the_digest(folder: Path, override: str) -> None:
    assert scenario_digest(load("base.yaml", [override])) != scenario_digest(load("base.yaml"))


SAME = ["description=other", "name=other", "slo.ttft=1000 ms", "workload.prompt_tokens={constant: {value: 100}}"]


@pytest.mark.parametrize("override", SAME)
def test_what_does_not_change_the_meaning_does_not_change_the_digest(folder: Path, override: str) -> None:
    assert scenario_digest(load("base.yaml", [override])) == scenario_digest(load("base.yaml"))


def test_a_shipped_scenario_is_found_by_name_from_anywhere(folder: Path) -> None:
    assert load("quickstart") == load(catalog.folder("scenarios") / "quickstart.yaml")


def test_the_file_may_have_any_name(folder: Path) -> None:
    (folder / "my run, 2.yaml").write_text(BASE)
    assert load("my run, 2.yaml").name == "my-run-2"


def test_the_choices_of_merging_are_the_one_of_fields_of_the_schema() -> None:
    found: set[str] = set()
    seen: set[type] = set()

    def walk(model: type[Strict]) -> None:
        seen.add(model)
        for name, field in model.model_fields.items():
            for part in _models(field.annotation):
                if issubclass(part, OneOf):
                    found.add(name)
                if part not in seen:
                    walk(part)

    walk(Scenario)
    assert found == CHOICES


def _models(annotation: object) -> list[type[Strict]]:
    if isinstance(annotation, type) and issubclass(annotation, Strict):
        return [annotation]
    return [model for part in getattr(annotation, "__args__", ()) for model in _models(part)]


def test_the_references_exist_in_the_schema() -> None:
    from simulator.strict import _locate

    for path in REFERENCES:
        at = path if path[0] != "workload" else (path[0], "trace" if len(path) == 2 else "synthetic", *path[1:])
        assert _locate(Scenario, (*at, "x"))[0] == (*path, "x")


def test_merge_leaves_its_arguments_alone() -> None:
    base, over = parse_document("a: {b: 1, c: [1]}\nd: 2", "base"), parse_document("a: {b: 2}\nd: null", "over")
    merged = merge(base, over)
    assert merged.value == {"a": {"c": (1,), "b": 2}}
    assert base.value == {"a": {"b": 1, "c": (1,)}, "d": 2}
    assert over.value == {"a": {"b": 2}, "d": None}
    assert merged.position(("a", "c", 0)).file == "base"
    assert merged.position(("a", "b")).file == "over"


def test_override_values_are_yaml() -> None:
    empty = parse_document("{}", "base")
    for text, value in (("1", 1), ("1 s", "1 s"), ("true", True), ('"1"', "1"), ("[1, 2]", (1, 2)), ("null", None)):
        assert parse_override(f"a.b={text}", empty).value == {"a": {"b": value}}
    assert parse_override('a."b.c"=x=y', empty).value == {"a": {"b.c": "x=y"}}


def test_a_model_may_be_a_config_of_hugging_face(folder: Path) -> None:
    config = folder / "mine" / "config.json"
    config.parent.mkdir()
    numbers = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32}
    more = {"num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 8192}
    config.write_text(json.dumps({"model_type": "llama"} | numbers | more))
    (folder / "run.yaml").write_text(BASE.replace("llama-3-8b", "mine/config.json"))
    scenario = load(folder / "run.yaml")
    assert scenario.serving is not None
    assert scenario.serving.model == str(config)
    config.write_text(json.dumps({"model_type": "llama"} | numbers))
    with pytest.raises(InputError) as caught:
        load(folder / "run.yaml")
    assert all(str(config) in str(problem) for problem in caught.value.problems), caught.value


def test_formats_that_are_not_named_are_those_of_the_checkpoint(folder: Path) -> None:
    published = {"weights": "bf16", "experts": "w4a16_mxfp4", "head": "bf16", "kv": "bf16", "activations": "bf16"}
    for named, changed in (
        ([], {}),
        (["serving.precision.kv=fp8"], {"kv": "fp8"}),
        (["serving.precision={attention_weights: fp8}"], {"attention_weights": "fp8"}),
        (["serving.precision={experts: bf16, kv: fp8}"], {"experts": "bf16", "kv": "fp8"}),
    ):
        serving = child(folder, "serving: {model: gpt-oss-20b}", *named).serving
        assert serving is not None
        assert serving.precision.model_dump(exclude_none=True) == published | changed
    for named in ("fp8", "{weights: fp8}"):  # other files than the published ones
        serving = child(folder, "serving: {model: gpt-oss-20b}", f"serving.precision={named}").serving
        assert serving is not None
        assert (serving.precision.of_experts, serving.precision.kv) == ("fp8", "bf16")
