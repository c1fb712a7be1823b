"""A `config.json` of Hugging Face as a card: published counts, what shipped cards say, errors with their place."""

import json
from pathlib import Path
from typing import Any

import pytest

from simulator import catalog
from simulator.errors import InputError
from simulator.model.families import ARCHITECTURES
from simulator.model.huggingface import UNSUPPORTED, formats_of, read_config
from simulator.model.precision import Precision
from simulator.model.transformer import Transformer, load_model


def sizes(kind: str, hidden: int, layers: int, heads: int, kv: int, wide: int, vocabulary: int, **more: Any) -> Any:
    return {
        "model_type": kind,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "intermediate_size": wide,
        "vocab_size": vocabulary,
        "max_position_embeddings": 32768,
    } | more


LLAMA_3_8B = sizes("llama", 4096, 32, 32, 8, 14336, 128256) | {"max_position_embeddings": 8192}
FP8 = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
DEEPSEEK_V3 = sizes("deepseek_v3", 7168, 61, 128, 128, 18432, 129280) | {
    "max_position_embeddings": 163840,
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "n_routed_experts": 256,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 2048,
    "n_shared_experts": 1,
    "first_k_dense_replace": 3,
    "moe_layer_freq": 1,
    "n_group": 8,
    "topk_group": 4,
    "topk_method": "noaux_tc",
    "num_nextn_predict_layers": 1,
    "rms_norm_eps": 1e-06,
    "quantization_config": FP8,
}
INDEX = {"index_n_heads": 64, "index_head_dim": 128, "index_topk": 2048}
GLM_5 = {
    **DEEPSEEK_V3,
    **sizes("glm_moe_dsa", 6144, 78, 64, 64, 12288, 154880),
    **INDEX,
    "max_position_embeddings": 202752,
    "q_lora_rank": 2048,
    "qk_nope_head_dim": 192,
    "v_head_dim": 256,
    "n_group": 1,
    "topk_group": 1,
    "index_n_heads": 32,
    "quantization_config": None,
}
KIMI_QUANTISATION = {
    "quant_method": "compressed-tensors",
    "format": "pack-quantized",
    "kv_cache_scheme": None,
    "ignore": ["lm_head", "re:.*self_attn.*", "re:.*shared_experts.*", "re:.*mlp\\.(gate|up|gate_up|down)_proj.*"],
    "config_groups": {
        "group_0": {"input_activations": None, "weights": {"group_size": 32, "num_bits": 4, "type": "int"}}
    },
}
KIMI = DEEPSEEK_V3 | {
    "model_type": "kimi_k2",
    "num_attention_heads": 64,
    "num_key_value_heads": 64,
    "vocab_size": 163840,
    "max_position_embeddings": 262144,
    "n_routed_experts": 384,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
    "num_nextn_predict_layers": 0,
    "quantization_config": KIMI_QUANTISATION,
}
GPT_OSS = sizes("gpt_oss", 2880, 36, 64, 8, 2880, 201088) | {
    "max_position_embeddings": 131072,
    "head_dim": 64,
    "num_local_experts": 128,
    "num_experts_per_tok": 4,
    "sliding_window": 128,
    "layer_types": ["sliding_attention", "full_attention"] * 18,
    "quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"]},
}
LLAVA = {
    "model_type": "llava",
    "text_config": {"model_type": "llama", "max_position_embeddings": 4096, "vocab_size": 32064},
    "vision_config": {
        "model_type": "clip_vision_model",
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
        "patch_size": 14,
        "image_size": 336,
    },
}
T5 = {"model_type": "t5", "d_model": 1024, "d_ff": 65536, "d_kv": 128, "num_heads": 128, "num_layers": 24}
SWITCH = T5 | {
    "model_type": "switch_transformers",
    "d_model": 768,
    "d_ff": 3072,
    "d_kv": 64,
    "num_heads": 12,
    "num_layers": 12,
    "num_experts": 128,
    "num_sparse_encoder_layers": 6,
    "num_sparse_decoder_layers": 6,
}
MINIMAX = sizes("minimax_m2", 3072, 62, 48, 8, 1536, 200064) | {
    "max_position_embeddings": 196608,
    "head_dim": 128,
    "num_local_experts": 256,
    "num_experts_per_tok": 8,
    "attn_type_list": [1] * 62,
    "use_qk_norm": True,
    "use_routing_bias": True,
    "use_mtp": True,
    "num_mtp_modules": 3,
    "mtp_transformer_layers": 1,
    "quantization_config": FP8 | {"modules_to_not_convert": ["gate", "e_score_correction_bias", "lm_head"]},
}

