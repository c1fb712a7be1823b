"""Means with intervals, differences in pairs, warm-up: what can be said of figures that chance has a part in.

Sources: Student's t for replications and batch means (Law, Simulation Modeling and Analysis, ch. 9); MSER-5 (White
1997).
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

MSER_BATCH = 5
"""Observations of one of the means that MSER-5 looks at."""


class Interval(NamedTuple):
    """A mean and the interval that covers the true one with the given confidence; infinite with one observation."""

    mean: float
    low: float
    high: float
    observations: int

    @property
    def half(self) -> float:
        """Half the width of the interval."""
        return (self.high - self.low) / 2

    @property
    def significant(self) -> bool:
        """Whether the interval leaves zero out."""
        return self.low > 0 or self.high < 0


def interval(values: Sequence[float] | npt.NDArray[np.float64], confidence: float = 0.95) -> Interval:
    """Return the mean of independent observations and its interval by Student's t; at least one is needed."""
    found = np.asarray(values, dtype=np.float64)
    count, mean = len(found), float(found.mean())
    if count < 2:
        return Interval(mean, -math.inf, math.inf, count)
    from scipy.special import stdtrit

    error = _error(found)
    half = float(stdtrit(count - 1, 0.5 + confidence / 2)) * error if error else 0.0
    return Interval(mean, mean - half, mean + half, count)


def chance(values: Sequence[float] | npt.NDArray[np.float64]) -> float:
    """Return how likely a mean as far from zero is by chance alone, on both sides, by Student's t; two are needed."""
    from scipy.special import stdtr

    found = np.asarray(values, dtype=np.float64)
    mean, error = float(found.mean()), _error(found)
    if not error:
        return 0.0 if mean else 1.0
    return float(2 * stdtr(len(found) - 1, -abs(mean) / error))


def _error(values: npt.NDArray[np.float64]) -> float:
    """Return the standard error of the mean; zero, not the mean's rounding, when all are equal."""
    return float(values.std(ddof=1)) / math.sqrt(len(values)) if values.min() < values.max() else 0.0


def paired(
    first: Sequence[float] | npt.NDArray[np.float64],
    second: Sequence[float] | npt.NDArray[np.float64],
    confidence: float = 0.95,
) -> Interval:
    """Return the mean of `second` less `first` in pairs that share their random numbers, with its interval."""
    return interval(np.asarray(second, dtype=np.float64) - np.asarray(first, dtype=np.float64), confidence)


def batches(count: int, batch_count: int) -> list[slice]:
    """Return slices that cut so many observations in order into batches of sizes that differ by one at most."""
    ends = [count * k // batch_count for k in range(batch_count + 1)]
    return [slice(begin, end) for begin, end in pairwise(ends)]


def warm_up(values: Sequence[float] | npt.NDArray[np.float64]) -> int:
    """Return how many of the first observations to leave out, by MSER-5: what makes the mean of the rest most certain.

    Never more than half of them: a series whose best cut is later has not settled, and no cut mends that.
    """
    found = np.asarray(values, dtype=np.float64)
    count = len(found) // MSER_BATCH
    if count < 4:
        return 0
    means = found[: count * MSER_BATCH].reshape(count, MSER_BATCH).mean(axis=1)
    # of all suffixes at once: sums of the deviations from the whole mean, so that squares do not cancel
    away = means - means.mean()
    left = np.arange(count, 0, -1)
    sums, squares = np.cumsum(away[::-1])[::-1], np.cumsum((away**2)[::-1])[::-1]
    errors = np.maximum(squares - sums**2 / left, 0.0) / left**2
    return int(np.argmin(errors[: count // 2 + 1])) * MSER_BATCH
