"""Sweeps end to end: every point once, the same bytes however they come about, and errors that say where and what."""

import hashlib
import json
from pathlib import Path

import pyarrow.compute as pc
import pytest
from click.testing import CliRunner

from simulator.build.limits import limits_of
from simulator.build.run import simulate
from simulator.build.serving import plan
from simulator.cli import simulate as command
from simulator.errors import InputError, OutputError
from simulator.report.sweep_comparison import along, between
from simulator.results.metrics import METRICS, lookup
from simulator.scenario.load import load
from simulator.sweep.dataset import load_sweep
from simulator.sweep.estimate import dry_run_lines
from simulator.sweep.plan import load_plan
from simulator.sweep.run import sweep

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")

SCENARIO = """
schema: 1
topology: {preset: clos-h100, nodes: 2}
workload:
  requests: 60
  arrivals: {poisson: {rate: 40 / s}}
  prompt_tokens: {lognormal: {median: 300, sigma: 0.8, max: 2000}}
  output_tokens: {constant: {value: 20}}
serving:
  model: llama-3.1-8b
  colocated: {instances: 2, layout: {tensor: 2}}
slo: {ttft: 1 s}
"""
RATE = "workload.arrivals.poisson.rate"


def write(folder: Path, text: str, name: str = "study.yaml") -> Path:
    (folder / "base.yaml").write_text(SCENARIO)
    file = folder / name
    file.write_text(f"schema: 1\nbase: base.yaml\n{text}")
    return file


