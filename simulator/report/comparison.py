"""Comparing runs and sweeps: which keys differ, by how much each figure does, and whether that is more than chance.

Models: two runs of the same requests are compared request by request (common random numbers), in batches of their
order of arrival, after the warm-up; sweeps by pairs of equal seeds. Student's t over batches or pairs; several figures
are looked at, so a verdict needs the level that Holm's step-down rule gives (Holm 1979).
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from simulator.errors import InputError, Problem
from simulator.results.metrics import METRICS, lookup
from simulator.results.run import Run
from simulator.results.statistics import Interval, batches, chance, interval, paired, warm_up
from simulator.sweep.dataset import DONE

BATCHES = 20
"""Of one run; each is one observation."""
LEAST_PER_BATCH = 30
"""Requests of a batch below which quantiles say too little."""
QUANTILES = {"mean": None, "p50": 0.5, "p99": 0.99}
LATENCIES = ("ttft", "tpot", "e2e")
JUDGED = {
    "goodput": True,
    "ttft.mean": False,
    "ttft.p99": False,
    "tpot.mean": False,
    "tpot.p99": False,
    "e2e.mean": False,
    "e2e.p99": False,
    "throughput.output_tokens_per_s_per_device": True,
    "price.dollars_per_million_output_tokens": False,
    "energy.joules_per_output_token": False,
    "fct.mean": False,
    "fct.p99": False,
    "collective.mean": False,
    "collective.p99": False,
}
"""Figures that get a verdict, and whether more is better; each more would ask more evidence of all."""


class Difference(NamedTuple):
    """One figure in both, and the second less the first with its interval, if there is one."""

    metric: str
    first: float | None
    second: float | None
    change: Interval | None
    better: bool | None = None
    """Whether the second is better (True), worse (False), or chance may be all there is (None)."""
    chance: float | None = None
    """How likely so large a change is by chance alone, of a figure that gets a verdict."""

    @property
    def share(self) -> float | None:
        """The change over the first."""
        if self.first is None or self.second is None or not self.first:
            return None
        return (self.second - self.first) / abs(self.first)

    @property
    def verdict(self) -> str | None:
        """What `better` says in a word."""
        return {True: "better", False: "worse", None: None}[self.better]

    def as_row(self) -> dict[str, Any]:
        """Return the difference as a row of a table."""
        return {
            "metric": self.metric,
            "value_a": self.first,
            "value_b": self.second,
            "difference": None if self.first is None or self.second is None else self.second - self.first,
            "low": None if self.change is None else self.change.low,
            "high": None if self.change is None else self.change.high,
            "share": self.share,
            "verdict": self.verdict,
        }


class Comparison(NamedTuple):
    """What differs between two runs or two settings of a sweep."""

    names: tuple[str, str]
    keys: tuple[tuple[str, str, str], ...]
    """Path, and what the first and the second have there."""
    differences: tuple[Difference, ...]
    how: str
    """What the intervals rest on."""
    notes: tuple[str, ...] = ()

    def as_data(self) -> dict[str, Any]:
        """Return the comparison as JSON has it."""
        return {
            "a": self.names[0],
            "b": self.names[1],
            "keys": [{"path": path, "a": first, "b": second} for path, first, second in self.keys],
            "intervals": self.how,
            "notes": list(self.notes),
            "figures": [
                {
                    "metric": row.metric,
                    "a": row.first,
                    "b": row.second,
                    "low": None if row.change is None else row.change.low,
                    "high": None if row.change is None else row.change.high,
                    "verdict": row.verdict,
                }
                for row in self.differences
            ],
        }


# -- keys -------------------------------------------------------------------------------------------------------------


def flat(value: Any, path: str = "") -> dict[str, str]:
    """Return what a document has at each of its paths, as text."""
    if isinstance(value, Mapping) and value:
        parts = [flat(part, f"{path}.{key}" if path else str(key)) for key, part in value.items()]
    elif isinstance(value, list | tuple) and any(isinstance(part, Mapping) for part in value):
        parts = [flat(part, f"{path}[{at}]") for at, part in enumerate(value)]
    else:
        return {path: "" if value is None else str(value)}
    return {key: text for part in parts for key, text in part.items()}


def different_keys(first: Mapping[str, str], second: Mapping[str, str]) -> tuple[tuple[str, str, str], ...]:
    """Return the paths at which two flat documents differ; a path that one lacks is a dash."""
    paths = dict.fromkeys([*first, *second])
    found = [(path, first.get(path, "-"), second.get(path, "-")) for path in paths]
    leave = ("name", "description")
    return tuple(row for row in found if row[1] != row[2] and row[0] not in leave)


def _keys_of(run: Run) -> dict[str, str]:
    from simulator.documents import read_document

    return flat(read_document(run.path / "scenario.yaml").value)


# -- verdicts ---------------------------------------------------------------------------------------------------------


def difference(
    metric: str, first: float | None, second: float | None, values: Sequence[float], change: Interval | None
) -> Difference:
    """Return the difference of a figure; `values` are the observations of it, second less first."""
    likely = chance(values) if metric in JUDGED and len(values) > 1 else None
    return Difference(metric, first, second, change, None, likely)


def judge(found: Sequence[Comparison], confidence: float) -> list[Comparison]:
    """Return comparisons with their verdicts, by Holm's rule over the figures of all: one question, one level."""
    chances = {
        (i, j): row.chance
        for i, each in enumerate(found)
        for j, row in enumerate(each.differences)
        if row.chance is not None
    }
    significant: set[tuple[int, int]] = set()
    for rank, place in enumerate(sorted(chances, key=lambda place: (chances[place], place))):
        if chances[place] > (1 - confidence) / (len(chances) - rank):
            break
        significant.add(place)
    return [
        each._replace(differences=tuple(_verdict(row, (i, j) in significant) for j, row in enumerate(each.differences)))
        for i, each in enumerate(found)
    ]