SHIPPED = {
    "llama-3-8b": LLAMA_3_8B,
    "deepseek-v3": DEEPSEEK_V3,
    "deepseek-v3.2": DEEPSEEK_V3 | {"model_type": "deepseek_v32"} | INDEX,
    "glm-5": GLM_5,
    "kimi-k2.5": {"model_type": "kimi_k25", "text_config": KIMI, "vision_config": {"vt_hidden_size": 1152}},
    "gpt-oss-120b": GPT_OSS,
    "minimax-m2": MINIMAX,
    "llava-1.5-7b": LLAVA,
    "t5-11b": T5 | {"vocab_size": 32128},
    "switch-base-128": SWITCH | {"vocab_size": 32128},
    "qwen2.5-7b": sizes("qwen2", 3584, 28, 28, 4, 18944, 152064, use_sliding_window=False, sliding_window=131072)
    | {"max_position_embeddings": 131072},
    "qwen3-30b-a3b": sizes("qwen3_moe", 2048, 48, 32, 4, 6144, 151936, head_dim=128, max_position_embeddings=40960)
    | {"num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768, "mlp_only_layers": []},
    "mixtral-8x7b": sizes("mixtral", 4096, 32, 32, 8, 14336, 32000, num_local_experts=8, num_experts_per_tok=2),
    "mistral-7b": sizes("mistral", 4096, 32, 32, 8, 14336, 32000, sliding_window=4096),
    "bloom-176b": {"model_type": "bloom", "n_embed": 14336, "n_layer": 70, "num_attention_heads": 112}
    | {"vocab_size": 250880, "seq_length": 2048},
    "opt-66b": sizes("opt", 9216, 64, 72, 72, 0, 50272, ffn_dim=36864, max_position_embeddings=2048),
    "gpt-j-6b": {"model_type": "gptj", "n_embd": 4096, "n_layer": 28, "n_head": 16, "n_inner": None}
    | {"vocab_size": 50400, "n_positions": 2048, "tie_word_embeddings": False},
}

GLM_AIR = sizes("glm4_moe", 4096, 46, 96, 8, 10944, 151552, head_dim=128, attention_bias=True, use_qk_norm=False) | {
    "n_routed_experts": 128,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 1408,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
}
PUBLISHED = {  # total of the tensors in the published files, a tied table once
    "gpt2": ({"model_type": "gpt2", "n_embd": 768, "n_layer": 12, "n_head": 12} | {"vocab_size": 50257}, 124_439_808),
    "gpt-neox-20b": (sizes("gpt_neox", 6144, 44, 64, 64, 24576, 50432), 20_554_567_680),
    "phi-3-mini": (sizes("phi3", 3072, 32, 32, 32, 8192, 32064, sliding_window=2047), 3_821_079_552),
    "phi-4": (sizes("phi3", 5120, 40, 40, 10, 17920, 100352, sliding_window=None), 14_659_507_200),
    "gemma-7b": (sizes("gemma", 3072, 28, 16, 16, 24576, 256000, head_dim=256), 8_537_680_896),
    "gemma-2-9b": (sizes("gemma2", 3584, 42, 16, 8, 14336, 256000, sliding_window=4096), 9_241_705_984),
    "gemma-2-27b": (sizes("gemma2", 4608, 46, 32, 16, 36864, 256000, head_dim=128), 27_227_128_320),
    "qwen1.5-moe-a2.7b": (
        sizes("qwen2_moe", 2048, 24, 16, 16, 5632, 151936, num_experts=60, num_experts_per_tok=4)
        | {"moe_intermediate_size": 1408, "shared_expert_intermediate_size": 5632, "decoder_sparse_step": 1},
        14_315_784_192,
    ),
    "glm-4-9b-0414": (sizes("glm4", 4096, 40, 32, 2, 13696, 151552, head_dim=128, attention_bias=True), 9_400_279_040),
}


def written(folder: Path, config: Any, name: str = "mine") -> Path:
    path = folder / name / "config.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(config if isinstance(config, str) else json.dumps(config, indent=2))
    return path


def imported(folder: Path, config: Any) -> Transformer:
    return read_config(written(folder, config))


def precision(folder: Path, section: Any) -> Precision | None:
    return imported(folder, LLAMA_3_8B | {"quantization_config": section}).checkpoint


@pytest.mark.parametrize("name", sorted(SHIPPED))
def test_a_config_is_the_shipped_card(name: str, tmp_path: Path) -> None:
    mine = imported(tmp_path, SHIPPED[name])
    assert mine.name == "mine"
    leave_out = {"name", "sources", "intermediate"} | (
        {"max_context"} if "mistral" in name or "mixtral" in name else set()
    )
    card = load_model(name)
    assert mine.model_dump(exclude=leave_out) == card.model_dump(exclude=leave_out)
    assert mine.parameters == card.parameters


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_other_architectures_have_the_published_count(name: str, tmp_path: Path) -> None:
    config, count = PUBLISHED[name]
    config = config | ({"n_positions": 1024} if name == "gpt2" else {})
    assert imported(tmp_path, config).parameters == count


def test_glm_with_experts_has_the_stated_counts(tmp_path: Path) -> None:
    model = imported(tmp_path, GLM_AIR)
    assert model.parameters == pytest.approx(106e9, rel=0.01)  # arXiv:2508.06471: 106B, 12B active
    assert model.active_parameters - model.vocabulary * model.hidden == pytest.approx(12e9, rel=0.02)


def test_every_architecture_is_read_by_some_test() -> None:
    kinds = {config["model_type"] for config, _ in PUBLISHED.values()} | {GLM_AIR["model_type"]}
    for config in SHIPPED.values():
        kinds.add(config["text_config"]["model_type"] if "text_config" in config else config["model_type"])
    assert set(ARCHITECTURES) - kinds == {"qwen3", "deepseek_v2", "kimi_k25", "gemma3_text", "glm"}
    assert not set(ARCHITECTURES) & set(UNSUPPORTED)


def test_gemma_3_inside_its_wrapper_has_five_windows_to_one(tmp_path: Path) -> None:
    text = {"model_type": "gemma3_text", "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34}
    config = {"model_type": "gemma3", "text_config": text | {"sliding_window": 1024}, "vision_config": {}}
    model = imported(tmp_path, config)
    # 4 B: 8 heads of 256, 4 KV heads and a vocabulary of 262,208 are the defaults of its class
    assert model.parameters == pytest.approx(3.88e9, rel=0.002)
    assert model.attention.window is not None
    assert (model.attention.window.tokens, model.attention.window.layers) == (1024, 34 - 34 // 6)
    assert model.vision is None
    assert model.sources["vision"].endswith("vision_config, left out")


def test_windows_in_the_upper_layers_alone(tmp_path: Path) -> None:
    config = sizes("qwen2", 64, 10, 4, 2, 128, 100, use_sliding_window=True, sliding_window=512, max_window_layers=7)
    window = imported(tmp_path, config).attention.window
    assert window is not None
    assert (window.tokens, window.layers) == (512, 3)
    assert imported(tmp_path, config | {"use_sliding_window": False}).attention.window is None
    assert imported(tmp_path, config | {"sliding_window": 32768}).attention.window is None  # sees everything


@pytest.mark.parametrize(
    ("config", "window"),
    [
        (sizes("mistral", 4096, 32, 32, 8, 14336, 32000), (4096, 32)),  # the class has it when the file says nothing
        (sizes("mistral", 4096, 32, 32, 8, 14336, 32000, sliding_window=None), None),
        ({"model_type": "mistral3", "text_config": {"model_type": "mistral"}}, (4096, 32)),
        ({"model_type": "mistral3", "text_config": {"model_type": "mistral", "sliding_window": None}}, None),
        ({"model_type": "gemma3", "text_config": {"sliding_window": None}}, None),
        (sizes("mixtral", 64, 4, 4, 2, 96, 1000, num_local_experts=8, num_experts_per_tok=2), None),
        (sizes("phi3", 64, 4, 4, 4, 96, 1000), None),
        ({k: v for k, v in GPT_OSS.items() if k not in ("sliding_window", "layer_types")}, (128, 18)),
        (sizes("qwen2", 64, 36, 4, 2, 96, 1000, use_sliding_window=True), (4096, 8)),  # from the 28th layer on
    ],
)
def test_a_window_that_is_not_said_is_that_of_the_class_and_null_is_none(
    config: Any, window: tuple[int, int] | None, tmp_path: Path
) -> None:
    found = imported(tmp_path, config).attention.window
    assert (None if found is None else (found.tokens, found.layers)) == window


def test_a_tower_that_is_not_clips_is_left_out(tmp_path: Path) -> None:
    text = sizes("mistral", 5120, 40, 32, 8, 14336, 131072, head_dim=128, sliding_window=None)
    for tower in ({"model_type": "pixtral", "image_size": 1024}, LLAVA["vision_config"] | {"model_type": "pixtral"}):
        model = imported(tmp_path, {"model_type": "llava", "text_config": text, "vision_config": tower})
        assert model.vision is None
        assert model.sources["vision"].endswith("vision_config, left out")
        assert model.parameters == 12_247_782_400  # Mistral Nemo


def test_sources_name_the_keys(tmp_path: Path) -> None:
    model = imported(tmp_path, LLAVA)
    file = tmp_path / "mine" / "config.json"
    assert model.sources["vocabulary"] == f"{file}: text_config.vocab_size"
    assert model.sources["vision.image"] == f"{file}: vision_config.image_size"
    assert "default" in model.sources["attention.kv_heads"]


def test_a_config_is_a_model_by_its_path(tmp_path: Path) -> None:
    written(tmp_path, DEEPSEEK_V3)
    assert catalog.is_path("workloads/models", "config.json")
    assert not catalog.is_path("topologies", "config.json")
    assert load_model("mine/config.json", tmp_path).parameters == load_model("deepseek-v3").parameters
    other = tmp_path / "qwen3-small_config.json"
    other.write_text(json.dumps(LLAMA_3_8B))
    assert load_model(str(other)).name == "qwen3-small"


def test_tabs_and_exponents_of_json_are_read(tmp_path: Path) -> None:
    text = json.dumps(LLAMA_3_8B | {"rms_norm_eps": 1e-05, "rope_scaling": None, "eos": [1, 2]}, indent="\t")
    assert imported(tmp_path, text).parameters == load_model("llama-3-8b").parameters


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        (None, None),
        ({"quant_method": "fp8"}, Precision(weights="fp8")),
        (FP8, Precision(weights="fp8_block")),
        (FP8 | {"modules_to_not_convert": "lm_head"}, Precision(weights="fp8_block")),
        ({"quant_method": "awq", "bits": 4, "group_size": 128}, Precision(weights="int4_wo")),
        ({"quant_method": "gptq", "bits": 8}, Precision(weights="int8_wo")),
        ({"quant_method": "mxfp4"}, Precision(weights="bf16", experts="w4a16_mxfp4")),
        ({"quant_method": "gptq", "bits": 4, "group_size": 64}, Precision(weights="int4_wo_64")),
        ({"quant_method": "awq", "w_bit": 4, "q_group_size": 32}, Precision(weights="int4_wo_32")),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, Precision(weights="nvfp4")),
        (
            {"quant_method": "modelopt", "quant_algo": "FP8", "kv_cache_scheme": {"num_bits": 8, "type": "float"}},
            Precision(weights="fp8", kv="fp8"),
        ),
        (
            {"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": ["model.layers.*.self_attn*", "lm_head"]},
            Precision(weights="nvfp4", attention_weights="bf16"),
        ),
    ],
)
def test_formats_of_the_weights(section: Any, expected: Precision | None, tmp_path: Path) -> None:
    assert precision(tmp_path, section) == expected


