"""An engine that jumps over runs of decode steps equals one that takes them token by token, to the nanosecond.

The twin below knows no SimPy, no jumps, no heaps and no block arithmetic: it holds a list of what each request has in
memory and walks every iteration. Step length: fixed + slope x (sum over the batch of tokens held, the one being fed
included), rounded to 2^-20 ns as the engine's clock counts.
"""

from dataclasses import dataclass
from math import ceil, inf

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from simulator.clock import Clock
from simulator.serving.batching import BATCHERS, Continuous
from simulator.serving.instance import Engine
from simulator.serving.jump import Jump, StepTicks
from simulator.serving.lone_rank import kind_of
from simulator.serving.request import FINISHED, Request

TICK = 1 << 20


@dataclass(frozen=True)
class Costs:
    """A cost model with a fixed part per step and per prompt, per token, per pair and per sequence.

    From every multiple of `bend` tokens of context on, a decode step follows another line: the whole jumps by a tenth.
    """

    fixed: float
    per_sequence: float
    per_context: float
    prefill_fixed: float
    prefill_token: float
    prefill_pair: float
    bend: int = 0

    def decode(self, batch, context):
        fixed, slope = self.fixed + self.per_sequence * batch, self.per_context
        if not self.bend:
            return fixed, slope, float("inf")
        piece = max(0, ceil(context / self.bend) - 1)  # piece n holds for contexts in (n, n + 1] x bend
        return fixed * 1.1**piece, slope * 1.1**piece, (piece + 1.0) * self.bend

    def prefill_ns(self, tokens, attended, sequences):
        return self.prefill_fixed + self.prefill_token * tokens + self.prefill_pair * attended


@dataclass
class Seen:
    """What the observer hears: tokens by gap, preemptions, and time by state."""

    gaps_total: int = 0
    gap_sum_ns: int = 0
    tokens: int = 0
    preemptions: int = 0
    last_ns: int = 0
    waited_ns: int = 0
    ran_ns: int = 0
    kv_max: int = 0

    def observe(self, now_ns, state, running, waiting, kv_blocks, tokens, kv_end_blocks):
        assert now_ns >= self.last_ns
        assert tokens >= 0
        self.tokens += tokens
        self.waited_ns += waiting * (now_ns - self.last_ns)
        self.ran_ns += running * (now_ns - self.last_ns)
        self.kv_max = max(self.kv_max, kv_blocks, kv_end_blocks)
        self.last_ns = now_ns

    def gap(self, gap_ns, count):
        self.gaps_total += count
        self.gap_sum_ns += gap_ns * count

    def gaps(self, first_ns, last_ns, steps, count):
        self.gaps_total += steps * count

    def preempted(self, now_ns, instance, request):
        self.preemptions += 1


def jumping(workload, costs, limits, blocks, block_tokens, watermark, cancels=()):
    """Run the engine; `cancels` holds per request how long after its arrival it is cancelled, or None."""
    env, seen, done = Clock(), Seen(), {}

    def finished(request, instance):
        request.outcome = FINISHED
        done[request.request_id] = request

    engine = Engine(
        "colocated", costs, StepTicks(costs), BATCHERS["continuous"].policy, limits, blocks, block_tokens, watermark
    )
    instance = kind_of(engine)(env, "colocated-0", engine, (0,), seen, finished)

    def source():
        for index, (gap, prompt, output) in enumerate(workload):
            yield env.timeout(gap)
            request = Request(index, env.now, prompt, output)
            instance.submit(request)
            if index < len(cancels) and cancels[index] is not None:
                env.process(cancel(request, cancels[index]))

    def cancel(request, after):
        yield env.timeout(after)
        here = request.request_id not in done
        assert instance.cancel(request) == here

    env.process(source())
    while env.peek() != float("inf"):
        env.step()
        instance.check()
    assert instance.used_blocks() == 0
    return done, seen


