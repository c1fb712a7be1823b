"""Where KV blocks go beside device memory: host memory for those who are preempted, tiers for cached prefixes."""

from collections.abc import Callable
from functools import partial
from math import ceil

from simulator.model.precision import Precision
from simulator.model.split import kv_bytes_per_token_per_rank
from simulator.model.transformer import Transformer
from simulator.scenario.pool import Pool
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
        return [LowerTiers(tiers, caching.load == "faster", caching.prefetch) for _ in range(layout.data * layout.pipeline)]

    return lower


def swap_of(section: Pool, model: Transformer, precision: Precision) -> Callable[[], list[SwapSpace]] | None:
    """Return what makes the host memory of an engine's ranks, or None when those who are preempted are recomputed."""
    terms = section.preemption.parameters
    if not isinstance(terms, Swap):
        return None
    layout = section.layout
    token = kv_bytes_per_token_per_rank(model, layout, precision) * layout.data  # a block is all of one data rank's
    return partial(spaces, terms, ceil(section.kv.block_tokens * token), layout.data, layout.pipeline)
