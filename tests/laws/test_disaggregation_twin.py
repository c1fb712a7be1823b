"""A prefill and a decode engine with jumps equal a pair that walks every token, preemptions and all.

The network is a constant delay here (the fabric has its own laws). The twin keeps lists of what each request holds and
knows nothing of jumps, phases or inverses; its only clock is a heap of (nanosecond, rank, sequence).
"""

from heapq import heappop, heappush
from math import ceil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_decode_jumps import TICK, Costs, Seen, whole_or_sliced

from simulator.clock import Clock
from simulator.serving.batching import BATCHERS, Continuous
from simulator.serving.disaggregation import Caches, KVTransfer
from simulator.serving.instance import Engine
from simulator.serving.jump import StepTicks
from simulator.serving.kv_layout import KVLayout
from simulator.serving.lone_rank import kind_of
from simulator.serving.pool import Pool
from simulator.serving.request import Request
from simulator.serving.routing import RoundRobin
from simulator.serving.transfer_rules import TransferRules

BLOCK = 4


class Delay:
    """A network on which every transfer takes the same time."""

    def __init__(self, env, delay_ns):
        self.env, self.delay_ns = env, delay_ns

    def transfer(self, shards):
        return self.env.timeout(self.delay_ns)


def jumping(workload, costs, limits, blocks, delay_ns, batcher="continuous", chunk=0):
    env, done = Clock(), {}
    pools = [Pool("prefill", RoundRobin()), Pool("decode", RoundRobin())]
    alone = KVLayout(1, ((0, 1),))
    mover = KVTransfer(
        env, Delay(env, delay_ns), *pools, Caches({"prefill": alone, "decode": alone}, 1, 1), TransferRules()
    )
    for pool, count in zip(pools, blocks, strict=True):

        def finished(request, instance, pool=pool):
            pool.left(instance, request)
            done[request.request_id] = request

        policy, ticks = BATCHERS[batcher].policy, StepTicks(costs)
        engine = Engine(pool.role, costs, ticks, policy, limits, count, BLOCK, 0, first_chunk=chunk)
        hand_over = mover.hand_over if pool is pools[0] else None
        pool.add(kind_of(engine)(env, pool.role, engine, (0,), Seen(), finished, hand_over))

    def source():
        for index, (gap, prompt, output) in enumerate(workload):
            yield env.timeout(gap)
            request = Request(index, env.now, prompt, output)
            pools[0].choose(request).submit(request)

    env.process(source())
    while env.peek() != float("inf"):
        env.step()
        for pool in pools:
            pool.instances[0].check()
    assert [pool.outstanding for pool in pools] == [[0], [0]]
    assert [pool.instances[0].used_blocks() for pool in pools] == [0, 0]
    return {
        i: (r.prefill_start_ns, r.first_token_ns, r.kv_wait_ns, r.decode_start_ns, r.finish_ns, r.preemptions)
        for i, r in done.items()
    }


