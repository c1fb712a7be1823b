"""Laws of tiers below a prefix cache: none without capacity, device memory if they load at once, nothing is lost."""

from itertools import count
from math import ceil, inf

from hypothesis import given, settings
from hypothesis import strategies as st
from test_decode_jumps import Costs, Seen, all_costs
from test_prefix_cache_twin import BLOCK, keys_of

from simulator.clock import Clock
from simulator.serving.batching import BATCHERS, ChunkedPrefill, Continuous
from simulator.serving.engine import Engine
from simulator.serving.jump import StepTicks
from simulator.serving.lone_rank import kind_of
from simulator.serving.lower_tiers import LowerTiers
from simulator.serving.prefix_cache import PrefixCache
from simulator.serving.request import Request
from simulator.serving.swap import Swap, spaces
from simulator.serving.tiers import Copy, Tier, TierSection

UNIT_BYTES = 1000
LIMITS = {"continuous": Continuous, "chunked_prefill": ChunkedPrefill}


class Mixing(Costs):
    def mixed_ns(self, tokens, attended, sequences, batch, context):
        fixed, slope, _ = self.decode(batch, context)
        return self.prefill_ns(tokens, attended, sequences) + fixed + slope * context


def tier(units, bandwidth=10**30, launch=0, **more):
    section = TierSection.model_construct(capacity=units * UNIT_BYTES, bandwidth=bandwidth, launch=launch, **more)
    return Tier(section, UNIT_BYTES)


def run(workload, costs, batcher, limits, blocks, unit, tiers, cancels=(), terms=None, count=1, **rules):
    """Run requests of (gap, prompt, output, family, common units) on engines in turn; return them by number.

    The engines share the tiers.
    """
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
        lower=(lambda _: [LowerTiers(tiers, **rules)]) if tiers is not None else None,
    )
    instances = [
        kind_of(engine)(env, f"colocated-{index}", engine, (index,), seen, lambda r, _: done.update({r.request_id: r}))
        for index in range(count)
    ]

    def source():
        for index, (gap, prompt, output, family, common) in enumerate(workload):
            yield env.timeout(gap)
            request = Request(index, env.now, prompt, output, keys=keys_of(index, family, common, prompt, unit))
            instances[index % count].submit(request)
            if index < len(cancels) and cancels[index] is not None:
                env.process(cancel(request, cancels[index]))

    def cancel(request, after):
        yield env.timeout(after)
        here = request.request_id not in done
        assert instances[request.request_id % count].cancel(request) == here

    env.process(source())
    while env.peek() != inf:
        env.step()
        for instance in instances:
            instance.check()
    for instance in instances:
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
writes = st.sampled_from(["back", "through"])
rules_of = st.fixed_dictionaries({"faster": st.booleans(), "prefetches": st.booleans()})
links = st.tuples(st.integers(10**7, 10**12), st.integers(0, 20_000))


def least_blocks(workload):
    return max(ceil((prompt + output) / BLOCK) for _, prompt, output, _, _ in workload)


@settings(max_examples=100, deadline=None)
@given(
    workloads(st.integers(0, 400_000)),
    costs_of,
    limits_of,
    st.integers(0, 8),
    st.sampled_from([4, 8]),
    writes,
    rules_of,
)
def test_no_capacity_is_no_tier(workload, costs, limits, spare, unit, write, rules):
    blocks = least_blocks(workload) + spare
    empty = run(workload, costs, *limits, blocks, unit, [tier(0, write=write), tier(0)], **rules)
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
    st.lists(st.tuples(st.integers(0, 30), links, writes), min_size=1, max_size=3),
    st.lists(st.one_of(st.none(), st.integers(1, 3_000_000)), max_size=25),
    st.booleans(),
    st.integers(1, 3),
    rules_of,
)
def test_nothing_is_lost(workload, costs, limits, spare, unit, sizes, cancels, swaps, count, rules):
    """All end once and with all tokens, blocks add up after every event, whatever else is going on."""
    terms = Swap.model_construct(bandwidth=10**9, launch=100, group_blocks=2, host=20_000, overlap=True)
    tiers = [tier(units, *link, write=write) for units, link, write in sizes]
    blocks = least_blocks(workload) + spare
    done = run(workload, costs, *limits, blocks, unit, tiers, cancels, terms if swaps else None, count, **rules)
    assert sorted(done) == list(range(len(workload)))
    for index, (_, prompt, output, _, _) in enumerate(workload):
        assert 0 <= done[index].cached_tokens < prompt
        if index >= len(cancels) or cancels[index] is None:
            assert done[index].generated == output


@settings(max_examples=100, deadline=None)
@given(workloads(st.just(10**9)), costs_of, limits_of, st.integers(0, 8), st.sampled_from([4, 8]), st.integers(1, 4))
def test_engines_that_write_through_to_one_tier_without_end_are_one(workload, costs, limits, spare, unit, count):
    """An instant tier that all share: each finds what any has computed, as one engine of memory without end does."""
    blocks = least_blocks(workload)
    shared = tier(10**6, write="through")
    many = run(workload, costs, *limits, blocks + spare, unit, [shared], count=count)
    one = run(workload, costs, *limits, blocks * (len(workload) + 1), unit, None)
    assert seen_by(many) == seen_by(one)


