"""Canonical traces in Parquet: a reader that checks each row on the way, and a writer that leaves no half file."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from simulator.errors import InputError, Problem, nearest
from simulator.workload.schema import (
    BATCH_ROWS,
    BLOCK_KEY,
    MAX_NS,
    MAX_TOKENS,
    OPTIONAL,
    REQUIRED,
    SCHEMA,
    VERSION,
    VERSION_KEY,
    Report,
    make_batch,
    rebatch,
)

_RANGES = {
    "turn": (0, 2**31 - 1),
    "samples": (1, 2**31 - 1),
    "predicted_tokens": (1, MAX_TOKENS),
    "cancel_ns": (0, MAX_NS),
    "prefix": (0, 2**31 - 1),
    "prefix_tokens": (1, MAX_TOKENS),
}
"""Least and most of the optional whole numbers."""


class ParquetSource:
    """A canonical Parquet file; raises InputError when it is not one."""

    notes: tuple[str, ...] = ()

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files: tuple[Path, ...] = (path,)
        with self._guard(), pq.ParquetFile(path) as file:
            self.names = _checked_names(file.schema_arrow, path)
            raw = file.metadata.metadata or {}
            self.metadata = {
                key.decode(): value.decode() for key, value in raw.items() if key.startswith(b"simulator.")
            }
            self.columns_present = tuple(name for name in OPTIONAL if _holds_values(file, name))
        self.prefix_block_tokens = self._block_tokens()

    def _guard(self) -> "_ParquetFaults":
        return _ParquetFaults(self.path)

    def _block_tokens(self) -> int | None:
        version = self.metadata.get(VERSION_KEY, VERSION)
        if version != VERSION:
            raise InputError(Problem(f"trace version {version!r} is unknown", str(self.path), allowed=VERSION))
        text = self.metadata.get(BLOCK_KEY)
        if text is not None and not (text.isascii() and text.isdecimal() and 0 < int(text[:12]) <= MAX_TOKENS):
            raise InputError(Problem(f"{BLOCK_KEY} is {text!r}", str(self.path), allowed="a whole number of 1 or more"))
        if text is None and "prefix_hashes" in self.columns_present:
            raise InputError(
                Problem(f"prefix_hashes without the block size, {BLOCK_KEY}, in the metadata", str(self.path))
            )
        return None if text is None else int(text)

    def batches(self, report: Report, strict: bool, start_ns: int = 0) -> Iterator[pa.RecordBatch]:
        """Yield checked canonical batches; a bad row raises InputError, strict or not: this file is a program's."""
        row, last_ns = 0, 0
        with self._guard(), pq.ParquetFile(self.path) as file:
            for raw in file.iter_batches(BATCH_ROWS, use_threads=False):
                if not raw.num_rows:
                    continue
                _check(raw, row, last_ns, self.prefix_block_tokens, self.path)
                batch = make_batch(
                    {name: raw.column(name).cast(SCHEMA.field(name).type) for name in self.names}, len(raw)
                )
                row += len(raw)
                last_ns = int(raw.column("arrival_ns")[-1].as_py())
                report.rows_read = row
                yield batch

    def skipped(self, start_ns: int) -> int:
        """Return zero: every row is read."""
        return 0


