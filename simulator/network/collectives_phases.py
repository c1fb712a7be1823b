"""Collectives as phases of concurrent flows: what a pipelined library has under way in steady state.

Model: rounds whose chunks follow each other through one pipeline run at once, each edge with all its bytes; phases that
need the whole of the one before (reduce-scatter, then the rails) stay one after the other. Source: Patarasuk, Yuan 2009
(ring); Rabenseifner 2004 (halving, doubling); Sanders, Speck, Traeff 2009 (two trees, pipelined); NCCL (PXN, NVLS).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

from simulator.network.collectives_shape import Nodes
from simulator.topology.graph import Path, Topology

Shards = list[tuple[int, int, int]]
"""Flows (source device, target device, bytes) that start together."""


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

    def shards(self) -> Shards:
        """Return all shards."""
        ranks = self.ranks
        parts = split(self.size_bytes, len(ranks))
        return [(a, b, part) for a in ranks for b, part in zip(ranks, parts, strict=True) if a != b]


class Phase(NamedTuple):
    """Flows that run at once: shards (source, target, bytes), an exchange, halves that end or begin in a switch."""

    shards: Shards
    halves: tuple[Half, ...] = ()
    exchange: Exchange | None = None


def phases(
    topology: Topology, operation: str, algorithm: str, nodes: Nodes, size_bytes: int, plane: str | None = None
) -> list[Phase]:
    """Return the phases of one collective on devices given node by node; none for one device.

    Sizes are counted as in `Collectives.choose`. A broadcast starts at the first device of the first node, a send goes
    from there to the other. An edge has one shard. `plane` has the switch of an in-switch reduction. Raises ValueError
    for an unknown algorithm and for a group that the algorithm does not suit.
    """
    if sum(map(len, nodes)) == 1:
        return []
    if (operation, algorithm) == ("all_reduce", "in_switch"):
        return [_in_switch(topology, nodes, size_bytes, plane)]
    make = _PHASES.get((operation, algorithm))
    if make is None:
        raise ValueError(f"{operation} has no algorithm {algorithm!r}")
    return make(nodes, size_bytes)


def split(size_bytes: int, parts: int) -> list[int]:
    """Return `parts` whole sizes that differ by at most one byte and sum to `size_bytes`."""
    return [(i + 1) * size_bytes // parts - i * size_bytes // parts for i in range(parts)]


def rings(nodes: Nodes) -> list[list[int]]:
    """Return the rings of a group: as many as ranks per node, each leaving a node by another rank; else one.

    Odd nodes are walked backwards, so that a ring goes from node to node between ranks of the same place. Of an odd
    number of nodes the last but one is left by a third place, so that the ring closes on a rail too; with two ranks per
    node there is no third, and each ring has one edge across rails.
    """
    if len(nodes) == 1 or len({len(node) for node in nodes}) > 1:
        return [[device for node in nodes for device in node]]
    width, third = len(nodes[0]), len(nodes) % 2 == 1 and len(nodes[0]) > 2
    found = []
    for first in range(width):
        ring: list[int] = []
        for index, node in enumerate(nodes):
            begin = first + 1 if third and index == len(nodes) - 1 else first
            turned = [node[(begin + place) % width] for place in range(width)]
            if index % 2:
                turned.reverse()
            if third and index == len(nodes) - 2:
                turned[-2:] = turned[:-3:-1]
            ring += turned
        found.append(ring)
    return found


def two_trees(ranks: int) -> tuple[list[int | None], list[int | None]]:
    """Return the parents of two binary trees over 0..n-1 (None at a root); an inner rank of one is a leaf of the other.

    The first is the in-order tree of 1..n by lowest set bit, rank 0 above it; the second is its mirror image for an
    even number of ranks and shifted by one for an odd, in which case one rank is an inner one of both.
    """
    first = [_parent(rank, ranks) for rank in range(ranks)]
    if ranks % 2 == 0:
        mirrored = [first[ranks - 1 - rank] for rank in range(ranks)]
        return first, [None if parent is None else ranks - 1 - parent for parent in mirrored]
    shifted = [first[(rank - 1) % ranks] for rank in range(ranks)]
    return first, [None if parent is None else (parent + 1) % ranks for parent in shifted]


def _parent(rank: int, ranks: int) -> int | None:
    if rank == 0:
        return None
    bit = rank & -rank
    up = (rank ^ bit) | (bit << 1)
    return up if up < ranks else rank ^ bit


def _merged(shards: Iterable[tuple[int, int, int]]) -> Phase:
    """Sum the bytes of each edge."""
    total: dict[tuple[int, int], int] = {}
    for source, target, size in shards:
        total[source, target] = total.get((source, target), 0) + size
    return Phase([(source, target, size) for (source, target), size in total.items()])


def _around(circles: Sequence[Sequence[int]], sizes: Sequence[int], passes: int) -> Phase:
    """All rounds of some rings at once: in a pass of n - 1 rounds an edge carries every part of the message but one.

    The part that the rank at place i does not pass on is i + 1 in the first pass and i + 2 in the second.
    """
    shards: Shards = []
    for ring, size in zip(circles, sizes, strict=True):
        ranks, parts = len(ring), split(size, len(ring))
        shards += [
            (ring[i], ring[(i + 1) % ranks], passes * size - sum(parts[(i + 1 + k) % ranks] for k in range(passes)))
            for i in range(ranks)
        ]
    return _merged(shards)


def _ring(passes: int) -> Callable[[Nodes, int], list[Phase]]:
    def make(nodes: Nodes, size_bytes: int) -> list[Phase]:
        circles = rings(nodes)
        return [_around(circles, split(size_bytes, len(circles)), passes)]

    return make


def _chains(nodes: Nodes, size_bytes: int) -> list[Phase]:
    """Along every ring from the first device on, each with its part of the message, chunk behind chunk."""
    circles, root = rings(nodes), nodes[0][0]
    chains = [ring[ring.index(root) :] + ring[: ring.index(root)] for ring in circles]
    parts = split(size_bytes, len(chains))
    return [_merged((a, b, part) for chain, part in zip(chains, parts, strict=True) for a, b in pairwise(chain))]


def _direct(times: int, whole: bool = False) -> Callable[[Nodes, int], list[Phase]]:
    """All ranks to all others, 1/n of the message or the whole of it; `times` times."""

    def make(nodes: Nodes, size_bytes: int) -> list[Phase]:
        ranks = sum(map(len, nodes)) if whole else 1
        return [Phase([], exchange=Exchange(nodes, ranks * size_bytes))] * times

    return make


def _send(nodes: Nodes, size_bytes: int) -> list[Phase]:
    source, *others = [device for node in nodes for device in node]
    if len(others) != 1:
        raise ValueError(f"a send is between two devices, found {1 + len(others)}")
    return [Phase([(source, others[0], size_bytes)])]


def _columns(nodes: Nodes) -> Nodes:
    """Return the rails of an even group: the devices of one place on every node."""
    _even(nodes)
    return tuple(zip(*nodes, strict=True))


def _even(nodes: Nodes) -> None:
    if len({len(node) for node in nodes}) > 1:
        raise ValueError(f"needs as many ranks on every node, found {[len(node) for node in nodes]}")


def _hierarchical(order: str) -> Callable[[Nodes, int], list[Phase]]:
    """Rings inside every node (i), along every rail (r: one pass, R: two), in the order given."""

    def make(nodes: Nodes, size_bytes: int) -> list[Phase]:
        rails = _columns(nodes)
        found = []
        for what in order:
            if what == "i" and len(nodes[0]) > 1:
                found.append(_around(nodes, [size_bytes] * len(nodes), 1))
            elif what != "i" and len(nodes) > 1:
                found.append(_around(rails, split(size_bytes, len(rails)), 2 if what == "R" else 1))
        return found

    return make


def _relayed(together: bool) -> Callable[[Nodes, int], list[Phase]]:
    """Within each node, to the rank of the target's place; and from there along the rails."""

    def make(nodes: Nodes, size_bytes: int) -> list[Phase]:
        legs = [
            [shard for group in groups for shard in Exchange((group,), size_bytes).shards()]
            for groups in (nodes, _columns(nodes))
        ]
        if together:
            return [Phase(legs[0] + legs[1])]
        return [Phase(leg) for leg in legs if leg]

    return make


