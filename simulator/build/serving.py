"""A serving scenario becomes a blueprint (nothing written yet), then live actors whose rows make a run."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from simpy import Event

from simulator.build.collectives import constants_of
from simulator.build.disaggregation import caches_of, check_plane, without_effect
from simulator.build.experts import shards
from simulator.build.front import front_notes, front_parts, rejected_notes
from simulator.build.kv_memory import tier_figures, tier_notes
from simulator.build.network import (
    Planned,
    bound,
    check_network,
    left_by_background,
    live_network,
    overlapping,
    plan_faults,
    start_faults,
    too_late,
)
from simulator.build.pools import GroupPlan, Planning, PoolPlan
from simulator.build.serving_notes import has_place, limit_notes, network_notes
from simulator.build.workload import Workload, plan_workload
from simulator.clock import Clock
from simulator.cluster.faults import LinkHealth
from simulator.cluster.inventory import Inventory
from simulator.device.cost import Cost, RooflineCost
from simulator.device.expert_servers import ExpertServersCost
from simulator.device.provenance import provenance
from simulator.device.speculation import SpeculativeCost
from simulator.errors import InvariantError
from simulator.model.expert_balance import ExpertBalance
from simulator.model.expert_placement import Move
from simulator.model.transformer import Transformer, load_model
from simulator.network.collectives import Collectives
from simulator.network.collectives_constants import load_constants
from simulator.results.folder import RunFolder
from simulator.results.groups import add_groups
from simulator.results.metrics import GROUPS
from simulator.results.summary import summarise
from simulator.scenario.role_switch import RoleSwitch
from simulator.scenario.schema import Scenario
from simulator.scenario.workload import SyntheticWorkload, TraceWorkload
from simulator.serving.across_nodes import AcrossNodes
from simulator.serving.admission import Admission
from simulator.serving.disaggregation import KVTransfer
from simulator.serving.engine import Engine
from simulator.serving.engine_links import EngineLinks
from simulator.serving.expert_balance import ExpertBalancing
from simulator.serving.expert_balance import Plan as ExpertPlan
from simulator.serving.frontend import Frontend
from simulator.serving.instance import Instance
from simulator.serving.lone_rank import kind_of
from simulator.serving.lower_tiers import LowerTiers
from simulator.serving.pool import Age, Pool
from simulator.serving.pool_view import EngineTraits
from simulator.serving.power import InstancePower
from simulator.serving.recording import Recording
from simulator.serving.request import UNFINISHED, Request
from simulator.serving.role_policies import SWITCHES
from simulator.serving.role_switch import RoleSwitching, Times
from simulator.topology.graph import Topology
from simulator.topology.presets import build_topology


@dataclass(frozen=True)
class Blueprint:
    """Everything that a scenario asks for, found, checked and fitted; making it writes nothing and starts nothing."""

    scenario: Scenario
    topology: Topology
    inventory: Inventory
    model: Transformer
    pools: tuple[PoolPlan, ...]
    admission: Admission
    workload: Workload
    faults: Planned
    notes: list[str]
    """Inputs that have no effect, for the user to read; reading the trace adds to them."""
    cost_lines: list[str]
    """Where the times of measured tables are from; among the notes too."""

    @property
    def groups(self) -> tuple[GroupPlan, ...]:
        """The groups of all pools, in order."""
        return tuple(group for pool in self.pools for group in pool.groups)

    @property
    def hourly(self) -> float | None:
        """Dollars per hour of all that is leased; None if some of it has no price."""
        each = [_per_hour(group) for group in self.groups]
        return None if None in each else sum(price for price in each if price is not None)

    @property
    def reckons_power(self) -> bool:
        """Whether the kernels of all engines are known one by one, so that what all of them draw is."""
        costs = [group.engine.cost for group in self.groups]
        return all(isinstance(c, RooflineCost) and not isinstance(c, ExpertServersCost) for c in costs)


def plan(scenario: Scenario) -> Blueprint:
    """Return the blueprint of a scenario; raises InputError when something in it does not exist or does not fit."""
    serving, preset = scenario.serving, scenario.topology.preset
    assert serving is not None  # the schema lets a scenario of engines have both
    assert preset is not None
    topology = build_topology(preset, scenario.topology.parameters)
    check_network(scenario, topology)
    inventory = Inventory(topology.sites)
    model = load_model(serving.model)
    notes: list[str] = []
    workload = plan_workload(scenario, notes)

    left = left_by_background(scenario, topology)
    capacities = [link.capacity_bytes_per_s * share for link, share in zip(topology.links, left, strict=True)]

    @cache
    def collectives(device: str) -> Collectives:
        return Collectives(topology, load_constants(constants_of(scenario, device, notes)), None, capacities)

    pools = Planning(scenario, model, topology, inventory, collectives, workload.unit_tokens, notes).pools()
    groups = [group for pool in pools for group in pool.groups]
    check_plane(serving, topology, [pool.devices for pool in pools])
    admission = _admission(serving.max_context or model.max_context, pools)
    notes += limit_notes(serving, model)
    routers = [serving.router_of(role)[0].name for role in serving.roles]
    notes += front_notes(serving, any(name not in ("round_robin", "random") for name in routers), _clients(scenario))
    notes += without_effect(serving) + tier_notes(serving)
    cost_lines = list(dict.fromkeys(line for group in groups for line in provenance(group.engine.cost)))
    notes += cost_lines
    notes += network_notes(scenario, topology, pools)
    notes += [
        f"{group.at}.speculation: power is not reckoned where tokens are drafted"
        for group in serving.groups
        if group.pool.speculation is not None and serving.cost.name != "linear"
    ]
    faults = plan_faults(scenario, topology)
    return Blueprint(scenario, topology, inventory, model, pools, admission, workload, faults, notes, cost_lines)


def _admission(max_context: int, pools: Sequence[PoolPlan]) -> Admission:
    """Return what the smallest of the engines that may prefill, and of those that may decode, can hold."""
    first, last = ([group.engine for group in pool.groups] for pool in (pools[0], pools[-1]))
    first += [group.switched for group in pools[-1].groups if group.switched is not None]
    last += [group.switched for group in pools[0].groups if group.switched is not None]
    prefill, decode = (min(map(_most_tokens, engines)) for engines in (first, last))
    seats = min(engine.limits.max_running for engine in (*first, *last))
    return Admission(max_context, prefill, decode, seats, [(engine.request_blocks, engine.paging) for engine in last])


def _most_tokens(engine: Engine) -> int:
    """Return the tokens of a request that a rank holds beside those that are drafted for it."""
    return engine.paging.longest(engine.request_blocks) - (engine.speculation.tokens if engine.speculation else 0)


def _clients(scenario: Scenario) -> int | None:
    return scenario.workload.clients if isinstance(scenario.workload, SyntheticWorkload) else None


class System:
    """The live actors of a blueprint on one environment."""

    def __init__(self, blueprint: Blueprint, folder: RunFolder) -> None:
        scenario = blueprint.scenario
        serving = scenario.serving
        assert serving is not None
        recording = Recording(folder, scenario.results.interval, any(m.kind in GROUPS for m in scenario.expected_of))
        self.blueprint = blueprint
        self.notes = blueprint.notes
        self.env = Clock()
        self.fabric = live_network(self.env, scenario, blueprint.topology, on_dead_link="reroute")
        self.finished = Event(self.env)
        self.recording = recording
        left = left_by_background(scenario, blueprint.topology)
        self.links = EngineLinks(self.fabric, blueprint.topology, left, self._retime, self.event)
        view = serving.router_view
        age = Age(view.report_interval, view.counts_sent)
        self.pools = [Pool(plan.role, plan.router, self.env, plan.reads, age) for plan in blueprint.pools]
        self.transfer = self._transfer() if len(self.pools) > 1 else None
        self.frontend = Frontend(
            self.env,
            self.pools[0],
            blueprint.admission,
            recording.ended,
            self.finished,
            _clients(scenario),
            serving.request_overhead,
            enter=self.transfer.enter if self.transfer is not None else None,
            withdraw=self._withdraw,
            forget=self.transfer.forget if self.transfer is not None else None,
            **front_parts(serving, scenario.seed, blueprint.workload.cancels),
        )
        self._experts: dict[str, ExpertBalancing] = {}  # by group
        self._group: dict[str, str] = {}  # of each engine, by name
        self.instances: dict[str, Instance] = {}  # those that are in a pool, or on their way from one to the other
        self._power: dict[int, InstancePower] = {}  # by what engines share
        self._lower: dict[str, list[LowerTiers]] = {}  # of all engines that there ever were, by group
        self._connect_tiers()
        for pool, plan in zip(self.pools, blueprint.pools, strict=True):
            for group in plan.groups:
                for each in group.members:
                    instance = self._instance(each.engine, each.lease.owner, each.lease.devices, group.name)
                    pool.add(instance, each.traits._replace(name=each.lease.owner))
                if group.experts is not None and isinstance(group.engine.cost, RooflineCost | SpeculativeCost):
                    self._balance(group.name, group.experts, group.engine.cost)
        if serving.role_switch is not None:
            self._let_roles_switch(serving.role_switch)
        assert scenario.workload is not None
        speedup = scenario.workload.speedup if isinstance(scenario.workload, TraceWorkload) else 1.0
        self.env.process(self.frontend.replay(blueprint.workload.arrivals(speedup)))
        health = LinkHealth(self.fabric, blueprint.topology, self.links.changed)
        start_faults(self.env, health, blueprint.faults, scenario.seed, self.event)

    def engine_bytes(self) -> dict[int, int]:
        """Return what collectives of engines have kept links busy with, by link."""
        return self.links.sent_bytes()

    def _retime(self, instance: Instance) -> None:
        """Have an engine go by its present links and experts."""
        balancing = self._experts.get(self._group[instance.name])
        if balancing is not None:
            balancing.retime(instance)
        else:
            instance.retime(self.links.cost_of(instance))

    def _transfer(self) -> KVTransfer:
        blueprint = self.blueprint
        serving = blueprint.scenario.serving
        assert serving is not None
        rules = serving.kv_transfer
        way = rules.plane, rules.lane, "read" if rules.direction == "pull" else "write"
        network = bound(self.fabric, blueprint.scenario, blueprint.topology, *way)
        layouts = {lease.owner: group.layout for group in blueprint.groups for lease in group.leases}
        caches = caches_of(blueprint.model, serving, layouts)
        return KVTransfer(self.env, network, self.pools[0], self.pools[1], caches, rules)

    def _connect_tiers(self) -> None:
        blueprint = self.blueprint
        for group in blueprint.groups:
            tier = group.section.pool.kv.fabric_tier
            if group.pooled is not None and tier is not None and tier.fabric is not None:
                way = tier.fabric.plane, tier.fabric.lane
                group.pooled.connect(self.env, bound(self.fabric, blueprint.scenario, blueprint.topology, *way))

    def _instance(self, engine: Engine, name: str, devices: Sequence[int], group: str) -> Instance:
        """Return a new engine of a group, which has not joined the pool yet."""
        [pool] = [pool for pool in self.pools if pool.role == engine.role]
        transfer, power = self.transfer, None

        def finished(request: Request, instance: Instance) -> None:
            pool.left(instance, request)
            if transfer is not None:
                transfer.ended(request)
            self.frontend.finish(request)

        if self.blueprint.reckons_power:
            assert isinstance(engine.cost, RooflineCost)
            power = self._power.get(id(engine))
            if power is None:
                power = InstancePower(engine.cost, engine.paging, engine.limits.max_batch_tokens)
                self._power[id(engine)] = power
        observer = self.recording.observer(name, engine.role, engine.kv_blocks * engine.ranks, power, self.env.now)
        hears = (transfer.hand_over, transfer.began) if transfer is not None and pool is self.pools[0] else (None, None)
        kind = AcrossNodes if has_place(engine.cost) else kind_of(engine)
        instance = kind(self.env, name, engine, devices, observer, finished, *hears)
        self.instances[name] = instance
        self._group[name] = group
        lower = [rank.lower for rank in instance.ranks if rank.lower is not None]
        if lower:
            self._lower.setdefault(group, []).extend(lower)
        if group in self._experts:
            self._experts[group].joined(instance)
        self.recording.event(self.env.now, "lease", name, f"devices {_ranges(tuple(devices))}")
        if isinstance(instance, AcrossNodes):
            self.links.joined(instance)
        return instance

    def _let_roles_switch(self, rules: RoleSwitch) -> None:
        plans = {each.lease.owner: each for group in self.blueprint.groups for each in group.members}
        groups = {group.section.role: group.name for group in self.blueprint.groups}
        numbers = {pool.role: len(pool.instances) for pool in self.pools}

        def joins(instance: Instance, role: str) -> tuple[Instance, EngineTraits]:
            plan = plans[instance.name]
            engine, traits = (plan.engine, plan.traits) if plan.engine.role == role else plan.switched or (None, None)
            assert engine is not None
            assert traits is not None
            assert self.transfer is not None
            instance.settle()
            self.recording.retire(instance.name, self.env.now)
            del self.instances[instance.name]
            self.links.leaves(instance)
            name = f"{groups[role]}-{numbers[role]}"
            numbers[role] += 1
            plans[name] = plan
            self.transfer.layouts[name] = self.transfer.layouts[instance.name]
            return self._instance(engine, name, instance.devices, groups[role]), traits._replace(name=name)

        policy = SWITCHES[rules.policy.name]
        decide = partial(policy.decide, rules.policy.parameters)
        times = Times(rules.interval, rules.delay, rules.cooldown)
        RoleSwitching(self.env, (self.pools[0], self.pools[1]), decide, times, joins, self.event)

    def _balance(self, group: str, plan: ExpertPlan, cost: RooflineCost | SpeculativeCost) -> None:
        of = cost.target if isinstance(cost, SpeculativeCost) else cost
        if not isinstance(of, RooflineCost):
            return

        def transfer(instance: Instance, moves: Sequence[Move]) -> Event:
            return self.fabric.transfer(shards(moves, instance.devices, of.model, of.layout, of.precision))

        def timed(own: Cost, balance: ExpertBalance) -> Cost:
            assert isinstance(own, RooflineCost | SpeculativeCost)
            return own.rebalanced(balance)

        def members() -> list[Instance]:  # those too that leave their pool, and still serve what they have
            return [instance for name, instance in self.instances.items() if self._group[name] == group]

        base = self.links.cost_of
        self._experts[group] = ExpertBalancing(self.env, group, plan, members, base, timed, transfer, self.event)

    def _withdraw(self, request: Request) -> None:
        """Take a request that was given up out of whatever holds it."""
        for name in (request.decode_instance, request.prefill_instance):
            if name in self.instances and self.instances[name].cancel(request):
                return
        if self.transfer is not None and self.transfer.withdraw(request, self.frontend.finish):
            return
        raise InvariantError(f"nobody has {request!r}, which is to be withdrawn")

    def check(self) -> None:
        """Raise InvariantError unless requests, KV blocks, devices and link bytes are all accounted for."""
        self.frontend.check()
        self.blueprint.inventory.check()
        self.fabric.check()
        for pool in self.pools:
            pool.check()
        for instance in self.instances.values():
            instance.check()

    @property
    def draws(self) -> bool:
        """Whether anything is random: a workload, experts, acceptance, clients, routers, or paths over the fabric."""
        serving, pools = self.blueprint.scenario.serving, self.blueprint.pools
        assert serving is not None
        routers = {serving.router_of(role)[0].name for role in serving.roles}
        chance = serving.cancel is not None or routers & {"random", "power_of_two"}
        experts = any(group.experts or group.engine.speculation for group in self.blueprint.groups)
        pooled = any(group.pooled is not None for group in self.blueprint.groups)
        return bool(experts or chance or self.blueprint.workload.drawn or len(pools) > 1 or pooled)

    @property
    def ended(self) -> int:
        """Requests that have their outcome."""
        return self.frontend.ended

    def settle(self, expected_end: bool) -> None:
        """Bring every record up to now; requests still open become rows. `expected_end`: none should be open."""
        for instance in self.instances.values():
            instance.settle()
        if self.transfer is not None:
            self.transfer.settle()
        self.notes += too_late(self.blueprint.faults, self.env.now) + overlapping(self.fabric, self.env.now)
        self.notes += self.links.notes()
        if not any(note.startswith("serving.admission: ") for note in self.notes):  # which says as much
            self.notes += rejected_notes(self.frontend.reasons, _clients(self.blueprint.scenario))
        if not self.frontend.arrived:
            self.notes.append("until: the run stopped before the first request arrived")
        open_requests = list(self.frontend.in_flight.values())
        if open_requests and expected_end and all(self.fabric.capacities):
            raise InvariantError(f"{len(open_requests)} requests never ended, the first is {open_requests[0]!r}")
        for request in open_requests:
            request.outcome = UNFINISHED
            request.reason = "open when the run stopped"
            self.recording.ended(request)
        self.recording.close(self.env.now)

    def event(self, kind: str, subject: str, detail: str) -> None:
        """Write a row of what happened to the run as a whole."""
        self.recording.event(self.env.now, kind, subject, detail)

    def finish(self) -> None:
        """Close the tables."""
        self.recording.finish()

    def summary(self, folder: Path) -> dict[str, Any]:
        """Return the figures of the closed tables in `folder`."""
        slo = self.blueprint.scenario.slo
        limits = {name: limit for name in ("ttft", "tpot", "e2e") if (limit := getattr(slo, name)) is not None}
        if not limits:
            self.notes.append("slo: none given, so goodput counts every finished request")
        leased, hourly = self.blueprint.inventory.leased, self.blueprint.hourly
        summary = summarise(folder, limits, self.recording.itl, self.env.now, leased, hourly)
        if hourly is not None:
            summary["price"]["pools"] = {group.name: _per_hour(group) for group in self.blueprint.groups}
        summary["requests"]["rejected_by"] = self.frontend.reasons
        expected = self.blueprint.scenario.expected_of
        self.notes += add_groups(summary, folder, expected, limits, summary["simulated_s"])
        part = self.blueprint.workload.part
        if part is not None and part.fraction < 1:
            summary["requests"]["left_out"] = part.left_out
            read = part.taken + part.left_out
            self.notes.append(f"workload.fraction: {part.left_out:,} of {read:,} requests are left out")
        if self._lower:
            summary["tiers"] = tier_figures(self._lower, self.blueprint.workload.unit_tokens)
        return summary

    def facts(self) -> dict[str, Any]:
        """Return what the manifest says of the cluster and the engines."""
        topology = self.blueprint.topology
        return {
            "model": self.blueprint.model.name,
            "topology": topology.name,
            "device": ", ".join(topology.kinds),
            "devices": len(topology.sites),
            "devices_leased": self.blueprint.inventory.leased,
            **({"cost": self.blueprint.cost_lines} if self.blueprint.cost_lines else {}),
        }


def _per_hour(group: GroupPlan) -> float | None:
    return None if group.hourly is None else group.hourly * group.devices


def _ranges(devices: tuple[int, ...]) -> str:
    """Return device numbers as text, runs folded: `0-3, 8`."""
    runs: list[list[int]] = []
    for device in devices:
        if runs and device == runs[-1][-1] + 1:
            runs[-1][1:] = [device]
        else:
            runs.append([device])
    return ", ".join("-".join(map(str, run)) for run in runs)
