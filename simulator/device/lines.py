"""A duration as a chain of straight lines over the context, its knots found as they are asked for; exact at the knots.

Model: time of attention grows with the context, in a line but for the corners of the roofline and of tables; knots are
a quarter of an octave apart where it bends and six octaves where it is straight.
"""

from bisect import bisect_left
from collections.abc import Callable
from math import inf
from typing import Any, NamedTuple

KNOTS_PER_OCTAVE = 4
"""Contexts at which a duration is evaluated where it is no straight line, per factor of two."""
FAR = 64
"""Factor to the context at which a line that may be straight is looked at again, and ends."""


class Line(NamedTuple):
    """A duration of fixed + slope * context ns, for contexts up to `until` tokens in all; beyond, ask anew."""

    fixed_ns: float
    per_context_token_ns: float
    until: float = inf

    def at(self, context: float) -> float:
        """Return the duration at a context, in ns."""
        return self.fixed_ns + self.per_context_token_ns * context


class Lines:
    """The lines of one function of the context; the first knot is at `first` tokens."""

    __slots__ = ("_ends", "_evaluate", "_first", "_lines", "_table", "_tries")

    def __init__(self, evaluate: Callable[[float], float], first: float) -> None:
        self._evaluate = evaluate
        self._first = first
        self._lines: list[Line] = []
        self._ends: list[float] = []
        self._tries = 2  # knots from which it is looked whether a straight line begins there
        self._table: Any = None  # the lines' ends and coefficients as columns

    def at(self, context: float) -> Line:
        """Return the line that holds at a context."""
        while not self._ends or context > self._ends[-1]:
            line = self._next()
            self._lines.append(line)
            self._ends.append(line.until)
            self._table = None
        return self._lines[bisect_left(self._ends, context)]

    def values(self, contexts: Any) -> Any:
        """Return the durations at an array of contexts, each of zero or more."""
        import numpy as np  # only here: a scenario is read without

        self.at(float(np.max(contexts)))
        if self._table is None:
            self._table = np.array(self._lines).T
        fixed, slope, ends = self._table
        index = np.searchsorted(ends, contexts)
        return fixed[index] + slope[index] * contexts

    def _next(self) -> Line:
        """Return the line from the end of the last one on, to the next knot or, where it is straight, far beyond."""
        lines, evaluate = self._lines, self._evaluate
        start = lines[-1].until if lines else 0.0
        here = lines[-1].at(start) if lines else evaluate(0.0)
        end = max(self._first, start * 2 ** (1 / KNOTS_PER_OCTAVE))
        there = evaluate(end)
        slope = (there - here) / (end - start)
        straight = self._tries > 0 and self._goes_on(end, there, slope)
        self._tries = 2 if straight else self._tries - 1
        return Line(here - slope * start, slope, FAR * end if straight else end)

    def _goes_on(self, end: float, there: float, slope: float) -> bool:
        """Return whether the line through (end, there) still holds far beyond: no knot is needed up to there."""
        far = self._evaluate(FAR * end)
        return abs(there + slope * (FAR - 1) * end - far) <= 1e-9 * far
