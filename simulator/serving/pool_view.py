"""What a router knows of a pool: as it is now, or as its engines last reported it.

Model: engines report at whole multiples of an interval; a report holds what happened before it, and what the router
has sent since may be added. Source: Mitzenmacher (2000), "How useful is old information?".
"""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from simulator.serving.request import Request

TOKENS, BACKLOG, KV, PREFIX, PRICE = "tokens", "backlog", "kv", "prefix", "price"
"""What a router may read; a pool counts requests always and the rest for routers that say so."""


def no_time(batch: int, context: int) -> float:
    """Return zero, whatever the batch: a decode step of an engine of which nothing is known."""
    return 0.0


class EngineTraits(NamedTuple):
    """What does not change about an engine: what a router may compare engines of one pool by."""

    name: str
    prefill_ns_per_token: float = 0.0
    """Time to prefill one token more, in prefills of a full batch."""
    step_ns: Callable[[int, int], float] = no_time
    """(requests, tokens of context in all) -> time of a decode step."""
    price_per_h: float = 0.0
    """Dollars per hour of all its devices."""


class PoolView(Protocol):
    """What a router may read of a pool; sequences and indices are in the order of `engines`."""

    @property
    def engines(self) -> Sequence[EngineTraits]:
        """The engines; another object when one has come or gone."""

    @property
    def outstanding(self) -> Sequence[int]:
        """Requests sent to each engine that have not left it."""

    @property
    def tokens(self) -> Sequence[int]:
        """Prompt and expected output tokens of those requests."""

    def backlog(self, index: int) -> int:
        """Return the tokens of an engine's prompts that are still to be computed."""

    def kv_share(self, index: int) -> float:
        """Return the share of an engine's KV blocks that are in use."""

    def cached_tokens(self, request: Request) -> Sequence[int]:
        """Return per engine how many tokens of the request's prompt its prefix cache holds, never as reported."""

    def reachable_tokens(self, request: Request) -> Sequence[int]:
        """Return the same with the tiers below it, as of now."""


class Router(Protocol):
    """Chooses the index of an instance for one request."""

    def __call__(self, request: Request, pool: PoolView) -> int:
        """Return the index of the instance that takes `request`."""


def held_tokens(request: Request, pool: PoolView, tiers: bool) -> Sequence[int]:
    """Return per engine the tokens of a prompt that its prefix cache holds, or that with the `tiers` below it."""
    if not request.keys:
        return [0] * len(pool.outstanding)
    return pool.reachable_tokens(request) if tiers else pool.cached_tokens(request)


class Place(NamedTuple):
    """Where a router stands: what its random draws and its default objectives hang on."""

    seed: int = 0
    pool: str = "pool"
    ttft_ns: int | None = None
    """The scenario's objective of the time to first token, if any; as `tpot_ns`."""
    tpot_ns: int | None = None

    @property
    def stream(self) -> str:
        """Name of the router's random stream."""
        return f"router/{self.pool}"


def in_turn(loads: Sequence[Any], last: int) -> int:
    """Return the index of the least load; among equals the first after `last`, and from the start again."""
    least = min(loads)
    try:
        return loads.index(least, last + 1)
    except ValueError:
        return loads.index(least)


class Backlog:
    """Prompts sent to one engine and not yet computed, in whatever order they are."""

    __slots__ = ("_ended", "_tokens")

    def __init__(self) -> None:
        self._tokens = 0
        self._ended: deque[tuple[int, int]] = deque()  # when prefills ended that a report may precede, and their tokens

    def add(self, request: Request) -> None:
        """Count the prompt of a request that was sent, unless it is computed already."""
        if request.prefill_end_ns < 0:
            self._tokens += request.prompt_tokens
            request.awaited_by = (*request.awaited_by, self)

    def prefilled(self, request: Request) -> None:
        """Count a prompt no longer that is computed now; a report from before may ask for it yet."""
        self._tokens -= request.prompt_tokens
        self._ended.append((request.prefill_end_ns, request.prompt_tokens))

    def left(self, request: Request) -> None:
        """Count the prompt of a request no longer that goes; one that is computed does not count anyway."""
        if request.prefill_end_ns < 0 and self in request.awaited_by:
            self._tokens -= request.prompt_tokens
            request.awaited_by = tuple(each for each in request.awaited_by if each is not self)

    def before(self, now_ns: int) -> int:
        """Return the tokens of prompts that were not computed before `now_ns`, which never goes back."""
        ended = self._ended
        while ended and ended[0][0] < now_ns:
            ended.popleft()
        return self._tokens + sum([tokens for _, tokens in ended])


class Reports:
    """A pool as its engines reported it at the last multiple of `interval_ns`.

    Counts need no event: before the first change or look after a report is due, the live counts are what it holds.
    KV use changes by itself, so its reports are taken when they are due, by `take_kv`.
    """

    def __init__(self, live: PoolView, interval_ns: int, adds_sent: bool) -> None:
        self.interval_ns = interval_ns
        self.adds_sent = adds_sent
        self._live = live
        self._due_ns = 0  # when the next report is due
        self.engines: Sequence[EngineTraits] = ()  # as they stand in the lists below
        self.outstanding: list[int] = []
        self.tokens: list[int] = []
        self._backlogs: list[int] = []
        self._kv: list[float] = []

    def catch_up(self, now_ns: int, backlogs: Sequence[Backlog]) -> None:
        """Take the report that is due, if one is; nothing may have changed since it was."""
        live = self._live
        self._follow()
        if now_ns >= self._due_ns:
            report_ns = now_ns - now_ns % self.interval_ns
            self._due_ns = report_ns + self.interval_ns
            self.outstanding = list(live.outstanding)
            self.tokens = list(live.tokens)
            self._backlogs = [backlog.before(report_ns) for backlog in backlogs]

    def take_kv(self) -> None:
        """Take the report of KV use, which is due now."""
        self._follow()
        self._kv = [self._live.kv_share(index) for index in range(len(self.engines))]

    def _follow(self) -> None:
        """Keep what was reported of engines that are still there; of a new one nothing is known: it counts as idle."""
        live = self._live.engines
        if self.engines is live:
            return
        at = {engine.name: index for index, engine in enumerate(self.engines)}
        old = [at.get(engine.name) for engine in live]
        self.outstanding = [0 if i is None else self.outstanding[i] for i in old]
        self.tokens = [0 if i is None else self.tokens[i] for i in old]
        self._backlogs = [0 if i is None else self._backlogs[i] for i in old]
        self._kv = [0.0 if i is None else self._kv[i] for i in old]
        self.engines = live

    def sent(self, index: int, request: Request, tokens: int) -> None:
        """Count a request that the router has just sent, if it is to know what it does."""
        if self.adds_sent:
            self.outstanding[index] += 1
            self.tokens[index] += tokens
            self._backlogs[index] += request.prompt_tokens if request.prefill_end_ns < 0 else 0

    def backlog(self, index: int) -> int:
        """Return the tokens of prompts that were to be computed at the last report."""
        return self._backlogs[index]

    def kv_share(self, index: int) -> float:
        """Return the share of KV blocks in use at the last report."""
        return self._kv[index]

    def cached_tokens(self, request: Request) -> Sequence[int]:
        """Return what the engines' prefix caches hold of the prompt now."""
        return self._live.cached_tokens(request)

    def reachable_tokens(self, request: Request) -> Sequence[int]:
        """Return what those and the tiers below hold of it now."""
        return self._live.reachable_tokens(request)
