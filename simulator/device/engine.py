"""What an engine adds to the kernels of a step: time of its host, launches to wait for, streams that overlap.

Source: a step on a slow host lasts as long as its chain of launches (the launch-bound regime of eager execution; a
captured CUDA graph is one launch); two micro-batches hide the expert exchange of one behind the other's arithmetic in
turns (DeepSeek-V3, arXiv:2412.19437, 3.4; SGLang's two-batch overlap), or attention of one behind the experts of the
other, each on cores of its own (CloudMatrix384, arXiv:2506.12708).
"""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from simulator.strict import Duration, Fault, LocatedError, Strict


class TwoBatches(Strict):
    """Two micro-batches of a step run on two streams: one computes while the other's tokens travel to their experts."""

    processor_share: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the processors that the exchange takes from arithmetic while it runs (DeepSeek-V3: 20 of 132)."""
    interference: Annotated[float, Field(ge=0)] = 0.0
    """By which both streams slow down while they share the memory: 0.1 is ten percent."""
    attention_share: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Share of the processors of a stream that computes all but routed experts; the other stream has the rest, for the
    experts and their exchange (CloudMatrix384's decode: 2/3). Default: experts are in the stream that computes."""

    @model_validator(mode="after")
    def _one_division(self) -> Self:
        if self.attention_share is not None and self.processor_share:
            what = "excludes `processor_share`: the exchange is in a stream with processors of its own"
            raise LocatedError(Fault(("attention_share",), what))
        return self


class RooflineParameters(Strict):
    """What a step needs beyond model, layout and data sheet: the engine around the kernels."""

    step_overhead: Duration = 0
    """Time that the engine adds to every step: scheduling, input preparation, all that the device waits for."""
    launch: Duration = 0
    """Time of the host to launch one kernel: a step that is no captured graph lasts at least one for each kernel."""
    graphs: Literal["decode", "all", "none"] = "decode"
    """Steps that are captured as one graph and launched at once."""
    overlap: TwoBatches | None = None
    """Two micro-batches on two streams; goes with expert-parallel layouts over data-parallel ranks."""

    def gap(self, ns: float, experts_elsewhere: bool = False) -> tuple[str, str]:
        """Return what a step lasts longer, or shorter, than its kernels one after the other, and what bounds that."""
        if experts_elsewhere:
            return "links and experts on servers" if ns > 0 else "hidden behind the other micro-batches", "elsewhere"
        if self.overlap is None:
            return "waiting for launches", "host"
        return "hidden behind the other micro-batch" if ns < 0 else "two smaller micro-batches", "overlap"

    def is_captured(self, has_prompts: bool) -> bool:
        """Return whether a step is launched as one graph."""
        return self.graphs == "all" or (self.graphs == "decode" and not has_prompts)


def alternating_ns(
    own_ns: Any, experts_ns: Any, dispatch_ns: Any, combine_ns: Any, layers: int, streams: TwoBatches
) -> Any:
    """Return the time of two micro-batches that take turns, from the times of one over all layers.

    Numbers, or arrays of as many steps. In each layer a micro-batch goes through all but its experts (a), dispatch (d),
    experts (e) and combine (c). While one computes the other's tokens travel, and both wait for the longer of the two:
    a beside c, a beside d, e beside d, e beside c. The first a and the last c have nothing beside them.
    """
    ends = _beside(own_ns, combine_ns, streams)
    pairs = (own_ns, dispatch_ns), (experts_ns, dispatch_ns), (experts_ns, combine_ns)
    return ends + sum(_beside(*pair, streams) for pair in pairs) + (own_ns + combine_ns - ends) / layers


def two_streams_ns(one_ns: Any, other_ns: Any, layers: int, streams: TwoBatches) -> Any:
    """Return the time of two micro-batches that each go through two streams layer by layer; numbers or arrays.

    The first layer of the first micro-batch in one stream, and the last of the second in the other, have nothing to
    hide behind; in between the longer of the two sets the pace.
    """
    import numpy as np

    return 2 * _beside(one_ns, other_ns, streams) + np.minimum(one_ns, other_ns) / layers


def _beside(compute_ns: Any, exchange_ns: Any, streams: TwoBatches) -> Any:
    """Return the time of arithmetic and an exchange that begin together.

    While the exchange runs, arithmetic has the other processors; the rest of it runs at full speed.
    """
    import numpy as np

    slow, left = 1 + streams.interference, 1 - streams.processor_share
    compute, exchange = compute_ns * slow, exchange_ns * slow
    shared = np.minimum(exchange, compute / left)
    return np.maximum(shared + np.maximum(0.0, compute - shared * left), exchange)
