"""Weights by rank: what all devices of a layout hold is the model and copies, counted by hand.

A layout of p stages, t tensor ranks, D = data x context copies and e expert ranks has t D devices a stage; x = t D / e
of them share an expert. Of a layer with hidden width h, H heads, K KV heads of width d:

- attention is split over t and copied D times; beyond that t - K KV heads (when that is more than none) are copied, and
  on t - 1 ranks the bias of the output projection and norms that all heads share; of MLA the compressions;
- dense MLP and shared experts are split over t and copied D times, the bias of the way down on t - 1 more ranks;
- a routed expert is split over x; when e is more than the number of experts, each rank has one all the same;
- routers, norms, vision tower and learned positions are on all devices;
- of the vocabulary V each rank has ceil(V / t) rows of a table, copied D times; a tied table is on the first stage, on
  the last, and on the one where a decoder with an encoder starts; another has its input side only on first and start.
"""

from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from simulator import catalog
from simulator.errors import InputError
from simulator.model.layout import Layout
from simulator.model.precision import Precision
from simulator.model.split import (
    Weights,
    absorbed_bytes,
    check_layout,
    experts_per_rank,
    kv_bytes_per_token_per_rank,
    layers_per_stage,
    splits_over,
    stages,
    vocabulary_per_rank,
    weight_bytes_per_rank,
    weights_of,
    weights_per_rank,
)
from simulator.model.transformer import RELATIVE_BUCKETS, Transformer, load_model

NAMES = catalog.names("workloads/models")
DEGREES = st.sampled_from([1, 2, 4])


@st.composite
def attentions(draw: st.DrawFn) -> dict[str, Any]:
    heads = draw(st.sampled_from([4, 8]))
    if draw(st.booleans()):
        ranks = {"kv_rank": 6, "nope_dim": 4, "rope_dim": 2, "value_dim": 3}
        return {"kind": "latent", "heads": heads, "query_rank": draw(st.sampled_from([None, 10])), **ranks}
    return {
        "kind": "grouped",
        "heads": heads,
        "kv_heads": draw(st.sampled_from([1, 2, 4])),
        "head_dim": draw(st.sampled_from([2, 4])),
        "qkv_bias": draw(st.booleans()),
        "output_bias": draw(st.booleans()),
        "qk_norm": draw(st.sampled_from([None, "head", "layer"])),
        "sinks": draw(st.booleans()),
    }


