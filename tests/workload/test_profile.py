"""Statistics of a trace against slow, obvious twins."""

import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.units import NS_PER_S
from simulator.workload.profile import Histogram, profile
from simulator.workload.schema import make_batch
from simulator.workload.trace import open_trace

DATA = Path(__file__).parents[3] / "shared" / "data"


def batches(arrival_ns: list[int], size: int, **columns: list[Any]) -> list[pa.RecordBatch]:
    count = len(arrival_ns)
    every = {"arrival_ns": arrival_ns, "prompt_tokens": [1] * count, "output_tokens": [1] * count} | columns
    return pa.Table.from_batches([make_batch(every, count)]).to_batches(size)


ARRIVALS = st.lists(st.integers(0, 10 * NS_PER_S), min_size=1, max_size=40).map(sorted)


@settings(deadline=None)
@given(ARRIVALS, st.integers(1, 9), st.integers(0, 10**15))
def test_arrival_statistics_equal_their_definitions(arrivals: list[int], size: int, shift_ns: int) -> None:
    arrivals = [arrival + shift_ns for arrival in arrivals]
    found = profile(batches(arrivals, size))
    span = arrivals[-1] - arrivals[0]
    assert (found.requests, found.first_arrival_ns, found.span_ns) == (len(arrivals), arrivals[0], span)
    peaks = [sum(end - NS_PER_S < arrival <= end for arrival in arrivals) for end in arrivals]
    assert (found.peak_1s, found.peak_60s) == (max(peaks), len(arrivals))
    gaps = np.diff(arrivals)
    if span:
        assert found.rate_per_s == pytest.approx((len(arrivals) - 1) / span * NS_PER_S)
    else:
        assert found.rate_per_s is None
    if len(gaps) > 1 and span:
        assert found.interarrival_cv == pytest.approx(gaps.std() / gaps.mean())
    else:
        assert found.interarrival_cv is None
    counts = [sum(arrivals[0] + k * NS_PER_S <= a < arrivals[0] + (k + 1) * NS_PER_S for a in arrivals)
              for k in range(span // NS_PER_S)]  # fmt: skip
    if len(counts) > 1:
        assert found.dispersion_1s == pytest.approx(np.var(counts) / np.mean(counts))
    else:
        assert found.dispersion_1s is None
    bars = Counter((arrival - arrivals[0]) // found.timeline_ns for arrival in arrivals)
    assert list(found.timeline) == [bars[k] for k in range(max(bars) + 1)]
    assert len(found.timeline) <= 64


@given(st.lists(st.lists(st.integers(1, 2**31 - 1) | st.integers(1, 5), min_size=1), min_size=1))
def test_histograms_are_exact(parts: list[list[int]]) -> None:
    histogram = Histogram()
    for part in parts:
        histogram.add(np.array(part))
    values = sorted(value for part in parts for value in part)
    found, counts = histogram.table()
    assert dict(zip(found.tolist(), counts.tolist(), strict=True)) == Counter(values)
    assert histogram.total() == sum(values)
    for percent in (1, 25, 50, 90, 99, 100):
        assert histogram.percentile(percent) == values[max(math.ceil(percent * len(values) / 100), 1) - 1]


@given(st.lists(st.lists(st.integers(0, 6), max_size=4), min_size=1, max_size=12), st.integers(1, 5))
def test_reuse_equals_a_cache_that_forgets_nothing(chains: list[list[int]], size: int) -> None:
    block = 8
    prompts = [max(len(chain) * block - 3, 1) for chain in chains]
    rows = batches([0] * len(chains), size, prompt_tokens=prompts, prefix_hashes=chains)
    cache: set[int] = set()
    reused = 0
    for prompt, chain in zip(prompts, chains, strict=True):
        for index in range(len(chain)):
            if not set(chain[: index + 1]) <= cache:
                break
            reused += min(block, prompt - index * block)
        cache |= set(chain)
    found = profile(rows, block)
    assert found.reuse_share == pytest.approx(reused / sum(prompts))
    assert (found.distinct_blocks, found.total_blocks) == (len(cache), sum(map(len, chains)))


def test_sessions_models_and_what_is_absent() -> None:
    sessions = ["a", None, "b", "a", "a"]
    found = profile(batches([0, 1, 2, 3, 4], 2, session=sessions, model=["m", "n", "m", None, "m"]))
    assert (found.sessions, found.turns_per_session, found.models) == (2, 2.0, {"m": 3, "n": 1})
    plain = profile(batches([0, 1], 2))
    assert (plain.sessions, plain.turns_per_session, plain.reuse_share, plain.models) == (None, None, None, {})


def test_the_public_mooncake_trace_reuses_a_third_of_its_prompt() -> None:
    path = DATA / "mooncake" / "conversation_trace.jsonl.gz"
    if not path.exists():
        pytest.skip("the public Mooncake trace is not on this machine")
    trace = open_trace(path, "mooncake")
    found = profile(trace.batches(), trace.prefix_block_tokens)
    seen: set[int] = set()
    spared = 0
    for batch in trace.batches():
        for row in batch.to_pylist():
            blocks = row["prefix_hashes"]
            spared += sum(
                min(512, row["prompt_tokens"] - 512 * k) for k, block in enumerate(blocks) if block in seen
            )  # its hashes are of whole prefixes, so a known block has known blocks before it
            seen.update(blocks)
    assert found.reuse_share == spared / found.prompt_total
    assert found.distinct_blocks == len(seen) == 182_790
