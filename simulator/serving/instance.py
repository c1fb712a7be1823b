"""One serving engine: a queue, a batcher, a KV cache and the leased devices it computes on.

Model: iterations in sequence, each a prefill of whole prompts or a decode step of the batch; runs of decode steps are
jumps in closed form, cut at the next step's end when something arrives that may change what the engine does.
"""

from collections import deque
from collections.abc import Callable, Generator, Sequence
from typing import Any, NamedTuple, Protocol

from simpy import Environment, Event

from simulator.clock import Alarm
from simulator.serving.decode_batch import DecodeBatch
from simulator.serving.jump import TICK_BITS, TICKS_PER_NS, Jump, StepTicks
from simulator.serving.kv_cache import KVCache
from simulator.serving.request import Request

IDLE, PREFILL, DECODE = 0, 1, 2


class EngineCost(Protocol):
    """Seconds of the engine's phases, in nanoseconds; see simulator.device.cost."""

    def prefill_ns(self, tokens: int, attended: int, sequences: int) -> float:
        """Return the time to prefill `tokens` new tokens with `attended` query-key pairs over `sequences` prompts."""

    def decode(self, batch: int) -> tuple[float, float]:
        """Return a decode step's (fixed_ns, per_context_token_ns)."""


class Engine(NamedTuple):
    """What the instances of one pool share: costs, batching policy and memory size."""

    role: str
    cost: EngineCost
    step_ticks: StepTicks
    policy: Callable[[Any, Any], int]
    limits: Any
    kv_blocks: int
    block_tokens: int
    watermark_blocks: int


class Observer(Protocol):
    """Hears what an engine does; it turns it into rows and never answers."""

    def begins(
        self, now_ns: int, state: int, running: int, waiting: int, kv_blocks: int, kv_per_ns: float, tokens: int
    ) -> None:
        """An interval begins with these values; KV use grows by `kv_per_ns`; the one before it gave `tokens`."""

    def queued(self, now_ns: int, waiting: int) -> None:
        """The queue has grown to `waiting` requests."""

    def gap(self, gap_ns: int, count: int) -> None:
        """`count` tokens came `gap_ns` after the token before them."""

    def gaps(self, first_ns: int, last_ns: int, steps: int, count: int) -> None:
        """`steps` iterations with lengths in arithmetic progression each gave `count` tokens."""

    def preempted(self, now_ns: int, instance: str, request: Request) -> None:
        """A request lost its KV blocks and goes back to the queue."""


