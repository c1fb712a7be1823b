import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.device.accelerator import load_accelerator
from simulator.device.cost import COSTS, Cost, RooflineCost, RooflineParameters, Subject
from simulator.device.linear_cost import LinearCost, LinearParameters
from simulator.device.provenance import provenance
from simulator.documents import parse_document
from simulator.errors import InputError
from simulator.model.forward import Work
from simulator.model.layout import Layout
from simulator.model.precision import Precision
from simulator.model.split import kv_bytes_per_token_per_rank, vocabulary_per_rank, weight_bytes_per_rank
from simulator.model.transformer import load_model
from simulator.strict import validate

DEVICES = ["a100-sxm-40gb", "a100-sxm-80gb", "h100-sxm-80gb"]
COSTS_BY_CASE = {
    (name, device, tensor): RooflineCost(load_model(name), Layout(tensor=tensor), load_accelerator(device))
    for name in ("llama-2-7b", "llama-3-8b", "llama-3-70b", "qwen2.5-32b")
    for device in DEVICES
    for tensor in (1, 2, 4, 8)
}
CHUNK_SLACK = 1.1  # two chunks may each have a tile that suits them better than one tile suits the whole
cost_of = st.sampled_from(list(COSTS_BY_CASE.values()))
count = st.integers(1, 512)


def decode_ns(cost: Cost, batch: int, context: float) -> float:
    line = cost.decode(batch, context)
    assert context <= line.until
    return line.fixed_ns + line.per_context_token_ns * context


def attended(tokens: int, cached: int = 0) -> int:
    return tokens * cached + tokens * (tokens + 1) // 2


@given(cost_of, st.integers(1, 8192), st.integers(0, 20_000), st.integers(1, 16))
def test_prefill_is_the_sum_of_its_operator_table(cost: RooflineCost, tokens: int, cached: int, sequences: int) -> None:
    point = (tokens * sequences, sequences * attended(tokens, cached), sequences)
    table = cost.operators(Work(*point))
    assert cost.prefill_ns(*point) == pytest.approx(sum(row.ns for row in table), rel=1e-12)
    kv = next(row for row in table if row.name == "prompt attention").size_bytes
    rank = kv_bytes_per_token_per_rank(cost.model, cost.layout)
    part = cost.model.attention
    queries = 4 * part.heads // cost.layout.tensor * part.key_dim * cost.model.layers
    assert kv == pytest.approx(sequences * (rank * (tokens + cached) + queries * tokens))


@given(cost_of, count, st.integers(1, 8_000_000))
def test_decode_is_the_sum_of_its_operator_table(cost: RooflineCost, batch: int, context: int) -> None:
    table = cost.operators(Work(batch=batch, context=context))
    assert cost.step_ns(Work(batch=batch, context=context)) == pytest.approx(sum(r.ns for r in table), rel=1e-12)
    assert decode_ns(cost, batch, context) == pytest.approx(sum(r.ns for r in table), rel=0.05)  # kinks between knots


@given(cost_of, st.integers(1, 4096), st.integers(1, 8))
def test_flops_are_two_per_weight_and_token_plus_attention(cost: RooflineCost, tokens: int, sequences: int) -> None:
    model, tensor = cost.model, cost.layout.tensor
    flops = tensor * sum(
        r.flops for r in cost.operators(Work(tokens * sequences, sequences * attended(tokens), sequences))
    )
    matrices = model.parameters - (2 * model.layers + 1) * model.hidden - 2 * model.vocabulary * model.hidden
    part = model.attention
    if part.qkv_bias:
        matrices -= model.layers * (part.heads + 2 * part.kv_heads) * part.head_dim
    dense = 2 * matrices * tokens * sequences
    attention = 4 * model.layers * part.heads * part.head_dim * sequences * attended(tokens)
    head = 2 * vocabulary_per_rank(model, cost.layout) * tensor * model.hidden * sequences
    assert flops == dense + attention + head


@given(cost_of, count, st.integers(0, 1_000_000))
def test_a_decode_step_reads_all_weights_and_the_kv_cache(cost: RooflineCost, batch: int, context: int) -> None:
    model, bandwidth = cost.model, cost.accelerator.memory.bandwidth
    embedding = 2 * vocabulary_per_rank(model, cost.layout) * model.hidden
    read = weight_bytes_per_rank(model, cost.layout) - embedding
    read += context * kv_bytes_per_token_per_rank(model, cost.layout)
    assert decode_ns(cost, batch, context) >= 1e9 * read * 0.999 / bandwidth  # biases aside


