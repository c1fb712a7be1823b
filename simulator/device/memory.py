"""The memory ledger of one device of an instance: weights, activations, communication buffers; the rest is KV cache.

Source: the activation peak is the widest set of tensors alive at once in a fused layer (derived below); buffers are
NCCL's documented defaults. Allocator fragmentation and the CUDA context are what `utilisation` leaves out.
"""

from typing import NamedTuple

from simulator.device.accelerator import Accelerator
from simulator.errors import InputError, Problem
from simulator.model.transformer import VALUE_BYTES, Layout, Transformer

GIB = 1 << 30
NCCL_CHANNELS, NCCL_BUFFER_BYTES = 24, 4 << 20
"""Channels that NCCL opens on an NVSwitch node, and NCCL_BUFFSIZE, the default size of each one's buffer."""


class Ledger(NamedTuple):
    """Bytes of one device: `usable` is capacity x utilisation, and is the sum of the four others."""

    usable_bytes: int
    weight_bytes: int
    activation_bytes: int
    buffer_bytes: int
    kv_bytes: int


def activation_bytes(model: Transformer, layout: Layout, max_batch_tokens: int, max_sequences: int) -> int:
    """Return the peak of activations in a step of at most `max_batch_tokens` tokens that samples `max_sequences` rows.

    Per token: the residual sum and the layer's input or output, and the wider of (QKV and attention output) and
    (gate, up and their product). At the end instead of the latter: the logits of each sequence in 2 and in 4 bytes.
    """
    tensor = layout.tensor
    queries = model.heads // tensor * model.head_dim
    keys = model.kv_heads_per_rank(layout) * model.head_dim
    stream = 2 * model.hidden * VALUE_BYTES * max_batch_tokens
    layer = max(2 * queries + 2 * keys, 3 * (model.intermediate // tensor)) * VALUE_BYTES * max_batch_tokens
    logits = max_sequences * model.vocabulary * (VALUE_BYTES + 4)
    return stream + max(layer, logits)


def buffer_bytes(model: Transformer, layout: Layout, max_batch_tokens: int) -> int:
    """Return the bytes for collectives: send and receive buffers of every channel and one all-reduced activation."""
    if layout.tensor == 1:
        return 0
    return 2 * NCCL_CHANNELS * NCCL_BUFFER_BYTES + max_batch_tokens * model.hidden * VALUE_BYTES


def ledger(
    model: Transformer,
    layout: Layout,
    accelerator: Accelerator,
    max_batch_tokens: int,
    max_sequences: int = 256,
    utilisation: float = 0.9,
) -> Ledger:
    """Return where the memory of the fullest device of one instance goes.

    Raises InputError that names the largest term and what is missing when nothing is left for the KV cache, and when
    the layout cannot split the model.
    """
    model.check(layout)
    usable = int(accelerator.memory.capacity * utilisation)
    terms = {
        "weights": model.weight_bytes_per_rank(layout),
        "activations": activation_bytes(model, layout, max_batch_tokens, max_sequences),
        "communication buffers": buffer_bytes(model, layout, max_batch_tokens),
    }
    rest = usable - sum(terms.values())
    if rest < model.kv_bytes_per_token_per_rank(layout):
        binding = max(terms, key=terms.__getitem__)
        parts = ", ".join(f"{name} {size / GIB:.1f} GiB" for name, size in terms.items())
        missing = (model.kv_bytes_per_token_per_rank(layout) - rest) / GIB
        what = (
            f"{model.name} does not fit {accelerator.name} with tensor {layout.tensor}: {binding} take most "
            f"({parts}) of {usable / GIB:.1f} GiB usable, {missing:.1f} GiB too little before any KV cache"
        )
        raise InputError(Problem(what, path="layout.tensor", allowed="a larger tensor degree, device or utilisation"))
    return Ledger(usable, terms["weights"], terms["activations"], terms["communication buffers"], rest)


def kv_blocks(book: Ledger, model: Transformer, layout: Layout, block_tokens: int) -> int:
    """Return how many KV blocks of `block_tokens` tokens the device holds; raises InputError when not even one fits."""
    block = block_tokens * model.kv_bytes_per_token_per_rank(layout)
    if book.kv_bytes < block:
        what = (
            f"one KV block of {block_tokens} tokens needs {block / GIB:.3f} GiB, {book.kv_bytes / GIB:.3f} GiB are left"
        )
        raise InputError(Problem(what, allowed="smaller blocks, a larger tensor degree, device or utilisation"))
    return book.kv_bytes // block
