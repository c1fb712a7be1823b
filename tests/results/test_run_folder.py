"""The run folder: what it refuses, what it clears, and that a manifest stands only beside the files it describes."""

import json
import os
import random
import resource
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest

from simulator.errors import InputError, OutputError
from simulator.results.folder import MANIFEST, MARKER, RunFolder
from simulator.results.run import load_run
from simulator.results.tables import EVENTS, REQUESTS

FACTS = {"scenario": "x", "scenario_digest": "ab", "seed": 7, "simulated_ns": 5, "wall_s": 0.1, "events": 3}


def request(i, outcome="finished"):
    return (i, None, None, i, i, i, i, i, i, i + 9, 10, 11, 11, 0, "p", "d", 0, 0, 0, 0, 0, outcome, None)


@contextmanager
def file_size_limit(size):
    """A disk that is full beyond `size` bytes of a file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def make(path, rows=3, finish=True):
    with RunFolder.create(path) as folder:
        writer = folder.writer(REQUESTS)
        for i in range(rows):
            writer.append(request(i))
        folder.writer(EVENTS).append((2**60 + 1, "lease", "d0", None))
        folder.write_text("scenario.yaml", "schema: 1\n")
        folder.write_json("summary.json", {"simulated_s": 1.5})
        return folder.finish(FACTS) if finish else folder.abandon(FACTS)


def test_a_finished_run_is_read_back(tmp_path):
    path = tmp_path / "deep" / "run"
    manifest = make(path)
    run = load_run(path)
    run.verify()
    assert run.complete
    assert run.manifest == manifest
    assert run.manifest.items() >= FACTS.items()
    assert manifest["tables"]["requests"]["rows"] == 3
    assert list(manifest["versions"]) == ["simulator", "python", "numpy", "pyarrow", "simpy"]
    assert run.summary == {"simulated_s": 1.5}
    assert run.requests["finish_ns"].tolist() == [9, 10, 11]
    assert run.events["time_ns"].tolist() == [2**60 + 1]  # not rounded through a float
    assert run.requests["turn"].isna().all()
    assert sorted(p.name for p in path.iterdir()) == sorted(
        [MANIFEST, "requests.parquet", "events.parquet", "scenario.yaml", "summary.json"]
    )
    with pytest.raises(InputError, match="did you mean 'requests'"):
        run.table("request")


def test_the_digest_is_that_of_the_tables_in_order(tmp_path):
    digests = [make(tmp_path / name, rows)["digest"] for name, rows in (("a", 3), ("b", 3), ("c", 4))]
    assert digests[0] == digests[1] != digests[2]


def test_an_interrupted_run_keeps_what_was_done(tmp_path):
    make(tmp_path / "r", finish=False)
    assert not (tmp_path / "r" / MANIFEST).exists()
    run = load_run(tmp_path / "r")
    run.verify()
    assert not run.complete
    assert len(run.requests) == 3


@pytest.mark.parametrize("finish", [True, False])
def test_an_earlier_run_is_cleared_but_nothing_else(tmp_path, finish):
    make(tmp_path, finish=finish)
    (tmp_path / "notes.txt").write_text("mine")
    with RunFolder.create(tmp_path):
        assert sorted(p.name for p in tmp_path.iterdir()) == [MARKER, "notes.txt"]
    make(tmp_path)
    load_run(tmp_path).verify()


def test_the_folder_of_a_killed_run_is_used_again(tmp_path):
    (tmp_path / MARKER).touch()
    (tmp_path / "requests.parquet").write_bytes(b"PAR1 cut")
    with pytest.raises(InputError, match="still going, or was killed"):
        load_run(tmp_path)
    make(tmp_path)
    load_run(tmp_path).verify()


def test_other_folders_are_refused_and_left_alone(tmp_path):
    mine = tmp_path / "project"
    mine.mkdir()
    (mine / MANIFEST).write_text('{"name": "a web page"}')
    (tmp_path / "file").write_text("x")
    (tmp_path / "loose").symlink_to(tmp_path / "nowhere")
    for path, why in (
        (mine, "not a run's"),
        (tmp_path / "file", "is a file"),
        (tmp_path / "file" / "below", "cannot be written"),
        (tmp_path / "loose", "leads nowhere"),
    ):
        with pytest.raises(InputError, match=why):
            RunFolder.create(path)
    assert (mine / MANIFEST).read_text() == '{"name": "a web page"}'
    assert [p.name for p in mine.iterdir()] == [MANIFEST]


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes anywhere")
def test_a_folder_without_permission_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="cannot be written"):
        RunFolder.create(tmp_path / "run")


def test_two_runs_do_not_share_a_folder(tmp_path):
    with RunFolder.create(tmp_path), pytest.raises(InputError, match="by another run"):
        RunFolder.create(tmp_path)
    make(tmp_path)


def test_a_manifest_that_names_files_outside_deletes_none_of_them(tmp_path):
    make(tmp_path / "run")
    outside = tmp_path / "precious"
    outside.write_text("x")
    manifest = json.loads((tmp_path / "run" / MANIFEST).read_text())
    manifest["files"]["../precious"] = {"file": "../precious"}
    (tmp_path / "run" / MANIFEST).write_text(json.dumps(manifest))
    make(tmp_path / "run")
    assert outside.exists()


@pytest.mark.parametrize("damage", ["missing", "short", "changed", "format", "cut"])
def test_damage_is_found(tmp_path, damage):
    make(tmp_path)
    table, manifest = tmp_path / "requests.parquet", tmp_path / MANIFEST
    content = table.read_bytes()
    if damage == "missing":
        table.unlink()
    elif damage == "short":
        table.write_bytes(content[:-1])
    elif damage == "changed":
        table.write_bytes(content[:-1] + b"?")
    elif damage == "format":
        manifest.write_text(manifest.read_text().replace('"format": 1', '"format": 99'))
    else:
        manifest.write_text(manifest.read_text()[:100])
    with pytest.raises(InputError):
        load_run(tmp_path).verify()


def test_a_disk_that_fills_up_keeps_the_tables_that_were_whole(tmp_path):
    with RunFolder.create(tmp_path) as folder:
        folder.writer(EVENTS).append((1, "lease", "d0", None))
        requests = folder.writer(REQUESTS)
        noise = random.Random(1)
        for _ in range(20_000):
            requests.append((*request(0)[:16], noise.getrandbits(40), *request(0)[17:]))
        with file_size_limit(20_000):
            with pytest.raises(OutputError, match=r"requests\.parquet"):
                folder.finish(FACTS)
            assert not (tmp_path / MANIFEST).exists()
        folder.abandon(FACTS)  # there is room again, but rows are lost
    run = load_run(tmp_path)
    run.verify()
    assert list(run.manifest["tables"]) == ["events"]
    assert not run.complete
    assert not (tmp_path / REQUESTS.file).exists()


def test_a_manifest_that_cannot_be_written_leaves_none(tmp_path):
    with RunFolder.create(tmp_path) as folder:
        folder.writer(EVENTS)
        (tmp_path / f".{MANIFEST}.tmp").symlink_to("/dev/full")
        with pytest.raises(OutputError, match="cannot write"):
            folder.finish(FACTS)
    assert not (tmp_path / MANIFEST).exists()


ENDLESS = """
import sys
from pathlib import Path
sys.path[:0] = [{here!r}]
from test_run_folder import make
path = Path(sys.argv[1])
make(path, 2000)
print("go", flush=True)
while True:
    make(path, 2000)
"""


def test_killed_at_any_moment_it_never_looks_complete_unless_it_is(tmp_path):
    code = ENDLESS.format(here=os.path.dirname(__file__))
    env = {**os.environ, "PYTHONPATH": ":".join(sys.path)}
    moments = random.Random(3)
    seen = set()
    for _ in range(8):
        child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, env=env)
        with child:
            assert child.stdout.readline() == b"go\n"
            time.sleep(moments.uniform(0, 0.05))
            child.kill()
        complete = (tmp_path / MANIFEST).exists()
        seen.add(complete)
        if complete:
            run = load_run(tmp_path)
            run.verify()
            assert run.complete
            assert len(run.requests) == 2000
            assert run.table("events").num_rows == 1
        else:
            with pytest.raises(InputError, match="killed"):
                load_run(tmp_path)
    assert False in seen  # otherwise no kill came in the middle of a run
