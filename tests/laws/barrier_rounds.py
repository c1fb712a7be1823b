"""The slow twin of the phases: every round of a collective by itself, each after the last byte of the one before.

Source: Patarasuk, Yuan 2009 (ring); Rabenseifner 2004 (halving, doubling); Sanders, Speck, Traeff 2009 (two trees).
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

from simulator.network.collectives_phases import rings, split, two_trees
from simulator.network.collectives_shape import Nodes

Round = list[tuple[int, int, int]]
"""Shards (source device, target device, bytes) that start together."""


def steps(operation: str, algorithm: str, nodes: Nodes, size_bytes: int) -> list[Round]:
    """Return the rounds of one collective on devices given node by node; none for one device.

    Sizes are counted as in `Collectives.choose`; every byte is in exactly one shard. A broadcast starts at the first
    device of the first node, a send goes from there to the other. Raises ValueError for what has no flow form (an
    in-switch reduction is no flow between devices) and for a group that the algorithm does not suit.
    """
    make = _STEPS.get((operation, algorithm))
    if make is None:
        raise ValueError(f"{operation} by {algorithm} has no flow form")
    if sum(len(node) for node in nodes) == 1:
        return []
    return make(nodes, size_bytes)


def _ring_rounds(passes: int) -> Callable[[Nodes, int], list[Round]]:
    def make(nodes: Nodes, size_bytes: int) -> list[Round]:
        circles = rings(nodes)
        ranks = len(circles[0])
        parts = [split(part, ranks) for part in split(size_bytes, len(circles))]
        return [
            [
                (device, ring[(place + 1) % ranks], part[(place - step) % ranks])
                for ring, part in zip(circles, parts, strict=True)
                for place, device in enumerate(ring)
            ]
            for step in range(passes * (ranks - 1))
        ]

    return make


def _chains(nodes: Nodes, size_bytes: int) -> list[Round]:
    """Along every ring from the first device on, each with its part of the message."""
    circles = rings(nodes)
    root = nodes[0][0]
    chains = [ring[ring.index(root) :] + ring[: ring.index(root)] for ring in circles]
    parts = split(size_bytes, len(chains))
    return [
        [(chain[at], chain[at + 1], part) for chain, part in zip(chains, parts, strict=True)]
        for at in range(len(chains[0]) - 1)
    ]


def _pairwise(phases: int) -> Callable[[Nodes, int], list[Round]]:
    """All ranks to all others, 1/n of the message each; `phases` times."""

    def make(nodes: Nodes, size_bytes: int) -> list[Round]:
        order = [device for node in nodes for device in node]
        parts = split(size_bytes, len(order))
        one = [(a, b, parts[i]) for a in order for i, b in enumerate(order) if a != b]
        return [one] * phases

    return make


def _whole_to_all(nodes: Nodes, size_bytes: int) -> list[Round]:
    order = [device for node in nodes for device in node]
    return [[(a, b, size_bytes) for a in order for b in order if a != b]]


def _send(nodes: Nodes, size_bytes: int) -> list[Round]:
    source, *others = [device for node in nodes for device in node]
    if len(others) != 1:
        raise ValueError(f"a send is between two devices, found {1 + len(others)}")
    return [[(source, others[0], size_bytes)]]


def _columns(nodes: Nodes) -> Nodes:
    """Return the rails of an even group: the devices of one place on every node."""
    _even(nodes)
    return tuple(zip(*nodes, strict=True))


def _even(nodes: Nodes) -> None:
    if len({len(node) for node in nodes}) > 1:
        raise ValueError(f"needs as many ranks on every node, found {[len(node) for node in nodes]}")


def _together(groups: Sequence[list[Round]]) -> list[Round]:
    """Run the like rounds of several equal groups at once."""
    return [[shard for part in parts for shard in part] for parts in zip(*groups, strict=True)]


def _along(groups: Nodes, passes: int, sizes: Sequence[int]) -> list[Round]:
    """Run one ring in each group at once, on a message of its own size."""
    if len(groups[0]) == 1:
        return []
    ring = _ring_rounds(passes)
    return _together([ring((group,), size) for group, size in zip(groups, sizes, strict=True)])


def _hierarchical_all_reduce(nodes: Nodes, size_bytes: int) -> list[Round]:
    rails = _columns(nodes)
    inside = _along(nodes, 1, [size_bytes] * len(nodes))
    return [*inside, *_along(rails, 2, split(size_bytes, len(rails))), *inside]


def _hierarchical_reduce_scatter(nodes: Nodes, size_bytes: int) -> list[Round]:
    rails = _columns(nodes)
    return [*_along(nodes, 1, [size_bytes] * len(nodes)), *_along(rails, 1, split(size_bytes, len(rails)))]


def _hierarchical_all_gather(nodes: Nodes, size_bytes: int) -> list[Round]:
    rails = _columns(nodes)
    return [*_along(rails, 1, split(size_bytes, len(rails))), *_along(nodes, 1, [size_bytes] * len(nodes))]


def _relayed_all_to_all(nodes: Nodes, size_bytes: int) -> list[Round]:
    """Within each node, to the rank of the target's place; then along the rails."""
    rails = _columns(nodes)
    return _together([_pairwise(1)((node,), size_bytes) for node in nodes if len(node) > 1]) + _together(
        [_pairwise(1)((rail,), size_bytes) for rail in rails if len(rail) > 1]
    )


