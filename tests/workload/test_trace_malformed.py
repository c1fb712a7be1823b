"""Broken traces: each gives one clear InputError that names the file, never a traceback and never a shorter trace."""

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from simulator.errors import InputError
from simulator.workload.schema import BLOCK_KEY, VERSION_KEY, make_batch
from simulator.workload.trace import open_trace, write_trace

HEADER = b"TIMESTAMP,ContextTokens,GeneratedTokens\n"
ROW = b"2024-05-10 00:00:00.5,10,20\n"
JSON = b'{"timestamp": 5, "input_length": 5, "output_length": 5, "hash_ids": [1]}\n'
PLAIN = {"arrival": {"column": "t", "unit": "s"}, "prompt_tokens": "a", "output_tokens": "b"}

TEXT: dict[str, tuple[str, bytes, str]] = {
    "empty file": ("azure", b"", "empty"),
    "empty jsonl": ("mooncake", b"", "empty"),
    "header only": ("azure", HEADER, "no requests"),
    "blank lines": ("mooncake", b"\n\n", "no requests"),
    "wrong columns": ("azure", b"TIMESTAMP,ContextToken,Generated\n" + ROW, "did you mean 'ContextToken'"),
    "missing column": ("azure", b"TIMESTAMP,ContextTokens\n", "no column 'GeneratedTokens'"),
    "extra column": ("azure", b"TIMESTAMP,NumImages,ContextTokens,GeneratedTokens\n", "unexpected column 'NumImages'"),
    "column twice": ("azure", b"TIMESTAMP,TIMESTAMP,ContextTokens,GeneratedTokens\n", "more than once"),
    "all rows bad": ("azure", HEADER + b"x,10,20\n" * 9, "none of the 9 rows can be used"),
    "binary": ("azure", b"\x00\xff\xfe\x01" * 100, "not UTF-8"),
    "binary as json": ("mooncake", b"\x00\xff\xfe\x01" * 100, "not UTF-8"),
    "latin-1 in row 2": ("azure", HEADER + ROW + b"2024-05-10 00:00:01,\xe9,2\n", ":3: not UTF-8"),
    "utf-16": ("azure", (HEADER + ROW).decode().encode("utf-16"), "not UTF-8"),
    "huge line": ("azure", HEADER + b"1" * (3 << 20), ":2: a line of more than 1 MiB"),
    "huge json line": ("mooncake", JSON + b"[" * (3 << 20), ":2: a line of more than 1 MiB"),
    "huge field": ("azure", HEADER + ROW + b"2" * 200_000 + b",1,1\n", ":3: broken CSV"),
    "open quote": ("azure", HEADER + ROW + b'"2024,1,1\n' + ROW, ":3: broken CSV"),
    "backwards": ("azure", HEADER + ROW + b"2024-05-09 00:00:00,1,1\n", ":3: arrives 24 h 00 min before the row above"),
    "json backwards": ("mooncake", JSON + JSON.replace(b"5,", b"4,", 1), ":2: arrives 1 ms before the row above"),
    "csv as json": ("mooncake", HEADER + ROW, "not JSON"),
    "json as csv": ("azure", JSON, "no column 'TIMESTAMP'"),
    "mooncake as burstgpt": ("burstgpt", JSON, "no column 'Timestamp'"),
    "json without keys": ("mooncake", b'{"a": 1}\n', "timestamp: missing"),
    "truncated gzip": ("azure", gzip.compress(HEADER + ROW * 999)[:-20], "damaged gzip"),
    "corrupt gzip": ("azure", gzip.compress(HEADER + ROW * 99)[:30] + b"\x00" * 60, "damaged gzip"),
    "parquet as csv": ("azure", b"PAR1\x15\x04\xff\xff\n", "not UTF-8"),
    "text as parquet": ("canonical", HEADER + ROW, "not a readable Parquet file"),
}  # fmt: skip


@pytest.mark.parametrize("case", TEXT)
def test_broken_text(case: str, tmp_path: Path) -> None:
    form, data, message = TEXT[case]
    path = tmp_path / "broken.dat"
    path.write_bytes(data)
    with pytest.raises(InputError) as caught:
        list(open_trace(path, form).batches())
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 1000


def _columns(**changes: Any) -> dict[str, Any]:
    columns = {
        "arrival_ns": pa.array([0, 5, 5], pa.int64()),
        "prompt_tokens": pa.array([1, 2, 3], pa.int64()),
        "output_tokens": pa.array([1, 2, 3], pa.int64()),
    }
    return {name: value for name, value in (columns | changes).items() if value is not None}


