"""Speculative decoding: an engine that jumps equals one that walks every iteration; closed forms; conservation.

The twin knows no rings and no sums: it draws what each request gains as the engine does, one iteration at a time, and
holds a list of what each has in memory. KV blocks hold what is kept and the positions of the iteration under way.
"""

from dataclasses import dataclass, replace
from functools import partial
from math import ceil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.clock import Clock
from simulator.randomness import stream
from simulator.serving.batching import BATCHERS, ChunkedPrefill, Continuous
from simulator.serving.instance import Engine
from simulator.serving.jump import StepTicks
from simulator.serving.lone_rank import kind_of
from simulator.serving.paging import Paging, Windows
from simulator.serving.queueing import Fair, FairShares
from simulator.serving.request import Request, Traits
from simulator.serving.speculation import Speculation, SpeculativeBatch
from tests.laws.test_decode_jumps import TICK, Costs, Seen, all_costs, jumping, token_by_token, workloads


@dataclass(frozen=True)
class Mixed:
    """Costs of both phases, prompts and decodes of one iteration added up."""

    of: Costs

    def decode(self, batch, context):
        return self.of.decode(batch, context)

    def prefill_ns(self, tokens, attended, sequences):
        return self.of.prefill_ns(tokens, attended, sequences)

    def mixed_ns(self, tokens, attended, sequences, batch, context):
        fixed, slope, _ = self.of.decode(batch, context)
        return self.of.prefill_ns(tokens, attended, sequences) + fixed + slope * context


@dataclass(frozen=True)
class Free:
    """Costs of an iteration that verifies drafted tokens as if there were none."""

    of: Costs
    drafted: int

    def decode(self, batch, context):
        fixed, slope, until = self.of.decode(batch, max(0, context - batch * self.drafted))
        # whole numbers of ticks, as the engine counts, so that the difference is exact
        ticks = round(slope * TICK)
        return (round(fixed * TICK) - ticks * batch * self.drafted) / TICK, ticks / TICK, until + batch * self.drafted

    def prefill_ns(self, tokens, attended, sequences):
        return self.of.prefill_ns(tokens, attended, sequences)


def speculating(workload, costs, limits, sizes, speculation, batcher="continuous", tenants=0, chunk=0, windows=None):
    env, seen, done = Clock(), Seen(), {}
    fair = {"queue": lambda: Fair(FairShares()), "counts_service": True} if tenants else {}
    more = fair | {"speculation": speculation, "first_chunk": chunk, "windows": windows}
    engine = Engine("colocated", costs, StepTicks(costs), BATCHERS[batcher].policy, limits, *sizes, **more)
    finish = lambda request, instance: done.setdefault(request.request_id, request)  # noqa: E731
    instance = kind_of(engine)(env, "colocated-0", engine, (0,), seen, finish)

    def source():
        for index, (gap, prompt, output) in enumerate(workload):
            yield env.timeout(gap)
            instance.submit(Request(index, env.now, prompt, output, traits=Traits(index % max(1, tenants))))

    env.process(source())
    while env.peek() != float("inf"):
        env.step()
        instance.check()
    assert instance.used_blocks() == 0
    return done, seen


class Line:
    """First come, first served, but who was preempted before all others."""

    def __init__(self):
        self.order = []

    def join(self, r):
        self.order.append(r)

    def come_back(self, r):
        self.order.insert(0, r)

    def take(self, count):
        del self.order[:count]

    def serve(self, r, tokens):
        pass


