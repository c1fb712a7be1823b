"""A scenario of the network alone: no engines, just bytes, collectives, links that change, and who had to wait."""

from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path as File
from typing import Any, TypeVar

from simpy import Event

from simulator.build.collectives import Planned as PlannedCollectives
from simulator.build.collectives import Runner, plan_collectives
from simulator.build.flows import Going, Ways, alone_by_route, alone_ns, flows_of
from simulator.build.network import (
    Planned,
    check_network,
    live_network,
    many_paths,
    overlapping,
    plan_faults,
    plane_notes,
    spread,
    spread_on,
    start_faults,
    too_late,
)
from simulator.clock import Clock
from simulator.cluster.faults import LinkHealth
from simulator.errors import InputError, InvariantError, Problem
from simulator.network.bundle import Send
from simulator.network.routing import Shares, together
from simulator.results.flow_summary import summarise_flows
from simulator.results.folder import RunFolder
from simulator.results.tables import COLLECTIVES, EVENTS, FLOWS
from simulator.scenario.schema import Scenario
from simulator.scenario.traffic import Traffic
from simulator.topology.explicit import graph_topology
from simulator.topology.graph import Topology
from simulator.topology.presets import build_topology
from simulator.workload.flows import Flow, read_changes

Found = TypeVar("Found")

Changes = tuple[tuple[int, tuple[int, ...], int], ...]
"""(time in ns, links, new capacity in bytes/s), in order of time."""


@dataclass(frozen=True)
class Blueprint:
    """The network, what flows over it in order of start, and what happens to its links."""

    scenario: Scenario
    topology: Topology
    flows: Callable[[], Iterable[Going]]
    collectives: PlannedCollectives
    changes: Changes
    faults: Planned
    notes: list[str]
    """Inputs without effect, for the user to read."""


def plan(scenario: Scenario, traffic: Traffic) -> Blueprint:
    """Return the blueprint; raises InputError for what does not exist, such as a path without a link."""
    graph, preset = scenario.topology.graph, scenario.topology.preset
    topology = graph_topology(File(graph)) if graph else build_topology(str(preset), scenario.topology.parameters)
    check_network(scenario, topology)
    ways = Ways(topology, scenario.seed, lambda plane: spread_on(scenario, topology, plane))
    planes = (f"traffic.transfers[{place}].plane" for place, each in enumerate(traffic.transfers) if each.plane)
    notes = _without_effect(scenario, traffic) + many_paths(scenario, topology)
    notes += plane_notes(scenario, topology, planes)
    problems: list[Problem] = []
    flows = _attempt(lambda: flows_of(scenario, traffic, ways), problems)
    collectives = _attempt(lambda: plan_collectives(scenario, traffic, topology, notes), problems)
    changes = _attempt(lambda: _changes(File(traffic.changes), topology) if traffic.changes else (), problems)
    faults = _attempt(lambda: plan_faults(scenario, topology), problems)
    if problems or flows is None or collectives is None or changes is None or faults is None:
        raise InputError(problems)
    return Blueprint(scenario, topology, flows, collectives, changes, faults, notes)


def _without_effect(scenario: Scenario, traffic: Traffic) -> list[str]:
    """Return notes of what only flows heed, where none are simulated."""
    if scenario.network.fidelity == "flow":
        return []
    given = {
        "traffic.lane": traffic.lane != 0,
        "traffic.on_dead_link": traffic.on_dead_link != "fail",
        "lane or weight of traffic.transfers": any(t.lane is not None or t.weight != 1 for t in traffic.transfers),
        "lane of traffic.collectives": any(run.lane for run in traffic.collectives),
    }
    return [f"{key}: no effect at fidelity {scenario.network.fidelity}" for key, there in given.items() if there]


def _attempt(call: Callable[[], Found], problems: list[Problem]) -> Found | None:
    """Return what `call` returns, or None after adding its problems, so that all are told at once."""
    try:
        return call()
    except InputError as error:
        problems += error.problems
        return None


def _changes(file: File, topology: Topology) -> Changes:
    between: dict[tuple[str, str], list[int]] = {}
    for link in topology.links:
        between.setdefault((link.source, link.target), []).append(link.index)
    found, problems = [], []
    for change in read_changes(file):
        links = between.get((change.source, change.target))
        if links is None:
            problems.append(Problem(f"no link from {change.source!r} to {change.target!r}", str(file), change.line))
        else:
            found.append((change.time_ns, tuple(links), change.capacity_bytes_per_s))
    if problems:
        raise InputError(problems)
    return tuple(found)


def _sends(topology: Topology, going: Going, shares: Shares, through: tuple[int, ...]) -> list[Send]:
    """Return what a flow sends over its paths, `through` its cap; nothing within one device."""
    if not shares:
        return []
    flow, ends = going.flow, (going.source, going.target) if going.ways is None else None
    way = together(topology, shares)
    return [Send(way.path, flow.size_bytes, ends, flow.weight, None, through, way)]


