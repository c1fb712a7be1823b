"""The prefix cache by itself: against a list that is walked, and LRU against the exact count of stack distances."""

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator import load, simulate
from simulator.serving.eviction import EVICTIONS, Lifetime
from simulator.serving.prefix_cache import PrefixCache, session_keys

MOONCAKE = Path(__file__).parents[3] / "shared/data/mooncake/conversation_trace.jsonl.gz"


def replay(prompts, capacity, eviction="lru", parameters=None):
    """Units found by prompts one after the other, none of them at once with another, in a cache of so many units."""
    cache = PrefixCache(16, 16, eviction, parameters)
    found = 0
    for keys in prompts:
        units = cache.match(keys, len(keys))
        found += units
        cache.acquire(keys, units)
        cache.insert(keys, units, len(keys))
        cache.release(keys, len(keys))
        if cache.idle > capacity:
            cache.evict(cache.idle - capacity)
        cache.check()
    return found


class Fenwick:
    """Prefix sums of counts by place."""

    def __init__(self, size):
        self.tree = [0] * (size + 1)

    def add(self, place, value):
        place += 1
        while place < len(self.tree):
            self.tree[place] += value
            place += place & -place

    def upto(self, place):
        """Sum of the counts at places before `place`."""
        total = 0
        while place:
            total += self.tree[place]
            place -= place & -place
        return total


def stack_distances(prompts):
    """For each unit of a prompt how many units were used since it was, itself included (Mattson et al. 1970).

    None when it never was. Of one prompt the first unit counts as used last: tails go before their prefixes.
    """
    total = sum(map(len, prompts))
    marks, last, now = Fenwick(total), {}, 0
    for keys in prompts:
        yield [None if key not in last else marks.upto(total) - marks.upto(last[key]) for key in keys]
        for key in reversed(keys):
            if key in last:
                marks.add(last[key], -1)
            marks.add(now, 1)
            last[key] = now
            now += 1


def found_by_distance(prompts, capacity):
    """Units found by LRU of a capacity: those before the first of a prompt that is too far down the stack."""
    found = 0
    for row in stack_distances(prompts):
        near = [distance is not None and distance <= capacity for distance in row]
        found += near.index(False) if False in near else len(near)
    return found


trees = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 5), st.integers(0, 5), st.integers(0, 2)).map(
        lambda t: tuple(
            [t[0] * 100 + i for i in range(t[1])] + [10_000 + t[0] * 1000 + t[3] * 100 + i for i in range(t[2])]
        )
    ),
    max_size=30,
)


@settings(max_examples=300)
@given(prompts=trees, capacity=st.integers(0, 20))
def test_lru_is_a_question_of_stack_distances(prompts, capacity):
    assert replay(prompts, capacity) == found_by_distance(prompts, capacity)


@settings(max_examples=200)
@given(prompts=trees)
def test_endless_capacity_finds_every_prefix_seen_before(prompts):
    seen, found = set(), 0
    for keys in prompts:
        units = 0
        while units < len(keys) and keys[units] in seen:
            units += 1
        found += units
        seen.update(keys)
    for eviction in EVICTIONS:
        assert replay(prompts, 10**9, eviction) == found


@settings(max_examples=200)
@given(prompts=trees, capacity=st.integers(0, 20))
def test_a_larger_lru_cache_never_finds_less(prompts, capacity):
    assert replay(prompts, capacity) <= replay(prompts, capacity + 1)


def test_lfu_keeps_what_is_used_often_and_fifo_what_came_last():
    prompts = [(1,), (1,), (2,), (3,), (1,)]
    assert replay(prompts, 2, "lfu") == 2  # 2 goes when 3 comes, for 1 was used twice
    assert replay(prompts, 2, "fifo") == 1  # 1 goes, for it came first
    assert replay(prompts, 2, "lru") == 1


def test_units_expire():
    cache = PrefixCache(16, 16, "ttl", Lifetime(lifetime="1 s"))
    cache.expire(0)
    cache.insert((1, 2), 0, 2)
    cache.expire(10**9)
    cache.release((1, 2), 2)
    cache.expire(2 * 10**9)
    assert cache.match((1, 2), 2) == 2
    cache.expire(2 * 10**9 + 1)
    assert cache.match((1, 2), 2) == 0
    cache.check()


def test_pinned_units_stay():
    cache = PrefixCache(16, 16, pin_units=1, pin_most=1)
    for keys in ((1, 2), (3, 4)):
        cache.insert(keys, 0, 2)
        cache.release(keys, 2)
    assert (cache.referenced, cache.idle) == (1, 3)  # the first unit of the first prompt; no more than one
    cache.evict(3)
    assert cache.match((1, 2), 2) == 1
    cache.check()


def test_turns_of_a_session_share_their_beginning_and_no_others():
    first, later = session_keys(7, 100, 16), session_keys(7, 300, 16)
    assert len(first) == 6
    assert list(later)[:6] == list(first)
    assert not set(session_keys(8, 300, 16)) & set(later)


@pytest.mark.skipif(not MOONCAKE.exists(), reason="the Mooncake trace is not beside the project")
@pytest.mark.parametrize("capacity", [3000, pytest.param(10**9, marks=pytest.mark.nightly)])
def test_mooncake_hits_equal_the_exact_count_of_stack_distances(capacity):
    with gzip.open(MOONCAKE, "rt") as file:
        prompts = [tuple(json.loads(line)["hash_ids"]) for line in file]
    found = replay(prompts, capacity)
    assert found == found_by_distance(prompts, capacity) > 0


PINNED = """
schema: 1
seed: 0
topology: {preset: clos-h100, nodes: 2}
workload:
  requests: 6
  arrivals: {gamma: {rate: 1 / s, cv: 3.0}}
  prompt_tokens: {lognormal: {median: 43, sigma: 1.0, max: 150}}
  output_tokens: 1
  sessions: {turns: 5, think_time: {exponential: {mean: 1 us}}, max_tokens: 600}
serving:
  model: llama-3.1-8b
  colocated:
    instances: 1
    batcher: {chunked_prefill: {max_running: 1, max_batch_tokens: 12}}
    kv: {block_tokens: 1, blocks: 320, watermark: %s, prefix_cache: {unit_tokens: 16, pin: {units: 1, share: 0.05}}}
"""


@pytest.mark.parametrize(("watermark", "room"), [(0.0, 304), (0.02, 298)])
def test_a_request_that_does_not_fit_beside_pinned_units_is_rejected(tmp_path, watermark, room):
    # one unit of 16 blocks may be pinned for good; a random scenario found that who needs more waited for ever
    (tmp_path / "s.yaml").write_text(PINNED % watermark)
    rows = simulate(load(tmp_path / "s.yaml"), out=tmp_path / "run", check=True).requests
    too_large = rows.prompt_tokens > room
    assert too_large.any()
    assert (rows.outcome[too_large] == "rejected").all()
    assert (rows.reason[too_large] == "prompt larger than the prefill KV cache").all()
    assert (rows.outcome[~too_large] == "finished").all()
