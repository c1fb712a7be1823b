"""Smaller traces from a trace: a window of time, a random share of the requests, the first of them; order is kept."""

from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa

from simulator.workload.schema import SCHEMA


def window(batches: Iterable[pa.RecordBatch], start_ns: int, duration_ns: int | None) -> Iterator[pa.RecordBatch]:
    """Yield the rows that arrive in [start, start + duration), or from start on, with times that count from start."""
    for batch in batches:
        arrival_ns = batch.column("arrival_ns").to_numpy()
        low = int(np.searchsorted(arrival_ns, start_ns))
        high = len(arrival_ns) if duration_ns is None else int(np.searchsorted(arrival_ns, start_ns + duration_ns))
        part = batch.slice(low, max(high - low, 0))
        if part.num_rows:
            moved = pa.array(arrival_ns[low:high] - start_ns, pa.int64())
            yield pa.RecordBatch.from_arrays([moved, *part.columns[1:]], schema=SCHEMA)
        if high < len(arrival_ns):
            return


def thin(batches: Iterable[pa.RecordBatch], fraction: float, rng: np.random.Generator) -> Iterator[pa.RecordBatch]:
    """Yield each row with probability `fraction`, independently: a thinned Poisson process stays Poisson."""
    for batch in batches:
        yield batch.filter(pa.array(rng.random(batch.num_rows) < fraction))


def first_requests(batches: Iterable[pa.RecordBatch], requests: int) -> Iterator[pa.RecordBatch]:
    """Yield the first `requests` rows, fewer when there are not so many."""
    for batch in batches:
        yield batch.slice(0, requests)
        requests -= min(batch.num_rows, requests)
        if not requests:
            return
