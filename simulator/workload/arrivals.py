"""Arrival processes: endless streams of arrival times in integer nanoseconds from time 0.

Every process draws in blocks of BLOCK numbers, so that the times do not depend on how many of them are asked for.
Sources: Gamma renewal and MMPP as in Fischer and Meier-Hellstern, "The Markov-modulated Poisson process (MMPP)
cookbook" (1993); thinning by Lewis and Shedler (1979).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from simulator.errors import InputError
from simulator.units import NS_PER_S

BLOCK = 8_192
_CHANGES_PER_ARRIVAL = 100  # bounds the work of a block; the burstiness is long gone by then
_END_NS = float(2**63 - 1024)  # the last float below 2**63

Times = NDArray[np.int64]
Floats = NDArray[np.float64]


class Arrivals(Protocol):
    """An arrival process."""

    def times(self, rng: np.random.Generator) -> Iterator[Times]:
        """Yield arrays of arrival times in ns, never decreasing, without end."""


def _positive(value: float, what: str) -> None:
    if isinstance(value, bool) or not math.isfinite(value) or value <= 0:
        raise ValueError(f"{what} must be more than zero and finite, not {value!r}")


def _absolute(base_ns: int, offset_ns: Floats) -> Times:
    """Return base + offset in whole ns; offsets span one block, so floats keep the ns of blocks up to 104 days."""
    if base_ns + offset_ns[-1] >= _END_NS:
        raise InputError("the arrivals run past 292 years, the end of 64-bit nanoseconds; raise the rate")
    return base_ns + np.rint(offset_ns).astype(np.int64)


def _renewal(gaps_ns: Iterator[Floats]) -> Iterator[Times]:
    base_ns, carry_ns = 0, 0.0
    for gaps in gaps_ns:
        offset = carry_ns + np.cumsum(gaps)
        yield _absolute(base_ns, offset)
        whole = math.floor(offset[-1])
        base_ns, carry_ns = base_ns + whole, float(offset[-1] - whole)


@dataclass(frozen=True)
class Constant:
    """Evenly spaced arrivals: the k-th (from 0) at k / rate."""

    rate_per_s: float

    def __post_init__(self) -> None:
        _positive(self.rate_per_s, "rate")

    def times(self, rng: np.random.Generator) -> Iterator[Times]:
        """Yield the times; `rng` is not used."""
        period_ns = NS_PER_S / self.rate_per_s
        first = 0
        while True:
            yield _absolute(0, np.arange(first, first + BLOCK, dtype=np.float64) * period_ns)
            first += BLOCK


@dataclass(frozen=True)
class Poisson:
    """A Poisson process: exponential gaps, CV 1."""

    rate_per_s: float

    def __post_init__(self) -> None:
        _positive(self.rate_per_s, "rate")

    def times(self, rng: np.random.Generator) -> Iterator[Times]:
        """Yield the times."""
        mean_ns = NS_PER_S / self.rate_per_s
        return _renewal(rng.exponential(mean_ns, BLOCK) for _ in iter(int, 1))


@dataclass(frozen=True)
class Gamma:
    """A renewal process of Gamma gaps with mean 1 / rate and coefficient of variation `cv`; bursty above 1, even below.

    It begins with a whole gap after time 0.
    """

    rate_per_s: float
    cv: float

    def __post_init__(self) -> None:
        _positive(self.rate_per_s, "rate")
        _positive(self.cv, "cv")

    def times(self, rng: np.random.Generator) -> Iterator[Times]:
        """Yield the times."""
        shape = self.cv**-2
        scale_ns = NS_PER_S / self.rate_per_s / shape
        return _renewal(rng.gamma(shape, scale_ns, BLOCK) for _ in iter(int, 1))


@dataclass(frozen=True)
class Mmpp:
    """A Markov-modulated Poisson process: states in a cycle, each with its rate and exponential dwell of a mean.

    The first state is drawn in proportion to the dwells, so the process is stationary from time 0 (for two states the
    cycle is the general case). A rate may be zero, not all of them.
    """

    rates_per_s: tuple[float, ...]
    dwell_ns: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.rates_per_s) != len(self.dwell_ns) or len(self.rates_per_s) < 2:
            raise ValueError("mmpp needs two states or more, and as many rates as dwells")
        for dwell in self.dwell_ns:
            _positive(dwell, "dwell")
        for rate in self.rates_per_s:
            if rate != 0:
                _positive(rate, "rate")
        if not any(self.rates_per_s):
            raise ValueError("mmpp needs at least one rate above zero")
        if self.mean_rate_per_s * sum(self.dwell_ns) * _CHANGES_PER_ARRIVAL < len(self.dwell_ns) * NS_PER_S:
            raise ValueError(
                f"mmpp changes state over {_CHANGES_PER_ARRIVAL} times per arrival; that is a plain poisson"
            )

    @property
    def mean_rate_per_s(self) -> float:
        """Return the long-run rate, the mean of the rates weighted by the dwells."""
        weighted = sum(rate * dwell for rate, dwell in zip(self.rates_per_s, self.dwell_ns, strict=True))
        return weighted / sum(self.dwell_ns)

    def times(self, rng: np.random.Generator) -> Iterator[Times]:
        """Yield the times: a unit Poisson process sent through the inverse of the integrated rate."""
        dwell_ns = np.array(self.dwell_ns, float)
        rate_per_ns = np.array(self.rates_per_s, float) / NS_PER_S
        state = int(rng.choice(len(dwell_ns), p=dwell_ns / dwell_ns.sum()))
        base_ns, edges_ns, mass, done = 0, np.zeros(1), np.zeros(1), 0.0
        while True:
            target = done + np.cumsum(rng.exponential(1.0, BLOCK))
            while mass[-1] <= target[-1]:
                _absolute(base_ns, edges_ns)  # the search ends where the clock does
                cycle = (state + np.arange(BLOCK)) % len(dwell_ns)
                state = (state + BLOCK) % len(dwell_ns)
                stay_ns = rng.exponential(1.0, BLOCK) * dwell_ns[cycle]
                edges_ns = np.append(edges_ns, edges_ns[-1] + np.cumsum(stay_ns))
                mass = np.append(mass, mass[-1] + np.cumsum(stay_ns * rate_per_ns[cycle]))
            yield _absolute(base_ns, np.interp(target, mass, edges_ns))
            here = int(np.searchsorted(mass, target[-1], side="right")) - 1
            whole = math.floor(edges_ns[here])
            base_ns, done = base_ns + whole, float(target[-1] - mass[here])
            edges_ns, mass = edges_ns[here:] - whole, mass[here:] - mass[here]


@dataclass(frozen=True)
class Diurnal:
    """A Poisson process whose rate swings as a sine: rate (1 + (peak_to_mean - 1) sin(2 pi t / period)).

    It begins at the mean, rising; `peak_to_mean` is between 1 (plain Poisson) and 2 (the trough is silent).
    """

    rate_per_s: float
    peak_to_mean: float
    period_ns: int

    def __post_init__(self) -> None:
        _positive(self.rate_per_s, "rate")
        _positive(self.period_ns, "period")
        if not 1 <= self.peak_to_mean <= 2:
            raise ValueError(f"peak_to_mean must be between 1 and 2, not {self.peak_to_mean!r}")

    def times(self, rng: np.random.Generator) -> Iterator[Times]:
        """Yield the times: a Poisson process at the peak rate, each arrival kept with probability rate(t) / peak."""
        swing = self.peak_to_mean - 1
        peak = Poisson(self.rate_per_s * self.peak_to_mean)
        for candidates in peak.times(rng):
            phase = 2 * np.pi * (candidates % self.period_ns) / self.period_ns
            keep = rng.random(BLOCK) * self.peak_to_mean < 1 + swing * np.sin(phase)
            yield candidates[keep]


@dataclass(frozen=True)
class ClosedLoop:
    """So many clients, each of which sends its next request when the one before has ended; all begin at time 0.

    Here every request is ready at once; the front of the cluster lets no more than `clients` of them in.
    """

    clients: int

    def times(self, rng: np.random.Generator) -> Iterator[Times]:
        """Yield zeros; `rng` is not used."""
        while True:
            yield np.zeros(BLOCK, dtype=np.int64)


ARRIVALS: dict[str, type[Constant | Poisson | Gamma | Mmpp | Diurnal]] = {
    "constant": Constant,
    "poisson": Poisson,
    "gamma": Gamma,
    "mmpp": Mmpp,
    "diurnal": Diurnal,
}
