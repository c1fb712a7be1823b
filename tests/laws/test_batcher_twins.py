"""Every batcher with every order of the queue equals an engine that walks token by token, to the nanosecond.

The twin keeps who runs in one list, decodes first, and counts blocks anew at every step; the queue is sorted anew
whenever it is looked at. Ranks that step together each plan for themselves, and an iteration lasts as long as a cost
over all of them says.
"""

from dataclasses import dataclass
from itertools import accumulate
from math import ceil, inf
from typing import Any

import numpy as np
import pytest
import sample_groups
from hypothesis import given, settings
from hypothesis import strategies as st
from sample_groups import sequences
from test_chunked_twin import Costs, step_ticks
from test_decode_jumps import TICK, Seen, all_costs

from simulator.clock import Clock
from simulator.serving.batching import BATCHERS
from simulator.serving.instance import Engine
from simulator.serving.jump import StepTicks
from simulator.serving.lone_rank import kind_of
from simulator.serving.paging import Windows
from simulator.serving.queueing import ORDERS, Setting
from simulator.serving.request import Request, Traits

BLOCK = 4
TTFT_NS = 500_000


@dataclass(frozen=True)
class Together(Costs):
    """Several ranks: as long as the slowest, or as a round of micro-batches through `stages` equal stages."""

    stages: int = 10**9

    def alone_ns(self, tokens, pairs, prompts, batch, context):
        if tokens and batch:
            return self.mixed_ns(tokens, pairs, prompts, batch, context)
        if tokens:
            return self.prefill_ns(tokens, pairs, prompts)
        fixed, slope, _ = self.decode(batch, context) if batch else (0, 0, 0)
        return fixed + slope * context

    def all_ns(self, each):
        return max(sum(each) / self.stages, max(each))

    def together_ns(self, works):
        return self.all_ns([self.alone_ns(*work[:5]) for work in works])

    def decode_together(self, batches):
        return Walked(self, batches)


class Walked:
    def __init__(self, costs, batches):
        self.costs, self.batches = costs, batches

    def at(self, contexts):
        rows = [[(0, 0, 0, b, c) for b, c in zip(self.batches, row, strict=True)] for row in contexts.tolist()]
        return np.array([self.costs.all_ns([self.costs.alone_ns(*work) for work in row]) for row in rows])


@dataclass(frozen=True)
class Case:
    """An engine: its batcher and order with parameters, its costs, and the KV blocks of each rank."""

    batcher: str
    limits: Any
    order: str
    parameters: Any
    costs: Costs
    blocks: int
    ranks: int = 1
    chunk: int = 0
    """Output tokens that are sent together, the first ones too; 0: each as it is made."""
    windows: Windows | None = None
    """Layers that keep the last positions alone."""

    @property
    def preempts(self):
        return self.order == "priority" and self.parameters.preempt

    def engine(self):
        batcher, order = BATCHERS[self.batcher], ORDERS[self.order]
        return Engine(
            "colocated",
            self.costs,
            StepTicks(self.costs),
            batcher.policy,
            self.limits,
            self.blocks,
            BLOCK,
            0,
            self.ranks,
            queue=lambda: order.make(self.parameters, Setting(TTFT_NS, self.costs.prefill_ns)),
            to_completion=batcher.to_completion,
            counts_service=self.order == "fair",
            by_priority=self.order == "priority",
            outranks=self.preempts,
            first_chunk=self.chunk,
            windows=self.windows,
        )


def run(workload, case, look=None):
    """Run the engine; `look` sees it and its requests after every event."""
    env, seen, done, sent = Clock(), Seen(), {}, []
    engine = case.engine()
    instance = kind_of(engine)(env, "colocated-0", engine, (0,), seen, lambda r, _: done.update({r.request_id: r}))

    def source():
        for index, (gap, prompt, output, kind, predicted, *group) in enumerate(workload):
            yield env.timeout(gap)
            traits = Traits(f"t{kind}", kind, predicted, *group[:1], sample_tokens=group[1] if group[1:] else None)
            sent.append(Request(index, env.now, prompt, output, traits=traits))
            instance.submit(sent[-1])

    env.process(source())
    while env.peek() != inf:
        env.step()
        instance.check()
        if look is not None:
            look(instance, sent)
    assert instance.used_blocks() == 0
    return done, seen


