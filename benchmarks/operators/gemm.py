"""Dense matrix products: aiconfigurator's tables, the fit of `simulator.device.gemm`, the errors on shapes left out.

The tables of fp8 and nvfp4 hold a product and the kernel that quantises its activations. Those of fp8_block were taken
without a captured graph: most rows say how long the host takes, so only rows that the device holds up tell of it.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from simulator.device.accelerator import Accelerator, load_accelerator
from simulator.device.gemm import CHUNK, SOAK_NS, SPLITS, TILES, gemm
from simulator.model.operators import Gemm
from simulator.model.precision import FORMATS

from .fitting import SYSTEMS, Columns, Row, columns_of, error, errors_by_decade, left_out, read, search

NAMES = {"bfloat16": "bf16"}
"""Names of formats in the tables, where they differ."""
SPLIT = ("bf16",)
"""Formats whose library splits the inner dimension; others take as long as one tile's inner dimension, however long."""
HOST_NS = 50_000
"""A product that has next to nothing to do and takes longer than this waits for the host."""
LONG = ("compute", "sustained", "memory", "step")
"""Constants that long kernels tell of."""
START: dict[str, tuple[float, float]] = {
    "compute": (0.9, 1),
    "sustained": (0.8, 1),
    "memory": (0.85, 1),
    "launch": (2500, 1e5),
    "fill": (100, 1e4),
    "step": (640, 1e5),
    "latency": (1.1, 10),
    "waves": (0.5, 1),
    "split": (3000, 1e5),
    "row": (3, 1e3),
    "chunk": (3, 1e3),
}
"""Where the search for each constant starts, and how far up it may go; times in ns."""


def table(data: Path, device: str) -> pd.DataFrame:
    """Return m, n, k, format, kernel_source, ns, host_ns, on_device and left_out of every measured product of `device`.

    `host_ns` is what the host takes to launch the kernel (0: it was captured in a graph), `on_device` whether the peaks
    of the device ask for most of that. Every fourth weight matrix (n, k) is left out with all its rows.
    """
    frame = read(data, device, "gemm.vllm.VERSION.gemm", ["m", "n", "k", "gemm_dtype", "kernel_source"])
    frame = frame.assign(format=frame.pop("gemm_dtype").replace(NAMES), left_out=left_out(frame, "n", "k"))
    idle = (frame["m"] * frame["n"] * frame["k"] < 2**30) & (frame["n"] * frame["k"] < 2**24)
    host = (
        frame[idle & ~frame["left_out"]]
        .groupby(["format", "kernel_source"])["ns"]
        .median()
        .rename("host_ns")
        .reset_index()
    )
    host["host_ns"] = host["host_ns"].where(host["host_ns"] > HOST_NS, 0.0)
    frame = frame.merge(host, how="left", on=["format", "kernel_source"])
    floor_ns = floors_ns(frame, load_accelerator(device))
    return frame.assign(on_device=floor_ns > 0.7 * frame["host_ns"])


def floors_ns(frame: pd.DataFrame, device: Accelerator) -> np.ndarray:
    """Return the time in ns that the peaks of the device leave each product: arithmetic or operands, the longer."""
    forms = [FORMATS[form] for form in frame["format"]]
    peak = np.array([device.rate(form.compute) for form in forms])
    weights = np.array([form.weight_bits / 8 for form in forms])
    m, n, k = (frame[name].to_numpy(dtype=float) for name in "mnk")
    return np.asarray(np.maximum(2 * m * n * k / peak, n * k * weights / device.memory.bandwidth) * 1e9)


def predict(constants: dict[str, float], c: Columns, form: str, device: Accelerator) -> np.ndarray:
    """Return what `simulator.device.gemm` gives, in ns, for arrays of shapes and constants that no sheet holds yet."""
    peak, bits = device.rate(FORMATS[form].compute) / 1e9, FORMATS[form]
    m, n, k = c["m"], c["n"], c["k"]
    ideal = 2 * m * n * k / peak
    share = constants["compute"] * (1 - (1 - constants["sustained"]) * ideal / (ideal + SOAK_NS))
    slot = 2 * device.processors / peak / share
    compute = np.full(len(m), np.inf)
    for height, width in TILES:
        tiles = np.ceil(m / height) * np.ceil(n / width)
        step, even = (height * width + constants["step"]) * slot, tiles / device.processors
        waves = np.where(even < 1, 1, even + constants["waves"] * (np.ceil(even) - even))
        compute = np.minimum(compute, np.maximum(waves * step, constants["latency"]) * (k + constants["fill"]))
        if "split" in constants:
            parts = np.clip(np.floor(1 / even), 1, SPLITS)
            split = np.maximum(step, constants["latency"]) * (k / parts + constants["fill"]) + constants["split"]
            compute = np.where(parts > 1, np.minimum(compute, split), compute)
    size = (k * (m * bits.activation_bits + n * bits.weight_bits) + 16 * m * n) / 8
    memory = size / (device.memory.bandwidth / 1e9) / constants["memory"]
    quantise = m * (constants.get("row", 0) + constants.get("chunk", 0) * np.ceil(k / CHUNK))
    return np.asarray(constants["launch"] + quantise + np.hypot(compute, memory))


