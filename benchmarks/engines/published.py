"""Engines of 2023 and 2024 against public measurements: Splitwise, Argonne's static batches, APEX+ traces, MLPerf.

None of these has a part in any fit. Where a source does not state its precision, 16 bits is what its times allow.
"""

import functools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from simulator import catalog
from simulator.device.accelerator import load_accelerator
from simulator.device.cost import RooflineCost
from simulator.device.engine import RooflineParameters
from simulator.errors import InputError
from simulator.model.forward import Work
from simulator.model.layout import Layout
from simulator.model.precision import Precision
from simulator.model.transformer import load_model
from simulator.serving.frontend import Arrivals

from .harness import (
    Row,
    Timed,
    decode_ms,
    error_row,
    error_rows,
    kv_tokens,
    prefill_ms,
    serve,
    static_ms,
    tpot_ms,
    ttft_ms,
)

ARGONNE_MODELS = {
    "meta-llama/Llama-2-7b-hf": "llama-2-7b",
    "meta-llama/Llama-2-70b-hf": "llama-2-70b",
    "meta-llama/Meta-Llama-3-8B": "llama-3-8b",
    "meta-llama/Meta-Llama-3-70B": "llama-3-70b",
    "mistralai/Mistral-7B-v0.1": "mistral-7b",
    "mistralai/Mixtral-8x7B-v0.1": "mixtral-8x7b",
}
ARGONNE_DEVICES = {
    "Nvidia A100 GPU": "a100-sxm-40gb",
    "Nvidia H100 GPU": "h100-sxm-80gb",
    "Nvidia GH200 GPU": "gh200-96gb",
    "SambaNova SN40L": "sn40l",
}
ARGONNE_ENGINES = ("TensorRT-LLM", "vLLM", "Deepspeed-MII", "sambaflow")
MLPERF_DEVICES = {
    "NVIDIA H100-SXM-80GB": "h100-sxm-80gb",
    "NVIDIA H100-PCIe-80GB": "h100-pcie-80gb",
    "NVIDIA L40S": "l40s",
    "NVIDIA B200-SXM-180GB": "b200-sxm",
    "AMD Instinct MI300X-NPS1-SPX-192GB-750W": "mi300x",
}
PLANS = tuple(Layout(tensor=t, pipeline=p) for t, p in ((1, 1), (2, 1), (1, 2), (4, 1), (2, 2), (8, 1)))
MLPERF_TOKENS = 294
"""Mean tokens in and out of MLPerf's llama2-70b set (24,576 samples of OpenOrca), as its task description says."""


@functools.cache
def instance(model: str, device: str, layout: Layout, form: str = "bf16", kv: str = "bf16") -> tuple[RooflineCost, int]:
    """Return the cost of an instance and the tokens of KV cache that fit it (none when the model does not)."""
    cost = RooflineCost(load_model(model), layout, load_accelerator(device), Precision(weights=form, kv=kv))
    try:
        return cost, kv_tokens(cost, sequences=64, utilisation=0.95)
    except InputError:
        return cost, 0


def splitwise(data: Path) -> Iterator[Row]:
    """Yield Llama-2-70B prompt and token times (vLLM of late 2023, no CUDA graphs): steps wait for the host's launches.

    The host's time per launch is read from the token times of one sequence on eight devices, which are left out then. A
    prompt time below the arithmetic at the device's peak is no measurement of a whole batch and is left out.
    """
    frame = pd.read_csv(data / "splitwise-sim" / "perf_model.llama2-70b.csv.gz")
    keys = ["hardware", "tensor_parallel", "prompt_size", "batch_size", "token_size"]
    frame = frame.groupby(keys, as_index=False)[["prompt_time", "token_time"]].median()
    for device in ("a100-sxm-80gb", "h100-sxm-80gb"):
        rows = frame[frame["hardware"] == f"{device.split('-')[0]}-80gb"]
        alone = rows[(rows["tensor_parallel"] == 8) & (rows["batch_size"] == 1)]
        cost, _ = instance("llama-2-70b", device, Layout(tensor=8))
        launches = sum(row.calls for row in cost.operators(Work(batch=1, context=1024)))
        launch_us = float(alone["token_time"].median()) * 1e3 / launches
        engine = RooflineParameters(launch=f"{launch_us:.2f} us", graphs="none")  # type: ignore[arg-type]
        for tensor, mine in rows.drop(alone.index).groupby("tensor_parallel"):
            cost, fits = instance("llama-2-70b", device, Layout(tensor=int(str(tensor))))
            slow = RooflineCost(cost.model, cost.layout, cost.accelerator, cost.precision, engine)
            for title, used in (("kernels", cost), (f"{launch_us:.0f} us a launch", slow)):
                yield from _splitwise(title, f"{device} TP{tensor}", used, mine, fits)


