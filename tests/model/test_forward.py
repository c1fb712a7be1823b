"""The operators of a forward pass against shapes derived by hand.

Symbols: t tokens on a data-parallel rank, H heads, T tensor ranks, D data ranks, E experts, W expert-parallel ranks.
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.model.forward import Pass, Work, clipped
from simulator.model.layout import Layout
from simulator.model.operators import Collective, Elementwise, Experts, Gemm, Operator, PromptAttention, TokenAttention
from simulator.model.precision import Precision
from simulator.model.transformer import Transformer

GROUPED = {"kind": "grouped", "heads": 64, "kv_heads": 8, "head_dim": 64}
LATENT = {
    "kind": "latent",
    "heads": 128,
    "query_rank": 1536,
    "kv_rank": 512,
    "nope_dim": 128,
    "rope_dim": 64,
    "value_dim": 128,
}
EXPERTS = {"experts": 256, "active": 8, "intermediate": 2048, "layers": 58, "shared": 1}


def card(attention: dict[str, object], **more: object) -> Transformer:
    shape: dict[str, object] = {
        "name": "x",
        "layers": 61,
        "hidden": 7168,
        "intermediate": 18432,
        "vocabulary": 129280,
        "max_context": 4096,
        "sources": {},
    }
    return Transformer.model_validate(shape | {"attention": attention} | more)


def table(model: Transformer, layout: Layout, work: Work, precision: str = "bf16") -> dict[str, Operator]:
    rows = Pass(model, layout, Precision.model_validate(precision)).operators(work)
    assert len({row.name for row in rows}) == len(rows)
    return {row.name: row for row in rows}


def test_decode_of_a_latent_model_with_experts_by_hand() -> None:
    # 512 sequences over D = 8 ranks: t = 64 each, T = 1, all H = 128 heads, E = 256 over W = 8
    rows = table(
        card(LATENT, experts=EXPERTS), Layout(data=8, expert=8), Work(batch=512, context=512 * 3000), "fp8_block"
    )
    form = "fp8_block"
    assert rows["query and latent projection"].shape == Gemm(64, 1536 + 576, 7168, form)
    assert rows["query projection"].shape == Gemm(64, 128 * 192, 1536, form)
    assert rows["absorbed key projection"].shape == Gemm(64, 512, 128, "bf16", 128)
    assert rows["attention"].shape == TokenAttention(64, 64 * 3000, 128, 1, 576, 512, latent=True)
    assert rows["absorbed value projection"].shape == Gemm(64, 128, 512, "bf16", 128)
    assert rows["output projection"].shape == Gemm(64, 7168, 128 * 128, form)
    assert rows["experts"] == Operator("experts", 58, Experts(512, 7168, 2048, 8, 256, 32, form, dispatched=True))
    assert rows["router"].shape == Gemm(64, 256, 7168)
    assert rows["shared gate and up projection"].shape == Gemm(64, 2 * 2048, 7168, form)
    assert rows["gate and up projection"] == Operator("gate and up projection", 3, Gemm(64, 2 * 18432, 7168, form))
    # a token's 8 experts lie on 8 (1 - (7/8)^8) ranks on average; fp8 with a scale of 4 bytes per 128 out, bf16 back
    copies = 64 * 8 * (1 - (7 / 8) ** 8) * 7168
    assert rows["dispatch"].shape.size_bytes == pytest.approx(copies * (1 + 4 / 128))
    assert rows["combine"].shape.size_bytes == pytest.approx(copies * 2)
    assert "all-reduce" not in rows
    assert "key and value projection" not in rows


def test_data_parallel_ranks_take_whole_sequences() -> None:
    # 3 prompts of 100 and 9 sequences over D = 8: the busiest rank has one prompt and two sequences, experts see all
    layout = Layout(data=8, expert=8)
    work = Work(300, 3 * 5050, 3, 9, 9 * 700)
    assert work.of_rank(layout) == Work(100, 5050, 1, 2, 1400)
    rows = table(card(LATENT, experts=EXPERTS), layout, work)
    assert rows["router"].shape.rows == 102
    assert rows["experts"].shape.tokens == 309


def test_prefill_of_a_latent_model_makes_keys_and_values_explicit() -> None:
    # 2 prompts of 1,000 over T = 4: H / T = 32 heads; the latent goes to every rank whole
    work = Work(2000, 2 * 1000 * 1001 / 2, 2)
    rows = table(card(LATENT), Layout(tensor=4), work)
    assert rows["query and latent projection"].shape == Gemm(2000, 1536 + 576, 7168)
    assert rows["key and value projection"].shape == Gemm(2000, 32 * 256, 512)
    shape = rows["prompt attention"].shape
    assert shape == PromptAttention(2000, work.pairs, 2000, 2, 32, 32, 192, 128, stored=False)
    assert shape.flops == 2 * work.pairs * 32 * (192 + 128)
    assert rows["all-reduce"].calls == 2 * 61 + 1


def test_windows_clip_some_layers() -> None:
    part = GROUPED | {"window": {"tokens": 128, "layers": 18}, "sinks": True}
    rows = table(card(part, layers=36), Layout(tensor=2), Work(100, 5050, 1, 4, 4 * 1000))
    assert rows["attention"].calls == rows["attention in a window"].calls == 18
    assert rows["attention"].shape == TokenAttention(4, 4000, 32, 4, 64, 64, mixed=True)
    assert rows["attention in a window"].shape == TokenAttention(4, 4 * 128, 32, 4, 64, 64, window=128, mixed=True)
    assert rows["prompt attention in a window"].shape.pairs == 5050  # the prompt is shorter than the window


@given(st.integers(1, 300), st.integers(0, 300), st.integers(1, 400), st.integers(1, 4))
def test_clipped_pairs_are_counted_query_by_query(new: int, cached: int, window: int, prompts: int) -> None:
    pairs = [cached + i + 1 for i in range(new)]
    work = Work(prompts * new, prompts * sum(pairs), prompts)
    found, keys = clipped(work, window)
    assert found == pytest.approx(prompts * sum(min(p, window) for p in pairs))
    read = min(cached + new, new + window)
    assert keys == pytest.approx(prompts * read)
    assert work.kv_tokens == pytest.approx(prompts * (cached + new))


def test_experts_under_tensor_parallelism_alone_are_summed_by_the_all_reduce() -> None:
    rows = table(card(GROUPED, experts=EXPERTS), Layout(tensor=8, expert=4), Work(batch=16, context=1600))
    assert rows["experts"].shape == Experts(16, 7168, 2048 // 2, 8, 256, 64)
    assert rows["all-reduce"].shape == Collective("all_reduce", 16 * 7168 * 2, 8, "tensor")
    assert "dispatch" not in rows


def test_sequence_parallelism_splits_norms_and_the_sum() -> None:
    whole = table(card(GROUPED), Layout(tensor=4), Work(4096, 1, 1))
    split = table(card(GROUPED), Layout(tensor=4, sequence_parallel=True), Work(4096, 1, 1))
    assert isinstance(split["norm and residual"].shape, Elementwise)
    assert 4 * split["norm and residual"].shape.size_bytes == whole["norm and residual"].shape.size_bytes
    assert {split[name].shape.operation for name in ("reduce-scatter", "all-gather")} == {
        "reduce_scatter",
        "all_gather",
    }
    assert split["reduce-scatter"].shape.size_bytes == whole["all-reduce"].shape.size_bytes
    assert "all-reduce" not in split


@pytest.mark.parametrize(("exchange", "width"), [("pass_kv", 2 * 8 * 64), ("pass_q", 2 * 64 * 64)])
def test_context_parallelism_divides_positions_and_hands_them_around(exchange: str, width: int) -> None:
    layout = Layout.model_validate({"context": 4, "context_exchange": exchange})
    rows = table(card(GROUPED), layout, Work(4000, 4000 * 4001 / 2, 1))
    assert rows["QKV projection"].shape == Gemm(1000, 64 * 64 + 2 * 8 * 64, 7168)
    shape = rows["prompt attention"].shape
    assert (shape.tokens, shape.pairs, shape.kv_tokens) == (1000, 4000 * 4001 / 2 / 4, 4000)
    assert rows[f"context exchange ({exchange})"].shape == Collective("all_gather", 4000 * width * 2, 4, "context")


def test_a_pipeline_sends_what_a_tensor_rank_holds() -> None:
    rows = table(card(GROUPED), Layout(tensor=2, pipeline=4), Work(100, 5050, 1))
    assert rows["send to next stage"] == Operator(
        "send to next stage", 3, Collective("send_receive", 100 * 7168, 2, "pipeline")
    )
    assert rows["QKV projection"].calls == 61


@given(st.integers(1, 500), st.integers(1, 64), st.integers(0, 100_000), st.sampled_from([1, 2, 4]))
def test_a_mixed_pass_has_the_tokens_of_both_and_the_attention_of_each(
    tokens: int, batch: int, context: int, tensor: int
) -> None:
    model, layout = card(GROUPED), Layout(tensor=tensor)
    prompt, decode = Work(tokens, tokens * (tokens + 1) / 2, 1), Work(batch=batch, context=context)
    both = Work(tokens, tokens * (tokens + 1) / 2, 1, batch, context)
    mixed, first, second = (table(model, layout, work) for work in (both, prompt, decode))
    assert mixed["prompt attention"] == first["prompt attention"]
    alone = second["attention"]
    assert mixed["attention"] == alone._replace(shape=alone.shape._replace(mixed=True))
    for name in ("QKV projection", "down projection", "LM head"):
        assert mixed[name].shape.rows == first[name].shape.rows + second[name].shape.rows


def test_verified_drafts_are_positions_that_share_a_context() -> None:
    rows = table(card(GROUPED), Layout(), Work(batch=8, context=8000, queries=2))
    assert rows["QKV projection"].shape.rows == rows["LM head"].shape.rows == 16
    assert rows["attention"].shape.queries == 2
    assert rows["attention"].shape.context == 8000
