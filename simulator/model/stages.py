"""A model cut into pipeline stages: which layers are where, as cards of their own, and the parameters of each rank.

Source: contiguous stages as Megatron-LM places them (arXiv:2104.04473), chunk c of a rank holding the layers of virtual
stage c p + rank; encoder and vision tower stay on the first.
"""

from typing import NamedTuple

from simulator.errors import InputError, Problem
from simulator.model.architecture import GroupedAttention
from simulator.model.layout import Layout
from simulator.model.split import vocabulary_per_rank, weights_per_rank, windowed_among
from simulator.model.transformer import RELATIVE_BUCKETS, Transformer


class Slice(NamedTuple):
    """The decoder layers of one virtual stage as a card of their own, and whether embedding and head are here too."""

    model: Transformer
    position: int
    """Place along the way of a micro-batch."""
    rank: int
    """Pipeline rank that holds it."""
    first: bool
    last: bool


class Parameters(NamedTuple):
    """Parameters on one device: those every data-parallel rank has, and those of routed experts."""

    dense: int
    experts: int

    def __add__(self, other: object) -> "Parameters":
        assert isinstance(other, Parameters)
        return Parameters(self.dense + other.dense, self.experts + other.experts)

    @property
    def total(self) -> int:
        """All of them."""
        return self.dense + self.experts


def has_experts(model: Transformer, layer: int) -> bool:
    """Return whether a decoder layer has experts."""
    part = model.experts
    return part is not None and part.among(layer, layer + 1, part.layers, model.layers) > 0


def has_window(model: Transformer, layer: int) -> bool:
    """Return whether a decoder layer has the window; they are spread evenly."""
    return windowed_among(model, (layer, layer + 1)) > 0


def layer_counts(model: Transformer, stages: int, given: tuple[int, ...] | None = None) -> tuple[int, ...]:
    """Return the decoder layers of each virtual stage: as given, or evenly with the rest on the first ones.

    Raises InputError when there are fewer layers than stages, or those given do not add up.
    """
    counts = given or tuple((model.layers - i - 1) // stages + 1 for i in range(stages))
    if len(counts) != stages or sum(counts) != model.layers or min(counts) < 1:
        what = f"{model.layers} layers of {model.name} do not fill {stages} stages as {', '.join(map(str, counts))}"
        raise InputError(Problem(what, path="layers", allowed=f"{stages} numbers of at least 1, {model.layers} in all"))
    return counts


def _card(model: Transformer, **changes: object) -> Transformer:
    """Return the card with other parts; made anew, for what it has counted does not hold for them."""
    return Transformer(**{name: getattr(model, name) for name in type(model).model_fields} | changes)


def slices(model: Transformer, pipeline: int, chunks: int = 1, counts: tuple[int, ...] | None = None) -> list[Slice]:
    """Return the virtual stages in the order in which a micro-batch passes them."""
    cut, start = [], 0
    stages = pipeline * chunks
    for index, count in enumerate(layer_counts(model, stages, counts)):
        own = range(start, start + count)
        part = layers_of(model, count, sum(has_experts(model, i) for i in own), sum(has_window(model, i) for i in own))
        cut.append(Slice(part, index, index % pipeline, index == 0, index == stages - 1))
        start += count
    return cut


def layers_of(model: Transformer, layers: int, with_experts: int, with_window: int = 0) -> Transformer:
    """Return a card of some of a model's layers, without encoder and vision tower."""
    attention = model.attention
    if isinstance(attention, GroupedAttention) and attention.window is not None:
        window = attention.window.model_copy(update={"layers": with_window}) if with_window else None
        attention = attention.model_copy(update={"window": window})
    experts = model.experts
    if experts is not None:
        experts = experts.model_copy(update={"layers": with_experts, "every": 1}) if with_experts else None
    return _card(model, layers=layers, attention=attention, experts=experts, encoder=None, vision=None, draft_layers=0)


def encoder_of(model: Transformer) -> Transformer:
    """Return the encoder as a card of its own."""
    assert model.encoder is not None
    return layers_of(model, model.encoder.layers, model.encoder.expert_layers)


def tower_of(model: Transformer) -> Transformer:
    """Return the layers of the vision tower as a card of their own."""
    tower = model.vision
    assert tower is not None
    return Transformer(
        name=f"{model.name} vision",
        layers=tower.layers,
        hidden=tower.hidden,
        attention=GroupedAttention(heads=tower.heads, kv_heads=tower.heads, head_dim=tower.hidden // tower.heads),
        intermediate=tower.intermediate,
        gated=False,
        norm="layer",
        positions="alibi",  # learned ones are added once; no kernel per layer turns them
        vocabulary=1,
        max_context=tower.tokens + 1,
        sources={},
    )


def parameters_of(part: Slice, model: Transformer, layout: Layout) -> Parameters:
    """Return the parameters of one virtual stage on its fullest rank; tied tables are copied to the last stage."""
    alone = layout.model_copy(update={"pipeline": 1})
    weights = weights_per_rank(part.model, alone)
    norms = (
        weights.norms - model.norm_width * (not part.last) - model.norm_width * model.embedding_norm * (not part.first)
    )
    tables = part.first + (part.last and not (model.tied_embeddings and part.first))
    relative = RELATIVE_BUCKETS * (model.attention.heads // layout.tensor) if model.positions == "relative" else 0
    attention = weights.attention - relative  # the first stage has the only table of a stack
    dense = attention + weights.mlp + weights.shared + weights.routers + norms
    dense += vocabulary_per_rank(model, layout) if part.last and model.head_bias else 0
    dense += tables * vocabulary_per_rank(model, layout) * model.hidden
    experts = weights.experts
    if model.encoder is not None:  # cross-attention
        dense += part.model.layers * (attention // part.model.layers + model.norm_width)
    if part.first:
        dense += (model.position_rows or 0) * model.hidden
        if model.positions == "relative":
            dense += RELATIVE_BUCKETS * model.attention.heads * (2 if model.encoder else 1)
        dense += model.vision.parameters(model.hidden) if model.vision else 0
        if model.encoder is not None:
            own = weights_per_rank(encoder_of(model), alone)
            dense += own.attention - relative + own.mlp + own.shared + own.routers + own.norms
            dense -= model.norm_width * model.embedding_norm  # the decoder's part has it
            experts += own.experts
    return Parameters(dense, experts)
