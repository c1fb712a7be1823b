"""Caches that keep stretches of units equal caches that keep every unit by itself, whatever prompts share or repeat.

Prompts part from one another, are ranges of keys or tuples of the same, or have their keys in any order and twice, so
that a unit has no one place and no one unit before it.
"""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from unit_prefix_cache import UnitCache

from simulator.errors import InvariantError
from simulator.serving.eviction import EVICTIONS, Lifetime
from simulator.serving.prefix_cache import PrefixCache
from simulator.serving.prefix_index import PrefixIndex
from simulator.serving.request import Request

LIFETIME_NS = 5
KINDS = ("serve", "begin", "compute", "end", "evict", "time", "leave or join")

alone = st.builds(lambda base, units: range(base, base - units, -1), st.sampled_from([-1, -5, -40]), st.integers(0, 12))
parting = st.builds(
    lambda base, common, own, units: (*range(base, base + common), *range(1000 * own, 1000 * own + units)),
    st.sampled_from([100, 200]),
    st.integers(0, 9),
    st.integers(1, 3),
    st.integers(0, 6),
)
any_order = st.lists(st.integers(100, 108), max_size=9).map(tuple)
prompts = st.lists(st.one_of(alone, alone.map(tuple), parting, parting, any_order), min_size=2, max_size=5)
step = st.tuples(st.sampled_from(KINDS), st.integers(0, 1), st.integers(0, 4), st.integers(1, 9))
moves = st.lists(step, min_size=8, max_size=30)


class Both:
    """A cache and its slow twin, which must agree after each move, and the prompts that both hold."""

    def __init__(self, eviction, pin_units, pin_most):
        parameters = Lifetime(lifetime=f"{LIFETIME_NS} ns") if eviction == "ttl" else None
        self.cache = PrefixCache(16, 16, eviction, parameters, pin_units, pin_most)
        self.twin = UnitCache(eviction, LIFETIME_NS if eviction == "ttl" else None, pin_units, pin_most)
        self.held = []

    def begin(self, keys):
        units = self.twin.match(keys, len(keys))
        for each in self.cache, self.twin:
            each.acquire(keys, units)
        self.held.append([keys, units])

    def compute(self, row, units):
        keys, first = row
        last = row[1] = min(len(keys), first + units)
        for each in self.cache, self.twin:
            each.insert(keys, first, last)

    def end(self, row):
        self.held.remove(row)
        for each in self.cache, self.twin:
            each.release(*row)

    def evict(self, units):
        units = min(units, self.twin.idle)
        assert self.cache.evict(units) == self.twin.evict(units)

    def expire(self, now_ns):
        for each in self.cache, self.twin:
            each.expire(now_ns)

    def agree(self, chains):
        cache, twin = self.cache, self.twin
        cache.check()
        assert (cache.referenced, cache.idle, cache.pinned) == (twin.referenced, twin.idle, twin.pinned)
        assert {key: stretch.references for stretch in cache for key in stretch.units} == twin.references
        for keys in chains:
            request = Request(0, 0, 16 * len(keys) + 1, 1, keys=keys)
            assert cache.found_in_use(request) == (twin.match(keys, len(keys)), twin.in_use(keys, len(keys)))
            assert cache.match(keys, 3) == twin.match(keys, 3)
        noted, noted_by_twin = {}, {}
        for keys, units in reversed(self.held):
            assert cache.given_up(keys, units, noted) == twin.alone(keys, units, noted_by_twin)


