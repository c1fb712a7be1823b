"""Many decode steps as one: a step's length is affine in the context, which grows by the batch: closed forms.

Times inside an engine are whole ticks of 2^-20 ns: sums are exact, and cutting a jump in two changes nothing.
"""

from bisect import bisect_left
from collections.abc import Callable
from math import sqrt
from typing import Any, Protocol

import numpy as np

from simulator.units import TICK_BITS, TICKS_PER_NS


class DecodeCost(Protocol):
    """What a jump needs of a cost model: the line of a step over the context, for one batch size."""

    def decode(self, batch: int, context: float) -> tuple[float, float, float]:
        """Return (fixed_ns, per_context_token_ns, the context up to which they hold) at `context` tokens in all."""


class StepTicks:
    """Decode step coefficients in ticks, remembered per batch size and stretch of contexts."""

    __slots__ = ("_cost", "_known")

    def __init__(self, cost: DecodeCost) -> None:
        self._cost = cost
        self._known: dict[int, tuple[list[float], list[tuple[float, int, int]]]] = {}  # by batch: ends, and lines

    def __call__(self, batch: int, context: int) -> tuple[float, int, int]:
        """Return (last context, fixed, per token of context) in ticks of a step of `batch` requests at `context`."""
        known = self._known.get(batch)
        if known is None:
            known = self._known[batch] = [], []
        ends, lines = known
        place = bisect_left(ends, context)
        if place < len(ends):
            return lines[place]
        start = ends[-1] if ends else -1.0
        while start < context:  # every line in between too, so that the list stays in order
            fixed_ns, slope_ns, until = self._cost.decode(batch, min(context, start + 1))
            ends.append(until)
            lines.append((until, round(fixed_ns * TICKS_PER_NS), round(slope_ns * TICKS_PER_NS)))
            start = until
        return lines[-1]


def ticks_of(lengths_ns: Any) -> Any:
    """Return lengths as whole ticks."""
    return np.rint(np.asarray(lengths_ns) * TICKS_PER_NS).astype(np.int64)


class Iterations:
    """`steps` decode iterations from tick `start` to tick `end`, the first of `first` ticks, `batch` tokens in each."""

    __slots__ = ("batch", "end", "first", "start", "steps")

    start: int
    end: int
    first: int
    steps: int
    batch: int

    def elapsed(self, steps: int) -> int:
        """Return the ticks that the first `steps` iterations take."""
        raise NotImplementedError

    def tokens(self, steps: int) -> int:
        """Return the tokens that the first `steps` iterations make."""
        return steps * self.batch

    def cut(self, steps: int) -> None:
        """End after `steps` iterations."""
        self.steps = steps
        self.end = self.start + self.elapsed(steps)


class Jump(Iterations):
    """`steps` decode iterations of one batch, beginning at `start` ticks; the batch and its slope stay as they are.

    Step i (from 1) lasts fixed + slope x (context + batch x i) ticks: every member first appends the token it feeds.
    That is `first` + (i - 1) x `growth`, an arithmetic progression.
    """

    __slots__ = ("growth",)

    def __init__(self, start: int, steps: int, batch: int, context: int, fixed: int, slope: int) -> None:
        self.start = start
        self.steps = steps
        self.batch = batch
        self.growth = slope * batch
        self.first = fixed + slope * (context + batch)
        self.end = start + steps * self.first + self.growth * (steps * (steps - 1) // 2)

    def elapsed(self, steps: int) -> int:
        """Return the ticks that the first `steps` iterations take."""
        return steps * self.first + self.growth * (steps * (steps - 1) // 2)

    def length(self, step: int) -> int:
        """Return the ticks that iteration `step` (from 1) takes."""
        return self.first + self.growth * (step - 1)

    @property
    def end_ns(self) -> int:
        """The nanosecond at which the last iteration ends."""
        return self.end >> TICK_BITS

    def steps_by(self, now_ns: int) -> int:
        """Return the first iteration that ends at `now_ns` or later: the inverse of the sum, at least 1."""
        need = (now_ns << TICK_BITS) - self.start
        if need <= 0:
            return 1
        first, growth, most = self.first, self.growth, self.steps
        linear = first - growth / 2
        root = linear + sqrt(linear * linear + 2 * growth * need)
        steps = int(2 * need / root) if root else most
        if steps > most:
            steps = most
        elif steps < 1:
            steps = 1
        over = steps * first + growth * (steps * (steps - 1) // 2) - need
        while over < 0 and steps < most:  # the root is a float: settle the last step or two in integers
            over += first + growth * steps
            steps += 1
        while steps > 1 and over >= (last := first + growth * (steps - 1)):
            steps -= 1
            over -= last
        return steps

    def report_rest(self, gap: Callable[[int, int], None], gaps: Callable[[int, int, int, int], None]) -> None:
        """Report the lengths of all iterations but the first: `gaps(first_ns, last_ns, iterations, tokens of each)`."""
        gaps(self.length(2) >> TICK_BITS, self.length(self.steps) >> TICK_BITS, self.steps - 1, self.batch)


class SummedJump(Iterations):
    """A jump whose iterations have any lengths: of ranks that step together, now one is the slowest, now another."""

    __slots__ = ("_ends",)

    def __init__(self, start: int, lengths: Any, batch: int) -> None:
        """`lengths` are ticks, an array of integers."""
        self.start = start
        self.batch = batch
        self._ends = np.cumsum(lengths).tolist()
        self.steps = len(self._ends)
        self.first = self._ends[0]
        self.end = start + self._ends[-1]

    def elapsed(self, steps: int) -> int:
        """Return the ticks that the first `steps` iterations take."""
        return int(self._ends[steps - 1]) if steps else 0

    def length(self, step: int) -> int:
        """Return the ticks that iteration `step` (from 1) takes."""
        return self.elapsed(step) - self.elapsed(step - 1)

    def steps_by(self, now_ns: int) -> int:
        """Return the first iteration that ends at `now_ns` or later, at least 1."""
        return min(self.steps, bisect_left(self._ends, (now_ns << TICK_BITS) - self.start) + 1)

    def report_rest(self, gap: Callable[[int, int], None], gaps: Callable[[int, int, int, int], None]) -> None:
        """Report the lengths of all iterations but the first, one by one; see `Jump.report_rest`."""
        for step in range(2, self.steps + 1):
            gap(self.length(step) >> TICK_BITS, self.batch)


class SpeculativeJump(SummedJump):
    """A jump whose iterations make any number of tokens: `tokens` of them in each, for `batch` requests."""

    __slots__ = ("_made",)

    def __init__(self, start: int, lengths: Any, batch: int, tokens: Any) -> None:
        super().__init__(start, lengths, batch)
        self._made = np.cumsum(tokens).tolist()

    def tokens(self, steps: int) -> int:
        """Return the tokens that the first `steps` iterations make."""
        return int(self._made[steps - 1]) if steps else 0
