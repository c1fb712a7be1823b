"""Collectives as phases of concurrent flows: what a pipelined library has under way in steady state.

Model: rounds whose chunks follow each other through the same pipeline run at once, each edge with all its bytes; phases
that need the whole of the one before (reduce-scatter, then the rails) stay one after the other. Source: Sanders, Speck,
Traeff 2009 (pipelined trees), NCCL (rings and trees in chunks).
"""

from collections.abc import Sequence
from typing import NamedTuple

from simulator.network.collectives_shape import Nodes
from simulator.network.collectives_steps import Round, steps
from simulator.topology.graph import Path, Topology

PIPELINED = frozenset({("all_reduce", "tree"), ("broadcast", "ring"), ("all_to_all", "pxn")})
"""Operations and algorithms whose rounds overlap although their edges differ."""


class Half(NamedTuple):
    """Bytes between a device and the switch that reduces or multiplies them, one way."""

    device: int
    inward: bool
    path: Path
    size_bytes: int


class Exchange(NamedTuple):
    """Every rank sends a part of its message to each other: n (n - 1) shards, listed only where they are asked for."""

    nodes: Nodes
    size_bytes: int

    @property
    def ranks(self) -> list[int]:
        """The devices, node by node."""
        return [device for node in self.nodes for device in node]

    def shards(self) -> Round:
        """Return all shards."""
        [shards] = steps("all_to_all", "direct", self.nodes, self.size_bytes)
        return shards


class Phase(NamedTuple):
    """Flows that run at once: shards (source, target, bytes), an exchange, halves that end or begin in a switch."""

    shards: Round
    halves: tuple[Half, ...] = ()
    exchange: Exchange | None = None


def phases(topology: Topology, operation: str, algorithm: str, nodes: Nodes, size_bytes: int) -> list[Phase]:
    """Return the phases of one collective on devices given node by node; none for one device.

    Raises ValueError for a group that the algorithm does not suit.
    """
    if algorithm == "in_switch":
        return _in_switch(topology, nodes, size_bytes)
    if algorithm == "direct" and operation != "send_receive":
        return [Phase([], exchange=Exchange(nodes, size_bytes))] if sum(map(len, nodes)) > 1 else []
    found: list[Phase] = []
    rounds = steps(operation, algorithm, nodes, size_bytes)
    if (operation, algorithm) in PIPELINED:
        return [Phase(_merged(rounds))] if rounds else []
    waiting: list[Round] = []
    for round_ in rounds:
        if waiting and _edges(waiting[-1]) != _edges(round_):
            found.append(Phase(_merged(waiting)))
            waiting = []
        waiting.append(round_)
    return [*found, Phase(_merged(waiting))] if waiting else found


def _edges(round_: Round) -> set[tuple[int, int]]:
    return {(source, target) for source, target, _ in round_}


def _merged(rounds: Sequence[Round]) -> Round:
    """Sum the bytes of each edge over rounds."""
    total: dict[tuple[int, int], int] = {}
    for round_ in rounds:
        for source, target, size in round_:
            total[source, target] = total.get((source, target), 0) + size
    return [(source, target, size) for (source, target), size in total.items()]


def _in_switch(topology: Topology, nodes: Nodes, size_bytes: int) -> list[Phase]:
    """Each rank sends its message into the node's switch and the sum of its part again; as much comes back.

    Parts go round the rails in a ring between nodes.
    """
    if len({len(node) for node in nodes}) > 1 or len(nodes[0]) < 2:
        raise ValueError(f"needs two ranks or more, and as many, on every node, found {[len(n) for n in nodes]}")
    halves: list[Half] = []
    for node in nodes:
        inside = size_bytes + -(-size_bytes // len(node))
        for place, device in enumerate(node):
            out = [path[:1] for path in topology.paths(device, node[place - 1])]
            back = [path[-1:] for path in topology.paths(node[place - 1], device)]
            halves += [Half(device, False, path, -(-inside // len(out))) for path in out]
            halves += [Half(device, True, path, -(-inside // len(back))) for path in back]
    shards: Round = []
    count = len(nodes)
    if count > 1:
        part = -(-2 * (count - 1) * size_bytes // (count * len(nodes[0])))
        turns = zip(nodes, nodes[1:] + nodes[:1], strict=True)
        shards = [(a, b, part) for here, there in turns for a, b in zip(here, there, strict=True)]
    return [Phase(shards, tuple(halves))]
