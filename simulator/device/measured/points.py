"""What a measured point is: the columns that describe one operator, and where an operator stands among others.

The columns of a canonical table are the names of `simulator.model.operators`, with prompts and contexts given per
sequence (all alike) as a profile is taken, and turned here into the sums that those shapes hold.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from simulator.device.measured.interpolation import Coordinate
from simulator.device.measured.modules import place_module
from simulator.model.forward import Work, clipped
from simulator.model.operators import (
    Collective,
    Elementwise,
    Experts,
    Gemm,
    Operator,
    PromptAttention,
    Shape,
    TokenAttention,
)

MIXED = "mixed_attention"

Values = Mapping[str, Any]
"""The row of a canonical table, defaults filled in."""


class Kind(NamedTuple):
    """A kind of operator in a canonical table: its columns, those that may be left out, and what a row describes."""

    columns: tuple[str, ...]
    defaults: dict[str, Any]
    operators: Callable[[Values], tuple[Operator, ...]]


HEADS = ("heads", "kv_heads", "key_dim", "value_dim")


def _one(shape: Shape, name: str = "") -> tuple[Operator, ...]:
    return (Operator(name, 1, shape),)


def _gemm(row: Values) -> tuple[Operator, ...]:
    names = ("rows", "columns", "inner", "format", "batch", "quantise")
    return _one(Gemm(**{name: row[name] for name in names}))


def _experts(row: Values) -> tuple[Operator, ...]:
    names = ("tokens", "hidden", "intermediate", "topk", "experts", "local", "format", "gated", "skew")
    return _one(Experts(*(row[name] for name in names)))


def prompts(sequences: int, tokens: int, cached: float) -> Work:
    """Return the work of `sequences` prompts of `tokens` new positions each, after `cached` earlier ones."""
    return Work(sequences * tokens, sequences * (tokens * cached + tokens * (tokens + 1) / 2), sequences)


def prompt_shape(row: Values) -> PromptAttention:
    """Return the attention of a row of `sequences` prompts, `tokens` new and `cached` old positions each."""
    work = prompts(row["sequences"], row["tokens"], row["cached"])
    pairs, kv_tokens = clipped(work, row["window"]) if row["window"] else (work.pairs, work.kv_tokens)
    heads = {name: row[name] for name in (*HEADS, "kv", "window")}
    return PromptAttention(work.prompt_tokens, pairs, kv_tokens, work.prompts, **heads)


def token_shape(row: Values) -> TokenAttention:
    """Return the attention of a row of `batch` sequences that attend to `context` positions each."""
    each = min(row["context"], row["window"]) if row["window"] else row["context"]
    heads = {name: row[name] for name in (*HEADS, "kv", "queries", "window", "latent")}
    return TokenAttention(row["batch"], row["batch"] * each, **heads)


def _mixed(row: Values) -> tuple[Operator, ...]:
    prompt, token = prompt_shape({"sequences": 1, **row}), token_shape(row)._replace(mixed=True)
    return Operator("prompt attention", 1, prompt), Operator("attention", 1, token)


_WINDOW = {"kv": "bf16", "window": 0}
_ONE_QUERY = {**_WINDOW, "queries": 1, "latent": False}

KINDS: dict[str, Kind] = {
    "gemm": Kind(("rows", "columns", "inner"), {"format": "bf16", "batch": 1, "quantise": False}, _gemm),
    "experts": Kind(
        ("tokens", "hidden", "intermediate", "topk", "experts", "local"),
        {"format": "bf16", "gated": True, "skew": 0.0},
        _experts,
    ),
    "prompt_attention": Kind(
        ("tokens", "cached", *HEADS), {"sequences": 1, **_WINDOW}, lambda row: _one(prompt_shape(row))
    ),
    "token_attention": Kind(("batch", "context", *HEADS), _ONE_QUERY, lambda row: _one(token_shape(row))),
    MIXED: Kind(("tokens", "cached", "batch", "context", *HEADS), _ONE_QUERY, _mixed),
    "elementwise": Kind(("name", "size_bytes"), {}, lambda row: _one(Elementwise(row["size_bytes"]), row["name"])),
    "collective": Kind(
        ("operation", "size_bytes", "ranks"),
        {},
        lambda row: _one(Collective(row["operation"], row["size_bytes"], row["ranks"], "tensor")),
    ),
}
"""Kinds of a canonical table's `operator` column."""


