"""Which formats a checkpoint's weights are in, from the `quantization_config` of its Hugging Face `config.json`.

Source: the keys that transformers, compressed-tensors, AutoAWQ, GPTQ and NVIDIA's Model Optimizer write.
"""

import fnmatch
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

from simulator.documents import Document, PathKey
from simulator.errors import InputError
from simulator.model.precision import Precision

METHODS = ("fp8", "mxfp4", "awq", "gptq", "compressed-tensors", "modelopt")
PLAIN = "bf16"
USUAL_LAYERS = 32
"""Layers of a wrapped model whose file leaves their number to its class: many, for the first may be special."""
Rule = Callable[[str], str]
"""From the name of a module to the format of its weights."""


class Formats(NamedTuple):
    """Formats of the published weights, and in which modules they are others than in most of a part."""

    precision: Precision
    exceptions: tuple[str, ...] = ()


def formats_of(config: Document) -> Formats | None:
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
        return Formats(Precision(weights=PLAIN, experts="w4a16_mxfp4"))
    if not isinstance(method, str) or method not in _RULES:
        what = f"quantisation method {method!r} has no format"
        raise InputError(config.problem((*path, "quant_method"), what, ", ".join(METHODS)))
    try:
        rule = _RULES[method](config, path, section)
    except re.error as error:
        what = f"{error.pattern!r} is no regular expression: {error}"
        raise InputError(config.problem(path, what)) from None
    scheme = section.get("kv_cache_scheme")
    narrow = isinstance(scheme, Mapping) and scheme.get("num_bits") == 8
    kv = "fp8" if narrow or section.get("kv_cache_quant_algo") == "FP8" else PLAIN
    return _by_part(config, path, rule, kv)


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
    """Return the names under the keys; one alone may stand without a list."""
    found = [section.get(key) or () for key in keys]
    return [str(name) for names in found for name in (names if isinstance(names, list | tuple) else [names]) if name]


def _spellings(name: str) -> tuple[str, ...]:
    """Return the names of a module of the language model alone and inside a wrapper, old and new."""
    return name, f"language_model.{name}", name.replace("model.", "model.language_model.", 1)


def _matcher(patterns: Iterable[str]) -> Callable[[str], bool]:
    """Return whether a pattern names a module or one that holds it: `re:` a regular expression, `*` any text."""
    plain = {name.strip(".") for name in patterns if not name.startswith("re:") and "*" not in name}
    found = [re.compile(name.removeprefix("re:")) for name in patterns if name.startswith("re:")]
    stars = [name for name in patterns if "*" in name and not name.startswith("re:")]
    found += [re.compile(fnmatch.translate(form)) for name in stars for form in (name, f"{name}.*")]

    def matches(name: str) -> bool:
        for spelt in _spellings(name):
            parts = spelt.split(".")
            if any(".".join(parts[a:b]) in plain for a, b in combinations(range(len(parts) + 1), 2)):
                return True
            if any(one.match(spelt) for one in found):
                return True
        return False

    return matches


def _all_but(form: str, patterns: Sequence[str]) -> Rule:
    left_out = _matcher(patterns)
    return lambda name: PLAIN if left_out(name) else form


# -- modules of the parts -----------------------------------------------------------------------------------------


def _by_part(config: Document, path: PathKey, rule: Rule, kv: str) -> Formats:
    """Return the precision in which each part has the format of most of its modules."""
    inner = config.value.get("text_config")
    keys = {**config.value, **inner} if isinstance(inner, Mapping) else config.value
    there, form, exceptions = _parts(keys), {}, []
    for part, names in _modules(keys).items():
        (most, count), *others = Counter(rule(name) for name in names).most_common()
        form[part] = most
        if others and part in there:
            exceptions.append(f"{len(names) - count} of {len(names)} modules of {part} are in {others[0][0]}")
    if all(form[part] == PLAIN for part in there):
        raise InputError(config.problem(path, "no part of the language model is quantised by what this says"))
    weights = form["MLPs"]
    precision = Precision(
        weights=weights,
        experts=form["experts"] if form["experts"] != weights else None,
        shared=form["shared experts"] if form["shared experts"] != form["experts"] else None,
        attention_weights=form["attention"] if form["attention"] != weights else None,
        kv=kv,
    )
    return Formats(precision, tuple(exceptions))


