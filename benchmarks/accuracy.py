"""Says how far the roofline is from measurements: kernels on shapes left out of the fit, other tables, whole engines.

Run `python benchmarks/accuracy.py`; it prints the tables of docs/cost-model.md and writes them as JSON.
Nothing is fitted here.
"""

import argparse
import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from calibrate import DATA, ROOT, SYSTEMS, tables

from simulator.device import kernels
from simulator.device.accelerator import Accelerator, load_accelerator
from simulator.device.cost import RooflineCost
from simulator.device.memory import kv_blocks, ledger
from simulator.errors import InputError
from simulator.model.transformer import VALUE_BYTES, Layout, load_model

Row = dict[str, Any]


def error(what: str, where: str, model: np.ndarray, measured: np.ndarray) -> Row:
    """Return one row of an error table; times in any one unit."""
    off = np.abs(model / measured - 1)
    return {
        "what": what,
        "where": where,
        "rows": len(off),
        "median": float(np.median(off)),
        "mean": float(np.mean(off)),
        "ratio": float(np.median(model / measured)),
    }


def kernel_ns(kind: str, row: Any, device: Accelerator) -> float:
    """Return the simulator's time in ns for one row of a table that `calibrate` reads."""
    if kind == "gemm":
        return kernels.gemm(int(row.m), int(row.n), int(row.k), device).ns
    if kind == "all-reduce":
        return kernels.all_reduce(VALUE_BYTES * row.message_size, int(row.num_gpus), device).ns
    batch, shape = int(row.batch_size), (int(row.num_heads), int(row.num_key_value_heads), 128)
    if kind == "prefill attention":
        tokens = batch * int(row.isl)
        return kernels.prefill_attention(tokens, tokens * (row.isl + 1) / 2, tokens, *shape, device).ns
    return kernels.decode_attention(batch, batch * (row.step + 1), *shape, device).ns


def left_out_kernels(data: Path) -> Iterator[Row]:
    """Yield the errors on the shapes that `calibrate` left out."""
    for name in SYSTEMS:
        device = load_accelerator(name)
        for kind, (frame, mask) in tables(data, *SYSTEMS[name]).items():
            model = np.array([kernel_ns(kind, row, device) for row in frame[mask].itertuples()])
            measured = frame["ns"].to_numpy()[mask]
            yield error(kind, name, model, measured)
            slow = measured >= 50_000
            yield error(f"{kind}, from 50 us", name, model[slow], measured[slow])


def vidur_kernels(data: Path) -> Iterator[Row]:
    """Yield the errors on Vidur's profiles of another engine: matrix products, elementwise kernels, all-reduce."""
    for name in SYSTEMS:
        device, short = load_accelerator(name), name.split("-")[0]
        frame = pd.read_parquet(data / "vidur" / "compute" / f"{short}.mlp.parquet")
        frame = frame[frame["use_gated_mlp"].astype(bool)].iloc[::5]
        for operator in ("attn_pre_proj", "attn_post_proj", "mlp_up_proj", "mlp_down_proj", "mlp_act", "attn_rope"):
            measured = frame[f"time_stats.{operator}.median"].to_numpy() * 1e6
            model = np.array([vidur_ns(operator, row, device) for row in frame.itertuples()])
            known = measured > 0
            yield error(operator, name, model[known], measured[known])
        links = pd.read_parquet(data / "vidur" / "network" / f"{short}_dgx.all_reduce.parquet")
        links = links[links["num_workers"].between(2, 8) & (links["devices_per_node"] == links["num_workers"])]
        measured = links["time_stats.all_reduce.median"].to_numpy() * 1e6
        model = np.array([kernels.all_reduce(r.size, int(r.num_workers), device).ns for r in links.itertuples()])
        yield error("all-reduce", name, model, measured)


