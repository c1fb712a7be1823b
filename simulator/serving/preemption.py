"""Who gives up their place on a rank when memory runs out, and where they go.

Model: recomputation and swap of vLLM (SOSP 2023): the request that was begun last goes, to host memory or to the queue;
by priority the lowest, and of its like the one that arrived last.
"""

from simulator.serving.queueing import precedence
from simulator.serving.rank import Rank
from simulator.serving.request import Request


def preempt_last(rank: Rank) -> Request:
    """Send the first of `victims` to host memory if it decodes and there is room, else back to the queue.

    From the queue it is computed anew, with all that it has generated.
    """
    request = next(rank.victims())
    if request.request_id not in rank.batch.members:
        rank.partial.remove(request)
        rank.drop(request, request.computed)
    else:
        rank.batch.leave(request)
        held = request.context_tokens - 1
        rank.drop(request, held)
        if request in rank.fresh:
            rank.fresh.remove(request)
        else:
            request.last_token_ns = rank.last_step_ns
        if rank.swap is not None and rank.swap.take(request, rank.paging.held(request, held)):
            if rank.by_priority:
                rank.swap.sort(precedence)
            request.preemptions += 1
            rank.step = rank.step._replace(steps=1)  # as below
            return request
    request.computed = 0
    request.preemptions += 1
    rank.waiting.appendleft(request)
    again = next(iter(rank.waiting)) is not request
    # of what it left it may find so much again that it fits at once, or another may who is before it; and its
    # prefill needs no room for drafts
    if rank.kv.prefixes is not None or rank.batch.lookahead or rank.swapped or again:
        rank.step = rank.step._replace(steps=1)
    return request
