"""Experts behind an exchange: constants of the grouped products that engines run on tokens from other ranks.

Tables: aiconfigurator's wideep_moe_perf of SGLang 0.5.10 on H100, DeepGEMM after DeepEP, of prompts (rows one after the
other) and of tokens (rows padded for each expert, in a graph). Prompts were launched kernel by kernel: where the device
waits for the host, which an engine that runs ahead does not see, so their launch is the shortest row of the table.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from simulator.device.accelerator import Accelerator, load_accelerator
from simulator.device.experts import loaded_experts
from simulator.model.expert_load import even_load, rank_load
from simulator.model.operators import Experts

from .experts import START, UPPER, Case, with_constants
from .experts_transfer import skew_of
from .fitting import Columns, Row, errors_by_decade, left_out, search

DEVICE, FORM = "h100-sxm-80gb", "fp8_block"
SHAPE = ("num_tokens", "hidden_size", "inter_size", "topk", "num_experts", "moe_ep_size", "distribution")
PHASES = ("context", "generation")


def table(data: Path, phase: str) -> pd.DataFrame:
    """Return one table: `ns`, and `least_ns`, the launch that prompts have in the place of the sheet's."""
    file = f"moe.sglang.0.5.10.wideep_{phase}_moe_perf.parquet"
    frame = pd.read_parquet(data / "aiconfigurator" / "h100_sxm" / file)
    frame = frame.groupby(list(SHAPE), as_index=False)["latency"].median()
    frame["ns"] = frame["latency"] * 1e6
    return frame.assign(phase=phase, least_ns=frame["ns"].min() if phase == "context" else 0.0)


def cases(frame: pd.DataFrame) -> list[Case]:
    """Return the shape and the load of each row."""
    found = []
    for row in frame.itertuples():
        here, skew = row.num_experts // row.moe_ep_size, skew_of(row.distribution)
        known = row.num_tokens, row.topk, row.num_experts, here
        load = rank_load(*known, skew) if skew else even_load(*known)
        width = row.hidden_size, row.inter_size, row.topk, row.num_experts, here
        found.append(Case(Experts(row.num_tokens, *width, FORM, dispatched=True), load))
    return found


def predict(rows: list[Case], least_ns: np.ndarray, device: Accelerator) -> np.ndarray:
    """Return the time of each case in ns; with a launch of its own where that is not zero."""
    kernels = [loaded_experts(case.shape, case.load, device) for case in rows]
    return np.array([k.busy_ns + own if own else k.ns for k, own in zip(kernels, least_ns, strict=True)])


def halves(data: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the rows to fit, and those of every fourth number of ranks and law of load, which stay out."""
    frame = pd.concat([table(data, phase) for phase in PHASES], ignore_index=True)
    mask = left_out(frame, "moe_ep_size", "distribution")
    return frame[~mask].reset_index(drop=True), frame[mask].reset_index(drop=True)


def fit(data: Path, device: str) -> dict[str, dict[str, float]]:
    """Return the constants of the format: launch in ns, cache in bytes, the rest shares; none of other devices."""
    if device != DEVICE:
        return {}
    sheet, (frame, _) = load_accelerator(device), halves(data)
    rows, least_ns = cases(frame), frame["least_ns"].to_numpy()

    def times(theta: np.ndarray, _: Columns) -> np.ndarray:
        return predict(rows, least_ns, with_constants(sheet, FORM, theta, "dispatched_experts"))

    columns = {"ns": frame["ns"].to_numpy(dtype=float)}
    theta = search(times, columns, list(START.values()), UPPER, finest=0.04)
    return {FORM: dict(zip(START, map(float, theta), strict=True))}


def errors(data: Path) -> Iterator[Row]:
    """Yield the errors of the sheet's constants on the rows left out of the fit."""
    sheet, (_, frame) = load_accelerator(DEVICE), halves(data)
    for phase, name in zip(PHASES, ("prompts (launch of the table)", "tokens"), strict=True):
        part = frame[frame["phase"] == phase]
        found = predict(cases(part), part["least_ns"].to_numpy(), sheet)
        yield from errors_by_decade(f"experts, SGLang wide EP, {name}", DEVICE, FORM, found, part["ns"].to_numpy())
