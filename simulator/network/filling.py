"""Progressive filling, compiled: all flows solved anew, for where that is less work than to follow the changes.

Source: Bertsekas and Gallager, Data Networks, section 6.5.2; as `simulator.network.maxmin`, on the arrays.
"""

import numpy as np

from simulator.network.flow_arrays import ACTIVE, FILLINGS, FULL, NEAR, NOWHERE, SHIFT, State
from simulator.network.heaps import compiled, sink
from simulator.network.holding import LOADED, forget, hold, let_go, note


@compiled
def _fix(s: State, link: int, level: float, now_ns: int) -> int:
    """Fix the flows of a link that are still rising; return how many."""
    flows, links, shift = s.flows, s.links, s.numbers[SHIFT]
    start, fixed = links[link].start, 0
    for i in range(links[link].flows):
        if s.holders[start + i] != NOWHERE:
            continue
        flow = s.members[start + i] >> shift
        hold(s, flow, link, now_ns)
        fixed += 1
        first = flow << shift
        for slot in range(first, first + flows[flow].hops):
            other = s.path[slot]
            links[other].left -= flows[flow].weight * s.part[slot] * level
            links[other].pull -= flows[flow].weight * s.part[slot]
    return fixed


@compiled
def _rest(s: State, link: int) -> tuple[float, float]:
    """Return what fixed flows leave of a link and the weight of those still rising, summed afresh."""
    links = s.links
    start, left, pull = links[link].start, links[link].capacity, 0.0
    for i in range(links[link].flows):
        holder = s.holders[start + i]
        if holder == NOWHERE:
            pull += s.weights[start + i]
        else:
            left -= s.weights[start + i] * s.shares[holder]
    return max(0.0, left), pull


@compiled
def fill(s: State, now_ns: int) -> None:
    """Solve all active flows anew by progressive filling, and leave shares, holders and loads as `_evaluate` would."""
    flows, links, numbers = s.flows, s.links, s.numbers
    numbers[FILLINGS] += 1
    heap, end = s.queue, 0
    for i in range(numbers[ACTIVE]):
        flow = s.active[i]
        if flows[flow].bottleneck != NOWHERE:
            let_go(s, flow, now_ns)
            forget(s, flow)
    for link in range(links.size):
        s.shares[link] = np.inf
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
            s.shares[link] = due
            rising -= _fix(s, link, due, now_ns)
            end -= 1
            heap[0] = heap[end]
        sink(links, heap, end, 0)
    for link in range(links.size):
        if links[link].flows > 0:
            left, _ = _rest(s, link)
            links[link].load = links[link].capacity - left
            note(s, link, LOADED)
