"""The `traffic:` of a scenario: flows over the network alone, listed in a file or here, or drawn; and collectives."""

from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, model_validator

from simulator.scenario.collective import CollectiveRun
from simulator.strict import Bandwidth, Count, Duration, Fault, LocatedError, OneOf, Size, Strict, one_of

if TYPE_CHECKING:
    from simulator.workload import flows

PositiveNumber = Annotated[float, Field(gt=0)]
Lane = Annotated[int, Field(ge=0, le=15)]


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


class Transfer(Strict):
    """One flow between two ends, each the name of a node of the topology or the index of a device."""

    source: str | int
    """Where it comes from."""
    target: str | int
    """Where it goes to."""
    bytes: Size
    """Size."""
    start: Duration = 0
    """When it starts."""
    via: tuple[str | int, ...] = ()
    """Ends that it passes in this order, such as the CPUs that stage it; it flows through all legs at once."""
    plane: str | None = None
    """Plane or lane that carries each leg that it joins; other legs go by the first plane that joins their ends."""
    operation: str | None = None
    """What the topology publishes the rate of, such as `read` or `write`; it must know both ends' plane."""
    lane: Lane | None = None
    """Priority lane; default: that of `traffic`."""
    weight: PositiveNumber = 1.0
    """Multiple of a flow's fair share."""
    cap: Bandwidth | None = None
    """Rate at most."""


class Traffic(Strict):
    """Flows and collectives over the network, and what happens to its links meanwhile."""

    flows: str | None = None
    """Path of a CSV of flows: flow_id, src, dst, bytes, start_s, and path (names joined by `>`; empty: routed); columns
    plane, lane, weight and cap_Bps may follow."""
    pattern: Pattern | None = None
    """Flows drawn instead."""
    transfers: tuple[Transfer, ...] = ()
    """Flows written down here; they go beside the others, numbered after those of a file and before a pattern's."""
    collectives: tuple[CollectiveRun, ...] = ()
    """Collectives and expert exchanges."""
    changes: str | None = None
    """Path of a CSV of capacities that change: time_s, src, dst, bandwidth_Bps; zero is a dead link."""
    on_dead_link: Literal["fail", "stall", "reroute"] = "fail"
    """What becomes of a flow whose path dies: it fails, waits for the repair, or takes another path from there on."""
    lane: Lane = 0
    """Priority lane of flows that name none: strictly, a lane has what those of lower number leave."""

    @model_validator(mode="after")
    def _something_flows(self) -> Self:
        if self.flows is not None and self.pattern is not None:
            raise ValueError("flows and pattern exclude each other")
        if self.flows is None and self.pattern is None and not self.transfers and not self.collectives:
            raise ValueError("at least one of flows, pattern, transfers and collectives is needed")
        return self
