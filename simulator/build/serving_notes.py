"""What a user is told of a serving scenario: inputs without effect, and what engines do not see of the network."""

from collections.abc import Sequence

from simulator.build.kv_memory import fabric_plane_key
from simulator.build.network import many_paths, plane_notes
from simulator.build.pools import GroupPlan, PoolPlan
from simulator.device.cost import Cost
from simulator.device.memory import window_lines
from simulator.device.speculation import LinkedCost
from simulator.model.transformer import Transformer
from simulator.network.group_times import GroupTimes
from simulator.scenario.schema import Scenario, Serving
from simulator.topology.graph import Topology


def sends_flows(pools: Sequence[PoolPlan]) -> bool:
    """Return whether engines send anything but collectives: caches, or weights of experts."""
    groups = [group for pool in pools for group in pool.groups]
    return len(pools) > 1 or any(group.moves_experts or group.pooled is not None for group in groups)


def has_place(cost: Cost) -> bool:
    """Return whether a cost knows over which links of the topology its collectives go."""
    return isinstance(cost, LinkedCost) and isinstance(cost.links, GroupTimes)


def network_notes(scenario: Scenario, topology: Topology, pools: Sequence[PoolPlan]) -> list[str]:
    """Return notes on what crosses the network, and on what does not."""
    groups = [group for pool in pools for group in pool.groups]
    placed = any(has_place(engine.cost) for group in groups for engine in group.engines)
    notes = []
    if sends_flows(pools):
        serving = scenario.serving
        assert serving is not None
        notes += many_paths(scenario, topology) + plane_notes(scenario, topology, _on_planes(serving))
        if placed and scenario.network.fidelity != "flow":
            what = "collectives of engines and other flows do not share links; with `flow` they do"
            notes.append(f"network.fidelity: {what}")
    elif not placed:
        what = "no byte of colocated engines crosses the network"
        notes += [f"{key}: {what}" for key in ("network", "faults") if _is_set(scenario, key)]
    return notes + _as_built(scenario, topology, groups)


def _as_built(scenario: Scenario, topology: Topology, groups: Sequence[GroupPlan]) -> list[str]:
    """Return a note for each group whose engines exchange over a network of which they do not know all."""
    sections = {"faults": scenario.faults, "network.background": scenario.network.background}
    hurt = [key for key, given in sections.items() if given]
    what = f"what its ranks exchange between nodes is timed on the network as built, {' and '.join(hurt)} aside"
    found = []
    for group in groups:
        devices = [*(lease.devices for lease in group.leases), *([group.servers.devices] if group.servers else [])]
        nodes = {topology.sites[at].node for each in devices for at in each}
        apart = group.servers is not None or any(len({topology.sites[at].node for at in each}) > 1 for each in devices)
        if hurt and apart and len(nodes) > 1 and not has_place(group.engine.cost):
            found.append(f"{group.section.at}: {what}")
    return found


def _on_planes(serving: Serving) -> list[str]:
    """Return where the scenario binds flows of engines to a plane."""
    places = ["serving.kv_transfer.plane"] if serving.kv_transfer.plane is not None else []
    for group in serving.groups:
        tier = group.pool.kv.fabric_tier
        if tier is not None and tier.fabric is not None and tier.fabric.plane is not None:
            places.append(fabric_plane_key(group))
    return places


def _is_set(scenario: Scenario, key: str) -> bool:
    """Return whether the scenario gives a section that has a default."""
    return bool(getattr(scenario, key) != type(scenario).model_fields[key].default)


def limit_notes(serving: Serving, model: Transformer) -> list[str]:
    """Return a note for each limit, cost or rule of memory that does not do what one would think."""
    notes: list[str] = []
    if serving.max_context is not None and serving.max_context > model.max_context:
        most = f"{model.max_context:,} tokens"
        notes.append(f"serving.max_context: {serving.max_context:,} is more than {model.name} was made for ({most})")
    pools = [group.pool for group in serving.groups]
    exchange = any(p.layout.dispatches and p.expert_servers is None for p in pools)
    if getattr(serving.cost.parameters, "overlap", None) is not None and not (exchange and model.experts):
        what = "no effect, no tokens go to experts on other ranks of their engine"
        notes.append(f"serving.cost.{serving.cost.name}.overlap: {what}")
    for group in serving.groups:
        if not group.pool.gives_back(model):
            lines = window_lines(model, serving.max_context or model.max_context)
            notes += [f"{group.at}.{line}" for line in lines]
        if group.pool.kv.hybrid and model.attention.window is None:
            notes.append(f"{group.at}.kv.hybrid has no effect: no layer of {model.name} has a window")
    if serving.cost.name == "linear":
        phases = serving.cost.parameters.model_dump(mode="python")
        free = [name for name in phases if not any(getattr(serving.cost.parameters, name).__dict__.values())]
        notes.extend(f"serving.cost: {name} takes no time, all of its constants are zero" for name in free)
    return notes
