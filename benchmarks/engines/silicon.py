"""Closed loops of so many clients on one instance against the public silicon table of TTFT and TPOT, row by row.

Every aggregated row that the catalog covers is replayed through the serving engine; the others are listed with why.
"""

import functools
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from simulator import catalog
from simulator.device.accelerator import load_accelerator
from simulator.device.cost import RooflineCost
from simulator.errors import InputError
from simulator.model.layout import Layout
from simulator.model.precision import Precision
from simulator.model.transformer import load_model
from simulator.serving.frontend import Arrivals

from .harness import serve, tpot_ms, ttft_ms

OVERHEADS_MS = (0, 5, 10, 15, 20, 30, 40, 60, 80, 100, 150, 200, 300)
TOKENS = (0, 1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 30, 50)
"""What the two constants of an engine's delivery may be."""
ROUNDS = 10
"""Requests per client: what the benchmark of these tables sends."""

MODELS = {
    "MiniMaxAI/MiniMax-M2.5": "minimax-m2.5",
    "Qwen/Qwen3-235B-A22B-FP8": "qwen3-235b-a22b",
    "Qwen/Qwen3-32B": "qwen3-32b",
    "nvidia/Qwen3-32B-NVFP4": "qwen3-32b",
    "deepseek-ai/DeepSeek-R1": "deepseek-r1",
    "deepseek-ai/DeepSeek-V3": "deepseek-v3",
    "nvidia/DeepSeek-R1-NVFP4": "deepseek-r1",
    "nvidia/DeepSeek-V3.1-NVFP4": "deepseek-v3",
    "meta-llama/Llama-3.1-70B": "llama-3.1-70b",
    "meta-llama/Llama-3.1-8B-Instruct": "llama-3.1-8b",
    "moonshotai/Kimi-K2.5": "kimi-k2",
    "openai/gpt-oss-120b": "gpt-oss-120b",
    "zhipuai/GLM-5": "glm-5",
}
DEVICES = {"h100_sxm": "h100-sxm-80gb", "b200_sxm": "b200-sxm", "gb200": "gb200", "b300_sxm": "b300-sxm"}
BATCHER = {"vllm": "chunked_prefill", "trtllm": "chunked_prefill", "sglang": "continuous"}
"""What each engine does by default: vLLM splits prompts at its budget, TensorRT-LLM's in-flight batching mixes phases,
SGLang prefills first."""


class Case(NamedTuple):
    """One measured row as the simulator reads it."""

    model: str
    device: str
    backend: str
    layout: tuple[tuple[str, int], ...]
    precision: tuple[tuple[str, str], ...]
    clients: int
    prompt: int
    output: int
    spread: bool
    """Lengths drawn evenly from 0.8 of the nominal ones to all of them, as that benchmark does; otherwise from 0.9 to
    1.1 of them, for equal lengths would keep the clients in step, which the measured TTFT rule out."""


def read(data: Path) -> pd.DataFrame:
    """Return the aggregated rows, repeated measurements of one case dropped (the first stays)."""
    frame = pd.read_csv(data / "aiconfigurator" / "silicon_sample.csv.gz", low_memory=False)
    frame = frame[frame["mode"] == "agg"]
    measured = ("id", "silicon_data_source", "silicon_ttft_ms", "silicon_tpot_ms", "backend_version")
    return frame.drop_duplicates([c for c in frame.columns if c not in measured])


def layout_of(row: Any, is_sparse: bool) -> dict[str, int]:
    """Return the layout of a row. Products of expert degrees beyond a node of 8 count the same devices twice there."""
    tensor = int(row.tp_size)
    data = int(row.attention_dp_size) if row.attention_dp_size > 0 else 1
    if not is_sparse:
        return {"tensor": tensor, "data": data}
    expert = int(row.moe_ep_size) if row.moe_ep_size > 0 else 1
    split = int(row.moe_tp_size) if row.moe_tp_size > 0 else 1
    if expert == split > 1 and expert * split == tensor * data:
        tensor, data = (expert, 1) if data == 1 else (1, expert)
    return {"tensor": tensor, "data": data, "expert": min(expert, tensor * data)}


