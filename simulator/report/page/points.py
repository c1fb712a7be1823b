"""What a sweep's page says of its points: places on axes, lines of means with intervals over seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING, Any

from simulator.results.statistics import interval
from simulator.sweep import axes

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pandas as pd

    Reals = npt.NDArray[np.float64]

SEED = "seed"
MOST_LINES = 8


def value_text(value: Any) -> str:
    """Return a value of an axis as text: equal values have equal texts, whatever read them."""
    if hasattr(value, "item"):  # of numpy
        value = value.item()
    if isinstance(value, float) and isfinite(value) and value == int(value):
        value = int(value)
    return axes.value_text(value)


@dataclass(frozen=True)
class Places:
    """An axis: the texts of its values, where each stands, and their unit; names stand at 0, 1, ..."""

    path: str
    texts: tuple[str, ...]
    at: Mapping[str, float]
    unit: str
    numeric: bool


def places_of(path: str, values: Sequence[Any]) -> Places:
    """Return the axis of a path: of numbers if all values are numbers with one unit, else of names, in their order."""
    texts = tuple(dict.fromkeys(map(value_text, values)))
    known = {text: each for text in texts if (each := axes.read_quantity(text)) is not None}
    units = {each.unit for each in known.values()}
    if len(known) == len(texts) and len(units) == 1:
        ordered = sorted((each.number, text) for text, each in known.items())
        return Places(path, tuple(text for _, text in ordered), {t: x for x, t in ordered}, units.pop(), True)
    return Places(path, texts, {text: float(place) for place, text in enumerate(texts)}, "", False)


def with_texts(points: "pd.DataFrame", paths: Sequence[str]) -> "pd.DataFrame":
    """Return the points with the values of their axes as texts."""
    return points.assign(**{path: points[path].map(value_text) for path in paths})


def series(done: "pd.DataFrame", axis: Places, others: Sequence[Places]) -> "list[tuple[str, pd.DataFrame]] | None":
    """Return the points by the values of the other axes; None where that makes no few lines of several points each."""
    if not others:
        return [("", done)]
    lines = []
    for values, rows in done.groupby([other.path for other in others], sort=False):
        name = ", ".join(f"{other.path} {value}" for other, value in zip(others, values, strict=True))
        order = tuple(other.texts.index(value) for other, value in zip(others, values, strict=True))
        lines.append((order, name, rows))
    if len(lines) > MOST_LINES or all(rows[axis.path].nunique() < 2 for _, _, rows in lines):
        return None
    return [(name, rows) for _, name, rows in sorted(lines, key=lambda line: line[0])]


def varied(paths: Mapping[str, Sequence[Any]], points: "pd.DataFrame") -> list[Places]:
    """Return the axes on which points have more than one value, seeds apart; a search may have added its own values."""
    found = []
    for path, values in paths.items():
        there = list(dict.fromkeys(points[path]))
        texts = [text for text in map(value_text, values) if text in there]
        found += [places_of(path, [*texts, *there])] if path != SEED else []
    return [axis for axis in found if len(axis.texts) > 1]


def means(rows: "pd.DataFrame", axis: Places, metric: str, confidence: float = 0.95) -> "tuple[Reals, Reals, Reals]":
    """Return along an axis where there are values, their means over the rest, and half of each mean's interval."""
    import numpy as np

    own = rows[[axis.path, metric]].dropna()
    grouped = {text: group.tolist() for text, group in own.groupby(axis.path)[metric]}
    there = [text for text in axis.texts if text in grouped]
    found = [interval(grouped[text], confidence) for text in there]
    half = [one.half if one.observations > 1 else 0.0 for one in found]  # of one there is none
    return np.array([axis.at[text] for text in there]), np.array([one.mean for one in found]), np.array(half)
