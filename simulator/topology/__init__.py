"""Fabrics as immutable graphs: builders per family, presets, equal-cost paths, bills of materials."""

from simulator.topology.bill import BillOfMaterials, bill_of_materials, check
from simulator.topology.graph import Link, Path, Site, Topology
from simulator.topology.presets import BUILDERS, build_topology, resolve_preset

__all__ = [
    "BUILDERS",
    "BillOfMaterials",
    "Link",
    "Path",
    "Site",
    "Topology",
    "bill_of_materials",
    "build_topology",
    "check",
    "resolve_preset",
]
