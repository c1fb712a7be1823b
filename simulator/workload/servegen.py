"""Requests drawn from a ServeGen profile: clients whose rate, burstiness and token lengths change in time.

Source: ServeGen (github.com/alibaba/ServeGen): for each client and window of 600 s a count of requests and a fitted law
of the gaps between them (Gamma or Weibull), for each 6 h the distributions of its prompt and output tokens.
Model: the window's exact count, its gaps in the proportions that the law draws; prompts independent of outputs.
"""

from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from simulator.errors import InputError, Problem
from simulator.randomness import stream
from simulator.units import NS_PER_S
from simulator.workload.schema import MAX_TOKENS, VERSION, VERSION_KEY, Report, make_batch, rebatch

WINDOW_NS = 600 * NS_PER_S
_RATES, _LENGTHS = ".trace.parquet", ".dataset.parquet"
_RATE_COLUMNS = {
    "client": "int32",
    "timestamp": "int64",
    "rate": "float64",
    "pat_name": "string",
    "pat_arg1": "float64",
}
_LENGTH_COLUMNS = {"client": "int32", "window": "int32", "field": "string", "value": "float64", "prob": "float64"}
_FIELDS = ("input_tokens", "output_tokens")
_LAWS = ("Gamma", "Weibull")

Whole = NDArray[np.int64]
Places = NDArray[np.int8]
Floats = NDArray[np.float64]


class Activity(NamedTuple):
    """A client in one window: how many requests, and the law and shape of the gaps between them."""

    client: int
    requests: int
    law: str
    shape: float


class Counts(NamedTuple):
    """A distribution of token counts: values, and their cumulative weights."""

    values: Whole
    cumulative: Floats

    def draw(self, random: np.random.Generator, n: int) -> Whole:
        """Return `n` counts; a count of no tokens becomes 1, the least that an engine can serve."""
        places = np.searchsorted(self.cumulative, random.random(n) * self.cumulative[-1], side="right")
        counts: Whole = np.clip(self.values[np.minimum(places, len(self.values) - 1)], 1, MAX_TOKENS)
        return counts


