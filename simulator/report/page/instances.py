"""What a serving page says of engines: requests running and waiting, tokens, busy time, KV use and power by window.

Model: rows of `instances` and `power` are means over their own windows; time brings them onto the page's windows.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from simulator.report.page.grid import Grid, Pieces, cut, grid_over, ratio, summed
from simulator.report.page.rows import columns, has
from simulator.results.run import Run
from simulator.results.summary import roles_in_order

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Integers = npt.NDArray[np.int64]
    Reals = npt.NDArray[np.float64]

MOST_ROWS = 96
"""Engines of a heat map; more are folded into rows of several."""


@dataclass(frozen=True)
class InstanceFigures:
    """Means by window: per role over all its engines, per engine (rows in the order of `names`) as shares."""

    grid: Grid
    running: Mapping[str, "Reals"]
    waiting: Mapping[str, "Reals"]
    output_tokens_per_s: "Reals"
    power_w: Mapping[str, "Reals"]
    names: tuple[str, ...]
    busy: "Reals"
    kv: "Reals"


def instance_figures(run: Run, interval_ns: int) -> InstanceFigures | None:
    """Return the figures of `instances.parquet` over windows that are multiples of `interval_ns`; None without rows."""
    if not has(run, "instances"):
        return None
    numbers = ("start_ns", "end_ns", "idle_ns", "running", "waiting", "kv_blocks", "kv_total_blocks", "output_tokens")
    rows = columns(run, "instances", ("instance", "role", *numbers))
    grid = grid_over(int(run.manifest["simulated_ns"]), unit_ns=interval_ns)
    pieces = cut(rows["start_ns"], rows["end_ns"], grid)
    length_ns = rows["end_ns"] - rows["start_ns"]
    share = ratio(pieces.length_ns.astype(float), length_ns[pieces.row].astype(float))
    share[length_ns[pieces.row] == 0] = 1.0  # tokens of a row without length still count
    tokens = summed(pieces.window, rows["output_tokens"][pieces.row] * share, grid.count)
    names, place = _places(rows["instance"], rows["role"])
    alive, busy, kv = _heat(rows, pieces, place, len(names), grid.count)
    bands = _bands(names)
    return InstanceFigures(
        grid,
        _by_role(rows, pieces, "running", grid),
        _by_role(rows, pieces, "waiting", grid),
        tokens / (grid.lengths_ns / 1e9),
        _power(run, grid),
        tuple(_band_name([names[at] for at in band]) for band in bands),
        _folded(busy, alive, bands),
        _folded(kv[0], kv[1], bands),
    )


def pool_of(instance: str, role: str) -> str:
    """Return the pool that an engine is counted in: its role, and its group where it has a name."""
    name = instance.rpartition("-")[0]
    return name if name.startswith(f"{role}-") else role


def _by_role(rows: Mapping[str, Any], pieces: Pieces, column: str, grid: Grid) -> dict[str, "Reals"]:
    found = {}
    roles = rows["role"][pieces.row]
    for role in roles_in_order(list(rows["role"])):
        mine = roles == role
        integral = summed(pieces.window[mine], rows[column][pieces.row[mine]] * pieces.length_ns[mine], grid.count)
        found[role] = integral / grid.lengths_ns
    return found


def _power(run: Run, grid: Grid) -> dict[str, "Reals"]:
    if not has(run, "power"):
        return {}
    rows = columns(run, "power", ("role", "start_ns", "end_ns", "power_w"))
    return _by_role(rows, cut(rows["start_ns"], rows["end_ns"], grid), "power_w", grid)


def _places(instances: Any, roles: Any) -> tuple[list[str], "Integers"]:
    """Return the engines in order of role, group and number, and the place of each row's engine among them."""
    import numpy as np

    found, firsts, inverse = np.unique(instances.astype(str), return_index=True, return_inverse=True)
    rank = {role: at for at, role in enumerate(roles_in_order(list(roles)))}
    order = sorted(range(len(found)), key=lambda at: (rank[roles[firsts[at]]], _natural(str(found[at]))))
    place = np.empty(len(found), np.int64)
    place[order] = np.arange(len(found))
    return [str(found[at]) for at in order], place[inverse]


def _natural(name: str) -> list[tuple[int, int, str]]:
    return [(1, int(part), "") if part.isdigit() else (0, 0, part) for part in re.split(r"([0-9]+)", name)]


def _heat(
    rows: Mapping[str, Any], pieces: Pieces, place: "Integers", engines: int, windows: int
) -> "tuple[Reals, Reals, tuple[Reals, Reals]]":
    """Return by engine and window: time alive, time busy, and block-time of the KV cache used and there."""
    row, size = pieces.row, engines * windows
    key = place[row] * windows + pieces.window
    length = rows["end_ns"] - rows["start_ns"]
    busy_share = ratio((length - rows["idle_ns"]).astype(float), length.astype(float))[row]

    def total(weights: Any) -> "Reals":
        return summed(key, weights, size).reshape(engines, windows)

    alive = total(pieces.length_ns)
    busy = total(busy_share * pieces.length_ns)
    used = total(rows["kv_blocks"][row] * pieces.length_ns)
    there = total(rows["kv_total_blocks"][row] * pieces.length_ns.astype(float))
    return alive, busy, (used, there)


def _bands(names: Sequence[str]) -> list[range]:
    """Return the engines of each row of a heat map: one each, or several of one group that follow each other."""
    if len(names) <= MOST_ROWS:
        return [range(at, at + 1) for at in range(len(names))]
    groups: list[tuple[int, int]] = []
    for at, name in enumerate(names):
        if groups and names[groups[-1][0]].rpartition("-")[0] == name.rpartition("-")[0]:
            groups[-1] = (groups[-1][0], at + 1)
        else:
            groups.append((at, at + 1))
    each = -(-len(names) // MOST_ROWS)
    return [range(at, min(at + each, end)) for start, end in groups for at in range(start, end, each)]


def _band_name(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} to {names[-1].rpartition('-')[2]}"


def _folded(part: "Reals", whole: "Reals", bands: Sequence[range]) -> "Reals":
    import numpy as np

    firsts = [band.start for band in bands]
    return ratio(np.add.reduceat(part, firsts, axis=0), np.add.reduceat(whole, firsts, axis=0))


def pool_energy(run: Run) -> dict[str, float]:
    """Return the energy in J that the devices of each pool drew; empty where it is unknown."""
    import numpy as np

    if not has(run, "power"):
        return {}
    rows = columns(run, "power", ("instance", "role", "energy_j"))
    pools = np.array([pool_of(*pair) for pair in zip(rows["instance"], rows["role"], strict=True)])
    return {str(pool): float(rows["energy_j"][pools == pool].sum()) for pool in np.unique(pools)}
