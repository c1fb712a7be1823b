"""How KV caches go from prefill to decode engines, as a scenario says it: what leaves when, on whose demand, over what.

Sources: whole caches after prefill DistServe (OSDI 2024), layer by layer Splitwise (ISCA 2024), reservation on arrival
CloudMatrix384 (arXiv:2506.12708).
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from simulator.strict import Count, Duration, Fault, LocatedError, Strict

Reserve = Literal["before_prefill", "on_arrival", "on_prefill_start", "on_prefill_end"]


class Fallback(Strict):
    """When a prefill engine decodes a request itself, as long as it has a seat and its whole KV cache could hold it."""

    after: Duration | None = None
    """The request has waited so long, since its prefill ended, for a place at a decode engine."""
    waiting: Count | None = None
    """Its prefill ends, it has no place, and so many requests already wait for one."""

    @model_validator(mode="after")
    def _one_of_them(self) -> Self:
        if self.after is None and self.waiting is None:
            raise ValueError("a fallback needs `after`, `waiting` or both")
        return self


class TransferRules(Strict):
    """How KV caches move from prefill to decode engines."""

    mode: Literal["whole", "layerwise"] = "whole"
    """All of a cache when its prefill has ended, or each group of layers as soon as it is computed."""
    direction: Literal["push", "pull"] = "push"
    """The source writes, or the target is told and reads: a round trip more before the bytes, and a message after them
    until which the source holds its blocks."""
    reserve: Reserve | None = None
    """When a place at a decode engine is asked for; `before_prefill` has the request wait for it before it is routed to
    a prefill engine. Default: `on_prefill_end`, of `layerwise` `on_prefill_start`."""
    layers_per_message: Count | None = None
    """Layers that leave together when `layerwise`; default: 8."""
    plane: str | None = None
    """The plane of the topology, or a lane of one, that carries the caches; default: as `network.routing` says."""
    lane: Annotated[int, Field(ge=0)] = 0
    """Their priority on every link: 0 comes first."""
    fallback: Fallback | None = None
    """When a prefill engine decodes a request itself; default: never."""

    @model_validator(mode="after")
    def _layers_need_a_place(self) -> Self:
        if self.mode == "layerwise" and self.reserve == "on_prefill_end":
            what = "layers that leave during prefill need a place before it ends"
            raise LocatedError(Fault(("reserve",), what, "before_prefill, on_arrival, on_prefill_start"))
        if self.mode == "whole" and self.layers_per_message is not None:
            raise LocatedError(Fault(("layers_per_message",), "only `mode: layerwise` sends by layers"))
        return self

    @property
    def message_layers(self) -> int | None:
        """Layers that leave together, the default resolved; None: all."""
        return (self.layers_per_message or 8) if self.mode == "layerwise" else None

    @property
    def reserves(self) -> Reserve:
        """When a place is asked for, the default resolved."""
        return self.reserve or ("on_prefill_start" if self.mode == "layerwise" else "on_prefill_end")
