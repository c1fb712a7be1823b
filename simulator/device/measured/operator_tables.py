"""Reads profiles of single operators by their sizes, as aiconfigurator and Vidur publish them.

Sources: ai-dynamo/aiconfigurator, systems/data/*_perf; microsoft/vidur, data/profiling. Latencies in ms.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from statistics import median
from typing import Any

from simulator.device.measured.modules import module_of, parts
from simulator.device.measured.points import KINDS, prompts
from simulator.device.measured.table import Measured, Table
from simulator.model.forward import Pass, Work
from simulator.model.precision import FORMATS, VALUES, Precision
from simulator.model.transformer import load_model

MS = 1e6
DTYPES = {"bfloat16": "bf16", "float16": "fp16", "half": "fp16", "float32": "fp32"}
"""Names of data types that are not those of `simulator.model.precision`."""

Row = tuple[str, dict[str, Any]]
"""A kind of `KINDS` and its canonical values."""


def _measured(kind: str, values: dict[str, Any], ns: float) -> Measured:
    return Measured(KINDS[kind].operators({**KINDS[kind].defaults, **values}), ns)


class _Formats:
    """Names of number formats in a table, those that the model catalogue does not know counted and passed over."""

    def __init__(self, table: Table, known: dict[str, Any]) -> None:
        self.table, self.known = table, known
        self.unknown: dict[str, int] = {}

    def __call__(self, name: str) -> str | None:
        form = DTYPES.get(name, name)
        if form in self.known:
            return form
        self.unknown[name] = self.unknown.get(name, 0) + 1
        return None

    def tell(self) -> None:
        """Note what was passed over."""
        self.table.say_passed("number formats not known here", self.unknown)


# -- aiconfigurator ---------------------------------------------------------------------------------------------------


HOST_NS = 50_000
"""A product that has next to nothing to do and takes longer than this waits for the host: no graph was captured."""
CLEAR = 1.5
"""Times the host's time from which on a product is taken to be held up by the device."""


def gemm(table: Table, forward: Pass) -> Iterator[Measured]:
    """Yield dense products of an m x k and a k x n matrix; those of scaled formats quantise their activations first.

    Rows that tell of the host alone, in a table that was taken without a captured graph, are passed over.
    """
    formats = _Formats(table, FORMATS)
    names, times = table.columns["gemm_dtype"], table.times("latency", MS)
    sizes = list(zip(*(table.whole(name, 1) for name in ("m", "n", "k")), strict=True))
    waiting = _waiting(names, sizes, times)
    waits: dict[str, int] = {}
    for name, (rows, n, k), ns in zip(names, sizes, times, strict=True):
        if rows <= waiting.get((name, n, k), 0):
            waits[name] = waits.get(name, 0) + 1
        elif form := formats(name):
            values = {"rows": rows, "columns": n, "inner": k, "format": form, "quantise": FORMATS[form].scaled}
            yield _measured("gemm", values, ns)
    formats.tell()
    table.say_passed("products that wait for the host", waits)


def _waiting(names: Sequence[str], sizes: list[tuple[int, ...]], times: list[float]) -> dict[tuple[str, int, int], int]:
    """Return by format and weight matrix up to how many rows a product may wait for the host.

    The host takes the median time of products that have next to nothing to do.
    """
    idle: dict[str, list[float]] = {}
    for name, (rows, n, k), ns in zip(names, sizes, times, strict=True):
        if rows * n * k < 2**30 and n * k < 2**24:
            idle.setdefault(name, []).append(ns)
    medians = {name: median(found) for name, found in idle.items()}
    last: dict[tuple[str, int, int], int] = {}
    for name, (rows, n, k), ns in zip(names, sizes, times, strict=True):
        if medians.get(name, 0.0) > HOST_NS and ns < CLEAR * medians[name]:
            last[name, n, k] = max(rows, last.get((name, n, k), 0))
    return last


HEADS = ("num_heads", "num_key_value_heads", "head_dim")


def _attention(table: Table, values: Callable[[int, int, int], Row]) -> Iterator[Measured]:
    """Yield attention whose row of (batch_size, isl, step) `values` turns into canonical values."""
    formats = _Formats(table, VALUES)
    windows = table.whole("window_size") if "window_size" in table.columns else [0] * table.rows
    sizes = zip(*(table.whole(name) for name in ("batch_size", "isl", "step")), strict=True)
    heads = zip(*(table.whole(name, 1) for name in HEADS), strict=True)
    types, times = table.columns["kv_cache_dtype"], table.times("latency", MS)
    for size, (queries, keys, width), window, name, ns in zip(sizes, heads, windows, types, times, strict=True):
        if form := formats(name):
            kind, row = values(*size)
            shape = {"heads": queries, "kv_heads": keys, "key_dim": width, "value_dim": width}
            yield _measured(kind, {**row, **shape, "kv": form, "window": window}, ns)
    formats.tell()


