"""The calls of `import simulator`: what the commands do, from Python, with the same faults in the same words."""

import inspect
import json
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from simulator import compare, load, load_run, load_sweep, report, sweep, timeline
from simulator import simulate as run_of
from simulator.documents import document_of
from simulator.errors import InputError
from simulator.results.run import Run
from simulator.scenario.write import scenario_digest

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")

SCENARIO: dict[str, Any] = {
    "schema": 1,
    "topology": {"preset": "clos-h100", "nodes": 2},
    "workload": {
        "requests": 200,
        "arrivals": {"poisson": {"rate": "40 / s"}},
        "prompt_tokens": {"lognormal": {"median": 300, "sigma": 0.8, "max": 2000}},
        "output_tokens": {"constant": {"value": 20}},
    },
    "serving": {"model": "llama-3.1-8b", "colocated": {"instances": 2, "layout": {"tensor": 2}}},
    "slo": {"ttft": "1 s"},
}
ENGINES = "serving.colocated.instances"


def faults(call: Any, *arguments: Any, **options: Any) -> list[str]:
    with pytest.raises(InputError) as caught:
        call(*arguments, **options)
    return [str(problem) for problem in caught.value.problems]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("api")


@pytest.fixture(scope="module")
def run(folder: Path) -> Run:
    return run_of(load(SCENARIO), seed=7, out=folder / "two")


@pytest.fixture(scope="module")
def other(folder: Path) -> Run:
    return run_of(load(SCENARIO, set={ENGINES: 1}), seed=7, out=folder / "one")


@pytest.fixture(scope="module")
def swept(folder: Path, client: Any) -> Any:
    study = {
        "schema": 1,
        "name": "engines",
        "base": SCENARIO,
        "set": {"workload.requests": 60},
        "grid": {ENGINES: [1, 2, 99]},
        "seeds": [1, 2],
    }
    return sweep(study, out=folder / "sweep", client=client)


# -- the calls themselves ---------------------------------------------------------------------------------------------


def test_a_scenario_is_read_without_what_only_runs_need() -> None:
    code = (
        "import sys\nfrom simulator import compare, load, load_run, load_sweep, report, simulate, sweep, timeline\n"
        f"light = set(sys.modules)\nload({SCENARIO!r}, set={{'slo.ttft': '3 s'}})\n"
        "print(*light); print(*sys.modules)"
    )
    light, read = (
        set(line.split())
        for line in subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.splitlines()
    )
    heavy = {"numpy", "pyarrow", "pandas", "rich", "plotly", "distributed"}
    assert not (heavy | {"pydantic", "simpy", "ruamel.yaml", "inspect"}) & light
    assert "simulator.scenario.schema" in read
    assert not heavy & read


def test_calls_keep_their_names_whatever_is_imported_after_them() -> None:
    import simulator.report.sweep
    import simulator.sweep.run

    assert simulator.sweep is sweep
    assert simulator.report is report
    assert list(inspect.signature(simulator.sweep).parameters)[:4] == ["source", "out", "workers", "scheduler"]
    assert list(inspect.signature(simulator.report).parameters) == ["results", "out"]
    for name in set(simulator.__all__) - {"__version__", "sweep", "report"}:
        assert inspect.signature(getattr(simulator, name)).parameters
        assert "InputError" in (getattr(simulator, name).__doc__ or "")


# -- scenarios --------------------------------------------------------------------------------------------------------


def test_a_mapping_is_the_scenario_of_the_same_yaml(tmp_path: Path) -> None:
    file = tmp_path / "same.yaml"
    file.write_text(json.dumps(SCENARIO))
    numpy_numbers = SCENARIO | {"seed": np.int64(3), "faults": [{"what": "node", "name": "node1", "at": "1 h"}]}
    assert scenario_digest(load(SCENARIO)) == scenario_digest(load(file))
    assert load(numpy_numbers).seed == 3
    assert scenario_digest(load(file, ["slo.ttft=2 s"])) == scenario_digest(load(file, set={"slo.ttft": "2 s"}))
    assert load({"schema": 1, "base": "same.yaml"} | {"base": str(file), "slo": {"ttft": "3 s"}}).slo.ttft == 3 * 10**9


