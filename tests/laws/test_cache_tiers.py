"""Laws of tiers below a prefix cache: none without capacity, device memory if they load at once, nothing is lost."""

from math import ceil, inf

from hypothesis import given, settings
from hypothesis import strategies as st
from test_decode_jumps import Costs, Seen, all_costs
from test_prefix_cache_twin import BLOCK, keys_of

from simulator.clock import Clock
from simulator.serving.batching import BATCHERS, ChunkedPrefill, Continuous
from simulator.serving.engine import Engine
from simulator.serving.instance import Instance
from simulator.serving.jump import StepTicks
from simulator.serving.prefix_cache import PrefixCache
from simulator.serving.request import Request
from simulator.serving.swap import Swap, spaces
from simulator.serving.tiers import LowerTiers, Tier, TierSection

UNIT_BYTES = 1000
LIMITS = {"continuous": Continuous, "chunked_prefill": ChunkedPrefill}


class Mixing(Costs):
    def mixed_ns(self, tokens, attended, sequences, batch, context):
        fixed, slope, _ = self.decode(batch, context)
        return self.prefill_ns(tokens, attended, sequences) + fixed + slope * context


def tier(units, bandwidth=10**30, launch=0):
    section = TierSection.model_construct(capacity=units * UNIT_BYTES, bandwidth=bandwidth, launch=launch, shared=False)
    return Tier(section, UNIT_BYTES)


def run(workload, costs, batcher, limits, blocks, unit, tiers, cancels=(), terms=None):
    """Run requests of (gap, prompt, output, family, common units); return them by number, and the tiers."""
    env, seen, done = Clock(), Seen(), {}
    engine = Engine(
        "colocated",
        costs,
        StepTicks(costs),
        BATCHERS[batcher].policy,
        limits,
        blocks,
        BLOCK,
        0,
        prefixes=lambda: PrefixCache(unit, BLOCK),
        swap=(lambda: spaces(terms, UNIT_BYTES)) if terms else None,
        lower=(lambda: [LowerTiers(tiers)]) if tiers is not None else None,
    )
    instance = Instance(env, "colocated-0", engine, (0,), seen, lambda r, _: done.update({r.request_id: r}))

    def source():
        for index, (gap, prompt, output, family, common) in enumerate(workload):
            yield env.timeout(gap)
            request = Request(index, env.now, prompt, output, keys=keys_of(index, family, common, prompt, unit))
            instance.submit(request)
            if index < len(cancels) and cancels[index] is not None:
                env.process(cancel(request, cancels[index]))

    def cancel(request, after):
        yield env.timeout(after)
        here = request.request_id not in done
        assert instance.cancel(request) == here

    env.process(source())
    while env.peek() != inf:
        env.step()
        instance.check()
    assert instance.used_blocks() == instance.running == instance.queued == 0
    assert seen.tokens == sum(r.generated for r in done.values())
    return done


def seen_by(done):
    return {i: (r.prefill_start_ns, r.first_token_ns, r.finish_ns, r.cached_tokens) for i, r in done.items()}


def workloads(gaps):
    row = st.tuples(gaps, st.integers(1, 60), st.integers(1, 40), st.integers(0, 3), st.integers(0, 12))
    return st.lists(row, min_size=1, max_size=25)


costs_of = all_costs.map(lambda costs: Mixing(**vars(costs)))
limits_of = st.sampled_from(["continuous", "chunked_prefill"]).flatmap(
    lambda name: st.builds(
        lambda running, tokens: (name, LIMITS[name](max_running=running, max_batch_tokens=tokens)),
        st.integers(1, 8),
        st.integers(8, 200),
    )
)
links = st.tuples(st.integers(10**7, 10**12), st.integers(0, 20_000))


def least_blocks(workload):
    return max(ceil((prompt + output) / BLOCK) for _, prompt, output, _, _ in workload)


