"""A model card: the shape of a transformer, dense or with experts, decoder alone or with an encoder, exactly counted.

Source: the publishers' `config.json` and reports, named in each card.
"""

from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from simulator import catalog
from simulator.model.architecture import Encoder, GroupedAttention, LatentAttention, MixtureOfExperts, Vision
from simulator.model.precision import Precision
from simulator.strict import Count, Fault, LocatedError, Strict

RELATIVE_BUCKETS = 32
"""Distances that T5 tells apart, each with one bias per head."""


class Transformer(Strict):
    """A model card; numbers from the publisher's `config.json`."""

    name: str
    layers: Count
    """Decoder layers."""
    hidden: Count
    attention: Annotated[GroupedAttention | LatentAttention, Field(discriminator="kind")]
    intermediate: Count
    """Width of the dense MLP."""
    gated: bool = True
    """An MLP with gate and up projection (SwiGLU and the like); otherwise with an up projection alone."""
    mlp_bias: bool = False
    experts: MixtureOfExperts | None = None
    norm: Literal["rms", "layer"] = "rms"
    """RMS norms (and layer norms without bias) have a weight, layer norms a bias too."""
    norms: Count = 2
    """Norms of one layer: 2 before attention and MLP, 4 when there are such behind them too, 1 when they share it."""
    positions: Literal["rotary", "learned", "relative", "alibi"] = "rotary"
    position_rows: Count | None = None
    """Rows of the table of learned positions."""
    embedding_norm: bool = False
    vocabulary: Count
    tied_embeddings: bool = False
    """True when the input embedding is also the LM head."""
    head_bias: bool = False
    """A bias on the LM head's output."""
    encoder: Encoder | None = None
    vision: Vision | None = None
    draft_layers: int = Field(default=0, ge=0)
    """Extra layers that predict further tokens (multi-token prediction); not among `parameters`."""
    checkpoint: Precision | None = None
    """Number formats of the published weights, when they are not all of 16 bits."""
    max_context: Count
    """Longest sequence in tokens, prompt and output together."""
    sources: dict[str, str]
    """Where each number is from: dotted path of a field to the text of its source."""

    @model_validator(mode="after")
    def _parts_agree(self) -> Self:
        faults = []
        if self.experts is not None:
            faults += _too_many(("experts", "layers"), self.experts.layers, self.layers, self.experts.every)
        if self.encoder is not None and self.encoder.expert_layers:
            every = self.experts.every if self.experts else self.encoder.layers + 1
            faults += _too_many(("encoder", "expert_layers"), self.encoder.expert_layers, self.encoder.layers, every)
        window = getattr(self.attention, "window", None)
        if window is not None and window.layers > self.layers:
            what = f"{window.layers} layers with a window are more than all {self.layers}"
            faults.append(Fault(("attention", "window", "layers"), what))
        if (self.positions == "learned") != (self.position_rows is not None):
            faults.append(Fault(("position_rows",), "learned positions have a number of rows, others have none"))
        if faults:
            raise LocatedError(*faults)
        return self

    # -- what a layer is made of ----------------------------------------------------------------------------------

    @property
    def norm_width(self) -> int:
        """Parameters of one norm over the hidden width."""
        return self.hidden * (2 if self.norm == "layer" else 1)

    @property
    def expert_layers(self) -> int:
        """Decoder layers with experts."""
        return self.experts.layers if self.experts else 0

    def mlp_parameters(self, width: int) -> int:
        """Return the parameters of a dense MLP of so many columns."""
        bias = (width * (2 if self.gated else 1) + self.hidden) if self.mlp_bias else 0
        return (3 if self.gated else 2) * self.hidden * width + bias

    def router_parameters(self) -> int:
        """Return the parameters of one layer's router and of the gate on its shared experts."""
        if self.experts is None:
            return 0
        bias = self.experts.experts if self.experts.router_bias else 0
        return self.experts.experts * self.hidden + bias + (self.hidden if self.experts.shared_gate else 0)

    @cached_property
    def parameters(self) -> int:
        """The exact number of parameters, drafting layers left out."""
        return self._parameters(None if self.experts is None else self.experts.experts)

    @cached_property
    def active_parameters(self) -> int:
        """Parameters that one token is multiplied with: of the experts those it uses, of the embedding the LM head."""
        looked_up = 0 if self.tied_embeddings else self.vocabulary * self.hidden
        active = self._parameters(None if self.experts is None else self.experts.active)
        return active - looked_up - (self.position_rows or 0) * self.hidden

    def _parameters(self, experts: int | None) -> int:
        attention = self.attention.parameters(self.hidden, self.attention.heads, self.attention.kv_heads)
        norms = self.norms * self.norm_width
        total = self.layers * (attention + norms) + self._mlps(self.layers, self.expert_layers, experts)
        total += self.norm_width * (2 if self.embedding_norm else 1)
        total += (1 if self.tied_embeddings else 2) * self.vocabulary * self.hidden
        total += self.vocabulary if self.head_bias else 0
        total += (self.position_rows or 0) * self.hidden
        if self.positions == "relative":
            total += RELATIVE_BUCKETS * self.attention.heads * (2 if self.encoder else 1)
        if self.encoder is not None:
            total += self.layers * (attention + self.norm_width)  # cross-attention
            total += self.encoder.layers * (attention + norms) + self.norm_width
            total += self._mlps(self.encoder.layers, self.encoder.expert_layers, experts)
        return total + (self.vision.parameters(self.hidden) if self.vision else 0)

    def _mlps(self, layers: int, with_experts: int, experts: int | None) -> int:
        total = (layers - with_experts) * self.mlp_parameters(self.intermediate)
        if self.experts is not None and experts is not None:
            each = self.mlp_parameters(self.experts.intermediate)
            shared = self.mlp_parameters(self.experts.shared_width) if self.experts.shared_width else 0
            total += with_experts * (experts * each + shared + self.router_parameters())
        return total

    @cached_property
    def draft_parameters(self) -> int:
        """Parameters of the drafting layers; embedding and LM head are those of the model.

        Each has a layer like the last, a projection of token and state to one width, their norms and one at the end.
        """
        attention = self.attention.parameters(self.hidden, self.attention.heads, self.attention.kv_heads)
        mlp = self._mlps(1, 1 if self.experts else 0, self.experts.experts if self.experts else None)
        own = 2 * self.hidden * self.hidden + 3 * self.norm_width
        return self.draft_layers * (attention + self.norms * self.norm_width + mlp + own)

    # -- the KV cache ---------------------------------------------------------------------------------------------

    def kv_values_per_token(self, kv_heads: int | None = None) -> int:
        """Return the values of keys and values that one position holds over all layers, for so many KV heads."""
        heads = self.attention.kv_heads if kv_heads is None else kv_heads
        return self.layers * self.attention.stored_per_token(heads)

    def kv_bytes_per_token(self, bytes_per_value: float = 2) -> int:
        """Return the bytes of keys and values that one token of context holds, over all layers, unsplit."""
        return round(self.kv_values_per_token() * bytes_per_value) + self.layers * self.attention.index_bytes

    def kv_values(self, context: int) -> int:
        """Return the values that a sequence of so many positions holds when layers with a window keep only that."""
        window = self.attention.window
        limited = window.layers if window else 0
        kept = (self.layers - limited) * context + limited * min(context, window.tokens if window else 0)
        return kept * self.attention.stored_per_token(self.attention.kv_heads)


def _too_many(path: tuple[str, str], layers: int, total: int, every: int) -> list[Fault]:
    if layers <= total // every:
        return []
    what = f"{layers} layers with experts are more than every {every}. of {total}" if every > 1 else ""
    return [Fault(path, what or f"{layers} layers with experts are more than all {total}", f"0 to {total // every}")]


def load_model(name: str, beside: Path | None = None) -> Transformer:
    """Return the model card `name` of `workloads/models`, or that of a path relative to `beside`.

    A path that ends in `.json` is a Hugging Face `config.json`.
    """
    if name.endswith(".json"):
        from simulator.model.huggingface import read_config  # it makes cards, so it imports this module

        return read_config(catalog.locate("workloads/models", name, beside))
    return catalog.load("workloads/models", name, Transformer, beside)
