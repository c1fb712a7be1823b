"""Says how far replayed runs of vLLM are from the measured ones: TTFT, TPOT, throughput, and what its scheduler held.

Run `python benchmarks/replay_vllm.py`. Source: LLMServingSim's runs of vLLM 0.19.0 (300 ShareGPT requests each), read
beside the project; layer times are of the same machines. The KV memory, and unless `--links sheet` the link between two
cards, are those of the machine's description that comes with each run. Nothing is fitted unless `--fit RUN` asks for an
overhead per step that makes the mean TPOT of that run right, with which the other runs are then predicted; the engine
schedules a step while the one before runs, so zero is the expectation.
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from simulator import catalog, load, simulate
from simulator.documents import parse_document
from simulator.model.layout import Layout
from simulator.model.split import weight_bytes_per_rank
from simulator.model.transformer import load_model

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT.parent / "shared" / "data"
BLOCK_TOKENS = 16
FIGURES = ("TPOT mean ms", "TPOT p50 ms", "TTFT p50 s", "TTFT p99 s", "tokens/s")


class Run(NamedTuple):
    """A measured run: its folder below `llmservingsim`, and what the catalog calls its model and its device."""

    folder: str
    model: str
    device: str


RUNS = (
    Run("RTXPRO6000/Llama-3.1-8B", "llama-3.1-8b", "rtx-pro-6000"),
    Run("RTXPRO6000/Qwen3-32B", "qwen3-32b", "rtx-pro-6000"),
    Run("RTX4090/Llama-3.1-8B", "llama-3.1-8b", "rtx-4090"),
)


class Measured(NamedTuple):
    """What was asked of the engine and what came of it; times in s from the start of the run."""

    settings: dict[str, Any]
    requests: pd.DataFrame
    series: pd.DataFrame


def read(run: Run, data: Path) -> Measured:
    """Read a run. Arrivals are on another clock than the engine's; no request is queued before it has arrived."""
    folder = data / "llmservingsim" / "vllm-measured" / run.folder
    settings = json.loads((folder / "meta.json").read_text())
    requests = pd.read_csv(folder / "requests.csv.gz")
    requests["arrival"] = requests.arrival_time - datetime.fromisoformat(settings["started_at"]).timestamp()
    offset = (requests.queued_ts - requests.arrival).min()
    for column in ("scheduled", "first_token", "last_token"):
        requests[column] = requests[f"{column}_ts"] - offset
    requests["output"] = requests.output_toks
    return Measured(settings, requests, pd.read_csv(folder / "timeseries.csv"))


