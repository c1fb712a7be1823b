"""The chunked-prefill engine equals one that walks every iteration over one line of requests, as vLLM's V1 loop does.

The twin keeps who runs in one list (decodes in the order in which they began, then prompts begun) and what each holds;
blocks are recounted from scratch at every allocation, and query-key pairs are counted position by position.
"""

from dataclasses import dataclass
from itertools import accumulate
from math import ceil, inf

import pytest
import sample_groups
from hypothesis import given, settings
from hypothesis import strategies as st
from test_decode_jumps import TICK, Seen, all_costs, workloads
from test_decode_jumps import Costs as Separate
from test_disaggregation_twin import BLOCK, Twin
from test_disaggregation_twin import all_costs as split_costs
from test_disaggregation_twin import jumping as split_engines
from test_disaggregation_twin import workloads as split_workloads

from simulator.clock import Clock
from simulator.serving.batching import BATCHERS, ChunkedPrefill
from simulator.serving.instance import Engine
from simulator.serving.jump import StepTicks
from simulator.serving.lone_rank import kind_of
from simulator.serving.request import Request


@dataclass(frozen=True)
class Costs(Separate):
    """Both phases in one step: the larger of the fixed parts, and the rest of both; counts what it is asked."""

    def mixed_ns(self, tokens, attended, sequences, batch, context):
        assert batch > 0 < tokens
        fixed = max(self.prefill_fixed + 3 * sequences, self.fixed) + self.per_sequence * batch
        return fixed + self.prefill_token * tokens + self.prefill_pair * attended + self.per_context * context


class Budgeted:
    """A cost model that remembers the tokens of every step it was asked for, one for each who decodes."""

    def __init__(self, costs):
        self.costs, self.tokens = costs, []

    def prefill_ns(self, tokens, attended, sequences):
        self.tokens.append(tokens)
        return self.costs.prefill_ns(tokens, attended, sequences)

    def mixed_ns(self, tokens, attended, sequences, batch, context):
        self.tokens.append(tokens + batch)
        return self.costs.mixed_ns(tokens, attended, sequences, batch, context)

    def decode(self, batch, context):
        return self.costs.decode(batch, context)


def chunked(workload, costs, limits, blocks, block_tokens, watermark=0):
    env, seen, done = Clock(), Seen(), {}

    def finished(request, instance):
        done[request.request_id] = request

    policy = BATCHERS["chunked_prefill"].policy
    engine = Engine("colocated", costs, StepTicks(costs), policy, limits, blocks, block_tokens, watermark)
    instance = kind_of(engine)(env, "colocated-0", engine, (0,), seen, finished)

    def source():
        for index, (gap, prompt, output) in enumerate(workload):
            yield env.timeout(gap)
            instance.submit(Request(index, env.now, prompt, output))

    env.process(source())
    while env.peek() != inf:
        env.step()
        instance.check()
    assert instance.used_blocks() == 0
    return done, seen


def step_ticks(costs, begun, decoding):
    """Return the length of one iteration: (prompt, first new position, last) of those `begun`, and those who decode."""
    context = sum(r["held"] for r in decoding)
    if not begun:
        fixed, slope, _ = costs.decode(len(decoding), context)
        return round(fixed * TICK) + round(slope * TICK) * context
    tokens = sum(last - before for _, before, last in begun)
    pairs = sum(sample_groups.pairs(r, before, last) for r, before, last in begun)
    if not decoding:
        return round(costs.prefill_ns(tokens, pairs, len(begun)) * TICK)
    return round(costs.mixed_ns(tokens, pairs, len(begun), len(decoding), context) * TICK)


def gain_a_token(requests, now):
    """Those whose every token is computed have one more when the step ends, and may be done."""
    for r in requests:
        if r["held"] == r["prompt"] + r["made"]:
            r["made"] += 1
            r["decodes"] = True
            r.setdefault("first", now)
            if r["made"] == r["output"]:
                r["finish"] = now


