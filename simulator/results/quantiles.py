"""Exact quantiles of integers that are streamed several times, in memory that does not grow with their number.

Model: radix selection from the most significant digit. The quantile is the nearest rank (the inverse of the empirical
distribution, type 1 of Hyndman and Fan 1996): the smallest value with at least a share q of all values at or below it,
so every figure is a value that was observed.
"""

from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

_DIGIT_BITS = 16


def nearest_rank(q: float, count: int) -> int:
    """Return the rank, from 1, of the quantile `q` in [0, 1] among `count` values: max(1, ceil(q count)).

    `q` means the decimal number that was written (0.07 of 100 is 7, not the 8 of its binary neighbour above).
    """
    if not 0 <= q <= 1:
        raise ValueError(f"a quantile lies in [0, 1], not at {q}")
    share = Fraction(repr(float(q)))
    return max(1, -(-share.numerator * count // share.denominator))


def exact_quantiles(chunks: Callable[[], Iterable["npt.NDArray[np.int64]"]], qs: Sequence[float]) -> list[int]:
    """Return the quantile of each of `qs` over every value of `chunks()`, which must stream the same values each time.

    Reads the stream 1 + ceil(bits of the range / 16) times and holds one 16-bit table of counts per distinct quantile.
    Raises ValueError when there is no value.
    """
    import numpy as np

    count, low, high = 0, 0, 0
    for chunk in chunks():
        if len(chunk):
            least, most = int(chunk.min()), int(chunk.max())
            low, high = (min(low, least), max(high, most)) if count else (least, most)
            count += len(chunk)
    if not count:
        raise ValueError("no values, so no quantiles")
    ranks = [nearest_rank(q, count) for q in qs]  # rank among the values that share the prefix found so far
    prefixes = [0] * len(qs)
    bits = (high - low).bit_length()
    while bits:
        step = min(_DIGIT_BITS, bits)
        counts = _count_digits(chunks, low, bits, step, sorted(set(prefixes)))
        for i, prefix in enumerate(prefixes):
            cumulative = np.cumsum(counts[prefix])
            digit = int(np.searchsorted(cumulative, ranks[i]))
            ranks[i] -= int(cumulative[digit - 1]) if digit else 0
            prefixes[i] = (prefix << step) | digit
        bits -= step
    return [low + prefix for prefix in prefixes]


def _count_digits(
    chunks: Callable[[], Iterable[Any]], low: int, bits: int, step: int, prefixes: list[int]
) -> dict[int, Any]:
    import numpy as np

    counts = {prefix: np.zeros(1 << step, np.int64) for prefix in prefixes}
    mask, shift = np.uint64((1 << step) - 1), np.uint64(bits - step)
    # in two's complement the difference is right even where it does not fit int64
    offset = np.uint64(low % 2**64)
    for chunk in chunks():
        values = chunk.astype(np.uint64) - offset
        heads = values >> np.uint64(bits) if bits < 64 else np.zeros_like(values)
        for prefix, table in counts.items():
            digits = (values[heads == np.uint64(prefix)] >> shift) & mask
            table += np.bincount(digits.astype(np.int64), minlength=1 << step)
    return counts