def whole(r):
    """Tokens that a prefill computes; of one who decodes those that each sequence holds when the step is over."""
    return r["prompt"] + r["made"] * (1 if r["decodes"] else sequences(r))


def blocks(r, more=0):
    """Blocks of a request; of a group with a window, what a part of a prompt adds and what was kept before it."""
    tokens, windows = max(r["held"], r["whole"]) + more, r["windows"]
    plain = sample_groups.blocks(r, tokens, BLOCK, r["decodes"])
    if windows is None:
        return plain
    if r["whole"]:
        return prompt_blocks(r)
    if r["decodes"]:
        return windows.full * plain + windows.windowed * window(r, tokens, decodes=True)
    new = plain - sample_groups.blocks(r, r["before"], BLOCK)
    return windows.full * plain + windows.windowed * (window(r, r["before"]) + new)


def window(r, tokens, decodes=False):
    return sample_groups.window_blocks(r, tokens, BLOCK, kept(r), decodes)


def kept(r):
    """Blocks that a window and the position after it may touch, wherever it begins."""
    span = r["windows"].tokens
    return max(len({position // BLOCK for position in range(at, at + span)}) for at in range(BLOCK))


def prompt_blocks(r):
    """Blocks for a prefill: in groups with a window what is kept of each sequence, and the largest part at once."""
    plain, windows = sample_groups.blocks(r, whole(r), BLOCK), r["windows"]
    if windows is None:
        return plain
    begun = sequences(r) if r["made"] and sequences(r) > 1 else 0
    most = kept(r) * (1 + begun) + ceil(windows.chunk / BLOCK) + begun
    return windows.full * plain + windows.windowed * min(plain, most)


def answer(r):
    """Blocks of a request with all its tokens but the last, which is never fed, or of its prefill that is to come."""
    plain, windows = sample_groups.whole(r, BLOCK), r["windows"]
    if windows is None:
        return plain
    shared = r["prompt"] // BLOCK if sequences(r) > 1 else 0
    own = [ceil((r["prompt"] + n - 1) / BLOCK) - shared for n in r["answers"] if n > 1]
    last = min(shared, kept(r)) + sum(min(n, kept(r)) for n in own) if own else window(r, r["prompt"])
    decoding = windows.full * plain + windows.windowed * last
    return decoding if r["decodes"] else max(prompt_blocks(r), decoding)


def seats(requests):
    return sum(map(sequences, requests))


class RankTwin:
    """One rank, step by step; a step is what is begun, as (who, tokens before, after), and who decodes."""

    def __init__(self, case):
        self.case, self.limits = case, case.limits
        self.waiting, self.line, self.ghosts = [], [], []
        self.counters, self.last, self.decoded = {}, None, 0
        self.wake = inf

    # -- the queue

    def join(self, r, first=False):
        if self.case.order == "fair" and not any(w["tenant"] == r["tenant"] for w in self.waiting):
            levels = [self.counters[w["tenant"]] for w in self.waiting] or [self.counters.get(self.last, 0)]
            self.counters[r["tenant"]] = max(self.counters.get(r["tenant"], 0), min(levels))
        if first:
            self.charge(r, -self.weight("input") * r["prompt"])
        self.waiting.insert(0 if first else len(self.waiting), r)
        tokens, order, asked = whole(r), self.case.order, self.case.parameters
        if order == "shortest_predicted":
            r["key"] = r["prompt"] + sequences(r) * max(0, r["predicted"] - r["made"])
            r["key"] += r["at"] / asked.ageing if asked.ageing is not None else 0
        elif order == "least_slack":
            r["key"] = r["at"] + TTFT_NS - self.case.costs.prefill_ns(tokens, sample_groups.pairs(r, 0, tokens), 1)
        elif order == "priority":
            r["key"] = -r["priority"]

    def weight(self, of):
        return getattr(self.case.parameters, f"{of}_weight") if self.case.order == "fair" else 0

    def charge(self, r, service):
        self.counters[r["tenant"]] = self.counters.get(r["tenant"], 0) + service

    def queue(self):
        if self.case.order == "fcfs":
            return [*self.waiting]
        if self.case.order != "fair":
            return sorted(self.waiting, key=lambda r: (r["key"], r["id"]))
        counters, left, order = dict(self.counters), [*self.waiting], []
        while left:
            tenant = min((t for t in counters if any(r["tenant"] == t for r in left)), key=counters.get)
            order.append(next(r for r in left if r["tenant"] == tenant))
            left.remove(order[-1])
            counters[tenant] += self.weight("input") * order[-1]["prompt"]
        return order

    def take(self, chosen, now):
        for r in chosen:
            self.waiting.remove(r)
            self.line.append(r)
            self.charge(r, self.weight("input") * r["prompt"])
            self.last = r["tenant"]
            r["decodes"] = False
            r.setdefault("start", now)

    # -- memory

    def used(self):
        return sum(map(blocks, self.line)) + sum(g["blocks"] for g in self.ghosts)

    def growth(self):
        """Blocks that a step of all who decode takes."""
        return sum(blocks(r, 1) - blocks(r) for r in self.line if r["decodes"])

    def preempt(self):
        victim = self.line[-1]
        if self.case.order == "priority":
            victim = min(self.line, key=lambda r: (r["priority"], -r["id"]))
        self.line.remove(victim)
        victim |= {"held": 0, "before": 0, "whole": 0, "decodes": False, "preemptions": victim["preemptions"] + 1}
        self.join(victim, first=True)
        return victim

    def outranked(self):
        """Whether the next in line finds no place, its batcher would take it, and somebody below it runs."""
        closed = BATCHERS[self.case.batcher].to_completion or self.decodes_first()
        if not self.case.preempts or not self.waiting or not self.line or closed:
            return False
        head, free = self.queue()[0], self.blocks_free()
        if min(r["priority"] for r in self.line) >= head["priority"]:
            return False
        if self.case.batcher == "orca" and sum(answer(r) for r in [*self.line, head]) > self.case.blocks:
            return True
        need, begun = prompt_blocks(head), any(not r["decodes"] for r in self.line)
        if self.case.batcher == "chunked_prefill" and not begun and self.growth() <= free < need + self.growth():
            return True
        return seats([*self.line, head]) > self.limits.max_running or need > free

    def blocks_free(self):
        return self.case.blocks - self.used()

    # -- batchers

    def plan(self, now):
        self.wake = inf
        while self.outranked():
            self.preempt()
        begun, decoding = getattr(self, self.case.batcher)(now)
        self.decoded = 0 if begun else self.decoded + bool(decoding)
        return begun, decoding

    def decode(self):
        while self.growth() > self.blocks_free():
            self.preempt()
        for r in [*self.line, *self.ghosts]:
            r["held"] += 1
        return [], [*self.line]

    def prefill(self, chosen, now, budget=inf):
        self.take(chosen, now)
        for r in chosen:
            r["whole"] = whole(r)
        return [self.part(r, budget) for r in chosen], []

    def part(self, r, budget):
        before, r["held"] = r["held"], min(whole(r), r["held"] + budget)
        return r, before, r["held"]

    def slices(self):
        return [self.part(r, self.limits.max_batch_tokens) for r in self.line if not r["decodes"]]

    def decodes_first(self):
        steps = self.limits.decode_steps if self.case.batcher == "continuous" else None
        return bool(steps and any(r["decodes"] for r in self.line) and self.decoded < steps) and not any(
            not r["decodes"] for r in self.line
        )

    def continuous(self, now):
        if begun := self.slices():
            return begun, []
        chosen, budget = [], self.limits.max_batch_tokens
        for r in [] if self.decodes_first() else self.queue():
            seated = seats([*self.line, *chosen, r]) <= self.limits.max_running
            tokens = sum(whole(c) for c in [*chosen, r])
            fits = sum(map(prompt_blocks, [*chosen, r])) <= self.blocks_free()
            if not seated or not fits or (chosen and tokens > budget):
                break
            chosen.append(r)
        return self.prefill(chosen, now, budget) if chosen else self.decode()

    def orca(self, now):
        chosen, decoding = [], [*self.line]
        for r in self.queue():
            everyone = [*self.line, *chosen, r]
            tokens = sum(whole(c) for c in [*chosen, r])
            if seats(everyone) > self.limits.max_running or sum(answer(c) for c in everyone) > self.case.blocks:
                break
            if chosen and tokens > self.limits.max_batch_tokens:
                break
            chosen.append(r)
        for r in decoding:
            r["held"] += 1
        return self.prefill(chosen, now)[0], decoding

    def batch(self):
        chosen = []
        for r in self.queue():
            batch = [*chosen, r]
            tokens = max(whole(c) for c in batch) * len(batch)
            if seats(batch) > self.limits.max_running or sum(answer(c) for c in batch) > self.case.blocks:
                break
            if chosen and tokens > self.limits.max_batch_tokens:
                break
            chosen.append(r)
        return chosen

    def static(self, now):
        if begun := self.slices():
            return begun, []
        if self.line:
            begun, decoding = self.decode()
            return begun, [*decoding, *self.ghosts]
        begun, _ = self.prefill(self.batch(), now, self.limits.max_batch_tokens)
        longest = max((after for _, _, after in begun), default=0)
        return [(r, 0, longest) for r, _, _ in begun], []

    def dynamic(self, now):
        if not self.line and self.waiting:
            batch = self.batch()
            due = self.queue()[0]["at"] + self.limits.max_delay
            if seats(batch) < self.limits.max_running and len(batch) == len(self.waiting) and now < due:
                self.wake = due
                return [], []
        return self.static(now)

    def chunked_prefill(self, now):
        budget, begun, spent, admits = self.limits.max_batch_tokens, [], {}, True
        most = self.limits.long_prefill_threshold or inf
        for r in [*self.line]:
            tokens = min(whole(r) - r["held"], most, budget)
            if not tokens:
                break
            while r in self.line and blocks(r, tokens) - blocks(r) > self.blocks_free():
                budget += spent.pop(self.preempt()["id"], 0)
                admits = False
            if r in self.line:
                r["held"] += tokens
                spent[r["id"]] = tokens * (sequences(r) if r["decodes"] else 1)
                budget -= spent[r["id"]]
        going = [r for r in self.line if r["id"] in spent]
        begun = [(r, r["held"] - spent[r["id"]], r["held"]) for r in going if not r["decodes"]]
        decoding = [r for r in going if r["decodes"]]
        for r in self.queue() if admits else ():
            fits = prompt_blocks(r) <= self.blocks_free()
            if not budget or seats([*self.line, r]) > self.limits.max_running or not fits:
                break
            self.take([r], now)
            begun.append(self.part(r, min(most, budget)))
            budget -= r["held"]
        return begun, decoding

    # -- the end of a step

    def end(self, begun, decoding, now):
        """Count the tokens that a step has made, and return who ends: those who decoded, then those begun."""
        over = []
        for r in self.line:
            r["before"] = r["held"]
        for r in [*sorted(decoding, key=lambda r: r["id"]), *(r for r, _, _ in begun)]:
            if r in self.ghosts or r["held"] < whole(r):
                continue
            r["held"] = r["prompt"] + r["made"]
            r["made"] += 1
            self.charge(r, self.weight("output") * sequences(r))
            r["decodes"], r["whole"] = True, 0
            if r["made"] >= min(self.case.chunk, *r["answers"]):
                r.setdefault("first", now)
            before = blocks(r)
            gone = sample_groups.leave(r)
            if r["made"] == max(r["answers"]):
                r["finish"] = now
                over.append(r)
                self.line.remove(r)
            if gone and BATCHERS[self.case.batcher].to_completion:
                freed = before if "finish" in r else before - blocks(r)
                self.ghosts.append({"held": r["held"], "blocks": freed, "id": inf, "samples": gone})
        self.line.sort(key=lambda r: not r["decodes"])
        if not self.line:
            self.ghosts = []
        return over


def length(case, plans):
    """Ticks of an iteration of all ranks; each sequence decodes for itself."""
    plans = [(begun, [r for r in decoding for _ in range(sequences(r))]) for begun, decoding in plans]
    if case.ranks == 1:
        return step_ticks(case.costs, *plans[0])
    works = []
    for begun, decoding in plans:
        tokens = sum(after - before for _, before, after in begun)
        pairs = sum(sample_groups.pairs(*part) for part in begun)
        works.append((tokens, pairs, len(begun), len(decoding), sum(r["held"] for r in decoding)))
    return round(case.costs.together_ns(works) * TICK)


def walk(workload, case):
    arrivals = [
        {"id": i, "at": at, "prompt": prompt, "tenant": f"t{kind}", "priority": kind}
        | {"predicted": predicted, "made": 0, "held": 0, "whole": 0, "preemptions": 0, "decodes": False}
        | {"before": 0, "windows": case.windows}
        | {"answers": sample_groups.answers(output, *group), "samples": group[0] if group else 1}
        for i, (at, (_, prompt, output, kind, predicted, *group)) in enumerate(
            zip(accumulate(w[0] for w in workload), workload, strict=True)
        )
    ]
    ranks, loads, turn = [RankTwin(case) for _ in range(case.ranks)], [0] * case.ranks, 0
    ticks, done = 0, {}

    def arrive():
        nonlocal turn
        while arrivals and arrivals[0]["at"] <= ticks // TICK:
            in_turn = [*range(turn + 1, case.ranks), *range(turn + 1)] if case.ranks > 1 else [0]
            turn = min(in_turn, key=loads.__getitem__)
            loads[turn] += 1
            ranks[turn].join(arrivals.pop(0))

    while arrivals or any(rank.waiting or rank.line for rank in ranks):
        arrive()
        plans = [rank.plan(ticks // TICK) for rank in ranks]
        if not any(begun or decoding for begun, decoding in plans):
            next_ns = min([rank.wake for rank in ranks] + [r["at"] for r in arrivals[:1]])
            ticks = max(ticks, next_ns * TICK)
            continue
        ticks += length(case, plans)
        arrive()  # before what ends at the same instant
        for index, (rank, (begun, decoding)) in enumerate(zip(ranks, plans, strict=True)):
            for r in rank.end(begun, decoding, ticks // TICK):
                loads[index] -= 1
                done[r["id"]] = r
    return done


def check(workload, case):
    done, seen = run(workload, case)
    twin = walk(workload, case)
    assert {i: (r["start"], r["first"], r["finish"], r["preemptions"]) for i, r in sorted(twin.items())} == {
        i: (r.prefill_start_ns, r.first_token_ns, r.finish_ns, r.preemptions) for i, r in sorted(done.items())
    }
    assert len(done) == len(workload)
    assert seen.kv_max <= case.blocks * case.ranks
    answers = [sample_groups.answers(w[2], *w[5:]) for w in workload]
    assert seen.tokens == sum(map(sum, answers)) == sum(r.made_tokens for r in done.values())
    assert seen.gaps_total == seen.tokens - sum(map(len, answers))
    assert all(done[i].output_tokens == max(lengths) for i, lengths in enumerate(answers))


workloads = st.lists(
    st.tuples(
        st.one_of(st.just(0), st.integers(0, 300_000)),
        st.integers(1, 40),
        st.integers(1, 30),
        st.integers(0, 2),
        st.integers(1, 40),
    ),
    min_size=1,
    max_size=16,
)
all_lengths = st.lists(
    st.lists(st.one_of(st.integers(1, 3), st.integers(1, 30)), min_size=3, max_size=3), min_size=16, max_size=16
)
several_answers = st.lists(st.integers(1, 4), min_size=16, max_size=16)
mixed_costs = all_costs.map(lambda c: Costs(**vars(c)))


@st.composite
def engines(draw, costs=mixed_costs, most_ranks=1, windowed=False):
    """A workload and an engine with barely the memory it needs."""
    workload, batcher, order = draw(workloads), draw(st.sampled_from([*BATCHERS])), draw(st.sampled_from([*ORDERS]))
    running, more = draw(st.integers(1, 6)), draw(st.integers(0, 60))
    if draw(st.booleans()):
        running *= 2
        workload = [(*w, min(n, running)) for w, n in zip(workload, draw(several_answers), strict=False)]
        if draw(st.booleans()):
            lengths = draw(all_lengths)
            workload = [(*w, each[: w[5] - 1]) for w, each in zip(workload, lengths, strict=False)]
    given = {"max_running": running, "max_batch_tokens": running + more}
    if batcher == "continuous":
        given["decode_steps"] = draw(st.one_of(st.none(), st.integers(1, 20)))
    if batcher == "chunked_prefill":
        given["long_prefill_threshold"] = draw(st.one_of(st.none(), st.integers(1, 20)))
    if batcher == "dynamic":
        given["max_delay"] = draw(st.integers(0, 400_000))
    asked = {}
    if order == "shortest_predicted":
        asked["ageing"] = draw(st.one_of(st.none(), st.integers(1, 50_000)))
    if order == "priority":
        asked["preempt"] = draw(st.booleans())
    if order == "fair":
        asked = {"input_weight": draw(st.integers(1, 3)), "output_weight": draw(st.integers(1, 3))}
    limits = BATCHERS[batcher].parameters.model_construct(**fill(BATCHERS[batcher].parameters, given))
    parameters = ORDERS[order].parameters.model_construct(**fill(ORDERS[order].parameters, asked))
    reserves = batcher in ("orca", "static", "dynamic")
    groups = [{"prompt": w[1], "answers": sample_groups.answers(w[2], *w[5:])} for w in workload]
    most = max((sample_groups.whole if reserves else sample_groups.most)(group, BLOCK, 1) for group in groups)
    windows = None
    if windowed:
        part = limits.max_batch_tokens if BATCHERS[batcher].slices else 1000
        windows = Windows(draw(st.integers(0, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 40)), part)
        most *= windows.full + windows.windowed  # more than enough where windows are short
    blocks = most + draw(st.integers(0, 12))
    ranks = draw(st.integers(2, most_ranks)) if most_ranks > 1 else 1
    chunk = draw(st.sampled_from([0, 0, 2, 7, 40]))
    return workload, Case(batcher, limits, order, parameters, draw(costs), blocks, ranks, chunk, windows)


def fill(parameters, given):
    """Parameters by name, the others as they are by default."""
    return {name: field.default for name, field in parameters.model_fields.items()} | given


@settings(max_examples=300, deadline=None)
@given(engines())
def test_equal_to_token_by_token(found):
    check(*found)


@pytest.mark.nightly
@settings(max_examples=10_000, deadline=None)
@given(engines())
def test_equal_to_token_by_token_at_length(found):
    check(*found)


rank_costs = st.builds(
    lambda c, stages: Together(**vars(c), stages=stages), all_costs, st.one_of(st.just(10**9), st.integers(1, 4))
)
several = engines(rank_costs, 4)


@settings(max_examples=300, deadline=None)
@given(several)
def test_ranks_in_lock_step_equal_token_by_token(found):
    check(*found)


@pytest.mark.nightly
@settings(max_examples=10_000, deadline=None)
@given(several)
def test_ranks_in_lock_step_equal_token_by_token_at_length(found):
    check(*found)


@settings(max_examples=400, deadline=None)
@given(engines(windowed=True))
def test_windows_that_are_given_back_equal_token_by_token(found):
    check(*found)


@pytest.mark.nightly
@settings(max_examples=10_000, deadline=None)
@given(st.one_of(engines(windowed=True), engines(rank_costs, 4, windowed=True)))
def test_windows_that_are_given_back_equal_token_by_token_at_length(found):
    check(*found)
