"""What callers say of their requests beyond lengths: tenants, priorities, predicted lengths, prompts that begin alike.

Model: each drawn from its own random stream, request by request, so that none shifts another; a predictor errs by a
lognormal factor around the true length, shared prefixes are popular by Zipf's law.
"""

from collections.abc import Iterator, Sequence
from itertools import repeat
from typing import TYPE_CHECKING, Any

import numpy as np

from simulator.randomness import stream
from simulator.scenario.workload import Callers, Prefixes
from simulator.serving.prefix_cache import session_keys
from simulator.serving.request import PLAIN, Traits

if TYPE_CHECKING:
    import pyarrow as pa


class Drawn:
    """The traits of requests in order of arrival; asked batch by batch."""

    def __init__(self, seed: int, callers: Callers) -> None:
        self._callers = callers
        names = ("tenants", "priorities", "prediction")
        self._tenants, self._priorities, self._prediction = (stream(seed, name) for name in names)

    def traits(self, batch: "pa.RecordBatch") -> Iterator[Traits]:
        """Yield the traits of each request of a batch: the trace's tenant, and what is drawn."""
        callers, rows = self._callers, batch.num_rows
        column = batch.column("tenant")
        tenants: Any = repeat(None) if column.null_count == rows else column.to_pylist()
        if callers.tenants is not None:
            tenants = _chosen(self._tenants, callers.tenants, rows)
        priorities: Any = repeat(0)
        if callers.priorities is not None:
            priorities = map(int, _chosen(self._priorities, callers.priorities, rows))
        predicted: Any = repeat(-1)
        if callers.prediction is not None:
            errors = np.exp(callers.prediction.error * self._prediction.standard_normal(rows))
            predicted = np.maximum(1, np.rint(batch.column("output_tokens").to_numpy() * errors)).astype(int).tolist()
        if callers == Callers() and column.null_count == rows:
            return repeat(PLAIN, rows)
        return (Traits(*row) for row in zip(tenants, priorities, predicted, strict=False))


def _chosen(random: np.random.Generator, shares: dict[str, float], rows: int) -> list[str]:
    names = list(shares)
    edges = np.cumsum(list(shares.values()))
    return [names[i] for i in np.searchsorted(edges / edges[-1], random.random(rows), side="right").tolist()]


class SharedPrefixes:
    """Which of so many prefixes each prompt begins with."""

    def __init__(self, seed: int, prefixes: Prefixes) -> None:
        self._random = stream(seed, "prefixes")
        weights = np.arange(1, prefixes.count + 1, dtype=float) ** -prefixes.exponent
        self._edges = np.cumsum(weights) / weights.sum()
        self.tokens = prefixes.tokens

    def keys(self, rows: int, unit_tokens: int) -> Iterator[Sequence[int]]:
        """Yield the keys of what the next `rows` prompts share with others."""
        chosen = np.searchsorted(self._edges, self._random.random(rows), side="right").tolist()
        return (session_keys(prefix, self.tokens, unit_tokens) for prefix in chosen)
