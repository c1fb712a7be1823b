"""Intervals cover what they say, pairs narrow them, and a warm-up that is known is found."""

import math
from itertools import pairwise

import numpy as np
import pytest

from simulator.results.statistics import batches, interval, paired, warm_up


def test_interval_of_a_textbook_sample():
    # mean 3, s = sqrt(2.5), t(4, 0.975) = 2.7764: half = 2.7764 * sqrt(2.5 / 5)
    found = interval([1, 2, 3, 4, 5])
    assert found.mean == 3
    assert found.half == pytest.approx(2.7764 * math.sqrt(0.5), rel=1e-4)
    assert found.significant


def test_one_observation_says_nothing_and_equal_ones_have_no_spread():
    assert interval([2.0]).half == math.inf
    assert not interval([2.0]).significant
    assert interval([0.1] * 3).half == 0


@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_intervals_cover_the_mean_as_often_as_they_say(confidence):
    source = np.random.default_rng(1)
    covered = [interval(source.normal(5, 2, 6), confidence) for _ in range(4000)]
    share = np.mean([each.low <= 5 <= each.high for each in covered])
    assert share == pytest.approx(confidence, abs=4 * math.sqrt(confidence * (1 - confidence) / 4000))


def test_common_random_numbers_narrow_a_difference():
    source = np.random.default_rng(2)
    noise = source.normal(0, 10, 20)
    first, second = noise + 1, noise + 1.5 + source.normal(0, 0.1, 20)
    assert paired(first, second).significant
    apart = interval(second).half + interval(first).half
    assert paired(first, second).half < apart / 20


def test_batches_tile():
    cuts = batches(103, 20)
    assert {part.stop - part.start for part in cuts} == {5, 6}
    assert all(one.stop == other.start for one, other in pairwise(cuts))
    assert cuts[0].start == 0
    assert cuts[-1].stop == 103


def test_warm_up_is_found_where_it_is():
    source = np.random.default_rng(3)
    steady = source.normal(10, 1, 4000)
    assert warm_up(steady) < 1000
    late = np.concatenate([np.linspace(0, 10, 600) + source.normal(0, 1, 600), steady])
    assert 400 <= warm_up(late) <= 1000
    assert warm_up([1.0, 2.0]) == 0


def test_warm_up_is_what_the_definition_says():
    source = np.random.default_rng(5)
    values = np.concatenate([np.full(60, 5.0), source.normal(0, 1, 400)])
    means = values.reshape(-1, 5).mean(axis=1)
    plain = [np.sum((means[d:] - means[d:].mean()) ** 2) / (len(means) - d) ** 2 for d in range(len(means) // 2 + 1)]
    assert warm_up(values) == 5 * int(np.argmin(plain))
