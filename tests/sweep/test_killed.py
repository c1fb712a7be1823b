"""A sweep over real processes of Dask, killed one after another: every point once, and the bytes of a calm one."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from simulator.sweep.dataset import load_sweep
from simulator.sweep.run import sweep
from tests.sweep.test_run import RATE, files, write

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def process(*words: str, cwd: Path):
    started = subprocess.Popen(
        [sys.executable, *words], cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )
    try:
        yield started
    finally:
        if started.poll() is None:
            os.killpg(started.pid, signal.SIGKILL)
        started.wait()
        started.stdout.close()


class Cluster:
    """A scheduler and workers as a user would start them by hand."""

    def __init__(self, stack: ExitStack, folder: Path) -> None:
        self.stack, self.folder = stack, folder
        self.address = f"tcp://127.0.0.1:{free_port()}"
        port = self.address.rpartition(":")[2]
        words = ("-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", port)
        self.scheduler = stack.enter_context(process(*words, "--dashboard-address", ":0", cwd=folder))
        self.workers = [self.worker() for _ in range(2)]

    def worker(self):
        words = ("-m", "distributed.cli.dask_worker", self.address, "--nthreads", "1", "--no-dashboard")
        return self.stack.enter_context(process(*words, "--death-timeout", "60", cwd=self.folder))


def client_of(file: Path, out: Path, address: str, stack: ExitStack):
    words = ("-m", "simulator.cli", "sweep", str(file), "--out", str(out), "--scheduler", address)
    return stack.enter_context(process(*words, cwd=file.parent))


def wait_for_points(out: Path, count: int, running) -> None:
    end = time.monotonic() + 120
    while len(list(out.glob("points/*/row.parquet"))) < count:
        assert running.poll() is None, running.stdout.read().decode()
        assert time.monotonic() < end, "the sweep does not go on"
        time.sleep(0.02)


def children(pid: int) -> list[int]:
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in found]


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes under /proc")
@pytest.mark.parametrize("points", [24, pytest.param(200, marks=pytest.mark.nightly)])
def test_worker_scheduler_and_client_killed_in_the_middle(tmp_path, client, points):
    file = write(tmp_path, f"grid: {{{RATE}: [20 / s, 80 / s]}}\nseeds: 1..{points // 2}\nkeep: [requests]")
    undisturbed = sweep(file, tmp_path / "calm", client=client)
    assert len(undisturbed.points) == points
    out = tmp_path / "out"
    with ExitStack() as stack:
        cluster = Cluster(stack, tmp_path)
        first = client_of(file, out, cluster.address, stack)
        wait_for_points(out, points // 8, first)
        nanny = cluster.workers[0].pid
        for child in children(nanny):  # the worker itself; its nanny starts another
            os.kill(child, signal.SIGKILL)
        wait_for_points(out, points // 4, first)
        first.kill()  # the client: whatever it had asked for is forgotten
        first.wait()
        second = client_of(file, out, cluster.address, stack)
        wait_for_points(out, points // 4 + 8, second)  # what the first had under way, and more
        os.killpg(cluster.scheduler.pid, signal.SIGKILL)
        said = second.communicate(timeout=120)[0].decode()
        assert second.returncode == 1, said
        last = said.rstrip().splitlines()[-1]  # the libraries may tell of lost connections before
        assert re.search(r"scheduler is gone.*run again", last), said
    done = {path.parent.name for path in out.glob("points/*/row.parquet")}
    assert points // 4 + 8 <= len(done) < points
    with ExitStack() as stack:
        cluster = Cluster(stack, tmp_path)
        third = client_of(file, out, cluster.address, stack)
        said = third.communicate(timeout=300)[0].decode()
        assert third.returncode == 0, said
    assert load_sweep(out).complete
    assert files(out) == files(tmp_path / "calm")
