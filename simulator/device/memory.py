"""The memory ledger of one device of an instance: weights, activations, communication buffers; the rest is KV cache.

Source: the activation peak is the widest set of tensors alive at once in a fused layer (derived below); buffers are
NCCL's documented defaults. Allocator fragmentation and captured graphs are what `utilisation` leaves out.
"""

from math import ceil
from typing import NamedTuple

from simulator.device.accelerator import Accelerator
from simulator.errors import InputError, Problem
from simulator.model.architecture import LatentAttention
from simulator.model.layout import Layout
from simulator.model.precision import Precision
from simulator.model.split import (
    Held,
    absorbed_bytes,
    check_layout,
    kv_bytes_per_token_per_rank,
    kv_groups,
    kv_heads_per_rank,
    weight_bytes_per_rank,
)
from simulator.model.transformer import Transformer

GIB = 1 << 30
VALUE_BYTES = 2
"""Bytes of one activation."""
NCCL_CHANNELS, NCCL_BUFFER_BYTES = 24, 4 << 20
"""Channels that NCCL opens on an NVSwitch node, and NCCL_BUFFSIZE, the default size of each one's buffer."""


CONTEXT_BYTES = 473 * 10**6
"""What the driver holds for one process that computes: context and loaded kernels (arXiv:2505.14468)."""


class Ledger(NamedTuple):
    """Bytes of one device: `usable` is capacity x utilisation, and is the sum of the five others."""

    usable_bytes: int
    weight_bytes: int
    activation_bytes: int
    buffer_bytes: int
    context_bytes: int
    kv_bytes: int


class Beside(NamedTuple):
    """What a draft model takes of a device beside the model: weights, and for each token of context keys and values."""

    weight_bytes: int = 0
    token_bytes: float = 0.0