def replay(steps, chains, eviction, pin_units, pin_most):
    index, pairs, now_ns = PrefixIndex(), [Both(eviction, pin_units, pin_most) for _ in range(2)], 0
    for what, place, choice, units in steps:
        both = pairs[place]
        row = both.held[choice % len(both.held)] if both.held else None
        if what in ("serve", "begin"):
            both.begin(chains[choice % len(chains)])
        if what == "serve":
            both.compute(both.held[-1], 100)
            both.end(both.held[-1])
        elif what in ("compute", "end") and row is not None:
            both.compute(row, units) if what == "compute" else both.end(row)
        elif what == "evict":
            both.evict(units)
        elif what == "time":
            now_ns += units
            for each in pairs:
                each.expire(now_ns)
        elif what == "leave or join":
            index.join(both.cache) if both.cache.index is None else index.leave(both.cache)
        for each in pairs:
            each.agree(chains)
        there = [each for each in pairs if each.cache.index is not None]
        index.check(each.cache for each in there)
        for keys in chains:
            for most in (2, len(keys)):
                found = {each.cache.bit: n for each in there if (n := each.twin.match(keys, most))}
                assert index.units(keys, most) == found
    for both in pairs:  # in the end everything goes, in one order
        for row in [*both.held]:
            both.end(row)
        both.evict(10**6)
        both.agree(chains)


cases = (moves, prompts, st.sampled_from(sorted(EVICTIONS)), st.integers(0, 3), st.integers(0, 5))


TWO = [(1, 2, 3, 4, 5, 6), (11, 12, 13)]
PIECE = [("begin", 0, 0, 1), ("compute", 0, 0, 3)]


@settings(max_examples=600, deadline=None)
@given(*cases)
@example([("serve", 0, 0, 1), ("begin", 0, 1, 1), ("evict", 0, 0, 2)], [(1, 2), (1, 2, 1)], "lru", 0, 0)  # 1 twice
@example([*PIECE, ("serve", 0, 1, 1), *PIECE[1:], ("end", 0, 0, 1), ("evict", 0, 0, 5)], TWO, "fifo", 0, 0)
@example([*PIECE, ("end", 0, 0, 1), *PIECE, ("end", 0, 0, 1), ("serve", 0, 1, 1), ("evict", 0, 0, 4)], TWO, "lfu", 0, 0)
def test_equal_to_unit_by_unit(steps, chains, eviction, pin_units, pin_most):
    replay(steps, chains, eviction, pin_units, pin_most)


@pytest.mark.nightly
@settings(max_examples=20_000, deadline=None)
@given(*cases)
def test_equal_to_unit_by_unit_at_length(steps, chains, eviction, pin_units, pin_most):
    replay(steps, chains, eviction, pin_units, pin_most)


def test_what_goes_together_is_one_stretch():
    # 750 units in six pieces, then a prompt that parts from them: two stretches for both, one more for the second
    cache, index = PrefixCache(16, 16), PrefixIndex()
    index.join(cache)
    first = tuple(range(750))
    for begin in range(0, 750, 125):
        cache.insert(first, begin, begin + 125)
    assert [len(stretch) for stretch in cache] == [750]
    other = (*range(300), *range(1000, 1400))
    cache.acquire(other, cache.match(other, 700))
    cache.insert(other, 300, 700)
    assert [len(stretch) for stretch in cache] == [300, 450, 400]


def test_tails_that_one_cache_gave_up_are_one_stretch_of_the_index():
    index, caches = PrefixIndex(), [PrefixCache(16, 16) for _ in range(2)]
    keys = tuple(range(40))
    for cache in caches:
        index.join(cache)
        cache.insert(keys, 0, 40)
        cache.release(keys, 40)
    for _ in range(30):
        caches[0].evict(1)
    index.check(caches)
    assert sorted(len(stretch) for stretch in index) == [10, 30]
    assert index.units(keys, 40) == {caches[0].bit: 10, caches[1].bit: 40}


def test_units_that_are_not_here_are_refused():
    cache = PrefixCache(16, 16)
    cache.insert((1, 2), 0, 2)
    for wrong in (lambda: cache.acquire((1, 2, 3), 3), lambda: cache.release((4,), 1), lambda: cache.evict(1)):
        with pytest.raises(InvariantError):
            wrong()
