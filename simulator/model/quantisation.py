"""Which formats a checkpoint's weights are in, from the `quantization_config` of its Hugging Face `config.json`.

Source: the keys that transformers, compressed-tensors, AutoAWQ, GPTQ and NVIDIA's Model Optimizer write.
"""

import fnmatch
import re
from collections.abc import Mapping, Sequence
from typing import Any

from simulator.documents import Document, PathKey
from simulator.errors import InputError
from simulator.model.precision import Precision

METHODS = ("fp8", "mxfp4", "awq", "gptq", "compressed-tensors", "modelopt")
LAYER = 5
"""The layer whose modules are looked up among those that are left out; the first ones are often special."""

_PROBES = {
    "weights": (f"model.layers.{LAYER}.mlp.gate_proj", "model.layers.0.mlp.gate_proj"),
    "attention": (f"model.layers.{LAYER}.self_attn.q_proj", f"model.layers.{LAYER}.self_attn.o_proj"),
    "experts": (f"model.layers.{LAYER}.mlp.experts.0.gate_proj",),
    "shared": (f"model.layers.{LAYER}.mlp.shared_experts.gate_proj",),
}


def precision_of(config: Document) -> Precision | None:
    """Return the formats of the published weights that a `config.json` states, or None when it states no quantisation.

    Raises InputError for a method, or a kind of it, that no format stands for.
    """
    found = _section(config)
    if found is None:
        return None
    path, section = found
    if not isinstance(section, Mapping):
        raise InputError(config.problem(path, f"expected a mapping of keys, found {section!r}"))
    method = section.get("quant_method", "compressed-tensors" if "config_groups" in section else None)
    if method == "mxfp4":  # transformers quantises nothing but the experts
        return Precision(weights="bf16", experts="w4a16_mxfp4")
    if method == "fp8":
        name = "fp8_block" if section.get("weight_block_size") else "fp8"
        return _with_left_out(name, _patterns(section, "modules_to_not_convert", "ignored_layers"))
    if method in ("awq", "gptq"):
        bits = section.get("bits", section.get("w_bit"))
        if bits not in (4, 8):
            raise InputError(config.problem((*path, "bits"), f"{method} of {bits!r} bits has no format", "4, 8"))
        return _with_left_out(f"int{bits}_wo", _patterns(section, "modules_to_not_convert"))
    if method == "compressed-tensors":
        return _compressed(config, path, section)
    if method == "modelopt":
        return _modelopt(config, path, section)
    what = f"quantisation method {method!r} has no format"
    raise InputError(config.problem((*path, "quant_method"), what, ", ".join(METHODS)))


def _section(config: Document) -> tuple[PathKey, Any] | None:
    """Return the section about quantisation and its path: that of the whole, or that of the language model."""
    for outer in ((), ("text_config",), ("llm_config",)):
        value = config.value.get(outer[0]) if outer else config.value
        if isinstance(value, Mapping):
            for key in ("quantization_config", "compression_config"):
                if value.get(key) is not None:
                    return (*outer, key), value[key]
    return None


def _patterns(section: Mapping[str, Any], *keys: str) -> list[str]:
    return [str(name) for key in keys for name in section.get(key) or () if name is not None]


def _left_out(name: str, patterns: Sequence[str]) -> bool:
    """Return whether a pattern names a module or one that holds it: `re:` a regular expression, `*` any text."""
    for pattern in patterns:
        if pattern.startswith("re:"):
            if re.match(pattern.removeprefix("re:"), name):
                return True
        elif "*" in pattern:
            if fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(name, f"{pattern}.*"):
                return True
        elif f".{pattern}." in f".{name}.":
            return True
    return False


def _with_left_out(name: str, patterns: Sequence[str], kv: str = "bf16") -> Precision:
    """Return the precision with everything in one format but those parts that some pattern leaves in 16 bits."""
    kept = {part: any(_left_out(probe, patterns) for probe in probes) for part, probes in _PROBES.items()}
    form = {part: "bf16" if left else name for part, left in kept.items()}
    weights = form["weights"]
    return Precision(
        weights=weights,
        experts=form["experts"] if form["experts"] != weights else None,
        shared=form["shared"] if form["shared"] != form["experts"] else None,
        attention_weights=form["attention"] if form["attention"] != weights else None,
        kv=kv,
    )


def _compressed(config: Document, path: PathKey, section: Mapping[str, Any]) -> Precision:
    groups = section.get("config_groups")
    if not isinstance(groups, Mapping) or not groups:
        raise InputError(config.problem((*path, "config_groups"), "compressed-tensors without groups"))
    names = {_format_of_group(config, (*path, "config_groups", key), group) for key, group in groups.items()}
    if len(names) > 1:
        what = f"groups in different formats ({', '.join(sorted(names))}) cannot be told apart by module"
        raise InputError(config.problem((*path, "config_groups"), what, "one format"))
    scheme = section.get("kv_cache_scheme")
    kv = "fp8" if isinstance(scheme, Mapping) and scheme.get("num_bits") == 8 else "bf16"
    return _with_left_out(names.pop(), _patterns(section, "ignore"), kv)


def _format_of_group(config: Document, path: PathKey, group: Any) -> str:
    weights = group.get("weights") if isinstance(group, Mapping) else None
    if not isinstance(weights, Mapping):
        raise InputError(config.problem((*path, "weights"), "a group that says nothing of its weights"))
    inputs = group.get("input_activations")
    kind = str(weights.get("type")), weights.get("num_bits")
    taken = inputs.get("num_bits") if isinstance(inputs, Mapping) else 16
    names: dict[tuple[Any, Any, Any], str] = {
        ("float", 8, 8): "fp8_block" if weights.get("block_structure") else "fp8",
        ("float", 8, 16): "fp8_wo",
        ("float", 4, 4): "nvfp4",
        ("int", 8, 8): "int8",
        ("int", 8, 16): "int8_wo",
        ("int", 4, 8): "w4a8",
        ("int", 4, 16): "int4_wo",
    }
    if (*kind, taken) not in names:
        allowed = ", ".join(f"{form} {bits} x {width}" for form, bits, width in names)
        what = f"weights of {kind[1]} bits ({kind[0]}) with inputs of {taken} bits have no format"
        raise InputError(config.problem((*path, "weights"), what, allowed))
    found = names[(*kind, taken)]
    return "int4_wo_32" if found == "int4_wo" and weights.get("group_size") == 32 else found


def _modelopt(config: Document, path: PathKey, section: Mapping[str, Any]) -> Precision:
    algorithm = str(section.get("quant_algo"))
    names = {"FP8": "fp8", "FP8_PB_WO": "fp8_block", "NVFP4": "nvfp4", "W4A16_AWQ": "int4_wo", "W4A8_AWQ": "w4a8"}
    if algorithm not in names:
        what = f"algorithm {algorithm!r} has no format"
        raise InputError(config.problem((*path, "quant_algo"), what, ", ".join(names)))
    scheme = section.get("kv_cache_scheme")
    small = section.get("kv_cache_quant_algo") == "FP8" or (isinstance(scheme, Mapping) and scheme.get("num_bits") == 8)
    return _with_left_out(names[algorithm], _patterns(section, "ignore", "exclude_modules"), "fp8" if small else "bf16")
