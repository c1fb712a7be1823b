"""The shape of a group of ranks on a topology: how many per node, and the rates that its links give each of them.

Model: rates are those of `simulator.network.patterns`, each with all that a group sends in a pattern.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import permutations
from math import inf

import numpy as np
from numpy.typing import NDArray

from simulator.errors import InputError
from simulator.network.patterns import Exchange, Pairs, loads_left, rate_left
from simulator.topology.graph import Topology

SAME = 1e-9
"""Rates that differ by less are one, but for rounding."""

Nodes = tuple[tuple[int, ...], ...]
"""The devices of a group node by node, each node's in the order of their slots."""


@dataclass(frozen=True, slots=True)
class GroupShape:
    """What a collective's time depends on; equal shapes take equal times.

    `ranks_per_node` is that of the fullest node. Rates are bytes/s of one rank, one way: `local` to its neighbour in
    the node, `inside` to all others of the node evenly (None: as to its neighbour, which a switch sees to), `rail` when
    every rank sends to its like in the next node (of an uneven group only the last rank, to the first), `cross` when it
    sends to all ranks of other nodes evenly (zero where some have no way to others); a rate of links that the group
    does not use is infinite. `all` is when it sends to all other ranks evenly, of a group over several nodes whose ways
    within and between nodes have links in common, so that this is slower than either (else None). `latency_ns` is that
    of the longest path between neighbouring nodes.
    """

    ranks: int
    nodes: int
    ranks_per_node: int
    local_bytes_per_s: float = inf
    rail_bytes_per_s: float = inf
    cross_bytes_per_s: float = inf
    latency_ns: int = 0
    inside_bytes_per_s: float | None = None
    all_bytes_per_s: float | None = None

    def rate_inside(self, to_all: bool) -> float:
        """Return the bytes/s of a rank to its neighbour, or to all others of its node evenly."""
        return self.inside_bytes_per_s if to_all and self.inside_bytes_per_s is not None else self.local_bytes_per_s

    @property
    def even(self) -> bool:
        """Whether every node holds the same number of ranks."""
        return self.ranks == self.nodes * self.ranks_per_node


def group_nodes(topology: Topology, devices: Sequence[int]) -> Nodes:
    """Return the devices of a group by node; the order in which they are named does not matter.

    Raises ValueError for an empty group or a device named twice, IndexError for one that does not exist.
    """
    if not devices or len(set(devices)) != len(devices):
        raise ValueError(f"a group needs one or more devices, each once, found {list(devices)}")
    nodes: dict[int, list[int]] = {}
    for device in sorted(devices):
        nodes.setdefault(topology.sites[device].node, []).append(device)
    return tuple(tuple(sorted(node, key=lambda d: topology.sites[d].slot)) for _, node in sorted(nodes.items()))


def group_shape(
    topology: Topology, devices: Sequence[int], capacities: Sequence[float] | None = None, plane: str | None = None
) -> GroupShape:
    """Return the shape of a group under `capacities` (bytes/s by link index; default the topology's own).

    `plane` carries everything, if given; else the first that joins two ranks.

    Raises as `group_nodes` does.
    """
    nodes = group_nodes(topology, devices)
    at = [link.capacity_bytes_per_s for link in topology.links] if capacities is None else capacities
    ring = [(a, b) for node in nodes if len(node) > 1 for a, b in zip(node, node[1:] + node[:1], strict=True)]
    shape = GroupShape(
        ranks=sum(len(node) for node in nodes),
        nodes=len(nodes),
        ranks_per_node=max(len(node) for node in nodes),
        local_bytes_per_s=pattern_rate(topology, ring, at, plane),
    )
    inside = _inside_rate(topology, nodes, at, plane)
    if inside < inf and abs(inside - shape.local_bytes_per_s) > SAME * inside:
        shape = replace(shape, inside_bytes_per_s=inside)
    if len(nodes) == 1:
        return shape
    rails = _rails(nodes)
    cross = _cross_rate(topology, nodes, at, plane)
    return replace(
        shape,
        rail_bytes_per_s=pattern_rate(topology, rails, at, plane),
        cross_bytes_per_s=cross,
        all_bytes_per_s=_all_rate(topology, nodes, at, plane, shape.rate_inside(to_all=True), cross),
        latency_ns=max(topology.path_latency_ns(topology.paths(a, b, plane)[0]) for a, b in rails),
    )


