"""Reads a table of measured operators, CSV or Parquet: the canonical schema, or a public format known by its columns.

Sources of the formats: aiconfigurator (ai-dynamo), Vidur (microsoft/vidur), LLMServingSim (casys-kaist), as published.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

from simulator.device.measured.points import KINDS, MIXED
from simulator.errors import InputError, Problem, nearest
from simulator.model.architecture import GroupedAttention
from simulator.model.forward import Pass, Work
from simulator.model.operators import Operator
from simulator.model.precision import FORMATS, VALUES

Columns = Mapping[str, Sequence[Any]]
PROVENANCE = ("engine", "version", "device", "date")


class Measured(NamedTuple):
    """One measurement: the operators that were timed together, and their time in ns."""

    operators: tuple[Operator, ...]
    ns: float


class Contents(NamedTuple):
    """What a file holds: the name of its format, its measurements, who took them, and what of it was passed over."""

    format: str
    measured: list[Measured]
    provenance: dict[str, str]
    by_layer: bool
    """Whether it times layers by name, without saying of which model they are."""
    notes: tuple[str, ...] = ()


class Table:
    """The columns of one file, read with errors that name the file, the row and the column."""

    def __init__(self, path: Path, columns: Columns) -> None:
        self.path, self.columns = path, columns
        self.notes: list[str] = []
        """What of the file was passed over."""
        self.rows = len(next(iter(columns.values()), ()))

    def problem(
        self, what: str, row: int | None = None, allowed: str | None = None, near: str | None = None
    ) -> Problem:
        """Return a problem of this file; `row` counts rows of data from 0."""
        place = what if row is None else f"row {row + 1}: {what}"
        return Problem(place, file=str(self.path), allowed=allowed, nearest=near)

    def times(self, column: str, unit_ns: float) -> list[float]:
        """Return a column of times in ns; raises InputError on the first that is no positive number."""
        found = []
        for row, value in enumerate(self.columns[column]):
            if not isinstance(value, int | float) or isinstance(value, bool) or not isfinite(value) or value <= 0:
                raise InputError(self.problem(f"{column} is {value!r}", row, "a time of more than zero"))
            found.append(value * unit_ns)
        return found

    def whole(self, column: str, least: int = 0) -> list[int]:
        """Return a column of whole numbers of at least `least`; raises InputError on the first that is none."""
        found = []
        for row, value in enumerate(self.columns[column]):
            number = isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)
            if not number or value != int(value) or value < least:
                raise InputError(self.problem(f"{column} is {value!r}", row, f"a whole number of {least} or more"))
            found.append(int(value))
        return found

    def say_degrees(self, degrees: Sequence[int], wanted: int) -> None:
        """Note that no row is of the tensor degree that is asked for."""
        if wanted not in degrees:
            there = ", ".join(map(str, sorted(set(degrees))))
            self.notes.append(f"no row is of tensor degree {wanted}, only of {there}")

    def only(self, column: str) -> str | None:
        """Return the values of a column of texts, joined when they differ; None without the column."""
        found = dict.fromkeys(str(value) for value in self.columns.get(column, ()) if value is not None)
        return ", ".join(found) or None


def read_table(path: Path) -> Table:
    """Return the columns of a CSV or Parquet file; raises InputError when it cannot be read as one."""
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet

    if not path.name.endswith((".parquet", ".csv", ".csv.gz")):
        raise InputError(Problem("is no table", file=str(path), allowed=".csv, .csv.gz or .parquet"))
    try:
        table = pa.parquet.read_table(path) if path.suffix == ".parquet" else pa.csv.read_csv(path)
    except (OSError, pa.ArrowException) as error:
        raise InputError(Problem(f"cannot be read as a table: {error}", file=str(path))) from None
    return Table(path, {name: table.column(name).to_pylist() for name in table.column_names})


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
SWITCHES = ("gated", "latent")
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


# -- LLMServingSim: layers by name, one model and one tensor degree ---------------------------------------------------

LAYERS = {
    "embedding": "embedding",
    "layernorm": "norm and residual",
    "qkv_proj": "QKV projection",
    "rotary_emb": "rotary positions",
    "o_proj": "output projection",
    "gate_up_proj": "gate and up projection",
    "act_fn": "activation",
    "down_proj": "down projection",
    "lm_head": "LM head",
    "sampler": "sampling",
}
"""Names of vLLM's layers and the operators of `simulator.model.forward` that they are."""
PART_OF = {"qk_norm": ("rotary_emb", 2)}
"""Layers that are part of another's operator, and how often: queries and keys are each normed once."""