@given(cost_of, st.integers(1, 20_000))
def test_a_prefill_is_never_below_the_peak(cost: RooflineCost, tokens: int) -> None:
    flops = sum(row.flops for row in cost.operators(Work(tokens, attended(tokens), 1)))
    assert cost.prefill_ns(tokens, attended(tokens), 1) >= 1e9 * flops / cost.accelerator.peak["bf16"]


@given(cost_of, st.integers(1, 8192), st.integers(0, 8192), st.integers(0, 4000), st.integers(0, 4000))
def test_more_new_or_cached_tokens_are_never_faster(cost: RooflineCost, n: int, cached: int, a: int, b: int) -> None:
    low = cost.prefill_ns(n, attended(n, cached), 1)
    assert cost.prefill_ns(n + a, attended(n + a, cached), 1) >= low * (1 - 1e-12)
    assert cost.prefill_ns(n, attended(n, cached + b), 1) >= low * (1 - 1e-12)


@given(cost_of, count, st.integers(0, 200), st.integers(1, 10_000))
def test_a_larger_batch_or_context_is_never_faster(cost: RooflineCost, batch: int, more: int, each: int) -> None:
    small = decode_ns(cost, batch, batch * each)
    assert decode_ns(cost, batch + more, (batch + more) * each) >= small * (1 - 1e-12)
    assert decode_ns(cost, batch, batch * (each + more)) >= small * (1 - 1e-12)


@given(cost_of, count, st.integers(1, 100_000))
def test_lines_of_decode_join_without_a_gap(cost: RooflineCost, batch: int, context: int) -> None:
    line = cost.decode(batch, context)
    if line.until != float("inf"):
        end = line.fixed_ns + line.per_context_token_ns * line.until
        after = cost.decode(batch, line.until * (1 + 1e-12))
        assert after.until > line.until
        assert end == pytest.approx(after.fixed_ns + after.per_context_token_ns * line.until, rel=1e-9)
        assert end == pytest.approx(cost.step_ns(Work(batch=batch, context=line.until)), rel=1e-9)


@given(cost_of, st.integers(1, 2000), st.integers(0, 5000), st.integers(1, 64), st.integers(1, 4000))
def test_a_mixed_step_lasts_as_long_as_the_longer_part_and_less_than_both(
    cost: RooflineCost, tokens: int, cached: int, batch: int, each: int
) -> None:
    prompt = cost.prefill_ns(tokens, attended(tokens, cached), 1)
    decode = cost.step_ns(Work(batch=batch, context=batch * each))
    mixed = cost.mixed_ns(tokens, attended(tokens, cached), 1, batch, batch * each)
    assert max(prompt, decode) * 0.95 <= mixed  # one call of attention in the place of two saves launches
    if cost.accelerator.fitted.prompt_attention["bf16"].packed:
        assert mixed <= (prompt + decode) * CHUNK_SLACK


def device_ns(cost: RooflineCost, tokens: int, pairs: int, sequences: int) -> float:
    """Return the prefill time without all-reduces, whose protocol may change for the slower with the message."""
    return sum(row.ns for row in cost.operators(Work(tokens, pairs, sequences)) if row.name != "all-reduce")


@given(cost_of, st.integers(1, 2048), st.integers(2, 8))
def test_prompts_together_are_not_slower_than_one_after_another(cost: RooflineCost, tokens: int, prompts: int) -> None:
    together = device_ns(cost, prompts * tokens, prompts * attended(tokens), prompts)
    alone = device_ns(cost, tokens, attended(tokens), 1)
    hot = 1 / cost.accelerator.fitted.gemm["bf16"].sustained  # longer products run at the clock that the power leaves
    assert alone * (1 - 1e-12) <= together <= prompts * alone * hot * (1 + 1e-12)


