"""One serving engine: a queue, a batcher, a KV cache and the leased devices it computes on.

Model: iterations in sequence, each a prefill of prompts, a decode step of the batch, or both; runs of decode steps are
jumps in closed form, cut at the next step's end when something arrives that may change what the engine does.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

from simpy import Event

from simulator.clock import HANDING_OVER, SERVING, Alarm, Clock
from simulator.errors import InvariantError
from simulator.results.windows import DECODE, IDLE, PREFILL
from simulator.serving.batching import EngineView, Step
from simulator.serving.decode_batch import DecodeBatch
from simulator.serving.jump import TICK_BITS, TICKS_PER_NS, Jump, StepTicks
from simulator.serving.kv_cache import KVCache
from simulator.serving.request import Request


class EngineCost(Protocol):
    """Seconds of the engine's phases, in nanoseconds; see simulator.device.cost."""

    def prefill_ns(self, tokens: int, attended: int, sequences: int) -> float:
        """Return the time to prefill `tokens` new tokens with `attended` query-key pairs over `sequences` prompts."""

    def decode(self, batch: int, context: float) -> tuple[float, float, float]:
        """Return a decode step's (fixed_ns, per_context_token_ns, last context at which they hold)."""

    def mixed_ns(self, tokens: int, attended: int, sequences: int, batch: int, context: float) -> float:
        """Return the time of a step that prefills as `prefill_ns` and decodes for a batch of so much context in all."""


class Engine(NamedTuple):
    """What the instances of one pool share: costs, batching policy and memory size."""

    role: str
    cost: EngineCost
    step_ticks: StepTicks
    policy: Callable[[Any, EngineView], Step]
    limits: Any
    kv_blocks: int
    block_tokens: int
    watermark_blocks: int


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


def slices(tokens: int, budget: int) -> Iterator[tuple[int, int]]:
    """Yield (tokens, query-key pairs) of the parts of at most `budget` tokens in which a long prompt is prefilled."""
    for first in range(0, tokens, budget):
        last = min(first + budget, tokens)
        yield last - first, (last * (last + 1) - first * (first + 1)) // 2


DECODE_ON = Step()