@pytest.mark.parametrize(
    ("weights", "inputs", "name"),
    [
        ({"num_bits": 4, "type": "float", "group_size": 16}, {"num_bits": 4}, "nvfp4"),
        ({"num_bits": 4, "type": "float", "group_size": 32}, {"num_bits": 4}, "mxfp4"),
        ({"num_bits": 4, "type": "int", "group_size": 128}, {"num_bits": 8, "type": "float"}, "w4a8_fp8"),
        ({"num_bits": 8, "type": "float", "strategy": "channel"}, {"num_bits": 8}, "fp8"),
        ({"num_bits": 8, "type": "float", "block_structure": [128, 128]}, {"num_bits": 8}, "fp8_block"),
        ({"num_bits": 8, "type": "float"}, None, "fp8_wo"),
        ({"num_bits": 8, "type": "int"}, {"num_bits": 8}, "int8"),
        ({"num_bits": 8, "type": "int"}, None, "int8_wo"),
        ({"num_bits": 4, "type": "int", "group_size": 128}, {"num_bits": 8}, "w4a8"),
        ({"num_bits": 4, "type": "int", "group_size": 128}, None, "int4_wo"),
    ],
)
def test_formats_of_compressed_tensors(weights: Any, inputs: Any, name: str, tmp_path: Path) -> None:
    groups = {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": inputs}}
    section = {"quant_method": "compressed-tensors", "config_groups": groups, "ignore": ["lm_head"]}
    assert precision(tmp_path, section) == Precision(weights=name)


GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128}
INT4 = {"weights": {"num_bits": 4, "type": "int", "group_size": 128}, "input_activations": None}
FP8_GROUP = {"weights": {"num_bits": 8, "type": "float"}, "input_activations": {"num_bits": 8}}
EXPERTS, LINEAR = {"targets": ["re:.*mlp.experts.*"]}, {"targets": ["Linear"]}


