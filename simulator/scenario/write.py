"""Writing a scenario: as YAML with every default spelled out, as a digest of what it means, and its JSON schema."""

import copy
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any

from simulator import catalog
from simulator.documents import core_scalar
from simulator.scenario.reference import change_names
from simulator.scenario.schema import Scenario
from simulator.topology.presets import BUILDERS

SCHEMA_ID = "https://json-schema.org/draft/2020-12/schema"
_PLAIN = re.compile(r"[A-Za-z0-9]([A-Za-z0-9 ./_-]*[A-Za-z0-9])?")
_ESCAPED = re.compile(r"[^\x20-\x7e\xa0-\u2027\u202a-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]")
_LINE = 100


def resolved(scenario: Scenario, beside: Path | None = None) -> str:
    """Return YAML that loads back to an equal scenario: quantities with units, every default spelled out.

    `beside` is the folder in which the text will stand; paths are written relative to it, and absolute without it.
    """
    return "\n".join([*_block(_with_references(scenario, lambda kind, name: _relative(kind, name, beside)), ""), ""])


def scenario_digest(scenario: Scenario) -> str:
    """Return a BLAKE2b digest of what a scenario means, wherever it and its files lie: equal digests, equal runs.

    Every trace, model, device and preset that it names counts by its content, shipped ones as well; name and
    description do not count.
    """
    value = _with_references(scenario, partial(_content_of, alone=scenario.traffic is not None))
    meaning = _without_nulls({key: part for key, part in value.items() if key not in ("name", "description")})
    text = json.dumps(meaning, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return blake2b(text.encode(), digest_size=32).hexdigest()


def _without_nulls(value: Any) -> Any:
    """Leave out what is null, so that a key that a later version adds changes no digest."""
    if isinstance(value, dict):
        return {key: _without_nulls(part) for key, part in value.items() if part is not None}
    return [_without_nulls(part) for part in value] if isinstance(value, list | tuple) else value


def json_schema() -> dict[str, Any]:
    """Return the JSON schema (2020-12) of scenario files, for editors: a file that has a `base:` may leave keys out."""
    schema = Scenario.model_json_schema(by_alias=True)
    definitions: dict[str, Any] = schema.pop("$defs")
    topology = definitions["Topology"]
    for builder in BUILDERS.values():
        parameters = builder.parameters.model_json_schema()
        topology["properties"] |= parameters["properties"]
        definitions |= parameters.get("$defs", {})
    topology["additionalProperties"] = False
    for name in sorted(_reachable(topology, definitions)):  # overrides name only what they change
        definitions[name].pop("required", None)
    schema["properties"]["base"] = {"type": "string", "description": schema["properties"]["base"]["description"]}
    whole = {key: schema.pop(key) for key in ("type", "properties", "required", "additionalProperties")}
    definitions["Scenario"] = whole
    extension = {f"{name}Extension": _partial(part) for name, part in definitions.items()}
    extension["ScenarioExtension"]["required"] = ["schema", "base"]
    choice = {"if": {"required": ["base"]}, "then": _reference("ScenarioExtension"), "else": _reference("Scenario")}
    everything = definitions | extension
    return {"$schema": SCHEMA_ID, **schema, **choice, "$defs": dict(sorted(everything.items()))}


def _with_references(scenario: Scenario, write: Callable[[str, str], str]) -> dict[str, Any]:
    value: dict[str, Any] = scenario.model_dump(by_alias=True, exclude={"base"})
    change_names(value, lambda path, kind, name: write(kind, name))
    return value


def _relative(kind: str, name: str, beside: Path | None) -> str:
    if beside is None or not catalog.is_path(kind, name):
        return name
    relative = os.path.relpath(name, beside)
    return relative if catalog.is_path(kind, relative) else f"./{relative}"


def _content_of(kind: str, name: str, alone: bool) -> str:
    """Return the digest of what a name stands for; of the network alone the devices are but names."""
    if alone and kind == "topologies/devices":
        return name
    path = catalog.locate(kind, name)
    return catalog.unchanged(content_digest, path, lambda: content_digest(path))


def content_digest(path: Path) -> str:
    """Return a BLAKE2b digest of a file's bytes."""
    digest = blake2b(digest_size=32)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _block(value: Mapping[str, Any], indent: str) -> list[str]:
    lines = []
    for key, item in value.items():
        short = _flow(item)
        if isinstance(item, dict) and item and (len(indent) + len(key) + len(short) > _LINE or _nested(item)):
            lines += [f"{indent}{_scalar(key)}:", *_block(item, indent + "  ")]
        elif isinstance(item, list | tuple) and len(indent) + len(key) + len(short) > _LINE and _mappings(item):
            lines.append(f"{indent}{_scalar(key)}:")
            for part in item:
                first, *rest = _block(part, indent + "    ")
                lines += [f"{indent}  - {first.lstrip()}", *rest]
        else:
            lines.append(f"{indent}{_scalar(key)}: {short}")
    return lines


def _mappings(item: Sequence[Any]) -> bool:
    return all(isinstance(part, dict) and part for part in item)


def _nested(item: dict[str, Any]) -> bool:
    return any(isinstance(inner, dict) and len(inner) > 1 for inner in item.values()) or len(item) > 4


def _flow(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_scalar(key)}: {_flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_flow, value)) + "]"
    return _scalar(value)


def _scalar(value: Any) -> str:
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    if not isinstance(value, str):
        return json.dumps(value, allow_nan=False)
    if _PLAIN.fullmatch(value) and core_scalar(value) == value:
        return value
    return _ESCAPED.sub(lambda found: _escape(found[0]), json.dumps(value, ensure_ascii=False))


def _escape(character: str) -> str:
    code = ord(character)
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _reference(name: str) -> dict[str, str]:
    return {"$ref": f"#/$defs/{name}"}


def _reachable(part: Any, definitions: dict[str, Any]) -> set[str]:
    found: set[str] = set()
    waiting = [part]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            name = str(item.get("$ref", "")).removeprefix("#/$defs/")
            if name and name not in found:
                found.add(name)
                waiting.append(definitions[name])
            waiting += item.values()
        elif isinstance(item, list):
            waiting += item
    return found


def _partial(part: Any) -> Any:
    """Return a copy of a schema in which no key is required, nor in what it refers to."""
    if isinstance(part, list):
        return [_partial(item) for item in part]
    if not isinstance(part, dict):
        return copy.deepcopy(part)
    result = {key: _partial(item) for key, item in part.items() if key != "required" or not isinstance(item, list)}
    if "$ref" in result:
        result["$ref"] = f"{result['$ref']}Extension"
    return result
