"""Routed experts: constants of grouped products per device and format, and errors on the shapes left out of the fit.

Run `python -m benchmarks.operators.experts` for the sheets' blocks and the errors. Tables: aiconfigurator's moe_perf of
vLLM (one rank, all kernels of the layer from the router's logits to the weighted sum).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from simulator.device.accelerator import Accelerator, load_accelerator
from simulator.device.efficiency import Experts as Constants
from simulator.device.experts import loaded_experts
from simulator.model.expert_load import Load, even_load, rank_load
from simulator.model.operators import Experts

from .experts_transfer import transfer
from .fitting import (
    SYSTEMS,
    Columns,
    Row,
    error,
    errors_by_decade,
    left_out,
    read,
    search,
    thinned,
)

__all__ = ["errors", "fit", "tables", "transfer"]

FORMS = {"bfloat16": "bf16", "w4a16_mxfp4": "w4a16_mxfp4"}
"""Formats by the table's name, where they differ."""
SHAPE = ("hidden_size", "inter_size", "topk", "num_experts")
SPLIT = ("moe_tp_size", "moe_ep_size")
KEY = ("moe_dtype", "kernel_source", *SHAPE, *SPLIT, "num_tokens", "distribution")
UNGATED = {(2688, 1856, 6, 128), (1024, 2688, 22, 512), (2048, 5120, 22, 512)}
"""Nemotron's experts have no gate; the collector of vLLM 0.24 built them so, that of 0.14 did not."""
OLDER = "a100-sxm-80gb"
"""Measured with vLLM 0.14, whose collector kept the tokens of the fullest rank only and let them choose among its
experts alone, more of them than were meant: rows with experts on other ranks have unknown loads and are not fitted.
"""
GROUP_LIMITED = (7168, 2048, 8, 256)
"""DeepSeek-V3's router keeps half of the groups of experts, which the collector of vLLM 0.24 kept, so that its rows do
not have the loads of their `distribution`: their balanced rows with experts on other ranks are up to six times as long.
"""
MINOR = {
    "h100-sxm-80gb": (("w4a16_mxfp4", "marlin"),),
    "b200-sxm": (("bf16", "cutlass"), ("fp8", "cutlass"), ("nvfp4", "cutlass"), ("w4a16_mxfp4", "marlin")),
    "gb200": (("bf16", "cutlass"), ("fp8", "cutlass"), ("nvfp4", "cutlass"), ("w4a16_mxfp4", "marlin")),
}
"""Format and kernel of what vLLM 0.24 takes only where its default has none for a model: CUTLASS where TensorRT-LLM's
kernels lack a shape or an activation, Marlin for one model's activation. The default follows the layout on H100: in
fp8_block Triton without expert parallelism and CUTLASS with it, which share their constants.
"""
FIT_ROWS = 800
SHOWN_ROWS = 3000
START = {"compute": 0.7, "memory": 0.8, "launch": 2e4, "tile_loss": 5.0, "cache": 3e7, "move": 0.5, "remote": 0.3}
UPPER = (1.0, 1.0, 1e6, 1e3, 1e9, 1.0, 1.0)


class Case(NamedTuple):
    """What one row of a table ran: a shape, and the load that its collector dealt out."""

    shape: Experts
    load: Load


def table(data: Path, device: str) -> pd.DataFrame:
    """Return the table of `device`: latency in ns; `form`, the format; `kernel`; `limited`, the group-limited rows."""
    frame = read(data, device, "moe.vllm.VERSION.moe", KEY)
    limited = (frame[list(SHAPE)] == pd.Series(GROUP_LIMITED, SHAPE)).all(axis=1) & (device != OLDER)
    form = frame["moe_dtype"].replace(FORMS)
    kernel = frame["kernel_source"].str.extract("(cutlass|trtllm|marlin|triton)", expand=False).fillna("fused")
    return frame.assign(form=form, kernel=kernel, limited=limited).reset_index(drop=True)


def held_out(frame: pd.DataFrame) -> np.ndarray:
    """Return the rows of every fourth shape; where a format has fewer, of every fourth way to split it over ranks."""
    mask = left_out(frame, *SHAPE)
    return mask if mask.any() else left_out(frame, *SHAPE, *SPLIT)


def tables(data: Path, device: str) -> dict[str, tuple[pd.DataFrame, np.ndarray]]:
    """Return, by format, the rows of the kernel that an engine takes by default, and which stay out of the fit."""
    frame = table(data, device)
    frame = frame[_apart(frame, device) == ""]
    parts = {str(form): part.reset_index(drop=True) for form, part in frame.groupby("form")}
    return {form: (part, held_out(part)) for form, part in parts.items()}