def _splitwise(title: str, where: str, cost: RooflineCost, rows: pd.DataFrame, fits: int) -> Iterator[Row]:
    prompts: list[tuple[float, float]] = []
    tokens: list[tuple[float, float]] = []
    for r in rows.itertuples():
        if r.batch_size * (r.prompt_size + r.token_size) > fits:
            continue
        floor = 2e3 * cost.model.parameters * r.batch_size * r.prompt_size / cost.accelerator.rate("bf16")
        if r.prompt_time >= floor / cost.layout.tensor:
            prompts.append((prefill_ms(cost, r.batch_size, r.prompt_size), r.prompt_time))
        tokens.append((decode_ms(cost, r.batch_size, r.prompt_size + r.token_size / 2), r.token_time))
    for what, pairs in (("prompt", prompts), ("token", tokens)):
        if pairs:
            yield error_row(f"Splitwise, vLLM (2023), {what}, {title}", where, *zip(*pairs, strict=True))


def argonne(data: Path) -> Iterator[Row]:
    """Yield static batches, input as long as output: time of the whole run."""
    frame = pd.read_csv(data / "argonne-llm-inference-bench" / "All_results.csv.gz").dropna(subset=["Latency"])
    names = {"Num of Hardware": "ranks", "Input Output Length": "tokens", "Batch Size": "batch"}
    frame = frame.rename(columns=names)
    found: dict[tuple[str, str], list[Timed]] = {}
    for r in frame.itertuples():
        model, device = ARGONNE_MODELS.get(r.Model), ARGONNE_DEVICES.get(r.Hardware)
        if model not in catalog.names("workloads/models") or device is None or r.Framework not in ARGONNE_ENGINES:
            continue
        batch, tokens, ranks = int(r.batch), int(r.tokens), int(r.ranks)
        try:
            cost, fits = instance(str(model), device, Layout(tensor=ranks))
        except InputError:
            continue
        if 2 * batch * tokens <= fits:
            whole = sum(static_ms(cost, batch, tokens, tokens))
            found.setdefault((r.Framework, f"{device} TP{ranks}"), []).append(Timed(whole, r.Latency * 1e3, tokens))
    for (engine, where), cases in sorted(found.items()):
        yield from error_rows(f"Argonne, {engine} (2024)", where, cases)


def argonne_layouts(data: Path) -> Iterator[Row]:
    """Yield static batches of tensor-, pipeline- and expert-parallel runs on four A100: time of the whole run."""
    frame = pd.read_csv(data / "argonne-llm-inference-bench" / "TP_EP_PP_results.csv.gz").dropna(subset=["Latency"])
    kinds = {
        "Tensor Parallelism": lambda n: {"tensor": n},
        "TP": lambda n: {"tensor": n},
        "Pipeline Parallelism": lambda n: {"pipeline": n},
        "PP": lambda n: {"pipeline": n},
        "Hybird Tensor (2) and Pipeline (2) Parallelism": lambda n: {"tensor": 2, "pipeline": 2},
        "Hybrid TP = 2 and PP = 2": lambda n: {"tensor": 2, "pipeline": 2},
        "Hybrid TP = 2 and EP = 2": lambda n: {"tensor": n, "expert": 2},
        "EP": lambda n: {"tensor": n, "expert": n},
    }
    found: dict[str, list[tuple[float, float]]] = {}
    for values in frame.to_dict("records"):
        model, ranks = ARGONNE_MODELS.get(values["Model"]), int(values["Num of Hardware"])
        if model not in catalog.names("workloads/models"):
            continue
        layout = Layout(**kinds[values["Parallelism Type"]](ranks))
        batch, tokens = int(values["Batch Size"]), int(values["Input Output Length"])
        cost, fits = instance(str(model), "a100-sxm-40gb", layout)
        if 2 * batch * tokens <= fits:
            whole = sum(static_ms(cost, batch, tokens, tokens))
            found.setdefault(str(layout), []).append((whole, values["Latency"] * 1e3))
    for layout_name, pairs in sorted(found.items()):
        yield error_row(
            "Argonne, TensorRT-LLM (2024), layouts", f"a100-sxm-40gb {layout_name}", *zip(*pairs, strict=True)
        )


