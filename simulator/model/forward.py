"""The operators of one forward pass of a decoder as its busiest rank runs them: prefill, decode or both in one batch.

Source: the layers of the Llama, Qwen, DeepSeek-V3 and gpt-oss reports; tensor parallelism as Megatron-LM, sequence
parallelism as arXiv:2205.05198, expert parallelism as 2412.19437, MLA with absorbed projections as 2405.04434, DSA as
2512.02556.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from simulator.model.architecture import GroupedAttention, Index, LatentAttention
from simulator.model.expert_load import places_hit
from simulator.model.layout import Layout
from simulator.model.operators import (
    Collective,
    Elementwise,
    Experts,
    Gemm,
    IndexScores,
    Operator,
    PromptAttention,
    Shape,
    TokenAttention,
)
from simulator.model.precision import FORMATS, Precision
from simulator.model.split import experts_per_rank, kv_heads_per_rank, vocabulary_per_rank
from simulator.model.transformer import Transformer

if TYPE_CHECKING:  # its arrays take numpy, and a scenario is read without
    from simulator.model.expert_balance import ExpertBalance

FP32_BYTES = 4


class Work(NamedTuple):
    """What one forward pass computes: new positions of prompts, one position (or a few) of each decoding sequence.

    `pairs` are the query-key pairs of the prompts under the causal mask: for n new after c cached, n c + n (n + 1) / 2.
    `context` is the sum over decoding sequences of the positions that each attends to, its own included.
    """

    prompt_tokens: int = 0
    pairs: float = 0
    prompts: int = 0
    batch: int = 0
    context: float = 0
    queries: int = 1
    """Positions fed per decoding sequence: 1, or more when drafted tokens are verified."""

    @property
    def tokens(self) -> int:
        """Positions that pass through the layers."""
        return self.prompt_tokens + self.batch * self.queries

    @property
    def rows(self) -> int:
        """Positions whose logits are wanted."""
        return self.prompts + self.batch * self.queries

    @property
    def kv_tokens(self) -> float:
        """Keys and values that the prompts read: exact when they are of equal length."""
        if not self.prompt_tokens:
            return 0.0
        return self.pairs * self.prompts / self.prompt_tokens + (self.prompt_tokens - self.prompts) / 2

    def halved(self) -> "Work":
        """Return the larger of two equal micro-batches."""
        tokens = -(-self.prompt_tokens // 2)
        return Work(
            tokens,
            self.pairs * tokens / (self.prompt_tokens or 1),
            -(-self.prompts // 2),
            -(-self.batch // 2),
            self.context / 2,
            self.queries,
        )

    def halved_on(self, layout: Layout) -> "Work":
        """Return the larger of two micro-batches into which every data-parallel rank cuts what it has.

        A rank with one prompt cuts that in the middle.
        """
        return self.of_rank(layout).halved().times(layout.data)

    def times(self, ranks: int) -> "Work":
        """Return the work of so many ranks with as much each."""
        tokens, pairs, prompts, batch, context, queries = self
        return Work(ranks * tokens, ranks * pairs, ranks * prompts, ranks * batch, ranks * context, queries)

    def of_rank(self, layout: Layout) -> "Work":
        """Return the share of the busiest data-parallel rank: sequences stay whole and are dealt out evenly."""
        n = layout.data
        if n == 1:
            return self
        prompts, batch = -(-self.prompts // n), -(-self.batch // n)
        part = prompts / self.prompts if self.prompts else 0.0
        context = self.context * batch / self.batch if self.batch else 0.0
        return Work(round(self.prompt_tokens * part), self.pairs * part, prompts, batch, context, self.queries)


def together(works: Sequence[Work]) -> Work:
    """Return the work of several ranks as that of one."""
    tokens, pairs, prompts, batch, context, queries = zip(*works, strict=True)
    return Work(sum(tokens), sum(pairs), sum(prompts), sum(batch), sum(context), max(queries))


def longest(works: Sequence[Work]) -> list[Work]:
    """Return, of works that differ in their context alone, the one with the most; in the order in which they came."""
    found: dict[tuple[float, ...], Work] = {}
    for work in works:
        tokens, pairs, prompts, batch, context, queries = work
        key = tokens, pairs, prompts, batch, queries
        known = found.get(key)
        if known is None or known.context < context:
            found[key] = work
    return list(found.values())


class Pass:
    """A model under a layout in a precision: `operators(work)` lists the kernels of a forward pass over all layers.

    Of a pipeline it is the way of one batch through every stage, the sends between stages included. `first` and `last`
    say whether embedding and head belong to it, for a pass over some of the layers.
    """

    def __init__(
        self,
        model: Transformer,
        layout: Layout,
        precision: Precision,
        skew: float = 0.0,
        first: bool = True,
        last: bool = True,
        balance: "ExpertBalance | None" = None,
    ) -> None:
        self.model, self.layout, self.precision, self.skew = model, layout, precision, skew
        self.first, self.last, self.balance = first, last, balance
        self.heads = model.attention.heads // layout.tensor
        self.kv_heads = kv_heads_per_rank(model, layout)
        self.value_bytes = precision.activation_bytes

    def operators(self, work: Work) -> list[Operator]:
        """Return the kernels of the busiest rank, in order of the layers; calls count all layers."""
        return self.body(work) + self.end(work.of_rank(self.layout).rows)

    def body(self, work: Work) -> list[Operator]:
        """Return the kernels among `operators(work)` up to the head.

        Those of models without latents hang on the tokens alone, but for attention and whether there are prompts.
        """
        rows = self.embedding(self._spread(work.of_rank(self.layout).tokens)) if self.first else []
        return rows + self.layers(work)

    def end(self, rows: int) -> list[Operator]:
        """Return the kernels of the head of so many positions on one rank, if it belongs to the pass."""
        return self.head(rows) if self.last else []

    def layers(self, work: Work) -> list[Operator]:
        """Return the kernels among `operators(work)` that are neither embedding nor head."""
        everywhere = work.tokens
        work = work.of_rank(self.layout)
        tokens = self._spread(work.tokens)
        norm_tokens = -(-tokens // self.layout.tensor) if self.layout.sequence_parallel else tokens
        # reads and writes the input and the residual sum
        norm = Elementwise(4 * norm_tokens * self.model.hidden * self.value_bytes)
        rows = [Operator("norm and residual", self.model.norms * self.model.layers + self.last, norm)]
        return rows + self._attention(work, tokens) + self._mlps(tokens, everywhere) + self._exchange(tokens)

    def embedding(self, tokens: int) -> list[Operator]:
        """Return the look-up of so many rows of the embedding."""
        return [Operator("embedding", 1, Elementwise(2 * tokens * self.model.hidden * self.value_bytes))]

    def attention(self, work: Work) -> list[Operator]:
        """Return the kernels among `operators(work)` whose time depends on the contexts."""
        return self._kernels(work.of_rank(self.layout))

    def _spread(self, tokens: int) -> int:
        """Return the positions that one context-parallel rank holds of `tokens`."""
        return -(-tokens // self.layout.context)

    # -- attention ------------------------------------------------------------------------------------------------

    def _attention(self, work: Work, tokens: int) -> list[Operator]:
        if isinstance(self.model.attention, LatentAttention):
            return self._latent(self.model.attention, work, tokens)
        return self._grouped(self.model.attention, work, tokens)

    def _grouped(self, part: GroupedAttention, work: Work, tokens: int) -> list[Operator]:
        layers, hidden, form = self.model.layers, self.model.hidden, self.precision.of_attention
        queries, keys = self.heads * part.head_dim, self.kv_heads * part.head_dim
        rows = [Operator("QKV projection", layers, Gemm(tokens, queries + 2 * keys, hidden, form))]
        if self.model.positions == "rotary" or part.qk_norm:
            rows.append(
                Operator("rotary positions", layers, Elementwise(2 * tokens * (queries + keys) * self.value_bytes))
            )
        rows += self._kernels(work)
        if FORMATS[form].scaled:
            rows.append(Operator("quantise", layers, self._quantise(tokens, queries, form)))
        return [*rows, Operator("output projection", layers, Gemm(tokens, hidden, queries, form))]

    def _kernels(self, work: Work) -> list[Operator]:
        """Return the attention kernels of the layers that see everything and of those with a window."""
        if self.model.attention.index is not None:
            return self._indexed(self.model.attention.index, work)
        limit = self.model.attention.window
        windowed = limit.layers if limit else 0
        rows = []
        for calls, window in ((self.model.layers - windowed, 0), (windowed, limit.tokens if limit else 0)):
            suffix = " in a window" if window else ""
            if calls and work.prompt_tokens:
                rows.append(Operator(f"prompt attention{suffix}", calls, self.prompt_attention(work, window)))
            if calls and work.batch:
                shape = self.token_attention(work.batch, work.context, work.queries, window)
                shape = shape._replace(mixed=work.prompt_tokens > 0)
                rows.append(Operator(f"attention{suffix}", calls, shape))
        return rows

    def _indexed(self, index: Index, work: Work) -> list[Operator]:
        """Return what an index scores and the attention over the positions that it chose, in the latent's form.

        Kernels walk over `topk` positions where there are fewer too; each query has positions of its own. Prompts that
        reach no further than that go without an index.
        """
        calls, rows, part = self.model.layers, [], self.model.attention
        assert isinstance(part, LatentAttention)
        sparse = _reaches_beyond(work, index)
        if sparse:
            shape = IndexScores(work.pairs, work.kv_tokens, index.heads, index.dim, index.bytes_per_position)
            rows.append(Operator("prompt index scores", calls, shape))
            whole = self.prompt_attention(work)
            chosen = whole._replace(
                pairs=work.prompt_tokens * index.topk,
                kv_heads=1,
                key_dim=part.latent_dim,
                value_dim=part.kv_rank,
                causal=False,
            )
            rows.append(Operator("prompt attention of chosen positions", calls, chosen))
        elif work.prompt_tokens:
            rows.append(Operator("prompt attention", calls, self.prompt_attention(work)))
        if work.batch:
            queries = work.batch * work.queries
            pairs = work.context * work.queries
            shape = IndexScores(pairs, work.context, index.heads, index.dim, index.bytes_per_position)
            rows.append(Operator("index scores", calls, shape))
            rows.append(
                Operator("attention of chosen positions", calls, self.token_attention(queries, queries * index.topk))
            )
        return rows

    def prompt_attention(self, work: Work, window: int = 0) -> PromptAttention:
        """Return the attention of prompts on one rank; context-parallel ranks divide the queries evenly (zigzag)."""
        part, share = self.model.attention, self.layout.context
        pairs, kv_tokens = clipped(work, window) if window else (work.pairs, work.kv_tokens)
        tokens = self._spread(work.prompt_tokens)
        return PromptAttention(
            tokens,
            pairs / share,
            kv_tokens,
            work.prompts,
            self.heads,
            part.heads // self.layout.tensor if isinstance(part, LatentAttention) else self.kv_heads,
            part.key_dim,
            part.value_dim,
            "bf16" if isinstance(part, LatentAttention) else self.precision.kv,
            window if pairs < work.pairs else 0,
            stored=not isinstance(part, LatentAttention),
        )

    def token_attention(self, batch: int, context: float, queries: int = 1, window: int = 0) -> TokenAttention:
        """Return the attention of decoding sequences on one rank; context-parallel ranks divide the keys evenly."""
        part, share = self.model.attention, self.layout.context
        if window and context > batch * window:
            context = batch * window
        else:
            window = 0
        if isinstance(part, LatentAttention):
            return TokenAttention(
                batch,
                context / share,
                self.heads,
                1,
                part.latent_dim,
                part.kv_rank,
                self.precision.kv,
                queries,
                latent=True,
            )
        return TokenAttention(
            batch,
            context / share,
            self.heads,
            self.kv_heads,
            part.key_dim,
            part.value_dim,
            self.precision.kv,
            queries,
            window,
        )

    def _latent(self, part: LatentAttention, work: Work, tokens: int) -> list[Operator]:
        """Return MLA: keys and values made explicit for prompts, projections absorbed around the latent in decode."""
        layers, hidden, form = self.model.layers, self.model.hidden, self.precision.of_attention
        queries, latent = self.heads * part.key_dim, part.latent_dim
        first = (part.query_rank or queries) + latent
        rows = [Operator("query and latent projection", layers, Gemm(tokens, first, hidden, form))]
        norm_width = (part.query_rank or 0) + part.kv_rank
        rows.append(Operator("latent norm", layers, Elementwise(2 * tokens * norm_width * self.value_bytes)))
        if part.query_rank is not None:
            rows.append(Operator("query projection", layers, Gemm(tokens, queries, part.query_rank, form)))
        turned = tokens * (self.heads + 1) * part.rope_dim + tokens * part.kv_rank
        rows.append(Operator("rotary positions", layers, Elementwise(2 * turned * self.value_bytes)))
        kept = Elementwise(tokens * latent * (self.value_bytes + self.precision.kv_bytes))
        rows.append(Operator("latent cache write", layers, kept))
        sparse = part.index is not None and _reaches_beyond(work, part.index)
        if part.index is not None:
            rows += self._index_inputs(part.index, part.query_rank or 0, tokens)
        if work.prompt_tokens and not sparse:
            width = self.heads * (part.nope_dim + part.value_dim)
            made = Gemm(-(-round(work.kv_tokens) // self.layout.context), width, part.kv_rank, form)
            rows.append(Operator("key and value projection", layers, made))
            # each head's key is put together from its own part and the rotary part that all share
            joined = made.rows * self.heads * (part.nope_dim + part.key_dim) * self.value_bytes
            rows.append(Operator("key assembly", layers, Elementwise(joined)))
        fed = work.batch * work.queries + (work.prompt_tokens if sparse else 0)
        if fed:
            shape = Gemm(fed, part.kv_rank, part.nope_dim, "bf16", self.heads)
            rows.append(Operator("absorbed key projection", layers, shape))
        rows += self._kernels(work)
        if fed:
            shape = Gemm(fed, part.value_dim, part.kv_rank, "bf16", self.heads)
            rows.append(Operator("absorbed value projection", layers, shape))
        out = self.heads * part.value_dim
        if FORMATS[form].scaled:
            rows.append(Operator("quantise", layers, self._quantise(tokens, out, form)))
        return [*rows, Operator("output projection", layers, Gemm(tokens, hidden, out, form))]

    def _index_inputs(self, index: Index, query_rank: int, tokens: int) -> list[Operator]:
        """Return the queries, keys and weights of heads of an index, which every tensor-parallel rank makes whole."""
        layers, form = self.model.layers, self.precision.of_attention
        width = (index.heads + 1) * index.dim
        turned = Elementwise(tokens * width * (2 * self.value_bytes + self.value_bytes + 1))  # rotated, then in 8 bits
        return [
            Operator("index query projection", layers, Gemm(tokens, index.heads * index.dim, query_rank, form)),
            Operator("index key projection", layers, Gemm(tokens, index.dim + index.heads, self.model.hidden, form)),
            Operator("index rotary positions", layers, turned),
        ]

    def _quantise(self, tokens: int, width: int, form: str) -> Elementwise:
        """Return the kernel that quantises what attention leaves; before other products it is fused into the norm."""
        return Elementwise(tokens * width * (self.value_bytes + FORMATS[form].activation_bits / 8))

    # -- MLP and experts ------------------------------------------------------------------------------------------

    def _mlps(self, tokens: int, everywhere: int) -> list[Operator]:
        model = self.model
        dense = model.layers - model.expert_layers
        rows = self._mlp(tokens, model.intermediate, dense, "", self.precision.weights) if dense else []
        if model.experts is not None:
            rows += self._experts(tokens, everywhere)
        return rows

    def _mlp(self, tokens: int, width: int, calls: int, prefix: str, form: str) -> list[Operator]:
        model, columns = self.model, width // self.layout.tensor
        up = ("gate and up projection", 2 * columns) if model.gated else ("up projection", columns)
        moved = tokens * columns * (3 if model.gated else 2) * self.value_bytes
        return [
            Operator(prefix + up[0], calls, Gemm(tokens, up[1], model.hidden, form)),
            Operator(prefix + "activation", calls, Elementwise(moved)),
            Operator(prefix + "down projection", calls, Gemm(tokens, model.hidden, columns, form)),
        ]

    def _experts(self, tokens: int, everywhere: int) -> list[Operator]:
        """Return router and shared experts of this rank's tokens, routed experts of those of all ranks of the stage."""
        model, layout, part = self.model, self.layout, self.model.experts
        assert part is not None
        balance = self.balance
        shape = Experts(
            everywhere,
            model.hidden,
            part.intermediate // layout.expert_tensor,
            balance.topk if balance else part.active,
            balance.experts if balance else part.experts,
            balance.group.slots if balance else experts_per_rank(model, layout),
            self.precision.of_experts,
            model.gated,
            self.skew,
            balance,
            self.layout.dispatches,
        )
        calls = part.layers
        chosen = Elementwise(tokens * part.experts * FP32_BYTES + tokens * part.active * 2 * FP32_BYTES)
        rows = [
            Operator("router", calls, Gemm(tokens, part.experts, model.hidden, "bf16")),
            Operator("expert choice", calls, chosen),
            Operator("experts", calls, shape),
        ]
        if part.shared_width and not (balance and balance.shared_copies):
            rows += self._mlp(tokens, part.shared_width, calls, "shared ", self.precision.of_shared)
        return rows

    # -- what ranks exchange --------------------------------------------------------------------------------------

    def _exchange(self, tokens: int) -> list[Operator]:
        model, layout = self.model, self.layout
        row = tokens * model.hidden * self.value_bytes
        rows = []
        spread = self.layout.dispatches
        # after the embedding, the output projection and the down projection; experts of spread tokens combine instead
        sums = 2 * model.layers + self.first - (model.expert_layers if spread else 0)
        if layout.tensor > 1:
            if layout.sequence_parallel:
                rows += [
                    Operator(name, sums, Collective(operation, row, layout.tensor, "tensor"))
                    for name, operation in (("reduce-scatter", "reduce_scatter"), ("all-gather", "all_gather"))
                ]
            else:
                rows.append(Operator("all-reduce", sums, Collective("all_reduce", row, layout.tensor, "tensor")))
        if model.experts is not None and spread:
            rows += self._dispatch(tokens)
        if layout.context > 1:
            rows += self._ring(tokens)
        if layout.pipeline > 1:
            send = Collective("send_receive", row / layout.tensor, 2, "pipeline")
            rows.append(Operator("send to next stage", layout.pipeline - 1, send))
        return rows

    def _dispatch(self, tokens: int) -> list[Operator]:
        """Return dispatch and combine of routed tokens among the ranks that hold experts."""
        part, layout = self.model.experts, self.layout
        assert part is not None
        form, ranks = FORMATS[self.precision.of_experts], layout.stage_devices
        # a rank gets one copy of a token however many of its experts are chosen
        if self.balance is not None:
            copies, relayed, choices = self.balance.copies, self.balance.relayed, 0
        else:
            copies, relayed, choices = places_hit(layout.expert, part.active), 1.0, part.active
        sent = -(-tokens // layout.tensor) * (copies * layout.expert_tensor) * self.model.hidden
        out = sent * (form.activation_bits / 8 if form.scaled else self.value_bytes)
        return [
            Operator(name, part.layers, Collective(name, size, ranks, "expert", relayed, choices))
            for name, size in (("dispatch", out), ("combine", sent * self.value_bytes))
        ]

    def _ring(self, tokens: int) -> list[Operator]:
        """Return what context-parallel ranks hand around: keys and values of the others, or queries and results."""
        part, layout, layers = self.model.attention, self.layout, self.model.layers
        if layout.context_exchange == "pass_kv":
            width = part.stored_per_token(self.kv_heads) * self.precision.kv_bytes
        else:
            width = self.heads * (part.key_dim + part.value_dim) * self.value_bytes
        shape = Collective("all_gather", tokens * layout.context * width, layout.context, "context")
        return [Operator(f"context exchange ({layout.context_exchange})", layers, shape)]

    # -- the head -------------------------------------------------------------------------------------------------

    def head(self, rows: int) -> list[Operator]:
        """Return the LM head and the sampling of one token for each of `rows` positions."""
        model, layout = self.model, self.layout
        columns = vocabulary_per_rank(model, layout)
        table = [Operator("LM head", 1, Gemm(rows, columns, model.hidden, self.precision.head))]
        logits = rows * model.vocabulary
        if layout.tensor > 1:
            gather = Collective("all_gather", logits * self.value_bytes, layout.tensor, "tensor")
            table.append(Operator("logits gather", 1, gather))
        # reads the logits, writes and reads them as 4-byte floats
        table.append(Operator("sampling", 1, Elementwise(logits * (self.value_bytes + 2 * FP32_BYTES))))
        return table


def _reaches_beyond(work: Work, index: Index) -> bool:
    """Return whether prompts have more positions than an index chooses; they are taken as equally long."""
    return work.prompt_tokens > 0 and work.kv_tokens > work.prompts * index.topk


def clipped(work: Work, window: int) -> tuple[float, float]:
    """Return (pairs, keys read) of prompts whose queries see `window` positions; prompts taken as equally long."""
    each = work.prompt_tokens / work.prompts
    past = work.pairs / work.prompt_tokens - (each + 1) / 2  # cached positions of each
    ramp = min(max(window - past, 0.0), each)  # queries that do not see a full window yet
    pairs = ramp * past + ramp * (ramp + 1) / 2 + (each - ramp) * window
    return work.prompts * pairs, work.prompts * min(past + each, window + each)


__all__ = ["Pass", "Shape", "Work", "clipped", "together"]
