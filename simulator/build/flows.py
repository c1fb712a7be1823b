"""The flows of a `traffic:` section, of whatever source, as one stream in order of start, with their ways and rates."""

import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, pairwise
from math import ceil
from pathlib import Path as File
from typing import NamedTuple

from simulator.errors import InputError, Problem, nearest
from simulator.network.component import FORGIVEN_NS
from simulator.network.routing import Shares, Spread, spread_of, without_loops
from simulator.randomness import stream
from simulator.scenario.schema import Scenario
from simulator.scenario.traffic import Traffic, Transfer
from simulator.topology.explicit import path_by_names
from simulator.topology.graph import Topology
from simulator.units import NS_PER_S
from simulator.workload.flows import Flow, all_to_all, incast, permutation, poisson, read_flows

NO_END = -1
MOST_FLOWS = 3_000_000


class Going(NamedTuple):
    """A flow on its way: the indices of its ends (NO_END where a path of names stands for both) and what it is asked.

    `ways` are its paths and their shares where it does not go by the run's routing; `cap` is in bytes/s.
    """

    flow: Flow
    source: int
    target: int
    lane: int
    ways: Shares | None = None
    cap_bytes_per_s: int | None = None
    latency_ns: int = 0
    """Beside the latency of its path."""


class Ways:
    """Finds the ways of flows over planes and by way of other ends; `spread` is the run's routing on a plane."""

    def __init__(self, topology: Topology, seed: int, spread: Callable[[str | None], Spread]) -> None:
        self.topology = topology
        self._seed = seed
        self._spread = spread
        self._ends = {site.name: index for index, site in enumerate(topology.endpoints)}

    def end(self, name: str | int) -> int:
        """Return the index of an end given by name or index; raises InputError when there is none."""
        count = len(self.topology.endpoints)
        if isinstance(name, int):
            if not 0 <= name < count:
                raise InputError(f"no end number {name} in the topology, there are {count}")
            return name
        if name not in self._ends:
            what = f"no node {name!r} in the topology sends and receives"
            raise InputError(Problem(what, nearest=nearest(name, self._ends)))
        return self._ends[name]

    def over(self, ends: Sequence[int], plane: str | None, sequence: int) -> Shares:
        """Return the shares of paths through ends in turn, a leg on `plane` where that joins it; loops are cut out."""
        whole: Shares = (((), 1.0),)
        for source, target in pairwise(ends):
            legs = self._leg(source, target, plane, alone=len(ends) == 2, sequence=sequence)
            whole = tuple((head + tail, a * b) for head, a in whole for tail, b in legs)
        return tuple((without_loops(self.topology, path), share) for path, share in whole)

    def _leg(self, source: int, target: int, plane: str | None, alone: bool, sequence: int) -> Shares:
        if plane is None:
            return self._spread(None)(self.topology, self._seed, source, target, sequence)
        carrier, lane = self.topology.plane(plane)
        joined = source != target and carrier.paths(source, target, lane) is not None
        return self._spread(plane if joined or alone else None)(self.topology, self._seed, source, target, sequence)


def flows_of(scenario: Scenario, traffic: Traffic, ways: Ways) -> Callable[[], Iterable[Going]]:
    """Return what gives the flows in order of start, anew at each call; raises InputError now for what is wrong."""
    problems: list[Problem] = []
    listed = _listed(File(traffic.flows), ways, traffic.lane, problems) if traffic.flows else []
    first = 1 + max((going.flow.flow_id for going in listed), default=-1)
    written: list[Going] = []
    for index, transfer in enumerate(traffic.transfers):
        try:
            written.append(_written(transfer, first + index, ways, traffic.lane))
        except InputError as error:
            problems += error.at(f"traffic.transfers[{index}]")
    if problems:
        raise InputError(problems)
    known = sorted([*listed, *written], key=lambda going: going.flow.start_ns)
    if traffic.pattern is None or is_one_step(scenario, traffic):
        return lambda: known
    _drawn(scenario, traffic, ways.topology)  # so that a pattern that does not fit is known now
    if traffic.pattern.name == "all_to_all":
        devices = len(ways.topology.sites)
        refuse_too_many(devices * (devices - 1) * len(ways.over((0, devices - 1), None, 0)))
    offset = first + len(written)

    def merged() -> Iterator[Going]:
        drawn = (
            Going(flow._replace(flow_id=offset + flow.flow_id), int(flow.source), int(flow.target), traffic.lane)
            for flow in _drawn(scenario, traffic, ways.topology)
        )
        return heapq.merge(known, drawn, key=lambda going: going.flow.start_ns) if known else chain(drawn)

    return merged


def refuse_too_many(flows: int) -> None:
    """Raise InputError for more flows at once than memory holds: some kilobytes each."""
    if flows > MOST_FLOWS:
        others = "`network.fidelity: load`, fewer `paths` of `network.routing.spray`, or collectives in the background"
        raise InputError(Problem(f"some {flows:,} flows at once, {MOST_FLOWS:,} at most", allowed=others))


def is_one_step(scenario: Scenario, traffic: Traffic) -> bool:
    """Return whether a pattern is taken as a whole: an all-to-all where no flow is simulated by itself."""
    all_at_once = traffic.pattern is not None and traffic.pattern.name == "all_to_all"
    return all_at_once and scenario.network.fidelity != "flow"


