"""Copies that bring a rank's requests back to device memory: whole ones from the host, prefixes from lower tiers.

Model: a request takes its KV blocks and its seats as its copy begins, and goes on as it ends; see swap.py, tiers.py.
"""

from collections.abc import Callable, Sequence

from simulator.clock import Clock
from simulator.device.cost import Cost
from simulator.serving.engine import Engine
from simulator.serving.lower_tiers import LowerTiers
from simulator.serving.rank import Rank
from simulator.serving.swap import SwapSpace


def stand_on_copies(
    ranks: Sequence[Rank], engine: Engine, devices: Sequence[int], env: Clock, wake: Callable[[int], None]
) -> bool:
    """Give the ranks of an engine their host memory and their lower tiers; return whether there are any.

    `wake` hears of ticks at which copies end that nobody could foretell.
    """
    for rank, space in zip(ranks, engine.swap(), strict=True) if engine.swap is not None else ():
        rank.swap = space
    for rank, lower in zip(ranks, engine.lower(devices), strict=True) if engine.lower is not None else ():
        lower.wake = wake
        rank.stand_on(lower, env)
    return engine.swap is not None or engine.lower is not None


def bring_back(rank: Rank, ticks: int, cost: Cost) -> list[int]:
    """Let a rank go on with whose copies have ended by tick `ticks`, and begin those there is room for.

    Returns the ends, in ticks, of the copies begun that the engine does not wait for, as far as they are known. `cost`
    is that of its iterations.
    """
    ends = _swapped_in(rank, rank.swap, ticks) if rank.swap is not None else []
    return ends + (_loaded(rank, rank.lower, ticks, cost) if rank.lower is not None else [])


def _swapped_in(rank: Rank, swap: SwapSpace, ticks: int) -> list[int]:
    swap.now = ticks
    _decode_on(rank, swap)
    before = len(swap.coming)
    while swap.out and rank.running + swap.out[0].samples <= rank.limits.max_running:
        head = swap.out[0]
        if rank.claim(head)[1] + rank.step_blocks > rank.admissible_blocks:
            break
        rank.adopt(head)
        rank.take(head, head.context_tokens)  # of what it held and of the token to be fed, which is not copied
        swap.bring(rank.paging.held(head, head.context_tokens - 1) - head.shared_blocks)
        _decode_on(rank, swap)
    return [end for end, _ in swap.coming[before:]]


def _decode_on(rank: Rank, swap: SwapSpace) -> None:
    for request in swap.arrived():
        rank.decode(request, rank.now_ns)


def _loaded(rank: Rank, lower: LowerTiers, ticks: int, cost: Cost) -> list[int]:
    prefixes = rank.kv.prefixes
    assert prefixes is not None
    lower.now, lower.cost = ticks, cost
    _prefill_on(rank, lower)
    before = len(lower.loading)
    while rank.waiting and not rank.swapped:
        head = next(iter(rank.waiting))
        if rank.running + head.samples > rank.limits.max_running:
            break
        first, units = lower.match(head, prefixes)
        if not units or rank.claim(head)[1] > rank.admissible_blocks:
            break
        rank.waiting.popleft()
        if head.prefill_start_ns < 0:
            head.prefill_start_ns = rank.now_ns
        rank.adopt(head)
        lower.load(head, first, units)
        rank.take(head, head.context_tokens)
        _prefill_on(rank, lower)
    return [row.end for row in lower.loading[before:] if row.flows is None]


def _prefill_on(rank: Rank, lower: LowerTiers) -> None:
    assert rank.kv.prefixes is not None
    for row in lower.loaded():
        request = row.request
        rank.partial.append(request)
        rank.computed([(request, row.units * rank.kv.prefixes.unit_tokens - request.computed)])
        if not request.preemptions:
            request.cached_tokens = request.computed
