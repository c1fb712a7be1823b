"""The figures of a network-only run, streamed from its tables: completion times, slowdown, collectives, losses."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simulator.errors import InvariantError
from simulator.results.metrics import QUANTILES
from simulator.results.quantiles import exact_quantiles
from simulator.results.summary import link_figures
from simulator.results.tables import COLLECTIVES, FLOWS
from simulator.units import NS_PER_S

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

_FINE = 1_000_000  # a slowdown is counted in millionths, so that its quantiles are those of integers


def summarise_flows(folder: Path, duration_ns: int) -> dict[str, Any]:
    """Return summary.json of the closed tables in `folder`: times in seconds, quantiles nearest-rank and exact."""
    path = folder / FLOWS.file
    counts = {"total": 0, "completed": 0, "failed": 0, "unfinished": 0, "bytes": 0, "bytes_completed": 0}
    for group in _groups(path):
        done, ended = group["completed"], group["finish_ns"] >= 0
        counts["total"] += len(done)
        counts["completed"] += int(done.sum())
        counts["failed"] += int((ended & ~done).sum())
        counts["unfinished"] += int((~ended).sum())
        counts["bytes"] += int(group["bytes"].sum())
        counts["bytes_completed"] += int(group["bytes"][done].sum())
    seconds = duration_ns / NS_PER_S
    return {
        "simulated_s": seconds,
        "flows": counts | {"bytes_per_s": counts["bytes_completed"] / seconds if seconds else None},
        "fct": _statistics(path, _completion_ns, NS_PER_S),
        "slowdown": _statistics(path, _slowdown, _FINE),
        "collectives": _collectives(folder / COLLECTIVES.file),
        "links": link_figures(folder),
    }


def _collectives(path: Path) -> dict[str, Any]:
    """Return counts, statistics of the time and of the time over the closed form, and a line for each run of them.

    `bus_bytes_per_s` is nccl-tests' bus bandwidth: the rate of the busiest rank's link if the ring were all there is.
    """
    import pyarrow.parquet as pq

    if not pq.read_metadata(path).num_rows:
        return {"total": 0, "completed": 0, "time": _of_values(()), "slowdown": _of_values(()), "runs": []}
    import pandas as pd

    rows = pq.read_table(path).to_pandas()
    rows["time_s"] = (rows["finish_ns"] - rows["start_ns"]) / NS_PER_S
    rows["slowdown"] = rows["time_s"] * NS_PER_S / rows["ideal_ns"].where(rows["ideal_ns"] > 0)
    done = rows[rows["completed"]]
    lines = []
    for run, group in rows.groupby("run", sort=True):
        first, ended = group.iloc[0], group[group["completed"]]
        mean_s = float(ended["time_s"].mean()) if len(ended) else None
        chosen = {name: first[name] for name in ("operation", "algorithm", "protocol")}
        lines.append(
            {
                "run": int(str(run)),
                **{name: None if pd.isna(value) else str(value) for name, value in chosen.items()},
                **{name: int(first[name]) for name in ("ranks", "groups", "bytes")},
                "count": len(group),
                "completed": len(ended),
                "mean_s": mean_s,
                "ideal_s": float(first["ideal_ns"]) / NS_PER_S,
                "bus_bytes_per_s": _bus_rate(str(first["operation"]), int(first["ranks"]), int(first["bytes"]), mean_s),
            }
        )
    return {
        "total": len(rows),
        "completed": len(done),
        "time": _of_values(done["time_s"].tolist()),
        "slowdown": _of_values(done["slowdown"].dropna().tolist()),
        "runs": lines,
    }


_PASSES = {"all_reduce": 2, "reduce_scatter": 1, "all_gather": 1, "all_to_all": 1}


def _bus_rate(operation: str, ranks: int, size_bytes: int, mean_s: float | None) -> float | None:
    """Return the message times its factor (nccl-tests, doc/PERFORMANCE.md) over the time; None for an exchange."""
    if not mean_s or operation in ("dispatch", "combine"):
        return None
    factor = _PASSES[operation] * (ranks - 1) / ranks if operation in _PASSES else 1.0
    return factor * size_bytes / mean_s


def _of_values(values: Sequence[float]) -> dict[str, Any]:
    names = ("mean", *QUANTILES, "max")
    if not values:
        return {"count": 0, **dict.fromkeys(names)}
    import numpy as np

    quantiles = [float(q) for q in np.quantile(values, list(QUANTILES.values()), method="inverted_cdf")]
    figures = (float(np.mean(values)), *quantiles, max(values))
    return {"count": len(values), **dict(zip(names, figures, strict=True))}


def _groups(path: Path) -> Iterator[dict[str, Any]]:
    import pyarrow.parquet as pq

    names = ["bytes", "start_ns", "finish_ns", "ideal_ns"]
    with pq.ParquetFile(path) as file:
        for index in range(file.num_row_groups):
            group = file.read_row_group(index, columns=[*names, "completed"])
            columns = {name: group[name].combine_chunks().fill_null(-1).to_numpy() for name in names}
            yield columns | {"completed": group["completed"].combine_chunks().to_numpy(zero_copy_only=False)}


def _completion_ns(group: dict[str, Any]) -> "npt.NDArray[np.int64]":
    done = group["completed"]
    spent: npt.NDArray[np.int64] = (group["finish_ns"] - group["start_ns"])[done]
    if len(spent) and spent.min() < 0:
        raise InvariantError("a flow arrived before it started")
    return spent


def _slowdown(group: dict[str, Any]) -> "npt.NDArray[np.int64]":
    import numpy as np

    spent, ideal = _completion_ns(group), group["ideal_ns"][group["completed"]]
    whole: npt.NDArray[np.int64] = np.rint(spent * (_FINE / np.maximum(ideal, 1))).astype(np.int64)[ideal > 0]
    return whole


def _statistics(path: Path, of: Any, unit: int) -> dict[str, Any]:
    def chunks() -> Iterator["npt.NDArray[np.int64]"]:
        return map(of, _groups(path))

    count, total, most = 0, 0.0, 0
    for values in chunks():
        count += len(values)
        total += float(values.sum(dtype=float))
        most = max(most, int(values.max(initial=0)))
    names = ("mean", *QUANTILES, "max")
    if not count:
        return {"count": 0, **dict.fromkeys(names)}
    quantiles = [value / unit for value in exact_quantiles(chunks, list(QUANTILES.values()))]
    return {"count": count, **dict(zip(names, (total / count / unit, *quantiles, most / unit), strict=True))}
