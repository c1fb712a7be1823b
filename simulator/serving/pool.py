"""A pool: replicas of one engine with one role, and the router that spreads requests over them."""

from collections.abc import Callable, Collection, Generator, Sequence
from typing import Any, NamedTuple

from simpy import Event
from simpy.events import URGENT

from simulator.clock import Alarm, Clock
from simulator.serving.instance import Instance
from simulator.serving.pool_view import BACKLOG, KV, PREFIX, TOKENS, Backlog, EngineTraits, PoolView, Reports
from simulator.serving.prefix_cache import PrefixCache, usable_units
from simulator.serving.prefix_index import PrefixIndex
from simulator.serving.request import Request
from simulator.serving.routing import Router
from simulator.units import TICK_BITS


class Age(NamedTuple):
    """How old what a router knows may be."""

    interval_ns: int = 0
    """Time between two reports of every engine; zero: all is known as it is now."""
    adds_sent: bool = False
    """Whether a router adds what it has sent since to what was reported."""


class Pool:
    """Instances in order, and per instance what it has been sent and has not finished or handed on."""

    def __init__(
        self,
        role: str,
        router: Router,
        env: Clock | None = None,
        reads: Collection[str] = (),
        age: Age = Age(),  # noqa: B008 - immutable
    ) -> None:
        self.role = role
        self.instances: list[Instance] = []
        self.engines: tuple[EngineTraits, ...] = ()
        self.outstanding: list[int] = []
        self.tokens: list[int] = []  # kept up when the router reads TOKENS
        self._router = router
        self._index: dict[str, int] = {}
        self._backlogs: list[Backlog] = []  # kept up when the router reads BACKLOG
        self._env = env
        self._counts_tokens, self._counts_backlog = TOKENS in reads, BACKLOG in reads
        self._charged: dict[int, int] = {}  # tokens of each outstanding request, as expected when it was sent
        self._finished = self._finished_tokens = 0
        self._reports: Reports | None = None
        self._view: PoolView = self
        self._reports_kv = self._reporting = False  # whether KV use is to be reported, and whether an actor is at it
        if age.interval_ns:
            assert env is not None, "reports need a clock"
            self._view = self._reports = Reports(self, age.interval_ns, age.adds_sent)
            self._reports_kv = KV in reads
        self._prefixes = PrefixIndex()
        self._reads_prefixes = PREFIX in reads
        self._caches: list[list[PrefixCache]] = []  # of each instance's ranks, when the router reads PREFIX
        self._unit_tokens = 0  # of those caches
        self._places: dict[int, int] = {}  # of the instances, by the bits of their ranks' caches in the index
        self._leaving: dict[str, tuple[int, Callable[[Instance], None]]] = {}

    def add(self, instance: Instance, traits: EngineTraits | None = None) -> None:
        """Take in an instance, at the end of the order."""
        if self._reports is not None and self._env is not None and self.instances:
            self._reports.catch_up(self._env.now, self._backlogs)
        self._index[instance.name] = len(self.instances)
        self.instances.append(instance)
        self.outstanding.append(0)
        self.tokens.append(0)
        self._backlogs.append(Backlog())
        alike = self.engines[0]._replace(name=instance.name) if self.engines else EngineTraits(instance.name)
        self.engines = (*self.engines, traits or alike)
        self._caches.append(instance.prefix_caches if self._reads_prefixes else [])
        for cache in self._caches[-1]:
            self._prefixes.join(cache)
        self._place_caches()

    def remove(self, instance: Instance) -> None:
        """Send nothing more to an instance; what it has been sent may still leave it."""
        self._catch_up()
        index = self._index.pop(instance.name)
        for cache in self._caches[index]:
            self._prefixes.leave(cache)
        for values in (self.instances, self.outstanding, self.tokens, self._backlogs, self._caches):
            del values[index]
        self._place_caches()
        self.engines = self.engines[:index] + self.engines[index + 1 :]
        self._index = {each.name: place for place, each in enumerate(self.instances)}

    def _place_caches(self) -> None:
        self._places = {cache.bit: place for place, ranks in enumerate(self._caches) for cache in ranks}
        first = next((ranks[0] for ranks in self._caches if ranks), None)  # all are of one unit; some may have none
        self._unit_tokens = first.unit_tokens if first is not None else 0

    def choose(self, request: Request) -> Instance:
        """Return the instance that takes `request`, and count the request as outstanding there."""
        reports = self._reports
        if reports is not None:
            self._catch_up()
        index = self._router(request, self._view)
        instance = self.instances[index]
        self.outstanding[index] += 1
        tokens = 0
        if self._counts_tokens:
            tokens = request.prompt_tokens + request.samples * self._expected(request)
            self.tokens[index] += tokens
            self._charged[request.request_id] = tokens
        if self._counts_backlog:
            self._backlogs[index].add(request)
        if reports is not None:
            reports.sent(index, request, tokens)
        return instance

    def left(self, instance: Instance, request: Request) -> None:
        """Count `request` no longer as outstanding at `instance`."""
        if self._reports is not None:
            self._catch_up()
        index = self._index.get(instance.name)
        if index is not None:
            self.outstanding[index] -= 1
            if self._counts_backlog:
                self._backlogs[index].left(request)
        if self._counts_tokens:
            self._finished += 1
            self._finished_tokens += request.made_tokens // request.traits.samples
            tokens = self._charged.pop(request.request_id)
            if index is not None:
                self.tokens[index] -= tokens
        if index is None and instance.name in self._leaving:
            self._drains(instance)

    def _drains(self, instance: Instance) -> None:
        count, drained = self._leaving[instance.name]
        self._leaving[instance.name] = count - 1, drained
        if count == 1:
            del self._leaving[instance.name]
            drained(instance)

    def backlog(self, index: int) -> int:
        """Return the tokens of an instance's prompts that are still to be computed."""
        assert self._env is not None, "a backlog needs a clock"
        return self._backlogs[index].before(self._env.now + 1)

    def kv_share(self, index: int) -> float:
        """Return the share of an instance's KV blocks that are in use now."""
        instance = self.instances[index]
        return instance.used_blocks() / instance.kv_total_blocks

    def cached_tokens(self, request: Request) -> Sequence[int]:
        """Return per instance how many tokens of the request's prompt the prefix cache of a rank holds, the best."""
        tokens = [0] * len(self._caches)
        size = self._unit_tokens
        if not size:
            return tokens
        for bit, units in self._prefixes.units(request.keys, usable_units(request, size)).items():
            place = self._places[bit]
            tokens[place] = max(tokens[place], size * units)
        return tokens

    def reachable_tokens(self, request: Request) -> Sequence[int]:
        """Return per instance the tokens of the prompt that a rank's prefix cache and the tiers below it offer now."""
        assert self._env is not None, "tiers need a clock"
        now = self._env.now << TICK_BITS
        return [max(rank.reachable_tokens(request, now) for rank in instance.ranks) for instance in self.instances]

    def _expected(self, request: Request) -> int:
        """Return the output tokens to expect of an answer: as predicted, or the mean of those gone; none in prefill."""
        if self.role == "prefill":
            return 0
        predicted = request.traits.predicted_tokens
        if predicted >= 0:
            return predicted
        return self._finished_tokens // self._finished if self._finished else 0

    def _catch_up(self) -> None:
        reports, env = self._reports, self._env
        if reports is None or env is None:
            return
        reports.catch_up(env.now, self._backlogs)
        if self._reports_kv and not self._reporting:
            self._reporting = True
            env.process(self._report_kv(reports, env))

    def _report_kv(self, reports: Reports, env: Clock) -> Generator[Event, Any, None]:
        """Take the reports of KV use while there is any to come: until nothing is outstanding when one is taken."""
        alarm = Alarm(env, URGENT)  # a report holds what happened before it
        while True:
            alarm.set(env.now - env.now % reports.interval_ns + reports.interval_ns)
            yield alarm
            reports.take_kv()
            if not any(self.outstanding):
                self._reporting = False
                return

    def check(self) -> None:
        """Raise InvariantError unless the index of prefixes knows what the caches hold."""
        self._prefixes.check(cache for ranks in self._caches for cache in ranks)

    def drain(self, instance: Instance, drained: Callable[[Instance], None]) -> None:
        """Send nothing more to an instance, and call `drained` when all that it was sent has left it."""
        count = self.outstanding[self._index[instance.name]]
        self.remove(instance)
        if count:
            self._leaving[instance.name] = count, drained
        else:
            drained(instance)
