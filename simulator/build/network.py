"""The live network of a scenario, whatever runs over it: its fidelity, its routing, its background, its faults."""

from collections.abc import Iterable
from functools import cache, partial
from typing import TYPE_CHECKING

from simulator.clock import Clock
from simulator.cluster.faults import (
    Fault,
    LinkHealth,
    RandomFaults,
    Report,
    part,
    parts,
    strike_at,
    strike_at_random,
)
from simulator.errors import InputError, Problem, nearest
from simulator.network.carrier import Carrier
from simulator.network.fabric import Fabric, OnDeadLink
from simulator.network.routing import ROUTINGS, OnPlane, Spraying, Spread, routing, spread_of
from simulator.network.transport import PLAIN
from simulator.randomness import stream
from simulator.scenario.network import FaultSection
from simulator.scenario.schema import Scenario
from simulator.topology.graph import Topology

if TYPE_CHECKING:
    from simulator.network.step_network import StepNetwork

    Live = Fabric | StepNetwork
else:
    Live = Fabric

Planned = tuple[Fault | RandomFaults, ...]
MANY_PATHS = 256
"""Flows of one transfer up to which nothing is said."""


def spread(scenario: Scenario, topology: Topology) -> Spread | None:
    """Return the routing of a run: the scenario's, or the topology's own; None is plain ECMP.

    Raises InputError for a plane that the topology does not have.
    """
    chosen = scenario.network.routing
    if chosen is None:
        return spread_of(topology)
    plane = getattr(chosen.parameters, "plane", None)
    if plane is not None:
        try:
            topology.plane(plane)
        except InputError as error:
            raise InputError(error.at(f"network.routing.{chosen.name}.plane")) from None
    if chosen.name == "ecmp" and plane is None:
        return None
    return routing(chosen.name, chosen.parameters)


def spread_on(scenario: Scenario, topology: Topology, plane: str | None) -> Spread:
    """Return the routing of flows that are bound to a plane (None: to none), split over paths as the run's are."""
    chosen = scenario.network.routing
    even, own = _evenly(scenario, topology)
    if even:
        return routing("spray", Spraying(plane=plane or own))
    name = topology.routing if chosen is None else chosen.name
    if plane is None:
        return routing(name, chosen.parameters if chosen is not None else None)
    if not _follows(name):
        return routing("ecmp", OnPlane(plane=plane))
    given = chosen.parameters if chosen is not None else ROUTINGS[name].parameters()
    return routing(name, given.model_copy(update={"plane": plane}))


def _follows(name: str) -> bool:
    """Return whether a routing can be bound to a plane for some flows.

    Not so policies that choose the plane themselves, or go by what is under way when a flow starts, which is not known
    yet.
    """
    return issubclass(ROUTINGS[name].parameters, OnPlane) and ROUTINGS[name].make is None


def plane_notes(scenario: Scenario, topology: Topology, places: Iterable[str]) -> list[str]:
    """Return a note for each place of the scenario that binds flows to a plane on which its routing cannot be."""
    name, *_ = _routed(scenario, topology)
    if _follows(name) or _evenly(scenario, topology)[0]:
        return []
    return [f"{place}: flows that are bound to a plane are routed by ecmp there, not by {name}" for place in places]


def bound(
    fabric: "Live", scenario: Scenario, topology: Topology, plane: str | None, lane: int, operation: str | None = None
) -> "Live | Carrier":
    """Return the network as it is, or bound to a plane and a lane, and to what reads or writes reach in it.

    `operation`: `read` or `write`; none: what comes from a host's memory is read, all else written. Raises InputError
    for a plane that the topology does not have.
    """
    if plane is None and not lane and not topology.operations:
        return fabric
    on_plane = None if plane is None else spread_on(scenario, topology, plane)
    reach = partial(_reached, topology, plane, operation) if topology.operations else None
    return Carrier(fabric, topology, scenario.seed, on_plane, lane, None if reach is None else cache(reach))


def _reached(topology: Topology, plane: str | None, operation: str | None, source: int, target: int) -> int | None:
    """Return the rate that an operation reaches between two endpoints, of where one is known."""
    name = operation or ("read" if source >= len(topology.sites) else "write")
    known = topology.operation(name, source, target, plane)
    return None if known is None else known.bytes_per_s


def live_network(env: Clock, scenario: Scenario, topology: Topology, on_dead_link: OnDeadLink) -> "Live":
    """Return the network at the scenario's fidelity, its background in place."""
    section, chosen = scenario.network, spread(scenario, topology)
    transport = PLAIN if section.transport.parameters == PLAIN else section.transport.parameters
    if section.fidelity != "flow":
        from simulator.network.step_network import StepNetwork

        even, plane = _evenly(scenario, topology)
        return StepNetwork(
            env, topology, scenario.seed, section.fidelity, None if even else chosen, transport, plane if even else None
        )
    fabric = Fabric(env, topology, scenario.seed, on_dead_link=on_dead_link, transport=transport, spread=chosen)
    for item in section.background:
        fabric.set_background(links_of(topology, item.tier), "background", item.share)
    return fabric