def _apart(frame: pd.DataFrame, device: str) -> pd.Series:
    """Return why each row is no part of the fit, empty where it is."""
    pairs = zip(frame["form"], frame["kernel"], strict=True)
    why = pd.Series([kernel if (form, kernel) in MINOR.get(device, ()) else "" for form, kernel in pairs], frame.index)
    why[frame["limited"]] = "group-limited"
    if device == OLDER:
        why[frame["moe_ep_size"] > 1] = "unknown loads"
    return why


def cases(frame: pd.DataFrame, device: str) -> list[Case]:
    """Return the shape and the load of each row."""
    rows = frame[["num_tokens", *SHAPE, *SPLIT, "distribution", "form"]].itertuples(index=False, name=None)
    return [_case(*row, older=device == OLDER) for row in rows]


def _case(
    tokens: int, hidden: int, inter: int, topk: int, count: int, tp: int, ep: int, law: str, form: str, *, older: bool
) -> Case:
    here = count // ep
    gated = older or (hidden, inter, topk, count) not in UNGATED
    skew = 0.0 if law == "balanced" else float(law.rsplit("_", 1)[-1])
    load = rank_load(tokens, topk, count, here, skew) if skew else even_load(tokens, topk, count, here)
    return Case(Experts(tokens, hidden, inter // tp, topk, count, here, form, gated, skew), load)


def with_constants(device: Accelerator, form: str, values: Any, block: str = "experts") -> Accelerator:
    """Return the device with these constants of a block of experts in one format, in the order of `START`."""
    constants = Constants.model_construct(**dict(zip(START, map(float, values), strict=True)))
    known = {**getattr(device.fitted, block), form: constants}
    return device.model_copy(update={"efficiency": device.fitted.model_copy(update={block: known})})


def predict(rows: list[Case], device: Accelerator) -> np.ndarray:
    """Return the time of each case in ns."""
    return np.array([loaded_experts(case.shape, case.load, device).ns for case in rows])


def fit(data: Path, device: str) -> dict[str, dict[str, float]]:
    """Return the constants of each format: launch in ns, cache in bytes, the rest shares."""
    sheet, fits = load_accelerator(device), {}
    for form, (frame, mask) in tables(data, device).items():
        part = thinned(frame[~mask], FIT_ROWS)
        rows = cases(part, device)

        def times(theta: np.ndarray, _: Columns, rows: list[Case] = rows, form: str = form) -> np.ndarray:
            return predict(rows, with_constants(sheet, form, theta))

        columns = {"ns": part["ns"].to_numpy(dtype=float)}
        theta = search(times, columns, list(START.values()), UPPER, finest=0.04)
        fits[form] = dict(zip(START, map(float, theta), strict=True))
        if device == OLDER:  # no row tells; vLLM's Triton kernels are those of H100, where every pair passes through
            fits[form]["remote"] = 1.0
    return fits


def errors(data: Path) -> Iterator[Row]:
    """Yield the errors of the sheets' constants on the rows left out of the fit."""
    for device in SYSTEMS:
        yield from errors_of(data, device)


def errors_of(data: Path, device: str, constants: dict[str, dict[str, float]] | None = None) -> Iterator[Row]:
    """Yield the errors of the sheet's constants, or of `constants` by format, on the rows left out of the fit.

    By format and decade, then by kernel; last what was no part of the fit, all its rows.
    """
    sheet = load_accelerator(device)
    for form, fitted in (constants or {}).items():
        sheet = with_constants(sheet, form, [fitted[name] for name in START])
    for form, (frame, mask) in tables(data, device).items():
        part = thinned(frame[mask], SHOWN_ROWS)
        found, measured = predict(cases(part, device), sheet), part["ns"].to_numpy()
        yield from errors_by_decade("experts", device, form, found, measured)
        for kernel in sorted(part["kernel"].unique()):
            same = (part["kernel"] == kernel).to_numpy()
            yield error(f"experts, {kernel}", device, form, found[same], measured[same])
    yield from _not_fitted(data, device, sheet)


def _not_fitted(data: Path, device: str, sheet: Accelerator) -> Iterator[Row]:
    frame = table(data, device)
    frame = frame.assign(why=_apart(frame, device))
    for (form, why), part in frame[frame["why"] != ""].groupby(["form", "why"]):
        rows = thinned(part, SHOWN_ROWS)
        found = predict(cases(rows, device), sheet)
        yield error(f"experts, {why} (not fitted)", device, str(form), found, rows["ns"].to_numpy())
