"""Routers that predict what a request would meet at each instance, and choose by its objectives and by price.

Model: time to first token = (prompt tokens ahead + own, less what the prefix cache holds) x the engine's time per
prefilled token. Source: the Conductor of Mooncake (FAST 2025) chooses prefill engines by such an estimate.
"""

from typing import Literal

from simulator.serving.pool_view import Place, PoolView, Router, held_tokens
from simulator.serving.request import Request
from simulator.strict import PositiveDuration, Strict


class SLOAware(Strict):
    """The lowest predicted time to first token, or the one that just meets the objective."""

    ttft: PositiveDuration | None = None
    """Objective; default: `slo.ttft` of the scenario. Without either, `choose: lowest` needs none."""
    choose: Literal["lowest", "least_slack"] = "lowest"
    """`least_slack`: among instances that are predicted to meet the objective the slowest; if none does the fastest."""
    tiers: bool = False
    """Whether what the tiers below a prefix cache hold need not be computed either; their loads count as no time."""

    def unmet_need(self, place: Place) -> str | None:
        """Return what is missing where the router stands, if anything."""
        if self.choose == "least_slack" and (self.ttft or place.ttft_ns) is None:
            return "least_slack needs an objective: ttft here, or slo.ttft"
        return None


class CostAware(Strict):
    """The cheapest instance by price per hour that is predicted to meet the objectives; if none is, the fastest."""

    ttft: PositiveDuration | None = None
    """Objective of the time to first token; default: `slo.ttft` of the scenario."""
    tpot: PositiveDuration | None = None
    """Objective of the time per output token; default: `slo.tpot` of the scenario."""
    tiers: bool = False
    """Whether what the tiers below a prefix cache hold need not be computed either; their loads count as no time."""

    def unmet_need(self, place: Place) -> str | None:
        """Return what is missing where the router stands, if anything."""
        if (self.ttft or place.ttft_ns or self.tpot or place.tpot_ns) is None:
            return "cost_aware needs an objective: ttft or tpot here, slo.ttft or slo.tpot"
        return None


def predicted_ttft(request: Request, pool: PoolView, tiers: bool = False) -> list[float]:
    """Return per instance the time in ns until a request sent there now would have its first token."""
    own, ahead = request.prefill_tokens, pool.backlog
    engines = pool.engines
    return [
        (ahead(index) + own - cached) * engine.prefill_ns_per_token
        for index, (engine, cached) in enumerate(zip(engines, held_tokens(request, pool, tiers), strict=True))
    ]


class BySLO:
    """Chooses by predicted time to first token; among equals the least loaded, then the first."""

    def __init__(self, limit_ns: int | None, tiers: bool) -> None:
        self._tiers = tiers
        self._limit_ns = limit_ns

    def __call__(self, request: Request, pool: PoolView) -> int:
        """Return the instance of the lowest prediction, or of the highest within the limit."""
        times_ns, loads, limit_ns = predicted_ttft(request, pool, self._tiers), pool.outstanding, self._limit_ns
        if limit_ns is not None:
            within = [(-time_ns, loads[i], i) for i, time_ns in enumerate(times_ns) if time_ns <= limit_ns]
            if within:
                return min(within)[2]
        return min(zip(times_ns, loads, range(len(loads)), strict=True))[2]


def slo_aware(parameters: SLOAware, place: Place) -> Router:
    """Return a router by predicted time to first token."""
    return BySLO((parameters.ttft or place.ttft_ns) if parameters.choose == "least_slack" else None, parameters.tiers)


class ByCost:
    """Chooses the cheapest that is predicted to meet the objectives; among equals the fastest."""

    def __init__(self, ttft_ns: int | None, tpot_ns: int | None, tiers: bool) -> None:
        self._tiers = tiers
        self._ttft_ns = ttft_ns
        self._tpot_ns = tpot_ns

    def __call__(self, request: Request, pool: PoolView) -> int:
        """Return the instance of the lowest price among those that meet, or of the lowest prediction."""
        times_ns, loads, engines = predicted_ttft(request, pool, self._tiers), pool.outstanding, pool.engines
        limit_ns = self._ttft_ns
        ranked = sorted((engines[i].price_per_h, time_ns, loads[i], i) for i, time_ns in enumerate(times_ns))
        for _, time_ns, _, index in ranked:
            if (limit_ns is None or time_ns <= limit_ns) and self._decodes_in_time(request, pool, index):
                return index
        return min(zip(times_ns, loads, range(len(loads)), strict=True))[2]

    def _decodes_in_time(self, request: Request, pool: PoolView, index: int) -> bool:
        """Return whether a decode step is within the objective with all that is outstanding and the request."""
        if self._tpot_ns is None:
            return True
        step_ns = pool.engines[index].step_ns
        return step_ns(pool.outstanding[index] + 1, pool.tokens[index] + request.prompt_tokens) <= self._tpot_ns


def cost_aware(parameters: CostAware, place: Place) -> Router:
    """Return a router by price."""
    return ByCost(parameters.ttft or place.ttft_ns, parameters.tpot or place.tpot_ns, parameters.tiers)