class Counters:
    """Virtual token counters of tenants, 1 for a token of a prompt and 2 for a generated one: VTC, OSDI 2024."""

    def __init__(self, tenants):
        self.tenants, self.lines, self.counts, self.last = tenants, {}, {}, None

    def lift(self, r):
        tenant = r["id"] % self.tenants
        line = self.lines.setdefault(tenant, [])
        if not line:
            others = [self.counts[name] for name, there in self.lines.items() if there]
            level = min(others) if others else self.counts.get(self.last, 0)
            self.counts[tenant] = max(self.counts.get(tenant, 0), level)
        return tenant, line

    def join(self, r):
        self.lift(r)[1].append(r)

    def come_back(self, r):
        tenant, line = self.lift(r)
        line.insert(0, r)
        self.counts[tenant] -= r["prompt"]

    @property
    def order(self):
        counts, lines, found = dict(self.counts), {name: list(line) for name, line in self.lines.items()}, []
        while any(lines.values()):
            tenant = min((name for name in lines if lines[name]), key=counts.__getitem__)
            found.append(lines[tenant].pop(0))
            counts[tenant] += found[-1]["prompt"]
        return found

    def take(self, count):
        for r in self.order[:count]:
            self.last = r["id"] % self.tenants
            self.lines[self.last].remove(r)
            self.counts[self.last] += r["prompt"]

    def serve(self, r, tokens):
        self.counts[r["id"] % self.tenants] += 2 * tokens


def next_gains(speculation, request_id, generated, left):
    """Yield what iterations gain, from the stream of a request that has so many tokens and wants so many more."""
    draws = stream(speculation.seed, f"speculation/{request_id}/{generated}").random(left)
    for draw in draws:
        accepted, reached = 0, 1.0
        for each in speculation.acceptance:
            reached *= each
            if draw >= reached:
                break
            accepted += 1
        yield accepted + 1


def room(tokens, block_tokens, windows, most):
    """Blocks of so many tokens, of which groups with a window keep `most` blocks."""
    blocks = ceil(tokens / block_tokens)
    return windows.full * blocks + windows.windowed * min(blocks, most) if windows else blocks


