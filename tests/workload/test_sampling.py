"""Parts of a trace against a slow, obvious twin: windows, fractions that depend on nothing else, the first so many."""

import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator import randomness
from simulator.randomness import mark, marks
from simulator.workload.sampling import Part
from simulator.workload.schema import BLOCK_KEY, SCHEMA, make_batch
from simulator.workload.trace import open_trace, write_trace

SESSIONS = st.sampled_from([None, None, "a", "b", "c", "ü", "3"])
ROWS = st.lists(st.tuples(st.integers(0, 30), SESSIONS), min_size=1, max_size=40).map(
    lambda rows: [(number, *row) for number, row in enumerate(sorted(rows, key=lambda row: row[0]))]
)
FRACTIONS = st.one_of(st.just(1.0), st.floats(0.001, 1))


def batches(rows: list[tuple[int, int, str | None]], sizes: list[int]) -> Iterator[pa.RecordBatch]:
    """Yield rows of number, time and session in batches of these sizes, one after the other and again."""
    at = 0
    while at < len(rows):
        size = sizes[0]
        sizes = [*sizes[1:], size]
        some = rows[at : at + size]
        columns: dict[str, Any] = {
            "arrival_ns": [row[1] for row in some],
            "prompt_tokens": [row[0] + 1 for row in some],
            "output_tokens": [1] * len(some),
            "session": [row[2] for row in some],
            "prefix_hashes": [None if row[0] % 3 == 0 else list(range(row[0])) for row in some],
        }
        yield make_batch(columns, len(some))
        at += size


def numbers(part: Part, rows: list[tuple[int, int, str | None]], sizes: list[int]) -> list[int]:
    return [count - 1 for batch in part.of(batches(rows, sizes)) for count in batch.column("prompt_tokens").to_pylist()]


def kept(number: int, session: str | None, fraction: float, seed: int) -> bool:
    own = int(marks(seed, "fraction", number, 1)[0]) if session is None else mark(seed, f"fraction/{session}")
    return fraction == 1 or own < int(fraction * 2**64)


@settings(deadline=None)
@given(
    ROWS,
    st.lists(st.integers(1, 9), min_size=1, max_size=4),
    st.integers(0, 35),
    st.one_of(st.none(), st.integers(1, 35)),
    FRACTIONS,
    st.one_of(st.none(), st.integers(1, 12)),
    st.sampled_from([0, 7, 2**63 - 1]),
)
def test_a_part_is_that_of_a_slow_twin(
    rows: list[tuple[int, int, str | None]],
    sizes: list[int],
    start: int,
    duration: int | None,
    fraction: float,
    requests: int | None,
    seed: int,
) -> None:
    part = Part(start, duration, fraction, seed, requests)
    expected, left_out = [], 0
    for number, at, session in rows:
        if at < start or (duration is not None and at >= start + duration) or len(expected) == requests:
            continue
        if kept(number, session, fraction, seed):
            expected.append((number, at - start, session, None if number % 3 == 0 else list(range(number))))
        else:
            left_out += 1
    taken = list(part.of(batches(rows, sizes)))
    assert all(batch.num_rows and batch.schema == SCHEMA for batch in taken)
    found = pa.Table.from_batches(taken, SCHEMA)
    columns = [found[name].to_pylist() for name in ("prompt_tokens", "arrival_ns", "session", "prefix_hashes")]
    assert [(count - 1, *rest) for count, *rest in zip(*columns, strict=True)] == expected
    assert (part.taken, part.left_out) == (len(expected), left_out)
    again = list(part.of(batches(rows, sizes)))
    assert (again, part.taken, part.left_out) == (taken, len(expected), left_out)


@settings(deadline=None)
@given(ROWS, FRACTIONS, FRACTIONS)
def test_a_smaller_fraction_keeps_a_part_of_a_larger(
    rows: list[tuple[int, int, str | None]], one: float, other: float
) -> None:
    less, more = sorted((one, other))
    assert set(numbers(Part(fraction=less), rows, [4])) <= set(numbers(Part(fraction=more), rows, [7]))


@pytest.mark.parametrize("fraction", [0.001, 0.05, 0.5, 0.999])
@pytest.mark.parametrize("seed", [0, 23])
def test_as_many_are_kept_as_chance_would_have_it(fraction: float, seed: int) -> None:
    """Of requests and of sessions, and a request's fate says nothing of the next one's."""
    n = 200_000
    part = Part(fraction=fraction, seed=seed)
    columns = {"arrival_ns": np.arange(n), "prompt_tokens": np.ones(n, int), "output_tokens": np.ones(n, int)}
    at = np.concatenate([b.column("arrival_ns").to_numpy() for b in part.of([make_batch(columns, n)])])
    error = math.sqrt(n * fraction * (1 - fraction))
    assert abs(len(at) - n * fraction) < 5 * error
    assert part.taken + part.left_out == n
    chosen = np.zeros(n, bool)
    chosen[at] = True
    for lag in (1, 2, 64):
        both = (chosen[lag:] & chosen[:-lag]).sum()
        assert abs(both - n * fraction**2) < 6 * math.sqrt(n * fraction**2) + 6 * 2 * fraction * error
    names = {"session": [f"s{i % 20_000}" for i in range(n)]}
    found = pa.Table.from_batches(part.of([make_batch(columns | names, n)]), SCHEMA)["session"].value_counts()
    assert set(found.field("counts").to_pylist()) <= {n // 20_000}
    assert abs(len(found) - 20_000 * fraction) < 5 * math.sqrt(20_000 * fraction * (1 - fraction))


def test_seeds_choose_apart() -> None:
    first, second = (marks(seed, "fraction", 0, 100_000) < 2**62 for seed in (1, 2))
    assert abs((first & second).mean() - 1 / 16) < 0.005


def test_marks_are_splitmix64(monkeypatch: pytest.MonkeyPatch) -> None:
    """The published first outputs of the generator begun at 1234567."""
    monkeypatch.setattr(randomness, "mark", lambda seed, name: 1234567)
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    assert marks(0, "any", 0, 4).tolist() == expected
    assert marks(0, "any", 2, 2).tolist() == expected[2:]


def test_a_fraction_of_a_file_is_the_same_in_any_process(tmp_path: Path) -> None:
    rows = [(i, i, f"s{i}" if i % 2 else None) for i in range(500)]
    path = tmp_path / "t.parquet"
    write_trace(path, batches(rows, [77]), {BLOCK_KEY: "1"})
    written = []
    for hashing in ("0", "1"):
        out = tmp_path / "out.parquet"
        words = ["trace", "sample", str(path), "--out", str(out), "--fraction", "0.3", "--seed", "7"]
        command = [sys.executable, "-m", "simulator.cli", *words]
        subprocess.run(command, check=True, capture_output=True, env=os.environ | {"PYTHONHASHSEED": hashing})
        written.append(out.read_bytes())
    assert written[0] == written[1]
    expected = [i + 1 for i, _, session in rows if kept(i, session, 0.3, 7)]
    assert (
        pa.Table.from_batches(open_trace(tmp_path / "out.parquet").batches())["prompt_tokens"].to_pylist() == expected
    )
