"""A run's figures, each a streamed query over the Parquet files that it wrote, in memory that does not grow with it.

Latencies are those of finished requests and their quantiles are exact (nearest rank: values that were observed).
All that did not finish count against the goodput; each latency says over how many requests it is taken.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simulator.errors import InvariantError
from simulator.results.histogram import LogHistogram
from simulator.results.metrics import POOLS, QUANTILES, SLOS
from simulator.results.quantiles import exact_quantiles
from simulator.results.tables import INSTANCES, LINKS, POWER, REQUESTS
from simulator.units import NS_PER_S

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Columns = Mapping[str, npt.NDArray[np.int64]]

Rows = Callable[[tuple[str, ...]], Iterator[Any]]
"""Streams these columns of the requests that figures are of, anew at each call."""
HOTTEST_LINKS = 5

_OUTCOMES = ("finished", "rejected", "timed_out", "cancelled", "unfinished")


def summarise(
    folder: Path,
    slo: Mapping[str, int],
    itl: LogHistogram,
    duration_ns: int,
    devices: int,
    hourly: float | None = None,
) -> dict[str, Any]:
    """Return the content of summary.json from the closed tables in `folder`; times in seconds, no value is None.

    `slo` maps ttft, tpot and e2e, those that were given, to limits in ns; `itl` holds the gaps between tokens,
    `duration_ns` is the simulated time, `devices` the number of accelerators leased, `hourly` what all of them cost in
    dollars per hour. An absent instances, power or
    links table gives no figures of that kind. Raises InvariantError when rows contradict themselves.
    """
    rows = partial(row_groups, folder / REQUESTS.file)
    totals = _totals(rows, slo)
    seconds = duration_ns / NS_PER_S
    finished = totals["finished"]
    tokens_per_s = _ratio(totals["generated_tokens"], seconds)
    durations = {name: _distribution(rows, name) for name in REQUEST_TIMES}
    return {
        "simulated_s": seconds,
        "devices": devices,
        "requests": _outcomes(totals),
        "goodput": _goodput(totals, seconds, slo),
        "ttft": durations["ttft"],
        "tpot": durations["tpot"],
        "itl": _of_histogram(itl),
        "e2e": durations["e2e"],
        "queue": durations["queue"],
        "kv_wait": durations["kv_wait"],
        "kv_transfer": durations["kv_transfer"],
        "kv_transfer_share": _ratio(totals["kv_transfer_ns"], totals["e2e_ns"]),
        "kv_transfer_bytes": totals["kv_transfer_bytes"],
        "throughput": {
            "requests_per_s": _ratio(finished, seconds),
            "prompt_tokens_per_s": _ratio(totals["prompt_tokens"], seconds),
            "output_tokens_per_s": tokens_per_s,
            "output_tokens_per_s_per_device": None if tokens_per_s is None else _ratio(tokens_per_s, devices),
        },
        "utilisation": _utilisation(folder / INSTANCES.file),
        "energy": _energy(folder / POWER.file, seconds, totals["generated_tokens"]),
        "price": _price(hourly, seconds, totals),
        "links": link_figures(folder),
        "preemptions": totals["preemptions"],
        "retries": totals["retries"],
    }


def requests_summary(rows: Rows, slo: Mapping[str, int], seconds: float) -> dict[str, Any]:
    """Return the figures of some of the requests of a run, `rows`, that stand in its summary in the same places."""
    totals = _totals(rows, slo)
    tokens = (("prompt_tokens_per_s", "prompt_tokens"), ("output_tokens_per_s", "generated_tokens"))
    rates = {"requests_per_s": "finished", **dict(tokens)}
    return {
        "requests": _outcomes(totals),
        "goodput": _goodput(totals, seconds, slo),
        **{name: _distribution(rows, name) for name in REQUEST_TIMES},
        "throughput": {name: _ratio(totals[what], seconds) for name, what in rates.items()},
        "preemptions": totals["preemptions"],
    }


def _outcomes(totals: Mapping[str, int]) -> dict[str, int]:
    return {"total": totals["total"], **{outcome: totals[outcome] for outcome in _OUTCOMES}}


def _goodput(totals: Mapping[str, int], seconds: float, slo: Mapping[str, int]) -> dict[str, Any]:
    return {
        "fraction": _ratio(totals["good"], totals["total"]),
        "requests_per_s": _ratio(totals["good"], seconds),
        "slo": {
            name: {"limit_s": limit_ns / NS_PER_S, "attained": _ratio(totals[name], totals["total"])}
            for name, limit_ns in slo.items()
        },
    }


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None


REQUEST_TIMES: Mapping[str, tuple[tuple[str, ...], Callable[["Columns"], "npt.NDArray[np.int64]"]]] = {
    "ttft": (("arrival_ns", "first_token_ns"), lambda c: c["first_token_ns"] - c["arrival_ns"]),
    "tpot": (("first_token_ns", "finish_ns", "output_tokens"), lambda c: _tpot(c)),
    "e2e": (("arrival_ns", "finish_ns"), lambda c: c["finish_ns"] - c["arrival_ns"]),
    "queue": (("queued_ns", "prefill_start_ns"), lambda c: c["prefill_start_ns"] - c["queued_ns"]),
    "kv_wait": (("kv_wait_ns", "kv_transfer_bytes"), lambda c: c["kv_wait_ns"][c["kv_transfer_bytes"] > 0]),
    "kv_transfer": (("kv_transfer_ns", "kv_transfer_bytes"), lambda c: c["kv_transfer_ns"][c["kv_transfer_bytes"] > 0]),
}


def _tpot(columns: "Columns") -> "npt.NDArray[np.int64]":
    """Per finished request with two tokens in an answer or more, rounded to the nearest nanosecond, halves up."""
    gaps = columns["output_tokens"] - 1
    several = gaps > 0
    spent_ns, gaps = (columns["finish_ns"] - columns["first_token_ns"])[several], gaps[several]
    return spent_ns // gaps + (2 * (spent_ns % gaps) >= gaps)


def row_groups(path: Path, columns: tuple[str, ...]) -> Iterator[Any]:
    """Yield these columns of a table, a group of rows at a time."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        for index in range(file.num_row_groups):
            yield file.read_row_group(index, columns=list(columns))


