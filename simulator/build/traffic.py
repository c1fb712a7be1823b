"""A scenario of flows over the network alone: no engines, just bytes, links that change, and who had to wait."""

from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from functools import partial
from math import ceil
from pathlib import Path as File
from typing import Any

from simpy import Event

from simulator.clock import Clock
from simulator.errors import InputError, InvariantError, Problem, nearest
from simulator.network.fabric import Fabric
from simulator.network.routing import Shares, spread_of
from simulator.randomness import stream
from simulator.results.flow_summary import summarise_flows
from simulator.results.folder import RunFolder
from simulator.results.tables import EVENTS, FLOWS
from simulator.scenario.schema import Scenario
from simulator.scenario.traffic import Traffic
from simulator.topology.explicit import graph_topology, path_by_names
from simulator.topology.graph import Path, Topology
from simulator.topology.presets import build_topology
from simulator.units import NS_PER_S
from simulator.workload.flows import Flow, all_to_all, incast, permutation, poisson, read_changes, read_flows


@dataclass(frozen=True)
class Blueprint:
    """The network, the flows in order of start, and the changes of its links in order of time."""

    scenario: Scenario
    topology: Topology
    flows: Callable[[], Iterable[tuple[Flow, int, int, Path | None]]]
    """Each flow with the indices of its two ends and, where it names its path, the links of it."""
    changes: tuple[tuple[int, tuple[int, ...], int], ...]
    """(time in ns, links, new capacity in bytes/s)."""


def plan(scenario: Scenario, traffic: Traffic) -> Blueprint:
    """Return the blueprint; raises InputError for what does not exist, such as a path without a link."""
    graph, preset = scenario.topology.graph, scenario.topology.preset
    topology = graph_topology(File(graph)) if graph else build_topology(str(preset), scenario.topology.parameters)
    changes = _changes(File(traffic.changes), topology) if traffic.changes else ()
    if traffic.flows is None:
        return Blueprint(scenario, topology, partial(_drawn, scenario, traffic, topology), changes)
    listed = _listed(File(traffic.flows), topology)
    return Blueprint(scenario, topology, lambda: listed, changes)


def _listed(file: File, topology: Topology) -> list[tuple[Flow, int, int, Path | None]]:
    ends = {site.name: site.index for site in topology.sites}
    problems: list[Problem] = []
    found: list[tuple[Flow, int, int, Path | None]] = []
    for flow in read_flows(file):
        try:
            if flow.path:  # then the ends are but labels
                found.append((flow, -1, -1, path_by_names(topology, flow.path)))
                continue
            missing = [name for name in (str(flow.source), str(flow.target)) if name not in ends]
            if missing:
                what, near = f"no node {missing[0]!r} in the topology, and no path", nearest(missing[0], ends)
                problems.append(Problem(what, str(file), flow.line, nearest=near))
                continue
            source, target = ends[str(flow.source)], ends[str(flow.target)]
            topology.paths(source, target)
            found.append((flow, source, target, None))
        except InputError as error:
            problems += [Problem(problem.what, str(file), flow.line) for problem in error.problems]
    if problems:
        raise InputError(problems)
    return found


def _changes(file: File, topology: Topology) -> tuple[tuple[int, tuple[int, ...], int], ...]:
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


def _drawn(scenario: Scenario, traffic: Traffic, topology: Topology) -> Iterable[tuple[Flow, int, int, Path | None]]:
    assert traffic.pattern is not None
    chosen, devices = traffic.pattern.parameters, len(topology.sites)
    if devices < 2:
        raise InputError("traffic: a pattern needs two devices or more")
    rng = stream(scenario.seed, "flows")
    flows: Iterable[Flow]
    if traffic.pattern.name == "poisson":
        size = 10**15  # so large that latency is nothing
        port = round(size * NS_PER_S / alone_ns(topology, 0, devices - 1, size))
        sizes = chosen.sizes.parameters.law()
        flows = poisson(rng, devices, chosen.flows, chosen.load, port, sizes)
    elif traffic.pattern.name == "permutation":
        flows = permutation(rng, devices, chosen.bytes)
    elif traffic.pattern.name == "incast":
        if chosen.sources >= devices or chosen.target >= devices:
            raise InputError(f"traffic: incast needs a target and other sources among {devices} devices")
        flows = incast(devices, chosen.target, chosen.sources, chosen.bytes)
    else:
        flows = all_to_all(devices, chosen.bytes)
    for flow in flows:
        yield flow, int(flow.source), int(flow.target), None