def test_faults_of_a_mapping_say_the_path_of_keys() -> None:
    wrong = SCENARIO | {"slo": {"ttft": 3}, "serving": SCENARIO["serving"] | {"rooter": "x"}}
    found = faults(load, wrong)
    assert found[0].startswith("serving.rooter: unknown key 'rooter'; allowed: ")
    assert found[0].endswith("did you mean 'router'?")
    assert found[1].startswith("slo.ttft: 3 has no unit")
    assert faults(load, {"schema": 1, "base": "quickstart", "slo": {"ttft": 3}})[0].startswith("slo.ttft: 3 has no")
    assert faults(load, SCENARIO, set={"serving.rooter": 1})[0].startswith("set: serving.rooter: unknown key")
    assert faults(load, SCENARIO, set={"slo..x": 1})[0].startswith("set: slo..x: not an override")
    assert faults(load, {key: value for key, value in SCENARIO.items() if key != "schema"})[0].startswith("missing key")


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"a": {1, 2}}, "a: a set has no place in a document; allowed: text, numbers"),
        ({"a": [1, object()]}, "a[1]: a object has no place"),
        ({3: 1}, "a key must be text, found 3"),
        ({"a": np.zeros(2)}, "a: a ndarray has no place"),
    ],
)
def test_what_no_document_holds_is_refused_with_its_path(value: Any, said: str) -> None:
    assert faults(document_of, value)[0].startswith(said)


def test_a_mapping_that_holds_itself_is_refused() -> None:
    endless: dict[str, Any] = {}
    endless["a"] = endless
    assert "nested too deeply" in faults(load, endless)[0]


def test_relative_paths_of_a_mapping_start_where_python_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "base.yaml").write_text(json.dumps(SCENARIO))
    monkeypatch.chdir(tmp_path)
    assert load({"schema": 1, "base": "base.yaml"}).workload.requests == 200
    assert "no such file: gone.yaml" in faults(load, {"schema": 1, "base": "gone.yaml"})[0]
    traced = faults(load, {"schema": 1, "base": "quickstart", "workload": {"trace": "gone.parquet"}})
    assert traced[0].startswith("workload.trace: ")
    assert str(tmp_path / "gone.parquet") in traced[0]


# -- runs and comparisons ---------------------------------------------------------------------------------------------


def test_tables_of_a_run_are_frames(run: Run) -> None:
    assert len(run.requests) == run.summary["requests"]["total"] == 200
    for name in ("requests", "instances", "power", "links", "events"):
        assert len(getattr(run, name)) == run.manifest["tables"][name]["rows"]
    assert faults(lambda: run.flows) == [
        "unknown table 'flows'; allowed: events, instances, links, power, requests",
    ]


def test_compare_is_what_the_command_prints(run: Run, other: Run, simulate) -> None:
    found = compare(run, other)
    printed = simulate("compare", str(run.path), str(other.path), "--json")
    assert found.as_data() == json.loads(printed.out)
    assert found.as_data() == compare(run.path, str(other.path)).as_data()
    assert found.keys.values.tolist() == [["scenario (two)", "scenario (one)", ENGINES, "2", "1"]]
    table = found.table.set_index("metric")
    row = table.loc["ttft.mean"]
    assert row.difference == row.value_b - row.value_a > 0
    assert row.low < row.difference * 1.5
    assert row.verdict == "worse"
    assert pd.isna(table.loc["finished"].verdict)


def test_several_are_held_against_the_first_at_one_level(run: Run, other: Run) -> None:
    one, both = compare(run, other), compare(run, other, run)
    assert [each.names for each in both] == [one[0].names, (one[0].names[0], one[0].names[0])]
    assert set(both.table.loc[both.table["verdict"].notna(), "b"]) == {"scenario (one)"}
    rows = zip(one[0].differences, both[0].differences, strict=True)
    assert all(a.verdict == b.verdict or b.verdict is None for a, b in rows), "more comparisons ask more evidence"


def test_a_scenario_need_not_be_loaded_first(run: Run, tmp_path: Path) -> None:
    again = run_of(run.path / "scenario.yaml", out=tmp_path / "again")
    assert again.manifest["digest"] == run.manifest["digest"]


def test_zipped_axes_are_compared_together(tmp_path: Path, client: Any) -> None:
    axes = {ENGINES: [1, 2], "slo.ttft": ["1 s", "2 s"]}
    result = sweep(
        {"schema": 1, "base": SCENARIO, "zip": axes, "seeds": [1, 2]}, out=tmp_path / "zipped", client=client
    )
    (found,) = compare(result, by="slo.ttft")
    assert sorted(found.keys) == sorted([(ENGINES, "1", "2"), ("slo.ttft", "1 s", "2 s")])


def test_what_does_not_go_together_is_refused(run: Run, swept: Any) -> None:
    assert "is a sweep and another is not" in faults(compare, run, swept)[0]
    assert "nothing to compare" in faults(compare, run)[0]
    assert faults(compare, run, run, confidence=2)[0].startswith("confidence: 2 is no confidence")
    assert "no run here" in faults(compare, run, "nowhere")[0]
    assert "unknown axis" in faults(compare, swept, by="slo.ttft")[0]


