"""Tables: what goes in comes out, nothing a column cannot hold gets in, digests follow values and not files."""

import resource
import subprocess
import sys

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.errors import InvariantError, OutputError
from simulator.results import tables
from simulator.results.tables import EVENTS, LINKS, REQUESTS, TABLES, Column, Table, TableWriter, arrow_schema

MIXED = Table(
    "mixed",
    "every kind of column",
    (
        Column("count", "int64", "", "a count"),
        Column("when_ns", "int64", "ns", "a time", nullable=True),
        Column("small", "int32", "", "a small count", nullable=True),
        Column("mean", "double", "", "a mean"),
        Column("name", "string", "", "a name"),
        Column("note", "string", "", "a note", nullable=True),
    ),
)
ROWS = st.lists(
    st.tuples(
        st.integers(0, 2**63 - 1),
        st.one_of(st.none(), st.integers(-1, 2**63 - 1)),
        st.one_of(st.none(), st.integers(-1, 2**31 - 1)),
        st.floats(allow_nan=False, allow_infinity=False),
        st.text(st.characters(exclude_categories=("Cs",)), max_size=3),
        st.one_of(st.none(), st.sampled_from(("", "a", "aa", "ä"))),
    ),
    max_size=40,
)


def write(folder, table, rows):
    folder.mkdir(exist_ok=True)
    writer = TableWriter(folder, table)
    for row in rows:
        writer.append(row)
    writer.close()
    return writer


def with_nulls(row):
    return tuple(
        None if c.nullable and c.type != "string" and v == -1 else v for c, v in zip(MIXED.columns, row, strict=True)
    )


@given(rows=ROWS)
@settings(max_examples=40, deadline=None)
def test_every_value_comes_back(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("t")
    writer = write(folder, MIXED, rows)
    back = pq.read_table(writer.path)
    assert [tuple(row.values()) for row in back.to_pylist()] == [with_nulls(row) for row in rows]
    assert back.schema.equals(arrow_schema(MIXED))
    assert writer.rows == len(rows)


@given(rows=ROWS, other=ROWS, batch=st.integers(1, 9))
@settings(max_examples=40, deadline=None)
def test_digest_depends_on_values_alone(tmp_path_factory, rows, other, batch):
    folder = tmp_path_factory.mktemp("t")
    digest = write(folder / "a", MIXED, rows).digest()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "BATCH_ROWS", batch)
        patch.setattr(tables, "ROW_GROUP_ROWS", 3 * batch)
        assert write(folder / "b", MIXED, rows).digest() == digest
    same = [with_nulls(r) for r in rows] == [with_nulls(r) for r in other]
    same = same and [repr(r[3]) for r in rows] == [repr(r[3]) for r in other]
    assert (write(folder / "c", MIXED, other).digest() == digest) == same


def test_neighbouring_texts_do_not_run_together(tmp_path):
    row = (0, "kind", "subject", None)
    rows = [[(*row[:2], "ab", "c"), (*row[:2], "d", "")], [(*row[:2], "a", "bc"), (*row[:2], "d", "")]]
    rows += [[(*row[:2], "abd", "c")], [(*row[:2], "ab", "c"), (*row[:2], "d", None)]]
    assert len({write(tmp_path / str(i), EVENTS, r).digest() for i, r in enumerate(rows)}) == 4


