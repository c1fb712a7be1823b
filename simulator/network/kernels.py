"""The compiled loops of incremental max-min sharing: fair shares by link, a work list, links by their next finish.

Model: a link's share is the level at which it fills when each of its flows is held by the least share of its other
links; a flow's rate is its weight times the least share of its links. Where every share is such a level, the rates are
max-min fair (Charny, Clark, Jain, ICC 1995). Only links that a change can move are evaluated again.
"""

from typing import TYPE_CHECKING

import numpy as np

from simulator.network.filling import fill
from simulator.network.flow_arrays import (
    ACTIVE,
    AHEAD,
    BEGUN,
    BYTE_HOPS,
    EVALUATIONS,
    FREE,
    FULL,
    HOPS,
    LEAST_ROOM,
    MEMBERS,
    NEAR,
    NEVER_NS,
    NOWHERE,
    QUEUED,
    SHIFT,
    WAITING,
    Starts,
    State,
)
from simulator.network.heaps import compiled, inlined, leave_finishes, sink
from simulator.network.holding import HOLDS, LOADED, bring_up, drained, hold, let_go, note, settle

if TYPE_CHECKING:
    from numpy.typing import NDArray

SETTLED = 1e-14  # a share that moves by less, relatively, stays as it is, so that rounding does not travel
FILL_WORK = 4  # evaluations of a flow's hop that a full filling is worth
MANY = 64  # flows begun at once, if they are a quarter of all, are solved in full at once


@compiled
def enqueue(s: State, link: int) -> None:
    """Put a link on the work list, once; those that fill at lower levels go first, for they decide about the others."""
    links, queue = s.links, s.queue
    if links[link].queued == 0:
        links[link].queued = 1
        key = s.shares[link]
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


@inlined
def _remove(s: State, flow: int, now_ns: int) -> None:
    """Take a flow off its links and out of all lists; `left` then has what it had still to move."""
    flows, links, numbers = s.flows, s.links, s.numbers
    first = flow << numbers[SHIFT]
    bottleneck = flows[flow].bottleneck
    level = 0.0
    if bottleneck != NOWHERE:
        level = s.shares[bottleneck]
        let_go(s, flow, now_ns)
    for slot in range(first, first + flows[flow].hops):
        link = s.path[slot]
        start = links[link].start
        last = links[link].flows - 1
        here, end = start + s.position[slot], start + last
        rate = s.weights[here] * level
        moved = s.members[end]
        s.members[here], s.holders[here], s.weights[here] = moved, s.holders[end], s.weights[end]
        s.position[moved] = s.position[slot]
        links[link].flows = last
        note(s, link, LOADED)
        if last == 0:
            links[link].load = 0.0
            s.shares[link] = np.inf
            links[link].busy_ns += now_ns - links[link].busy_since_ns
        else:
            links[link].load -= rate
            if s.shares[link] < np.inf:
                enqueue(s, link)
    numbers[HOPS] -= flows[flow].hops
    numbers[ACTIVE] -= 1
    other = s.active[numbers[ACTIVE]]
    s.active[flows[flow].rank] = other
    flows[other].rank = flows[flow].rank
    s.free[numbers[FREE]] = flow
    numbers[FREE] += 1


@inlined
def _count_bytes(s: State, flow: int, moved: int) -> None:
    first = flow << s.numbers[SHIFT]
    for slot in range(first, first + s.flows[flow].hops):
        carried, link = moved, s.path[slot]
        if s.part[slot] != 1.0:
            exact = moved * s.part[slot] + s.links[link].rest
            carried = int(np.floor(exact))
            s.links[link].rest = exact - carried
        s.links[link].bytes += carried
        s.numbers[BYTE_HOPS] += carried


@inlined
def _end_due(s: State, now_ns: int, ended: "NDArray[np.int64]", count: int) -> int:
    """End every flow that is due; its names go to `ended` from place `count`. Return the place after the last."""
    flows, links = s.flows, s.links
    while s.numbers[WAITING] > 0 and links[s.heap[0]].finish_ns <= now_ns:
        link = s.heap[0]
        flow = drained(s, link, now_ns)
        while flow != NOWHERE:
            _count_bytes(s, flow, flows[flow].size)
            ended[count] = flows[flow].name
            count += 1
            _remove(s, flow, now_ns)
            links[link].finish_ns = NEVER_NS
            flow = drained(s, link, now_ns)
        leave_finishes(s, link)
    return count


