"""The engines of a role in a scenario: one section for all of them, or a list of groups that differ.

Policies come from the registries of the packages that own them, so a registered plug-in is a legal name here.
"""

import re
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, Self

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator

from simulator.device.expert_servers import ExpertServers
from simulator.documents import PathKey, dotted
from simulator.errors import InputError, Problem, nearest
from simulator.model.layout import Layout
from simulator.model.transformer import Transformer
from simulator.scenario.experts import Experts
from simulator.scenario.speculation import SpeculationSection
from simulator.serving.batching import BATCHERS
from simulator.serving.eviction import EVICTIONS, Pin
from simulator.serving.queueing import ORDERS
from simulator.serving.routing import ROUTERS
from simulator.serving.swap import PREEMPTIONS
from simulator.serving.tiers import TierSection
from simulator.strict import Count, Fault, HourlyPrice, LocatedError, OneOf, Strict, one_of

if TYPE_CHECKING:
    Batcher = OneOf
    Router = OneOf
    Eviction = OneOf
    Queue = OneOf
    Preemption = OneOf
else:
    Batcher = one_of("Batcher", {name: batcher.parameters for name, batcher in BATCHERS.items()})
    Router = one_of("Router", {name: router.parameters for name, router in ROUTERS.items()})
    Queue = one_of("Queue", {name: order.parameters for name, order in ORDERS.items()})
    Preemption = one_of("Preemption", PREEMPTIONS)
    Eviction = one_of("Eviction", {name: kind.parameters for name, kind in EVICTIONS.items()})


class PrefixCaching(Strict):
    """KV blocks of prompts stay in memory after their requests, for prompts that begin alike.

    A trace's prefix hashes say which do, or its sessions, whose turns begin with the whole context of the turn before.
    """

    eviction: Eviction = Eviction.model_validate("lru")
    """Which units that nobody uses are given up first."""
    unit_tokens: Count | None = None
    """Tokens that are cached or not as one; default: those of a trace's hash, or for sessions one block."""
    pin: Pin | None = None
    """Beginnings of prompts that are never given up."""
    tiers: tuple[TierSection, ...] = ()
    """Where units go that device memory gives up, one after the other, and whence they are loaded; default: nowhere."""
    load: Literal["always", "faster"] = "always"
    """Whether units in tiers are always loaded, or only when that ends before they could be computed."""
    prefetch: bool = False
    """Whether units of a request that has to wait come from slower tiers to the first one meanwhile."""

    @model_validator(mode="after")
    def _only_the_last_tier_is_on_the_fabric(self) -> Self:
        on_fabric = [place for place, tier in enumerate(self.tiers) if tier.fabric is not None]
        if not on_fabric:
            return self
        if on_fabric[0] < len(self.tiers) - 1:
            what = "memory of all nodes is the last tier: nothing goes down from it"
            raise LocatedError(Fault(("tiers", on_fabric[0], "fabric"), what, "no tier after it"))
        given = {"load": self.load == "faster", "prefetch": self.prefetch}
        what = "cannot be foretold with a tier on the fabric, whose links other traffic shares"
        faults = [Fault((key,), f"when a load ends {what}") for key, there in given.items() if there]
        if faults:
            raise LocatedError(*faults)
        return self


class KV(Strict):
    """Memory for keys and values of one instance, in paged blocks."""

    block_tokens: Count = 16
    """Tokens of one block."""
    memory_utilisation: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Share of each device's memory that the engine may use for weights, activations and KV together."""
    watermark: Annotated[float, Field(ge=0, lt=1)] = 0.01
    """Share of the blocks that new prompts leave free for those who decode."""
    blocks: Count | None = None
    """Number of blocks, in the place of what the memory ledger finds."""
    prefix_cache: PrefixCaching | None = None
    """Keep what prompts have in common; default: every prompt is computed in full."""
    hybrid: bool | None = None
    """Whether layers with a window give back what has left it (vLLM's hybrid KV cache manager); default: yes, but where
    it is not modelled: beside context parallelism, tiers, or a prefix cache when all layers have a window."""

    @property
    def fabric_tier(self) -> TierSection | None:
        """The tier of its prefix cache that lies on the fabric: none, or the last."""
        tiers = self.prefix_cache.tiers if self.prefix_cache is not None else ()
        return tiers[-1] if tiers and tiers[-1].fabric is not None else None


def _group_name(name: str) -> str:
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,31}", name):
        raise ValueError(f"{name[:40]!r} is no name: at most 32 small letters, digits and '_', a letter first")
    return name


