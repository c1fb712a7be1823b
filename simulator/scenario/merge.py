"""One document from a scenario file, the files that it extends and the overrides of the command line.

Mappings merge key by key and the later one wins; a null takes away what the base has. Where a mapping chooses, another
choice replaces the base's: another policy or law, `trace` or drawn requests, another topology preset (each whole), and
in `serving` naming `colocated` takes away `prefill` and `decode`, and the other way round. Lists are replaced whole.
"""

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from simulator import catalog
from simulator.documents import Document, PathKey, Position, dotted, parse_document, read_document
from simulator.errors import InputError, Problem, nearest
from simulator.scenario.workload import workload_kind

MAX_BASES = 20
VERSION = 1
CHOICES = frozenset(
    {
        "arrivals",
        "eviction",
        "batcher",
        "cost",
        "draft",
        "output_tokens",
        "pattern",
        "policy",
        "popularity",
        "preemption",
        "prompt_tokens",
        "queue",
        "router",
        "routing",
        "run",
        "sample_tokens",
        "samples",
        "sizes",
        "think_time",
        "tokens",
        "transport",
        "turns",
    }
)
"""Keys whose mapping has one key, the name of the chosen policy or law."""

_PART = re.compile(r'(?:(?P<name>[^.\[\]"=\s]+)|(?P<quoted>"(?:[^"\\]|\\.)*"))')
_INDEX = re.compile(r"\[(\d{1,6})\]")


@dataclass
class Sources:
    """The merged document, the folder that each file's paths are relative to, and what was wrong on the way."""

    document: Document
    folders: dict[str, Path] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def folder(self, path: PathKey) -> Path:
        """Return the folder that a relative path written at `path` starts from; overrides start where the user is."""
        return self.folders.get(self.document.position(path).file, Path.cwd())


def read_sources(
    source: Path | Document, overrides: Sequence[str] = (), changes: Mapping[str, Any] | None = None
) -> Sources:
    """Read a scenario file, follow its `base:` keys, and apply the overrides (texts `a.b[0].c=value`) in order.

    A document that is there already is taken in the place of a file. `changes` are laid over all: values as a document
    has them, by path. Raises InputError for what cannot be read or parsed; wrong versions are left in `problems`.
    """
    path = source if isinstance(source, Path) else None
    document = read_document(source) if isinstance(source, Path) else source
    sources = Sources(Document(document.file, None))
    chain = _chain(document, path, sources)
    merged = chain.pop()
    while chain:
        merged = merge(merged, chain.pop())
    faults: list[Problem] = []
    for text in overrides:
        try:
            merged = merge(merged, parse_override(text, merged))
        except InputError as error:
            faults += error.problems
    sources.document = merged
    for place, value in (changes or {}).items():
        try:
            sources = set_value(sources, place, value, Position("set"))
        except InputError as error:
            faults += error.problems
    if faults:
        raise InputError(faults)
    return sources


def _chain(document: Document, path: Path | None, sources: Sources) -> list[Document]:
    """Return the documents from the first, which may be no file's, to its last base."""
    chain: list[Document] = []
    seen: dict[Path, str] = {}
    while True:
        name, folder = document.file, Path.cwd() if path is None else path.parent
        if path is not None:
            seen[path.resolve()] = name
        sources.folders[name] = folder
        chain.append(document)
        if not isinstance(document.value, dict):
            return chain  # validation says what is wrong with it
        _check_version(document, sources)
        base = document.value.pop("base", None)
        if base is None:
            return chain
        if not isinstance(base, str):
            raise InputError(document.problem(("base",), f"expected the path of a scenario, found {base!r}"[:100]))
        path, name = _base(base, folder, name, document)
        if path.resolve() in seen:
            names = list(seen.values())
            cycle = [*names[list(seen).index(path.resolve()) :], name]
            raise InputError(document.problem(("base",), f"files extend each other: {' -> '.join(cycle)}"))
        if len(chain) > MAX_BASES:
            raise InputError(document.problem(("base",), f"more than {MAX_BASES} files extend each other"))
        document = read_document(path, name)


def _base(base: str, folder: Path, name: str, document: Document) -> tuple[Path, str]:
    try:
        target = catalog.locate("scenarios", base, folder)
    except InputError as error:
        [problem] = error.problems
        raise InputError(document.problem(("base",), problem.what, problem.allowed, problem.nearest)) from None
    shown = os.path.normpath(Path(name).parent / base) if catalog.is_path("scenarios", base) else str(target)
    if not target.is_file():
        near = nearest(target.name, [p.name for p in sorted(target.parent.glob("*.yaml"))])
        raise InputError(document.problem(("base",), f"no such file: {shown}", nearest=near))
    return target, shown


def _check_version(document: Document, sources: Sources) -> None:
    if "schema" not in document.value:
        what = f"missing key 'schema', the version of the file: write `schema: {VERSION}`"
        sources.problems.append(document.problem((), what))
    elif (version := document.value["schema"]) is True or version != VERSION or not isinstance(version, int):
        what = f"unknown version {version!r}"[:100]
        sources.problems.append(document.problem(("schema",), what, str(VERSION)))
    document.value["schema"] = VERSION  # so that the rest is checked as well


def merge(base: Document, child: Document) -> Document:
    """Return `base` with `child` laid over it, each position from the document that its value is from."""
    merged = Document(child.file, None, dict(child.positions))
    merged.value = _merged(base.value, child.value, (), base, merged)
    merged.positions.setdefault((), base.position(()))
    return merged


