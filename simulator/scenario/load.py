"""Reading a scenario: from a file, its bases and overrides to a checked, frozen Scenario with every default filled in.

Names are looked up at once (topology, device, model, traces) so that a scenario that loads does not fail on them later.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from simulator import catalog
from simulator.documents import PathKey, document_of
from simulator.errors import InputError, Problem, nearest
from simulator.scenario.merge import Sources, read_sources
from simulator.scenario.reference import References, attempt, change_names, check_fit
from simulator.scenario.schema import Scenario
from simulator.scenario.write import json_schema, resolved, scenario_digest
from simulator.strict import validate

__all__ = ["json_schema", "load", "load_sources", "locate", "resolved", "scenario_digest"]


def load(
    source: str | Path | Mapping[str, Any],
    overrides: Sequence[str] = (),
    *,
    set: Mapping[str, Any] | None = None,  # noqa: A002 - as the command line and sweep files call it
) -> Scenario:
    """Return the scenario of a file, of a shipped one by name, or of a mapping with the keys of such a file.

    `set` lays values over it by path, as in `{"slo.ttft": "1 s", "serving.decode.instances": 6}`; `overrides` are the
    same as text, `slo.ttft=1 s`. Relative paths in a file start at its folder, all others at the current one; all
    become absolute. Raises InputError with every problem found, each with the file, line and column that it is from,
    or the path of keys where there is no file.
    """
    changes = document_of(set or {}, "set").value
    if isinstance(source, Mapping):
        return load_sources(read_sources(document_of(source), overrides, changes), "scenario")
    return load_sources(read_sources(locate(source), overrides, changes), _default_name(source))


def load_sources(sources: Sources, name: str) -> Scenario:
    """Return the scenario of documents that are merged, called `name` unless they say how; see `load`."""
    document = sources.document
    problems = sources.problems
    if isinstance(document.value, dict):
        _canonical_references(sources)
        document.value.setdefault("name", name)
    found = References(document, problems)
    found.look_up()
    scenario = attempt(lambda: validate(Scenario, document), document, problems)
    if scenario:
        check_fit(scenario, found, document, problems)
    elif (
        isinstance(document.value, dict) and "traffic" not in document.value
    ):  # the model says so only when all else fits
        absent = [name for name in ("workload", "serving") if name not in document.value]
        problems.extend(document.problem((name,), f"missing key {name!r}") for name in absent)
    if scenario is None or problems:
        raise InputError(sorted(dict.fromkeys(problems), key=_place))
    return scenario.read_from(document)


def locate(path: str | Path) -> Path:
    """Return the file of a scenario given as a path or as the name of a shipped one; raises InputError otherwise."""
    if (file := Path(path)).exists():
        return file
    shipped = catalog.names("scenarios")
    if str(path) in shipped:
        return catalog.locate("scenarios", str(path))
    near = nearest(str(path), shipped) or nearest(file.stem, shipped)
    raise InputError(
        Problem("no such scenario file", str(path), allowed=f"a file, or {', '.join(shipped)}", nearest=near)
    )


def _default_name(path: str | Path) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", Path(path).stem).lstrip("._-")[:100] or "scenario"


def _place(problem: Problem) -> tuple[str, int, int, str]:
    return problem.file or "", problem.line or 0, problem.column or 0, problem.path or ""


def _canonical_references(sources: Sources) -> None:
    def canonical(path: PathKey, kind: str, name: str) -> str:
        return catalog.canonical(kind, name, sources.folder(path))

    change_names(sources.document.value, canonical)
