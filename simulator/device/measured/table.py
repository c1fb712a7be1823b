"""The columns of one table of measurements, CSV or Parquet, read with errors that name file, row and column."""

from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

from simulator.errors import InputError, Problem
from simulator.model.operators import Operator

Columns = Mapping[str, Sequence[Any]]


class Measured(NamedTuple):
    """One measurement: the operators that were timed together, and their time in ns."""

    operators: tuple[Operator, ...]
    ns: float


class Table:
    """The columns of one file, read with errors that name the file, the row and the column."""

    def __init__(self, path: Path, columns: Columns) -> None:
        self.path, self.columns = path, columns
        self.notes: list[str] = []
        """What of the file was passed over."""
        self.rows = len(next(iter(columns.values()), ()))

    def problem(
        self, what: str, row: int | None = None, allowed: str | None = None, near: str | None = None
    ) -> Problem:
        """Return a problem of this file; `row` counts rows of data from 0."""
        place = what if row is None else f"row {row + 1}: {what}"
        return Problem(place, file=str(self.path), allowed=allowed, nearest=near)

    def times(self, column: str, unit_ns: float) -> list[float]:
        """Return a column of times in ns; raises InputError on the first that is no positive number."""
        return [self.positive(column, row, value) * unit_ns for row, value in enumerate(self.columns[column])]

    def positive(self, column: str, row: int, value: Any) -> float:
        """Return a time; raises InputError when it is no positive number."""
        if not isinstance(value, int | float) or isinstance(value, bool) or not isfinite(value) or value <= 0:
            raise InputError(self.problem(f"{column} is {value!r}", row, "a time of more than zero"))
        return float(value)

    def whole(self, column: str, least: int = 0) -> list[int]:
        """Return a column of whole numbers of at least `least`; raises InputError on the first that is none."""
        found = []
        for row, value in enumerate(self.columns[column]):
            number = isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)
            if not number or value != int(value) or value < least:
                raise InputError(self.problem(f"{column} is {value!r}", row, f"a whole number of {least} or more"))
            found.append(int(value))
        return found

    def say_passed(self, what: str, passed: Mapping[str, int]) -> None:
        """Note how many rows of which kinds were passed over, if any were."""
        if found := ", ".join(f"{name} ({rows:,} rows)" for name, rows in passed.items() if rows):
            self.notes.append(f"{what} passed over: {found}")

    def say_degrees(self, degrees: Sequence[int], wanted: int) -> None:
        """Note that no row is of the tensor degree that is asked for."""
        if wanted not in degrees:
            there = ", ".join(map(str, sorted(set(degrees))))
            self.notes.append(f"no row is of tensor degree {wanted}, only of {there}")

    def only(self, column: str) -> str | None:
        """Return the values of a column of texts, joined when they differ; None without the column."""
        found = dict.fromkeys(str(value) for value in self.columns.get(column, ()) if value is not None)
        return ", ".join(found) or None


def read_table(path: Path) -> Table:
    """Return the columns of a CSV or Parquet file; raises InputError when it cannot be read as one."""
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet

    if not path.name.endswith((".parquet", ".csv", ".csv.gz")):
        raise InputError(Problem("is no table", file=str(path), allowed=".csv, .csv.gz or .parquet"))
    try:
        table = pa.parquet.read_table(path) if path.suffix == ".parquet" else pa.csv.read_csv(path)
    except (OSError, pa.ArrowException) as error:
        raise InputError(Problem(f"cannot be read as a table: {error}", file=str(path))) from None
    return Table(path, {name: table.column(name).to_pylist() for name in table.column_names})