def described(settings: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the descriptions of the machine and of its one engine that come with a run."""
    machine = settings["cluster_config_of_the_reference_simulator"]
    return machine, machine["nodes"][0]["instances"][0]


def sheet_with_links(run: Run, settings: dict[str, Any], folder: Path) -> str:
    """Write the device's sheet with an all-reduce over the link of the machine's description; return its path."""
    machine, instance = described(settings)
    text = catalog.locate("topologies/devices", run.device).read_text()
    sheet = parse_document(text, run.device).value
    way = {"latency": f"{machine['link_latency']} ns", "bandwidth": f"{machine['link_bw']} GB/s"}
    ranks = instance["tp_size"]
    table = {str(ranks): {"switch": "1 KiB", "small": way, "large": way}}
    sheet["scale_up"] = {"bandwidth": sheet["scale_up"]["bandwidth"], "ranks": ranks, "all_reduce": table}
    del sheet["sources"]["scale_up.like"]
    sheet["sources"]["scale_up.all_reduce"] = "link_bw and link_latency of the description of the machine"
    path = folder / f"{run.device}.yaml"
    path.write_text(json.dumps(sheet))
    return str(path)


def kv_blocks(run: Run, settings: dict[str, Any]) -> int:
    """Return the KV blocks of the engine, from the share of memory that the machine's description leaves to it."""
    _, instance = described(settings)
    model, layout = load_model(run.model), Layout(tensor=instance["tp_size"])
    usable = instance["npu_mem"]["mem_size"] * 2**30 * instance["npu_mem"]["mem_util"]
    block = BLOCK_TOKENS * model.kv_bytes_per_token() / layout.tensor
    return int((usable - weight_bytes_per_rank(model, layout)) / block)


def cost_of(run: Run, kind: str, data: Path, overhead_ns: float) -> dict[str, Any]:
    """Return the `cost` section: the roofline of the device's sheet, or the layer times of the same machine."""
    overhead = {"step_overhead": f"{overhead_ns:.0f} ns"}
    if kind == "roofline":
        return {"roofline": overhead}
    profile = data / "llmservingsim" / "profile" / run.folder
    tables = [
        {"path": str(path), "device": run.device, "engine": "vllm", "version": "0.19.0", "model": run.model}
        for path in sorted(profile.glob("*.parquet"))
    ]
    return {"measured": {"tables": tables, **overhead}}


def scenario(run: Run, measured: Measured, device: str, trace: Path, cost: dict[str, Any]) -> dict[str, Any]:
    """Return the scenario of a run: the requests as they came, the limits that the engine was given."""
    settings = measured.settings["engine_kwargs"]
    columns = {
        "arrival": {"column": "arrival", "unit": "s"},
        "prompt_tokens": "input_toks",
        "output_tokens": "output_toks",
    }
    batcher = {"max_running": settings["max_num_seqs"], "max_batch_tokens": settings["max_num_batched_tokens"]}
    return {
        "schema": 1,
        "topology": {"preset": "pcie-a100", "device": device, "shared_ports": []},
        "workload": {"trace": str(trace), "format": "csv", "columns": columns},
        "serving": {
            "model": run.model,
            "cost": cost,
            **({"max_context": settings["max_model_len"]} if settings["max_model_len"] else {}),
            "colocated": {
                "instances": 1,
                "layout": {"tensor": settings["tensor_parallel_size"]},
                "batcher": {"chunked_prefill": batcher},
                "kv": {
                    "blocks": kv_blocks(run, measured.settings),
                    "block_tokens": BLOCK_TOKENS,
                    "watermark": 0,
                },
            },
        },
        "results": {"interval": f"{measured.settings['tick_seconds']} s"},
    }


def replay(run: Run, measured: Measured, cost: dict[str, Any], links: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Run the scenario; return its requests with times in s, and a row per window of the engine."""
    several = described(measured.settings)[1]["tp_size"] > 1
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        trace = folder / "requests.csv"
        measured.requests[["arrival", "input_toks", "output_toks"]].to_csv(trace, index=False, float_format="%.9f")
        borrowed = links == "sheet" or not several
        device = run.device if borrowed else sheet_with_links(run, measured.settings, folder)
        file = folder / "replay.yaml"
        file.write_text(json.dumps(scenario(run, measured, device, trace, cost)))
        found = simulate(load(file), out=folder / "run", check=True)
        requests, windows = found.requests, found.instances
    if not (requests.outcome == "finished").all():
        raise SystemExit(f"{run.folder}: not every request was served")
    names = {"arrival": "arrival", "first_token": "first_token", "last_token": "finish"}
    times = {name: requests[f"{column}_ns"] / 1e9 for name, column in names.items()}
    return pd.DataFrame({**times, "output": requests.output_tokens, "preemptions": requests.preemptions}), windows


def figures(requests: pd.DataFrame) -> dict[str, float]:
    """Return the figures that both sides are compared by; throughput from the first arrival to the last token."""
    ttft = requests.first_token - requests.arrival
    decoding = requests[requests.output > 1]
    tpot = (decoding.last_token - decoding.first_token) / (decoding.output - 1)
    span = requests.last_token.max() - requests.arrival.min()
    values = 1e3 * tpot.mean(), 1e3 * tpot.median(), ttft.median(), ttft.quantile(0.99), requests.output.sum() / span
    return dict(zip(FIGURES, map(float, values), strict=True))


def scheduler(measured: Measured, windows: pd.DataFrame) -> Sequence[tuple[str, float, float, float]]:
    """Return (what, mean measured, mean simulated, mean absolute difference) over the seconds that both have."""
    whole = (windows.end_ns % 10**9 == 0) & (windows.end_ns - windows.start_ns == 10**9)  # idle ones are merged
    rows = windows[whole].set_index(windows[whole].end_ns // 10**9)
    series = measured.series.set_index(measured.series.t.round().astype(int))
    seconds = np.intersect1d(series.index, rows.index)
    seen, found = series.loc[seconds], rows.loc[seconds]
    pairs = {
        "running": (seen.running, found.running),
        "waiting": (seen.waiting, found.waiting),
        "output tokens/s": (seen.gen_throughput, found.output_tokens),
        "KV %": (seen.kv_cache_pct, 100 * found.kv_blocks / found.kv_total_blocks),
    }
    arrays = {name: (a.to_numpy(float), b.to_numpy(float)) for name, (a, b) in pairs.items() if a.any()}
    return [(name, float(a.mean()), float(b.mean()), float(np.abs(a - b).mean())) for name, (a, b) in arrays.items()]


def fitted_overhead(run: Run, measured: Measured, kind: str, data: Path, links: str) -> float:
    """Return the ns per step with which the mean TPOT of `run` is the measured one; 0 when it is too long without."""
    wanted = figures(measured.requests)["TPOT mean ms"]
    low, high = 0.0, 20e6
    while high - low > 20_000:
        middle = (low + high) / 2
        found = figures(replay(run, measured, cost_of(run, kind, data, middle), links)[0])["TPOT mean ms"]
        low, high = (middle, high) if found < wanted else (low, middle)
    return low


def compare(run: Run, data: Path, kind: str, overhead_ns: float, links: str) -> dict[str, Any]:
    """Replay a run, print both sides, and return them."""
    measured = read(run, data)
    requests, windows = replay(run, measured, cost_of(run, kind, data, overhead_ns), links)
    here, there = figures(measured.requests), figures(requests)
    print(f"\n{run.folder}, {kind}, {overhead_ns / 1e3:.0f} us per step added")
    for name in FIGURES:
        error = there[name] / here[name] - 1
        print(f"  {name:16} measured {here[name]:9.2f}  simulated {there[name]:9.2f}  {error:+7.1%}")
    print(f"  preempted {requests.preemptions.sum()} times")
    series = scheduler(measured, windows)
    for name, seen, found, off in series:
        print(f"  {name:16} measured {seen:9.1f}  simulated {found:9.1f}  off by {off:.1f} in a second")
    return {"run": run.folder, "cost": kind, "measured": here, "simulated": there, "series": series}


def main() -> None:
    """Compare every run, and write benchmarks/out/replay_vllm.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=DATA, help="folder of measured runs")
    parser.add_argument("--cost", nargs="+", choices=("measured", "roofline"), default=("measured", "roofline"))
    parser.add_argument("--links", choices=("described", "sheet"), default="described", help="link of two cards")
    parser.add_argument("--run", nargs="+", choices=[run.folder for run in RUNS], help="default: all")
    parser.add_argument("--fit", choices=[run.folder for run in RUNS], help="run on which an overhead is fitted")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "out", help="folder of the JSON")
    options = parser.parse_args()
    if not (options.data / "llmservingsim").is_dir():
        raise SystemExit(f"no measured runs in {options.data}")
    rows = []
    for kind in options.cost:
        overhead_ns = 0.0
        if options.fit:
            run = next(run for run in RUNS if run.folder == options.fit)
            overhead_ns = fitted_overhead(run, read(run, options.data), kind, options.data, options.links)
        chosen = [run for run in RUNS if not options.run or run.folder in options.run]
        rows += [compare(run, options.data, kind, overhead_ns, options.links) for run in chosen]
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "replay_vllm.json").write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
