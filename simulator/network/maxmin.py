"""Weighted max-min fair rates with per-flow caps, by progressive filling: pure, knows no time and no actors.

Source: Bertsekas and Gallager, Data Networks, section 6.5.2. The water level rises for all flows at once (a flow's rate
is its weight times the level) until a link is full or a cap is reached; that fixes those flows, and the rest rise on.
"""

import heapq
from collections.abc import Sequence
from math import inf


def maxmin_rates(
    paths: Sequence[Sequence[int]],
    capacities: Sequence[float],
    weights: Sequence[float] | None = None,
    caps: Sequence[float] | None = None,
) -> list[float]:
    """Return the max-min fair rate of each flow, in the unit of `capacities`.

    `paths[i]` are the links of flow i (indices into `capacities`, none twice); `weights[i]` > 0 scales its share
    (default 1) and `caps[i]` bounds its rate (default none). A flow without links gets its cap, or infinity.
    A link that one flow has for itself counts as a cap, so the work is in the shared links only.
    Raises ValueError for a weight that is not positive.
    """
    if weights is not None and min(weights, default=1) <= 0:
        raise ValueError("a weight must be more than zero")
    on_link: dict[int, list[int]] = {}
    for flow, path in enumerate(paths):
        for link in path:
            if link in on_link:
                on_link[link].append(flow)
            else:
                on_link[link] = [flow]
    limits = list(caps) if caps is not None else [inf] * len(paths)
    shared: dict[int, float] = {}
    for link, flows in on_link.items():
        capacity = capacities[link]
        if len(flows) > 1:
            shared[link] = capacity
        elif capacity < limits[flows[0]]:
            limits[flows[0]] = capacity
    if not shared:
        return limits
    weight = weights if weights is not None else [1] * len(paths)
    return _fill(paths, on_link, shared, weight, limits)


def _fill(
    paths: Sequence[Sequence[int]],
    on_link: dict[int, list[int]],
    left: dict[int, float],
    weight: Sequence[float],
    limits: list[float],
) -> list[float]:
    """Raise the level; `left` is what the fixed flows leave of each shared link, `limits[i]` the cap of flow i.

    The level at which a link fills only grows as flows are fixed below it, so an entry of the heap that is out of date
    is too low, and is put back at its due level when it comes up. Links and flows are told apart by sign.
    """
    rates = [-1.0] * len(paths)
    heap = [(capacity / sum(weight[flow] for flow in on_link[link]), link) for link, capacity in left.items()]
    heap += [(limit / weight[flow], ~flow) for flow, limit in enumerate(limits) if limit < inf or not paths[flow]]
    heapq.heapify(heap)
    unfixed = len(paths)
    while unfixed:
        level, key = heap[0]
        if key < 0:
            heapq.heappop(heap)
            fixed = [~key] if rates[~key] < 0 else []
        else:
            fixed = [flow for flow in on_link[key] if rates[flow] < 0]
            if fixed and (due := left[key] / sum(weight[flow] for flow in fixed)) > level:
                heapq.heapreplace(heap, (due, key))
                continue
            heapq.heappop(heap)
        for flow in fixed:
            rate = rates[flow] = min(level * weight[flow], limits[flow])
            unfixed -= 1
            for link in paths[flow]:
                if link in left:
                    left[link] = max(0.0, left[link] - rate)
    return rates
