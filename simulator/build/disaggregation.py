"""What pools for prefill and decode need beyond engines: a way for caches, their places, and expert servers."""

from collections.abc import Mapping, Sequence

from simulator.device.accelerator import Accelerator
from simulator.device.cost import Cost
from simulator.device.engine import RooflineParameters
from simulator.device.expert_servers import Exchange, ExpertServers, ExpertServersCost
from simulator.errors import InputError, Problem
from simulator.model.layout import Layout
from simulator.model.transformer import Transformer
from simulator.network.collectives_constants import CollectiveConstants, Phase
from simulator.scenario.schema import Serving
from simulator.serving.disaggregation import Caches
from simulator.serving.kv_layout import Kind, KVLayout
from simulator.topology.graph import Topology
from simulator.topology.spreading import shard_loads
from simulator.units import NS_PER_S

MOST_PAIRS = 4093
"""Pairs of devices that are looked at before a run; a prime, so that no place in a node is left out."""


def check_plane(serving: Serving, topology: Topology, pools: Sequence[Sequence[int]]) -> None:
    """Raise InputError when a plane is named that does not join the devices of one pool to those of the other.

    Of many pairs some are looked at, evenly spaced.
    """
    plane = serving.kv_transfer.plane
    if plane is None:
        return
    check_joined(topology, plane, pools[0], pools[1], "serving.kv_transfer.plane")


def check_joined(
    topology: Topology, plane: str | None, sources: Sequence[int], targets: Sequence[int], at: str
) -> None:
    """Raise InputError, at a place of the scenario, when a plane does not join sources to targets."""
    try:
        if plane is not None:
            topology.plane(plane)
        count = len(sources) * len(targets)
        for pair in range(0, count, count // MOST_PAIRS + 1):
            source, target = divmod(pair, len(targets))
            topology.paths(sources[source], targets[target], plane)
    except InputError as error:
        raise InputError(error.at(at)) from None


def without_effect(serving: Serving) -> list[str]:
    """Return a note for each input about two pools that changes nothing."""
    notes = []
    if serving.kv_transfer.lane and not (serving.pooled or serving.moves_experts):
        notes.append("serving.kv_transfer.lane: nothing but KV caches crosses the network, one lane is like another")
    if serving.role_switch is not None and all(group.pool.instances == 1 for group in serving.groups):
        notes.append("serving.role_switch: no pool gives its last engine, and each has but one")
    return notes


def caches_of(model: Transformer, serving: Serving, layouts: Mapping[str, Layout]) -> Caches:
    """Return where the caches of instances lie, by name."""
    each = model.attention.stored_per_token(1) * serving.precision.kv_bytes + model.attention.index_bytes
    places = {name: KVLayout.of(model, layout) for name, layout in layouts.items()}
    window = model.attention.window
    if window is None or not any(group.pool.gives_back(model) for group in serving.groups):
        return Caches(places, model.layers, round(each))
    kinds = Kind(model.layers, window.layers, False), Kind(model.layers, window.layers, True)
    return Caches(places, model.layers, round(each), ((kinds[0], None), (kinds[1], window.tokens - 1)))


def cost_with_servers(
    serving: Serving,
    model: Transformer,
    layout: Layout,
    accelerator: Accelerator,
    servers: ExpertServers,
    topology: Topology,
    constants: CollectiveConstants | None,
    clients: Sequence[Sequence[int]],
    devices: Sequence[int],
) -> Cost:
    """Return the cost of engines on `clients` whose experts are on `devices`, over idle links of the topology."""
    parameters = serving.cost.parameters
    if serving.cost.name != "roofline":
        what = f"engines with expert servers are timed operator by operator, not by {serving.cost.name}"
        raise InputError(Problem(what, path="cost", allowed="roofline"))
    assert isinstance(parameters, RooflineParameters)
    form = constants.low_latency or constants.high_throughput if constants is not None else None
    ways = []
    for phase, out in ((form.dispatch if form else None, True), (form.combine if form else None, False)):
        ways.append(_exchange(topology, clients, devices, phase, out))
    return ExpertServersCost(
        model, layout, accelerator, serving.precision, parameters, servers, len(clients), ways[0], ways[1]
    )


def _exchange(
    topology: Topology, clients: Sequence[Sequence[int]], servers: Sequence[int], phase: Phase | None, out: bool
) -> Exchange:
    """Return one way of the exchange: a kernel's start and the path, and the most loaded link per byte of a rank."""
    share = phase.network_share if phase is not None else 1.0
    start_ns = phase.start_ns(len(clients[0]) + len(servers), 2) if phase is not None else 0

    def ns_per_byte(groups: Sequence[Sequence[int]]) -> float:
        pairs = [(rank, server) for group in groups for rank in group for server in servers]
        part = 1 / len(servers)
        loads = shard_loads(topology, ((a, b, part) if out else (b, a, part) for a, b in pairs))
        links = zip(loads.tolist(), topology.links, strict=True)
        return max((load / link.capacity_bytes_per_s for load, link in links), default=0.0) * NS_PER_S / share

    path = topology.paths(clients[0][0], servers[-1])[0]
    return Exchange(start_ns + topology.path_latency_ns(path), ns_per_byte(clients[:1]), ns_per_byte(clients))
