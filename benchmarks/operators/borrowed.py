"""How far borrowed constants carry: matrix products on devices that nothing was fitted on.

Each device works with the constants of the sheet that its own names; times are of Llama-3.1-8B's layers in vLLM (RTX
4090 and RTX PRO 6000, LLMServingSim) and on TPU v6e (its first profile), of MLP layers of many models (A40, Vidur) and
of DeepSeek's products in fp8 by blocks (H800, InferSim).
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from simulator.device.accelerator import load_accelerator
from simulator.device.timing import time_of
from simulator.model.operators import Gemm

from .fitting import Row, error

LLAMA = {
    "qkv_proj": (6144, 4096),
    "o_proj": (4096, 4096),
    "gate_up_proj": (28672, 4096),
    "down_proj": (4096, 14336),
}
"""Columns and inner dimension of each layer of Llama-3.1-8B on one device."""
APART = {"q_proj": (4096, 4096), "gate_proj": (14336, 4096), "up_proj": (14336, 4096), "down_proj": (4096, 14336)}
"""The same where each product is apart; without `o_proj`, whose weights were read faster than memory is."""
SOURCES = {
    "rtx-4090": "llmservingsim/profile/RTX4090/Llama-3.1-8B/dense.parquet",
    "rtx-pro-6000": "llmservingsim/profile/RTXPRO6000/Llama-3.1-8B/dense.parquet",
    "a40": "vidur/compute/a40.mlp.parquet",
    "h800-sxm-80gb": "infersim/h800.gemm.csv",
    "tpu-v6e": "llmservingsim/profile-v0/TPU-v6e-1/Llama-3.1-8B.layers.parquet",
}
FORMATS = {"h800-sxm-80gb": "fp8_block"}
STEP = 5
"""Every fifth row of the large tables is enough."""


def products(data: Path, device: str) -> pd.DataFrame:
    """Return measured products: `rows`, `columns`, `inner`, `ns`."""
    file = data / SOURCES[device]
    if device == "h800-sxm-80gb":
        frame = pd.read_csv(file)
        return pd.DataFrame(
            {"rows": frame["m"], "columns": frame["n"], "inner": frame["k"], "ns": frame["latency_us"] * 1e3}
        )
    frame = pd.read_parquet(file)
    if device == "a40":
        return _mlp(frame)
    layers = LLAMA
    if device == "tpu-v6e":
        layers, names = APART, {"layer_name": "layer", "input": "tokens", "latency(ns)": "time_us"}
        frame = frame.rename(columns=names).iloc[::STEP]
        frame["time_us"] /= 1e3
    frame = frame[(frame["tp"] == 1) & frame["layer"].isin(layers)]
    columns, inner = (frame["layer"].map({name: shape[at] for name, shape in layers.items()}) for at in (0, 1))
    return pd.DataFrame({"rows": frame["tokens"], "columns": columns, "inner": inner, "ns": frame["time_us"] * 1e3})


def _mlp(frame: pd.DataFrame) -> pd.DataFrame:
    wide = frame["n_expanded_embd"] // frame["num_tensor_parallel_workers"]
    up = wide * np.where(frame["use_gated_mlp"], 2, 1)
    parts = [
        pd.DataFrame({"rows": frame["num_tokens"], "columns": columns, "inner": inner, "ns": frame[time] * 1e6})
        for columns, inner, time in (
            (up, frame["n_embd"], "time_stats.mlp_up_proj.median"),
            (frame["n_embd"], wide, "time_stats.mlp_down_proj.median"),
        )
    ]
    return pd.concat(parts).dropna().iloc[::STEP]


def row_of(data: Path, device: str) -> Row:
    """Return the error row of one device."""
    sheet, frame = load_accelerator(device), products(data, device)
    form = FORMATS.get(device, "bf16")
    shapes = zip(*(frame[name].astype(int) for name in ("rows", "columns", "inner")), strict=True)
    predicted = np.array([time_of(Gemm(*shape, form), sheet).ns for shape in shapes])
    return error("gemm", device, form, predicted, frame["ns"].to_numpy(dtype=float))


def transfer(data: Path) -> Iterator[Row]:
    """Yield the error on each device."""
    for device in SOURCES:
        yield row_of(data, device)