def activation_bytes(model: Transformer, layout: Layout, max_batch_tokens: int, max_sequences: int) -> int:
    """Return the peak of activations in a step of at most `max_batch_tokens` tokens that samples `max_sequences` rows.

    Per token: the residual sum and the layer's input or output, and the widest of (queries, keys, values and attention
    output), (gate, up and their product) and (what routed experts take in and give back). At the end instead of
    those: the logits of each sequence in 2 and in 4 bytes. A data-parallel rank has its part of tokens and sequences.
    """
    tensor, part = layout.tensor, model.attention
    tokens = -(-max_batch_tokens // (layout.data * layout.context))
    heads = part.heads // tensor
    if isinstance(part, LatentAttention):  # keys and values made explicit
        attention = heads * (2 * part.key_dim + 2 * part.value_dim)
    else:
        attention = (2 * heads + 2 * kv_heads_per_rank(model, layout)) * part.head_dim
    widths = [attention, (3 if model.gated else 2) * (model.intermediate // tensor)]
    if model.experts is not None:
        spread = layout.data * layout.context
        rows = model.experts.active * spread / layout.expert  # of each token held here, after dispatch
        width = 2 * model.hidden + (3 if model.gated else 2) * (model.experts.intermediate // layout.expert_tensor)
        widths.append(round(rows * width))
    stream = 2 * model.hidden * VALUE_BYTES * tokens
    logits = -(-max_sequences // layout.data) * model.vocabulary * (VALUE_BYTES + 4)
    return stream + max(max(widths) * VALUE_BYTES * tokens, logits)


def buffer_bytes(model: Transformer, layout: Layout, max_batch_tokens: int) -> int:
    """Return the bytes for collectives: send and receive buffers of every channel and an activation of a rank's tokens.

    Each dimension of the layout with more than one rank has a communicator of its own.
    """
    groups = sum(degree > 1 for degree in (layout.tensor, layout.pipeline, layout.data * layout.context))
    if not groups:
        return 0
    tokens = -(-max_batch_tokens // layout.data)
    return 2 * groups * NCCL_CHANNELS * NCCL_BUFFER_BYTES + tokens * model.hidden * VALUE_BYTES


def ledger(
    model: Transformer,
    layout: Layout,
    accelerator: Accelerator,
    max_batch_tokens: int,
    max_sequences: int = 256,
    utilisation: float = 0.9,
    precision: Precision | None = None,
    experts_elsewhere: bool = False,
    held: Held | None = None,
    beside: Beside | None = None,
) -> Ledger:
    """Return where the memory of the fullest device of one instance goes, routed experts included if they are there.

    Raises InputError that names the largest term and what is missing when nothing is left for the KV cache, and when
    the layout cannot split the model.
    """
    check_layout(model, layout)
    usable = int(accelerator.memory.capacity * utilisation)
    terms = {
        "weights": weight_bytes_per_rank(model, layout, precision, experts_elsewhere, held)
        + absorbed_bytes(model, layout, precision)
        + (beside.weight_bytes if beside else 0),
        "activations": activation_bytes(model, layout, max_batch_tokens, max_sequences),
        "communication buffers": buffer_bytes(model, layout, max_batch_tokens),
        "driver context": CONTEXT_BYTES,
    }
    rest = usable - sum(terms.values())
    token = ceil(kv_bytes_per_token_per_rank(model, layout, precision) + (beside.token_bytes if beside else 0))
    if rest < token:
        binding = max(terms, key=terms.__getitem__)
        parts = ", ".join(f"{name} {size / GIB:.1f} GiB" for name, size in terms.items())
        missing = (token - rest) / GIB
        what = (
            f"{model.name} does not fit {accelerator.name} under {layout}: {binding} take most "
            f"({parts}) of {usable / GIB:.1f} GiB usable, {missing:.1f} GiB too little before any KV cache"
        )
        raise InputError(Problem(what, path="layout.tensor", allowed="a larger tensor degree, device or utilisation"))
    weights, activations, buffers, context = terms.values()
    return Ledger(usable, weights, activations, buffers, context, rest)


def window_lines(model: Transformer, context: int) -> list[str]:
    """Return a line when some layers see but a window of so long a context, whose keys and values are kept whole."""
    window = model.attention.window
    if window is None or context <= window.tokens:
        return []
    seen = f"{window.layers} of the {model.layers} layers of {model.name} see {window.tokens:,} positions"
    return [f"kv.hybrid: {seen} and keep them all here; engines that give back the others hold more contexts"]


def kv_block_bytes(
    model: Transformer,
    layout: Layout,
    block_tokens: int,
    precision: Precision | None = None,
    beside: Beside | None = None,
    windows: bool = False,
) -> int:
    """Return the bytes of a KV block on each device of the fullest stage: of all layers, or of a group of them.

    What a draft model keeps goes with the groups that keep everything; with blocks of one size, all are as large.
    """
    more = beside.token_bytes if beside else 0.0
    if not windows:
        return ceil(block_tokens * (kv_bytes_per_token_per_rank(model, layout, precision) + more))
    groups = kv_groups(model, layout)
    token = kv_bytes_per_token_per_rank(model, layout, precision, groups.layers)
    return ceil(block_tokens * (token + more / (groups.full or groups.windowed)))


def kv_blocks(
    book: Ledger,
    model: Transformer,
    layout: Layout,
    block_tokens: int,
    precision: Precision | None = None,
    beside: Beside | None = None,
    windows: bool = False,
) -> int:
    """Return how many KV blocks of `block_tokens` tokens the device holds; raises InputError when not even one fits.

    `windows`: a block is that of one group of layers, see `kv_groups`.
    """
    block = kv_block_bytes(model, layout, block_tokens, precision, beside, windows)
    if book.kv_bytes < block:
        what = (
            f"one KV block of {block_tokens} tokens needs {block / GIB:.3f} GiB, {book.kv_bytes / GIB:.3f} GiB are left"
        )
        raise InputError(Problem(what, allowed="smaller blocks, a larger tensor degree, device or utilisation"))
    return book.kv_bytes // block
