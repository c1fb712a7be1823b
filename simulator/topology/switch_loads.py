"""Loads of the links between switches when bytes from each of many to each of many others go over all shortest paths.

Model: equal-cost paths are all taken alike, so bytes may be summed wherever they go on in the same way: by what two
groups of switches climb to (Clos), by the target (any graph; Brandes 2001), by the way still to go (torus, where of r
steps left in any order the next is along an axis in proportion to its steps), by the pair of groups (Dragonfly).
"""

from collections.abc import Callable, Hashable, Sequence
from itertools import product
from math import prod

import numpy as np
from numpy.typing import NDArray

from simulator.topology.direct import Minimal, TorusHops
from simulator.topology.paths import Above, Between, UpDown, same_switch
from simulator.topology.search import FewestHops
from simulator.topology.weights import spread

Floats = NDArray[np.float64]
Component = Callable[[str], Hashable]
"""A switch to what it hangs together with: two switches are joined where it is the same."""

DENSE_VERTICES = 2_048  # of a graph whose distances are held as a matrix


def components(between: Between) -> Component | None:
    """Return what tells which switches `between` joins, or None where only asking for each pair does."""
    if between is same_switch:
        return lambda switch: switch
    if isinstance(between, UpDown):
        neighbours: dict[str, list[str]] = {}
        for lower, climbs in between.climbs.items():
            for climb in climbs:
                neighbours.setdefault(lower, []).append(climb.switch)
                neighbours.setdefault(climb.switch, []).append(lower)
        for left, right in between.peers:
            neighbours.setdefault(left, []).append(right)
        return _connected(neighbours)
    if isinstance(between, FewestHops):
        there = {place: [near for near, _ in edges] for place, edges in between.out.items()}
        back = {place: sorted(nears) for place, nears in between.into.items()}
        if any(sorted(there.get(place, [])) != back.get(place, []) for place in (*there, *back)):
            return None  # one way: a path there does not mean one back
        return _connected(there)
    return (lambda switch: 0) if isinstance(between, Minimal) else None


def _connected(neighbours: dict[str, list[str]]) -> Component:
    found: dict[str, int] = {}
    for first in neighbours:
        waiting = [] if first in found else [first]
        number = found.setdefault(first, len(found))
        while waiting:
            for near in neighbours[waiting.pop()]:
                if near not in found:
                    found[near] = number
                    waiting.append(near)
    return lambda switch: found.get(switch, switch)


def kind(between: Between, switch: str) -> Hashable:
    """Return what is equal for switches that have equally many, equally long paths to any third one."""
    if not isinstance(between, UpDown) or switch in between.peered:
        return switch
    return between.above(switch).shape


def add_loads(between: Between, sources: Sequence[str], targets: Sequence[str], demand: Floats, loads: Floats) -> None:
    """Add to `loads`, by link, `demand[i, j]` bytes from source i to target j; what stays on a switch loads nothing.

    `demand` may be overwritten, for it is large where there are many switches. Raises ValueError where nothing joins
    two switches that have bytes for each other.
    """
    if between is same_switch:
        return
    sources, demand = _merged(sources, demand)
    targets, turned = _merged(targets, demand.T)
    demand = turned.T
    row = {name: at for at, name in enumerate(sources)}
    own = [(row[name], at) for at, name in enumerate(targets) if name in row]
    demand[[i for i, _ in own], [j for _, j in own]] = 0.0
    if not demand.any():
        return
    if isinstance(between, UpDown):
        _climb(between, sources, targets, demand, loads)
    elif isinstance(between, TorusHops):
        _walk_torus(between, sources, targets, demand, loads)
    elif isinstance(between, Minimal):
        _cross_groups(between, sources, targets, demand, loads)
    elif isinstance(between, FewestHops) and len(between.out) <= DENSE_VERTICES:
        _walk_graph(between, sources, targets, demand, loads)
    else:
        _pair_by_pair(between, sources, targets, demand, loads)


def _merged(names: Sequence[str], demand: Floats) -> tuple[Sequence[str], Floats]:
    """Return each name once, and the rows of each summed."""
    places = {name: at for at, name in enumerate(dict.fromkeys(names))}
    if len(places) == len(names):
        return names, demand
    summed = np.zeros((len(places), demand.shape[1]))
    np.add.at(summed, [places[name] for name in names], demand)
    return list(places), summed


