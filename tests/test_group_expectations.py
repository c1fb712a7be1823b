"""What a scenario expects of groups: tenants, priorities and groups of engines, by figures over their own rows."""

import json
from pathlib import Path
from typing import Any

import pytest

from simulator import simulate, sweep
from simulator.cli import main
from simulator.errors import InputError
from simulator.results.metrics import GROUP_METRICS, METRICS, lookup, metric_of
from simulator.results.tables import CALLERS
from simulator.scenario.load import load
from simulator.workload.parquet import write_trace
from simulator.workload.schema import make_batch

DRAWN = {
    "requests": 400,
    "arrivals": {"poisson": {"rate": "20 / s"}},
    "prompt_tokens": {"uniform": {"low": 50, "high": 900}},
    "output_tokens": {"uniform": {"low": 1, "high": 60}},
    "tenants": {"gold": 1, "free.of charge": 3},
    "priorities": {"0": 3, "-2": 1},
}


def scenario(folder: Path, expect: dict[str, str], workload: dict[str, Any] | None = None, **more: Any) -> Path:
    value: dict[str, Any] = {"schema": 1, "seed": 5, "topology": {"preset": "clos-h100", "nodes": 1}}
    value |= {"workload": DRAWN if workload is None else workload, "expect": expect, "slo": {"ttft": "40 ms"}}
    value |= {"serving": {"model": "llama-3.1-8b", "colocated": {"instances": 2}}} | more
    path = folder / "grouped.yaml"
    path.write_text(json.dumps(value))
    return path