def precision_of(row: Any, model: str) -> dict[str, str]:
    """Return the formats of a row: those of the checkpoints that these engines serve."""
    gemm, experts = str(row.gemm_quant_mode), str(row.moe_quant_mode)
    if gemm == "nan":
        return {"weights": "bf16"}
    latent = model.startswith(("deepseek", "kimi"))
    if model.startswith("gpt-oss"):  # published in MXFP4; what is not an expert stays in 16 bits
        form = "w4a16_mxfp4" if row.system == "h100_sxm" else "w4a8_mxfp4_mxfp8"
        return {"weights": "bf16", "experts": form, "kv": "fp8" if row.system != "h100_sxm" else "bf16"}
    if gemm == "nvfp4" and latent:  # attention is left in 16 bits
        return {"weights": "nvfp4", "attention_weights": "bf16", "kv": "fp8"}
    if gemm == "int4_wo":
        return {"weights": "bf16", "experts": "int4_wo", "kv": "bf16"}
    block = gemm == "fp8" and (latent or model.startswith(("minimax", "qwen3-235b")))
    weights = "fp8_block" if block or gemm == "fp8_block" else gemm
    return {"weights": weights, "experts": "fp8_block" if experts == "fp8_block" else weights, "kv": "fp8"}


def case_of(row: Any) -> Case | str:
    """Return the case of a row, or why it is not covered."""
    model = MODELS.get(row.model_path)
    if model is None:
        return f"{row.model_path}: an architecture that the catalog does not have"
    if model not in catalog.names("workloads/models"):
        return f"{model}: no card"
    device = DEVICES[row.system]
    if device not in catalog.names("topologies/devices"):
        return f"{device}: no sheet"
    layout = layout_of(row, load_model(model).experts is not None)
    if layout["tensor"] * layout["data"] > load_accelerator(device).domain:
        return f"{device}: more devices than a scale-up domain"
    clients = int(row.batch_size) * layout["data"]
    spread = "trtllm/1.0.0rc3" not in row.silicon_data_source and "vllm/0.12.0" not in row.silicon_data_source
    return Case(
        model,
        device,
        row.backend,
        tuple(layout.items()),
        tuple(precision_of(row, model).items()),
        clients,
        int(row.isl),
        int(row.osl),
        spread,
    )


@functools.cache
def cost_of(case: Case) -> RooflineCost:
    """Return the cost of a case's instance."""
    return RooflineCost(
        load_model(case.model),
        Layout(**dict(case.layout)),
        load_accelerator(case.device),
        Precision(**dict(case.precision)),
    )


def loop(case: Case) -> tuple[float, float]:
    """Return (mean TTFT, mean TPOT) in ms of a closed loop on one instance; raises InputError where it does not fit."""
    cost = cost_of(case._replace(clients=0, prompt=0, output=0, spread=False))
    done = serve(cost, BATCHER[case.backend], requests(case), case.clients, max_running=case.clients)
    return float(ttft_ms(done).mean()), float(tpot_ms(done).mean())


def requests(case: Case) -> Arrivals:
    """Return the requests of a case, `ROUNDS` per client and 4 clients' worth at least."""
    count = ROUNDS * case.clients
    rng = np.random.default_rng(0)
    low, high = (0.8, 1.0) if case.spread else (0.9, 1.1)
    prompts = rng.integers(int(low * case.prompt), int(high * case.prompt) + 1, count)
    outputs = rng.integers(max(2, int(low * case.output)), int(high * case.output) + 1, count)
    return Arrivals([0] * count, prompts.tolist(), outputs.tolist(), [None] * count, [None] * count)


def predicted(case: Case) -> tuple[float, float] | str:
    """Return (TTFT, TPOT) in ms, or why there is none."""
    try:
        return loop(case)
    except InputError as error:
        return str(error.problems[0].what)[:80]


def evaluate(frame: pd.DataFrame, workers: int) -> pd.DataFrame:
    """Return one row per case with what was measured and predicted, or why not."""
    cases = [case_of(row) for row in frame.itertuples()]
    runnable = list(dict.fromkeys(case for case in cases if isinstance(case, Case)))
    runnable.sort(key=lambda c: (c.model, c.device, c.backend, c.layout, c.precision))
    with ProcessPoolExecutor(workers) as pool:
        answers = dict(zip(runnable, pool.map(predicted, runnable, chunksize=8), strict=True))
    rows: list[dict[str, Any]] = []
    for case, row in zip(cases, frame.itertuples(), strict=True):
        answer = answers[case] if isinstance(case, Case) else case
        known = isinstance(answer, tuple)
        rows.append(
            {
                "model": MODELS.get(row.model_path, row.model_path),
                "device": DEVICES[row.system],
                "engine": row.backend,
                "format": str(row.gemm_quant_mode),
                "layout": str(Layout(**dict(case.layout))) if isinstance(case, Case) else "",
                "clients": row.batch_size,
                "isl": row.isl,
                "osl": row.osl,
                "ttft": row.silicon_ttft_ms,
                "tpot": row.silicon_tpot_ms,
                "ttft_model": answer[0] if known else np.nan,
                "tpot_model": answer[1] if known else np.nan,
                "why": "" if known else answer,
            }
        )
    return pd.DataFrame(rows)


