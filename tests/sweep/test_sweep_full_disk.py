"""Sweeps into disks that are full, read-only or gone: one error, finished points stay, and the same command goes on."""

import shutil

import pytest

from simulator.errors import InputError, OutputError
from simulator.sweep import worker
from simulator.sweep.dataset import load_sweep
from simulator.sweep.estimate import dry_run_lines
from simulator.sweep.plan import load_plan
from simulator.sweep.points import code_digest
from simulator.sweep.run import sweep
from tests.small_disk import small_disk
from tests.sweep.test_run import RATE, files, write

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")


@pytest.fixture
def disk(tmp_path):
    with small_disk(tmp_path / "disk", 1536) as found:
        yield found


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    text = f"grid: {{{RATE}: [20 / s, 80 / s], serving.colocated.instances: [1, 2, 900]}}\nkeep: [requests]"
    return write(tmp_path_factory.mktemp("study"), text)


@pytest.fixture(scope="module")
def calm(study, client, tmp_path_factory):
    out = tmp_path_factory.mktemp("calm") / "out"
    assert sweep(study, out, client=client).complete
    return out


def rows(folder):
    return {path: path.stat().st_mtime_ns for path in folder.glob("points/*/row.parquet")}


def test_a_sweep_that_fills_the_disk_goes_on_when_there_is_room(disk, study, calm, client):
    out, whole = disk.path / "out", files(calm)
    disk.leave(24)  # some points, not all
    with pytest.raises(OutputError, match="No space left on device"):
        sweep(study, out, client=client)
    done = rows(out)
    assert 0 < len(done) < 6
    there = files(out)
    assert {name: there[name] for name in there if name.startswith("points/")}.items() <= whole.items()
    assert not {"manifest.json", "summary.json"} & there.keys()
    assert not [name for name in there if name.endswith(".tmp")]
    told = load_sweep(out)
    assert not told.complete
    assert len(told.points) == len(done)
    disk.clear()
    assert sweep(study, out, client=client).complete
    assert files(out) == whole
    assert done.items() <= rows(out).items(), "what was done was not run again"


@pytest.mark.parametrize("first", ["sweep", "summary"])
def test_what_the_client_writes_meets_a_full_disk_anywhere(disk, study, calm, client, first):
    """All points are there; sweep.json, summary.json and manifest.json come as there is room, page by page."""
    out, whole, said = disk.path / "out", files(calm), list[str]()
    for folder in ("points", "tables"):
        shutil.copytree(calm / folder, out / folder)
    shutil.copy(calm / "sweep.json", out / "sweep.json")
    if first == "sweep":  # what says already what it is to say is not written again
        (out / "sweep.json").write_text((out / "sweep.json").read_text().replace('"begun"', '"older"'))
    for pages in range(60):
        disk.leave(pages)
        try:
            sweep(study, out, client=client)
            break
        except OutputError as error:
            said.append(str(error))
        assert not (out / "manifest.json").exists()
        assert {name: there for name, there in files(out).items() if "/" in name}.items() <= whole.items()
        assert not load_sweep(out).complete
    assert files(out) == whole
    assert f"/{first}.json: " in said[0]
    assert "/manifest.json: " in said[-1]
    assert all("No space left on device" in each for each in said)


def test_a_journal_that_cannot_be_written_is_one_error_and_no_half_line(disk, study, calm, client, monkeypatch):
    out = disk.path / "out"
    shutil.copytree(calm, out)
    gone = sorted((out / "points").iterdir())[0]
    shutil.rmtree(gone)
    lines = (out / "journal.jsonl").read_text()
    (out / "journal.jsonl").write_text(lines + lines.splitlines()[0][:20])  # as a killed client leaves it
    assert "5 there already, 1 to run" in "\n".join(dry_run_lines(str(study), str(out), 1))
    monkeypatch.setattr("simulator.sweep.run.append_line", lambda path, text: refuse(disk, path, text))
    with pytest.raises(OutputError, match=r"journal.jsonl: cannot write the results: No space left"):
        sweep(study, out, client=client)
    assert (gone / "row.parquet").exists(), "the point is done all the same"
    monkeypatch.undo()
    disk.clear()
    assert sweep(study, out, client=client).complete
    assert files(out) == files(calm)


def refuse(disk, path, text):
    from simulator.results.output import append_line

    disk.leave(0)
    append_line(path, text * 100)


def test_a_sweep_on_a_disk_that_only_reads(disk, study, calm, client):
    out = disk.path / "out"
    shutil.copytree(calm, out)
    (out / "manifest.json").unlink()
    before = files(out)
    disk.read_only(True)
    for where in (out, disk.path / "new"):
        with pytest.raises((InputError, OutputError), match="Read-only file system") as told:
            sweep(study, where, client=client)
        assert len(str(told.value).splitlines()) == 1
    assert files(out) == before
    assert len(load_sweep(out).points) == 6
    disk.read_only(False)
    assert sweep(study, out, client=client).complete
    assert files(out) == files(calm)


def test_a_worker_without_room_for_a_run_ends_the_sweep_and_makes_no_row(disk, study, tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "sweep.json").write_text("{}")
    point = next(iter(load_plan(study).points()))
    task = worker.Task(point, str(tmp_path / "out"), ("requests",), code_digest())
    monkeypatch.setattr("tempfile.tempdir", str(disk.path))
    disk.leave(2)
    with pytest.raises(OutputError, match="No space left on device"):
        worker.run_task(task)
    disk.read_only(True)
    with pytest.raises(OutputError, match="no room for a run: Read-only"):
        worker.run_task(task)
    disk.read_only(False)
    assert not rows(tmp_path / "out")


def test_a_folder_that_goes_is_not_made_again(study, tmp_path):
    point = next(iter(load_plan(study).points()))
    with pytest.raises(OutputError, match=r"no sweep.json of the sweep is there"):
        worker.run_task(worker.Task(point, str(tmp_path / "out"), ("requests",), code_digest()))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("given", ["absolute", "relative", "mapping"])
def test_rows_of_points_that_do_not_fit_name_no_folder(study, calm, client, tmp_path, monkeypatch, given):
    shutil.copytree(study.parent, tmp_path / "elsewhere" / "study")
    moved = tmp_path / "elsewhere" / "study" / study.name
    monkeypatch.chdir(tmp_path)
    if given == "relative":
        moved = moved.relative_to(tmp_path)
    if given == "mapping":
        monkeypatch.chdir(moved.parent)
        moved = {
            "schema": 1,
            "base": "base.yaml",
            "name": "study",
            "keep": ["requests"],
            "grid": {RATE: ["20 / s", "80 / s"], "serving.colocated.instances": [1, 2, 900]},
        }
    sweep(moved, tmp_path / "out", client=client)
    mine, others = files(tmp_path / "out"), files(calm)
    if given == "mapping":  # without lines
        [error] = set(load_sweep(tmp_path / "out").errors["error"])
        assert "grid.serving" in error or error.startswith("serving")
    else:
        assert mine == others
    errors = load_sweep(tmp_path / "out").errors["error"]
    assert len(errors) == 2
    assert not errors.str.contains(str(tmp_path.parent), regex=False).any()