def _count(keys: Mapping[str, Any], *names: str) -> int:
    return next((keys[name] for name in names if isinstance(keys.get(name), int)), 0)


def _parts(keys: Mapping[str, Any]) -> set[str]:
    """Return the parts that a model has."""
    experts = _count(keys, "n_routed_experts", "num_local_experts", "num_experts")
    shared = _count(keys, "n_shared_experts", "shared_expert_intermediate_size")
    dense = not experts or _count(keys, "first_k_dense_replace") or keys.get("mlp_only_layers")
    found = {"attention": True, "MLPs": dense, "experts": experts, "shared experts": shared}
    return {part for part, has in found.items() if has}


def _modules(keys: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the names of modules by part; of parts that the model does not have, those that it would have."""
    layers = range(_count(keys, "num_hidden_layers", "n_layer", "num_layers") or USUAL_LAYERS)
    leading = _count(keys, "first_k_dense_replace")  # layers before those with experts
    dense, sparse = layers[:leading] or layers, layers[leading:] or layers
    heads: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")
    if _count(keys, "kv_lora_rank"):
        heads = ("q_b_proj" if _count(keys, "q_lora_rank") else "q_proj", "kv_b_proj", "o_proj")
    block, mlp = "mlp", ("gate_proj", "up_proj", "down_proj")
    experts = mlp
    if keys.get("model_type") in ("mixtral", "minimax_m2"):
        block, experts = "block_sparse_moe", ("w1", "w3", "w2")
    shared = "shared_expert" if keys.get("model_type") == "qwen2_moe" else "shared_experts"

    def names(own: Iterable[int], inside: str, projections: Iterable[str]) -> list[str]:
        return [f"model.layers.{layer}.{inside}.{name}" for layer in own for name in projections]

    return {
        "MLPs": names(dense, "mlp", mlp),
        "experts": names(sparse, f"{block}.experts.0", experts),
        "shared experts": names(sparse, f"mlp.{shared}", mlp),
        "attention": names(layers, "self_attn", heads),
    }


# -- methods ------------------------------------------------------------------------------------------------------


def _fp8(config: Document, path: PathKey, section: Mapping[str, Any]) -> Rule:
    name = "fp8_block" if section.get("weight_block_size") else "fp8"
    return _all_but(name, _patterns(section, "modules_to_not_convert", "ignored_layers"))


def _integers(config: Document, path: PathKey, section: Mapping[str, Any]) -> Rule:
    """Return the rule of AWQ and GPTQ; `dynamic` of GPTQModel leaves modules out (`-:`) or gives them other bits."""
    method = section["quant_method"]

    def form(rule: Mapping[str, Any], where: PathKey) -> str:
        bits = rule.get("bits", rule.get("w_bit"))
        if bits not in (4, 8):
            raise InputError(config.problem(where, f"{method} of {bits!r} bits has no format", "4, 8"))
        return "int8_wo" if bits == 8 else _grouped(rule.get("group_size", rule.get("q_group_size")))

    most = _all_but(form(section, (*path, "bits")), _patterns(section, "modules_to_not_convert"))
    dynamic = section.get("dynamic") or {}
    if not isinstance(dynamic, Mapping):
        raise InputError(config.problem((*path, "dynamic"), f"expected a mapping of keys, found {dynamic!r}"))
    own: list[tuple[re.Pattern[str], str]] = []
    for pattern, changes in dynamic.items():
        kept = pattern.startswith("-:")
        other = PLAIN if kept else form({**section, **(changes or {})}, (*path, "dynamic", pattern))
        own.append((re.compile(pattern.removeprefix("-:").removeprefix("+:")), other))

    def rule(name: str) -> str:
        found = (form for pattern, form in own if any(map(pattern.match, _spellings(name))))
        return next(found, most(name))

    return rule


def _grouped(size: Any) -> str:
    """Return the format of weights of 4 bits with a scale for each group of so many."""
    return f"int4_wo_{size}" if size in (32, 64) else "int4_wo"


def _compressed(config: Document, path: PathKey, section: Mapping[str, Any]) -> Rule:
    """Return the rule of compressed-tensors: each group names its modules, `Linear` standing for all."""
    groups = section.get("config_groups")
    if not isinstance(groups, Mapping) or not groups:
        raise InputError(config.problem((*path, "config_groups"), "compressed-tensors without groups"))
    own = []
    for key, group in groups.items():
        form = _format_of_group(config, (*path, "config_groups", key), group)
        targets = _patterns(group, "targets") or ["Linear"]
        own.append((form, _matcher(["*"] if "Linear" in targets else targets)))
    left_out = _matcher(_patterns(section, "ignore"))
    # modules that are named go before all of the class
    own.sort(key=lambda each: each[1](""))

    def rule(name: str) -> str:
        return PLAIN if left_out(name) else next((form for form, targeted in own if targeted(name)), PLAIN)

    return rule


def _format_of_group(config: Document, path: PathKey, group: Any) -> str:
    weights = group.get("weights") if isinstance(group, Mapping) else None
    if not isinstance(weights, Mapping):
        raise InputError(config.problem((*path, "weights"), "a group that says nothing of its weights"))
    inputs = group.get("input_activations")
    kind, bits, size = str(weights.get("type")), weights.get("num_bits"), weights.get("group_size")
    taken: tuple[Any, Any] = ("float", 16)
    if isinstance(inputs, Mapping):
        taken = str(inputs.get("type") or kind), inputs.get("num_bits")
    names: dict[tuple[Any, ...], str] = {
        ("float", 8, "float", 8): "fp8_block" if weights.get("block_structure") else "fp8",
        ("float", 8, "float", 16): "fp8_wo",
        ("float", 4, "float", 4): "mxfp4" if size == 32 else "nvfp4",
        ("int", 8, "int", 8): "int8",
        ("int", 8, "float", 16): "int8_wo",
        ("int", 4, "int", 8): "w4a8",
        ("int", 4, "float", 8): "w4a8_fp8",
        ("int", 4, "float", 16): _grouped(size),
    }
    if (kind, bits, *taken) not in list(names):  # what the file says may be no key of a mapping
        allowed = ", ".join(f"{form} {wide} x {other} {width}" for form, wide, other, width in names)
        what = f"weights of {bits} bits ({kind}) with inputs of {taken[1]} bits ({taken[0]}) have no format"
        raise InputError(config.problem((*path, "weights"), what, allowed))
    return names[(kind, bits, *taken)]


def _modelopt(config: Document, path: PathKey, section: Mapping[str, Any]) -> Rule:
    algorithm = str(section.get("quant_algo"))
    names = {"FP8": "fp8", "FP8_PB_WO": "fp8_block", "NVFP4": "nvfp4", "W4A16_AWQ": "int4_wo", "W4A8_AWQ": "w4a8_fp8"}
    if algorithm not in names:
        what = f"algorithm {algorithm!r} has no format"
        raise InputError(config.problem((*path, "quant_algo"), what, ", ".join(names)))
    return _all_but(names[algorithm], _patterns(section, "ignore", "exclude_modules"))


_RULES: dict[Any, Callable[[Document, PathKey, Mapping[str, Any]], Rule]] = {
    "fp8": _fp8,
    "awq": _integers,
    "gptq": _integers,
    "compressed-tensors": _compressed,
    "modelopt": _modelopt,
}