def fit_format(frame: pd.DataFrame, form: str, device: Accelerator, known: dict[str, float]) -> dict[str, float]:
    """Return the constants of products in `form`; those in `known` are not searched for."""
    names = [name for name in START if name not in known and (name != "split" or form in SPLIT)]
    names = [name for name in names if name not in ("row", "chunk") or FORMATS[form].scaled]

    def model(theta: np.ndarray, c: Columns) -> np.ndarray:
        return predict(known | dict(zip(names, theta, strict=True)), c, form, device)

    start, upper = zip(*(START[name] for name in names), strict=True)
    theta = search(model, columns_of(frame), start, upper)
    return known | dict(zip(names, map(float, theta), strict=True))


def fit(data: Path, device: str) -> dict[str, Any]:
    """Return the constants of each format of a device's table as the sheet's `efficiency.gemm`.

    Where the host hides all but long kernels, constants that show in others are those of fp8, which has the same units.
    """
    accelerator, frame = load_accelerator(device), table(data, device)
    rows, fits = frame[~frame["left_out"] & frame["on_device"]], {}
    for form in sorted(rows["format"].unique()):
        part = rows[rows["format"] == form]
        hidden = (part["host_ns"] > 0).any()
        known = {name: value for name, value in fits["fp8"].items() if name not in LONG} if hidden else {}
        fits[form] = fit_format(part, form, accelerator, known)
    return {form: _block(constants, kernel_launch_ns(frame)) for form, constants in fits.items()}


def _block(constants: dict[str, float], kernel_launch_ns: float) -> dict[str, Any]:
    """Return constants as a sheet has them; a launch that is fitted with quantising holds that kernel's launch too."""
    values = {name: 0.0 if constants[name] < 5e-3 else constants[name] for name in START if name in constants}
    if values["sustained"] == 1:
        del values["sustained"]
    block: dict[str, Any] = {name: value for name, value in values.items() if name not in ("row", "chunk")}
    for name in ("launch", "split"):
        if name in block:
            block[f"{name}_ns"] = block.pop(name)
    if "row" in values:
        block["launch_ns"] -= kernel_launch_ns
        block["quantise"] = {"row": values["row"], "chunk": values["chunk"]}
    return block


def kernel_launch_ns(frame: pd.DataFrame) -> float:
    """Return the time of a kernel that has next to nothing to do: the shortest product in 16 bits."""
    return float(frame.loc[frame["format"] == "bf16", "ns"].min())


def times_ns(frame: pd.DataFrame, form: str, device: Accelerator) -> np.ndarray:
    """Return the simulator's time of each row; activations are quantised where the format asks for it."""
    shapes = zip(frame["m"].tolist(), frame["n"].tolist(), frame["k"].tolist(), strict=True)
    scaled = FORMATS[form].scaled
    return np.array([gemm(Gemm(m, n, k, form, quantise=scaled), device).ns for m, n, k in shapes])


def errors(data: Path, devices: tuple[str, ...] = tuple(SYSTEMS)) -> Iterator[Row]:
    """Yield the errors on shapes left out, per device, format and decade.

    Of a table that the host holds up, the rows that the device holds up, then all of them as the longer of both.
    """
    for name in devices:
        device, frame = load_accelerator(name), table(data, name)
        for form, rows in frame[frame["left_out"]].groupby("format"):
            predicted, measured = times_ns(rows, str(form), device), rows["ns"].to_numpy()
            inside = rows["on_device"].to_numpy()
            yield from errors_by_decade("gemm", name, str(form), predicted[inside], measured[inside])
            host_ns = rows["host_ns"].to_numpy()
            if (host_ns > 0).any():
                yield error("gemm, or the host", name, str(form), np.maximum(predicted, host_ns), measured)


def transfer(data: Path) -> Iterator[Row]:
    """Yield the errors on the products of another engine, TensorRT-LLM 1.3 on H100: nothing of it was fitted.

    Its kernels that quantise activations are others: three in the place of one for fp8.
    """
    name, every = "h100-sxm-80gb", 5
    file = data / "aiconfigurator" / "h100_sxm" / "gemm.trtllm.1.3.0rc20.gemm_perf.parquet"
    frame, device = pd.read_parquet(file), load_accelerator(name)
    for form, rows in frame.assign(format=frame["gemm_dtype"].replace(NAMES)).groupby("format"):
        part = rows.iloc[::every]
        predicted, measured = times_ns(part, str(form), device), part["latency"].to_numpy() * 1e6
        yield from errors_by_decade("gemm, TensorRT-LLM", name, str(form), predicted, measured)