class ServeGenSource:
    """A profile as two files, X.trace.parquet with rates and X.dataset.parquet with lengths beside it."""

    prefix_block_tokens: int | None = None
    columns_present: tuple[str, ...] = ("tenant",)

    def __init__(self, path: Path, seed: int) -> None:
        """Read the profile, which stays in memory; raises InputError when it is not one."""
        if not path.name.endswith(_RATES):
            raise InputError(Problem(f"a ServeGen profile is X{_RATES}, with X{_LENGTHS} beside it", str(path)))
        self.seed = seed
        self.metadata = {VERSION_KEY: VERSION}
        lengths = path.with_name(path.name.removesuffix(_RATES) + _LENGTHS)
        self.files: tuple[Path, ...] = (path, lengths)
        self._windows = _windows(_read(path, _RATE_COLUMNS), path)
        self._distributions = _distributions(_read(lengths, _LENGTH_COLUMNS), lengths)
        self._length_windows = sorted({window for _, window, _ in self._distributions})
        self.requests = sum(one.requests for its in self._windows.values() for one in its)
        self.notes: tuple[str, ...] = self._lacking(lengths.name)

    def _lacking(self, name: str) -> tuple[str, ...]:
        """Return a note on clients whose token lengths are not known at the time of their requests."""
        known = {(client, window) for client, window, _ in self._distributions}
        every, lacking, requests = set(), set(), 0
        for timestamp, its in self._windows.items():
            at = self._lengths_at(timestamp)
            for one in its:
                every.add(one.client)
                if (one.client, at) not in known:
                    lacking.add(one.client)
                    requests += one.requests
        if not lacking:
            return ()
        what = f"{len(lacking)} of {len(every)} clients, {requests / self.requests:.0%} of the requests,"
        return (f"{what} have no token lengths in {name}: they draw from those of all others",)

    def batches(self, report: Report, strict: bool, start_ns: int = 0) -> Iterator[pa.RecordBatch]:
        """Yield canonical batches in order of arrival, from the window of `start_ns` on; clients are tenants."""
        for batch in rebatch(self._drawn(start_ns)):
            report.rows_read += batch.num_rows
            yield batch

    def skipped(self, start_ns: int) -> int:
        """Return the requests of the windows that end by `start_ns`, which are not drawn."""
        over = (its for timestamp, its in self._windows.items() if timestamp * NS_PER_S + WINDOW_NS <= start_ns)
        return sum(one.requests for active in over for one in active)

    def _drawn(self, start_ns: int) -> Iterator[pa.RecordBatch]:
        pooled: dict[tuple[int, str], Counts] = {}
        for timestamp, active in self._windows.items():
            begin_ns = timestamp * NS_PER_S
            if begin_ns + WINDOW_NS <= start_ns or not active:
                continue
            at = self._lengths_at(timestamp)
            if (at, _FIELDS[0]) not in pooled:
                pooled = {(at, field): self._pool(at, field) for field in _FIELDS}
            parts = []
            for one in active:
                # A stream of its own for each client and window: a part that is drawn alone is the same part.
                random = stream(self.seed, f"servegen/{one.client}/{timestamp}")
                times = begin_ns + _placed(_gaps(random, one.law, one.shape, one.requests + 1))
                lengths = (
                    self._distributions.get((one.client, at, field), pooled[at, field]).draw(random, one.requests)
                    for field in _FIELDS
                )
                parts.append((times, *lengths, np.full(one.requests, one.client)))
            arrival_ns, prompts, outputs, clients = (np.concatenate(column) for column in zip(*parts, strict=True))
            order = np.argsort(arrival_ns, kind="stable")
            names, which = np.unique(clients[order], return_inverse=True)
            columns = {
                "arrival_ns": arrival_ns[order],
                "prompt_tokens": prompts[order],
                "output_tokens": outputs[order],
                "tenant": pa.array([f"client-{name}" for name in names]).take(pa.array(which)),
            }
            yield make_batch(columns, len(order))

    def _lengths_at(self, timestamp: int) -> int:
        """Return the window of lengths that holds at a time: the last that has begun, or the first."""
        return self._length_windows[max(bisect_right(self._length_windows, timestamp) - 1, 0)]

    def _pool(self, at: int, field: str) -> Counts:
        """Return the distribution over all clients of a window of lengths, each by its requests in that time."""
        place = self._length_windows.index(at)
        ends = self._length_windows[place + 1] if place + 1 < len(self._length_windows) else max(self._windows) + 1
        requests: dict[int, int] = {}
        for timestamp, active in self._windows.items():
            if at <= timestamp < ends:
                for one in active:
                    requests[one.client] = requests.get(one.client, 0) + one.requests
        known = [client for client, window, its in self._distributions if window == at and its == field]
        parts = [self._distributions[client, at, field] for client in known]
        weights = [requests.get(client, 0) for client in known]
        if not any(weights):
            weights = [1] * len(known)
        shares = [
            np.diff(part.cumulative, prepend=0.0) * (weight / part.cumulative[-1])
            for part, weight in zip(parts, weights, strict=True)
        ]
        return Counts(np.concatenate([part.values for part in parts]), np.cumsum(np.concatenate(shares)))


def _gaps(random: np.random.Generator, law: str, shape: float, n: int) -> Floats:
    return random.standard_gamma(shape, n) if law == "Gamma" else random.weibull(shape, n)


def _placed(gaps: Floats) -> Whole:
    """Return the times within a window at which requests arrive between gaps of these proportions that fill it."""
    ends = np.cumsum(gaps)
    if not ends[-1] > 0:  # shapes near zero: one gap is all, and every gap as likely as the others
        return np.zeros(len(gaps) - 1, np.int64)
    within: Whole = np.minimum(np.floor(ends[:-1] / ends[-1] * WINDOW_NS), WINDOW_NS - 1).astype(np.int64)
    return within


