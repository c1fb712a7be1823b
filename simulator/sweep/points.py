"""What a point of a sweep is: a base scenario, the values laid over it, and a name made from their meaning.

Model: content addressing. Equal documents, equal contents of all files that they name and equal code have one name, so
what is there already need not be run again, and what another version has run is never taken for this one's.
"""

import copy
import json
from collections.abc import Mapping
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

from simulator import catalog
from simulator.documents import PathKey, Position
from simulator.errors import InputError
from simulator.scenario.load import load_sources
from simulator.scenario.merge import Sources, set_value
from simulator.scenario.reference import change_names
from simulator.scenario.schema import Scenario
from simulator.scenario.write import content_digest
from simulator.sweep.axes import Setting


class Point(NamedTuple):
    """One run of a sweep: its name, what varies and the documents that it is read from."""

    name: str
    setting: Setting
    sources: Sources
    scenario: str
    """What the scenario is called."""

    def load(self) -> Scenario:
        """Return the scenario; raises InputError when it is none."""
        return load_sources(copy.deepcopy(self.sources), self.scenario)


def point_of(base: Sources, setting: Setting, where: Mapping[str, Position], scenario: str) -> Point:
    """Return the point of a setting; `where` says by path where the values stand. Raises InputError for a bad path."""
    sources = base
    for path, value in setting.items():
        sources = set_value(sources, path, value, where[path])
    return Point(_name(sources), setting, sources, scenario)


def _name(sources: Sources) -> str:
    value = copy.deepcopy(sources.document.value)

    def content(path: PathKey, kind: str, name: str) -> str:
        try:
            file = catalog.locate(kind, name, sources.folder(path))
            return catalog.unchanged(content_digest, file, lambda: content_digest(file))
        except (InputError, OSError):
            return f"{kind} {name} is not there"  # the point will say so

    if isinstance(value, dict):
        change_names(value, content)
        for key in ("name", "description"):
            value.pop(key, None)
    digest = blake2b(code_digest().encode(), digest_size=10)
    digest.update(json.dumps(value, sort_keys=True, default=repr).encode())
    return digest.hexdigest()


@cache
def code_digest() -> str:
    """Return a digest of the simulator's code and of the data that ships with it: equal ones give equal figures."""
    digest = blake2b(digest_size=10)
    package = Path(__file__).parent.parent
    files: list[tuple[str, Path]] = [(p.relative_to(package).as_posix(), p) for p in package.rglob("*.py")]
    for kind in ("topologies", "workloads"):
        root = catalog.folder(kind)
        files += [(f"{kind}/{p.relative_to(root).as_posix()}", p) for p in root.rglob("*.yaml")]
    for name, file in sorted(files):
        digest.update(name.encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()


def figures_text(figures: Mapping[str, Any]) -> str:
    """Return figures as JSON of one line, the same for equal ones."""
    return json.dumps(figures, sort_keys=True, separators=(",", ":"), allow_nan=False)
