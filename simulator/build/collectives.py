"""The collectives of a `traffic:` section: who takes part, what each is by the device's constants, and their actors."""

from collections.abc import Callable, Generator, Sequence
from typing import Any, NamedTuple

import numpy as np
from simpy import Event

from simulator import catalog
from simulator.build.flows import is_one_step, refuse_too_many
from simulator.build.network import Live, spread
from simulator.clock import Clock
from simulator.device.accelerator import KIND as DEVICES
from simulator.device.accelerator import load_accelerator
from simulator.errors import InputError, Problem
from simulator.network.collectives import Collectives
from simulator.network.collectives_constants import KIND, load_constants
from simulator.network.collectives_phases import Exchange, Phase
from simulator.network.collectives_shape import group_nodes
from simulator.network.dispatch import (
    Traffic,
    expected_copies,
    high_throughput,
    low_latency,
    sampled_copies,
    token_bytes,
)
from simulator.network.expert_routing import ExpertRouting
from simulator.network.fabric import DeadLinkError, Fabric
from simulator.network.operations import (
    Operation,
    collective,
    expert_exchange,
    link_bytes,
    run,
    run_together,
    timed,
)
from simulator.network.routing import Spread
from simulator.randomness import stream
from simulator.scenario.collective import CollectiveRun, ExpertExchange
from simulator.scenario.schema import Scenario
from simulator.scenario.traffic import Traffic as TrafficSection
from simulator.topology.graph import Topology
from simulator.units import NS_PER_S

Groups = tuple[tuple[int, ...], ...]
IDEAL = "ideal"
FORMS = {"low_latency": low_latency, "high_throughput": high_throughput}


class Plan(NamedTuple):
    """One entry of `traffic.collectives`: what each of its groups runs."""

    number: int
    section: CollectiveRun
    groups: Groups
    operations: tuple[Operation, ...]


Planned = tuple[Plan, ...]


def plan_collectives(scenario: Scenario, traffic: TrafficSection, topology: Topology, notes: list[str]) -> Planned:
    """Return what runs; raises InputError with every entry that does not fit the topology."""
    if is_one_step(scenario, traffic):
        assert traffic.pattern is not None
        notes.append(
            f"traffic.pattern: at fidelity {scenario.network.fidelity} an all-to-all is one step, a row of "
            "collectives.parquet in the place of its flows"
        )
        each_bytes, plane = traffic.pattern.parameters.bytes, _plane(scenario)
        step = _whole_pattern(topology, len(traffic.collectives), each_bytes, plane)
        return *_listed(scenario, traffic, topology, notes), step
    return _listed(scenario, traffic, topology, notes)


def _plane(scenario: Scenario) -> str | None:
    """Return the plane that carries everything, if the run's routing has one."""
    chosen = scenario.network.routing
    plane: str | None = getattr(chosen.parameters, "plane", None) if chosen is not None else None
    return plane


def _whole_pattern(topology: Topology, number: int, each_bytes: int, plane: str | None) -> Plan:
    """Return the step in which every device sends `each_bytes` to every other one, without any kernel's constants."""
    devices = tuple(range(len(topology.sites)))
    whole = each_bytes * len(devices)
    section = CollectiveRun.model_validate({"run": {"all_to_all": {"bytes": f"{whole} B", "algorithm": "direct"}}})
    latency_ns = max((topology.path_latency_ns(topology.paths(0, other, plane)[0]) for other in devices[1:]), default=0)
    exchange = Phase([], exchange=Exchange(group_nodes(topology, devices), whole))
    one = Operation("direct", None, whole, latency_ns, (exchange,), plane=plane)
    return Plan(number, section, (devices,), (timed(topology, one),))


def _listed(scenario: Scenario, traffic: TrafficSection, topology: Topology, notes: list[str]) -> Planned:
    if not traffic.collectives:
        return ()
    if not topology.device or topology.device == "none":
        raise InputError(
            Problem("a graph has no nodes of devices; collectives need a preset", path="traffic.collectives")
        )
    if len(topology.kinds) > 1 and scenario.network.collectives is None:
        what = f"the ranks are devices of several kinds ({', '.join(topology.kinds)}), and nothing says whose constants"
        raise InputError(Problem(what, path="network.collectives", allowed=", ".join(catalog.names(KIND))))
    constants = load_constants(constants_of(scenario, topology.device, notes))
    collectives = Collectives(topology, constants, _plane(scenario))
    found: list[Plan] = []
    problems: list[Problem] = []
    for index, section in enumerate(traffic.collectives):
        try:
            groups = groups_of(section, len(topology.sites))
            operations = _operations(scenario, section, groups, collectives, index)
            if scenario.network.fidelity == "flow" and section.sharing == "flows":
                _refuse_too_many_of(operations, topology, spread(scenario, topology), scenario.seed)
            found.append(Plan(index, section, groups, operations))
        except (InputError, ValueError) as error:
            said = error if isinstance(error, InputError) else InputError(str(error))
            problems += said.at(f"traffic.collectives[{index}]")
    if problems:
        raise InputError(problems)
    return tuple(found)


