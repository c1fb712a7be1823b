"""Finds data that ships with the package by name (`clos-h100`) or a user's own by path, from a wheel or a checkout.

In a wheel the data folders lie in `simulator/data/`; in a checkout or editable install they stand beside the package.
"""

from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel

from simulator.documents import read_document
from simulator.errors import InputError, unknown
from simulator.strict import validate

ModelT = TypeVar("ModelT", bound=BaseModel)

_PACKAGE = Path(__file__).parent


def folder(kind: str) -> Path:
    """Return the folder of shipped data of one kind, such as `topologies` or `topologies/devices`."""
    shipped = _PACKAGE / "data" / kind
    return shipped if shipped.is_dir() else _PACKAGE.parent / kind


def names(kind: str) -> list[str]:
    """Return the names of the shipped entries of one kind, sorted."""
    return sorted(path.stem for path in folder(kind).glob("*.yaml"))


def locate(kind: str, name: str, beside: Path | None = None) -> Path:
    """Return the file of `name`: a shipped entry, or a path (it has a `/` or ends in `.yaml`) relative to `beside`.

    Raises InputError that names the shipped entries when there is none.
    """
    if "/" in name or name.endswith((".yaml", ".yml")):
        return (beside or Path()) / name
    path = folder(kind) / f"{name}.yaml"
    if not path.is_file():
        raise InputError(unknown(kind.rsplit("/", 1)[-1].removesuffix("s"), name, names(kind)))
    return path


def load(kind: str, name: str, model: type[ModelT], beside: Path | None = None) -> ModelT:
    """Read and validate the entry `name` of one kind as `model`."""
    path = locate(kind, name, beside)
    return validate(model, read_document(path, f"{kind}/{path.name}" if path.is_relative_to(folder(kind)) else None))
