"""Training passes against the published formulas: operations, parameters, bytes that ranks exchange."""

from dataclasses import dataclass
from math import isclose

import pytest

from simulator import catalog
from simulator.errors import InputError
from simulator.model.architecture import Encoder, GroupedAttention, LatentAttention, MixtureOfExperts, Vision, Window
from simulator.model.backward import flops_of
from simulator.model.layout import Layout
from simulator.model.operators import Collective, Gemm, Operator
from simulator.model.precision import Precision
from simulator.model.stages import has_experts, slices
from simulator.model.training import MicroBatch, Recipe, StageOperators, TrainingPass, model_flops
from simulator.model.transformer import Transformer, load_model


def gpt(layers: int = 8, hidden: int = 1024, heads: int = 16, vocabulary: int = 51200, **more: object) -> Transformer:
    part = GroupedAttention(heads=heads, kv_heads=heads, head_dim=hidden // heads)
    return Transformer(
        name="gpt",
        layers=layers,
        hidden=hidden,
        attention=part,
        intermediate=4 * hidden,
        vocabulary=vocabulary,
        max_context=4096,
        sources={},
        **({"gated": False} | more),  # type: ignore[arg-type]
    )


DEEPSEEK_V3 = Transformer(
    name="deepseek-v3",
    layers=61,
    hidden=7168,
    attention=LatentAttention(
        kind="latent", heads=128, query_rank=1536, kv_rank=512, nope_dim=128, rope_dim=64, value_dim=128
    ),
    intermediate=18432,
    experts=MixtureOfExperts(experts=256, active=8, intermediate=2048, layers=58, shared=1, router_bias=True),
    vocabulary=129280,
    max_context=163840,
    sources={},
)
SWITCH = gpt(experts=MixtureOfExperts(experts=8, active=1, intermediate=4096, layers=4, every=2))
T5 = gpt(encoder=Encoder(layers=8), positions="relative", tied_embeddings=True)
LLAVA = gpt(vision=Vision(layers=4, hidden=512, heads=8, intermediate=2048, patch=14, image=336), gated=True)


@dataclass
class Totals:
    """Sums over all virtual stages."""

    forward: float = 0.0
    backward: float = 0.0
    weight: float = 0.0
    recompute: float = 0.0

    @property
    def all(self) -> float:
        return self.forward + self.backward + self.weight + self.recompute


def flops(operators: list[Operator]) -> float:
    return sum(o.calls * flops_of(o.shape) for o in operators)


def totals(training: TrainingPass, batch: MicroBatch) -> Totals:
    sums = Totals()
    for part in training.slices:
        stage = training.stage(part, batch)
        for name in StageOperators._fields:
            setattr(sums, name, getattr(sums, name) + flops(getattr(stage, name)))
    return sums


SHAPES = [(24, 2304, 24, 8, 1024), (40, 6144, 48, 4, 2048), (96, 12288, 96, 1, 2048)]
LAYOUTS = [Layout(), Layout(tensor=8), Layout(tensor=4, pipeline=2, sequence_parallel=True), Layout(pipeline=8)]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize(("layers", "hidden", "heads", "batch", "length"), SHAPES)
def test_the_formula_of_megatron(layers: int, hidden: int, heads: int, batch: int, length: int, layout: Layout) -> None:
    """A step with recomputed layers takes 96 B s l h^2 (1 + s/6h + V/16lh) operations (arXiv:2104.04473)."""
    model = gpt(layers, hidden, heads)
    training = TrainingPass(model, layout, Recipe(recompute="full", fused_attention=False))
    sums = totals(training, MicroBatch(batch, length))
    rest = 1 + length / (6 * hidden) + model.vocabulary / (16 * layers * hidden)
    assert isclose(sums.all * layout.tensor, 96 * batch * length * layers * hidden**2 * rest, rel_tol=1e-12)


@pytest.mark.parametrize(("layers", "hidden", "heads", "batch", "length"), SHAPES)
def test_model_operations_without_recomputation(layers: int, hidden: int, heads: int, batch: int, length: int) -> None:
    """Model operations are 72 B s l h^2 (1 + s/6h + V/12lh): three times the forward pass."""
    model = gpt(layers, hidden, heads)
    rest = 1 + length / (6 * hidden) + model.vocabulary / (12 * layers * hidden)
    counted = model_flops(model, MicroBatch(batch, length), masked=False)
    assert isclose(counted, 72 * batch * length * layers * hidden**2 * rest, rel_tol=1e-12)


def test_forward_is_two_operations_a_weight_and_the_attention() -> None:
    """2 N tokens + 4 h pairs l, where N leaves out the looked-up table and the norms; backward and weights as much."""
    model, batch = gpt(), MicroBatch(2, 512)
    used = model.parameters - model.vocabulary * model.hidden - (2 * model.layers + 1) * model.norm_width
    products = 2 * used * batch.tokens
    attention = 4 * model.hidden * model.layers * 2 * 512 * 513 / 2
    sums = totals(TrainingPass(model, Layout()), batch)
    assert isclose(sums.forward, products + attention, rel_tol=1e-12)
    assert isclose(sums.backward, products + 2.5 * attention, rel_tol=1e-12)
    assert isclose(sums.weight, products, rel_tol=1e-12)
    assert model_flops(model, batch) == 3 * sums.forward


def test_operations_per_token_of_deepseek_v3() -> None:
    """The publishers count 250 GFLOP per token at sequences of 4,096."""
    assert model_flops(DEEPSEEK_V3, MicroBatch(1, 4096)) / 4096 == pytest.approx(250e9, rel=0.02)


def test_experts_work_on_the_tokens_sent_to_them() -> None:
    """A token of a layer with experts passes `active` of them: top-1 of width 4 h costs what the dense MLP does."""
    batch = MicroBatch(1, 1024)
    router = 3 * 2 * SWITCH.expert_layers * batch.tokens * SWITCH.hidden * 8
    assert isclose(model_flops(SWITCH, batch), model_flops(gpt(), batch) + router, rel_tol=1e-12)


def test_rows_are_sorted_by_expert_and_back() -> None:
    """Each row sent to an expert is read and written once before it and once after, twice when it also travels."""
    for layout, times in ((Layout(), 1), (Layout(data=2, expert=2), 2)):
        training = TrainingPass(SWITCH, layout)
        forward = training.stage(training.slices[0], MicroBatch(1, 512)).forward
        for name in ("sort by expert", "sort back"):
            sort = next(o for o in forward if o.name == name)
            assert sort.calls == times * SWITCH.expert_layers
            assert sort.shape.size_bytes == 2 * 512 * 1024 * 2  # type: ignore[union-attr]


@pytest.mark.parametrize("expert", [1, 2, 4, 8])
def test_expert_parallel_ranks_share_the_work(expert: int) -> None:
    layout = Layout(data=expert, expert=expert)
    alone, shared = (totals(TrainingPass(SWITCH, at), MicroBatch(1, 1024)) for at in (Layout(), layout))
    assert isclose(alone.forward, shared.forward, rel_tol=1e-12)
    assert isclose(alone.weight, shared.weight, rel_tol=1e-12)


def test_cross_attention_of_an_encoder_and_decoder() -> None:
    """Encoder: 24 h^2 + 4 s h a token; decoder: 32 h^2 of which 4 h^2 on source tokens, its own and cross attention."""
    h, source, length, layers = T5.hidden, 512, 128, T5.layers
    encoder = layers * source * (24 * h**2 + 4 * source * h)
    own = layers * (length * (24 * h**2 + 2 * (length + 1) * h))
    cross = layers * (length * 4 * h**2 + source * 4 * h**2 + 4 * length * source * h)
    head = 2 * length * h * T5.vocabulary
    counted = totals(TrainingPass(T5, Layout()), MicroBatch(1, length, source=source)).forward
    assert isclose(counted, encoder + own + cross + head, rel_tol=1e-12)


def test_a_vision_tower_and_its_projector() -> None:
    """Tower: (24 w^2 + 4 n w) on n patches and a class token; projector: two products into the hidden width."""
    tower = LLAVA.vision
    assert tower is not None
    n, w, h = tower.tokens, tower.hidden, LLAVA.hidden
    seen = tower.layers * (n + 1) * (24 * w**2 + 4 * (n + 1) * w)
    projector = 2 * n * (w * h + h * h + 3 * 14**2 * w)
    with_image, without = (totals(TrainingPass(LLAVA, Layout()), MicroBatch(1, 1024, images=k)).forward for k in (1, 0))
    assert isclose(with_image - without, seen + projector, rel_tol=1e-12)


@pytest.mark.parametrize("layout", [*LAYOUTS, Layout(tensor=2, pipeline=4)], ids=str)
@pytest.mark.parametrize("model", [gpt(), gpt(tied_embeddings=True), T5, LLAVA], ids=lambda m: m.name)
def test_stages_hold_all_parameters(model: Transformer, layout: Layout) -> None:
    """The stages' parameters are the model's: tensor ranks copy norms and tower, the last stage a tied table."""
    training = TrainingPass(model, layout)
    held = sum(training.parameters(rank).total for rank in range(layout.pipeline)) * layout.tensor
    norms = model.norm_width * (2 * model.layers + 1)
    if model.encoder:
        norms += model.norm_width * (model.layers + 2 * model.encoder.layers + 1) + 2 * 32 * model.attention.heads
    copied = norms + (model.vision.parameters(model.hidden) if model.vision else 0)
    tied = model.vocabulary * model.hidden if model.tied_embeddings and layout.pipeline > 1 else 0
    assert held == model.parameters + tied + (layout.tensor - 1) * copied


TRAINED = [name for name in catalog.names("workloads/models") if load_model(name).attention.index is None]


@pytest.mark.parametrize("name", TRAINED)
def test_stages_hold_all_parameters_of_each_card(name: str) -> None:
    model = load_model(name)
    for stages in (1, 4):
        training = TrainingPass(model, Layout(pipeline=stages))
        held = sum(training.parameters(rank).total for rank in range(stages))
        assert held == model.parameters + (
            model.vocabulary * model.hidden if model.tied_embeddings and stages > 1 else 0
        )


def test_experts_are_parameters_of_their_own() -> None:
    whole = TrainingPass(DEEPSEEK_V3, Layout()).parameters(0)
    assert whole.total == DEEPSEEK_V3.parameters
    layout = Layout(pipeline=16, data=64, expert=64)
    held = [TrainingPass(DEEPSEEK_V3, layout).parameters(rank) for rank in range(16)]
    assert sum(p.experts for p in held) * 64 == whole.experts
    assert sum(p.dense for p in held) == whole.dense


@pytest.mark.parametrize("chunks", [1, 2, 4])
def test_chunks_divide_a_rank_and_change_nothing_else(chunks: int) -> None:
    batch, layout = MicroBatch(1, 512), Layout(pipeline=2)
    training = TrainingPass(gpt(), layout, Recipe(chunks=chunks))
    assert [part.rank for part in training.slices] == [0, 1] * chunks
    assert totals(training, batch).all == totals(TrainingPass(gpt(), layout), batch).all
    assert sum(training.parameters(rank).total for rank in (0, 1)) == gpt().parameters


def test_layers_are_placed_as_given_or_refused() -> None:
    assert [part.model.layers for part in slices(DEEPSEEK_V3, 16)] == [4] * 13 + [3] * 3
    assert [part.model.layers for part in slices(gpt(), 2, counts=(3, 5))] == [3, 5]
    assert [part.model.expert_layers for part in slices(DEEPSEEK_V3, 4)] == [13, 15, 15, 15]
    assert [has_experts(SWITCH, layer) for layer in range(4)] == [False, True, False, True]
    windowed = gpt().model_copy(
        update={"attention": gpt().attention.model_copy(update={"window": Window(tokens=128, layers=4)})}
    )
    assert [part.model.attention.window.layers for part in slices(windowed, 4)] == [1, 1, 1, 1]  # type: ignore[union-attr]
    for counts in ((8, 1), (8,), (0, 8)):
        with pytest.raises(InputError):
            slices(gpt(), 2, counts=counts)


def collectives(operators: list[Operator], group: str) -> list[tuple[str, int]]:
    shapes = [(o.shape, o.calls) for o in operators if isinstance(o.shape, Collective) and o.shape.group == group]
    return [(shape.operation, calls) for shape, calls in shapes]


def test_tensor_ranks_sum_twice_a_layer_forward_and_backward() -> None:
    """Four all-reduces a layer (arXiv:1909.08053), one after the embedding, one before the head going back."""
    model, batch = gpt(), MicroBatch(1, 512)
    part = TrainingPass(model, Layout(tensor=4)).slices[0]
    stage = TrainingPass(model, Layout(tensor=4)).stage(part, batch)
    assert collectives(stage.forward, "tensor") == [("all_reduce", 17), ("all_reduce", 3)]  # and three of the loss
    assert collectives(stage.backward, "tensor") == [("all_reduce", 17)]
    assert collectives(stage.weight, "tensor") == []
    split = TrainingPass(model, Layout(tensor=4, sequence_parallel=True)).stage(part, batch)
    assert collectives(split.forward, "tensor")[:2] == [("reduce_scatter", 17), ("all_gather", 17)]
    assert sorted(collectives(split.backward, "tensor")) == [("all_gather", 17), ("reduce_scatter", 17)]
    assert collectives(split.weight, "tensor") == [("all_gather", 17)]


def test_a_tower_that_does_not_split_runs_on_every_rank() -> None:
    """Three tensor ranks share the language model's heads and not the tower's eight, whose work each repeats."""
    model, batch = gpt(hidden=768, heads=12, vision=LLAVA.vision), MicroBatch(1, 1024, images=1)
    work = []
    for layout in (Layout(), Layout(tensor=3)):
        training = TrainingPass(model, layout)
        forward = training.stage(training.slices[0], batch).forward
        work.append(flops([o for o in forward if o.name.startswith("vision ")]))
    assert work[0] == work[1] > 0


def test_stages_hand_on_activations_and_their_gradients() -> None:
    training = TrainingPass(gpt(), Layout(pipeline=4), Recipe(chunks=2))
    stages = [training.stage(part, MicroBatch(1, 512)) for part in training.slices]
    assert [collectives(s.forward, "pipeline") != [] for s in stages] == [True] * 7 + [False]
    assert [collectives(s.backward, "pipeline") != [] for s in stages] == [False] + [True] * 7
    sent = next(o.shape for o in stages[0].forward if o.name == "send to next stage")
    assert sent.size_bytes == 512 * 1024 * 2


def test_what_is_computed_again() -> None:
    batch = MicroBatch(1, 512)
    for mode, attention in (("none", 0.0), ("selective", 1.0)):
        training = TrainingPass(gpt(), Layout(), Recipe(recompute=mode, fused_attention=False))  # type: ignore[arg-type]
        assert totals(training, batch).recompute == attention * 4 * 8 * 512**2 * 1024
    full = TrainingPass(gpt(), Layout(), Recipe(recompute="full"))
    head = 2 * 512 * 1024 * 51200
    assert totals(full, batch).recompute == totals(full, batch).forward - head


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_data_parallel_ranks_exchange_gradients_and_weights(zero: int) -> None:
    """All-reduce, or its two halves: gradients of 4 bytes scattered, weights of 2 gathered, by ZeRO-3 twice."""
    training = TrainingPass(gpt(), Layout(data=2), Recipe(replicas=4, zero=zero))
    n = training.parameters(0).total
    exchange = training.exchange(training.slices[0])
    scatter, gather = ("reduce_scatter", 4 * n, 8), ("all_gather", 2 * n, 8)
    expected = {
        0: ([], [], [("all_reduce", 4 * n, 8)]),
        1: ([], [], [scatter, gather]),
        2: ([], [scatter], [gather]),
        3: ([gather], [gather, scatter], []),
    }
    found = tuple([tuple(o.shape[:3]) for o in part] for part in exchange)
    assert found == expected[zero]
    updated = training.optimizer(0)[1].shape
    assert updated.size_bytes == (4 + 24 + 2) * n / (8 if zero else 1)  # type: ignore[union-attr]


def test_experts_are_reduced_among_their_copies_alone() -> None:
    training = TrainingPass(SWITCH, Layout(data=8, expert=8), Recipe(replicas=3))
    own = training.parameters(0)
    groups = {o.shape.group: o.shape for o in training.exchange(training.slices[0]).step}  # type: ignore[union-attr]
    assert groups["data"].ranks == 24
    assert groups["expert data"].ranks == 3
    assert groups["expert data"].size_bytes == 2 * own.experts
    alone = TrainingPass(SWITCH, Layout(data=8, expert=8))
    assert {o.shape.group for o in alone.exchange(alone.slices[0]).step} == {"data"}  # type: ignore[union-attr]


def test_narrow_formats_cost_conversions_and_no_other_operations() -> None:
    batch, precision = MicroBatch(1, 512), Precision(weights="fp8")
    wide, narrow = TrainingPass(gpt(), Layout()), TrainingPass(gpt(), Layout(), precision=precision)
    assert totals(wide, batch) == totals(narrow, batch)
    stage = narrow.stage(narrow.slices[0], batch)
    formats = {o.shape.format for o in stage.weight if isinstance(o.shape, Gemm) and not o.name.startswith("LM head")}
    assert formats == {"fp8"}
    assert sum(o.calls for o in stage.backward if o.name == "quantise backward") == 4 * 8
    assert "quantise weights" in [o.name for o in narrow.optimizer(0)]


def test_gradients_are_added_up_in_their_own_type() -> None:
    batch = MicroBatch(1, 512)
    for name in ("fp32", "bf16"):
        stage = TrainingPass(gpt(), Layout(), Recipe(gradients=name)).stage(slices(gpt(), 1)[0], batch)
        assert {o.shape.output for o in stage.weight if isinstance(o.shape, Gemm)} == {name}