HASHES = pa.array([[1], [2], [3]], pa.list_(pa.int64()))
TABLES: dict[str, tuple[dict[str, Any], dict[str, str], str]] = {
    "missing column": (_columns(output_tokens=None), {}, "no column 'output_tokens'"),
    "extra column": (_columns(prompts=pa.array([1, 2, 3])), {}, "unexpected column 'prompts'"),
    "float arrival": (_columns(arrival_ns=pa.array([0.0, 1.0, float("nan")])), {}, "'arrival_ns' has type double"),
    "int32 tokens": (_columns(prompt_tokens=pa.array([1, 2, 3], pa.int32())), {}, "'prompt_tokens' has type int32"),
    "text tokens": (_columns(prompt_tokens=pa.array(["1", "2", "3"])), {}, "'prompt_tokens' has type string"),
    "null tokens": (_columns(prompt_tokens=pa.array([1, None, 3], pa.int64())), {}, "row 2: prompt_tokens: null"),
    "negative tokens": (_columns(prompt_tokens=pa.array([1, 2, -3], pa.int64())), {}, "row 3: prompt_tokens: -3"),
    "no output": (_columns(output_tokens=pa.array([1, 0, 3], pa.int64())), {}, "row 2: output_tokens: 0"),
    "too many tokens": (_columns(output_tokens=pa.array([1, 2**31, 3], pa.int64())), {}, "row 2: output_tokens"),
    "negative arrival": (_columns(arrival_ns=pa.array([-1, 0, 1], pa.int64())), {}, "row 1: arrival_ns: negative"),
    "backwards": (_columns(arrival_ns=pa.array([0, 2, 1], pa.int64())), {}, "row 3: arrival_ns: earlier"),
    "negative turn": (_columns(turn=pa.array([None, 0, -1], pa.int32())), {}, "row 3: turn: negative"),
    "hashes without a size": (_columns(prefix_hashes=HASHES), {}, BLOCK_KEY),
    "hashes of size zero": (_columns(prefix_hashes=HASHES), {BLOCK_KEY: "0"}, BLOCK_KEY),
    "hashes of size x": (_columns(prefix_hashes=HASHES), {BLOCK_KEY: "x"}, BLOCK_KEY),
    "too many hashes": (
        _columns(prefix_hashes=pa.array([[1], [1, 2], [3]], pa.list_(pa.int64()))), {BLOCK_KEY: "512"},
        "row 2: prefix_hashes: 2 blocks",
    ),
    "null hash": (
        _columns(prefix_hashes=pa.array([None, [1], [None]], pa.list_(pa.int64()))), {BLOCK_KEY: "512"},
        "row 3: prefix_hashes: null block hash",
    ),
    "text hashes": (_columns(prefix_hashes=pa.array([["a"], None, None])), {BLOCK_KEY: "512"}, "has type list<"),
    "another version": (_columns(), {VERSION_KEY: "2"}, "trace version '2' is unknown"),
    "no rows": ({name: column.slice(0, 0) for name, column in _columns().items()}, {}, "no requests"),
}  # fmt: skip


@pytest.mark.parametrize("case", TABLES)
def test_broken_parquet(case: str, tmp_path: Path) -> None:
    columns, metadata, message = TABLES[case]
    path = tmp_path / "broken.parquet"
    pq.write_table(pa.table(columns).replace_schema_metadata(metadata), path)
    with pytest.raises(InputError) as caught:
        list(open_trace(path).batches())
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def _cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def _head_only(data: bytes) -> bytes:
    return b"PAR1" + b"\x00" * 50


def _scrambled_pages(data: bytes) -> bytes:
    return data[:8] + b"\xa5" * 60 + data[68:]


@pytest.mark.parametrize("damage", [_cut, _head_only, _scrambled_pages, lambda data: data[:-1], lambda data: b""])
def test_damaged_parquet(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    good, path = tmp_path / "good.parquet", tmp_path / "damaged.parquet"
    pq.write_table(pa.table(_columns()), good)
    path.write_bytes(damage(good.read_bytes()))
    with pytest.raises(InputError, match="not a readable Parquet file"):
        list(open_trace(path).batches())


def test_an_absent_file_a_folder_and_an_unknown_format(tmp_path: Path) -> None:
    for form in ("azure", "mooncake", "canonical", None):
        with pytest.raises(InputError, match="cannot read"):
            open_trace(tmp_path / "absent.csv", form)
        with pytest.raises(InputError, match=r"cannot read|is a directory"):
            open_trace(tmp_path, form)
    with pytest.raises(InputError, match="did you mean 'azure'"):
        open_trace(tmp_path / "x.csv", "azur")
    (tmp_path / "x.csv").write_bytes(HEADER + ROW)
    with pytest.raises(InputError, match=r"convert it first.*azure, burstgpt, canonical, csv, mooncake"):
        open_trace(tmp_path / "x.csv")
    (tmp_path / "x.csv.gz").write_bytes(HEADER + ROW)
    with pytest.raises(InputError, match="not gzip data"):
        open_trace(tmp_path / "x.csv.gz", "azure")


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        (None, "needs the names of its columns"),
        ({"arrival": {"column": "t", "unit": "s"}, "prompt_tokens": "a"}, "no column is named for 'output_tokens'"),
        (PLAIN | {"promt": "a"}, "unknown column role 'promt'"),
        (PLAIN | {"arrival": {"column": "t", "unit": "sec"}}, "unit 'sec' is unknown; allowed: s, ms, us, ns, iso"),
        (PLAIN | {"arrival": "t"}, "arrival needs a column and a unit"),
        (PLAIN | {"session": "who"}, "no column 'who'"),
    ],
)
def test_wrong_mappings(mapping: dict[str, Any] | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "plain.csv"
    path.write_text("t,a,b\n0,1,1\n")
    with pytest.raises(InputError) as caught:
        open_trace(path, "csv", mapping)
    assert message in str(caught.value)


def test_a_failed_write_leaves_nothing_and_an_old_file_whole(tmp_path: Path) -> None:
    out = tmp_path / "out.parquet"
    out.write_bytes(b"old")

    def batches() -> Any:
        yield make_batch({"arrival_ns": [0], "prompt_tokens": [1], "output_tokens": [1]}, 1)
        raise InputError("the source broke")

    with pytest.raises(InputError, match="the source broke"):
        write_trace(out, batches(), {})
    with pytest.raises(InputError, match="no requests"):
        write_trace(out, [], {})
    with pytest.raises(InputError, match="cannot write"):
        write_trace(tmp_path / "absent" / "out.parquet", [], {})
    assert [path.name for path in tmp_path.iterdir()] == ["out.parquet"]
    assert out.read_bytes() == b"old"
