"""All-reduces of an engine's own kernels: aiconfigurator's tables, the fit of the two protocols, the errors.

A row is a CUDA graph of vLLM's all-reduce; engines leave their own kernel for NCCL's at `SWITCH` bytes.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from simulator.device.accelerator import load_accelerator
from simulator.device.links import collective
from simulator.model.operators import Collective

from .fitting import SYSTEMS, Columns, Row, columns_of, errors_by_decade, left_out, read, search

SWITCH = 6 << 20
"""Bytes from which an engine leaves its own all-reduce for NCCL: the tables show a step between 4 and 8 MiB."""
VALUE_BYTES = 2


def table(data: Path, device: str) -> pd.DataFrame:
    """Return num_gpus, message_size in elements, ns and left_out: every fourth message size, with all its rows."""
    name, shape = "comm.vllm.VERSION.custom_allreduce", ["num_gpus", "message_size"]
    frame = read(data, device, name, shape, {"backend": "vllm_graph", "allreduce_dtype": "bfloat16"})
    return frame.assign(left_out=left_out(frame, "message_size"))


def fit(data: Path, device: str) -> dict[str, Any]:
    """Return latency and bus bandwidth by number of ranks, for messages below and from `SWITCH` on.

    Where a fit says that the large protocol is faster before that already, it is taken from there.
    """
    frame, fits = table(data, device), {}
    for ranks, rows in frame[~frame["left_out"]].groupby("num_gpus"):
        traffic = 2 * (ranks - 1) / ranks * VALUE_BYTES

        def predict(theta: np.ndarray, c: Columns, traffic: float = traffic) -> np.ndarray:
            return np.asarray(theta[0] + traffic * c["message_size"] / theta[1])

        small = VALUE_BYTES * rows["message_size"] < SWITCH
        block: dict[str, Any] = {"switch_bytes": SWITCH}
        for protocol, part in (("small", rows[small]), ("large", rows[~small])):
            theta = search(predict, columns_of(part), [5000.0, 200.0], [1e6, 1e4])
            block[protocol] = {"latency_ns": float(theta[0]), "bandwidth": float(theta[1]) * 1e9}
        block["switch_bytes"] = min(SWITCH, _crossing_bytes(traffic / VALUE_BYTES, block["small"], block["large"]))
        fits[str(ranks)] = block
    return fits


def _crossing_bytes(traffic: float, small: dict[str, float], large: dict[str, float]) -> int:
    """Return the size, in whole KiB, up to which the small protocol is the faster one."""
    slope = traffic * 1e9 * (1 / small["bandwidth"] - 1 / large["bandwidth"])
    return SWITCH if slope <= 0 else int((large["latency_ns"] - small["latency_ns"]) / slope) >> 10 << 10


def errors(data: Path, devices: tuple[str, ...] = tuple(SYSTEMS)) -> Iterator[Row]:
    """Yield the errors on message sizes left out, per device and decade."""
    for name in devices:
        device, frame = load_accelerator(name), table(data, name)
        rows = frame[frame["left_out"]]
        shapes = [
            Collective("all_reduce", VALUE_BYTES * int(size), int(ranks), "tensor")
            for ranks, size in zip(rows["num_gpus"], rows["message_size"], strict=True)
        ]
        predicted = np.array([collective(shape, device).ns for shape in shapes])
        yield from errors_by_decade("all-reduce", name, "bf16", predicted, rows["ns"].to_numpy())
