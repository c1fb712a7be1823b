"""What happened to the cluster, as marks on the axes of time: one by one, or by window where there are many."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from simulator.report.page.grid import Grid, counted, grid_over
from simulator.report.page.rows import groups, has
from simulator.results.run import Run

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Integers = npt.NDArray[np.int64]

MOST_SINGLE = 60
FOLDED_WINDOWS = 60
_SILENT = ("lease",)  # every engine's, at the start
_ORDER = ("fault", "repair", "capacity", "preempted", "leaves pool", "joins pool", "interrupted")


@dataclass(frozen=True, slots=True)
class Marks:
    """One kind of event: when (ns) and what, `total` in all; of many, a mark is a window with how many it had."""

    kind: str
    total: int
    times_ns: tuple[int, ...]
    texts: tuple[str, ...]


def event_marks(run: Run) -> tuple[Marks, ...]:
    """Return the events of a run by kind: faults and repairs first, other kinds by name after the known ones."""
    if not has(run, "events"):
        return ()
    grid = grid_over(int(run.manifest["simulated_ns"]), FOLDED_WINDOWS)
    singles: dict[str, list[tuple[int, str]]] = {}
    counts: dict[str, Any] = {}
    for group in groups(run, "events", ("time_ns", "kind", "subject", "detail")):
        for kind, mine in _kinds(group):
            times = group["time_ns"][mine]
            counts[kind] = counts.get(kind, 0) + counted(times, grid)
            kept = singles.setdefault(kind, [])
            for at in mine[: MOST_SINGLE + 1 - len(kept)]:
                detail = group["detail"][at]
                text = f"{kind}: {group['subject'][at]}" + (f", {detail}" if detail else "")
                kept.append((int(group["time_ns"][at]), text))
    known = [kind for kind in _ORDER if kind in singles]
    return tuple(
        _marks(kind, singles[kind], counts[kind], grid) for kind in [*known, *sorted(singles.keys() - set(known))]
    )


def _kinds(group: dict[str, Any]) -> "Iterator[tuple[str, Integers]]":
    import numpy as np

    for kind in dict.fromkeys(group["kind"]):
        if kind not in _SILENT:
            yield kind, np.flatnonzero(group["kind"] == kind)


def _marks(kind: str, singles: list[tuple[int, str]], counts: "Integers", grid: Grid) -> Marks:
    total = int(counts.sum())
    if total <= MOST_SINGLE:
        return Marks(kind, total, tuple(time for time, _ in singles), tuple(text for _, text in singles))
    there = counts.nonzero()[0]
    texts = tuple(f"{kind}: {counts[at]:,} times around here" for at in there)
    return Marks(kind, total, tuple(int(grid.middles_ns[at]) for at in there), texts)
