"""Keys of prompts: what a prefix cache knows them by, from block hashes or from what sessions and prefixes say.

Model: as vLLM and SGLang, a unit of so many tokens is found by a key that stands for itself and all before it; a turn
begins with the whole context of the turn before (its prompt and its answer), as far as it is long enough.
"""

from collections.abc import Callable, Iterator, Sequence
from hashlib import blake2b
from itertools import repeat

import numpy as np
import pyarrow as pa

Chain = Callable[[int, int, int], Sequence[int]]
"""(number of a context, its tokens, tokens of a unit) -> keys, all different and of no other context."""

_PIECE_ROWS = 4_096  # bounds the hashes that are Python numbers at once


def session_number(name: str) -> int:
    """Return a number for a session: itself where it is one of at most 9 digits, else a 56-bit hash above all those.

    It takes no memory and depends on nothing but the name; of a million hashed sessions two share a number with a
    chance of 1 in 140,000.
    """
    if name.isdecimal() and name.isascii() and len(name) <= 9 and (name[0] != "0" or name == "0"):
        return int(name)  # small numbers make small keys, which are twice as fast
    return 1 << 56 | int.from_bytes(blake2b(name.encode(), digest_size=7).digest())


def hash_keys(batch: pa.RecordBatch, hash_tokens: int) -> Iterator[Sequence[int]]:
    """Yield the hashes of each prompt's full blocks: a block that the prompt does not fill cannot be shared."""
    for first in range(0, batch.num_rows, _PIECE_ROWS):
        piece = batch.slice(first, _PIECE_ROWS)
        column = piece.column("prefix_hashes")
        starts = column.offsets.to_numpy()[:-1]
        blocks = column.value_lengths().fill_null(0).to_numpy()
        full = np.minimum(blocks, piece.column("prompt_tokens").to_numpy() // hash_tokens)
        low, high = int(starts[0]), int(starts[-1] + blocks[-1])
        keys = column.values[low:high].to_pylist()
        begins = starts - low
        for begin, end in zip(begins.tolist(), (begins + full).tolist(), strict=True):
            yield tuple(keys[begin:end])


def context_keys(batch: pa.RecordBatch, unit_tokens: int, chain: Chain) -> Iterator[Sequence[int]]:
    """Yield the keys of each request's context: first those of its prefix, then those of its session.

    Of a request without a session only the prefix is known; with neither there are no keys.
    """
    names = ("prefix", "prefix_tokens", "session", "prompt_tokens", "output_tokens")
    columns = (batch.column(name) for name in names)
    lists = (repeat(None) if c.null_count == len(c) else c.to_pylist() for c in columns)
    for prefix, tokens, session, prompt, output in zip(*lists, strict=False):
        shared = chain(2 * prefix + 1, tokens, unit_tokens) if prefix is not None else ()
        if session is None:
            yield shared
            continue
        own = chain(2 * session_number(session), prompt + output, unit_tokens)
        yield (*shared, *own[len(shared) :]) if shared else own
