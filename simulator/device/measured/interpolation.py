"""Interpolation between measured points on grids that need not be whole: brackets along axes, and nearest shapes.

What is interpolated is the logarithm of measured time / roofline: the roofline carries the trend, so the ratio is flat.
Piecewise linear in the logarithm of each coordinate; inverse-distance weights (Shepard, 1968) among shapes.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable
from math import inf, log2, sqrt
from statistics import median
from typing import NamedTuple

from simulator.model.operators import Operator

Coordinates = tuple[float, ...]

NEIGHBOURS = 4
"""Measured shapes that stand for one that was not measured."""
REACH = 1.0
"""How far a shape may be from the nearest measured one in any of its dimensions, in octaves: a factor of two."""


class Coordinate(NamedTuple):
    """Where an operator stands among measured ones.

    Points differ in `exact` or not at all alike; `shape` is what a weight matrix or a number of heads makes,
    of which few are measured; along `line` there are grids, first coordinate first. All but `exact` are positive.
    """

    exact: tuple[str | float, ...]
    shape: Coordinates
    line: Coordinates


class Point:
    """One measured point: the operators that it timed, and the median of the times."""

    __slots__ = ("_log_ratio", "operators", "times")

    def __init__(self, operators: tuple[Operator, ...], ns: float) -> None:
        self.operators, self.times = operators, [ns]
        self._log_ratio: float | None = None

    @property
    def ns(self) -> float:
        """Median of the repeated measurements in ns."""
        return self.times[0] if len(self.times) == 1 else median(self.times)

    def log_ratio(self, log_of: Callable[["Point"], float]) -> float:
        """Return the logarithm of measured / roofline, worked out once by `log_of`."""
        if self._log_ratio is None:
            self._log_ratio = log_of(self)
        return self._log_ratio


class Estimate(NamedTuple):
    """What the measured points say of one place: `log_ratio`, and how well they surround it."""

    log_ratio: float
    distance: float
    """Octaves to the nearest measured shape; 0: this very shape was measured."""
    beyond: float
    """Octaves by which the place lies outside the measured range of the worst coordinate; 0: within."""


class Axis:
    """Points along one coordinate; each place holds a point, or the axis of the next coordinate."""

    __slots__ = ("children", "positions")

    def __init__(self, tree: dict[float, "Tree"]) -> None:
        order = sorted(tree)
        self.positions = [log2(value) for value in order]
        self.children: list[Axis | Point] = [_axis(tree[value]) for value in order]

    def surround(self, at: Coordinates, depth: int, weight: float, found: list[tuple[Point, float]]) -> float:
        """Add the points that surround `at` from coordinate `depth` on, with weights; return the octaves beyond.

        Outside the first or last place that one is taken: the ratio is held.
        """
        positions, x = self.positions, at[depth]
        i = bisect_left(positions, x)
        if i < len(positions) and positions[i] == x:
            return _descend(self.children[i], at, depth, weight, found)
        if i == 0:
            return max(positions[0] - x, _descend(self.children[0], at, depth, weight, found))
        if i == len(positions):
            return max(x - positions[-1], _descend(self.children[-1], at, depth, weight, found))
        share = (x - positions[i - 1]) / (positions[i] - positions[i - 1])
        below = _descend(self.children[i - 1], at, depth, weight * (1 - share), found)
        above = _descend(self.children[i], at, depth, weight * share, found)
        return max(below, above)


Tree = dict[float, "Tree"] | Point


def _axis(tree: Tree) -> Axis | Point:
    return tree if isinstance(tree, Point) else Axis(tree)


def _descend(
    child: Axis | Point, at: Coordinates, depth: int, weight: float, found: list[tuple[Point, float]]
) -> float:
    if isinstance(child, Axis):
        return child.surround(at, depth + 1, weight, found)
    found.append((child, weight))
    return 0.0


class Family:
    """All points that are alike in `Coordinate.exact`: by shape, a grid of points each."""

    def __init__(self) -> None:
        self._trees: dict[Coordinates, dict[float, Tree]] = {}
        self._axes: dict[Coordinates, Axis] = {}
        self._near: dict[Coordinates, list[tuple[Coordinates, float, float]]] = {}
        self.points = 0
        self.repeats = 0

    def add(self, shape: Coordinates, line: Coordinates, operators: tuple[Operator, ...], ns: float) -> None:
        """Add a measurement; a second one of the same place is a repeat of it."""
        tree = self._trees.setdefault(shape, {})
        for value in line[:-1]:
            inner = tree.setdefault(value, {})
            assert isinstance(inner, dict)  # lines of one family have equally many coordinates
            tree = inner
        point = tree.get(line[-1])
        if isinstance(point, Point):
            point.times.append(ns)
            self.repeats += 1
        else:
            tree[line[-1]] = Point(operators, ns)
            self.points += 1

    @property
    def shapes(self) -> Iterable[Coordinates]:
        """The measured shapes."""
        return self._trees

    def estimate(self, shape: Coordinates, line: Coordinates, log_of: Callable[[Point], float]) -> Estimate | None:
        """Return the ratio at a place, or None when no shape within `REACH` was measured; exact at a point."""
        at = tuple(map(log2, line))
        if shape in self._trees:
            return self._along(shape, at, log_of)
        near = self._near.get(shape)
        if near is None:
            near = self._near[shape] = self._neighbours(shape)
        if not near:
            return None
        log_ratio, beyond = 0.0, inf
        for other, weight, _ in near:
            along = self._along(other, at, log_of)
            log_ratio += weight * along.log_ratio
            beyond = min(beyond, along.beyond)
        return Estimate(log_ratio, near[0][2], beyond)

    def _along(self, shape: Coordinates, at: Coordinates, log_of: Callable[[Point], float]) -> Estimate:
        axis = self._axes.get(shape)
        if axis is None:
            axis = self._axes[shape] = Axis(self._trees[shape])
        found: list[tuple[Point, float]] = []
        beyond = axis.surround(at, 0, 1.0, found)
        if len(found) == 1:  # the weight is 1 up to rounding
            return Estimate(found[0][0].log_ratio(log_of), 0.0, beyond)
        return Estimate(sum(weight * point.log_ratio(log_of) for point, weight in found), 0.0, beyond)

    def _neighbours(self, shape: Coordinates) -> list[tuple[Coordinates, float, float]]:
        """Return the nearest measured shapes as (shape, weight, distance), nearest first, weights summing to 1."""
        candidates = []
        for other in self._trees:
            apart = [abs(log2(a / b)) for a, b in zip(shape, other, strict=True)]
            if max(apart) <= REACH:
                candidates.append((sqrt(sum(step * step for step in apart)), other))
        nearest = sorted(candidates)[:NEIGHBOURS]
        total = sum(1 / distance**2 for distance, _ in nearest)
        return [(other, 1 / distance**2 / total, distance) for distance, other in nearest]
