"""The compiled loops of incremental max-min sharing: fair shares by link, a work list, a heap of finishes.

Model: a link's share is the level at which it fills when each of its flows is held by the least share of its other
links; a flow's rate is its weight times the least share of its links. Where every share is such a level, the rates are
max-min fair (Charny, Clark, Jain, ICC 1995). Only links that a change can move are evaluated again.
"""

from typing import TYPE_CHECKING

import numpy as np

from simulator.network.flow_arrays import (
    ACTIVE,
    BEGUN,
    BYTE_HOPS,
    CHANGED,
    EVALUATIONS,
    FILLINGS,
    FREE,
    HOPS,
    LEAST_ROOM,
    MEMBERS,
    NEVER_NS,
    NOWHERE,
    QUEUED,
    SHIFT,
    Starts,
    State,
)
from simulator.network.heaps import compiled, sift, sink

if TYPE_CHECKING:
    from numpy.typing import NDArray

NS_PER_S = 1e9
FORGIVEN_NS = 1e-3  # of float error, when a drain time is rounded up
SETTLED = 1e-14  # a share that moves by less, relatively, stays as it is, so that rounding does not travel
NEAR = 1e-9  # a link that limits nobody is looked at again when its load comes this near to its capacity
FULL = 1e-13  # and counts as overloaded from here
FILL_WORK = 4  # evaluations of a flow's hop that a full filling is worth
MANY = 64  # flows begun at once, if they are a quarter of all, are solved in full at once


@compiled
def enqueue(s: State, link: int) -> None:
    """Put a link on the work list, once; those that fill at lower levels go first, for they decide about the others."""
    links, queue = s.links, s.queue
    if links[link].queued == 0:
        links[link].queued = 1
        key = links[link].share
        if key == np.inf:
            key = links[link].capacity / (links[link].flows + 1)
        links[link].key = key
        place = s.numbers[QUEUED]
        s.numbers[QUEUED] += 1
        while place > 0:
            above = (place - 1) >> 1
            if links[queue[above]].key <= key:
                break
            queue[place] = queue[above]
            place = above
        queue[place] = link


@compiled
def _remove(s: State, flow: int, now_ns: int) -> None:
    """Take a flow off its links and out of the heap; what it moved must be in `left` already."""
    flows, links, numbers = s.flows, s.links, s.numbers
    first = flow << numbers[SHIFT]
    rate = flows[flow].weight * flows[flow].level
    for hop in range(flows[flow].hops):
        slot = first + hop
        link = s.path[slot]
        start = links[link].start
        last = links[link].flows - 1
        moved = s.members[start + last]
        s.members[start + s.position[slot]] = moved
        s.position[moved] = s.position[slot]
        links[link].flows = last
        if last == 0:
            links[link].load = 0.0
            links[link].share = np.inf
            links[link].busy_ns += now_ns - links[link].busy_since_ns
        else:
            links[link].load -= rate
            if links[link].share < np.inf:
                enqueue(s, link)
    numbers[HOPS] -= flows[flow].hops
    numbers[ACTIVE] -= 1
    end = numbers[ACTIVE]
    place = flows[flow].place
    if place != end:
        other = s.heap[end]
        s.heap[place] = other
        flows[other].place = place
        sift(s, place)
    s.free[numbers[FREE]] = flow
    numbers[FREE] += 1


@compiled
def _count_bytes(s: State, flow: int, moved: int) -> None:
    first = flow << s.numbers[SHIFT]
    for slot in range(first, first + s.flows[flow].hops):
        s.links[s.path[slot]].bytes += moved
    s.numbers[BYTE_HOPS] += moved * s.flows[flow].hops


@compiled
def _end_due(s: State, now_ns: int, ended: "NDArray[np.int64]", count: int) -> int:
    """End every flow that is due; its names go to `ended` from place `count`. Return the place after the last."""
    flows = s.flows
    while s.numbers[ACTIVE] > 0 and flows[s.heap[0]].finish_ns <= now_ns:
        flow = s.heap[0]
        _count_bytes(s, flow, flows[flow].size)
        ended[count] = flows[flow].name
        count += 1
        _remove(s, flow, now_ns)
    return count


@compiled
def _has_room(s: State, route: "NDArray[np.int32]") -> bool:
    if s.numbers[FREE] == 0:
        return False
    needed = s.numbers[MEMBERS]
    for link in route:
        if s.links[link].flows == s.links[link].room:
            needed += max(LEAST_ROOM, 2 * s.links[link].room)
    return bool(needed <= s.members.size)


