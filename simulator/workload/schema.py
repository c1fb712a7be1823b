"""The canonical trace schema, one row a request in order of arrival, and the report of what a reader could not use."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

BATCH_ROWS = 65_536
MAX_TOKENS = 2**31 - 1
MAX_NS = 2**63 - 1

VERSION_KEY = "simulator.trace.version"
BLOCK_KEY = "simulator.prefix_block_tokens"
PROVENANCE_KEY = "simulator.provenance"
VERSION = "1"

SCHEMA = pa.schema(
    [
        pa.field("arrival_ns", pa.int64(), nullable=False),
        pa.field("prompt_tokens", pa.int64(), nullable=False),
        pa.field("output_tokens", pa.int64(), nullable=False),
        pa.field("session", pa.string()),
        pa.field("turn", pa.int32()),
        pa.field("prefix_hashes", pa.list_(pa.int64())),
        pa.field("model", pa.string()),
        pa.field("tenant", pa.string()),
        pa.field("priority", pa.int32()),
        pa.field("samples", pa.int32()),
        pa.field("sample_tokens", pa.list_(pa.int64())),
        pa.field("predicted_tokens", pa.int64()),
        pa.field("cancel_ns", pa.int64()),
        pa.field("prefix", pa.int64()),
        pa.field("prefix_tokens", pa.int64()),
    ]
)
"""Columns that a file does not have are null, so that files of fewer optional columns stay readable."""
REQUIRED: tuple[str, ...] = tuple(f.name for f in SCHEMA if not f.nullable)
OPTIONAL: tuple[str, ...] = tuple(f.name for f in SCHEMA if f.nullable)

_LINES_KEPT = 5


@dataclass
class BadRows:
    """Rows that were left out for one reason: how many, and the numbers of the first five lines."""

    count: int = 0
    first_lines: list[int] = field(default_factory=list)


@dataclass
class Report:
    """What a reader met: `rows_read` rows, good and bad, and the bad ones by reason."""

    rows_read: int = 0
    bad: dict[str, BadRows] = field(default_factory=dict)

    @property
    def bad_rows(self) -> int:
        """Return the number of rows that were left out."""
        return sum(rows.count for rows in self.bad.values())

    def add_bad(self, line: int, reason: str) -> None:
        """Count one row that was read and left out."""
        self.rows_read += 1
        rows = self.bad.setdefault(reason, BadRows())
        rows.count += 1
        if len(rows.first_lines) < _LINES_KEPT:
            rows.first_lines.append(line)

    def take(self, other: "Report") -> None:
        """Say what another report says now."""
        self.rows_read = other.rows_read
        self.bad = {reason: BadRows(rows.count, list(rows.first_lines)) for reason, rows in other.bad.items()}

    def clear(self) -> None:
        """Forget everything, for a new pass over the same trace."""
        self.rows_read = 0
        self.bad.clear()

    def reasons(self) -> list[str]:
        """Return one sentence a reason, the most frequent first."""
        ordered = sorted(self.bad.items(), key=lambda item: (-item[1].count, item[0]))
        return [f"{_count(rows.count)}: {reason} ({_places(rows)})" for reason, rows in ordered]


def _count(rows: int) -> str:
    return f"{rows:,} row" + ("" if rows == 1 else "s")


def _places(rows: BadRows) -> str:
    numbers = ", ".join(map(str, rows.first_lines))
    return f"line{'' if rows.count == 1 else 's'} {numbers}" + (", ..." if rows.count > len(rows.first_lines) else "")


def make_batch(columns: dict[str, Any], rows: int) -> pa.RecordBatch:
    """Return a canonical batch of `rows` rows; a column is anything pyarrow.array takes, an absent one becomes null."""
    arrays = [
        pa.array(columns[column.name], column.type) if column.name in columns else pa.nulls(rows, column.type)
        for column in SCHEMA
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=SCHEMA)


def rebatch(batches: Iterable[pa.RecordBatch], rows: int = BATCH_ROWS) -> Iterator[pa.RecordBatch]:
    """Yield the same rows in batches of exactly `rows`, the last one shorter; no batch is empty."""
    held: list[pa.RecordBatch] = []
    have = 0
    for batch in batches:
        held.append(batch)
        have += batch.num_rows
        while have >= rows:
            table = pa.Table.from_batches(held).combine_chunks()
            yield table.slice(0, rows).to_batches()[0]
            rest = table.slice(rows)
            held, have = rest.to_batches(), rest.num_rows
    if have:
        yield pa.Table.from_batches(held).combine_chunks().to_batches()[0]
