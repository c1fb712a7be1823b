"""The shape of a group of ranks on a topology: how many per node, and the rates that its links give each of them.

Model: every flow of a pattern is spread evenly over its equal-cost paths; the most loaded link sets the rate of all.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import inf

from simulator.topology.graph import Topology

SPREAD_PATHS = 256
"""Equal-cost paths over which one flow's load is spread at most: exact up to here, beyond it a rotating sample."""
SPREAD_PAIRS = 8_192
"""Pairs that stand for an all-to-all at most; a larger even group is read at evenly spaced shifts of it."""

Shards = Iterable[tuple[int, int, float]]
"""(source device, target device, amount) triples."""

Nodes = tuple[tuple[int, ...], ...]
"""The devices of a group node by node, each node's in the order of their slots."""


@dataclass(frozen=True, slots=True)
class GroupShape:
    """What a collective's time depends on; equal shapes take equal times.

    `ranks_per_node` is that of the fullest node. Rates are bytes/s of one rank, one way: `local` to its neighbour in
    the node, `rail` when every rank sends to its like in the next node (of an uneven group only the last rank, to the
    first), `cross` when it sends to all ranks of other nodes evenly; a rate of links that the group does not use is
    infinite. `latency_ns` is that of the longest path between neighbouring nodes.
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


def group_shape(topology: Topology, devices: Sequence[int], capacities: Sequence[float] | None = None) -> GroupShape:
    """Return the shape of a group under `capacities` (bytes/s by link index; default the topology's own).

    Raises as `group_nodes` does.
    """
    nodes = group_nodes(topology, devices)
    at = [link.capacity_bytes_per_s for link in topology.links] if capacities is None else capacities
    ring = [(a, b) for node in nodes if len(node) > 1 for a, b in zip(node, node[1:] + node[:1], strict=True)]
    shape = GroupShape(
        ranks=sum(len(node) for node in nodes),
        nodes=len(nodes),
        ranks_per_node=max(len(node) for node in nodes),
        local_bytes_per_s=pattern_rate(topology, ring, at),
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
        pattern_rate(topology, rails, at),
        _cross_rate(topology, nodes, at),
        max(topology.path_latency_ns(topology.paths(a, b)[0]) for a, b in rails),
    )


def pattern_rate(
    topology: Topology, pairs: Sequence[tuple[int, int]], capacities: Sequence[float], weight: float = 1.0
) -> float:
    """Return the rate at which all `pairs` can send at once times `1 / weight`, in bytes/s; infinite for no pairs."""
    loads = link_loads(topology, ((a, b, weight) for a, b in pairs))
    return min((capacities[link] / load for link, load in loads.items()), default=inf)


def link_loads(topology: Topology, shards: Shards) -> dict[int, float]:
    """Return the load of each link that (source, target, amount) shards use, spread evenly over equal-cost paths."""
    loads: dict[int, float] = {}
    for source, target, amount in shards:
        paths = topology.paths(source, target)
        count = min(len(paths), SPREAD_PATHS)
        turn = source * 2_654_435_761 + target * 40_503 if count < len(paths) else 0  # other pairs take other paths
        for i in range(count):
            for link in paths[(i * len(paths) // count + turn) % len(paths)]:
                loads[link] = loads.get(link, 0.0) + amount / count
    return loads


def _cross_rate(topology: Topology, nodes: Nodes, capacities: Sequence[float]) -> float:
    """Return the rate of one rank that sends to all ranks of other nodes evenly, all ranks at once."""
    width = len(nodes[0])
    if any(len(node) != width for node in nodes):  # the rank with the most others to send to sets the pace
        pairs = [(a, b) for here in nodes for there in nodes if here is not there for a in here for b in there]
        ranks = sum(len(node) for node in nodes)
        return pattern_rate(topology, pairs, capacities, 1 / (ranks - min(len(node) for node in nodes)))
    # a shift by some nodes and some places is a permutation, so that a sample loads all NICs alike
    turns = len(nodes) - 1
    shifts = width * min(turns, max(1, SPREAD_PAIRS // (len(nodes) * width * width)))
    pairs = []
    for index in range(shifts):  # every place alike, and nodes at even distances
        on, over = 1 + (2 * index + 1) * turns // (2 * shifts), index % width
        for i, node in enumerate(nodes):
            other = nodes[(i + on) % len(nodes)]
            pairs += [(device, other[(place + over) % width]) for place, device in enumerate(node)]
    return pattern_rate(topology, pairs, capacities, 1 / shifts)
