"""Batchers: what an engine does in its next iteration, as pure functions over a read-only view of it.

Sources: continuous batching with iteration-level scheduling (Orca, OSDI 2022); prefill first with a token budget and a
watermark of free KV blocks (vLLM, SOSP 2023, its default scheduler before chunked prefill).
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from simulator.serving.request import Request
from simulator.strict import Count, Strict


class EngineView(Protocol):
    """What a batcher may read of an engine between two iterations."""

    waiting: Sequence[Request]

    @property
    def running(self) -> int:
        """Requests that decode, or that hold a reserved place to do so."""

    @property
    def admissible_blocks(self) -> int:
        """KV blocks that new prompts may take, the watermark left free."""

    block_tokens: int


class Continuous(Strict):
    """Continuous batching, prefill first: a prompt that fits is prefilled before anyone decodes on."""

    max_running: Count = 256
    """Requests decoding together at most (vLLM: max_num_seqs)."""
    max_batch_tokens: Count = 8192
    """Prompt tokens of one prefill at most (vLLM: max_num_batched_tokens); a longer prompt goes alone, in slices."""


def continuous(limits: Continuous, engine: EngineView) -> int:
    """Return how many requests at the head of the queue to prefill together now; 0 means a decode iteration.

    First come, first served: the first request that does not fit (seats, tokens, KV blocks) holds back those behind it.
    """
    seats = limits.max_running - engine.running
    budget = limits.max_batch_tokens
    blocks = engine.admissible_blocks
    block_tokens = engine.block_tokens
    count = 0
    for request in engine.waiting:
        tokens = request.prefill_tokens
        blocks -= -(-tokens // block_tokens)
        budget -= tokens
        if count >= seats or blocks < 0 or (budget < 0 and count):
            break
        count += 1
    return count


class Batcher(NamedTuple):
    """A registered batcher: its parameters as they stand in a scenario, and its policy."""

    parameters: type[Strict]
    policy: Callable[[Any, EngineView], int]


BATCHERS: dict[str, Batcher] = {"continuous": Batcher(Continuous, continuous)}