class System:
    """The live network and the actors that start flows and collectives, and change links.

    `finished` happens when the last flow, collective and change of a link is past, whatever faults are still to come.
    """

    def __init__(self, blueprint: Blueprint, folder: RunFolder) -> None:
        scenario = blueprint.scenario
        assert scenario.traffic is not None
        self.env = env = Clock()
        self.notes = blueprint.notes
        self.topology = topology = blueprint.topology
        self._spread = spread(scenario, topology)
        self.fabric = live_network(env, scenario, topology, scenario.traffic.on_dead_link)
        self.ended = 0
        self.finished = Event(env)
        self._under_way: dict[int, tuple[Going, int]] = {}
        self._flows, self._collectives = folder.writer(FLOWS), folder.writer(COLLECTIVES)
        self._events = folder.writer(EVENTS)
        self._health = LinkHealth(self.fabric, topology)
        self._runner = Runner(env, self.fabric, topology, blueprint.collectives, self._collective_row)
        sources = [self._start(blueprint.flows()), self._change(blueprint.changes), *self._runner.actors()]
        self._sources = len(sources)
        for source in sources:
            env.process(source).callbacks.append(self._source_ended)
        self._faults = blueprint.faults
        start_faults(env, self._health, blueprint.faults, scenario.seed, self.event)

    def _start(self, flows: Iterable[Going]) -> Generator[Event, Any, None]:
        env = self.env
        for going in flows:
            if going.flow.start_ns > env.now:
                yield env.timeout(going.flow.start_ns - env.now)
            self._send(going)

    def _send(self, going: Going) -> None:
        flow, topology = going.flow, self.topology
        engine = None
        if going.ways is None and going.cap_bytes_per_s is None and flow.weight == 1:
            ideal_ns = alone_by_route(topology, self._spread, going.source, going.target, flow.size_bytes)
            sent: Event = self.fabric.transfer([(going.source, going.target, flow.size_bytes)], lane=going.lane)
        else:
            shares = self.fabric.route(going.source, going.target) if going.ways is None else going.ways
            ideal_ns = alone_ns(topology, shares, flow.size_bytes, going.cap_bytes_per_s) + going.latency_ns
            if going.cap_bytes_per_s is not None and shares:
                engine = self.fabric.add_engine(going.cap_bytes_per_s)
            sends = _sends(topology, going, shares, () if engine is None else (engine,))
            latency_ns = max((topology.path_latency_ns(send.path) for send in sends), default=0) + going.latency_ns
            sent = self.fabric.launch(sends, going.lane, latency_ns if going.latency_ns else None)
        self._under_way[flow.flow_id] = going, ideal_ns
        sent.callbacks.append(partial(self._end, flow, engine))

    def _change(self, changes: Changes) -> Generator[Event, Any, None]:
        for time_ns, links, capacity in changes:
            if time_ns > self.env.now:
                yield self.env.timeout(time_ns - self.env.now)
            self._health.set_whole(links, capacity)
            link = self.topology.links[links[0]]
            self.event("capacity", f"{link.source}>{link.target}", f"{capacity} bytes/s on {len(links)} links")

    def _end(self, flow: Flow, engine: int | None, event: Event) -> None:
        completed = bool(event.ok)
        if not completed:
            event.defused = True
        if engine is not None and completed:  # of a flow that failed, other parts may still be under way
            self.fabric.release_engine(engine)
        self.ended += 1
        _, ideal_ns = self._under_way.pop(flow.flow_id)
        self._row(flow, self.env.now, ideal_ns, completed)
        self._finish_if_done()

    def _source_ended(self, event: Event) -> None:
        self._sources -= 1
        self._finish_if_done()

    def _finish_if_done(self) -> None:
        if not self._sources and not self._under_way:
            self.finished.succeed()

    def _collective_row(self, *row: Any) -> None:
        self.ended += 1
        self._collectives.append(row)

    def _row(self, flow: Flow, finish_ns: int, ideal_ns: int, completed: bool) -> None:
        sites = self.topology.sites
        source, target = (end if isinstance(end, str) else sites[end].name for end in (flow.source, flow.target))
        row = (flow.flow_id, source, target, flow.size_bytes, flow.start_ns, finish_ns, ideal_ns, completed)
        self._flows.append(row)

    @property
    def draws(self) -> bool:
        """Whether anything is random: always, for ECMP hashes with the seed."""
        return True

    def engine_bytes(self) -> dict[int, int]:
        """Return nothing: there are no engines."""
        return {}

    def check(self) -> None:
        """Raise InvariantError unless link capacities, the max-min certificate and bytes hold."""
        self.fabric.check()

    def settle(self, expected_end: bool) -> None:
        """Write what is still under way; `expected_end`: only those that wait for a dead link may be."""
        still = len(self._under_way) + self._runner.under_way
        if still and expected_end and not any(not capacity for capacity in self.fabric.capacities):
            raise InvariantError(f"{still} flows or collectives never ended")
        if still:
            self.notes.append(f"traffic: {still} flows or collectives were still under way, or stalled, at the end")
        self.notes += too_late(self._faults, self.env.now) + overlapping(self.fabric, self.env.now)
        for going, ideal_ns in self._under_way.values():
            self._row(going.flow, -1, ideal_ns, completed=False)
        self._runner.settle()

    def event(self, kind: str, subject: str, detail: str) -> None:
        """Write a row of what happened to the network."""
        self._events.append((self.env.now, kind, subject, detail))

    def finish(self) -> None:
        """Close the tables."""
        self._flows.close()
        self._collectives.close()
        self._events.close()

    def summary(self, folder: File) -> dict[str, Any]:
        """Return the figures of the closed tables in `folder`."""
        return summarise_flows(folder, self.env.now)

    def facts(self) -> dict[str, Any]:
        """Return what the manifest says of the network."""
        return {
            "topology": self.topology.name,
            "device": ", ".join(self.topology.kinds),
            "devices": len(self.topology.sites),
            "devices_leased": 0,
        }
