"""Reads how often experts were chosen: counts by layer and expert, or the choices of every token.

Source: choices of each token as ESFT publishes them (arXiv:2407.01906); counts as engines log them.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from simulator.errors import InputError, Problem

COUNTS = "columns layer, expert and tokens, or layer and expert_0, expert_1 ...; window if they drift"


def read_choices(path: Path, experts: int, active: int) -> list[NDArray[np.float64]]:
    """Return counts as arrays of layers x `experts`, one for each window; layers are those of the file, in order.

    Raises InputError when the file is none of this kind, or of a model with other numbers of experts.
    """
    try:
        table = pa.csv.read_csv(path) if path.suffix.lower() == ".csv" else pq.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(Problem(f"no table of chosen experts: {error}", str(path), allowed=COUNTS)) from None
    names = table.column_names
    choices = [f"expert_{i}" for i in range(len(names)) if f"expert_{i}" in names]
    if "layer" not in names or not (choices or {"expert", "tokens"} <= set(names)):
        raise InputError(Problem(f"columns {', '.join(names)}", str(path), allowed=COUNTS))
    if choices and len(choices) != active:
        what = f"{len(choices)} experts chosen by each token, the model's tokens choose {active}"
        raise InputError(Problem(what, str(path)))
    columns = ["layer", *(["window"] if "window" in names else []), *(choices or ["expert", "tokens"])]
    values = {name: _whole(table[name], name, path) for name in columns}
    chosen = [values[name] for name in choices] or [values["expert"]]
    most = max(int(column.max(initial=0)) for column in chosen)
    if not len(values["layer"]) or most >= experts:
        what = "no rows" if not len(values["layer"]) else f"expert {most}, the model has 0 to {experts - 1}"
        raise InputError(Problem(what, str(path)))
    layers, layer = np.unique(values["layer"], return_inverse=True)
    windows, window = np.unique(values.get("window", np.zeros(len(layer), dtype=np.int64)), return_inverse=True)
    after = np.flatnonzero(np.diff(windows) > 1)
    if len(after):
        what = f"window {windows[after[0]] + 1} has no rows, so those after it would come too early"
        raise InputError(Problem(what, str(path), allowed="windows without gaps, each as long as the others"))
    counts = np.zeros(len(windows) * len(layers) * experts)
    weights = None if choices else values["tokens"].astype(np.float64)
    for column in chosen:
        at = (window * len(layers) + layer) * experts + column
        counts += np.bincount(at, weights, minlength=len(counts))
    return list(counts.reshape(len(windows), len(layers), experts))


def _whole(column: pa.ChunkedArray, name: str, path: Path) -> NDArray[np.int64]:
    try:
        found = pc.cast(column, pa.int64()).to_numpy()
    except pa.ArrowInvalid as error:
        raise InputError(Problem(f"column {name}: {error}", str(path), allowed="whole numbers")) from None
    if column.null_count or (len(found) and found.min() < 0):
        raise InputError(Problem(f"column {name} has empty or negative values", str(path)))
    return np.asarray(found, dtype=np.int64)
