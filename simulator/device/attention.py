"""Time of fused attention: tiles of query rows walk over keys in blocks, spread over the processors in waves.

Source: FlashAttention-2 (arXiv:2307.08691) for tiles and blocks, Flash-Decoding (Dao et al., 2023) for keys split over
processors, GQA packing as in FlashAttention-3 (arXiv:2407.08608); constants fitted per device and format of the cache.
"""

from simulator.device.accelerator import Accelerator
from simulator.device.efficiency import PromptAttention as PromptFit
from simulator.device.kernels import Kernel, memory_floor_ns
from simulator.model.operators import PromptAttention, TokenAttention
from simulator.model.precision import VALUES
from simulator.units import NS_PER_S

BLOCK = 128
"""Keys that a tile takes at a time: no walk is shorter."""
PS_PER_NS = 1000
DECODE_ROWS = 64
"""Query rows of one tile in decode: the queries of all heads that share a KV head, padded with nothing."""


def prompt_attention(shape: PromptAttention, accelerator: Accelerator) -> Kernel:
    """Return attention of new positions over the pairs of their prompts, the write of their keys and values included.

    Each tile of query rows walks over the keys that its rows may see, whole blocks on the causal edge. The device is
    busy for the work of all tiles, and waits at the end for some of its longest. Prompts of one new position each are
    decoded where that is faster.
    """
    whole = _prompts(shape, accelerator)
    if shape.tokens > shape.sequences:
        return whole
    return min(whole, token_attention(_decoded(shape), accelerator), key=lambda kernel: kernel.ns)


def _prompts(shape: PromptAttention, accelerator: Accelerator) -> Kernel:
    fit = accelerator.fitted.prompt_attention_in(shape.kv, latent=not shape.stored)
    size_ns = memory_floor_ns(shape.size_bytes, accelerator) / accelerator.fitted.token_attention_in(shape.kv).memory
    write_ns = 0.0
    if shape.stored:
        written = shape.tokens * shape.kv_heads * (shape.key_dim + shape.value_dim) * (2 + VALUES[shape.kv] / 8)
        write_ns = memory_floor_ns(written, accelerator) / fit.write
    tiles, mean_ns, longest_ns = _tiles(shape, fit, accelerator)
    spread_ns = tiles * mean_ns / accelerator.attention_processors
    return Kernel(
        flops=shape.flops,
        size_bytes=shape.size_bytes,
        compute_ns=write_ns + max(longest_ns, spread_ns + fit.straggler * longest_ns),
        memory_ns=write_ns + size_ns,
        fixed_ns=fit.launch,
    )


