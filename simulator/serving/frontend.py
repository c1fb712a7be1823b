"""The front of the cluster: requests arrive, are admitted or refused, and go to an instance of the first pool, by way
of a gateway if there is one; those that take too long, or whose clients lose patience, are given up.

Model: an open loop, in which a request arrives at its recorded time whatever happened to those before it; or a closed
one of so many clients, each of which sends its next request when the one before has ended.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from itertools import repeat
from typing import Any, NamedTuple

from simpy import Event
from simpy.events import URGENT

from simulator.clock import Alarm, Clock
from simulator.errors import InvariantError
from simulator.serving.admission import Admission, Limits
from simulator.serving.gateway import Gateway
from simulator.serving.pool import Pool
from simulator.serving.request import CANCELLED, FINISHED, PLAIN, REJECTED, TIMED_OUT, Request, Traits


class Arrivals(NamedTuple):
    """Some requests in order of arrival, column by column; times in nanoseconds."""

    arrival_ns: Sequence[int]
    prompt_tokens: Sequence[int]
    output_tokens: Sequence[int]
    session: Iterable[str | None]
    turn: Iterable[int | None]
    keys: Iterable[Sequence[int]] = ()
    """Keys of the prompts' prefixes; empty when nothing is known of their content."""
    traits: Iterable[Traits] = ()
    """What callers say beyond lengths; empty when they say nothing."""


class Patience(NamedTuple):
    """How long a request may take before it is given up, in ns from its arrival; None: as long as it takes."""

    queue_ns: int | None = None
    """Until its first token."""
    total_ns: int | None = None
    """Until its last token."""


class Cancellation(NamedTuple):
    """When the client of a request gives it up: so long after its arrival, or with so many tokens; -1: not so."""

    after_ns: int = -1
    after_tokens: int = -1


class Deadlines:
    """Requests that must come to something within a fixed time of their arrival, watched with one event at a time."""

    def __init__(
        self, env: Clock, within_ns: int, open_still: Callable[[Request], bool], late: Callable[[Request], None]
    ) -> None:
        self._within_ns = within_ns
        self._open_still = open_still
        self._late = late
        self._watched: deque[Request] = deque()  # in order of arrival, so of their deadlines
        self._env = env
        self._alarm = Alarm(env, URGENT)  # what comes in the nanosecond of the deadline comes too late
        env.process(self._run())

    def watch(self, request: Request) -> None:
        """Watch a request that has just arrived."""
        self._watched.append(request)
        if self._alarm.at_ns is None:
            self._alarm.set(self._env.now + self._within_ns)

    def _run(self) -> Generator[Event, Any, None]:
        watched, env = self._watched, self._env
        while True:
            yield self._alarm
            while watched:
                request = watched[0]
                if self._open_still(request):
                    due_ns = request.arrival_ns + self._within_ns
                    if due_ns > env.now:
                        self._alarm.set(due_ns)
                        break
                    self._late(request)
                watched.popleft()


