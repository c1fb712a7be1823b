"""What one rank of a layout holds of a model: weights by part, and the KV cache of a token.

Source: Shoeybi et al., arXiv:1909.08053: heads, columns and vocabulary split, norms copied, KV heads copied when there
are more ranks than heads; experts go whole to expert-parallel ranks, the rest of a stage splits each one.
"""

from math import gcd
from typing import NamedTuple

from simulator.errors import InputError, Problem
from simulator.model.layout import Layout
from simulator.model.precision import FORMATS, Precision
from simulator.model.transformer import RELATIVE_BUCKETS, Transformer


class Weights(NamedTuple):
    """Parameters on one rank by part."""

    attention: int
    mlp: int
    """Dense MLPs."""
    experts: int
    """Routed experts."""
    shared: int
    """Shared experts."""
    routers: int
    embeddings: int
    """Embedding and LM head, positions included."""
    norms: int
    vision: int

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self)


class Held(NamedTuple):
    """Experts of one layer that every rank holds where copies are made of some."""

    slots: int
    """Copies included."""
    shared: bool = True
    """Whether each rank has the shared experts beside them."""


class Stage(NamedTuple):
    """A pipeline stage as ranges of layers, first and end: those of an encoder come before those of the decoder."""

    encoder: tuple[int, int]
    decoder: tuple[int, int]
    first: bool
    last: bool


def stages(model: Transformer, layout: Layout) -> list[Stage]:
    """Return the pipeline stages; layers are spread evenly, what is left over goes to the latest stages but the last.

    So does vLLM, as the last stage has the LM head and the first the embedding.
    """
    before = model.encoder.layers if model.encoder else 0
    count, total = layout.pipeline, before + model.layers
    each, left = divmod(total, count)
    found, start = [], 0
    for stage in range(count):
        end = start + each + (count - 1 - left <= stage < count - 1)
        encoder = min(start, before), min(end, before)
        decoder = max(start - before, 0), max(end - before, 0)
        found.append(Stage(encoder, decoder, stage == 0, stage == count - 1))
        start = end
    return found