def _read(path: Path, types: dict[str, str]) -> dict[str, Any]:
    try:
        table = pq.read_table(path, columns=list(types), use_threads=False)
        columns = {name: table.column(name).cast(type_).combine_chunks() for name, type_ in types.items()}
    except FileNotFoundError:
        raise InputError(Problem("no such file", str(path))) from None
    except (pa.ArrowException, OSError, KeyError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(Problem(f"not a file of a ServeGen profile: {reason}", str(path))) from None
    if not table.num_rows:
        raise InputError(Problem("no rows", str(path)))
    if any(column.null_count for name, column in columns.items() if name != "pat_name"):
        raise InputError(Problem("a value is missing", str(path)))
    return {name: c if types[name] == "string" else c.to_numpy() for name, c in columns.items()}


def _places(column: pa.Array, words: tuple[str, ...]) -> Places:
    """Return which of some words each text is, -1 for none of them."""
    import pyarrow.compute as pc  # slow to import, and needed for profiles only

    places: Places = pc.fill_null(pc.index_in(column, pa.array(words)), -1).to_numpy().astype(np.int8)
    return places


def _windows(columns: dict[str, Any], path: Path) -> dict[int, list[Activity]]:
    """Return who is active in each window, in order of time and client."""
    counts = columns["rate"] * (WINDOW_NS // NS_PER_S)
    requests = np.rint(counts).astype(np.int64)
    law = _places(columns["pat_name"], _LAWS)
    shape, start = columns["pat_arg1"], columns["timestamp"]
    busy = requests > 0
    for wrong, what in (
        (np.abs(counts - requests) > 1e-6, "a rate that is no whole number of requests in 600 s"),
        (counts < 0, "a rate below zero"),
        ((start % (WINDOW_NS // NS_PER_S) != 0) | (start < 0), "a window that does not begin at a multiple of 600 s"),
        (busy & (law < 0), f"a law of gaps that is not one of {', '.join(_LAWS)}"),
        (busy & ~((shape > 0) & np.isfinite(shape)), "a shape of gaps that is not above zero"),
    ):
        if wrong.any():
            raise InputError(Problem(f"row {int(np.flatnonzero(wrong)[0]) + 1}: {what}", str(path)))
    if not busy.any():
        raise InputError(Problem("no client has any request", str(path)))
    found: dict[int, list[Activity]] = {}
    order = np.lexsort((columns["client"], start))
    again = (np.diff(start[order]) == 0) & (np.diff(columns["client"][order]) == 0)
    if again.any():
        row = int(order[int(np.flatnonzero(again)[0]) + 1]) + 1
        raise InputError(Problem(f"row {row}: a client that has this window already", str(path)))
    for row in order.tolist():
        active = found.setdefault(int(start[row]), [])
        if busy[row]:
            client = int(columns["client"][row])
            active.append(Activity(client, int(requests[row]), _LAWS[law[row]], float(shape[row])))
    return found


def _distributions(columns: dict[str, Any], path: Path) -> dict[tuple[int, int, str], Counts]:
    """Return the distributions by client, window and field."""
    code = _places(columns["field"], _FIELDS)
    missing = [field for number, field in enumerate(_FIELDS) if number not in code]
    if missing:
        has = ", ".join(sorted(columns["field"].unique().to_pylist()))
        raise InputError(Problem(f"no lengths of {' and '.join(missing)}; it has {has}", str(path)))
    kept = np.flatnonzero(code >= 0)
    order = kept[np.lexsort((columns["value"][kept], code[kept], columns["window"][kept], columns["client"][kept]))]
    keys = [column[order] for column in (columns["client"], columns["window"], code)]
    values, weights = columns["value"][order].astype(np.int64), columns["prob"][order]
    if not (np.isfinite(weights) & (weights >= 0)).all():
        raise InputError(Problem("a probability that is not zero or more", str(path)))
    first = np.flatnonzero(np.append(True, np.any([np.diff(column) != 0 for column in keys], axis=0)))
    found = {}
    for begin, end in zip(first.tolist(), [*first[1:].tolist(), len(order)], strict=True):
        client, window, field = (int(column[begin]) for column in keys)
        cumulative = np.cumsum(weights[begin:end])
        if cumulative[-1] > 0:
            found[client, window, _FIELDS[field]] = Counts(values[begin:end], cumulative)
    for name in _FIELDS:
        windows = {window for _, window, its in found if its == name}
        lacking = sorted({window for _, window, _ in found} - windows)
        if lacking:
            raise InputError(Problem(f"window {lacking[0]}: no {name} of any client", str(path)))
    return found
