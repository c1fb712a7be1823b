"""The way of a rank to the tiers below its prefix cache: what goes down, what comes up, and who waits for what comes.

Sources: hierarchical caches that write through or back and prefetch to the host (SGLang's HiCache, LMCache); a request
whose prefix is on its way waits with its blocks (vLLM's KV connectors).
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial

from simpy import Environment, Event

from simulator.device.cost import Cost
from simulator.errors import InvariantError
from simulator.serving.engine_view import Step
from simulator.serving.fabric_tier import NOWHERE, FabricTier, Reach
from simulator.serving.prefix_cache import PrefixCache, usable_units
from simulator.serving.request import Request
from simulator.serving.tiers import Copy, Tier
from simulator.units import TICK_BITS, TICKS_PER_NS


class Loading:
    """A request whose prefix is on its way: so many units, device memory's included, are there at tick `end`.

    While `flows` is an event, some come over the fabric until it has fired, and `end` is that of the others.
    """

    __slots__ = ("end", "flows", "request", "units")

    def __init__(self, end: int, request: Request, units: int) -> None:
        self.end = end
        self.request = request
        self.units = units
        self.flows: Event | None = None


class LowerTiers:
    """What a rank finds below its device memory, the fastest tier first, and the requests that it loads for."""

    __slots__ = (
        "_faster",
        "_links",
        "_prefetches",
        "_reach",
        "_through",
        "cost",
        "env",
        "loading",
        "now",
        "tiers",
        "wake",
    )

    def __init__(
        self,
        tiers: Sequence[Tier | FabricTier],
        faster: bool = False,
        prefetches: bool = False,
        reach: Reach = NOWHERE,
    ) -> None:
        """`faster`: load only what takes longer to compute; `prefetches`: bring up what those who wait will want.

        Both ask when a load would end, which no tier on the fabric knows. `reach` is what such a tier needs of a rank.
        """
        self.tiers = tuple(tiers)
        self._links = tuple(tier for tier in tiers if isinstance(tier, Tier))
        if (faster or prefetches) and len(self._links) < len(self.tiers):
            raise ValueError("when a load over the fabric ends cannot be foretold")
        self.wake: Callable[[int], None] | None = None  # hears of the tick at which a load over the fabric has ended
        self._reach = reach
        self.loading: list[Loading] = []
        self.env: Environment | None = None  # the time at which units are written
        self.now = 0  # tick at which the iteration to come begins
        self.cost: Cost | None = None  # of that iteration
        self._faster = faster
        self._prefetches = prefetches and len(self.tiers) > 1
        self._through = any(tier.through for tier in self.tiers)

    def _time(self) -> int:
        return int(self.env.now) << TICK_BITS if self.env is not None else 0

    # -- units that come --------------------------------------------------------------------------------------------

    def keep(self, keys: Sequence[int]) -> None:
        """Take in what device memory has given up; what a tier has no room for goes to the next."""
        now = self._time()
        self._hand_down([Copy(key, now) for key in keys], 0)

    def _hand_down(self, copies: Sequence[Copy], place: int) -> None:
        """Offer units to the tiers from a place on; what is written through came there when it was computed."""
        for tier in self.tiers[place:]:
            if not copies or tier.through:
                return
            copies = tier.put(copies, self._reach) if isinstance(tier, FabricTier) else tier.put(copies)

    def store(self, keys: Sequence[int]) -> None:
        """Copy the beginning of a prompt that device memory has now to the tiers that are written through."""
        if not self._through:
            return
        now = self._time()
        for place, tier in enumerate(self.tiers):
            if not tier.through:
                continue
            gone = tier.store(keys, now, self._reach) if isinstance(tier, FabricTier) else tier.store(keys, now)
            self._hand_down(gone, place + 1)

    def prefetch(self, request: Request, prefixes: PrefixCache) -> None:
        """Bring units of a request that waits from slower tiers to the first, as many as fit there."""
        if not self._prefetches or not self._links[0].units:
            return
        fast = self._links[0]
        now = self._time()
        first, units = self.find(request, prefixes, now)
        keys = request.keys[first : first + min(units, fast.units)]
        fast.use(keys)
        missing = [key for key in keys if key not in fast]
        ends: dict[int, int] = {}
        for place, wanted in enumerate(self._places(missing, now)):
            if wanted:
                ends.update(zip(wanted, self._links[place].load(wanted, now), strict=True))
        self._hand_down(fast.fetch([Copy(key, ends[key]) for key in missing]), 1)

    # -- units that are loaded --------------------------------------------------------------------------------------

    def match(self, request: Request, prefixes: PrefixCache) -> tuple[int, int]:
        """Return how many units of a request device memory has, and how many after those are to be loaded."""
        first, units = self.find(request, prefixes, self.now)
        if units and self._faster and not self._is_faster(request, first, units, prefixes.unit_tokens):
            return first, 0
        return first, units

    def find(self, request: Request, prefixes: PrefixCache, now: int) -> tuple[int, int]:
        """Return how many units of a request device memory has, and how many after those some tier offers."""
        most = usable_units(request, prefixes.unit_tokens)
        first, found = prefixes.match(request.keys, most), 0
        for key in request.keys[first:most]:
            if not any(tier.offers(key, now) for tier in self.tiers):
                break
            found += 1
        return first, found

    def _places(self, keys: Iterable[int], now: int) -> list[list[int]]:
        """Return what to load from each tier: each unit from the first that offers it."""
        wanted: list[list[int]] = [[] for _ in self.tiers]
        for key in keys:
            wanted[next(place for place, tier in enumerate(self.tiers) if tier.offers(key, now))].append(key)
        return wanted

    def _is_faster(self, request: Request, first: int, units: int, unit_tokens: int) -> bool:
        """Return whether a load would end before the engine could have computed as much more of the prompt, alone."""
        wanted = zip(self._links, self._places(request.keys[first : first + units], self.now), strict=True)
        end = max(tier.ends(keys, self.now)[-1] for tier, keys in wanted if keys)
        whole = self._prefill_ns(request, first * unit_tokens)
        return end - self.now <= (whole - self._prefill_ns(request, (first + units) * unit_tokens)) * TICKS_PER_NS

    def _prefill_ns(self, request: Request, cached: int) -> float:
        assert self.cost is not None
        tokens = request.prefill_tokens - cached
        return self.cost.prefill_ns(tokens, tokens * cached + tokens * (tokens + 1) // 2, 1)

    def until_load(self, step: Step, head: Request | None, prefixes: PrefixCache) -> Step:
        """Return a step without the new prompts from the first on that has units to load, `head` apart: that waits."""
        for place, (request, _) in enumerate(step.prompts):
            if not request.computed and request is not head and self.match(request, prefixes)[1]:
                return step._replace(prompts=step.prompts[:place])
        return step

    def load(self, request: Request, first: int, units: int) -> None:
        """Load `units` units of a request from place `first` on, each from the first tier that offers it."""
        wanted = self._places(request.keys[first : first + units], self.now)
        row = Loading(self.now, request, first + units)
        for tier, keys in zip(self.tiers, wanted, strict=True):
            if not keys:
                continue
            tier.found += len(keys)
            if isinstance(tier, FabricTier):
                row.flows = tier.read(keys, self._reach)
                row.flows.callbacks.append(partial(self._arrived, row))
            else:
                row.end = max(row.end, tier.load(keys, self.now)[-1])
        self.loading.append(row)

    def _arrived(self, row: Loading, event: Event) -> None:
        """Note that what came over the fabric for a request is there; it may have been given up meanwhile."""
        row.flows = None
        row.end = max(row.end, self._time())
        if self.wake is not None and row in self.loading:
            self.wake(row.end)

    def loaded(self) -> list[Loading]:
        """Take out those whose prefixes are there, in the order in which they were begun."""
        done = [row for row in self.loading if row.flows is None and row.end <= self.now]
        self.loading = [row for row in self.loading if row not in done]
        return done

    def withdraw(self, request: Request) -> bool:
        """Forget a request; return whether it was being loaded for."""
        before = len(self.loading)
        self.loading = [row for row in self.loading if row.request is not request]
        return len(self.loading) < before

    def __contains__(self, request: object) -> bool:
        return any(row.request is request for row in self.loading)

    def check(self) -> None:
        """Raise InvariantError when a tier holds more than it can, or a request waits for what has come."""
        for tier in self.tiers:
            tier.check()
        if any(row.flows is not None and row.flows.processed for row in self.loading):
            raise InvariantError("cache tier on the fabric: a load has ended and its request waits")
