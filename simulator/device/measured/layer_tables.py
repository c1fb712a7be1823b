"""Reads profiles of whole layers by name, of one model and its tensor degrees, as LLMServingSim's profiler writes them.

Source: casys-kaist/LLMServingSim, tables dense, per_sequence and attention of its second profiler (vLLM's layers).
"""

from collections.abc import Iterator

from simulator.device.measured.points import KINDS, MIXED
from simulator.device.measured.table import Measured, Table
from simulator.model.architecture import GroupedAttention
from simulator.model.forward import Pass, Work
from simulator.model.operators import Operator

LAYERS = {
    "embedding": "embedding",
    "layernorm": "norm and residual",
    "qkv_proj": "QKV projection",
    "rotary_emb": "rotary positions",
    "o_proj": "output projection",
    "gate_up_proj": "gate and up projection",
    "act_fn": "activation",
    "down_proj": "down projection",
    "lm_head": "LM head",
    "sampler": "sampling",
}
"""Names of vLLM's layers and the operators of `simulator.model.forward` that they are."""
PART_OF = {"qk_norm": ("rotary_emb", 2)}
"""Layers that are part of another's operator, and how often: queries and keys are each normed once."""


def _layers(table: Table, forward: Pass, size: str) -> Iterator[Measured]:
    """Yield layers at `size` (tokens or sequences) positions; of the repeated ones each, of parts the median."""
    times, degrees, sizes = table.times("time_us", 1e3), table.whole("tp", 1), table.whole(size, 1)
    shapes: dict[int, dict[str, Operator]] = {}
    rows: dict[tuple[str, int], list[float]] = {}
    for layer, degree, positions, ns in zip(table.columns["layer"], degrees, sizes, times, strict=True):
        if degree == forward.layout.tensor:
            rows.setdefault((layer, positions), []).append(ns)
    table.say_degrees(degrees, forward.layout.tensor)
    known = LAYERS.keys() | PART_OF.keys()
    if unknown := ", ".join(dict.fromkeys(layer for layer, _ in rows if layer not in known)):
        table.notes.append(f"layers that are no operator by themselves passed over: {unknown}")
    for (layer, positions), found in rows.items():
        name = LAYERS.get(layer)
        if positions not in shapes:
            shapes[positions] = {o.name: o for o in forward.operators(Work(batch=positions, context=positions))}
        if name is None or name not in shapes[positions]:
            continue
        extra = 0.0
        for part, (whole, times_run) in PART_OF.items():
            if whole == layer and (part, positions) in rows:
                parts = rows[part, positions]
                extra += times_run * sum(parts) / len(parts)
        operator = shapes[positions][name]._replace(calls=1)
        yield from (Measured((operator,), ns + extra) for ns in found)


def dense(table: Table, forward: Pass) -> Iterator[Measured]:
    """Yield the layers whose time follows from the tokens of a step."""
    return _layers(table, forward, "tokens")


def per_sequence(table: Table, forward: Pass) -> Iterator[Measured]:
    """Yield the layers that run once per sequence: LM head and sampler."""
    return _layers(table, forward, "sequences")


def attention(table: Table, forward: Pass) -> Iterator[Measured]:
    """Yield attention of one prompt's chunk, of decoding sequences, and of both in one call.

    `kv_prefill` and `kv_decode` are what is in the cache before the step.
    """
    part = forward.model.attention
    if not isinstance(part, GroupedAttention):
        return
    heads = {
        "heads": forward.heads,
        "kv_heads": forward.kv_heads,
        "key_dim": part.head_dim,
        "value_dim": part.head_dim,
        "kv": forward.precision.kv,
    }
    names = ("tp", "prefill_chunk", "kv_prefill", "n_decode", "kv_decode")
    columns = [table.whole(name) for name in names]
    table.say_degrees(columns[0], forward.layout.tensor)
    for degree, tokens, cached, batch, context, ns in zip(*columns, table.times("time_us", 1e3), strict=True):
        if degree != forward.layout.tensor or not tokens + batch:
            continue
        kind = MIXED if tokens and batch else "prompt_attention" if tokens else "token_attention"
        row = {"tokens": tokens, "cached": cached, "batch": batch, "context": context + 1, **heads}
        yield Measured(KINDS[kind].operators({**KINDS[kind].defaults, **row}), ns)
