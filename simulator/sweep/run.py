"""Runs a sweep: what is missing goes to the workers, every row is written as it comes, the manifest last.

Model: a folder belongs to one sweep at a time (a lock, and a digest of what varies); points are content-addressed, so a
sweep that was cut short, however, goes on where it was.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from time import time
from typing import Any

from simulator.errors import InputError, Problem
from simulator.results.folder import REPORT, lock, versions
from simulator.results.metrics import METRICS
from simulator.results.output import append_line
from simulator.sweep.axes import Setting, over_seeds, value_text
from simulator.sweep.dataset import (
    BEGUN,
    DONE,
    FAILED,
    FORMAT,
    JOURNAL,
    KIND,
    MANIFEST,
    MARKER,
    SUMMARY,
    Row,
    SweepResult,
    by_setting,
    load_sweep,
    mean_rows,
    points_there,
    read_manifest,
    read_row,
    row_file,
    statuses,
    write_json,
    write_row,
)
from simulator.sweep.farm import run_tasks
from simulator.sweep.farm import workers as workers_of
from simulator.sweep.frontier import DEFAULT, frontier
from simulator.sweep.plan import Plan, load_plan
from simulator.sweep.points import Point, code_digest
from simulator.sweep.search import Answer, Asking, Evaluation, search_of
from simulator.sweep.store import Store
from simulator.sweep.worker import Outcome, Task, folders

Watch = Callable[[int, int | None, int, float], None]
"""Called with the points that have ended, how many there will be (if known), those not done, seconds of simulation."""


def sweep(
    source: str | Path | Mapping[str, Any],
    out: str | Path | None = None,
    workers: int | None = None,
    scheduler: str | None = None,
    extend: bool = False,
    check: bool = False,
    plugins: tuple[str, ...] = (),
    watch: Watch | None = None,
    client: Any = None,
) -> SweepResult:
    """Run what is missing of a sweep and return its results: `result.points` is a DataFrame, a row a point.

    The sweep is a file or a mapping with the keys of one, of which `base` may be a scenario written out as well.
    `out` is a folder or the URI of an object store (default: results/sweeps/<name>). `workers` processes here run the
    points, or the workers of the Dask scheduler at `scheduler`, or those of `client`. With `extend` the folder of
    another sweep is taken over: points of both are kept, others removed. Raises InputError for what is wrong with
    the sweep, and OutputError when results cannot be written; what has been written until then stays and counts.
    """
    plan = load_plan(source)
    store = Store(out if out is not None else Path("results") / "sweeps" / plan.sweep.name)
    with ExitStack() as stack:
        _take(store, plan, extend, stack)
        if client is None:
            client = stack.enter_context(workers_of(workers, scheduler))
        _Sweeping(plan, store, client, check, plugins, watch).run()
    return load_sweep(store.location)


def _take(store: Store, plan: Plan, extend: bool, stack: ExitStack) -> None:
    """Make the place ours until the stack unwinds: no other sweep writes there now, and none has before."""
    before = read_manifest(store, BEGUN)
    allowed = "a new folder, or --extend: it keeps the points of both and removes the others"
    if before is not None and before.get("identity") != plan.identity and not extend:
        what = f"holds another sweep ({before.get('name')}: {', '.join(before.get('axes', {})) or 'no axes'})"
        raise InputError(Problem(what, store.location, allowed=allowed))
    if store.folder is not None:
        if before is None and store.folder.exists():
            if not store.folder.is_dir():
                raise InputError(Problem("is a file", store.location, allowed="a new or empty folder"))
            if not all(path.name == MARKER or path.name.startswith(f".{BEGUN}.") for path in store.folder.iterdir()):
                raise InputError(Problem("holds files that are not a sweep's", store.location, allowed="a new folder"))
        try:
            store.folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(lock(store.folder / MARKER, "sweep"))
        except OSError as error:
            what = f"cannot be written: {error.strerror or error}"
            raise InputError(Problem(what, store.location, allowed="a folder that may be written")) from None
    begun = _manifest(plan, "begun", [])
    if before != json.loads(json.dumps(begun)):
        write_json(store, BEGUN, begun)
    for name in (MANIFEST, REPORT):  # a page made of it would speak of other points
        store.remove_file(name)


def _manifest(plan: Plan, status: str, points: Sequence[str]) -> dict[str, Any]:
    return {
        "kind": KIND,
        "format": FORMAT,
        "status": status,
        "name": plan.sweep.name,
        "description": plan.sweep.description,
        "identity": plan.identity,
        "code": code_digest(),
        "versions": versions(),
        "axes": {path: [_plain(value) for value in values] for path, values in plan.axes.items()},
        "seeds": list(plan.sweep.seeds),
        "keep": list(plan.sweep.keep),
        "confidence": plan.sweep.confidence,
        "points": list(points),
    }


def _plain(value: Any) -> Any:
    return value if isinstance(value, int | float | str) else value_text(value)


class _Sweeping:
    """One sweep under way."""

    def __init__(
        self, plan: Plan, store: Store, client: Any, check: bool, plugins: tuple[str, ...], watch: Watch | None
    ) -> None:
        self.plan, self.store, self.client = plan, store, client
        self._given = check, plugins
        self._watch = watch
        self._there = {name: status for name, status in statuses(store).items() if status != FAILED}
        self._names: dict[str, None] = {}  # of this sweep's points, in order
        self._ended = self._not_done = 0
        self._seconds = 0.0
        self._total: int | None = None

    def run(self) -> None:
        """Run what is missing, then write the summary and the manifest."""
        answers: list[Answer] | None = None
        if self.plan.sweep.search is None:
            self._total = len(self.plan.settings) * max(1, len(self.plan.sweep.seeds))
            for _ in self._rows(self.plan.points()):
                pass
        else:
            answers = self._search()
        for name in [name for name in points_there(self.store) if name not in self._names]:
            self.store.remove(f"points/point={name}")
            for table in self.plan.sweep.keep:
                self.store.remove(f"tables/{table}/point={name}")
        write_json(self.store, SUMMARY, self._summary(answers))
        write_json(self.store, MANIFEST, _manifest(self.plan, "complete", list(self._names)))

    # -- points -------------------------------------------------------------------------------------------------------

    def _rows(self, points: Iterator[Point]) -> Iterator[Row]:
        """Run the points that have no row yet; yield the rows of those that were run."""
        code, here = code_digest(), folders(self.plan.file)
        check, plugins = self._given

        def tasks() -> Iterator[Task]:
            for point in points:
                if point.name in self._names:
                    self._total = None if self._total is None else self._total - 1  # another point has the same meaning
                    continue
                self._names[point.name] = None
                if point.name in self._there:
                    self._end(self._there[point.name])
                    continue
                yield Task(point, self.store.location, self.plan.sweep.keep, code, plugins, check, here)

        for outcome in run_tasks(self.client, tasks()):
            self._written(outcome)
            yield outcome.row

    def _written(self, outcome: Outcome) -> None:
        row = outcome.row
        if row.status == FAILED and self.store.read(row_file(row.point)) is None:
            write_row(self.store, row, "client")
        if self.store.folder is not None:
            line = {"point": row.point, "status": row.status, "wall_s": round(outcome.wall_s, 4), "at": round(time())}
            append_line(self.store.folder / JOURNAL, json.dumps(line | {"events": row.events}))
        self._seconds += outcome.wall_s
        self._end(row.status)

    def _end(self, status: str) -> None:
        self._ended += 1
        self._not_done += status != DONE
        if self._watch is not None:
            self._watch(self._ended, self._total, self._not_done, self._seconds)

    # -- searches -----------------------------------------------------------------------------------------------------

    def _search(self) -> list[Answer]:
        """Run all searches side by side, round by round: each round's points are one batch for the workers."""
        assert self.plan.sweep.search is not None
        searches = search_of(self.plan.sweep.search, self.plan.settings)
        answers: dict[int, Answer] = {}
        known: dict[str, Row] = {}
        asked = {at: _next(search, None, answers, at) for at, search in enumerate(searches)}
        cuts = dict.fromkeys(range(len(searches)), 0)
        while open_ := {at: asking for at, asking in asked.items() if asking is not None}:
            hopeless = {at: [self._cut(setting) for setting in asking] for at, asking in open_.items()}
            points = {
                at: [
                    [] if cut else [self.plan.point(each) for each in over_seeds(setting, self.plan.sweep.seeds)]
                    for setting, cut in zip(asking, hopeless[at], strict=True)
                ]
                for at, asking in open_.items()
            }
            flat = [point for groups in points.values() for group in groups for point in group]
            known.update((row.point, row) for row in self._rows(iter(flat)))
            known.update((p.name, _read(self.store, p)) for p in flat if p.name not in known)
            for at, asking in open_.items():
                cuts[at] += sum(map(bool, hopeless[at]))
                found = [
                    Evaluation(setting, {}, cut) if cut else _evaluation(setting, [known[p.name] for p in group])
                    for setting, group, cut in zip(asking, points[at], hopeless[at], strict=True)
                ]
                asked[at] = _next(searches[at], found, answers, at)
        return [_without(answers[at], cuts[at]) for at in range(len(searches))]

    def _cut(self, setting: Setting) -> str | None:
        """Return why the runs of a setting cannot satisfy the constraints; None: they may, or their rows say why not.

        Constraints are on means over the seeds, so all seeds must be beyond the same one.
        """
        from simulator.build.limits import cut

        assert self.plan.sweep.search is not None
        hopeless = dict.fromkeys(self.plan.sweep.search.subject_to, "")
        for seeded in over_seeds(setting, self.plan.sweep.seeds):
            if not hopeless:
                return None
            try:
                hopeless = cut(self.plan.point(seeded).load(), hopeless)
            except InputError:
                return None
        return "; ".join(hopeless.values()) or None

    # -- the end ------------------------------------------------------------------------------------------------------

    def _summary(self, answers: list[Answer] | None) -> dict[str, Any]:
        sections = self.plan.sweep.frontier or DEFAULT
        weighed = {metric for section in sections for metric in (*section.maximise, *section.minimise)}
        frame = load_sweep(self.store.location).columns(["status", "digest", *sorted(weighed)])
        counts = {str(status): int(count) for status, count in frame["status"].value_counts(sort=False).items()}
        means = mean_rows(frame, [path for path in self.plan.axes if path != "seed"])
        figures = [row["figures"] for row in means]
        frontiers = [
            section.model_dump() | {"settings": [means[at]["setting"] for at in frontier(section, figures)]}
            for section in sections
        ]
        summary = {"points": len(frame), "status": counts, "notes": _notes(frame, self.plan), "frontiers": frontiers}
        if answers is not None:
            summary["answers"] = [_answer(answer) for answer in answers]
        return summary


