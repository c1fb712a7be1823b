"""Fits the all-reduce of devices that reach each other through their host, on NCCL's times on L40S.

Two constants for each protocol and number of ranks, and the size at which they change.
"""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from simulator.device.accelerator import load_accelerator
from simulator.device.links import collective
from simulator.model.operators import Collective

from .fitting import Columns, Row, error, left_out, search

DEVICE = "l40s"
TABLE = Path("aiconfigurator/l40s/comm.nccl.2.27.3.nccl_perf.parquet")
VALUE_BYTES = 2


def measured(data: Path) -> pd.DataFrame:
    """Return NCCL's all-reduce in 16 bits: `num_gpus`, `size` in bytes of the message, `ns`."""
    frame = pd.read_parquet(data / TABLE)
    frame = frame[(frame["op_name"] == "all_reduce") & (frame["nccl_dtype"] == "half")]
    frame = frame.groupby(["num_gpus", "message_size"], as_index=False)["latency"].median()
    return frame.assign(size=frame["message_size"] * VALUE_BYTES, ns=frame["latency"] * 1e6)


def predict(theta: np.ndarray, c: Columns) -> np.ndarray:
    """Return ns of a message: theta is latency in ns and bus bandwidth in bytes per second."""
    return np.asarray(theta[0] + 2 * (c["num_gpus"] - 1) / c["num_gpus"] * c["size"] / theta[1] * 1e9)


def fit_ranks(rows: pd.DataFrame) -> tuple[int, np.ndarray, np.ndarray]:
    """Return the size at which the protocol changes and the constants below it and from it on; time never falls."""
    found = []
    for below, switch in list(pairwise(sorted(rows["size"])))[4:-4]:
        small, large = (
            {name: part[name].to_numpy(dtype=float) for name in ("num_gpus", "size", "ns")}
            for part in (rows[rows["size"] <= below], rows[rows["size"] >= switch])
        )
        first = search(predict, small, [5000.0, 1e10], [1e6, 1e12])
        second = search(predict, large, [5000.0, 1e10], [1e6, 1e12])
        at = {"num_gpus": rows["num_gpus"].iloc[0], "size": switch}
        if predict(first, at) > predict(second, at):
            continue  # a larger message would be the faster one
        loss = sum(np.abs(np.log(predict(t, c) / c["ns"])).sum() for t, c in ((first, small), (second, large)))
        found.append((float(loss), int(switch), first, second))
    _, switch, first, second = min(found, key=lambda one: one[0])
    return switch, first, second


def fit(data: Path, device: str = DEVICE) -> dict[str, Any]:
    """Return latency and bus bandwidth by number of ranks, for messages below and from a size on."""
    frame = measured(data)
    kept = frame[~left_out(frame, "message_size")]
    blocks = {}
    for ranks, rows in kept.groupby("num_gpus"):
        switch, small, large = fit_ranks(rows)
        blocks[str(ranks)] = {"switch_bytes": switch} | {
            name: {"latency_ns": float(theta[0]), "bandwidth": float(theta[1])}
            for name, theta in (("small", small), ("large", large))
        }
    return blocks


def errors(data: Path) -> Iterator[Row]:
    """Yield the error of the sheet on message sizes left out, by number of ranks."""
    frame, device = measured(data), load_accelerator(DEVICE)
    apart = frame[left_out(frame, "message_size")]
    for ranks, rows in apart.groupby("num_gpus"):
        shapes = (Collective("all_reduce", float(size), int(str(ranks)), "tensor") for size in rows["size"])
        predicted = np.array([collective(shape, device).ns for shape in shapes])
        yield error(f"all-reduce through the host, {ranks} ranks", DEVICE, "bf16", predicted, rows["ns"].to_numpy())
