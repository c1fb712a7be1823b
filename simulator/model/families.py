"""Which key of a Hugging Face `config.json` is which number of a model card, by architecture.

Source: the configuration classes of transformers, and the modelling code for what they do not say (which layers have
biases, how many norms there are, where experts are).
"""

from collections.abc import Callable, Mapping
from math import inf

from simulator.model.config_json import Reading
from simulator.model.transformer import RELATIVE_BUCKETS


def _sizes(c: Reading) -> None:
    c.take("layers", "num_hidden_layers")
    c.take("hidden", "hidden_size")
    c.take("intermediate", "intermediate_size")
    c.take("vocabulary", "vocab_size")
    c.take("max_context", "max_position_embeddings")
    _stretched(c)


def _stretched(c: Reading) -> None:
    """Set the longest context of rotary positions that are stretched by a factor, as vLLM derives it.

    Other kinds (llama3, longrope) and Gemma 3 name the stretched one as `max_position_embeddings`.
    """
    key = "rope_parameters" if c.value("rope_parameters") is not None else "rope_scaling"
    rope = c.value(key)
    if not isinstance(rope, Mapping) or str(c.value("model_type")).startswith("gemma3"):
        return
    kind, factor = rope.get("rope_type", rope.get("type")), rope.get("factor", 1.0)
    if kind not in ("yarn", "linear", "dynamic"):
        return
    before = rope.get("original_max_position_embeddings") if kind == "yarn" else None
    before = c.fields["max_context"] if before is None else before
    for number in (factor, before):
        if isinstance(number, bool) or not isinstance(number, int | float) or not 1 <= number < inf:
            c.fault(key, f"positions stretched by {factor!r} from {before!r}", "numbers of 1 or more")
            return
    c.put("max_context", round(before * factor), key)