@settings(max_examples=200, deadline=None)
@given(
    workloads(st.just(10**9)),
    costs_of,
    limits_of,
    st.integers(0, 8),
    st.lists(st.tuples(st.integers(0, 30), links, writes), min_size=1, max_size=3),
)
def test_a_lone_request_never_waits_for_a_load_that_takes_longer_than_to_compute(workload, costs, limits, spare, sizes):
    def tiers():
        return [tier(units, *link, write=write) for units, link, write in sizes]

    given = workload, costs, *limits, least_blocks(workload) + spare, 4
    without, faster = run(*given, None), run(*given, tiers(), faster=True)
    for index, request in faster.items():
        assert request.first_token_ns <= without[index].first_token_ns + 1  # a whole ns that an idle engine wakes at
    assert seen_by(run(*given, tiers(), prefetches=True)) == seen_by(run(*given, tiers()))  # and no lone one waits


def test_what_one_engine_has_computed_another_loads_at_once():
    # 100 ns a token; 2 units of 4 tokens are written in 1500 ns each as soon as they are there, at 1000 ns. The second
    # engine has the prompt as its copy is half done: it finds one unit. Written back, it would find none.
    costs = Mixing(0.0, 0.0, 0.0, 0.0, 100.0, 0.0)
    for write, found in (("through", 4), ("back", 0)):
        lower = [tier(100, 10**9, 500, write=write)]
        workload = [(0, 10, 1, 0, 2), (2600, 10, 1, 0, 2)]
        done = run(workload, costs, "continuous", Continuous(), 4, 4, lower, count=2)
        assert done[1].cached_tokens == found
        assert done[1].first_token_ns == 2600 + (1500 if found else 0) + (10 - found) * 100


def test_who_waits_finds_its_units_in_the_first_tier():
    # Engine 0 computes a prompt of 2 units (and a token), engine 1 is at work when it comes there: 20 us of prefill.
    # Meanwhile both units come from the slow tier (5 us each) to the fast one, and load from there in 1 us each.
    costs = Mixing(0.0, 0.0, 0.0, 0.0, 1000.0, 0.0)
    workload = [(0, 9, 1, 0, 2), (10**6, 20, 1, 1, 5), (1, 1, 1, 2, 0), (1, 9, 1, 0, 2)]
    first = {}
    for prefetches in (False, True):
        tiers = [tier(100, 10**9), tier(100, 2 * 10**8, write="through")]
        done = run(
            workload, costs, "continuous", Continuous(max_running=1), 8, 4, tiers, count=2, prefetches=prefetches
        )
        assert done[3].cached_tokens == 8
        first[prefetches] = done[3].first_token_ns - done[1].finish_ns
        assert tiers[0].vain == 0
    assert first == {False: 2 * 5000 + 1000, True: 2 * 1000 + 1000}


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 20), st.sampled_from(["put", "store", "load"]), st.integers(0, 6)), max_size=20),
    st.integers(1, 6),
    st.integers(1, 6),
)
def test_links_carry_unit_after_unit_tick_by_tick(steps, load, write):
    """Both links as queues of units, of which a tick takes one off the first in line: when each unit is there."""
    ours = tier(10**6, 10**30, 0)
    ours._load_ticks, ours._write_ticks = load, write
    links, done, fresh = {"load": [], "write": []}, {}, count()
    expected, now = {}, 0
    for gap, what, number in steps:
        for _ in range(gap):
            tick(links, now, done)
            now += 1
        if what == "load":
            keys = [key for key in range(31) if ours.offers(key, now)][:number]
            assert keys == sorted(key for (kind, key, _), at in done.items() if kind == "write")[:number]
            mine = [("load", key, next(fresh)) for key in keys]
            expected |= dict(zip(mine, ours.load(keys, now), strict=True))
            links["load"] += [[name, load] for name in mine]
            continue
        keys = [key for key in range(31) if key not in ours][:number]
        ours.put([Copy(key, now) for key in keys]) if what == "put" else ours.store(keys, now)
        mine = [("write", key, next(fresh)) for key in keys]
        expected |= {name: ours._since[name[1]] for name in mine}
        links["write"] += [[name, write] for name in mine]
    while any(links.values()):
        tick(links, now, done)
        now += 1
    assert done == expected


def tick(links, now, done):
    for queue in links.values():
        if queue:
            queue[0][1] -= 1
            if not queue[0][1]:
                done[queue.pop(0)[0]] = now + 1


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
            gone = [copy.key for copy in small.put([Copy(key, 0) for key in keys])]
            large.put([Copy(key, 0) for key in keys])
            assert before | set(keys) == {key for key in range(31) if key in small} | set(gone)
            assert len(small) <= units
        assert all(key in large for key in range(31) if key in small)
