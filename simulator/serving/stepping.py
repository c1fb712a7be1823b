"""Runs of decode steps of an engine's ranks: how long the next ones take, and the gaps between their tokens."""

from collections.abc import Sequence
from typing import cast

from simulator.serving.engine import EngineCost, Observer, RanksCost
from simulator.serving.jump import TICK_BITS, Jump, StepTicks, SummedJump
from simulator.serving.rank import Rank

MOST_STEPS = 1024
"""Decode iterations of several ranks that are summed at once."""


def next_jump(
    ranks: Sequence[Rank], ticks: int, steps: int, cost: EngineCost, step_ticks: StepTicks
) -> Jump | SummedJump:
    """Return the next decode steps, at most `steps`, of the ranks that decode; they begin at `ticks`."""
    if len(ranks) == 1:
        batch = ranks[0].batch
        members, context = len(batch.members), batch.context
        size = members + batch.ghosts
        until, fixed, slope = step_ticks(size, context + size)
        if until < context + steps * size:  # the line ends within the jump
            steps = int(until - context) // size
        jump = Jump(ticks, steps, size, context, fixed, slope)
        jump.batch = members  # ghosts make no tokens
        return jump
    sizes = [len(rank.batch.members) + rank.batch.ghosts if rank.decodes else 0 for rank in ranks]
    contexts = [rank.batch.context + size if size else 0 for rank, size in zip(ranks, sizes, strict=True)]
    lines = cast(RanksCost, cost).decode_together(sizes)
    members = sum(len(rank.batch.members) for rank in ranks if rank.decodes)
    return SummedJump(ticks, lines.lengths(contexts, min(steps, MOST_STEPS)), members)


def report_gaps(ranks: Sequence[Rank], jump: Jump | SummedJump, observer: Observer) -> None:
    """Report the time between each token of a jump and the one before it."""
    first_ns = (jump.start + jump.first) >> TICK_BITS
    for rank in ranks:
        if rank.decodes:
            rank.report_gaps(first_ns, observer.gap)
    if jump.steps > 1:
        jump.report_rest(observer.gap, observer.gaps)