def _heads(c: Reading, *keys: str, head_dim: int | None = None) -> None:
    """Set the heads, from `num_attention_heads` or `keys`; without a `head_dim` they share the width."""
    keys = keys or ("num_attention_heads",)
    count, width = c.take("attention.heads", *keys), c.fields["hidden"]
    c.take("attention.kv_heads", "num_key_value_heads", default=count)
    if c.value("head_dim") is None and head_dim is None and width % count and not c.problems:
        c.fault(keys[0], f"{count} heads do not divide the hidden width of {width}")
    c.take("attention.head_dim", "head_dim", default=head_dim or max(1, width // count))
    c.put("attention.kind", "grouped", "model_type")


def _biases(c: Reading, key: str = "attention_bias", default: bool = False, output: bool | None = None) -> None:
    """Set the biases of attention; `output`: whether the output projection has one, default: as the others."""
    there = c.flag(key, default)
    c.put("attention.qkv_bias", there, key)
    c.put("attention.output_bias", there if output is None else output, key)


def _all_biases(c: Reading) -> None:
    c.put("attention.qkv_bias", True, "model_type")
    c.put("attention.output_bias", True, "model_type")


def _tied(c: Reading, default: bool = False) -> None:
    c.put("tied_embeddings", c.flag("tie_word_embeddings", default), "tie_word_embeddings")


def _window(c: Reading, layers: int, default: int | None = None) -> None:
    """Set the window when it is shorter than the longest context; `layers` have it unless `layer_types` says which.

    `default`: that of the class, which a file that says nothing has; null is no window.
    """
    kinds = c.listed("layer_types")
    if kinds:
        odd = sorted({str(kind) for kind in kinds} - {"sliding_attention", "full_attention"})
        if odd:
            c.fault("layer_types", f"layers of {', '.join(odd)}", "sliding_attention, full_attention")
        if len(kinds) != c.fields["layers"]:
            c.fault("layer_types", f"{len(kinds)} kinds for {c.fields['layers']} layers", "one for each layer")
        layers = sum(kind == "sliding_attention" for kind in kinds)
    null = "sliding_window" in c.values and c.values["sliding_window"] is None
    there = not null and (c.value("sliding_window") is not None or default is not None)
    if not there or layers == 0 or c.value("use_sliding_window") is False:
        return
    if c.number("sliding_window", default=default) < c.fields["max_context"]:
        c.take("attention.window.tokens", "sliding_window", default=default)
        c.put("attention.window.layers", layers, "layer_types" if kinds else "sliding_window")


def _qwen_window(c: Reading) -> None:
    if c.flag("use_sliding_window"):
        _window(c, max(0, c.fields["layers"] - c.number("max_window_layers", default=28, least=0)), 4096)


def _experts(c: Reading, experts: str, width: str, layers: int, every: int = 1) -> None:
    c.take("experts.experts", experts)
    c.take("experts.active", "num_experts_per_tok", "experts_per_token")
    c.take("experts.intermediate", width)
    c.put("experts.layers", layers, experts)
    if every > 1:
        c.put("experts.every", every, "decoder_sparse_step")


def _stepped_experts(c: Reading) -> None:
    """Set the experts of Qwen: in every `decoder_sparse_step`-th layer that is not among `mlp_only_layers`."""
    every, total = c.number("decoder_sparse_step", default=1), c.fields["layers"]
    dense = c.listed("mlp_only_layers")
    layers = sum((layer + 1) % every == 0 and layer not in dense for layer in range(total))
    if layers:
        _experts(c, "num_experts", "moe_intermediate_size", layers, every)


def _routed(c: Reading) -> None:
    """Set the experts of DeepSeek and GLM: leading dense layers, shared experts, groups, a bias that balances."""
    if c.number("moe_layer_freq", default=1) != 1:
        c.fault("moe_layer_freq", f"experts in every {c.value('moe_layer_freq')}. layer", "1")
    leading = c.number("first_k_dense_replace", default=0, least=0)
    _experts(c, "n_routed_experts", "moe_intermediate_size", c.fields["layers"] - leading)
    if c.value("n_shared_experts") is not None:
        c.put("experts.shared", c.number("n_shared_experts", least=0), "n_shared_experts")
    c.take("experts.groups", "n_group", default=1)
    c.take("experts.active_groups", "topk_group", default=1)
    if c.value("num_nextn_predict_layers") is not None:
        c.put("draft_layers", c.number("num_nextn_predict_layers", least=0), "num_nextn_predict_layers")


# -- architectures ------------------------------------------------------------------------------------------------


def _llama(c: Reading) -> None:
    _sizes(c)
    _heads(c)
    _biases(c)
    _tied(c)
    c.put("mlp_bias", c.flag("mlp_bias"), "mlp_bias")


def _mistral(c: Reading) -> None:
    _phi3(c, 4096)


def _phi3(c: Reading, window: int | None = None) -> None:
    _sizes(c)
    _heads(c)
    _tied(c)
    _window(c, c.fields["layers"], window)


def _mixtral(c: Reading) -> None:
    _phi3(c)
    _experts(c, "num_local_experts", "intermediate_size", c.fields["layers"])


def _qwen2(c: Reading) -> None:
    _sizes(c)
    _heads(c)
    _tied(c)
    c.put("attention.qkv_bias", True, "model_type")
    _qwen_window(c)


def _qwen2_moe(c: Reading) -> None:
    _qwen2(c)
    _stepped_experts(c)
    c.put("experts.shared", 1, "model_type")
    c.take("experts.shared_intermediate", "shared_expert_intermediate_size")
    c.put("experts.shared_gate", True, "model_type")


def _qwen3(c: Reading) -> None:
    _sizes(c)
    _heads(c)
    _biases(c)
    _tied(c)
    c.put("attention.qk_norm", "head", "model_type")
    _qwen_window(c)


def _qwen3_moe(c: Reading) -> None:
    _qwen3(c)
    _stepped_experts(c)


def _deepseek(c: Reading) -> None:
    _sizes(c)
    _tied(c)
    if c.flag("attention_bias"):
        c.fault("attention_bias", "biases in latent attention are not modelled", "false")
    c.put("attention.kind", "latent", "kv_lora_rank")
    c.take("attention.heads", "num_attention_heads")
    if c.value("q_lora_rank") is not None:
        c.take("attention.query_rank", "q_lora_rank")
    for field, key in (
        ("kv_rank", "kv_lora_rank"),
        ("nope_dim", "qk_nope_head_dim"),
        ("rope_dim", "qk_rope_head_dim"),
        ("value_dim", "v_head_dim"),
    ):
        c.take(f"attention.{field}", key)
    if c.value("n_routed_experts") is None:  # all layers are dense
        return
    _routed(c)
    default = "greedy" if c.value("model_type") == "deepseek_v2" else "noaux_tc"
    c.put("experts.router_bias", (c.value("topk_method") or default) == "noaux_tc", "topk_method")


def _indexed_deepseek(c: Reading) -> None:
    _deepseek(c)
    if c.value("q_lora_rank") is None:
        c.fault("q_lora_rank", "an index makes its queries from compressed ones", "a number")
        return
    for field, key in (("heads", "index_n_heads"), ("dim", "index_head_dim"), ("topk", "index_topk")):
        c.take(f"attention.index.{field}", key)
    shared = "layers that take over what the index of another chose are not modelled"
    if c.number("index_topk_freq", default=1) > 1:
        c.fault("index_topk_freq", shared, "1")
    elif any(kind != "full" for kind in c.listed("indexer_types") or ()):
        c.fault("indexer_types", shared, "full")
    elif c.value("index_topk_pattern") is not None:
        c.fault("index_topk_pattern", shared, "null")


def _gpt_oss(c: Reading) -> None:
    _sizes(c)
    _heads(c)
    _biases(c, default=True)
    _tied(c)
    c.put("attention.sinks", True, "model_type")
    c.put("mlp_bias", True, "model_type")
    _experts(c, "num_local_experts", "intermediate_size", c.fields["layers"])
    c.put("experts.router_bias", True, "model_type")
    _window(c, (c.fields["layers"] + 1) // 2, 128)


def _minimax_m2(c: Reading) -> None:
    _sizes(c)
    _heads(c)
    _tied(c)
    if any(kind != 1 for kind in c.listed("attn_type_list")):
        c.fault("attn_type_list", "layers of linear attention are not modelled", "1 for every layer")
    if c.flag("use_qk_norm", default=True):
        whole = c.value("qk_norm_type") in (None, "per_layer")
        c.put("attention.qk_norm", "layer" if whole else "head", "qk_norm_type")
    _experts(c, "num_local_experts", "intermediate_size", c.fields["layers"])
    c.put("experts.router_bias", c.flag("use_routing_bias", default=True), "use_routing_bias")
    if c.flag("use_mtp"):
        modules = c.number("num_mtp_modules", default=0, least=0)
        c.put("draft_layers", modules * c.number("mtp_transformer_layers", default=1), "num_mtp_modules")


def _gemma(c: Reading) -> None:
    _sizes(c)
    _heads(c, head_dim=256)
    _biases(c)
    _tied(c, default=True)


def _gemma2(c: Reading) -> None:
    _gemma(c)
    c.put("norms", 4, "model_type")
    _window(c, (c.fields["layers"] + 1) // 2, 4096)


def _gemma3(c: Reading) -> None:
    _gemma(c)
    c.put("norms", 4, "model_type")
    c.put("attention.qk_norm", "head", "model_type")
    every = c.number("sliding_window_pattern", "_sliding_window_pattern", default=6)
    _window(c, c.fields["layers"] - c.fields["layers"] // every, 4096)


def _glm(c: Reading) -> None:
    _sizes(c)
    _heads(c)
    _biases(c, default=True, output=False)
    _tied(c)


def _glm4(c: Reading) -> None:
    _glm(c)
    c.put("norms", 4, "model_type")


def _glm4_moe(c: Reading) -> None:
    _sizes(c)
    _heads(c)
    _biases(c, output=False)
    _tied(c)
    if c.flag("use_qk_norm"):
        c.put("attention.qk_norm", "head", "use_qk_norm")
    _routed(c)
    c.put("experts.router_bias", True, "model_type")


def _classic(c: Reading, positions: str, rows: int | None, tied: bool) -> None:
    """Set what GPT-2 and its kin share: layer norms and an MLP without gate and with biases."""
    c.put("norm", "layer", "model_type")
    c.put("gated", False, "model_type")
    c.put("mlp_bias", True, "model_type")
    c.put("positions", positions, "model_type")
    if rows is not None:
        c.put("position_rows", rows, "n_positions" if c.value("n_positions") else "max_position_embeddings")
    _tied(c, default=tied)


def _gpt_sizes(c: Reading) -> None:
    c.take("layers", "n_layer", "num_hidden_layers")
    width = c.take("hidden", "n_embd", "hidden_size")
    c.take("intermediate", "n_inner", default=4 * width)
    c.take("vocabulary", "vocab_size")
    c.take("max_context", "n_positions", "max_position_embeddings")
    _heads(c, "n_head", "num_attention_heads")


def _gpt2(c: Reading) -> None:
    _gpt_sizes(c)
    _classic(c, "learned", c.fields["max_context"], tied=True)
    _all_biases(c)


def _gptj(c: Reading) -> None:
    _gpt_sizes(c)
    _classic(c, "rotary", None, tied=False)
    c.put("norms", 1, "model_type")
    c.put("head_bias", True, "model_type")


def _gpt_neox(c: Reading) -> None:
    _sizes(c)
    _heads(c)
    _classic(c, "rotary", None, tied=False)
    _biases(c, default=True)


def _opt(c: Reading) -> None:
    c.take("layers", "num_hidden_layers")
    width = c.take("hidden", "hidden_size")
    c.take("intermediate", "ffn_dim")
    c.take("vocabulary", "vocab_size")
    context = c.take("max_context", "max_position_embeddings")
    _heads(c)
    if c.number("word_embed_proj_dim", default=width) != width or not c.flag("do_layer_norm_before", default=True):
        c.fault("word_embed_proj_dim", "projected embeddings and norms behind each part are not modelled", str(width))
    _classic(c, "learned", context + 2, tied=True)  # OPT's positions begin at 2
    _biases(c, "enable_bias", default=True)


def _bloom(c: Reading) -> None:
    c.take("layers", "n_layer", "num_hidden_layers")
    width = c.take("hidden", "hidden_size", "n_embed", "n_embd")
    c.put("intermediate", 4 * width, "hidden_size")
    c.take("vocabulary", "vocab_size")
    c.take("max_context", "seq_length", default=2048)
    _heads(c, "n_head", "num_attention_heads")
    _classic(c, "alibi", None, tied=True)
    _all_biases(c)
    c.put("embedding_norm", True, "model_type")


def _t5(c: Reading) -> None:
    layers = c.take("encoder.layers", "num_layers")
    c.take("layers", "num_decoder_layers", default=layers)
    c.take("hidden", "d_model")
    c.take("intermediate", "d_ff")
    c.take("vocabulary", "vocab_size")
    c.take("max_context", "n_positions", default=512)
    count = c.take("attention.heads", "num_heads")
    c.put("attention.kv_heads", count, "num_heads")
    c.take("attention.head_dim", "d_kv")
    c.put("attention.kind", "grouped", "model_type")
    kind = c.value("feed_forward_proj") or "relu"
    c.put("gated", str(kind).startswith("gated-"), "feed_forward_proj")
    c.put("positions", "relative", "model_type")
    if c.number("relative_attention_num_buckets", default=RELATIVE_BUCKETS) != RELATIVE_BUCKETS:
        c.fault("relative_attention_num_buckets", "another number of distances is not modelled", str(RELATIVE_BUCKETS))
    _tied(c, default=True)


def _switch(c: Reading) -> None:
    _t5(c)
    layers, sparse = c.fields["encoder.layers"], c.number("num_sparse_encoder_layers", default=3)
    decoder_sparse = c.number("num_sparse_decoder_layers", default=3)
    c.take("experts.experts", "num_experts")
    c.put("experts.active", 1, "model_type")
    c.take("experts.intermediate", "d_ff")
    c.put("experts.layers", decoder_sparse, "num_sparse_decoder_layers")
    c.put("encoder.expert_layers", sparse, "num_sparse_encoder_layers")
    c.put("experts.every", max(1, layers // sparse), "num_sparse_encoder_layers")
    c.put("experts.router_bias", c.flag("router_bias"), "router_bias")


ARCHITECTURES: dict[str, Callable[[Reading], None]] = {
    "llama": _llama,
    "mistral": _mistral,
    "mixtral": _mixtral,
    "qwen2": _qwen2,
    "qwen2_moe": _qwen2_moe,
    "qwen3": _qwen3,
    "qwen3_moe": _qwen3_moe,
    "deepseek_v2": _deepseek,
    "deepseek_v3": _deepseek,
    "deepseek_v32": _indexed_deepseek,
    "glm_moe_dsa": _indexed_deepseek,
    "kimi_k2": _deepseek,
    "kimi_k25": _deepseek,
    "gpt_oss": _gpt_oss,
    "minimax_m2": _minimax_m2,
    "phi3": _phi3,
    "gemma": _gemma,
    "gemma2": _gemma2,
    "gemma3_text": _gemma3,
    "glm": _glm,
    "glm4": _glm4,
    "glm4_moe": _glm4_moe,
    "gpt2": _gpt2,
    "gptj": _gptj,
    "gpt_neox": _gpt_neox,
    "opt": _opt,
    "bloom": _bloom,
    "t5": _t5,
    "switch_transformers": _switch,
}
"""How a card is read, by the `model_type` of the `config.json`."""