@pytest.mark.parametrize(
    ("config", "section", "expected"),
    [
        (KIMI, KIMI_QUANTISATION, Precision(weights="bf16", experts="int4_wo_32", shared="bf16")),
        # GPTQModel's rules by module: left out, or in other bits
        (
            DEEPSEEK_V3,
            GPTQ | {"dynamic": {r"-:.*self_attn.*": {}}},
            Precision(weights="int4_wo", attention_weights="bf16"),
        ),
        (
            LLAMA_3_8B,
            GPTQ | {"dynamic": {r"+:.*\.mlp\..*": {"bits": 8}}},
            Precision(weights="int8_wo", attention_weights="int4_wo"),
        ),
        # groups of modules
        (
            DEEPSEEK_V3,
            {"quant_method": "compressed-tensors", "config_groups": {"group_0": INT4 | EXPERTS}},
            Precision(weights="bf16", experts="int4_wo", shared="bf16"),
        ),
        (
            DEEPSEEK_V3,
            {"quant_method": "compressed-tensors", "config_groups": {"a": FP8_GROUP | LINEAR, "b": INT4 | EXPERTS}},
            Precision(weights="fp8", experts="int4_wo", shared="fp8"),
        ),
        # what the first layers alone have is not what most have, and dense layers are those before the experts
        (LLAMA_3_8B, FP8 | {"modules_to_not_convert": ["model.layers.0.mlp"]}, Precision(weights="fp8_block")),
        (
            DEEPSEEK_V3,
            FP8 | {"modules_to_not_convert": [f"model.layers.{i}." for i in range(3)]},
            Precision(weights="bf16", experts="fp8_block", attention_weights="fp8_block"),
        ),
        # names inside a wrapper
        (
            {"model_type": "mistral3", "text_config": LLAMA_3_8B | {"model_type": "mistral"}},
            FP8 | {"modules_to_not_convert": [f"language_model.model.layers.{i}.self_attn" for i in range(32)]},
            Precision(weights="fp8_block", attention_weights="bf16"),
        ),
    ],
)
def test_formats_by_module(config: Any, section: Any, expected: Precision, tmp_path: Path) -> None:
    assert imported(tmp_path, config | {"quantization_config": section}).checkpoint == expected


