"""YAML 1.2 documents as plain values that remember where each came from: file, line and column of every key and value.

Source: YAML 1.2 core schema. Values are str, int, float, bool, None, dict with text keys, and tuple; no other.
The parser's events are read one by one, so a file that is too deep or too large is refused before it costs anything.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any, NoReturn

from simulator.errors import InputError, Problem

MAX_BYTES = 1 << 20
MAX_DEPTH = 40
MAX_VALUES = 50_000

PathKey = tuple[str | int, ...]

_INTEGER = re.compile(r"[-+]?\d+|0x[0-9a-fA-F]+|0o[0-7]+")
_FLOAT = re.compile(r"[-+]?(\.\d+|\d+(\.\d*)?)([eE][-+]?\d+)?")
_LEADING_ZERO = re.compile(r"[-+]?0\d+")
_NAME = re.compile(r"[^.\[\]\"=\s]+")
_SPECIAL = {
    **dict.fromkeys(("null", "Null", "NULL", "~", ""), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), float("nan")),
    **dict.fromkeys((".inf", ".Inf", ".INF", "+.inf"), float("inf")),
    **dict.fromkeys(("-.inf", "-.Inf", "-.INF"), float("-inf")),
}
_ALLOWED_TAGS = (
    ("Scalar", "tag:yaml.org,2002:str"),
    ("SequenceStart", "tag:yaml.org,2002:seq"),
    ("MappingStart", "tag:yaml.org,2002:map"),
)


@dataclass(frozen=True, slots=True)
class Position:
    """A place in a file; line and column count from one."""

    file: str
    line: int | None = None
    column: int | None = None


@dataclass(slots=True)
class Document:
    """A value read from `file` and the position of every path inside it."""

    file: str
    value: Any
    positions: dict[PathKey, Position] = field(default_factory=dict)

    def position(self, path: PathKey) -> Position:
        """Return where `path` stands, or the nearest enclosing path that stands somewhere."""
        while path and path not in self.positions:
            path = path[:-1]
        return self.positions.get(path, Position(self.file))

    def problem(self, path: PathKey, what: str, allowed: str | None = None, nearest: str | None = None) -> Problem:
        """Return a problem located at `path`."""
        where = self.position(path)
        return Problem(what, where.file, where.line, where.column, dotted(path), allowed, nearest)


def dotted(path: PathKey) -> str | None:
    """Return a path as text, such as `serving.pools[0].layout` or `expect."ttft.p95"`; None for the root."""
    text = ""
    for part in path:
        if isinstance(part, str):
            name = part if _NAME.fullmatch(part) else json.dumps(part)
            text += f".{name}" if text else name
        else:
            text += f"[{part}]"
    return text or None


_PARTS = re.compile(r'\[(?P<index>\d+)\]|\.?(?:(?P<name>[^.\[\]"]+)|(?P<quoted>"(?:[^"\\]|\\.)*"))')


def path_key(text: str) -> PathKey:
    """Return the path that `dotted` writes as `text`."""
    found: list[str | int] = []
    for part in _PARTS.finditer(text):
        if part["index"] is not None:
            found.append(int(part["index"]))
        else:
            found.append(part["name"] or str(json.loads(part["quoted"])))
    return tuple(found)


def read_document(path: Path, name: str | None = None) -> Document:
    """Read one YAML file; `name` is how problems call it (default: the path as given).

    Raises InputError for an unreadable file, more than 1 MiB, bad UTF-8, bad YAML, duplicate keys, deep nesting.
    """
    name = name or str(path)
    try:
        with open(path, "rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise InputError(Problem(f"cannot read: {error.strerror or error}", name)) from None
    if len(raw) > MAX_BYTES:
        raise InputError(Problem("the file is larger than 1 MiB", name, allowed="YAML of at most 1 MiB"))
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise InputError(Problem("the file is not UTF-8 text", name, line)) from None
    return parse_document(text, name)


def parse_document(text: str, name: str) -> Document:
    """Parse YAML text as `read_document` does; an empty text gives the value None."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    document = Document(name, None)
    reader: _Reader | None = None
    try:
        reader = _Reader(YAML(typ="safe", pure=True).parse(text), document)
        reader.read()
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = "; ".join(str(part) for part in (error.context, error.problem) if part)
        line, column = (mark.line + 1, mark.column + 1) if mark else (None, None)
        raise InputError(Problem(f"not valid YAML: {what}", name, line, column)) from None
    except YAMLError as error:
        at = getattr(error, "position", None)  # a character that YAML does not allow
        line = text.count("\n", 0, at) + 1 if isinstance(at, int) else None
        raise InputError(Problem(f"not valid YAML: {str(error).splitlines()[0]}", name, line)) from None
    except (
        ValueError,
        ArithmeticError,
        AssertionError,
    ) as error:  # on some directives, escapes
        raise InputError(Problem(f"not valid YAML: {error}", name)) from None
    if reader.problems:
        raise InputError(reader.problems)
    return document


