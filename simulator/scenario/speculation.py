"""The section on speculative decoding of a pool: what drafts, how many tokens, how many of them turn out right."""

from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import BeforeValidator, Field, model_validator

from simulator.device.cost import COSTS, Cost, Subject
from simulator.device.memory import Beside
from simulator.device.speculation import SpeculativeCost
from simulator.model.layout import Layout
from simulator.model.precision import Precision
from simulator.model.prediction import module_weight_bytes, prediction_module
from simulator.model.split import kv_bytes_per_token_per_rank, weight_bytes_per_rank
from simulator.model.transformer import Transformer, load_model
from simulator.strict import Count, Fault, LocatedError, OneOf, Strict, one_of


class DraftModel(Strict):
    """A smaller model on the same devices, split as the model and in its formats."""

    name: str
    """Name of a shipped model card, or the path of one's own."""


class Prediction(Strict):
    """The model's own layer of multi-token prediction, used again for every further token."""


class Ngram(Strict):
    """Tokens looked up in what was said before: drafting takes no time and no memory."""


if TYPE_CHECKING:
    Draft = OneOf
else:
    Draft = one_of("Draft", {"mtp": Prediction, "model": DraftModel, "ngram": Ngram})


def _listed(value: Any) -> Any:
    return (value,) if isinstance(value, int | float) else value


class SpeculationSection(Strict):
    """Speculative decoding: tokens are drafted, and the model verifies them together with the next of its own."""

    tokens: Count = 1
    """Tokens drafted for each request in every iteration."""
    acceptance: Annotated[
        tuple[Annotated[float, Field(ge=0, le=1)], ...], BeforeValidator(_listed), Field(min_length=1)
    ]
    """Probability that a drafted token is right when all before it were: one number, or one for each place."""
    draft: Draft
    """What drafts: mtp, ngram, or {model: {name: ...}}."""

    @model_validator(mode="after")
    def _as_many(self) -> Self:
        if len(self.acceptance) not in (1, self.tokens):
            what = f"{len(self.acceptance)} probabilities for {self.tokens} drafted tokens"
            raise LocatedError(Fault(("acceptance",), what, f"one, or {self.tokens}"))
        return self

    @property
    def places(self) -> tuple[float, ...]:
        """The probability of each drafted token."""
        return self.acceptance if len(self.acceptance) == self.tokens else self.acceptance * self.tokens

    def model(self, target: Transformer) -> Transformer | None:
        """Return what drafts for a model, if it is a model."""
        if self.draft.name == "ngram":
            return None
        return prediction_module(target) if self.draft.name == "mtp" else load_model(self.draft.parameters.name)

    def beside(self, target: Transformer, layout: Layout, precision: Precision) -> Beside:
        """Return the memory of each device that drafting takes."""
        model = self.model(target)
        if model is None:
            return Beside()
        weigh = module_weight_bytes if self.draft.name == "mtp" else weight_bytes_per_rank
        return Beside(weigh(model, layout, precision), kv_bytes_per_token_per_rank(model, layout, precision))


def cost_of(choice: OneOf, of: Subject, speculation: SpeculationSection | None) -> Cost:
    """Return the cost of a pool's steps; the passes of what drafts belong to one step, whose overhead comes once."""
    make = COSTS[choice.name][1]
    if speculation is None:
        return make(choice.parameters, of)
    target = make(choice.parameters, of._replace(queries=speculation.tokens + 1))
    model, draft = speculation.model(of.model), None
    if model is not None:
        parameters = choice.parameters.model_copy(update={"step_overhead": 0.0})
        draft = make(parameters, of._replace(model=model, balance=None, predicts=speculation.draft.name == "mtp"))
    return SpeculativeCost(target, draft, speculation.tokens)