@compiled
def _widen(s: State, link: int) -> None:
    """Move a link's members to a block of twice the size; the old block is lost until `relay`."""
    links = s.links
    room = max(LEAST_ROOM, 2 * links[link].room)
    start = s.numbers[MEMBERS]
    old = links[link].start
    for i in range(links[link].flows):
        s.members[start + i] = s.members[old + i]
    links[link].start = start
    links[link].room = room
    s.numbers[MEMBERS] = start + room


@compiled
def _begin(s: State, starts: Starts, i: int, now_ns: int) -> bool:
    """Put a flow on its links, without a rate yet; return False when the arrays have to grow first."""
    route = starts.route[starts.offset[i] : starts.offset[i + 1]]
    if not _has_room(s, route):
        return False
    flows, numbers = s.flows, s.numbers
    numbers[FREE] -= 1
    flow = s.free[numbers[FREE]]
    flows[flow].level = 0.0
    flows[flow].weight = starts.weight[i]
    flows[flow].bottleneck = NOWHERE
    flows[flow].hops = route.size
    flows[flow].rate = 0.0
    flows[flow].left = starts.left[i]
    flows[flow].since_ns = now_ns
    flows[flow].finish_ns = NEVER_NS
    flows[flow].size = starts.size[i]
    flows[flow].flows = starts.flows[i]
    flows[flow].name = starts.name[i]
    flows[flow].changed = 0
    numbers[BEGUN] += 1
    _attach(s, flow, route, now_ns)
    numbers[HOPS] += route.size
    place = numbers[ACTIVE]
    numbers[ACTIVE] += 1
    s.heap[place] = flow
    flows[flow].place = place
    return True


@compiled
def _attach(s: State, flow: int, route: "NDArray[np.int32]", now_ns: int) -> None:
    """Make a flow a member of its links, and queue those that limit, or else the one with the least to spare."""
    links = s.links
    first = flow << s.numbers[SHIFT]
    least, tightest = np.inf, NOWHERE
    limited = False
    for hop in range(route.size):
        link = route[hop]
        if links[link].flows == links[link].room:
            _widen(s, link)
        at = links[link].flows
        if at == 0:
            links[link].busy_since_ns = now_ns
        s.path[first + hop] = link
        s.position[first + hop] = at
        s.members[links[link].start + at] = first + hop
        links[link].flows = at + 1
        links[link].flow_count += s.flows[flow].flows
        if links[link].share < np.inf:
            limited = True
            enqueue(s, link)
        elif links[link].capacity - links[link].load < least:
            least = links[link].capacity - links[link].load
            tightest = link
    if not limited:
        enqueue(s, tightest)


@compiled
def _least_elsewhere(s: State, flow: int, link: int) -> tuple[float, int]:
    """Return the least share of the other links of a flow, and the link that has it."""
    least, where = np.inf, NOWHERE
    first = flow << s.numbers[SHIFT]
    for slot in range(first, first + s.flows[flow].hops):
        other = s.path[slot]
        if other != link and s.links[other].share < least:
            least = s.links[other].share
            where = other
    return least, where


@compiled
def _level(s: State, link: int) -> tuple[float, bool, float]:
    """Return the level at which a link fills, infinite if it does not; whether it has flows without a rate; its load.

    `limits[i]` becomes the least share elsewhere of its i-th flow. The flows held elsewhere below the level are set
    aside; what they leave raises the level for the rest; none comes back, so the rest only shrinks.
    """
    flows, count = s.flows, s.links[link].flows
    start, shift, capacity = s.links[link].start, s.numbers[SHIFT], s.links[link].capacity
    limits, held, weights = s.limits[:count], s.limits[count : 2 * count], s.limits[2 * count : 3 * count]
    pull, load, fresh = 0.0, 0.0, False
    for i in range(count):
        flow = s.members[start + i] >> shift
        at = flows[flow].bottleneck
        if at != NOWHERE and at != link:
            limits[i] = flows[flow].level
        else:
            limits[i], _ = _least_elsewhere(s, flow, link)
            fresh |= at == NOWHERE
        held[i] = limits[i]
        weights[i] = flows[flow].weight
        pull += weights[i]
        load += weights[i] * limits[i]
    if load <= capacity * (1 + FULL):
        return np.inf, fresh, load
    left, rest, level = capacity, count, capacity / pull
    while True:
        kept, pull = 0, 0.0
        for i in range(rest):
            if held[i] < level:
                left -= weights[i] * held[i]
            else:
                held[kept] = held[i]
                weights[kept] = weights[i]
                pull += weights[i]
                kept += 1
        if kept == rest:
            return level, fresh, capacity
        if kept == 0:
            return np.inf, fresh, capacity
        level = max(level, left / pull)
        rest = kept


