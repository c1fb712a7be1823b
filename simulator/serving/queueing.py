"""Queues of a rank: in which order those who wait are taken.

Sources: first come, first served; shortest job first by predicted length (with ageing); least slack to a deadline;
priorities with preemption (vLLM's priority policy); fair shares by virtual token counters (VTC, OSDI 2024).
"""

from bisect import insort
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from simulator.serving.request import Request
from simulator.serving.samples import computed_pairs
from simulator.strict import Count, PositiveDuration, Strict


class Queue(Protocol):
    """Requests that wait; iteration is in the order in which `popleft` takes them when nothing else happens."""

    def append(self, request: Request) -> None:
        """Take in a request that has just come."""

    def appendleft(self, request: Request) -> None:
        """Take back a request that was preempted."""

    def popleft(self) -> Request:
        """Take out the next request."""

    def remove(self, request: Request) -> None:
        """Take out a request, wherever it stands."""

    def __iter__(self) -> Iterator[Request]: ...

    def __len__(self) -> int: ...

    def __contains__(self, request: object) -> bool: ...


class Ordered:
    """A queue in order of a key that a request has when it joins; among equals who arrived first is next."""

    def __init__(self, key: Callable[[Request], float]) -> None:
        self._key = key
        self._rows: list[tuple[float, int, Request]] = []

    def append(self, request: Request) -> None:
        """Take in a request at its place."""
        insort(self._rows, (self._key(request), request.request_id, request))

    appendleft = append

    def popleft(self) -> Request:
        """Take out the next request."""
        return self._rows.pop(0)[2]

    def remove(self, request: Request) -> None:
        """Take out a request."""
        self._rows = [row for row in self._rows if row[2] is not request]

    def __iter__(self) -> Iterator[Request]:
        return (row[2] for row in self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, request: object) -> bool:
        return any(row[2] is request for row in self._rows)


