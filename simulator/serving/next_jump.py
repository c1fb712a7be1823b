"""The jump that the ranks of an engine take next: in closed form where every step makes as much, else step by step.

Model: a rank's context grows by its batch in every step, or with drafted tokens by what its members gain in each.
"""

from collections.abc import Sequence
from typing import Any, cast

import numpy as np

from simulator.device.cost import Cost
from simulator.serving.decode_batch import DecodeBatch
from simulator.serving.jump import Jump, SpeculativeJump, StepTicks, SummedJump, ticks_of
from simulator.serving.rank import Rank
from simulator.serving.speculation import SpeculativeBatch

MOST_STEPS = 1024
"""Decode iterations that are summed at once where there is no closed form."""


def one_step(start: int, ranks: Sequence[Rank], ticks: int) -> Jump | SummedJump:
    """Return the decode step of an iteration with prompts that lasts so many ticks."""
    size = sum(rank.batch.sequences for rank in ranks if rank.decodes)
    if isinstance(ranks[0].batch, DecodeBatch):
        return Jump(start, 1, size, 0, ticks, 0)
    return SpeculativeJump(start, [ticks], size, _gained(ranks, 1))


def next_jump(start: int, ranks: Sequence[Rank], steps: int, cost: Cost, step_ticks: StepTicks) -> Jump | SummedJump:
    """Return the next decode steps, `steps` at most, of the ranks that take part, from tick `start` on."""
    if isinstance(ranks[0].batch, SpeculativeBatch):
        return _speculative(start, ranks, min(steps, MOST_STEPS), cost, step_ticks)
    if len(ranks) == 1:
        return _closed(start, ranks[0].batch, steps, step_ticks)
    batches = [cast(DecodeBatch, rank.batch) for rank in ranks]
    sizes = [b.sequences + b.ghosts if rank.decodes else 0 for rank, b in zip(ranks, batches, strict=True)]
    contexts = np.array([batch.context + size if size else 0 for batch, size in zip(batches, sizes, strict=True)])
    grown = contexts + np.array(sizes) * np.arange(min(steps, MOST_STEPS))[:, None]
    lengths = ticks_of(cost.decode_together(sizes).at(grown))
    return SummedJump(start, lengths, sum(rank.batch.sequences for rank in ranks if rank.decodes))


def _closed(start: int, batch: DecodeBatch, steps: int, step_ticks: StepTicks) -> Jump:
    sequences, context = batch.sequences, batch.context
    size = sequences + batch.ghosts
    until, fixed, slope = step_ticks(size, context + size)
    if until < context + steps * size:  # the line ends within the jump
        steps = int(until - context) // size
    jump = Jump(start, steps, size, context, fixed, slope)
    jump.batch = sequences  # ghosts make no tokens
    return jump


def _speculative(start: int, ranks: Sequence[Rank], steps: int, cost: Cost, step_ticks: StepTicks) -> SpeculativeJump:
    sizes = [len(rank.batch.members) if rank.decodes else 0 for rank in ranks]
    batches = [cast(SpeculativeBatch, rank.batch) for rank in ranks]
    if len(ranks) == 1:
        contexts = batches[0].contexts(steps)
        until, fixed, slope = step_ticks(sizes[0], int(contexts[0]))
        contexts = contexts[: np.searchsorted(contexts, until, side="right")]  # the line may end within the jump
        lengths = fixed + slope * contexts
    else:
        nothing = np.zeros(steps, dtype=np.int64)
        each = [batch.contexts(steps) if size else nothing for batch, size in zip(batches, sizes, strict=True)]
        lengths = ticks_of(cost.decode_together(sizes).at(np.stack(each, axis=1)))
    return SpeculativeJump(start, lengths, sum(sizes), _gained(ranks, len(lengths)))


def _gained(ranks: Sequence[Rank], steps: int) -> Any:
    """Return the tokens that come of each of the next steps of all speculative ranks that take part in them."""
    return sum(cast(SpeculativeBatch, rank.batch).tokens(steps) for rank in ranks if rank.decodes)
