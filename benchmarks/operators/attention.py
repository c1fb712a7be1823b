"""Attention of prompts and of decode: constants of both kernels by device and format of the cache, and their errors.

Measured: aiconfigurator's context and generation attention tables (vLLM), head dimensions 64 to 512, windows, caches in
bf16 and fp8. Left out of the fit: every fourth combination of query heads, KV heads and head dimension.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from operators import latent_attention
from simulator.device.accelerator import Accelerator, load_accelerator
from simulator.device.attention import prompt_attention, token_attention
from simulator.device.efficiency import PromptAttention as PromptFit
from simulator.device.efficiency import TokenAttention as TokenFit
from simulator.device.kernels import Kernel
from simulator.model.operators import PromptAttention, TokenAttention

from .attention_transfer import transfer
from .fitting import SYSTEMS, Columns, Row, errors_by_decade, left_out, read, search, thinned

SHAPE = ("num_heads", "num_key_value_heads", "head_dim")
FORMATS = {"bfloat16": "bf16", "fp8": "fp8"}
FIT_ROWS = 900
KERNELS = {
    ("a100-sxm-80gb", "prompt attention", "bf16"): {"rows": 64, "packed": False, "compute": 0.85},
    ("a100-sxm-80gb", "token attention", "bf16"): {"splits": "grouped"},
    ("h100-sxm-80gb", "token attention", "fp8"): {"registers": 128},
    ("b200-sxm", "prompt attention", "bf16"): {"packed": False, "decodes": "apart"},
    ("b200-sxm", "prompt attention", "fp8"): {"packed": False, "decodes": "apart"},
    ("gb200", "prompt attention", "bf16"): {"packed": False, "decodes": "apart"},
    ("gb200", "prompt attention", "fp8"): {"packed": False, "decodes": "apart"},
}
"""What is known of the kernels of prompts and of decode: FlashAttention-2, FlashAttention-3, and TensorRT-LLM's."""

__all__ = ["errors", "fit", "tables", "transfer"]

Table = tuple[pd.DataFrame, np.ndarray]


def prompt_of(row: Any) -> PromptAttention:
    """Return the shape of a row of the context table: whole prompts, nothing cached."""
    n, batch = int(row.isl), int(row.batch_size)
    window = int(row.window_size) if row.window_size and n > row.window_size else 0
    full = min(n, window or n)
    pairs = full * (full + 1) / 2 + (n - full) * full
    heads, dim = (int(row.num_heads), int(row.num_key_value_heads)), int(row.head_dim)
    return PromptAttention(n * batch, pairs * batch, n * batch, batch, *heads, dim, dim, FORMATS[row.kv], window)


def token_of(row: Any) -> TokenAttention:
    """Return the shape of a row of the generation table."""
    each, batch = int(row.step) + 1, int(row.batch_size)
    window = int(row.window_size) if row.window_size and each > row.window_size else 0
    heads, dim = (int(row.num_heads), int(row.num_key_value_heads)), int(row.head_dim)
    return TokenAttention(batch, (window or each) * batch, *heads, dim, dim, FORMATS[row.kv], window=window)


KINDS: dict[str, tuple[str, str, Callable[[Any], Any], Callable[[Any, Accelerator], Kernel]]] = {
    "prompt attention": ("context", "isl", prompt_of, prompt_attention),
    "token attention": ("generation", "step", token_of, token_attention),
}
"""Table, column of its lengths, shape of a row and kernel."""


def tables(data: Path, device: str) -> dict[tuple[str, str], Table]:
    """Return the rows of each kind and format of the cache with the mask of those left out.

    Not modelled, so absent: Triton's kernels, which stand in for head dimensions that Blackwell's have not, and decode
    by FlashAttention-4 on Hopper (head dimension 512), whose time grows with the square of the batch.
    """
    found = {}
    for kind, (name, length, _, _) in KINDS.items():
        table = f"attention.vllm.VERSION.{name}_attention"
        shape = [*SHAPE, "batch_size", length, "kv_cache_dtype", "kernel_source"]
        try:
            frame = read(data, device, table, [*shape, "window_size"])
        except KeyError:
            frame = read(data, device, table, shape).assign(window_size=0)
        frame = frame[frame["kernel_source"] != "vllm_triton_attn"]
        if kind == "token attention":
            frame = frame[frame["kernel_source"] != "vllm_flash_attn_fa4"]
        for kv, rows in frame.groupby("kv_cache_dtype"):
            rows = rows.assign(kv=kv).reset_index(drop=True)
            found[kind, FORMATS[str(kv)]] = rows, left_out(rows, *SHAPE)
    return found


