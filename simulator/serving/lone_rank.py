"""An instance of one rank with nothing but device memory: what `Instance` does with any, in straight lines.

Most engines are such, and most of a run is spent in their iterations, so its alarm calls it in the place of a process.
The general engine is the twin that this one is held against: the same calls in the same order, so the same rows.
"""

from typing import cast

from simpy.events import EventPriority

from simulator.clock import Alarm
from simulator.results.windows import DECODE, IDLE, PREFILL
from simulator.serving.decode_batch import DecodeBatch
from simulator.serving.engine import Engine
from simulator.serving.engine_view import DECODE_ON
from simulator.serving.instance import Instance
from simulator.serving.iteration import begin_alone
from simulator.serving.jump import Jump
from simulator.units import TICK_BITS, TICKS_PER_NS


class LoneRank(Instance):
    """An instance of an engine of one rank; see `kind_of`."""

    # -- the actor ------------------------------------------------------------------------------------------------

    def _awakened(self, order: EventPriority) -> Alarm:
        return Alarm(self.env, order, self._woken)

    def _woken(self) -> None:
        """End what was under way and begin what comes next: a turn of the general engine's process, without it."""
        rank, now, does = self._first, self.env.now, self._does
        if does == DECODE:
            self._end_jump()
        elif does == PREFILL:
            self._end_jump()
            self._end_prefill()
        else:
            self._mark()
            self._ticks = now << TICK_BITS
        if self._prompts(now):
            self._does = PREFILL
            self._begin_prefill()
        elif rank.batch.members:
            self._does = DECODE
            self._begin_jump()
        else:
            self._does = IDLE
            self._begins(IDLE)
            if rank.step.wake_ns is not None:
                self._alarm.set(rank.step.wake_ns)

    def _prompts(self, now: int) -> bool:
        """Let the rank say what it does next; return whether that is an iteration with prompts."""
        rank = self._first
        rank.now_ns = now
        if rank.arrived or rank.kv.prefixes is not None:
            rank.take_stock(now, self.name)
        if self._leaving:
            self._let_go()
        if not (rank.waiting or rank.partial):
            rank.step = DECODE_ON
            return False
        engine = self.engine
        step = rank.step = engine.policy(engine.limits, rank)
        for _ in range(step.preempts):
            self._preempt_last(rank)
        return bool(step.prompts)

    def _begin_prefill(self) -> None:
        rank, now = self._first, self.env.now
        lasts_ns, size = begin_alone(rank, self.cost, now)
        ticks = round(lasts_ns * TICKS_PER_NS)
        if size:
            rank.start_decoding(now)
            self._jump = Jump(self._ticks, 1, size, 0, ticks, 0)
        self._ticks += ticks
        end_ns = self._ticks >> TICK_BITS
        self._alarm.set(end_ns)
        self._begins(PREFILL)
        if self._began is not None and rank.step.prompts:
            self._began(rank.step.prompts, end_ns, self)
        if rank.reservations:
            self._grant(rank)

    def _begin_jump(self, wake_ns: int | None = None) -> None:
        rank, now = self._first, self.env.now
        batch, kv = cast(DecodeBatch, rank.batch), rank.kv
        steps = batch.steps_to_finish()
        if kv.prefixes is not None or batch.blocks_at_most(steps) > kv.total - kv.held:
            steps = self._fit(rank)
        size, context = batch.sequences, batch.context
        most = rank.step.steps
        if most is not None and most < steps:
            steps = most
        rank.decodes = steps > 0
        if not steps:  # all that is left holds reserved blocks: look again
            self._alarm.set(now)
            return
        if rank.fresh:
            rank.start_decoding(now)
        until, fixed, slope = self._step_ticks(size, context + size)
        if until < context + steps * size:  # the line ends within the jump
            steps = int(until - context) // size
        self._jump = jump = Jump(self._ticks, steps, size, context, fixed, slope)
        self._alarm.set(jump.end >> TICK_BITS)
        self._begins(DECODE)

    def _end_jump(self) -> None:
        jump = cast("Jump | None", self._jump)
        if jump is None:
            return
        self._jump = None
        self._ticks = jump.end
        rank, account, now, steps = self._first, self._account, self.env.now, jump.steps
        batch, kv, observer = cast(DecodeBatch, rank.batch), rank.kv, self._observer
        first, growth = jump.first, jump.growth
        rank.report_gaps((jump.start + first) >> TICK_BITS, observer.gap)
        if steps > 1:
            last = first + growth * (steps - 1)
            observer.gaps((first + growth) >> TICK_BITS, last >> TICK_BITS, steps - 1, jump.batch)
        batch.advance(steps)
        rank.decoded += steps
        rank.last_step_ns = now
        blocks = kv.held + batch.blocks
        if kv.prefixes is not None:
            kv.make_room()
            blocks += kv.shared
        made = steps * jump.batch - account.tokens
        observer.observe(now, self.state, account.running, account.waiting, account.kv_blocks, made, blocks)
        account.kv_blocks = blocks
        rank.decodes = False
        if batch.first_finish <= batch.iteration:
            self._let_finished_go(rank)

    def _end_prefill(self) -> None:
        rank = self._first
        done = rank.computed(rank.step.prompts)
        made = sum([request.samples for request in done])
        self._account.passed(self.state, rank.kv.used, made)
        rank.step = DECODE_ON
        self._go_on(rank, done)
        if rank.reservations:
            self._grant(rank)

    # -- what it tells its observer -------------------------------------------------------------------------------

    def _mark(self) -> int:
        account, jump, kv, now = self._account, cast("Jump | None", self._jump), self._first.kv, self.env.now
        begun = made = 0
        if jump is None:
            blocks = kv.used
        else:
            begun = jump.steps_by(now)
            ends = jump.start + begun * jump.first + jump.growth * (begun * (begun - 1) // 2)
            tokens = (begun if ends >> TICK_BITS <= now else begun - 1) * jump.batch
            made = tokens - account.tokens
            account.tokens = tokens
            blocks = kv.used_after(begun)
        self._observer.observe(now, self.state, account.running, account.waiting, account.kv_blocks, made, blocks)
        account.kv_blocks = blocks
        return begun

    def _begins(self, state: int) -> None:
        self.state = state
        account, rank, kv = self._account, self._first, self._first.kv
        running = rank.batch.sequences
        if rank.partial:
            running += sum([request.samples for request in rank.partial])
        account.running = running
        account.waiting = len(rank.waiting) + len(rank.reservations) + rank.reserved
        account.kv_blocks = kv.held + rank.batch.blocks + (kv.shared if kv.prefixes is not None else 0)
        account.tokens = 0


def kind_of(engine: Engine) -> type[Instance]:
    """Return the kind of an engine's instances: one rank, memory on the device only, and steps all alike, or any."""
    beside = engine.swap or engine.lower or engine.speculation or engine.first_chunk
    lone = engine.ranks == 1 and not (beside or engine.to_completion or engine.counts_service or engine.outranks)
    return LoneRank if lone else Instance
