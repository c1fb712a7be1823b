"""The index of a pool's prefix caches knows what each cache would say if it were asked, whatever comes and goes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.errors import InvariantError
from simulator.serving.prefix_cache import PrefixCache
from simulator.serving.prefix_index import PrefixIndex

CHAINS = [tuple(range(1, 9)), (1, 2, 3, 40, 50), (1, 60, 70), (80, 90)]
kinds = st.sampled_from(["take", "free", "evict", "leave", "join"])
moves = st.tuples(kinds, st.integers(0, 2), st.sampled_from(CHAINS))


@given(st.sampled_from(["lru", "lfu", "fifo"]), st.lists(moves, max_size=40))
def test_equal_to_asking_every_cache(eviction, steps):
    index, caches = PrefixIndex(), [PrefixCache(16, 16, eviction) for _ in range(3)]
    here, held = [True] * 3, [[] for _ in range(3)]
    for cache in caches:
        index.join(cache)
    for what, place, chain in steps:
        cache = caches[place]
        if what == "take":  # as a rank does: it holds what is there and computes the rest
            units = cache.match(chain, len(chain))
            cache.acquire(chain, units)
            cache.insert(chain, units, len(chain))
            held[place].append(chain)
        elif what == "free" and held[place]:
            cache.release(held[place].pop(0), 10)
        elif what == "evict" and cache.idle:
            cache.evict(1)
        elif what == "leave" and here[place]:
            index.leave(cache)
        elif what == "join" and not here[place]:
            index.join(cache)
        here = [each.index is not None for each in caches]
        there = [cache for cache, joined in zip(caches, here, strict=True) if joined]
        index.check(there)
        for keys in CHAINS:
            for most in (0, 2, len(keys)):
                found = index.units(keys, most)
                assert found == {c.bit: n for c in there if (n := c.match(keys, most))}


def test_a_lie_is_found():
    index, cache = PrefixIndex(), PrefixCache(16, 16)
    index.join(cache)
    cache.insert((1, 2), 0, 2)
    index.drop((1, 2), 1, 2, cache.bit)
    with pytest.raises(InvariantError, match="prefix index"):
        index.check([cache])
