"""The pools of a serving scenario before they live: per role a router, and groups of engines with their leases.

Every group has its own devices: their data sheet sets its costs, its memory, its power and its price.
"""

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from simulator.build.disaggregation import cost_with_servers
from simulator.build.experts import experts_of
from simulator.build.front import router_of
from simulator.build.kv_memory import SharedTiers, check_reach, lower_of, shared_of, swap_of, windows_of
from simulator.build.workload import prefixes_of
from simulator.cluster.inventory import Inventory, Lease
from simulator.device.accelerator import Accelerator, load_accelerator
from simulator.device.cost import Cost, Subject
from simulator.errors import InputError, Problem
from simulator.model.forward import Work
from simulator.model.layout import Layout
from simulator.model.transformer import Transformer
from simulator.network.collectives import Collectives
from simulator.network.group_times import GroupTimes, surroundings
from simulator.scenario.pool import Group, device_of, engine_names, group_names
from simulator.scenario.pool import Pool as PoolSection
from simulator.scenario.reference import kv_blocks_of
from simulator.scenario.schema import Scenario, Serving
from simulator.scenario.speculation import cost_of
from simulator.serving.batching import BATCHERS
from simulator.serving.engine import Engine
from simulator.serving.expert_balance import Plan as ExpertPlan
from simulator.serving.fabric_tier import FabricTier
from simulator.serving.jump import StepTicks
from simulator.serving.pool_view import PRICE, EngineTraits, Router
from simulator.serving.queueing import ORDERS, Setting
from simulator.serving.speculation import Speculation
from simulator.topology.graph import Topology


class Switched(NamedTuple):
    """What an engine is in the other role, on the same devices."""

    engine: Engine
    traits: EngineTraits


class Member(NamedTuple):
    """One engine of a group, before it lives; those that lie alike on the network share all but the lease."""

    lease: Lease
    engine: Engine
    traits: EngineTraits
    """But for its name."""
    switched: Switched | None = None
    """What it is in the other role, if it may have that."""


@dataclass(frozen=True)
class GroupPlan:
    """Engines that are alike but for where they lie, before they live."""

    section: Group
    name: str
    """What its engines are called, but for a number; with a number of its own where several groups are called so."""
    device: str
    """Data sheet of its devices."""
    members: tuple[Member, ...]
    hourly: float | None
    """Dollars per hour of one device, where they are known."""
    servers: Lease | None = None
    """Devices of its expert servers."""
    experts: ExpertPlan | None = None
    pooled: FabricTier | None = None
    """The tier of its prefix caches that lies on the fabric."""

    @property
    def engine(self) -> Engine:
        """What the first of its engines is: the others have the same memory and limits."""
        return self.members[0].engine

    @property
    def switched(self) -> Engine | None:
        """What the first is in the other role, if it may have that."""
        there = self.members[0].switched
        return None if there is None else there.engine

    @property
    def engines(self) -> list[Engine]:
        """All that its engines are in either role, each once."""
        found = [each.engine for each in self.members]
        found += [each.switched.engine for each in self.members if each.switched is not None]
        return list({id(each): each for each in found}.values())

    @property
    def leases(self) -> tuple[Lease, ...]:
        """The devices of each engine."""
        return tuple(each.lease for each in self.members)

    @property
    def layout(self) -> Layout:
        """How each engine splits the model."""
        return self.section.pool.layout

    @property
    def devices(self) -> int:
        """Devices that it leases."""
        servers = len(self.servers.devices) if self.servers is not None else 0
        return servers + sum(len(lease.devices) for lease in self.leases)

    @property
    def moves_experts(self) -> bool:
        """Whether weights cross the network."""
        return self.experts is not None and self.experts.interval_ns is not None and self.experts.moves_cost


@dataclass(frozen=True)
class PoolPlan:
    """All engines of one role, before they live, and who chooses among them."""

    role: str
    router: Router
    reads: frozenset[str]
    """What the router reads of the pool."""
    groups: tuple[GroupPlan, ...]

    @property
    def devices(self) -> list[int]:
        """Devices of its engines."""
        return [at for group in self.groups for lease in group.leases for at in lease.devices]