def _pair_by_pair(
    between: Between, sources: Sequence[str], targets: Sequence[str], demand: Floats, loads: Floats
) -> None:
    shares = []
    for i, j in zip(*(at.tolist() for at in np.nonzero(demand)), strict=True):
        paths = between(sources[i], targets[j])
        if paths is None:
            raise ValueError(f"no path joins {sources[i]} and {targets[j]}")
        shares.append((paths, float(demand[i, j])))
    for link, load in spread(shares).items():
        loads[link] += load


def _climb(between: UpDown, sources: Sequence[str], targets: Sequence[str], demand: Floats, loads: Floats) -> None:
    """Take bytes up from the sources and down to the targets, and what goes on between their upper switches anew."""
    pending: dict[tuple[str, str], float] = {}
    for rows, cells in product(_by_kind(between, sources), _by_kind(between, targets)):
        block = demand[np.ix_(rows, cells)]
        if not block.any():
            continue
        left, right = [sources[at] for at in rows], [targets[at] for at in cells]
        rising, falling = [between.above(name) for name in left], [between.above(name) for name in right]
        meetings = between.meetings(rising[0], falling[0])
        if not meetings.pairs or left[0] in between.peered:
            _pair_by_pair(between, left, right, block, loads)
            continue
        outward, inward = dict.fromkeys(rising[0].ways, 0.0), dict.fromkeys(falling[0].ways, 0.0)
        total = float(block.sum())
        for (a, b, _), share in zip(meetings.pairs, meetings.shares(), strict=True):
            outward[a] += share
            inward[b] += share
            if a != b:
                pending[a, b] = pending.get((a, b), 0.0) + total * share
        _add_cables(rising, outward, 0, block.sum(axis=1), loads)
        _add_cables(falling, inward, 1, block.sum(axis=0), loads)
    if pending:
        upper, lower = (list(dict.fromkeys(pair[side] for pair in pending)) for side in (0, 1))
        rest = np.array([[pending.get((a, b), 0.0) for b in lower] for a in upper])
        _climb(between, upper, lower, rest, loads)


def _by_kind(between: UpDown, switches: Sequence[str]) -> list[list[int]]:
    found: dict[Hashable, list[int]] = {}
    for at, switch in enumerate(switches):
        found.setdefault(kind(between, switch), []).append(at)
    return list(found.values())


def _add_cables(
    aboves: Sequence[Above],
    shares: dict[str, float],
    side: int,
    load: Floats,
    loads: Floats,
) -> None:
    """Spread each switch's load over its cables to each upper switch, of which `shares` go to this one."""
    for upper, share in shares.items():
        cables = np.array([[path[0] for path in above.ways[upper][side]] for above in aboves])
        np.add.at(loads, cables, (load * share / cables.shape[1])[:, None])


def _walk_graph(
    between: FewestHops, sources: Sequence[str], targets: Sequence[str], demand: Floats, loads: Floats
) -> None:
    """Count hops and paths to all targets at once, and hand bytes on from the farthest to the nearest."""
    order = {name: at for at, name in enumerate(dict.fromkeys((*between.out, *between.into, *sources, *targets)))}
    edges = [(order[place], order[near], link) for place, nears in between.out.items() for near, link in nears]
    tails, heads, links = (np.array(column) for column in zip(*edges, strict=True))
    joined = np.zeros((len(order), len(order)))
    np.add.at(joined, (tails, heads), 1.0)
    ways = np.zeros((len(order), len(targets)))
    ways[[order[name] for name in targets], range(len(targets))] = 1.0
    hops = np.where(ways > 0, 0, -1)
    for farthest in range(len(order)):
        reached = np.where(hops < 0, joined @ np.where(hops == farthest, ways, 0.0), 0.0)
        if not reached.any():
            break
        ways += reached
        hops[reached > 0] = farthest + 1
    held = np.zeros_like(ways)
    held[[order[name] for name in sources]] = demand
    if held[hops < 0].any():
        raise ValueError("no path joins some of the vertices that have bytes for each other")
    for left in range(int(hops.max()), 0, -1):
        each = np.divide(held, ways, out=np.zeros_like(held), where=hops == left)
        nearer = np.where(hops == left - 1, ways, 0.0)
        loads[links] += (each @ nearer.T)[tails, heads]
        held += nearer * (joined.T @ each)