def _verdict(row: Difference, significant: bool) -> Difference:
    if not significant or row.change is None or not row.change.mean:
        return row._replace(better=None)
    return row._replace(better=(row.change.mean > 0) == JUDGED[row.metric])


# -- two runs ---------------------------------------------------------------------------------------------------------


def compare_runs(first: Run, second: Run, confidence: float = 0.95) -> Comparison:
    """Return how two runs differ; raises InputError when one of them is partial."""
    for run in (first, second):
        if not run.complete:
            raise InputError(Problem("a run that was cut short", str(run.path), allowed="complete runs"))
    names = (_name(first), _name(second))
    keys = different_keys(_keys_of(first), _keys_of(second))
    figures = [(m.name, lookup(first.summary, m.name), lookup(second.summary, m.name)) for m in METRICS]
    there = [row for row in figures if row[1] is not None or row[2] is not None]
    series, how, notes = _observations(first, second)
    rows = []
    for name, one, other in there:
        values = series.get(name, ())
        change = interval(values, confidence) if len(values) > 1 else None
        rows.append(difference(name, one, other, values, change))
    return judge([Comparison(names, keys, tuple(rows), how, notes)], confidence)[0]


def _name(run: Run) -> str:
    return f"{run.manifest['scenario']} ({run.path.name})"