@dataclass(frozen=True)
class Planning:
    """What groups are planned from."""

    scenario: Scenario
    model: Transformer
    topology: Topology
    inventory: Inventory
    collectives: Callable[[str], Collectives]
    """Of a kind of devices; asked for only where they are needed."""
    unit_tokens: int | None
    """Tokens of a unit of the prefix caches."""
    notes: list[str]

    @property
    def serving(self) -> Serving:
        """The section of the engines."""
        assert self.scenario.serving is not None
        return self.scenario.serving

    def pools(self) -> tuple[PoolPlan, ...]:
        """Lease devices for all engines, in order; raises InputError when something does not fit."""
        groups = self.serving.groups
        engines = zip(groups, group_names(groups), engine_names(groups), strict=True)
        of = self.model, self.serving.precision, self.unit_tokens, self.topology
        shared = {group.at: shared_of(group.pool, *of) for group in groups}
        plans = [self._group(group, name, names, shared) for group, name, names in engines]
        pools = []
        for role in self.serving.roles:
            own = tuple(plan for plan in plans if plan.section.role == role)
            pools.append(PoolPlan(role, *self._router(role, own), own))
        return tuple(pools)

    def _router(self, role: str, groups: tuple[GroupPlan, ...]) -> tuple[Router, frozenset[str]]:
        router, reads = router_of(role, self.scenario)
        free = [group for group in groups if group.hourly is None]
        if PRICE in reads and free and len({group.device for group in groups}) > 1:
            what = f"{self.serving.router_of(role)[0].name} compares prices, and {free[0].device} has none per hour"
            problem = Problem(what, path=f"{free[0].section.at}.price", allowed="that of one device, such as 1.2 $/h")
            raise InputError(self.scenario.located(problem))
        return router, reads

    def _group(self, group: Group, name: str, names: tuple[str, ...], shared: Mapping[str, SharedTiers]) -> GroupPlan:
        section, scenario, model = group.pool, self.scenario, self.model
        try:
            device = device_of(section, tuple(self.topology.kinds))
        except InputError as error:
            raise InputError([scenario.located(problem) for problem in error.at(group.at)]) from None
        devices_per_node = 1 + max(site.slot for site in self.topology.sites)
        accelerator = load_accelerator(device).in_nodes_of(devices_per_node)
        experts = experts_of(group, scenario, model, devices_per_node, self.notes)
        leases = tuple(self.inventory.lease(each, section.layout.devices, device) for each in names)
        servers = None
        if section.expert_servers is not None:
            servers = self.inventory.lease(f"{names[0]}-experts", section.expert_servers.devices, device)
        devices = [at for lease in leases for at in lease.devices]
        check_reach(group, self.topology, devices)
        hourly = section.price if section.price is not None else accelerator.price.hourly
        costs = self._costs(group, accelerator, leases, servers, experts)
        known: dict[int, Member] = {}  # by cost
        for lease, cost in zip(leases, costs, strict=True):
            if id(cost) not in known:
                per_h = section.layout.devices * (hourly or 0.0)
                known[id(cost)] = self._member(group, accelerator, lease, cost, per_h, devices, shared)
        members = tuple(known[id(cost)]._replace(lease=lease) for lease, cost in zip(leases, costs, strict=True))
        return GroupPlan(group, name, device, members, hourly, servers, experts, shared[group.at].pooled)

    def _member(
        self,
        group: Group,
        accelerator: Accelerator,
        lease: Lease,
        cost: Cost,
        per_h: float,
        devices: list[int],
        shared: Mapping[str, SharedTiers],
    ) -> Member:
        engine, switched = self._engine_of(group.role, group.pool, accelerator, cost, shared[group.at]), None
        if self.serving.role_switch is not None:
            there = self._switched(group, accelerator, cost, devices, shared)
            switched = Switched(there, engine_traits(there, per_h))
        return Member(lease, engine, engine_traits(engine, per_h), switched)

    def _switched(
        self,
        group: Group,
        accelerator: Accelerator,
        cost: Cost,
        devices: list[int],
        shared: Mapping[str, SharedTiers],
    ) -> Engine:
        """Return what an engine of a group is in the other role: its layout and its experts' servers stay its own."""
        [other] = [each for each in self.serving.groups if each.role != group.role]
        check_reach(other, self.topology, devices)
        own = {"layout": group.pool.layout, "expert_servers": group.pool.expert_servers}
        try:
            return self._engine_of(other.role, other.pool.model_copy(update=own), accelerator, cost, shared[other.at])
        except InputError as error:
            found = [replace(each, what=f"in the role of {other.role}, {each.what}") for each in error.at(group.at)]
            raise InputError([self.scenario.located(each) for each in found]) from None

    def _costs(
        self,
        group: Group,
        accelerator: Accelerator,
        leases: tuple[Lease, ...],
        servers: Lease | None,
        experts: ExpertPlan | None,
    ) -> list[Cost]:
        """Return the cost of each engine, one for all that lie alike on the network."""
        serving, model, section = self.serving, self.model, group.pool
        layout, kind = section.layout, device_of(section, tuple(self.topology.kinds))
        if section.expert_servers is not None and servers is not None:
            clients = [lease.devices for lease in leases]
            given = serving, model, layout, accelerator, section.expert_servers, self.topology
            one = cost_with_servers(*given, self.collectives(kind).constants, clients, servers.devices)
            return [one] * len(leases)
        subject = Subject(
            model, layout, accelerator, serving.precision, None, experts.balance if experts is not None else None
        )
        if layout.devices <= min(layout.tensor, accelerator.domain):
            return [cost_of(serving.cost, subject, section.speculation)] * len(leases)
        known: dict[Hashable, Cost] = {}
        found = []
        for lease in leases:
            place = None if serving.cost.name == "linear" else surroundings(self.topology, lease.devices)
            if place not in known:
                links = GroupTimes(self.collectives(kind), layout, lease.devices)
                known[place] = cost_of(serving.cost, subject._replace(links=links), section.speculation)
            found.append(known[place])
        return found

    def _engine_of(
        self,
        role: str,
        section: PoolSection,
        accelerator: Accelerator,
        cost: Cost,
        shared: SharedTiers,
    ) -> Engine:
        blocks = kv_blocks_of(section, self.model, accelerator, self.serving.precision)
        return _engine(role, section, self.scenario, self.model, cost, blocks, self.unit_tokens, shared)