def predicted(kind: str, rows: pd.DataFrame, device: Accelerator) -> np.ndarray:
    """Return the modelled times of rows in ns."""
    _, _, shape_of, kernel = KINDS[kind]
    return np.array([kernel(shape_of(row), device).ns for row in rows.itertuples()])


PROMPT_START = {
    "compute": (0.7, 1.0),
    "softmax": (30.0, 1e3),
    "tile": (2000.0, 1e5),
    "straggler": (0.7, 1.0),
    "write": (0.3, 1.0),
    "launch": (8000.0, 1e5),
}
TOKEN_START = {
    "memory": (0.85, 1.0),
    "feed": (30.0, 1e3),
    "tile": (1500.0, 1e5),
    "launch": (9000.0, 1e5),
    "combine": (1500.0, 1e5),
}
"""Start and upper bound of each constant."""
TIMES = ("launch", "tile", "combine", "regroup")
"""Constants in ns."""


def fit_kind(kind: str, kv: str, rows: pd.DataFrame, device: Accelerator, fixed: dict[str, Any]) -> dict[str, float]:
    """Return the constants of one kernel over one format of cache."""
    prompt = kind == "prompt attention"
    _, _, shape_of, kernel = KINDS[kind]
    start = {name: at for name, at in (PROMPT_START if prompt else TOKEN_START).items() if name not in fixed}
    if rows["head_dim"].max() > fixed.get("registers", 256):
        start["wide"] = (0.6, 1.0)
    if fixed.get("splits") == "grouped":
        start["regroup"] = (5000.0, 1e5)
    # prompts of one position are decoded, and say nothing of the other kernel
    rows = thinned(rows[rows["isl"] > 1] if prompt else rows, FIT_ROWS)
    shapes: Sequence[Any] = [shape_of(row) for row in rows.itertuples()]

    def predict(theta: np.ndarray, columns: Columns) -> np.ndarray:
        with_these = with_constants(device, kind, kv, fixed | constants(start, theta))
        return np.array([kernel(shape, with_these).ns for shape in shapes])

    theta = search(predict, {"ns": rows["ns"].to_numpy()}, *map(list, zip(*start.values(), strict=True)), finest=0.015)
    return constants(start, theta)


def constants(names: Sequence[str] | dict[str, Any], theta: np.ndarray) -> dict[str, float]:
    """Return constants by name."""
    return dict(zip(names, map(float, theta), strict=True))


def with_constants(device: Accelerator, kind: str, kv: str, values: dict[str, Any]) -> Accelerator:
    """Return the device with other constants of one kernel, unchecked, for times are whole only in a sheet."""
    key = kind.replace(" ", "_")
    made = (PromptFit if kind == "prompt attention" else TokenFit).model_construct(**values)
    table = getattr(device.fitted, key) | {kv: made}
    return device.model_copy(update={"efficiency": device.fitted.model_copy(update={key: table})})


def fit(data: Path, name: str) -> dict[str, dict[str, dict[str, Any]]]:
    """Return the constants of both kernels by format of the cache, decode first, as the sheet writes them."""
    device, found = load_accelerator(name), tables(data, name)
    fits: dict[str, dict[str, dict[str, Any]]] = {}
    for kind in ("token attention", "prompt attention"):
        for (what, kv), (frame, mask) in found.items():
            if what == kind:
                fixed = KERNELS.get((name, kind, kv), {})
                values = fixed | fit_kind(kind, kv, frame[~mask], device, fixed)
                device = with_constants(device, kind, kv, values)  # prompts stream as decode does
                fits.setdefault(kind.replace(" ", "_"), {})[kv] = values
    for key, table in latent_attention.fit(data, name, device).items():
        fits[key] = fits.get(key, {}) | table
    return {key: {kv: with_units(values) for kv, values in table.items()} for key, table in fits.items()}


def with_units(values: dict[str, Any]) -> dict[str, Any]:
    """Return constants whose names say that they are ns."""
    return {f"{key}_ns" if key in TIMES else key: value for key, value in values.items()}


def errors(data: Path) -> Iterator[Row]:
    """Yield the errors of the shipped sheets on the shapes left out of their fit, MLA's modules last."""
    for name in SYSTEMS:
        device = load_accelerator(name)
        for (kind, kv), (frame, mask) in tables(data, name).items():
            rows = frame[mask]
            yield from errors_by_decade(kind, name, kv, predicted(kind, rows, device), rows["ns"].to_numpy())
    yield from latent_attention.errors(data)
