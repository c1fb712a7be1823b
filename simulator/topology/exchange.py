"""Loads of an exchange in which each of many ends has bytes for each of many others, by classes of ends.

Model: ends that hang from the same switches are alike but for their own links, so that pairs of classes stand for pairs
of ends. Planes are tried in order, as routes are: what an earlier plane joins is a block of ends with no bytes left for
each other. Where a plane relays, bytes for another lane are handed over to the end that owns it, and go on as its own.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
from numpy.typing import NDArray

from simulator.topology.paths import Between
from simulator.topology.plane import Access, Plane
from simulator.topology.switch_loads import Floats, add_loads, components, kind

Integers = NDArray[np.int64]
Truths = NDArray[np.bool_]
Token = tuple[Hashable, str]
Pattern = Sequence[tuple[int, int, float]]
"""Ways out and in, by place, with the share of the paths between two ends that take them."""


@dataclass(frozen=True, slots=True)
class Demand:
    """`out[i]` times `into[j]` bytes from `ends[i]` to `ends[j]`, but none between ends of one block (numbered)."""

    ends: Integers
    out: Floats
    into: Floats
    block: Integers

    def part(self, at: Integers) -> "Demand":
        """Return the demand between some of the ends."""
        return Demand(self.ends[at], self.out[at], self.into[at], self.block[at])


class PairByPairError(Exception):
    """An exchange that classes do not describe; each pair has to be looked at."""


def exchange(
    planes: Sequence[Plane], lane: str | None, ends: Sequence[int], blocks: Sequence[int], loads: Floats
) -> None:
    """Add to `loads`, by link, one byte from each of `ends` to each other one, by the first plane that joins them.

    `blocks` numbers for each end those with which it exchanges nothing, itself at the least.
    Raises PairByPairError, with something added to `loads`, where classes do not tell, or some pair is apart.
    """
    one = np.ones(len(ends))
    demand = Demand(np.array(ends, np.int64), one, one, np.unique(np.array(blocks), return_inverse=True)[1])
    for plane in planes:
        block = _merged(demand.block, _serve(plane, lane, demand, loads))
        demand = replace(demand, block=np.unique(block, return_inverse=True)[1])
        if not demand.block.any():
            return
    raise PairByPairError


def _merged(block: Integers, joined: Integers) -> Integers:
    """Return the blocks of ends that have no bytes left for each other once those of one number have been joined.

    Raises PairByPairError where that is no matter of blocks: a block and what was joined overlap, neither in the other.
    """
    found, sizes = block.copy(), np.bincount(block)
    for members in _members(joined):
        inside = np.unique(block[members])
        if joined[members[0]] >= 0 and len(inside) > 1:
            if sizes[inside].sum() > len(members):
                raise PairByPairError
            found[members] = len(block) + joined[members[0]]
    return found


def _serve(plane: Plane, lane: str | None, demand: Demand, loads: Floats) -> Integers:
    """Add the loads of what `plane` carries and return a number for each end, equal for ends that it joins.

    It is -1 for an end that takes no part.
    """
    if plane.relay is not None:
        return _relay(plane, plane.relay, lane, demand, loads)
    joined = np.full(len(demand.ends), -1)
    for number, members in enumerate(_joined(plane, lane, demand.ends)):
        joined[members] = number
        _carry(plane, lane, demand.part(members), loads)
    return joined


def _relay(plane: Plane, relay: Plane, lane: str | None, demand: Demand, loads: Floats) -> Integers:
    """Add the loads of a plane with relays: bytes go to the owner of the target's lane, and by it to the target.

    With a lane asked for, they go to the target's owner, who hands over to it.
    """
    ends = demand.ends.tolist()
    if max(ends) >= len(plane.nodes):
        raise PairByPairError
    lanes = list(dict.fromkeys([lane] if lane is not None else [_own_lane(plane, end) for end in ends]))
    out: dict[int, float] = {}
    into: dict[int, float] = {}
    for end, sent, wanted in zip(ends, demand.out.tolist(), demand.into.tolist(), strict=True):
        for via in lanes:
            owner = _owner(plane, end, via)
            out[owner] = out.get(owner, 0.0) + sent
        last = end if lane is None else _owner(plane, end, lane)
        into[last] = into.get(last, 0.0) + wanted
    owners = list(out)
    if len({(plane.nodes[owner], _own_lane(plane, owner)) for owner in owners}) < len(owners):
        raise PairByPairError  # two of a node in one lane: which of them relays is not the same for all
    block_of = dict(zip((plane.nodes[end] for end in ends), demand.block.tolist(), strict=True))
    if any(block_of[plane.nodes[end]] != block for end, block in zip(ends, demand.block.tolist(), strict=True)):
        raise PairByPairError
    whole = Demand(
        np.array(owners),
        np.array([out[owner] for owner in owners]),
        np.array([into.get(owner, 0.0) for owner in owners]),
        np.array([block_of[plane.nodes[owner]] for owner in owners]),
    )
    groups = _joined(plane, lane, whole.ends)
    if len(groups) != len(lanes):
        raise PairByPairError
    to_take, to_send = (
        np.zeros(len(owners)),
        np.zeros(len(owners)),
    )  # what is beyond the node, in the lane of each owner
    for members in groups:
        part = whole.part(members)
        _carry(plane, lane, part, loads)
        to_take[members], to_send[members] = _outside(part.into, part.block), _outside(part.out, part.block)
    taking, sending = (dict(zip(owners, of.tolist(), strict=True)) for of in (to_take, to_send))
    _hand_over(relay, plane.nodes, dict(zip(ends, demand.out.tolist(), strict=True)), taking, loads)
    if lane is not None:
        _hand_over(relay, plane.nodes, sending, dict(zip(ends, demand.into.tolist(), strict=True)), loads)
    return np.zeros(len(ends), np.int64)


def _hand_over(
    relay: Plane, nodes: Sequence[int], out: dict[int, float], into: dict[int, float], loads: Floats
) -> None:
    """Add the loads of handing over within nodes, from each end to each other one."""
    ends = list(dict.fromkeys((*out, *into)))
    sending, taking = (np.array([of.get(end, 0.0) for end in ends]) for of in (out, into))
    demand = Demand(np.array(ends), sending, taking, np.arange(len(ends)))
    groups = _joined(relay, None, demand.ends)
    where = [{nodes[end] for end in demand.ends[members].tolist()} for members in groups]
    if any(len(node) > 1 for node in where) or len({node for group in where for node in group}) < len(groups):
        raise PairByPairError
    for members in groups:
        _carry(relay, None, demand.part(members), loads)


def _outside(amount: Floats, block: Integers) -> Floats:
    """Return for each end the amount of all ends outside its block."""
    number = np.unique(block, return_inverse=True)[1]
    return np.asarray(amount.sum() - np.bincount(number, amount)[number])


def _owner(plane: Plane, end: int, lane: str) -> int:
    owner = plane.owner(end, lane)
    if owner is None:
        raise PairByPairError
    return owner


def _own_lane(plane: Plane, end: int) -> str:
    if len(plane.access[end]) != 1:
        raise PairByPairError
    return plane.access[end][0].lane


def _joined(plane: Plane, lane: str | None, ends: Integers) -> list[Integers]:
    """Return the places in `ends` of those that the plane joins with each other, group by group.

    Ends that take no part are in none; those of one group have a lane of a part of the network in common.
    """
    component = components(plane.between)
    if component is None:
        raise PairByPairError
    merged: dict[Token, Token] = {}
    tokens = []
    for end in ends.tolist():
        own = [(component(way.switch), way.lane) for way in _ways(plane, lane, end)]
        roots = [_root(merged, token) for token in own]
        for root in roots[1:]:
            merged[_root(merged, root)] = _root(merged, roots[0])
        tokens.append(own)
    groups: dict[Token, list[int]] = {}
    for at, own in enumerate(tokens):
        if own:
            groups.setdefault(_root(merged, own[0]), []).append(at)
    for members in groups.values():
        if not frozenset.intersection(*(frozenset(tokens[at]) for at in members)):
            raise PairByPairError
    return [np.array(members) for members in groups.values()]


def _root(merged: dict[Token, Token], token: Token) -> Token:
    while token in merged and merged[token] != token:
        token = merged[token]
    return token


def _ways(plane: Plane, lane: str | None, end: int) -> Sequence[Access]:
    ways = plane.access[end]
    return ways if lane is None else [way for way in ways if way.lane == lane]


def _carry(plane: Plane, lane: str | None, demand: Demand, loads: Floats) -> None:
    """Add the loads of a demand between ends that are all joined."""
    ways = [_ways(plane, lane, end) for end in demand.ends.tolist()]
    found: dict[object, int] = {}
    samples: list[Sequence[Access]] = []
    places = []
    for own in ways:
        shape = tuple((way.switch, way.lane, len(way.outward), len(way.inward)) for way in own)
        if shape not in found:
            found[shape] = len(samples)
            samples.append(own)
        places.append(found[shape])
    group = _Group(plane.between, demand, ways, np.array(places), samples)
    group.single(loads) if all(len(own) == 1 for own in ways) else group.several(loads)


@dataclass(frozen=True, slots=True)
class _Group:
    """Ends that are all joined: the ways of each, the class of each, and the ways of one of each class."""

    between: Between
    demand: Demand
    ways: Sequence[Sequence[Access]]
    place: Integers
    samples: Sequence[Sequence[Access]]

    def single(self, loads: Floats) -> None:
        """Add the loads where every end has one way."""
        demand = self.demand
        rows = demand.out * _outside(demand.into, demand.block)
        columns = demand.into * _outside(demand.out, demand.block)
        _add_links([own[0].outward for own in self.ways], rows, loads)
        _add_links([own[0].inward for own in self.ways], columns, loads)
        if len(self.samples) > 1:
            switches = [own[0].switch for own in self.samples]
            add_loads(self.between, switches, switches, self._of_classes(), loads)

    def _of_classes(self) -> Floats:
        """Return the bytes from each class to each: all of them, less those within blocks."""
        classes, demand = len(self.samples), self.demand
        whole = np.outer(*(np.bincount(self.place, each, classes) for each in (demand.out, demand.into)))
        number = np.unique(demand.block, return_inverse=True)[1]
        keys, of = np.unique(number * classes + self.place, return_inverse=True)
        blocks, places = np.divmod(keys, classes)
        out, into = (np.bincount(of, each) for each in (demand.out, demand.into))
        alone = np.bincount(blocks)[blocks] == 1
        np.subtract.at(whole, (places[alone], places[alone]), out[alone] * into[alone])
        for members in _members(np.where(alone, -1, blocks)):
            if not alone[members[0]]:
                cells = places[members]
                whole[np.ix_(cells, cells)] -= np.outer(out[members], into[members])
        return np.asarray(whole)

    def several(self, loads: Floats) -> None:
        """Add the loads where ends have several ways: which of them are shortest depends on the switches in common."""
        demand, classes = self.demand, len(self.samples)
        rows = demand.out[:, None] * self._outside_by_class(demand.into)
        columns = demand.into[:, None] * self._outside_by_class(demand.out)
        apart = np.ones((classes, classes), bool)
        of_switch: dict[str, list[int]] = {}
        kinds: dict[object, list[int]] = {}
        for at, own in enumerate(self.samples):
            shape = tuple((kind(self.between, w.switch), w.lane, len(w.outward), len(w.inward)) for w in own)
            kinds.setdefault(shape, []).append(at)
            for switch in dict.fromkeys(way.switch for way in own):
                of_switch.setdefault(switch, []).append(at)
        for sharing in of_switch.values():
            apart[np.ix_(np.array(sharing), np.array(sharing))] = False
        for left, right in product(map(np.array, kinds.values()), repeat=2):
            self._deliver(left, right, apart[np.ix_(left, right)], rows, columns, loads)
        for left_one, right_one in np.argwhere(~apart):
            one = np.ones((1, 1), bool)
            self._deliver(np.array([left_one]), np.array([right_one]), one, rows, columns, loads)

    def _outside_by_class(self, amount: Floats) -> Floats:
        """Return for each end, by class, the amount of the ends outside its block."""
        number = np.unique(self.demand.block, return_inverse=True)[1]
        inside = np.zeros((int(number.max()) + 1, len(self.samples)))
        np.add.at(inside, (number, self.place), amount)
        return np.asarray(inside.sum(axis=0) - inside[number])

    def _deliver(
        self, left: Integers, right: Integers, chosen: Truths, rows: Floats, columns: Floats, loads: Floats
    ) -> None:
        """Add the loads of the `chosen` pairs of classes, whose ends all take the same of their ways to each other."""
        if not chosen.any():
            return
        first, second = np.argwhere(chosen)[0]
        sending, sent, amounts = self._chosen(left, right, chosen, rows)
        taking, taken, _ = self._chosen(right, left, chosen.T, columns)
        for out, back, share in self._pattern(self.samples[left[first]], self.samples[right[second]]):
            switches = [self.samples[at][out].switch for at in left], [self.samples[at][back].switch for at in right]
            add_loads(self.between, *switches, amounts * share, loads)
            _add_links([self.ways[at][out].outward for at in sending], sent * share, loads)
            _add_links([self.ways[at][back].inward for at in taking], taken * share, loads)

    def _chosen(
        self, own: Integers, others: Integers, chosen: Truths, amounts: Floats
    ) -> tuple[list[int], Floats, Floats]:
        """Return the ends of the classes `own`, their amounts for the chosen of `others`, and the sums by both."""
        at = np.full(len(self.samples), -1)
        at[own] = range(len(own))
        ends = np.nonzero(at[self.place] >= 0)[0]
        places = at[self.place[ends]]
        held = np.where(chosen[places], amounts[np.ix_(ends, others)], 0.0)
        sums = np.zeros(chosen.shape)
        np.add.at(sums, places, held)
        return ends.tolist(), held.sum(axis=1), sums

    def _pattern(self, outs: Sequence[Access], ins: Sequence[Access]) -> Pattern:
        found = []
        for (i, out), (j, back) in product(enumerate(outs), enumerate(ins)):
            middles = self.between(out.switch, back.switch) if out.lane == back.lane else None
            if middles is not None:
                found.append((i, j, len(out.outward) + len(middles[0]) + len(back.inward), len(middles)))
        if not found:
            raise PairByPairError
        least = min(hops for *_, hops, _ in found)
        paths = sum(count for *_, hops, count in found if hops == least)
        return [(i, j, count / paths) for i, j, hops, count in found if hops == least]


def _add_links(paths: Sequence[Sequence[int]], amounts: Floats, loads: Floats) -> None:
    """Add to each link of each path its amount."""
    counts = [len(path) for path in paths]
    np.add.at(loads, [link for path in paths for link in path], np.repeat(amounts, counts))


def _members(numbers: Integers) -> list[Integers]:
    """Return the places of each number."""
    order = np.argsort(numbers, kind="stable")
    return np.split(order, np.nonzero(np.diff(numbers[order]))[0] + 1)
