"""An engine that swaps equals one that takes every token by itself, to the nanosecond; and laws of the copies.

The twin walks every iteration like that of decode jumps and keeps lists: who is out in host memory, who is coming back
and when. Model: one link copies in order; the engine waits for a copy out, and for a copy in unless it overlaps.
"""

from math import ceil, inf

import pytest
import sample_groups
from hypothesis import given, settings
from hypothesis import strategies as st
from sample_groups import sequences
from test_decode_jumps import TICK, Costs, Seen, all_costs, cases, workloads

from simulator.clock import Clock
from simulator.serving.batching import BATCHERS, ChunkedPrefill, Continuous
from simulator.serving.engine import Engine
from simulator.serving.jump import StepTicks
from simulator.serving.lone_rank import kind_of
from simulator.serving.prefix_cache import PrefixCache
from simulator.serving.request import PLAIN, Request, Traits
from simulator.serving.swap import Swap, copy_ns, spaces

BLOCK_BYTES = 1000


def run(workload, costs, limits, blocks, block_tokens, watermark, terms, batcher="continuous", cancels=(), unit=None):
    """Run an engine; `unit` gives it a prefix cache and prompts that all begin alike."""
    env, seen, done = Clock(), Seen(), {}
    engine = Engine(
        "colocated",
        costs,
        StepTicks(costs),
        BATCHERS[batcher].policy,
        limits,
        blocks,
        block_tokens,
        watermark,
        prefixes=(lambda: PrefixCache(unit, block_tokens)) if unit else None,
        swap=(lambda: spaces(terms, BLOCK_BYTES)) if terms else None,
    )
    instance = kind_of(engine)(env, "colocated-0", engine, (0,), seen, lambda r, _: done.update({r.request_id: r}))

    def source():
        for index, (gap, prompt, output, *group) in enumerate(workload):
            yield env.timeout(gap)
            traits = Traits(samples=group[0], sample_tokens=group[1]) if group else PLAIN
            keys = tuple(range((prompt + output) // unit)) if unit else ()
            request = Request(index, env.now, prompt, output, keys=keys, traits=traits)
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
    for rank in instance.ranks:
        assert rank.swap is None or rank.swap.blocks == 0
    return done, seen


class Host:
    """The twin's host memory and link."""

    def __init__(self, terms, size):
        self.terms, self.size = terms, size
        self.out, self.coming = [], []
        self.until = self.ready = 0

    def blocks(self, r, extra=0):
        return sample_groups.blocks(r, r["held"] + extra, self.size, True)

    def copy(self, r, ticks, waits):
        copies = ceil(self.blocks(r) / self.terms.group_blocks)
        lasts_ns = copies * self.terms.launch + self.blocks(r) * BLOCK_BYTES * 1e9 / self.terms.bandwidth
        self.until = max(self.until, ticks) + round(lasts_ns * TICK)
        if waits:
            self.ready = self.until
        return self.until

    def has_room(self, r):
        taken = sum(self.blocks(x) for x in [*self.out, *(x for _, x in self.coming)])
        return (taken + self.blocks(r)) * BLOCK_BYTES <= self.terms.host // BLOCK_BYTES * BLOCK_BYTES

    def land(self, running, ticks):
        while self.coming and (self.coming[0][0] <= ticks or not self.terms.overlap):
            running.append(self.coming.pop(0)[1])


def token_by_token(workload, costs, limits, blocks, size, watermark, terms):  # noqa: C901 - plain
    arrivals, at = [], 0
    for index, (gap, prompt, output, *group) in enumerate(workload):
        at += gap
        start = {"id": index, "at": at, "prompt": prompt, "answers": sample_groups.answers(output, *group)}
        arrivals.append(start | {"samples": len(start["answers"]), "made": 0, "held": 0, "preemptions": 0})
    host, waiting, running, done, ticks = Host(terms, size), [], [], {}, 0

    def seats(*more):
        return sum(sequences(r) for r in [*running, *(r for _, r in host.coming), *more])

    def room():
        used = sum(host.blocks(r) for r in running) + sum(host.blocks(r, 1) for _, r in host.coming)
        return blocks - used - watermark if used else blocks

    def bring_back():
        host.land(running, ticks)
        while host.out and seats(host.out[0]) <= limits.max_running:
            growth = sum(host.blocks(r, 1) - host.blocks(r) for r in running)
            if host.blocks(host.out[0], 1) + growth > room():
                break
            r = host.out.pop(0)
            host.coming.append((host.copy(r, ticks, not terms.overlap), r))
            host.land(running, ticks)

    while arrivals or waiting or running or host.out or host.coming:
        while arrivals and arrivals[0]["at"] <= ticks // TICK:
            waiting.append(arrivals.pop(0))
        bring_back()
        batch, tokens, free = [], 0, room()
        for r in waiting if not host.out else ():
            need = sample_groups.total(r)
            free -= sample_groups.blocks(r, need, size)
            too_long = batch and tokens + need > limits.max_batch_tokens
            if seats(*batch, r) > limits.max_running or free < 0 or too_long:
                break
            batch.append(r)
            tokens += need
        if batch:
            del waiting[: len(batch)]
            for r in batch:
                r.setdefault("start", ticks // TICK)
                r["held"] = r["prompt"] + r["made"]
            parts = sample_groups.whole_or_sliced(costs, batch, limits.max_batch_tokens, TICK)
            ticks = max(ticks, host.ready)
            for part in parts[:-1]:
                ticks += part
                host.land(running, ticks)
            ticks += parts[-1]
            running += batch
        elif running:
            while (
                running
                and sum(host.blocks(r, 1) for r in running) + sum(host.blocks(r, 1) for _, r in host.coming) > blocks
            ):
                victim = running.pop()
                victim["preemptions"] += 1
                if host.has_room(victim):
                    host.out.insert(0, victim)
                    host.copy(victim, ticks, True)
                else:
                    victim["held"] = 0
                    waiting.insert(0, victim)
            if not running:
                continue
            ticks = max(ticks, host.ready)
            context = sum(sequences(r) * (r["held"] + 1) for r in running)
            fixed, slope, _ = costs.decode(sum(map(sequences, running)), context)
            ticks += round(fixed * TICK) + round(slope * TICK) * context
            for r in running:
                r["held"] += 1
            batch = running
        else:
            wakes = [arrivals[0]["at"]] if arrivals else []
            wakes += [-(-host.coming[0][0] // TICK)] if host.coming else []
            ticks = max(ticks, min(wakes) * TICK)
            continue
        for r in batch:
            r["made"] += 1
            r.setdefault("first", ticks // TICK)
            sample_groups.leave(r)
            if r["made"] == max(r["answers"]):
                r["finish"] = ticks // TICK
                done[r["id"]] = r
        running = [r for r in running if "finish" not in r]
    return done


groups = st.one_of(st.just([()] * 25), sample_groups.several(25, 40))
swaps = st.builds(
    Swap.model_construct,
    bandwidth=st.integers(10**7, 10**11),
    launch=st.integers(0, 20_000),
    group_blocks=st.integers(1, 5),
    host=st.integers(0, 40 * BLOCK_BYTES),
    overlap=st.booleans(),
)


def longest_of(workload, size):
    """KV blocks that a request takes at most."""
    groups = [{"prompt": w[1], "answers": sample_groups.answers(w[2], *w[3:])} for w in workload]
    return max(sample_groups.most(group, size, 1) for group in groups)


def check_equal(workload, costs, max_running, max_tokens, spare_tokens, size, watermark, terms, groups):
    workload = sample_groups.within(workload, groups, max_running)
    longest = longest_of(workload, size)
    given_ = Continuous(max_running=max_running, max_batch_tokens=max_tokens), longest + spare_tokens // size, size
    done, seen = run(workload, costs, *given_, watermark, terms)
    twin = token_by_token(workload, costs, *given_, watermark, terms)
    assert len(done) == len(workload)
    for index, r in twin.items():
        found = done[index]
        assert (found.prefill_start_ns, found.first_token_ns, found.finish_ns, found.preemptions) == (
            r["start"],
            r["first"],
            r["finish"],
            r["preemptions"],
        )
    answers = [sample_groups.answers(*w[2:]) for w in workload]
    assert seen.tokens == sum(map(sum, answers)) == sum(r.made_tokens for r in done.values())
    assert seen.gaps_total == seen.tokens - sum(map(len, answers))
    assert seen.kv_max <= given_[1]


@settings(max_examples=300, deadline=None)
@given(st.tuples(*cases, swaps, groups))
def test_equal_to_token_by_token(case):
    check_equal(*case)


@pytest.mark.nightly
@settings(max_examples=10_000, deadline=None)
@given(st.tuples(*cases, swaps, groups))
def test_equal_to_token_by_token_at_length(case):
    check_equal(*case)


@settings(max_examples=200, deadline=None)
@given(
    workloads,
    all_costs,
    st.integers(1, 8),
    st.integers(8, 64),
    st.integers(0, 30),
    st.sampled_from([1, 4]),
    st.integers(0, 3),
    swaps,
    st.sampled_from(["continuous", "chunked_prefill"]),
    st.lists(st.one_of(st.none(), st.integers(1, 3_000_000)), max_size=25),
    st.sampled_from([None, 4, 8]),
    groups,
)
def test_nothing_is_lost(
    workload, costs, max_running, tokens, spare, size, watermark, terms, batcher, cancels, unit, groups
):
    """Every request ends once, blocks and host memory add up after every event, with any batcher and a prefix cache."""
    workload = sample_groups.within(workload, groups, max_running)
    unit = size if unit and any(w[3:] for w in workload) else unit  # others are refused
    longest = longest_of(workload, size)
    limits = {"continuous": Continuous, "chunked_prefill": ChunkedPrefill}[batcher](
        max_running=max_running, max_batch_tokens=tokens
    )
    costs = Mixing(**vars(costs))
    blocks = longest + spare // size
    done, seen = run(workload, costs, limits, blocks, size, watermark, terms, batcher, cancels, unit)
    assert sorted(done) == list(range(len(workload)))
    assert seen.tokens == sum(r.made_tokens for r in done.values())
    for index, (_, _, output, *group) in enumerate(workload):
        if index >= len(cancels) or cancels[index] is None:
            assert done[index].made_tokens == sum(sample_groups.answers(output, *group))


class Mixing(Costs):
    def mixed_ns(self, tokens, attended, sequences, batch, context):
        fixed, slope, _ = self.decode(batch, context)
        return self.prefill_ns(tokens, attended, sequences) + fixed + slope * context


def ends(done):
    return {i: (r.prefill_start_ns, r.first_token_ns, r.finish_ns, r.preemptions) for i, r in done.items()}


@settings(max_examples=100, deadline=None)
@given(*cases, swaps)
def test_without_host_memory_it_recomputes(workload, costs, running, tokens, spare, size, watermark, terms):
    longest = max(ceil((prompt + output) / size) for _, prompt, output in workload)
    sizes = Continuous(max_running=running, max_batch_tokens=tokens), longest + spare // size, size, watermark
    none = terms.model_copy(update={"host": BLOCK_BYTES - 1})
    assert ends(run(workload, costs, *sizes, none)[0]) == ends(run(workload, costs, *sizes, None)[0])


@settings(max_examples=100, deadline=None)
@given(*cases, swaps)
def test_with_room_for_all_nobody_is_preempted(workload, costs, running, tokens, spare, size, watermark, terms):
    blocks = watermark + spare + sum(ceil((prompt + output) / size) for _, prompt, output in workload)
    sizes = Continuous(max_running=running, max_batch_tokens=tokens), blocks, size, watermark
    swapping, seen = run(workload, costs, *sizes, terms)
    assert seen.preemptions == 0
    assert ends(swapping) == ends(run(workload, costs, *sizes, None)[0])


@given(st.integers(0, 10**5), st.integers(1, 10**7), swaps)
def test_time_of_a_copy(blocks, block_bytes, terms):
    wire_ns = blocks * block_bytes * 1e9 / terms.bandwidth
    assert copy_ns(0, block_bytes, terms) == 0
    one = terms.model_copy(update={"group_blocks": max(1, blocks)})
    assert copy_ns(blocks, block_bytes, one) == bool(blocks) * terms.launch + wire_ns
    each = terms.model_copy(update={"group_blocks": 1})
    assert copy_ns(blocks, block_bytes, each) == blocks * terms.launch + wire_ns
    assert (
        copy_ns(blocks, block_bytes, one) <= copy_ns(blocks, block_bytes, terms) <= copy_ns(blocks, block_bytes, each)
    )


@pytest.mark.parametrize(("overlap", "ends_ns"), [(False, [3600, 5200, 7200]), (True, [3600, 5600, 6600])])
def test_by_hand(overlap, ends_ns):
    # Blocks of one token, steps of 1000 ns, 200 ns to copy a block. The first two hold 3 blocks each at 2000; a step
    # more takes 8 of 7, so the second is copied out until 2600 and the first ends at 3600. Then the second comes back
    # until 4200, and the third, which had no seat, begins: at 3600 when the copy overlaps, else at 4200.
    terms = Swap.model_construct(bandwidth=10**10, launch=100, group_blocks=1, host=10**6, overlap=overlap)
    costs = Costs(1000.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    done, seen = run([(0, 1, 4)] * 3, costs, Continuous(max_running=2), 7, 1, 0, terms)
    assert [done[index].finish_ns for index in range(3)] == ends_ns
    assert seen.preemptions == 1
