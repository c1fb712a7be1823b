"""Columns of a run's tables, in batches: numbers with -1 for null, texts as codes of an index that grows."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from simulator.results.run import Run

BATCH_ROWS = 16384  # a batch's messages stay in the processor's cache
NULL = -1

Integers = npt.NDArray[np.int64]
Index = dict[str, int]
"""Codes of texts, from 0 in order of appearance."""


class Span(NamedTuple):
    """Time from one moment to another, nanoseconds since the run's start."""

    start_ns: int
    end_ns: int

    def clip(self, times_ns: Integers) -> Integers:
        """Return times moved into the span."""
        return np.clip(times_ns, self.start_ns, self.end_ns)


class Batch:
    """Some rows of a table: those from `first` on."""

    def __init__(self, batch: Any, first: int) -> None:
        self._batch = batch
        self.rows = slice(first, first + len(batch))

    def __len__(self) -> int:
        return len(self._batch)

    def integers(self, column: str) -> Integers:
        """Return whole numbers, NULL where there is none."""
        array = self._batch.column(column)
        numbers: Integers = (array.fill_null(NULL) if array.null_count else array).to_numpy().astype(np.int64)
        return numbers

    def doubles(self, column: str) -> npt.NDArray[np.float64]:
        """Return numbers of any kind as doubles."""
        numbers: npt.NDArray[np.float64] = self._batch.column(column).to_numpy().astype(np.float64)
        return numbers

    def bools(self, column: str) -> npt.NDArray[np.bool_]:
        """Return truths."""
        truths: npt.NDArray[np.bool_] = self._batch.column(column).to_numpy(zero_copy_only=False)
        return truths

    def texts(self, column: str) -> list[str | None]:
        """Return texts."""
        texts: list[str | None] = self._batch.column(column).to_pylist()
        return texts

    def codes(self, column: str, index: Index) -> Integers:
        """Return the codes of texts, NULL where there is none; `index` takes in those that it does not know."""
        array = self._batch.column(column).dictionary_encode()
        codes = np.array([index.setdefault(word, len(index)) for word in array.dictionary.to_pylist()] + [NULL])
        found: Integers = codes[array.indices.fill_null(len(codes) - 1).to_numpy()]
        return found


def batches(run: Run, table: str, columns: Sequence[str]) -> Iterator[Batch]:
    """Yield the rows of a table, nothing when the run has no such table."""
    import pyarrow.parquet as pq

    entry = run.manifest["tables"].get(table)
    if entry is None:
        return
    first = 0
    with pq.ParquetFile(run.path / entry["file"]) as file:
        for batch in file.iter_batches(BATCH_ROWS, columns=list(columns), use_threads=False):
            yield Batch(batch, first)
            first += len(batch)