def _engine(
    role: str,
    section: PoolSection,
    scenario: Scenario,
    model: Transformer,
    cost: Cost,
    blocks: int,
    unit_tokens: int | None,
    shared: SharedTiers,
) -> Engine:
    """Return the engine of a group whose ranks divide so many KV blocks."""
    batcher, limits = BATCHERS[section.batcher.name], section.batcher.parameters
    order, parameters = ORDERS[section.queue.name], section.queue.parameters
    setting = Setting(scenario.slo.ttft, cost.prefill_ns)
    ranks = section.layout.data * section.layout.pipeline
    each, size = blocks // ranks, section.kv.block_tokens
    watermark = int(section.kv.watermark * each)
    windows = windows_of(section, model)
    prefixes = prefixes_of(section.kv, each, unit_tokens, windows)
    assert scenario.serving is not None
    swap = swap_of(section, model, scenario.serving.precision)
    return Engine(
        role,
        cost,
        StepTicks(cost),
        batcher.policy,
        limits,
        each,
        size,
        watermark,
        ranks,
        prefixes,
        lambda: order.make(parameters, setting),
        batcher.to_completion,
        counts_service=section.queue.name == "fair",
        by_priority=section.queue.name == "priority",
        outranks=section.queue.name == "priority" and parameters.preempt,
        speculation=Speculation(section.speculation.places, scenario.seed) if section.speculation else None,
        swap=swap,
        first_chunk=scenario.serving.first_chunk,
        lower=lower_of(section, model, scenario.serving.precision, unit_tokens, shared),
        windows=windows,
    )


def engine_traits(engine: Engine, price_per_h: float) -> EngineTraits:
    """Return what routers may know of an engine: a prefill of a full batch, and decode steps of its ranks."""
    tokens, ranks, cost = engine.limits.max_batch_tokens, engine.ranks, engine.cost
    pairs = tokens * (tokens + 1) // 2
    full = Work(tokens, pairs, 1)  # of each rank: at the experts they meet with the prompts of all
    prefill_ns = cost.together_ns([full] * ranks) if ranks > 1 else cost.prefill_ns(tokens, pairs, 1)

    drafted, gain = 0, 1.0
    if engine.speculation is not None:
        drafted, gain = engine.speculation.tokens, engine.speculation.mean_gain

    def step_ns(batch: int, context: int) -> float:
        attended = float(context + drafted * batch)
        return cost.decode(batch, attended).at(attended) / gain

    return EngineTraits("", prefill_ns / (tokens * ranks), step_ns, price_per_h)
