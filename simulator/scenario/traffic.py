"""The `traffic:` of a scenario: flows over the network alone, listed in a file or drawn as a pattern."""

from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, model_validator

from simulator.strict import Count, Fault, LocatedError, OneOf, Size, Strict, one_of

if TYPE_CHECKING:
    from simulator.workload import flows

PositiveNumber = Annotated[float, Field(gt=0)]


class ConstantSize(Strict):
    """Every flow of the same size."""

    value: Size

    def law(self) -> "flows.Sizes":
        """Return the law of sizes."""
        from simulator.workload.flows import Constant

        return Constant(self.value)


class LognormalSize(Strict):
    """A lognormal, clipped to 1 byte and `max`."""

    median: Size
    """Median size."""
    sigma: Annotated[float, Field(ge=0, le=20)]
    """Standard deviation of the natural logarithm."""
    max: Size
    """Largest: what would be larger becomes exactly this."""

    @model_validator(mode="after")
    def _median_below_max(self) -> Self:
        if not 0 < self.median <= self.max:
            raise LocatedError(Fault(("median",), "the median must be more than zero and at most `max`"))
        return self

    def law(self) -> "flows.Sizes":
        """Return the law of sizes."""
        from simulator.workload.flows import Lognormal

        return Lognormal(self.median, self.sigma, self.max)


class ParetoSize(Strict):
    """A Pareto law between `min` and `max`: heavy-tailed for a shape between 1 and 2."""

    shape: PositiveNumber
    """Exponent of the tail."""
    min: Size
    """Smallest flow."""
    max: Size
    """Largest flow."""

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if not 0 < self.min < self.max:
            raise LocatedError(Fault(("max",), "`max` must be larger than `min`, and `min` more than zero"))
        return self

    def law(self) -> "flows.Sizes":
        """Return the law of sizes."""
        from simulator.workload.flows import Pareto

        return Pareto(self.shape, self.min, self.max)


if TYPE_CHECKING:
    Sizes = OneOf
else:
    Sizes = one_of("Sizes", {"constant": ConstantSize, "lognormal": LognormalSize, "pareto": ParetoSize})


class PoissonFlows(Strict):
    """Flows between random pairs of devices, in a Poisson process."""

    flows: Count
    """How many."""
    load: PositiveNumber
    """Bytes offered over what the devices' network links can take in; 1 is all of it."""
    sizes: Sizes
    """Law of the sizes."""


class Permutation(Strict):
    """Every device sends to another one, all at once, along a random cycle through all of them."""

    bytes: Size
    """Size of each flow."""


class Incast(Strict):
    """Many devices send to one, all at once."""

    bytes: Size
    """Size of each flow."""
    sources: Count
    """How many send."""
    target: Annotated[int, Field(ge=0)] = 0
    """Index of the device that receives."""


class AllToAll(Strict):
    """Every device sends to every other one, all at once."""

    bytes: Size
    """Size of each flow."""


if TYPE_CHECKING:
    Pattern = OneOf
else:
    Pattern = one_of(
        "Pattern", {"poisson": PoissonFlows, "permutation": Permutation, "incast": Incast, "all_to_all": AllToAll}
    )


class Traffic(Strict):
    """Flows over the network, and what happens to its links meanwhile."""

    flows: str | None = None
    """Path of a CSV of flows: flow_id, src, dst, bytes, start_s, and path (names joined by `>`; empty: routed)."""
    pattern: Pattern | None = None
    """Flows drawn instead."""
    changes: str | None = None
    """Path of a CSV of capacities that change: time_s, src, dst, bandwidth_Bps; zero is a dead link."""
    on_dead_link: Literal["fail", "stall", "reroute"] = "fail"
    """What becomes of a flow whose path dies: it fails, waits for the repair, or takes another path from there on."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.flows is None) == (self.pattern is None):
            raise ValueError("exactly one of flows and pattern is needed")
        return self
