"""Named random streams and marks: one generator per (seed, name), so that adding an actor shifts no other stream.

Source: numpy's SeedSequence with spawn keys; the key is a BLAKE2b digest of the name. Marks of numbers are SplitMix64
(Steele, Lea, Flood 2014) begun at the mark of the name.
"""

from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

_GAMMA, _FIRST, _SECOND = (np.uint64(n) for n in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def stream(seed: int, name: str) -> np.random.Generator:
    """Return the generator of the stream `name` under `seed`; equal arguments give equal draws on every machine."""
    digest = blake2b(name.encode(), digest_size=16).digest()
    key = tuple(int.from_bytes(digest[i : i + 4], "little") for i in range(0, 16, 4))
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=key)))


def mark(seed: int, name: str) -> int:
    """Return the mark of a name under `seed`, 64 random bits that depend on nothing else."""
    return int.from_bytes(blake2b(f"{seed}/{name}".encode(), digest_size=8).digest(), "little")


def marks(seed: int, name: str, first: int, n: int) -> NDArray[np.uint64]:
    """Return the marks of the numbers from `first` on under (seed, name): each depends on them and its number alone."""
    numbers = np.arange(first + 1, first + n + 1, dtype=np.uint64)
    bits = numbers * _GAMMA + np.uint64(mark(seed, name))
    bits = (bits ^ (bits >> np.uint64(30))) * _FIRST
    bits = (bits ^ (bits >> np.uint64(27))) * _SECOND
    mixed: NDArray[np.uint64] = bits ^ (bits >> np.uint64(31))
    return mixed
