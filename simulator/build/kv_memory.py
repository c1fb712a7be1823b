"""Where KV blocks go beside device memory: host memory for those who are preempted, tiers for cached prefixes."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import ceil
from typing import NamedTuple

from simulator.build.disaggregation import check_joined
from simulator.device.memory import kv_block_bytes
from simulator.model.layout import Layout
from simulator.model.precision import Precision
from simulator.model.split import kv_groups
from simulator.model.transformer import Transformer
from simulator.scenario.pool import Group, Pool
from simulator.scenario.schema import Serving
from simulator.serving.batching import BATCHERS
from simulator.serving.fabric_tier import NOWHERE, FabricTier, Memories, Reach
from simulator.serving.kv_layout import KVLayout, Piece, pieces
from simulator.serving.lower_tiers import LowerTiers
from simulator.serving.paging import Windows
from simulator.serving.swap import Swap, SwapSpace, spaces
from simulator.serving.tiers import Tier
from simulator.topology.graph import Topology

WHOLE = 1 << 40
"""Tokens of a part of a prompt, where prompts are not computed in parts."""


def unit_bytes_of(model: Transformer, precision: Precision, unit_tokens: int) -> int:
    """Return the bytes of one unit of a prefix cache, of the whole model."""
    return ceil(unit_tokens * model.kv_bytes_per_token(precision.kv_bytes))


class SharedTiers(NamedTuple):
    """What all engines of a group share of the tiers below their prefix caches, those that join it later as well."""

    behind_links: tuple[Tier | None, ...] = ()
    """By place; None: each engine has its own."""
    pooled: FabricTier | None = None
    """The one on the fabric, not connected before the run begins."""


def shared_of(
    section: Pool, model: Transformer, precision: Precision, unit_tokens: int | None, topology: Topology
) -> SharedTiers:
    """Return the tiers that engines of a section share."""
    caching, pooled = section.kv.prefix_cache, section.kv.fabric_tier
    if caching is None or unit_tokens is None:
        return SharedTiers()
    unit_bytes = unit_bytes_of(model, precision, unit_tokens)
    behind_links = [Tier(tier, unit_bytes) if tier.shared else None for tier in caching.tiers if tier.fabric is None]
    on_fabric = None if pooled is None else FabricTier(pooled, unit_bytes, memories_of(topology))
    return SharedTiers(tuple(behind_links), on_fabric)


def memories_of(topology: Topology) -> Memories:
    """Return where memory is joined to the fabric.

    The endpoints that are no accelerators (CPUs, root complexes), each a memory; where there are none, every node is a
    memory, which a device reaches by way of the accelerator of its own slot in that node.
    """
    slots = tuple(site.slot for site in topology.sites)
    if topology.hosts:
        return Memories(tuple((host.index,) for host in topology.hosts), slots)
    nodes: dict[int, list[int]] = {}
    for site in sorted(topology.sites, key=lambda site: (site.node, site.slot)):
        nodes.setdefault(site.node, []).append(site.index)
    return Memories(tuple(map(tuple, nodes.values())), slots)


def fabric_plane_key(group: Group) -> str:
    """Return where a group with a tier on the fabric, its last one, names the plane of it."""
    caching = group.pool.kv.prefix_cache
    assert caching is not None
    return f"{group.at}.kv.prefix_cache.tiers[{len(caching.tiers) - 1}].fabric.plane"


def check_reach(group: Group, topology: Topology, devices: Sequence[int]) -> None:
    """Raise InputError when the plane of a group's tier on the fabric does not join its devices to all memories."""
    tier = group.pool.kv.fabric_tier
    if tier is None or tier.fabric is None:
        return
    memories = memories_of(topology)
    ends = [memories.end(place, devices[0]) for place in range(len(memories.ends))]
    at = fabric_plane_key(group)
    check_joined(topology, tier.fabric.plane, ends, devices[:1], at)
    for device in devices:
        check_joined(topology, tier.fabric.plane, [memories.end(0, device)], [device], at)