class _ParquetFaults:
    """A context that turns the Parquet reader's errors into one InputError."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError):
            raise InputError(Problem(f"cannot read: {error.strerror or 'no such file'}", str(self.path))) from None
        if isinstance(error, pa.ArrowException | OSError | UnicodeDecodeError):
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise InputError(Problem(f"not a readable Parquet file: {reason}", str(self.path))) from None


def _checked_names(schema: pa.Schema, path: Path) -> tuple[str, ...]:
    names = list(schema.names)
    problems = [
        Problem(f"no column {name!r}; found: {', '.join(names)}", str(path), nearest=nearest(name, names))
        for name in REQUIRED
        if name not in names
    ]
    for name in dict.fromkeys(names):
        if name not in SCHEMA.names:
            allowed = ", ".join(SCHEMA.names)
            problems.append(
                Problem(f"unexpected column {name!r}", str(path), allowed=allowed, nearest=nearest(name, SCHEMA.names))
            )
        elif names.count(name) > 1:
            problems.append(Problem(f"column {name!r} is there {names.count(name)} times", str(path)))
        elif not _same_type(schema.field(name).type, SCHEMA.field(name).type):
            wanted, found = SCHEMA.field(name).type, schema.field(name).type
            problems.append(Problem(f"column {name!r} has type {found}", str(path), allowed=str(wanted)))
    if problems:
        raise InputError(problems)
    return tuple(names)


def _same_type(found: pa.DataType, wanted: pa.DataType) -> bool:
    if pa.types.is_string(wanted):  # pandas writes its strings as large ones
        return bool(pa.types.is_string(found) or pa.types.is_large_string(found))
    if pa.types.is_list(wanted):  # the name and nullability of the item differ between writers
        return bool(pa.types.is_list(found)) and found.value_type == wanted.value_type
    return bool(found == wanted)


def _holds_values(file: pq.ParquetFile, name: str) -> bool:
    """Return whether a column has any value, as the statistics say; without statistics it may have, so yes."""
    if name not in file.schema_arrow.names:
        return False
    index = next(i for i in range(file.metadata.num_columns) if file.schema.column(i).path.split(".")[0] == name)
    for group in range(file.metadata.num_row_groups):
        statistics = file.metadata.row_group(group).column(index).statistics
        if statistics is None or not statistics.has_null_count or statistics.num_values > 0:
            return True
    return False


def _check(batch: pa.RecordBatch, first: int, last_ns: int, block_tokens: int | None, path: Path) -> None:
    """Raise InputError with the first bad row of `batch`, whose first row is number `first` + 1."""

    def refuse(index: Any, column: str, what: str) -> NoReturn:
        raise InputError(Problem(f"row {first + int(index) + 1}: {column}: {what}", str(path)))

    for name in REQUIRED:
        if batch.column(name).null_count:
            refuse(np.flatnonzero(batch.column(name).is_null().to_numpy(zero_copy_only=False))[0], name, "null")
    arrival_ns = batch.column("arrival_ns").to_numpy()
    before = np.concatenate(([last_ns], arrival_ns[:-1]))
    if arrival_ns[0] < 0:
        refuse(0, "arrival_ns", "negative")
    if (late := np.flatnonzero(arrival_ns < before)).size:
        refuse(late[0], "arrival_ns", "earlier than the row above; a trace is in order of arrival")
    for name in ("prompt_tokens", "output_tokens"):
        count = batch.column(name).to_numpy()
        if (wrong := np.flatnonzero((count < 1) | (count > MAX_TOKENS))).size:
            refuse(wrong[0], name, f"{count[wrong[0]]} is not between 1 and {MAX_TOKENS}")
    for name, (least, most) in _RANGES.items():
        if name in batch.schema.names and (column := batch.column(name)).null_count < len(column):
            value = column.fill_null(least).to_numpy()
            if (wrong := np.flatnonzero((value < least) | (value > most))).size:
                found = int(value[wrong[0]])
                refuse(wrong[0], name, "negative" if found < 0 <= least else f"{found} is not from {least} to {most}")
    _check_prefixes(batch, refuse)
    if "sample_tokens" in batch.schema.names:
        _check_answers(batch, refuse)
    if block_tokens is not None and "prefix_hashes" in batch.schema.names:
        _check_hashes(batch, block_tokens, refuse)


def _check_prefixes(batch: pa.RecordBatch, refuse: Callable[[Any, str, str], NoReturn]) -> None:
    names = batch.schema.names
    columns = [batch.column(n) if n in names else pa.nulls(len(batch), pa.int64()) for n in ("prefix", "prefix_tokens")]
    lacking = [column.is_null().to_numpy(zero_copy_only=False) for column in columns]
    if (wrong := np.flatnonzero(lacking[0] != lacking[1])).size:
        refuse(wrong[0], "prefix", "goes with prefix_tokens, both or none")
    longer = columns[1].fill_null(0).to_numpy() > batch.column("prompt_tokens").to_numpy()
    if (wrong := np.flatnonzero(longer)).size:
        refuse(wrong[0], "prefix_tokens", "more than the prompt has")


def _check_answers(batch: pa.RecordBatch, refuse: Callable[[Any, str, str], NoReturn]) -> None:
    column = batch.column("sample_tokens")
    counts = column.value_lengths().fill_null(0).to_numpy()
    samples = batch.column("samples") if "samples" in batch.schema.names else pa.nulls(len(batch), pa.int32())
    others = samples.fill_null(1).to_numpy() - 1
    if (wrong := np.flatnonzero(column.is_valid().to_numpy(zero_copy_only=False) & (counts != others))).size:
        what = f"{counts[wrong[0]]} lengths, {others[wrong[0]]} answers after the first"
        refuse(wrong[0], "sample_tokens", what)
    lengths = column.flatten().fill_null(0).to_numpy()
    if (wrong := np.flatnonzero((lengths < 1) | (lengths > MAX_TOKENS))).size:
        row = np.searchsorted(np.cumsum(counts), wrong[0], side="right")
        refuse(row, "sample_tokens", f"{lengths[wrong[0]]} is not between 1 and {MAX_TOKENS}")


def _check_hashes(batch: pa.RecordBatch, block_tokens: int, refuse: Callable[[Any, str, str], NoReturn]) -> None:
    hashes = batch.column("prefix_hashes")
    blocks = hashes.value_lengths().fill_null(0).to_numpy()
    most = -(-batch.column("prompt_tokens").to_numpy() // block_tokens)
    if (wrong := np.flatnonzero(blocks > most)).size:
        refuse(
            wrong[0],
            "prefix_hashes",
            f"{blocks[wrong[0]]} blocks, {most[wrong[0]]} of {block_tokens} tokens hold the prompt",
        )
    items = hashes.flatten()
    if items.null_count:
        where = np.flatnonzero(items.is_null().to_numpy(zero_copy_only=False))[0]
        refuse(np.searchsorted(np.cumsum(blocks), where, side="right"), "prefix_hashes", "null block hash")


Metadata = Mapping[str, str] | Callable[[], Mapping[str, str]]


def write_trace(path: str | Path, batches: Iterable[pa.RecordBatch], metadata: Metadata) -> int:
    """Write canonical batches to `path` and return the number of rows; the version key is always written.

    `metadata` may be a function: it is then called after the last batch, when a reader's report is complete. The file
    appears whole by a rename, or not at all. The bytes depend only on rows and metadata, not on how they were batched.
    Raises InputError when there is no row or the folder cannot be written.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    rows = 0
    try:
        with pq.ParquetWriter(partial, SCHEMA, compression="zstd") as writer:
            for batch in rebatch(batches):
                writer.write_batch(batch)
                rows += batch.num_rows
            if not rows:
                raise InputError(Problem("no requests to write", str(path)))
            final = metadata() if callable(metadata) else metadata
            writer.add_key_value_metadata({VERSION_KEY: VERSION, **final})
        os.replace(partial, path)
    except BaseException as error:
        with suppress(OSError):
            partial.unlink()
        if isinstance(error, OSError):
            raise InputError(Problem(f"cannot write: {error.strerror or error}", str(path))) from None
        raise
    return rows