def document_of(value: object, name: str = "") -> Document:
    """Return what Python made, such as a dict, as the document that YAML of the same meaning gives.

    Lists and tuples, numpy's numbers and paths are taken as what they stand for. Problems are called after `name` and
    the path of keys. Raises InputError for what no document holds: keys that are no text, other objects, deep nesting.
    """
    document = Document(name, None)
    problems: list[Problem] = []
    document.value = _plain(value, (), document, problems)
    if problems:
        raise InputError(problems)
    return document


def _plain(value: Any, path: PathKey, document: Document, problems: list[Problem]) -> Any:
    if len(path) > MAX_DEPTH:
        raise InputError(document.problem(path[:6], "nested too deeply", f"at most {MAX_DEPTH} levels"))
    document.positions[path] = Position(document.file)
    if isinstance(value, Mapping):
        wrong = [key for key in value if not isinstance(key, str)]
        problems.extend(document.problem(path, f"a key must be text, found {key!r}"[:100]) for key in wrong)
        return {k: _plain(inner, (*path, k), document, problems) for k, inner in value.items() if isinstance(k, str)}
    if isinstance(value, list | tuple):
        return tuple(_plain(inner, (*path, at), document, problems) for at, inner in enumerate(value))
    if getattr(value, "shape", None) == ():  # a number of numpy
        value = value.item()
    if value is None or isinstance(value, bool):
        return value
    for kind in (int, float, str):
        if isinstance(value, kind):
            return kind(value)
    if isinstance(value, PurePath):
        return str(value)
    allowed = "text, numbers, true or false, None, dicts and lists"
    problems.append(document.problem(path, f"a {type(value).__name__} has no place in a document", allowed))
    return None


def core_scalar(text: str) -> Any:
    """Return what the core schema reads in an unquoted scalar: null, a truth value, a number, or the text itself."""
    if text in _SPECIAL:
        return _SPECIAL[text]
    if len(text) <= 100 and _INTEGER.fullmatch(text):
        return int(text, 0) if text[:2] in ("0x", "0o") else int(text)
    return float(text) if _FLOAT.fullmatch(text) else text


