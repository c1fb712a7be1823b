"""Which link holds each flow, and when the first of the flows that a link holds is drained.

Model: all flows that one link holds get the same bytes per weight, so the link keeps that progress for all of them and
a flow is drained when it reaches a mark, fixed when it came to be held (virtual time, as of weighted fair queueing:
Demers, Keshav, Shenker 1989). A new share touches one link then, and none of its flows.
"""

import numpy as np

from simulator.network.flow_arrays import CHANGED, MOVED, NEVER_NS, NOWHERE, SHIFT, WAITING, WATCHED, State
from simulator.network.heaps import inlined, leave_finishes, sift_held, sift_link

NS_PER_S = 1e9
FORGIVEN_NS = 1e-3  # of float error, when a drain time is rounded up
FAR = float(1 << 40)  # bytes of progress from which marks are counted anew, to keep their fractions
LOADED, HOLDS = 1, 2  # bits of `changed`


@inlined
def note(s: State, link: int, what: int) -> None:
    """Have a link settled at the end of this instant."""
    if s.links[link].changed == 0:
        s.changed[s.numbers[CHANGED]] = link
        s.numbers[CHANGED] += 1
    s.links[link].changed |= what


@inlined
def bring_up(s: State, link: int, now_ns: int) -> None:
    """Bring the progress of a link up to now; due before its share changes."""
    links = s.links
    if links[link].held > 0 and links[link].since_ns != now_ns:
        links[link].progress += s.shares[link] * (now_ns - links[link].since_ns) / NS_PER_S
        if links[link].progress > FAR:
            for i in range(links[link].start, links[link].start + links[link].held):
                s.due[i] -= links[link].progress
            links[link].progress = 0.0
    links[link].since_ns = now_ns


@inlined
def hold(s: State, flow: int, link: int, now_ns: int) -> None:
    """Make a link the bottleneck of a flow that has none."""
    flows, links = s.flows, s.links
    bring_up(s, link, now_ns)
    start, place = links[link].start, links[link].held
    links[link].held = place + 1
    s.held[start + place] = flow
    s.due[start + place] = links[link].progress + flows[flow].left / flows[flow].weight
    flows[flow].bottleneck = link
    sift_held(s, start, place + 1, place)
    _tell(s, flow, link)
    note(s, link, HOLDS)


@inlined
def let_go(s: State, flow: int, now_ns: int) -> None:
    """Take a flow from its bottleneck, and note what it has still to move."""
    flows, links = s.flows, s.links
    link, place = flows[flow].bottleneck, flows[flow].place
    bring_up(s, link, now_ns)
    start, end = links[link].start, links[link].held - 1
    flows[flow].left = max(0.0, (s.due[start + place] - links[link].progress) * flows[flow].weight)
    flows[flow].bottleneck = NOWHERE
    links[link].held = end
    if place != end:
        s.held[start + place] = s.held[start + end]
        s.due[start + place] = s.due[start + end]
        sift_held(s, start, end, place)
    if end == 0:
        links[link].progress = 0.0
    note(s, link, HOLDS)


@inlined
def forget(s: State, flow: int) -> None:
    """Tell the links of a flow that it has no bottleneck any more."""
    _tell(s, flow, NOWHERE)


@inlined
def _tell(s: State, flow: int, holder: int) -> None:
    first = flow << s.numbers[SHIFT]
    for slot in range(first, first + s.flows[flow].hops):
        s.holders[s.links[s.path[slot]].start + s.position[slot]] = holder


@inlined
def settle(s: State, now_ns: int) -> None:
    """Find the next finish of every link whose share or flows changed, and note the loads that links reached."""
    links, numbers = s.links, s.numbers
    for i in range(numbers[CHANGED]):
        link = s.changed[i]
        what = links[link].changed
        links[link].changed = 0
        load = min(links[link].load, links[link].capacity)
        if load > links[link].peak:
            links[link].peak = load
        if numbers[WATCHED] and links[link].moved == 0:
            links[link].moved = 1
            s.moved[numbers[MOVED]] = link
            numbers[MOVED] += 1
        if what & HOLDS == 0:
            continue
        finish_ns = NEVER_NS
        if links[link].held > 0 and s.shares[link] > 0:
            bring_up(s, link, now_ns)
            rest = s.due[links[link].start] - links[link].progress
            drain_ns = rest * NS_PER_S / s.shares[link] - FORGIVEN_NS
            if drain_ns < NEVER_NS / 2:
                finish_ns = now_ns + int(max(0.0, np.ceil(drain_ns)))
        links[link].finish_ns = finish_ns
        if finish_ns < NEVER_NS:
            if links[link].place == NOWHERE:
                links[link].place = numbers[WAITING]
                s.heap[links[link].place] = link
                numbers[WAITING] += 1
            sift_link(s, links[link].place)
        elif links[link].place != NOWHERE:
            leave_finishes(s, link)
    numbers[CHANGED] = 0


@inlined
def drained(s: State, link: int, now_ns: int) -> int:
    """Return the first flow that a link holds if it is drained by now, or else NOWHERE."""
    links = s.links
    if links[link].held == 0:
        return NOWHERE
    start = links[link].start
    if links[link].finish_ns > now_ns:
        bring_up(s, link, now_ns)
        rest = s.due[start] - links[link].progress
        if rest * NS_PER_S > FORGIVEN_NS * s.shares[link]:
            return NOWHERE
    return int(s.held[start])
