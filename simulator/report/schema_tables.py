"""A JSON schema as Markdown: a section with a table of keys for each object, in the order in which one meets them."""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

Definitions = Mapping[str, Mapping[str, Any]]
Extra = Mapping[str, tuple[str, Mapping[str, str]]]
"""By definition: the head of a further column, and what stands there for a key."""

_LARGEST = 10**12
"""Bounds from here on only keep integers finite, and say nothing to a reader."""


def tables(definitions: Definitions, root: str, extra: Extra) -> Iterator[str]:
    """Yield the sections of `root` and of all that it refers to; each says at which paths of a file it may stand."""
    places: dict[str, list[str]] = {root: [""]}
    order = [root]
    _collect(definitions, root, places, order)
    shared = Counter(places[name][0] for name in order)
    for name in order:
        first = places[name][0]
        head = f"`{first}`" if first else "The file"
        if shared[first] > 1:  # one of several mappings that may stand there
            head += f" ({_words(str(definitions[name].get('title', name)))})"
        level = "##" if first.count(".") == 0 else "###"
        yield f"\n{level} {head} {{#{_anchor(name)}}}\n\n"
        yield from _section(definitions, definitions[name], places[name], extra.get(name))


def _collect(definitions: Definitions, name: str, places: dict[str, list[str]], order: list[str]) -> None:
    """Add what a definition refers to, depth first: the keys of a section follow the section."""
    for key, part in _keys(definitions[name]).items():
        for target, mark in _targets(part):
            if not _keys(definitions[target]):
                continue
            path = ".".join(filter(None, (places[name][0], key))) + mark
            if target in places:
                places[target].append(path)
            else:
                places[target] = [path]
                order.append(target)
                _collect(definitions, target, places, order)


def _keys(part: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the properties of an object, or the alternatives of a choice."""
    if "properties" in part:
        found: Mapping[str, Any] = part["properties"]
        return found
    return next((_keys(form) for form in part.get("oneOf", ()) if "properties" in form), {})


def _targets(part: Any, mark: str = "") -> Iterator[tuple[str, str]]:
    """Yield the definitions that a value may be of, each with what its path has after the key."""
    if "$ref" in part:
        yield _name(part), mark
    for key in ("anyOf", "oneOf"):
        for inner in part.get(key, ()):
            yield from _targets(inner, mark)
    if isinstance(part.get("items"), dict):
        yield from _targets(part["items"], f"{mark}[]")
    if isinstance(part.get("additionalProperties"), dict):
        yield from _targets(part["additionalProperties"], f"{mark}.NAME")


def _name(part: Mapping[str, Any]) -> str:
    return str(part["$ref"]).rpartition("/")[2]


def _anchor(name: str) -> str:
    return name.rpartition("__")[2].lower() if "__" not in name else name.lower().replace("__", "-")


def _words(title: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", title).lower()


def _section(
    definitions: Definitions,
    part: Mapping[str, Any],
    places: list[str],
    extra: tuple[str, Mapping[str, str]] | None,
) -> Iterator[str]:
    others = list(dict.fromkeys(places))[1:]
    choice = "properties" not in part
    about = str(part.get("description", ""))
    if about and not (choice and about.startswith("One of:")):
        yield f"{_line(about)}\n\n"
    if others:
        yield f"Also at {', '.join(f'`{path}`' for path in others)}.\n\n"
    if choice:
        yield from _choices(definitions, part)
        return
    required = part.get("required", ())
    heads = ["key", "value", "default", "meaning", *(extra[:1] if extra else ())]
    yield f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}\n"
    for key, value in part["properties"].items():
        default = "*required*" if key in required else _default(definitions, value)
        cells = [f"`{key}`", _value(definitions, value), default, _line(str(value.get("description", "")))]
        if extra:
            cells.append(extra[1].get(key, ""))
        yield f"| {' | '.join(cells)} |\n"


def _choices(definitions: Definitions, part: Mapping[str, Any]) -> Iterator[str]:
    bare = any(form.get("type") == "integer" for form in part["oneOf"])
    if bare:
        yield "A bare whole number is a constant.\n\n"
    yield "| one of | parameters | meaning |\n|---|---|---|\n"
    for key, value in _keys(part).items():
        target = definitions[_name(value)]
        linked = f"[those of `{key}`](#{_anchor(_name(value))})" if _keys(target) else "none"
        about = str(target.get("description", "")).split("\n\n")[0]
        yield f"| `{key}` | {linked} | {_line('' if 'without parameters' in about else about)} |\n"


def _default(definitions: Definitions, value: Mapping[str, Any]) -> str:
    default = value.get("default")
    if default is None or default in ([], {}):
        return ""
    if isinstance(default, dict):
        refers = next(_targets(value), None)
        choice = refers is not None and "properties" not in definitions[refers[0]]
        return f"`{next(iter(default))}`" if choice and len(default) == 1 else "its own defaults"
    text = default if isinstance(default, str) else json.dumps(default)
    return f"`{text}`"


def _value(definitions: Definitions, part: Mapping[str, Any]) -> str:
    """Return in words what a value may be."""
    if "$ref" in part:
        target = definitions[_name(part)]
        if not _keys(target):
            return "a mapping without keys"
        what = "a choice" if "properties" not in target else "a mapping"
        return f"[{what}](#{_anchor(_name(part))})"
    forms = [form for key in ("anyOf", "oneOf") for form in part.get(key, ()) if form.get("type") != "null"]
    if forms:
        return " or ".join(dict.fromkeys(_value(definitions, form) for form in forms))
    if "const" in part:
        return f"`{json.dumps(part['const'])}`"
    if "enum" in part:
        return ", ".join(f"`{each}`" for each in part["enum"])
    return _plain(definitions, part)


def _plain(definitions: Definitions, part: Mapping[str, Any]) -> str:
    kind = part.get("type")
    if kind == "array":
        items = part.get("items")
        return f"a list: each {_value(definitions, items)}" if isinstance(items, dict) else "a list"
    if kind == "object":
        inner = part.get("additionalProperties")
        if isinstance(inner, dict):
            return f"by name: {_value(definitions, inner)}"
        return "a mapping of metrics to bounds such as `<= 2 s`" if "properties" in part else "a mapping"
    if kind in ("integer", "number"):
        return ("a whole number" if kind == "integer" else "a number") + _bounds(part)
    if kind == "boolean":
        return "`true` or `false`"
    if "examples" in part:
        return "such as " + ", ".join(f"`{example}`" for example in part["examples"])
    return "text" if kind == "string" else "any value"


def _bounds(part: Mapping[str, Any]) -> str:
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    found = [f"{sign} {part[key]:,}" for key, sign in signs.items() if key in part and abs(part[key]) < _LARGEST]
    return f" {', '.join(found)}" if found else ""


def _line(text: str) -> str:
    """Return text on one line, as a cell of a table may hold it."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;") if "`" not in text else _with_code(text)


def _with_code(text: str) -> str:
    parts = " ".join(text.split()).split("`")
    plain = [part.replace("|", "\\|").replace("<", "&lt;") if at % 2 == 0 else part for at, part in enumerate(parts)]
    return "`".join(plain)
