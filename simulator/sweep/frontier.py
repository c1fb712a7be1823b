"""Pareto frontiers: the points of which none is at least as good in every metric and better in one."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from simulator.sweep.schema import Frontier

DEFAULT = (
    Frontier(maximise=("throughput.output_tokens_per_s_per_device",), minimise=("tpot.mean",)),
    Frontier(maximise=("goodput",), minimise=("price.dollars_per_million_output_tokens",)),
)
"""Throughput of a device against the speed that one user sees; cost against objectives met."""


def non_dominated(costs: Sequence[Sequence[float]]) -> list[int]:
    """Return the places of the rows that no other dominates, in order; of equal rows all stay. Less is better."""
    order = sorted(range(len(costs)), key=lambda at: tuple(costs[at]))
    kept: list[int] = []
    for at in order:  # whoever dominates comes before, and if he is dominated himself, so by one who is kept
        mine = costs[at]
        if not any(_dominates(costs[other], mine) for other in kept):
            kept.append(at)
    return sorted(kept)


def _dominates(first: Sequence[float], second: Sequence[float]) -> bool:
    return all(a <= b for a, b in zip(first, second, strict=True)) and any(
        a < b for a, b in zip(first, second, strict=True)
    )


def frontier(section: Frontier, figures: Sequence[Mapping[str, Any]]) -> list[int]:
    """Return the places of the figures on a frontier, the best in its first metric first, so that it is read along.

    Those without a value of one of its metrics are left out.
    """
    signs = [(name, -1.0) for name in section.maximise] + [(name, 1.0) for name in section.minimise]
    there = [at for at, row in enumerate(figures) if all(_is_number(row.get(name)) for name, _ in signs)]
    costs = [[sign * float(figures[at][name]) for name, sign in signs] for at in there]
    return [there[place] for place in sorted(non_dominated(costs), key=lambda place: costs[place])]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not math.isnan(value)