def kept(windows, block_tokens, fed):
    """Blocks that a window, its last position the first of those fed, and they may touch, and a prefill."""
    if not windows:
        return 0, 0
    span = windows.tokens + fed - 1
    touched = [len({p // block_tokens for p in range(at, at + span)}) for at in range(block_tokens)]
    return max(touched), max(touched) + ceil(windows.chunk / block_tokens)


def admitted(waiting, limits, seats, free, of_prompt):
    batch, tokens = [], 0
    for r in waiting:
        need = r["prompt"] + r["made"]
        free -= of_prompt(need)
        if len(batch) >= seats or free < 0 or tokens + need > limits.max_batch_tokens:
            break
        batch.append(r)
        tokens += need
    return batch


def times(r, chunk, now):
    """Return the times of a request that has made its tokens by now: of the first that it sends, and of its last."""
    sent = {"first": r.get("first", now)} if r["made"] >= min(chunk, r["output"]) else {}
    return sent | ({"finish": now} if r["made"] == r["output"] else {})


def iteration_by_iteration(
    workload, costs, limits, blocks, block_tokens, watermark, speculation, tenants=0, chunk=0, windows=None
):
    few, many = kept(windows, block_tokens, speculation.tokens + 1)
    k, waiting = speculation.tokens, Counters(tenants) if tenants else Line()
    arrivals, at = [], 0
    for index, (gap, prompt, output) in enumerate(workload):
        at += gap
        arrivals.append({"id": index, "at": at, "prompt": prompt, "output": output, "made": 0, "preemptions": 0})
    running, done, ticks = [], {}, 0

    def arrive():
        while arrivals and arrivals[0]["at"] <= ticks // TICK:
            waiting.join(arrivals.pop(0))

    while arrivals or waiting.order or running:
        if not waiting.order and not running:
            ticks = max(ticks, arrivals[0]["at"] * TICK)
        arrive()
        used = sum(r["blocks"] for r in running)
        free = blocks - used - watermark if used else blocks
        of_prompt = partial(room, block_tokens=block_tokens, windows=windows, most=many)
        batch = admitted(waiting.order, limits, limits.max_running - len(running), free, of_prompt)
        if batch:
            waiting.take(len(batch))
            lengths = [r["prompt"] + r["made"] for r in batch]
            pairs = sum(n * (n + 1) // 2 for n in lengths)
            ticks += round(costs.prefill_ns(sum(lengths), pairs, len(lengths)) * TICK)
            for r, held in zip(batch, lengths, strict=True):
                r["held"], r["made"] = held, r["made"] + 1
                r["blocks"] = room(held, block_tokens, windows, few)
                r["gains"] = next_gains(speculation, r["id"], r["made"], r["output"] - r["made"])
            running += batch
            made = [(r, 1) for r in batch]
        else:

            def wants(r):
                return max(r["blocks"], room(r["held"] + k + 1, block_tokens, windows, few))

            while sum(wants(r) for r in running) > blocks:
                victim = running.pop()
                victim["preemptions"] += 1
                waiting.come_back(victim)
            context = sum(r["held"] + k + 1 for r in running)
            fixed, slope, _ = costs.decode(len(running), context)
            ticks += round(fixed * TICK) + round(slope * TICK) * context
            made = []
            for r in running:
                r["blocks"] = wants(r)
                gain = min(next(r["gains"]), r["output"] - r["made"])
                made.append((r, gain))
                r["held"] += gain
                r["made"] += gain
                r["chunks"] = r.get("chunks", 0) + 1
        arrive()  # who comes in the nanosecond in which an iteration ends comes before its tokens count
        for r, tokens in made:
            waiting.serve(r, tokens)
        for r in running:
            r |= times(r, chunk, ticks // TICK)
            if "finish" in r:
                done[r["id"]] = r
        running = [r for r in running if "finish" not in r]
    return done


speculations = st.builds(
    Speculation, st.lists(st.sampled_from([0.0, 0.3, 0.7, 1.0]), max_size=4).map(tuple), st.integers(0, 9)
)


@settings(max_examples=300, deadline=None)
@given(
    workloads,
    all_costs,
    st.integers(1, 8),
    st.integers(0, 30),
    st.sampled_from([1, 4, 16]),
    st.integers(0, 3),
    speculations,
    st.integers(0, 3),
    st.sampled_from([0, 0, 2, 7, 40]),
    st.one_of(st.none(), st.builds(Windows, st.integers(0, 2), st.integers(1, 2), st.integers(1, 40), st.just(200))),
)
def test_equal_to_iteration_by_iteration(
    workload, costs, max_running, spare, block_tokens, watermark, speculation, tenants, chunk, windows
):
    longest = max(ceil((prompt + output - 1 + speculation.tokens) / block_tokens) for _, prompt, output in workload)
    longest *= windows.full + windows.windowed if windows else 1
    sizes = longest + spare // block_tokens, block_tokens, watermark  # tight: preemptions are common
    limits = Continuous(max_running=max_running, max_batch_tokens=200)
    done, seen = speculating(workload, costs, limits, sizes, speculation, "continuous", tenants, chunk, windows)
    twin = iteration_by_iteration(workload, costs, limits, *sizes, speculation, tenants, chunk, windows)
    assert sorted(done) == sorted(twin) == list(range(len(workload)))
    for index, r in twin.items():
        found = done[index]
        times = found.first_token_ns, found.finish_ns, found.preemptions, found.generated
        assert times == (r["first"], r["finish"], r["preemptions"], r["output"])
    assert seen.tokens == sum(output for _, _, output in workload)  # what is made beyond the outputs counts nowhere
    again = sum(r["preemptions"] for r in twin.values())  # a prefill anew ends with a token, a chunk of its own
    assert seen.gaps_total == sum(r.get("chunks", 0) for r in twin.values()) + again
    assert seen.preemptions == again
    assert seen.kv_max <= sizes[0]


@settings(max_examples=100, deadline=None)
@given(workloads, all_costs, st.integers(1, 8), st.sampled_from([1, 4, 16]))
def test_nothing_drafted_is_plain_decoding(workload, costs, max_running, block_tokens):
    sizes = max(ceil((prompt + output) / block_tokens) for _, prompt, output in workload) + 2, block_tokens, 1
    limits = Continuous(max_running=max_running, max_batch_tokens=200)
    done, seen = speculating(workload, costs, limits, sizes, Speculation((), 1))
    plain, plain_seen = jumping(workload, costs, limits, *sizes)
    assert [(r.request_id, r.finish_ns) for r in done.values()] == [(r.request_id, r.finish_ns) for r in plain.values()]
    assert (seen.tokens, seen.gaps_total, seen.kv_max) == (
        plain_seen.tokens,
        plain_seen.gaps_total,
        plain_seen.kv_max,
    )


@settings(max_examples=100, deadline=None)
@given(workloads, all_costs, st.integers(1, 8), st.integers(1, 4))
def test_nothing_accepted_and_free_verification_is_plain_decoding(workload, costs, max_running, drafted):
    costs, sizes = replace(costs, bend=0), (100_000, 16, 0)
    limits = Continuous(max_running=max_running, max_batch_tokens=200)
    done, _ = speculating(workload, Free(costs, drafted), limits, sizes, Speculation((0.0,) * drafted, 1))
    plain, _ = jumping(workload, costs, limits, *sizes)
    assert [(r.request_id, r.finish_ns) for r in done.values()] == [(r.request_id, r.finish_ns) for r in plain.values()]


@given(st.integers(1, 500), st.integers(0, 6), st.integers(1, 100))
def test_all_accepted(output, drafted, prompt):
    batch = SpeculativeBatch(Paging(16), Speculation((1.0,) * drafted, 3))
    request = Request(0, 0, prompt, output + 1)
    request.generated = 1  # the prefill's
    batch.join(request)
    assert batch.steps_to_finish() == ceil(output / (drafted + 1))
    batch.check()


@pytest.mark.parametrize("acceptance", [(0.7,), (0.7, 0.7), (0.9, 0.5, 0.2), (0.6,) * 5])
def test_mean_tokens_of_an_iteration(acceptance):
    # E = 1 + a1 + a1 a2 + ..., for equal a (1 - a^(k+1)) / (1 - a): Leviathan et al., arXiv:2211.17192, equation 1
    speculation = Speculation(acceptance, 5)
    requests = [Request(i, 0, 10, 2001) for i in range(200)]
    for request in requests:
        request.generated = 1
    gains = np.concatenate([speculation.gains(request)[:-1] for request in requests])  # the last is cut
    a, k = acceptance[0], len(acceptance)
    if set(acceptance) == {a}:
        assert speculation.mean_gain == pytest.approx((1 - a ** (k + 1)) / (1 - a))
    error = gains.std() / np.sqrt(len(gains))
    assert abs(gains.mean() - speculation.mean_gain) < 4 * error


def test_one_drafted_token_of_which_seven_in_ten_are_right():
    # CloudMatrix384 (arXiv:2506.12708, 4.2.4): one token of multi-token prediction accepted at 70% makes 1.7 a step
    assert Speculation((0.7,), 0).mean_gain == pytest.approx(1.7)


@settings(max_examples=60, deadline=None)
@given(workloads, all_costs, st.integers(1, 8), speculations)
def test_chunks_of_prompts_beside_verification(workload, costs, max_running, speculation):
    limits = ChunkedPrefill(max_running=max_running, max_batch_tokens=64)
    sizes = max(ceil((prompt + output + 4) / 4) for _, prompt, output in workload) + 3, 4, 0
    done, seen = speculating(workload, Mixed(costs), limits, sizes, speculation, "chunked_prefill")
    assert len(done) == len(workload)
    assert seen.tokens == sum(output for _, _, output in workload)
    assert seen.kv_max <= sizes[0]


def test_twins_of_this_file_agree_without_drafts():
    workload, costs = [(0, 20, 30), (500, 10, 40), (9_000, 50, 9)], Costs(100.0, 2.0, 1.0, 50.0, 3.0, 0.1)
    limits, sizes = Continuous(max_running=4, max_batch_tokens=200), (20, 4, 1)
    one = iteration_by_iteration(workload, costs, limits, *sizes, Speculation((), 0))
    other = token_by_token(workload, costs, limits, *sizes)
    assert {i: r["finish"] for i, r in one.items()} == {i: r["finish"] for i, r in other.items()}
