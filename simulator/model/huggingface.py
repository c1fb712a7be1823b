"""Model cards from the `config.json` of a Hugging Face checkpoint, and honest errors for what no card can describe.

Source: `families` for the keys of each architecture; formats of the weights as `quantisation` reads them.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from simulator.documents import Document, PathKey, read_document
from simulator.errors import InputError, Problem, nearest
from simulator.model.config_json import Reading
from simulator.model.families import ARCHITECTURES
from simulator.model.quantisation import formats_of
from simulator.model.transformer import Transformer
from simulator.strict import validate

WRAPPERS = {"llava": "llama", "kimi_k25": "kimi_k2", "gemma3": "gemma3_text", "mistral3": "mistral"}
"""Architectures around a language model (`text_config`), and which one that is when it does not say."""

DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "vocab_size": 32000,
        "max_position_embeddings": 2048,
    },
    "mistral": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 32000,
        "max_position_embeddings": 131072,
    },
    "gemma3_text": {
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "vocab_size": 262208,
        "max_position_embeddings": 131072,
        "sliding_window": 4096,
    },
}
"""Defaults of the configuration classes, which a `text_config` leaves out; a file of its own has to say its numbers."""

LINEAR, STATE, SPARSE = "linear attention", "state-space layers", "sparse attention chosen by an indexer (DSA)"

INDEXED = ("deepseek_v32", "glm_moe_dsa")
"""Architectures of which an index is known."""

UNSUPPORTED: dict[str, tuple[str, str | None]] = {
    "qwen3_next": (LINEAR, "qwen3_moe"),
    "qwen3_5": (LINEAR, "qwen3"),
    "qwen3_5_text": (LINEAR, "qwen3"),
    "qwen3_5_moe": (LINEAR, "qwen3_moe"),
    "qwen3_5_moe_text": (LINEAR, "qwen3_moe"),
    "kimi_linear": (LINEAR, "kimi_k2"),
    "minimax": (LINEAR, "minimax_m2"),
    "minimax_text_01": (LINEAR, "minimax_m2"),
    "minimax_m1": (LINEAR, "minimax_m2"),
    "deepseek_v4": ("compressed and sparse attention", "deepseek_v3"),
    "mamba": (STATE, None),
    "mamba2": (STATE, None),
    "falcon_mamba": (STATE, None),
    "falcon_h1": (STATE, "llama"),
    "jamba": (STATE, "mixtral"),
    "bamba": (STATE, "llama"),
    "zamba2": (STATE, "llama"),
    "nemotron_h": (STATE, "llama"),
    "granitemoehybrid": (STATE, "mixtral"),
    "rwkv": (LINEAR, None),
    "recurrent_gemma": ("recurrent layers", "gemma2"),
    "lfm2": ("layers of short convolutions", "llama"),
    "llama4": ("chunked attention", "mixtral"),
    "llama4_text": ("chunked attention", "mixtral"),
    "mllama": ("cross-attention to images", "llama"),
    "gemma3n": ("layers that share a KV cache and per-layer embeddings", "gemma3_text"),
    "bert": ("attention without a causal mask and an LM head", None),
}
"""What architectures have that no card describes, and the supported one that is nearest."""

FEATURES = {
    "linear_attn_config": LINEAR,
    "linear_num_value_heads": LINEAR,
    "mamba_d_state": STATE,
    "ssm_state_size": STATE,
    "index_topk": SPARSE,
    "attention_chunk_size": "chunked attention",
    "cross_attention_layers": "cross-attention to images",
    "num_kv_shared_layers": "layers that share a KV cache",
}
"""Keys that give such things away in an architecture that is not known by name."""


def read_config(path: Path) -> Transformer:
    """Return the card of the model that a `config.json` describes.

    A vision tower becomes part of the card when it is CLIP's, as LLaVA has it; of others the language model alone is
    read, which the card's `sources.vision` says. Raises InputError with file, line and key for what is missing or odd
    and for an architecture that no card describes, which names what it has and the nearest one that is supported.
    """
    document = read_document(path)
    if not isinstance(document.value, Mapping):
        raise InputError(document.problem((), "expected the keys of a config.json", "a mapping of keys"))
    prefix, kind = _language_model(document)
    reading = Reading(document, prefix, DEFAULTS.get(kind) if prefix else None)
    _refuse_unsupported(reading, kind)
    ARCHITECTURES[kind](reading)
    reading.fields["name"] = path.parent.resolve().name if path.stem == "config" else path.stem.removesuffix("_config")
    _vision(reading)
    if reading.problems:
        raise InputError(reading.problems)
    card = reading.card()
    formats = formats_of(document)
    if formats is not None:
        card["checkpoint"] = formats.precision
        noted = "; ".join(("quantization_config", *formats.exceptions))
        card["sources"]["checkpoint"] = f"{document.file}: {noted}"
    return validate(Transformer, Document(document.file, card, reading.positions))


def _language_model(document: Document) -> tuple[PathKey, str]:
    """Return where the keys of the language model are and its architecture."""
    kind = document.value.get("model_type")
    if not isinstance(kind, str):
        known = ", ".join(ARCHITECTURES)
        what = "missing key 'model_type'" if kind is None else f"expected the name of an architecture, found {kind!r}"
        raise InputError(document.problem(("model_type",), what, known))
    inner = document.value.get("text_config")
    if kind in WRAPPERS and isinstance(inner, Mapping):
        return ("text_config",), str(inner.get("model_type") or WRAPPERS[kind])
    if kind == "llava":
        what = "missing key 'text_config'"
        raise InputError(document.problem(("text_config",), what, "a converted checkpoint, such as those of llava-hf"))
    return (), WRAPPERS.get(kind, kind)


def _refuse_unsupported(reading: Reading, kind: str) -> None:
    lacking, close = UNSUPPORTED.get(kind, (None, None))
    if lacking is None:
        known = ("index_topk",) if kind in INDEXED else ()
        odd = (what for key, what in FEATURES.items() if key not in known and reading.value(key) is not None)
        lacking = next(odd, None)
    if lacking is None and kind in ARCHITECTURES:
        return
    what = f"architecture {kind!r} is not supported" + (f": it has {lacking}, which is not modelled" if lacking else "")
    where = reading.document.problem((*reading.prefix, "model_type"), what)
    also = close if lacking else nearest(kind, ARCHITECTURES)
    supported = ", ".join(ARCHITECTURES)
    raise InputError(Problem(what, where.file, where.line, where.column, where.path, supported, also))


def _vision(reading: Reading) -> None:
    tower = reading.document.value.get("vision_config")
    if tower is None or not reading.prefix:
        return
    clip = isinstance(tower, Mapping) and tower.get("model_type", "clip_vision_model") == "clip_vision_model"
    if reading.document.value.get("model_type") != "llava" or not clip:
        reading.sources["vision"] = f"{reading.document.file}: vision_config, left out"
        return
    part = Reading(reading.document, ("vision_config",))
    for field, key in (
        ("layers", "num_hidden_layers"),
        ("hidden", "hidden_size"),
        ("heads", "num_attention_heads"),
        ("intermediate", "intermediate_size"),
        ("patch", "patch_size"),
        ("image", "image_size"),
    ):
        part.take(f"vision.{field}", key)
    for mine, other in ((reading.fields, part.fields), (reading.sources, part.sources)):
        mine.update(other)
    reading.positions |= part.positions
    reading.problems += part.problems


__all__ = ["ARCHITECTURES", "FEATURES", "UNSUPPORTED", "formats_of", "read_config"]
