"""Batchers that set memory aside for whole answers: request-level batching, and Orca's iterations.

Sources: static batching as in FasterTransformer; preferred sizes with a largest delay (Triton's dynamic batcher);
iteration-level scheduling with selective batching, memory reserved for the longest answer (Orca, OSDI 2022).
"""

from simulator.serving.engine_view import DECODE_ON, EngineView, Step
from simulator.serving.request import Request
from simulator.strict import Count, Duration, Strict


class Static(Strict):
    """A batch of those who wait when the one before has ended; all of it runs until the last answer is complete."""

    max_running: Count = 8
    """Requests of a batch at most, each sample counted."""
    max_batch_tokens: Count = 8192
    """Prompt tokens of a batch at most, all prompts padded to the longest; a longer prompt goes alone, in slices."""


class Dynamic(Static):
    """A batch when enough wait or the first of them has waited long enough, run like a static one."""

    max_delay: Duration = 100_000_000
    """Time for which the first in line waits for the batch to fill."""


class Orca(Strict):
    """Whole prompts beside decodes, iteration by iteration; memory for the answer is set aside with the prompt's.

    How long the answer will be is known, as to the oracle that vLLM's authors compare with.
    """

    max_running: Count = 256
    """Requests running together at most, each sample counted."""
    max_batch_tokens: Count = 8192
    """Prompt tokens of one iteration at most; a longer prompt goes alone beside the decodes."""


def static(limits: Static, engine: EngineView) -> Step:
    """Begin a batch of those who wait once nobody runs, as many as have room for their whole answers."""
    if engine.partial:
        return Step(
            [(r, min(r.prefill_tokens - r.computed, limits.max_batch_tokens)) for r in engine.partial], reserves=True
        )
    if engine.running:
        return DECODE_ON
    prompts: list[Request] = []
    free, longest, seats = engine.free_blocks, 0, limits.max_running
    for request in engine.waiting:
        free -= _whole(request, engine)
        longest = max(longest, request.prefill_tokens)
        too_many = longest * (len(prompts) + 1) > limits.max_batch_tokens
        seats -= request.samples
        full = seats < 0 or free < 0 or (too_many and prompts)
        if full and (prompts or engine.claim(request)[1] > engine.free_blocks):
            break  # alone a request runs as far as there is memory
        prompts.append(request)
    counts = [(r, min(engine.claim(r)[0], limits.max_batch_tokens)) for r in prompts]
    return Step(counts, reserves=True, padded=True)


def dynamic(limits: Dynamic, engine: EngineView) -> Step:
    """Begin a batch as `static` does, when it is full or the first in line has waited for `max_delay`."""
    if engine.running or not engine.waiting:
        return static(limits, engine)
    first = next(iter(engine.waiting))
    step, due_ns = static(limits, engine), first.queued_ns + limits.max_delay
    seats = sum(request.samples for request, _ in step.prompts)
    full = seats == limits.max_running or len(step.prompts) < len(engine.waiting)
    return step if full or engine.now_ns >= due_ns else Step(wake_ns=due_ns)


def orca(limits: Orca, engine: EngineView) -> Step:
    """Take whole prompts from the head of the queue beside those who decode, while whole answers have room.

    A prompt whose beginning was loaded from elsewhere has begun; what is left of it comes first.
    """
    free = engine.free_blocks - engine.growth_blocks
    seats, budget = limits.max_running - engine.running, limits.max_batch_tokens
    prompts: list[tuple[Request, int]] = []
    for request in engine.partial:
        tokens = request.prefill_tokens - request.computed
        if tokens > budget and prompts:
            return Step(prompts, decodes=True, reserves=True)
        budget -= tokens
        prompts.append((request, tokens))
    for request in engine.waiting:
        free -= _whole(request, engine)
        tokens, blocks = engine.claim(request)
        alone = not prompts and not engine.running and blocks <= engine.free_blocks
        if seats < request.samples or (free < 0 and not alone) or (tokens > budget and prompts):
            break
        seats -= request.samples
        budget -= tokens
        prompts.append((request, tokens))
    return Step(prompts, decodes=True, reserves=True)


def _whole(request: Request, engine: EngineView) -> int:
    """Return the KV blocks of a waiting request with all its tokens, or of its prefill if that takes more."""
    return max(engine.paging.whole(request), engine.paging.reserved(request))