def _merged(old: Any, new: Any, path: PathKey, base: Document, into: Document) -> Any:
    if not (isinstance(old, dict) and isinstance(new, dict)) or _another_choice(path, old, new):
        return new
    kept = {key: value for key, value in old.items() if key not in new and key not in _excluded(path, new)}
    for at, position in base.positions.items():
        if len(at) > len(path) and at[: len(path)] == path and at[len(path)] in kept:
            into.positions[at] = position
    for key, value in new.items():
        if key not in old:
            kept[key] = value
        elif value is not None:
            kept[key] = _merged(old[key], value, (*path, key), base, into)
    return kept


def _another_choice(path: PathKey, old: dict[str, Any], new: dict[str, Any]) -> bool:
    if path == ("workload",):
        chosen = new.keys() & {"trace", "arrivals"}
        return bool(chosen) and workload_kind(new) != workload_kind(old)
    if path == ("topology",):
        return any(key in new and new[key] != old.get(key) for key in ("preset", "graph"))
    return bool(path) and path[-1] in CHOICES and not new.keys() & old.keys()


def _excluded(path: PathKey, new: dict[str, Any]) -> tuple[str, ...]:
    """Return the keys of the base that a choice made in `serving` takes away."""
    if path != ("serving",):
        return ()
    if new.get("colocated") is not None:
        return ("prefill", "decode")
    return ("colocated",) if new.get("prefill") is not None or new.get("decode") is not None else ()


def parse_override(text: str, current: Document) -> Document:
    """Return `a.b[0].c=value` as a document to lay over `current`; the value is a YAML scalar or flow collection.

    Raises InputError for a text without `=` or with a bad path or value, and for an index that no list has.
    """
    place = f"--set {text if len(text) <= 80 else text[:77] + '...'}"
    path, value_text = _split(text, place)
    if path[0] in ("base", "schema"):
        raise InputError(Problem(f"{path[0]} cannot be set here; write it into a file", place))
    if value_text.startswith((">", "|")):  # a comparison, not a block scalar
        value: Any = value_text
    elif not value_text.strip():
        raise InputError(Problem("no value after '='", place, path=dotted(path), allowed="a value; null takes it away"))
    else:
        try:
            value = parse_document(value_text, place).value
        except InputError as error:
            raise InputError(
                [Problem(p.what, place, path=dotted(path), allowed=p.allowed) for p in error.problems]
            ) from None
    return _laid(path, value, place, current)


def set_value(sources: Sources, path: str, value: Any, at: Position) -> Sources:
    """Return sources with a value, as a document has it, at a path such as `a.b[0].c`; `at` is where that is said.

    Nothing of `sources` is changed; what is alike is shared. Raises InputError for a bad path, or an index that no
    list has.
    """
    try:
        keys, _ = _split(f"{path}=", at.file)
        if keys[0] in ("base", "schema"):
            raise InputError(Problem(f"{keys[0]} cannot be varied", at.file))
        laid = _laid(keys, value, at.file, sources.document)
    except InputError as error:
        placed = [Problem(p.what, at.file, at.line, at.column, path, p.allowed, p.nearest) for p in error.problems]
        raise InputError(placed) from None
    laid.positions = {key: at if where.file == at.file else where for key, where in laid.positions.items()}
    return Sources(merge(sources.document, laid), sources.folders, list(sources.problems))


def _laid(path: PathKey, value: Any, place: str, current: Document) -> Document:
    document = Document(place, None)
    document.value = _nest(path, (), value, current.value, current, document)
    return document


def _split(text: str, place: str) -> tuple[PathKey, str]:
    path: list[str | int] = []
    at = 0
    while match := _PART.match(text, at):
        path.append(match["name"] or _unquoted(match["quoted"], place))
        at = match.end()
        while index := _INDEX.match(text, at):
            path.append(int(index[1]))
            at = index.end()
        if text[at : at + 1] != ".":
            break
        at += 1
    if not path or text[at : at + 1] != "=":
        raise InputError(Problem("not an override", place, allowed="PATH=VALUE, such as serving.decode.instances=8"))
    if path[0] == "expect" and len(path) > 2:  # the names of metrics have dots
        path = ["expect", ".".join(map(str, path[1:]))]
    return tuple(path), text[at + 1 :]


def _unquoted(text: str, place: str) -> str:
    try:
        return str(json.loads(text))
    except ValueError:
        raise InputError(Problem(f"{text} is no quoted key", place)) from None


def _nest(path: PathKey, done: PathKey, value: Any, old: Any, current: Document, into: Document) -> Any:
    into.positions[done] = Position(into.file)
    if not path:
        return value
    part, rest = path[0], path[1:]
    if isinstance(part, str):
        if isinstance(old, tuple):
            what = f"{dotted(done)} is a list of {len(old)}: say which item, such as {dotted((*done, 0, part))}"
            raise InputError(Problem(what, into.file))
        inner = old.get(part) if isinstance(old, Mapping) else None
        return {part: _nest(rest, (*done, part), value, inner, current, into)}
    if not isinstance(old, tuple) or part >= len(old):
        length = f"a list of {len(old)}" if isinstance(old, tuple) else "no list"
        raise InputError(Problem(f"{dotted(done)} is {length}, so it has no item [{part}]", into.file))
    inside = {at: where for at, where in current.positions.items() if at[: len(done)] == done and len(at) > len(done)}
    laid = Document(into.file, {"item": _nest(rest, (*done, part), value, old[part], current, into)})
    item = merge(Document(current.file, {"item": old[part]}), laid).value["item"]
    into.positions = inside | into.positions
    return (*old[:part], item, *old[part + 1 :])