def _integers(table: Any, names: tuple[str, ...]) -> dict[str, Any]:
    """Columns as int64 arrays; null becomes -1, never a float."""
    import pyarrow as pa

    return {name: table[name].combine_chunks().cast(pa.int64()).fill_null(-1).to_numpy() for name in names}


def _finished(rows: Rows, columns: tuple[str, ...]) -> Iterator["Columns"]:
    import pyarrow.compute as pc

    for group in rows((*columns, "outcome")):
        yield _integers(group.filter(pc.equal(group["outcome"], "finished")), columns)


def _distribution(rows: Rows, name: str) -> dict[str, Any]:
    columns, duration_ns = REQUEST_TIMES[name]

    def chunks() -> Iterator["npt.NDArray[np.int64]"]:
        return map(duration_ns, _finished(rows, columns))

    count = total_ns = most_ns = 0
    for values in chunks():
        if not len(values):
            continue
        if values.min() < 0:
            raise InvariantError(f"{REQUESTS.file}: a finished request has a negative {name}, or lacks a time of it")
        count += len(values)
        total_ns += _sum(values)
        most_ns = max(most_ns, int(values.max()))
    if not count:
        return _statistics(0, None, dict.fromkeys(QUANTILES), None)
    quantiles = dict(zip(QUANTILES, exact_quantiles(chunks, list(QUANTILES.values())), strict=True))
    return _statistics(count, total_ns / count, quantiles, most_ns)


def _of_histogram(itl: LogHistogram) -> dict[str, Any]:
    quantiles = {name: itl.quantile(q) for name, q in QUANTILES.items()}
    return _statistics(itl.count, itl.mean, quantiles, itl.max if itl.count else None)


def _statistics(
    count: int, mean_ns: float | None, quantiles_ns: Mapping[str, int | None], max_ns: int | None
) -> dict[str, Any]:
    times_ns = {"mean": mean_ns, **quantiles_ns, "max": max_ns}
    return {"count": count, **{name: None if ns is None else ns / NS_PER_S for name, ns in times_ns.items()}}


def _sum(values: "npt.NDArray[np.int64]") -> int:
    """The exact sum, which may not fit 64 bits."""
    return (int((values >> 32).sum()) << 32) + int((values & 0xFFFFFFFF).sum())


_COUNTED = (
    *("arrival_ns", "prefill_end_ns", "first_token_ns", "finish_ns"),
    *("prompt_tokens", "output_tokens", "generated_tokens"),
    *("kv_transfer_ns", "kv_transfer_bytes", "preemptions", "retries"),
)


