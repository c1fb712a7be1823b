"""Reading a run's tables by columns and row groups; a file that cannot be read is one clear error."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from simulator.errors import InputError, Problem
from simulator.results.run import Run

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Integers = npt.NDArray[np.int64]
    Reals = npt.NDArray[np.float64]


def groups(run: Run, table: str, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield each row group of a table as arrays by column; a null integer is -1, a null text None.

    Raises InputError when the run has no such table, or its file is not one.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if table not in run.manifest["tables"]:
        found = ", ".join(run.manifest["tables"]) or "none"
        raise InputError(Problem(f"the run has no table {table!r}; it has {found}", file=str(run.path)))
    path = run.path / run.manifest["tables"][table]["file"]
    try:
        with pq.ParquetFile(path) as file:
            for index in range(file.num_row_groups):
                group = file.read_row_group(index, columns=list(columns))
                yield {name: _array(group[name]) for name in columns}
    except (pa.ArrowException, OSError, KeyError) as error:
        what = f"cannot be read as the table {table!r}: {' '.join(str(error).split())}"
        raise InputError(Problem(what, file=str(path))) from None


def columns(run: Run, table: str, names: Sequence[str]) -> dict[str, Any]:
    """Return whole columns of a table, as `groups` gives them."""
    import numpy as np

    found = list(groups(run, table, names))
    if not found:
        return {name: np.empty(0, np.int64) for name in names}
    return {name: np.concatenate([group[name] for group in found]) for name in names}


def has(run: Run, table: str) -> bool:
    """Whether the run wrote the table and has rows in it."""
    return bool(run.manifest["tables"].get(table, {}).get("rows"))


def _array(chunked: Any) -> Any:
    import pyarrow as pa

    array = chunked.combine_chunks()
    if pa.types.is_integer(array.type):
        return array.cast(pa.int64()).fill_null(-1).to_numpy()
    return array.to_numpy(zero_copy_only=False)
