"""What a pool's `experts` section comes to: popularity and placement, the balance of ranks, and what changes it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from simulator.errors import InputError, Problem
from simulator.model.architecture import MixtureOfExperts
from simulator.model.expert_balance import ExpertBalance
from simulator.model.expert_group import Group
from simulator.model.expert_placement import Floats, Move, Whole, balanced, contiguous
from simulator.model.expert_popularity import counted, power_law, redrawn, uniform, zipf
from simulator.model.layout import Layout
from simulator.model.precision import Precision
from simulator.model.split import expert_bytes
from simulator.model.transformer import Transformer
from simulator.randomness import stream
from simulator.scenario.experts import Experts, apart, expert_group
from simulator.scenario.pool import Group as PoolGroup
from simulator.scenario.schema import Scenario
from simulator.serving.expert_balance import Plan
from simulator.workload.expert_choices import read_choices


def experts_of(
    group: PoolGroup, scenario: Scenario, model: Transformer, devices_per_node: int, notes: list[str]
) -> Plan | None:
    """Return how the experts of a group are balanced, None if nothing says so; raises InputError with its place."""
    pool = group.pool
    if pool.experts is None:
        return None
    if scenario.serving is not None and scenario.serving.cost.name == "linear":
        notes.append(f"{group.at}.experts: no effect on linear costs, but for the memory of copies")
        return None
    said: list[str] = []
    try:
        plan = plan_experts(pool.experts, model, pool.layout, devices_per_node, scenario.seed, said)
    except InputError as error:
        found = [p if p.file else replace(p, path=f"{group.at}.{p.path}") for p in error.problems]
        raise InputError([scenario.located(problem) for problem in found]) from None
    notes += [f"{group.at}.{note}" for note in said]
    return plan


def plan_experts(
    section: Experts, model: Transformer, layout: Layout, devices_per_node: int, seed: int, notes: list[str]
) -> Plan | None:
    """Return the balance at the start and what changes it; None, and a note, where all experts are on every rank.

    Raises InputError, its path below that of the pool, when the section does not fit model and layout.
    """
    part = model.experts
    if part is None:
        raise InputError(Problem(f"{model.name} has no experts to balance", path="experts"))
    if layout.expert == 1:
        notes.append("experts: no effect with `layout.expert: 1`, every device has a part of all of them")
        return None
    group = expert_group(section, part, layout, _nodes(layout, devices_per_node))
    shared = section.shared_copies if apart(section, layout) else 0
    limit, groups = _limit(section, part, group)
    windows = _popularity(section, part, seed, notes)
    layers = len(windows[0])

    def place(popularity: Floats) -> Whole:
        if section.placement == "contiguous":
            return contiguous(layers, part.experts, shared, group)
        return balanced(popularity, shared, group, groups)

    if section.shared_copies and not shared:
        notes.append("experts.shared_copies: one for every rank, as without copies")
    if section.nodes_per_token is not None and group.nodes == 1 and layout.stage_devices > devices_per_node:
        notes.append("experts.nodes_per_token: no effect, the ranks of an engine do not fill whole nodes")
    if section.drift is not None and (not section.drift.share or not np.ptp(windows[0], axis=1).any()):
        notes.append("experts.drift: no effect, experts that are all alike, or none, change places")
    interval = section.rebalance.interval if section.rebalance else None
    if interval is not None and section.drift is None and len(windows) == 1:
        notes.append("experts.rebalance: no effect, popularity does not change")
    balance = ExpertBalance(windows[0], place(windows[0]), group, shared, limit)
    return Plan(
        balance,
        _changes(section, windows, seed),
        place,
        interval,
        section.rebalance is not None and section.rebalance.moves == "fabric",
    )


def shards(
    moves: Sequence[Move], devices: Sequence[int], model: Transformer, layout: Layout, precision: Precision
) -> list[tuple[int, int, int]]:
    """Return moves of experts as (source device, target device, bytes): stages hold their own layers, ranks parts."""
    stage, parts = layout.stage_devices, layout.expert_tensor
    each = expert_bytes(model, layout, precision)
    found = []
    for move in moves:
        size_bytes = -(-move.experts * each // layout.pipeline)
        for first in range(0, layout.devices, stage):
            for part in range(parts):
                source, target = (devices[first + rank * parts + part] for rank in (move.source, move.target))
                found.append((source, target, size_bytes))
    return found


def _nodes(layout: Layout, devices_per_node: int) -> int:
    """Return the nodes of an expert-parallel group; one where its ranks do not fill whole nodes."""
    if layout.stage_devices % devices_per_node or devices_per_node % layout.expert_tensor:
        return 1
    return layout.stage_devices // devices_per_node


def _limit(section: Experts, part: MixtureOfExperts, group: Group) -> tuple[int, int]:
    """Return the nodes per token, 0 for any, and the groups of experts that the placement keeps together."""
    limit, groups = section.nodes_per_token, part.groups
    if limit is None or limit >= group.nodes:
        return 0, groups
    if groups == 1 and part.experts % group.nodes == 0:
        groups = group.nodes
    if groups % group.nodes:
        what = (
            f"the {groups} groups of experts do not divide among {group.nodes} nodes, so no token can keep to {limit}"
        )
        raise InputError(Problem(what, path="experts.nodes_per_token", allowed=f"{group.nodes} or more"))
    if limit * part.experts // group.nodes < part.active:
        what = f"{part.active} distinct experts do not exist on {limit} of {group.nodes} nodes"
        raise InputError(Problem(what, path="experts.nodes_per_token"))
    return limit, groups


def _popularity(section: Experts, part: MixtureOfExperts, seed: int, notes: list[str]) -> list[Floats]:
    """Return the popularity at the start and in each later window."""
    law, sizes = section.popularity.parameters, (part.layers, part.experts, part.active)
    random = stream(seed, "experts/popularity")
    if section.popularity.name == "zipf":
        return [zipf(*sizes, law.exponent, random)]
    if section.popularity.name == "power_law":
        return [power_law(*sizes, law.alpha, law.largest, random)]
    if section.popularity.name == "uniform":
        return [uniform(*sizes)]
    path = Path(law.file)
    counts = read_choices(path, part.experts, part.active)
    try:
        found = [counted(window, part.active) for window in counts]
    except ValueError as error:
        raise InputError(Problem(str(error), str(path))) from None
    if len(found[0]) != part.layers:
        notes.append(f"experts.popularity: {path.name} has {len(found[0])} layers, they stand for all {part.layers}")
    if len(found) > 1 and law.interval is None:
        what = f"{path.name} has {len(found)} windows"
        raise InputError(Problem(what, path="experts.popularity.measured.interval", allowed="how long each holds"))
    if len(found) == 1 and law.interval is not None:
        notes.append(f"experts.popularity: {path.name} has one window, its interval has no effect")
    return found


def _changes(section: Experts, windows: Sequence[Floats], seed: int) -> Callable[[], Iterator[tuple[int, Floats]]]:
    def measured() -> Iterator[tuple[int, Floats]]:
        for index, window in enumerate(windows[1:], 1):
            yield index * section.popularity.parameters.interval, window

    def drifting() -> Iterator[tuple[int, Floats]]:
        drift, popularity, at_ns = section.drift, windows[0], 0
        assert drift is not None
        random = stream(seed, "experts/drift")
        while True:
            at_ns += drift.interval
            popularity = redrawn(popularity, drift.share, random)
            yield at_ns, popularity

    return measured if section.drift is None else drifting
