"""Iterations of an engine's ranks: how long they last by the engine's cost, and the gaps between tokens they make.

Model: iteration-level scheduling (Orca, OSDI 2022); ranks of data-parallel attention or of a pipeline go together.
"""

from collections.abc import Sequence
from typing import cast

from simulator.serving.engine import Engine, EngineCost, Observer, RanksCost
from simulator.serving.engine_view import DECODE_ON, Step
from simulator.serving.jump import TICK_BITS, Jump, StepTicks, SummedJump
from simulator.serving.rank import Rank

MOST_STEPS = 1024
"""Decode iterations of several ranks that are summed at once."""


def begin_alone(rank: Rank, cost: EngineCost, now_ns: int) -> tuple[float, int]:
    """Begin the iteration with prompts of an only rank; return how many ns it lasts and how many decode in it."""
    step, batch = rank.step, rank.batch
    tokens, pairs, prompts = rank.begin(step, now_ns)
    size = len(batch.members) if step.decodes else 0
    if not size:
        return cost.prefill_ns(tokens, pairs, prompts), 0
    rank.decodes = True
    return cost.mixed_ns(tokens, pairs, prompts, size, batch.context + size), size


def jump_together(ranks: Sequence[Rank], cost: EngineCost, start: int, steps: int) -> SummedJump:
    """Return the next decode iterations of those ranks that decode; `start` is in ticks."""
    sizes = [len(rank.batch.members) + rank.batch.ghosts if rank.decodes else 0 for rank in ranks]
    contexts = [rank.batch.context + size if size else 0 for rank, size in zip(ranks, sizes, strict=True)]
    lines = cast(RanksCost, cost).decode_together(sizes)
    members = sum(len(rank.batch.members) for rank in ranks if rank.decodes)  # padding makes no tokens
    return SummedJump(start, lines.lengths(contexts, min(steps, MOST_STEPS)), members)


def next_jump(
    ranks: Sequence[Rank], cost: EngineCost, start: int, steps: int, step_ticks: StepTicks
) -> Jump | SummedJump:
    """Return the next decode iterations, at most `steps`, of those ranks that decode; `start` is in ticks."""
    if len(ranks) > 1:
        return jump_together(ranks, cost, start, steps)
    batch = ranks[0].batch
    members, context = len(batch.members), batch.context
    size = members + batch.ghosts
    until, fixed, slope = step_ticks(size, context + size)
    if until < context + steps * size:  # the line ends within the jump
        steps = int(until - context) // size
    jump = Jump(start, steps, size, context, fixed, slope)
    jump.batch = members  # ghosts make no tokens
    return jump


def next_step(rank: Rank, engine: Engine) -> Step:
    """Return what a rank does next: what its batcher says, without prompts that have to wait for copies."""
    step = engine.policy(engine.limits, rank) if rank.waiting or rank.partial else DECODE_ON
    if rank.swapped:
        step = step.of_begun()  # who was swapped out comes before new prompts
    if rank.lower is not None and rank.kv.prefixes is not None:
        step = rank.lower.until_load(step, next(iter(rank.waiting), None), rank.kv.prefixes)
    return step


def copies_done(ranks: Sequence[Rank], ticks: int) -> int:
    """Return when an iteration may begin that is ready at `ticks`: when the copies are done that it waits for."""
    return max([ticks, *(rank.swap.ready for rank in ranks if rank.swap is not None)])


def report_gaps(ranks: Sequence[Rank], jump: Jump | SummedJump, observer: Observer) -> None:
    """Report how long after the token before each token of a jump came."""
    first_ns = (jump.start + jump.first) >> TICK_BITS
    for rank in ranks:
        if rank.decodes:
            rank.report_gaps(first_ns, observer.gap)
    if jump.steps > 1:
        jump.report_rest(observer.gap, observer.gaps)
