"""Steps that several ranks take together: data-parallel attention ranks, and the micro-batches of a pipeline.

Model: data-parallel ranks meet at every layer of experts, so the slowest one's own kernels and the experts of all set
the pace (DeepSeek-V3, arXiv:2412.19437, 3.4). p micro-batches go round a pipeline of p equal stages: a round lasts as
long as one of them takes through every stage, or as the first stage needs for all (a cyclic flow shop).
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from simulator.device.lines import Lines


def round_of(traversals: Any, stages: int) -> Any:
    """Return the length of a round of micro-batches, along the last axis, through a pipeline of equal stages."""
    return np.maximum(np.sum(traversals, axis=-1) / stages, np.max(traversals, axis=-1))


class RankLines:
    """Decode iterations of ranks with batches of fixed sizes, `data` ranks to each of `stages` micro-batches.

    `own(size)` is the chain of lines of one rank's kernels, `step(own_ns, sizes)` the time of a micro-batch whose
    slowest rank needs so long.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        data: int,
        own: Callable[[int], Lines],
        step: Callable[[Any, Sequence[int]], Any],
    ) -> None:
        self._sizes = np.array(sizes, dtype=float)
        self._data = data
        self._lines = {size: own(size) for size in sorted(set(sizes)) if size}
        self._members = {size: np.flatnonzero(self._sizes == size) for size in self._lines}
        self._step = step
        self._batches = [sizes[first : first + data] for first in range(0, len(sizes), data)]

    def at(self, contexts: Any) -> Any:
        """Return the ns of iterations as an array; `contexts` has a row for each, of all ranks, tokens fed included."""
        own = np.zeros(contexts.shape)
        for size, members in self._members.items():
            own[:, members] = self._lines[size].values(contexts[:, members])
        slowest = own.reshape(len(contexts), len(self._batches), self._data).max(axis=2)
        rounds = [self._step(slowest[:, i], sizes) for i, sizes in enumerate(self._batches)]
        return round_of(np.stack(rounds, axis=1), len(self._batches)) if len(rounds) > 1 else rounds[0]
