"""Bytes on every link when traffic is spread evenly over all equal-cost paths, from the structure of a fabric.

Model: the fluid limit of per-packet spraying, or the mean of hashing over many flows. Nothing is sampled or listed.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from simulator.topology.exchange import PairByPairError, exchange
from simulator.topology.graph import Topology
from simulator.topology.weights import path_weights, spread

__all__ = ["exchange_loads", "path_weights", "shard_loads"]


def exchange_loads(
    topology: Topology,
    devices: Sequence[int],
    size_bytes: float,
    plane: str | None = None,
    blocks: Sequence[int] | None = None,
) -> NDArray[np.float64]:
    """Return the bytes on each link, by index, when each of `devices` sends `size_bytes` to each other one.

    Each pair goes over the first plane that joins it (or over `plane`), spread over all its equal-cost paths, relays
    included. `blocks` are numbers, one for each device: those of an equal number send each other nothing (the number of
    the node leaves what crosses nodes). Time grows with the classes of devices (those of one node, those below one
    switch), not with the pairs.
    Raises ValueError for a device named twice or blocks of another length, IndexError for a device that does not exist,
    InputError where nothing joins two that have bytes for each other.
    """
    ends, apart = list(devices), list(range(len(devices)) if blocks is None else blocks)
    if len(set(ends)) < len(ends):
        raise ValueError("a group needs each device once")
    if len(apart) != len(ends):
        raise ValueError(f"{len(apart)} blocks for {len(ends)} devices")
    if ends and not 0 <= min(ends) <= max(ends) < len(topology.endpoints):
        raise IndexError(f"devices are numbered 0 to {len(topology.endpoints) - 1}")
    loads = np.zeros(len(topology.links))
    chosen, lane = (topology.planes, None) if plane is None else ((found := topology.plane(plane))[:1], found[1])
    if len(set(apart)) < 2:
        return loads
    try:
        exchange(chosen, lane, ends, apart, loads)
    except PairByPairError:
        numbered = list(zip(ends, apart, strict=True))
        pairs = ((a, b, size_bytes) for a, here in numbered for b, there in numbered if here != there)
        return shard_loads(topology, pairs, plane)
    return loads * size_bytes


def shard_loads(
    topology: Topology, shards: Iterable[tuple[int, int, float]], plane: str | None = None
) -> NDArray[np.float64]:
    """Return the bytes on each link, by index, of (source, target, bytes), each spread over all its equal-cost paths.

    What several shards share (the same two switches) is looked into once. Raises as `Topology.paths` does.
    """
    loads = np.zeros(len(topology.links))
    found = spread((topology.paths(source, target, plane), size) for source, target, size in shards)
    loads[list(found)] = list(found.values())
    return loads