def _without(answer: Answer, cut: int) -> Answer:
    """Return an answer that tells how many of its settings were not run."""
    if not cut:
        return answer
    note = f"{cut} of {answer.evaluations} settings were not run: no run of them can satisfy what is asked"
    return answer._replace(evaluations=answer.evaluations - cut, notes=(*answer.notes, note))


def _next(search: Asking, found: list[Evaluation] | None, answers: dict[int, Answer], at: int) -> list[Setting] | None:
    """Return what a search asks next, None once it has answered."""
    try:
        return next(search) if found is None else search.send(found)
    except StopIteration as end:
        answers[at] = end.value
        return None


def _read(store: Store, point: Point) -> Row:
    """Return the row of a point that was run before."""
    values = read_row(store, point.name)
    figures = {metric.name: values[metric.name] for metric in METRICS}
    return Row(point.name, point.setting, values["status"], values["error"], figures=figures)


def _evaluation(setting: Setting, rows: Sequence[Row]) -> Evaluation:
    """Return the means of the rows of all seeds; an error of one is that of all."""
    error = next((row.error for row in rows if row.status != DONE), None)
    figures: dict[str, float | None] = {}
    for metric in METRICS:
        values = [row.figures.get(metric.name) for row in rows]
        known = [value for value in values if value is not None]
        figures[metric.name] = sum(known) / len(known) if known and len(known) == len(values) else None
    return Evaluation(setting, {} if error else figures, error)


def _answer(answer: Answer) -> dict[str, Any]:
    best = answer.best
    return {
        "setting": None if best is None else {path: _plain(value) for path, value in best.setting.items()},
        "figures": None if best is None else {name: value for name, value in best.figures.items() if value is not None},
        "binding": list(answer.binding),
        "evaluations": answer.evaluations,
        "notes": list(answer.notes),
    }


def _notes(frame: Any, plan: Plan) -> list[str]:
    """Return what the user should know of the sweep as a whole."""
    done = frame[frame["status"] == DONE]
    paths = [path for path in plan.axes if path != "seed"]
    if len(plan.sweep.seeds) < 2 or done.empty:
        return []
    if all(rows["digest"].nunique() == 1 for _, rows in by_setting(done, paths)):
        return ["seeds have no effect: nothing in these runs is drawn at random, and their intervals say nothing"]
    return []
