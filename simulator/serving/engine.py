"""What an engine is given: the durations of its phases, its policy and memory, and where it reports what it did."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from simulator.device.cost import Cost
from simulator.serving.engine_view import EngineView, Step
from simulator.serving.jump import StepTicks
from simulator.serving.lower_tiers import LowerTiers
from simulator.serving.paging import Paging, Windows, paging_of
from simulator.serving.prefix_cache import PrefixCache
from simulator.serving.queueing import Queue
from simulator.serving.request import Request
from simulator.serving.speculation import Speculation
from simulator.serving.swap import SwapSpace


class Engine(NamedTuple):
    """What the instances of one pool share: costs, batching policy and memory size."""

    role: str
    cost: Cost
    step_ticks: StepTicks
    policy: Callable[[Any, EngineView], Step]
    limits: Any
    """Of each rank."""
    kv_blocks: int
    """Of each rank, as `watermark_blocks`."""
    block_tokens: int
    watermark_blocks: int
    ranks: int = 1
    prefixes: Callable[[], PrefixCache] | None = None
    """Makes the prefix cache of a rank."""
    queue: Callable[[], Queue] | None = None
    """Makes the queue of a rank; default: first come, first served."""
    to_completion: bool = False
    """Whether who has all tokens keeps the place in the batch until all others have theirs."""
    counts_service: bool = False
    """Whether the queue is to hear of the tokens that are generated."""
    by_priority: bool = False
    """Whether the lowest priority is preempted first, and of its like the latest; default: who was begun last."""
    outranks: bool = False
    """Whether who waits may take the place of a running request of lower priority."""
    speculation: Speculation | None = None
    """Tokens drafted in every iteration and verified with it; the cost is that of such iterations."""
    swap: Callable[[], Sequence[SwapSpace]] | None = None
    """Makes the host memory of each rank for preempted requests; default: they are recomputed."""
    first_chunk: int = 0
    """Output tokens of a request, at most, that are together when the first are sent, by the engine that decodes it;
    0: the first is sent as it is made, whoever makes it."""
    lower: Callable[[Sequence[int]], Sequence[LowerTiers]] | None = None
    """Makes what each rank of an engine on these devices finds below its prefix cache; default: nothing."""
    windows: Windows | None = None
    """Layers that give back KV blocks of positions that they see no more; default: there are none."""

    @property
    def paging(self) -> Paging:
        """How requests take KV blocks."""
        fed = 1 + self.speculation.tokens if self.speculation is not None else 1
        return paging_of(self.block_tokens, self.windows, fed)

    @property
    def request_blocks(self) -> int:
        """KV blocks that a request alone on a rank may take in all.

        Pinned prefixes never make room, and as they are in use the watermark is kept beside them.
        """
        cache = self.prefixes() if self.prefixes is not None else None
        pinned = cache.pin_most * cache.unit_blocks if cache is not None else 0
        return max(0, self.kv_blocks - pinned - self.watermark_blocks) if pinned else self.kv_blocks


class Observer(NamedTuple):
    """Where an engine reports what it did; the callables turn it into rows and never answer."""

    observe: Callable[[int, int, int, int, int, int, int], None]
    """(now_ns, state, running, waiting, kv_blocks, tokens, kv_end_blocks): what held since the last call until now."""
    gap: Callable[[int, int], None]
    """(gap_ns, count): so many tokens came so long after the token before them."""
    gaps: Callable[[int, int, int, int], None]
    """(first_ns, last_ns, steps, count): steps with lengths in arithmetic progression gave `count` tokens each."""
    preempted: Callable[[int, str, Request], None]
    """(now_ns, instance, request): a request lost its KV blocks and goes back to the queue."""
