"""A scenario with measured tables: paths relative to the file, refusals with their place, provenance in each run."""

import json
from pathlib import Path

import pytest

from simulator import cli
from simulator.build.run import simulate
from simulator.scenario.load import load, resolved, scenario_digest

TABLE = """operator,rows,columns,inner,format,ns,engine,version,device,date
gemm,1,6144,4096,bf16,20000,vllm,0.19.0,NVIDIA H100 80GB HBM3,2026-04-01
gemm,1024,6144,4096,bf16,150000,vllm,0.19.0,NVIDIA H100 80GB HBM3,2026-04-01
"""
SCENARIO = """schema: 1
topology: {preset: clos-h100, nodes: 1}
workload: {requests: 5, arrivals: {poisson: {rate: 5 / s}}, prompt_tokens: 200, output_tokens: 20}
serving:
  model: llama-3.1-8b
  cost:
    measured:
      tables:
        - %s
  colocated: {instances: 1}
"""


def scenario_file(folder: Path, entry: str = "tables/gemm.csv", table: str = TABLE) -> Path:
    (folder / "tables").mkdir(exist_ok=True)
    (folder / "tables" / "gemm.csv").write_text(table)
    path = folder / "scenario.yaml"
    path.write_text(SCENARIO % entry)
    return path


@pytest.mark.parametrize("entry", ["tables/gemm.csv", "{path: tables/gemm.csv, engine: mine}"])
def test_each_run_says_where_its_times_are_from(tmp_path: Path, entry: str) -> None:
    run = simulate(load(scenario_file(tmp_path, entry)), out=tmp_path / "out")
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    engine = "mine" if "mine" in entry else "vllm"
    table, *steps = manifest["cost"]
    assert f"table gemm.csv (canonical, 2 rows): {engine} 0.19.0 on NVIDIA H100 80GB HBM3, 2026-04-01" in table
    assert len(steps) == 2
    assert all("from the roofline, nothing like it was measured" in step for step in steps)
    assert set(manifest["cost"]) <= set(run.summary["warnings"])


def test_the_resolved_scenario_is_equal_and_the_digest_follows_the_table(tmp_path: Path) -> None:
    scenario = load(scenario_file(tmp_path))
    copy = tmp_path / "copy.yaml"
    copy.write_text(resolved(scenario, tmp_path))
    assert load(copy).serving == scenario.serving
    digest = scenario_digest(scenario)
    assert scenario_digest(load(copy)) == digest
    assert scenario_digest(load(scenario_file(tmp_path, table=TABLE.replace("150000", "150001")))) != digest


def code(path: Path) -> object:
    """Return the exit code of `simulate validate`."""
    with pytest.raises(SystemExit) as stop:
        cli.main(["validate", str(path)])
    return stop.value.code


def test_validate_tells_coverage_and_places_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = scenario_file(tmp_path)
    assert code(path) == 0
    told = capsys.readouterr().out
    assert "valid" in told
    assert "table gemm.csv" in told
    path = scenario_file(tmp_path, "tables/gem.csv")
    assert code(path) == 2
    said = capsys.readouterr().err
    assert f"{path}:9:11: serving.cost.measured.tables[0]: cannot read" in said
    assert "did you mean 'gemm.csv'?" in said
    other = scenario_file(tmp_path, table=TABLE.replace("H100 80GB HBM3", "A100-SXM4-80GB"))
    assert code(other) == 2
    assert "was measured on NVIDIA A100-SXM4-80GB, the engines run on h100-sxm-80gb" in capsys.readouterr().err
