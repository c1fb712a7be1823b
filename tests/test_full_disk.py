"""Disks that are full, read-only or gone: one error, nothing that only looks whole, and what is done stays."""

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from simulator.build.run import simulate as run_scenario
from simulator.errors import InputError, OutputError
from simulator.results.output import append_line, replacing, write_named
from simulator.results.run import load_run
from simulator.scenario.load import load
from tests.small_disk import small_disk

SCENARIO = """
schema: 1
topology: {preset: clos-h100, nodes: 1}
workload:
  requests: 40
  arrivals: {poisson: {rate: 40 / s}}
  prompt_tokens: {constant: {value: 300}}
  output_tokens: {constant: {value: 20}}
serving: {model: llama-3.1-8b, colocated: {instances: 1, layout: {tensor: 2}}}
"""


@pytest.fixture(scope="module")
def scenario(tmp_path_factory):
    file = tmp_path_factory.mktemp("scenario") / "s.yaml"
    file.write_text(SCENARIO)
    return file


@pytest.fixture
def disk(tmp_path):
    with small_disk(tmp_path / "disk", 12 << 10) as found:  # a page of a run has 5 MB
        yield found


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.exists() else set()


def test_a_run_on_a_disk_that_fills_anywhere_is_never_taken_for_whole(disk, scenario, tmp_path):
    calm = run_scenario(load(scenario), out=tmp_path / "calm")
    out, said = disk.path / "run", list[str]()
    for pages in range(200):
        disk.leave(pages)
        try:
            done = run_scenario(load(scenario), out=out)
            break
        except OutputError as error:
            said.append(str(error))
        assert not names(out) & {"manifest.json", "manifest.partial.json"}
        assert not [name for name in names(out) if name.endswith(".tmp")]
        for table in out.glob("*.parquet"):  # what is left is whole
            pq.read_table(table)
    assert len(said) > 5, "tables, texts and manifest each met a full disk"
    assert all("No space left on device" in each for each in said)
    assert done.manifest["digest"] == calm.manifest["digest"]
    load_run(out).verify()


def test_commands_say_it_in_one_line(disk, scenario, simulate):
    disk.leave(3)
    full = simulate(str(scenario), "--out", str(disk.path / "run"))
    assert full.code == 1
    assert "No space left on device" in full.err
    assert len(full.err.splitlines()) == 1
    disk.clear()
    assert simulate(str(scenario), "--out", str(disk.path / "run")).code == 0
    for command, file in (("report", "report.html"), ("timeline", "timeline.pftrace")):
        target = disk.path / "run" / file
        assert simulate(command, str(disk.path / "run")).code == 0
        before = target.read_bytes()
        disk.leave(1)
        refused = simulate(command, str(disk.path / "run"))
        assert refused.code in (1, 2)
        assert "No space left on device" in refused.err
        assert len(refused.err.splitlines()) == 1
        assert target.read_bytes() == before, "the earlier one is whole"
        target.unlink()
        disk.leave(1)
        assert simulate(command, str(disk.path / "run")).code in (1, 2)
        assert not [name for name in names(disk.path / "run") if file in name], "none, or a whole one"
        disk.clear()
    disk.leave(0)
    for words in (
        ("topology", "draw", "clos-h100", "--out", f"{disk.path}/t.svg"),
        ("schema", "--out", f"{disk.path}/s.json"),
        ("trace", "synthesize", "--out", f"{disk.path}/t.parquet"),
        ("explain", str(scenario), "--html", f"{disk.path}/e.html"),
    ):
        refused = simulate(*words)
        assert refused.code in (1, 2), words
        assert "cannot write" in refused.err or words[0] == "trace", refused.err
        assert names(disk.path) == {".filler", "run"}, words


def test_standard_output_on_a_full_disk(disk, scenario, tmp_path):
    for at in "ab":
        run_scenario(load(scenario), out=tmp_path / at)
    disk.leave(0)
    for words in (["compare", str(tmp_path / "a"), str(tmp_path / "b"), "--json"], ["schema"], ["device", "list"]):
        with (disk.path / "printed").open("wb") as printed:
            called = [sys.executable, "-m", "simulator.cli", *words]
            done = subprocess.run(called, stdout=printed, stderr=subprocess.PIPE, text=True)
        assert done.returncode == 1
        assert done.stderr == "simulate: cannot write the output: No space left on device\n"


def test_a_disk_that_only_reads(disk, scenario, simulate):
    assert simulate(str(scenario), "--out", str(disk.path / "run")).code == 0
    before = {path.name: path.read_bytes() for path in (disk.path / "run").iterdir()}
    disk.read_only(True)
    for words in ((str(scenario), "--out"), ("report",), ("timeline",)):
        refused = simulate(*words, str(disk.path / "run"))
        assert refused.code in (1, 2)
        assert "Read-only file system" in refused.err
        assert len(refused.err.splitlines()) == 1
    assert simulate(str(scenario), "--out", str(disk.path / "new")).code == 2
    assert {path.name: path.read_bytes() for path in (disk.path / "run").iterdir()} == before
    assert simulate("compare", str(disk.path / "run"), str(disk.path / "run")).code == 0
    disk.read_only(False)


def test_a_folder_that_goes_during_the_run(scenario, tmp_path, monkeypatch):
    from simulator.build import run as module

    written = module._write_links

    def gone(folder, system):
        shutil.rmtree(tmp_path / "run")
        written(folder, system)

    monkeypatch.setattr(module, "_write_links", gone)
    with pytest.raises(OutputError, match="cannot write the results"):
        run_scenario(load(scenario), out=tmp_path / "run")
    monkeypatch.undo()
    assert run_scenario(load(scenario), out=tmp_path / "run").complete


def test_a_line_is_added_whole_or_not_at_all(disk):
    file = disk.path / "lines"
    append_line(file, "x" * 4000)
    before = file.read_bytes()
    disk.leave(0)
    with pytest.raises(OutputError, match="No space left"):
        append_line(file, "y" * 4000)  # of which 95 bytes would fit the page
    assert file.read_bytes() == before


def test_what_is_no_file_is_written_into_and_links_stay(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    with replacing(tmp_path / "pipe") as file:
        file.write(b"through")
    assert os.read(reader, 100) == b"through"
    os.close(reader)
    (tmp_path / "link").symlink_to(tmp_path / "target")
    write_named(tmp_path / "link", "text")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_text() == "text"
    with pytest.raises(InputError, match=os.strerror(errno.ENOENT)):
        write_named(tmp_path / "no" / "file", "text")
