"""What a worker does with a point: load it, run it in a folder of its own, and write the row, kept tables before it."""

import os
import re
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

from simulator import catalog
from simulator.errors import InputError, OutputError, Problem
from simulator.plugins import import_plugins
from simulator.results.metrics import METRICS, lookup
from simulator.results.tables import TABLES
from simulator.sweep.dataset import BEGUN, DONE, FAILED, INVALID, Row, write_row
from simulator.sweep.points import Point, code_digest, figures_text
from simulator.sweep.store import Store
from simulator.workload.kept import KEPT, SWEEP_BYTES

MOST_PROBLEMS = 5
"""Problems of a scenario that its row repeats."""


class Task(NamedTuple):
    """A point to run, and where and how its results are written."""

    point: Point
    location: str
    keep: tuple[str, ...]
    code: str
    plugins: tuple[str, ...] = ()
    check: bool = False
    folders: tuple[str, ...] = ()
    """See `folders`."""


class Outcome(NamedTuple):
    """What the client hears of a point."""

    row: Row
    wall_s: float


def run_task(task: Task) -> Outcome:
    """Run a point and write its results; raises OutputError when that fails, InputError when the code is another."""
    if code_digest() != task.code:
        what = "a worker has another version of the simulator than the one that asked"
        raise InputError(Problem(what, allowed="the same version everywhere"))
    KEPT.most_bytes = SWEEP_BYTES
    begun = perf_counter()
    store = Store(task.location)
    row = outcome_of(task, store)
    _see(store)
    write_row(store, row, task.code)
    return Outcome(row._replace(summary=None), perf_counter() - begun)


def outcome_of(task: Task, store: Store) -> Row:
    """Return the row of a point after its run; whatever is wrong with the point itself is in the row."""
    point = task.point
    try:
        import_plugins(task.plugins)
        return _run(task, store)
    except InputError as error:
        told = [_from_here(" ".join(str(problem).split()), task.folders) for problem in error.problems]
        more = [f"and {len(told) - MOST_PROBLEMS} more"] if len(told) > MOST_PROBLEMS else []
        return Row(point.name, point.setting, INVALID, " | ".join(told[:MOST_PROBLEMS] + more))
    except OutputError:
        raise
    except (Exception, RecursionError) as error:
        what = " ".join(f"{type(error).__name__}: {error}".split())
        return Row(point.name, point.setting, FAILED, _from_here(what, task.folders))


def _run(task: Task, store: Store) -> Row:
    from simulator.build.run import run_scenario

    point = task.point
    scenario = point.load()
    with ExitStack() as stack:
        try:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="simulate-point-"))
        except OSError as error:
            raise OutputError(f"a worker has no room for a run: {error.strerror or error}") from None
        run = run_scenario(scenario, Path(folder) / "run", task.check, lasting=False)
        _keep(task, store, run.path, list(run.manifest["tables"]))
        return Row(
            point.name,
            point.setting,
            DONE,
            None,
            all(row["holds"] for row in run.summary["expect"]) if scenario.expect else None,
            run.manifest["digest"],
            run.manifest["simulated_ns"],
            run.manifest["events"],
            {metric.name: lookup(run.summary, metric.name) for metric in METRICS},
            figures_text(run.summary),
        )


def folders(file: str) -> tuple[str, ...]:
    """Return by what names errors are not to call files, for a sweep's rows are the same wherever it lies.

    They are the folder of the sweep, as it was given and in full, and the folders around it.
    """
    given, full = Path(file).parent, Path(os.path.abspath(file)).parent
    around = [folder for folder in full.parents if folder != folder.parent]
    return tuple(map(str, [given, full, *around]))


def _from_here(text: str, known: Sequence[str]) -> str:
    """Return a text with paths below known folders as seen from the sweep's, and shipped files by kind and name."""
    shipped = catalog.folder("scenarios").parent
    text = re.sub(rf"(?<![\w./]){re.escape(str(shipped))}/", "", text)
    for up, folder in enumerate(known[1:]):
        text = re.sub(rf"(?<![\w./]){re.escape(folder)}/", "../" * up, text)
    return text.removeprefix(f"{known[0]}/") if known and known[0] != "." else text


def _see(store: Store) -> None:
    """Raise OutputError unless the sweep is where it is to be; what is written elsewhere would be lost."""
    if not store.has(BEGUN):
        what = f"no {BEGUN} of the sweep is there: the folder was removed, or this worker does not see it"
        raise OutputError(f"{store.location}: {what}; use a shared folder, or an object store")


def _keep(task: Task, store: Store, folder: Path, there: Sequence[str]) -> None:
    if task.keep:
        _see(store)
    for table in TABLES:
        if table.name in task.keep and table.name in there:
            content = (folder / table.file).read_bytes()
            store.write(f"tables/{table.name}/point={task.point.name}/{table.file}", content, task.code)