def _observations(first: Run, second: Run) -> tuple[dict[str, list[float]], str, tuple[str, ...]]:
    """Return by metric the differences of its batches, what they rest on, and what to know of them."""
    if "requests" not in first.manifest["tables"] or "requests" not in second.manifest["tables"]:
        return {}, "one run each without requests: differences have no intervals", ()
    mine, its = _latencies(first), _latencies(second)
    if not _same_requests(mine, its):
        what = "the runs have different requests, so nothing pairs them: give both one workload and seed"
        return {}, "one run each: differences have no intervals", (what,)
    cut = max(_settled(each["ttft"]) for each in (mine, its))
    count = len(mine["ttft"]) - cut
    number = min(BATCHES, count // LEAST_PER_BATCH)
    if number < 4:
        return {}, f"{count} requests: too few for intervals", ()
    said = f"the first {cut:,} requests are warm-up and left out of the intervals; B - A is of all and may lie outside"
    notes = (said,) if cut else ()
    series: dict[str, list[float]] = {}
    for what in LATENCIES:
        pairs = [(mine[what][cut:][part], its[what][cut:][part]) for part in batches(count, number)]
        for how, share in QUANTILES.items():
            values = [_figure(b, share) - _figure(a, share) for a, b in pairs]
            if all(math.isfinite(value) for value in values):
                series[f"{what}.{how}"] = values
    return series, f"pairs of the same requests, {number} batches of {count // number} in order of arrival", notes


def _latencies(run: Run) -> dict[str, Any]:
    """Return seconds by request in order of arrival, and what it asked for.

    As in the summary, a request that did not finish has no times: NaN.
    """
    columns = ["request_id", "arrival_ns", "first_token_ns", "finish_ns", "prompt_tokens", "output_tokens"]
    table = run.table("requests").select([*columns, "outcome"])
    order = np.argsort(table["request_id"].to_numpy())
    found = {name: table[name].to_numpy().astype(np.float64)[order] for name in columns}
    finished = (table["outcome"].to_numpy(zero_copy_only=False) == "finished")[order]
    arrival, first, finish = (found[f"{name}_ns"] / 1e9 for name in ("arrival", "first_token", "finish"))
    first, finish = (np.where(finished, times, np.nan) for times in (first, finish))
    tokens = found["output_tokens"]  # of one answer, as in the summary
    with np.errstate(invalid="ignore", divide="ignore"):
        tpot = np.where(tokens > 1, (finish - first) / np.maximum(tokens - 1, 1), np.nan)
    asked = np.stack([found["prompt_tokens"], found["output_tokens"]])
    return {"ttft": first - arrival, "tpot": tpot, "e2e": finish - arrival, "asked": asked, "arrival": arrival}


def _same_requests(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    """Return whether two runs had the same requests; when they came may differ, as with another rate."""
    return first["asked"].shape == second["asked"].shape and bool(np.all(first["asked"] == second["asked"]))


def _settled(values: Any) -> int:
    """Return how many of the first requests are warm-up; those without a value count, but say nothing of it."""
    known = np.flatnonzero(~np.isnan(values))
    cut = warm_up(values[known])
    return int(known[cut]) if cut else 0


def _filled(values: Any) -> Any:
    return values[~np.isnan(values)]


def _figure(values: Any, share: float | None) -> float:
    known = _filled(values)
    if not len(known):
        return math.nan
    return float(known.mean() if share is None else np.quantile(known, share))


# -- settings of sweeps -----------------------------------------------------------------------------------------------


def compare_rows(first: Any, second: Any, names: tuple[str, str], keys: Any, confidence: float = 0.95) -> Comparison:
    """Return how two sets of a sweep's rows differ, paired by seed; raises InputError when no seed is in both."""
    one, other = (frame[frame["status"] == DONE].set_index("seed") for frame in (first, second))
    seeds = [seed for seed in one.index if seed in other.index]
    if one.empty or other.empty:
        why = [str(error) for frame in (first, second) for error in frame["error"].dropna().unique()]
        return Comparison(names, tuple(keys), (), "none: one of the two has no figures", tuple(why))
    if not seeds:
        raise InputError(Problem(f"no seed was run in both {names[0]} and {names[1]}", allowed="the same `seeds`"))
    rows = []
    names_of = [m.name for m in METRICS]
    columns = [frame.loc[seeds, names_of].to_numpy(dtype=np.float64).T for frame in (one, other)]
    for metric, a, b in zip(names_of, *columns, strict=True):
        if np.isnan(a).any() or np.isnan(b).any():
            continue
        change = paired(a, b, confidence) if len(seeds) > 1 else None
        rows.append(difference(metric, float(a.mean()), float(b.mean()), list(b - a), change))
    how = f"{len(seeds)} pairs of equal seeds" if len(seeds) > 1 else "one seed: differences have no intervals"
    exact = len(seeds) > 1 and all(row.change is not None and row.change.half == 0 for row in rows)
    notes = ("seeds have no effect: the differences are exact, and say nothing of other requests",) if exact else ()
    return judge([Comparison(names, tuple(keys), tuple(rows), how, notes)], confidence)[0]


def changed(comparison: Comparison) -> tuple[Difference, ...]:
    """Return the figures that differ at all."""
    return tuple(row for row in comparison.differences if row.first != row.second)
