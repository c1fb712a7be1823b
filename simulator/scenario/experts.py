"""How tokens choose experts and where experts lie, for the engines of one pool.

Source: copies of popular experts and their balancing as DeepSeek-V3 deploys them (arXiv:2412.19437, 3.4), copies of the
shared expert on ranks of their own as CloudMatrix384 does (arXiv:2506.12708).
"""

from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, model_validator

from simulator.errors import InputError, Problem
from simulator.model.architecture import MixtureOfExperts
from simulator.model.expert_group import Group
from simulator.model.layout import Layout
from simulator.model.split import Held
from simulator.model.transformer import Transformer
from simulator.strict import Count, Fault, Fraction, LocatedError, OneOf, PositiveDuration, Strict, one_of


class Uniform(Strict):
    """All experts are chosen alike."""


class Zipf(Strict):
    """The expert of rank r is chosen in proportion to 1 / r^exponent, by every token at most."""

    exponent: Annotated[float, Field(ge=0, le=10)]


class PowerLaw(Strict):
    """Loads have the density x^-alpha between 1 and `largest`."""

    alpha: Annotated[float, Field(ge=0, le=10)]
    largest: Annotated[float, Field(gt=1, le=1e9)] = 200.0
    """Load of the most popular expert over that of the least popular one."""


class Measured(Strict):
    """Counts of a model's own routing, in Parquet or CSV."""

    file: str
    """Columns `layer`, `expert` and `tokens`, or `layer` and `expert_0`, `expert_1` ... of each token; `window` besides
    where popularity drifts: 0, 1, 2 ..."""
    interval: PositiveDuration | None = None
    """How long each window holds; the last one stays."""


if TYPE_CHECKING:
    Popularity = OneOf
else:
    Popularity = one_of("Popularity", {"uniform": Uniform, "zipf": Zipf, "power_law": PowerLaw, "measured": Measured})


class Drift(Strict):
    """Popularity that changes: at times some experts of each layer change places."""

    interval: PositiveDuration
    """Time between changes."""
    share: Fraction
    """Of each layer's experts, those that take part in a change."""


class Rebalance(Strict):
    """Placement that follows popularity: balanced anew by the tokens counted since the last time."""

    interval: PositiveDuration
    """Time between two; one that is due while weights still move is left out."""
    moves: Literal["fabric", "free"] = "fabric"
    """Whether weights cross the network, while engines go on with the old placement, or are there at once."""


class Experts(Strict):
    """Popularity and placement of the experts of a pool's engines."""

    popularity: Popularity = Popularity.model_validate("uniform")
    """How tokens choose; each layer has its own order of experts, the same in all pools."""
    drift: Drift | None = None
    """How popularity changes over time."""
    placement: Literal["contiguous", "eplb"] = "contiguous"
    """Experts in order, rank by rank; or balanced by popularity, groups of experts on nodes where they divide."""
    redundant: Annotated[int, Field(ge=0, le=10**6)] = 0
    """Copies of experts, in each layer, beside one of each."""
    shared_copies: Annotated[int, Field(ge=0, le=10**6)] = 0
    """Copies of the shared expert, each in the place of a routed one on a rank; 0: every rank has it beside them."""
    nodes_per_token: Count | None = None
    """Nodes among which the experts of a token lie, by the router (DeepSeek-V3: 4); default: any."""
    rebalance: Rebalance | None = None
    """When experts are placed anew; goes with `placement: eplb`."""

    @model_validator(mode="after")
    def _parts_go_together(self) -> Self:
        faults = []
        if self.rebalance is not None and self.placement != "eplb":
            faults.append(Fault(("rebalance",), "goes with `placement: eplb`"))
        measured = self.popularity.parameters if self.popularity.name == "measured" else None
        if self.drift is not None and measured is not None and measured.interval is not None:
            faults.append(Fault(("drift",), "measured windows drift by themselves"))
        if self.shared_copies and self.nodes_per_token is not None:
            faults.append(Fault(("shared_copies",), "go to every node; `nodes_per_token` does not go with them"))
        if faults:
            raise LocatedError(*faults)
        return self


def held(section: Experts | None, model: Transformer, layout: Layout) -> Held | None:
    """Return the experts that a rank holds, for the memory ledger; None where no section says so.

    Raises InputError when copies do not come out even, or there is no such expert.
    """
    if section is None or model.experts is None or layout.expert == 1:
        return None
    return Held(expert_group(section, model.experts, layout, 1).slots, not apart(section, layout))


def apart(section: Experts, layout: Layout) -> bool:
    """Return whether copies of the shared expert are on ranks of their own: not when each rank has one."""
    return 0 < section.shared_copies != layout.expert


def expert_group(section: Experts, part: MixtureOfExperts, layout: Layout, nodes: int) -> Group:
    """Return ranks and slots of an expert-parallel group; raises InputError when experts do not come out even."""
    ranks = layout.expert
    shared = section.shared_copies
    if shared and (not part.shared or part.shared_width != part.intermediate):
        what = "copies of the shared expert need a model with one, as wide as a routed expert"
        raise InputError(Problem(what, path="experts.shared_copies", allowed="0"))
    if shared > ranks:
        what = f"{shared} copies of the shared expert for {ranks} expert-parallel ranks"
        raise InputError(Problem(what, path="experts.shared_copies", allowed=f"at most {ranks}"))
    shared = shared if apart(section, layout) else 0
    total = part.experts + section.redundant + shared
    if total % ranks:
        parts = f"{part.experts} experts, {section.redundant} redundant and {shared} shared copies"
        what = f"{parts} do not come out even on {ranks} expert-parallel ranks"
        least = -(part.experts + shared) % ranks
        raise InputError(Problem(what, path="experts.redundant", allowed=f"{least}, or that and a multiple of {ranks}"))
    return Group(ranks, total // ranks, nodes)