def _totals(rows: Rows, slo: Mapping[str, int]) -> dict[str, int]:
    """Counts and sums over all requests: outcomes, tokens, those that met each objective and (`good`) all of them."""
    import numpy as np

    names = ("total", "good", *_OUTCOMES, *SLOS, *_COUNTED, "e2e_ns")
    totals = dict.fromkeys(names, 0)
    for group in rows((*_COUNTED, "outcome")):
        columns = _integers(group, _COUNTED)
        outcomes = group["outcome"].combine_chunks().to_numpy(zero_copy_only=False)
        finished = outcomes == "finished"
        count = len(outcomes)
        found = {outcome: int((outcomes == outcome).sum()) for outcome in _OUTCOMES}
        if sum(found.values()) != count:
            raise InvariantError(f"{REQUESTS.file}: an outcome is none of {', '.join(_OUTCOMES)}")
        good = np.ones(count, bool)
        for name, limit_ns in slo.items():
            met = _met(name, limit_ns, columns) & finished
            totals[name] += int(met.sum())
            good &= met
        totals["good"] += int((good & finished).sum())
        totals["total"] += count
        for outcome, many in found.items():
            totals[outcome] += many
        totals["prompt_tokens"] += _sum(columns["prompt_tokens"][columns["prefill_end_ns"] >= 0])
        totals["e2e_ns"] += _sum((columns["finish_ns"] - columns["arrival_ns"])[finished])
        totals["kv_transfer_ns"] += _sum(columns["kv_transfer_ns"][finished])
        for name in ("generated_tokens", "kv_transfer_bytes", "preemptions", "retries"):
            totals[name] += _sum(columns[name])
    return totals