class _Reader:
    """Turns parser events into a document's value and positions; `problems` collects what does not end the reading."""

    def __init__(self, events: Iterator[Any], document: Document) -> None:
        self.events = events
        self.document = document
        self.problems: list[Problem] = []
        self.anchors: dict[str, tuple[Any, dict[PathKey, Position]]] = {}
        self.values = 0

    def read(self) -> None:
        for event in self.events:
            kind = _kind(event)
            if kind == "DocumentStart":
                if event.version not in (None, (1, 2)):
                    self._fail("the directive asks for another YAML", event, (), "%YAML 1.2")
                self.document.value = self._value(next(self.events), ())
                next(self.events)
                if _kind(after := next(self.events)) == "DocumentStart":
                    self._fail("more than one document in the file", after, (), "one YAML document")

    def _value(self, event: Any, path: PathKey) -> Any:
        self.document.positions.setdefault(path, self._position(event))
        self.values += 1
        if len(path) > MAX_DEPTH:
            self._fail("nested too deeply", event, path[:6], f"at most {MAX_DEPTH} levels")
        if self.values > MAX_VALUES:
            self._fail(f"more than {MAX_VALUES:,} values", event)
        kind = _kind(event)
        if kind == "Alias":
            return self._alias(event, path)
        if kind == "Scalar":
            value = self._scalar(event, path)
        elif kind == "SequenceStart":
            value = self._sequence(path)
        else:
            value = self._mapping(path)
        if event.tag is not None and (kind, str(event.tag)) not in _ALLOWED_TAGS:
            self._note(f"tag {event.tag} is not allowed", event, path, "plain YAML values")
        if event.anchor:
            inside = {p[len(path) :]: at for p, at in self.document.positions.items() if p[: len(path)] == path}
            self.anchors[event.anchor] = (value, inside)
        return value

    def _sequence(self, path: PathKey) -> tuple[Any, ...]:
        items: list[Any] = []
        while _kind(event := next(self.events)) != "SequenceEnd":
            items.append(self._value(event, (*path, len(items))))
        return tuple(items)

    def _mapping(self, path: PathKey) -> dict[str, Any]:
        mapping: dict[str, Any] = {}
        while _kind(event := next(self.events)) != "MappingEnd":
            if _kind(event) != "Scalar":
                self._note("a key must be text", event, path)
                self._value(event, (*path, "?"))
                self._value(next(self.events), (*path, "?"))
            elif event.value in mapping:
                self._note(f"key {event.value!r} appears twice", event, (*path, event.value))
                self._value(next(self.events), (*path, event.value))
            else:
                self.document.positions[(*path, event.value)] = self._position(event)
                mapping[event.value] = self._value(next(self.events), (*path, event.value))
        return mapping

    def _alias(self, event: Any, path: PathKey) -> Any:
        if event.anchor not in self.anchors:  # also an alias inside what it stands for
            self._fail(f"alias *{event.anchor} stands for nothing that ended above it", event, path)
        value, inside = self.anchors[event.anchor]
        self.values += len(inside)
        if self.values > MAX_VALUES:
            self._fail(f"more than {MAX_VALUES:,} values", event)
        for part, at in inside.items():
            if len(path) + len(part) > MAX_DEPTH:
                self._fail("nested too deeply", event, path[:6], f"at most {MAX_DEPTH} levels")
            self.document.positions.setdefault((*path, *part), at)
        return value

    def _scalar(self, event: Any, path: PathKey) -> Any:
        text: str = event.value
        if any("\ud800" <= character <= "\udfff" for character in text):
            self._note("half of a surrogate pair is no character", event, path)
            return None
        if not event.implicit[0] or event.tag is not None:  # quoted, block, or tagged
            return text
        if _LEADING_ZERO.fullmatch(text):  # 010 is 8 in YAML 1.1 and 10 in YAML 1.2
            self._note(f"{text!r} can be read as octal or decimal", event, path, "no leading zero, or 0o for octal")
            return None
        return core_scalar(text)

    def _position(self, event: Any) -> Position:
        mark = event.start_mark
        return Position(self.document.file, mark.line + 1, mark.column + 1)

    def _note(self, what: str, event: Any, path: PathKey, allowed: str | None = None) -> None:
        at = self._position(event)
        self.problems.append(Problem(what, at.file, at.line, at.column, dotted(path), allowed))

    def _fail(self, what: str, event: Any, path: PathKey = (), allowed: str | None = None) -> NoReturn:
        self._note(what, event, path, allowed)
        raise InputError(self.problems)


def _kind(event: Any) -> str:
    return type(event).__name__.removesuffix("Event")