@inlined
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
        s.holders[start + i] = s.holders[old + i]
        s.weights[start + i] = s.weights[old + i]
    for i in range(links[link].held):
        s.held[start + i] = s.held[old + i]
        s.due[start + i] = s.due[old + i]
    links[link].start = start
    links[link].room = room
    s.numbers[MEMBERS] = start + room


@inlined
def _begin(s: State, starts: Starts, i: int, now_ns: int) -> bool:
    """Put a flow on its links, without a rate yet; return False when the arrays have to grow first."""
    route = starts.route[starts.offset[i] : starts.offset[i + 1]]
    if not _has_room(s, route):
        return False
    flows, numbers = s.flows, s.numbers
    numbers[FREE] -= 1
    flow = s.free[numbers[FREE]]
    flows[flow].weight = starts.weight[i]
    flows[flow].bottleneck = NOWHERE
    flows[flow].hops = route.size
    flows[flow].left = starts.left[i]
    flows[flow].size = starts.size[i]
    flows[flow].flows = starts.flows[i]
    flows[flow].name = starts.name[i]
    numbers[BEGUN] += 1
    _attach(s, flow, route, starts.part[starts.offset[i] : starts.offset[i + 1]], now_ns)
    numbers[HOPS] += route.size
    s.active[numbers[ACTIVE]] = flow
    flows[flow].rank = numbers[ACTIVE]
    numbers[ACTIVE] += 1
    return True


@inlined
def _attach(s: State, flow: int, route: "NDArray[np.int32]", part: "NDArray[np.float64]", now_ns: int) -> None:
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
        s.part[first + hop] = part[hop]
        place = links[link].start + at
        s.members[place], s.holders[place] = first + hop, NOWHERE
        s.weights[place] = s.flows[flow].weight * part[hop]
        links[link].flows = at + 1
        note(s, link, LOADED)
        links[link].flow_count += s.flows[flow].flows
        if s.shares[link] < np.inf:
            limited = True
            enqueue(s, link)
        elif (links[link].capacity - links[link].load) / part[hop] < least:
            least = (links[link].capacity - links[link].load) / part[hop]
            tightest = link
    for slot in range(first + route.size, first + (1 << s.numbers[SHIFT])):
        s.path[slot] = NOWHERE
    if not limited:
        enqueue(s, tightest)


@inlined
def _least_elsewhere(s: State, flow: int, link: int) -> tuple[float, int]:
    """Return the least share of the other links of a flow, and the link that has it."""
    least, where = np.inf, NOWHERE
    first = flow << s.numbers[SHIFT]
    for slot in range(first, first + (1 << s.numbers[SHIFT])):
        other = s.path[slot]
        if other == NOWHERE:
            break
        if other != link and s.shares[other] < least:
            least = s.shares[other]
            where = other
    return least, where


@inlined
def _level(s: State, link: int) -> tuple[float, bool, float]:
    """Return the level at which a link fills, infinite if it does not; whether it has flows without a rate; its load.

    `limits[i]` becomes the least share elsewhere of its i-th flow. The flows held elsewhere below the level are set
    aside; what they leave raises the level for the rest; none comes back, so the rest only shrinks.
    """
    links, count = s.links, s.links[link].flows
    start, shift, capacity = links[link].start, s.numbers[SHIFT], links[link].capacity
    limits, held, weights = s.limits[:count], s.limits[count : 2 * count], s.limits[2 * count : 3 * count]
    pull, load, fresh = 0.0, 0.0, False
    for i in range(count):
        at = s.holders[start + i]
        if at != NOWHERE and at != link:
            limit = s.shares[at]
        else:
            limit, _ = _least_elsewhere(s, s.members[start + i] >> shift, link)
            fresh |= at == NOWHERE
        limits[i] = limit
        held[i] = limit
        weights[i] = s.weights[start + i]
        pull += weights[i]
        load += weights[i] * limit
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


@inlined
def _move(s: State, flow: int, link: int, change: float, lower: float) -> None:
    """Add a change of a flow's level, because of `link`, to the loads of its links; queue others that it can move.

    `lower` is the lower of the levels before and after.
    """
    links = s.links
    change *= s.flows[flow].weight
    first = flow << s.numbers[SHIFT]
    for slot in range(first, first + (1 << s.numbers[SHIFT])):
        other = s.path[slot]
        if other == NOWHERE:
            break
        links[other].load += change * s.part[slot]
        if links[other].changed == 0:
            note(s, other, LOADED)
        if other != link:
            share = s.shares[other]
            if share == np.inf:
                if links[other].load > links[other].capacity * (1 - NEAR):
                    enqueue(s, other)
            elif share > lower:
                enqueue(s, other)


