"""A sweep before it runs: its file read and checked, its base scenario, and the points that it will have.

What is wrong with all values of an axis is wrong with the sweep and refused; what is wrong at some points is their row.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from simulator import catalog
from simulator.documents import Document, Position, document_of, read_document
from simulator.errors import InputError, Problem
from simulator.scenario.load import locate
from simulator.scenario.merge import Sources, read_sources, set_value
from simulator.strict import validate
from simulator.sweep.axes import Setting, draw, ends, over_seeds, settings
from simulator.sweep.points import Point, point_of
from simulator.sweep.schema import Capacity, Distribution, Sweep

MOST_TRIED = 40
"""Values of one axis that are tried before anything runs."""


@dataclass(frozen=True)
class Plan:
    """A checked sweep."""

    sweep: Sweep
    base: Sources
    settings: tuple[Setting, ...]
    """What varies, seeds and searches apart."""
    where: Mapping[str, Position]
    """By path that varies: where its values stand."""
    scenario: str
    """Name of the base scenario."""
    file: str

    @property
    def axes(self) -> dict[str, list[Any]]:
        """Return by path the values that it takes, in order of first appearance; seeds last, searched ones without."""
        found: dict[str, dict[str, Any]] = {}
        for setting in self.settings:
            for path, value in setting.items():
                found.setdefault(path, {}).setdefault(repr(value), value)
        axes = {path: list(values.values()) for path, values in found.items()}
        for path in self.where:
            if path != "seed" and path not in axes and path not in self.sweep.set:
                axes[path] = []
        if self.sweep.seeds:
            axes["seed"] = list(self.sweep.seeds)
        return axes

    @property
    def identity(self) -> str:
        """Return a digest of the base scenario and of all that varies around it."""
        leave = {"name", "description", "frontier", "confidence", "most_points"}
        spec = self.sweep.model_dump(by_alias=True, exclude=leave)
        text = json.dumps([spec, self.base.document.value], sort_keys=True, default=repr)
        return blake2b(text.encode(), digest_size=16).hexdigest()

    def point(self, setting: Setting) -> Point:
        """Return the point of a setting."""
        return point_of(self.base, setting, self.where, self.scenario)

    def points(self) -> Iterator[Point]:
        """Yield every point of a sweep without a search, in order."""
        for setting in self.settings:
            for seeded in over_seeds(setting, self.sweep.seeds):
                yield self.point(seeded)


def load_plan(source: str | Path | Mapping[str, Any]) -> Plan:
    """Read a sweep: a file, a shipped one by its name, or a mapping with its keys, whose `base` may be one as well.

    Raises InputError with where, what and what is allowed.
    """
    if isinstance(source, Mapping):
        document, stem, folder = document_of(source), "sweep", Path.cwd()
    else:
        file = _located(source)
        document, stem, folder = read_document(file), file.stem, file.parent
    base = _written_base(document)
    if isinstance(document.value, dict):
        document.value.setdefault("name", re.sub(r"[^A-Za-z0-9._-]+", "-", stem).lstrip("._-")[:100] or "sweep")
    sweep = validate(Sweep, document)
    base = base or _base(sweep, document, folder)
    where = {
        name: document.position((kind, name)) if kind in ("grid", "zip") else document.position((kind,))
        for kind, names in sweep.axes_by_kind()
        for name in names
    }
    where["seed"] = where.get("seed", document.position(("seeds",)))
    base.folders[document.file] = folder
    for name, value in sweep.set.items():
        base = set_value(base, name, value, document.position(("set", name)))
    try:
        plan = Plan(sweep, base, tuple(settings(sweep)), where, stem, document.file)
        _searched(plan)
    except InputError as error:
        raise InputError([_placed(problem, where, document) for problem in error.problems]) from None
    _try_values(plan, document)
    return plan


def _located(path: str | Path) -> Path:
    """Return the file of a sweep: what exists is a path, whatever its name, and so is what ends like one."""
    return Path(path) if Path(path).exists() else catalog.locate("sweeps", str(path))


def _written_base(document: Document) -> Sources | None:
    """Return the base of a sweep that has it written out, and leave a name in its place."""
    if not isinstance(document.value, dict) or not isinstance(document.value.get("base"), dict):
        return None
    base = read_sources(document_of(document.value["base"], "base"))
    document.value["base"] = "written out"
    return base


def _base(sweep: Sweep, document: Document, folder: Path) -> Sources:
    try:
        shown = sweep.base
        given = catalog.is_path("scenarios", shown)
        target = catalog.locate("scenarios", shown, folder) if given else locate(shown)
        if not target.is_file():
            raise InputError(Problem(f"no such file: {target}"))
    except InputError as error:
        raise InputError([document.problem(("base",), p.what, p.allowed, p.nearest) for p in error.problems]) from None
    return read_sources(target)


def _placed(problem: Problem, where: Mapping[str, Position], document: Document) -> Problem:
    at = where.get(problem.path or "")
    if problem.file is not None:
        return problem
    if at is None:
        return document.problem((problem.path,) if problem.path else (), problem.what, problem.allowed, problem.nearest)
    return Problem(problem.what, at.file, at.line, at.column, problem.path, problem.allowed, problem.nearest)


def _try_values(plan: Plan, document: Document) -> None:
    """Refuse an axis of which no value, beside the first of all others, makes a scenario."""
    axes = plan.axes | _searched(plan)
    first = {path: values[0] for path, values in axes.items() if values}
    if plan.settings and plan.settings[0]:
        first |= plan.settings[0]
    told: dict[Problem, None] = {}
    if _problems(plan, first):
        for path, values in axes.items():
            each = [_problems(plan, {**first, path: value}) for value in values[:MOST_TRIED]]
            if each and all(each):
                told.update((problem, None) for problem in each[0])
        if told and _some_point_loads(plan):
            return
    if told:
        raise InputError([_placed(problem, plan.where, document) for problem in told])


def _some_point_loads(plan: Plan) -> bool:
    """Return whether one of the points, evenly spaced, is a scenario; those of a search are not known yet."""
    if plan.sweep.search is not None:
        return False
    step = max(1, len(plan.settings) // MOST_TRIED)
    return any(not _problems(plan, setting) for setting in plan.settings[::step])


def _problems(plan: Plan, setting: Setting) -> tuple[Problem, ...]:
    try:
        plan.point(setting).load()
    except InputError as error:
        return error.problems
    return ()


def _searched(plan: Plan) -> dict[str, list[Any]]:
    """Return by path the ends between which a search varies it; raises InputError for ends that are no range."""
    search = plan.sweep.search
    if search is None:
        return {}
    if search.optuna is not None:
        return {path: _ends(law, path) for path, law in search.optuna.axes.items()}
    ranged = search.capacity or search.halving
    assert ranged is not None
    path = ranged.of if isinstance(ranged, Capacity) else ranged.budget
    ends(ranged.low, ranged.high, path)
    return {path: [ranged.low, ranged.high]}


def _ends(law: Distribution, path: str) -> list[Any]:
    draw(law, 0.0, path)
    span = law.uniform or law.log_uniform or law.integer
    return [span.low, span.high] if span is not None else list(law.choice or ())