@compiled
def _move(s: State, flow: int, link: int, level: float) -> None:
    """Give a flow a new level because of `link`, and queue those of its other links which that can move."""
    flows, links = s.flows, s.links
    old = flows[flow].level
    flows[flow].level = level
    lower = min(old, level)
    change = flows[flow].weight * (level - old)
    if flows[flow].changed == 0:
        flows[flow].changed = 1
        s.changed[s.numbers[CHANGED]] = flow
        s.numbers[CHANGED] += 1
    first = flow << s.numbers[SHIFT]
    for slot in range(first, first + flows[flow].hops):
        other = s.path[slot]
        links[other].load += change
        if other != link:
            share = links[other].share
            if share == np.inf:
                if links[other].load > links[other].capacity * (1 - NEAR):
                    enqueue(s, other)
            elif share > lower:
                enqueue(s, other)


@compiled
def _evaluate(s: State, link: int) -> None:
    """Bring a link's share, and the levels of its flows, in line with the shares of the other links."""
    flows, links, shift = s.flows, s.links, s.numbers[SHIFT]
    share, fresh, load = _level(s, link)
    old = links[link].share
    if share == old or (old < np.inf and abs(share - old) <= SETTLED * old):
        if not fresh:
            links[link].load = load
            return
        share = old
    links[link].share = share
    start = links[link].start
    for i in range(links[link].flows):
        flow = s.members[start + i] >> shift
        at = flows[flow].bottleneck
        level = share
        if at != NOWHERE and at != link:
            if share >= flows[flow].level:
                continue
            flows[flow].bottleneck = link
        elif share <= s.limits[i]:
            flows[flow].bottleneck = link
        else:
            level, where = _least_elsewhere(s, flow, link)
            flows[flow].bottleneck = where
        if level != flows[flow].level:
            _move(s, flow, link, level)
    links[link].load = load  # in the place of a running sum, which drifts


@compiled
def _fix(s: State, link: int, level: float) -> int:
    """Fix the flows of a link that are still rising; return how many."""
    flows, links, shift = s.flows, s.links, s.numbers[SHIFT]
    start, fixed = links[link].start, 0
    for i in range(links[link].flows):
        flow = s.members[start + i] >> shift
        if flows[flow].bottleneck != NOWHERE:
            continue
        flows[flow].bottleneck = link
        flows[flow].level = level
        fixed += 1
        first = flow << shift
        for slot in range(first, first + flows[flow].hops):
            other = s.path[slot]
            links[other].left -= flows[flow].weight * level
            links[other].pull -= flows[flow].weight
    return fixed


@compiled
def _rest(s: State, link: int) -> tuple[float, float]:
    """Return what fixed flows leave of a link and the weight of those still rising, summed afresh."""
    flows, links, shift = s.flows, s.links, s.numbers[SHIFT]
    start, left, pull = links[link].start, links[link].capacity, 0.0
    for i in range(links[link].flows):
        flow = s.members[start + i] >> shift
        if flows[flow].bottleneck == NOWHERE:
            pull += flows[flow].weight
        else:
            left -= flows[flow].weight * flows[flow].level
    return max(0.0, left), pull