def whole_or_sliced(costs, lengths, budget):
    """Ticks of a prefill of whole prompts, or of each slice of a long one: a token counts itself and those before."""
    if sum(lengths) <= budget:
        return [round(costs.prefill_ns(sum(lengths), sum(n * (n + 1) // 2 for n in lengths), len(lengths)) * TICK)]
    places = range(1, lengths[0] + 1)
    parts = [places[i : i + budget] for i in range(0, len(places), budget)]
    return [round(costs.prefill_ns(len(part), sum(part), 1) * TICK) for part in parts]


def token_by_token(workload, costs, limits, blocks, block_tokens, watermark, cancels=()):  # noqa: C901 - plain
    arrivals, at = [], 0
    for index, (gap, prompt, output) in enumerate(workload):
        at += gap
        arrivals.append(
            {"id": index, "at": at, "prompt": prompt, "output": output, "made": 0, "held": 0, "preemptions": 0}
        )
        if index < len(cancels) and cancels[index] is not None:
            arrivals[-1]["cancel"] = at + cancels[index]
    waiting, running, done, ticks = [], [], {}, 0

    def gone(r):
        if r.get("cancel", inf) > ticks // TICK:
            return False
        done[r["id"]] = r
        return True

    def room():
        used = sum(ceil(r["held"] / block_tokens) for r in running)
        return blocks - used - watermark if used else blocks

    while arrivals or waiting or running:
        if not waiting and not running:
            ticks = max(ticks, arrivals[0]["at"] * TICK)
        while arrivals and arrivals[0]["at"] <= ticks // TICK:
            waiting.append(arrivals.pop(0))
        waiting = [r for r in waiting if not gone(r)]
        running = [r for r in running if not gone(r)]
        if not waiting and not running:
            continue
        batch, tokens, free = [], 0, room()
        for r in waiting:
            need = r["prompt"] + r["made"]
            free -= ceil(need / block_tokens)
            too_long = batch and tokens + need > limits.max_batch_tokens
            if len(running) + len(batch) >= limits.max_running or free < 0 or too_long:
                break
            batch.append(r)
            tokens += need
        if batch:
            del waiting[: len(batch)]
            for r in batch:
                r.setdefault("start", ticks // TICK)
                r["held"] = r["prompt"] + r["made"]
            parts = whole_or_sliced(costs, [r["held"] for r in batch], limits.max_batch_tokens)
            for part in parts[:-1]:
                ticks += part
                if gone(batch[0]):
                    break
            if len(parts) > 1 and gone(batch[0]):
                continue
            ticks += parts[-1]
            running += batch
        else:
            while sum(ceil((r["held"] + 1) / block_tokens) for r in running) > blocks:
                victim = running.pop()
                victim["held"] = 0
                victim["preemptions"] += 1
                waiting.insert(0, victim)
            context = sum(r["held"] + 1 for r in running)
            fixed, slope, _ = costs.decode(len(running), context)
            ticks += round(fixed * TICK) + round(slope * TICK) * context
            for r in running:
                r["held"] += 1
            batch = running
        for r in batch:
            r["made"] += 1
            r.setdefault("first", ticks // TICK)
            if r["made"] == r["output"]:
                r["finish"] = ticks // TICK
                done[r["id"]] = r
        running = [r for r in running if "finish" not in r]
    return done


workloads = st.lists(
    st.tuples(st.integers(0, 400_000), st.integers(1, 60), st.integers(1, 80)), min_size=1, max_size=25
)
slopes = st.floats(0, 50, allow_nan=False)
all_costs = st.builds(
    Costs,
    fixed=st.floats(0, 5000),
    per_sequence=slopes,
    per_context=slopes,
    prefill_fixed=st.floats(0, 20_000),
    prefill_token=slopes,
    prefill_pair=st.floats(0, 1),
    bend=st.sampled_from([0, 37, 400]),
)


cases = (
    workloads,
    all_costs,
    st.integers(1, 8),
    st.integers(1, 200),
    st.integers(0, 30),
    st.sampled_from([1, 4, 16]),
    st.integers(0, 3),
)


@settings(max_examples=300, deadline=None)
@given(*cases)
def test_equal_to_token_by_token(workload, costs, max_running, max_tokens, spare_tokens, block_tokens, watermark):
    longest = max(ceil((prompt + output) / block_tokens) for _, prompt, output in workload)
    blocks = longest + spare_tokens // block_tokens  # tight: preemptions and blocked queues are common
    limits = Continuous(max_running=max_running, max_batch_tokens=max_tokens)
    done, seen = jumping(workload, costs, limits, blocks, block_tokens, watermark)
    twin = token_by_token(workload, costs, limits, blocks, block_tokens, watermark)
    assert len(done) == len(workload)
    for index, r in twin.items():
        found = done[index]
        assert (found.prefill_start_ns, found.first_token_ns, found.finish_ns, found.preemptions, found.generated) == (
            r["start"],
            r["first"],
            r["finish"],
            r["preemptions"],
            r["output"],
        )
    outputs = sum(output for _, _, output in workload)
    assert seen.gaps_total == outputs - len(workload)  # every token after a first one has one gap
    assert seen.tokens == outputs
    assert seen.kv_max <= blocks
    if not seen.preemptions:  # Little's law, exact: the integrals of queue and batch are the sums over requests
        assert seen.waited_ns == sum(r.prefill_start_ns - r.queued_ns for r in done.values())
    assert seen.preemptions == sum(r["preemptions"] for r in twin.values())


@settings(max_examples=300, deadline=None)
@example(  # at 377 ns one leaves while it decodes and another within its prompt, so that two places are free
    [(0, 52, 6), (0, 13, 2), (0, 45, 1), (0, 1, 1), (0, 1, 1), (0, 1, 1)],
    Costs(0, 0, 0, 29.0, 0, 0),
    *(2, 2, 0, 1, 0),
    [1, 377, 353],
)
@given(*cases, st.lists(st.one_of(st.none(), st.integers(1, 3_000_000)), max_size=25))
def test_equal_to_token_by_token_with_cancellations(
    workload, costs, max_running, max_tokens, spare_tokens, block_tokens, watermark, cancels
):
    longest = max(ceil((prompt + output) / block_tokens) for _, prompt, output in workload)
    sizes = longest + spare_tokens // block_tokens, block_tokens, watermark
    limits = Continuous(max_running=max_running, max_batch_tokens=max_tokens)
    done, seen = jumping(workload, costs, limits, *sizes, cancels)  # no block is used at its end, and each request ends
    twin = token_by_token(workload, costs, limits, *sizes, cancels)
    assert sorted(done) == sorted(twin) == list(range(len(workload)))
    for index, r in twin.items():
        found = done[index]
        assert (found.prefill_start_ns, found.first_token_ns, found.finish_ns, found.preemptions, found.generated) == (
            r.get("start", -1),
            r.get("first", -1),
            r.get("finish", -1),
            r["preemptions"],
            r["made"],
        )
    assert seen.tokens == sum(r["made"] for r in twin.values())
    assert seen.kv_max <= sizes[0]


@given(
    st.integers(0, 10**15),
    st.integers(1, 10**5),
    st.integers(1, 512),
    st.integers(0, 10**7),
    st.integers(0, 10**14),
    st.integers(0, 10**9),
    st.data(),
)
def test_the_inverse_of_the_sum(start, steps, batch, context, fixed, slope, data):
    jump = Jump(start * TICK, steps, batch, context, fixed, slope)
    now = data.draw(st.integers(start, jump.end_ns))
    found = jump.steps_by(now)
    assert 1 <= found <= steps
    assert (jump.start + jump.elapsed(found)) // TICK >= now
    assert found == 1 or (jump.start + jump.elapsed(found - 1)) // TICK < now


def test_elapsed_by_hand():
    # Batch of 3 holding 10 tokens: steps feed 13, 16, 19 tokens of context; 100 + 2 x each = 126, 132, 138 ticks.
    jump = Jump(0, 3, 3, 10, 100, 2)
    assert [jump.elapsed(n) for n in range(4)] == [0, 126, 258, 396]
    assert [jump.length(n) for n in (1, 2, 3)] == [126, 132, 138]
    assert jump.end == 396


@pytest.mark.nightly
@settings(max_examples=10_000, deadline=None)
@given(*cases)
def test_equal_to_token_by_token_at_length(
    workload, costs, max_running, max_tokens, spare_tokens, block_tokens, watermark
):
    test_equal_to_token_by_token.hypothesis.inner_test(
        workload, costs, max_running, max_tokens, spare_tokens, block_tokens, watermark
    )
