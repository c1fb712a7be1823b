"""What a serving page says of requests: latency distributions, quantiles by window of arrival, rates, reasons."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from simulator.report.page.grid import Grid, counted, distribution, grid_over, quantiles_by_window
from simulator.report.page.rows import groups
from simulator.results.run import Run
from simulator.results.summary import REQUEST_TIMES

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Integers = npt.NDArray[np.int64]
    Reals = npt.NDArray[np.float64]

LATENCIES = ("ttft", "tpot", "e2e")
OVER_TIME = ("ttft", "tpot")
QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
_PER_WINDOW = 100  # fewer requests have no 99th percentile to speak of
_FEWEST_WINDOWS = 12
_TIMES = ("arrival_ns", "first_token_ns", "finish_ns", "output_tokens")


@dataclass(frozen=True)
class RequestFigures:
    """Times in ns: curves by latency, quantiles by latency and name over `grid`, rates per second over `grid`."""

    grid: Grid
    curves: Mapping[str, tuple["Integers", "Reals"]]
    over_time: Mapping[str, Mapping[str, "Reals"]]
    arrived_per_s: "Reals"
    finished_per_s: "Reals"
    reasons: tuple[tuple[str, str, int], ...]
    """Outcome, reason and how many of those that did not finish."""


def request_figures(run: Run) -> RequestFigures:
    """Return the figures of `requests.parquet`; latencies are those of finished requests, as in the summary.

    Of each request it holds its latencies and their windows: 28 bytes.
    """
    import numpy as np

    rows = int(run.manifest["tables"].get("requests", {}).get("rows", 0))
    grid = grid_over(int(run.manifest["simulated_ns"]), max(_FEWEST_WINDOWS, rows // _PER_WINDOW))
    arrived, ended = np.zeros(grid.count), np.zeros(grid.count)
    times: dict[str, list[Integers]] = {name: [] for name in LATENCIES}
    windows: dict[str, list[npt.NDArray[np.int16]]] = {name: [] for name in OVER_TIME}
    reasons: Counter[tuple[str, str]] = Counter()
    for group in groups(run, "requests", (*_TIMES, "outcome", "reason")):
        done = group["outcome"] == "finished"
        whole = {name: group[name][done] for name in _TIMES}
        arrived += counted(group["arrival_ns"], grid)
        ended += counted(whole["finish_ns"], grid)
        window = grid.window_of(whole["arrival_ns"]).astype(np.int16)
        for name in LATENCIES:
            times[name].append(REQUEST_TIMES[name][1](whole))
        windows["ttft"].append(window)
        windows["tpot"].append(window[whole["output_tokens"] > 1])
        left = ~done
        reasons.update(zip(group["outcome"][left], (r or "" for r in group["reason"][left]), strict=True))
    values = {name: np.concatenate(found) for name, found in times.items() if sum(map(len, found))}
    over_time = {}
    for name in OVER_TIME:
        if name in values:
            at = np.concatenate(windows[name])
            lines = quantiles_by_window(at, values[name], list(QUANTILES.values()), grid.count)
            over_time[name] = dict(zip(QUANTILES, lines, strict=True))
    seconds = grid.lengths_ns / 1e9
    return RequestFigures(
        grid,
        {name: distribution(found) for name, found in values.items()},
        over_time,
        arrived / seconds,
        ended / seconds,
        tuple((*key, count) for key, count in sorted(reasons.items(), key=lambda item: (-item[1], item[0]))),
    )