def reach_of(model: Transformer, layout: Layout, unit_bytes: int, devices: Sequence[int], rank: int) -> Reach:
    """Return what the devices of a rank of an engine read and write of a unit; context ranks have equal parts of it."""
    own, whole = KVLayout.of(model, layout), KVLayout(model.attention.kv_heads, ((0, model.layers),))
    data, layers, of = rank % layout.data, (0, model.layers), model.layers * model.attention.kv_heads * layout.context

    def parts(found: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
        each: dict[int, int] = {}
        for place, values in found:
            each[place] = each.get(place, 0) + values
        rows, done = [], 0
        for place, values in sorted(each.items()):  # cut where whole bytes allow, so that parts add up to the unit
            rows.append((devices[place], unit_bytes * (done + values) // of - unit_bytes * done // of))
            done += values
        return tuple(rows)

    def values(found: Sequence[Piece], end: Callable[[Piece], int]) -> list[tuple[int, int]]:
        return [(end(piece), piece.values) for piece in found]

    return Reach(
        parts(values(pieces(whole, own, 0, data, layers), lambda piece: piece.target)),
        parts(values(pieces(own, whole, data, 0, layers), lambda piece: piece.source)),
    )


def lower_of(
    section: Pool, model: Transformer, precision: Precision, unit_tokens: int | None, shared: SharedTiers
) -> Callable[[Sequence[int]], list[LowerTiers]] | None:
    """Return what makes the lower tiers of the ranks of an engine on given devices, shared ones always the same.

    None where there are none.
    """
    caching, layout = section.kv.prefix_cache, section.layout
    if caching is None or unit_tokens is None or not caching.tiers:
        return None
    unit_bytes = unit_bytes_of(model, precision, unit_tokens)
    behind_links = [tier for tier in caching.tiers if tier.fabric is None]
    pooled = shared.pooled

    def lower(devices: Sequence[int]) -> list[LowerTiers]:
        both = zip(behind_links, shared.behind_links, strict=True)
        tiers: list[Tier | FabricTier] = [
            common if common is not None else Tier(tier, unit_bytes) for tier, common in both
        ]
        tiers += [pooled] if pooled is not None else []
        ranks = range(layout.data * layout.pipeline)
        ways = [reach_of(model, layout, unit_bytes, devices, rank) if pooled is not None else NOWHERE for rank in ranks]
        return [LowerTiers(tiers, caching.load == "faster", caching.prefetch, way) for way in ways]

    return lower


def tier_notes(serving: Serving) -> list[str]:
    """Return a note for each input about tiers that changes nothing."""
    notes, any_tiers = [], False
    for group in serving.groups:
        caching, at = group.pool.kv.prefix_cache, f"{group.at}.kv.prefix_cache"
        if caching is None:
            continue
        any_tiers |= bool(caching.tiers)
        if caching.load != "always" and not caching.tiers:
            notes.append(f"{at}.load has no effect: there are no tiers to load from")
        if caching.prefetch and len(caching.tiers) < 2:
            notes.append(f"{at}.prefetch has no effect: there is no second tier to fetch from")
        notes += [
            f"{at}.tiers.{place}.shared has no effect: there is one engine"
            for place, tier in enumerate(caching.tiers)
            if tier.shared and group.pool.instances == 1
        ]
        notes += _fabric_notes(group, at, serving)
    for role in serving.roles:
        choice, path = serving.router_of(role)
        if getattr(choice.parameters, "tiers", False) and not any_tiers:
            notes.append(f"{path}: tiers has no effect: prefix caches have none")
    return notes


def _fabric_notes(group: Group, at: str, serving: Serving) -> list[str]:
    tier, caching = group.pool.kv.fabric_tier, group.pool.kv.prefix_cache
    if tier is None or tier.fabric is None or caching is None:
        return []
    here, notes = f"{at}.tiers.{len(caching.tiers) - 1}", []
    if tier.shared and group.pool.instances > 1:
        notes.append(f"{here}.shared has no effect: all engines share what lies on the fabric")
    others = [other for other in serving.groups if other != group and other.pool.kv.fabric_tier is not None]
    if tier.fabric.lane and serving.colocated is not None and not others and group.pool.experts is None:
        notes.append(f"{here}.fabric.lane has no effect: nothing else crosses the network")
    return notes


def tier_figures(
    engines: Mapping[str, Sequence[LowerTiers]], unit_tokens: int | None
) -> dict[str, list[dict[str, int]]]:
    """Return per group, for each of its tiers, the tokens that requests were given from it and the bytes that it moved.

    `engines`: what the ranks of all engines of a group have below device memory.
    """
    figures = {}
    for group, lowers in engines.items():
        rows = []
        for tiers in zip(*(lower.tiers for lower in lowers), strict=True):
            each = list({id(tier): tier for tier in tiers}.values())  # ranks share an engine's, engines a shared one
            size = each[0].unit_bytes
            rows.append(
                {
                    "found_tokens": sum(tier.found for tier in each) * (unit_tokens or 0),
                    "loaded_bytes": sum(tier.loaded for tier in each) * size,
                    "written_bytes": sum(tier.written for tier in each) * size,
                    "prefetched_in_vain_bytes": sum(tier.vain for tier in each) * size,
                }
            )
        figures[group] = rows
    return figures


def swap_of(section: Pool, model: Transformer, precision: Precision) -> Callable[[], list[SwapSpace]] | None:
    """Return what makes the host memory of an engine's ranks, or None when those who are preempted are recomputed."""
    terms = section.preemption.parameters
    if not isinstance(terms, Swap):
        return None
    layout = section.layout
    tokens = section.kv.block_tokens * layout.data  # a block is all of one data rank's
    size = kv_block_bytes(model, layout, tokens, precision, windows=section.gives_back(model))
    return partial(spaces, terms, size, layout.data, layout.pipeline)


def windows_of(section: Pool, model: Transformer) -> Windows | None:
    """Return the layers of an engine that give back what has left their window, if there are any."""
    window = model.attention.window
    if window is None or not section.gives_back(model):
        return None
    groups, limits = kv_groups(model, section.layout), section.batcher.parameters
    chunk = min(limits.max_batch_tokens, getattr(limits, "long_prefill_threshold", None) or limits.max_batch_tokens)
    if not BATCHERS[section.batcher.name].slices:
        chunk = WHOLE
    return Windows(groups.full, groups.windowed, window.tokens, chunk)
