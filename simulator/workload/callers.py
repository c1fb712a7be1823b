"""What callers say of their requests, drawn: tenants, priorities, samples, predicted lengths of answers.

Each comes from its own random stream, row by row, so that none shifts another and batches may be cut anywhere.
Model of a predictor: true length times a lognormal error, as studies of shortest-job-first by predicted length assume.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from simulator.randomness import stream
from simulator.workload.answers import draw_further, mean_answers
from simulator.workload.lengths import Lengths
from simulator.workload.schema import MAX_TOKENS, SCHEMA, make_batch


@dataclass(frozen=True)
class Callers:
    """Laws of what callers say; None leaves what the rows have. Shares need not add up to 1."""

    tenants: Mapping[str, float] | None = None
    priorities: Mapping[int, float] | None = None
    samples: Lengths | None = None
    prediction_error: float | None = None
    """Sigma of the logarithm of predicted over true length; 0 is an oracle."""
    sample_tokens: Lengths | None = None
    """Lengths of the answers after the first of requests that want several."""


def with_callers(batches: Iterable[pa.RecordBatch], seed: int, callers: Callers) -> Iterator[pa.RecordBatch]:
    """Yield canonical batches with the columns drawn that `callers` has laws for, in the place of their own.

    The streams are named "tenants", "priorities", "samples", "sample_tokens" and "prediction". What is predicted is the
    mean of a request's answers.
    """
    tenants, priorities, samples, lengths, errors = (
        stream(seed, name) for name in ("tenants", "priorities", "samples", "sample_tokens", "prediction")
    )
    for batch in batches:
        rows = batch.num_rows
        columns: dict[str, Any] = dict(zip(SCHEMA.names, batch.columns, strict=True))
        if callers.tenants is not None:
            columns["tenant"] = pa.array(sorted(callers.tenants)).take(
                pa.array(_chosen(tenants, callers.tenants, rows))
            )
        if callers.priorities is not None:
            chosen = _chosen(priorities, callers.priorities, rows)
            columns["priority"] = np.array(sorted(callers.priorities), np.int32)[chosen]
        if callers.samples is not None:
            columns["samples"] = pa.array(callers.samples.draw(samples, rows), pa.int32())
            columns["sample_tokens"] = pa.nulls(rows, SCHEMA.field("sample_tokens").type)  # they were of other answers
        if callers.sample_tokens is not None:
            wanted = columns["samples"].fill_null(1).to_numpy().astype(np.int64)
            columns["sample_tokens"] = draw_further(callers.sample_tokens, lengths, wanted)
        if callers.prediction_error is not None:
            factors = np.exp(callers.prediction_error * errors.standard_normal(rows))
            true = mean_answers(batch.column("output_tokens").to_numpy(), columns["sample_tokens"])
            predicted = np.rint(true * factors)
            columns["predicted_tokens"] = np.clip(predicted, 1, MAX_TOKENS).astype(np.int64)
        yield make_batch(columns, rows)


def _chosen(random: np.random.Generator, shares: Mapping[Any, float], rows: int) -> NDArray[np.int64]:
    """Return which of the shares, in the order of their names, each of the next rows falls into.

    The order in which they are written means nothing, as of any mapping: a scenario's digest does not cover it.
    """
    edges = np.cumsum([shares[name] for name in sorted(shares)])
    return np.searchsorted(edges / edges[-1], random.random(rows), side="right")