@st.composite
def cards(draw: st.DrawFn) -> Transformer:
    every = draw(st.sampled_from([1, 2]))
    layers = draw(st.integers(every, 9))
    experts = None
    if draw(st.booleans()):
        experts = {
            "experts": draw(st.integers(1, 6)),
            "active": 1,
            "intermediate": 32,
            "layers": draw(st.integers(1, layers // every)),
            "every": every,
            "shared": draw(st.integers(0, 2)),
            "shared_gate": draw(st.booleans()),
            "router_bias": draw(st.booleans()),
        }
    encoder = None
    if draw(st.booleans()):
        length = draw(st.integers(1, 6))
        encoder = {"layers": length, "expert_layers": draw(st.integers(0, length // every)) if experts else 0}
    positions = draw(st.sampled_from(["rotary", "learned", "relative", "alibi"]))
    vision = {"layers": 1, "hidden": 4, "heads": 2, "intermediate": 8, "patch": 2, "image": 4}
    return Transformer.model_validate(
        {
            "name": "card",
            "layers": layers,
            "hidden": 6,
            "attention": draw(attentions()),
            "intermediate": 8,
            "gated": draw(st.booleans()),
            "mlp_bias": draw(st.booleans()),
            "experts": experts,
            "norm": draw(st.sampled_from(["rms", "layer"])),
            "norms": draw(st.sampled_from([1, 2, 4])),
            "positions": positions,
            "position_rows": 7 if positions == "learned" else None,
            "embedding_norm": draw(st.booleans()),
            "vocabulary": draw(st.integers(1, 50)),
            "tied_embeddings": draw(st.booleans()),
            "head_bias": draw(st.booleans()),
            "encoder": encoder,
            "vision": vision if draw(st.booleans()) else None,
            "max_context": 7,
            "sources": {},
        }
    )


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    tensor, data, context = draw(DEGREES), draw(DEGREES), draw(st.sampled_from([1, 2]))
    expert = draw(st.sampled_from([each for each in (1, 2, 4, 8) if tensor * data * context % each == 0]))
    return Layout(tensor=tensor, data=data, context=context, expert=expert, pipeline=draw(st.integers(1, 5)))


def held(model: Transformer, layout: Layout) -> Weights:
    """All that the devices of a layout hold, by part."""
    ranks = [weights_of(model, layout, stage, rank) for stage in stages(model, layout) for rank in range(layout.expert)]
    return Weights(*(layout.expert_tensor * sum(part) for part in zip(*ranks, strict=True)))


def copied_attention(model: Transformer, t: int) -> int:
    """Parameters of one layer's attention that t ranks hold beyond those of the model."""
    part, h = model.attention, model.hidden
    if part.kind == "latent":
        compressed = h * (part.kv_rank + part.rope_dim) + part.kv_rank
        compressed += 0 if part.query_rank is None else (h + 1) * part.query_rank
        return (t - 1) * compressed
    more = max(t - part.kv_heads, 0) * part.head_dim
    shared = (h if part.output_bias else 0) + (2 * part.head_dim if part.qk_norm == "head" else 0)
    return more * (2 * (h + part.qkv_bias) + (part.qk_norm == "layer")) + (t - 1) * shared


@settings(max_examples=400)
@given(model=cards(), layout=layouts())
def test_all_devices_hold_the_model_and_the_copies_that_the_layout_makes(model: Transformer, layout: Layout) -> None:
    t, copies, h, part = layout.tensor, layout.data * layout.context, model.hidden, model.attention
    encoder, experts = model.encoder, model.experts
    before = encoder.layers if encoder else 0
    assume(layout.pipeline <= before + model.layers)
    found, pipeline = held(model, layout), stages(model, layout)
    with_experts = (experts.layers + (encoder.expert_layers if encoder else 0)) if experts else 0
    attentions = before + model.layers + (model.layers if encoder else 0)

    own = part.parameters(h, part.heads, part.kv_heads)
    has_decoder = sum(stage.decoder[0] < stage.decoder[1] for stage in pipeline)
    has_encoder = sum(stage.encoder[0] < stage.encoder[1] for stage in pipeline)
    tables = (has_decoder + has_encoder) * RELATIVE_BUCKETS * part.heads if model.positions == "relative" else 0
    assert found.attention == copies * (attentions * (own + copied_attention(model, t)) + tables)

    def mlp(width: int, ranks: int) -> int:
        return model.mlp_parameters(width) + (ranks - 1) * (h if model.mlp_bias else 0)

    assert found.mlp == copies * (before + model.layers - with_experts) * mlp(model.intermediate, t)
    if experts:
        width = experts.shared_width
        assert found.shared == copies * with_experts * (mlp(width, t) if width else 0)
        each = mlp(experts.intermediate, layout.expert_tensor)
        assert found.experts == with_experts * max(experts.experts, layout.expert) * each
    else:
        assert found.shared == found.experts == found.routers == 0
    assert found.routers == t * copies * with_experts * model.router_parameters()
    norms = model.norms * (before + model.layers) + 1 + model.embedding_norm
    norms += model.layers + 1 if encoder else 0  # of cross-attention, and at the end of the encoder
    assert found.norms == t * copies * norms * model.norm_width
    assert found.vision == t * copies * (model.vision.parameters(h) if model.vision else 0)

    start = next(at for at, stage in enumerate(pipeline) if stage.decoder[0] < stage.decoder[1])
    entries = {0, start} if encoder else {0}
    last = layout.pipeline - 1
    rows = -(-model.vocabulary // t) * t
    count = len(entries | {last}) if model.tied_embeddings else len(entries) + 1
    positions = t * (model.position_rows or 0) * h
    assert found.embeddings == copies * (count * rows * h + (rows if model.head_bias else 0) + positions)


@given(model=cards())
def test_one_device_holds_the_model(model: Transformer) -> None:
    assert weights_per_rank(model, Layout()).total == model.parameters
    assert weight_bytes_per_rank(model, Layout()) == 2 * model.parameters


@pytest.mark.parametrize("name", NAMES)
def test_one_device_holds_all_of_a_shipped_model(name: str) -> None:
    model = load_model(name)
    assert weights_per_rank(model, Layout()).total == model.parameters


@given(model=cards(), layout=layouts())
def test_the_fullest_rank_holds_no_less_than_any(model: Transformer, layout: Layout) -> None:
    assume(layout.pipeline <= model.layers)
    every = [weights_of(model, layout, stage, rank) for stage in stages(model, layout) for rank in range(layout.expert)]
    assert weights_per_rank(model, layout).total == max(weights.total for weights in every)
    assert weight_bytes_per_rank(model, layout) == 2 * max(weights.total for weights in every)


@given(layers=st.integers(1, 130), before=st.integers(0, 40), pipeline=st.integers(1, 64))
def test_stages_cover_the_layers_once_and_evenly(layers: int, before: int, pipeline: int) -> None:
    assume(pipeline <= layers + before)
    model = load_model("t5-3b" if before else "llama-3-8b").model_copy(update={"layers": layers})
    if before:
        assert model.encoder is not None
        model = model.model_copy(update={"encoder": model.encoder.model_copy(update={"layers": before})})
    found = stages(model, Layout(pipeline=pipeline))
    assert [stage.first for stage in found] == [True] + [False] * (pipeline - 1)
    assert [stage.last for stage in found] == [False] * (pipeline - 1) + [True]
    covered = [layer for stage in found for layer in range(*stage.encoder)]
    assert covered == list(range(before))
    covered = [layer for stage in found for layer in range(*stage.decoder)]
    assert covered == list(range(layers))
    sizes = [stage.encoder[1] - stage.encoder[0] + stage.decoder[1] - stage.decoder[0] for stage in found]
    assert max(sizes) - min(sizes) <= 1
    assert sizes[-1] == min(sizes)
    if not before:
        assert layers_per_stage(model, Layout(pipeline=pipeline)) == -(-layers // pipeline)


@given(tensor=st.sampled_from([1, 2, 4, 8, 16, 32]), kv_heads=st.sampled_from([1, 2, 4, 8, 32]))
def test_kv_cache_is_shared_until_one_head_is_left_then_copied(tensor: int, kv_heads: int) -> None:
    model = load_model("llama-3-8b")
    model = model.model_copy(update={"attention": model.attention.model_copy(update={"kv_heads": kv_heads})})
    each = kv_bytes_per_token_per_rank(model, Layout(tensor=tensor))
    assert each * tensor == model.kv_bytes_per_token() * max(1, tensor // kv_heads)


def test_one_latent_is_on_every_tensor_rank_and_once_over_data_ranks() -> None:
    model, bytes_each = load_model("deepseek-v3"), (512 + 64) * 61 * 2
    assert kv_bytes_per_token_per_rank(model, Layout(tensor=8)) == bytes_each
    assert kv_bytes_per_token_per_rank(model, Layout(data=8, expert=8)) == bytes_each / 8
    assert kv_bytes_per_token_per_rank(model, Layout(data=8, expert=8), Precision(kv="fp8")) == bytes_each / 16


def test_a_rank_of_deepseek_v3_by_hand() -> None:
    """Data-parallel attention over 32 devices, experts over all: 8 of 256, and one shared, on each device."""
    h, w = 7168, 2048
    model, layout = load_model("deepseek-v3"), Layout(data=32, expert=32)
    attention = h * 1536 + 1536 + 1536 * 128 * 192 + h * 576 + 512 + 512 * 128 * 256 + 128 * 128 * h
    weights = weights_of(model, layout, stages(model, layout)[0])
    assert weights == Weights(
        attention=61 * attention,
        mlp=3 * 3 * h * 18432,
        experts=58 * 8 * 3 * h * w,
        shared=58 * 3 * h * w,
        routers=58 * (256 * h + 256),
        embeddings=2 * 129280 * h,
        norms=(2 * 61 + 1) * h,
        vision=0,
    )
    in_8_bits = weights.attention + weights.mlp + weights.experts + weights.shared
    expected = in_8_bits * (8 + 32 / 16384) / 8 + 2 * (weights.embeddings + weights.norms + weights.routers)
    assert weight_bytes_per_rank(model, layout, model.checkpoint) == round(expected)
    assert absorbed_bytes(model, layout, model.checkpoint) == 2 * 61 * 512 * 128 * 256  # keys and values, in 16 bits
    assert absorbed_bytes(model, Layout(tensor=8, pipeline=4), model.checkpoint) == 2 * 16 * 512 * 16 * 256
    assert (
        absorbed_bytes(model, layout)
        == absorbed_bytes(load_model("llama-3-8b"), Layout(), Precision(weights="fp8"))
        == 0
    )


@pytest.mark.parametrize(("name", "gib"), [("gpt-oss-20b", 12.8), ("gpt-oss-120b", 60.8)])
def test_published_weights_take_the_stated_bytes(name: str, gib: float) -> None:
    model = load_model(name)  # arXiv:2508.10925, Table 1: checkpoint size
    assert weight_bytes_per_rank(model, Layout(), model.checkpoint) / 2**30 == pytest.approx(gib, rel=0.003)


def test_leading_dense_layers_are_on_the_first_stage() -> None:
    model, layout = load_model("deepseek-v3"), Layout(tensor=8, pipeline=4)
    dense = [weights_of(model, layout, stage).mlp for stage in stages(model, layout)]
    assert dense == [3 * model.mlp_parameters(18432 // 8), 0, 0, 0]
    routed = [weights_of(model, layout, stage).experts for stage in stages(model, layout)]
    each = 256 * model.mlp_parameters(2048 // 8)
    assert routed == [12 * each, 15 * each, 16 * each, 15 * each]  # 61 layers as 15, 15, 16, 15


def test_experts_that_do_not_divide_are_more_on_the_first_ranks() -> None:
    model = load_model("deepseek-v3")
    counts = [experts_per_rank(model, Layout(data=48, expert=48), rank) for rank in range(48)]
    assert counts == [6] * 16 + [5] * 32
    assert sum(counts) == 256
    assert experts_per_rank(model, Layout(data=320, expert=320), 319) == 1
    assert experts_per_rank(load_model("llama-3-8b"), Layout()) == 0


def test_rows_of_the_vocabulary_are_rounded_up() -> None:
    model = load_model("gpt3-175b")
    assert vocabulary_per_rank(model, Layout(tensor=8)) == 6283  # 50,257 / 8 = 6,282.1


def test_an_uneven_split_names_the_degrees_that_work() -> None:
    with pytest.raises(InputError, match=r"28 heads.*over 8 tensor-parallel ranks; allowed: 1, 2, 4$") as caught:
        check_layout(load_model("qwen2.5-7b"), Layout(tensor=8))
    assert caught.value.problems[0].path == "layout.tensor"


@pytest.mark.parametrize("name", ["qwen2.5-7b", "deepseek-v3", "gpt-oss-120b", "mixtral-8x7b"])
def test_layouts_that_the_allowed_list_names_do_split(name: str) -> None:
    model = load_model(name)
    good = [degree for degree in range(1, model.attention.heads + 1) if splits_over(model, degree)]
    for degree in good:
        check_layout(model, Layout(tensor=degree, expert=degree if model.experts else 1))
        assert model.attention.heads % degree == 0
    assert 3 not in good


def test_what_is_not_there_does_not_limit_a_split() -> None:
    # gpt-oss has no dense layer, so that 2,880 columns of one need not divide by 64 heads' degrees
    assert splits_over(load_model("gpt-oss-120b"), 64)
    assert not splits_over(load_model("qwen2.5-7b"), 7)  # 4 KV heads over 7 ranks


@pytest.mark.parametrize(
    ("name", "layout", "message"),
    [
        ("mixtral-8x7b", {"tensor": 8, "data": 3, "expert": 1}, r"14336 columns.*24 devices.*; allowed: 3, 6, 12, 24$"),
        ("llama-3-8b", {"data": 2, "expert": 2}, "no experts to split over 2 expert-parallel ranks; allowed: 1$"),
        ("llama-3-8b", {"pipeline": 33}, "32 layers, fewer than 33 stages; allowed: 1 to 32$"),
        ("t5-3b", {"pipeline": 49}, "48 layers, fewer than 49 stages; allowed: 1 to 48$"),
        (
            "deepseek-v3",
            {"tensor": 3, "expert": 3},
            "2048 shared-expert columns.*; allowed: 1, 2, 4, 8, 16, 32, 64, 128$",
        ),
    ],
)
def test_layouts_that_do_not_fit_say_what_does(name: str, layout: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_layout(load_model(name), Layout(**layout))


def test_all_that_is_wrong_with_a_layout_is_said_at_once() -> None:
    with pytest.raises(InputError) as caught:
        check_layout(load_model("llama-3-8b"), Layout(tensor=3, pipeline=40))
    assert [problem.path for problem in caught.value.problems] == ["layout.tensor", "layout.pipeline"]
