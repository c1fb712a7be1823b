"""The constants of collectives on one device: what each algorithm and protocol adds to the bytes over the links.

Source: each file of `topologies/collectives` names the measured tables of its fitted numbers and whence the others are.
"""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from simulator import catalog
from simulator.strict import Count, Duration, Size, Strict

KIND = "topologies/collectives"

Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(gt=0, le=1)]
Family = Literal["ring", "tree", "direct", "send", "in_switch", "one_shot", "two_shot"]
Protocol = Literal["LL", "LL128", "Simple"]


class Kernel(Strict):
    """One algorithm under one protocol: `base + hops x hop + bytes / (share x link)`."""

    base: Duration
    """Time of a collective that moves nothing: launch, synchronisation, flags."""
    local_hop: Duration
    """One step to a rank of the same node."""
    network_hop: Duration = 0
    """One step to another node, when that is more than the latency of the path."""
    local_share: Share
    """Share of a device's link to its node that the payload reaches."""
    network_share: Share = 1.0
    """Share of the NIC's rate that the payload reaches."""
    own_share: Positive | None = None
    """Rate at which a rank copies or reduces its own part, as a multiple of its link; none: no time."""

    @model_validator(mode="after")
    def _own_part_is_no_slower_than_the_link(self) -> Self:
        if self.own_share is not None and self.own_share < self.local_share:
            raise ValueError("own_share is less than local_share: more ranks would then be faster")
        return self


class Phase(Strict):
    """One direction of an expert exchange; see `simulator.network.dispatch.exchange_ns`."""

    base: Duration
    """Time of an exchange of next to nothing within one node."""
    network_base: Duration
    """What the first other node adds."""
    rank_time: Duration = 0
    """What each rank of the group adds: its counts and flags."""
    measured_ranks: Count | None = None
    """Ranks of the largest group that was measured: those beyond it add nothing. None: each adds as much."""
    most_bytes: Size | None = None
    """Largest message of a rank that goes this way where there is another form; none: any does."""
    local_share: Share
    """Share of a device's link to its node that the payload reaches."""
    network_share: Share = 1.0
    """Share of the NIC's rate that the payload reaches."""
    copy_processor_time: Annotated[float, Field(ge=0)] = 0.0
    """Nanoseconds that one processor spends on each copy of a token."""
    processor_share: Positive | None = None
    """Payload that one processor moves, as a share of the device's link; none: processors never limit."""

    def start_ns(self, ranks: int, nodes: int) -> int:
        """Return the time beside the bytes in a group of so many ranks on so many nodes."""
        counted = ranks if self.measured_ranks is None else min(ranks, self.measured_ranks)
        return self.base + (self.network_base if nodes > 1 else 0) + self.rank_time * counted


class Exchange(Strict):
    """Dispatch and combine of one form."""

    dispatch: Phase
    combine: Phase


class CollectiveConstants(Strict):
    """All constants of one device; `sources` says where each group of numbers is from."""

    device: str
    like: str | None = None
    """Constants whose kernels, and forms of expert exchange, stand for those that were not measured."""
    kernels: dict[Family, dict[Protocol, Kernel]]
    """By algorithm and protocol; a tree without its own takes the ring's, a send those of direct."""
    engine_limit: Size = 0
    """Messages smaller than this go by an engine's own one-shot or two-shot all-reduce where that is asked for."""
    low_latency: Exchange | None = None
    high_throughput: Exchange | None = None
    sources: dict[str, str]


def load_constants(name: str, beside: Path | None = None) -> CollectiveConstants:
    """Return the constants `name` of `topologies/collectives`, or of a path relative to `beside`.

    Raises InputError with every fault of the file, or with the shipped names when there is none of this name.
    """
    return _lent(catalog.load(KIND, name, CollectiveConstants, beside))


def _lent(constants: CollectiveConstants) -> CollectiveConstants:
    """Return constants with what they borrow."""
    if constants.like is None:
        return constants
    lender = load_constants(constants.like)
    borrowed = {"kernels": {**lender.kernels, **constants.kernels}}
    borrowed |= {
        name: getattr(constants, name) or getattr(lender, name)
        for name in ("engine_limit", "low_latency", "high_throughput")
    }
    return constants.model_copy(update=borrowed)
