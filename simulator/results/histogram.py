"""A histogram of durations in bins of equal relative width, in integers only: exact counts, quantiles within 0.4 %.

Model: the bins of HdrHistogram (G. Tene): every power of two is cut into 128 equal bins, so a bin is at most 1/128 of
its values wide; values below 256 have a bin each.
"""

from simulator.results.quantiles import nearest_rank

_SUB_BITS = 7
_SUB_BINS = 1 << _SUB_BITS


def bin_of(value_ns: int) -> int:
    """Return the index of the bin that holds a value of zero or more."""
    shift = value_ns.bit_length() - 8
    return value_ns if shift <= 0 else (shift << 7) + (value_ns >> shift)


def lower_edge(index: int) -> int:
    """Return the smallest value of a bin; the largest is one less than the next bin's smallest."""
    if index < 2 * _SUB_BINS:
        return index
    shift = (index >> _SUB_BITS) - 1
    return (index - (shift << _SUB_BITS)) << shift


class LogHistogram:
    """Counts of integers of zero or more. `count`, `mean` and `max` are exact, `quantile` is within 0.4 % of exact."""

    __slots__ = ("_bins", "_twice_sum", "count", "max", "min")

    def __init__(self) -> None:
        self.count = 0
        self.max = 0
        self.min: int | None = None
        self._twice_sum = 0  # the mean of a line may be half an integer
        self._bins: dict[int, int] = {}

    def add(self, value_ns: int, count: int = 1) -> None:
        """Count `value_ns` (zero or more) `count` times (one or more)."""
        shift = value_ns.bit_length() - 8
        index = value_ns if shift <= 0 else (shift << 7) + (value_ns >> shift)
        bins = self._bins
        bins[index] = bins.get(index, 0) + count
        self.count += count
        self._twice_sum += 2 * value_ns * count
        if value_ns > self.max:
            self.max = value_ns
        if self.min is None or value_ns < self.min:
            self.min = value_ns

    def add_line(self, first_ns: int, last_ns: int, steps: int, weight: int = 1) -> None:
        """Count each of `steps` evenly spaced values from `first_ns` to `last_ns`, both included, `weight` times.

        With d = |last - first|, the i-th value from the smaller end is that end + floor(i d / (steps - 1)): values
        between the ends are rounded down to the nanosecond before they are counted. The mean is that of the unrounded
        line. One step is `first_ns` alone. The cost is that of the bins between the ends, not of the steps.
        """
        if steps <= 0 or weight <= 0:
            return
        if steps == 1:
            self.add(first_ns, weight)
            return
        low, high = (first_ns, last_ns) if first_ns <= last_ns else (last_ns, first_ns)
        shift = low.bit_length() - 8
        index = low if shift <= 0 else (shift << 7) + (low >> shift)
        shift = high.bit_length() - 8
        last = high if shift <= 0 else (shift << 7) + (high >> shift)
        bins = self._bins
        below = 0  # steps whose value lies below the current bin
        while index < last:
            # value_i < edge  <=>  i d < (edge - low) (steps - 1)
            reached = -(-(lower_edge(index + 1) - low) * (steps - 1) // (high - low))
            if reached > below:
                bins[index] = bins.get(index, 0) + (reached - below) * weight
                below = reached
            index += 1
        bins[last] = bins.get(last, 0) + (steps - below) * weight
        self.count += steps * weight
        self._twice_sum += (low + high) * steps * weight
        if high > self.max:
            self.max = high
        if self.min is None or low < self.min:
            self.min = low

    def merge(self, other: "LogHistogram") -> None:
        """Add everything that `other` has counted."""
        for index, count in other._bins.items():
            self._bins[index] = self._bins.get(index, 0) + count
        self.count += other.count
        self._twice_sum += other._twice_sum
        self.max = max(self.max, other.max)
        if other.min is not None and (self.min is None or other.min < self.min):
            self.min = other.min

    @property
    def mean(self) -> float | None:
        """The mean of everything counted; None when nothing was."""
        return self._twice_sum / (2 * self.count) if self.count else None

    @property
    def bins(self) -> dict[int, int]:
        """Counts by bin index, in order of value."""
        return dict(sorted(self._bins.items()))

    def quantile(self, q: float) -> int | None:
        """Return the middle of the bin of the nearest-rank quantile, kept within [min, max]; None when empty."""
        if not self.count or self.min is None:
            return None
        left = nearest_rank(q, self.count)
        for index, count in sorted(self._bins.items()):
            left -= count
            if left <= 0:
                middle = (lower_edge(index) + lower_edge(index + 1) - 1) // 2
                return min(max(middle, self.min), self.max)
        raise AssertionError("the bins hold fewer values than were counted")
