"""Fits the constants of the device sheets on measured kernel tables and prints them as the sheets write them.

Run `python benchmarks/calibrate.py`; `accuracy.py` has the errors. Five constants for matrix products, three for each
kind of attention and two for each protocol and number of ranks of an all-reduce, per device, by a coordinate search on
the mean absolute logarithm of predicted / measured. Whole shapes stay out of the fit, as `left_out` says.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from simulator.device import kernels
from simulator.device.accelerator import Accelerator, load_accelerator
from simulator.model.transformer import VALUE_BYTES

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT.parent / "shared" / "data"
SYSTEMS = {"a100-sxm-80gb": ("a100_sxm", "0.14.0"), "h100-sxm-80gb": ("h100_sxm", "0.24.0")}
SWITCH = 6 << 20
"""Bytes from which an engine leaves its own all-reduce for NCCL: the tables show a step between 4 and 8 MiB."""
FIT_ROWS = 6000

Columns = dict[str, Any]
Model = Callable[[np.ndarray, Columns], np.ndarray]


def read(data: Path, system: str, version: str, table: str) -> pd.DataFrame:
    """Return one measured table with its latency in ns; median of repeated rows."""
    frame = pd.read_parquet(data / "aiconfigurator" / system / f"{table.replace('VERSION', version)}_perf.parquet")
    for column, wanted in (
        ("gemm_dtype", "bfloat16"),
        ("kv_cache_dtype", "bfloat16"),
        ("window_size", 0),
        ("head_dim", 128),
        ("backend", "vllm_graph"),
    ):
        if column in frame:
            frame = frame[frame[column] == wanted]
    shape = [
        c
        for c in (
            "m",
            "n",
            "k",
            "batch_size",
            "isl",
            "step",
            "num_heads",
            "num_key_value_heads",
            "num_gpus",
            "message_size",
        )
        if c in frame
    ]
    frame = frame.groupby(shape, as_index=False)["latency"].median()
    return frame.assign(ns=frame["latency"] * 1e6)


def left_out(frame: pd.DataFrame, *shape: str, every: int = 4) -> np.ndarray:
    """Return a mask of the rows left out of the fit: every fourth combination of the `shape` columns, all its rows."""
    index = frame.groupby(list(shape)).ngroup().to_numpy()
    return np.asarray(index % every == every - 1)


def search(predict: Model, columns: Columns, start: list[float], upper: list[float]) -> np.ndarray:
    """Return the parameters that minimise the mean absolute log error, by a coordinate search with shrinking steps."""
    measured = columns["ns"]

    def loss(theta: np.ndarray) -> float:
        return float(np.mean(np.abs(np.log(predict(theta, columns) / measured))))

    best, step = np.array(start), 0.5
    low = loss(best)
    while step > 0.004:
        moved = False
        for index in range(len(best)):
            for factor in (1 + step, 1 / (1 + step)):
                trial = best.copy()
                trial[index] = min(trial[index] * factor, upper[index])
                value = loss(trial)
                if value < low - 1e-9:
                    best, low, moved = trial, value, True
        if not moved:
            step /= 2
    return best


def columns_of(frame: pd.DataFrame, limit: int = FIT_ROWS) -> Columns:
    """Return the columns as arrays of float, thinned evenly to at most `limit` rows."""
    thinned = frame.iloc[:: max(1, -(-len(frame) // limit))]
    return {str(name): thinned[name].to_numpy(dtype=float) for name in thinned}


def fit_gemm(frame: pd.DataFrame, device: Accelerator) -> dict[str, float]:
    """Return the constants of `kernels.gemm`."""
    peak, bandwidth = device.peak["bf16"] / 1e9, device.memory.bandwidth / 1e9

    def predict(theta: np.ndarray, c: Columns) -> np.ndarray:
        compute, memory, launch_ns, fill, tile_loss = theta
        slots = np.full(len(c["m"]), np.inf)
        for height, width in kernels.TILES:
            area = height * width * (1 + tile_loss * (1 / height + 1 / width))
            tiles = np.ceil(c["m"] / height) * np.ceil(c["n"] / width)
            for split in kernels.SPLITS:
                waves = np.ceil(tiles * split / device.processors)
                slots = np.minimum(slots, waves * area * (c["k"] / split + fill))
        size = VALUE_BYTES * (c["m"] * c["k"] + c["k"] * c["n"] + c["m"] * c["n"])
        busy = np.maximum(2 * slots * device.processors / peak / compute, size / bandwidth / memory)
        return np.asarray(launch_ns + busy)

    theta = search(predict, columns_of(frame), [0.9, 0.8, 4000.0, 100.0, 10.0], [1.0, 1.0, 1e5, 1e4, 1e3])
    return dict(zip(("compute", "memory", "launch_ns", "fill", "tile_loss"), map(float, theta), strict=True))


def fit_prefill(frame: pd.DataFrame, device: Accelerator) -> dict[str, float]:
    """Return the constants of `kernels.prefill_attention`; the table has no cached prefixes."""
    peak = device.peak["bf16"] / 1e9

    def predict(theta: np.ndarray, c: Columns) -> np.ndarray:
        compute, launch_ns, overhang = theta
        pairs = c["batch_size"] * (c["isl"] * (c["isl"] + 1) / 2 + overhang * c["isl"])
        return np.asarray(launch_ns + 4 * c["num_heads"] * 128 * pairs / peak / compute)

    theta = search(predict, columns_of(frame), [0.6, 11000.0, 100.0], [1.0, 1e5, 1e4])
    return dict(zip(("compute", "launch_ns", "overhang"), map(float, theta), strict=True))


def fit_decode(frame: pd.DataFrame, device: Accelerator) -> dict[str, float]:
    """Return the constants of `kernels.decode_attention`."""
    bandwidth = device.memory.bandwidth / 1e9

    def predict(theta: np.ndarray, c: Columns) -> np.ndarray:
        memory, launch_ns, overhang = theta
        tokens = c["batch_size"] * (c["step"] + 1 + overhang)
        return np.asarray(launch_ns + 4 * c["num_key_value_heads"] * 128 * tokens / bandwidth / memory)

    theta = search(predict, columns_of(frame), [0.8, 13000.0, 100.0], [1.0, 1e5, 1e4])
    return dict(zip(("memory", "launch_ns", "overhang"), map(float, theta), strict=True))


def fit_all_reduce(frame: pd.DataFrame) -> dict[str, dict[str, dict[str, float]]]:
    """Return latency and bus bandwidth by number of ranks, for messages below and from `SWITCH` on."""
    fits: dict[str, dict[str, dict[str, float]]] = {}
    for ranks, rows in frame.groupby("num_gpus"):
        traffic = 2 * (ranks - 1) / ranks * VALUE_BYTES

        def predict(theta: np.ndarray, c: Columns, traffic: float = traffic) -> np.ndarray:
            return np.asarray(theta[0] + traffic * c["message_size"] / theta[1] * 1e9)

        small = VALUE_BYTES * rows["message_size"] < SWITCH
        for protocol, part in (("small", rows[small]), ("large", rows[~small])):
            theta = search(predict, columns_of(part), [5000.0, 2e11], [1e6, 1e13])
            fits.setdefault(str(ranks), {})[protocol] = {"latency_ns": float(theta[0]), "bandwidth": float(theta[1])}
    return fits


def tables(data: Path, system: str, version: str) -> dict[str, tuple[pd.DataFrame, np.ndarray]]:
    """Return each table with the mask of its left-out rows."""
    gemm = read(data, system, version, "gemm.vllm.VERSION.gemm")
    prefill = read(data, system, version, "attention.vllm.VERSION.context_attention")
    decode = read(data, system, version, "attention.vllm.VERSION.generation_attention")
    reduce = read(data, system, version, "comm.vllm.VERSION.custom_allreduce")
    return {
        "gemm": (gemm, left_out(gemm, "n", "k")),
        "prefill attention": (prefill, left_out(prefill, "num_heads", "num_key_value_heads")),
        "decode attention": (decode, left_out(decode, "num_heads", "num_key_value_heads")),
        "all-reduce": (reduce, left_out(reduce, "message_size")),
    }


def fit(data: Path, name: str) -> dict[str, Any]:
    """Return every fitted constant of one device."""
    device, measured = load_accelerator(name), tables(data, *SYSTEMS[name])
    train = {kind: frame[~mask] for kind, (frame, mask) in measured.items()}
    return {
        "gemm": fit_gemm(train["gemm"], device),
        "prefill_attention": fit_prefill(train["prefill attention"], device),
        "decode_attention": fit_decode(train["decode attention"], device),
        "kernel_launch_ns": float(train["gemm"]["ns"].min()),
        "all_reduce": fit_all_reduce(train["all-reduce"]),
    }


def sheet(fits: dict[str, Any], indent: str = "  ") -> str:
    """Return the fitted constants as the `efficiency:` block of a device sheet."""
    lines = []
    for key, value in fits.items():
        name, unit, scale = key, "", 1.0
        if key.endswith("_ns"):
            name, unit = key.removesuffix("_ns"), " ns"
        elif key == "bandwidth":
            unit, scale = " GB/s", 1e-9
        if isinstance(value, dict):
            title = key
            switch = f"{indent}  switch: {SWITCH >> 20} MiB\n" if key.isdecimal() else ""
            lines.append(f"{indent}{title}:\n{switch}{sheet(value, indent + '  ')}")
        else:
            lines.append(
                f"{indent}{name}: {value * scale:.0f}{unit}\n"
                if unit == " ns"
                else f"{indent}{name}: {value * scale:.4g}{unit}\n"
            )
    return "".join(lines)


def main() -> None:
    """Fit each device, print the sheets' blocks, write JSON under `--out`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA, help="folder of measured tables")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "out", help="folder of the JSON")
    options = parser.parse_args()
    fits = {name: fit(options.data, name) for name in SYSTEMS}
    for name, constants in fits.items():
        print(f"# topologies/devices/{name}.yaml\nefficiency:\n{sheet(constants)}")
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "calibrate.json").write_text(json.dumps(fits, indent=1) + "\n")


if __name__ == "__main__":
    main()