@given(cost_of, st.integers(2, 4096), st.integers(1, 4095), st.integers(0, 4096))
def test_a_prompt_in_two_chunks_is_not_faster_than_whole(cost: RooflineCost, n: int, first: int, cached: int) -> None:
    first = min(first, n - 1)
    whole = device_ns(cost, n, attended(n, cached), 1)
    chunks = device_ns(cost, first, attended(first, cached), 1)
    chunks += device_ns(cost, n - first, attended(n - first, cached + first), 1)
    assert attended(first, cached) + attended(n - first, cached + first) == attended(n, cached)
    assert whole <= chunks * CHUNK_SLACK


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["llama-3-8b", "llama-3-70b"])
def test_tensor_parallelism_helps_less_than_its_degree(name: str, device: str) -> None:
    for small, large in ((1, 2), (2, 4), (4, 8)):
        a, b = (COSTS_BY_CASE[name, device, tensor] for tensor in (small, large))
        assert a.prefill_ns(8192, attended(8192), 1) / 2 < b.prefill_ns(8192, attended(8192), 1)
        assert a.prefill_ns(8192, attended(8192), 1) > b.prefill_ns(8192, attended(8192), 1)
        assert decode_ns(a, 16, 65536) / 2 < decode_ns(b, 16, 65536) < decode_ns(a, 16, 65536)
        # far out, what grows is work that ranks divide, but whole waves of tiles may suit one number of heads better
        steep, flat = (cost.decode(16, 1 << 24).per_context_token_ns for cost in (a, b))
        assert 0.85 * flat < steep / 2 < 1.1 * flat


def test_copied_kv_heads_no_longer_shrink() -> None:
    model, device = load_model("qwen2.5-7b"), load_accelerator("h100-sxm-80gb")
    wide = model.model_copy(update={"attention": model.attention.model_copy(update={"heads": 32})})
    one, four, eight = (RooflineCost(card, Layout(tensor=t), device) for card, t in ((model, 1), (model, 4), (wide, 8)))
    slopes = [cost.decode(8, 30_000).per_context_token_ns for cost in (one, four, eight)]
    assert slopes[0] == pytest.approx(4 * slopes[1])
    assert slopes[2] == pytest.approx(slopes[1])


def test_layouts_that_do_not_fit_are_refused() -> None:
    model, device = load_model("qwen2.5-7b"), load_accelerator("h100-sxm-80gb")
    with pytest.raises(InputError, match="do not fit one scale-up domain"):
        RooflineCost(load_model("llama-3-70b"), Layout(tensor=16), device)
    with pytest.raises(InputError, match="does not split evenly"):
        RooflineCost(model, Layout(tensor=8), device)


def test_step_overhead_is_added_once_and_shown() -> None:
    model, layout, device = load_model("llama-3-8b"), Layout(), load_accelerator("h100-sxm-80gb")
    bare, slow = (
        RooflineCost(model, layout, device),
        RooflineCost(model, layout, device, engine=RooflineParameters(step_overhead="2 ms")),
    )
    assert slow.prefill_ns(100, 5050, 1) == pytest.approx(bare.prefill_ns(100, 5050, 1) + 2e6)
    assert slow.decode(4, 99).fixed_ns == pytest.approx(bare.decode(4, 99).fixed_ns + 2e6)
    assert slow.operators(Work(batch=4, context=100))[-1].name == "step overhead"
    assert "step overhead" not in [row.name for row in bare.operators(Work(batch=4, context=100))]


def test_what_is_remembered_is_bounded_and_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simulator.device.cost.MOST_REMEMBERED", 8)
    small, large = (RooflineCost(load_model("llama-3-8b"), Layout(), load_accelerator("h100-sxm-80gb")) for _ in "ab")
    points = [(n, attended(n), 1, n % 7, 100.0 * n) for n in range(1, 60)]
    monkeypatch.setattr("simulator.device.cost.MOST_REMEMBERED", 10**6)
    expected = [large.mixed_ns(*point) for point in points]
    monkeypatch.setattr("simulator.device.cost.MOST_REMEMBERED", 8)
    assert [small.mixed_ns(*point) for point in points * 2] == expected * 2
    assert max(map(len, (small._steps, small._rest, small._kernels))) <= 8


def test_models_with_an_encoder_are_not_served() -> None:
    with pytest.raises(InputError, match="has an encoder"):
        RooflineCost(load_model("t5-11b"), Layout(), load_accelerator("h100-sxm-80gb"))


