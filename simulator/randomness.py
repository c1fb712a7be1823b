"""Named random streams: one generator per (seed, name), so that adding an actor shifts no other stream.

Source: numpy's SeedSequence with spawn keys; the key is a BLAKE2b digest of the name.
"""

from hashlib import blake2b

import numpy as np


def stream(seed: int, name: str) -> np.random.Generator:
    """Return the generator of the stream `name` under `seed`; equal arguments give equal draws on every machine."""
    digest = blake2b(name.encode(), digest_size=16).digest()
    key = tuple(int.from_bytes(digest[i : i + 4], "little") for i in range(0, 16, 4))
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=key)))
