"""YAML 1.2 documents as plain values that remember where each came from: file, line and column of every key and value.

Source: YAML 1.2 core schema. Values are str, int, float, bool, None, dict with text keys, and tuple; no other.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from simulator.errors import InputError, Problem

MAX_BYTES = 1 << 20
MAX_DEPTH = 40
MAX_VALUES = 100_000

PathKey = tuple[str | int, ...]

_INTEGER = re.compile(r"[-+]?\d+|0x[0-9a-fA-F]+|0o[0-7]+")
_FLOAT = re.compile(r"[-+]?(\.\d+|\d+(\.\d*)?)([eE][-+]?\d+)?")
_SPECIAL = {
    **dict.fromkeys(("null", "Null", "NULL", "~", ""), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), float("nan")),
    **dict.fromkeys((".inf", ".Inf", ".INF", "+.inf"), float("inf")),
    **dict.fromkeys(("-.inf", "-.Inf", "-.INF"), float("-inf")),
}


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
    """Return a path as text, such as `serving.pools[0].layout`; None for the root."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text or None


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
    try:
        node = YAML(typ="safe", pure=True).compose(text)
    except RecursionError:
        raise InputError(Problem("nested too deeply", name, allowed=f"at most {MAX_DEPTH} levels")) from None
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = "; ".join(str(part) for part in (error.context, error.problem) if part)
        line, column = (mark.line + 1, mark.column + 1) if mark else (None, None)
        raise InputError(Problem(f"not valid YAML: {what}", name, line, column)) from None
    except (YAMLError, ValueError) as error:
        raise InputError(Problem(f"not valid YAML: {str(error).splitlines()[0]}", name)) from None
    if node is not None:
        problems: list[Problem] = []
        document.value = _construct(node, (), document, problems)
        if problems:
            raise InputError(problems)
    return document


def _construct(node: Any, path: PathKey, document: Document, problems: list[Problem]) -> Any:
    mark = node.start_mark
    document.positions.setdefault(path, Position(document.file, mark.line + 1, mark.column + 1))
    if len(path) > MAX_DEPTH:
        raise InputError(document.problem(path[:6], "nested too deeply", allowed=f"at most {MAX_DEPTH} levels"))
    if len(document.positions) > MAX_VALUES:
        raise InputError(Problem(f"more than {MAX_VALUES:,} values", document.file))
    kind = type(node).__name__
    if kind == "ScalarNode":
        return _scalar(node, path, document, problems)
    if str(node.tag) not in ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"):
        problems.append(document.problem(path, f"tag {node.tag} is not allowed", allowed="plain YAML values"))
        return None
    if kind == "SequenceNode":
        return tuple(_construct(item, (*path, index), document, problems) for index, item in enumerate(node.value))
    mapping: dict[str, Any] = {}
    for key_node, value_node in node.value:
        for key in _key(key_node, path, mapping, document, problems):
            mark = key_node.start_mark
            document.positions[(*path, key)] = Position(document.file, mark.line + 1, mark.column + 1)
            mapping[key] = _construct(value_node, (*path, key), document, problems)
    return mapping


def _key(node: Any, path: PathKey, seen: dict[str, Any], document: Document, problems: list[Problem]) -> Iterator[str]:
    mark = node.start_mark
    here = Position(document.file, mark.line + 1, mark.column + 1)
    if type(node).__name__ != "ScalarNode":
        problems.append(Problem("a key must be text", here.file, here.line, here.column, dotted(path)))
    elif node.value in seen:
        what = f"key {node.value!r} appears twice"
        problems.append(Problem(what, here.file, here.line, here.column, dotted((*path, node.value))))
    else:
        yield node.value


def _scalar(node: Any, path: PathKey, document: Document, problems: list[Problem]) -> Any:
    text: str = node.value
    tag = str(node.tag).removeprefix("tag:yaml.org,2002:")
    if tag not in ("str", "int", "float", "bool", "null", "timestamp"):
        problems.append(document.problem(path, f"tag {node.tag} is not allowed", allowed="plain YAML values"))
        return None
    if node.style is None and tag != "str":  # plain: the core schema decides, narrower than the reader (1_000 is text)
        if text in _SPECIAL:
            return _SPECIAL[text]
        if len(text) <= 100 and _INTEGER.fullmatch(text):
            return int(text, 0) if text[:2] in ("0x", "0o") else int(text)
        if _FLOAT.fullmatch(text):
            return float(text)
    return text