def apex(data: Path) -> Iterator[Row]:
    """Yield mean TTFT and TPOT of vLLM (2024) serving Llama-3.1-70B on 8 H100 under plans, by plan."""
    traces = pd.read_csv(data / "apex-plus" / "request_traces.csv.gz")
    rows = pd.read_csv(data / "apex-plus" / "measured_serving_results.csv")
    found: dict[tuple[str, int], list[Timed]] = {}
    for r in rows.itertuples():
        mine = traces[
            (traces["family"] == r.family) & (traces["workload"] == r.workload) & (traces["rate_tag"] == r.rate_tag)
        ]
        mine = mine.sort_values("StartTimeOffset").iloc[r.replica :: r.dp]
        cost, _ = instance("llama-3.1-70b", "h100-sxm-80gb", Layout(tensor=r.tp))
        columns = (mine[name].tolist() for name in ("StartTimeOffset", "ContextTokens", "GeneratedTokens"))
        done = serve(cost, "continuous", Arrivals(*columns, [None] * len(mine), [None] * len(mine)))
        for what, model_ms, measured in (("TTFT", ttft_ms(done), r.ttft), ("TPOT", tpot_ms(done), r.tpot)):
            found.setdefault((what, r.tp), []).append(Timed(float(model_ms.mean()), measured * 1e3))
    for (what, tensor), cases in sorted(found.items()):
        yield from error_rows(f"APEX+, vLLM (2024), {what}", f"h100-sxm-80gb TP{tensor}", cases)


def mlperf(data: Path) -> Iterator[Row]:
    """Yield offline tokens per second of llama2-70b (v4.1): the best of a few plans, fp8, engines kept full."""
    frame = pd.read_csv(data / "mlperf-inference" / "llm_results.csv.gz")
    frame = frame[(frame["scenario"] == "Offline") & frame["benchmark"].str.startswith("llama2-70b")]
    for device_name, rows in frame.groupby("sys_accelerator_model_name"):
        device = MLPERF_DEVICES.get(str(device_name))
        if device is None:
            continue
        best = max((_offline(device, layout), str(layout)) for layout in PLANS)
        if not best[0]:
            continue
        pairs = []
        for r in rows.to_dict("records"):
            count = r["sys_accelerators_per_node"] * max(1, np.nan_to_num(r["sys_number_of_nodes"], nan=1))
            if r["Tokens per second"] > 0:
                pairs.append((best[0] * count, r["Tokens per second"]))
        if pairs:
            yield error_row("MLPerf v4.1, llama2-70b offline", f"{device} {best[1]}", *zip(*pairs, strict=True))


def _offline(device: str, layout: Layout) -> float:
    """Return output tokens per second and device of engines that are kept full; 0 where the model does not fit."""
    try:
        cost, fits = instance("llama-2-70b", device, layout, "fp8", "fp8")
    except InputError:
        return 0.0
    clients = min(1024, fits // (2 * MLPERF_TOKENS))
    if clients < 8:
        return 0.0
    rng = np.random.default_rng(0)
    prompts, outputs = (rng.geometric(1 / MLPERF_TOKENS, 4 * clients).clip(1, 1024).tolist() for _ in range(2))
    arrivals = Arrivals([0] * len(prompts), prompts, outputs, [None] * len(prompts), [None] * len(prompts))
    done = serve(cost, "continuous", arrivals, clients, max_running=clients)
    ends = sorted(r.finish_ns for r in done)
    until = ends[int(0.8 * len(ends))]  # before the loop drains
    return sum(r.output_tokens for r in done if r.finish_ns <= until) / until * 1e9 / layout.devices