def token_by_token(workload, costs, limits, blocks, block_tokens, watermark):
    arrivals = [
        {"id": i, "at": at, "prompt": prompt, "output": output, "made": 0, "held": 0, "preemptions": 0}
        for i, (at, (_, prompt, output)) in enumerate(zip(accumulate(w[0] for w in workload), workload, strict=True))
    ]
    most = limits.long_prefill_threshold or inf
    waiting, line, done, ticks = [], [], {}, 0

    def used(extra=0, of=None):
        return sum(ceil((r["held"] + (extra if r is of else 0)) / block_tokens) for r in line)

    while arrivals or waiting or line:
        if not waiting and not line:
            ticks = max(ticks, arrivals[0]["at"] * TICK)
        while arrivals and arrivals[0]["at"] <= ticks // TICK:
            waiting.append(arrivals.pop(0))
        budget, begun, decoding, admits = limits.max_batch_tokens, [], [], True
        for r in line:
            tokens = min(r["prompt"] + r["made"] - r["held"], most, budget)
            if not tokens:
                break
            while r in line and used(tokens, r) > blocks:
                victim = line.pop()
                victim |= {"held": 0, "decodes": False, "preemptions": victim["preemptions"] + 1}
                waiting.insert(0, victim)
                admits = False
            if r not in line:
                break
            decoding.append(r) if r["decodes"] else begun.append((r, r["held"], r["held"] + tokens))
            r["held"] += tokens
            budget -= tokens
        margin = watermark if line else 0
        while admits and waiting and budget and len(line) < limits.max_running:
            r = waiting[0]
            if ceil((r["prompt"] + r["made"]) / block_tokens) > blocks - used() - margin:
                break
            line.append(waiting.pop(0))
            r.setdefault("start", ticks // TICK)
            r["decodes"], r["held"] = False, min(r["prompt"] + r["made"], most, budget)
            begun.append((r, 0, r["held"]))
            budget -= r["held"]
        ticks += step_ticks(costs, begun, decoding)
        gain_a_token([*decoding, *(r for r, _, _ in begun)], ticks // TICK)
        done |= {r["id"]: r for r in line if "finish" in r}
        line = [r for r in line if "finish" not in r]
        line.sort(key=lambda r: not r["decodes"])  # stable: who ends a prefill now goes behind those who decoded
    return done


costs_of_both = all_costs.map(lambda c: Costs(**vars(c)))
cases = (
    workloads,
    costs_of_both,
    st.integers(1, 8),
    st.integers(0, 200),
    st.one_of(st.none(), st.integers(1, 30)),
    st.integers(0, 30),
    st.sampled_from([1, 4, 16]),
    st.integers(0, 3),
)


@settings(max_examples=300, deadline=None)
@given(*cases)
def test_equal_to_token_by_token(workload, costs, max_running, more, threshold, spare_tokens, block_tokens, watermark):
    longest = max(ceil((prompt + output) / block_tokens) for _, prompt, output in workload)
    blocks = longest + spare_tokens // block_tokens  # tight: preemptions and blocked queues are common
    budget = max_running + more
    limits = ChunkedPrefill(max_running=max_running, max_batch_tokens=budget, long_prefill_threshold=threshold)
    asked = Budgeted(costs)
    done, seen = chunked(workload, asked, limits, blocks, block_tokens, watermark)
    twin = token_by_token(workload, costs, limits, blocks, block_tokens, watermark)
    assert {i: (r["start"], r["first"], r["finish"], r["preemptions"]) for i, r in twin.items()} == {
        i: (r.prefill_start_ns, r.first_token_ns, r.finish_ns, r.preemptions) for i, r in done.items()
    }
    outputs = sum(output for _, _, output in workload)
    assert max(asked.tokens) <= budget  # in no step with prompts; those of a pure decode step are at most max_running
    assert seen.tokens == outputs == sum(r.generated for r in done.values())
    assert seen.gaps_total == outputs - len(workload)  # every token after a first one has one gap
    assert seen.kv_max <= blocks
    assert seen.preemptions == sum(r["preemptions"] for r in twin.values())
    if not seen.preemptions:  # each token of each prompt is computed once; and Little's law, exact
        assert sum(asked.tokens) >= sum(prompt for _, prompt, _ in workload)
        assert seen.waited_ns == sum(r.prefill_start_ns - r.queued_ns for r in done.values())
        assert seen.ran_ns == sum(r.finish_ns - r.prefill_start_ns for r in done.values())


@pytest.mark.nightly
@settings(max_examples=10_000, deadline=None)
@given(*cases)
def test_equal_to_token_by_token_at_length(
    workload, costs, max_running, more, threshold, spare_tokens, block_tokens, watermark
):
    test_equal_to_token_by_token.hypothesis.inner_test(
        workload, costs, max_running, more, threshold, spare_tokens, block_tokens, watermark
    )


ROUND = Costs(1000, 8, 2, 3000, 16, 0.5)  # binary fractions: sums of floats are exact


@given(prompt=st.integers(1, 5000), output=st.integers(1, 300), budget=st.integers(1, 700))
def test_a_lone_request_is_a_closed_form(prompt, output, budget):
    # Chunks of B tokens after c each: n c + n (n + 1) / 2 pairs, and all chunks together n (n + 1) / 2 of the prompt.
    # TTFT = chunks x fixed + token x P + pair x P (P + 1) / 2; then one line of decode steps at P + 1 ... tokens.
    limits = ChunkedPrefill(max_running=1, max_batch_tokens=budget)
    done, _ = chunked([(0, prompt, output)], ROUND, limits, 400, 16)
    chunks = ceil(prompt / budget)
    first = chunks * 3000 + 16 * prompt + 0.5 * (prompt * (prompt + 1) // 2)
    steps = sum(1000 + 8 + 2 * (prompt + i) for i in range(1, output))
    assert done[0].first_token_ns == int(first)
    assert done[0].finish_ns == int(first + steps)


def test_a_wide_budget_prefills_an_arrival_whole_in_the_step_that_follows():
    # Nothing is split: an arrival waits for the end of the step under way; the next one prefills its 48 tokens (pairs
    # 48 x 49 / 2 = 1176) and decodes for all before it. Between arrivals, 10 us apart, are decode steps. In whole ns:
    # alone 3000 + 16 x 48 + 1176 / 2 = 4356; beside b who decode 3003 + 8 b + 768 + 588 + 2 x context.
    workload = [(0 if i == 0 else 10_000, 48, 200) for i in range(6)]
    asked = Budgeted(ROUND)
    done, _ = chunked(workload, asked, ChunkedPrefill(max_batch_tokens=10_000), 1000, 16)
    assert asked.tokens == [48 + i for i in range(6)]
    now, held = 0, []
    for i in range(6):
        while now < 10_000 * i:
            held = [n + 1 for n in held]
            now += 1000 + 8 * len(held) + 2 * sum(held)
        assert done[i].prefill_start_ns == now
        held = [n + 1 for n in held]
        now += 3003 + 8 * i + 1356 + 2 * sum(held) if held else 4356
        assert done[i].first_token_ns == now
        held.append(48)


def test_the_order_of_a_step_by_hand():
    # Budget 8, two seats. At 0: A (6 tokens) whole, 2 of B. Then: A decodes, 7 of B. C has no seat until A has ended.
    asked = Budgeted(ROUND)
    workload = [(0, 6, 3), (0, 20, 2), (0, 5, 1)]
    done, _ = chunked(workload, asked, ChunkedPrefill(max_running=2, max_batch_tokens=8), 100, 4)
    assert asked.tokens == [8, 8, 8, 8, 2]  # A 6 + B 2; A + B 7; A + B 7, A ends; B 4 + C 4; B + C 1, both end
    assert done[0].finish_ns < done[2].prefill_start_ns + 1
    assert done[1].finish_ns == done[2].finish_ns


def test_a_limit_on_long_prompts_lets_a_short_one_pass():
    # Threshold 4 of a budget of 10: long 4 + short 4, then long 4 + short 1, the short one's first token long before.
    asked = Budgeted(ROUND)
    limits = ChunkedPrefill(max_running=4, max_batch_tokens=10, long_prefill_threshold=4)
    done, _ = chunked([(0, 40, 1), (0, 5, 1)], asked, limits, 100, 4)
    assert asked.tokens == [8, 5, *[4] * 8]
    assert done[1].first_token_ns < done[0].first_token_ns


class SplitTwin(Twin):
    """A prefill and a decode engine of the disaggregation twin, each filling its iterations with chunks."""

    def decide(self, engine):
        for r in engine["ready"]:
            engine["held"].remove(r)
            engine["running"].append(r)
            del r["coming"]
        engine["ready"] = []
        engine["busy"] = "step"  # from now on `used` counts the next token of those who decode
        begun, preempted = [r for r in engine["held"] if "target" in r], []

        def preempt():
            victim = (begun or engine["running"]).pop()
            if victim in engine["held"]:
                engine["held"].remove(victim)
                del victim["target"]
            victim["preempted"] += 1
            engine["waiting"].insert(0, victim)
            preempted.append(victim)

        while self.used(engine) > engine["total"]:
            preempt()
        most = self.limits.long_prefill_threshold or inf
        budget = self.limits.max_batch_tokens - len(engine["running"])
        chunks = []
        for r in list(begun):
            if r not in begun or not budget:
                break
            before = r["kv"]
            tokens = min(r["target"] - before, most, budget)
            r["kv"] += tokens
            while r in begun and self.used(engine) > engine["total"]:
                preempt()
            if r in begun:
                chunks.append((r, before, r["kv"]))
                budget -= tokens
        coming = sum("coming" in r for r in engine["held"])
        while engine["waiting"] and budget and not preempted:
            r = engine["waiting"][0]
            target = r["prompt"] + r["made"]
            free = engine["total"] - self.used(engine)
            if len(engine["running"]) + len(begun) + coming >= self.limits.max_running or ceil(target / BLOCK) > free:
                break
            engine["waiting"].pop(0)
            r |= {"target": target, "kv": min(target, most, budget)}
            r.setdefault("start", self.now)
            engine["held"].append(r)
            begun.append(r)
            chunks.append((r, 0, r["kv"]))
            budget -= r["kv"]
        if not chunks and not engine["running"]:
            engine["busy"] = None
            return
        for r in engine["running"]:
            r.setdefault("decode", self.now)
        grown = [{"held": r["kv"] + 1} for r in engine["running"]]
        engine["ticks"] += step_ticks(self.costs, chunks, grown)
        done = [r for r, _, _ in chunks if r["kv"] == r["target"]]
        self.at(engine["ticks"] // TICK, 2, self.ends, engine, bool(grown), done if chunks else None)
        if chunks:
            self.grant(engine)

    def prefilled(self, engine, batch):
        for r in batch:
            del r["target"]
        super().prefilled(engine, batch)


split_cases = (
    split_workloads,
    split_costs.map(lambda c: Costs(**vars(c))),
    st.integers(1, 6),
    st.integers(0, 120),
    st.one_of(st.none(), st.integers(1, 30)),
    st.tuples(st.integers(0, 12), st.integers(0, 12)),
    st.integers(1, 50_000),
)


@settings(max_examples=300, deadline=None)
@given(*split_cases)
def test_split_pools_equal_token_by_token(workload, costs, max_running, more, threshold, spare, delay_ns):
    prompts = max(ceil(prompt / BLOCK) for _, prompt, _ in workload)
    whole = max(ceil((prompt + output) / BLOCK) for _, prompt, output in workload)
    blocks = (prompts + spare[0], whole + spare[1])
    limits = ChunkedPrefill(
        max_running=max_running, max_batch_tokens=max_running + more, long_prefill_threshold=threshold
    )
    found = split_engines(workload, costs, limits, blocks, delay_ns, "chunked_prefill")
    assert found == SplitTwin(workload, costs, limits, blocks, delay_ns).run()
    assert len(found) == len(workload)


@pytest.mark.nightly
@settings(max_examples=10_000, deadline=None)
@given(*split_cases)
def test_split_pools_equal_token_by_token_at_length(workload, costs, max_running, more, threshold, spare, delay_ns):
    test_split_pools_equal_token_by_token.hypothesis.inner_test(
        workload, costs, max_running, more, threshold, spare, delay_ns
    )


def test_more_seats_than_tokens_of_an_iteration_are_refused():
    with pytest.raises(ValueError, match="300 requests cannot decode in iterations of 256 tokens"):
        ChunkedPrefill(max_running=300, max_batch_tokens=256)