def _halving_doubling(nodes: Nodes, size_bytes: int) -> list[Phase]:
    """Exchange half with the neighbour, a quarter with the next but one and so on, and all the way back.

    At distance d = 2^k rank i still holds the parts whose lowest k bits are its own, and gives away those that differ
    from it in the next bit: every (2 d)-th part, from (i xor d) mod 2 d on.
    """
    _even(nodes)
    order = [device for node in nodes for device in node]
    ranks = len(order)
    if ranks & (ranks - 1):
        raise ValueError(f"halving and doubling needs a power of two ranks, found {ranks}")
    parts = split(size_bytes, ranks)
    found: list[Phase] = []
    distance = 1
    while distance < ranks:
        given = [sum(parts[start :: 2 * distance]) for start in range(2 * distance)]
        sent = [(order[i], order[i ^ distance], given[(i ^ distance) % (2 * distance)]) for i in range(ranks)]
        found.append(Phase(sent))
        distance *= 2
    back = [Phase([(target, source, size) for source, target, size in phase.shards]) for phase in reversed(found)]
    return found + back


def _tree(nodes: Nodes, size_bytes: int) -> list[Phase]:
    """Up a chain in each node, up and down two trees of the nodes' heads, down the chains; half on each tree.

    Across nodes as many such channels as ranks per node, each headed by another rank, share the message and the NICs.
    """
    _even(nodes)
    width = len(nodes[0])
    trees = two_trees(len(nodes))
    up: Shards = []
    for head, part in enumerate(split(size_bytes, width if len(nodes) > 1 else 1)):
        for node in nodes:
            up += [(b, a, part) for a, b in pairwise(node[head:] + node[:head])]
        for parents, half in zip(trees, split(part, 2), strict=True):
            up += [
                (nodes[child][head], nodes[parent][head], half)
                for child, parent in enumerate(parents)
                if parent is not None
            ]
    return [_merged(up + [(target, source, size) for source, target, size in up])]


