"""The `measured` cost of a scenario: which tables, of which device and engine, checked against their use."""

import re
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from simulator.device.accelerator import Accelerator
from simulator.device.engine import RooflineParameters
from simulator.device.measured.formats import Contents, read
from simulator.device.measured.times import MeasuredTimes, Origin
from simulator.errors import InputError, Problem
from simulator.model.forward import Pass
from simulator.strict import Strict


class TableSection(Strict):
    """One table, and what is known of it beside what it says itself; a plain string is its path."""

    path: str
    """CSV or Parquet in the canonical schema, or in a public format known by its columns."""
    device: str | None = None
    """Sheet for whose device the table is taken, when the table names none or another."""
    engine: str | None = None
    version: str | None = None
    date: str | None = None
    model: str | None = None
    """Model card of whose layers a table by layer names is."""

    @model_validator(mode="before")
    @classmethod
    def _path_alone(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str) else value


class MeasuredParameters(RooflineParameters):
    """Times of operators from measured tables, the roofline where these have no point."""

    tables: tuple[TableSection, ...] = Field(min_length=1)
    """What was measured."""


def measured_times(parameters: MeasuredParameters, forward: Pass, accelerator: Accelerator) -> MeasuredTimes:
    """Return the times of the tables for the steps of `forward` on a device.

    Raises InputError when a table cannot be read, or is of another device or model and no word of the section says
    that it shall stand for this one.
    """
    if forward.model.attention.index is not None:
        what = f"{forward.model.name} attends to positions that an index chooses, of which no table has measurements"
        raise InputError(Problem(what, path="cost", allowed="roofline, linear"))
    problems = [
        Problem(f"cannot be read: {reason}", file=section.path)
        for section in parameters.tables
        if (reason := _unreadable(Path(section.path)))
    ]
    if problems:
        raise InputError(problems)
    # all that the times may depend on: tables of layers become shapes of this model under this layout
    parts = parameters, forward.model, forward.layout, forward.precision, accelerator
    changed = [str(Path(section.path).stat().st_mtime_ns) for section in parameters.tables]
    key = (*(part.model_dump_json() for part in parts), *changed)
    return _times_once(key, _Unseen(parameters, forward, accelerator))


def _unreadable(path: Path) -> str | None:
    try:
        with path.open("rb"):
            return None
    except OSError as error:
        return error.strerror


class _Unseen:
    """Arguments that a cache shall not look at: they follow from the rest of its key."""

    def __init__(self, parameters: MeasuredParameters, forward: Pass, accelerator: Accelerator) -> None:
        self.parameters, self.forward, self.accelerator = parameters, forward, accelerator

    def __hash__(self) -> int:
        return 0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Unseen)


@lru_cache(maxsize=4)
def _times_once(key: tuple[str, ...], of: _Unseen) -> MeasuredTimes:
    """Return the times of tables: a scenario asks for the same when it is checked, and once per pool."""
    problems: list[Problem] = []
    origins, measured = [], []
    for section in of.parameters.tables:
        try:
            contents = read(Path(section.path), of.forward)
            origins.append(_origin(section, contents, of.forward, of.accelerator))
            measured += contents.measured
        except InputError as error:
            problems += error.problems
    if problems:
        raise InputError(problems)
    return MeasuredTimes(of.accelerator, measured, origins, of.forward)


def _origin(section: TableSection, contents: Contents, forward: Pass, accelerator: Accelerator) -> Origin:
    said = contents.provenance | {
        key: value for key in ("engine", "version", "date") if (value := getattr(section, key)) is not None
    }
    notes = list(contents.notes)
    if section.device is not None:
        if section.device != accelerator.name:
            what = f"{section.path} is for {section.device}, the engines run on {accelerator.name}"
            raise InputError(Problem(what, path="serving.cost.measured.tables", allowed=accelerator.name))
        if "device" in said and not same_device(said["device"], accelerator.name):
            notes.append(f"taken for {accelerator.name}")
    elif "device" not in said:
        notes.append(f"does not say on which device; taken as of {accelerator.name}")
    elif not same_device(said["device"], accelerator.name):
        what = f"{section.path} was measured on {said['device']}, the engines run on {accelerator.name}"
        allowed = f"a table of this device; or `device: {accelerator.name}` with the path, to take it for this one"
        raise InputError(Problem(what, path="serving.cost.measured.tables", allowed=allowed))
    if contents.by_layer:
        if section.model is None:
            notes.append(f"times layers without saying of which model; taken as of {forward.model.name}")
        elif section.model != forward.model.name:
            what = f"{section.path} is of {section.model}, the engines serve {forward.model.name}"
            raise InputError(Problem(what, path="serving.cost.measured.tables"))
    return Origin(Path(section.path).name, contents.format, said, len(contents.measured), tuple(notes))


FORM_FACTORS = ("sxm", "pcie", "nvl")


def same_device(said: str, sheet: str) -> bool:
    """Return whether the name that a table gives a device may mean that of a sheet: `NVIDIA H100 80GB HBM3` does.

    Every word of the sheet's name must be in it, but for memory size and form factor when the table gives none.
    """
    words = [word for word in re.split(r"[^a-z0-9]+", said.lower()) if word]
    joined = "".join(words)
    wanted = re.split(r"[^a-z0-9]+", sheet.lower())
    if "".join(wanted) == joined:
        return True
    for word in wanted:
        if re.fullmatch(r"\d+gb", word):
            fits = word in words or not any(re.fullmatch(r"\d+gb", other) for other in words)
        elif word in FORM_FACTORS:
            fits = word in joined or not any(other in joined for other in FORM_FACTORS)
        else:
            fits = word in words
        if not fits:
            return False
    return True
