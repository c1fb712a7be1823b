"""Where KV blocks go beside device memory: host memory for those who are preempted, tiers for cached prefixes."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import ceil

from simulator.model.precision import Precision
from simulator.model.split import kv_bytes_per_token_per_rank
from simulator.model.transformer import Transformer
from simulator.scenario.pool import Pool
from simulator.scenario.schema import Serving
from simulator.serving.swap import Swap, SwapSpace, spaces
from simulator.serving.tiers import LowerTiers, Tier


def lower_of(
    section: Pool, model: Transformer, precision: Precision, unit_tokens: int | None
) -> Callable[[], list[LowerTiers]] | None:
    """Return what makes the lower tiers of an engine's ranks, shared ones the same for all engines; or None."""
    caching, layout = section.kv.prefix_cache, section.layout
    if caching is None or unit_tokens is None or not caching.tiers:
        return None
    unit_bytes = ceil(unit_tokens * model.kv_bytes_per_token(precision.kv_bytes))
    shared = [Tier(tier, unit_bytes) if tier.shared else None for tier in caching.tiers]

    def lower() -> list[LowerTiers]:
        both = zip(caching.tiers, shared, strict=True)
        tiers = [common if common is not None else Tier(tier, unit_bytes) for tier, common in both]
        return [
            LowerTiers(tiers, caching.load == "faster", caching.prefetch) for _ in range(layout.data * layout.pipeline)
        ]

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
    for role in serving.roles:
        choice, path = serving.router_of(role)
        if getattr(choice.parameters, "tiers", False) and not any_tiers:
            notes.append(f"{path}: tiers has no effect: prefix caches have none")
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
    token = kv_bytes_per_token_per_rank(model, layout, precision) * layout.data  # a block is all of one data rank's
    return partial(spaces, terms, ceil(section.kv.block_tokens * token), layout.data, layout.pipeline)
