"""Model cards: counts against published ones, KV bytes by hand, what a card must say."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator import catalog
from simulator.documents import read_document
from simulator.errors import InputError
from simulator.model.architecture import MixtureOfExperts
from simulator.model.transformer import Transformer, load_model

NAMES = catalog.names("workloads/models")

TENSORS = {  # total of the tensors in the published safetensors files, a tied table once
    "llama-7b": 6_738_415_616,
    "llama-65b": 65_285_660_672,
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "llama-2-70b": 68_976_648_192,
    "llama-3-8b": 8_030_261_248,
    "llama-3-70b": 70_553_706_496,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.1-405b": 405_853_388_800,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "llama-3.3-70b": 70_553_706_496,
    "qwen1.5-7b": 7_721_324_544,
    "qwen2-7b": 7_615_616_512,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-3b": 3_085_938_688,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-14b": 14_770_033_664,
    "qwen2.5-32b": 32_763_876_352,
    "qwen2.5-72b": 72_706_203_648,
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "qwen3-14b": 14_768_307_200,
    "qwen3-32b": 32_762_123_264,
    "qwen3-30b-a3b": 30_532_122_624,
    "qwen3-235b-a22b": 235_093_634_560,
    "mistral-7b": 7_241_732_096,
    "mistral-7b-v0.3": 7_248_023_552,
    "mixtral-8x7b": 46_702_792_704,
    "mixtral-8x22b": 140_620_634_112,
    "deepseek-v2": 235_741_434_880,
    "deepseek-v2-lite": 15_706_484_224,
    "bloom-7.1b": 7_069_016_064,
    "bloom-176b": 176_247_271_424,
    "opt-6.7b": 6_658_473_984,
    "opt-13b": 12_853_473_280,
    "opt-30b": 29_974_540_288,
    "t5-3b": 2_851_598_336,
    "t5-11b": 11_307_321_344,
    "gpt-j-6b": 6_050_882_784,
    "llava-1.5-7b": 7_063_427_072,
}

STATED = {  # as a paper or model card states them: count, its relative tolerance, where
    "deepseek-v3": (671e9, 0.001, "README of DeepSeek-V3: main model"),
    "deepseek-r1": (671e9, 0.001, "README of DeepSeek-R1"),
    "deepseek-v3.1": (671e9, 0.001, "README of DeepSeek-V3.1"),
    "deepseek-v3.2": (671.9e9, 0.0005, "README of DeepSeek-V3.2-Exp: 671B, and 61 layers' indices of its config.json"),
    "glm-5": (744e9, 0.001, "README of GLM-5"),
    "kimi-k2": (1.026e12, 0.001, "safetensors of Kimi-K2-Instruct, scales left out; the README says 1T"),
    "kimi-k2.5": (1.026e12, 0.001, "as Kimi K2, whose language model it is"),
    "minimax-m2": (228.7e9, 0.001, "safetensors of MiniMax-M2; the README says 230B"),
    "minimax-m2.5": (228.7e9, 0.001, "safetensors of MiniMax-M2.5"),
    "gpt-oss-20b": (20.91e9, 0.001, "arXiv:2508.10925, Table 1"),
    "gpt-oss-120b": (116.83e9, 0.001, "arXiv:2508.10925, Table 1"),
    "gpt3-175b": (174.6e9, 0.001, "arXiv:2005.14165, Table D.1"),
    "gpt-175b": (175e9, 0.01, "arXiv:2205.05198, Table 3"),
    "gpt-22b": (22e9, 0.01, "arXiv:2205.05198, Table 3"),
    "gpt-530b": (529.6e9, 0.001, "arXiv:2104.04473, Table 1"),
    "gpt-1t": (1008e9, 0.001, "arXiv:2104.04473, Table 1"),
    "opt-66b": (66e9, 0.01, "arXiv:2205.01068, Table 1"),
    "opt-175b": (175e9, 0.01, "arXiv:2205.01068, Table 1"),
    "switch-base-8": (619e6, 0.001, "safetensors of switch-base-8"),
    "switch-base-128": (7.4e9, 0.01, "arXiv:2101.03961, Table 9: 7B, of 7.4B in all"),
    "switch-base-256": (14.7e9, 0.01, "arXiv:2101.03961, Figure 4: 14.7B"),
    "switch-xxl": (395e9, 0.01, "arXiv:2101.03961, Table 9"),
    "switch-c-2048": (1571e9, 0.001, "arXiv:2101.03961, Table 9"),
    "gshard-600b": (600e9, 0.04, "arXiv:2006.16668: 18 layers of 2,048 experts of 2 x 1,024 x 8,192 hold 618B"),
    "llava-1.5-13b": (13.35e9, 0.001, "safetensors of llava-1.5-13b-hf"),
}

ACTIVE = {  # stated active parameters, with the input embedding among them or without, and where
    "deepseek-v2": (21e9, False, "arXiv:2405.04434"),
    "deepseek-v2-lite": (2.4e9, False, "arXiv:2405.04434, appendix B"),
    "deepseek-v3": (36.6e9, False, "README_WEIGHTS of DeepSeek-V3: with 0.9B for the output head"),
    "kimi-k2": (32e9, False, "README of Kimi K2"),
    "gpt-oss-20b": (3.61e9, False, "arXiv:2508.10925, Table 1"),
    "gpt-oss-120b": (5.13e9, False, "arXiv:2508.10925, Table 1"),
    "qwen3-30b-a3b": (3.3e9, True, "arXiv:2505.09388"),
    "qwen3-235b-a22b": (22e9, True, "arXiv:2505.09388"),
    "mixtral-8x7b": (12.9e9, True, "arXiv:2401.04088"),
    "mixtral-8x22b": (39e9, True, "announcement of Mixtral 8x22B"),
}

KV_BYTES = {  # 2 (keys, values) x KV heads x width x layers x 2 bytes; MLA: (latent + rotary) x layers x 2 bytes
    "llama-2-7b": 2 * 32 * 128 * 32 * 2,
    "llama-2-13b": 2 * 40 * 128 * 40 * 2,
    "llama-2-70b": 2 * 8 * 128 * 80 * 2,
    "llama-3-8b": 2 * 8 * 128 * 32 * 2,
    "llama-3-70b": 2 * 8 * 128 * 80 * 2,
    "llama-3.1-405b": 2 * 8 * 128 * 126 * 2,
    "llama-3.2-1b": 2 * 8 * 64 * 16 * 2,
    "qwen2.5-0.5b": 2 * 2 * 64 * 24 * 2,
    "qwen2.5-7b": 2 * 4 * 128 * 28 * 2,
    "qwen3-32b": 2 * 8 * 128 * 64 * 2,
    "qwen3-235b-a22b": 2 * 4 * 128 * 94 * 2,
    "mixtral-8x7b": 2 * 8 * 128 * 32 * 2,
    "minimax-m2": 2 * 8 * 128 * 62 * 2,
    "gpt-oss-120b": 2 * 8 * 64 * 36 * 2,
    "deepseek-v2": (512 + 64) * 60 * 2,
    "deepseek-v2-lite": (512 + 64) * 27 * 2,
    "deepseek-v3": (512 + 64) * 61 * 2,
    "kimi-k2": (512 + 64) * 61 * 2,
    "gpt3-175b": 2 * 96 * 128 * 96 * 2,
    "bloom-176b": 2 * 112 * 128 * 70 * 2,
    "opt-66b": 2 * 72 * 128 * 64 * 2,
    "t5-11b": 2 * 128 * 128 * 24 * 2,
    "gshard-600b": 2 * 16 * 128 * 18 * 2,
    "llava-1.5-7b": 2 * 32 * 128 * 32 * 2,
}


def card(**changes: object) -> Transformer:
    shape = load_model("llama-3-8b").model_dump()
    for path, value in changes.items():
        outer, _, inner = path.rpartition("__")
        (shape[outer] if outer else shape)[inner] = value
    return Transformer(**shape)


@pytest.mark.parametrize("name", sorted(TENSORS))
def test_parameters_are_the_published_tensors(name: str) -> None:
    assert load_model(name).parameters == TENSORS[name]


@pytest.mark.parametrize("name", sorted(STATED))
def test_parameters_are_what_is_stated(name: str) -> None:
    count, tolerance, _ = STATED[name]
    assert load_model(name).parameters == pytest.approx(count, rel=tolerance)


def test_every_card_is_compared_with_a_published_count() -> None:
    without = {name for name in NAMES if name.startswith("mpt-")} | {"gpt-7b", "gpt-13b"}  # named after what they are
    assert set(NAMES) == set(TENSORS) | set(STATED) | without
    for name in sorted(without):
        unit = {"m": 1e6, "b": 1e9}[name[-1]]
        named = float(name.partition("-")[2][:-1]) * unit
        assert load_model(name).parameters == pytest.approx(named, rel=0.4)


@pytest.mark.parametrize("name", sorted(ACTIVE))
def test_active_parameters_are_what_is_stated(name: str) -> None:
    model, (count, embedded, _) = load_model(name), ACTIVE[name]
    table = model.vocabulary * model.hidden if embedded else 0
    two_digits = name in ("deepseek-v2-lite", "qwen3-30b-a3b")  # of which 1 % is less than the last one
    assert model.active_parameters + table == pytest.approx(count, rel=0.022 if two_digits else 0.01)


def test_without_experts_all_but_a_looked_up_table_is_active() -> None:
    for name in ("llama-3-8b", "llama-3.2-1b", "gpt3-175b"):
        model = load_model(name)
        tables = model.parameters - model.active_parameters
        looked_up = 0 if model.tied_embeddings else model.vocabulary * model.hidden
        assert tables == looked_up + (model.position_rows or 0) * model.hidden


@pytest.mark.parametrize(("name", "vocabulary"), [("gpt-22b", 51200), ("gpt-530b", 51200), ("gpt-1t", 51200)])
def test_gpt_counts_are_the_closed_form_of_megatron(name: str, vocabulary: int) -> None:
    """P = 12 l h^2 (1 + 13 / 12 h + (V + s) / 12 l h) (arXiv:2104.04473, 5.1), which leaves out the last norm."""
    model = load_model(name)
    layers, hidden, rows = model.layers, model.hidden, vocabulary + 2048
    assert model.parameters == 12 * layers * hidden**2 + 13 * layers * hidden + rows * hidden + 2 * hidden


def test_drafting_layers_are_counted_apart() -> None:
    model = load_model("deepseek-v3")
    assert model.draft_parameters == pytest.approx(11.5e9, rel=0.01)  # README_WEIGHTS of DeepSeek-V3
    # all tensors of the published files: with the embedding and head that the drafting layer repeats, and one 4-byte
    # scale for each block of 128 x 128 values in 8 bits
    held = model.parameters + model.draft_parameters + 2 * model.vocabulary * model.hidden
    assert held * (1 + 1 / 128**2) == pytest.approx(684_531_386_000, rel=2e-5)
    assert load_model("llama-3-8b").draft_parameters == 0


@pytest.mark.parametrize("name", sorted(KV_BYTES))
def test_kv_bytes_per_token_are_exact(name: str) -> None:
    model = load_model(name)
    assert model.kv_bytes_per_token() == KV_BYTES[name]
    assert model.kv_bytes_per_token(bytes_per_value=1) * 2 == KV_BYTES[name]


@pytest.mark.parametrize("context", [1, 127, 128, 129, 8192])
def test_layers_with_a_window_keep_no_more_than_it(context: int) -> None:
    # gpt-oss: 18 layers see all of the context, 18 the last 128 positions
    held = load_model("gpt-oss-120b").kv_values(context)
    assert held == 2 * 8 * 64 * (18 * context + 18 * min(context, 128))
    model = load_model("deepseek-v3")
    assert model.kv_values(context) == context * model.kv_values_per_token()


def test_one_image_of_llava_is_576_tokens() -> None:
    vision = load_model("llava-1.5-7b").vision
    assert vision is not None
    assert vision.tokens == (336 // 14) ** 2 == 576


@pytest.mark.parametrize("name", NAMES)
def test_every_number_of_a_card_has_a_source(name: str) -> None:
    values = read_document(catalog.locate("workloads/models", name)).value
    sources = values.pop("sources")

    def numbers(value: dict[str, object], path: str = "") -> list[str]:
        found = []
        for key, inner in value.items():
            if isinstance(inner, dict) and key != "checkpoint":
                found += numbers(inner, f"{path}{key}.")
            elif (isinstance(inner, int | float) and not isinstance(inner, bool)) or key == "checkpoint":
                found.append(path + key)
        return found

    assert sorted(numbers(values)) == sorted(sources)
    assert all(len(source) > 10 for source in sources.values())
    assert values["name"] == name


@pytest.mark.parametrize(
    ("name", "weights", "experts"),
    [
        ("deepseek-v3", "fp8_block", "fp8_block"),
        ("kimi-k2", "fp8_block", "fp8_block"),
        ("kimi-k2.5", "bf16", "int4_wo_32"),
        ("gpt-oss-120b", "bf16", "w4a16_mxfp4"),
    ],
)
def test_cards_state_the_formats_of_the_published_weights(name: str, weights: str, experts: str) -> None:
    stated = load_model(name).checkpoint
    assert stated is not None
    assert (stated.weights, stated.of_experts, stated.kv) == (weights, experts, "bf16")
    assert load_model("llama-3-8b").checkpoint is None


@given(every=st.integers(1, 4), total=st.integers(1, 40), data=st.data(), cuts=st.lists(st.integers(0, 40), max_size=4))
def test_layers_with_experts_are_the_last_that_the_step_allows(
    every: int, total: int, data: st.DataObject, cuts: list[int]
) -> None:
    count = data.draw(st.integers(0, total // every))
    part = MixtureOfExperts(experts=2, active=1, intermediate=1, layers=max(count, 1), every=every)
    allowed = [layer for layer in range(total) if (layer + 1) % every == 0]
    with_experts = allowed[len(allowed) - count :]
    edges = sorted({0, total, *(cut for cut in cuts if cut <= total)})
    for first, end in pairwise(edges):
        expected = sum(first <= layer < end for layer in with_experts)
        assert part.among(first, end, count, total) == expected


def test_groups_of_heads_must_be_whole() -> None:
    with pytest.raises(ValueError, match="multiple of kv_heads"):
        card(attention__heads=32, attention__kv_heads=5)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("mixtral-8x7b", {"layers": 31}, "32 layers with experts are more than all 31"),
        ("switch-base-8", {"layers": 11}, r"6 layers with experts are more than every 2\. of 11"),
        ("gpt-oss-20b", {"layers": 11, "experts": None}, "12 layers with a window are more than all 11"),
        ("llama-3-8b", {"positions": "learned"}, "learned positions have a number of rows"),
    ],
)
def test_parts_of_a_card_must_agree(name: str, changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Transformer(**(load_model(name).model_dump() | changes))


def test_an_unknown_model_names_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean 'llama-3-70b'"):
        load_model("lama-3-70b")
