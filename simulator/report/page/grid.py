"""Time cut into equal windows, and quantities brought onto them: counts, integrals, quantiles by window.

Quantiles are nearest-rank (type 1 of Hyndman and Fan 1996), as everywhere in a summary: values that were observed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Integers = npt.NDArray[np.int64]
    Reals = npt.NDArray[np.float64]

MOST_WINDOWS = 240
CURVE_POINTS = 400


@dataclass(frozen=True, slots=True)
class Grid:
    """`count` windows of `length_ns` from 0; the last goes to `end_ns`, so it may be shorter or longer."""

    length_ns: int
    count: int
    end_ns: int

    @property
    def middles_ns(self) -> "Reals":
        """The middle of each window."""
        return self.starts_ns + self.lengths_ns / 2

    @property
    def starts_ns(self) -> "Integers":
        """The start of each window."""
        import numpy as np

        return np.arange(self.count, dtype=np.int64) * self.length_ns

    @property
    def lengths_ns(self) -> "Integers":
        """The length of each window."""
        import numpy as np

        lengths = np.full(self.count, self.length_ns, dtype=np.int64)
        lengths[-1] = max(self.end_ns - (self.count - 1) * self.length_ns, 1)
        return lengths

    def window_of(self, times_ns: "Integers") -> "Integers":
        """Return the window of each time; the end of the run belongs to the last."""
        import numpy as np

        found: Integers = np.clip(times_ns // self.length_ns, 0, self.count - 1)
        return found


def grid_over(end_ns: int, windows: int = MOST_WINDOWS, unit_ns: int = 1) -> Grid:
    """Return at most `windows` windows over [0, end_ns], each 1, 2 or 5 times a power of ten of `unit_ns`.

    What is left at the end is a window of its own from half the length on, and part of the last one below that.
    """
    windows = max(1, min(windows, MOST_WINDOWS))
    scale = 1
    while True:
        for digit in (1, 2, 5):
            length_ns = digit * scale * unit_ns
            count = max(1, (2 * end_ns + length_ns) // (2 * length_ns))
            if count <= windows:
                return Grid(length_ns, count, end_ns)
        scale *= 10


def counted(times_ns: "Integers", grid: Grid) -> "Integers":
    """Return how many of the times fall into each window."""
    import numpy as np

    return np.bincount(grid.window_of(times_ns), minlength=grid.count)


@dataclass(frozen=True, slots=True)
class Pieces:
    """Intervals cut at the ends of windows: the row that each piece is of, its window and its length."""

    row: "Integers"
    window: "Integers"
    length_ns: "Integers"


def cut(start_ns: "Integers", end_ns: "Integers", grid: Grid) -> Pieces:
    """Cut the intervals [start, end) at the ends of the windows; a row without length is one piece of length zero."""
    import numpy as np

    first = grid.window_of(start_ns)
    last = np.maximum(grid.window_of(end_ns - 1), first)
    spans = last - first + 1
    row = np.repeat(np.arange(len(start_ns), dtype=np.int64), spans)
    before = np.repeat(np.cumsum(spans) - spans, spans)
    window = first[row] + np.arange(len(row), dtype=np.int64) - before
    left = np.maximum(start_ns[row], window * grid.length_ns)
    right = np.minimum(end_ns[row], (grid.starts_ns + grid.lengths_ns)[window])
    return Pieces(row, window, np.maximum(right - left, 0))


def summed(keys: "Integers", weights: "Reals", size: int) -> "Reals":
    """Return the sum of the weights of each key from 0 to `size` - 1."""
    import numpy as np

    found: Reals = np.bincount(keys, weights=weights, minlength=size).astype(np.float64)
    return found


def ratio(part: "Reals", whole: "Reals") -> "Reals":
    """Return part / whole, and NaN where whole is zero."""
    import numpy as np

    found: Reals = np.divide(part, whole, out=np.full(np.shape(part), np.nan), where=np.asarray(whole) > 0)
    return found


def distribution(values: "Integers") -> tuple["Integers", "Reals"]:
    """Return at most 400 points of the empirical distribution: values and the share at or below each.

    Every point lies on the distribution itself; the upper hundredth gets points of its own, down to 1 in 10 million.
    """
    import numpy as np

    count = len(values)
    if count <= CURVE_POINTS:
        ordered = np.sort(values)
        return ordered, np.arange(1, count + 1) / max(count, 1)
    tail = 1 - np.logspace(-2, -7, 80)
    shares = np.concatenate([np.linspace(0, 0.99, CURVE_POINTS - 81), tail, [1.0]])
    ranks = np.unique(np.clip(np.ceil(shares * count).astype(np.int64), 1, count))
    return np.partition(values, ranks - 1)[ranks - 1], ranks / count


def quantiles_by_window(
    windows: "npt.NDArray[np.integer]", values: "Integers", quantiles: Sequence[float], count: int
) -> "list[Reals]":
    """Return for each quantile its nearest-rank value in each of `count` windows, NaN where a window has none."""
    import numpy as np

    ordered = values[np.lexsort((values, windows))]
    sizes = np.bincount(windows, minlength=count)
    firsts = np.cumsum(sizes) - sizes
    found = []
    for quantile in quantiles:
        share = Fraction(repr(float(quantile)))
        ranks = np.maximum(-(-share.numerator * sizes // share.denominator), 1)
        line = np.full(count, np.nan)
        there = sizes > 0
        line[there] = ordered[(firsts + ranks - 1)[there]]
        found.append(line)
    return found
