"""Fabrics that fall apart into one Clos per device slot: rail-only networks and multi-plane fat-trees.

Model: the r-th devices of all nodes (or high-bandwidth domains) are joined by a Clos of their own; nothing joins two of
these, so other traffic is handed over inside the sender's node. Source: rail-only, arXiv 2307.12169; planes of
DeepSeek-V3 and PXN relays, arXiv 2505.09343.
"""

from fractions import Fraction
from typing import Literal, Self

from pydantic import model_validator

from simulator.strict import Count
from simulator.topology.clos import Taper
from simulator.topology.folded import ClosShape, Demand, add_leaves, add_spines, bisection, clos_of
from simulator.topology.graph import Topology
from simulator.topology.wiring import NodeParameters, Wiring


class RailOnlyParameters(NodeParameters):
    """High-bandwidth domains of `devices_per_node` devices, and a Clos per rail: the r-th device of every domain.

    A device reaches another rail through the device of its own domain that is in it.
    """

    nodes: Count
    """High-bandwidth domains in the cluster."""
    tiers: Literal[1, 2, 3] = 3
    """Tiers of switches of a rail at most; the fewest that hold the domains are built."""
    taper: Taper = 1.0
    """Down:up capacity of a leaf that must not be exceeded."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        lane_shape(self)
        return self


class MultiPlaneParameters(RailOnlyParameters):
    """One plane, a fat-tree of its own, per pair of a device and its NIC; planes exchange nothing."""

    relay: bool = True
    """Whether a device may hand its bytes over NVLink to the device whose NIC is in the target's plane (PXN)."""


def lane_shape(parameters: RailOnlyParameters) -> ClosShape:
    """Return the Clos of one rail or plane; raises ValueError that names the largest number of nodes that fits."""
    taper = Fraction(str(parameters.taper))
    demand = Demand(parameters.nodes, 1, 1, parameters.switch.radix, parameters.tiers, 1, taper, Fraction(1))
    try:
        return clos_of(demand)
    except ValueError as error:
        raise ValueError(str(error).format("rail")) from None


def build_rail_only(name: str, parameters: RailOnlyParameters) -> Topology:
    """Build a rail-only network; lane `rail<r>` holds the r-th device of every domain."""
    return _build(name, parameters, "rail", relay=True)


def build_multi_plane(name: str, parameters: MultiPlaneParameters) -> Topology:
    """Build a multi-plane fat-tree; lane `plane<i>` holds the i-th device of every node."""
    return _build(name, parameters, "plane", parameters.relay)


def _build(name: str, parameters: RailOnlyParameters, noun: str, relay: bool) -> Topology:
    wiring, shape, nodes = Wiring(), lane_shape(parameters), parameters.nodes
    lanes = [f"{noun}{index}" for index in range(parameters.devices_per_node)]
    leaves = [add_leaves(wiring, shape, f"{lane}/", lane) for lane in lanes]
    for node in range(nodes):
        leaf = node // shape.nodes_per_group
        below = [(column[leaf], lane) for column, lane in zip(leaves, lanes, strict=True)]
        wiring.node(node, parameters, below, "nic-leaf", lanes)
    for column, lane in zip(leaves, lanes, strict=True):
        add_spines(wiring, shape, column, parameters.link, parameters.switch.latency, f"{lane}/", lane)
    halves = []
    for leaf in range(shape.leaves):
        first, last = leaf * shape.nodes_per_group, min((leaf + 1) * shape.nodes_per_group, nodes)
        sending = min(max(nodes // 2 - first, 0), last - first)
        halves.append((sending, last - first - sending))
    cut = bisection(shape, halves, parameters.nic_bytes_per_s, parameters.link.bandwidth) * len(lanes)
    oversubscription = max(map(sum, halves)) / shape.uplinks if shape.uplinks else 1.0
    return wiring.topology(name, parameters.device, wiring.planes(relay), cut, oversubscription)