def vidur_ns(operator: str, row: Any, device: Accelerator) -> float:
    """Return the simulator's time in ns for one operator of a row of Vidur's profile."""
    tokens, ranks, hidden = int(row.num_tokens), int(row.num_tensor_parallel_workers), int(row.n_embd)
    head = hidden // int(row.n_head)
    queries, keys = int(row.n_head) // ranks * head, max(1, int(row.n_kv_head) // ranks) * head
    width = int(row.n_expanded_embd) // ranks
    if operator == "mlp_act":
        return kernels.elementwise(VALUE_BYTES * tokens * 3 * width, device).ns
    if operator == "attn_rope":
        return kernels.elementwise(VALUE_BYTES * tokens * 2 * (queries + keys), device).ns
    shapes = {
        "attn_pre_proj": (queries + 2 * keys, hidden),
        "attn_post_proj": (hidden, queries),
        "mlp_up_proj": (2 * width, hidden),
        "mlp_down_proj": (hidden, width),
    }
    return kernels.gemm(tokens, *shapes[operator], device).ns


def roofline(model: str, device: str, tensor: int, need_tokens: int) -> RooflineCost | None:
    """Return the cost of an instance, or None when `need_tokens` of KV cache do not fit it."""
    cost, kv_tokens = instance(model, device, tensor)
    return cost if need_tokens <= kv_tokens else None


@functools.cache
def instance(model: str, device: str, tensor: int) -> tuple[RooflineCost, int]:
    """Return the cost of an instance and the tokens of KV cache that fit it."""
    card, layout, sheet = load_model(model), Layout(tensor=tensor), load_accelerator(device)
    cost = RooflineCost(card, layout, sheet)
    try:
        book = ledger(card, layout, sheet, max_batch_tokens=8192, max_sequences=64, utilisation=0.95)
    except InputError:
        return cost, 0
    return cost, kv_blocks(book, card, layout, 1)


def decode_ms(cost: RooflineCost, batch: int, context: float) -> float:
    """Return one iteration of `batch` sequences of `context` tokens each."""
    step = cost.decode(batch)
    return (step.fixed_ns + step.per_context_token_ns * batch * context) / 1e6