def _rails(nodes: Nodes) -> list[tuple[int, int]]:
    """Return each rank and its like in the next node; of an uneven group the last rank and the first."""
    turns = list(zip(nodes, nodes[1:] + nodes[:1], strict=True))
    if len({len(node) for node in nodes}) == 1:
        return [pair for here, there in turns for pair in zip(here, there, strict=True)]
    return [(here[-1], there[0]) for here, there in turns]


def pattern_rate(
    topology: Topology, pairs: Sequence[tuple[int, int]], capacities: Sequence[float], plane: str | None = None
) -> float:
    """Return the rate at which all `pairs` can send at once, in bytes/s; infinite for no pairs."""
    sent = Pairs(pairs, plane)
    return rate_left(topology, sent, sent.built(topology), capacities)


def _inside_rate(topology: Topology, nodes: Nodes, capacities: Sequence[float], plane: str | None) -> float:
    """Return the rate of one rank that sends to all others of its node evenly, all ranks at once.

    Where nodes differ, a rank of the fullest.
    """
    most_others = max(len(node) for node in nodes) - 1
    if len(nodes) == 1:
        exchange = Exchange(nodes[0], 1 / max(1, most_others), plane)
        return rate_left(topology, exchange, exchange.built(topology), capacities)
    return most_others * pattern_rate(
        topology, [pair for node in nodes for pair in permutations(node, 2)], capacities, plane
    )


def _cross_rate(topology: Topology, nodes: Nodes, capacities: Sequence[float], plane: str | None) -> float:
    """Return the rate of one rank that sends to all ranks of other nodes evenly, all ranks at once.

    Of an uneven group the rank with the most others to send to. Zero where rails or planes never meet.
    """
    devices = [device for node in nodes for device in node]
    most_others = len(devices) - min(len(node) for node in nodes)
    exchange = Exchange(devices, 1 / most_others, plane, between_nodes(nodes))
    try:
        built = exchange.built(topology)
    except InputError:
        return 0.0
    return rate_left(topology, exchange, built, capacities)


def _all_rate(
    topology: Topology, nodes: Nodes, capacities: Sequence[float], plane: str | None, inside: float, cross: float
) -> float | None:
    """Return the rate of one rank that sends to all others evenly, where links in common make it slower.

    `inside` and `cross` are its rates to those of its node and to the others, by themselves.
    """
    devices = [device for node in nodes for device in node]
    others, fullest = len(devices) - 1, max(len(node) for node in nodes)
    if not cross or not inside or fullest == 1:
        return None
    apart = others / max((fullest - 1) / inside, (len(devices) - fullest) / cross)
    exchange = Exchange(devices, 1 / others, plane)
    try:
        built = exchange.built(topology)
    except InputError:
        return None
    together = rate_left(topology, exchange, built, capacities)
    return together if 0 < together < apart * (1 - SAME) else None


def between_nodes(nodes: Nodes) -> list[int]:
    """Return the number of the node of each rank: the blocks that `exchange_loads` leaves out inside."""
    return [place for place, node in enumerate(nodes) for _ in node]


def sent_loads(
    topology: Topology,
    devices: Sequence[int],
    shape: GroupShape,
    capacities: Sequence[float],
    to_all: bool,
    plane: str | None = None,
) -> NDArray[np.float64]:
    """Return the bytes on each link when each rank of a group of this shape sends a byte to other nodes.

    With `to_all` evenly to all ranks there, and to all other ranks where ways within and between nodes have links in
    common; else, and where rails or planes never meet, to its like in the next node. Where `capacities` are zero, by
    the paths that are left; raises InputError where there are none.
    """
    nodes = group_nodes(topology, devices)
    if len(nodes) == 1:
        return np.zeros(len(topology.links))
    ranks = [device for node in nodes for device in node]
    among_all = shape.all_bytes_per_s is not None
    each = 1 / (len(ranks) - 1 if among_all else len(ranks) - min(map(len, nodes)))
    if not to_all:
        return way_loads(topology, _rails(nodes), capacities, plane)
    exchange = Exchange(ranks, each, plane, None if among_all else between_nodes(nodes))
    try:
        built = exchange.built(topology)
    except InputError:
        return way_loads(topology, _rails(nodes), capacities, plane)
    return loads_left(topology, exchange, built, capacities)


def way_loads(
    topology: Topology, pairs: Sequence[tuple[int, int]], capacities: Sequence[float], plane: str | None = None
) -> NDArray[np.float64]:
    """Return the bytes on each link for a byte from the first to the second of each pair, dead links left out.

    Raises InputError where nothing is left between two.
    """
    sent = Pairs(pairs, plane)
    return loads_left(topology, sent, sent.built(topology), capacities)