def _listed(file: File, ways: Ways, lane: int, problems: list[Problem]) -> list[Going]:
    found: list[Going] = []
    for flow in read_flows(file):
        try:
            found.append(_of_row(flow, ways, flow.lane if flow.lane is not None else lane))
        except InputError as error:
            problems += [Problem(p.what, str(file), flow.line, nearest=p.nearest) for p in error.problems]
    return found


def _of_row(flow: Flow, ways: Ways, lane: int) -> Going:
    if flow.path:  # then the ends are but labels
        if flow.plane:
            raise InputError("a path and a plane exclude each other")
        path = path_by_names(ways.topology, flow.path)
        return Going(flow, NO_END, NO_END, lane, ((path, 1.0),), flow.cap_bytes_per_s)
    source, target = (_named(str(end), ways) for end in (flow.source, flow.target))
    if flow.plane:
        shares = ways.over((source, target), flow.plane, flow.flow_id)
        return Going(flow, source, target, lane, shares, flow.cap_bytes_per_s)
    ways.topology.paths(source, target)
    return Going(flow, source, target, lane, None, flow.cap_bytes_per_s)


def _named(name: str, ways: Ways) -> int:
    try:
        return ways.end(name)
    except InputError as error:
        [problem] = error.problems
        raise InputError(Problem(f"no node {name!r} in the topology, and no path", nearest=problem.nearest)) from None


def _written(transfer: Transfer, number: int, ways: Ways, lane: int) -> Going:
    topology = ways.topology
    ends = [ways.end(end) for end in (transfer.source, *transfer.via, transfer.target)]
    shares = None
    if transfer.plane is not None or len(ends) > 2:
        shares = ways.over(ends, transfer.plane, number)
    else:
        topology.paths(ends[0], ends[1])  # so that ends without a way are known now
    cap, latency_ns = transfer.cap, 0
    if transfer.operation is not None:
        if len(ends) > 2:
            raise InputError("an operation is between two ends, without `via`")
        known = topology.operation(transfer.operation, ends[0], ends[1], transfer.plane)
        if known is None:
            what = f"nothing is known of {transfer.operation!r} between {transfer.source} and {transfer.target}"
            raise InputError(what)
        cap, latency_ns = min(cap or known.bytes_per_s, known.bytes_per_s), known.latency_ns
    names = [topology.endpoints[end].name for end in (ends[0], ends[-1])]
    flow = Flow(number, names[0], names[1], transfer.bytes, transfer.start, weight=transfer.weight, cap_bytes_per_s=cap)
    return Going(flow, ends[0], ends[-1], lane if transfer.lane is None else transfer.lane, shares, cap, latency_ns)


def _drawn(scenario: Scenario, traffic: Traffic, topology: Topology) -> Iterable[Flow]:
    assert traffic.pattern is not None
    chosen, devices = traffic.pattern.parameters, len(topology.sites)
    if devices < 2:
        raise InputError("traffic: a pattern needs two devices or more")
    rng = stream(scenario.seed, "flows")
    if traffic.pattern.name == "poisson":
        size = 10**15  # so large that latency is nothing
        port = round(size * NS_PER_S / alone_by_route(topology, spread_of(topology), 0, devices - 1, size))
        return poisson(rng, devices, chosen.flows, chosen.load, port, chosen.sizes.parameters.law())
    if traffic.pattern.name == "permutation":
        return permutation(rng, devices, chosen.bytes)
    if traffic.pattern.name == "incast":
        if chosen.sources >= devices or chosen.target >= devices:
            raise InputError(f"traffic: incast needs a target and other sources among {devices} devices")
        return incast(devices, chosen.target, chosen.sources, chosen.bytes)
    return all_to_all(devices, chosen.bytes)


def alone_ns(topology: Topology, shares: Shares, size_bytes: int, cap_bytes_per_s: int | None = None) -> int:
    """Return the time of a flow alone: the longest latency of its paths, then its bytes over the most loaded link.

    No share: no time. `cap_bytes_per_s` bounds the rate.
    """
    if not shares:
        return 0
    links = topology.links
    if len(shares) == 1:  # nearly always
        on_way = [links[link] for link in shares[0][0]]
        rate = min([link.capacity_bytes_per_s for link in on_way])
        rate = min(rate, cap_bytes_per_s or rate)
        return sum([link.latency_ns for link in on_way]) + -(-size_bytes * NS_PER_S // rate)
    loads: dict[int, float] = {}
    for way, share in shares:
        for link in way:
            loads[link] = loads.get(link, 0.0) + share
    most = max((share / links[link].capacity_bytes_per_s for link, share in loads.items()), default=0.0)
    if cap_bytes_per_s:
        most = max(most, 1 / cap_bytes_per_s)
    return max(topology.path_latency_ns(way) for way, _ in shares) + ceil(size_bytes * most * NS_PER_S - FORGIVEN_NS)


def alone_by_route(topology: Topology, spread: Spread | None, source: int, target: int, size_bytes: int) -> int:
    """Return the time of a flow alone by the run's routing (None: any one of the equal-cost paths)."""
    if source == target:
        return 0
    if spread is None:
        return alone_ns(topology, ((topology.paths(source, target)[0], 1.0),), size_bytes)
    return alone_ns(topology, spread(topology, 0, source, target, 0), size_bytes)
