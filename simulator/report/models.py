"""Models as text: the list, one card with its sources, and the page written by `python -m simulator.report.models`."""

import sys
from collections.abc import Iterable
from typing import Any

from simulator import catalog
from simulator.model.families import ARCHITECTURES
from simulator.model.huggingface import UNSUPPORTED
from simulator.model.layout import Layout
from simulator.model.precision import Precision
from simulator.model.split import weight_bytes_per_rank
from simulator.model.transformer import Transformer, load_model

GIB = 1 << 30

_OPENING = """# Models

Shipped model cards, as `simulate model show NAME` counts them (written by `python -m simulator.report.models`). In a
scenario, `serving.model` names one of them, or is the path of a card of your own or of a Hugging Face `config.json`.

- Parameters are exact, vision towers included and drafting layers (multi-token prediction) left out.
- Active parameters are those that one token is multiplied with: the experts it uses, and of the embedding the LM head.
- KV bytes are those of one position over all layers in 16 bits; layers with a window give back what has left it
  ([KV memory](kv-memory.md#layers-with-a-sliding-window)); cross-attention holds as many again for each position of the
  source.
- The formats are those of the published weights; `bf16` stands for any 16 bits.

| model | layers | hidden | attention | experts | parameters | active | KV bytes per token | published in | GiB |
|---|---|---|---|---|---|---|---|---|---|
"""

_CLOSING = """
## A model of your own

`serving.model: ../my/config.json` reads the `config.json` of a checkpoint, and `simulate model show my/config.json`
says what it makes of it and from which key each number is. Architectures (`model_type`): @KNOWN@; LLaVA
with its tower, and the language models inside `kimi_k25`, `gemma3` and `mistral3`. Formats of the weights are read from
`quantization_config`: `fp8` (per tensor or in blocks), `mxfp4`, `awq`, `gptq`, `compressed-tensors`, `modelopt`. The
longest context is `max_position_embeddings`, or what `rope_scaling` (`rope_parameters`) of `yarn`, `linear` or
`dynamic` makes of it, as vLLM has it; `serving.max_context` is another.

An architecture that a card cannot describe is refused by name, with what it has and the nearest that is supported:

| architecture | what it has |
|---|---|
"""


def figures(model: Transformer) -> dict[str, Any]:
    """Return what a model amounts to: parameters, KV bytes of a token (16 bits), bytes of the published weights."""
    precision = model.checkpoint or Precision()
    return {
        "parameters": model.parameters,
        "active_parameters": model.active_parameters,
        "draft_parameters": model.draft_parameters,
        "kv_bytes_per_token": model.kv_bytes_per_token(),
        "weight_bytes": weight_bytes_per_rank(model, Layout(), precision),
        "formats": formats(model),
    }


def formats(model: Transformer) -> str:
    """Return the formats of the published weights in a few words."""
    precision = model.checkpoint or Precision()
    parts = [precision.weights]
    if model.experts is not None and precision.of_experts != precision.weights:
        parts.append(f"experts {precision.of_experts}")
    if precision.of_attention != precision.weights:
        parts.append(f"attention {precision.of_attention}")
    return ", ".join(parts)


def attention_text(model: Transformer) -> str:
    """Return the attention in a few words, such as `32 heads, 8 KV x 128`."""
    part = model.attention
    if part.kind == "latent":
        return f"{part.heads} heads, latent {part.kv_rank} + {part.rope_dim}"
    text = f"{part.heads} heads, {part.kv_heads} KV x {part.head_dim}"
    return f"{text}, window {part.window.tokens:,} in {part.window.layers}" if part.window else text


def experts_text(model: Transformer) -> str:
    """Return the experts in a few words, such as `8 of 256 + 1 shared, in 58`; empty without any."""
    part = model.experts
    if part is None:
        return ""
    shared = f" + {part.shared} shared" if part.shared else ""
    layers = part.layers + (model.encoder.expert_layers if model.encoder else 0)
    return f"{part.active} of {part.experts}{shared}, in {layers}"


def layers_text(model: Transformer) -> str:
    """Return the layers, those of an encoder first."""
    return f"{model.encoder.layers} + {model.layers}" if model.encoder else str(model.layers)


def list_lines(models: Iterable[Transformer]) -> list[str]:
    """Return the list of models as lines of a terminal."""
    lines = [f"{'model':<18}{'parameters':>12}{'active':>10}{'KV bytes/token':>16}  published in"]
    for model in models:
        active = _billions(model.active_parameters) if model.experts else ""
        size = _billions(model.parameters)
        lines.append(f"{model.name:<18}{size:>12}{active:>10}{model.kv_bytes_per_token():>16,}  {formats(model)}")
    return lines


def card_lines(model: Transformer) -> list[str]:
    """Return one model as lines of a terminal: what it amounts to, then every field that is set and its source."""
    found = figures(model)
    lines = [model.name, ""]
    rows = {
        "parameters": f"{found['parameters']:,}",
        "active parameters": f"{found['active_parameters']:,}",
        "parameters of drafting layers": f"{found['draft_parameters']:,}",
        "KV bytes per token (16 bits)": f"{found['kv_bytes_per_token']:,}",
        "published weights": f"{found['weight_bytes'] / GIB:,.1f} GiB in {found['formats']}",
    }
    lines += [f"  {name:<32}{value:>20}" for name, value in rows.items() if value != "0"]
    lines.append("")
    described = model.model_dump(mode="json", exclude_defaults=True, exclude={"name", "sources"})
    for path, value in _leaves(described).items():
        lines.append(f"  {path:<26}{value!s:>12}  {_source(model.sources, path)}".rstrip())
    if model.vision is None and "vision" in model.sources:  # a tower that no card describes
        lines.append(f"  {'vision':<26}{'':>12}  {model.sources['vision']}")
    return lines


def _leaves(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, inner in value.items():
        found |= _leaves(inner, f"{prefix}{key}.") if isinstance(inner, dict) else {prefix + key: inner}
    return found


def _source(sources: dict[str, str], path: str) -> str:
    while path and path not in sources:
        path = path.rpartition(".")[0]
    return sources.get(path, "")


def _billions(count: int) -> str:
    return f"{count / 1e9:.4g} B" if count >= 1e9 else f"{count / 1e6:.4g} M"


def _row(model: Transformer) -> str:
    found = figures(model)
    cells = [
        f"`{model.name}`",
        layers_text(model),
        f"{model.hidden:,}",
        attention_text(model),
        experts_text(model),
        f"{found['parameters']:,}",
        f"{found['active_parameters']:,}",
        f"{found['kv_bytes_per_token']:,}",
        found["formats"],
        f"{found['weight_bytes'] / GIB:,.1f}",
    ]
    return f"| {' | '.join(cells)} |"


def page() -> str:
    """Return the page in Markdown."""
    rows = "".join(_row(load_model(name)) + "\n" for name in catalog.names("workloads/models"))
    known = ", ".join(f"`{name}`" for name in ARCHITECTURES)
    refused = "".join(f"| `{name}` | {what} |\n" for name, (what, _) in UNSUPPORTED.items())
    return _OPENING + rows + _CLOSING.replace("@KNOWN@", known) + refused


if __name__ == "__main__":
    sys.stdout.write(page())