def _tiles(shape: PromptAttention, fit: PromptFit, accelerator: Accelerator) -> tuple[int, float, float]:
    """Return the number of tiles, the time of the mean one, and of the longest."""
    group = shape.heads // shape.kv_heads if fit.packed else 1
    each = shape.tokens / shape.sequences
    tiles = shape.sequences * (shape.heads // group) * -(-(shape.tokens * group) // (shape.sequences * fit.rows))
    span = min(each, fit.rows / group)  # positions of one tile
    longest = shape.kv_tokens / shape.sequences
    if shape.window:
        longest = min(longest, shape.window + span + BLOCK)
    longest = max(longest, BLOCK)
    edge = (span + min(each, BLOCK)) / 2 if shape.causal else 0.0
    mean = min(max(shape.pairs / shape.tokens + edge, BLOCK), longest)
    key_ns = _prompt_key_ns(shape, fit, accelerator)
    return tiles, fit.tile + mean * key_ns, fit.tile + longest * key_ns


def token_attention(shape: TokenAttention, accelerator: Accelerator) -> Kernel:
    """Return attention of one query, or a few, per sequence; affine in the context but for a few corners.

    A KV head of a sequence is one tile (more when its queries pass the rows of one). While tiles are fewer than the
    processors, the keys of each are split over several of these where that gains more than it costs to combine what
    each found. A window adds a block, for it seldom begins where a block does. Beside prompts, decodes may go along in
    their call.
    """
    prompts = accelerator.fitted.prompt_attention_in(shape.kv)
    if not shape.mixed or shape.latent or prompts.decodes == "apart":
        return _decode(shape, accelerator)
    if prompts.packed:
        alone = _decode(shape, accelerator)
        launch = accelerator.fitted.token_attention_in(shape.kv).launch
        return alone._replace(fixed_ns=alone.fixed_ns - launch)
    return _along(shape, prompts, accelerator)


def _along(shape: TokenAttention, fit: PromptFit, accelerator: Accelerator) -> Kernel:
    """Return decodes in a call of prompts that packs no heads: each query of a head is a tile, and no keys are split.

    They come after the tiles of the prompts, in whole waves.
    """
    tiles = shape.batch * shape.heads * -(-shape.queries // fit.rows)
    key_ns = _prompt_key_ns(shape, fit, accelerator)
    walk_ns = -(-tiles // accelerator.attention_processors) * (fit.tile + _keys(shape) * key_ns)
    memory = accelerator.fitted.token_attention_in(shape.kv).memory
    memory_ns = memory_floor_ns(shape.size_bytes, accelerator) / memory
    return Kernel(shape.flops, shape.size_bytes, walk_ns, memory_ns)


def _keys(shape: TokenAttention) -> float:
    """Return the keys that a tile walks over, all of them: a block at least, and one more at the edge of a window."""
    keys = shape.context / shape.batch
    if shape.window and keys >= shape.window:
        keys += BLOCK
    return max(keys, BLOCK)


def _decode(shape: TokenAttention, accelerator: Accelerator) -> Kernel:
    fit = accelerator.fitted.token_attention_in(shape.kv, shape.latent)
    group = shape.heads // shape.kv_heads
    tiles = shape.batch * shape.kv_heads * -(-group * shape.queries // DECODE_ROWS)
    keys = _keys(shape)
    fixed_ns = fit.launch
    if group > 1 and shape.kv_heads > 1 and shape.batch > 1:
        fixed_ns += fit.regroup
    width = shape.key_dim + shape.value_dim
    key_ns = _key_ns(DECODE_ROWS, width, accelerator) + width * fit.feed / PS_PER_NS
    if shape.value_dim > fit.registers:
        key_ns /= fit.wide
    walk_ns = -(-tiles // accelerator.attention_processors) * (fit.tile + keys * key_ns)
    memory_ns = fit.tile + BLOCK * key_ns + memory_floor_ns(shape.size_bytes, accelerator) / fit.memory
    copied_ns = 0.0
    if fit.gather is not None:
        copied = 2 * shape.batch * shape.queries * shape.heads * (shape.key_dim + shape.value_dim)
        copied_ns = memory_floor_ns(copied, accelerator) / fit.gather
    if tiles < accelerator.attention_processors and (fit.splits == "always" or group > 1):
        part_ns = fit.tile + max(keys * tiles / accelerator.attention_processors, BLOCK) * key_ns
        if max(part_ns, memory_ns) + fit.combine < max(walk_ns, memory_ns):
            walk_ns, fixed_ns = part_ns, fixed_ns + fit.combine
    return Kernel(shape.flops, shape.size_bytes, copied_ns + walk_ns, copied_ns + memory_ns, fixed_ns=fixed_ns)


def _prompt_key_ns(shape: PromptAttention | TokenAttention, fit: PromptFit, accelerator: Accelerator) -> float:
    """Return the time in which one processor takes a tile of a prompt over one key: products, then softmax."""
    key_ns = _key_ns(fit.rows, shape.key_dim + shape.value_dim, accelerator) / fit.compute
    key_ns += fit.rows * fit.softmax / PS_PER_NS
    return key_ns / fit.wide if shape.value_dim > fit.registers else key_ns


def _key_ns(rows: int, width: float, accelerator: Accelerator) -> float:
    """Return the time in which one processor multiplies `rows` queries with a key and their weights with a value."""
    return 2 * rows * width * accelerator.attention_processors * NS_PER_S / accelerator.rate("bf16")


def _decoded(shape: PromptAttention) -> TokenAttention:
    """Return prompts of one new position each as a decode step."""
    return TokenAttention(
        shape.tokens,
        shape.pairs,
        shape.heads,
        shape.kv_heads,
        shape.key_dim,
        shape.value_dim,
        shape.kv,
        window=shape.window,
    )