def test_pages_and_traces(run: Run, tmp_path: Path) -> None:
    assert report(run) == run.path / "report.html"
    assert report(run.path, tmp_path / "page.html").read_bytes() == report(run).read_bytes()
    assert timeline(run, start="1 s", end=2 * 10**9).window == (10**9, 2 * 10**9)
    assert timeline(run.path, tmp_path / "t.pftrace").path == tmp_path / "t.pftrace"
    assert faults(timeline, run, start="5")[0].startswith("start: '5' has no unit")
    assert "no run here" in faults(report, "nowhere")[0]
    assert "needs --out" in faults(report, "s3://bucket/sweep")[0]


# -- sweeps -----------------------------------------------------------------------------------------------------------


def test_a_sweep_of_mappings_has_points_means_frontiers_and_errors(swept: Any) -> None:
    assert len(swept.points) == 6
    assert swept.means[ENGINES].tolist() == [1, 2]
    mean = swept.points.groupby(ENGINES)["ttft.mean"].mean()
    assert swept.means["ttft.mean"].tolist() == pytest.approx(mean.loc[[1, 2]].tolist())
    for found, written in zip(swept.frontiers, swept.summary["frontiers"], strict=True):
        assert [{ENGINES: row} for row in found[ENGINES]] == written["settings"]
    assert swept.errors[[ENGINES, "status"]].values.tolist() == [[99, "invalid"]] * 2
    assert "the topology has 16" in swept.errors["error"].iloc[0]
    assert swept.answers == []
    assert swept.best.empty
    assert len(load_sweep(swept.store.location).points) == 6


def test_settings_of_a_sweep_are_compared_without_those_that_failed(swept: Any) -> None:
    found = compare(swept, by=ENGINES)
    assert len(found) == 2
    assert set(found.table["b"]) == {"instances 2"}
    assert "the topology has 16" in found[1].notes[0]


def test_the_best_of_a_search(folder: Path, client: Any) -> None:
    study = {
        "schema": 1,
        "base": SCENARIO,
        "set": {"workload.requests": 60},
        "search": {
            "capacity": {"of": ENGINES, "from": 1, "to": 3, "precision": 0.5},
            "subject_to": {"goodput": ">= 0.5"},
        },
    }
    found = sweep(study, out=folder / "search", client=client)
    assert found.best[ENGINES].tolist() == [3]
    assert found.best["goodput"].tolist() == [found.answers[0]["figures"]["goodput"]]
    assert "Answer: instances 3" in found._repr_html_()


def test_faults_of_a_sweep_of_mappings(tmp_path: Path) -> None:
    def swept(**keys: Any) -> list[str]:
        return faults(sweep, {"schema": 1, **keys}, out=tmp_path / "none")

    assert swept(base={**SCENARIO, "sloo": 1}, grid={ENGINES: [1]})[0].startswith("base: sloo: unknown key")
    assert swept(base=SCENARIO, grid={"serving.rooter": ["x"]})[0].startswith("serving.rooter: unknown key")
    assert swept(bse="x")[-1].endswith("did you mean 'base'?")
    assert not (tmp_path / "none").exists()


def test_a_script_needs_no_guard_around_a_sweep(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    study = {"schema": 1, "base": SCENARIO, "set": {"workload.requests": 20}}
    script.write_text(
        f"from simulator import sweep\nprint('top')\nresult = sweep({study!r}, out='out', workers=1)\n"
        "print(result.complete, len(result.points), __file__)\n"
    )
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, cwd=tmp_path, timeout=120, check=False
    )
    assert done.stdout.splitlines() == ["top", f"True 1 {script}"], done.stderr


# -- notebooks --------------------------------------------------------------------------------------------------------


class Shown(HTMLParser):
    """Reads a fragment: its tags are closed, and nothing in it can run."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.scopes: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in {"div", "style", "p", "strong", "table", "caption", "thead", "tbody", "tr", "th", "td"}
        assert {name for name, _ in attrs} <= {"class", "scope"}
        self.scopes += [value or "" for name, value in attrs if name == "scope"]
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_results_show_themselves_in_a_notebook(run: Run, other: Run, swept: Any) -> None:
    for shown, words in (
        (run, ("scenario · seed 7", "ttft", "e2e", "goodput", "Tables: requests (200 rows)")),
        (compare(run, other), (ENGINES, "worse", "Intervals: ")),
        (swept, ("engines · 6 points · 4 done · 2 invalid", "means over 2 seeds", "Points without figures")),
    ):
        found = Shown(shown._repr_html_())
        assert {"col", "row"} <= set(found.scopes)
        for word in words:
            assert any(word in text for text in found.texts), word


def test_text_of_results_is_only_text(folder: Path, run: Run) -> None:
    bad = "<script>alert(1)</script>&amp;"
    hostile = Run(run.path, run.manifest | {"scenario": bad})
    for shown in (hostile, compare(hostile, run)):
        found = Shown(shown._repr_html_())
        assert any(bad in text for text in found.texts)


def test_a_run_that_is_there_opens(run: Run) -> None:
    assert load_run(run.path).summary == run.summary
    assert repr(run).startswith("<Run scenario in ")