class Twin:
    """Both engines, one iteration at a time; with a `chunk` the decode engine sends so many tokens first."""

    def __init__(self, workload, costs, limits, blocks, delay_ns, chunk=0):
        self.costs, self.limits, self.delay_ns, self.chunk = costs, limits, delay_ns, chunk
        self.agenda, self.sequence, self.now, self.done = [], 0, 0, {}
        lists = ("waiting", "running", "held", "ready", "asking")
        self.engines = [{"total": total, "busy": None, "ticks": 0} | {name: [] for name in lists} for total in blocks]
        at = 0
        for index, (gap, prompt, output) in enumerate(workload):
            at += gap
            self.at(at, 0, self.arrive, {"id": index, "prompt": prompt, "output": output, "made": 0, "preempted": 0})

    def at(self, ns, rank, act, *arguments):
        self.sequence += 1
        heappush(self.agenda, (ns, rank, self.sequence, act, arguments))

    def run(self):
        while self.agenda:
            self.now, _, _, act, arguments = heappop(self.agenda)
            act(*arguments)
        return self.done

    def arrive(self, r):
        self.engines[0]["waiting"].append(r)
        self.wake(self.engines[0])

    def wake(self, engine):
        if engine["busy"] is None:
            engine["busy"] = "waking"
            engine["ticks"] = self.now * TICK
            self.at(self.now, 2, self.decide, engine)

    def used(self, engine):
        """Blocks of everything here; of a step under way those that its end needs."""
        one = 1 if engine["busy"] == "step" else 0
        tokens = [r["kv"] + one for r in engine["running"]] + [r["kv"] for r in engine["held"]]
        return sum(ceil(n / BLOCK) for n in tokens)

    def decide(self, engine):
        for r in engine["ready"]:
            engine["held"].remove(r)
            engine["running"].append(r)
            self.send(r)
            del r["coming"]
        engine["ready"] = []
        if engine.get("slices"):
            self.slice(engine)
            return
        engine["busy"] = None
        batch, tokens, used = [], 0, self.used(engine)
        seats = self.limits.max_running - len(engine["running"]) - sum("coming" in r for r in engine["held"])
        for r in engine["waiting"]:
            need = r["prompt"] + r["made"]
            used += ceil(need / BLOCK)
            too_long = batch and tokens + need > self.limits.max_batch_tokens
            if len(batch) >= seats or used > engine["total"] or too_long:
                break
            batch.append(r)
            tokens += need
        if batch:
            del engine["waiting"][: len(batch)]
            for r in batch:
                r["kv"] = r["prompt"] + r["made"]
                r.setdefault("start", self.now)
                engine["held"].append(r)
            engine["slices"] = whole_or_sliced(self.costs, [r["kv"] for r in batch], self.limits.max_batch_tokens)
            engine["batch"] = batch
            self.slice(engine)
            return
        engine["busy"] = "step"
        crowded = engine["running"] and self.used(engine) > engine["total"]
        while engine["running"] and self.used(engine) > engine["total"]:
            victim = engine["running"].pop()
            victim["preempted"] += 1
            engine["waiting"].insert(0, victim)
        if not engine["running"]:
            engine["busy"] = None
            if crowded:  # only what is on its way is left: look again
                self.decide(engine)
            return
        for r in engine["running"]:
            r.setdefault("decode", self.now)
        context = sum(r["kv"] + 1 for r in engine["running"])
        fixed, slope, _ = self.costs.decode(len(engine["running"]), context)
        engine["ticks"] += round(fixed * TICK) + round(slope * TICK) * context
        self.at(engine["ticks"] // TICK, 2, self.ends, engine, True, None)

    def slice(self, engine):
        """An iteration for the next slice of a long prompt, or for all of a batch; nobody is preempted in between."""
        engine["busy"] = "prefill"
        engine["ticks"] += engine["slices"].pop(0)
        self.at(engine["ticks"] // TICK, 2, self.ends, engine, False, [] if engine["slices"] else engine["batch"])
        self.grant(engine)

    def ends(self, engine, stepped, prefilled):
        """An iteration is over: those who decoded first, then those who were prefilled, if any were meant to be."""
        engine["busy"] = "between"
        if stepped:
            self.stepped(engine)
        if prefilled is not None:
            self.prefilled(engine, prefilled)
        self.decide(engine)

    def prefilled(self, engine, batch):
        for r in batch:
            r["made"] += 1
            if not self.chunk or r["output"] == 1 or engine is self.engines[1]:
                self.send(r)
            if r["made"] == r["output"]:
                engine["held"].remove(r)
                self.finish(r)
            elif engine is self.engines[0]:
                r["asked"] = self.now
                self.at(self.now, -1, self.ask, r)
            else:
                engine["held"].remove(r)
                engine["running"].append(r)
        self.grant(engine)

    def stepped(self, engine):
        finished = []
        for r in engine["running"]:
            r["kv"] += 1
            r["made"] += 1
            self.send(r)
            if r["made"] == r["output"]:
                finished.append(r)
        for r in finished:
            engine["running"].remove(r)
            self.finish(r)
        if finished:
            self.grant(engine)

    def send(self, r):
        if r["made"] >= min(self.chunk, r["output"]):
            r.setdefault("first", self.now)

    def finish(self, r):
        self.done[r["id"]] = (r["start"], r["first"], r.get("wait", 0), r.get("decode", -1), self.now, r["preempted"])

    def ask(self, r):
        self.engines[1]["asking"].append(r)
        self.grant(self.engines[1])

    def grant(self, engine):
        while engine["asking"] and not engine["waiting"]:
            r = engine["asking"][0]
            need = ceil(r["prompt"] / BLOCK)
            seats = len(engine["running"]) + len(engine["held"])  # on their way, or being prefilled anew
            if seats >= self.limits.max_running or self.used(engine) + need > engine["total"]:
                return
            engine["asking"].pop(0)
            copy = r | {"kv": r["prompt"], "coming": True, "wait": self.now - r["asked"]}
            engine["held"].append(copy)
            self.at(self.now + self.delay_ns, 1, self.moved, r, copy)

    def moved(self, r, copy):
        source, target = self.engines
        source["held"].remove(r)
        if source["waiting"]:
            self.wake(source)
        target["ready"].append(copy)
        self.wake(target)


workloads = st.lists(
    st.tuples(st.integers(0, 300_000), st.integers(1, 40), st.integers(1, 60)), min_size=1, max_size=20
)
# Odd constants: two engines that end an iteration in the same nanosecond would be a tie that no law decides.
all_costs = st.builds(
    Costs,
    fixed=st.floats(1000.1, 5000),
    per_sequence=st.floats(7.3, 50),
    per_context=st.floats(0.31, 50),
    prefill_fixed=st.floats(1500.7, 20_000),
    prefill_token=st.floats(3.1, 50),
    prefill_pair=st.floats(0.013, 1),
    bend=st.sampled_from([0, 97]),
)


cases = (
    workloads,
    all_costs,
    st.integers(1, 6),
    st.integers(1, 120),
    st.tuples(st.integers(0, 12), st.integers(0, 12)),
    st.integers(1, 50_000),
    st.sampled_from([0, 0, 1, 2, 20]),
)


@settings(max_examples=300, deadline=None)
@given(*cases)
def test_equal_to_token_by_token(workload, costs, max_running, max_tokens, spare, delay_ns, chunk):
    prompts = max(ceil(prompt / BLOCK) for _, prompt, _ in workload)
    whole = max(ceil((prompt + output) / BLOCK) for _, prompt, output in workload)
    blocks = (prompts + spare[0], whole + spare[1])
    limits = Continuous(max_running=max_running, max_batch_tokens=max_tokens)
    found = jumping(workload, costs, limits, blocks, delay_ns, chunk=chunk)
    assert found == Twin(workload, costs, limits, blocks, delay_ns, chunk).run()
    assert len(found) == len(workload)


@pytest.mark.nightly
@settings(max_examples=10_000, deadline=None)
@given(*cases)
def test_equal_to_token_by_token_at_length(workload, costs, max_running, max_tokens, spare, delay_ns, chunk):
    test_equal_to_token_by_token.hypothesis.inner_test(workload, costs, max_running, max_tokens, spare, delay_ns, chunk)