def _in_switch(topology: Topology, nodes: Nodes, size_bytes: int, plane: str | None) -> Phase:
    """Each rank sends its message into the node's switch and the sum of its part again; as much comes back.

    Parts go round the rails in a ring between nodes.
    """
    _even(nodes)
    if len(nodes[0]) < 2:
        raise ValueError("needs two ranks or more on every node")
    halves: list[Half] = []
    for node in nodes:
        inside = size_bytes + -(-size_bytes // len(node))
        for place, device in enumerate(node):
            out = [path[:1] for path in topology.paths(device, node[place - 1], plane)]
            back = [path[-1:] for path in topology.paths(node[place - 1], device, plane)]
            halves += [Half(device, False, path, -(-inside // len(out))) for path in out]
            halves += [Half(device, True, path, -(-inside // len(back))) for path in back]
    rails = _columns(nodes)
    shards = _around(rails, split(size_bytes, len(rails)), 2).shards if len(nodes) > 1 else []
    return Phase(shards, tuple(halves))


_PHASES: Mapping[tuple[str, str], Callable[[Nodes, int], list[Phase]]] = {
    ("all_reduce", "ring"): _ring(2),
    ("all_reduce", "tree"): _tree,
    ("all_reduce", "halving_doubling"): _halving_doubling,
    ("all_reduce", "hierarchical"): _hierarchical("iRi"),
    ("all_reduce", "one_shot"): _direct(1, whole=True),
    ("all_reduce", "two_shot"): _direct(2),
    ("reduce_scatter", "ring"): _ring(1),
    ("reduce_scatter", "direct"): _direct(1),
    ("reduce_scatter", "hierarchical"): _hierarchical("ir"),
    ("all_gather", "ring"): _ring(1),
    ("all_gather", "direct"): _direct(1),
    ("all_gather", "hierarchical"): _hierarchical("ri"),
    ("broadcast", "ring"): _chains,
    ("all_to_all", "direct"): _direct(1),
    ("all_to_all", "hierarchical"): _relayed(together=False),
    ("all_to_all", "pxn"): _relayed(together=True),
    ("send_receive", "direct"): _send,
}
"""By operation and algorithm; an in-switch reduction needs the topology too."""
