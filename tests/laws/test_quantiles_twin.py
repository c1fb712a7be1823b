"""Streamed selection against sorting everything; the log histogram against one count per value."""

from fractions import Fraction
from math import ceil

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from simulator.results.histogram import LogHistogram, bin_of, lower_edge
from simulator.results.quantiles import exact_quantiles, nearest_rank

INT64 = st.integers(-(2**63), 2**63 - 1)
VALUES = st.one_of(
    st.lists(INT64, min_size=1, max_size=60),
    st.lists(st.integers(0, 5), min_size=1, max_size=200),
    st.lists(st.integers(10**12, 10**12 + 70_000), min_size=1, max_size=60),
)
SHARES = st.lists(st.integers(0, 1000).map(lambda n: n / 1000), min_size=1, max_size=6)
DURATIONS = st.one_of(st.integers(0, 600), st.integers(0, 2**62))


def by_sorting(values, q):
    """The smallest value with at least a share q of all values at or below it, straight from the definition."""
    ordered = sorted(values)
    share = Fraction(str(q))
    return next(v for i, v in enumerate(ordered, 1) if Fraction(i, len(ordered)) >= share)


@settings(deadline=None)
@given(VALUES, SHARES, st.integers(1, 7))
@example([-(2**63), 2**63 - 1], [0.0, 0.5, 0.501, 1.0], 1)
def test_selection_equals_sorting(values, qs, size):
    array = np.array(values, dtype=np.int64)
    parts = [array[i : i + size] for i in range(0, len(array), size)] + [array[:0]]
    assert exact_quantiles(lambda: iter(parts), qs) == [by_sorting(values, q) for q in qs]


def test_many_values_in_chunks():
    rng = np.random.default_rng(5)
    values = rng.lognormal(20, 2, 300_000).astype(np.int64)
    qs = [0.5, 0.9, 0.95, 0.99, 0.999]
    found = exact_quantiles(lambda: iter(np.array_split(values, 11)), qs)
    assert found == [int(v) for v in np.quantile(values, qs, method="inverted_cdf")]


def test_rank_is_that_of_the_decimal_written():
    assert nearest_rank(0.07, 100) == 7  # 0.07 * 100 is 7.000000000000001 in binary
    assert [nearest_rank(q, 4) for q in (0, 0.25, 0.26, 1)] == [1, 1, 2, 4]
    with pytest.raises(ValueError, match="no values"):
        exact_quantiles(lambda: iter([]), [0.5])
    with pytest.raises(ValueError, match="lies in"):
        nearest_rank(1.5, 3)


@settings(deadline=None)
@given(st.integers(0, 2**63 - 1))
def test_bins_tile_the_integers_and_are_narrow(value):
    index = bin_of(value)
    low, after = lower_edge(index), lower_edge(index + 1)
    assert low <= value < after
    assert bin_of(low) == index == bin_of(after - 1)
    assert (after - low) * 128 <= max(low, 128)


@settings(deadline=None)
@given(st.lists(st.tuples(DURATIONS, st.integers(1, 50)), min_size=1, max_size=30), SHARES)
def test_histogram_against_its_values(counted, qs):
    histogram = LogHistogram()
    for value, count in counted:
        histogram.add(value, count)
    values = [value for value, count in counted for _ in range(count)]
    assert histogram.count == len(values)
    assert histogram.max == max(values)
    assert histogram.mean == pytest.approx(sum(values) / len(values), rel=1e-12)
    for q in qs:
        exact = by_sorting(values, q)
        assert abs(histogram.quantile(q) - exact) <= exact / 250


@settings(deadline=None)
@given(DURATIONS, DURATIONS, st.integers(1, 400), st.integers(1, 9))
@example(1000, 1000, 7, 2)
@example(0, 2**62, 2, 1)
@example(5_000_000, 5_020_000, 300, 64)
def test_a_line_is_its_steps_counted_one_by_one(first, last, steps, weight):
    line, naive = LogHistogram(), LogHistogram()
    line.add_line(first, last, steps, weight)
    low, high = (first, last) if steps > 1 else (first, first)
    low, high = min(low, high), max(low, high)
    for i in range(steps):
        naive.add(low + (i * (high - low) // (steps - 1) if steps > 1 else 0), weight)
    assert line.bins == naive.bins
    assert (line.count, line.max, line.min) == (naive.count, naive.max, naive.min)
    assert 0 <= line.mean - naive.mean <= 1 + naive.mean * 1e-12  # the mean is that before rounding down


@settings(deadline=None)
@given(st.lists(st.lists(DURATIONS, max_size=8), min_size=2, max_size=2))
def test_merging_is_counting_together(parts):
    left, right, together = LogHistogram(), LogHistogram(), LogHistogram()
    for histogram, values in zip((left, right), parts, strict=True):
        for value in values:
            histogram.add(value)
            together.add(value)
    left.merge(right)
    assert left.bins == together.bins
    assert (left.count, left.max, left.min, left.mean) == (together.count, together.max, together.min, together.mean)


def test_an_empty_histogram_has_no_figures():
    empty = LogHistogram()
    assert (empty.mean, empty.quantile(0.5), empty.count) == (None, None, 0)
    empty.add_line(5, 9, 0, 3)
    assert empty.count == 0


def test_nearest_rank_is_the_ceiling():
    assert all(nearest_rank(k / 20, 20) == max(1, ceil(k)) for k in range(21))
