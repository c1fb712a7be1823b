"""The operators of a training step: forward, input and weight gradients, recomputation, exchange and optimizer.

Source: pipelines and tensor parallelism as Megatron-LM (arXiv:2104.04473), sequence parallelism and recomputation as
arXiv:2205.05198, ZeRO as arXiv:1910.02054, Adam in mixed precision as arXiv:1710.03740, T5 as 1910.10683.
"""

from functools import cached_property
from typing import Literal, NamedTuple

from pydantic import Field

from simulator.errors import InputError, Problem
from simulator.model.backward import (
    ACTIVATIONS,
    LOSS_SUMS,
    embedding_gradient,
    flops_of,
    input_gradient,
    weight_gradient,
)
from simulator.model.forward import FP32_BYTES, Pass, Work
from simulator.model.layout import Layout
from simulator.model.operators import Collective, Elementwise, Experts, Gemm, Operator, PromptAttention
from simulator.model.precision import FORMATS, VALUES, Precision, ValueName
from simulator.model.split import check_layout, splits_over, vocabulary_per_rank
from simulator.model.stages import Parameters, Slice, encoder_of, parameters_of, slices, tower_of
from simulator.model.transformer import Transformer
from simulator.strict import Count, Strict

WEIGHT_BYTES = 2
"""Bytes of a weight as the passes read it; narrower formats are made from it once a step."""


class Recipe(Strict):
    """How a model is trained, apart from its layout."""

    replicas: Count = 1
    """Data-parallel copies of the layout; with its own data degree they are the data-parallel ranks."""
    zero: int = Field(default=1, ge=0, le=3)
    """What data-parallel ranks divide: 1 optimizer states, 2 gradients too, 3 weights too."""
    recompute: Literal["none", "selective", "full"] = "none"
    """What backward computes again: nothing, the core of attention, or the layers."""
    chunks: Count = 1
    """Virtual stages of each pipeline rank (interleaved schedules)."""
    layers: tuple[Count, ...] | None = None
    """Decoder layers of each virtual stage; default: even, the rest on the first ones."""
    fused_attention: bool = True
    """FlashAttention; otherwise scores go through memory, masked ones too."""
    loss: Literal["fused", "copied", "plain"] = "copied"
    """Cross-entropy on 16-bit logits in one kernel, on a 32-bit copy in place, or with a tensor for each operation."""
    dropout: bool = False
    """Dropout after attention and MLP and on attention scores, its masks kept."""
    gradients: ValueName = "fp32"
    """What gradients are added up and reduced in."""
    master: ValueName = "fp32"
    moments: ValueName = "fp32"
    """What the optimizer's two moments are held in."""

    @property
    def state_bytes(self) -> float:
        """Bytes of optimizer states of one parameter: master copy and two moments."""
        return (VALUES[self.master] + 2 * VALUES[self.moments]) / 8

    @property
    def gradient_bytes(self) -> float:
        """Bytes of one gradient."""
        return VALUES[self.gradients] / 8


class MicroBatch(NamedTuple):
    """What one data-parallel rank takes through the pipeline at once."""

    sequences: int
    length: int
    """Positions of each sequence in the decoder."""
    source: int = 0
    """Positions of each sequence in the encoder, if there is one."""
    images: int = 0
    """Images of each sequence, whose patches are among its positions."""

    @property
    def tokens(self) -> int:
        """Positions in the decoder."""
        return self.sequences * self.length


class StageOperators(NamedTuple):
    """The kernels of one micro-batch on one virtual stage; forward, backward and weight run once each.

    `recompute` runs before `backward`; `backward` makes the gradients of inputs, which the former stage waits for, and
    `weight` those of weights, which only the optimizer waits for.
    """

    forward: list[Operator]
    backward: list[Operator]
    weight: list[Operator]
    recompute: list[Operator]

    @property
    def flops(self) -> float:
        """Operations of all four."""
        return sum(o.calls * flops_of(o.shape) for part in self for o in part)


class Exchange(NamedTuple):
    """What data-parallel ranks exchange: in each micro-batch's forward and backward pass, and once a step."""

    forward: list[Operator]
    backward: list[Operator]
    step: list[Operator]


