"""The parts that a model card is made of: attention, mixture of experts, encoder, vision tower; exact parameter counts.

Source: GQA arXiv:2305.13245, MLA 2405.04434, its index (DSA) 2512.02556, experts 2412.19437, T5 1910.10683, ViT
2010.11929, as their code has them.
"""

from typing import Literal, Self

from pydantic import Field, model_validator

from simulator.strict import Count, Fault, LocatedError, Strict


class Window(Strict):
    """Sliding-window attention in some of the layers."""

    tokens: Count
    """Positions that a query sees, its own included."""
    layers: Count
    """Layers with the window; the others see everything."""


class GroupedAttention(Strict):
    """Multi-head attention whose query heads share KV heads in groups (MHA: as many as heads, MQA: one)."""

    kind: Literal["grouped"] = "grouped"
    heads: Count
    kv_heads: Count
    head_dim: Count
    qkv_bias: bool = False
    output_bias: bool = False
    qk_norm: Literal["head", "layer"] | None = None
    """Norms on queries and keys: of each head, all with the same weights, or of all heads of a layer as one vector."""
    sinks: bool = False
    """One learned logit per head that takes part in the softmax."""
    window: Window | None = None

    @model_validator(mode="after")
    def _groups_are_whole(self) -> Self:
        if self.heads % self.kv_heads:
            raise LocatedError(
                Fault(("heads",), f"heads ({self.heads}) must be a multiple of kv_heads ({self.kv_heads})")
            )
        return self

    @property
    def index(self) -> None:
        """Every key in reach is attended to."""
        return None

    @property
    def index_bytes(self) -> int:
        """Bytes that one position holds in one layer beside keys and values: none."""
        return 0

    @property
    def key_dim(self) -> int:
        """Width of one head's keys."""
        return self.head_dim

    @property
    def value_dim(self) -> int:
        """Width of one head's values."""
        return self.head_dim

    def parameters(self, hidden: int, heads: int, kv_heads: int) -> int:
        """Return the parameters of one layer's attention with so many heads of each kind."""
        qkv, out = (heads + 2 * kv_heads) * self.head_dim, heads * self.head_dim
        bias = (qkv if self.qkv_bias else 0) + (hidden if self.output_bias else 0)
        normed = {None: 0, "head": 2, "layer": heads + kv_heads}[self.qk_norm] * self.head_dim
        return hidden * (qkv + out) + bias + normed + (heads if self.sinks else 0)

    def absorbed(self, heads: int) -> int:
        """Return the parameters that are absorbed around a latent: there is none."""
        return 0

    def stored_per_token(self, kv_heads: int) -> int:
        """Return the values that one position holds in the KV cache of one layer."""
        return 2 * kv_heads * self.head_dim