def delivered(found: pd.DataFrame) -> pd.DataFrame:
    """Return the covered rows with `client_ttft`, what a client sees, and `kept_out`, rows that had no part in its fit.

    Between an engine's first token and the client's lie connection, tokenising and hand-over, and engines that send
    several tokens at a time: an overhead in ms and a number of output tokens, fitted per engine on every second
    combination of model, device, format and layout, all its rows.
    """
    known = found[found["why"] == ""].copy()
    combination = known.groupby(["model", "device", "format", "layout"], sort=True).ngroup()
    known["kept_out"] = combination % 2 != 0
    for _, rows in known.groupby("engine"):
        fitted = rows[~rows["kept_out"]]
        grid = [(ms, tokens) for ms in OVERHEADS_MS for tokens in TOKENS]
        best = min(grid, key=lambda point: _ttft_error(fitted, *point))
        known.loc[rows.index, "client_ttft"] = rows["ttft_model"] + best[0] + best[1] * rows["tpot_model"]
        known.loc[rows.index, "delivery"] = f"{best[0]} ms and {best[1]} tokens"
    return known


def _ttft_error(rows: pd.DataFrame, overhead_ms: float, tokens: float) -> float:
    client = rows["ttft_model"] + overhead_ms + tokens * rows["tpot_model"]
    return float((client / rows["ttft"] - 1).abs().clip(upper=1).mean())


def summary(found: pd.DataFrame, *by: str) -> Iterator[str]:
    """Yield a Markdown table of median errors and biases by the columns `by`."""
    figures = "TPOT median error | predicted / measured | TTFT median error | predicted / measured"
    yield f"| {' | '.join(by)} | rows | {figures} |"
    yield "|" + "---|" * (len(by) + 5)
    known = found[found["why"] == ""]
    groups = known.groupby(list(by)) if by else [("all", known)]
    for key, rows in groups:
        names = key if isinstance(key, tuple) else (key,)
        cells = []
        for what in ("tpot", "ttft"):
            ratio = rows[f"{what}_model"] / rows[what]
            cells += [f"{(ratio - 1).abs().median():.0%}", f"{ratio.median():.2f}"]
        yield f"| {' | '.join(map(str, names))} | {len(rows)} | {' | '.join(cells)} |"


def delivery_table(known: pd.DataFrame) -> Iterator[str]:
    """Yield a Markdown table of TTFT as a client sees it, on the rows that had no part in its two constants."""
    yield "| engine | delivery | rows kept out | TTFT median error | predicted / measured |"
    yield "|" + "---|" * 5
    rest = known[known["kept_out"]]
    for name, rows in [*rest.groupby("engine"), ("all", rest)]:
        ratio = rows["client_ttft"] / rows["ttft"]
        how = rows["delivery"].iloc[0] if name != "all" else ""
        yield f"| {name} | {how} | {len(rows)} | {(ratio - 1).abs().median():.0%} | {ratio.median():.2f} |"


def report(data: Path, out: Path, every: int = 1, workers: int = 2) -> Iterator[str]:
    """Yield the errors of covered rows by engine and by model, and why others are not, as Markdown; write a CSV."""
    found = evaluate(read(data).iloc[::every], workers)
    found.to_csv(out / "silicon.csv", index=False)
    known = delivered(found)
    for what, note in (("tpot", "no constant of an engine"), ("ttft", "to the engine's first token")):
        error = (known[f"{what}_model"] / known[what] - 1).abs().median()
        yield f"- {what.upper()}: median error {error:.1%} of {len(known)} rows ({note})"
    yield ""
    for by in (("engine",), ("model", "device", "engine", "format")):
        yield from summary(found, *by)
        yield ""
    yield from delivery_table(known)
    yield "\nNot covered:\n"
    for why, count in found[found["why"] != ""]["why"].value_counts().items():
        yield f"- {why}: {count} rows"