def _refuse_too_many_of(operations: Sequence[Operation], topology: Topology, policy: Spread | None, seed: int) -> None:
    """Raise InputError for more flows at once than memory holds: some kilobytes each."""
    total = 0
    for operation in operations:
        largest = 0
        for phase in operation.phases:
            exchange = phase.exchange
            ends = (phase.shards[0][:2] if phase.shards else (0, 0)) if exchange is None else _farthest(exchange)
            ways = len(policy(topology, seed, *ends, 0)) if policy is not None else 1
            count = len(phase.shards) if exchange is None else len(exchange.ranks) * (len(exchange.ranks) - 1)
            largest = max(largest, count * max(1, ways))
        total += largest
    refuse_too_many(total)


def _farthest(exchange: Exchange) -> tuple[int, int]:
    """Return two ranks of an exchange, of different nodes if it has several."""
    return exchange.ranks[0], exchange.ranks[-1]


def constants_of(scenario: Scenario, device: str, notes: list[str]) -> str:
    """Return the constants that the scenario names, or those of a device, or others with a note.

    Others are those of the device that it borrows its efficiencies from, if both have switches, or else the ideal ones.
    """
    if scenario.network.collectives is not None:
        return scenario.network.collectives
    lender = _lender(device)
    for of in (device, lender):
        for name in catalog.names(KIND):
            if of is not None and of.startswith(name) and (found := load_constants(name)).kernels:
                if of == lender:
                    notes.append(f"network.collectives: constants of {name} stand for those of {device}")
                elif found.like is not None:
                    what = f"what was not measured of its collectives is timed by constants of {found.like}"
                    notes.append(f"network.collectives: of {device} {what}")
                return name
    notes.append(
        f"network.collectives: no constants are known for {device}, so collectives cost nothing but their "
        f"bytes; name others ({', '.join(catalog.names(KIND))})"
    )
    return IDEAL


def _lender(device: str) -> str | None:
    """Return the device whose efficiencies another borrows, where both have switches; None without a sheet."""
    if device not in catalog.names(DEVICES):
        return None
    sheet = load_accelerator(device)
    like = (sheet.scale_up.like or sheet.like) if sheet.scale_up and sheet.scale_up.joined == "switch" else None
    return like if like and like in catalog.names(DEVICES) else None


def groups_of(section: CollectiveRun, devices: int) -> Groups:
    """Return the groups of a collective among the first devices of a topology that has `devices`.

    Groups of g ranks at stride s tile blocks of g x s devices: group j of a block has its devices j, j + s, j + 2s ...
    Raises InputError where they do not tile.
    """
    taking = section.devices or devices
    if taking > devices:
        raise InputError(f"{taking} devices of {devices}")
    size, stride = section.group or taking, section.stride
    block = size * stride
    if taking % block:
        raise InputError(f"groups of {size} at stride {stride} do not tile {taking} devices")
    starts = (first + place for first in range(0, taking, block) for place in range(stride))
    return tuple(tuple(range(start, start + block - stride + 1, stride)) for start in starts)


def _operations(
    scenario: Scenario, section: CollectiveRun, groups: Groups, collectives: Collectives, index: int
) -> tuple[Operation, ...]:
    chosen = section.run.parameters
    if not isinstance(chosen, ExpertExchange):
        return tuple(
            collective(collectives, section.run.name, group, chosen.bytes, chosen.algorithm, chosen.protocol)
            for group in groups
        )
    constants = getattr(collectives.constants, chosen.form)
    if constants is None:
        raise InputError(f"{collectives.constants.device} has no constants of the {chosen.form} form")
    name = f"experts/{index}"
    return tuple(
        expert_exchange(
            collectives,
            group,
            _traffic(chosen, section.run.name, collectives.topology, group, scenario.seed, f"{name}/{number}"),
            getattr(constants, section.run.name),
            chosen.form,
            chosen.processors,
        )
        for number, group in enumerate(groups)
    )