class Instance:
    """An engine as an actor: `submit` requests to it, or `reserve` and `join` ones that were prefilled elsewhere."""

    def __init__(
        self,
        env: Clock,
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
        self.partial: list[Request] = []  # whose prefill has begun and not ended
        self.batch = DecodeBatch(engine.block_tokens)
        self.kv = KVCache(engine.kv_blocks, engine.block_tokens, engine.watermark_blocks, self.batch)
        self.state = IDLE
        self._observer = observer
        self._finished = finished
        self._prefilled = prefilled
        self._alarm = Alarm(env, SERVING if prefilled is None else HANDING_OVER)
        self._ticks = 0  # exact end of the last iteration
        self._jump: Jump | None = None
        self._last_step_ns = 0
        self._fresh: list[Request] = []  # members that have not yet had a decode step here
        self._reservations: deque[tuple[Request, Event]] = deque()
        self._reserved = 0
        self._running_seen = self._waiting_seen = self._kv_seen = self._tokens_seen = 0  # what the observer knows
        self._arrived: list[Request] = []
        env.process(self._run())

    # -- what others ask of it ------------------------------------------------------------------------------------

    def submit(self, request: Request) -> None:
        """Queue a request for prefill."""
        request.queued_ns = self.env.now
        request.prefill_instance = self.name
        begun = self._mark()
        self.waiting.append(request)
        self._waiting_seen += 1
        self._nudge(begun)

    def reserve(self, request: Request) -> Event:
        """Return an event that fires when KV blocks and a seat are set aside for a request prefilled elsewhere."""
        event = Event(self.env)
        self._mark()
        self._reservations.append((request, event))
        self._waiting_seen += 1
        self._grant_reservations()
        return event

    def join(self, request: Request) -> None:
        """Take in a request whose reserved blocks now hold its keys and values; it decodes from the next iteration."""
        self._arrived.append(request)
        self._nudge(self._steps_by_now())

    def release(self, tokens: int) -> None:
        """Free the blocks of a request whose keys and values have moved away."""
        self._mark()
        self._hold(-self.kv.blocks_for(tokens))
        self._grant_reservations()
        if self.waiting:
            self._nudge(self._steps_by_now())

    # -- what a batcher and a router may read ---------------------------------------------------------------------

    @property
    def running(self) -> int:
        """Requests that decode, that are being prefilled, or that hold a reserved place."""
        return len(self.batch.members) + len(self.partial) + self._reserved

    @property
    def decoding(self) -> int:
        """Requests that take part in a decode step."""
        return len(self.batch.members)

    @property
    def admissible_blocks(self) -> int:
        """KV blocks that new prompts may take now, the watermark left free."""
        return self.kv.admissible(self.kv.used)

    @property
    def free_blocks(self) -> int:
        """KV blocks that nothing holds now."""
        return self.kv.total - self.kv.used

    @property
    def step_blocks(self) -> int:
        """KV blocks that those who decode take for one step more."""
        return self.batch.blocks_after(1) - self.batch.blocks

    def latest(self) -> Iterator[tuple[int, int]]:
        """Yield what those who may be preempted hold and take for a step; see `EngineView.latest`."""
        for request in reversed(self.partial):
            yield self.kv.blocks_for(request.computed), 0
        for request in reversed(self.batch.members.values()):
            tokens = self.batch.held(request)
            blocks = self.kv.blocks_for(tokens)
            yield blocks, self.kv.blocks_for(tokens + 1) - blocks

    # -- the actor ------------------------------------------------------------------------------------------------

    def _run(self) -> Generator[Event, Any, None]:
        alarm = self._alarm
        while True:
            if self._arrived:
                self._take_in()
            step = self.engine.policy(self.engine.limits, self) if self.waiting or self.partial else DECODE_ON
            for _ in range(step.preempts):
                self._preempt_last()
            if step.prompts:
                self._begin_prefill(step)
                yield alarm
                self._end_jump()
                self._end_prefill(step.prompts)
            elif self.batch.members:
                self._begin_jump()
                yield alarm
                self._end_jump()
            else:
                self._begins(IDLE)
                yield alarm
                self._mark()
                self._ticks = self.env.now << TICK_BITS

    def _begin_prefill(self, step: Step) -> None:
        now, waiting, kv = self.env.now, self.waiting, self.kv
        block_tokens = self.block_tokens
        tokens = attended = 0
        for request, count in step.prompts:
            done = request.computed
            if not done:
                self.partial.append(waiting.popleft())
                if request.prefill_start_ns < 0:
                    request.prefill_start_ns = now
            tokens += count
            attended += count * done + count * (count + 1) // 2
            kv.held += -(-(done + count) // block_tokens) - -(-done // block_tokens)
        batch = self.batch
        size = len(batch.members) if step.decodes else 0
        budget, cost = self.engine.limits.max_batch_tokens, self.engine.cost
        if size:
            lasts_ns = cost.mixed_ns(tokens, attended, len(step.prompts), size, batch.context + size)
        elif tokens <= budget:
            lasts_ns = cost.prefill_ns(tokens, attended, len(step.prompts))
        else:
            lasts_ns = sum(cost.prefill_ns(*part, 1) for part in slices(tokens, budget))
        ticks = round(lasts_ns * TICKS_PER_NS)
        if size:
            self._start_decoding()
            self._jump = Jump(self._ticks, 1, size, batch.context, ticks, 0)
        self._ticks += ticks
        self._alarm.set(self._ticks >> TICK_BITS)
        self._begins(PREFILL)
        self._grant_reservations()

    def _end_prefill(self, prompts: Sequence[tuple[Request, int]]) -> None:
        now, kv, hand_over = self.env.now, self.kv, self._prefilled
        for request, count in prompts:
            request.computed += count
        done = [r for r, _ in prompts if r.computed == r.prompt_tokens + r.generated]
        self._passed(kv.used, len(done))
        self.partial = [r for r in self.partial if r.computed < r.prompt_tokens + r.generated]
        for request in done:
            blocks = -(-request.computed // self.block_tokens)
            request.generated += 1
            if request.first_token_ns < 0:
                request.first_token_ns = now
            else:
                self._observer.gap(now - request.last_token_ns, 1)
            request.last_token_ns = now
            if request.generated == request.output_tokens:
                kv.held -= blocks
                request.finish_ns = now
                self._finished(request, self)
            elif hand_over is not None:
                hand_over(request, self)  # its blocks stay held until they have moved
            else:
                kv.held -= blocks
                self._add(request)
        self._grant_reservations()

    def _begin_jump(self) -> None:
        kv, batch = self.kv, self.batch
        steps = kv.steps_that_fit(batch.steps_to_finish())
        while not steps:
            self._preempt_last()
            if not batch.members:  # all that is left holds reserved blocks: look again
                self._alarm.set(self.env.now)
                return
            steps = kv.steps_that_fit(batch.steps_to_finish())
        self._start_decoding()
        size = len(batch.members)
        until, fixed, slope = self.engine.step_ticks(size, batch.context + size)
        if until < batch.context + steps * size:  # the line ends within the jump
            steps = int(until - batch.context) // size
        self._jump = jump = Jump(self._ticks, steps, size, batch.context, fixed, slope)
        self._alarm.set(jump.end >> TICK_BITS)
        self._begins(DECODE)

    def _end_jump(self) -> None:
        jump, now = self._jump, self.env.now
        if jump is None:
            return
        self._jump = None
        self._ticks = jump.end
        self._record_gaps(jump)
        self.batch.advance(jump.steps)
        self._passed(self.kv.held + self.batch.blocks, jump.steps * jump.batch - self._tokens_seen)
        self._last_step_ns = now
        done = self.batch.pop_finished()
        for request in done:
            request.last_token_ns = request.finish_ns = now
            self._finished(request, self)
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

    def _start_decoding(self) -> None:
        for request in self._fresh:
            if request.decode_start_ns < 0:
                request.decode_start_ns = self.env.now

    def _add(self, request: Request) -> None:
        self.batch.join(request)
        self._fresh.append(request)
        request.decode_instance = self.name

    def _take_in(self) -> None:
        for request in self._arrived:
            self.kv.held -= self.kv.blocks_for(request.prefill_tokens - 1)
            self._reserved -= 1
            self._add(request)
        self._arrived.clear()

    def _preempt_last(self) -> None:
        """Send the last in line back to the queue, to be computed anew: a prompt begun, or who began to decode last."""
        if self.partial:
            request = self.partial.pop()
            self.kv.held -= self.kv.blocks_for(request.computed)
        else:
            request = self.batch.pop_last()
            if request in self._fresh:
                self._fresh.remove(request)
            else:
                request.last_token_ns = self._last_step_ns
        request.computed = 0
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
            if self.running >= self.engine.limits.max_running:
                return
            if blocks > self.kv.admissible(self.kv.used_after(ahead)):
                return
            queue.popleft()
            self._mark()
            self._hold(blocks)
            self._reserved += 1
            event.succeed()
            if self._jump is not None and self.kv.steps_that_fit(self._jump.steps) < self._jump.steps:
                self._cut(self._jump, ahead)

    def _steps_by_now(self) -> int:
        """Return how many steps of the current jump have begun: the blocks of a step are taken as it begins."""
        jump = self._jump
        return jump.steps_by(self.env.now) if jump is not None else 0

    def _nudge(self, begun: int) -> None:
        """Let the engine decide anew as soon as its present iteration, number `begun` of a jump, ends."""
        if self._jump is not None:
            self._cut(self._jump, begun)
        elif self.state == IDLE and self._alarm.at_ns is None:
            self._alarm.set(self.env.now)

    def _cut(self, jump: Jump, steps: int) -> None:
        if steps < jump.steps:
            jump.cut(steps)
            self._alarm.set(jump.end >> TICK_BITS)

    # -- what it tells its observer -------------------------------------------------------------------------------

    def _begins(self, state: int) -> None:
        self.state = state
        self._running_seen = len(self.batch.members) + len(self.partial)
        self._waiting_seen = len(self.waiting) + len(self._reservations) + self._reserved
        self._kv_seen = self.kv.held + self.batch.blocks
        self._tokens_seen = 0

    def _passed(self, kv_blocks: int, tokens: int) -> None:
        self._observer.observe(
            self.env.now, self.state, self._running_seen, self._waiting_seen, self._kv_seen, tokens, kv_blocks
        )
        self._kv_seen = kv_blocks

    def _mark(self) -> int:
        """Close the interval so far, for something that the observer counts is about to change; return steps begun."""
        jump = self._jump
        if jump is None:
            self._passed(self.kv.used, 0)
            return 0
        begun = jump.steps_by(self.env.now)
        tokens = (begun - (not self._ended(jump, begun))) * jump.batch
        self._passed(self.kv.used_after(begun), tokens - self._tokens_seen)
        self._tokens_seen = tokens
        return begun

    def _hold(self, blocks: int) -> None:
        self.kv.held += blocks
        self._kv_seen += blocks

    def generated(self, request: Request) -> int:
        """Return the tokens a request in this engine has generated by now, mid-jump included."""
        if request.request_id not in self.batch.members:
            return request.generated
        jump = self._jump
        if jump is None:
            return self.batch.generated(request)
        begun = jump.steps_by(self.env.now)
        return self.batch.generated(request) + begun - (not self._ended(jump, begun))

    def _ended(self, jump: Jump, step: int) -> bool:
        return (jump.start + jump.elapsed(step)) >> TICK_BITS <= self.env.now

    def settle(self) -> None:
        """Report up to now, and write down what the requests that decode here have generated: the run is over."""
        self._mark()
        for request in self.batch.members.values():
            request.generated = self.generated(request)
        if self._jump is not None and (steps := self._tokens_seen // self._jump.batch):
            self._jump.cut(steps)
            self._record_gaps(self._jump)

    def check(self) -> None:
        """Raise InvariantError unless the KV ledger adds up and no more run than there are seats."""
        self.kv.check()
        if self.running > self.engine.limits.max_running:
            raise InvariantError(f"{self.name}: {self.running} requests run on {self.engine.limits.max_running} seats")