def _halving_doubling(nodes: Nodes, size_bytes: int) -> list[Round]:
    """Exchange half with the neighbour, a quarter with the next but one and so on, and all the way back."""
    _even(nodes)
    order = [device for node in nodes for device in node]
    ranks = len(order)
    if ranks & (ranks - 1):
        raise ValueError(f"halving and doubling needs a power of two ranks, found {ranks}")
    parts = split(size_bytes, ranks)
    halving: list[Round] = []
    held = [list(range(ranks)) for _ in order]
    distance = 1
    while distance < ranks:
        kept = [[part for part in held[i] if (part ^ i) & distance == 0] for i in range(ranks)]
        halving.append(
            [
                (order[i], order[i ^ distance], sum(parts[part] for part in held[i] if (part ^ i) & distance))
                for i in range(ranks)
            ]
        )
        held, distance = kept, 2 * distance
    return halving + [[(target, source, size) for source, target, size in round_] for round_ in halving[::-1]]


def _tree(nodes: Nodes, size_bytes: int) -> list[Round]:
    """Up a chain in each node, up and down two trees of the nodes' heads, down the chains; half on each tree.

    Across nodes as many such channels as ranks per node, each headed by another rank, share the message and the NICs.
    """
    _even(nodes)
    up: dict[int, Round] = {}
    width = len(nodes[0])
    for head, part in enumerate(split(size_bytes, width if len(nodes) > 1 else 1)):
        turned = [node[head:] + node[:head] for node in nodes]
        for chain in turned:
            for at, (a, b) in enumerate(pairwise(chain)):
                up.setdefault(width - 2 - at, []).append((b, a, part))
        for parents, half in zip(two_trees(len(nodes)), split(part, 2), strict=True):
            for child, parent in enumerate(parents):
                if parent is not None:
                    level = width - 1 + len(nodes) - _depth(child, parents)  # the deepest first
                    up.setdefault(level, []).append((turned[child][0], turned[parent][0], half))
    rounds = [up[level] for level in sorted(up)]
    return rounds + [[(target, source, size) for source, target, size in round_] for round_ in rounds[::-1]]


def _depth(rank: int, parents: Sequence[int | None]) -> int:
    depth, above = 0, parents[rank]
    while above is not None:
        depth, above = depth + 1, parents[above]
    return depth


_STEPS: Mapping[tuple[str, str], Callable[[Nodes, int], list[Round]]] = {
    ("all_reduce", "ring"): _ring_rounds(2),
    ("all_reduce", "tree"): _tree,
    ("all_reduce", "halving_doubling"): _halving_doubling,
    ("all_reduce", "hierarchical"): _hierarchical_all_reduce,
    ("all_reduce", "one_shot"): _whole_to_all,
    ("all_reduce", "two_shot"): _pairwise(2),
    ("reduce_scatter", "ring"): _ring_rounds(1),
    ("reduce_scatter", "direct"): _pairwise(1),
    ("reduce_scatter", "hierarchical"): _hierarchical_reduce_scatter,
    ("all_gather", "ring"): _ring_rounds(1),
    ("all_gather", "direct"): _pairwise(1),
    ("all_gather", "hierarchical"): _hierarchical_all_gather,
    ("broadcast", "ring"): _chains,
    ("all_to_all", "direct"): _pairwise(1),
    ("all_to_all", "hierarchical"): _relayed_all_to_all,
    ("all_to_all", "pxn"): _relayed_all_to_all,
    ("send_receive", "direct"): _send,
}
