"""Batchers: what an engine does in its next iteration, as pure functions over a read-only view of it.

Sources: continuous batching with iteration-level scheduling (Orca, OSDI 2022); prefill first with a token budget and a
watermark of free KV blocks (vLLM, SOSP 2023); prompts in chunks beside decodes (Sarathi-Serve, OSDI 2024; vLLM V1).
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Self

from pydantic import model_validator

from simulator.serving.engine_view import EngineView, Step
from simulator.serving.request import Request
from simulator.serving.request_batching import Dynamic, Orca, Static, dynamic, orca, static
from simulator.strict import Count, Fault, LocatedError, Strict


class Continuous(Strict):
    """Continuous batching, prefill first: a prompt that fits is prefilled before anyone decodes on."""

    max_running: Count = 256
    """Requests decoding together at most, each sample counted (vLLM: max_num_seqs)."""
    max_batch_tokens: Count = 8192
    """Prompt tokens of one prefill at most (vLLM: max_num_batched_tokens); a longer prompt goes alone, in slices."""
    decode_steps: Count | None = None
    """Decode steps between two prefills at least, while anyone decodes (decode first); default: prefill first."""


def continuous(limits: Continuous, engine: EngineView) -> Step:
    """Prefill as many requests at the head of the queue as fit, whole and together, or decode.

    First come, first served: the first request that does not fit (seats, tokens, KV blocks) holds back those behind it.
    A prompt larger than the budget goes in slices, one an iteration, with nobody else.
    """
    if engine.partial:
        return Step(_begun(engine.partial, limits.max_batch_tokens), reserves=True)
    if limits.decode_steps is not None and engine.decoding and engine.decoded < limits.decode_steps:
        return Step(steps=limits.decode_steps - engine.decoded)
    seats = limits.max_running - engine.running
    budget = limits.max_batch_tokens
    blocks = engine.admissible_blocks
    claim = engine.claim
    prompts: list[tuple[Request, int]] = []
    for request in engine.waiting:
        tokens, taken = claim(request)
        blocks -= taken
        budget -= tokens
        seats -= request.samples
        if seats < 0 or blocks < 0 or (budget < 0 and prompts):
            break
        prompts.append((request, tokens if budget >= 0 else limits.max_batch_tokens))
    return Step(prompts, reserves=True)


def _begun(partial: Sequence[Request], budget: int) -> list[tuple[Request, int]]:
    """Return those begun who go on: whole and together as the budget allows, or a slice of the first."""
    prompts: list[tuple[Request, int]] = []
    for request in partial:
        tokens = request.prefill_tokens - request.computed
        if prompts and tokens > budget:
            break
        prompts.append((request, min(tokens, budget)))
        budget -= tokens
    return prompts


class ChunkedPrefill(Strict):
    """Chunked prefill: every iteration decodes, and fills up to a budget of tokens with parts of prompts."""

    max_running: Count = 256
    """Requests running together at most, decoding or partly prefilled, each sample counted (vLLM: max_num_seqs)."""
    max_batch_tokens: Count = 8192
    """Tokens of one iteration at most, one for each sequence that decodes (vLLM: max_num_batched_tokens)."""
    long_prefill_threshold: Count | None = None
    """Tokens of one prompt in one iteration at most (vLLM: long_prefill_token_threshold); default: no such limit."""

    @model_validator(mode="after")
    def _all_can_decode(self) -> Self:
        if self.max_running > self.max_batch_tokens:
            what = f"{self.max_running} requests cannot decode in iterations of {self.max_batch_tokens} tokens"
            raise LocatedError(Fault(("max_running",), what, f"at most max_batch_tokens, {self.max_batch_tokens}"))
        return self


def chunked_prefill(limits: ChunkedPrefill, engine: EngineView) -> Step:
    """Let all who decode go on, then the prompts begun, then new ones, as far as tokens and KV blocks reach.

    Blocks are taken chunk by chunk; who runs short of them makes the last in line give up its own, to be recomputed,
    and nobody new is admitted then. A new prompt must find blocks for all of itself (vLLM: scheduler_reserve_full_isl).
    """
    paging, most = engine.paging, limits.long_prefill_threshold or limits.max_batch_tokens
    partial, latest = list(engine.partial), engine.latest()
    free, budget = engine.free_blocks - engine.step_blocks, limits.max_batch_tokens
    budget -= engine.decoding * engine.positions
    preempts = 0
    chosen: dict[Request, tuple[int, int]] = {}  # tokens and blocks of those begun who go on

    def preempt() -> None:
        nonlocal free, budget, preempts
        victim = next(latest)
        free += victim.blocks + victim.due
        preempts += 1
        if victim.request in partial:
            partial.remove(victim.request)
            tokens, blocks = chosen.pop(victim.request, (0, 0))
            free, budget = free + blocks, budget + tokens
        else:
            budget += victim.request.samples * engine.positions

    while free < 0:
        preempt()
    for request in tuple(partial):
        if not budget:
            break
        done = request.computed
        tokens = min(request.prefill_tokens - done, most, budget)
        held = request.blocks + request.shared_blocks  # whose prefix was loaded holds blocks for all of its prompt
        blocks = max(0, paging.prefilling(request, done, done + tokens) - held)
        while blocks > free and request in partial:
            preempt()
        if request in partial:
            free -= blocks
            budget -= tokens
            chosen[request] = tokens, blocks
    prompts = [(request, tokens) for request, (tokens, _) in chosen.items()]
    if preempts:
        return Step(prompts, True, preempts=preempts)
    free += engine.admissible_blocks - engine.free_blocks
    seats = limits.max_running - engine.running
    for request in engine.waiting if budget and seats else ():
        whole, blocks = engine.claim(request)
        if not budget or seats < request.samples or blocks > free:
            break
        tokens, all_tokens = min(whole, most, budget), request.prefill_tokens
        later = paging.reserved(request)
        later -= paging.prefilling(request, all_tokens - whole, all_tokens - whole + tokens)
        free -= blocks - later
        budget -= tokens
        seats -= request.samples
        prompts.append((request, tokens))
    return Step(prompts, True)


class Batcher(NamedTuple):
    """A registered batcher: its parameters as they stand in a scenario, and its policy.

    The parameters name `max_running` and `max_batch_tokens`, for which the memory ledger sets aside activations.
    """

    parameters: type[Strict]
    policy: Callable[[Any, EngineView], Step]
    to_completion: bool = False
    """Whether who has all tokens keeps the place in the batch until all others have theirs."""
    slices: bool = True
    """Whether a prompt larger than `max_batch_tokens` is computed in parts of that."""


BATCHERS: dict[str, Batcher] = {
    "continuous": Batcher(Continuous, continuous),
    "chunked_prefill": Batcher(ChunkedPrefill, chunked_prefill),
    "orca": Batcher(Orca, orca, slices=False),
    "static": Batcher(Static, static, to_completion=True),
    "dynamic": Batcher(Dynamic, dynamic, to_completion=True),
}
