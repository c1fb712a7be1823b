"""Comparisons: what is alike differs in nothing, chance is seldom taken for a difference, and a true one is found."""

import json

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from simulator.build.run import simulate
from simulator.cli import simulate as command
from simulator.errors import InputError
from simulator.report.comparison import _latencies, _settled, compare_rows, compare_runs, different_keys, flat
from simulator.results.metrics import METRICS
from simulator.scenario.load import load

SCENARIO = """
schema: 1
seed: 3
topology: {preset: clos-h100, nodes: 2}
workload:
  requests: 2000
  arrivals: {poisson: {rate: 60 / s}}
  prompt_tokens: {lognormal: {median: 300, sigma: 0.8, max: 2000}}
  output_tokens: {lognormal: {median: 60, sigma: 0.5, max: 300}}
serving:
  model: llama-3.1-8b
  colocated: {instances: 2, layout: {tensor: 2}}
slo: {ttft: 1 s}
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    file = folder / "base.yaml"
    file.write_text(SCENARIO)

    def run(name, *overrides):
        return simulate(load(file, overrides), out=folder / name)

    return {
        "a": run("a"),
        "same": run("same"),
        "more": run("more", "serving.colocated.instances=3"),
        "fewer": run("fewer", "workload.requests=500"),
        "given up": run(
            "given up",
            "workload.requests=300",
            "serving.cancel={fraction: 0.5, after_tokens: 3}",
            "serving.timeout={total: 1 s}",
        ),
        "samples": run("samples", "workload.requests=300", "workload.samples={constant: {value: 4}}"),
    }


def test_a_run_does_not_differ_from_itself(runs):
    found = compare_runs(runs["a"], runs["same"])
    assert found.keys == ()
    assert all(row.first == row.second and row.better is None for row in found.differences)


def test_more_engines_are_found_to_be_better_and_dearer(runs):
    found = compare_runs(runs["a"], runs["more"])
    assert found.keys == (("serving.colocated.instances", "2", "3"),)
    rows = {row.metric: row for row in found.differences}
    assert rows["ttft.mean"].better is True
    assert rows["tpot.mean"].better is True
    assert rows["ttft.mean"].change.high < 0
    assert rows["price.dollars_per_h"].better is None, "one run of each: no interval, so no verdict"
    back = {row.metric: row for row in compare_runs(runs["more"], runs["a"]).differences}
    assert back["ttft.mean"].better is False
    assert back["ttft.mean"].change.low == pytest.approx(-rows["ttft.mean"].change.high)


def test_a_figure_of_batches_is_that_of_the_summary(runs):
    # TPOT is per token of one answer: with four, dividing by the tokens of all would be a quarter of it; who cancels
    # with the third token has no TPOT, least of all one over the tokens asked for
    assert runs["given up"].summary["requests"]["cancelled"] > 100
    assert runs["given up"].summary["requests"]["timed_out"] > 0
    for name in ("a", "samples", "given up"):
        found = _latencies(runs[name])
        for what in ("ttft", "tpot", "e2e"):
            assert np.nanmean(found[what]) == pytest.approx(runs[name].summary[what]["mean"], rel=1e-6)


def test_warm_up_is_counted_in_requests_whether_they_finished_or_not():
    times = np.full(400, 1.0)
    times[:100] = 9.0
    times[:100:2] = np.nan  # half of the first hundred were given up
    assert _settled(times) == 100


def test_runs_of_other_requests_have_no_intervals(runs):
    found = compare_runs(runs["a"], runs["fewer"])
    assert all(row.change is None and row.better is None for row in found.differences)
    assert "different requests" in found.notes[0]


def frame(values_of, seeds):
    rows = {"seed": seeds, "status": ["done"] * len(seeds)}
    return pd.DataFrame(rows | {m.name: values_of(m.name) for m in METRICS})


def test_chance_alone_seldom_gets_a_verdict():
    # both sides from one law: with Holm's rule the chance of any verdict at all is 5 % at most
    source, wrong, rounds = np.random.default_rng(11), 0, 100
    for _ in range(rounds):
        seeds = list(range(8))
        first, second = (frame(lambda name: source.normal(1, 0.1, 8), seeds) for _ in "ab")
        found = compare_rows(first, second, ("a", "b"), ())
        wrong += any(row.better is not None for row in found.differences)
    assert wrong / rounds < 0.05 + 3 * (0.05 * 0.95 / rounds) ** 0.5


def test_pairs_are_of_equal_seeds_whatever_their_order():
    first = frame(lambda name: np.array([1.0, 2.0, 3.0]), [1, 2, 3])
    second = frame(lambda name: np.array([3.5, 1.5, 2.5]), [3, 1, 2])
    found = compare_rows(first, second, ("a", "b"), ())
    assert all(row.change.mean == pytest.approx(0.5) and row.change.half == 0 for row in found.differences)
    assert "exact" in found.notes[0]
    with pytest.raises(InputError, match="no seed"):
        compare_rows(first, second.assign(seed=[7, 8, 9]), ("a", "b"), ())


def test_keys_that_differ_by_path():
    first = {"a": {"b": 1, "c": [1, 2]}, "d": None, "name": "x", "e": [{"f": 1}]}
    second = {"a": {"b": 2, "c": [1, 2]}, "name": "y", "e": [{"f": 2}], "g": True}
    found = different_keys(flat(first), flat(second))
    assert found == (("a.b", "1", "2"), ("d", "", "-"), ("e[0].f", "1", "2"), ("g", "-", "True"))


def test_the_command(runs, tmp_path):
    a, more = str(runs["a"].path), str(runs["more"].path)
    shown = CliRunner().invoke(command, ["compare", a, more])
    assert shown.exit_code == 0, shown.output
    assert "B is better in ttft.mean" in shown.output.replace("\n", " ")
    told = json.loads(CliRunner().invoke(command, ["compare", a, more, "--json"]).output)
    assert {row["metric"]: row["verdict"] for row in told[0]["figures"]}["ttft.mean"] == "better"
    for words, what in (
        ([a], "nothing to compare"),
        ([a, str(tmp_path)], "no run here"),
        ([a, "--by", "serving.router"], "no sweep here"),
        ([a, more, "--by", "x"], "one sweep"),
    ):
        failed = CliRunner().invoke(command, ["compare", *words])
        assert isinstance(failed.exception, InputError)
        assert what in str(failed.exception)
