"""Collectives and expert exchanges as they stand in a scenario: what is run, by which groups, when and how often."""

from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, model_validator

from simulator.network.collectives_constants import Protocol
from simulator.strict import Count, Duration, Fault, LocatedError, OneOf, Size, Strict, one_of

PositiveNumber = Annotated[float, Field(gt=0)]


class Collective(Strict):
    """A collective; `bytes` is counted as by nccl-tests: the buffer of one rank."""

    bytes: Size
    """Size: of an all-gather the output of a rank, of a reduce-scatter its input, of an all-to-all what it sends."""
    protocol: Protocol | None = None
    """Protocol; default: that of the least time."""


class AllReduce(Collective):
    """Every rank gets the sum of all ranks' buffers."""

    algorithm: (
        Literal["ring", "tree", "in_switch", "halving_doubling", "hierarchical", "one_shot", "two_shot"] | None
    ) = None
    """Algorithm; default: that of the least time among what a library has."""


class ReduceScatter(Collective):
    """Every rank gets its part of the sum."""

    algorithm: Literal["ring", "direct", "hierarchical"] | None = None
    """Algorithm; default: that of the least time among what a library has."""


class AllGather(Collective):
    """Every rank gets every other's part."""

    algorithm: Literal["ring", "direct", "hierarchical"] | None = None
    """Algorithm; default: that of the least time among what a library has."""


class Broadcast(Collective):
    """Every rank gets the first one's buffer."""

    algorithm: Literal["ring"] | None = None
    """Algorithm; default: that of the least time among what a library has."""


class AllToAll(Collective):
    """Every rank sends a part of its buffer to each rank."""

    algorithm: Literal["direct", "hierarchical", "pxn"] | None = None
    """Algorithm; default: that of the least time among what a library has."""


class SendReceive(Collective):
    """One rank sends to the other of its group of two."""

    algorithm: Literal["direct"] | None = None
    """Algorithm."""


class ZipfSkew(Strict):
    """Popularity of the k-th expert in proportion to k to the power of minus the exponent."""

    exponent: Annotated[float, Field(ge=0, le=10)]
    """Zero: all alike."""


class ExpertExchange(Strict):
    """What the ranks of an expert-parallel group send each other for one layer of a mixture of experts."""

    tokens: Count
    """Tokens of each rank."""
    experts: Count
    """Experts of the layer."""
    top_k: Count
    """Experts of each token."""
    hidden: Count
    """Values of a token."""
    value_bits: Literal[4, 8, 16, 32] = 16
    """Bits of a value on the wire."""
    scale_block: Annotated[int, Field(ge=0)] = 0
    """Values that share a scale of four bytes; zero: no scales."""
    node_limit: Count | None = None
    """Nodes that the experts of one token may stand on at most; default: all."""
    placement: tuple[Annotated[int, Field(ge=0)], ...] | None = None
    """Rank of the group that holds each expert; default: equal blocks over the ranks."""
    skew: ZipfSkew | None = None
    """How unequally loaded the experts are; default: all alike."""
    loads: tuple[Annotated[float, Field(ge=0)], ...] | None = None
    """Relative load of each expert, such as measured counts, in the place of `skew`."""
    form: Literal["low_latency", "high_throughput"] = "low_latency"
    """One copy per chosen expert straight to its rank, or one per node and from there one per rank."""
    processors: Count | None = None
    """Streaming multiprocessors that move the copies; default: they do not limit."""
    sampled: bool = False
    """Whether every token draws its experts (with the scenario's seed), in the place of expected numbers."""

    @model_validator(mode="after")
    def _top_k_of_experts(self) -> Self:
        if self.top_k > self.experts:
            what = f"{self.top_k} experts per token of {self.experts} experts"
            raise LocatedError(Fault(("top_k",), what))
        lists = {"placement": self.placement, "loads": self.loads}
        faults = [
            Fault((name,), f"{len(given)} values for {self.experts} experts")
            for name, given in lists.items()
            if given is not None and len(given) != self.experts
        ]
        if self.skew is not None and self.loads is not None:
            faults.append(Fault(("loads",), "excludes `skew`"))
        if faults:
            raise LocatedError(*faults)
        return self


if TYPE_CHECKING:
    Run = OneOf
else:
    Run = one_of(
        "Run",
        {
            "all_reduce": AllReduce,
            "reduce_scatter": ReduceScatter,
            "all_gather": AllGather,
            "broadcast": Broadcast,
            "all_to_all": AllToAll,
            "send_receive": SendReceive,
            "dispatch": ExpertExchange,
            "combine": ExpertExchange,
        },
    )


class CollectiveRun(Strict):
    """One collective or expert exchange, by one group of ranks or by many equal groups at once."""

    run: Run
    """What is run."""
    devices: Count | None = None
    """How many devices take part, the first ones of the topology; default: all."""
    group: Count | None = None
    """Ranks of one group; default: all that take part are one group."""
    stride: Count = 1
    """Distance between neighbours of a group: 1 for tensor parallel groups, their size for data parallel ones."""
    start: Duration = 0
    """When the first one starts."""
    repeat: Count = 1
    """How many times, one after another."""
    gap: Duration = 0
    """Time between the end of one and the start of the next."""
    lane: Annotated[int, Field(ge=0, le=15)] = 0
    """Priority lane."""
    sharing: Literal["flows", "background"] = "flows"
    """`background`: its flows are not simulated; it takes its closed form's time and, of each link, the share that this
    needs, which others then lack. Goes with `fidelity: flow`."""
