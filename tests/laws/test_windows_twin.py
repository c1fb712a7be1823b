"""Windows against a naive integral over every observation, nanosecond interval by nanosecond interval, in fractions."""

from fractions import Fraction

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from simulator.errors import InvariantError
from simulator.results.tables import INSTANCES
from simulator.results.windows import DECODE, IDLE, PREFILL, Windows

COLUMNS = [column.name for column in INSTANCES.columns]
STEP = st.tuples(
    st.integers(0, 35),  # ns
    st.sampled_from((IDLE, PREFILL, DECODE)),
    st.integers(0, 4),
    st.integers(0, 3),
    st.integers(0, 20),
    st.integers(0, 9),
    st.none() | st.integers(0, 20),
)
QUIET = st.tuples(st.integers(0, 90), st.just(0), st.just(0), st.just(0), st.integers(0, 1), st.just(0), st.none())
RUNS = st.lists(st.one_of(STEP, QUIET), max_size=14)


def windows_of(run, interval_ns=10, start_ns=0):
    rows = []
    windows = Windows("d0", "decode", 20, interval_ns, rows.append, start_ns)
    now_ns = start_ns
    for length, *values in run:
        now_ns += length
        windows.observe(now_ns, *values)
    windows.close(now_ns)
    return [dict(zip(COLUMNS, row, strict=True)) for row in rows], now_ns


def pieces(run, start_ns, from_ns, until_ns):
    """Each observation's part of a window: length, its values, KV blocks at both ends of the part."""
    begin = start_ns
    for length, state, running, waiting, kv, _, kv_end in run:
        a, b = max(begin, from_ns), min(begin + length, until_ns)
        if a < b:
            slope = Fraction((kv if kv_end is None else kv_end) - kv, length)
            yield b - a, state, running, waiting, kv + slope * (a - begin), kv + slope * (b - begin)
        begin += length


@settings(deadline=None)
@given(RUNS, st.integers(1, 25), st.integers(0, 40))
@example([(5, 0, 0, 0, 1, 0, None), (100, 0, 0, 0, 1, 0, None)], 10, 3)
@example([(10, 0, 0, 0, 1, 0, None), (50, 0, 0, 0, 2, 0, None), (7, 2, 1, 0, 0, 3, 5)], 10, 0)
def test_rows_tile_the_run_and_are_its_integrals(run, interval_ns, start_ns):
    rows, end_ns = windows_of(run, interval_ns, start_ns)
    edges = [start_ns] + [row["end_ns"] for row in rows]
    assert [row["start_ns"] for row in rows] == edges[:-1]
    assert edges[-1] == end_ns
    assert sum(row["output_tokens"] for row in rows) == sum(step[5] for step in run)
    for row in rows:
        length = row["end_ns"] - row["start_ns"]
        spent = {"idle": row["idle_ns"], "prefill": row["prefill_ns"], "decode": row["decode_ns"]}
        assert sum(spent.values()) == length
        assert spent[row["state"]] == max(spent.values())
        parts = list(pieces(run, start_ns, row["start_ns"], row["end_ns"]))
        for state, name in ((IDLE, "idle"), (PREFILL, "prefill"), (DECODE, "decode")):
            assert spent[name] == sum(part[0] for part in parts if part[1] == state)
        if not length:
            continue
        assert row["running"] == pytest.approx(float(Fraction(sum(p[0] * p[2] for p in parts), length)))
        assert row["waiting"] == pytest.approx(float(Fraction(sum(p[0] * p[3] for p in parts), length)))
        area = sum(p[0] * (p[4] + p[5]) / 2 for p in parts)
        assert row["kv_blocks"] == pytest.approx(float(Fraction(area) / length))
        assert row["running_max"] == max(p[2] for p in parts)
        assert row["waiting_max"] == max(p[3] for p in parts)
        assert row["kv_blocks_max"] == max(int(max(p[4], p[5])) for p in parts)


@settings(deadline=None)
@given(RUNS, st.integers(1, 25))
def test_only_quiet_windows_are_merged_and_all_of_them(run, interval_ns):
    rows, _ = windows_of(run, interval_ns)
    quiet = [r["idle_ns"] == r["end_ns"] - r["start_ns"] and not (r["running_max"] or r["waiting_max"]) for r in rows]
    for row, merged in zip(rows, quiet, strict=True):
        if row["end_ns"] - row["start_ns"] > interval_ns:
            assert merged
            assert row["output_tokens"] == 0
            assert row["kv_blocks"] == row["kv_blocks_max"]
    for i in range(len(rows) - 1):
        same = (
            rows[i]["kv_blocks"] == rows[i + 1]["kv_blocks"] == rows[i]["kv_blocks_max"] == rows[i + 1]["kv_blocks_max"]
        )
        tokens = rows[i]["output_tokens"] or rows[i + 1]["output_tokens"]
        assert not (quiet[i] and quiet[i + 1] and same and not tokens)


@settings(deadline=None)
@given(RUNS.filter(bool), st.integers(1, 25))
def test_cutting_an_observation_in_two_changes_nothing(run, interval_ns):
    steady = [(*step[:5], 0, None) for step in run]
    cut = [part for step in steady for part in ((step[0] // 3, *step[1:]), (step[0] - step[0] // 3, *step[1:]))]
    assert windows_of(cut, interval_ns) == windows_of(steady, interval_ns)


def test_a_long_idle_stretch_is_one_row_at_no_cost():
    rows, end_ns = windows_of([(3, 2, 1, 0, 5, 1, None), (10**18, 0, 0, 0, 0, 0, None)], interval_ns=10)
    assert [(row["start_ns"], row["end_ns"]) for row in rows] == [(0, 10), (10, end_ns)]


def test_time_neither_goes_back_nor_is_left_unobserved():
    windows = Windows("d0", "decode", 20, 10, lambda row: None)
    windows.observe(25, DECODE, 1, 0, 3)
    with pytest.raises(InvariantError, match="after 25 ns"):
        windows.observe(24, DECODE, 1, 0, 3)
    with pytest.raises(InvariantError, match="closed at 30 ns"):
        windows.close(30)
