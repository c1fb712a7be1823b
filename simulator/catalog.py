"""Finds data that ships with the package by name (`clos-h100`) or a user's own by path, from a wheel or a checkout.

In a wheel the data folders lie in `simulator/data/`; in a checkout or editable install they stand beside the package.
"""

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from simulator.documents import Document, read_document
from simulator.errors import InputError, unknown

if TYPE_CHECKING:  # slow to import, and names are looked up without it
    from pydantic import BaseModel

ModelT = TypeVar("ModelT", bound="BaseModel")
ReadT = TypeVar("ReadT")

_PACKAGE = Path(__file__).parent
_SINGULAR = {
    "topologies": "topology preset",
    "topologies/collectives": "constants of collectives",
    "topologies/devices": "device",
    "workloads/models": "model",
    "traces": "trace",
    "scenarios": "scenario",
    "sweeps": "sweep",
}


def folder(kind: str) -> Path:
    """Return the folder of shipped data of one kind, such as `topologies` or `topologies/devices`."""
    shipped = _PACKAGE / "data" / kind
    return shipped if shipped.is_dir() else _PACKAGE.parent / kind


def names(kind: str) -> list[str]:
    """Return the names of the shipped entries of one kind, sorted; a scenario in a folder is `folder/name`."""
    return list(_names(kind))


@cache
def _names(kind: str) -> tuple[str, ...]:
    """Return the same, looked up once: they do not change while a process lives, and every reference asks."""
    where, suffix = folder(kind), _suffix(kind)
    found = where.rglob(f"*{suffix}") if kind == "scenarios" else where.glob(f"*{suffix}")
    return tuple(sorted(path.relative_to(where).with_suffix("").as_posix() for path in found))


def is_path(kind: str, name: str) -> bool:
    """Return whether `name` is a path: it has a `/`, or ends like a file of its kind (for a trace: has any suffix).

    A model may be a Hugging Face `config.json`. Of kinds of which nothing is shipped every name is one.
    """
    if kind not in _SINGULAR:
        return True
    if kind == "scenarios" and name in names(kind):  # shipped in a folder
        return False
    if "/" in name or kind == "traces":
        return "/" in name or bool(Path(name).suffix)
    return name.endswith((".yaml", ".yml", ".json") if kind == "workloads/models" else (".yaml", ".yml"))


def locate(kind: str, name: str, beside: Path | None = None) -> Path:
    """Return the file of `name`: a shipped entry, or a path (see `is_path`) relative to `beside`.

    Raises InputError that names the shipped entries when there is none; whether a path exists is not looked at.
    """
    if is_path(kind, name):
        return (beside or Path()) / name
    if name not in names(kind):
        raise InputError(unknown(_SINGULAR.get(kind, kind), name, names(kind)))
    return folder(kind) / f"{name}{_suffix(kind)}"


def canonical(kind: str, name: str, beside: Path | None = None) -> str:
    """Return what `name` means in any folder: a path as an absolute one, that of a shipped entry as its name."""
    if not is_path(kind, name):
        return name
    if kind not in _SINGULAR:
        return os.path.abspath((beside or Path()) / name)
    path = Path(os.path.abspath((beside or Path()) / name))  # links are kept: the user's names stay
    shipped = path.stem in names(kind) and path.parent.resolve() == folder(kind).resolve()
    return path.stem if shipped and path.suffix == _suffix(kind) else str(path)


def load(kind: str, name: str, model: type[ModelT], beside: Path | None = None) -> ModelT:
    """Read and validate the entry `name` of one kind as a frozen `model`; what has not changed is not read again."""
    from simulator.strict import validate

    path = locate(kind, name, beside)
    return unchanged(model, path, lambda: validate(model, document(kind, path)))


def document(kind: str, path: Path) -> Document:
    """Return the document of an entry, called by its short name if it is a shipped one."""
    return read_document(path, f"{kind}/{path.name}" if path.is_relative_to(folder(kind)) else None)


def unchanged(what: object, path: Path, read: Callable[[], ReadT]) -> ReadT:
    """Return what `read` made of a file, which is not read again until it changes; `what` tells its makings apart."""
    at = state(path)
    if at is None:
        return read()  # says what is wrong
    key = what, at
    if key not in _READ:
        _READ[key] = read()
    found: ReadT = _READ[key]
    return found


def state(path: Path) -> tuple[str, int, int] | None:
    """Return what tells whether a file has changed: path, time of change, size; None when there is none."""
    try:
        found = path.stat()
    except (OSError, ValueError):  # ValueError: a null character in the name
        return None
    return str(path.absolute()), found.st_mtime_ns, found.st_size


_READ: dict[tuple[object, tuple[str, int, int]], Any] = {}


def _suffix(kind: str) -> str:
    return ".parquet" if kind == "traces" else ".yaml"