def test_modules_in_another_format_than_most_are_told(tmp_path: Path) -> None:
    section = FP8 | {"modules_to_not_convert": ["model.layers.0.mlp", "model.layers.31.mlp"]}
    source = imported(tmp_path, LLAMA_3_8B | {"quantization_config": section}).sources["checkpoint"]
    assert source.endswith(": quantization_config; 6 of 96 modules of MLPs are in bf16")


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (
            {"quant_method": "bitsandbytes"},
            r"quantization_config\.quant_method.*'bitsandbytes' has no format; allowed: fp8",
        ),
        (
            {"quant_method": "gptq", "bits": 3},
            r"quantization_config\.bits.*gptq of 3 bits has no format; allowed: 4, 8",
        ),
        ({"quant_method": "modelopt", "quant_algo": "W3"}, r"quant_algo.*'W3' has no format"),
        ({"quant_method": "compressed-tensors"}, "without groups"),
        ({"quant_method": ["fp8"]}, "has no format; allowed: fp8"),
        (
            {"config_groups": {"group_0": INT4 | {"input_activations": {"num_bits": {}}}}},
            r"config_groups\.group_0\.weights.*with inputs of \{\} bits \(int\) have no format",
        ),
        (FP8 | {"modules_to_not_convert": ["re:("]}, r"'\(' is no regular expression"),
        (FP8 | {"modules_to_not_convert": ["mlp", "self_attn"]}, "no part of the language model is quantised"),
        (GPTQ | {"dynamic": {".*mlp.*": {"bits": 2}}}, r"dynamic.*gptq of 2 bits has no format; allowed: 4, 8"),
        (
            {"quant_method": "compressed-tensors", "config_groups": {"group_0": INT4 | {"targets": ["re:.*vision.*"]}}},
            "no part of the language model is quantised",
        ),
        ("fp8", "expected a mapping of keys, found 'fp8'"),
    ],
)
def test_unknown_quantisation_is_an_error_at_its_key(section: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        precision(tmp_path, section)


def test_a_missing_number_is_named_with_file_and_key(tmp_path: Path) -> None:
    config = {key: value for key, value in LLAMA_3_8B.items() if key not in ("vocab_size", "hidden_size")}
    with pytest.raises(InputError) as caught:
        imported(tmp_path, config)
    assert {problem.path for problem in caught.value.problems} == {"vocab_size", "hidden_size"}
    assert {problem.file for problem in caught.value.problems} == {str(tmp_path / "mine" / "config.json")}
    assert "missing key 'hidden_size'" in str(caught.value)


@pytest.mark.parametrize("value", ["many", 0, -1, 1.5, True, [32]])
def test_an_odd_number_is_one_error_with_its_line(value: object, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        imported(tmp_path, LLAMA_3_8B | {"num_hidden_layers": value})
    [problem] = caught.value.problems
    assert (problem.path, problem.line) == ("num_hidden_layers", 4)
    assert problem.what.startswith("expected a whole number, found")


QWEN3 = sizes("qwen3", 4096, 36, 32, 8, 12288, 151936, head_dim=128) | {"max_position_embeddings": 40960}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (QWEN3 | {"rope_scaling": None}, 40960),
        (QWEN3 | {"rope_scaling": YARN}, 131072),  # as Qwen's model card has it for long texts
        (QWEN3 | {"rope_parameters": YARN | {"rope_theta": 1e6}}, 131072),
        (QWEN3 | {"rope_scaling": {"type": "yarn", "factor": 2}}, 81920),
        (QWEN3 | {"rope_scaling": {"type": "linear", "factor": 2.5}}, 102400),
        (DEEPSEEK_V3 | {"rope_scaling": {**YARN, "factor": 40, "original_max_position_embeddings": 4096}}, 163840),
        (LLAMA_3_8B | {"rope_scaling": {**YARN, "rope_type": "llama3", "factor": 8.0}}, 8192),
        (LLAMA_3_8B | {"rope_scaling": {"rope_type": "longrope", "factor": 8.0}}, 8192),
    ],
)
def test_the_longest_context_of_stretched_positions(config: Any, expected: int, tmp_path: Path) -> None:
    assert imported(tmp_path, config).max_context == expected


