"""Lengths of the answers that a request wants: the first is `output_tokens`, the others are `sample_tokens`."""

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from simulator.errors import InputError, Problem
from simulator.workload.lengths import Lengths

Counts = NDArray[np.int64]
MOST_DRAWN = 2**28
"""Answers of one batch of requests, so that their lengths fit in memory."""


def draw_further(law: Lengths, random: np.random.Generator, samples: Counts) -> pa.ListArray:
    """Return the lengths of the answers after the first of requests that want so many, drawn in their order."""
    offsets = np.concatenate(([0], np.cumsum(samples - 1)))
    if offsets[-1] > MOST_DRAWN:
        what = f"{len(samples):,} requests want {offsets[-1]:,} answers beside their first: too many to draw"
        raise InputError(Problem(what, path="workload.samples", allowed=f"{MOST_DRAWN:,} in all at most"))
    return pa.ListArray.from_arrays(offsets.astype(np.int32), law.draw(random, int(offsets[-1])))


def longest_answers(first: Counts, further: Any) -> Counts:
    """Return the length of each request's longest answer, of what `output_tokens` and `sample_tokens` have."""
    longest = first.copy()
    rows, lengths = _further(further)
    np.maximum.at(longest, rows, lengths)
    return longest


def mean_answers(first: Counts, further: Any) -> NDArray[np.float64]:
    """Return the mean length of each request's answers, of what `output_tokens` and `sample_tokens` have."""
    rows, lengths = _further(further)
    total, count = first.astype(np.float64), np.ones(len(first))
    np.add.at(total, rows, lengths)
    np.add.at(count, rows, 1)
    return total / count


def _further(column: Any) -> tuple[Counts, Counts]:
    """Return the rows and lengths of all answers after the first that are recorded."""
    counts = column.value_lengths().fill_null(0).to_numpy()
    return np.repeat(np.arange(len(counts)), counts), column.flatten().to_numpy()