@pytest.mark.parametrize(
    "row",
    [
        (-1, None, None, 0.0, "", None),
        (1, -2, None, 0.0, "", None),
        (1.5, None, None, 0.0, "", None),
        (1, 1.0, None, 0.0, "", None),
        (1, True, None, 0.0, "", None),
        (None, None, None, 0.0, "", None),
        (2**63, None, None, 0.0, "", None),
        (1, None, 2**31, 0.0, "", None),
        (1, None, None, float("nan"), "", None),
        (1, None, None, float("inf"), "", None),
        (1, None, None, None, "", None),
        (1, None, None, 0.0, None, None),
        (1, None, None, 0.0, 7, None),
        (1, None, None, 0.0, ""),
        (1, None, None, 0.0, "", None, None),
    ],
)
def test_a_value_that_does_not_fit_is_refused(tmp_path, row):
    writer = TableWriter(tmp_path, MIXED)
    writer.append((0, None, None, 0.0, "", None))
    writer.append(row)
    with pytest.raises(InvariantError, match="table mixed do not fit"):
        writer.close()
    writer.discard()
    assert not writer.path.exists()


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_an_empty_table_is_a_valid_file(tmp_path, table):
    back = pq.read_table(write(tmp_path, table, []).path)
    assert back.num_rows == 0
    assert back.column_names == [column.name for column in table.columns]
    fields = {field.name: {k.decode(): v.decode() for k, v in field.metadata.items()} for field in back.schema}
    assert all(fields[c.name]["doc"] == c.doc and fields[c.name].get("unit", "") == c.unit for c in table.columns)


def test_every_integer_column_of_a_time_or_a_size_says_so():
    for table in TABLES:
        for column in table.columns:
            assert column.doc
            if column.name.endswith(("_ns", "_bytes", "_bytes_per_s")):
                unit = "bytes/s" if column.name.endswith("_per_s") else column.name.rsplit("_", 1)[-1]
                assert column.unit == unit, column.name


def test_the_same_rows_give_the_same_bytes_in_another_process(tmp_path):
    code = (
        "import sys; from pathlib import Path; from simulator.results.tables import *;"
        "w = TableWriter(Path(sys.argv[1]), LINKS);"
        "[w.append((i, f'a{i % 7}', f'b{i}', 'leaf', 10, i, 1, i, i, .5, .25, 3.5)) for i in range(9000)]; w.close()"
    )
    found = []
    for seed in ("1", "2"):
        folder = tmp_path / seed
        folder.mkdir()
        env = {"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)}
        subprocess.run([sys.executable, "-c", code, str(folder)], check=True, env=env)
        found.append((folder / LINKS.file).read_bytes())
    assert found[0] == found[1]


def test_definitions_are_cheap_to_import():
    code = (
        "import sys; from simulator.results import metrics, run, summary, tables;"
        "sys.exit(', '.join(sys.modules.keys() & {'pyarrow', 'numpy', 'pandas'}))"
    )
    env = {"PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=env, stderr=subprocess.PIPE, text=True, check=False)
    assert done.stderr.strip() == ""


def test_rows_leave_memory_as_they_come(tmp_path):
    import pyarrow as pa

    before = pa.total_allocated_bytes()
    writer = TableWriter(tmp_path, REQUESTS)
    row = (1, None, None, 5, 5, 6, 7, 7, 8, 9, 10, 11, 11, 0, "p", "d", 0, 0, 0, 0, 0, "finished", None)
    held = []
    for _ in range(5):
        for _ in range(tables.ROW_GROUP_ROWS - 1):
            writer.append(row)
        held.append(pa.total_allocated_bytes() - before)
    writer.close()
    assert max(held) < 250 * tables.ROW_GROUP_ROWS  # one row group of 23 columns of at most 8 bytes and a little
    assert pq.ParquetFile(writer.path).num_row_groups == 5


def test_a_full_disk_is_one_clear_error(tmp_path):
    (tmp_path / REQUESTS.file).symlink_to("/dev/full")
    with pytest.raises(OutputError, match=r"requests\.parquet: cannot write the results: .*[Ss]pace"):
        TableWriter(tmp_path, REQUESTS)


def test_a_disk_that_fills_up_is_one_clear_error(tmp_path):
    writer = TableWriter(tmp_path, EVENTS)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        for i in range(tables.ROW_GROUP_ROWS - 1):
            writer.append((i * i * 7919 % 2**40, "lease", str(i), None))
        with pytest.raises(OutputError, match=r"events\.parquet: cannot write the results"):
            writer.append((1, "lease", "last", None))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    with pytest.raises(OutputError):  # also when there is room again: rows are lost
        writer.close()
    writer.discard()
    assert not writer.path.exists()
