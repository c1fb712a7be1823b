"""Smaller traces from a trace: a window of time, a share of the requests, the first of them; order is kept.

Model: each session, and each request without one, has a mark, 64 random bits that depend on the seed and on its name or
its number in the trace alone, and is kept when the mark is below the fraction's share of all. So sessions stay whole,
a smaller fraction keeps a part of what a larger one keeps, and no window, batch or speed changes the choice.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from simulator.randomness import mark, marks
from simulator.workload.schema import SCHEMA


@dataclass
class Part:
    """Which rows of a trace are taken: of those in a window of time a fraction, of these the first so many.

    Their times count from the start of the window. The counts are about the last pass over `of`.
    """

    start_ns: int = 0
    duration_ns: int | None = None
    """Length of the window [start, start + duration); None: to the end of the trace."""
    fraction: float = 1.0
    """Share of the rows that is kept, more than 0."""
    seed: int = 0
    requests: int | None = None
    """How many rows are taken at most, 1 or more."""
    taken: int = field(default=0, init=False)
    left_out: int = field(default=0, init=False)
    """Rows of the window, up to the last one taken where `requests` ended it, that the fraction did not keep."""

    def of(self, batches: Iterable[pa.RecordBatch], number: int = 0) -> Iterator[pa.RecordBatch]:
        """Yield the rows that are taken; `number` is the number in the trace of the first row of all."""
        self.taken = self.left_out = 0
        for batch in batches:
            arrival_ns = batch.column("arrival_ns").to_numpy()
            low, high = int(np.searchsorted(arrival_ns, self.start_ns)), len(arrival_ns)
            if self.duration_ns is not None:
                high = int(np.searchsorted(arrival_ns, self.start_ns + self.duration_ns))
            if low < high and (rows := self._kept(batch.slice(low, high - low), number + low)).num_rows:
                self.taken += rows.num_rows
                moved = pa.array(rows.column("arrival_ns").to_numpy() - self.start_ns, pa.int64())
                yield pa.RecordBatch.from_arrays([moved, *rows.columns[1:]], schema=SCHEMA)
            if high < len(arrival_ns) or self.taken == self.requests:
                return
            number += batch.num_rows

    def _kept(self, rows: pa.RecordBatch, number: int) -> pa.RecordBatch:
        most = rows.num_rows if self.requests is None else self.requests - self.taken
        if self.fraction == 1:
            return rows.slice(0, most)
        places = np.flatnonzero(_marks(rows, number, self.seed) < np.uint64(int(self.fraction * 2**64)))[:most]
        seen = int(places[-1]) + 1 if len(places) == most else rows.num_rows
        self.left_out += seen - len(places)
        return rows.take(pa.array(places))


def _marks(rows: pa.RecordBatch, number: int, seed: int) -> NDArray[np.uint64]:
    """Return the mark of each row: that of its session, else that of its number."""
    found = marks(seed, "fraction", number, rows.num_rows)
    session = rows.column("session")
    if session.null_count < len(session):
        names = session.dictionary_encode()
        by_name = np.array([mark(seed, f"fraction/{name}") for name in names.dictionary.to_pylist()], np.uint64)
        has = session.is_valid().to_numpy(zero_copy_only=False)
        found[has] = by_name[names.indices.fill_null(0).to_numpy()[has]]
    return found
