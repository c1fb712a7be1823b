"""What the fits of all operators share: reading a measured table, leaving shapes out, the search, the error rows.

Constants are fitted by a coordinate search on the mean absolute logarithm of predicted / measured.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

ROOT = Path(__file__).resolve().parent.parent.parent
DATA = ROOT.parent / "shared" / "data"
SYSTEMS = {
    "a100-sxm-80gb": ("a100_sxm", "0.14.0"),
    "h100-sxm-80gb": ("h100_sxm", "0.24.0"),
    "b200-sxm": ("b200_sxm", "0.24.0"),
    "gb200": ("gb200", "0.24.0"),
}
"""Measured devices: folder of aiconfigurator's tables, and the version of vLLM that they were taken with."""
FIT_ROWS = 6000

Columns = dict[str, Any]
Model = Callable[[np.ndarray, Columns], np.ndarray]
Row = dict[str, Any]


def read(
    data: Path, device: str, table: str, shape: Sequence[str], keep: Mapping[str, object] | None = None
) -> pd.DataFrame:
    """Return one of aiconfigurator's tables of `device` with its latency in ns; median of repeated rows of a shape.

    `table` is the file's name before `_perf.parquet`, VERSION standing for vLLM's; `keep` holds the values that columns
    must have. Other columns than `shape` and `ns` are dropped.
    """
    system, version = SYSTEMS[device]
    frame = pd.read_parquet(data / "aiconfigurator" / system / f"{table.replace('VERSION', version)}_perf.parquet")
    for column, wanted in (keep or {}).items():
        if column in frame:
            frame = frame[frame[column] == wanted]
    frame = frame.groupby(list(shape), as_index=False)["latency"].median()
    return frame.assign(ns=frame["latency"] * 1e6).drop(columns="latency")


def left_out(frame: pd.DataFrame, *shape: str, every: int = 4) -> np.ndarray:
    """Return a mask of the rows left out of the fit: every fourth combination of the `shape` columns, all its rows."""
    index = frame.groupby(list(shape)).ngroup().to_numpy()
    return np.asarray(index % every == every - 1)


def thinned(frame: pd.DataFrame, limit: int = FIT_ROWS) -> pd.DataFrame:
    """Return at most `limit` rows, drawn evenly over all of them and always the same."""
    return frame if len(frame) <= limit else frame.sample(limit, random_state=1).sort_index()


def columns_of(frame: pd.DataFrame, limit: int = FIT_ROWS) -> Columns:
    """Return the numeric columns as arrays of float, thinned to at most `limit` rows."""
    rows = thinned(frame, limit)
    return {str(name): rows[name].to_numpy(dtype=float) for name in rows if pd.api.types.is_numeric_dtype(rows[name])}


def search(
    predict: Model, columns: Columns, start: Sequence[float], upper: Sequence[float], finest: float = 0.004
) -> np.ndarray:
    """Return the positive parameters, at most `upper`, that minimise the mean absolute log error.

    A coordinate search by factors, from `start`, whose steps shrink down to `finest`.
    """
    measured = columns["ns"]

    def loss(theta: np.ndarray) -> float:
        return float(np.mean(np.abs(np.log(predict(theta, columns) / measured))))

    best, step = np.minimum(np.array(start, dtype=float), upper), 0.5
    low = loss(best)
    while step > finest:
        moved = False
        for index in range(len(best)):
            for factor in (1 + step, 1 / (1 + step)):
                trial = best.copy()
                trial[index] = min(trial[index] * factor, upper[index])
                value = loss(trial)
                if value < low - 1e-9:
                    best, low, moved = trial, value, True
        if not moved:
            step /= 2
    return best


def error(what: str, device: str, form: str, predicted: np.ndarray, measured: np.ndarray, decade: str = "all") -> Row:
    """Return one row of an accuracy report; times in any one unit. `bias` is the median of predicted / measured."""
    ratio = predicted / measured
    off = np.abs(ratio - 1)
    return {
        "what": what,
        "device": device,
        "format": form,
        "decade": decade,
        "rows": len(off),
        "median": float(np.median(off)),
        "mean": float(np.mean(off)),
        "bias": float(np.median(ratio)),
    }


DECADES = (("below 10 us", 0, 1e4), ("10 us", 1e4, 1e5), ("100 us", 1e5, 1e6), ("1 ms", 1e6, 1e7), ("10 ms", 1e7, 1e99))
"""Name, and first and last measured time in ns."""


def errors_by_decade(
    what: str, device: str, form: str, predicted_ns: np.ndarray, measured_ns: np.ndarray
) -> Iterator[Row]:
    """Yield the error row of all times, then one for each decade of the measured time that has any."""
    yield error(what, device, form, predicted_ns, measured_ns)
    for name, low, high in DECADES:
        inside = (measured_ns >= low) & (measured_ns < high)
        if inside.any():
            yield error(what, device, form, predicted_ns[inside], measured_ns[inside], name)