def _walk_torus(
    between: TorusHops, sources: Sequence[str], targets: Sequence[str], demand: Floats, loads: Floats
) -> None:
    """Hand bytes on by the steps that are left: all that have equally far to go along each dimension move alike."""
    sizes, number = between.sizes, {name: at for at, name in enumerate(between.routers)}
    row, column, sends, takes = (np.zeros(len(number), kind) for kind in (np.int64, np.int64, np.float64, np.float64))
    for names, place, has in ((sources, row, sends), (targets, column, takes)):
        at = [number[name] for name in names]
        place[at], has[at] = range(len(at)), 1.0
    row, sends, links = row.reshape(sizes), sends.reshape(sizes), _torus_links(between)
    # the number of the router so many steps on along an axis, as far as that axis tells
    parts = [
        {step: (place + step) % size * prod(sizes[axis + 1 :]) for step in range(-size, size + 1)}
        for axis, (place, size) in enumerate(zip(np.indices(sizes), sizes, strict=True))
    ]
    held: dict[tuple[int, ...], Floats] = {}
    ways = [range(-(size // 2) if size > 2 else 0, size // 2 + 1) for size in sizes]
    for left in sorted(product(*ways), key=lambda left: -sum(map(abs, left))):
        ends = sum(part[step] for part, step in zip(parts, left, strict=True))
        # half a ring is as far in both directions
        ties = sum(size > 2 and 2 * abs(step) == size for step, size in zip(left, sizes, strict=True))
        here = demand[row, column[ends]] * (sends * takes[ends] / 2**ties) + held.pop(left, 0.0)
        if not here.any():
            continue
        for axis, step in enumerate(left):
            if step:
                toward = 1 if step > 0 else -1
                part = here * (abs(step) / sum(map(abs, left)))
                loads[links[axis, toward]] += part
                after = (*left[:axis], step - toward, *left[axis + 1 :])
                held[after] = held.get(after, 0.0) + np.roll(part, toward, axis)


def _torus_links(between: TorusHops) -> dict[tuple[int, int], NDArray[np.int64]]:
    """Return the links from all routers along an axis, one way, in the shape of the torus."""
    first = {(place, near): link for place, nears in between.out.items() for near, link in nears}
    names = np.array(between.routers).reshape(between.sizes)
    found = {}
    for axis, toward in product(range(len(between.sizes)), (1, -1)):
        ends = zip(names.flat, np.roll(names, -toward, axis).flat, strict=True)
        found[axis, toward] = np.array([first[str(a), str(b)] for a, b in ends]).reshape(between.sizes)
    return found


def _cross_groups(
    between: Minimal, sources: Sequence[str], targets: Sequence[str], demand: Floats, loads: Floats
) -> None:
    """Send the bytes of two groups over the cables between them that are nearest to each pair of routers."""
    rows, columns = (_by_group(between, names) for names in (sources, targets))
    for (here, left), (there, right) in product(rows.items(), columns.items()):
        block = demand[np.ix_(left, right)]
        ends = [sources[at] for at in left], [targets[at] for at in right]
        if here == there:
            _within(between, *ends, block, loads)
            continue
        cables = between.across.get((here, there), ())
        if not cables:
            _pair_by_pair(between, *ends, block, loads)
            continue
        before = np.array([[name != out for name in ends[0]] for out, *_ in cables])
        behind = np.array([[name != back for name in ends[1]] for _, back, _ in cables])
        hops = before[:, :, None].astype(int) + behind[:, None, :]
        counts = np.where(hops == hops.min(axis=0), np.array([len(ways) for *_, ways in cables])[:, None, None], 0)
        parts = block * (counts / counts.sum(axis=0))
        for (out, back, ways), part in zip(cables, parts, strict=True):
            loads[[way[0] for way in ways]] += part.sum() / len(ways)
            _within(between, ends[0], [out], part.sum(axis=1)[:, None], loads)
            _within(between, [back], ends[1], part.sum(axis=0)[None, :], loads)


def _within(between: Minimal, sources: Sequence[str], targets: Sequence[str], demand: Floats, loads: Floats) -> None:
    for i, j in zip(*(at.tolist() for at in np.nonzero(demand)), strict=True):
        if sources[i] != targets[j]:
            ways = between.local[sources[i], targets[j]]
            loads[[way[0] for way in ways]] += demand[i, j] / len(ways)


def _by_group(between: Minimal, routers: Sequence[str]) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for at, router in enumerate(routers):
        found.setdefault(between.group_of[router], []).append(at)
    return found