def context_attention(table: Table, forward: Pass) -> Iterator[Measured]:
    """Yield attention of `batch_size` prompts of `isl` new positions after `step` cached ones."""
    return _attention(table, lambda n, new, old: ("prompt_attention", {"sequences": n, "tokens": new, "cached": old}))


def generation_attention(table: Table, forward: Pass) -> Iterator[Measured]:
    """Yield attention of `batch_size` sequences with `step` positions cached, for one new token each."""
    return _attention(table, lambda n, new, old: ("token_attention", {"batch": n, "context": old + 1}))


MODULES = {"deepseek-ai/DeepSeek-V3": "deepseek-v3"}
"""Models whose attention modules are published, and their cards."""


def latent_module(table: Table, forward: Pass) -> Iterator[Measured]:
    """Yield attention modules of one layer: prompts of `isl` positions, or one position after `step`.

    Only those that compute in 16 bits between the projections: others are other operators.
    """
    weights, caches = _Formats(table, FORMATS), _Formats(table, VALUES)
    names = ("num_heads", "batch_size", "isl", "step")
    sizes = zip(*(table.whole(name) for name in names), strict=True)
    texts = zip(*(table.columns[name] for name in ("model", "gemm_type", "kv_cache_dtype", "mla_dtype")), strict=True)
    modules: dict[tuple[str, int, str, str], Pass] = {}
    passed: dict[str, int] = {}
    for (heads, batch, new, old), (model, form, kv, between), ns in zip(
        sizes, texts, table.times("latency", MS), strict=True
    ):
        if model not in MODULES or between != "bfloat16":
            what = model if model not in MODULES else f"in {between}"
            passed[what] = passed.get(what, 0) + 1
        elif (weight := weights(form)) and (cache := caches(kv)):
            key = model, heads, weight, cache
            if key not in modules:
                modules[key] = module_of(load_model(MODULES[model]), heads, Precision(weights=weight, kv=cache))
            work = prompts(batch, new, old) if new > 1 else Work(batch=batch, context=batch * (old + 1))
            yield Measured(parts(modules[key], work), ns)
    weights.tell()
    caches.tell()
    table.say_passed("modules", passed)
    table.notes.append("whole modules hold what the host adds between their kernels")


