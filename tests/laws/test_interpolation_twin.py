"""Interpolation of measured points against a plain multilinear twin, and its identities: exact at points, held outside.

value(x) = sum over corners of product over axes of (1 - t or t) * value(corner),  t linear in log x.
"""

from itertools import product
from math import exp, log, prod

import numpy as np
import pytest

from simulator.device.measured.interpolation import NEIGHBOURS, Family, Point
from simulator.model.operators import Gemm, Operator

OPERATORS = (Operator("", 1, Gemm(1, 1, 1)),)


def plain(point: Point) -> float:
    return log(point.ns)


def grid(axes: list[list[float]], values: np.ndarray, shape: tuple[float, ...] = ()) -> Family:
    family = Family()
    for index in product(*(range(len(axis)) for axis in axes)):
        at = tuple(axis[i] for axis, i in zip(axes, index, strict=True))
        family.add(shape, at, OPERATORS, float(values[index]))
    return family


def twin(axes: list[list[float]], logs: np.ndarray, at: tuple[float, ...]) -> float:
    pairs = []
    for axis, x in zip(axes, at, strict=True):
        x = min(max(x, axis[0]), axis[-1])
        i = min(max(int(np.searchsorted(axis, x)) - 1, 0), len(axis) - 2)
        t = log(x / axis[i]) / log(axis[i + 1] / axis[i])
        pairs.append(((i, 1 - t), (i + 1, t)))
    return sum(prod(w for _, w in corner) * logs[tuple(i for i, _ in corner)] for corner in product(*pairs))


def test_a_whole_grid_is_interpolated_as_the_textbook_does() -> None:
    random = np.random.default_rng(3)
    axes = [sorted(random.uniform(1, 1000, count).tolist()) for count in (4, 3, 5)]
    values = random.uniform(1, 100, (4, 3, 5))
    family = grid(axes, values)
    for _ in range(200):
        at = tuple(random.uniform(0.5, 2000, 3).tolist())
        found = family.estimate((), at, plain)
        assert found is not None
        assert found.log_ratio == pytest.approx(twin(axes, np.log(values), at), abs=1e-12)
        outside = max(max(axis[0] / x, x / axis[-1]) for axis, x in zip(axes, at, strict=True))
        assert (found.beyond > 0) == (outside > 1)
        if outside > 1:
            assert 2**found.beyond == pytest.approx(outside)


def test_points_are_exact_and_repeats_count_by_their_median() -> None:
    random = np.random.default_rng(4)
    axes = [[1.0, 3.0, 7.0], [2.0, 2.5]]
    values = random.uniform(1, 100, (3, 2))
    family = grid(axes, values)
    for index in product(range(3), range(2)):
        found = family.estimate((), (axes[0][index[0]], axes[1][index[1]]), plain)
        assert found == (log(values[index]), 0.0, 0.0)
    family.add((), (3.0, 2.0), OPERATORS, 1e6)
    family.add((), (3.0, 2.0), OPERATORS, 1e-6)
    assert family.repeats == 2
    found = family.estimate((), (3.0, 2.0), plain)
    assert found is not None
    assert found.log_ratio == log(values[1, 0])


def test_a_power_law_is_reproduced_everywhere() -> None:
    """log t = a + b log x + c log y is linear in the coordinates, so between points of a ragged grid it is exact."""

    def law(x: float, y: float) -> float:
        return 3.0 * x**0.7 * y**-0.2

    family = Family()
    for x, ys in ((1.0, (1.0, 64.0)), (8.0, (1.0, 5.0, 90.0)), (100.0, (0.5, 128.0))):
        for y in ys:
            family.add((), (x, y), OPERATORS, law(x, y))
    for x, y in ((2.0, 3.0), (50.0, 64.0), (8.0, 7.0), (99.0, 1.0)):
        found = family.estimate((), (x, y), plain)
        assert found is not None
        assert found.beyond == 0
        assert exp(found.log_ratio) == pytest.approx(law(x, y))


def test_an_unmeasured_shape_lies_among_its_neighbours_and_never_beyond_a_factor_of_two() -> None:
    family = Family()
    values = {(64.0, 64.0): 2.0, (128.0, 64.0): 3.0, (64.0, 128.0): 5.0, (128.0, 128.0): 7.0, (4096.0, 64.0): 1000.0}
    for shape, value in values.items():
        family.add(shape, (1.0,), OPERATORS, value)
    middle = family.estimate((64 * 2**0.5, 64 * 2**0.5), (1.0,), plain)
    assert middle is not None
    assert exp(middle.log_ratio) == pytest.approx((2 * 3 * 5 * 7) ** (1 / NEIGHBOURS))  # all four equally far
    assert middle.distance == pytest.approx(0.5**0.5)
    close = family.estimate((64.0 * 1.01, 64.0), (1.0,), plain)
    assert close is not None
    assert exp(close.log_ratio) == pytest.approx(2.0, rel=0.01)
    assert family.estimate((512.0, 64.0), (1.0,), plain) is None
    assert family.estimate((64.0, 257.0), (1.0,), plain) is None
