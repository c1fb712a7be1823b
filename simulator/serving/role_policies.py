"""When an engine goes from the prefill to the decode pool or back: pure functions of what is seen of both pools.

Sources: instance flip of TetriInfer (arXiv:2401.11181), mixed pool of Splitwise (ISCA 2024).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from pydantic import Field

from simulator.strict import Count, Strict


class PoolLoad(NamedTuple):
    """What a policy sees of a pool."""

    engines: int
    queued: int
    """Requests that wait: for their prefill, or for a place to decode."""
    running: int
    kv_share: float
    """KV blocks in use, of those of all its engines."""


class View(NamedTuple):
    """Both pools at one moment."""

    prefill: PoolLoad
    decode: PoolLoad


class Thresholds(Strict):
    """A pool takes an engine when it is above its limit and the other stays below its own without that engine."""

    queued: Count = 4
    """Requests that wait per prefill engine at most."""
    kv_share: float = Field(default=0.8, gt=0, le=1)
    """Share of the decode engines' KV blocks in use at most."""
    margin: float = Field(default=0.25, ge=0, lt=1)
    """By which share of its limit the pool that gives stays below it, so that engines do not go to and fro."""


def thresholds(limits: Thresholds, view: View) -> str | None:
    """Return the pool that gives an engine, or None."""
    prefill, decode = view
    left = 1 - limits.margin
    if prefill.queued > limits.queued * prefill.engines:
        if decode.engines > 1 and not decode.queued:
            after = decode.kv_share * decode.engines / (decode.engines - 1)
            return "decode" if after <= limits.kv_share * left else None
    elif (decode.kv_share > limits.kv_share or decode.queued) and prefill.engines > 1:
        return "prefill" if prefill.queued <= limits.queued * left * (prefill.engines - 1) else None
    return None


class Balance(Strict):
    """Engines in proportion to the requests of each pool, of which a prefill engine serves fewer at once."""

    prefill_requests: Count = 1
    """Requests of a prefill engine, waiting or running, that are as much load as"""
    decode_requests: Count = 32
    """so many of a decode engine."""
    margin: float = Field(default=0.75, ge=0.5)
    """Engines by which a pool must be off its share before one goes; half an engine is off by rounding alone."""


def balance(limits: Balance, view: View) -> str | None:
    """Return the pool that gives an engine, or None; no pool gives its last."""
    prefill, decode = view
    works = [
        (load.queued + load.running) / each
        for load, each in ((prefill, limits.prefill_requests), (decode, limits.decode_requests))
    ]
    if not sum(works):
        return None
    engines = prefill.engines + decode.engines
    off = prefill.engines - min(max(engines * works[0] / sum(works), 1), engines - 1)
    if off > limits.margin and prefill.engines > 1:
        return "prefill"
    return "decode" if off < -limits.margin and decode.engines > 1 else None


class SwitchPolicy(NamedTuple):
    """A registered policy: its parameters as they stand in a scenario, and the function over them."""

    parameters: type[Strict]
    decide: Callable[[Any, View], str | None]


SWITCHES: dict[str, SwitchPolicy] = {
    "thresholds": SwitchPolicy(Thresholds, thresholds),
    "balance": SwitchPolicy(Balance, balance),
}
