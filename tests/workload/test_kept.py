"""Traces that stay in memory between runs: the same rows and reports as read anew, within a bound, one opening each."""

import sys

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.errors import InputError
from simulator.sweep import worker
from simulator.sweep.plan import load_plan
from simulator.sweep.points import code_digest
from simulator.workload import trace
from simulator.workload.kept import KeptTraces
from simulator.workload.trace import open_trace, write_trace

ROWS = "".join(f"2023-11-16 18:15:{at:02d}.0000000,{'x' if at % 7 == 3 else 100 + at},{10 + at}\n" for at in range(40))
HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens\n"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kept")
    (folder / "t.csv").write_text(HEADER + ROWS)
    opened = open_trace(folder / "t.csv", "azure")
    write_trace(folder / "t.parquet", opened.batches(), opened.metadata)
    (folder / "back.csv").write_text(HEADER + ROWS + ROWS[:60])  # goes back in time after two batches that are good
    return {"azure": folder / "t.csv", None: folder / "t.parquet", "back": folder / "back.csv"}


@pytest.fixture(scope="module", autouse=True)
def small_batches():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trace, "BATCH_ROWS", 8)
        patch.setattr(trace, "_PIECE_ROWS", 4)
        patch.setattr("simulator.workload.parquet.BATCH_ROWS", 8)
        yield


def read(opened, most):
    """Read so many batches; return what was seen at each, and the fault that ended it."""
    seen = []
    try:
        for batch in opened.batches():
            seen.append((batch.to_pydict(), opened.report.rows_read, opened.report.reasons()))
            if len(seen) == most:
                break
    except InputError as error:
        seen.append(str(error))
    return seen, opened.report.rows_read, opened.report.reasons()


@given(
    st.sampled_from(["azure", None, "back"]),
    st.sampled_from([1, 1500, 4000, 1 << 20]),
    st.lists(st.integers(1, 9), min_size=1, max_size=6),
)
def test_what_is_kept_is_what_would_be_read(files, kind, most_bytes, passes):
    path, kept = files[kind], KeptTraces(most_bytes)
    format_ = "azure" if kind == "back" else kind
    for most in passes:
        assert read(kept.open(path, format_), most) == read(open_trace(path, format_), most)


def test_two_readers_of_one_trace_do_not_disturb_each_other(files):
    for most_bytes in (1, 2000, 1 << 20):
        kept = KeptTraces(most_bytes)
        pairs = zip(
            kept.open(files["azure"], "azure").batches(), kept.open(files["azure"], "azure").batches(), strict=False
        )
        plain = list(open_trace(files["azure"], "azure").batches())
        assert list(pairs) == [(batch, batch) for batch in plain]


def test_the_bound_holds_and_the_least_recent_goes(tmp_path, files):
    [one, *_] = [sum(b.nbytes for b in open_trace(files["azure"], "azure").batches())]
    kept = KeptTraces(int(one * 2.5))
    paths = [tmp_path / f"{at}.csv" for at in range(4)]
    for path in paths:
        path.write_text(HEADER + ROWS)
        list(kept.open(path, "azure").batches())
        list(kept.open(paths[0], "azure").batches())
        assert sum(source.bytes for source in kept._sources.values()) <= kept.most_bytes
    assert [key[0][0] for key in kept._sources] == [str(paths[3]), str(paths[0])]


def test_a_file_that_has_changed_is_read_again(tmp_path):
    path, kept = tmp_path / "t.csv", KeptTraces(1 << 20)
    path.write_text(HEADER + ROWS)
    before = pa.Table.from_batches(kept.open(path, "azure").batches())
    path.write_text(HEADER + ROWS.replace(",1", ",2"))
    assert pa.Table.from_batches(kept.open(path, "azure").batches()) != before


SCENARIO = """
schema: 1
topology: {preset: clos-h100, nodes: 1}
workload: {trace: t.csv, format: azure}
serving: {model: llama-3.1-8b, colocated: {instances: 1}}
"""
OPENED: list[str] = []


@pytest.fixture(scope="module")
def opened():
    sys.addaudithook(lambda event, words: OPENED.append(str(words[0])) if event == "open" else None)
    return OPENED


def test_a_worker_opens_a_trace_once_for_all_points(tmp_path, monkeypatch, opened):
    (tmp_path / "t.csv").write_text(HEADER + ROWS)
    (tmp_path / "base.yaml").write_text(SCENARIO)
    (tmp_path / "s.yaml").write_text("schema: 1\nbase: base.yaml\nseeds: 1..3\ngrid: {workload.speedup: [1, 2]}")
    rows = {}
    for most_bytes in (0, 1 << 20):
        monkeypatch.setattr(worker, "SWEEP_BYTES", most_bytes)
        monkeypatch.setattr(worker, "KEPT", kept := KeptTraces())
        monkeypatch.setattr("simulator.workload.kept.KEPT", kept)
        counts, rows[most_bytes] = [], []
        (tmp_path / f"out{most_bytes}").mkdir()
        (tmp_path / f"out{most_bytes}" / "sweep.json").write_text("{}")  # of the sweep that asks
        for point in load_plan(tmp_path / "s.yaml").points():
            opened.clear()
            task = worker.Task(point, str(tmp_path / f"out{most_bytes}"), (), code_digest())
            rows[most_bytes].append(worker.run_task(task).row)
            counts.append(opened.count(str(tmp_path / "t.csv")))
        assert all(row.status == "done" for row in rows[most_bytes])
        assert all(count == 0 for count in counts[1:]) == bool(most_bytes)
        assert counts[0] >= 1
    assert rows[0] == rows[1 << 20]