@settings(max_examples=100, deadline=None)
@given(workloads(st.integers(0, 400_000)), costs_of, limits_of, st.integers(0, 8), st.sampled_from([4, 8]))
def test_no_capacity_is_no_tier(workload, costs, limits, spare, unit):
    blocks = least_blocks(workload) + spare
    empty = run(workload, costs, *limits, blocks, unit, [tier(0), tier(0)])
    assert seen_by(empty) == seen_by(run(workload, costs, *limits, blocks, unit, None))


@settings(max_examples=100, deadline=None)
@given(workloads(st.just(10**9)), costs_of, limits_of, st.integers(0, 8), st.sampled_from([4, 8]))
def test_an_instant_tier_without_end_is_device_memory_without_end(workload, costs, limits, spare, unit):
    """Requests come one at a time, so that room for them is the only difference."""
    blocks = least_blocks(workload)
    small = run(workload, costs, *limits, blocks + spare, unit, [tier(10**6)])
    large = run(workload, costs, *limits, blocks * (len(workload) + 1), unit, None)
    assert seen_by(small) == seen_by(large)


@settings(max_examples=200, deadline=None)
@given(
    workloads(st.integers(0, 400_000)),
    costs_of,
    limits_of,
    st.integers(0, 8),
    st.sampled_from([4, 8]),
    st.lists(st.tuples(st.integers(0, 30), links), min_size=1, max_size=3),
    st.lists(st.one_of(st.none(), st.integers(1, 3_000_000)), max_size=25),
    st.booleans(),
)
def test_nothing_is_lost(workload, costs, limits, spare, unit, sizes, cancels, swaps):
    """All end once and with all tokens, blocks add up after every event, whatever else is going on."""
    terms = Swap.model_construct(bandwidth=10**9, launch=100, group_blocks=2, host=20_000, overlap=True)
    tiers = [tier(units, *link) for units, link in sizes]
    blocks = least_blocks(workload) + spare
    done = run(workload, costs, *limits, blocks, unit, tiers, cancels, terms if swaps else None)
    assert sorted(done) == list(range(len(workload)))
    for index, (_, prompt, output, _, _) in enumerate(workload):
        assert 0 <= done[index].cached_tokens < prompt
        if index >= len(cancels) or cancels[index] is None:
            assert done[index].generated == output


def test_a_load_by_hand():
    # Two prompts of 3 units of 4 tokens, a device of 4 blocks: the second pushes out all units of the first but one.
    # The first comes again: 1 unit of device memory, and of its other whole unit (its last token is computed) 1 loads:
    # 500 ns to start and 1000 bytes at 10^9 / s. Prefill takes 100 ns a token, so 4 tokens are computed after it.
    costs = Mixing(0.0, 0.0, 0.0, 0.0, 100.0, 0.0)
    lower = [tier(100, 10**9, 500)]
    done = run(
        [(0, 12, 1, 0, 3), (10**6, 12, 1, 1, 3), (10**6, 12, 1, 0, 3)], costs, "continuous", Continuous(), 4, 4, lower
    )
    again = done[2]
    assert again.cached_tokens == 8
    assert again.first_token_ns - again.prefill_start_ns == (2 - 1) * 1500 + 4 * 100


@given(
    st.lists(st.tuples(st.booleans(), st.lists(st.integers(0, 30), max_size=6, unique=True)), max_size=40),
    st.integers(0, 10),
    st.integers(0, 10),
)
def test_a_larger_tier_holds_what_a_smaller_one_does(steps, units, more):
    """Least recently used, so inclusion; what goes in is there or is handed on, and never more than fits is there."""
    small, large = tier(units), tier(units + more)
    for loads, keys in steps:
        if loads:
            there = [key for key in keys if key in small]
            small.load(there, 0)
            large.load(there, 0)
        else:
            before = {key for key in range(31) if key in small}
            gone = small.put(keys)
            large.put(keys)
            assert before | set(keys) == {key for key in range(31) if key in small} | set(gone)
            assert len(small) <= units
        assert all(key in large for key in range(31) if key in small)
