"""The shape of a group of ranks on a topology: how many per node, and the rates that its links give each of them.

Model: every flow of a pattern is spread evenly over its equal-cost paths; the most loaded link sets the rate of all.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

import numpy as np
from numpy.typing import NDArray

from simulator.errors import InputError
from simulator.topology.graph import Topology
from simulator.topology.spreading import exchange_loads, shard_loads

Nodes = tuple[tuple[int, ...], ...]
"""The devices of a group node by node, each node's in the order of their slots."""


@dataclass(frozen=True, slots=True)
class GroupShape:
    """What a collective's time depends on; equal shapes take equal times.

    `ranks_per_node` is that of the fullest node. Rates are bytes/s of one rank, one way: `local` to its neighbour in
    the node, `rail` when every rank sends to its like in the next node (of an uneven group only the last rank, to the
    first), `cross` when it sends to all ranks of other nodes evenly (zero where some have no way to others); a rate of
    links that the group does not use is infinite. `latency_ns` is that of the longest path between neighbouring nodes.
    """

    ranks: int
    nodes: int
    ranks_per_node: int
    local_bytes_per_s: float = inf
    rail_bytes_per_s: float = inf
    cross_bytes_per_s: float = inf
    latency_ns: int = 0

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
    if len(nodes) == 1:
        return shape
    turns = list(zip(nodes, nodes[1:] + nodes[:1], strict=True))
    rails = (
        [pair for here, there in turns for pair in zip(here, there, strict=True)]
        if shape.even
        else [(here[-1], there[0]) for here, there in turns]
    )
    return GroupShape(
        shape.ranks,
        shape.nodes,
        shape.ranks_per_node,
        shape.local_bytes_per_s,
        pattern_rate(topology, rails, at, plane),
        _cross_rate(topology, nodes, at, plane),
        max(topology.path_latency_ns(topology.paths(a, b, plane)[0]) for a, b in rails),
    )


def pattern_rate(
    topology: Topology, pairs: Sequence[tuple[int, int]], capacities: Sequence[float], plane: str | None = None
) -> float:
    """Return the rate at which all `pairs` can send at once, in bytes/s; infinite for no pairs."""
    return _rate(shard_loads(topology, ((a, b, 1.0) for a, b in pairs), plane), capacities)


def _rate(loads: NDArray[np.float64], capacities: Sequence[float]) -> float:
    """Return how many times a second links of `capacities` (bytes/s) carry `loads` (bytes), the slowest of them."""
    used = np.flatnonzero(loads)
    return float((np.array([capacities[link] for link in used.tolist()]) / loads[used]).min(initial=inf))


def _cross_rate(topology: Topology, nodes: Nodes, capacities: Sequence[float], plane: str | None) -> float:
    """Return the rate of one rank that sends to all ranks of other nodes evenly, all ranks at once.

    Of an uneven group the rank with the most others to send to. Zero where rails or planes never meet.
    """
    devices = [device for node in nodes for device in node]
    most_others = len(devices) - min(len(node) for node in nodes)
    try:
        loads = exchange_loads(topology, devices, 1 / most_others, plane, between_nodes(nodes))
    except InputError:
        return 0.0
    return _rate(loads, capacities)


def between_nodes(nodes: Nodes) -> list[int]:
    """Return the number of the node of each rank: the blocks that `exchange_loads` leaves out inside."""
    return [place for place, node in enumerate(nodes) for _ in node]