class TrainingPass:
    """A model under a layout, a precision and a recipe: the operators of a step for a micro-batch.

    `layout.data` counts the data-parallel ranks that share experts (any number when there are none), `recipe.replicas`
    the copies of that. Raises InputError when the layout cannot split the model.
    """

    def __init__(
        self,
        model: Transformer,
        layout: Layout,
        recipe: Recipe | None = None,
        precision: Precision | None = None,
        skew: float = 0.0,
    ) -> None:
        check_layout(model, layout)
        if model.attention.index is not None:
            what = f"{model.name} attends to positions that an index chooses: its training is not modelled"
            raise InputError(Problem(what, path="model", allowed="a model without an index"))
        self.model, self.layout, self.skew = model, layout, skew
        self.recipe, self.precision = recipe or Recipe(), precision or Precision()
        self.value_bytes = self.precision.activation_bytes
        self._stage_layout = layout.model_copy(update={"pipeline": 1})

    @cached_property
    def slices(self) -> list[Slice]:
        """The virtual stages in the order in which a micro-batch passes them."""
        return slices(self.model, self.layout.pipeline, self.recipe.chunks, self.recipe.layers)

    @property
    def dense_ranks(self) -> int:
        """Ranks that hold the same parameters outside experts."""
        return self.layout.data * self.layout.context * self.recipe.replicas

    @property
    def devices(self) -> int:
        """Devices of the whole job."""
        return self.layout.devices * self.recipe.replicas

    def layout_of(self, card: Transformer) -> Layout:
        """Return how one stage splits the layers of a card: as the layout says, or not at all if they do not split."""
        layout = self._stage_layout
        if splits_over(card, layout.tensor):
            return layout
        return Layout(data=layout.data, context=layout.context)

    def parameters(self, rank: int) -> Parameters:
        """Return the parameters on the fullest device of a pipeline rank."""
        own = [parameters_of(part, self.model, self.layout) for part in self.slices if part.rank == rank]
        return Parameters(sum(p.dense for p in own), sum(p.experts for p in own))

    # -- one micro-batch on one stage -----------------------------------------------------------------------------

    def stage(self, part: Slice, batch: MicroBatch) -> StageOperators:
        """Return the kernels of one micro-batch on a virtual stage."""
        layers = self._layers(part, batch)
        head = self._head(batch) if part.last else []
        embedding = self._pass(part.model).embedding(self._positions(batch)) if part.first else []
        sent = self._send(batch)
        forward = embedding + layers + head + ([] if part.last else [sent])
        gated = self.model.gated
        backward = [
            row
            for o in reversed(layers + head)
            for row in input_gradient(o, gated and not o.name.startswith("vision "))
        ]
        if not part.first:
            backward.append(sent._replace(name="send to former stage"))
        weight = [row for o in reversed(layers + head) for row in weight_gradient(o, self.recipe.gradients)]
        weight += [
            o._replace(name="all-gather of inputs")
            for o in layers
            if isinstance(o.shape, Collective) and o.shape.group == "tensor" and o.shape.operation == "all_gather"
        ]
        if part.first:
            tokens = self._positions(batch)
            weight.append(embedding_gradient(tokens, self.model.hidden, self.value_bytes, self.recipe.gradients))
        return StageOperators(forward, backward, weight, self._again(layers))

    def _pass(self, card: Transformer, first: bool = False, last: bool = False) -> Pass:
        return Pass(card, self._stage_layout, self.precision, self.skew, first, last)

    def _positions(self, batch: MicroBatch) -> int:
        return batch.sequences * -(-batch.length // self.layout.context)

    def _again(self, layers: list[Operator]) -> list[Operator]:
        if self.recipe.recompute == "full":
            return layers
        if self.recipe.recompute == "selective":
            return [o for o in layers if o.name in ACTIVATIONS]
        return []

    def _layers(self, part: Slice, batch: MicroBatch) -> list[Operator]:
        """Return the forward kernels of encoder, tower and decoder layers of one virtual stage."""
        rows: list[Operator] = []
        groups = self.layout.data
        if part.first and self.model.vision is not None and batch.images:
            tower = tower_of(self.model)
            work = causal(groups * batch.sequences * batch.images, self.model.vision.tokens + 1)
            rows += self._bidirectional(tower, work, "vision ") + self._projector(batch)
        if part.first and self.model.encoder is not None:
            work = causal(groups * batch.sequences, batch.source)
            rows += self._bidirectional(encoder_of(self.model), work, "encoder ")
        work = causal(groups * batch.sequences, batch.length)
        decoder = self._unfused(self._pass(part.model, part.first, part.last).layers(work), "")
        if self.model.encoder is not None:
            decoder += self._cross(part.model, batch)
        return self._sorted(rows + decoder)

    def _sorted(self, rows: list[Operator]) -> list[Operator]:
        """Return the kernels with those that sort rows by expert before it and back after, of each sender and receiver.

        Inference kernels gather rows as they read them; training keeps them sorted for the gradients.
        """
        times = 2 if self.layout.expert > 1 else 1
        found: list[Operator] = []
        for o in rows:
            if not isinstance(o.shape, Experts):
                found.append(o)
                continue
            held = o.shape.tokens * o.shape.topk * o.shape.local / o.shape.experts
            moved = Elementwise(2 * held * o.shape.hidden * self.value_bytes)
            sort, back = (
                Operator("sort by expert", times * o.calls, moved),
                Operator("sort back", times * o.calls, moved),
            )
            found += [sort, o, back]
        return found

    def _bidirectional(self, card: Transformer, work: Work, prefix: str) -> list[Operator]:
        rows = Pass(card, self.layout_of(card), self.precision, self.skew, False, True).layers(work)
        rows = [o._replace(shape=unmasked(o.shape)) if isinstance(o.shape, PromptAttention) else o for o in rows]
        return self._unfused(rows, prefix)

    def _unfused(self, rows: list[Operator], prefix: str) -> list[Operator]:
        """Return the kernels with attention as three of them unless it is fused, named after their stack."""
        if self.recipe.fused_attention:
            return [o._replace(name=prefix + o.name) for o in rows]
        split: list[Operator] = []
        for o in rows:
            split += self._core(o) if isinstance(o.shape, PromptAttention) else [o._replace(name=prefix + o.name)]
        return split

    def _core(self, operator: Operator) -> list[Operator]:
        """Return scores, softmax and weighted values as products through memory, what a mask hides too.

        Dropout is part of the softmax's kernel.
        """
        shape, calls = operator.shape, operator.calls
        assert isinstance(shape, PromptAttention)
        queries, keys = shape.tokens // shape.sequences, round(shape.kv_tokens / shape.sequences)
        batch = shape.sequences * shape.heads
        scores = batch * queries * keys
        moved = scores * (2 * self.value_bytes + (2 * self.value_bytes + 1 if self.recipe.dropout else 0))
        names = ACTIVATIONS
        return [
            Operator(names[0], calls, Gemm(queries, keys, shape.key_dim, "bf16", batch)),
            Operator(names[1], calls, Elementwise(moved)),
            Operator(names[2], calls, Gemm(queries, shape.value_dim, keys, "bf16", batch)),
        ]

    def _projector(self, batch: MicroBatch) -> list[Operator]:
        tower, hidden, form = self.model.vision, self.model.hidden, self.precision.weights
        assert tower is not None
        tokens = batch.sequences * batch.images * tower.tokens
        rows = [
            Operator("patches", 1, Gemm(tokens, tower.hidden, 3 * tower.patch**2, form)),
            Operator("projector", 1, Gemm(tokens, hidden, tower.hidden, form)),
        ]
        if tower.projector_layers > 1:
            rows.append(Operator("projector", tower.projector_layers - 1, Gemm(tokens, hidden, hidden, form)))
        return rows

    def _cross(self, card: Transformer, batch: MicroBatch) -> list[Operator]:
        """Return cross-attention of decoder layers: queries of the decoder over keys and values of the encoder."""
        own, part, calls = self._pass(card), self.model.attention, card.layers
        form, hidden, tokens = self.precision.of_attention, self.model.hidden, self._positions(batch)
        memory = batch.sequences * batch.source
        held = batch.sequences * -(-batch.source // self.layout.context)
        keys, values = own.kv_heads * part.key_dim, own.kv_heads * part.value_dim
        shape = PromptAttention(
            tokens,
            tokens * batch.source,
            memory,
            batch.sequences,
            own.heads,
            own.kv_heads,
            part.key_dim,
            part.value_dim,
            causal=False,
        )
        rows = [
            Operator("cross norm", calls, Elementwise(4 * tokens * hidden * self.value_bytes)),
            Operator("cross query projection", calls, Gemm(tokens, own.heads * part.key_dim, hidden, form)),
            Operator("cross key and value projection", calls, Gemm(held, keys + values, hidden, form)),
            Operator("cross attention", calls, shape),
            Operator("cross output projection", calls, Gemm(tokens, hidden, own.heads * part.value_dim, form)),
        ]
        if self.layout.tensor > 1:
            row = tokens * hidden * self.value_bytes
            kinds = ("reduce_scatter", "all_gather") if self.layout.sequence_parallel else ("all_reduce",)
            rows += [Operator(f"cross {k}", calls, Collective(k, row, self.layout.tensor, "tensor")) for k in kinds]
        return self._unfused(rows, "")

    def _head(self, batch: MicroBatch) -> list[Operator]:
        """Return the LM head and the loss of every position, the vocabulary split over tensor ranks."""
        tokens, tensor = self._positions(batch), self.layout.tensor
        columns = vocabulary_per_rank(self.model, self.layout)
        # reads the logits; writes and reads a copy; writes logarithms of probabilities beside it
        copies = self.value_bytes + {"fused": 0, "copied": 2, "plain": 3}[self.recipe.loss] * FP32_BYTES
        rows = [
            Operator("LM head", 1, Gemm(tokens, columns, self.model.hidden, self.precision.head)),
            Operator("cross-entropy", 1, Elementwise(tokens * columns * copies)),
        ]
        if tensor > 1:  # largest logit, its own logit, sum of exponents
            rows.append(Operator(LOSS_SUMS, 3, Collective("all_reduce", tokens * FP32_BYTES, tensor, "tensor")))
        return rows

    def _send(self, batch: MicroBatch) -> Operator:
        row = self._positions(batch) * self.model.hidden * self.value_bytes / self.layout.tensor
        return Operator("send to next stage", 1, Collective("send_receive", row, 2, "pipeline"))

    # -- once a step ----------------------------------------------------------------------------------------------

    def exchange(self, part: Slice) -> Exchange:
        """Return what the data-parallel ranks of a virtual stage exchange, experts in a group of their own."""
        own = parameters_of(part, self.model, self.layout)
        kinds = (("data", own.dense, self.dense_ranks), ("expert data", own.experts, self.recipe.replicas))
        groups = [(name, count, ranks) for name, count, ranks in kinds if count and ranks > 1]

        def rows(operation: str, width: float) -> list[Operator]:
            name = operation.replace("_", "-") + (" of weights" if operation == "all_gather" else " of gradients")
            return [
                Operator(name, 1, Collective(operation, count * width, ranks, group)) for group, count, ranks in groups
            ]

        gather, scatter = rows("all_gather", WEIGHT_BYTES), rows("reduce_scatter", self.recipe.gradient_bytes)
        if self.recipe.zero == 0:
            return Exchange([], [], rows("all_reduce", self.recipe.gradient_bytes))
        if self.recipe.zero == 1:
            return Exchange([], [], scatter + gather)
        if self.recipe.zero == 2:
            return Exchange([], scatter, gather)
        return Exchange(gather, gather + scatter, [])

    def optimizer(self, rank: int) -> list[Operator]:
        """Return the update of a pipeline rank's parameters: norm of the gradients, Adam, narrow copies of weights."""
        own, recipe = self.parameters(rank), self.recipe
        shards = (self.dense_ranks, recipe.replicas) if recipe.zero else (1, 1)
        updated = own.dense / shards[0] + own.experts / shards[1]
        moved = recipe.gradient_bytes + 2 * recipe.state_bytes + WEIGHT_BYTES
        rows = [
            Operator("gradient norm", 1, Elementwise(updated * recipe.gradient_bytes)),
            Operator("Adam", 1, Elementwise(updated * moved)),
        ]
        narrow = ((own.dense, self.precision.weights), (own.experts, self.precision.of_experts))
        for count, form in narrow:
            if count and FORMATS[form].scaled:  # in both orders, for the product and for its gradient
                size = count * (WEIGHT_BYTES + 2 * FORMATS[form].weight_bits / 8)
                rows.append(Operator("quantise weights", 1, Elementwise(size)))
        return rows


def causal(sequences: int, length: int) -> Work:
    """Return the work of whole sequences of one length under the causal mask."""
    return Work(sequences * length, sequences * length * (length + 1) / 2, sequences)


def unmasked(shape: PromptAttention) -> PromptAttention:
    """Return attention of every query to every key."""
    return shape._replace(pairs=shape.tokens * shape.kv_tokens / shape.sequences, causal=False)


def model_flops(model: Transformer, batch: MicroBatch, masked: bool = True) -> float:
    """Return the operations that a micro-batch needs by the model's own arithmetic: three times its forward pass.

    Recomputation does not count, nor does attention that the causal mask hides unless `masked` is off, as in the
    formula of arXiv:2104.04473. Divided by time, devices and peak it is the model FLOPs utilisation (MFU).
    """
    whole = TrainingPass(model, Layout(), Recipe(fused_attention=masked))
    return 3 * sum(o.calls * flops_of(o.shape) for part in whole.slices for o in whole.stage(part, batch).forward)
