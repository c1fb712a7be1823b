"""Opening a trace: any known format, streamed as canonical record batches in flat memory.

A text source is put on one clock, on which its first usable row arrives at 0. A Parquet trace keeps its own.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from simulator.errors import InputError, Problem, unknown
from simulator.units import format_duration
from simulator.workload import formats
from simulator.workload.parquet import ParquetSource, write_trace
from simulator.workload.schema import (
    BATCH_ROWS,
    BLOCK_KEY,
    OPTIONAL,
    PROVENANCE_KEY,
    SCHEMA,
    VERSION,
    VERSION_KEY,
    Report,
    make_batch,
)
from simulator.workload.servegen import ServeGenSource

__all__ = ["FORMATS", "PROVENANCE_KEY", "SCHEMA", "Report", "Trace", "open_trace", "provenance", "write_trace"]


_PIECE_ROWS = 512  # divides BATCH_ROWS


class Source(Protocol):
    """A file that has been looked at and can be streamed any number of times."""

    metadata: dict[str, str]
    columns_present: tuple[str, ...]
    prefix_block_tokens: int | None
    files: tuple[Path, ...]
    notes: tuple[str, ...]
    """What is peculiar to the file and its user should know."""

    def batches(self, report: Report, strict: bool, start_ns: int = 0) -> Iterator[pa.RecordBatch]:
        """Yield canonical batches and fill `report` on the way; rows before `start_ns` may be left out."""

    def skipped(self, start_ns: int) -> int:
        """Return how many rows those are that `batches` leaves out."""


class TextSource:
    """Rows of text as canonical batches; bad rows are counted, or refused when strict."""

    notes: tuple[str, ...] = ()

    def __init__(self, path: Path, reader: formats.RowReader) -> None:
        self.path = path
        self.files: tuple[Path, ...] = (path,)
        self.reader = reader
        self.prefix_block_tokens = reader.prefix_block_tokens
        self.metadata = {VERSION_KEY: VERSION}
        if self.prefix_block_tokens is not None:
            self.metadata[BLOCK_KEY] = str(self.prefix_block_tokens)
        self.columns_present = tuple(name for name in OPTIONAL if name in reader.targets)

    def batches(self, report: Report, strict: bool, start_ns: int = 0) -> Iterator[pa.RecordBatch]:
        """Yield canonical batches of up to BATCH_ROWS rows, the first arrival at 0."""

        def bad(line: int, column: str, reason: str, value: object) -> None:
            if strict:
                what = reason if value is None else f"{str(value)[:40]!r}: {reason}"
                raise InputError(Problem(what, str(self.path), line, path=column or None))
            report.add_bad(line, f"{column}: {reason}" if column else reason)

        origin_ns: int | None = None
        last_ns = 0
        rows = self.reader.rows(bad)
        while columns := _columns(rows):
            lines, arrivals, *others = columns
            report.rows_read += len(lines)
            arrival_ns = np.array(arrivals, np.int64)
            origin_ns = int(arrival_ns[0]) if origin_ns is None else origin_ns
            arrival_ns -= origin_ns
            self._check_order(arrival_ns, last_ns, lines)
            last_ns = int(arrival_ns[-1])
            named = dict(zip(self.reader.targets[1:], others, strict=True))
            yield make_batch({"arrival_ns": arrival_ns, **named}, len(lines))

    def skipped(self, start_ns: int) -> int:
        """Return zero: every row is read."""
        return 0

    def _check_order(self, arrival_ns: np.ndarray, last_ns: int, lines: list[int]) -> None:
        # Neither skipped nor sorted: one wrong clock would drop all that follows, and a sort is not a stream.
        steps = np.diff(arrival_ns, prepend=last_ns)
        if (back := np.flatnonzero(steps < 0)).size:
            step = format_duration(-int(steps[back[0]]))
            what = f"arrives {step} before the row above; sort the rows by their time of arrival first"
            raise InputError(Problem(what, str(self.path), lines[back[0]]))


def _columns(rows: Iterator[tuple[Any, ...]]) -> list[list[Any]]:
    """Return up to BATCH_ROWS rows as columns, or no columns at the end."""
    columns: list[list[Any]] = []
    # In small pieces: thousands of live tuples wake the garbage collector, which then costs as much as the reading.
    while (not columns or len(columns[0]) < BATCH_ROWS) and (piece := list(islice(rows, _PIECE_ROWS))):
        if not columns:
            columns = [[] for _ in piece[0]]
        for column, values in zip(columns, zip(*piece, strict=True), strict=True):
            column.extend(values)
    return columns


Opener = Callable[[Path, Mapping[str, Any] | None, int], Source]
"""From the path, the columns of a plain CSV and the seed of what is drawn."""


def _canonical(path: Path, mapping: Mapping[str, Any] | None, seed: int) -> Source:
    return ParquetSource(path)


def _text(read: Callable[[Path], formats.RowReader]) -> Opener:
    return lambda path, mapping, seed: TextSource(path, read(path))


def _csv(path: Path, mapping: Mapping[str, Any] | None, seed: int) -> Source:
    if mapping is None:
        raise InputError(Problem("a plain CSV needs the names of its columns, such as arrival=t", str(path)))
    return TextSource(path, formats.read_csv(path, mapping))


def _servegen(path: Path, mapping: Mapping[str, Any] | None, seed: int) -> Source:
    return ServeGenSource(path, seed)


FORMATS: dict[str, Opener] = {
    "canonical": _canonical,
    "azure": _text(formats.read_azure),
    "burstgpt": _text(formats.read_burstgpt),
    "mooncake": _text(formats.MooncakeReader),
    "csv": _csv,
    "servegen": _servegen,
}


@dataclass
class Trace:
    """An opened trace; `report` is about the last pass over its batches."""

    path: Path
    format: str
    source: Source
    strict: bool
    report: Report = field(default_factory=Report)

    @property
    def metadata(self) -> Mapping[str, str]:
        """Return the `simulator.*` keys of the file, or those that a converted file will carry."""
        return self.source.metadata

    @property
    def columns_present(self) -> tuple[str, ...]:
        """Return the optional columns that the format or the file's statistics say can hold a value."""
        return self.source.columns_present

    @property
    def prefix_block_tokens(self) -> int | None:
        """Return the tokens that one prefix hash stands for, or None without hashes."""
        return self.source.prefix_block_tokens

    @property
    def origin(self) -> Any:
        """Return the provenance that the file carries, None without one; text that is not JSON comes as it is."""
        text = self.metadata.get(PROVENANCE_KEY)
        try:
            return None if text is None else json.loads(text)
        except ValueError:
            return text

    @property
    def notes(self) -> tuple[str, ...]:
        """Return what is peculiar to the file, as sentences for its user."""
        return self.source.notes

    def batches(self, start_ns: int = 0) -> Iterator[pa.RecordBatch]:
        """Yield the rows as batches of at most 65,536 in the canonical schema, from the start at each call.

        A source that draws its rows leaves out those that come well before `start_ns`; the others read them all.

        Raises InputError for a fault of the file, for a bad row when strict, and when no row is usable.
        """
        self.report.clear()
        some = False
        for batch in self.source.batches(self.report, self.strict, start_ns):
            some = True
            yield batch
        if not some:
            read = self.report.rows_read
            what = (
                f"none of the {read:,} rows can be used: " + "; ".join(self.report.reasons()) if read else "no requests"
            )
            raise InputError(Problem(what, str(self.path)))

    def skipped(self, start_ns: int) -> int:
        """Return how many rows before `start_ns` are left out by `batches`: the number of the first that it yields."""
        return self.source.skipped(start_ns)