def _layers(table: Table, forward: Pass, size: str) -> Iterator[Measured]:
    """Yield layers at `size` (tokens or sequences) positions; of the repeated ones each, of parts the median."""
    times, degrees, sizes = table.times("time_us", 1e3), table.whole("tp", 1), table.whole(size, 1)
    shapes: dict[int, dict[str, Operator]] = {}
    rows: dict[tuple[str, int], list[float]] = {}
    for layer, degree, positions, ns in zip(table.columns["layer"], degrees, sizes, times, strict=True):
        if degree == forward.layout.tensor:
            rows.setdefault((layer, positions), []).append(ns)
    table.say_degrees(degrees, forward.layout.tensor)
    known = LAYERS.keys() | PART_OF.keys()
    if unknown := ", ".join(dict.fromkeys(layer for layer, _ in rows if layer not in known)):
        table.notes.append(f"layers that are no operator by themselves passed over: {unknown}")
    for (layer, positions), found in rows.items():
        name = LAYERS.get(layer)
        if positions not in shapes:
            shapes[positions] = {o.name: o for o in forward.operators(Work(batch=positions, context=positions))}
        if name is None or name not in shapes[positions]:
            continue
        extra = 0.0
        for part, (whole, times_run) in PART_OF.items():
            if whole == layer and (part, positions) in rows:
                parts = rows[part, positions]
                extra += times_run * sum(parts) / len(parts)
        operator = shapes[positions][name]._replace(calls=1)
        yield from (Measured((operator,), ns + extra) for ns in found)


def _dense(table: Table, forward: Pass) -> Iterator[Measured]:
    return _layers(table, forward, "tokens")


def _per_sequence(table: Table, forward: Pass) -> Iterator[Measured]:
    return _layers(table, forward, "sequences")


def _attention(table: Table, forward: Pass) -> Iterator[Measured]:
    """Yield attention of one prompt's chunk, of decoding sequences, and of both in one call.

    `kv_prefill` and `kv_decode` are what is in the cache before the step.
    """
    part = forward.model.attention
    if not isinstance(part, GroupedAttention):
        return
    heads = {
        "heads": forward.heads,
        "kv_heads": forward.kv_heads,
        "key_dim": part.head_dim,
        "value_dim": part.head_dim,
        "kv": forward.precision.kv,
    }
    names = ("tp", "prefill_chunk", "kv_prefill", "n_decode", "kv_decode")
    columns = [table.whole(name) for name in names]
    table.say_degrees(columns[0], forward.layout.tensor)
    for degree, tokens, cached, batch, context, ns in zip(*columns, table.times("time_us", 1e3), strict=True):
        if degree != forward.layout.tensor or not tokens + batch:
            continue
        kind = MIXED if tokens and batch else "prompt_attention" if tokens else "token_attention"
        row = {"tokens": tokens, "cached": cached, "batch": batch, "context": context + 1, **heads}
        yield Measured(KINDS[kind].operators({**KINDS[kind].defaults, **row}), ns)


# -- the formats ------------------------------------------------------------------------------------------------------


class Format(NamedTuple):
    """A format of files: the columns by which it is known, and what yields its measurements."""

    columns: tuple[str, ...]
    read: Callable[[Table, Pass], Iterator[Measured]]
    provenance: dict[str, str] = {}  # noqa: RUF012 (never written to)
    """Which columns say who measured."""
    by_layer: bool = False


READERS: dict[str, Format] = {
    "canonical": Format(("operator", "ns"), _canonical, {name: name for name in PROVENANCE}),
    "LLMServingSim dense": Format(("tp", "layer", "tokens", "time_us"), _dense, by_layer=True),
    "LLMServingSim per_sequence": Format(("tp", "layer", "sequences", "time_us"), _per_sequence, by_layer=True),
    "LLMServingSim attention": Format(
        ("tp", "prefill_chunk", "kv_prefill", "n_decode", "kv_decode", "time_us"), _attention, by_layer=True
    ),
}
"""Formats of tables by name; the first whose columns are all there is taken."""


def read(path: Path, forward: Pass) -> Contents:
    """Return what a file measured, as far as it can be of use to the steps of `forward`.

    Raises InputError when the file is in no known format, or a time or a size in it makes no sense.
    """
    table = read_table(path)
    for name, form in READERS.items():
        if all(column in table.columns for column in form.columns):
            provenance = {key: value for key, column in form.provenance.items() if (value := table.only(column))}
            measured = list(form.read(table, forward))
            return Contents(name, measured, provenance, form.by_layer, tuple(table.notes))
    there = set(table.columns)
    name, form = min(READERS.items(), key=lambda item: len(set(item[1].columns) - there) / len(item[1].columns))
    missing = ", ".join(column for column in form.columns if column not in there)
    what = f"is in no known format; of {name} it lacks {missing}"
    raise InputError(table.problem(what, allowed=", ".join(READERS)))