def _placement(section: ExpertExchange, ranks: int) -> Sequence[int]:
    """Return the rank that holds each expert."""
    if section.placement is None:
        if section.experts % ranks:
            raise InputError(f"{section.experts} experts do not divide among {ranks} ranks")
        return [expert * ranks // section.experts for expert in range(section.experts)]
    if max(section.placement) >= ranks:
        raise InputError(f"placement: rank {max(section.placement)} of a group of {ranks}, counted from 0")
    return section.placement


def _traffic(
    section: ExpertExchange, name: str, topology: Topology, group: Sequence[int], seed: int, stream_name: str
) -> Traffic:
    """Return what the ranks of a group send each other."""
    ranks, experts = len(group), section.experts
    nodes = {node: place for place, node in enumerate(dict.fromkeys(topology.sites[device].node for device in group))}
    rank_of_expert = _placement(section, ranks)
    node_of_expert = tuple(nodes[topology.sites[group[rank]].node] for rank in rank_of_expert)
    loads = section.loads
    if section.skew is not None and section.skew.exponent:
        popular = stream(seed, f"{stream_name}/popularity").permutation(experts)  # which expert is the k-th
        loads = tuple(float((1 + place) ** -section.skew.exponent) for place in np.argsort(popular).tolist())
    routing = ExpertRouting(node_of_expert, section.top_k, loads, section.node_limit)
    tokens = [section.tokens] * ranks
    if section.sampled:
        copies = sampled_copies(tokens, routing, rank_of_expert, seed, stream_name)
    else:
        copies = expected_copies(tokens, routing, rank_of_expert)
    sent = FORMS[section.form](copies, token_bytes(section.hidden, section.value_bits, section.scale_block))
    return sent if name == "dispatch" else sent.reversed(sent.copy_bytes)


Row = Callable[..., None]
"""Called with the values of a row of `collectives`."""


class Runner:
    """The actors of all collectives: each entry runs its groups at once, and again when all of them are through."""

    def __init__(self, env: Clock, network: Live, topology: Topology, planned: Planned, row: Row) -> None:
        self._env = env
        self._network = network
        self._topology = topology
        self._planned = planned
        self._row = row
        self._open: dict[int, tuple[int, int]] = {}  # by entry: repeat, start

    @property
    def under_way(self) -> int:
        """Collectives that have started and not ended."""
        return len(self._open)

    def actors(self) -> list[Generator[Event, Any, None]]:
        """Return one process per entry."""
        return [self._run(plan) for plan in self._planned]

    def settle(self) -> None:
        """Write what is still under way: the run is over."""
        for index, (repeat, start_ns) in self._open.items():
            self._write(self._planned[index], repeat, start_ns, -1, completed=False)

    def _run(self, plan: Plan) -> Generator[Event, Any, None]:
        env, section = self._env, plan.section
        if section.start:
            yield env.timeout(section.start)
        for repeat in range(section.repeat):
            if repeat and section.gap:
                yield env.timeout(section.gap)
            start_ns, completed = env.now, True
            self._open[plan.number] = repeat, start_ns
            try:
                yield from run_together(env, [self._group(plan, group) for group in range(len(plan.groups))])
            except DeadLinkError:
                completed = False
            del self._open[plan.number]
            self._write(plan, repeat, start_ns, env.now, completed)

    def _group(self, plan: Plan, group: int) -> Generator[Event, Any, None]:
        operation = plan.operations[group]
        if plan.section.sharing == "background":
            yield from self._beside(operation, f"collective {plan.number}/{group}")
        else:
            yield from run(self._env, self._network, self._topology, operation, plan.section.lane)

    def _beside(self, operation: Operation, kind: str) -> Generator[Event, Any, None]:
        """Take the closed form's time, and of each link what its bytes need in that time."""
        fabric = self._network
        assert isinstance(fabric, Fabric)  # the schema sees to it
        by_share: dict[float, list[int]] = {}
        for link, size_bytes in enumerate(link_bytes(self._topology, operation).tolist()):
            if size_bytes:
                capacity = self._topology.links[link].capacity_bytes_per_s
                share = min(1.0, round(size_bytes * NS_PER_S / (operation.ideal_ns * capacity), 6))
                by_share.setdefault(share, []).append(link)
        for share, links in by_share.items():
            fabric.set_background(links, kind, share)
        yield self._env.timeout(round(operation.ideal_ns))
        for links in by_share.values():
            fabric.set_background(links, kind, 0.0)

    def _write(self, plan: Plan, repeat: int, start_ns: int, finish_ns: int, completed: bool) -> None:
        first = plan.operations[0]
        size_bytes = max(operation.size_bytes for operation in plan.operations)
        ideal_ns = round(max(operation.ideal_ns for operation in plan.operations))
        self._row(
            *(plan.number, repeat, plan.section.run.name, first.algorithm, first.protocol),
            *(len(plan.groups[0]), len(plan.groups), size_bytes, start_ns, finish_ns, ideal_ns, completed),
        )
