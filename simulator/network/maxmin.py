"""Weighted max-min fair rates with per-flow caps, by progressive filling: pure, knows no time and no actors.

Source: Bertsekas and Gallager, Data Networks, section 6.5.2. The water level rises for all flows at once (a flow's rate
is its weight times the level) until a link is full or a cap is reached; that fixes those flows, and the rest rise on.
A flow that is sprayed puts a portion of its rate on each of its links.
"""

import heapq
from collections.abc import Sequence
from math import inf


def maxmin_rates(
    paths: Sequence[Sequence[int]],
    capacities: Sequence[float],
    weights: Sequence[float] | None = None,
    caps: Sequence[float] | None = None,
    portions: Sequence[Sequence[float]] | None = None,
) -> list[float]:
    """Return the max-min fair rate of each flow, in the unit of `capacities`.

    `paths[i]` are the links of flow i (indices into `capacities`, none twice); `weights[i]` > 0 scales its share
    (default 1) and `caps[i]` bounds its rate (default none). A flow without links gets its cap, or infinity.
    `portions[i][j]` in (0, 1] is how much of the rate of flow i crosses its j-th link; no portions: all of it, on each.
    A link that one flow has for itself counts as a cap, so the work is in the shared links only.
    Raises ValueError for a weight that is not positive.
    """
    if weights is not None and min(weights, default=1) <= 0:
        raise ValueError("a weight must be more than zero")
    weight = weights if weights is not None else [1] * len(paths)
    on_link: dict[int, list[tuple[int, float]]] = {}
    for flow, path in enumerate(paths):
        own = portions[flow] if portions is not None else ()
        for hop, link in enumerate(path):
            part = own[hop] if own else 1
            if link in on_link:
                on_link[link].append((flow, part))
            else:
                on_link[link] = [(flow, part)]
    limits = list(caps) if caps is not None else [inf] * len(paths)
    shared: dict[int, float] = {}
    for link, members in on_link.items():
        capacity = capacities[link]
        if len(members) > 1:
            shared[link] = capacity
            continue
        [(flow, part)] = members
        most = capacity if part == 1 else capacity / part
        if most < limits[flow]:
            limits[flow] = most
    if not shared:
        return limits
    return _fill(paths, portions, on_link, shared, weight, limits)


def _fill(
    paths: Sequence[Sequence[int]],
    portions: Sequence[Sequence[float]] | None,
    on_link: dict[int, list[tuple[int, float]]],
    left: dict[int, float],
    weight: Sequence[float],
    limits: list[float],
) -> list[float]:
    """Raise the level; `left` is what the fixed flows leave of each shared link, `limits[i]` the cap of flow i.

    The level at which a link fills only grows as flows are fixed below it, so an entry of the heap that is out of date
    is too low, and is put back at its due level when it comes up. Links and flows are told apart by sign.
    """
    rates = [-1.0] * len(paths)
    heap = [
        (capacity / sum([weight[flow] * part for flow, part in on_link[link]]), link) for link, capacity in left.items()
    ]
    heap += [(limit / weight[flow], ~flow) for flow, limit in enumerate(limits) if limit < inf or not paths[flow]]
    heapq.heapify(heap)
    unfixed = len(paths)
    while unfixed:
        level, key = heap[0]
        if key < 0:
            heapq.heappop(heap)
            fixed = [~key] if rates[~key] < 0 else []
        else:
            members = [(flow, part) for flow, part in on_link[key] if rates[flow] < 0]
            fixed = [flow for flow, _ in members]
            if fixed and (due := left[key] / sum([weight[flow] * part for flow, part in members])) > level:
                heapq.heapreplace(heap, (due, key))
                continue
            heapq.heappop(heap)
        for flow in fixed:
            rate = rates[flow] = min(level * weight[flow], limits[flow])
            unfixed -= 1
            own = portions[flow] if portions is not None else ()
            for hop, link in enumerate(paths[flow]):
                if link in left:
                    left[link] = max(0.0, left[link] - (rate * own[hop] if own else rate))
    return rates
