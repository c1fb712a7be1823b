"""Topologies by name: a preset file names a builder and its parameters, a scenario overrides some of them.

Every number of a shipped preset has its source in `sources`, by dotted path (of the number or of what holds it).
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from simulator import catalog
from simulator.documents import Document, PathKey, Position
from simulator.errors import InputError, nearest
from simulator.strict import Strict, validate
from simulator.topology.clos import (
    ClosParameters,
    FatTreeParameters,
    TwoZoneParameters,
    build_clos,
    build_fat_tree,
    build_two_zone,
)
from simulator.topology.direct import (
    DragonflyParameters,
    SlimFlyParameters,
    TorusParameters,
    build_dragonfly,
    build_slim_fly,
    build_torus,
)
from simulator.topology.graph import Topology
from simulator.topology.lanes import MultiPlaneParameters, RailOnlyParameters, build_multi_plane, build_rail_only
from simulator.topology.node import (
    MeshParameters,
    NvswitchParameters,
    build_mesh,
    build_nvswitch,
)
from simulator.topology.pcie import PcieParameters, PcieZonesParameters, build_pcie, build_pcie_two_zone
from simulator.topology.supernode import SupernodeParameters, build_supernode
from simulator.topology.wiring import FamilyParameters


@dataclass(frozen=True, slots=True)
class Builder:
    """One family of topologies: the model of its parameters and the function that builds it from a name and them."""

    parameters: type[FamilyParameters]
    build: Callable[[str, Any], Topology]


BUILDERS: Mapping[str, Builder] = {
    "clos": Builder(ClosParameters, build_clos),
    "fat_tree": Builder(FatTreeParameters, build_fat_tree),
    "rail_only": Builder(RailOnlyParameters, build_rail_only),
    "multi_plane": Builder(MultiPlaneParameters, build_multi_plane),
    "ub_supernode": Builder(SupernodeParameters, build_supernode),
    "two_zone": Builder(TwoZoneParameters, build_two_zone),
    "pcie_two_zone": Builder(PcieZonesParameters, build_pcie_two_zone),
    "slim_fly": Builder(SlimFlyParameters, build_slim_fly),
    "dragonfly": Builder(DragonflyParameters, build_dragonfly),
    "torus": Builder(TorusParameters, build_torus),
    "nvswitch": Builder(NvswitchParameters, build_nvswitch),
    "mesh": Builder(MeshParameters, build_mesh),
    "pcie": Builder(PcieParameters, build_pcie),
}


class Preset(Strict):
    """A file of `topologies/`: the builder, its parameters and where each number comes from."""

    description: str
    builder: str
    parameters: dict[str, Any]
    sources: dict[str, str]
    prices: dict[str, Any] = Field(default_factory=dict)
    power: dict[str, Any] = Field(default_factory=dict)
    valid_for: dict[str, Any] = Field(default_factory=dict)


Overrides = Document | Mapping[str, Any] | None


def load_preset(name: str, beside: Path | None = None) -> tuple[Preset, Document]:
    """Read the preset `name` (shipped, or a path relative to `beside`) and the document that it stands in.

    What has not changed is not read again.
    """
    path = catalog.locate("topologies", name, beside)
    return catalog.unchanged(Preset, path, lambda: _read(path))


def _read(path: Path) -> tuple[Preset, Document]:
    document = catalog.document("topologies", path)
    preset = validate(Preset, document)
    if preset.builder not in BUILDERS:
        what = f"unknown builder {preset.builder!r}"
        known = sorted(BUILDERS)
        raise InputError(document.problem(("builder",), what, ", ".join(known), nearest(preset.builder, known)))
    return preset, document


def resolve_preset(name: str, overrides: Overrides = None, beside: Path | None = None) -> FamilyParameters:
    """Return the validated parameters of a preset after `overrides`, without building anything.

    Overrides replace parameters key by key, within nested mappings too. Raises InputError with every problem, placed in
    the overriding document where the fault is there and in the preset's file otherwise; paths are relative to the
    parameters.
    """
    return _resolve(name, overrides, beside)[1]


def build_topology(name: str, overrides: Overrides = None, beside: Path | None = None) -> Topology:
    """Build the preset `name` after `overrides`, as `resolve_preset` validates them."""
    builder, parameters = _resolve(name, overrides, beside)
    key = Path(name).stem, builder, parameters.model_dump_json()
    if key in _BUILT:
        _BUILT.move_to_end(key)
    else:
        _BUILT[key] = builder.build(Path(name).stem, parameters)
        while len(_BUILT) > MOST_BUILT:
            _BUILT.popitem(last=False)
    return _BUILT[key]


MOST_BUILT = 3
"""Topologies that are kept, for runs of the same process that have the same."""
_BUILT: OrderedDict[tuple[str, Builder, str], Topology] = OrderedDict()


def _resolve(name: str, overrides: Overrides, beside: Path | None) -> tuple[Builder, FamilyParameters]:
    preset, source = load_preset(name, beside)
    if not isinstance(overrides, Document):
        overrides = Document("overrides", dict(overrides or {}))
    if not isinstance(overrides.value, Mapping):
        raise InputError(overrides.problem((), f"expected a mapping of parameters, found {overrides.value!r}"))
    builder = BUILDERS[preset.builder]
    positions = {path[1:]: at for path, at in source.positions.items() if path[:1] == ("parameters",)}
    merged = Document(source.file, _merge(preset.parameters, overrides, (), positions), positions)
    # what no single line is to blame for (a cluster too large, a key left out) stands where the user chose the values
    positions[()] = overrides.position(()) if overrides.value else positions[()]
    return builder, validate(builder.parameters, merged)


def _merge(base: Any, overrides: Document, path: PathKey, positions: dict[PathKey, Position]) -> Any:
    """Return `base` with the overrides at `path` in it, and set the positions of whatever they replace."""
    value = overrides.value
    for part in path:
        value = value[part]
    if not isinstance(base, Mapping) or not isinstance(value, Mapping):
        positions[path] = overrides.position(path)
        base = {}
    if not isinstance(value, Mapping):
        return value
    return {**base, **{key: _merge(base.get(key), overrides, (*path, key), positions) for key in value}}