def _routed(scenario: Scenario, topology: Topology) -> tuple[str, str | None, int | None]:
    """Return the name of a run's routing, the plane that it is bound to, and how many paths it takes; None: any."""
    chosen = scenario.network.routing
    given = None if chosen is None else chosen.parameters
    name = topology.routing if chosen is None else chosen.name
    return name, getattr(given, "plane", None), getattr(given, "paths", None)


def _evenly(scenario: Scenario, topology: Topology) -> tuple[bool, str | None]:
    """Return whether no flow is simulated and the routing is an even spread over all paths, and of which plane.

    It is for spraying, for hashes taken on average, and for the least busy path.
    """
    name, plane, some = _routed(scenario, topology)
    even = scenario.network.fidelity != "flow" and name in ("ecmp", "adaptive", "spray") and some is None
    return even, plane


def links_of(topology: Topology, tier: str) -> list[int]:
    """Return the links of a tier; raises InputError when there is none."""
    found = [link.index for link in topology.links if link.tier == tier]
    if not found:
        tiers = list(dict.fromkeys(link.tier for link in topology.links))
        what = f"no links of tier {tier!r} in {topology.name}"
        raise InputError(
            Problem(what, path="network.background", allowed=", ".join(tiers), nearest=nearest(tier, tiers))
        )
    return found


def left_by_background(scenario: Scenario, topology: Topology) -> list[float]:
    """Return the share of each link that background leaves; raises InputError for a tier that is none."""
    left = [1.0] * len(topology.links)
    for item in scenario.network.background:
        for link in links_of(topology, item.tier):
            left[link] = 1 - item.share
    return left


def check_network(scenario: Scenario, topology: Topology) -> None:
    """Raise InputError now for what the live network would refuse."""
    spread(scenario, topology)
    for item in scenario.network.background:
        links_of(topology, item.tier)


def many_paths(scenario: Scenario, topology: Topology) -> list[str]:
    """Return a note where spraying puts each transfer on so many links that a run takes long."""
    name, plane, some = _routed(scenario, topology)
    if name != "spray" or some is not None or scenario.network.fidelity != "flow" or len(topology.sites) < 2:
        return []
    try:
        most = len(topology.paths(0, len(topology.sites) - 1, plane))
    except InputError:  # these two are not joined: a flow between them is refused when there is one
        return []
    what = f"up to {most:,} paths for each transfer, and as many links; `paths: 64`, evenly spaced, takes less time"
    return [f"network.routing.spray: {what}"] if most > MANY_PATHS else []


def plan_faults(scenario: Scenario, topology: Topology) -> Planned:
    """Return the faults of a scenario; raises InputError with every name that is not in the topology."""
    found: list[Fault | RandomFaults] = []
    problems: list[Problem] = []
    for index, section in enumerate(scenario.faults):
        try:
            found.append(_planned(section, topology))
        except InputError as error:
            problems += error.at(f"faults[{index}]")
    if problems:
        raise InputError(problems)
    return tuple(found)


def _planned(section: FaultSection, topology: Topology) -> Fault | RandomFaults:
    if section.mtbf is not None:
        assert section.repair is not None  # the schema sees to it
        struck = parts(topology, section.what, section.tier)
        return RandomFaults(struck, section.mtbf, section.left, section.repair)
    assert section.name is not None
    assert section.at is not None
    return Fault(part(topology, section.what, section.name), section.at, section.left, section.repair)


def start_faults(env: Clock, health: LinkHealth, planned: Planned, seed: int, report: Report) -> None:
    """Let faults happen: one process for each, its random times from a stream of its own."""
    for index, fault in enumerate(planned):
        if isinstance(fault, Fault):
            env.process(strike_at(env, health, fault, report))
        else:
            env.process(strike_at_random(env, health, fault, stream(seed, f"faults/{index}"), report))


def overlapping(network: "Live", end_ns: int) -> list[str]:
    """Return a note if links carried more than they can: at fidelities below `flow` steps do not see each other."""
    links = 0 if isinstance(network, Fabric) else network.overloaded(end_ns)
    what = "carried more than their capacity, for steps that overlap do not see each other; `flow` shares them"
    return [f"network.fidelity: {links:,} links {what}"] if links else []


def too_late(planned: Planned, end_ns: int) -> list[str]:
    """Return a note if faults at given times would have come after the run's end."""
    late = sum(isinstance(fault, Fault) and fault.at_ns > end_ns for fault in planned)
    return [f"faults: {late} had no effect, they come after the end of the run"] if late else []
