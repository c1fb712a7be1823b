"""How busy links were, brought onto the boxes and wires of a drawing of the fabric, and the busiest of them by name.

Model: the mean utilisation of many links is the bytes that all of them carried over what they could have carried.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simulator.documents import read_document
from simulator.errors import InputError
from simulator.report.page.rows import columns, has
from simulator.results.folder import SCENARIO
from simulator.results.run import Run
from simulator.topology import build_topology
from simulator.topology.draw import Drawing, layout
from simulator.topology.explicit import graph_topology
from simulator.topology.graph import Topology
from simulator.units import NS_PER_S

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Reals = npt.NDArray[np.float64]

HOTTEST = 20


@dataclass(frozen=True, slots=True)
class Heat:
    """Mean utilisation of what a wire stands for, up (away from the devices) and down, and of its busiest link."""

    up: float
    down: float
    busiest: float

    @property
    def most(self) -> float:
        """That of the busier direction."""
        return max(self.up, self.down)


@dataclass(frozen=True)
class FabricFigures:
    """A drawing with the heat of each of its wires, and of the cables inside each box that has some."""

    drawing: Drawing
    wires: tuple[Heat, ...]
    boxes: Mapping[int, Heat]


def fabric_figures(run: Run) -> FabricFigures | str:
    """Return the fabric of a run with its heat, or in one line why it cannot be drawn."""
    if not has(run, "links"):
        return "No byte crossed a link of the topology."
    try:
        topology = topology_of(run)
    except (InputError, OSError) as error:
        return f"The topology of this run cannot be built here: {' '.join(str(error).split())}"
    rows = columns(run, "links", ("link", "source", "target", "bytes", "engine_bytes"))
    carried = [0] * len(topology.links)
    for index, source, target, moved, own in zip(*(rows[name].tolist() for name in rows), strict=True):
        link = topology.links[index] if index < len(carried) else None
        if link is None or (link.source, link.target) != (source, target):
            return "The topology of this run has changed since it ran, so its links cannot be found in the drawing."
        carried[index] = moved + own
    return heat(topology, layout(topology), carried, int(run.manifest["simulated_ns"]))


def topology_of(run: Run) -> Topology:
    """Build the topology that the run's resolved scenario names; raises InputError where that is no longer there."""
    value = read_document(run.path / SCENARIO).value
    section: Any = value.get("topology") if isinstance(value, dict) else None
    if not isinstance(section, dict):
        raise InputError("the scenario has no topology")
    parameters = {name: part for name, part in section.items() if name not in ("preset", "graph")}
    if section.get("graph"):
        return graph_topology(run.path / Path(section["graph"]))
    return build_topology(str(section.get("preset")), parameters, run.path)


def heat(topology: Topology, drawing: Drawing, carried_bytes: Sequence[int], duration_ns: int) -> FabricFigures:
    """Return the heat of every wire and box: utilisations over `duration_ns` of what each stands for."""
    at = {(wire.lower, wire.upper, wire.tier): index for index, wire in enumerate(drawing.wires)}
    # of each wire, and of each box for the cables inside it: bytes up, could, bytes down, could, busiest link
    wires = [[0, 0, 0, 0, 0.0] for _ in drawing.wires]
    boxes: dict[int, list[float]] = {}
    for link, moved in zip(topology.links, carried_bytes, strict=True):
        source, target = drawing.box_of[link.source], drawing.box_of[link.target]
        if source == target:
            sums = boxes.setdefault(source, [0, 0, 0, 0, 0.0])
        else:
            sums = wires[at[min(source, target), max(source, target), link.tier]]
        way = 0 if source <= target else 2
        sums[way] += moved
        sums[way + 1] += link.capacity_bytes_per_s
        could = link.capacity_bytes_per_s * duration_ns / NS_PER_S
        sums[4] = max(sums[4], moved / could if could else 0.0)
    seconds = duration_ns / NS_PER_S
    return FabricFigures(
        drawing, tuple(_heat(sums, seconds) for sums in wires), {box: _heat(s, seconds) for box, s in boxes.items()}
    )


def _heat(sums: Sequence[float], seconds: float) -> Heat:
    up, up_could, down, down_could, busiest = sums
    return Heat(_share(up, up_could * seconds), _share(down, down_could * seconds), busiest)


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


@dataclass(frozen=True, slots=True)
class Tier:
    """The links of one tier that carried something: how many, and the mean and highest of their utilisations."""

    name: str
    links: int
    size_bytes: int
    mean: float
    highest: float


def tiers(run: Run) -> tuple[Tier, ...]:
    """Return the tiers of links that carried bytes, in the order of the topology."""
    if not has(run, "links"):
        return ()
    rows = columns(run, "links", ("tier", "bytes", "engine_bytes", "capacity_bytes_per_s", "mean_utilisation"))
    moved = rows["bytes"] + rows["engine_bytes"]
    found = []
    for name in dict.fromkeys(rows["tier"]):
        mine = (rows["tier"] == name) & (moved > 0)
        if mine.any():
            shares = rows["mean_utilisation"][mine]
            capacity = rows["capacity_bytes_per_s"][mine].astype(float)
            mean = float((shares * capacity).sum() / capacity.sum())
            found.append(Tier(name, int(mine.sum()), int(moved[mine].sum()), mean, float(shares.max())))
    return tuple(found)


def hottest(run: Run) -> list[dict[str, Any]]:
    """Return the rows of the links with the highest mean utilisation, the hottest first."""
    import numpy as np

    if not has(run, "links"):
        return []
    names = ("link", "source", "target", "tier", "bytes", "engine_bytes", "flows", "busy_fraction")
    rows = columns(run, "links", (*names, "mean_utilisation", "peak_bytes_per_s", "capacity_bytes_per_s"))
    order = np.lexsort((rows["link"], -rows["mean_utilisation"]))[:HOTTEST]
    return [{name: rows[name][at] for name in rows} for at in order if rows["mean_utilisation"][at]]