@compiled
def _fill(s: State) -> None:
    """Solve all active flows anew by progressive filling, and leave shares, levels and loads as `_evaluate` would."""
    flows, links, numbers = s.flows, s.links, s.numbers
    numbers[FILLINGS] += 1
    heap, end = s.queue, 0
    for i in range(numbers[ACTIVE]):
        flow = s.heap[i]
        flows[flow].bottleneck = NOWHERE
        if flows[flow].changed == 0:
            flows[flow].changed = 1
            s.changed[numbers[CHANGED]] = flow
            numbers[CHANGED] += 1
    for link in range(links.size):
        links[link].share = np.inf
        if links[link].flows > 0:
            links[link].left, links[link].pull = _rest(s, link)
            links[link].key = links[link].left / links[link].pull
            heap[end] = link
            end += 1
    for place in range(end // 2 - 1, -1, -1):
        sink(links, heap, end, place)
    rising = numbers[ACTIVE]
    while rising > 0:
        link = heap[0]
        level = links[link].key
        left, pull = links[link].left, links[link].pull
        due = left / pull if pull > NEAR and left > NEAR * links[link].capacity else 0.0
        if due <= level * (1 + NEAR):  # as due as running sums can tell
            left, pull = _rest(s, link)
            due = left / pull if pull > 0 else np.inf
        links[link].key = due
        if due <= level * (1 + FULL):
            links[link].share = due
            rising -= _fix(s, link, due)
            end -= 1
            heap[0] = heap[end]
        sink(links, heap, end, 0)
    for link in range(links.size):
        if links[link].flows > 0:
            left, _ = _rest(s, link)
            links[link].load = links[link].capacity - left


@compiled
def _settle(s: State, now_ns: int) -> None:
    """Move the finish of every flow whose rate changed, and note the loads that links reached."""
    flows, links, numbers = s.flows, s.links, s.numbers
    for i in range(numbers[CHANGED]):
        flow = s.changed[i]
        flows[flow].changed = 0
        rate, before = flows[flow].weight * flows[flow].level, flows[flow].rate
        if rate == before:
            continue
        if before > 0:
            moved = before * (now_ns - flows[flow].since_ns) / NS_PER_S
            flows[flow].left = max(0.0, flows[flow].left - moved)
        flows[flow].rate = rate
        flows[flow].since_ns = now_ns
        drain_ns = flows[flow].left * NS_PER_S / rate - FORGIVEN_NS if rate > 0 else np.inf
        flows[flow].finish_ns = now_ns + int(max(0.0, np.ceil(drain_ns))) if drain_ns < NEVER_NS / 2 else NEVER_NS
        sift(s, flows[flow].place)
        if rate > before:
            first = flow << numbers[SHIFT]
            for slot in range(first, first + flows[flow].hops):
                link = s.path[slot]
                load = min(links[link].load, links[link].capacity)
                if load > links[link].peak:
                    links[link].peak = load
    numbers[CHANGED] = 0


@compiled
def share(s: State, now_ns: int) -> None:
    """Share the links out anew: by the work list, or in full where that is less work."""
    links, numbers = s.links, s.numbers
    budget = 1000 + FILL_WORK * numbers[HOPS]
    if numbers[BEGUN] > MANY and 4 * numbers[BEGUN] > numbers[ACTIVE]:
        budget = 0
    numbers[BEGUN] = 0
    while numbers[QUEUED] > 0:
        link = s.queue[0]
        numbers[QUEUED] -= 1
        s.queue[0] = s.queue[numbers[QUEUED]]
        sink(links, s.queue, numbers[QUEUED], 0)
        links[link].queued = 0
        if budget > 0 and links[link].flows > 0:
            numbers[EVALUATIONS] += 1
            budget = max(0, budget - links[link].flows)
            _evaluate(s, link)
    if budget <= 0:
        _fill(s)
    _settle(s, now_ns)


@compiled
def stop(s: State, flow: int, now_ns: int) -> float:
    """Take an unfinished flow out; return the bytes that it still had to move. The links are not shared anew yet."""
    flows = s.flows
    moved = flows[flow].rate * (now_ns - flows[flow].since_ns) / NS_PER_S
    left = max(0.0, flows[flow].left - moved)
    _count_bytes(s, flow, flows[flow].size - int(np.ceil(left)))
    _remove(s, flow, now_ns)
    return float(left)


@compiled
def advance(
    s: State,
    starts: Starts,
    cursor: int,
    end: int,
    until_ns: int,
    ended: "NDArray[np.int64]",
    ended_ns: "NDArray[np.int64]",
) -> tuple[int, int, int]:
    """Begin flows `cursor` to `end` of `starts` and end flows, each at its time, up to and with `until_ns`.

    Return the new cursor, how many names are in `ended` (with their times) and the next finish. A cursor before a flow
    that is ready by then says that the arrays have to grow: grow them and call again.
    """
    count, numbers = 0, s.numbers
    while True:
        finish_ns = s.flows[s.heap[0]].finish_ns if numbers[ACTIVE] > 0 else NEVER_NS
        at_ns = min(finish_ns, starts.ready_ns[cursor] if cursor < end else NEVER_NS)
        if at_ns > until_ns or at_ns == NEVER_NS:
            return cursor, count, finish_ns
        before = count
        count = _end_due(s, at_ns, ended, count)
        ended_ns[before:count] = at_ns
        while cursor < end and starts.ready_ns[cursor] <= at_ns:
            if not _begin(s, starts, cursor, at_ns):
                return cursor, count, finish_ns
            cursor += 1
        share(s, at_ns)