def place(operators: tuple[Operator, ...], packed: bool = False) -> Coordinate:
    """Return where one operator stands among others of its kind, or prompts and decoding sequences in one call.

    `packed`: by all new tokens of a step, whatever number of prompts they are of (see `one_prompt_at_a_time`).
    """
    shape = operators[0].shape
    if len(operators) > 2:
        return place_module(operators)
    if len(operators) > 1:
        return _place_mixed(operators)
    if isinstance(shape, Gemm):
        return Coordinate(("gemm", shape.format, shape.batch), (shape.columns, shape.inner), (shape.rows,))
    if isinstance(shape, TokenAttention):
        exact = ("token_attention", shape.kv, shape.key_dim, shape.value_dim, shape.window, shape.queries, shape.latent)
        each = max(shape.context / shape.batch, 1.0)
        return Coordinate(exact, (shape.heads, shape.kv_heads), (shape.batch, each))
    if isinstance(shape, PromptAttention):
        return _place_prompt(shape, packed)
    if isinstance(shape, Experts):
        sizes = (shape.hidden, shape.intermediate, shape.topk, shape.experts, shape.local)
        # between choices of experts all alike and a power law of exponent 1 lies half an octave of distance
        return Coordinate(("experts", shape.format, shape.gated), (*sizes, 2 ** (shape.skew / 2)), (shape.tokens,))
    if isinstance(shape, Elementwise):
        return Coordinate(("elementwise", operators[0].name), (), (max(shape.size_bytes, 1.0),))
    if isinstance(shape, Collective):
        return Coordinate(("collective", shape.operation, shape.ranks), (), (max(shape.size_bytes, 1.0),))
    return Coordinate((type(shape).__name__,), (), (1.0,))  # of a kind that no table has


ALIGNED = 4
"""Rows that vector loads and block scales want a multiple of: others are padded first, or take another kernel."""


def refined(operators: tuple[Operator, ...]) -> Coordinate | None:
    """Return a narrower place, to look at first: among products whose rows are aligned alike, experts chosen alike."""
    shape = operators[0].shape
    if len(operators) == 1 and isinstance(shape, Gemm):
        at = place(operators)
        return at._replace(exact=(*at.exact, shape.rows % ALIGNED == 0))
    if isinstance(shape, Experts):
        at = place(operators)
        return at._replace(exact=(*at.exact, shape.skew), shape=at.shape[:-1])
    return None


def _place_prompt(shape: PromptAttention, packed: bool) -> Coordinate:
    exact = ("prompt_attention", shape.kv, shape.key_dim, shape.value_dim, shape.window, packed)
    keys = shape.pairs / shape.tokens  # that a query sees, on average
    line = (shape.tokens, keys) if packed else (shape.sequences, shape.tokens / shape.sequences, keys)
    return Coordinate(exact, (shape.heads, shape.kv_heads), line)


def _place_mixed(operators: tuple[Operator, ...]) -> Coordinate:
    prompt, token = (operator.shape for operator in operators)
    assert isinstance(prompt, PromptAttention)
    assert isinstance(token, TokenAttention)
    exact = (MIXED, prompt.kv, prompt.key_dim, prompt.value_dim, prompt.window)
    each = max(token.context / token.batch, 1.0)
    line = (token.batch, prompt.tokens, prompt.pairs / prompt.tokens, each)
    return Coordinate(exact, (prompt.heads, prompt.kv_heads), line)