def prefill_ms(cost: RooflineCost, batch: int, tokens: int) -> float:
    """Return one step that prefills `batch` prompts of `tokens` tokens each."""
    return cost.prefill_ns(batch * tokens, batch * tokens * (tokens + 1) // 2, batch) / 1e6


def engine_errors(label: str, points: list[tuple[float, float]]) -> Row:
    """Return the error row of (model, measured) pairs in ms."""
    model, measured = np.array(points).T
    return error("", label, model, measured) | {"missing": float(np.median(measured - model))}


def splitwise(data: Path) -> Iterator[Row]:
    """Yield Llama-2-70B prompt and token times (vLLM of late 2023, no CUDA graphs).

    A prompt time below the arithmetic at the device's peak is no measurement of a whole batch and is left out.
    """
    frame = pd.read_csv(data / "splitwise-sim" / "perf_model.llama2-70b.csv.gz")
    keys = ["hardware", "tensor_parallel", "prompt_size", "batch_size", "token_size"]
    frame = frame.groupby(keys, as_index=False)[["prompt_time", "token_time"]].median()
    for device in SYSTEMS:
        for tensor in (2, 4, 8):
            prefill, decode = [], []
            rows = frame[(frame["hardware"] == f"{device.split('-')[0]}-80gb") & (frame["tensor_parallel"] == tensor)]
            for r in rows.itertuples():
                cost = roofline("llama-2-70b", device, tensor, r.batch_size * (r.prompt_size + r.token_size))
                if cost is not None:
                    floor = 2 * cost.model.parameters * r.batch_size * r.prompt_size / cost.accelerator.peak["bf16"]
                    if r.prompt_time >= floor / tensor * 1e3:
                        prefill.append((prefill_ms(cost, r.batch_size, r.prompt_size), r.prompt_time))
                    decode.append((decode_ms(cost, r.batch_size, r.prompt_size + r.token_size / 2), r.token_time))
            yield engine_errors(f"{device} x{tensor}", prefill) | {"what": "Splitwise, prompt"}
            yield engine_errors(f"{device} x{tensor}", decode) | {"what": "Splitwise, token"}


def argonne(data: Path) -> Iterator[Row]:
    """Yield Llama-2 and Llama-3 static batches, input as long as output: time per token of the whole run."""
    frame = pd.read_csv(data / "argonne-llm-inference-bench" / "All_results.csv.gz").dropna(subset=["Latency"])
    frame = frame.rename(columns={"Num of Hardware": "ranks", "Input Output Length": "tokens", "Batch Size": "batch"})
    names = {
        f"meta-llama/{k}": v
        for k, v in (
            ("Llama-2-7b-hf", "llama-2-7b"),
            ("Llama-2-70b-hf", "llama-2-70b"),
            ("Meta-Llama-3-8B", "llama-3-8b"),
            ("Meta-Llama-3-70B", "llama-3-70b"),
        )
    }
    for device, hardware in (("a100-sxm-40gb", "Nvidia A100 GPU"), ("h100-sxm-80gb", "Nvidia H100 GPU")):
        for engine in ("TensorRT-LLM", "vLLM"):
            points: dict[str, list[tuple[float, float]]] = {"x1": [], "x2": [], "x4": []}
            rows = frame[(frame["Hardware"] == hardware) & (frame["Framework"] == engine) & frame["Model"].isin(names)]
            for r in rows.itertuples():
                batch, tokens = int(r.batch), int(r.tokens)
                cost = roofline(names[r.Model], device, int(r.ranks), 2 * batch * tokens)
                if cost is not None and f"x{r.ranks}" in points:
                    whole = prefill_ms(cost, batch, tokens) + (tokens - 1) * decode_ms(cost, batch, 1.5 * tokens)
                    points[f"x{r.ranks}"].append((whole / tokens, r.Latency * 1e3 / tokens))
            for ranks, pairs in points.items():
                if pairs:
                    yield engine_errors(f"{device} {ranks}", pairs) | {"what": f"Argonne, {engine} (2024)"}


def silicon(data: Path) -> Iterator[Row]:
    """Yield time per output token of Llama-3.1-8B under TensorRT-LLM 1.0 (2025) at a fixed concurrency.

    In the steady state each token also waits for (concurrency - 1) / output tokens prefills of other requests.
    """
    frame = pd.read_csv(data / "aiconfigurator" / "silicon_sample.csv.gz", low_memory=False)
    frame = frame[(frame["system"] == "h100_sxm") & (frame["model_path"] == "meta-llama/Llama-3.1-8B-Instruct")]
    for tensor, rows in frame.groupby("tp_size"):
        points = []
        for r in rows.itertuples():
            batch, isl, osl = int(r.batch_size), int(r.isl), int(r.osl)
            cost = roofline("llama-3.1-8b", "h100-sxm-80gb", int(tensor), batch * (isl + osl))
            if cost is not None:
                waits = (batch - 1) / osl * prefill_ms(cost, 1, isl)
                points.append((decode_ms(cost, batch, isl + osl / 2) + waits, r.silicon_tpot_ms))
        yield engine_errors(f"h100-sxm-80gb x{int(tensor)}", points) | {"what": "TensorRT-LLM 1.0, TPOT (2025)"}


def show(title: str, rows: list[Row]) -> None:
    """Print one error table as Markdown."""
    last = " missing per step or token, ms |" if "missing" in rows[0] else ""
    print(f"\n### {title}\n\n| what | where | rows | median error | mean error | predicted / measured |{last}")
    print("|---|---|---|---|---|---|" + ("---|" if last else ""))
    for r in rows:
        line = f"| {r['what']} | {r['where']} | {r['rows']} | {r['median']:.0%} | {r['mean']:.0%} | {r['ratio']:.2f} |"
        print(line + (f" {r['missing']:.1f} |" if last else ""))


def main() -> None:
    """Print every table and write them as JSON under `--out`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=DATA, help="folder of measured tables")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "out", help="folder of the JSON")
    options = parser.parse_args()
    data = options.data
    result = {
        "Kernels: shapes left out of the fit": list(left_out_kernels(data)),
        "Kernels: Vidur's profiles": list(vidur_kernels(data)),
        "Engines": [*silicon(data), *argonne(data), *splitwise(data)],
    }
    for title, rows in result.items():
        show(title, rows)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "accuracy.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
