"""From the axes of a sweep to its points: products, zips and samples.

Source of the Latin hypercube: McKay, Beckman and Conover 1979.
"""

import json
import math
import random
import re
from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any, NamedTuple

from simulator.errors import InputError, Problem
from simulator.sweep.schema import Distribution, Sample, Span, Sweep

Setting = Mapping[str, Any]
"""Values by path of the scenario."""

_NUMBER = re.compile(r"\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*(.*?)\s*", re.DOTALL)


class Quantity(NamedTuple):
    """A number and what is written after it, such as `/ s`."""

    number: float
    unit: str

    def text(self, number: float) -> Any:
        """Return another number of the same unit as a scenario has it: rounded to six digits."""
        rounded = float(f"{number:.6g}")
        plain: Any = int(rounded) if rounded.is_integer() and abs(rounded) < 1e15 else rounded
        return f"{plain} {self.unit}" if self.unit else plain


def read_quantity(text: str) -> Quantity | None:
    """Return a text such as `10 / s` as number and unit, None for anything else."""
    match = _NUMBER.fullmatch(text)
    return None if match is None else Quantity(float(match[1]), match[2])


def quantity(value: object, path: str) -> Quantity:
    """Return a value such as `10 / s` or 4 as number and unit; raises InputError for anything else."""
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return Quantity(float(value), "")
    found = read_quantity(value) if isinstance(value, str) else None
    if found is None:
        raise InputError(Problem(f"expected a number with its unit, found {value!r}"[:100], path=path))
    return found


def ends(low: object, high: object, path: str) -> tuple[Quantity, Quantity]:
    """Return two ends that have one unit, the lesser first; raises InputError when they do not."""
    first, last = quantity(low, path), quantity(high, path)
    if first.unit != last.unit:
        raise InputError(Problem(f"from {low!r} to {high!r}: the units differ", path=path, allowed="one unit for both"))
    if not first.number < last.number:
        raise InputError(Problem(f"from {low!r} to {high!r} is no range: the first must be less", path=path))
    return first, last


def draw(law: Distribution, share: float, path: str) -> Any:
    """Return the value of a distribution below which `share` (0 to 1, 1 excluded) of it lies."""
    if law.choice is not None:
        if not law.choice:
            raise InputError(Problem("no values to choose from", path=path))
        return law.choice[int(share * len(law.choice))]
    span = law.uniform or law.log_uniform or law.integer
    assert isinstance(span, Span)
    low, high = ends(span.low, span.high, path)
    if law.integer is not None:
        found = math.floor(low.number + share * (high.number - low.number + 1))
        return low.text(min(found, high.number))  # a share next to one rounds up to the number after the last
    if law.log_uniform is not None:
        if low.number <= 0:
            raise InputError(Problem("a logarithm needs values of more than zero", path=path))
        return low.text(low.number * (high.number / low.number) ** share)
    return low.text(low.number + share * (high.number - low.number))


def independent(sample: Sample) -> list[Setting]:
    """Return points drawn independently of each other; another axis, or another order of them, changes none."""
    sources = {path: random.Random(f"sweep random {sample.seed} {path}") for path in sample.axes}
    return [
        {path: draw(law, sources[path].random(), path) for path, law in sample.axes.items()}
        for _ in range(sample.points)
    ]


def latin_hypercube(sample: Sample) -> list[Setting]:
    """Return n points of which, on every axis, one lies in each n-th of the distribution."""
    columns = {}
    for path, law in sample.axes.items():
        source = random.Random(f"sweep latin hypercube {sample.seed} {path}")
        cells = list(range(sample.points))
        source.shuffle(cells)
        # a share that rounds up to the next cell would leave this one empty
        highest = [math.nextafter((cell + 1) / sample.points, 0) for cell in cells]
        shares = [
            min((cell + source.random()) / sample.points, most) for cell, most in zip(cells, highest, strict=True)
        ]
        columns[path] = [draw(law, share, path) for share in shares]
    return [{path: values[at] for path, values in columns.items()} for at in range(sample.points)]


def settings(sweep: Sweep) -> list[Setting]:
    """Return what varies at each point, seeds apart: every combination of grid, zip, points and samples, in order."""
    parts: list[list[Setting]] = [[{path: value} for value in values] for path, values in sweep.grid.items()]
    if sweep.zip:
        parts.append([dict(zip(sweep.zip, row, strict=True)) for row in zip(*sweep.zip.values(), strict=True)])
    if sweep.points:
        parts.append(list(sweep.points))
    if sweep.random is not None:
        parts.append(independent(sweep.random))
    if sweep.latin_hypercube is not None:
        parts.append(latin_hypercube(sweep.latin_hypercube))
    count = math.prod(map(len, parts)) * max(1, len(sweep.seeds))
    if count > sweep.most_points:
        what = f"{count:,} points, more than `most_points`"
        raise InputError(Problem(what, path="most_points", allowed=f"{sweep.most_points:,} at most, or raise it"))
    return [_joined(combination) for combination in product(*parts)]


def _joined(parts: tuple[Setting, ...]) -> Setting:
    whole: dict[str, Any] = {}
    for part in parts:
        whole |= part
    return whole


def over_seeds(setting: Setting, seeds: tuple[int, ...]) -> Iterator[Setting]:
    """Yield a setting with each seed, or as it is when there are none."""
    if not seeds:
        yield setting
    for seed in seeds:
        yield {**setting, "seed": seed}


def value_text(value: object) -> str:
    """Return a value as one would write it into a scenario: `4`, `2 s`, `{tensor: 4}`."""
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {value_text(part)}" for key, part in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(value_text, value)) + "]"
    return json.dumps(value)
