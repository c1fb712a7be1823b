"""The memory ledger of one device in training: weights, gradients, optimizer states, activations kept, workspace.

Source: activations as arXiv:2205.05198 counts them, sbh (10 + 24/t + 5as/ht) a layer of GPT, written out by operator so
that it holds for grouped and latent attention, gated MLPs and experts; states divided as ZeRO does (arXiv:1910.02054).
"""

from math import ceil
from typing import Literal, NamedTuple

from simulator.device.accelerator import Accelerator
from simulator.device.memory import GIB, NCCL_BUFFER_BYTES, NCCL_CHANNELS
from simulator.errors import InputError, Problem
from simulator.model.architecture import LatentAttention
from simulator.model.forward import FP32_BYTES, Pass
from simulator.model.precision import FORMATS
from simulator.model.split import vocabulary_per_rank
from simulator.model.stages import Slice, encoder_of, parameters_of, tower_of
from simulator.model.training import WEIGHT_BYTES, MicroBatch, TrainingPass
from simulator.model.transformer import Transformer

Schedule = Literal["gpipe", "1f1b"]


class TrainingLedger(NamedTuple):
    """Bytes of the fullest device of one pipeline rank."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    """What backward needs of every micro-batch in flight."""
    workspace: int
    """What lives only while one layer, or the loss, is computed; whole weights of layers where ranks hold shards."""
    buffers: int
    """Communication buffers, which the framework's allocator does not see."""

    @property
    def allocated(self) -> int:
        """What the framework's allocator hands out."""
        return sum(self) - self.buffers


def in_flight(pipeline: int, rank: int, micro_batches: int, chunks: int = 1, schedule: Schedule = "1f1b") -> float:
    """Return the micro-batches whose activations a rank keeps at its peak, in parts of its own layers.

    All of them under GPipe; p - rank under 1F1B; interleaved, 2 (p - rank - 1) + (v - 1) p + 1 chunks of v, which on
    the first rank is 1 + (p - 1) / (p v) times what 1F1B keeps.
    """
    if schedule == "gpipe":
        return micro_batches
    if chunks == 1:
        return min(micro_batches, pipeline - rank)
    held = 2 * (pipeline - rank - 1) + (chunks - 1) * pipeline + 1
    return min(micro_batches * chunks, held) / chunks


