"""Batchers: what an engine does in its next iteration, as pure functions over a read-only view of it.

Sources: continuous batching with iteration-level scheduling (Orca, OSDI 2022); prefill first with a token budget and a
watermark of free KV blocks (vLLM, SOSP 2023); prompts in chunks beside decodes (Sarathi-Serve, OSDI 2024; vLLM V1).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol, Self

from pydantic import model_validator

from simulator.serving.request import Request
from simulator.strict import Count, Fault, LocatedError, Strict


class EngineView(Protocol):
    """What a batcher may read of an engine between two iterations."""

    block_tokens: int

    @property
    def waiting(self) -> Iterable[Request]:
        """The queue, the next in line first."""

    def claim(self, request: Request) -> tuple[int, int]:
        """Return (tokens that a prefill of a waiting request computes, KV blocks that all of it takes from the free).

        Those are fewer than its context has when a cache holds the beginning of it.
        """

    @property
    def partial(self) -> Sequence[Request]:
        """Prompts begun and not ended, in order of admission; `computed` tokens of each are done."""

    @property
    def running(self) -> int:
        """Requests that decode, that are partly prefilled, or that hold a reserved place."""

    @property
    def decoding(self) -> int:
        """Requests that take part in a decode step."""

    @property
    def admissible_blocks(self) -> int:
        """KV blocks that new prompts may take, the watermark left free."""

    @property
    def free_blocks(self) -> int:
        """KV blocks that nothing holds."""

    @property
    def step_blocks(self) -> int:
        """KV blocks that those who decode take for one step more."""

    def latest(self) -> Iterator[tuple[int, int]]:
        """Yield the (blocks held, of `step_blocks`) of each who may be preempted: prompts begun last, then decodes."""


class Step(NamedTuple):
    """The next iteration. Without prompts it is a decode step, and the engine decodes on until something changes."""

    prompts: Sequence[tuple[Request, int]] = ()
    """Whom to prefill and how many tokens: some of those begun, then as many from the head of the queue as are new."""
    decodes: bool = False
    """Whether those who decode take part in an iteration with prompts."""
    reserves: bool = False
    """Whether a new prompt takes KV blocks for all of itself at once, or as its parts are computed."""
    preempts: int = 0
    """How many give up their KV blocks first and go back to the queue, in the order of `EngineView.latest`."""


class Continuous(Strict):
    """Continuous batching, prefill first: a prompt that fits is prefilled before anyone decodes on."""

    max_running: Count = 256
    """Requests decoding together at most (vLLM: max_num_seqs)."""
    max_batch_tokens: Count = 8192
    """Prompt tokens of one prefill at most (vLLM: max_num_batched_tokens); a longer prompt goes alone, in slices."""


def continuous(limits: Continuous, engine: EngineView) -> Step:
    """Prefill as many requests at the head of the queue as fit, whole and together, or decode.

    First come, first served: the first request that does not fit (seats, tokens, KV blocks) holds back those behind it.
    A prompt larger than the budget goes in slices, one an iteration, with nobody else.
    """
    if engine.partial:
        return Step(_begun(engine.partial, limits.max_batch_tokens), reserves=True)
    seats = limits.max_running - engine.running
    budget = limits.max_batch_tokens
    blocks = engine.admissible_blocks
    claim = engine.claim
    prompts: list[tuple[Request, int]] = []
    for request in engine.waiting:
        tokens, taken = claim(request)
        blocks -= taken
        budget -= tokens
        if len(prompts) >= seats or blocks < 0 or (budget < 0 and prompts):
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
    """Requests running together at most, each decoding or partly prefilled (vLLM: max_num_seqs)."""
    max_batch_tokens: Count = 8192
    """Tokens of one iteration at most, one for each who decodes (vLLM: max_num_batched_tokens)."""
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
    size, most = engine.block_tokens, limits.long_prefill_threshold or limits.max_batch_tokens
    partial, latest = list(engine.partial), engine.latest()
    free, budget = engine.free_blocks - engine.step_blocks, limits.max_batch_tokens - engine.decoding
    preempts = 0

    def preempt() -> None:
        nonlocal free, budget, preempts
        held, due = next(latest)
        free += held + due
        preempts += 1
        if partial:
            partial.pop()
        else:
            budget += 1

    while free < 0:
        preempt()
    prompts: list[tuple[Request, int]] = []
    while budget and len(prompts) < len(partial):
        request = partial[len(prompts)]
        done = request.computed
        tokens = min(request.prefill_tokens - done, most, budget)
        blocks = -(-(done + tokens) // size) - -(-done // size)
        while blocks > free and len(prompts) < len(partial):
            preempt()
        if len(prompts) < len(partial):
            free -= blocks
            budget -= tokens
            prompts.append((request, tokens))
    if preempts:
        return Step(prompts, True, preempts=preempts)
    free += engine.admissible_blocks - engine.free_blocks
    seats = limits.max_running - engine.running
    for request in engine.waiting if budget and seats else ():
        whole, blocks = engine.claim(request)
        if not budget or not seats or blocks > free:
            break
        tokens = min(whole, most, budget)
        free -= blocks - (-(-whole // size) - -(-tokens // size))
        budget -= tokens
        seats -= 1
        prompts.append((request, tokens))
    return Step(prompts, True)


class Batcher(NamedTuple):
    """A registered batcher: its parameters as they stand in a scenario, and its policy.

    The parameters name `max_running` and `max_batch_tokens`, for which the memory ledger sets aside activations.
    """

    parameters: type[Strict]
    policy: Callable[[Any, EngineView], Step]


BATCHERS: dict[str, Batcher] = {
    "continuous": Batcher(Continuous, continuous),
    "chunked_prefill": Batcher(ChunkedPrefill, chunked_prefill),
}