class Frontend:
    """Counts every request from its arrival to its one outcome; `ended` hears of each, `finished` is when all have."""

    def __init__(
        self,
        env: Clock,
        pool: Pool,
        admission: Admission,
        ended: Callable[[Request], None],
        finished: Event,
        clients: int | None = None,
        overhead_ns: int = 0,
        *,
        enter: Callable[[Request], None] | None = None,
        gateway: Gateway | None = None,
        limits: Limits | None = None,
        patience: Patience = Patience(),  # noqa: B008 - immutable
        cancellation: Callable[[Request], Cancellation] | None = None,
        withdraw: Callable[[Request], None] | None = None,
        forget: Callable[[Request], None] | None = None,
    ) -> None:
        """`enter` routes a request in the place of the pool's own router, where more than a choice is to be made.

        `withdraw` takes a request out of the engines, which then `finish` it, at the latest with their iteration;
        `forget` hears of one that goes before an engine has it.
        """
        self.env = env
        self._enter = enter or self._submit
        self._overhead_ns = overhead_ns
        self._clients = clients
        self._freed: Event | None = None  # what waits for a client of a closed loop
        self._all_arrived = False
        self._finished = finished
        self.in_flight: dict[int, Request] = {}
        self.arrived = self.finished = self.rejected = self.timed_out = self.cancelled = 0
        self.reasons: dict[str, int] = {}  # rejections by why
        self._pool = pool
        self._admission = admission
        self._row = ended
        self._gateway = gateway
        self._limits = limits
        self._cancellation = cancellation
        self._withdraw = withdraw
        self._forget = forget
        self._leaving: dict[int, tuple[str, str]] = {}  # outcome and reason of those that engines are to let go
        self._asked: dict[int, int] = {}  # output tokens asked for by those who will cancel before they have them
        self._deadlines: list[Deadlines] = []
        if patience.queue_ns is not None:
            self._watch(patience.queue_ns, lambda r: r.first_token_ns < 0, "no first token in time")
        if patience.total_ns is not None:
            self._watch(patience.total_ns, lambda r: True, "not finished in time")
        self._plain = not (self._deadlines or overhead_ns or gateway or limits or cancellation)

    def replay(self, batches: Iterable[Arrivals]) -> Generator[Event, Any, None]:
        """Let the requests of `batches` arrive, each at its time: the actor of the workload."""
        env, in_flight, enter, refusal = self.env, self.in_flight, self._enter, self._admission.refusal
        number = 0
        for batch in batches:
            known = batch.keys or repeat(()), batch.traits or repeat(PLAIN)
            for arrival_ns, prompt, output, session, turn, keys, traits in zip(*batch[:5], *known, strict=False):
                if self._clients is not None:
                    if len(in_flight) >= self._clients:
                        self._freed = Event(env)
                        yield self._freed
                    arrival_ns = env.now
                elif arrival_ns > env.now:
                    yield env.timeout(arrival_ns - env.now)
                request = Request(number, arrival_ns, prompt, output, session, turn, keys, traits)
                number += 1
                self.arrived = number
                # whose clients lose patience does not hang on who is let in
                patience = self._cancellation(request) if self._cancellation is not None else None
                reason = refusal(request)
                if reason is not None:
                    self._reject(request, reason)
                elif self._plain:
                    in_flight[request.request_id] = request
                    enter(request)
                else:
                    self._arrive(request, patience)
        self._all_arrived = True
        if not in_flight:
            self._finished.succeed()

    def _submit(self, request: Request) -> None:
        self._pool.choose(request).submit(request)

    def _arrive(self, request: Request, cancellation: Cancellation | None) -> None:
        limits = self._limits
        reason = limits.ask(request) if limits is not None else None
        if limits is not None and reason is not None:
            if not limits.may_wait(reason):
                self._reject(request, reason)
                return
            limits.hold(request)
        done_ns = self._served_at(request) if reason is None else None
        if reason is None and done_ns is None:
            if limits is not None:
                limits.leave(request)
            self._reject(request, "gateway's queue full")
            return
        self.in_flight[request.request_id] = request
        for deadlines in self._deadlines:
            deadlines.watch(request)
        if cancellation is not None:
            self._plan_cancellation(request, cancellation)
        if done_ns is not None:
            self._submit_at(request, done_ns)

    def _served_at(self, request: Request) -> int | None:
        """Return when a request can be routed: tokenised and handed over; None when the gateway has no room for it."""
        if self._gateway is None:
            return self.env.now + self._overhead_ns
        done_ns = self._gateway.admit(self.env.now, request.prompt_tokens)
        return None if done_ns is None else done_ns + self._overhead_ns

    def _submit_at(self, request: Request, at_ns: int) -> None:
        """Route a request at `at_ns`, if it has not been given up by then."""

        def ready(_: Event | None) -> None:
            if request.request_id in self.in_flight:
                self._enter(request)

        if at_ns == self.env.now:
            ready(None)
        else:
            self.env.timeout(at_ns - self.env.now).callbacks.append(ready)

    # -- how a request ends ---------------------------------------------------------------------------------------

    def finish(self, request: Request) -> None:
        """Close a request that has left the engines: its last token is out, or it was withdrawn."""
        outcome, reason = self._leaving.pop(request.request_id, (FINISHED, None))
        self._close(request, outcome, reason)

    def give_up(self, request: Request, outcome: str, reason: str) -> None:
        """End a request wherever it is, unless it has ended: at once, or when its engine's iteration does."""
        number = request.request_id
        if number not in self.in_flight or number in self._leaving:
            return
        if request.queued_ns < 0:  # in line, waiting for a place, or at the gateway, where its turn passes in silence
            if self._limits is not None and not self._limits.counts(request):
                self._limits.drop(request)
            if self._forget is not None:
                self._forget(request)
            self._close(request, outcome, reason)
            return
        assert self._withdraw is not None, "requests that are given up must be withdrawn from their engines"
        self._leaving[number] = outcome, reason
        self._withdraw(request)

    def _close(self, request: Request, outcome: str, reason: str | None) -> None:
        asked = self._asked.pop(request.request_id, None)
        if asked is not None:
            if outcome == FINISHED:
                outcome, reason = CANCELLED, "by the client"
            request.output_tokens = asked
        request.outcome, request.reason = outcome, reason
        if outcome == FINISHED:
            self.finished += 1
        elif outcome == TIMED_OUT:
            self.timed_out += 1
        elif outcome == CANCELLED:
            self.cancelled += 1
        else:
            self._count_rejection(reason or outcome)
        del self.in_flight[request.request_id]
        self._row(request)
        if self._freed is not None:
            self._freed.succeed()
            self._freed = None
        limits = self._limits
        if limits is not None:
            if limits.counts(request):
                limits.leave(request)
            for admitted in limits.next_in():
                done_ns = self._served_at(admitted)
                if done_ns is None:
                    self._close(admitted, REJECTED, "gateway's queue full")
                else:
                    self._submit_at(admitted, done_ns)
        if self._all_arrived and not self.in_flight and not self._finished.triggered:
            self._finished.succeed()

    def _plan_cancellation(self, request: Request, when: Cancellation) -> None:
        if 0 <= when.after_tokens < request.output_tokens:  # the engine stops there: no event is needed
            self._asked[request.request_id] = request.output_tokens
            request.stop_after(max(1, when.after_tokens))
        if when.after_ns >= 0:
            timer = self.env.timeout(when.after_ns)
            timer.callbacks.append(lambda _: self.give_up(request, CANCELLED, "by the client"))

    def _watch(self, within_ns: int, matters: Callable[[Request], bool], reason: str) -> None:
        self._deadlines.append(
            Deadlines(
                self.env,
                within_ns,
                lambda r: r.request_id in self.in_flight and matters(r),
                lambda r: self.give_up(r, TIMED_OUT, reason),
            )
        )

    @property
    def ended(self) -> int:
        """Requests that have their outcome."""
        return self.finished + self.rejected + self.timed_out + self.cancelled

    def _reject(self, request: Request, reason: str) -> None:
        """Turn away a request that never was in flight."""
        request.outcome, request.reason = REJECTED, reason
        self._count_rejection(reason)
        self._row(request)

    def _count_rejection(self, reason: str) -> None:
        self.rejected += 1
        self.reasons[reason] = self.reasons.get(reason, 0) + 1

    def check(self) -> None:
        """Raise InvariantError unless every request that arrived ended once or is in flight."""
        if self.arrived != self.ended + len(self.in_flight):
            raise InvariantError(
                f"{self.arrived} requests arrived, but {self.finished} finished, {self.rejected} were rejected, "
                f"{self.timed_out} timed out, {self.cancelled} were cancelled and {len(self.in_flight)} are in flight"
            )