def experts(table: Table, forward: Pass) -> Iterator[Measured]:
    """Yield the routed experts of one rank; `num_tokens` are those of the whole expert-parallel group."""
    formats = _Formats(table, FORMATS)
    names = ("num_tokens", "hidden_size", "inter_size", "topk", "num_experts", "moe_tp_size", "moe_ep_size")
    sizes = zip(*(table.whole(name, 1) for name in names), strict=True)
    rows = zip(
        sizes, table.columns["moe_dtype"], table.columns["distribution"], table.times("latency", MS), strict=True
    )
    passed: dict[str, int] = {}
    for size, name, distribution, ns in rows:
        tokens, hidden, inter, topk, count, split, spread = size
        law, _, exponent = distribution.rpartition("_")
        if law not in ("", "power_law"):
            passed[distribution] = passed.get(distribution, 0) + 1
        elif form := formats(name):
            values = {"tokens": tokens, "hidden": hidden, "intermediate": inter // split, "topk": topk}
            placed = {"experts": count, "local": max(1, count // spread), "format": form}
            yield _measured("experts", {**values, **placed, "skew": float(exponent) if law else 0.0}, ns)
    formats.tell()
    table.say_passed("loads that are not of one power law", passed)


def _collective(table: Table, operations: list[str], sizes: list[int], ranks: list[int]) -> Iterator[Measured]:
    for operation, size, number, ns in zip(operations, sizes, ranks, table.times("latency", MS), strict=True):
        if number > 1 and size:
            yield _measured("collective", {"operation": operation, "size_bytes": size, "ranks": number}, ns)


def custom_all_reduce(table: Table, forward: Pass) -> Iterator[Measured]:
    """Yield an engine's own all-reduce of `message_size` 16-bit values; those launched eagerly are passed over."""
    sources = table.columns.get("backend", [""] * table.rows)
    eager = sum(str(name).endswith("eager") for name in sources)
    if eager < table.rows:
        table.say_passed("all-reduces", {"launched eagerly": eager})
    sizes = [2 * values for values in table.whole("message_size", 1)]
    found = _collective(table, ["all_reduce"] * table.rows, sizes, table.whole("num_gpus", 1))
    for name, measured in zip(sources, found, strict=True):
        if eager == table.rows or not str(name).endswith("eager"):
            yield measured


NCCL = {"all_reduce": "all_reduce", "all_gather": "all_gather", "reduce_scatter": "reduce_scatter"}


def nccl(table: Table, forward: Pass) -> Iterator[Measured]:
    """Yield NCCL's collectives of a whole buffer of `message_size` 16-bit values."""
    ranks, sizes, times = table.whole("num_gpus", 1), table.whole("message_size", 1), table.times("latency", MS)
    rows = zip(table.columns["op_name"], table.columns["nccl_dtype"], sizes, ranks, times, strict=True)
    passed: dict[str, int] = {}
    for operation, name, size, number, ns in rows:
        if operation in NCCL and name == "half":
            values = {"operation": NCCL[operation], "size_bytes": 2 * size, "ranks": number}
            yield _measured("collective", values, ns)
        else:
            passed[f"{operation} of {name}"] = passed.get(f"{operation} of {name}", 0) + 1
    table.say_passed("other collectives and data types", passed)


# -- Vidur ------------------------------------------------------------------------------------------------------------


def _median(operator: str) -> str:
    return f"time_stats.{operator}.median"


VIDUR_SIZES = (
    "num_tokens",
    "num_tensor_parallel_workers",
    "n_head",
    "n_kv_head",
    "n_embd",
    "n_expanded_embd",
)
VALUE_BYTES = 2


def _vidur_rows(
    tokens: int, ranks: int, heads: int, kv_heads: int, hidden: int, wide: int, gated: bool
) -> dict[str, Row]:
    """Return the operators of one row of Vidur's profile by their names there; 16-bit values, rotary positions."""
    head = hidden // heads
    queries, keys = heads // ranks * head, max(1, kv_heads // ranks) * head
    width = wide // ranks

    def product(columns: int, inner: int) -> Row:
        return "gemm", {"rows": tokens, "columns": columns, "inner": inner}

    def moved(name: str, values: int) -> Row:
        return "elementwise", {"name": name, "size_bytes": VALUE_BYTES * values}

    return {
        "attn_pre_proj": product(queries + 2 * keys, hidden),
        "attn_post_proj": product(hidden, queries),
        "mlp_up_proj": product((2 if gated else 1) * width, hidden),
        "mlp_down_proj": product(hidden, width),
        "mlp_act": moved("activation", tokens * width * (3 if gated else 2)),
        "attn_rope": moved("rotary positions", tokens * 2 * (queries + keys)),
        "emb": moved("embedding", 2 * tokens * hidden),
    }


def vidur_layers(table: Table, forward: Pass) -> Iterator[Measured]:
    """Yield products and elementwise kernels of layers; a time that a row leaves empty was not taken."""
    sizes = zip(*(table.whole(name, 1) for name in VIDUR_SIZES), strict=True)
    gated = table.columns["use_gated_mlp"]
    known: dict[tuple[int, ...], dict[str, Row]] = {}
    for row, (size, with_gate) in enumerate(zip(sizes, gated, strict=True)):
        key = (*size, bool(with_gate))
        if key not in known:
            known[key] = _vidur_rows(*key)
        for operator, (kind, values) in known[key].items():
            ms = table.columns.get(_median(operator), [None] * table.rows)[row]
            if ms is not None and ms == ms:
                yield _measured(kind, values, table.positive(_median(operator), row, ms) * MS)


VIDUR_ATTENTION = (
    "n_embd",
    "n_q_head",
    "n_kv_head",
    "num_tensor_parallel_workers",
    "batch_size",
    "prefill_chunk_size",
    "kv_cache_size",
)


def vidur_attention(table: Table, forward: Pass) -> Iterator[Measured]:
    """Yield attention of prompts' chunks, and of decoding sequences, each with `kv_cache_size` cached positions."""
    sizes = zip(*(table.whole(name) for name in VIDUR_ATTENTION), strict=True)
    columns = [table.columns[_median(name)] for name in ("attn_prefill", "attn_decode")]
    for row, (size, prefill, *times) in enumerate(zip(sizes, table.columns["is_prefill"], *columns, strict=True)):
        hidden, heads, kv_heads, ranks, batch, chunk, cached = size
        width = hidden // heads
        shape = {"heads": heads // ranks, "kv_heads": max(1, kv_heads // ranks), "key_dim": width, "value_dim": width}
        name = _median("attn_prefill" if prefill else "attn_decode")
        ns = table.positive(name, row, times[0 if prefill else 1]) * MS
        if prefill:
            yield _measured("prompt_attention", {"sequences": batch, "tokens": chunk, "cached": cached, **shape}, ns)
        else:
            yield _measured("token_attention", {"batch": batch, "context": cached + 1, **shape}, ns)


def vidur_collective(operation: str) -> Callable[[Table, Pass], Iterator[Measured]]:
    """Return what yields a collective of `size` bytes among devices of one node."""
    return partial(_vidur_collective, operation)


def _vidur_collective(operation: str, table: Table, forward: Pass) -> Iterator[Measured]:
    names = ("num_workers", "size", "devices_per_node")
    sizes = zip(*(table.whole(name, 1) for name in names), strict=True)
    apart = 0
    for (ranks, size, together), ns in zip(sizes, table.times(_median(operation), MS), strict=True):
        if ranks > together:
            apart += 1
        elif ranks > 1:
            yield _measured("collective", {"operation": operation, "size_bytes": size, "ranks": ranks}, ns)
    table.say_passed("collectives", {"over several nodes": apart})