@inlined
def _plain_level(s: State, link: int) -> float:
    """Return the level at which a link fills, if then it holds the same flows as before; if that is not sure, -1."""
    start, shares, count = s.links[link].start, s.shares, s.links[link].flows
    pull, load, top, ahead = 0.0, 0.0, 0.0, 0
    for i in range(start, start + count):
        at = s.holders[i]
        if at == link:
            pull += s.weights[i]
            ahead |= s.path[s.members[i]]  # will be needed soon, and loads that depend on nothing overlap
        elif at == NOWHERE:
            return -1.0
        else:
            load += s.weights[i] * shares[at]
            top = max(top, shares[at])
    s.numbers[AHEAD] = ahead
    level = (s.links[link].capacity - load) / pull
    if level < top or level <= 0:
        return -1.0
    if level > shares[link]:
        for i in range(start, start + count):
            if s.holders[i] == link:
                least, _ = _least_elsewhere(s, s.members[i] >> s.numbers[SHIFT], link)
                if least < level:
                    return -1.0
    return float(level)


@inlined
def _shift(s: State, link: int, share: float, now_ns: int) -> None:
    """Give a link another share, and with it the flows that it holds, which stay the same."""
    links, old = s.links, s.shares[link]
    links[link].load = links[link].capacity
    if abs(share - old) <= SETTLED * old:
        return
    bring_up(s, link, now_ns)
    s.shares[link] = share
    note(s, link, HOLDS | LOADED)
    start = links[link].start
    for i in range(start, start + links[link].flows):
        if s.holders[i] == link:
            _move(s, s.members[i] >> s.numbers[SHIFT], link, share - old, min(old, share))
    links[link].load = links[link].capacity  # in the place of a running sum, which drifts


@inlined
def _evaluate(s: State, link: int, now_ns: int) -> None:
    """Bring a link's share, and the flows that it holds, in line with the shares of the other links."""
    links, shift = s.links, s.numbers[SHIFT]
    old = s.shares[link]
    if links[link].held > 0:
        share = _plain_level(s, link)
        if share >= 0:
            _shift(s, link, share, now_ns)
            return
    share, fresh, load = _level(s, link)
    if share == old or (old < np.inf and abs(share - old) <= SETTLED * old):
        if not fresh:
            links[link].load = load
            return
        share = old
    bring_up(s, link, now_ns)
    s.shares[link] = share
    note(s, link, HOLDS | LOADED)
    for i in range(links[link].flows):
        place = links[link].start + i
        flow = s.members[place] >> shift
        at, level, where, before = s.holders[place], share, link, 0.0
        if at != NOWHERE and at != link:
            before = s.shares[at]
            if share >= before:
                continue
        else:
            if at == link:
                before = old
            if share > s.limits[i]:
                level, where = _least_elsewhere(s, flow, link)
        if where != at:
            if at != NOWHERE:
                let_go(s, flow, now_ns)
            hold(s, flow, where, now_ns)
        if level != before:
            _move(s, flow, link, level - before, min(before, level))
    links[link].load = load  # in the place of a running sum, which drifts


@compiled
def share(s: State, now_ns: int) -> int:
    """Share the links out anew, by the work list or in full where that is less work; return the next finish."""
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
            _evaluate(s, link, now_ns)
    if budget <= 0:
        fill(s, now_ns)
    settle(s, now_ns)
    return int(links[s.heap[0]].finish_ns) if numbers[WAITING] > 0 else NEVER_NS


@compiled
def set_capacity(s: State, starts: Starts, count: int, now_ns: int) -> int:
    """Give the first links of `starts.route` the capacities in `starts.left`, share anew, return the next finish."""
    for i in range(count):
        s.links[starts.route[i]].capacity = starts.left[i]
        enqueue(s, starts.route[i])
    return int(share(s, now_ns))


@compiled
def stop(s: State, flow: int, now_ns: int) -> float:
    """Take an unfinished flow out; return the bytes that it still had to move. The links are not shared anew yet."""
    flows = s.flows
    _remove(s, flow, now_ns)
    left = float(flows[flow].left)
    _count_bytes(s, flow, flows[flow].size - int(np.ceil(left)))
    return left


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
        finish_ns = s.links[s.heap[0]].finish_ns if numbers[WAITING] > 0 else NEVER_NS
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
