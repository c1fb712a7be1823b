"""What a page says of a run of the network alone: completion times, slowdown by size, bytes over time, collectives."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from simulator.report.page.grid import Grid, cut, distribution, grid_over, quantiles_by_window, ratio, summed
from simulator.report.page.rows import columns, has
from simulator.results.run import Run

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Integers = npt.NDArray[np.int64]
    Reals = npt.NDArray[np.float64]

    Curve = tuple[Integers, Reals]

SIZE_BINS = 30
MOST_COLLECTIVES = 4000
QUANTILES = {"p50": 0.5, "p99": 0.99}
_FINE = 1_000_000  # a slowdown is ordered in millionths, as the summary does
_FEWEST_WINDOWS = 12
_PER_WINDOW = 20


@dataclass(frozen=True)
class FlowFigures:
    """Completion times in ns, slowdowns, and by window what arrived and how many flows were under way."""

    grid: Grid
    completion: "Curve"
    slowdown: "tuple[Reals, Reals]"
    sizes_bytes: "Reals"
    """Middle of each bin of sizes that has flows."""
    slowdown_by_size: Mapping[str, "Reals"]
    arrived_bytes_per_s: "Reals"
    under_way: "Reals"


def flow_figures(run: Run) -> FlowFigures | None:
    """Return the figures of `flows.parquet`; None when no flow ran. Distributions are of completed flows."""
    import numpy as np

    if not has(run, "flows"):
        return None
    rows = columns(run, "flows", ("bytes", "start_ns", "finish_ns", "ideal_ns", "completed"))
    done = rows["completed"].astype(bool)
    end_ns = int(run.manifest["simulated_ns"])
    grid = grid_over(end_ns, max(_FEWEST_WINDOWS, len(done) // _PER_WINDOW))
    spent = (rows["finish_ns"] - rows["start_ns"])[done]
    ideal, sizes = rows["ideal_ns"][done], rows["bytes"][done]
    known = ideal > 0
    slow = np.rint(spent * (_FINE / np.maximum(ideal, 1))).astype(np.int64)[known]
    middles, by_size = _by_size(sizes[known], slow)
    pieces = cut(rows["start_ns"], np.where(rows["finish_ns"] >= 0, rows["finish_ns"], end_ns), grid)
    seconds = grid.lengths_ns / 1e9
    arrived = summed(grid.window_of(rows["finish_ns"][done]), sizes.astype(float), grid.count)
    slow_values, slow_shares = distribution(slow)
    return FlowFigures(
        grid,
        distribution(spent),
        (slow_values / _FINE, slow_shares),
        middles,
        by_size,
        arrived / seconds,
        summed(pieces.window, pieces.length_ns.astype(float), grid.count) / grid.lengths_ns,
    )


def _by_size(sizes: "Integers", slow: "Integers") -> "tuple[Reals, dict[str, Reals]]":
    """Return the quantiles of the slowdown in bins of sizes, equally wide on a logarithmic axis and none empty."""
    import numpy as np

    if not len(sizes):
        return np.empty(0), {name: np.empty(0) for name in QUANTILES}
    low, high = np.log10(max(int(sizes.min()), 1)), np.log10(max(int(sizes.max()), 1))
    width = max((high - low) / SIZE_BINS, 1e-9)
    bins = np.clip(((np.log10(np.maximum(sizes, 1)) - low) / width).astype(np.int64), 0, SIZE_BINS - 1)
    lines = quantiles_by_window(bins, slow, list(QUANTILES.values()), SIZE_BINS)
    there = np.bincount(bins, minlength=SIZE_BINS) > 0
    middles = ratio(
        summed(bins, np.log10(np.maximum(sizes, 1)), SIZE_BINS), np.bincount(bins, minlength=SIZE_BINS).astype(float)
    )
    return 10 ** middles[there], {name: line[there] / _FINE for name, line in zip(QUANTILES, lines, strict=True)}


@dataclass(frozen=True)
class Repeats:
    """The repeats of one collective: when each started and how long it took (ns), and the closed form of it."""

    run: int
    name: str
    start_ns: "Integers"
    time_ns: "Integers"
    ideal_ns: "Integers"


def collective_repeats(run: Run) -> tuple[Repeats, ...]:
    """Return the completed collectives by their place in the scenario; of very many an even choice of them."""
    import numpy as np

    if not has(run, "collectives"):
        return ()
    names = ("run", "operation", "algorithm", "ranks", "start_ns", "finish_ns", "ideal_ns", "completed")
    rows: dict[str, Any] = columns(run, "collectives", names)
    found = []
    places = np.unique(rows["run"])
    for place in places:
        mine = np.flatnonzero((rows["run"] == place) & rows["completed"].astype(bool))
        mine = mine[np.argsort(rows["start_ns"][mine], kind="stable")]
        step = max(1, -(-len(mine) * len(places) // MOST_COLLECTIVES))
        mine = mine[::step]
        if len(mine):
            first = mine[0]
            name = f"{rows['operation'][first]} {rows['algorithm'][first]}, {rows['ranks'][first]:,} ranks"
            start = rows["start_ns"][mine]
            found.append(Repeats(int(place), name, start, rows["finish_ns"][mine] - start, rows["ideal_ns"][mine]))
    return tuple(found)
