"""Iterations of an engine's ranks: how long they last by the engine's cost, and the gaps between tokens they make.

Model: iteration-level scheduling (Orca, OSDI 2022); ranks of data-parallel attention or of a pipeline go together.
"""

from collections.abc import Callable, Sequence

from simulator.device.cost import Cost
from simulator.model.forward import Work
from simulator.serving.engine import Engine, Observer
from simulator.serving.engine_view import DECODE_ON, Step
from simulator.serving.jump import Jump, SummedJump
from simulator.serving.rank import Rank
from simulator.units import TICK_BITS


def begin_alone(rank: Rank, cost: Cost, now_ns: int) -> tuple[float, int]:
    """Begin the iteration with prompts of an only rank; return how many ns it lasts and how many decode in it."""
    step, batch = rank.step, rank.batch
    tokens, pairs, prompts = rank.begin(step, now_ns)
    size = batch.sequences if step.decodes else 0
    if not size:
        return cost.prefill_ns(tokens, pairs, prompts), 0
    rank.decodes = True
    return cost.mixed_ns(tokens, pairs, prompts, size, batch.context + size * batch.positions), size


def begin_together(
    ranks: Sequence[Rank], cost: Cost, now_ns: int, fit: Callable[[Rank], int]
) -> tuple[float, int, Sequence[Work]]:
    """Begin an iteration of all ranks, some with prompts; return how long it lasts, how many decode, each rank's work.

    `fit` makes room for a decode step of a rank and says whether any is left to go on.
    """
    works: list[Work] = []
    decoding = 0
    for rank in ranks:
        step, batch = rank.step, rank.batch
        rank.decodes = bool(step.decodes and batch.members if step.prompts else fit(rank))
        prompts = rank.begin(step, now_ns)
        size = batch.sequences + batch.ghosts if rank.decodes else 0
        works.append(Work(*prompts, size, batch.context + size * batch.positions if size else 0))
        decoding += batch.sequences if rank.decodes else 0
    return cost.together_ns(works), decoding, works


def next_step(rank: Rank, engine: Engine) -> Step:
    """Return what a rank does next: what its batcher says, without prompts that have to wait for copies."""
    step = engine.policy(engine.limits, rank) if rank.waiting or rank.partial else DECODE_ON
    if rank.swap is None and rank.lower is None:
        return step
    if rank.swapped:
        step = step.of_begun()  # who was swapped out comes before new prompts
    if rank.lower is not None and rank.kv.prefixes is not None:
        step = rank.lower.until_load(step, next(iter(rank.waiting), None), rank.kv.prefixes)
    return step


def decide(rank: Rank, engine: Engine, preempt: Callable[[Rank], None]) -> Step:
    """Return what a rank does next, once those are preempted who make way for it."""
    rank.step = next_step(rank, engine)
    while engine.outranks and outranked(rank):
        preempt(rank)
        rank.step = next_step(rank, engine)
    for _ in range(rank.step.preempts):
        preempt(rank)
    return rank.step


def outranked(rank: Rank) -> bool:
    """Return whether the next in line has no place in a rank's step and a running request has a lower priority.

    Nobody has to go while the batcher takes nobody, whoever waits: a batch that runs to completion, decodes first.
    """
    step = rank.step
    if rank.batch.keeps or step.steps is not None:
        return False
    head, lowest = next(iter(rank.waiting), None), next(rank.victims(), None)
    if head is None or lowest is None or lowest.traits.priority >= head.traits.priority:
        return False
    if not step.prompts and not step.preempts:
        return True
    return rank.running + head.samples > rank.limits.max_running or rank.claim(head)[1] > rank.admissible_blocks


def copies_done(ranks: Sequence[Rank], ticks: int) -> int:
    """Return when an iteration may begin that is ready at `ticks`: when the copies are done that it waits for."""
    return max([ticks, *(rank.swap.ready for rank in ranks if rank.swap is not None)])


def start_decoding(ranks: Sequence[Rank], now_ns: int) -> None:
    """Note when those who are new to the batches had their first step."""
    for rank in ranks:
        if rank.decodes and rank.fresh:
            rank.start_decoding(now_ns)


def report_gaps(ranks: Sequence[Rank], jump: Jump | SummedJump, observer: Observer) -> None:
    """Report how long after the token before each token of a jump came."""
    first_ns = (jump.start + jump.first) >> TICK_BITS
    for rank in ranks:
        if rank.decodes:
            rank.report_gaps(first_ns, observer.gap)
    if jump.steps > 1:
        jump.report_rest(observer.gap, observer.gaps)
