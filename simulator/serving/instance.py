"""One serving engine: ranks that step together, each with a queue, a batcher and a KV cache, on leased devices.

Model: iterations in sequence, each a prefill of prompts, a decode step of the batch, or both; runs of decode steps are
jumps in closed form, cut at the next step's end when something arrives that may change what the engine does.
"""

from collections.abc import Callable, Generator, Sequence
from typing import Any

from simpy import Event
from simpy.events import EventPriority

from simulator.clock import HANDING_OVER, SERVING, Alarm, Clock
from simulator.device.cost import Cost
from simulator.results.windows import DECODE, IDLE, PREFILL
from simulator.serving.account import Account
from simulator.serving.copies import bring_back, stand_on_copies
from simulator.serving.decode_batch import DecodeBatch
from simulator.serving.engine import Engine, Observer
from simulator.serving.engine_view import DECODE_ON
from simulator.serving.fair_service import count_decoded, count_service, steps_of_turn
from simulator.serving.iteration import begin_alone, begin_together, copies_done, decide, report_gaps, start_decoding
from simulator.serving.jump import Jump, StepTicks, SummedJump
from simulator.serving.next_jump import next_jump, one_step
from simulator.serving.pool_view import in_turn
from simulator.serving.preemption import preempt_last
from simulator.serving.prefix_cache import PrefixCache
from simulator.serving.rank import Rank
from simulator.serving.request import Request
from simulator.serving.reservation import Holding, Reservation
from simulator.units import TICK_BITS, TICKS_PER_NS


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
        began: Callable[[Sequence[tuple[Request, int]], int, "Instance"], None] | None = None,
    ) -> None:
        """`prefilled` takes over a request that is not to decode here, `began` hears of the (prompts, end_ns) of each
        prefill.
        """
        self.env = env
        self.name = name
        self.engine = engine
        self.devices = tuple(devices)
        self.ranks = [Rank(engine) for _ in range(engine.ranks)]
        self._copies = stand_on_copies(self.ranks, engine, devices, env, self._look_again)  # whether any come
        self._first = self.ranks[0]  # the only one of most engines
        self.cost = engine.cost
        self._step_ticks = engine.step_ticks
        self.state = IDLE
        self._does = IDLE  # what the alarm that calls an engine of one rank is to end
        self._observer = observer
        self._finished = finished
        self._prefilled = prefilled
        self._began = began
        self._alarm = self._awakened(SERVING if prefilled is None else HANDING_OVER)
        self._ticks = 0  # exact end of the last iteration
        self._jump: Jump | SummedJump | None = None
        self._served = 0  # steps of the jump under way that fair queues have heard of
        self._loads = [0] * engine.ranks  # requests of each rank
        self._leaving: list[Request] = []  # cancelled, to go when the iteration under way ends
        self._turn = 0  # rank that took the last request
        self._account = Account(env, self.ranks, observer.observe)

    # -- what others ask of it ------------------------------------------------------------------------------------

    def submit(self, request: Request) -> None:
        """Queue a request for prefill."""
        request.queued_ns = self.env.now
        request.prefill_instance = self.name
        begun = self._mark()
        if begun and self.engine.counts_service:
            self._serve(begun - 1)
        request.rank = self._choose()
        self.ranks[request.rank].queue(request)
        self._account.waiting += 1
        self._nudge(begun)

    def reserve(self, request: Request, tokens: int) -> Reservation:
        """Return a place that fires when seats and KV blocks, for so many tokens of each sequence, are set aside."""
        begun = self._mark()
        index = self._choose()
        rank = self.ranks[index]
        place = rank.reserve(Reservation(self.env, index), request, tokens)
        self._account.waiting += 1
        self._grant(rank, begun)
        return place

    def join(self, request: Request, place: Reservation) -> None:
        """Take in a request whose reserved blocks now hold its keys and values; it decodes from the next iteration."""
        request.rank, request.blocks = place.rank, place.blocks
        request.decode_instance = self.name
        self.ranks[place.rank].arrived.append(request)
        self._nudge(self._steps_by_now())

    def withdraw(self, place: Reservation) -> None:
        """Give up a place, granted or not: its request does not come."""
        self._mark()
        self._account.waiting -= 1
        self._goes(place.rank, self.ranks[place.rank].give_back, place)

    def trim(self, place: Reservation, seats: int) -> None:
        """Leave a place, granted or not, only so many seats: answers of its request are complete."""
        if seats < place.seats:
            rank = self.ranks[place.rank]
            rank.trim(place, seats)
            self._make_way(rank)

    def keep(self, request: Request) -> bool:
        """Let a request that was prefilled here to be moved decode here if there are seats; return whether so."""
        begun = self._mark()
        kept = self.ranks[request.rank].keep(request)
        if kept:
            self._account.waiting += 1
            self._nudge(begun)
        return kept

    def detach(self, request: Request) -> Holding:
        """Let a prefilled request go and return what to `release` once its keys and values have moved away."""
        return self.ranks[request.rank].detach(request)

    def release(self, holding: Holding) -> None:
        """Free the blocks of a request whose keys and values have moved away."""
        self._mark()
        self._goes(holding.rank, self.ranks[holding.rank].free, holding)

    def _goes(self, index: int, free: Callable[[Any], None], what: Any) -> None:
        """Free what a rank holds for a request that goes, and let others have it."""
        rank = self.ranks[index]
        before = rank.kv.used
        free(what)
        self._account.took(rank.kv.used - before)
        self._loads[index] -= 1
        self._make_way(rank)

    def _make_way(self, rank: Rank) -> None:
        self._grant(rank)
        if rank.waiting or rank.swapped:
            self._nudge(self._steps_by_now())

    def cancel(self, request: Request) -> bool:
        """Part with a request and report it finished: at once if it waits, else when the iteration under way ends.

        A token of that iteration counts. Returns False if it is not here, or only a place is reserved for it.
        """
        rank = self.ranks[request.rank]
        if request in rank.waiting or (rank.swap is not None and request in rank.swap.out):
            begun = self._mark()
            if request in rank.waiting:
                rank.waiting.remove(request)
            else:
                rank.withdraw(request)
            self._account.waiting -= 1
            self._ends(request)
            self._grant(rank)
            self._nudge(begun)  # who stood behind it may come in now
            return True
        here = request.request_id in rank.batch.members or request in rank.partial or request in rank.arrived
        here = here or any(request in beside for beside in (rank.swap, rank.lower) if beside is not None)
        if here:
            self._leaving.append(request)
            self._nudge(self._steps_by_now())
        return here

    def retime(self, cost: Cost) -> None:
        """Go by another cost from the next iteration on."""
        self.cost, self._step_ticks = cost, StepTicks(cost)
        if self._jump is not None:
            self._cut(self._mark())

    # -- what a router may read -----------------------------------------------------------------------------------

    @property
    def running(self) -> int:
        """Seats taken by requests that decode, that are being prefilled, or that hold a reserved place."""
        return sum(rank.running for rank in self.ranks)

    @property
    def queued(self) -> int:
        """Requests that wait for a prefill, or for a place to decode."""
        return sum(rank.queued for rank in self.ranks)

    @property
    def kv_total_blocks(self) -> int:
        """KV blocks of all ranks."""
        return sum(rank.kv.total for rank in self.ranks)

    def used_blocks(self) -> int:
        """Return the KV blocks in use now."""
        return self._account.blocks_after(self._steps_by_now())

    @property
    def prefix_caches(self) -> list[PrefixCache]:
        """The prefix caches of its ranks, if it has any."""
        return [rank.kv.prefixes for rank in self.ranks if rank.kv.prefixes is not None]

    # -- the actor ------------------------------------------------------------------------------------------------

    def _awakened(self, order: EventPriority) -> Alarm:
        """Return what wakes the actor, which lives from now on."""
        self.env.process(self._run())
        return Alarm(self.env, order)

    def _run(self) -> Generator[Event, Any, None]:
        alarm = self._alarm
        while True:
            kind, wake_ns = self._decide(self.env.now)
            if kind == PREFILL:
                self._begin_prefill()
                yield alarm
                self._end_jump()
                self._end_prefill()
            elif kind == DECODE:
                self._begin_jump(wake_ns)
                yield alarm
                self._end_jump()
            else:
                self._begins(IDLE)
                if wake_ns is not None:
                    alarm.set(wake_ns)
                yield alarm
                self._mark()
                self._ticks = self.env.now << TICK_BITS

    def _decide(self, now: int) -> tuple[int, int | None]:
        """Let every rank say what it does next; return what that is, and when to look again if it is nothing."""
        for rank in self.ranks:
            rank.take_stock(now, self.name)
        if self._leaving:
            self._let_go()
        kind, wake_ns = IDLE, None
        for rank in self.ranks:
            if self._copies:
                for end in bring_back(rank, self._ticks, self.cost):
                    self._look_again(end)
            step = decide(rank, self.engine, self._preempt_last)
            if step.prompts:
                kind = PREFILL
            elif rank.batch.members:
                kind = kind or DECODE
            elif step.wake_ns is not None:
                wake_ns = step.wake_ns if wake_ns is None else min(wake_ns, step.wake_ns)
        return kind, wake_ns

    def _iteration(self) -> tuple[float, int]:
        """Begin an iteration with prompts; return how many ns it lasts and how many decode in it."""
        now = self.env.now
        if len(self.ranks) == 1:
            return begin_alone(self._first, self.cost, now)
        return begin_together(self.ranks, self.cost, now, self._fit)[:2]

    def _begin_prefill(self) -> None:
        lasts_ns, size = self._iteration()
        if self._copies:
            self._ticks = copies_done(self.ranks, self._ticks)
        ticks = round(lasts_ns * TICKS_PER_NS)
        if size:
            start_decoding(self.ranks, self.env.now)
            self._jump = one_step(self._ticks, self.ranks, ticks)
        self._ticks += ticks
        self._alarm.set(self._ticks >> TICK_BITS)
        self._begins(PREFILL)
        if self._began is not None:
            for rank in self.ranks:
                if rank.step.prompts:
                    self._began(rank.step.prompts, self._ticks >> TICK_BITS, self)
        self._grant_all()

    def _end_prefill(self) -> None:
        ended = [(rank, rank.computed(rank.step.prompts)) for rank in self.ranks if rank.step.prompts]
        made = sum([request.samples for _, done in ended for request in done])
        self._account.passed(self.state, self._account.blocks(), made)
        for rank, done in ended:
            rank.step = DECODE_ON
            if self.engine.counts_service:
                count_service(rank, done, 1)
            self._go_on(rank, done)
            if isinstance(rank.batch, DecodeBatch) and rank.batch.ghosts and not rank.batch.members:
                rank.batch.drop_padding()
        self._grant_all()

    def _go_on(self, rank: Rank, prefilled: Sequence[Request]) -> None:
        """Give those whose prefill has ended a token; if it is not their last, they decode, here or elsewhere."""
        now, hand_over = self.env.now, self._prefilled
        for request in prefilled:
            request.generated += 1
            if request.last_token_ns >= 0:
                self._observer.gap(now - request.last_token_ns, request.samples)
            else:
                request.end_prefill(now)
            request.last_token_ns = now
            whole = request.generated == request.output_tokens
            if request.first_token_ns < 0 and (not self.engine.first_chunk or request.generated == request.shortest):
                request.first_token_ns = now
            if whole or request in self._leaving:
                held = request.context_tokens - 1
                if isinstance(rank.batch, DecodeBatch) and rank.batch.keeps:
                    rank.batch.pad(request.samples, request.samples * held, request.blocks)
                rank.drop(request, held)
                request.finish_ns = now if whole else -1
                self._ends(request)
                continue
            if request.generated == request.shortest:
                rank.part(request)
            if hand_over is not None:
                hand_over(request, self)  # its blocks stay held until they have moved
            else:
                rank.decode(request, now)
                request.decode_instance = self.name

    def _begin_jump(self, wake_ns: int | None) -> None:
        steps = 0
        for rank in self.ranks:
            fit = rank.steps_at_most(self._fit(rank))
            if fit and self.engine.counts_service:
                fit = min(fit, steps_of_turn(rank) or fit)
            rank.decodes = fit > 0
            if fit and (fit < steps or not steps):
                steps = fit
        if not steps:  # all that is left holds reserved blocks: look again
            self._alarm.set(self.env.now)
            return
        if self._copies:
            self._ticks = copies_done(self.ranks, self._ticks)
        start_decoding(self.ranks, self.env.now)
        self._jump = jump = next_jump(self._ticks, self.ranks, steps, self.cost, self._step_ticks)
        if wake_ns is not None:  # a rank that waits has something to do then
            jump.cut(jump.steps_by(wake_ns))
        self._alarm.set(jump.end >> TICK_BITS)
        self._begins(DECODE)

    def _fit(self, rank: Rank) -> int:
        """Preempt as many as it takes, and return how many decode steps a rank can go on; 0 if none is left to."""
        while rank.batch.members:
            steps = rank.kv.steps_that_fit(rank.batch.steps_to_finish())
            if steps:
                return steps
            self._preempt_last(rank)
        return 0

    def _end_jump(self) -> None:
        jump, now = self._jump, self.env.now
        if jump is None:
            return
        self._jump = None
        self._ticks = jump.end
        report_gaps(self.ranks, jump, self._observer)
        steps = jump.steps
        if self.engine.counts_service:
            self._serve(steps)
            self._served = 0
        for rank in self.ranks:
            if rank.decodes:
                rank.advance(steps, now)
        self._account.forget_growth()
        self._account.passed(self.state, self._account.blocks(), jump.tokens(steps) - self._account.tokens)
        for rank in self.ranks:
            if not rank.decodes:
                continue
            rank.decodes = False
            self._let_finished_go(rank)

    def _let_finished_go(self, rank: Rank) -> None:
        """End those who have just made their last token; who waits for a place may have theirs."""
        before = rank.batch.sequences
        for request in rank.pop_finished():
            request.last_token_ns = request.finish_ns = self.env.now
            self._ends(request)
        if rank.reservations and rank.batch.sequences < before:
            self._grant(rank)

    def _serve(self, steps: int) -> None:
        """Tell fair queues what the first `steps` of the jump under way have generated."""
        count_decoded(self.ranks, self._served, steps)
        self._served = steps

    # -- its own moves --------------------------------------------------------------------------------------------

    def _choose(self) -> int:
        """Return the rank that takes a request: the one with the fewest, among equals the next in turn."""
        if len(self.ranks) > 1:
            self._turn = in_turn(self._loads, self._turn)
        self._loads[self._turn] += 1
        return self._turn

    def _ends(self, request: Request) -> None:
        self._loads[request.rank] -= 1
        self._finished(request, self)

    def _let_go(self) -> None:
        """Part with those who were cancelled in the iteration that has ended; some have finished with it."""
        leaving, self._leaving = self._leaving, []
        for request in leaving:
            if self.ranks[request.rank].withdraw(request):
                self._ends(request)
        self._grant_all()

    def _look_again(self, end: int) -> None:
        wait = self.env.timeout(-(-end >> TICK_BITS) - self.env.now)
        wait.callbacks.append(lambda _: self._nudge(self._steps_by_now()))

    def _preempt_last(self, rank: Rank) -> None:
        self._observer.preempted(self.env.now, self.name, preempt_last(rank))

    def _grant_all(self) -> None:
        for rank in self.ranks:
            if rank.reservations:
                self._grant(rank)

    def _grant(self, rank: Rank, begun: int | None = None) -> None:
        """Serve the reservations of a rank in order, as far as they fit; `begun` is what `_mark` has said just now."""
        jump = self._jump if rank.decodes else None
        ahead = 0 if jump is None else self._steps_by_now() if begun is None else begun
        while rank.can_grant(ahead):
            if begun is None:
                begun = self._mark()
            before = rank.kv.used
            event = rank.grant()
            self._account.took(rank.kv.used - before)
            event.succeed()
            if jump is not None and rank.kv.steps_that_fit(jump.steps) < jump.steps:
                self._cut(ahead)

    def _steps_by_now(self) -> int:
        """Return how many steps of the current jump have begun: the blocks of a step are taken as it begins."""
        jump = self._jump
        return jump.steps_by(self.env.now) if jump is not None else 0

    def _nudge(self, begun: int) -> None:
        """Let the engine decide anew as soon as its present iteration, number `begun` of a jump, ends."""
        if self._jump is not None:
            self._cut(begun)
        elif self.state == IDLE and self._alarm.at_ns != self.env.now:
            self._alarm.set(self.env.now)

    def _cut(self, steps: int) -> None:
        jump = self._jump
        if jump is not None and steps < jump.steps:
            jump.cut(steps)
            self._alarm.set(jump.end >> TICK_BITS)

    # -- what it tells its observer -------------------------------------------------------------------------------

    def _begins(self, state: int) -> None:
        self.state = state
        self._account.begins()

    def _mark(self) -> int:
        """Close the interval so far, for something that the observer counts is about to change; return steps begun."""
        jump = self._jump
        if jump is None:
            self._account.passed(self.state, self._account.blocks(), 0)
            return 0
        begun = jump.steps_by(self.env.now)
        tokens = jump.tokens(begun - (not self._ended(jump, begun)))
        self._account.passed(self.state, self._account.blocks_after(begun), tokens - self._account.tokens)
        self._account.tokens = tokens
        return begun

    def generated(self, request: Request) -> int:
        """Return the tokens each sequence of a request in this engine has generated by now, mid-jump included."""
        rank = self.ranks[request.rank]
        if request.request_id not in rank.batch.members:
            return request.generated
        jump = self._jump
        if jump is None or not rank.decodes:
            return rank.batch.generated(request)
        begun = jump.steps_by(self.env.now)
        return rank.batch.generated(request, begun - (not self._ended(jump, begun)))

    def _ended(self, jump: Jump | SummedJump, step: int) -> bool:
        return (jump.start + jump.elapsed(step)) >> TICK_BITS <= self.env.now

    def settle(self) -> None:
        """Report up to now, and write down what the requests that decode here have generated: the run is over."""
        begun, jump = self._mark(), self._jump
        for rank in self.ranks:
            for request in rank.batch.members.values():
                request.generated = self.generated(request)
        if jump is not None and (steps := begun - (not self._ended(jump, begun))):
            jump.cut(steps)
            report_gaps(self.ranks, jump, self._observer)

    def check(self) -> None:
        """Raise InvariantError unless every rank's KV ledger adds up and no more run than there are seats."""
        for rank in self.ranks:
            rank.check()