def files(folder: Path) -> dict[str, str]:
    """Digest every file of a sweep but the journal, which has wall times."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("journal.jsonl", ".sweep-in-progress")
    }


def test_every_point_is_the_run_of_its_scenario(tmp_path, client):
    file = write(
        tmp_path,
        f"grid: {{serving.colocated.instances: [1, 3], {RATE}: [20 / s, 80 / s]}}\nseeds: [3, 5]\nkeep: [requests]",
    )
    result = sweep(file, tmp_path / "out", client=client)
    points = result.points
    assert len(points) == 8
    assert set(points["status"]) == {"done"}
    assert result.summary["status"] == {"done": 8}
    assert list(points["seed"]) == [3, 5] * 4
    assert result.axes == {"serving.colocated.instances": [1, 3], RATE: ["20 / s", "80 / s"], "seed": [3, 5]}
    row = points.iloc[5]  # instances 3, 20 / s, seed 5
    given = [f"serving.colocated.instances={row['serving.colocated.instances']}", f"{RATE}={row[RATE]}"]
    alone = simulate(load(tmp_path / "base.yaml", given), seed=int(row["seed"]), out=tmp_path / "alone")
    assert row["digest"] == alone.manifest["digest"]
    for metric in METRICS:
        value = lookup(alone.summary, metric.name)
        assert row[metric.name] == value or (value is None and row[metric.name] != row[metric.name])
    assert result.run_summary(row["point"])["requests"] == alone.summary["requests"]
    narrow = result.columns(["status", "ttft.p99"])
    assert list(narrow) == ["point", *result.axes, "status", "ttft.p99"]
    assert narrow.equals(points[list(narrow)])
    with pytest.raises(InputError, match=r"unknown column 'ttft\.p9'.*did you mean 'ttft\.p9"):
        result.columns(["ttft.p9"])
    kept = result.table("requests").to_table()
    assert len(kept) == 8 * 60
    mine = kept.filter(pc.equal(kept["point"], row["point"]))
    assert mine.drop_columns("point").equals(alone.table("requests").cast(mine.drop_columns("point").schema))


def test_bytes_do_not_depend_on_workers_nor_on_what_was_there(tmp_path, client):
    file = write(tmp_path, f"grid: {{{RATE}: [20 / s, 40 / s, 80 / s]}}\nseeds: 1..2\nkeep: [requests]")
    sweep(file, tmp_path / "one", client=client)
    sweep(file, tmp_path / "two", client=client)
    assert files(tmp_path / "one") == files(tmp_path / "two")
    assert len(files(tmp_path / "one")) == 15
    gone = sorted((tmp_path / "two" / "points").iterdir())[2]
    (gone / "row.parquet").unlink()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "two" / "points").rglob("*.parquet")}
    sweep(file, tmp_path / "two", client=client)
    assert files(tmp_path / "one") == files(tmp_path / "two")
    assert all(path.stat().st_mtime_ns == changed for path, changed in before.items()), "only what was missing ran"


def test_a_failing_point_is_a_row(tmp_path, client):
    file = write(tmp_path, "grid: {serving.colocated.instances: [1, 2, 900], slo.ttft: [1 s]}")
    result = sweep(file, tmp_path / "out", client=client)
    assert list(result.points["status"]) == ["done", "done", "invalid"]
    assert "base.yaml" in result.points["error"][2] or "study.yaml" in result.points["error"][2]
    assert "1800" in result.points["error"][2].replace(",", "")
    shown = CliRunner().invoke(command, ["sweep", str(file), "--out", str(tmp_path / "out"), "--dry-run"])
    assert "3 there already, 0 to run" in shown.output


def test_points_of_the_same_meaning_run_once(tmp_path, client):
    file = write(tmp_path, "points: [{serving.colocated.instances: 2}, {serving.colocated.instances: 2}]")
    assert len(sweep(file, tmp_path / "out", client=client).points) == 1


@pytest.mark.parametrize(
    ("text", "place", "what"),
    [
        ("grid: {serving.colocated.instancs: [1, 2]}", "study.yaml:3:", "unknown key 'instancs'"),
        ("grid: {serving.colocated.instances: [no, nein]}", "study.yaml:3:", "whole number"),
        ("grid: {serving.colocated.instances: []}", "study.yaml:3:", "no values"),
        ("gird: {a: [1]}", "study.yaml:3:", "did you mean 'grid'"),
        ("zip: {slo.ttft: [1 s, 2 s], slo.tpot: [1 ms]}", "study.yaml:3:", "go together"),
        ("grid: {seed: [1]}\nseeds: 1..3", "study.yaml:3:", "varies already"),
        ("seeds: 3..1", "study.yaml:3:", "no range"),
        ("keep: [request]", "study.yaml:3:", "did you mean 'requests'"),
        ("search: {capacity: {of: a, from: 1, to: 2}}", "study.yaml:3:", "what must hold"),
        (
            f"search: {{capacity: {{of: {RATE}, from: 1 / s, to: 9 / min}}, subject_to: {{ttft.p99: <= 1 s}}}}",
            "",
            "units differ",
        ),
        ("search: {halving: {budget: until, from: 1 s, to: 2 s}, maximise: godput}", "study.yaml:3:", "'goodput'"),
        ("grid: {base: [a]}", "study.yaml:3:", "cannot be varied"),
    ],
)
def test_a_bad_sweep_is_refused_before_anything_runs(tmp_path, text, place, what):
    file = write(tmp_path, text)
    with pytest.raises(InputError, match=what) as error:
        sweep(file, tmp_path / "out", client=object())
    assert place in str(error.value)
    assert not (tmp_path / "out" / "points").exists()


def test_two_sweeps_do_not_mix(tmp_path, client):
    first = write(tmp_path, f"grid: {{{RATE}: [20 / s, 40 / s]}}")
    sweep(first, tmp_path / "out", client=client)
    was = files(tmp_path / "out")
    other = write(tmp_path, f"grid: {{{RATE}: [40 / s, 80 / s]}}", "other.yaml")
    with pytest.raises(InputError, match="holds another sweep") as error:
        sweep(other, tmp_path / "out", client=client)
    assert "--extend" in str(error.value)
    assert files(tmp_path / "out") == was
    result = sweep(other, tmp_path / "out", client=client, extend=True)
    assert list(result.points[RATE]) == ["40 / s", "80 / s"]
    shared = set(was) & set(files(tmp_path / "out"))
    assert sum(name.startswith("points/") for name in shared) == 1, "the point of both was kept"


def test_a_folder_in_use_or_of_something_else_is_refused(tmp_path, client):
    from simulator.results.folder import lock

    file = write(tmp_path, f"grid: {{{RATE}: [20 / s]}}")
    (tmp_path / "out").mkdir()
    with lock(tmp_path / "out" / ".sweep-in-progress", "sweep"), pytest.raises(InputError, match="by another sweep"):
        sweep(file, tmp_path / "out", client=client)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.doc").write_text("mine")
    with pytest.raises(InputError, match="not a sweep's"):
        sweep(file, tmp_path / "mine", client=client)


def test_a_disk_that_refuses_is_one_error_and_loses_nothing(tmp_path, client):
    file = write(tmp_path, f"grid: {{{RATE}: [20 / s, 40 / s]}}")
    sweep(file, tmp_path / "out", client=client)
    was = files(tmp_path / "out")
    for path in sorted((tmp_path / "out" / "points").iterdir())[:1]:
        (path / "row.parquet").unlink()
        path.rmdir()
        path.write_text("a file where a folder must be")  # also for root, whom no permission stops
    with pytest.raises(OutputError, match="cannot write the results"):
        sweep(file, tmp_path / "out", client=client)
    assert not (tmp_path / "out" / "manifest.json").exists()
    assert not load_sweep(tmp_path / "out").complete
    path.unlink()
    assert sweep(file, tmp_path / "out", client=client).complete
    assert files(tmp_path / "out") == was


def test_search_for_a_capacity_and_what_binds(tmp_path, client):
    file = write(
        tmp_path,
        f"grid: {{serving.colocated.instances: [1, 2]}}\nseeds: 1..2\n\n"
        f"search: {{capacity: {{of: {RATE}, from: 5 / s, to: 1000 / s, precision: 0.4, at_once: 4}}, "
        "subject_to: {ttft.p99: <= 45 ms}}",
    )
    result = sweep(file, tmp_path / "out", client=client)
    answers = result.summary["answers"]
    found = [float(answer["setting"][RATE].split()[0]) for answer in answers]
    assert 5 <= found[0] < found[1] < 1000
    assert all(answer["binding"] == ["ttft.p99 <= 45 ms"] for answer in answers)
    again = sweep(file, tmp_path / "out", client=client)
    assert again.summary == result.summary
    assert sweep(file, tmp_path / "new", client=client).summary == result.summary
    rows = result.points
    at = rows[(rows["serving.colocated.instances"] == 1) & (rows[RATE] == answers[0]["setting"][RATE])]
    assert len(at) == 2
    assert at["ttft.p99"].mean() <= 0.045


def test_a_search_does_not_run_what_no_run_can_satisfy(tmp_path, client):
    grid = f"grid: {{serving.colocated.instances: [1, 2], {RATE}: [20 / s]}}\n\n\n"
    halving = "halving: {budget: workload.requests, from: 20, to: 40, factor: 2}, maximise: goodput"
    file = write(tmp_path, f"{grid}search: {{{halving}, subject_to: {{price.dollars_per_h: <= 6}}}}")
    dear = sweep(file, tmp_path / "dear", client=client)
    (answer,) = dear.summary["answers"]
    costs = {row["serving.colocated.instances"]: row["price.dollars_per_h"] for row in dear.points.to_dict("records")}
    assert set(costs) == {1}, "two engines cost more than is allowed in any run"
    assert answer["setting"]["serving.colocated.instances"] == 1
    assert any("settings were not run" in note for note in answer["notes"])
    none = f"search: {{capacity: {{of: {RATE}, from: 1 / s, to: 9 / s}}, subject_to: {{ttft.p99: <= 1 us}}}}"
    (answer,) = sweep(write(tmp_path, none, "none.yaml"), tmp_path / "none", client=client).summary["answers"]
    assert answer["setting"] is None
    assert answer["evaluations"] == 0
    assert "in any run" in answer["binding"][0]


def test_a_setting_is_cut_only_if_all_its_seeds_are_hopeless(tmp_path, client):
    """The longest of 60 prompts differs by seed: a bound between two of them is beyond one seed alone, not the mean."""
    base = write(tmp_path, "").parent / "base.yaml"
    least = {seed: limits_of(plan(load(base, [f"seed={seed}"]))).least["ttft.max"] for seed in (1, 2)}
    low, high = sorted(least.values())
    assert low < high
    hopeless = max(least, key=least.__getitem__)
    search = f"search: {{capacity: {{of: {RATE}, from: 1 / s, to: 2 / s}}, subject_to: {{ttft.max: <= {{}}}}}}"
    bound = f"{(low + high) / 2 * 1000:.3f} ms"
    for seeds, cut in ((f"[{hopeless}]", True), (f"[{hopeless}, {3 - hopeless}]", False)):
        text = f"seeds: {seeds}\n\n\n" + search.replace("{}", bound)
        (answer,) = sweep(write(tmp_path, text), tmp_path / f"cut-{cut}", client=client).summary["answers"]
        assert any("settings were not run" in note for note in answer["notes"]) == cut


def test_what_a_dry_run_says(tmp_path):
    file = write(tmp_path, f"grid: {{{RATE}: [20 / s, 40 / s]}}\nseeds: 1..10")
    lines = dry_run_lines(str(file), str(tmp_path / "out"), 2)
    assert "20 points, 0 there already, 20 to run" in lines
    assert "60 requests a point" in lines[-1]
    assert not (tmp_path / "out").exists()


def test_seeds_without_effect_are_told(tmp_path, client):
    steady = "workload.arrivals: {constant: {rate: 40 / s}}, workload.prompt_tokens: {constant: {value: 300}}"
    file = write(tmp_path, f"set: {{{steady}}}\nseeds: 1..2")
    assert "seeds have no effect" in sweep(file, tmp_path / "out", client=client).summary["notes"][0]


def test_the_command_prints_and_answers_in_json(tmp_path):
    file = write(tmp_path, f"grid: {{{RATE}: [20 / s, 40 / s]}}\nseeds: 1..2")
    shown = CliRunner().invoke(command, ["sweep", str(file), "--out", str(tmp_path / "out"), "--workers", "1"])
    assert shown.exit_code == 0, shown.output
    assert "4 points · 4 done" in shown.output
    assert "means over 2 seeds" in shown.output
    told = CliRunner().invoke(command, ["sweep", str(file), "--out", str(tmp_path / "out"), "--workers", "1", "--json"])
    assert json.loads(told.output)["status"] == {"done": 4}


def test_plan_names_are_those_of_meaning(tmp_path):
    file = write(tmp_path, f"grid: {{{RATE}: [20 / s]}}")
    [point] = load_plan(file).points()
    (tmp_path / "sub").mkdir()
    moved = write(tmp_path / "sub", f"description: the same\ngrid: {{{RATE}: [20 / s]}}")
    [same] = load_plan(moved).points()
    assert point.name == same.name
    [other] = load_plan(write(tmp_path, f"grid: {{{RATE}: [21 / s]}}")).points()
    assert other.name != point.name


def test_along_an_axis_and_between_sweeps(tmp_path, client):
    text = f"grid: {{serving.colocated.instances: [1, 2], {RATE}: [200 / s]}}\nseeds: 1..8"
    first = sweep(write(tmp_path, text), tmp_path / "one", client=client)
    [found] = along(first, "serving.colocated.instances", 0.95)
    assert found.keys == (("serving.colocated.instances", "1", "2"),)
    rows = {row.metric: row for row in found.differences}
    assert rows["ttft.mean"].better is True
    points = first.points
    each = [points[points["serving.colocated.instances"] == n]["ttft.mean"].to_numpy() for n in (1, 2)]
    assert rows["ttft.mean"].change.mean == pytest.approx((each[1] - each[0]).mean())
    other = write(tmp_path, f"set: {{serving.router: random}}\n{text}", "other.yaml")
    quick = sweep(other, tmp_path / "two", client=client)
    compared = between(first, quick, 0.95)
    assert len(compared) == 2
    assert "instances 2" in compared[1].names[0]
    with pytest.raises(InputError, match="unknown axis"):
        along(first, "serving.router", 0.95)