def test_figures_of_a_group_are_those_of_its_rows(tmp_path: Path) -> None:
    expect = {"tenant.gold.ttft.p95": "<= 1 h", "tenant.free.of charge.total": "> 0", "priority.-2.goodput": ">= 0"}
    run = simulate(scenario(tmp_path, expect), out=tmp_path / "run", check=True)
    callers = run.table("callers").to_pandas()
    rows = run.requests
    assert list(callers["request_id"]) == list(rows["request_id"])
    seconds = run.summary["simulated_s"]
    groups = {("tenant", name): callers["tenant"] == name for name in DRAWN["tenants"]}
    groups |= {("priority", "-2"): callers["priority"] == "-2"}
    for (kind, name), mask in groups.items():
        mine = rows[mask.to_numpy()]
        ttft = sorted(mine["first_token_ns"] - mine["arrival_ns"])
        found = {
            "total": len(mine),
            "finished": len(mine),
            "ttft.mean": sum(ttft) / len(ttft) / 1e9,
            "ttft.p95": ttft[-(-95 * len(ttft) // 100) - 1] / 1e9,
            "goodput": sum(t <= 40_000_000 for t in ttft) / len(ttft),
            "throughput.output_tokens_per_s": int(mine["generated_tokens"].sum()) / seconds,
            "preemptions": int(mine["preemptions"].sum()),
        }
        for metric, value in found.items():
            assert lookup(run.summary, f"{kind}.{name}.{metric}") == pytest.approx(value, rel=1e-12), (name, metric)
    each = [lookup(run.summary, f"tenant.{name}.total") for name in DRAWN["tenants"]]
    assert sum(each) == lookup(run.summary, "total")  # type: ignore[arg-type]
    assert [row["holds"] for row in run.summary["expect"]] == [True] * 3


def test_without_expectations_of_tenants_nothing_changes(tmp_path: Path) -> None:
    plain = simulate(scenario(tmp_path, {}), out=tmp_path / "plain")
    other = simulate(scenario(tmp_path, {"ttft.p95": "<= 1 h"}), out=tmp_path / "other")
    assert plain.manifest["digest"] == other.manifest["digest"]
    assert not (tmp_path / "plain" / CALLERS.file).exists()
    assert "tenants" not in plain.summary


def test_every_metric_of_a_group_stands_where_that_of_the_run_does(tmp_path: Path) -> None:
    run = simulate(
        scenario(tmp_path, {"tenant.all.total": "== 400"}, DRAWN | {"tenants": {"all": 1}}), out=tmp_path / "r"
    )
    for name in GROUP_METRICS:
        assert lookup(run.summary, f"tenant.all.{name}") == lookup(run.summary, name), name
    assert {m.name for m in METRICS} - set(GROUP_METRICS) >= {"itl.p99", "kv_transfer_share", "price.dollars"}


def test_the_longest_metric_is_meant() -> None:
    metric = metric_of("tenant.a.b.goodput.requests_per_s")
    assert metric is not None
    assert metric.path == ("tenants", "a.b", "goodput", "requests_per_s")
    assert metric_of("tenant..total") is None
    assert metric_of("tenant.total") is None


@pytest.mark.parametrize(
    ("expect", "workload", "what", "hint"),
    [
        ("tenant.glod.total", DRAWN, "there is no tenant glod", "gold"),
        ("priority.1.total", DRAWN, "there is no priority 1", None),
        ("tenant.gold.tft.p95", DRAWN, "unknown metric 'tenant.gold.tft.p95' of a tenant", "tenant.gold.ttft.p95"),
        ("tenat.gold.ttft.p95", DRAWN, "unknown metric 'tenat.gold.ttft.p95'", None),
        ("tenant.gold.total", {k: v for k, v in DRAWN.items() if k != "tenants"}, "draws no tenants", None),
        ("utilisation.colocated.big.busy", DRAWN, "the colocated pool is one group", None),
        ("utilisation.decode.big.busy", DRAWN, "there is no decode pool", None),
    ],
)
def test_what_cannot_be_is_refused(
    tmp_path: Path, expect: str, workload: dict[str, Any], what: str, hint: str | None
) -> None:
    with pytest.raises(InputError) as caught:
        load(scenario(tmp_path, {expect: ">= 0"}, workload))
    [problem] = caught.value.problems
    assert what in problem.what
    assert problem.nearest == hint


def test_goodput_of_a_group_needs_objectives(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="goodput needs objectives"):
        load(scenario(tmp_path, {"tenant.gold.goodput": ">= 0"}, slo={}))


def test_groups_of_engines(tmp_path: Path) -> None:
    pools = [{"name": "big", "instances": 1, "layout": {"tensor": 2}}, {"name": "small", "instances": 2}]
    serving = {"model": "llama-3.1-8b", "colocated": pools}
    expect = {"utilisation.colocated.big.busy": ">= 0", "utilisation.colocated.small.kv_max": "<= 1"}
    run = simulate(scenario(tmp_path, expect, serving=serving), out=tmp_path / "run")
    groups = run.summary["utilisation"]["colocated"]["groups"]
    observed = [row["observed"] for row in run.summary["expect"]]
    assert observed == [groups["big"]["busy"], groups["small"]["kv_max"]]
    with pytest.raises(InputError, match="colocated has no group smal") as caught:
        load(scenario(tmp_path, {"utilisation.colocated.smal.busy": ">= 0"}, serving=serving))
    assert caught.value.problems[0].nearest == "small"


def trace(folder: Path, **columns: list[Any]) -> dict[str, Any]:
    given = {"arrival_ns": [0, 1, 2], "prompt_tokens": [90] * 3, "output_tokens": [9] * 3}
    path = folder / "trace.parquet"
    write_trace(path, [make_batch(given | columns, 3)], {})
    return {"trace": str(path)}


def test_a_tenant_that_never_came_fails_whatever_is_expected(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recorded = trace(tmp_path, tenant=["gold", None, "free"])
    path = scenario(tmp_path, {"tenant.glod.rejected": "== 0", "tenant.gold.finished": "== 1"}, recorded)
    with pytest.raises(SystemExit) as caught:
        main([str(path), "--out", str(tmp_path / "run")])
    assert caught.value.code == 3
    said = " ".join(capsys.readouterr().out.split())
    assert "tenant.glod.rejected == 0: FAILED with no value" in said
    assert "tenant.gold.finished == 1: passed with 1" in said
    assert (
        "no request of tenant glod came, so what is expected of it fails; did you mean gold? (there: free, gold)"
        in said
    )
    assert "column tenant" not in said


def test_a_trace_without_tenants_is_refused(tmp_path: Path) -> None:
    path = scenario(tmp_path, {"tenant.gold.total": ">= 0"}, trace(tmp_path))
    with pytest.raises(InputError, match="the trace has no tenants"):
        simulate(path, out=tmp_path / "run")


def test_a_search_goes_by_whole_runs(tmp_path: Path) -> None:
    base = scenario(tmp_path, {"tenant.gold.ttft.p95": "<= 1 h"})
    capacity = {"of": "workload.arrivals.poisson.rate", "from": "1 / s", "to": "9 / s"}
    search = {"capacity": capacity, "subject_to": {"tenant.gold.ttft.p95": "<= 2 s"}}
    file = tmp_path / "sweep.yaml"
    file.write_text(json.dumps({"schema": 1, "base": str(base), "search": search}))
    with pytest.raises(InputError, match="is of a group, and a sweep's rows have the figures of whole runs"):
        sweep(file, out=tmp_path / "sweep")
