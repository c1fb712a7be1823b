"""The operators of a forward or training pass as one rank runs them: shapes alone, no device and no time.

Source: the layers of the models' reports; bytes count every operand once, as a fused kernel reads and writes it.
"""

from typing import TYPE_CHECKING, NamedTuple

from simulator.model.precision import FORMATS, VALUES

if TYPE_CHECKING:  # its arrays take numpy, and a scenario is read without
    from simulator.model.expert_balance import ExpertBalance


class Gemm(NamedTuple):
    """`batch` products of a rows x inner matrix of activations and an inner x columns matrix of weights."""

    rows: int
    columns: int
    inner: int
    format: str = "bf16"
    batch: int = 1
    output: str = "bf16"
    quantise: bool = False
    """Activations arrive in 16 bits and a kernel of its own quantises them first (no kernel before it does)."""

    @property
    def flops(self) -> float:
        """Operations, a multiply and an add as two."""
        return 2 * self.batch * self.rows * self.columns * self.inner

    @property
    def size_bytes(self) -> float:
        """Bytes of both operands and the result."""
        form = FORMATS[self.format]
        operands = self.rows * form.activation_bits + self.columns * form.weight_bits
        return self.batch * (self.inner * operands + self.rows * self.columns * VALUES[self.output]) / 8


class Experts(NamedTuple):
    """The routed experts of one rank: gate and up, activation and down of every token sent here, weights of all used.

    `tokens` are those of the whole expert-parallel group before routing; each goes to `topk` of `experts`, and `local`
    of those are here. `skew` is the exponent of the power law by which experts are chosen (0: all alike); a `balance`
    knows better.
    """

    tokens: int
    hidden: int
    intermediate: int
    """Width of one expert on this rank, after an expert is split over ranks."""
    topk: int
    experts: int
    local: int
    format: str = "bf16"
    gated: bool = True
    skew: float = 0.0
    balance: "ExpertBalance | None" = None
    dispatched: bool = False
    """Whether only the tokens that chose an expert of this rank come to it, or all of them are here before routing."""


class PromptAttention(NamedTuple):
    """Fused attention of `tokens` new positions of `sequences` prompts over `pairs` query-key pairs (mask applied).

    `kv_tokens` keys and values are read; heads are those of this rank. `stored`: the kernel's call also writes the new
    keys and values to the cache, which MLA does not, for it keeps their latents. `window` is what a query sees at most
    where that clipped any (0: nothing).
    """

    tokens: int
    pairs: float
    kv_tokens: float
    sequences: int
    heads: int
    kv_heads: int
    key_dim: int
    value_dim: int
    kv: str = "bf16"
    window: int = 0
    causal: bool = True
    stored: bool = True

    @property
    def flops(self) -> float:
        """Operations of scores and weighted sums over the pairs that count."""
        return 2 * self.pairs * self.heads * (self.key_dim + self.value_dim)

    @property
    def size_bytes(self) -> float:
        """Bytes of queries and results in 16 bits and of the keys and values read."""
        width = self.key_dim + self.value_dim
        return width * (2 * self.tokens * self.heads + self.kv_tokens * self.kv_heads * VALUES[self.kv] / 8)


class AttentionGradient(NamedTuple):
    """The backward pass of fused attention: gradients of queries, keys and values from those of the result.

    Scores are computed again, so five products stand against two of the forward pass (arXiv:2205.14135).
    """

    forward: PromptAttention

    @property
    def flops(self) -> float:
        """Operations of the five products over the pairs that count."""
        return 2.5 * self.forward.flops

    @property
    def size_bytes(self) -> float:
        """Bytes of all operands of the forward pass and of a gradient of each."""
        return 2 * self.forward.size_bytes


class TokenAttention(NamedTuple):
    """Fused attention of `queries` new positions of each of `batch` sequences over `context` keys and values in all.

    `latent`: one shared latent of `key_dim` per position serves as key and, its first `value_dim`, as value (MLA with
    absorbed projections), so `kv_heads` is 1. `window` is what the context of a sequence was clipped to (0: nothing).
    `mixed`: prompts are in the same step.
    """

    batch: int
    context: float
    heads: int
    kv_heads: int
    key_dim: int
    value_dim: int
    kv: str = "bf16"
    queries: int = 1
    window: int = 0
    latent: bool = False
    mixed: bool = False

    @property
    def flops(self) -> float:
        """Operations of scores and weighted sums."""
        return 2 * self.queries * self.context * self.heads * (self.key_dim + self.value_dim)

    @property
    def size_bytes(self) -> float:
        """Bytes of the keys and values read, once per KV head, and of queries and results in 16 bits."""
        stored = self.key_dim if self.latent else self.kv_heads * (self.key_dim + self.value_dim)
        moved = 2 * self.batch * self.queries * self.heads * (self.key_dim + self.value_dim)
        return self.context * stored * VALUES[self.kv] / 8 + moved


class IndexScores(NamedTuple):
    """Scores of `pairs` of a query and a position by an index's heads, in 8 bits, and the choice of the highest.

    `keys` positions are read, `key_bytes` each; the heads' scores are summed in the kernel.
    """

    pairs: float
    keys: float
    heads: int
    dim: int
    key_bytes: int

    @property
    def flops(self) -> float:
        """Operations of the scores."""
        return 2 * self.pairs * self.heads * self.dim

    @property
    def size_bytes(self) -> float:
        """Bytes of the keys, and of the sums in 4 bytes, written once and read once."""
        return self.keys * self.key_bytes + 2 * self.sums_bytes

    @property
    def sums_bytes(self) -> float:
        """Bytes of one score for each pair."""
        return 4 * self.pairs


class Elementwise(NamedTuple):
    """A kernel that only moves bytes: norm, rotary positions, activation, quantisation, embedding, sampling."""

    size_bytes: float
    flops: float = 0.0


class Collective(NamedTuple):
    """A collective over `ranks` devices of the layout's `group`; `size_bytes` as each rank holds the whole message."""

    operation: str
    size_bytes: float
    ranks: int
    group: str
    relayed: float = 1.0
    """Of the bytes of a dispatch or combine, the share that crosses to other nodes where these hand copies on."""
    choices: int = 0
    """Experts of a token, all alike, where that share is by chance; 0: it is `relayed`."""

    @property
    def flops(self) -> float:
        """None that a roofline counts."""
        return 0.0


Shape = Gemm | Experts | PromptAttention | AttentionGradient | TokenAttention | IndexScores | Elementwise | Collective


class Operator(NamedTuple):
    """One kind of kernel of a pass and how often the rank runs it."""

    name: str
    calls: int
    shape: Shape
