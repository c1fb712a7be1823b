"""Statistics of a trace in one streaming pass, exact for counts, token lengths, peaks and reuse.

Memory is flat but for what must be remembered to be exact: distinct block hashes, and session names.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from simulator.units import NS_PER_S

Counts = NDArray[np.int64]
PERCENTILES = (1, 5, 25, 50, 75, 90, 95, 99)
_BARS = 64


class Histogram:
    """Exact counts of whole numbers; memory grows with the distinct values only."""

    def __init__(self) -> None:
        self._values = np.empty(0, np.int64)
        self._counts = np.empty(0, np.int64)

    def add(self, values: Counts) -> None:
        """Count every value of an array."""
        new, counts = np.unique(values, return_counts=True)
        every, where = np.unique(np.concatenate((self._values, new)), return_inverse=True)
        total = np.zeros(len(every), np.int64)
        np.add.at(total, where, np.concatenate((self._counts, counts)))
        self._values, self._counts = every, total

    def table(self) -> tuple[Counts, Counts]:
        """Return the distinct values, rising, and how often each came."""
        return self._values, self._counts

    def total(self) -> int:
        """Return the sum of all values."""
        return sum(int(v) * int(c) for v, c in zip(self._values, self._counts, strict=True))

    def percentile(self, percent: float) -> int:
        """Return the nearest-rank percentile: the least value that at least `percent` % do not exceed."""
        cumulative = np.cumsum(self._counts)
        rank = max(math.ceil(percent * int(cumulative[-1]) / 100), 1)
        return int(self._values[np.searchsorted(cumulative, rank)])

    def summary(self) -> dict[str, float]:
        """Return the mean, PERCENTILES and the max."""
        result: dict[str, float] = {"mean": self.total() / int(self._counts.sum())}
        result |= {f"p{percent}": self.percentile(percent) for percent in PERCENTILES}
        return result | {"max": int(self._values[-1])}


class _Gaps:
    """Mean and variance of the times between arrivals, batch by batch (Chan, Golub and LeVeque, 1979)."""

    def __init__(self) -> None:
        self.n, self.mean, self.squares = 0, 0.0, 0.0
        self._last: int | None = None

    def add(self, arrival_ns: Counts) -> None:
        gaps = np.diff(arrival_ns) if self._last is None else np.diff(arrival_ns, prepend=self._last)
        self._last = int(arrival_ns[-1])
        if not len(gaps):
            return
        mean = float(gaps.mean())
        squares = float(np.square(gaps - mean).sum())
        n = self.n + len(gaps)
        self.squares += squares + (mean - self.mean) ** 2 * self.n * len(gaps) / n
        self.mean += (mean - self.mean) * len(gaps) / n
        self.n = n

    def cv(self) -> float | None:
        return math.sqrt(self.squares / self.n) / self.mean if self.n > 1 and self.mean > 0 else None


class _Window:
    """Counts in windows of one length: the most in any window (sliding), and the spread over those laid end to end."""

    def __init__(self, window_ns: int) -> None:
        self.window_ns = window_ns
        self.peak = 0
        self._recent = np.empty(0, np.int64)
        self._first: int | None = None
        self._open, self._open_count = 0, 0
        self._sum, self._squares = 0, 0

    def add(self, arrival_ns: Counts) -> None:
        known = np.concatenate((self._recent, arrival_ns))
        before = np.searchsorted(known, known - self.window_ns, side="right")
        self.peak = max(self.peak, int((np.arange(1, len(known) + 1) - before).max()))
        self._recent = known[before[-1] :]
        self._first = int(arrival_ns[0]) if self._first is None else self._first
        for index, count in zip(
            *np.unique((arrival_ns - self._first) // self.window_ns, return_counts=True), strict=True
        ):
            if index != self._open:
                self._close()
                self._open = int(index)
            self._open_count += int(count)

    def _close(self) -> None:
        self._sum += self._open_count
        self._squares += self._open_count**2
        self._open_count = 0

    def dispersion(self) -> float | None:
        """Return variance over mean of the counts in complete windows; that of the last arrival is not complete."""
        if self._open < 2 or not self._sum:
            return None
        mean = self._sum / self._open
        return (self._squares / self._open - mean**2) / mean


class _Timeline:
    """Arrivals over time in at most 64 bars; the bars double their width when the trace outgrows them."""

    def __init__(self) -> None:
        self.width_ns = 1_000_000
        self.counts = np.zeros(_BARS, np.int64)
        self._first: int | None = None

    def add(self, arrival_ns: Counts) -> None:
        self._first = int(arrival_ns[0]) if self._first is None else self._first
        since = arrival_ns - self._first
        while since[-1] >= self.width_ns * _BARS:
            self.counts = np.concatenate((self.counts.reshape(-1, 2).sum(axis=1), np.zeros(_BARS // 2, np.int64)))
            self.width_ns *= 2
        self.counts += np.bincount(since // self.width_ns, minlength=_BARS)


class _Reuse:
    """Tokens that an unlimited prefix cache would hold: leading blocks whose hashes came in an earlier request."""

    def __init__(self, block_tokens: int) -> None:
        self.block_tokens = block_tokens
        self.tokens = 0
        self.blocks = 0
        self.seen: set[int] = set()

    def add(self, prompt_tokens: list[int], hashes: list[list[int] | None]) -> None:
        seen = self.seen
        for prompt, chain in zip(prompt_tokens, hashes, strict=True):
            if not chain:
                continue
            hit = 0
            for block in chain:
                if block not in seen:
                    break
                hit += 1
            self.blocks += len(chain)
            self.tokens += min(hit * self.block_tokens, prompt)
            seen.update(chain)


@dataclass(frozen=True)
class Profile:
    """What `profile` found; a statistic that the trace cannot give is None.

    Rates are per second. `reuse_share` is the share of all prompt tokens that an unlimited prefix cache would spare.
    `timeline` holds counts in windows of `timeline_ns` from the first arrival.
    """

    requests: int
    first_arrival_ns: int
    span_ns: int
    rate_per_s: float | None
    interarrival_cv: float | None
    dispersion_1s: float | None
    peak_1s: int
    peak_60s: int
    prompt_tokens: dict[str, float]
    output_tokens: dict[str, float]
    prompt_total: int
    output_total: int
    reuse_share: float | None
    distinct_blocks: int | None
    total_blocks: int | None
    sessions: int | None
    turns_per_session: float | None
    models: dict[str, int]
    timeline_ns: int
    timeline: tuple[int, ...]
    prompt_histogram: tuple[Counts, Counts]
    output_histogram: tuple[Counts, Counts]

    @property
    def prompt_to_output(self) -> float:
        """Return prompt tokens for each output token."""
        return self.prompt_total / self.output_total

    def record(self) -> dict[str, Any]:
        """Return the statistics as plain JSON values, without the histograms."""
        left_out = ("prompt_histogram", "output_histogram")
        record = {name: value for name, value in vars(self).items() if name not in left_out}
        return record | {"prompt_to_output": self.prompt_to_output, "timeline": list(self.timeline)}


class _Names:
    """How many rows carry each name of a text column."""

    def __init__(self) -> None:
        self.rows: dict[str, int] = {}

    def add(self, column: pa.Array) -> None:
        if column.null_count == len(column):
            return
        for item in column.drop_null().value_counts().to_pylist():
            self.rows[item["values"]] = self.rows.get(item["values"], 0) + item["counts"]


def profile(batches: Iterable[pa.RecordBatch], prefix_block_tokens: int | None = None) -> Profile:
    """Return the statistics of canonical batches that hold at least one row.

    Percentiles are nearest-rank. The rate is (requests - 1) / span, None for a span of zero. The CV is that of the
    population of gaps. A peak is the most arrivals in any half-open window of that length, wherever it begins.
    """
    prompts, outputs = Histogram(), Histogram()
    gaps, second, minute, timeline = _Gaps(), _Window(NS_PER_S), _Window(60 * NS_PER_S), _Timeline()
    reuse = None if prefix_block_tokens is None else _Reuse(prefix_block_tokens)
    sessions, models = _Names(), _Names()
    first_ns, last_ns = -1, -1
    for batch in batches:
        arrival_ns = batch.column("arrival_ns").to_numpy()
        first_ns, last_ns = (first_ns if first_ns >= 0 else int(arrival_ns[0])), int(arrival_ns[-1])
        for statistic in (gaps, second, minute, timeline):
            statistic.add(arrival_ns)
        prompts.add(batch.column("prompt_tokens").to_numpy())
        outputs.add(batch.column("output_tokens").to_numpy())
        sessions.add(batch.column("session"))
        models.add(batch.column("model"))
        if reuse is not None:
            reuse.add(batch.column("prompt_tokens").to_pylist(), batch.column("prefix_hashes").to_pylist())
    requests = int(prompts.table()[1].sum())
    used = (last_ns - first_ns) // timeline.width_ns + 1
    return Profile(
        requests=requests,
        first_arrival_ns=first_ns,
        span_ns=last_ns - first_ns,
        rate_per_s=(requests - 1) * NS_PER_S / (last_ns - first_ns) if last_ns > first_ns else None,
        interarrival_cv=gaps.cv(),
        dispersion_1s=second.dispersion(),
        peak_1s=second.peak,
        peak_60s=minute.peak,
        prompt_tokens=prompts.summary(),
        output_tokens=outputs.summary(),
        prompt_total=prompts.total(),
        output_total=outputs.total(),
        reuse_share=reuse.tokens / prompts.total() if reuse else None,
        distinct_blocks=len(reuse.seen) if reuse else None,
        total_blocks=reuse.blocks if reuse else None,
        sessions=len(sessions.rows) or None,
        turns_per_session=sum(sessions.rows.values()) / len(sessions.rows) if sessions.rows else None,
        models=dict(sorted(models.rows.items())),
        timeline_ns=timeline.width_ns,
        timeline=tuple(timeline.counts[:used].tolist()),
        prompt_histogram=prompts.table(),
        output_histogram=outputs.table(),
    )
