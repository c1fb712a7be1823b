"""A Hugging Face `config.json` as it becomes a model card: numbers by key, where each is from, and what is wrong.

Source: the configuration classes of transformers: an absent or null key has the default of its class.
"""

from collections.abc import Mapping
from typing import Any

from simulator.documents import Document, PathKey, Position
from simulator.errors import Problem


class Reading:
    """A `config.json`, or the section of its language model, as it becomes a card: fields, sources and problems."""

    def __init__(self, document: Document, prefix: PathKey = (), defaults: Mapping[str, Any] | None = None) -> None:
        self.document, self.prefix = document, prefix
        self.defaults = defaults or {}
        self.values: Mapping[str, Any] = document.value
        for part in prefix:
            self.values = self.values[str(part)]
        self.fields: dict[str, Any] = {}
        self.sources: dict[str, str] = {}
        self.positions: dict[PathKey, Position] = {}
        self.problems: list[Problem] = []

    def value(self, *keys: str) -> Any:
        """Return the value of the first of `keys` that is there and not null; else a default, else None."""
        for values in (self.values, self.defaults):
            for key in keys:
                if values.get(key) is not None:
                    return values[key]
        return None

    def fault(self, key: str, what: str, allowed: str | None = None) -> None:
        """Note a problem at a key."""
        self.problems.append(self.document.problem((*self.prefix, key), what, allowed))

    def number(self, *keys: str, default: int | None = None, least: int = 1) -> int:
        """Return the whole number under the first of `keys`; without one that is a problem, and 1 stands for it."""
        found = self.value(*keys)
        if found is None and default is not None:
            return default
        if isinstance(found, bool) or not isinstance(found, int) or found < least:
            key = next((key for key in keys if self.values.get(key) is not None), keys[0])
            said = f"missing key {key!r}" if found is None else f"expected a whole number, found {found!r}"
            self.fault(key, said, f"a whole number of {least} or more")
            return max(least, 1)
        return found

    def flag(self, key: str, default: bool = False) -> bool:
        """Return the truth value of a key."""
        found = self.value(key)
        if found is not None and not isinstance(found, bool):
            self.fault(key, f"expected true or false, found {found!r}")
        return default if found is None else bool(found)

    def listed(self, key: str) -> list[Any]:
        """Return the values of a list, empty where there is none."""
        found = self.value(key)
        if found is not None and not isinstance(found, list | tuple):
            self.fault(key, f"expected a list, found {found!r}")
            return []
        return list(found or ())

    def take(self, field: str, *keys: str, default: int | None = None) -> int:
        """Return the number of a field of the card, and note the key that it is from."""
        found = self.number(*keys, default=default)
        there = next((key for key in keys if self.values.get(key) is not None), None)
        self.put(field, found, there or f"{keys[0]} is not there: default of the architecture")
        return found

    def put(self, field: str, value: Any, source: str) -> None:
        """Set a field of the card from `source`, a key or why."""
        self.fields[field] = value
        self.positions[tuple(field.split("."))] = self.document.position((*self.prefix, source))
        self.sources[field] = f"{self.document.file}: {'.'.join([*map(str, self.prefix), source])}"

    def card(self) -> dict[str, Any]:
        """Return the fields with each dotted path as nested mappings."""
        nested: dict[str, Any] = {"sources": self.sources}
        for path, value in self.fields.items():
            *outer, last = path.split(".")
            place = nested
            for part in outer:
                place = place.setdefault(part, {})
            place[last] = value
        return nested
