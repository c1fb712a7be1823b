"""Laws of token counts: whole numbers of 1 or more, for prompts and for outputs.

A `max` clips: what would be longer becomes exactly `max`, so that the number of requests stays and the probability of
`max` is the tail above it (Lognormal.mass_at_max says how much).
"""

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import NormalDist
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.int64]
_MAX_TOKENS = 2**31 - 1


class Lengths(Protocol):
    """A law of token counts."""

    def draw(self, rng: np.random.Generator, n: int) -> Counts:
        """Return `n` token counts."""


def _count(value: int, what: str) -> None:
    if isinstance(value, bool) or value != int(value) or not 1 <= value <= _MAX_TOKENS:
        raise ValueError(f"{what} must be a whole number of tokens between 1 and {_MAX_TOKENS}, not {value!r}")


@dataclass(frozen=True)
class Fixed:
    """Every request has `value` tokens."""

    value: int

    def __post_init__(self) -> None:
        _count(self.value, "value")

    def draw(self, rng: np.random.Generator, n: int) -> Counts:
        """Return `n` times the value; `rng` is not used."""
        return np.full(n, self.value, np.int64)


@dataclass(frozen=True)
class Uniform:
    """Whole numbers from `low` to `high`, both included, equally likely."""

    low: int
    high: int

    def __post_init__(self) -> None:
        _count(self.low, "low")
        _count(self.high, "high")
        if self.low > self.high:
            raise ValueError(f"low must not be above high, not {self.low!r} and {self.high!r}")

    def draw(self, rng: np.random.Generator, n: int) -> Counts:
        """Return `n` counts."""
        return rng.integers(self.low, self.high, n, dtype=np.int64, endpoint=True)


@dataclass(frozen=True)
class Lognormal:
    """A lognormal with the given median and sigma of the logarithm, rounded to whole tokens, within 1 and `max`."""

    median: float
    sigma: float
    max: int = _MAX_TOKENS

    def __post_init__(self) -> None:
        _count(self.max, "max")
        if not 1 <= self.median <= self.max:
            raise ValueError(f"median must be between 1 and max ({self.max}), not {self.median!r}")
        if not (math.isfinite(self.sigma) and self.sigma >= 0):
            raise ValueError(f"sigma must be zero or more and finite, not {self.sigma!r}")

    @property
    def mass_at_max(self) -> float:
        """Return the probability that a count is exactly `max` because it rounds to `max` or more."""
        if self.sigma == 0:
            return float(self.median >= self.max - 0.5)
        return 1 - NormalDist().cdf(math.log((self.max - 0.5) / self.median) / self.sigma)

    def draw(self, rng: np.random.Generator, n: int) -> Counts:
        """Return `n` counts."""
        values = rng.lognormal(math.log(self.median), self.sigma, n)
        return np.rint(np.clip(values, 1, self.max)).astype(np.int64)


@dataclass(frozen=True)
class Exponential:
    """An exponential rounded up to whole tokens: the geometric law on 1, 2, ... whose mean is exactly `mean`."""

    mean: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.mean) and 1 <= self.mean <= _MAX_TOKENS / 64):
            raise ValueError(f"mean must be between 1 and {_MAX_TOKENS // 64} tokens, not {self.mean!r}")

    def draw(self, rng: np.random.Generator, n: int) -> Counts:
        """Return `n` counts; the bound on `mean` keeps them below MAX_TOKENS, but for a chance of e**-64."""
        return np.minimum(rng.geometric(1 / self.mean, n), _MAX_TOKENS).astype(np.int64)


@dataclass(frozen=True)
class Empirical:
    """Counts drawn with replacement from one column of a canonical trace, `prompt_tokens` or `output_tokens`.

    It is the marginal law: two Empirical laws of the same trace are independent, so what links the prompt of a request
    to its output is lost; replay the trace itself to keep it.
    """

    path: str
    column: str

    def __post_init__(self) -> None:
        if self.column not in ("prompt_tokens", "output_tokens"):
            raise ValueError(f"column must be prompt_tokens or output_tokens, not {self.column!r}")

    @cached_property
    def _table(self) -> tuple[Counts, Counts]:
        from simulator.workload.profile import Histogram  # pyarrow is slow to import and needed only here
        from simulator.workload.trace import open_trace

        histogram = Histogram()
        for batch in open_trace(Path(self.path)).batches():
            histogram.add(batch.column(self.column).to_numpy())
        return histogram.table()

    def draw(self, rng: np.random.Generator, n: int) -> Counts:
        """Return `n` counts; the first call reads the trace and raises InputError when it is not one."""
        values, counts = self._table
        cumulative = np.cumsum(counts)
        return values[np.searchsorted(cumulative, rng.integers(0, cumulative[-1], n), side="right")]


LENGTHS: dict[str, type[Lognormal] | type[Fixed] | type[Uniform] | type[Exponential] | type[Empirical]] = {
    "lognormal": Lognormal,
    "constant": Fixed,
    "uniform": Uniform,
    "exponential": Exponential,
    "empirical": Empirical,
}