class Instance:
    """An engine as an actor: `submit` requests to it, or `reserve` and `join` ones that were prefilled elsewhere."""

    def __init__(
        self,
        env: Environment,
        name: str,
        engine: Engine,
        devices: Sequence[int],
        observer: Observer,
        finished: Callable[[Request, "Instance"], None],
        prefilled: Callable[[Request, "Instance"], None] | None = None,
    ) -> None:
        self.env = env
        self.name = name
        self.engine = engine
        self.devices = tuple(devices)
        self.block_tokens = engine.block_tokens
        self.waiting: deque[Request] = deque()
        self.batch = DecodeBatch(engine.block_tokens)
        self.kv = KVCache(engine.kv_blocks, engine.block_tokens, engine.watermark_blocks, self.batch)
        self.state = IDLE
        self._observer = observer
        self._finished = finished
        self._prefilled = prefilled
        self._alarm = Alarm(env)
        self._ticks = 0  # exact end of the last iteration
        self._jump: Jump | None = None
        self._last_step_ns = 0
        self._fresh: list[Request] = []  # members that have not yet had a decode step here
        self._reservations: deque[tuple[Request, Event]] = deque()
        self._reserved = 0
        self._tokens = 0  # generated since the observer last heard
        self._arrived: list[Request] = []
        env.process(self._run())

    # -- what others ask of it ------------------------------------------------------------------------------------

    def submit(self, request: Request) -> None:
        """Queue a request for prefill."""
        request.queued_ns = self.env.now
        request.prefill_instance = self.name
        self.waiting.append(request)
        self._observer.queued(self.env.now, len(self.waiting))
        self._nudge()

    def reserve(self, request: Request) -> Event:
        """Return an event that fires when KV blocks and a seat are set aside for a request prefilled elsewhere."""
        event = Event(self.env)
        self._reservations.append((request, event))
        self._grant_reservations()
        return event

    def join(self, request: Request) -> None:
        """Take in a request whose reserved blocks now hold its keys and values; it decodes from the next iteration."""
        self._arrived.append(request)
        self._nudge()

    def release(self, tokens: int) -> None:
        """Free the blocks of a request whose keys and values have moved away."""
        self.kv.held -= self.kv.blocks_for(tokens)
        self._freed()

    # -- what a batcher and a router may read ---------------------------------------------------------------------

    @property
    def running(self) -> int:
        """Requests that decode, or that hold a reserved place to do so."""
        return len(self.batch.members) + self._reserved

    @property
    def admissible_blocks(self) -> int:
        """KV blocks that new prompts may take now, the watermark left free."""
        return self.kv.admissible()

    # -- the actor ------------------------------------------------------------------------------------------------

    def _run(self) -> Generator[Event, Any, None]:
        alarm = self._alarm
        while True:
            if self._arrived:
                self._take_in()
            count = self.engine.policy(self.engine.limits, self) if self.waiting else 0
            if count:
                batch = self._begin_prefill(count)
                yield alarm
                self._end_prefill(batch)
            elif self.batch.members:
                self._begin_jump()
                yield alarm
                self._end_jump()
            else:
                self._begins(IDLE)
                yield alarm
                self._ticks = self.env.now << TICK_BITS

    def _begin_prefill(self, count: int) -> list[Request]:
        now, waiting, kv = self.env.now, self.waiting, self.kv
        batch = [waiting.popleft() for _ in range(count)]
        tokens = attended = 0
        for request in batch:
            length = request.prompt_tokens + request.generated
            tokens += length
            attended += length * (length + 1) // 2
            kv.held += -(-length // self.block_tokens)
            if request.prefill_start_ns < 0:
                request.prefill_start_ns = now
        self._ticks += round(self.engine.cost.prefill_ns(tokens, attended, count) * TICKS_PER_NS)
        self._alarm.set(self._ticks >> TICK_BITS)
        self._begins(PREFILL)
        return batch

    def _end_prefill(self, batch: list[Request]) -> None:
        now, kv, hand_over = self.env.now, self.kv, self._prefilled
        freed = False
        for request in batch:
            blocks = -(-(request.prompt_tokens + request.generated) // self.block_tokens)
            request.generated += 1
            if request.first_token_ns < 0:
                request.first_token_ns = now
            else:
                self._observer.gap(now - request.last_token_ns, 1)
            request.last_token_ns = now
            if request.generated == request.output_tokens:
                kv.held -= blocks
                freed = True
                request.finish_ns = now
                self._finished(request, self)
            elif hand_over is not None:
                hand_over(request, self)  # its blocks stay held until they have moved
            else:
                kv.held -= blocks
                self._add(request)
        self._tokens += len(batch)
        if freed:
            self._grant_reservations()

    def _begin_jump(self) -> None:
        kv, batch = self.kv, self.batch
        steps = kv.steps_that_fit(batch.steps_to_finish())
        while not steps:
            self._preempt(batch.pop_last())
            if not batch.members:  # all that is left holds reserved blocks: look again
                self._alarm.set(self.env.now)
                return
            steps = kv.steps_that_fit(batch.steps_to_finish())
        size = len(batch.members)
        fixed, slope = self.engine.step_ticks(size)
        self._jump = jump = Jump(self._ticks, steps, size, batch.context, fixed, slope)
        end_ns = jump.end >> TICK_BITS
        self._alarm.set(end_ns)
        lasts_ns = end_ns - self.env.now
        self._begins(DECODE, size * steps / (self.block_tokens * lasts_ns) if lasts_ns else 0.0)

    def _end_jump(self) -> None:
        jump, now = self._jump, self.env.now
        if jump is None:
            return
        self._jump = None
        self._ticks = jump.end
        self._record_gaps(jump)
        self.batch.advance(jump.steps)
        self._last_step_ns = now
        done = self.batch.pop_finished()
        for request in done:
            request.last_token_ns = request.finish_ns = now
            self._finished(request, self)
        self._tokens += jump.steps * jump.batch
        if done:
            self._grant_reservations()

    def _record_gaps(self, jump: Jump) -> None:
        observer, steps = self._observer, jump.steps
        first_ns = (jump.start + jump.first) >> TICK_BITS
        old = jump.batch - len(self._fresh)
        if old:
            observer.gap(first_ns - self._last_step_ns, old)
        for request in self._fresh:
            observer.gap(first_ns - request.last_token_ns, 1)
        self._fresh.clear()
        if steps > 1:
            observer.gaps(jump.length(2) >> TICK_BITS, jump.length(steps) >> TICK_BITS, steps - 1, jump.batch)

    # -- its own moves --------------------------------------------------------------------------------------------

    def _add(self, request: Request) -> None:
        self.batch.join(request)
        self._fresh.append(request)
        if request.decode_start_ns < 0:
            request.decode_start_ns = self.env.now
            request.decode_instance = self.name

    def _take_in(self) -> None:
        for request in self._arrived:
            self.kv.held -= self.kv.blocks_for(request.prefill_tokens - 1)
            self._reserved -= 1
            self._add(request)
        self._arrived.clear()

    def _preempt(self, request: Request) -> None:
        if request in self._fresh:
            self._fresh.remove(request)
        else:
            request.last_token_ns = self._last_step_ns
        request.preemptions += 1
        self.waiting.appendleft(request)
        self._observer.preempted(self.env.now, self.name, request)

    def _grant_reservations(self) -> None:
        """Serve reservations in order; a request preempted here comes first, so none is granted while any waits."""
        queue = self._reservations
        if not queue:
            return
        ahead = self._steps_by_now()
        while queue and not self.waiting:
            request, event = queue[0]
            blocks = self.kv.blocks_for(request.prefill_tokens - 1)
            if self.running >= self.engine.limits.max_running or blocks > self.kv.admissible(ahead):
                return
            queue.popleft()
            self.kv.held += blocks
            self._reserved += 1
            event.succeed()
            if self._jump is not None and self.kv.steps_that_fit(self._jump.steps) < self._jump.steps:
                self._cut(self._jump)

    def _freed(self) -> None:
        self._grant_reservations()
        if self.waiting:
            self._nudge()

    def _steps_by_now(self) -> int:
        """Return how many steps of the current jump have begun: the blocks of a step are taken as it begins."""
        jump = self._jump
        return jump.steps_by(self.env.now) if jump is not None else 0

    def _nudge(self) -> None:
        """Let the engine decide anew as soon as its present iteration ends."""
        if self._jump is not None:
            self._cut(self._jump)
        elif self.state == IDLE and self._alarm.at_ns is None:
            self._alarm.set(self.env.now)

    def _cut(self, jump: Jump) -> None:
        steps = jump.steps_by(self.env.now)
        if steps < jump.steps:
            jump.cut(steps)
            self._alarm.set(jump.end >> TICK_BITS)

    def _begins(self, state: int, kv_per_ns: float = 0.0) -> None:
        self.state = state
        running, waiting, used = len(self.batch.members), len(self.waiting), self.kv.used()
        self._observer.begins(self.env.now, state, running, waiting, used, kv_per_ns, self._tokens)
        self._tokens = 0

    def generated(self, request: Request) -> int:
        """Return the tokens a request in this engine has generated by now, mid-jump included."""
        if request.request_id not in self.batch.members:
            return request.generated
        jump = self._jump
        if jump is None:
            return self.batch.generated(request)
        begun = jump.steps_by(self.env.now)
        complete = (jump.start + jump.elapsed(begun)) >> TICK_BITS <= self.env.now
        return self.batch.generated(request) + begun - (not complete)

    def check(self) -> None:
        """Raise InvariantError unless the KV ledger adds up."""
        self.kv.check()
