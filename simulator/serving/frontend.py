"""The front of the cluster: requests arrive, are admitted or refused, and go to an instance of the first pool.

Model: an open loop, in which a request arrives at its recorded time whatever happened to those before it; or a closed
one of so many clients, each of which sends its next request when the one before has ended.
"""

from collections.abc import Callable, Generator, Iterable, Sequence
from itertools import repeat
from typing import Any, NamedTuple

from simpy import Event

from simulator.clock import Clock
from simulator.errors import InvariantError
from simulator.serving.pool import Pool
from simulator.serving.request import FINISHED, REJECTED, Request


class Arrivals(NamedTuple):
    """Some requests in order of arrival, column by column; times in nanoseconds."""

    arrival_ns: Sequence[int]
    prompt_tokens: Sequence[int]
    output_tokens: Sequence[int]
    session: Iterable[str | None]
    turn: Iterable[int | None]
    keys: Iterable[Sequence[int]] = ()
    """Keys of the prompts' prefixes; empty when nothing is known of their content."""


class Admission(NamedTuple):
    """What a request must not exceed, or no engine could ever serve it."""

    max_context: int
    prefill_tokens: int
    """Tokens of KV that a prefill engine holds in all."""
    decode_tokens: int
    """Tokens of KV that a decode engine holds in all; with one pool for both phases the same."""

    def refusal(self, prompt_tokens: int, output_tokens: int) -> str | None:
        """Return why a request cannot be served, or None. The last token generated needs no KV."""
        if prompt_tokens + output_tokens > self.max_context:
            return "longer than max_context"
        if prompt_tokens > self.prefill_tokens:
            return "prompt larger than the prefill KV cache"
        if prompt_tokens + output_tokens - 1 > self.decode_tokens:
            return "larger than the decode KV cache"
        return None


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
        enter: Callable[[Request], None] | None = None,
    ) -> None:
        """`enter` routes a request in the place of the pool's own router, where more than a choice is to be made."""
        self.env = env
        self._enter = enter or self._submit
        self._overhead_ns = overhead_ns
        self._clients = clients
        self._freed: Event | None = None  # what waits for a client of a closed loop
        self._all_arrived = False
        self._finished = finished
        self.in_flight: dict[int, Request] = {}
        self.arrived = self.finished = self.rejected = 0
        self.reasons: dict[str, int] = {}  # rejections by why
        self._pool = pool
        self._admission = admission
        self._row = ended

    def replay(self, batches: Iterable[Arrivals]) -> Generator[Event, Any, None]:
        """Let the requests of `batches` arrive, each at its time: the actor of the workload."""
        env, in_flight, enter, refusal = self.env, self.in_flight, self._enter, self._admission.refusal
        number = 0
        for batch in batches:
            keys_of = batch.keys or repeat(())
            for arrival_ns, prompt, output, session, turn, keys in zip(*batch[:5], keys_of, strict=False):
                if self._clients is not None:
                    if len(in_flight) >= self._clients:
                        self._freed = Event(env)
                        yield self._freed
                    arrival_ns = env.now
                elif arrival_ns > env.now:
                    yield env.timeout(arrival_ns - env.now)
                request = Request(number, arrival_ns, prompt, output, session, turn, keys)
                number += 1
                self.arrived = number
                reason = refusal(prompt, output)
                if reason is None:
                    in_flight[request.request_id] = request
                    if self._overhead_ns:
                        self._submit_later(request)
                    else:
                        enter(request)
                else:
                    self._reject(request, reason)
        self._all_arrived = True
        if not in_flight:
            self._finished.succeed()

    def _submit(self, request: Request) -> None:
        self._pool.choose(request).submit(request)

    def _submit_later(self, request: Request) -> None:
        """Route a request when it has been tokenised and handed over to the engines' processes."""

        def ready(_: Event) -> None:
            self._enter(request)

        self.env.timeout(self._overhead_ns).callbacks.append(ready)

    def finish(self, request: Request) -> None:
        """Close a request whose last token is out."""
        request.outcome = FINISHED
        self.finished += 1
        del self.in_flight[request.request_id]
        self._row(request)
        if self._freed is not None:
            self._freed.succeed()
            self._freed = None
        if self._all_arrived and not self.in_flight:
            self._finished.succeed()

    @property
    def ended(self) -> int:
        """Requests that have their outcome."""
        return self.finished + self.rejected

    def _reject(self, request: Request, reason: str) -> None:
        request.outcome = REJECTED
        request.reason = reason
        self.rejected += 1
        self.reasons[reason] = self.reasons.get(reason, 0) + 1
        self._row(request)

    def check(self) -> None:
        """Raise InvariantError unless every request that arrived ended once or is in flight."""
        if self.arrived != self.finished + self.rejected + len(self.in_flight):
            raise InvariantError(
                f"{self.arrived} requests arrived, but {self.finished} finished, {self.rejected} were rejected "
                f"and {len(self.in_flight)} are in flight"
            )
