"""The `network:` and `faults:` of a scenario: how bytes are shared and routed, and what breaks when."""

from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from simulator.network.routing import ROUTINGS
from simulator.network.transport import TRANSPORTS
from simulator.strict import Duration, Fault, LocatedError, OneOf, PositiveDuration, Strict, one_of

if TYPE_CHECKING:
    Routing = OneOf
    Transport = OneOf
else:
    Transport = one_of("Transport", TRANSPORTS)
    Routing = one_of("Routing", {name: kind.parameters for name, kind in ROUTINGS.items()})

Share = Annotated[float, Field(ge=0, lt=1)]


class Background(Strict):
    """Traffic that is not simulated and takes a share of every link of a tier all along."""

    tier: str
    """Tier of the links, as `links.parquet` has it."""
    share: Share
    """Share of their capacity that is taken."""


class Network(Strict):
    """How the fabric carries bytes, the same for all of a run."""

    fidelity: Literal["flow", "load", "alpha_beta"] = "flow"
    """`flow`: every flow shares its links max-min fairly. `load`: what starts together is a step, bounded by its most
    loaded link, and steps do not see each other. `alpha_beta`: each flow or collective as if alone, in closed form."""
    routing: Routing | None = None
    """How paths are chosen; default: what the topology is built for."""
    transport: Transport = Transport.model_validate("plain")
    """What a message costs beside its bytes; it goes for every link, those within a node too."""
    background: tuple[Background, ...] = ()
    """Traffic that is not simulated."""
    collectives: str | None = None
    """Constants of collectives, by name or path; default: those of the topology's device."""

    @model_validator(mode="after")
    def _one_background_per_tier(self) -> Self:
        seen: set[str] = set()
        faults = []
        for index, item in enumerate(self.background):
            if item.tier in seen:
                faults.append(Fault(("background", index, "tier"), f"tier {item.tier!r} stands here twice"))
            seen.add(item.tier)
        if faults:
            raise LocatedError(*faults)
        return self

    @model_validator(mode="after")
    def _only_flows_know_of_background(self) -> Self:
        if self.background and self.fidelity != "flow":
            raise LocatedError(Fault(("background",), f"goes with `fidelity: flow`, not {self.fidelity}"))
        return self


def _positive_mean(mean_ns: int) -> int:
    if mean_ns < 1_000:
        raise ValueError("a mean time between failures is 1 us or longer")
    return mean_ns


class FaultSection(Strict):
    """Something of the network that breaks: at a given time by name, or at random, each of its kind by itself."""

    what: Literal["link", "nic", "switch", "node", "plane"]
    """What breaks; of a node all its devices' ways out, of a plane every switch."""
    name: str | None = None
    """Which one: a vertex, `a>b` (one direction) or `a<>b` (both; `#1` behind it: of parallel cables the second), the
    number of a node, a plane or lane."""
    at: Duration | None = None
    """When it breaks."""
    mtbf: Annotated[Duration, AfterValidator(_positive_mean)] | None = None
    """Mean time between failures of each one, exponential, in the place of `name` and `at`."""
    tier: str | None = None
    """With `mtbf`: only links or switches of this tier."""
    repair: PositiveDuration | None = None
    """Time until it works again; default: never. Needed with `mtbf`."""
    left: Share = 0.0
    """Share of the capacity that is left: zero is dead, more is a degraded link."""

    @model_validator(mode="after")
    def _by_name_or_at_random(self) -> Self:
        if self.mtbf is None:
            missing = [key for key in ("name", "at") if getattr(self, key) is None]
            if missing:
                raise ValueError(f"{' and '.join(missing)} needed, or `mtbf` for faults at random")
            if self.tier is not None:
                raise LocatedError(Fault(("tier",), "goes with `mtbf`; a fault by name needs none"))
            return self
        faults = [Fault((key,), "does not go with `mtbf`") for key in ("name", "at") if getattr(self, key) is not None]
        if self.repair is None:
            faults.append(Fault(("mtbf",), "needs `repair`, or all would be dead in the end"))
        if self.tier is not None and self.what not in ("link", "switch"):
            faults.append(Fault(("tier",), f"a {self.what} has no tier"))
        if faults:
            raise LocatedError(*faults)
        return self
