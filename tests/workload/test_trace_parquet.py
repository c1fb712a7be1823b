"""Canonical Parquet: any table comes back as it was written, whatever the batches; the bytes are the rows' own."""

import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.workload.schema import BLOCK_KEY, PROVENANCE_KEY, SCHEMA, VERSION_KEY
from simulator.workload.trace import open_trace, provenance, write_trace

NAMES = st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "arrival_ns": st.integers(0, 2**63 - 1),
            "prompt_tokens": st.integers(1, 2**31 - 1),
            "output_tokens": st.integers(1, 2**31 - 1),
            "session": NAMES,
            "turn": st.none() | st.integers(0, 2**31 - 1),
            "prefix_hashes": st.none() | st.lists(st.integers(-(2**63), 2**63 - 1), max_size=1),
            "model": NAMES,
            "tenant": NAMES,
        }
    ),
    min_size=1,
    max_size=20,
)


def _table(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(sorted(rows, key=lambda row: row["arrival_ns"]), SCHEMA)


@settings(max_examples=60, deadline=None)
@given(ROWS, st.integers(1, 7))
def test_write_then_read_is_the_identity(rows: list[dict[str, Any]], size: int) -> None:
    table = _table(rows)
    with tempfile.TemporaryDirectory() as folder:
        path, again = Path(folder, "a.parquet"), Path(folder, "b.parquet")
        assert write_trace(path, table.to_batches(size), {BLOCK_KEY: "16"}) == len(rows)
        write_trace(again, table.to_batches(), {BLOCK_KEY: "16"})
        assert path.read_bytes() == again.read_bytes()
        trace = open_trace(path)
        assert pa.Table.from_batches(trace.batches()) == table
        assert trace.metadata == {BLOCK_KEY: "16", VERSION_KEY: "1"}
        for name in ("session", "turn", "model", "tenant"):
            assert (name in trace.columns_present) == (table[name].null_count < table.num_rows)


def test_a_trace_from_pandas_is_a_trace(tmp_path: Path) -> None:
    path = tmp_path / "pandas.parquet"
    frame = pd.DataFrame(
        {"arrival_ns": [0, 1], "prompt_tokens": [5, 6], "output_tokens": [7, 8], "session": ["a", "b"]}
    )
    frame.to_parquet(path)
    trace = open_trace(path)
    assert pa.Table.from_batches(trace.batches()).schema == SCHEMA
    assert trace.columns_present == ("session",)


def test_provenance_says_where_the_rows_came_from(tmp_path: Path) -> None:
    source, out = tmp_path / "azure.csv", tmp_path / "out.parquet"
    source.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n2024-05-10 00:00:00,1,1\n2024-05-10 00:00:00,0,1\n")
    trace = open_trace(source, "azure")
    write_trace(out, trace.batches(), lambda: {PROVENANCE_KEY: provenance(trace, "the command")})
    assert open_trace(out).origin == {
        "source": "azure.csv",
        "format": "azure",
        "sha256": hashlib.sha256(source.read_bytes()).hexdigest(),
        "rows_read": 2,
        "bad_rows": {"ContextTokens: no prompt tokens": 1},
        "command": "the command",
    }
    converted = open_trace(out)
    assert json.loads(provenance(converted, "next"))["source_provenance"] == converted.origin


def test_the_shipped_sample_is_what_its_command_makes(tmp_path: Path) -> None:
    from simulator.workload.spec import parse_arrivals, parse_lengths
    from simulator.workload.synthesis import synthesize

    path = Path(__file__).parents[2] / "traces" / "conversation-sample.parquet"
    assert path.stat().st_size < 100_000
    arrivals = parse_arrivals("gamma:rate=100 / min,cv=1.8")
    prompt = parse_lengths("lognormal:median=800,sigma=0.85,max=8000")
    output = parse_lengths("lognormal:median=150,sigma=0.8,max=1000")
    made = pa.Table.from_batches(synthesize(7, 2000, arrivals, prompt, output))
    assert pa.Table.from_batches(open_trace(path).batches()) == made


@pytest.mark.parametrize("rows", [1, 3])
def test_a_source_may_be_replaced_by_its_own_conversion(tmp_path: Path, rows: int) -> None:
    path = tmp_path / "trace.parquet"
    table = _table([{"arrival_ns": n, "prompt_tokens": 1, "output_tokens": 1} for n in range(rows)])
    write_trace(path, table.to_batches(), {})
    write_trace(path, open_trace(path).batches(), {})
    assert pa.Table.from_batches(open_trace(path).batches()) == table
