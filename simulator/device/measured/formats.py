"""Reads a table of measured operators: the canonical schema, or a public format known by its columns.

Sources of the formats: aiconfigurator (ai-dynamo), Vidur (microsoft/vidur), LLMServingSim (casys-kaist), as published.
"""

from collections.abc import Callable, Iterator
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

from simulator.device.measured import layer_tables, operator_tables
from simulator.device.measured.points import KINDS
from simulator.device.measured.table import Measured, Table, read_table
from simulator.errors import InputError, nearest
from simulator.model.forward import Pass
from simulator.model.precision import FORMATS, VALUES

PROVENANCE = ("engine", "version", "device", "date")


class Contents(NamedTuple):
    """What a file holds: the name of its format, its measurements, who took them, and what of it was passed over."""

    format: str
    measured: list[Measured]
    provenance: dict[str, str]
    by_layer: bool
    """Whether it times layers by name, without saying of which model they are."""
    notes: tuple[str, ...] = ()


# -- the canonical schema ---------------------------------------------------------------------------------------------


def _canonical(table: Table, forward: Pass) -> Iterator[Measured]:
    times = table.times("ns", 1.0)
    for row, (name, ns) in enumerate(zip(table.columns["operator"], times, strict=True)):
        kind = KINDS.get(name)
        if kind is None:
            near = nearest(str(name), KINDS)
            raise InputError(table.problem(f"unknown operator {name!r}", row, ", ".join(KINDS), near))
        values = dict(kind.defaults)
        for column in (*kind.columns, *kind.defaults):
            value = table.columns[column][row] if column in table.columns else None
            if value is not None:
                values[column] = _value(table, row, column, value)
            elif column in kind.columns:
                raise InputError(table.problem(f"{name} has no {column}", row, "columns " + ", ".join(kind.columns)))
        yield Measured(kind.operators(values), ns)


CHOICES: dict[str, tuple[str, ...]] = {"format": tuple(FORMATS), "kv": tuple(VALUES)}
TEXTS = ("name", "operation")
SWITCHES = ("gated", "latent", "quantise")
FROM_ZERO = ("cached", "window", "skew")


def _value(table: Table, row: int, column: str, value: Any) -> Any:
    if column in CHOICES:
        names = CHOICES[column]
        if value not in names:
            near = nearest(str(value), names)
            raise InputError(table.problem(f"unknown {column} {value!r}", row, ", ".join(names), near))
        return value
    if column in TEXTS:
        return str(value)
    if column in SWITCHES:
        return bool(value)
    least = 0 if column in FROM_ZERO else 1
    number = isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)
    if not number or value < least or (column != "skew" and value != int(value)):
        raise InputError(table.problem(f"{column} is {value!r}", row, f"a whole number of {least} or more"))
    return value if column == "skew" else int(value)


# -- the formats ------------------------------------------------------------------------------------------------------


class Format(NamedTuple):
    """A format of files: the columns by which it is known, and what yields its measurements."""

    columns: tuple[str, ...]
    read: Callable[[Table, Pass], Iterator[Measured]]
    provenance: dict[str, str] = {}  # noqa: RUF012 (never written to)
    """Which columns say who measured."""
    holding: dict[str, str] = {}  # noqa: RUF012 (never written to)
    """Columns whose first value tells formats of the same columns apart."""
    by_layer: bool = False


WHO = {"engine": "framework", "version": "version", "device": "device"}
ATTENTION = (
    *("op_name", "batch_size", "isl", "step", "num_heads", "num_key_value_heads", "head_dim"),
    *("kv_cache_dtype", "latency"),
)

READERS: dict[str, Format] = {
    "canonical": Format(("operator", "ns"), _canonical, {name: name for name in PROVENANCE}),
    "LLMServingSim dense": Format(("tp", "layer", "tokens", "time_us"), layer_tables.dense, by_layer=True),
    "LLMServingSim per_sequence": Format(
        ("tp", "layer", "sequences", "time_us"), layer_tables.per_sequence, by_layer=True
    ),
    "aiconfigurator gemm": Format(("gemm_dtype", "m", "n", "k", "latency"), operator_tables.gemm, WHO),
    "aiconfigurator experts": Format(
        ("moe_dtype", "num_tokens", "inter_size", "moe_ep_size", "distribution", "latency"),
        operator_tables.experts,
        WHO,
    ),
    "aiconfigurator context attention": Format(
        ATTENTION, operator_tables.context_attention, WHO, {"op_name": "context_attention"}
    ),
    "aiconfigurator generation attention": Format(
        ATTENTION, operator_tables.generation_attention, WHO, {"op_name": "generation_attention"}
    ),
    "aiconfigurator MLA modules": Format(
        ("op_name", "mla_dtype", "gemm_type", "num_heads", "batch_size", "isl", "step", "model", "latency"),
        operator_tables.latent_module,
        WHO,
    ),
    "aiconfigurator all-reduce": Format(
        ("allreduce_dtype", "num_gpus", "message_size", "latency"), operator_tables.custom_all_reduce, WHO
    ),
    "aiconfigurator NCCL": Format(
        ("nccl_dtype", "op_name", "num_gpus", "message_size", "latency"), operator_tables.nccl, WHO
    ),
    "Vidur layers": Format(
        ("time_stats.attn_pre_proj.median", *operator_tables.VIDUR_SIZES, "use_gated_mlp"), operator_tables.vidur_layers
    ),
    "Vidur attention": Format(
        (
            "time_stats.attn_prefill.median",
            "time_stats.attn_decode.median",
            *operator_tables.VIDUR_ATTENTION,
            "is_prefill",
        ),
        operator_tables.vidur_attention,
    ),
    **{
        f"Vidur {name}": Format(
            (f"time_stats.{name}.median", "num_workers", "size", "devices_per_node"),
            operator_tables.vidur_collective(name),
        )
        for name in ("all_reduce", "all_gather", "reduce_scatter")
    },
    "LLMServingSim attention": Format(
        ("tp", "prefill_chunk", "kv_prefill", "n_decode", "kv_decode", "time_us"), layer_tables.attention, by_layer=True
    ),
}
"""Formats of tables by name; the first whose columns are all there is taken."""


def read(path: Path, forward: Pass) -> Contents:
    """Return what a file measured, as far as it can be of use to the steps of `forward`.

    Raises InputError when the file is in no known format, or a time or a size in it makes no sense.
    """
    table = read_table(path)
    for name, form in READERS.items():
        told = all(str(next(iter(table.columns.get(key, ())), "")) == value for key, value in form.holding.items())
        if told and all(column in table.columns for column in form.columns):
            provenance = {key: value for key, column in form.provenance.items() if (value := table.only(column))}
            measured = list(form.read(table, forward))
            return Contents(name, measured, provenance, form.by_layer, tuple(table.notes))
    there = set(table.columns)
    name, form = min(READERS.items(), key=lambda item: len(set(item[1].columns) - there) / len(item[1].columns))
    missing = ", ".join(column for column in form.columns if column not in there)
    what = f"is in no known format; of {name} it lacks {missing}"
    raise InputError(table.problem(what, allowed=", ".join(READERS)))