def open_trace(
    path: str | Path,
    format: str | None = None,  # noqa: A002 - the word of the command line
    mapping: Mapping[str, Any] | None = None,
    strict: bool = False,
    seed: int = 0,
) -> Trace:
    """Open a trace in one of FORMATS; without a format the file must be canonical Parquet.

    `mapping` names the columns of a plain CSV (see formats.read_csv). `strict` refuses the first bad row with its
    `file:line: column: reason` where the default counts and skips it. Rows that go back in time are refused either way.
    A servegen profile is drawn from by `seed`.
    Raises InputError at once for an absent file, an unknown format or wrong columns.
    """
    path = Path(path)
    if format is None and path.suffix != ".parquet" and not _is_parquet(path):
        what = "not a canonical trace (Parquet); convert it first, naming its format"
        raise InputError(Problem(what, str(path), allowed=", ".join(sorted(FORMATS))))
    name = format or "canonical"
    if name not in FORMATS:
        raise InputError(unknown("trace format", name, FORMATS))
    if mapping is not None and name != "csv":
        raise InputError(Problem(f"format {name!r} has its own columns; only csv takes their names", str(path)))
    return Trace(path, name, FORMATS[name](path, mapping, seed), strict)


def _is_parquet(path: Path) -> bool:
    try:
        with path.open("rb") as stream:
            return stream.read(4) == b"PAR1"
    except OSError as error:
        raise InputError(Problem(f"cannot read: {error.strerror or error}", str(path))) from None


def provenance(trace: Trace, command: str) -> str:
    """Return the JSON that says where rows came from: file, SHA-256, what was read and left out, command."""
    with trace.path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    record = {
        "source": trace.path.name,
        "format": trace.format,
        "sha256": digest,
        "rows_read": trace.report.rows_read,
        "bad_rows": {reason: rows.count for reason, rows in sorted(trace.report.bad.items())},
        "command": command,
    }
    for other in trace.source.files[1:]:
        with other.open("rb") as stream:
            record[f"sha256 of {other.name}"] = hashlib.file_digest(stream, "sha256").hexdigest()
    if trace.origin is not None:
        record["source_provenance"] = trace.origin
    return json.dumps(record, sort_keys=True)