def alone_ns(topology: Topology, source: int, target: int, size_bytes: int, path: Path | None = None) -> int:
    """Return the time of a flow alone: the longest latency of its paths, then its bytes over the most loaded link."""
    if path is not None:
        shares: Shares = ((path, 1.0),)
    elif source == target:
        return 0
    elif (spread := spread_of(topology)) is not None:
        shares = spread(topology, 0, source, target, 0)
    else:
        shares = ((topology.paths(source, target)[0], 1.0),)
    loads: dict[int, float] = {}
    for way, share in shares:
        for link in way:
            loads[link] = loads.get(link, 0.0) + share
    most = max((share / topology.links[link].capacity_bytes_per_s for link, share in loads.items()), default=0.0)
    return max(topology.path_latency_ns(way) for way, _ in shares) + ceil(size_bytes * most * NS_PER_S)


class System:
    """The live network and the actors that start flows and change links."""

    def __init__(self, blueprint: Blueprint, folder: RunFolder) -> None:
        scenario = blueprint.scenario
        assert scenario.traffic is not None
        self.env = Clock()
        self.notes: list[str] = []
        self.topology = blueprint.topology
        on_dead_link, spread = scenario.traffic.on_dead_link, spread_of(self.topology)
        self.fabric = Fabric(self.env, self.topology, scenario.seed, on_dead_link=on_dead_link, spread=spread)
        self.ended = 0
        self._under_way: dict[int, tuple[Flow, int]] = {}
        self._flows = folder.writer(FLOWS)
        self._events = folder.writer(EVENTS)
        self.env.process(self._start(blueprint.flows()))
        self.env.process(self._change(blueprint.changes))

    def _start(self, flows: Iterable[tuple[Flow, int, int, Path | None]]) -> Generator[Event, Any, None]:
        env, fabric = self.env, self.fabric
        for flow, source, target, path in flows:
            if flow.start_ns > env.now:
                yield env.timeout(flow.start_ns - env.now)
            self._under_way[flow.flow_id] = flow, self._ideal_ns(flow, source, target, path)
            sent = fabric.send(path, flow.size_bytes) if path else fabric.transfer([(source, target, flow.size_bytes)])
            sent.callbacks.append(partial(self._end, flow))

    def _change(self, changes: tuple[tuple[int, tuple[int, ...], int], ...]) -> Generator[Event, Any, None]:
        for time_ns, links, capacity in changes:
            if time_ns > self.env.now:
                yield self.env.timeout(time_ns - self.env.now)
            self.fabric.set_capacity(links, capacity)
            link = self.topology.links[links[0]]
            self.event("capacity", f"{link.source}>{link.target}", f"{capacity} bytes/s on {len(links)} links")

    def _ideal_ns(self, flow: Flow, source: int, target: int, path: Path | None) -> int:
        return alone_ns(self.topology, source, target, flow.size_bytes, path)

    def _end(self, flow: Flow, event: Event) -> None:
        completed = bool(event.ok)
        if not completed:
            event.defused = True
        self.ended += 1
        _, ideal_ns = self._under_way.pop(flow.flow_id)
        self._row(flow, self.env.now, ideal_ns, completed)

    def _row(self, flow: Flow, finish_ns: int, ideal_ns: int, completed: bool) -> None:
        sites = self.topology.sites
        source, target = (end if isinstance(end, str) else sites[end].name for end in (flow.source, flow.target))
        row = (flow.flow_id, source, target, flow.size_bytes, flow.start_ns, finish_ns, ideal_ns, completed)
        self._flows.append(row)

    @property
    def draws(self) -> bool:
        """Whether anything is random: always, for ECMP hashes with the seed."""
        return True

    def check(self) -> None:
        """Raise InvariantError unless link capacities, the max-min certificate and bytes hold."""
        self.fabric.check()

    def settle(self, expected_end: bool) -> None:
        """Write the flows that are still under way; `expected_end`: only those that wait for a dead link may be."""
        if self._under_way and expected_end and not any(not capacity for capacity in self.fabric.capacities):
            raise InvariantError(f"{len(self._under_way)} flows never ended")
        if self._under_way:
            self.notes.append(f"traffic: {len(self._under_way)} flows were still under way, or stalled, at the end")
        for flow, ideal_ns in self._under_way.values():
            self._row(flow, -1, ideal_ns, completed=False)

    def event(self, kind: str, subject: str, detail: str) -> None:
        """Write a row of what happened to the network."""
        self._events.append((self.env.now, kind, subject, detail))

    def finish(self) -> None:
        """Close the tables."""
        self._flows.close()
        self._events.close()

    def summary(self, folder: File) -> dict[str, Any]:
        """Return the figures of the closed tables in `folder`."""
        return summarise_flows(folder, self.env.now)

    def facts(self) -> dict[str, Any]:
        """Return what the manifest says of the network."""
        return {
            "topology": self.topology.name,
            "device": self.topology.device,
            "devices": len(self.topology.sites),
            "devices_leased": 0,
        }
