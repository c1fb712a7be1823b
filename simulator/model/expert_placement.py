"""Which rank holds which expert: in order, or balanced by load with copies of the hottest; and what a change moves.

Source: the balancer of DeepSeek's deployments (EPLB, described with DeepSeek-V3, arXiv:2412.19437, 3.4): copies go to
the expert with the largest load per copy, groups of experts are packed onto nodes, copies onto the ranks of a node;
each packing is greedy, the heaviest first onto the lightest with room (Graham 1969).
"""

from collections import Counter
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from simulator.model.expert_group import Group

Floats = NDArray[np.float64]
Whole = NDArray[np.int64]


class Move(NamedTuple):
    """So many experts of one layer each that one rank sends to another."""

    source: int
    target: int
    experts: int


def contiguous(layers: int, experts: int, shared_copies: int, group: Group) -> Whole:
    """Return experts in order, rank by rank, then copies from the first on, then those of the shared expert.

    A placement is an array of layers x ranks x slots that names an expert; the shared one comes after all routed.
    """
    total = group.ranks * group.slots
    routed = np.arange(total - shared_copies) % experts
    order = np.concatenate([routed, np.full(shared_copies, experts)])
    return np.tile(order.reshape(group.ranks, group.slots), (layers, 1, 1))


def balanced(load: Floats, shared_copies: int, group: Group, expert_groups: int = 1) -> Whole:
    """Return a placement that spreads `load` (layers x routed experts) evenly, as the greedy balancer does.

    Where the groups of experts divide evenly among the nodes each node gets whole ones and copies its own experts, so
    that tokens whose experts lie in few groups go to few nodes; else experts go anywhere.
    """
    layers, experts = load.shape
    nodes = group.nodes
    if expert_groups % nodes or experts % expert_groups or shared_copies % nodes:
        nodes = 1
    by_group = load.reshape(layers, expert_groups if nodes > 1 else 1, -1)
    node_of_group = pack(by_group.sum(axis=2), nodes, by_group.shape[1] // nodes)
    ranks, here = group.ranks // nodes, experts // nodes
    slots = ranks * group.slots
    placed = np.empty((layers, group.ranks, group.slots), dtype=np.int64)
    rows = np.arange(layers)[:, None]
    for node in range(nodes):
        groups = np.nonzero(node_of_group == node)[1].reshape(layers, -1)
        size = experts // by_group.shape[1]
        members = (groups[:, :, None] * size + np.arange(size)).reshape(layers, here)
        copies = replicate(load[rows, members], slots - shared_copies // nodes)
        expert, weight = _instances(members, load[rows, members], copies)
        if shared_copies:
            # every token goes to a copy of the shared expert, each of which takes its part of them
            more = (layers, shared_copies // nodes)
            expert = np.concatenate([expert, np.full(more, experts)], axis=1)
            weight = np.concatenate([weight, np.full(more, 1 / shared_copies)], axis=1)
        rank_of = pack(weight, ranks, group.slots)
        order = np.argsort(rank_of, axis=1, kind="stable")
        placed[:, node * ranks : (node + 1) * ranks] = expert[rows, order].reshape(layers, ranks, group.slots)
    return placed


def _instances(members: Whole, load: Floats, copies: Whole) -> tuple[Whole, Floats]:
    """Return the expert and the load of every copy."""
    expert = np.stack([np.repeat(members[i], copies[i]) for i in range(len(members))])
    weight = np.stack([np.repeat(load[i] / copies[i], copies[i]) for i in range(len(members))])
    return expert, weight


def replicate(load: Floats, total: int) -> Whole:
    """Return how many copies each expert has, `total` in a layer: one each, the rest where a copy's load is largest."""
    copies = np.ones(load.shape, dtype=np.int64)
    rows = np.arange(len(load))
    for _ in range(total - load.shape[1]):
        copies[rows, np.argmax(load / copies, axis=1)] += 1
    return copies


def pack(weights: Floats, packs: int, room: int) -> Whole:
    """Return the pack of each item, layer by layer: the heaviest first, each to the lightest pack with room."""
    layers, items = weights.shape
    found = np.zeros((layers, items), dtype=np.int64)
    if packs == 1:
        return found
    order = np.argsort(-weights, axis=1, kind="stable")
    filled, loads = np.zeros((layers, packs), dtype=np.int64), np.zeros((layers, packs))
    rows = np.arange(layers)
    for place in range(items):
        item = order[:, place]
        chosen = np.argmin(np.where(filled < room, loads, np.inf), axis=1)
        found[rows, item] = chosen
        loads[rows, chosen] += weights[rows, item]
        filled[rows, chosen] += 1
    return found


def copies_of(placement: Whole, experts: int) -> Whole:
    """Return how many copies each of `experts` experts has in each layer."""
    layers = len(placement)
    at = placement.reshape(layers, -1) + experts * np.arange(layers)[:, None]
    return np.bincount(at.ravel(), minlength=layers * experts).reshape(layers, experts)


def settled(before: Whole, after: Whole, group: Group) -> Whole:
    """Return a new placement with its ranks renamed so that more experts stay where they are; loads do not change.

    Nodes are renamed first, then the ranks of each: those that have most in common find each other first.
    """
    found = np.empty_like(after)
    experts = int(max(before.max(), after.max())) + 1
    for layer, (old, new) in enumerate(zip(before, after, strict=True)):
        here = _named(old.reshape(group.nodes, -1), new.reshape(group.nodes, -1), experts)
        old, new = old.reshape(group.nodes, -1, group.slots), new.reshape(group.nodes, -1, group.slots)[here]
        rows = [new[node][_named(old[node], new[node], experts)] for node in range(group.nodes)]
        found[layer] = np.concatenate(rows)
    return found if _lacking(before, found) < _lacking(before, after) else after


def _named(old: Whole, new: Whole, experts: int) -> Whole:
    """Return, for each place of `old`, the row of `new` that goes there: pairs with most in common first."""
    places = len(old)
    if places == 1:
        return np.zeros(1, dtype=np.int64)
    had, wants = (np.zeros((places, experts), dtype=np.float32) for _ in range(2))
    np.put_along_axis(had, old, 1, axis=1)
    np.put_along_axis(wants, new, 1, axis=1)
    common = (had @ wants.T).astype(np.int64)
    found, free = np.full(places, -1, dtype=np.int64), np.ones(places, dtype=bool)
    pairs = np.flatnonzero(common)
    for pair in pairs[np.argsort(-common.ravel()[pairs], kind="stable")].tolist():
        place, row = divmod(pair, places)
        if found[place] < 0 and free[row]:
            found[place], free[row] = row, False
    found[found < 0] = np.flatnonzero(free)
    return found


def _lacking(before: Whole, after: Whole) -> int:
    """Return how many experts are on ranks that did not have them."""
    return sum(
        len(set(wants) - set(had))
        for old, new in zip(before.tolist(), after.tolist(), strict=True)
        for had, wants in zip(old, new, strict=True)
    )


def moves(before: Whole, after: Whole, ranks_per_node: int) -> list[Move]:
    """Return what ranks must send each other for a new placement, in order of source and target.

    An expert comes from a rank that held it: of those on the same node, else of all, the one that has sent least.
    """
    sent: Counter[int] = Counter()
    pairs: Counter[tuple[int, int]] = Counter()
    for old, new in zip(before, after, strict=True):
        holders: dict[int, list[int]] = {}
        for rank, row in enumerate(old.tolist()):
            for expert in dict.fromkeys(row):
                holders.setdefault(expert, []).append(rank)
        for target, (had, wants) in enumerate(zip(old.tolist(), new.tolist(), strict=True)):
            for expert in dict.fromkeys(wants):
                if expert in had:
                    continue
                node = target // ranks_per_node
                near = [rank for rank in holders[expert] if rank // ranks_per_node == node] or holders[expert]
                source = min(near, key=lambda rank: (sent[rank], rank))
                sent[source] += 1
                pairs[source, target] += 1
    return [Move(source, target, count) for (source, target), count in sorted(pairs.items())]
