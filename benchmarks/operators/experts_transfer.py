"""Routed experts against tables that nothing was fitted on: other engines, wide expert parallelism, other devices.

TensorRT-LLM's wide expert parallelism (aiconfigurator), InferSim's grouped products of H800, Frontier's layers of A800.
A800 and H800 have the silicon of A100 and H100.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from simulator.device.accelerator import Accelerator, load_accelerator
from simulator.device.experts import loaded_experts, moved_bytes
from simulator.device.kernels import memory_floor_ns
from simulator.model.expert_load import Load, even_load, rank_load
from simulator.model.operators import Experts

from .fitting import Row, error, thinned

ROWS = 1500
WIDE = {"h100-sxm-80gb": ("h100_sxm", "fp8_block"), "b200-sxm": ("b200_sxm", "nvfp4"), "gb200": ("gb200", "nvfp4")}


def transfer(data: Path) -> Iterator[Row]:
    """Yield the errors of every table."""
    for device, (system, form) in WIDE.items():
        yield from _tensorrt(data, device, system, form)
    yield from _deepgemm(data)
    yield from _frontier(data)


def skew_of(law: str) -> float:
    """Return the exponent of a law of load such as `power_law_1.2`, zero of an even one."""
    return float(law.split("_")[2]) if law.startswith("power_law") else 0.0


def _tensorrt(data: Path, device: str, system: str, form: str) -> Iterator[Row]:
    """Yield the errors of TensorRT-LLM's wide expert parallelism, with and without balancing over redundant slots."""
    file = data / "aiconfigurator" / system / "moe.trtllm.1.3.0rc10.wideep_moe_perf.parquet"
    frame = thinned(pd.read_parquet(file), ROWS)
    sheet = load_accelerator(device)
    found = []
    for row in frame.itertuples():
        here = row.num_slots // row.moe_ep_size
        law = row.distribution
        known = (row.num_tokens, row.topk, row.num_slots, here)
        load = even_load(*known) if law.endswith("eplb") else rank_load(*known, skew_of(law))
        shape = Experts(row.rank0_num_tokens, row.hidden_size, row.inter_size, row.topk, row.num_slots, here, form)
        found.append(loaded_experts(shape, load, sheet).ns)
    balanced = frame["distribution"].str.endswith("eplb").to_numpy()
    times, measured = np.array(found), frame["latency"].to_numpy() * 1e6
    for name, part in (("", ~balanced), (", balanced", balanced)):
        yield error(f"experts, TensorRT-LLM wide EP{name}", device, form, times[part], measured[part])


def _products_ns(shape: Experts, load: Load, sheet: Accelerator) -> float:
    """Return the two products alone: no routing, no activation, the launches of two kernels."""
    fit = sheet.fitted.experts_in(shape.format, shape.dispatched)
    moved = moved_bytes(shape, load.total, fit.remote)
    busy = loaded_experts(shape, load, sheet).busy_ns
    return busy - memory_floor_ns(moved, sheet) / fit.move + 2 * sheet.fitted.kernel_launch


def _deepgemm(data: Path) -> Iterator[Row]:
    """Yield the errors of DeepGEMM's grouped products on H800: as many rows for each expert."""
    frame = pd.read_csv(data / "infersim" / "h800.grouped_gemm.csv")
    sheet, found = load_accelerator("h100-sxm-80gb"), []
    for row in frame.itertuples():
        load = Load(row.num_local_experts, (float(row.tokens_per_expert),), (1.0,))
        tokens = round(load.total / row.topk)
        width = (row.hidden_size, row.intermediate_size, row.topk, row.num_experts, row.num_local_experts)
        found.append(_products_ns(Experts(tokens, *width, "fp8_block", dispatched=True), load, sheet))
    measured = (frame["up_proj_us"] + frame["down_proj_us"]).to_numpy() * 1e3
    for phase in ("decode", "prefill"):
        part = (frame["phase"] == phase).to_numpy()
        yield error(f"experts, DeepGEMM products, {phase}", "h800", "fp8_block", np.array(found)[part], measured[part])


def _frontier(data: Path) -> Iterator[Row]:
    """Yield the errors of vLLM's fused experts on A800, launched one by one; one rank's share of random choices."""
    frame = pd.read_parquet(data / "frontier" / "a800.qwen3-a3b-30b-moe.moe.parquet")
    frame = thinned(frame.dropna(subset=["time_stats.moe_grouped_gemm.median"]), ROWS)
    sheet, found = load_accelerator("a100-sxm-80gb"), []
    for row in frame.itertuples():
        here, count = row.num_experts_per_device, row.num_experts
        rows = row.num_tokens * row.router_topk / count
        load = Load(here, (rows,), (min(row.expert_utilization, rows, 1.0),))
        width = row.expert_hidden_dim // row.num_tensor_parallel_workers
        shape = Experts(row.num_tokens, row.hidden_dim, width, row.router_topk, count, here)
        found.append(loaded_experts(shape, load, sheet).ns)
    measured = frame["time_stats.moe_grouped_gemm.median"].to_numpy() * 1e6
    long = measured >= 1e6
    yield error("experts, vLLM's fused kernel", "a800", "bf16", np.array(found), measured)
    yield error("experts, vLLM's fused kernel, from 1 ms", "a800", "bf16", np.array(found)[long], measured[long])