class Kept:
    """Bytes that one position of a layer leaves for the backward pass on one rank, by kind of sub-layer."""

    def __init__(self, training: TrainingPass, card: Transformer, keys: int) -> None:
        """Take the layers of `card` whose attention reads `keys` positions; one that does not split is on each rank."""
        self.training, self.card, self.keys = training, card, keys
        layout = self.layout = training.layout_of(card)
        self.rank = Pass(card, layout, training.precision)
        self.value = training.precision.activation_bytes
        self.spread = layout.tensor if layout.sequence_parallel else 1
        self.drop = 1 if training.recipe.dropout else 0

    def _input(self, form: str) -> float:
        """Return the bytes of one value that a product in `form` keeps of its input."""
        return FORMATS[form].activation_bits / 8 if FORMATS[form].scaled else self.value

    @property
    def stream(self) -> float:
        """Bytes of one position of what passes between layers."""
        return self.card.hidden * self.value / self.spread

    def core(self) -> float:
        """Return what the core of attention keeps beyond its operands: scores, or one number a head when fused."""
        if self.training.recipe.fused_attention:
            return FP32_BYTES * self.rank.heads
        if self.training.recipe.recompute == "selective":
            return 0.0
        return self.rank.heads * self.keys * (self.value + self.drop * (1 + self.value))

    def attention(self) -> float:
        """Return norm, projections and core of one attention: input, queries, keys, values, result, mask."""
        part, form = self.card.attention, self.training.precision.of_attention
        heads, hidden = self.rank.heads, self.card.hidden
        kv_heads = heads if isinstance(part, LatentAttention) else self.rank.kv_heads
        width = heads * part.key_dim + kv_heads * (part.key_dim + part.value_dim)
        latent = 0.0
        if isinstance(part, LatentAttention):  # before and after their norms, whole on every tensor rank
            latent = ((part.query_rank or 0) + part.latent_dim) * (self.value + self._input(form))
        result = heads * part.value_dim * self._input(form)
        if FORMATS[form].scaled and self.training.recipe.fused_attention:  # the kernel keeps its own result too
            result += heads * part.value_dim * self.value
        split = hidden * (self.value + self._input(form) + self.drop) / self.spread
        return split + latent + width * self.value + self.core() + result

    def mlp(self, width: int, form: str) -> float:
        """Return norm and MLP: input, what goes into the activation and what comes out, mask."""
        hidden = self.card.hidden
        split = hidden * (self.value + self._input(form) + self.drop) / self.spread
        return split + self.inside(width, form)

    def inside(self, width: int, form: str) -> float:
        """Return what an MLP of `width` columns keeps between its two products."""
        return width * ((2 if self.card.gated else 1) * self.value + self._input(form))

    def experts(self) -> float:
        """Return norm, router, shared and routed experts, whose results the gradient of the router needs."""
        part, layout, form = self.card.experts, self.layout, self.training.precision.of_experts
        assert part is not None
        rows = part.active * layout.data * layout.context / layout.expert
        hidden = self.card.hidden
        routed = hidden * (self._input(form) + self.value) + self.inside(
            part.intermediate // layout.expert_tensor, form
        )
        shared = self.inside(part.shared_width // layout.tensor, form) if part.shared_width else 0.0
        split = hidden * (self.value + self._input(form)) / self.spread
        return split + 2 * FP32_BYTES * part.experts / self.spread + shared + rows * routed

    def layers(self) -> float:
        """Return all layers of the card for one position."""
        card, tensor = self.card, self.layout.tensor
        if self.training.recipe.recompute == "full":
            return card.layers * self.stream
        dense = card.layers - card.expert_layers
        total = card.layers * self.attention()
        total += dense * self.mlp(card.intermediate // tensor, self.training.precision.weights)
        return total + (card.expert_layers * self.experts() if card.experts else 0.0)

    def workspace(self) -> float:
        """Return what one layer needs for one position while it runs backward, all that it computed again included."""
        tensor, form = self.layout.tensor, self.training.precision.weights
        widest = self.inside(self.card.intermediate // tensor, form)
        if self.card.experts is not None:
            widest = max(widest, self.experts())
        again = 0.0
        if self.training.recipe.recompute == "full":
            rest = self.experts() if self.card.experts is not None else self.mlp(self.card.intermediate // tensor, form)
            again = self.attention() + rest
        return widest + self.stream + again


def activation_bytes(training: TrainingPass, part: Slice, batch: MicroBatch) -> tuple[float, float]:
    """Return (kept, workspace) of one micro-batch on a virtual stage."""
    layout, model = training.layout, training.model
    positions = batch.sequences * -(-batch.length // layout.context)
    own = Kept(training, part.model, batch.length)
    kept, work = positions * own.layers(), positions * own.workspace()
    if model.encoder is not None and training.recipe.recompute != "full":
        crossed = Kept(training, part.model, batch.source)
        kept += positions * part.model.layers * crossed.attention()
    if part.first and model.encoder is not None:
        encoder = Kept(training, encoder_of(model), batch.source)
        kept += batch.sequences * -(-batch.source // layout.context) * encoder.layers()
    if part.first and model.vision is not None and batch.images:
        tower = tower_of(model)
        seen = batch.sequences * batch.images * tower.max_context
        kept += seen * Kept(training, tower, tower.max_context).layers()
    if part.last:
        logits = vocabulary_per_rank(model, layout)
        # logits, then their copy, then that of their logarithms and a gradient as wide
        width = training.value_bytes + {"fused": 0, "copied": 1, "plain": 3}[training.recipe.loss] * FP32_BYTES
        kept += positions * 2 * model.hidden * training.value_bytes / own.spread  # final norm, input of the head
        gradient = 0 if training.recipe.loss == "plain" else training.value_bytes
        work = max(work, positions * logits * (width + gradient))
    return kept, work


def rank_ledger(
    training: TrainingPass, rank: int, batch: MicroBatch, micro_batches: int, schedule: Schedule = "1f1b"
) -> TrainingLedger:
    """Return where the memory of the fullest device of one pipeline rank goes."""
    recipe, layout, own = training.recipe, training.layout, training.parameters(rank)
    parts = [part for part in training.slices if part.rank == rank]
    sizes = [activation_bytes(training, part, batch) for part in parts]

    def held(width: float, from_stage: int) -> float:
        """Return the bytes of one value a parameter, divided from that ZeRO stage on."""
        if recipe.zero < from_stage:
            return width * own.total
        return width * (own.dense / training.dense_ranks + own.experts / recipe.replicas)

    work = max(size for _, size in sizes)
    if recipe.zero == 3:  # the layer at work and the next, whole; gradients of the one
        layers = sum(part.model.layers for part in parts)
        layer = sum(parameters_of(part, training.model, layout).total for part in parts) / layers
        work += layer * (2 * WEIGHT_BYTES + recipe.gradient_bytes)
    count = in_flight(layout.pipeline, rank, micro_batches, recipe.chunks, schedule)
    narrow = sum(
        count_of * 2 * FORMATS[form].weight_bits / 8
        for count_of, form in ((own.dense, training.precision.weights), (own.experts, training.precision.of_experts))
        if FORMATS[form].scaled and recipe.zero < 3
    )
    groups = sum(n > 1 for n in (layout.tensor, layout.pipeline, training.dense_ranks))
    return TrainingLedger(
        ceil(held(WEIGHT_BYTES, 3) + narrow),
        ceil(held(recipe.gradient_bytes, 2)),
        ceil(held(recipe.state_bytes, 1)),
        ceil(count * sum(size for size, _ in sizes)),
        ceil(work),
        2 * groups * NCCL_CHANNELS * NCCL_BUFFER_BYTES,
    )


def training_ledger(
    training: TrainingPass,
    accelerator: Accelerator,
    batch: MicroBatch,
    micro_batches: int,
    schedule: Schedule = "1f1b",
    utilisation: float = 0.95,
) -> TrainingLedger:
    """Return the ledger of the fullest pipeline rank; `utilisation` leaves room for context and fragmentation.

    Raises InputError that names the rank, its largest term and what is missing when it does not fit the device.
    """
    books = [rank_ledger(training, r, batch, micro_batches, schedule) for r in range(training.layout.pipeline)]
    rank = max(range(len(books)), key=lambda r: sum(books[r]))
    book, usable = books[rank], int(accelerator.memory.capacity * utilisation)
    if sum(book) > usable:
        binding = max(book._fields, key=lambda name: getattr(book, name))
        terms = ", ".join(f"{name} {size / GIB:.1f} GiB" for name, size in zip(book._fields, book, strict=True))
        what = (
            f"training {training.model.name} does not fit {accelerator.name} under {training.layout}: on pipeline rank "
            f"{rank} {binding} take most ({terms}) of {usable / GIB:.1f} GiB usable, "
            f"{(sum(book) - usable) / GIB:.1f} GiB too little"
        )
        allowed = "more tensor or pipeline ranks, a higher ZeRO stage, recomputation, a smaller micro-batch"
        raise InputError(Problem(what, path="layout", allowed=allowed))
    return book