def _met(name: str, limit_ns: int, columns: "Columns") -> "npt.NDArray[np.bool_]":
    """Which finished requests are within an objective; an answer of one token has no time per token to fail."""
    import numpy as np

    if name == "tpot":
        gaps = np.maximum(columns["output_tokens"] - 1, 1)
        spent_ns = columns["finish_ns"] - columns["first_token_ns"]
        met: npt.NDArray[np.bool_] = (
            -(-spent_ns // gaps) <= limit_ns
        )  # the exact quotient, which needs no rounding here
        return met
    return REQUEST_TIMES[name][1](columns) <= limit_ns


def _utilisation(path: Path) -> dict[str, Any]:
    """Per role: shares of its instances' time and of their KV blocks, weighted by time; by group where it has several.

    An engine `decode-small-3` is of the group `small` of its role. `instances` is how many a role has on average over
    the run: an engine that changes roles counts for each as long as it is there.
    """
    if not path.exists():
        return {}
    import numpy as np

    sums: dict[tuple[str, str], dict[str, float]] = {}
    spent_ns: dict[tuple[str, str], int] = {}
    end_ns = 0
    numbers = ("start_ns", "end_ns", "prefill_ns", "decode_ns", "idle_ns", "kv_blocks_max", "kv_total_blocks")
    for rows in row_groups(path, ("instance", "role", "kv_blocks", *numbers)):
        columns = _integers(rows, numbers)
        roles = rows["role"].combine_chunks().to_numpy(zero_copy_only=False)
        kv_blocks = rows["kv_blocks"].to_numpy()
        names = rows["instance"].combine_chunks().dictionary_encode()
        places, firsts = np.unique(names.indices.to_numpy(), return_index=True)
        found = names.dictionary.to_pylist()
        owners = {found[place]: _group(roles[first], found[place]) for place, first in zip(places, firsts, strict=True)}
        known = {group: at for at, group in enumerate(sorted(set(owners.values())))}
        group_of = np.array([known[owners[name]] for name in found], dtype=np.int64)[names.indices.to_numpy()]
        whole_ns = columns["end_ns"] - columns["start_ns"]
        length_ns = whole_ns.astype(np.float64)
        for group, at in known.items():
            mine = group_of == at
            pool = sums.setdefault(group, dict.fromkeys(("prefill", "decode", "idle", "kv", "kv_total", "kv_max"), 0.0))
            for state in ("prefill", "decode", "idle"):
                pool[state] += float(columns[f"{state}_ns"][mine].sum(dtype=np.float64))
            spent_ns[group] = spent_ns.get(group, 0) + int(whole_ns[mine].sum())
            pool["kv"] += float((kv_blocks * length_ns)[mine].sum())
            pool["kv_total"] += float((columns["kv_total_blocks"] * length_ns)[mine].sum())
            most = columns["kv_blocks_max"][mine] / np.maximum(columns["kv_total_blocks"][mine], 1)
            pool["kv_max"] = max(pool["kv_max"], float(most.max()))
        end_ns = max(end_ns, int(columns["end_ns"].max()))
    roles_there = dict.fromkeys(role for role, _ in sums)
    return {role: _role(role, sums, spent_ns, end_ns) for role in roles_in_order(roles_there)}


def roles_in_order(found: Iterable[str]) -> list[str]:
    """Return the roles that occur, each once: those of the model first, then others by name."""
    there = set(found)
    return [*(role for role in POOLS if role in there), *sorted(there.difference(POOLS))]


def _group(role: str, instance: str) -> tuple[str, str]:
    """Return the role and the group of an instance, whose name begins with them."""
    name = instance.rpartition("-")[0]
    return role, name.removeprefix(f"{role}-") if name.startswith(f"{role}-") else role


def _role(
    role: str,
    sums: Mapping[tuple[str, str], Mapping[str, float]],
    spent_ns: Mapping[tuple[str, str], int],
    end_ns: int,
) -> dict[str, Any]:
    groups = [group for group in sums if group[0] == role]
    whole = {key: sum(sums[group][key] for group in groups) for key in sums[groups[0]]}
    whole["kv_max"] = max(sums[group]["kv_max"] for group in groups)
    figures = _pool(whole, _mean_count(sum(spent_ns[group] for group in groups), end_ns))
    if len(groups) == 1:
        return figures
    return figures | {
        "groups": {group[1]: _pool(sums[group], _mean_count(spent_ns[group], end_ns)) for group in groups}
    }


def _price(hourly: float | None, seconds: float, totals: Mapping[str, int]) -> dict[str, float | None]:
    """Return what the leased devices cost in dollars, idle or not; nothing if that is unknown."""
    if hourly is None:
        return {}
    dollars = hourly * seconds / 3600
    return {
        "dollars_per_h": hourly,
        "dollars": dollars,
        "dollars_per_request": _ratio(dollars, totals["finished"]),
        "dollars_per_million_output_tokens": _ratio(1e6 * dollars, totals["generated_tokens"]),
    }


def _energy(path: Path, seconds: float, tokens: int) -> dict[str, Any]:
    """Return the energy of all engines in J and kWh, their mean power and J per output token; nothing if unknown."""
    if not path.exists():
        return {}
    import numpy as np

    pools: dict[str, float] = {}
    for group in row_groups(path, ("role", "energy_j")):
        roles = group["role"].combine_chunks().to_numpy(zero_copy_only=False)
        joules = group["energy_j"].to_numpy()
        for role in sorted(set(roles)):
            pools[role] = pools.get(role, 0.0) + float(np.sum(joules[roles == role]))
    total = sum(pools.values())
    return {
        "joules": total,
        "kwh": total / 3.6e6,
        "mean_w": _ratio(total, seconds),
        "joules_per_output_token": _ratio(total, tokens),
        "pools": pools,
    }


def _mean_count(spent_ns: int, end_ns: int) -> float:
    whole, rest = divmod(spent_ns, end_ns) if end_ns else (0, 0)
    return spent_ns / end_ns if rest else whole


def _pool(sums: Mapping[str, float], instances: float) -> dict[str, Any]:
    whole_ns = sums["prefill"] + sums["decode"] + sums["idle"]
    return {
        "instances": instances,
        "busy": _ratio(sums["prefill"] + sums["decode"], whole_ns),
        **{state: _ratio(sums[state], whole_ns) for state in ("prefill", "decode", "idle")},
        "kv_mean": _ratio(sums["kv"], sums["kv_total"]),
        "kv_max": sums["kv_max"],
    }


def link_figures(folder: Path) -> dict[str, Any]:
    """Return the links of a run's folder with the highest mean utilisation, and how many carried anything."""
    path = folder / LINKS.file
    hottest: list[tuple[float, int, dict[str, Any]]] = []
    used = 0
    if path.exists():
        for group in row_groups(path, tuple(column.name for column in LINKS.columns)):
            for link in group.to_pylist():
                if not (link["bytes"] or link["engine_bytes"]):
                    continue
                used += 1
                hottest.append((-link["mean_utilisation"], link["link"], link))
            hottest = sorted(hottest, key=lambda entry: entry[:2])[:HOTTEST_LINKS]
    links = [link for _, _, link in hottest]
    return {
        "used": used,
        "utilisation_max": links[0]["mean_utilisation"] if links else None,
        "hottest": [
            {
                **{key: link[key] for key in ("link", "source", "target", "tier", "mean_utilisation", "busy_fraction")},
                "peak_utilisation": _ratio(link["peak_bytes_per_s"], link["capacity_bytes_per_s"]),
            }
            for link in links
        ],
    }