class Pool(Strict):
    """Replicas of one engine with one role: all of a role's engines, or a group of them."""

    name: Annotated[str, AfterValidator(_group_name)] | None = None
    """What its engines are called after their role, where a role has several groups."""
    device: str | None = None
    """Data sheet of the devices that it leases; default: the only kind that the cluster has."""
    price: HourlyPrice | None = None
    """Rent of one device; default: that of the data sheet."""
    instances: Count
    """Number of engines."""
    layout: Layout = Layout()
    """Devices of one engine and how the model is split over them."""
    batcher: Batcher = Batcher.model_validate("continuous")
    """What an engine does in its next iteration; of an engine of several ranks (data-parallel attention, micro-batches
    of a pipeline), what each of them does: its limits are those of a rank."""
    queue: Queue = Queue.model_validate("fcfs")
    """In which order those who wait are taken."""
    preemption: Preemption = Preemption.model_validate("recompute")
    """What becomes of a request that decodes when its KV blocks are needed."""
    kv: KV = KV()
    """KV memory of one engine, divided evenly among its ranks."""
    router: Router | None = None
    """Who takes a request that comes to this role, whatever the group; default: the router of `serving`."""
    expert_servers: ExpertServers | None = None
    """Devices that hold the experts for all engines of the pool, which keep attention and KV cache; default: none."""
    experts: Experts | None = None
    """How tokens choose experts and where these lie; default: all alike, in order, without copies."""

    def gives_back(self, model: Transformer) -> bool:
        """Return whether layers with a window give back what has left it."""
        if model.attention.window is None:
            return False
        return self.hinders_windows(model) is None if self.kv.hybrid is None else self.kv.hybrid

    def hinders_windows(self, model: Transformer) -> str | None:
        """Return beside what windows that are given back are not modelled, if that is here."""
        caching, window = self.kv.prefix_cache, model.attention.window
        if self.layout.context > 1:
            return "context parallelism"
        if caching is not None and caching.tiers:
            return "tiers of a prefix cache"
        if caching is not None and window is not None and window.layers == model.layers:
            return "a prefix cache of a model all of whose layers have a window"
        return None

    @model_validator(mode="after")
    def _experts_are_here(self) -> Self:
        if self.experts is not None and self.expert_servers is not None:
            raise LocatedError(Fault(("experts",), "excludes `expert_servers`, whose experts are all alike"))
        return self

    speculation: SpeculationSection | None = None
    """Tokens are drafted and verified together; default: one token an iteration."""

    @model_validator(mode="after")
    def _can_speculate(self) -> Self:
        if self.speculation is None:
            return self
        limits, fed = self.batcher.parameters, self.speculation.tokens + 1
        if BATCHERS[self.batcher.name].to_completion:
            what = f"{self.batcher.name} batches go on in step until the last has all its tokens"
            raise LocatedError(Fault(("speculation",), what, "another batcher"))
        if self.expert_servers is not None:
            raise LocatedError(Fault(("speculation",), "engines with expert servers draft nothing", "one of the two"))
        if self.batcher.name == "chunked_prefill" and limits.max_running * fed > limits.max_batch_tokens:
            what = f"{limits.max_running} requests of {fed} tokens each cannot decode in {limits.max_batch_tokens}"
            raise LocatedError(Fault(("batcher",), what, f"max_batch_tokens of {limits.max_running * fed} at least"))
        return self


def _form(value: Any) -> str:
    return "groups" if isinstance(value, list | tuple) else "pool"


Pools = Annotated[
    Annotated[Pool, Tag("pool")] | Annotated[tuple[Pool, ...], Tag("groups"), Field(min_length=1)], Discriminator(_form)
]
"""One section, or a list of groups."""


class Group(NamedTuple):
    """Engines that are alike: a section, whose they are, and where it stands below `serving`."""

    role: str
    keys: PathKey
    pool: Pool

    @property
    def name(self) -> str:
        """What its engines are called, but for a number: of one role they are numbered together where that is equal."""
        return f"{self.role}-{self.pool.name}" if self.pool.name else self.role

    @property
    def at(self) -> str:
        """Where the section stands in a scenario."""
        return dotted(("serving", *self.keys)) or ""


def groups_of(role: str, pools: Pool | tuple[Pool, ...]) -> tuple[Group, ...]:
    """Return the groups of a role in their order."""
    if isinstance(pools, Pool):
        return (Group(role, (role,), pools),)
    return tuple(Group(role, (role, index), pool) for index, pool in enumerate(pools))


def group_names(groups: Sequence[Group]) -> list[str]:
    """Return the name of each group, with its place among its like behind it where several have the same."""
    names = Counter(group.name for group in groups)
    seen: Counter[str] = Counter()
    found = []
    for group in groups:
        found.append(f"{group.name}.{seen[group.name]}" if names[group.name] > 1 else group.name)
        seen[group.name] += 1
    return found


def engine_names(groups: Sequence[Group]) -> list[tuple[str, ...]]:
    """Return the names of the engines of each group, numbered from zero for each name of a group."""
    taken: Counter[str] = Counter()
    names = []
    for group in groups:
        first = taken[group.name]
        taken[group.name] += group.pool.instances
        names.append(tuple(f"{group.name}-{index}" for index in range(first, taken[group.name])))
    return names


def device_of(pool: Pool, kinds: Sequence[str]) -> str:
    """Return the data sheet of a group's devices; raises InputError unless it is one of a cluster's `kinds`."""
    if pool.device is None and len(kinds) > 1:
        what = f"the cluster has devices of {len(kinds)} kinds, and these engines do not say theirs"
        raise InputError(Problem(what, path="device", allowed=", ".join(kinds)))
    if pool.device is not None and pool.device not in kinds:
        what = f"the cluster has no {pool.device}"
        raise InputError(Problem(what, path="device", allowed=", ".join(kinds), nearest=nearest(pool.device, kinds)))
    return pool.device or kinds[0]
