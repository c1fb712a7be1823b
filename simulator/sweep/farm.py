"""Points on Dask workers: an embedded cluster of processes, or one that runs already; a few points are in flight.

Source: dask.distributed. A worker that dies is replaced and its point runs again; a point that kills several is given
up.
"""

import logging
import os
import sys
from collections.abc import Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from itertools import islice
from typing import Any
from uuid import uuid4

from simulator.errors import InputError, OutputError, Problem
from simulator.sweep.dataset import FAILED, Row
from simulator.sweep.worker import Outcome, Task, run_task

PER_WORKER = 3
"""Points in flight for each thread of a worker: one runs, the others are there when it ends."""
DEATHS = 2
"""Workers that a point may take with it; after one more it is given up."""


def cores() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def workers(count: int | None = None, scheduler: str | None = None) -> Iterator[Any]:
    """Yield a dask.distributed Client of `count` processes here, or of the cluster of a scheduler's address.

    Raises InputError when there is no scheduler at the address, or it has no workers.
    """
    import dask
    from distributed import Client, LocalCluster

    for name in ("distributed", "asyncio"):  # a lost connection is told once, by us, not with their tracebacks
        logging.getLogger(name).setLevel(logging.CRITICAL)
    settings = {
        "distributed.scheduler.allowed-failures": DEATHS,
        "distributed.comm.timeouts.connect": "10s",
        "distributed.worker.memory.pause": False,  # a point's memory is its own affair: it either fits or not
        "distributed.worker.memory.spill": False,
        "distributed.worker.memory.target": False,
        "distributed.worker.profile.enabled": False,  # it would look at the stack of a running point every 10 ms
    }
    with dask.config.set(settings):
        if scheduler is None:
            with (
                _without_script(),
                LocalCluster(
                    n_workers=count or cores(),
                    threads_per_worker=1,
                    processes=True,
                    dashboard_address=":0",
                    silence_logs=50,
                    memory_limit=0,
                ) as cluster,
                Client(cluster, set_as_default=False) as client,
            ):
                yield client
            return
        try:
            client = Client(scheduler, timeout="10s", set_as_default=False)
        except (OSError, ValueError) as error:
            what = f"no scheduler answers: {error}".splitlines()[0]
            raise InputError(Problem(what, path="--scheduler", allowed="such as tcp://10.0.0.1:8786")) from None
        with client:
            yield client


@contextmanager
def _without_script() -> Iterator[None]:
    """Let processes that start know nothing of the user's script, which they would run from its top.

    What workers run they import by name, so `sweep()` needs no `if __name__ == "__main__"` around it.
    """
    main = sys.modules["__main__"]
    spec, file = main.__spec__, main.__dict__.pop("__file__", None)
    main.__spec__ = None
    try:
        yield
    finally:
        main.__spec__ = spec
        if file is not None:
            main.__file__ = file


def run_tasks(client: Any, tasks: Iterator[Task]) -> Iterator[Outcome]:
    """Yield the outcome of each task as it ends, in no set order; few are in flight at once, so memory stays flat.

    Raises OutputError when results cannot be written, or the scheduler is gone.
    """
    from distributed import as_completed
    from distributed.comm.core import CommClosedError

    threads = max(1, sum(client.nthreads().values()))
    run = uuid4().hex  # no other sweep of this client, one that has failed say, has futures of these names
    waiting: dict[str, tuple[Task, Any]] = {}
    running = as_completed([], loop=client.loop)

    def submit(count: int) -> None:
        for task in islice(tasks, count):
            future = client.submit(run_task, task, key=f"point-{task.point.name}-{run}", pure=False)
            waiting[future.key] = task, future
            running.add(future)

    try:
        submit(PER_WORKER * threads)
        for future in running:
            outcome = _outcome(future, waiting[future.key][0])
            del waiting[future.key]
            yield outcome
            future.release()
            submit(1)
    except (CommClosedError, TimeoutError, CancelledError):
        what = f"the scheduler is gone with {len(waiting)} points under way; run again to go on from here"
        raise OutputError(what) from None
    finally:
        with suppress(CommClosedError, TimeoutError, CancelledError):
            client.cancel([future for _, future in waiting.values()])


def _outcome(future: Any, task: Task) -> Outcome:
    """Return what became of a point; raises what concerns the whole sweep, CancelledError when the future is lost."""
    from distributed.scheduler import KilledWorker

    if future.status == "finished":
        outcome: Outcome = future.result()
        return outcome
    error = future.exception() if future.status == "error" else CancelledError()
    if isinstance(error, OutputError | InputError | CancelledError):
        raise error
    if isinstance(error, KilledWorker):
        what = f"{DEATHS + 1} workers died while they ran it (out of memory, or killed)"
    else:
        what = " ".join(f"{type(error).__name__}: {error}".split())
    return Outcome(Row(task.point.name, task.point.setting, FAILED, what), 0.0)
