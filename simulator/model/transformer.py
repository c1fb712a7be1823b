"""Decoder-only transformer (pre-norm, gated MLP, rotary positions, MHA or GQA) as exact parameter and byte counts.

Source: the Llama-2, Llama-3 and Qwen2.5 technical reports; tensor-parallel split of Shoeybi et al., arXiv:1909.08053.
"""

from functools import cached_property
from pathlib import Path
from typing import Self

from pydantic import model_validator

from simulator import catalog
from simulator.errors import InputError, Problem
from simulator.strict import Count, Strict

VALUE_BYTES = 2
"""Bytes of one weight, activation, key or value in bf16 or fp16."""


class Layout(Strict):
    """A parallel layout: over how many devices one instance is split, and how."""

    tensor: Count = 1
    """Tensor-parallel degree: heads, MLP columns and vocabulary are split over this many devices."""

    @property
    def devices(self) -> int:
        """Devices of one instance."""
        return self.tensor


class Transformer(Strict):
    """A model card: the shape of a dense decoder; numbers from the publisher's `config.json`."""

    name: str
    layers: Count
    hidden: Count
    heads: Count
    kv_heads: Count
    head_dim: Count
    intermediate: Count
    """Width of the gated MLP."""
    vocabulary: Count
    tied_embeddings: bool = False
    """True when the input embedding is also the LM head."""
    qkv_bias: bool = False
    max_context: Count
    """Longest sequence in tokens, prompt and output together."""
    sources: dict[str, str]
    """Where each number is from: dotted path of a field to the text of its source."""

    @model_validator(mode="after")
    def _groups_are_whole(self) -> Self:
        if self.heads % self.kv_heads:
            raise ValueError(f"heads ({self.heads}) must be a multiple of kv_heads ({self.kv_heads})")
        return self

    @cached_property
    def parameters(self) -> int:
        """The exact number of parameters."""
        return self._layer_parameters(self.heads, self.kv_heads, self.intermediate) * self.layers + (
            self.hidden + (1 if self.tied_embeddings else 2) * self.vocabulary * self.hidden
        )

    def _layer_parameters(self, heads: int, kv_heads: int, intermediate: int) -> int:
        qkv_width = (heads + 2 * kv_heads) * self.head_dim
        attention = self.hidden * qkv_width + heads * self.head_dim * self.hidden
        bias = qkv_width if self.qkv_bias else 0
        return attention + bias + 3 * self.hidden * intermediate + 2 * self.hidden

    def kv_bytes_per_token(self, bytes_per_value: int = VALUE_BYTES) -> int:
        """Return the bytes of keys and values that one token of context holds, over all layers, unsplit."""
        return 2 * self.layers * self.kv_heads * self.head_dim * bytes_per_value

    def kv_heads_per_rank(self, layout: Layout) -> int:
        """Return the KV heads that one rank holds; a head is copied when there are more ranks than heads."""
        return max(1, self.kv_heads // layout.tensor)

    def kv_bytes_per_token_per_rank(self, layout: Layout, bytes_per_value: int = VALUE_BYTES) -> int:
        """Return the bytes of keys and values that one token of context holds on each rank, copies included."""
        return 2 * self.layers * self.kv_heads_per_rank(layout) * self.head_dim * bytes_per_value

    def vocabulary_per_rank(self, layout: Layout) -> int:
        """Return the rows of embedding and LM head on one rank: the vocabulary is split evenly and rounded up."""
        return -(-self.vocabulary // layout.tensor)

    def weight_bytes_per_rank(self, layout: Layout, bytes_per_value: int = VALUE_BYTES) -> int:
        """Return the weight bytes on the fullest rank; norms are copied, KV heads as `kv_heads_per_rank` says."""
        layer = self._layer_parameters(
            self.heads // layout.tensor, self.kv_heads_per_rank(layout), self.intermediate // layout.tensor
        )
        tables = (1 if self.tied_embeddings else 2) * self.vocabulary_per_rank(layout) * self.hidden
        return (layer * self.layers + self.hidden + tables) * bytes_per_value

    def splits_over(self, tensor: int) -> bool:
        """Return whether `tensor` ranks get equal shares of heads and MLP columns, KV heads shared or copied evenly."""
        even = self.heads % tensor == 0 and self.intermediate % tensor == 0
        return even and (self.kv_heads % tensor == 0 or tensor % self.kv_heads == 0)

    def check(self, layout: Layout) -> None:
        """Raise InputError when this model cannot be split as `layout` says; it names the degrees that can."""
        if not self.splits_over(layout.tensor):
            what = (
                f"{self.name} ({self.heads} heads, {self.kv_heads} KV heads, {self.intermediate} MLP columns) "
                f"does not split evenly over {layout.tensor} tensor-parallel ranks"
            )
            allowed = ", ".join(str(degree) for degree in range(1, self.heads + 1) if self.splits_over(degree))
            raise InputError(Problem(what, path="layout.tensor", allowed=allowed))


def load_model(name: str, beside: Path | None = None) -> Transformer:
    """Return the model card `name` of `workloads/models`, or of a path relative to `beside`."""
    return catalog.load("workloads/models", name, Transformer, beside)
