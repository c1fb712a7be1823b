"""Serving at speed: whole `simulate` processes, start-up and Parquet included, against the floor of bare SimPy events.

Run `python benchmarks/serving.py` (add `--full` for 3,000,000 requests, `--quick` for a smoke test). CPU seconds are
user + system of the process, memory its largest resident set. Every row is the median of `--repeat` runs.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow.parquet as pq
import record
from floor import bare_events_per_s

HERE = Path(__file__).parent
AZURE = HERE.parent.parent / "shared/data/azure-llm-2023/AzureLLMInferenceTrace_conv.csv.gz"

SYNTHETIC = """
schema: 1
seed: 7
topology: {preset: clos-h100, nodes: 32}
workload:
  requests: 1000000
  arrivals: {poisson: {rate: 120 / s}}
  prompt_tokens: {lognormal: {median: 700, sigma: 0.9, max: 8000}}
  output_tokens: {lognormal: {median: 150, sigma: 0.8, max: 2000}}
serving:
  model: llama-3.1-70b
  router: least_loaded
  colocated: {instances: 64, layout: {tensor: 4}, batcher: continuous}
slo: {ttft: 2 s, tpot: 50 ms}
"""
REPLAY = f"""
schema: 1
seed: 7
topology: {{preset: clos-h100, nodes: 4}}
workload: {{trace: {AZURE}, format: azure}}
serving:
  model: llama-3.1-70b
  colocated: {{instances: 8, layout: {{tensor: 4}}}}
slo: {{ttft: 2 s, tpot: 50 ms}}
"""
SPLIT = REPLAY.replace(
    "colocated: {instances: 8, layout: {tensor: 4}}",
    "prefill: {instances: 4, layout: {tensor: 4}}\n  decode: {instances: 4, layout: {tensor: 4}}",
)

FULL = """
schema: 1
seed: 7
topology: {preset: clos-h100, nodes: 32}
workload:
  requests: 100000
  arrivals: {poisson: {rate: 100 / s}}
  prompt_tokens: {lognormal: {median: 700, sigma: 0.9, max: 8000}}
  output_tokens: {lognormal: {median: 150, sigma: 0.8, max: 2000}}
  prefixes: {count: 200, tokens: {constant: {value: 1024}}}
serving:
  model: llama-3.1-70b
  router: prefix_aware
  prefill: {instances: 16, layout: {tensor: 4}, batcher: chunked_prefill, kv: {prefix_cache: {}}}
  decode: {instances: 32, layout: {tensor: 4}, router: least_loaded}
slo: {ttft: 2 s, tpot: 50 ms}
"""
EXPERTS = HERE.parent / "scenarios/serving/experts-on-a-supernode.yaml"


def process(arguments: list[str], repeat: int) -> dict[str, float]:
    """Return medians of wall and CPU seconds and of the largest resident set (MiB) of a `simulate` process."""
    command = [sys.executable, "-P", "-m", "simulator.cli", *arguments]  # the installed one, not what lies here
    rows = []
    for _ in range(repeat):
        begun = time.perf_counter()
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        _, status, usage = os.wait4(child.pid, 0)
        wall = time.perf_counter() - begun
        if status:
            raise SystemExit(f"{' '.join(command)} failed: {child.stderr.read().decode()}")
        rows.append((wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024))
    wall, cpu, memory = (statistics.median(column) for column in zip(*rows, strict=True))
    return {"wall_s": round(wall, 3), "cpu_s": round(cpu, 3), "rss_mib": round(memory, 1)}


def scenario(folder: Path, name: str, text: str, overrides: list[str], repeat: int) -> dict[str, float]:
    """Run a scenario as a process and add the requests, events and rates that its run folder tells."""
    file, out = folder / f"{name}.yaml", folder / name
    file.write_text(text)
    sets = [word for override in overrides for word in ("--set", override)]
    row = process([str(file), "--out", str(out), *sets], repeat)
    manifest = json.loads((out / "manifest.json").read_text())
    requests = manifest["tables"]["requests"]["rows"]
    tokens = pq.read_table(out / "instances.parquet", columns=["output_tokens"])["output_tokens"].to_numpy().sum()
    return row | {
        "requests": requests,
        "output_tokens_per_s": round(int(tokens) / row["wall_s"]),
        "events": manifest["events"],
        "requests_per_s": round(requests / row["wall_s"]),
        "loop_events_per_s": round(manifest["events"] / manifest["wall_s"]),
        "digest": manifest["digest"][:12],
    }


def main() -> None:
    """Print a row per case and write all of them to benchmarks/out/serving.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--full", action="store_true", help="3,000,000 requests too")
    parser.add_argument("--quick", action="store_true", help="20,000 requests at most")
    options = parser.parse_args()
    sizes = [20_000] if options.quick else [100_000, 1_000_000, *([3_000_000] if options.full else [])]
    rows: dict[str, dict[str, float]] = {}

    def report(name: str, row: dict[str, float]) -> None:
        rows[name] = row
        print(f"{name:30}", "  ".join(f"{key} {value}" for key, value in row.items()), flush=True)

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        report("floor (before)", {"simpy_events_per_s": round(bare_events_per_s())})
        report("simulate --help", process(["--help"], max(3, options.repeat)))
        (folder / "validate.yaml").write_text(SYNTHETIC)
        report("simulate validate", process(["validate", str(folder / "validate.yaml")], max(3, options.repeat)))
        if AZURE.exists():
            report("azure-conv colocated", scenario(folder, "colocated", REPLAY, [], options.repeat))
            report("azure-conv prefill/decode", scenario(folder, "split", SPLIT, [], options.repeat))
        else:
            print("azure-conv: skipped, the trace is not beside the project")
        for size in sizes:
            overrides = [f"workload.requests={size}"]
            report(f"synthetic {size:,}", scenario(folder, "synthetic", SYNTHETIC, overrides, options.repeat))
        for size in sizes[:1]:
            overrides = [f"workload.requests={size}"]
            report(f"split, cached, chunked {size:,}", scenario(folder, "full", FULL, overrides, options.repeat))
        overrides = ["workload.requests=4000"] if options.quick else []
        report("320 expert ranks", scenario(folder, "experts", EXPERTS.read_text(), overrides, options.repeat))
        report("floor (after)", {"simpy_events_per_s": round(bare_events_per_s())})
    record.write("serving", rows)


if __name__ == "__main__":
    main()