def test_a_borrowed_sheet_or_format_says_so() -> None:
    model, h100, h200 = (
        load_model("mixtral-8x7b"),
        load_accelerator("h100-sxm-80gb"),
        load_accelerator("h200-sxm-141gb"),
    )
    assert provenance(RooflineCost(model, Layout(), h100)) == []
    (note,) = provenance(RooflineCost(model, Layout(), h200))
    assert note == "h200-sxm-141gb was not measured: efficiencies are those of h100-sxm-80gb"
    deepseek, spread = load_model("deepseek-v3"), Layout(tensor=8, expert=8)
    (note,) = provenance(RooflineCost(deepseek, spread, h100, Precision(weights="fp8")))
    assert note == (
        "precision: fp8 has one scale per tensor, and kernels of its own; deepseek-v3 was published in fp8_block"
    )
    assert provenance(RooflineCost(deepseek, spread, h100, Precision(weights="fp8_block"))) == []
    (note,) = provenance(RooflineCost(deepseek, Layout(data=8, expert=8), h100, Precision(weights="fp8_block")))
    assert note.startswith("expert exchange: published deployments")
    lines = provenance(RooflineCost(model, Layout(), h100, Precision(weights="int8_wo")))
    assert [line.split(" were")[0] for line in lines] == ["products in int8_wo", "experts in int8_wo"]


def test_one_device_has_no_collectives() -> None:
    cost = COSTS_BY_CASE["llama-3-8b", "h100-sxm-80gb", 1]
    names = [row.name for row in cost.operators(Work(10, 55, 1))]
    assert "all-reduce" not in names
    assert "logits gather" not in names
    split = COSTS_BY_CASE["llama-3-8b", "h100-sxm-80gb", 2].operators(Work(10, 55, 1))
    assert next(row for row in split if row.name == "all-reduce").calls == 2 * 32 + 1


SUBJECT = Subject(load_model("llama-3-8b"), Layout(), load_accelerator("h100-sxm-80gb"), Precision())


def parsed(text: str) -> LinearParameters:
    return validate(LinearParameters, parse_document(text, "x.yaml"))


def test_linear_cost_is_what_its_constants_say() -> None:
    text = "prefill: {fixed: 5 ms, per_token: 40 us, per_attended: 3 ps}\n"
    text += "decode: {fixed: 8 ms, per_sequence: 50 us, per_context_token: 0.125 ns}\n"
    cost = LinearCost(parsed(text))
    assert cost.prefill_ns(100, 5050, 1) == pytest.approx(5e6 + 100 * 4e4 + 5050 * 0.003)
    assert cost.decode(10, 0) == (8e6 + 10 * 5e4, 0.125, float("inf"))
    both = cost.mixed_ns(100, 5050, 1, 10, 4000)
    assert both == pytest.approx(8e6 + 100 * 4e4 + 5050 * 0.003 + 10 * 5e4 + 4000 * 0.125)


def test_linear_constants_may_all_be_zero_and_are_never_negative() -> None:
    cost = LinearCost(parsed("{}"))
    assert cost.prefill_ns(100, 5050, 1) == 0
    assert cost.decode(64, 1) == (0, 0, float("inf"))
    for text in ("prefill: {fixed: -1 ms}", "decode: {per_sequence: 4}", "decode: {per_token: 4 ms}"):
        with pytest.raises(InputError):
            parsed(text)


def test_linear_parameters_survive_writing_and_reading() -> None:
    before = parsed("decode: {per_context_token: 12.5 ps}")
    assert LinearParameters.model_validate(before.model_dump()) == before


@pytest.mark.parametrize("name", sorted(COSTS.keys() - {"measured"}))  # which needs a table
def test_every_registered_cost_is_built_from_its_parameters(name: str) -> None:
    parameters, make = COSTS[name]
    cost: Cost = make(parameters(), SUBJECT)
    assert cost.prefill_ns(1, 1, 1) >= 0
    assert cost.decode(1, 1).fixed_ns >= 0


def test_roofline_parameters_reach_the_cost() -> None:
    parameters = validate(RooflineParameters, parse_document("step_overhead: 3 ms", "x.yaml"))
    cost = COSTS["roofline"][1](parameters, SUBJECT)
    assert isinstance(cost, RooflineCost)
    assert cost.engine.step_overhead == 3_000_000
