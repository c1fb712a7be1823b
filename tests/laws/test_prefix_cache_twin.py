"""An engine with a prefix cache equals one that walks every token and every unit of a list, to the nanosecond.

The twin knows no counters: a unit is a row [key, who holds it, when it was let go]; blocks in use are counted anew each
time. A request computes what is not cached, at least its last token; what it computes becomes units it holds; units
that nobody holds give way, the longest unused first, and of one request the last first.
"""

from itertools import accumulate
from math import ceil, inf

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from test_chunked_twin import Costs, step_ticks
from test_decode_jumps import TICK, Seen, all_costs

from simulator.clock import Clock
from simulator.serving.batching import BATCHERS
from simulator.serving.instance import Engine
from simulator.serving.jump import StepTicks
from simulator.serving.lone_rank import kind_of
from simulator.serving.paging import Windows
from simulator.serving.prefix_cache import PrefixCache
from simulator.serving.request import Request
from simulator.serving.windowed_prefixes import WindowedPrefixes

BLOCK = 4


def keys_of(index, family, common, prompt, unit):
    """Keys of a prompt that begins as all of its family do, for `common` units, and goes on as no other does."""
    return tuple(family * 1000 + i if i < common else 10**6 + index * 1000 + i for i in range(prompt // unit))


def jumping(workload, costs, policy, limits, blocks, unit, cached=True, eviction="lru", windows=None):
    env, seen, done = Clock(), Seen(), {}
    engine = Engine(
        "colocated",
        costs,
        StepTicks(costs),
        BATCHERS[policy].policy,
        limits,
        blocks,
        BLOCK,
        0,
        prefixes=(lambda: made(unit, eviction, windows)) if cached else None,
        windows=windows,
    )
    instance = kind_of(engine)(env, "colocated-0", engine, (0,), seen, lambda r, _: done.update({r.request_id: r}))

    def source():
        for index, (gap, prompt, output, family, common) in enumerate(workload):
            yield env.timeout(gap)
            keys = keys_of(index, family, common, prompt, unit)
            instance.submit(Request(index, env.now, prompt, output, keys=keys))

    env.process(source())
    while env.peek() != inf:
        env.step()
        instance.check()
    assert instance.used_blocks() == 0
    return done, seen


def made(unit, eviction, windows):
    return WindowedPrefixes(unit, BLOCK, windows, eviction) if windows else PrefixCache(unit, BLOCK, eviction)


class Twin:
    """`tails` are rows [key, when it was last used] of what layers with a window have, which nobody holds."""

    def __init__(self, workload, costs, policy, limits, blocks, unit, windows=None):
        self.tails, self.windows = [], windows
        self.full, self.windowed = (windows.full, windows.windowed) if windows else (1, 0)
        span = windows.tokens if windows else 1
        self.kept = max(len({p // BLOCK for p in range(at, at + span)}) for at in range(BLOCK))
        self.before = ceil((span - 1) / unit)  # units before a position that it sees
        self.costs, self.policy, self.limits, self.blocks, self.unit = costs, policy, limits, blocks, unit
        times = accumulate(w[0] for w in workload)
        self.arrivals = [
            {"id": i, "at": at, "prompt": prompt, "output": output, "made": 0, "held": 0, "units": 0, "preemptions": 0}
            | {"keys": keys_of(i, family, common, prompt, unit), "before": 0, "decodes": False}
            for i, (at, (_, prompt, output, family, common)) in enumerate(zip(times, workload, strict=True))
        ]
        self.waiting, self.line, self.cache, self.clock = [], [], [], 0

    def row(self, key):
        return next((row for row in self.cache if row[0] == key), None)

    def own(self, r, tokens=None):
        """Blocks of its own; a whole prompt taken at once counts from the beginning (`whole`)."""
        if r.get("whole"):
            return self.all_of(r["whole"]) - self.full * r["units"] * self.unit // BLOCK
        tokens = r["held"] if tokens is None else tokens
        blocks = self.full * ceil(tokens / BLOCK) - self.full * r["units"] * self.unit // BLOCK
        if r["decodes"]:
            return blocks + self.windowed * min(ceil(tokens / BLOCK), self.kept)
        return blocks + self.windowed * self.window(r["before"], tokens)

    def window(self, before, tokens):
        """Blocks of a group with a window while a part of a prompt is computed: what was kept, and the new ones."""
        return min(ceil(before / BLOCK), self.kept) + ceil(tokens / BLOCK) - ceil(before / BLOCK)

    def all_of(self, tokens):
        """Blocks to compute a prompt in parts."""
        blocks, part = ceil(tokens / BLOCK), ceil(self.windows.chunk / BLOCK) if self.windows else 0
        return self.full * blocks + self.windowed * min(blocks, self.kept + part)

    def used(self):
        shared = self.full * sum(bool(row[1]) for row in self.cache) * self.unit // BLOCK
        return sum(self.own(r) for r in self.line) + shared

    def evict(self):
        while self.used() + self.idle() > self.blocks:
            rows = [(row[2], 0, row) for row in self.cache if not row[1]] + [(row[1], 1, row) for row in self.tails]
            _, of_windows, row = min(rows)
            (self.tails if of_windows else self.cache).remove(row)

    def idle(self):
        units = self.full * sum(not row[1] for row in self.cache) + self.windowed * len(self.tails)
        return units * self.unit // BLOCK

    def keep(self, keys):
        """Layers with a window have these units, of which the last is the first to go."""
        for key in reversed(keys if self.windows else ()):
            self.clock += 1
            self.tails = [row for row in self.tails if row[0] != key] + [[key, self.clock]]

    def found(self, r):
        """Units of its prefix that are cached; the last token is always computed."""
        units = 0
        for key in r["keys"][: (r["prompt"] + r["made"] - 1) // self.unit]:
            if self.row(key) is None:
                break
            units += 1
        there = {row[0] for row in self.tails}
        while self.windows and not there.issuperset(r["keys"][max(0, units - self.before) : units]):
            units -= 1
        return units

    def takes(self, r):
        """Blocks that admitting all of it takes from those in use by nobody."""
        units = self.found(r)
        idle = sum(not self.row(key)[1] for key in r["keys"][:units])
        return self.all_of(r["prompt"] + r["made"]) - self.full * (units - idle) * self.unit // BLOCK

    def share(self, r):
        """Units that are computed in full become cached ones, which it holds; if another had them, those."""
        first = r["units"]
        while r["units"] < min(len(r["keys"]), r["held"] // self.unit):
            key = r["keys"][r["units"]]
            if self.row(key) is None:
                self.cache.append([key, [], None])
            self.row(key)[1].append(r["id"])
            r["units"] += 1
        self.keep(r["keys"][first : r["units"]])

    def let_go(self, r):
        self.share(r)
        for key in reversed(r["keys"][: r["units"]]):
            row = self.row(key)
            row[1].remove(r["id"])
            if not row[1]:
                self.clock += 1
                row[2] = self.clock
        r["units"], r["whole"] = 0, 0

    def preempt(self):
        """What gives way is known when all are gone who must: a unit that the next frees is as good."""
        victim = self.line.pop()
        self.let_go(victim)
        victim |= {"held": 0, "before": 0, "decodes": False, "preemptions": victim["preemptions"] + 1}
        self.waiting.insert(0, victim)
        return victim

    def admit(self, r, now):
        self.waiting.remove(r)
        self.line.append(r)
        r.setdefault("start", now)
        r["units"], r["decodes"] = self.found(r), False
        for key in r["keys"][: r["units"]]:
            self.row(key)[1].append(r["id"])
        r["held"] = r["before"] = r["units"] * self.unit
        self.keep(r["keys"][max(0, r["units"] - self.before) : r["units"]])
        r.setdefault("cached", r["held"])

    def rest(self, r):
        return r["prompt"] + r["made"] - r["held"]

    def plan_chunked(self, now):
        """Those who decode, those begun, new ones: (who, first position, last) of prompts, and who decodes."""
        budget, begun, decoding, admits = self.limits.max_batch_tokens, [], [], True
        for r in [*self.line]:
            if r not in self.line:
                continue
            tokens = min(self.rest(r), budget)
            if not tokens:
                break
            while r in self.line and self.used() + self.own(r, r["held"] + tokens) - self.own(r) > self.blocks:
                self.preempt()
                admits = False
            if r not in self.line:
                break
            decoding.append(r) if r["decodes"] else begun.append((r, r["held"], r["held"] + tokens))
            r["held"] += tokens
            budget -= tokens
        room = self.blocks - self.used()
        chosen = []
        for r in self.waiting if admits else ():
            blocks = self.takes(r)
            if not budget or len(self.line) + len(chosen) >= self.limits.max_running or blocks > room:
                break
            tokens = min(r["prompt"] + r["made"] - self.found(r) * self.unit, budget)
            done = self.found(r) * self.unit
            now_held = self.full * ceil((done + tokens) / BLOCK) + self.windowed * self.window(done, done + tokens)
            room -= blocks - self.all_of(r["prompt"] + r["made"]) + now_held
            budget -= tokens
            chosen.append((r, tokens))
        for r, _ in chosen:
            self.admit(r, now)
        for r, tokens in chosen:
            begun.append((r, r["held"], r["held"] + tokens))
            r["held"] += tokens
        return begun, decoding

    def plan_continuous(self, now):
        budget = self.limits.max_batch_tokens
        partial = [r for r in self.line if not r["decodes"]]
        if partial:  # slices of a long prompt, one an iteration
            (r,) = partial
            tokens = min(self.rest(r), budget)
            r["held"] += tokens
            return [(r, r["held"] - tokens, r["held"])], []
        room, chosen = self.blocks - self.used(), []
        for r in self.waiting:
            tokens = r["prompt"] + r["made"] - self.found(r) * self.unit
            room -= self.takes(r)
            if len(self.line) + len(chosen) >= self.limits.max_running or room < 0 or (chosen and tokens > budget):
                break
            chosen.append((r, min(tokens, self.limits.max_batch_tokens)))
            budget -= tokens
        if chosen:
            for r, _ in chosen:
                self.admit(r, now)
            begun = []
            for r, tokens in chosen:
                r["whole"] = r["prompt"] + r["made"]
                begun.append((r, r["held"], r["held"] + tokens))
                r["held"] += tokens
            return begun, []
        while (
            self.line and self.used() + sum(self.own(r, r["held"] + 1) - self.own(r) for r in self.line) > self.blocks
        ):
            self.preempt()
        for r in self.line:
            r["held"] += 1
        return [], [*self.line]

    def end(self, some, now, done):
        """Give those a token whose context is computed, and let those go who have all."""
        for r in some:
            if r["held"] == r["prompt"] + r["made"]:
                r["made"] += 1
                r["decodes"], r["whole"] = True, 0
                r.setdefault("first", now)
        for r in [r for r in some if r["made"] == r["output"]]:
            r["finish"] = now
            self.line.remove(r)
            self.let_go(r)
            self.evict()
            done[r["id"]] = r

    def run(self):
        ticks, done = 0, {}
        plan = self.plan_chunked if self.policy == "chunked_prefill" else self.plan_continuous
        while self.arrivals or self.waiting or self.line:
            if not self.waiting and not self.line:
                ticks = max(ticks, self.arrivals[0]["at"] * TICK)
            while self.arrivals and self.arrivals[0]["at"] <= ticks // TICK:
                self.waiting.append(self.arrivals.pop(0))
            begun, decoding = plan(ticks // TICK)
            if not begun and not decoding:
                continue
            self.evict()
            ticks += step_ticks(self.costs, begun, decoding)
            now = ticks // TICK
            self.end(sorted(decoding, key=lambda r: r["id"]), now, done)  # before those whose prefill ends
            for r, _, _ in begun:
                self.share(r)
            for r in self.line:
                r["before"] = r["held"]
                r["whole"] = 0 if r["held"] == r["prompt"] + r["made"] else r.get("whole", 0)
            if self.windows:
                self.evict()
            self.end([r for r, _, _ in begun], now, done)
            self.line.sort(key=lambda r: not r["decodes"])
        return done


workloads = st.lists(
    st.tuples(
        st.one_of(st.just(0), st.integers(0, 300_000)),
        st.integers(1, 40),
        st.integers(1, 30),
        st.integers(0, 2),
        st.integers(0, 8),
    ),
    min_size=1,
    max_size=16,
)
cases = (
    workloads,
    all_costs.map(lambda c: Costs(**vars(c))),
    st.sampled_from(["continuous", "chunked_prefill"]),
    st.integers(1, 6),
    st.integers(0, 60),
    st.integers(0, 12),
    st.sampled_from([4, 8]),
)


all_windows = st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 30))


def limits_of(policy, max_running, more):
    return BATCHERS[policy].parameters(max_running=max_running, max_batch_tokens=max_running + more)


@settings(max_examples=300, deadline=None)
@given(*cases)
def test_equal_to_token_by_token(workload, costs, policy, max_running, more, spare, unit):
    limits = limits_of(policy, max_running, more)
    blocks = max(ceil((prompt + output) / BLOCK) for _, prompt, output, *_ in workload) + spare
    done, seen = jumping(workload, costs, policy, limits, blocks, unit)
    twin = Twin(workload, costs, policy, limits, blocks, unit).run()
    assert {i: (r["start"], r["first"], r["finish"], r["cached"], r["preemptions"]) for i, r in twin.items()} == {
        i: (r.prefill_start_ns, r.first_token_ns, r.finish_ns, r.cached_tokens, r.preemptions) for i, r in done.items()
    }
    assert seen.kv_max <= blocks


@pytest.mark.nightly
@settings(max_examples=10_000, deadline=None)
@given(*cases)
def test_equal_to_token_by_token_at_length(workload, costs, policy, max_running, more, spare, unit):
    test_equal_to_token_by_token.hypothesis.inner_test(workload, costs, policy, max_running, more, spare, unit)


QUADRATIC = Costs(0, 0, 0, 0, 0, 1.0)
TWO_PREEMPTED_AT_ONCE = [(0, 4, 1, 0, 1), (1, 22, 4, 0, 0), (0, 2, 4, 0, 0), (0, 26, 19, 0, 1), (0, 7, 3, 0, 0)]


@settings(max_examples=300, deadline=None)
@given(all_windows, *cases)
@example((2, 2, 18), [*TWO_PREEMPTED_AT_ONCE, (607, 4, 2, 0, 0)], QUADRATIC, "chunked_prefill", 5, 41, 6, 4)
def test_layers_with_a_window_equal_token_by_token(of, workload, costs, policy, max_running, more, spare, unit):
    """A prefix is found as far as its last window is there; what windows have left gives way as what nobody holds."""
    limits = limits_of(policy, max_running, more)
    windows = Windows(*of, limits.max_batch_tokens)
    blocks = max(ceil((prompt + output) / BLOCK) for _, prompt, output, *_ in workload) * sum(of[:2]) + 4 * spare
    done, seen = jumping(workload, costs, policy, limits, blocks, unit, windows=windows)
    twin = Twin(workload, costs, policy, limits, blocks, unit, windows).run()
    assert {i: (r["start"], r["first"], r["finish"], r["cached"], r["preemptions"]) for i, r in twin.items()} == {
        i: (r.prefill_start_ns, r.first_token_ns, r.finish_ns, r.cached_tokens, r.preemptions) for i, r in done.items()
    }
    assert seen.kv_max <= blocks


@pytest.mark.nightly
@settings(max_examples=10_000, deadline=None)
@given(all_windows, *cases)
def test_layers_with_a_window_equal_token_by_token_at_length(
    of, workload, costs, policy, max_running, more, spare, unit
):
    case = workload, costs, policy, max_running, more, spare, unit
    test_layers_with_a_window_equal_token_by_token.hypothesis.inner_test(of, *case)


@settings(max_examples=100, deadline=None)
@given(all_windows, *cases[:-2], st.sampled_from([4, 8]))
def test_with_memory_for_all_windows_hide_nothing(of, workload, costs, policy, max_running, more, unit):
    limits = limits_of(policy, max_running, more)
    windows = Windows(*of, limits.max_batch_tokens)
    with_windows, plain = (jumping(workload, costs, policy, limits, 10**5, unit, windows=w)[0] for w in (windows, None))
    assert {i: (r.cached_tokens, r.finish_ns) for i, r in with_windows.items()} == {
        i: (r.cached_tokens, r.finish_ns) for i, r in plain.items()
    }


ROUND = Costs(1000, 8, 2, 3000, 16, 0.5)


@given(prompt=st.integers(9, 60), shared=st.integers(1, 7))
def test_hits_shorten_prefill_by_the_tokens_saved(prompt, shared):
    # The second of two equal prompts, long after the first: c cached tokens leave n = P - c, with n c + n (n + 1) / 2
    # pairs; the units are of 8 tokens, and at least the last token is computed.
    limits = limits_of("continuous", 4, 1000)
    done, _ = jumping([(0, prompt, 1, 0, shared), (10**9, prompt, 1, 0, shared)], ROUND, "continuous", limits, 100, 8)
    cached = min(shared, (prompt - 1) // 8, prompt // 8) * 8
    new = prompt - cached
    assert done[1].cached_tokens == cached
    lasts_ns = 3000 + 16 * new + 0.5 * (new * cached + new * (new + 1) // 2)
    assert done[1].first_token_ns - done[1].prefill_start_ns == int(lasts_ns)


@settings(max_examples=300, deadline=None)
@given(workload=workloads, costs=all_costs.map(lambda c: Costs(**vars(c))), unit=st.sampled_from([4, 8]))
def test_an_endless_cache_never_delays_a_first_token(workload, costs, unit):
    """First come, first served, one at a time and memory for all: every prefill is at most as long as it was.

    With batches it is no theorem: a shorter prefill may end before an arrival that would have shared its step.
    """
    limits = limits_of("continuous", 1, 1000)
    assume(costs.prefill_token >= 0)
    without, _ = jumping(workload, costs, "continuous", limits, 10_000, unit, cached=False)
    cached, _ = jumping(workload, costs, "continuous", limits, 10_000, unit)
    assert all(cached[i].first_token_ns <= without[i].first_token_ns for i in without)
    assert all(r.preemptions == 0 for r in cached.values())


@settings(max_examples=100, deadline=None)
@given(*cases[:-1], st.sampled_from(["lru", "lfu", "fifo", "ttl"]))
def test_nothing_in_common_is_nothing_gained(workload, costs, policy, max_running, more, spare, eviction):
    # prompts that share no unit: with the cache all is as without it, unless a preempted one finds its own again
    apart = [(gap, prompt, output, 0, 0) for gap, prompt, output, *_ in workload]
    blocks = max(ceil((prompt + output) / BLOCK) for _, prompt, output, *_ in workload) + spare
    limits = limits_of(policy, max_running, more)
    without, seen = jumping(apart, costs, policy, limits, blocks, 4, cached=False)
    assume(not seen.preemptions)
    cached, _ = jumping(apart, costs, policy, limits, blocks, 4, eviction=eviction)
    assert {i: r.finish_ns for i, r in cached.items()} == {i: r.finish_ns for i, r in without.items()}