class Fair:
    """Virtual token counters: the tenant that was served least is next; a tenant's own requests first come first.

    A counter grows by the prompt tokens of a request that is taken and by the tokens that are generated, by their
    weights. A tenant that comes back to the queue is lifted to the least counter of those who wait, so that idle time
    earns nothing; when nobody waits, to that of the tenant taken last.
    """

    def __init__(self, weights: "FairShares") -> None:
        self._weights = weights.input_weight, weights.output_weight
        self._queues: dict[str | None, deque[Request]] = {}
        self.counters: dict[str | None, int] = {}
        self._last: str | None = None
        self._size = 0

    def append(self, request: Request) -> None:
        """Take in a request at the end of its tenant's."""
        self._join(request).append(request)

    def appendleft(self, request: Request) -> None:
        """Take back a preempted request before its tenant's others; the charge for its prompt is given back."""
        self._join(request).appendleft(request)
        self.counters[request.traits.tenant] -= self._charge(request)

    def _join(self, request: Request) -> deque[Request]:
        tenant = request.traits.tenant
        queue = self._queues.setdefault(tenant, deque())
        if not queue:
            waiting = [self.counters[name] for name, others in self._queues.items() if others]
            level = min(waiting) if waiting else self.counters.get(self._last, 0)
            self.counters[tenant] = max(self.counters.get(tenant, 0), level)
        self._size += 1
        return queue

    def popleft(self) -> Request:
        """Take out the next request and charge its tenant for the prompt."""
        tenant = self._least(self.counters, {name: len(queue) for name, queue in self._queues.items()})
        request = self._queues[tenant].popleft()
        self.counters[tenant] += self._charge(request)
        self._last = tenant
        self._size -= 1
        return request

    def remove(self, request: Request) -> None:
        """Take out a request."""
        self._queues[request.traits.tenant].remove(request)
        self._size -= 1

    def served(self, tenant: str | None, tokens: int) -> None:
        """Charge a tenant for tokens that were generated."""
        self.counters[tenant] = self.counters.get(tenant, 0) + self._weights[1] * tokens

    def turn(self, tokens: Mapping[str | None, int]) -> int | None:
        """Return after how many steps that generate so many tokens of each tenant another is next; None: never."""
        names = [name for name, queue in self._queues.items() if queue]
        if len(names) < 2:
            return None
        first = min(names, key=self.counters.__getitem__)
        turns = []
        for name in names:
            closer = self._weights[1] * (tokens.get(first, 0) - tokens.get(name, 0))
            apart = self.counters[name] - self.counters[first]
            if closer > 0:  # among equals the tenant seen first is next
                before = names.index(name) < names.index(first)
                turns.append(-(-apart // closer) if before else apart // closer + 1)
        return min(turns, default=None)

    def _charge(self, request: Request) -> int:
        return self._weights[0] * request.prompt_tokens

    @staticmethod
    def _least(counters: dict[str | None, int], left: dict[str | None, int]) -> str | None:
        return min((name for name, count in left.items() if count), key=counters.__getitem__)

    def __iter__(self) -> Iterator[Request]:
        counters, left = dict(self.counters), {name: len(queue) for name, queue in self._queues.items()}
        while any(left.values()):
            tenant = self._least(counters, left)
            queue = self._queues[tenant]
            request = queue[len(queue) - left[tenant]]
            left[tenant] -= 1
            counters[tenant] += self._charge(request)
            yield request

    def __len__(self) -> int:
        return self._size

    def __contains__(self, request: object) -> bool:
        return isinstance(request, Request) and request in self._queues.get(request.traits.tenant, ())


def precedence(request: Request) -> tuple[int, int]:
    """Return the place of a request in an order of priorities: the highest first, among equals who arrived first."""
    return -request.traits.priority, request.request_id


class Setting(NamedTuple):
    """What an order may know of its engine and of the objectives."""

    ttft_ns: int | None
    prefill_ns: Callable[[int, int, int], float]
    """The engine's prefill time by (tokens, query-key pairs, prompts)."""


class FirstCome(Strict):
    """First come, first served."""


class ShortestPredicted(Strict):
    """The least predicted work, prompt and output tokens together, first."""

    ageing: PositiveDuration | None = None
    """Time in the queue that counts as one token less, so that long requests are not starved; default: never."""


class LeastSlack(Strict):
    """The least time left until the prefill would have to begin to meet `slo.ttft`, first."""


class Priority(Strict):
    """The highest priority first, then first come."""

    preempt: bool = True
    """Whether who waits takes the place of a running request of lower priority if there is no other (vLLM V1: not)."""


class FairShares(Strict):
    """Virtual token counters by tenant."""

    input_weight: Count = 1
    """Charge for a prompt token."""
    output_weight: Count = 2
    """Charge for a generated token (VTC: 2)."""


class Order(NamedTuple):
    """A registered order: its parameters, how to make a queue, what it reads of requests, what else it needs."""

    parameters: type[Strict]
    make: Callable[[Any, Setting], Queue]
    reads: Sequence[str] = ()
    """Of `Traits`."""
    needs_ttft: bool = False


def _shortest(parameters: ShortestPredicted, setting: Setting) -> Queue:
    ageing = parameters.ageing

    def key(request: Request) -> float:
        left = max(0, request.traits.predicted_tokens - request.generated)
        work = request.prompt_tokens + request.samples * left
        return work + request.queued_ns / ageing if ageing is not None else work

    return Ordered(key)


def _slack(parameters: LeastSlack, setting: Setting) -> Queue:
    ttft_ns = setting.ttft_ns or 0

    def key(request: Request) -> float:
        tokens = request.prefill_tokens
        return request.arrival_ns + ttft_ns - setting.prefill_ns(tokens, computed_pairs(request, 0, tokens), 1)

    return Ordered(key)


ORDERS: dict[str, Order] = {
    "fcfs": Order(FirstCome, lambda parameters, setting: deque()),
    "shortest_predicted": Order(ShortestPredicted, _shortest, ("predicted_tokens",)),
    "least_slack": Order(LeastSlack, _slack, needs_ttft=True),
    "priority": Order(Priority, lambda parameters, setting: Ordered(lambda r: precedence(r)[0]), ("priority",)),
    "fair": Order(FairShares, lambda parameters, setting: Fair(parameters), ("tenant",)),
}
