"""A sweep in an object store: whole, resumed, read back, and refused at once where nothing can be written."""

import json
import os
import re

import duckdb
import pandas as pd
import pyarrow.dataset as ds
import pytest
from click.testing import CliRunner
from pyarrow import fs

from simulator.cli import simulate as command
from simulator.sweep.dataset import load_sweep
from simulator.sweep.run import sweep
from tests.sweep.object_store import ACCESS_KEY, object_store
from tests.sweep.test_run import RATE, files, write

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")
TEXT = f"grid: {{{RATE}: [20 / s, 80 / s], serving.colocated.instances: [1, 2, 900]}}\nseeds: 1..2\nkeep: [requests]"


@pytest.fixture(scope="module")
def credentials():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        patch.delenv("AWS_SESSION_TOKEN", raising=False)
        yield patch


@pytest.fixture(scope="module")
def store(credentials):
    with object_store() as server:
        yield server


@pytest.fixture(scope="module")
def study(store, tmp_path_factory):
    """Run a sweep there with workers of its own, which have the credentials; return its file and what was printed."""
    file = write(tmp_path_factory.mktemp("study"), TEXT)
    words = ["sweep", str(file), "--out", store.uri("bucket/deep/study"), "--workers", "1", "--json"]
    done = CliRunner().invoke(command, words)
    assert done.exit_code == 0, done.output
    return file, json.loads(done.stdout)


def test_its_objects_are_the_files_of_a_folder(store, study, client, tmp_path):
    file, summary = study
    result = sweep(file, tmp_path / "out", client=client)
    found = {f"deep/study/{name}" for name in files(tmp_path / "out")}
    assert set(store.buckets["bucket"]) == found
    for name in found:
        assert store.buckets["bucket"][name] == (tmp_path / "out" / name.removeprefix("deep/study/")).read_bytes()
    assert summary == result.summary


def test_it_is_read_there(store, study, tmp_path):
    uri = store.uri("bucket/deep/study")
    result = load_sweep(uri)
    assert result.complete
    assert len(result.points) == 12
    kept = result.table("requests").to_table()
    assert len(kept) == 8 * 60
    told = CliRunner().invoke(command, ["compare", uri, "--by", "serving.colocated.instances", "--json"])
    assert told.exit_code == 0, told.output
    assert len(json.loads(told.stdout)) == 4  # at each rate, one engine against two and against those that do not fit
    refused = CliRunner().invoke(command, ["report", uri])
    assert "needs --out" in str(refused.exception)
    page = CliRunner().invoke(command, ["report", uri, "--out", str(tmp_path / "page.html")])
    assert page.exit_code == 0, page.output
    assert (tmp_path / "page.html").stat().st_size > 10_000


def test_duckdb_and_pandas_read_the_rows(store, study):
    filesystem, root = fs.FileSystem.from_uri(store.uri("bucket/deep/study"))
    rows = duckdb.from_arrow(ds.dataset(f"{root}/points", filesystem=filesystem, partitioning="hive"))
    asked = """select count(*), max("ttft.p99") from rows where status = 'done'"""
    [(count, worst)] = rows.query("rows", asked).fetchall()
    assert count == 8
    frame = pd.read_parquet(f"{root}/points", filesystem=filesystem)
    assert len(frame) == 12
    assert frame["ttft.p99"].max() == worst


def test_it_goes_on_where_it_was(store, study, client):
    file, summary = study
    uri, bucket = store.uri("bucket/deep/study"), store.buckets["bucket"]
    whole = dict(bucket)
    gone = sorted(name for name in bucket if name.endswith("row.parquet"))[3:5]
    for name in gone:
        del bucket[name]
    del bucket["deep/study/manifest.json"]
    assert not load_sweep(uri).complete
    store.put.clear()
    shown = CliRunner().invoke(command, ["sweep", str(file), "--out", uri, "--dry-run"])
    assert "10 there already, 2 to run" in shown.output
    client.run(os.environ.update, {name: os.environ[name] for name in os.environ if name.startswith("AWS_")})
    assert sweep(file, uri, client=client).summary == summary
    assert bucket == whole
    assert sorted(name for name in store.put if name.endswith("row.parquet")) == gone


def test_another_sweep_does_not_mix_with_it(store, study, tmp_path):
    other, before = write(tmp_path, f"grid: {{{RATE}: [20 / s]}}"), dict(store.buckets["bucket"])
    refused = CliRunner().invoke(command, ["sweep", str(other), "--out", store.uri("bucket/deep/study")])
    assert "holds another sweep" in str(refused.exception)
    assert store.buckets["bucket"] == before


@pytest.mark.parametrize("words", [("sweep", "study", "--out", "{}"), ("compare", "{}", "{}"), ("report", "{}")])
@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("bucket", "NO_SUCH_BUCKET|no sweep here"),
        ("key", "ACCESS_DENIED"),
        pytest.param("server", "not connect", marks=pytest.mark.nightly),  # six seconds each: the library tries thrice
    ],
)
def test_what_is_not_to_be_had_is_one_error_after_a_few_calls(
    store, study, credentials, simulate, tmp_path, words, what, says
):
    file, _ = study
    uri = store.uri("no-such-bucket/x" if what == "bucket" else "bucket/deep/study")
    if what == "server":
        uri = uri.replace(store.endpoint, "127.0.0.1:9")
    calls = store.calls
    with pytest.MonkeyPatch.context() as patch:
        if what == "key":
            patch.setenv("AWS_ACCESS_KEY_ID", "another")
        given = [str(file) if word == "study" else word.format(uri) for word in words]
        refused = simulate(*given, *(["--out", str(tmp_path / "page")] if words[0] == "report" else []))
    assert refused.code in (1, 2)
    assert len(refused.err.splitlines()) == 1
    assert re.search(says, refused.err), refused.err
    assert store.calls - calls < 10
