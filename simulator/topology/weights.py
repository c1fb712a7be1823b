"""The share of bytes on each link when they are spread evenly over all of many equal-cost paths, without listing any.

Model: a sequence says what its paths are put together of; what several sequences share is looked into once, with the
sum of their amounts. Linear in the parts: exact but for rounding.
"""

from collections.abc import Iterable, Sequence

from simulator.topology.paths import Path, PathSequence
from simulator.topology.search import Walks


def path_weights(paths: Sequence[Path]) -> dict[int, float]:
    """Return the part of the bytes on each link, by index, when they are spread evenly over all of `paths`.

    A link that paths take more than once counts each time. Any sequence of paths will do; one of `Topology.paths` is
    not listed, so that its time grows with its links. Raises ValueError for no paths.
    """
    return spread([(paths, 1.0)])


def spread(shares: Iterable[tuple[Sequence[Path], float]]) -> dict[int, float]:
    """Return the sum over (paths, amount) of the amount that `path_weights` puts on each link."""
    loads: dict[int, float] = {}
    waiting: dict[int, tuple[Sequence[Path], float]] = {}  # by identity, which holds while the sequence is in here
    for paths, amount in shares:
        _add(paths, amount, loads, waiting)
    while waiting:
        level, waiting = waiting, {}
        for paths, amount in level.values():
            _look_into(paths, amount, loads, waiting)
    return loads


def _add(
    paths: Sequence[Path], amount: float, loads: dict[int, float], waiting: dict[int, tuple[Sequence[Path], float]]
) -> None:
    """Put the links of a single path onto `loads`; let several wait, for others may share them."""
    if len(paths) == 1:
        for link in paths[0]:
            loads[link] = loads.get(link, 0.0) + amount
    elif not paths:
        raise ValueError("there is no path to spread bytes over")
    elif id(paths) in waiting:
        waiting[id(paths)] = (paths, waiting[id(paths)][1] + amount)
    else:
        waiting[id(paths)] = (paths, amount)


def _look_into(
    paths: Sequence[Path], amount: float, loads: dict[int, float], waiting: dict[int, tuple[Sequence[Path], float]]
) -> None:
    if isinstance(paths, Walks):
        for link, share in paths.weights():
            loads[link] = loads.get(link, 0.0) + amount * share
    elif isinstance(paths, PathSequence):
        links, parts = paths.parts()
        for link in links:
            loads[link] = loads.get(link, 0.0) + amount
        for part, share in parts:
            _add(part, amount * share, loads, waiting)
    else:
        for path in paths:
            for link in path:
                loads[link] = loads.get(link, 0.0) + amount / len(paths)
