"""Attention modules of a DeepSeek layer (MLA): constants of the kernels over latents, and errors of whole modules.

Measured: aiconfigurator's MLA module tables (vLLM, DeepSeek-V3): projections, norms, rotary positions, cache and
attention of one layer with 1 to 128 heads. A module is the sum of the operators of `Pass` for one layer and of what it
takes beside these: on H100 and GB200 the host's way to the first kernel, and copies that grow with the positions.
These depend on how the table was taken, so no sheet holds them.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from simulator.device.accelerator import Accelerator, load_accelerator
from simulator.device.attention import prompt_attention, token_attention
from simulator.device.efficiency import PromptAttention as PromptFit
from simulator.device.efficiency import TokenAttention as TokenFit
from simulator.device.measured.modules import PARTS
from simulator.device.timing import time_of
from simulator.model.forward import Pass, Work
from simulator.model.layout import Layout
from simulator.model.operators import PromptAttention
from simulator.model.precision import Precision
from simulator.model.transformer import load_model

from .fitting import Columns, Row, error, errors_by_decade, left_out, read, search, thinned

MODEL = load_model("deepseek-v3")
DEVICES = ("h100-sxm-80gb", "b200-sxm", "gb200")
NAMES = {"bfloat16": "bf16"}
EXPLICIT = ("FLASH_ATTN",)
"""Kernels of prompts with explicit keys in 16 bits; Hopper decodes short prompts, and Blackwell has one in fp8."""
FIT_ROWS = 900


class Module(NamedTuple):
    """Modules of one kind: their table, the time of all but attention, and the shape of that."""

    rows: pd.DataFrame
    rest_ns: np.ndarray
    shapes: list[Any]


def passing(heads: int, gemm: str, kv: str) -> Pass:
    """Return one dense layer of the model with so many heads on the rank."""
    attention = MODEL.attention.model_copy(update={"heads": heads})
    card = MODEL.model_copy(update={"layers": 1, "attention": attention, "experts": None})
    weights, cache = NAMES.get(gemm, gemm), NAMES.get(kv, kv)
    return Pass(card, Layout(), Precision(weights=weights, kv=cache, head="bf16"))


def tables(data: Path, device: str) -> dict[tuple[str, str], tuple[pd.DataFrame, np.ndarray]]:
    """Return the rows of both kinds and formats of the cache with the mask of those left out of the fit."""
    found = {}
    shape = ["num_heads", "batch_size", "isl", "step", "gemm_type", "kv_cache_dtype", "mla_dtype", "kernel_source"]
    for kind, name in (("MLA prompt module", "context"), ("MLA token module", "generation")):
        frame = read(data, device, f"mla.vllm.VERSION.mla_{name}_module", shape)
        if name == "context":
            frame = frame[frame["kernel_source"].isin(EXPLICIT) & (frame["isl"] > 1)]
        frame = frame[frame["mla_dtype"] == "bfloat16"]
        for kv, rows in frame.groupby("kv_cache_dtype"):
            rows = rows.reset_index(drop=True)
            found[kind, NAMES.get(str(kv), str(kv))] = rows, left_out(rows, "num_heads", "gemm_type")
    return found


def modules(rows: pd.DataFrame, device: Accelerator) -> Module:
    """Return modules with all that the sheet of `device` already tells of them."""
    rest, shapes = [], []
    for row in rows.itertuples():
        layer = passing(row.num_heads, row.gemm_type, row.kv_cache_dtype)
        batch, n = int(row.batch_size), int(row.isl)
        prompts = Work(batch * n, batch * n * (n + 1) / 2, batch)
        work = prompts if n > 1 else Work(batch=batch, context=batch * (row.step + 1))
        operators = [o for o in layer.operators(work) if o.name in PARTS]
        rest.append(sum(time_of(o.shape, device).ns for o in operators if o.name not in ATTENTION))
        shapes.append(next(o.shape for o in operators if o.name in ATTENTION))
    return Module(rows, np.array(rest), shapes)


ATTENTION = ("attention", "prompt attention")
START = {
    "MLA token module": {
        "memory": (0.85, 1.0),
        "feed": (8.0, 1e3),
        "tile": (4000.0, 1e5),
        "gather": (0.3, 1.0),
    },
    "MLA prompt module": {"compute": (0.8, 1.0), "tile": (3000.0, 1e5)},
}
"""Start and upper bound of each constant."""


BESIDE = {
    "MLA token module": {"gap": (20_000.0, 1e6)},
    "MLA prompt module": {"gap": (20_000.0, 1e6), "token": (10.0, 1e3), "block": (10.0, 1e3)},
}
"""What modules take beside their operators, in ns: each, for each position, and for each quantised in blocks."""


def with_constants(device: Accelerator, kind: str, kv: str, values: dict[str, Any]) -> Accelerator:
    """Return the device with other constants of the kernel of `kind`, unchecked."""
    if kind == "MLA token module":
        table = (device.fitted.latent_attention or {}) | {kv: TokenFit.model_construct(**values)}
        update: dict[str, Any] = {"latent_attention": table}
    else:
        made = PromptFit.model_construct(**values)
        update = {"prompt_attention": device.fitted.prompt_attention | {"latent": made}}
    return device.model_copy(update={"efficiency": device.fitted.model_copy(update=update)})


def attention_ns(module: Module, device: Accelerator) -> np.ndarray:
    """Return the times of the kernels of attention."""
    kernels = (token_attention, prompt_attention)
    return np.array([kernels[isinstance(shape, PromptAttention)](shape, device).ns for shape in module.shapes])


def beside_ns(module: Module, values: dict[str, float]) -> np.ndarray:
    """Return what modules take beside their operators."""
    positions = (module.rows["batch_size"] * module.rows["isl"]).to_numpy(dtype=float)
    blocks = (module.rows["gemm_type"] == "fp8_block").to_numpy()
    return np.asarray(values["gap"] + positions * (values.get("token", 0.0) + values.get("block", 0.0) * blocks))


def fit_beside(kind: str, rows: pd.DataFrame, device: Accelerator) -> dict[str, float]:
    """Return what modules take beside their operators with the constants of the sheet."""
    module = modules(thinned(rows, FIT_ROWS), device)
    known_ns, start = module.rest_ns + attention_ns(module, device), BESIDE[kind]

    def predict(theta: np.ndarray, columns: Columns) -> np.ndarray:
        return np.asarray(known_ns + beside_ns(module, dict(zip(start, theta, strict=True))))

    at, upper = ([pair[i] for pair in start.values()] for i in (0, 1))
    theta = search(predict, {"ns": module.rows["ns"].to_numpy()}, at, upper)
    return dict(zip(start, map(float, theta), strict=True))


def fit_kind(kind: str, kv: str, rows: pd.DataFrame, device: Accelerator) -> dict[str, Any]:
    """Return the constants of a kernel, fitted together with what modules take beside their operators.

    A launch is that of the device's other attention. The tables have one width of heads: `compute` holds all that
    width has a part in, and `softmax` is none.
    """
    module = modules(thinned(rows, FIT_ROWS), device)
    fixed: dict[str, Any] = {"launch": device.fitted.token_attention["bf16"].launch}
    if kind == "MLA prompt module":
        fixed = dict(device.fitted.prompt_attention["bf16"]) | {"softmax": 0.0, "write": 1.0, "wide": 1.0}
    start = START[kind] | BESIDE[kind]

    def predict(theta: np.ndarray, columns: Columns) -> np.ndarray:
        values = dict(zip(start, map(float, theta), strict=True))
        beside = {name: values.pop(name) for name in BESIDE[kind]}
        sheet = with_constants(device, kind, kv, fixed | values)
        return np.asarray(module.rest_ns + attention_ns(module, sheet) + beside_ns(module, beside))

    at, upper = ([pair[i] for pair in start.values()] for i in (0, 1))
    theta = search(predict, {"ns": module.rows["ns"].to_numpy()}, at, upper, finest=0.015)
    values = dict(zip(start, map(float, theta), strict=True))
    return fixed | {name: values[name] for name in START[kind]}


def fit(data: Path, name: str, device: Accelerator) -> dict[str, dict[str, dict[str, Any]]]:
    """Return the constants over latents: of decode by format of the cache, and of prompts, whose keys are explicit."""
    if name not in DEVICES:
        return {}
    found = tables(data, name)
    fits: dict[str, dict[str, dict[str, Any]]] = {"latent_attention": {}}
    for (kind, kv), (frame, mask) in found.items():
        if kind == "MLA token module":
            fits["latent_attention"][kv] = fit_kind(kind, kv, frame[~mask], device)
    frame, mask = found["MLA prompt module", "bf16"]
    fits["prompt_attention"] = {"latent": fit_kind("MLA prompt module", "bf16", frame[~mask], device)}
    return fits


def errors(data: Path) -> Iterator[Row]:
    """Yield the errors of whole modules on those left out: with what lies beside the operators, and without."""
    for name in DEVICES:
        device = load_accelerator(name)
        for (kind, kv), (frame, mask) in tables(data, name).items():
            values, module = fit_beside(kind, frame[~mask], device), modules(frame[mask], device)
            measured_ns = module.rows["ns"].to_numpy()
            known_ns = module.rest_ns + attention_ns(module, device)
            yield from errors_by_decade(kind, name, kv, known_ns + beside_ns(module, values), measured_ns)
            yield error(f"{kind}, operators alone", name, kv, known_ns, measured_ns)
