"""A run as a process: the same bytes anywhere, what is done kept when interrupted, nothing whole when killed."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

SCENARIO = """
schema: 1
seed: 5
topology: {preset: clos-h100, nodes: 4}
workload:
  requests: 1500
  arrivals: {mmpp: {states: [{rate: 20 / s, dwell: 5 s}, {rate: 120 / s, dwell: 2 s}]}}
  prompt_tokens: {lognormal: {median: 900, sigma: 0.9, max: 8000}}
  output_tokens: {lognormal: {median: 120, sigma: 0.8, max: 800}}
serving:
  model: llama-3.1-8b
  prefill: {instances: 2, layout: {tensor: 4}, kv: {blocks: 1500}}
  decode: {instances: 3, layout: {tensor: 8}, kv: {blocks: 2500}}
"""


def simulate(*arguments, **environment):
    command = [sys.executable, "-m", "simulator.cli", *map(str, arguments)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ | environment, text=True
    )


def completes(*arguments):
    """Run to the end and say whether that went well."""
    with simulate(*arguments) as process:
        _, err = process.communicate(timeout=120)
    return process.returncode == 0 and err == ""


def digests(folder):
    names = ["scenario.yaml", "summary.json", *(f"{t}.parquet" for t in ("requests", "instances", "links", "events"))]
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}


@pytest.fixture
def scenario(tmp_path):
    path = tmp_path / "lifecycle.yaml"
    path.write_text(SCENARIO)
    return path


def test_bytes_do_not_depend_on_the_process(scenario, tmp_path):
    runs = [
        simulate(scenario, "--out", tmp_path / f"run{seed}", PYTHONHASHSEED=seed, OMP_NUM_THREADS=threads)
        for seed, threads in (("1", "1"), ("4242", "2"))
    ]
    for run in runs:
        _, err = run.communicate(timeout=120)
        assert run.returncode == 0, err
        assert err == ""
    assert digests(tmp_path / "run1") == digests(tmp_path / "run4242")
    manifests = [json.loads((tmp_path / name / "manifest.json").read_text()) for name in ("run1", "run4242")]
    assert manifests[0]["digest"] == manifests[1]["digest"]
    requests = pq.read_table(tmp_path / "run1" / "requests.parquet")
    assert requests.num_rows == 1500


def test_another_seed_is_another_run(scenario, tmp_path):
    for seed in (1, 2):
        assert completes(scenario, "--out", tmp_path / str(seed), "--seed", seed)
    assert digests(tmp_path / "1") != digests(tmp_path / "2")


def test_the_resolved_scenario_runs_to_the_same_bytes(scenario, tmp_path):
    assert completes(scenario, "--out", tmp_path / "first")
    assert completes(tmp_path / "first" / "scenario.yaml", "--out", tmp_path / "second")
    first, second = digests(tmp_path / "first"), digests(tmp_path / "second")
    assert first == second


def started(folder: Path) -> bool:
    return (folder / "requests.parquet").exists()


def interrupt(scenario, tmp_path, number, after_s=1.5):
    folder = tmp_path / "run"
    process = simulate(scenario, "--out", folder, "--set", "workload.requests=2000000")
    for _ in range(600):
        if started(folder):
            break
        time.sleep(0.05)
    time.sleep(after_s)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err, folder


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_keeps_what_was_done(scenario, tmp_path, number):
    status, out, err, folder = interrupt(scenario, tmp_path, number)
    assert status == 130, err
    assert "Traceback" not in err
    assert not (folder / "manifest.json").exists()
    partial = json.loads((folder / "manifest.partial.json").read_text())
    assert partial["status"] == "partial"
    rows = pq.read_table(folder / "requests.parquet").to_pandas()
    assert len(rows) == partial["tables"]["requests"]["rows"] > 0
    assert set(rows.outcome) == {"finished", "unfinished"}
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["requests"]["total"] == len(rows)
    assert "partial" in out or "interrupted" in out


def test_killed_leaves_nothing_that_looks_complete(scenario, tmp_path):
    status, _, _, folder = interrupt(scenario, tmp_path, signal.SIGKILL)
    assert status == -signal.SIGKILL
    assert not (folder / "manifest.json").exists()
    assert not (folder / "manifest.partial.json").exists()
    # and the folder can be used again
    assert completes(scenario, "--out", folder, "--set", "workload.requests=50")
    assert (folder / "manifest.json").exists()


def test_a_trace_that_breaks_midway_leaves_no_folder(scenario, tmp_path):
    lines = ["TIMESTAMP,ContextTokens,GeneratedTokens"]
    lines += [f"2023-11-16 18:{i // 60 % 60:02d}:{i % 60:02d}.0000000,100,10" for i in range(3000)]
    lines.append("2023-11-16 18:00:00.0000000,100,10")  # back in time
    trace = tmp_path / "broken.csv"
    trace.write_text("\n".join(lines) + "\n")
    folder = tmp_path / "run"
    sets = ["--set", "workload=null", "--set", f"workload={{trace: {trace}, format: azure}}"]
    process = simulate(scenario, "--out", folder, *sets)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "broken.csv:3002" in err
    assert len(err.strip().splitlines()) == 1
    assert out == ""
    assert not folder.exists()


def test_an_expectation_that_fails_is_exit_3(scenario, tmp_path):
    sets = ["--set", "slo={ttft: 1 ms}", "--set", 'expect={goodput: ">= 0.5"}', "--set", "workload.requests=50"]
    process = simulate(scenario, "--out", tmp_path / "run", *sets)
    process.communicate(timeout=60)
    assert process.returncode == 3
    assert (tmp_path / "run" / "manifest.json").exists()
