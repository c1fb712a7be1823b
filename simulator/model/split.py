"""What one rank of a layout holds of a model: weights by part, and the KV cache of a token.

Source: Shoeybi et al., arXiv:1909.08053: heads, columns and vocabulary split, norms copied, KV heads copied when there
are more ranks than heads; experts go whole to expert-parallel ranks, the rest of a stage splits each one.
"""

from typing import NamedTuple

from simulator.errors import InputError, Problem
from simulator.model.layout import Layout
from simulator.model.precision import FORMATS, Precision
from simulator.model.transformer import Transformer


class Weights(NamedTuple):
    """Parameters on the fullest rank by part."""

    attention: int
    mlp: int
    """Dense MLPs and shared experts."""
    experts: int
    routers: int
    embeddings: int
    """Embedding and LM head, positions included."""
    norms: int
    vision: int

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self)


def kv_heads_per_rank(model: Transformer, layout: Layout) -> int:
    """Return the KV heads that one rank holds; a head is copied when there are more ranks than heads."""
    return max(1, model.attention.kv_heads // layout.tensor)


def vocabulary_per_rank(model: Transformer, layout: Layout) -> int:
    """Return the rows of embedding and LM head on one rank: the vocabulary is split evenly and rounded up."""
    return -(-model.vocabulary // layout.tensor)


def layers_per_stage(model: Transformer, layout: Layout) -> int:
    """Return the decoder layers of the fullest pipeline stage."""
    return -(-model.layers // layout.pipeline)


def experts_per_rank(model: Transformer, layout: Layout) -> int:
    """Return the routed experts of one layer on the fullest rank."""
    return -(-model.experts.experts // layout.expert) if model.experts else 0


def weights_per_rank(model: Transformer, layout: Layout) -> Weights:
    """Return the parameters on the fullest rank: of the stage with most layers, all of them with experts if it can.

    The first stage has the embedding, the last the LM head; one stage alone has both. Encoders stay on the first.
    """
    layers, tensor, stages = layers_per_stage(model, layout), layout.tensor, layout.pipeline
    with_experts = min(model.expert_layers, layers)
    part = model.attention
    attention = part.parameters(model.hidden, part.heads // tensor, kv_heads_per_rank(model, layout))
    dense = model.mlp_parameters(model.intermediate // tensor)
    shared = routed = 0
    if model.experts is not None:
        shared = model.mlp_parameters(model.experts.shared_width // tensor) if model.experts.shared_width else 0
        width = model.experts.intermediate // layout.expert_tensor
        routed = experts_per_rank(model, layout) * model.mlp_parameters(width)
    tables = 1 if model.tied_embeddings or stages > 1 else 2
    weights = Weights(
        attention=layers * attention,
        mlp=(layers - with_experts) * dense + with_experts * shared,
        experts=with_experts * routed,
        routers=with_experts * model.router_parameters(),
        embeddings=tables * vocabulary_per_rank(model, layout) * model.hidden
        + (model.position_rows or 0) * model.hidden,
        norms=2 * layers * model.norm_width + model.norm_width * (2 if model.embedding_norm else 1),
        vision=model.vision.parameters(model.hidden) if model.vision else 0,
    )
    if model.encoder is None:
        return weights
    return _with_encoder(model, weights, layers, attention, dense, routed)


def _with_encoder(
    model: Transformer, weights: Weights, layers: int, attention: int, dense: int, routed: int
) -> Weights:
    encoder = model.encoder
    assert encoder is not None
    with_experts = encoder.expert_layers
    return weights._replace(
        attention=weights.attention + (encoder.layers + layers) * attention,
        mlp=weights.mlp + (encoder.layers - with_experts) * dense,
        experts=weights.experts + with_experts * routed,
        routers=weights.routers + with_experts * model.router_parameters(),
        norms=weights.norms + (2 * encoder.layers + 1 + layers) * model.norm_width,
    )


def weight_bytes_per_rank(model: Transformer, layout: Layout, precision: Precision | None = None) -> int:
    """Return the weight bytes on the fullest rank, each part in its format."""
    precision = precision or Precision()
    weights = weights_per_rank(model, layout)
    bits = (
        weights.attention * FORMATS[precision.of_attention].weight_bits
        + weights.mlp * FORMATS[precision.weights].weight_bits
        + weights.experts * FORMATS[precision.of_experts].weight_bits
        + weights.embeddings * FORMATS[precision.head].weight_bits
        + (weights.norms + weights.routers + weights.vision) * 16
    )
    return round(bits / 8)


def kv_bytes_per_token_per_rank(model: Transformer, layout: Layout, precision: Precision | None = None) -> float:
    """Return the bytes that one token of context holds on each rank of the fullest stage, copies included.

    Tokens are spread evenly over data-parallel and context-parallel ranks, so one costs each of them a part.
    """
    values = layers_per_stage(model, layout) * model.attention.stored_per_token(kv_heads_per_rank(model, layout))
    return values * (precision or Precision()).kv_bytes / (layout.data * layout.context)


def splits_over(model: Transformer, tensor: int) -> bool:
    """Return whether `tensor` ranks get equal shares of heads and MLP columns, KV heads shared or copied evenly."""
    heads, kv_heads = model.attention.heads, model.attention.kv_heads
    even = heads % tensor == 0 and model.intermediate % tensor == 0
    return even and (kv_heads % tensor == 0 or tensor % kv_heads == 0)


def check_layout(model: Transformer, layout: Layout) -> None:
    """Raise InputError when this model cannot be split as `layout` says; it names the degrees that can."""
    problems = []
    if not splits_over(model, layout.tensor):
        part = model.attention
        what = (
            f"{model.name} ({part.heads} heads, {part.kv_heads} KV heads, {model.intermediate} MLP columns) "
            f"does not split evenly over {layout.tensor} tensor-parallel ranks"
        )
        allowed = ", ".join(str(degree) for degree in range(1, part.heads + 1) if splits_over(model, degree))
        problems.append(Problem(what, path="layout.tensor", allowed=allowed))
    if layout.pipeline > model.layers:
        what = f"{model.name} has {model.layers} layers, fewer than {layout.pipeline} stages"
        problems.append(Problem(what, path="layout.pipeline", allowed=f"1 to {model.layers}"))
    problems += _check_experts(model, layout)
    if problems:
        raise InputError(*problems)


def _check_experts(model: Transformer, layout: Layout) -> list[Problem]:
    if model.experts is None:
        if layout.expert == 1:
            return []
        what = f"{model.name} has no experts to split over {layout.expert} expert-parallel ranks"
        return [Problem(what, path="layout.expert", allowed="1")]
    if model.experts.intermediate % layout.expert_tensor:
        what = (
            f"an expert of {model.experts.intermediate} columns does not split evenly over {layout.expert_tensor} "
            f"ranks, which {layout} leaves to each"
        )
        return [Problem(what, path="layout.expert", allowed="a larger expert degree")]
    return []