def test_positions_stretched_by_no_number(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="rope_scaling: positions stretched by 'x' from 32768; allowed: numbers"):
        imported(tmp_path, QWEN3 | {"rope_scaling": YARN | {"factor": "x"}})


def test_heads_that_do_not_divide_the_width(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="num_attention_heads: 33 heads do not divide the hidden width of 4096"):
        imported(tmp_path, LLAMA_3_8B | {"num_attention_heads": 33, "num_key_value_heads": 11})


def test_what_the_card_refuses_is_said_where_the_config_has_it(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"heads \(32\) must be a multiple of kv_heads \(5\)") as caught:
        imported(tmp_path, LLAMA_3_8B | {"num_key_value_heads": 5})
    assert caught.value.problems[0].line == 5  # of num_attention_heads


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "qwen3_next"}, "linear attention, which is not modelled.*did you mean 'qwen3_moe'"),
        ({"model_type": "mamba2"}, "state-space layers, which is not modelled[^?]*$"),  # nothing is near
        ({"model_type": "deepseek_v4"}, "compressed and sparse attention.*did you mean 'deepseek_v3'"),
        (GLM_5 | {"index_topk_freq": 4}, "index_topk_freq: layers that take over what the index of another chose"),
        (GLM_5 | {"indexer_types": ["full", "shared"]}, "indexer_types: layers that take over.*allowed: full"),
        (GLM_5 | {"indexer_types": 3}, "indexer_types: expected a list, found 3"),
        (GLM_5 | {"index_topk_pattern": "FS"}, "index_topk_pattern: layers that take over"),
        (GLM_5 | {"q_lora_rank": None}, "q_lora_rank: an index makes its queries from compressed ones"),
        (GLM_5 | {"index_n_heads": None}, "missing key 'index_n_heads'"),
        ({"model_type": "llama4"}, "chunked attention"),
        ({"model_type": "quen3"}, "architecture 'quen3' is not supported; allowed: llama.*did you mean 'qwen3'"),
        ({"model_type": "novel", "linear_attn_config": {"x": 1}}, "'novel' is not supported: it has linear attention"),
        (DEEPSEEK_V3 | {"index_topk": 2048}, "sparse attention chosen by an indexer"),
        (MINIMAX | {"attn_type_list": [0] * 55 + [1] * 7}, "attn_type_list: layers of linear attention"),
        (DEEPSEEK_V3 | {"moe_layer_freq": 2}, r"moe_layer_freq: experts in every 2\. layer; allowed: 1"),
        (DEEPSEEK_V3 | {"attention_bias": True}, "attention_bias: biases in latent attention"),
        (GPT_OSS | {"layer_types": ["chunked_attention"] * 36}, "layer_types: layers of chunked_attention"),
        (GPT_OSS | {"layer_types": ["sliding_attention"] * 6}, "layer_types: 6 kinds for 36 layers"),
        (GPT_OSS | {"layer_types": 36}, "layer_types: expected a list, found 36"),
        (MINIMAX | {"attn_type_list": 1}, "attn_type_list: expected a list, found 1"),
        (SHIPPED["qwen3-30b-a3b"] | {"mlp_only_layers": 3}, "mlp_only_layers: expected a list, found 3"),
        (SHIPPED["opt-66b"] | {"word_embed_proj_dim": 512}, "word_embed_proj_dim"),
        (T5 | {"vocab_size": 32128, "relative_attention_num_buckets": 64}, "relative_attention_num_buckets"),
        ({"model_type": "llava"}, "missing key 'text_config'"),
        (LLAVA | {"vision_config": {"hidden_size": 1024}}, r"vision_config\.num_hidden_layers: missing key"),
        ({"hidden_size": 1}, "missing key 'model_type'; allowed: llama"),
        ({"model_type": 3}, "expected the name of an architecture, found 3"),
        ([1, 2], "expected the keys of a config.json"),
        ("{", "not valid"),
    ],
)
def test_what_no_card_describes_is_refused_honestly(config: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"(?s){message}") as caught:
        imported(tmp_path, config)
    assert {problem.file for problem in caught.value.problems} == {str(tmp_path / "mine" / "config.json")}


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read"):
        load_model("none/config.json", tmp_path)
    assert callable(formats_of)