def kv_heads_per_rank(model: Transformer, layout: Layout) -> int:
    """Return the KV heads that one rank holds; a head is copied when there are more ranks than heads."""
    return max(1, model.attention.kv_heads // layout.tensor)


def vocabulary_per_rank(model: Transformer, layout: Layout) -> int:
    """Return the rows of embedding and LM head on one rank: the vocabulary is split evenly and rounded up."""
    return -(-model.vocabulary // layout.tensor)


def layers_per_stage(model: Transformer, layout: Layout) -> int:
    """Return the decoder layers of the pipeline stage that has most of them."""
    return max(stage.decoder[1] - stage.decoder[0] for stage in stages(model, layout))


def experts_per_rank(model: Transformer, layout: Layout, rank: int = 0) -> int:
    """Return the routed experts of one layer on an expert-parallel rank; the first ranks have one more if any has.

    With more ranks than experts, those that are left over hold a copy of one.
    """
    if model.experts is None:
        return 0
    each, left = divmod(model.experts.experts, layout.expert)
    return max(1, each + (rank < left))


def weights_of(model: Transformer, layout: Layout, stage: Stage, rank: int = 0, held: Held | None = None) -> Weights:
    """Return the parameters on each device of one pipeline stage that is of the expert-parallel rank `rank`.

    `held`: the experts that are there (default: no copies, shared experts on every rank).

    Embeddings are where tokens come in: on the first stage and, of a model with an encoder, on the one where the
    decoder starts. The LM head and the norm before it are on the last stage, which needs a copy of a tied embedding.
    """
    tensor, part = layout.tensor, model.attention
    decoders, encoders = stage.decoder[1] - stage.decoder[0], stage.encoder[1] - stage.encoder[0]
    with_experts = _expert_layers(model, stage)
    kv_heads = kv_heads_per_rank(model, layout)
    crossed = decoders if model.encoder else 0
    attention = part.parameters(model.hidden, part.heads // tensor, kv_heads)
    shared = routed = 0
    if model.experts is not None:
        width = model.experts.shared_width // tensor if held is None or held.shared else 0
        shared = model.mlp_parameters(width) if width else 0
        each = model.mlp_parameters(model.experts.intermediate // layout.expert_tensor)
        routed = (held.slots if held else experts_per_rank(model, layout, rank)) * each
    dense = decoders + encoders - with_experts
    norms = model.norms * (decoders + encoders) + crossed + stage.last + (model.embedding_norm and stage.first)
    if model.encoder is not None:
        norms += stage.encoder[0] < model.encoder.layers == stage.encoder[1]  # at the encoder's end
    return Weights(
        attention=(decoders + encoders + crossed) * attention + _relative(model, layout, stage),
        mlp=dense * model.mlp_parameters(model.intermediate // tensor) if dense else 0,
        experts=with_experts * routed,
        shared=with_experts * shared,
        routers=with_experts * model.router_parameters(),
        embeddings=_tables(model, layout, stage),
        norms=norms * model.norm_width,
        vision=model.vision.parameters(model.hidden) if model.vision and stage.first else 0,
    )


def _expert_layers(model: Transformer, stage: Stage) -> int:
    if model.experts is None:
        return 0
    among = model.experts.among(*stage.decoder, model.experts.layers, model.layers)
    if model.encoder is not None:
        among += model.experts.among(*stage.encoder, model.encoder.expert_layers, model.encoder.layers)
    return among


def _relative(model: Transformer, layout: Layout, stage: Stage) -> int:
    """Return the biases of relative positions: one table for a stack's layers, on every stage that has some."""
    if model.positions != "relative":
        return 0
    stacks = (stage.decoder[0] < stage.decoder[1]) + (stage.encoder[0] < stage.encoder[1])
    return stacks * RELATIVE_BUCKETS * (model.attention.heads // layout.tensor)


def _tables(model: Transformer, layout: Layout, stage: Stage) -> int:
    rows = vocabulary_per_rank(model, layout)
    comes_in = stage.first or (model.encoder is not None and stage.decoder[0] == 0 < stage.decoder[1])
    tables = (comes_in or stage.last) if model.tied_embeddings else comes_in + stage.last
    positions = (model.position_rows or 0) * model.hidden if stage.first else 0
    return tables * rows * model.hidden + positions + (rows if model.head_bias and stage.last else 0)


def weights_per_rank(
    model: Transformer,
    layout: Layout,
    precision: Precision | None = None,
    experts_elsewhere: bool = False,
    held: Held | None = None,
) -> Weights:
    """Return the parameters on the fullest rank, whose weights take most bytes; routed experts may be elsewhere."""
    form = precision or Precision()
    fullest = max(
        (weights_of(model, layout, stage, held=held) for stage in stages(model, layout)),
        key=lambda w: weight_bytes(w, form),
    )
    return fullest._replace(experts=0) if experts_elsewhere else fullest


OTHER_WEIGHTS = "norms, routers and other weights"


def weight_bits(weights: Weights, precision: Precision) -> dict[str, float]:
    """Return the bits of weights by part, each in its format; norms, routers and vision are in 16 bits."""
    return {
        "attention weights": weights.attention * FORMATS[precision.of_attention].weight_bits,
        "MLP weights": weights.mlp * FORMATS[precision.weights].weight_bits,
        "expert weights": weights.experts * FORMATS[precision.of_experts].weight_bits,
        "shared expert weights": weights.shared * FORMATS[precision.of_shared].weight_bits,
        "embedding and LM head": weights.embeddings * FORMATS[precision.head].weight_bits,
        OTHER_WEIGHTS: (weights.norms + weights.routers + weights.vision) * 16,
    }


def weight_bytes(weights: Weights, precision: Precision) -> int:
    """Return the bytes of weights, each part in its format."""
    return round(sum(weight_bits(weights, precision).values()) / 8)


def weight_bytes_per_rank(
    model: Transformer,
    layout: Layout,
    precision: Precision | None = None,
    experts_elsewhere: bool = False,
    held: Held | None = None,
) -> int:
    """Return the weight bytes on the fullest rank, each part in its format; routed experts may be on other devices."""
    return weight_bytes(weights_per_rank(model, layout, precision, experts_elsewhere, held), precision or Precision())


def absorbed_bytes(model: Transformer, layout: Layout, precision: Precision | None = None) -> int:
    """Return the bytes of MLA's absorbed projections on a rank of the fullest stage.

    Engines keep them in 16 bits, for which alone there are kernels, beside the quantised weights that prompts take
    (vLLM, SGLang); of weights that are not quantised they are parts, so nothing.
    """
    if FORMATS[(precision or Precision()).of_attention].weight_bits >= 16:
        return 0
    part = model.attention
    return 2 * layers_per_stage(model, layout) * part.absorbed(part.heads // layout.tensor)


def expert_bytes(model: Transformer, layout: Layout, precision: Precision | None = None) -> int:
    """Return the bytes of one routed expert of one layer on a device that holds it."""
    assert model.experts is not None
    width = model.experts.intermediate // layout.expert_tensor
    bits = FORMATS[(precision or Precision()).of_experts].weight_bits
    return round(model.mlp_parameters(width) * bits / 8)


def kv_bytes_per_token_per_rank(
    model: Transformer, layout: Layout, precision: Precision | None = None, layers: int | None = None
) -> float:
    """Return the bytes that one token of context holds on each rank in so many layers, copies included.

    Without `layers` those of the fullest stage.

    Tokens are spread evenly over data-parallel and context-parallel ranks, so one costs each of them a part.
    """
    count = layers_per_stage(model, layout) if layers is None else layers
    values = model.attention.stored_per_token(kv_heads_per_rank(model, layout))
    each = values * (precision or Precision()).kv_bytes + model.attention.index_bytes
    return count * each / (layout.data * layout.context)


class KVGroups(NamedTuple):
    """Layers of a stage in groups of one size, by what their KV cache keeps."""

    layers: int
    """Of each group."""
    full: int
    """Groups that keep every position."""
    windowed: int = 0
    """Groups that keep a window of the last ones."""


def kv_groups(model: Transformer, layout: Layout) -> KVGroups:
    """Return the largest groups that a stage's layers make up: one of all layers where none has a window.

    Of several stages, as many of each kind as any of them has.
    """
    own = [stage.decoder for stage in stages(model, layout)]
    windowed = max(windowed_among(model, layers) for layers in own)
    full = max(layers[1] - layers[0] - windowed_among(model, layers) for layers in own)
    size = gcd(full, windowed)
    return KVGroups(size, full // size, windowed // size)


def windowed_among(model: Transformer, layers: tuple[int, int]) -> int:
    """Return how many layers, from the first to before the second, have the window."""
    window = model.attention.window
    return evenly_among(*layers, window.layers, model.layers) if window else 0


def evenly_among(first: int, end: int, some: int, every: int) -> int:
    """Return how many of the layers from `first` to before `end` are among `some` of `every`, spread evenly."""
    return end * some // every - first * some // every


def splits_over(model: Transformer, tensor: int) -> bool:
    """Return whether `tensor` ranks get equal shares of heads and MLP columns, KV heads shared or copied evenly."""
    heads, kv_heads = model.attention.heads, model.attention.kv_heads
    even = heads % tensor == 0 and all(width % tensor == 0 for _, width in _widths(model))
    return even and (kv_heads % tensor == 0 or tensor % kv_heads == 0)


def _widths(model: Transformer) -> list[tuple[str, int]]:
    """Return the columns that tensor parallelism splits, by what they are of."""
    encoder = model.encoder
    dense = model.layers - model.expert_layers + (encoder.layers - encoder.expert_layers if encoder else 0)
    widths = [("MLP columns", model.intermediate)] if dense else []
    if model.experts is not None and model.experts.shared_width:
        widths.append(("shared-expert columns", model.experts.shared_width))
    return widths


def check_layout(model: Transformer, layout: Layout) -> None:
    """Raise InputError when this model cannot be split as `layout` says; it names the degrees that can."""
    problems = []
    if not splits_over(model, layout.tensor):
        part = model.attention
        counts = [("heads", part.heads), ("KV heads", part.kv_heads), *_widths(model)]
        what = (
            f"{model.name} ({', '.join(f'{count} {name}' for name, count in counts)}) "
            f"does not split evenly over {layout.tensor} tensor-parallel ranks"
        )
        allowed = ", ".join(str(degree) for degree in range(1, part.heads + 1) if splits_over(model, degree))
        problems.append(Problem(what, path="layout.tensor", allowed=allowed))
    total = model.layers + (model.encoder.layers if model.encoder else 0)
    if layout.pipeline > total:
        what = f"{model.name} has {total} layers, fewer than {layout.pipeline} stages"
        problems.append(Problem(what, path="layout.pipeline", allowed=f"1 to {total}"))
    if model.attention.index is not None and layout.context > 1:
        what = f"{model.name} attends to positions that an index chooses: over context-parallel ranks not modelled"
        problems.append(Problem(what, path="layout.context", allowed="1"))
    problems += _check_experts(model, layout)
    if problems:
        raise InputError(problems)


def _check_experts(model: Transformer, layout: Layout) -> list[Problem]:
    if model.experts is None:
        if layout.expert == 1:
            return []
        what = f"{model.name} has no experts to split over {layout.expert} expert-parallel ranks"
        return [Problem(what, path="layout.expert", allowed="1")]
    width, devices = model.experts.intermediate, layout.stage_devices
    if width % layout.expert_tensor:
        what = (
            f"an expert of {model.name} has {width} columns, which do not split evenly over the {layout.expert_tensor} "
            f"devices that expert parallelism over {layout.expert} of the {devices} of a stage leaves to each"
        )
        good = [each for each in range(1, devices + 1) if devices % each == 0 and width % (devices // each) == 0]
        return [Problem(what, path="layout.expert", allowed=", ".join(map(str, good)))]
    return []
