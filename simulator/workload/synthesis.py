"""Synthetic traces: arrivals, prompts and outputs, each from its own random stream, so that one moves no other."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from simulator.randomness import stream
from simulator.workload.arrivals import BLOCK, Arrivals
from simulator.workload.lengths import Lengths
from simulator.workload.schema import make_batch, rebatch


def synthesize(
    seed: int, requests: int, arrivals: Arrivals, prompt_tokens: Lengths, output_tokens: Lengths
) -> Iterator[pa.RecordBatch]:
    """Yield canonical batches of `requests` independent requests; those of a smaller number are a prefix of them.

    The random streams are named "arrivals", "prompt_tokens" and "output_tokens". Raises ValueError when `requests` < 1.
    """
    if requests < 1:
        raise ValueError(f"requests must be 1 or more, not {requests!r}")
    return rebatch(_blocks(seed, requests, arrivals, prompt_tokens, output_tokens))


def _blocks(
    seed: int, requests: int, arrivals: Arrivals, prompt_tokens: Lengths, output_tokens: Lengths
) -> Iterator[pa.RecordBatch]:
    times = _of_size(arrivals.times(stream(seed, "arrivals")), BLOCK)
    prompts, outputs = stream(seed, "prompt_tokens"), stream(seed, "output_tokens")
    for first in range(0, requests, BLOCK):
        rows = min(BLOCK, requests - first)
        columns = {
            "arrival_ns": next(times)[:rows],
            "prompt_tokens": prompt_tokens.draw(prompts, BLOCK)[:rows],
            "output_tokens": output_tokens.draw(outputs, BLOCK)[:rows],
        }
        yield make_batch(columns, rows)


def _of_size(chunks: Iterator[NDArray[np.int64]], size: int) -> Iterator[NDArray[np.int64]]:
    """Yield the same numbers in arrays of exactly `size`."""
    held = np.empty(0, np.int64)
    for chunk in chunks:
        held = np.concatenate((held, chunk))
        while len(held) >= size:
            yield held[:size]
            held = held[size:]
