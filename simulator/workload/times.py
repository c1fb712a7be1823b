"""Laws of durations in whole nanoseconds: how long users think between two turns of a session."""

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

_MOST_NS = 2**53  # 104 days; the last float of which all smaller whole numbers are floats too

Durations = NDArray[np.int64]


class Times(Protocol):
    """A law of durations."""

    def draw(self, rng: np.random.Generator, n: int) -> Durations:
        """Return `n` durations in ns."""


def _positive(value_ns: int, what: str) -> None:
    if isinstance(value_ns, bool) or not 0 < value_ns <= _MOST_NS:
        raise ValueError(f"{what} must be more than zero and at most 104 days, not {value_ns!r} ns")


def _whole(values: NDArray[np.float64]) -> Durations:
    return np.rint(np.minimum(values, _MOST_NS)).astype(np.int64)


@dataclass(frozen=True)
class ConstantTime:
    """Always `value_ns`."""

    value_ns: int

    def __post_init__(self) -> None:
        _positive(self.value_ns, "value")

    def draw(self, rng: np.random.Generator, n: int) -> Durations:
        """Return `n` times the value; `rng` is not used."""
        return np.full(n, self.value_ns, np.int64)


@dataclass(frozen=True)
class ExponentialTime:
    """Exponential of a mean."""

    mean_ns: int

    def __post_init__(self) -> None:
        _positive(self.mean_ns, "mean")

    def draw(self, rng: np.random.Generator, n: int) -> Durations:
        """Return `n` durations."""
        return _whole(rng.exponential(self.mean_ns, n))


@dataclass(frozen=True)
class LognormalTime:
    """A lognormal with the given median and sigma of the logarithm."""

    median_ns: int
    sigma: float

    def __post_init__(self) -> None:
        _positive(self.median_ns, "median")
        if not (math.isfinite(self.sigma) and self.sigma >= 0):
            raise ValueError(f"sigma must be zero or more and finite, not {self.sigma!r}")

    def draw(self, rng: np.random.Generator, n: int) -> Durations:
        """Return `n` durations."""
        return _whole(rng.lognormal(math.log(self.median_ns), self.sigma, n))