class Index(Strict):
    """What chooses, for each query, the positions that it attends to (DeepSeek sparse attention): scores in 8 bits."""

    heads: Count
    """Heads of its queries; one key per position serves all, whatever the tensor parallelism."""
    dim: Count
    """Width of a query's head and of the key."""
    topk: Count
    """Positions that a query attends to."""

    def parameters(self, hidden: int, query_rank: int) -> int:
        """Return those of one layer: queries from the compressed ones, a key with its norm, weights of the heads."""
        return query_rank * self.heads * self.dim + hidden * (self.dim + self.heads) + 2 * self.dim

    @property
    def bytes_per_position(self) -> int:
        """Bytes of a key in one layer: 8 bits a value and a scale of 4 bytes for each 128 of them."""
        return self.dim + 4 * -(-self.dim // 128)


class LatentAttention(Strict):
    """Multi-head latent attention (MLA): keys and values of all heads come from one compressed latent per position."""

    kind: Literal["latent"]
    heads: Count
    query_rank: Count | None = None
    """Width to which queries are compressed; none: projected directly."""
    kv_rank: Count
    """Width of the latent from which keys and values are made."""
    nope_dim: Count
    """Width of the part of a head's query and key that carries no position."""
    rope_dim: Count
    """Width of the rotary part, whose key all heads share."""
    value_dim: Count
    index: Index | None = None
    """What chooses the positions that a query attends to; none: all of them."""

    @model_validator(mode="after")
    def _index_has_queries(self) -> Self:
        if self.index is not None and self.query_rank is None:
            raise LocatedError(
                Fault(("index",), "an index needs query_rank: its queries are made from compressed ones")
            )
        return self

    @property
    def window(self) -> None:
        """No layer has a window; an index reaches back to the first position."""
        return None

    @property
    def index_bytes(self) -> int:
        """Bytes that one position holds in one layer beside its latent: the key of the index."""
        return self.index.bytes_per_position if self.index else 0

    @property
    def kv_heads(self) -> int:
        """One latent, which no tensor parallelism splits."""
        return 1

    @property
    def key_dim(self) -> int:
        """Width of one head's keys where they are made explicit."""
        return self.nope_dim + self.rope_dim

    @property
    def latent_dim(self) -> int:
        """Values held per position and layer."""
        return self.kv_rank + self.rope_dim

    def parameters(self, hidden: int, heads: int, kv_heads: int) -> int:
        """Return the parameters of one layer's attention with so many heads; the compressions are not split."""
        queries = heads * self.key_dim
        if self.query_rank is None:
            query = hidden * queries
        else:
            query = hidden * self.query_rank + self.query_rank + self.query_rank * queries
        latent = hidden * self.latent_dim + self.kv_rank
        index = self.index.parameters(hidden, self.query_rank or 0) if self.index else 0
        return query + latent + self.absorbed(heads) + heads * self.value_dim * hidden + index

    def absorbed(self, heads: int) -> int:
        """Return the parameters of one layer that decode multiplies with the latent of so many heads."""
        return self.kv_rank * heads * (self.nope_dim + self.value_dim)

    def stored_per_token(self, kv_heads: int) -> int:
        """Return the values that one position holds in the KV cache of one layer."""
        return self.latent_dim


class MixtureOfExperts(Strict):
    """Layers whose MLP is a set of routed experts, a few of which each token uses, and some that all tokens share."""

    experts: Count
    """Routed experts of one layer."""
    active: Count
    """Routed experts that a token uses (top-k)."""
    intermediate: Count
    """Width of one routed expert."""
    layers: Count
    """Layers with experts, the last ones of a stack; the others have the dense MLP."""
    every: Count = 1
    """Experts are in every so many-th layer at most: 2 alternates dense layers and such with experts."""
    shared: int = Field(default=0, ge=0)
    """Experts that every token uses."""
    shared_intermediate: Count | None = None
    """Width of all shared experts together; default: `shared` times that of a routed one."""
    shared_gate: bool = False
    """One learned gate on the shared experts' output."""
    router_bias: bool = False
    """One learned bias per expert in the router."""
    groups: Count = 1
    """Groups of experts for group-limited routing."""
    active_groups: Count = 1
    """Groups among which a token's experts lie."""

    @model_validator(mode="after")
    def _enough_experts(self) -> Self:
        if self.active > self.experts:
            raise LocatedError(Fault(("active",), f"{self.active} of {self.experts} experts cannot be active"))
        return self

    def among(self, first: int, end: int, layers: int, total: int) -> int:
        """Return how many of the layers `first` to `end` of a stack of `total` have experts, of which it has `layers`.

        They are the last of those that `every` allows: leading layers are dense.
        """
        last = total // self.every  # of these the first `last - layers` are dense
        return max(end // self.every, last - layers) - max(first // self.every, last - layers)

    @property
    def shared_width(self) -> int:
        """Width of all shared experts together."""
        return self.shared_intermediate or self.shared * self.intermediate


class Encoder(Strict):
    """An encoder stack before the decoder, which then has cross-attention; widths are the decoder's."""

    layers: Count
    expert_layers: int = Field(default=0, ge=0)
    """Layers with experts, of the decoder's kind."""


class Vision(Strict):
    """A vision transformer whose patches a projector turns into tokens of the language model."""

    layers: Count
    hidden: Count
    heads: Count
    intermediate: Count
    patch: Count
    """Side of one patch in pixels."""
    image: Count
    """Side of one image in pixels."""
    projector_layers: Count = 2

    @property
    def tokens(self) -> int:
        """Tokens of one image."""
        return (self.image // self.patch) ** 2

    def parameters(self, hidden: int) -> int:
        """Return the parameters of tower and projector; `hidden` is the language model's."""
        own, wide = self.hidden, self.intermediate
        layer = 4 * own * own + 4 * own + 2 * own * wide + wide + own + 4 * own
        embedding = 3 * self.patch**2 * own + own + (self.tokens + 1) * own
        projector = own * hidden + hidden + (self.projector_layers - 1) * (hidden * hidden + hidden)
        return self.layers * layer + embedding + 4 * own + projector
