"""A model card: the shape of a transformer, dense or with experts, decoder alone or with an encoder, exactly counted.

Source: the publishers' `config.json` and reports, named in each card.
"""

from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from simulator import catalog
from simulator.model.architecture import Encoder, GroupedAttention, LatentAttention, MixtureOfExperts, Vision
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
    """RMS norms have a weight, layer norms a bias too."""
    positions: Literal["rotary", "learned", "relative", "alibi"] = "rotary"
    position_rows: Count | None = None
    """Rows of the table of learned positions."""
    embedding_norm: bool = False
    vocabulary: Count
    tied_embeddings: bool = False
    """True when the input embedding is also the LM head."""
    encoder: Encoder | None = None
    vision: Vision | None = None
    draft_layers: int = Field(default=0, ge=0)
    """Extra layers that predict further tokens (multi-token prediction); not among `parameters`."""
    max_context: Count
    """Longest sequence in tokens, prompt and output together."""
    sources: dict[str, str]
    """Where each number is from: dotted path of a field to the text of its source."""

    @model_validator(mode="after")
    def _parts_agree(self) -> Self:
        faults = []
        if self.experts is not None and self.experts.layers > self.layers:
            what = f"{self.experts.layers} layers with experts are more than all {self.layers}"
            faults.append(Fault(("experts", "layers"), what))
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
        """Parameters that one token passes through, embeddings included."""
        return self._parameters(None if self.experts is None else self.experts.active)

    def _parameters(self, experts: int | None) -> int:
        attention = self.attention.parameters(self.hidden, self.attention.heads, self.attention.kv_heads)
        total = self.layers * (attention + 2 * self.norm_width) + self._mlps(self.layers, self.expert_layers, experts)
        total += self.norm_width * (2 if self.embedding_norm else 1)
        total += (1 if self.tied_embeddings else 2) * self.vocabulary * self.hidden
        total += (self.position_rows or 0) * self.hidden
        if self.positions == "relative":
            total += RELATIVE_BUCKETS * self.attention.heads * (2 if self.encoder else 1)
        if self.encoder is not None:
            total += self.layers * (attention + self.norm_width)  # cross-attention
            total += self.encoder.layers * (attention + 2 * self.norm_width) + self.norm_width
            total += self._mlps(self.encoder.layers, self.encoder.expert_layers, experts)
        return total + (self.vision.parameters(self.hidden) if self.vision else 0)

    def _mlps(self, layers: int, with_experts: int, experts: int | None) -> int:
        total = (layers - with_experts) * self.mlp_parameters(self.intermediate)
        if self.experts is not None and experts is not None:
            each = self.mlp_parameters(self.experts.intermediate)
            shared = self.mlp_parameters(self.experts.shared_width) if self.experts.shared_width else 0
            total += with_experts * (experts * each + shared + self.router_parameters())
        return total

    # -- the KV cache ---------------------------------------------------------------------------------------------

    def kv_values_per_token(self, kv_heads: int | None = None) -> int:
        """Return the values of keys and values that one position holds over all layers, for so many KV heads."""
        heads = self.attention.kv_heads if kv_heads is None else kv_heads
        return self.layers * self.attention.stored_per_token(heads)

    def kv_bytes_per_token(self, bytes_per_value: float = 2) -> int:
        """Return the bytes of keys and values that one token of context holds, over all layers, unsplit."""
        return round(self.kv_values_per_token() * bytes_per_value)


def load_model(name: str, beside: Path | None = None) -> Transformer:
    """Return the model card `name` of `workloads/models`, or of a path relative to `beside`."""
    return catalog.load("workloads/models", name, Transformer, beside)
