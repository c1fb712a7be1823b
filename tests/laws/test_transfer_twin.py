"""Every way to move a KV cache equals a pair of engines that walks every token, every layer and every message.

The network is one cable here, on which messages queue (the fabric has its own laws). The twin keeps lists of what each
request holds and one list per request of the layers that are computed and have not left.
"""

from heapq import heappop, heappush
from math import ceil

import pytest
import sample_groups
from hypothesis import given, settings
from hypothesis import strategies as st
from sample_groups import sequences
from test_decode_jumps import TICK, Costs, Seen

from simulator.clock import Clock
from simulator.serving.batching import BATCHERS, Continuous
from simulator.serving.disaggregation import RETRY_NS, Caches, KVTransfer
from simulator.serving.instance import Engine
from simulator.serving.jump import StepTicks
from simulator.serving.kv_layout import KVLayout
from simulator.serving.lone_rank import kind_of
from simulator.serving.pool import Pool
from simulator.serving.request import PLAIN, Request, Traits
from simulator.serving.routing import RoundRobin
from simulator.serving.transfer_rules import Fallback, TransferRules

BLOCK = 4
LAYERS = 5


class Cable:
    """A network of one cable: messages in order of sending, so many ns a byte, each with a latency behind it."""

    def __init__(self, env, latency_ns, byte_ns):
        self.env, self.latency_ns, self.byte_ns, self.free_ns, self.bytes = env, latency_ns, byte_ns, 0, 0

    def transfer(self, shards):
        size = sum(size for _, _, size in shards)
        self.bytes += size
        if not size:
            return self.env.timeout(self.latency_ns)
        self.free_ns = max(self.free_ns, self.env.now) + size * self.byte_ns
        return self.env.timeout(self.free_ns + self.latency_ns - self.env.now)


def moving(workload, costs, limits, blocks, cable, rules):
    env, done = Clock(), {}
    network = Cable(env, *cable)
    pools = [Pool("prefill", RoundRobin()), Pool("decode", RoundRobin())]
    alone = KVLayout(1, ((0, LAYERS),))
    mover = KVTransfer(env, network, *pools, Caches({"prefill": alone, "decode": alone}, LAYERS, 1), rules)
    for pool, count in zip(pools, blocks, strict=True):

        def finished(request, instance, pool=pool):
            pool.left(instance, request)
            mover.ended(request)
            done[request.request_id] = request

        first = pool is pools[0]
        engine = Engine(pool.role, costs, StepTicks(costs), BATCHERS["continuous"].policy, limits, count, BLOCK, 0)
        hears = (mover.hand_over, mover.began) if first else (None, None)
        pool.add(kind_of(engine)(env, pool.role, engine, (0 if first else 1,), Seen(), finished, *hears))

    def source():
        for index, (gap, prompt, output, *group) in enumerate(workload):
            yield env.timeout(gap)
            traits = Traits(samples=group[0], sample_tokens=group[1]) if group else PLAIN
            mover.enter(Request(index, env.now, prompt, output, traits=traits))

    env.process(source())
    while env.peek() != float("inf"):
        env.step()
        for pool in pools:
            pool.instances[0].check()
    assert [pool.outstanding for pool in pools] == [[0], [0]]
    assert [pool.instances[0].used_blocks() for pool in pools] == [0, 0]
    assert mover.unplaced == 0
    columns = "prefill_start_ns first_token_ns kv_wait_ns kv_transfer_ns decode_start_ns finish_ns preemptions"
    names = [*columns.split(), "decode_instance", "made_tokens"]
    found = {i: tuple(getattr(r, name) for name in names) for i, r in done.items()}
    return found, network.bytes, mover.kept, {i: r.kv_transfer_bytes for i, r in done.items()}


def held_blocks(r, more=0):
    """Distinct blocks of `kv` tokens, and more, in each sequence of a request or of one that has a place."""
    return sample_groups.blocks(r.get("r", r), r["kv"] + more, BLOCK, True)


def seats(requests):
    return sum(sequences(r.get("r", r)) for r in requests)


class Twin:
    """Both engines, one iteration at a time; a list of what has to happen, by (ns, rank, sequence)."""

    def __init__(self, workload, costs, limits, blocks, cable, rules):
        self.costs, self.limits, self.rules = costs, limits, rules
        self.latency_ns, self.byte_ns = cable
        self.free_ns = self.bytes = self.kept = self.now = self.sequence = self.unplaced = 0
        self.agenda, self.done = [], {}
        lists = ("waiting", "running", "held", "ready", "asking", "partial")
        self.engines = [
            {"name": name, "rank": rank, "total": total, "busy": None, "ticks": 0} | {key: [] for key in lists}
            for name, rank, total in zip(("prefill", "decode"), (2, 3), blocks, strict=True)
        ]
        step = rules.layers_per_message or LAYERS
        self.groups = [(at, min(at + step, LAYERS)) for at in range(0, LAYERS, step)]
        at = 0
        for index, (gap, prompt, output, *group) in enumerate(workload):
            at += gap
            r = {"id": index, "prompt": prompt, "made": 0, "preempted": 0, "wait": 0, "moving": 0, "over": 0}
            r |= {"answers": sample_groups.answers(output, *group)}
            r |= {"samples": len(r["answers"])}
            self.at(at, 0, self.arrive, r | {"computed": 0, "place": None, "move": None})

    def at(self, ns, rank, act, *arguments):
        self.sequence += 1
        heappush(self.agenda, (ns, rank, self.sequence, act, arguments))

    def run(self):
        while self.agenda:
            self.now, _, _, act, arguments = heappop(self.agenda)
            act(*arguments)
        return self.done, self.bytes, self.kept

    # -- a request's way --

    def arrive(self, r):
        if self.rules.reserves in ("on_arrival", "before_prefill"):
            self.ask(r, r["prompt"])
        if self.rules.reserves != "before_prefill":
            self.submit(r)

    def submit(self, r):
        self.engines[0]["waiting"].append(r)
        self.wake(self.engines[0])

    def ask(self, r, tokens):
        r["place"] = {"r": r, "kv": tokens, "granted": None}
        r["move"] = {"queue": [], "handed": None, "left": 0, "sent_all_at": 0, "over": False}
        self.engines[1]["asking"].append(r["place"])
        self.grant(self.engines[1])

    def granted(self, r):
        if self.rules.reserves == "before_prefill" and r["computed"] == 0 and "start" not in r:
            self.submit(r)
        move = r["move"]
        if move is None:  # it ended in this very nanosecond
            return
        if move["handed"] is not None and move.pop("waits", False):
            r["wait"] += self.now - move["handed"]
            self.unplaced -= 1
        self.pump(r, move)

    def pump(self, r, move):
        """Send every layer that is computed, and look again when the next is."""
        if r["place"] is None or r["move"] is not move or r["place"]["granted"] is None or move["over"]:
            return
        while move["queue"] and move["queue"][0][0] <= self.now:
            _, layers, count = move["queue"].pop(0)
            self.send(move, layers * count)
        if move["queue"]:
            self.at(move["queue"][0][0], 1, self.pump, r, move)
        elif move["handed"] is not None and not move["left"]:
            self.arrived(r, move)

    def send(self, move, size):
        self.bytes += size
        move["left"] += 1
        r = move["r"]
        if self.rules.direction == "pull":
            self.at(self.now + 2 * self.latency_ns, 1, self.leave, r, move, size)
        else:
            self.leave(r, move, size)

    def leave(self, r, move, size):
        self.free_ns = max(self.free_ns, self.now) + size * self.byte_ns
        self.at(self.free_ns + self.latency_ns, 1, self.landed, r, move)

    def landed(self, r, move):
        move["left"] -= 1
        if not move["left"] and not move["queue"]:
            if move["over"]:
                self.give_up(r)
            elif move["handed"] is not None:
                self.arrived(r, move)

    def arrived(self, r, move):
        target = self.engines[1]
        r["moving"] += self.now - max(move["handed"], r["place"]["granted"])
        copy = r | {"kv": r["place"]["kv"], "place": None, "move": None}
        target["held"].remove(r["place"])
        target["held"].append(copy | {"coming": True})
        target["ready"].append(target["held"][-1])
        self.wake(target)
        if self.rules.direction == "pull":
            self.at(self.now + self.latency_ns, 1, self.freed, r)
        else:
            self.freed(r)

    def freed(self, r):
        source = self.engines[0]
        source["held"].remove(r)
        if source["waiting"]:
            self.wake(source)

    def give_up(self, r):
        place, target = r["place"], self.engines[1]
        r["place"] = r["move"] = None
        if place["granted"] is None:
            target["asking"].remove(place)
        else:
            target["held"].remove(place)
        self.grant(target)
        if target["waiting"]:
            self.wake(target)

    def may_keep(self, r, move):
        if r["move"] is not move or not move.get("waits"):
            return
        fallback, source = self.rules.fallback, self.engines[0]
        waited = self.now - move["handed"]
        late = fallback.after is not None and waited >= fallback.after
        many = fallback.waiting is not None and not waited and self.unplaced - 1 >= fallback.waiting
        taken = seats([*source["running"], *source["partial"], *(h for h in source["held"] if "coming" in h), r])
        fits = sample_groups.most(r, BLOCK) <= source["total"]
        if (late or many) and fits and taken <= self.limits.max_running:
            r["wait"] += waited
            self.unplaced -= 1
            self.kept += 1
            move["waits"] = False
            r["coming"] = True
            source["ready"].append(r)
            self.wake(source)
            self.give_up(r)
        elif fallback.after is not None:
            left = fallback.after - waited if waited < fallback.after else max(fallback.after, RETRY_NS)
            self.at(self.now + left, 1, self.may_keep, r, move)

    # -- an engine --

    def wake(self, engine):
        if engine["busy"] is None:
            engine["busy"] = "waking"
            engine["ticks"] = self.now * TICK
            self.at(self.now, engine["rank"], self.decide, engine)

    def used(self, engine):
        one = 1 if engine["busy"] == "step" else 0
        return sum(held_blocks(r, one) for r in engine["running"]) + sum(map(held_blocks, engine["held"]))

    def taken(self, engine):
        held = [r for r in engine["held"] if "coming" in r or "r" in r]
        return seats([*engine["running"], *engine["partial"], *held])

    def decide(self, engine):
        for r in engine["ready"]:
            engine["held"].remove(r)
            engine["running"].append(r)
            del r["coming"]
            r["by"] = engine["name"]
        engine["ready"], engine["busy"] = [], None
        batch = self.admit(engine)
        if batch:
            self.begin(engine, batch)
            return
        engine["busy"] = "step"
        crowded = engine["running"] and self.used(engine) > engine["total"]
        while engine["running"] and self.used(engine) > engine["total"]:
            victim = engine["running"].pop()
            victim["preempted"] += 1
            victim["computed"] = 0
            engine["waiting"].insert(0, victim)
        if not engine["running"]:
            engine["busy"] = None
            if crowded:  # only what is on its way is left: look again
                engine["busy"] = "waking"
                self.at(self.now, engine["rank"], self.decide, engine)
            return
        for r in engine["running"]:
            r.setdefault("decode", self.now)
        context = sum(sequences(r) * (r["kv"] + 1) for r in engine["running"])
        fixed, slope, _ = self.costs.decode(seats(engine["running"]), context)
        engine["ticks"] += round(fixed * TICK) + round(slope * TICK) * context
        self.at(engine["ticks"] // TICK, engine["rank"], self.ends, engine, None)

    def admit(self, engine):
        """Those begun go on, a slice at a time; else who comes first as long as all fit."""
        budget = self.limits.max_batch_tokens
        if engine["partial"]:
            [r] = engine["partial"]  # a long one is alone
            return [(r, min(budget, sample_groups.total(r) - r["computed"]))]
        batch, tokens, used, free = [], 0, self.used(engine), self.limits.max_running - self.taken(engine)
        for r in engine["waiting"]:
            need = sample_groups.total(r)
            used += sample_groups.blocks(r, need, BLOCK)
            free -= sequences(r)
            if free < 0 or used > engine["total"] or (batch and tokens + need > budget):
                break
            batch.append((r, min(need, budget)))
            tokens += need
        del engine["waiting"][: len(batch)]
        for r, _ in batch:
            r["kv"] = r["prompt"] + r["made"]
            r.setdefault("start", self.now)
            engine["held"].append(r)
            engine["partial"].append(r)
        return batch

    def begin(self, engine, batch):
        tokens = sum(count for _, count in batch)
        pairs = sum(sample_groups.pairs(r, r["computed"], r["computed"] + count) for r, count in batch)
        engine["ticks"] += round(self.costs.prefill_ns(tokens, pairs, len(batch)) * TICK)
        engine["busy"] = "prefill"
        end = engine["ticks"] // TICK
        self.at(end, engine["rank"], self.ends, engine, batch)
        if engine is self.engines[0] and self.rules.mode == "layerwise":
            for r, count in batch:
                if r.get("by") == "prefill":
                    continue
                if r["move"] is None:
                    self.ask(r, r["prompt"] + r["made"])
                move = r["move"]
                for first, last in self.groups:
                    ready = self.now + ceil((end - self.now) * last / LAYERS)
                    move["queue"].append((ready, last - first, count))
                if len(move["queue"]) == len(self.groups):  # else it is looked after, or waits for a place
                    self.at(self.now, -1, self.pump, r, move)
        self.grant(engine)

    def ends(self, engine, batch):
        engine["busy"] = "between"
        if batch is None:
            self.stepped(engine)
        else:
            self.prefilled(engine, batch)
        self.decide(engine)

    def prefilled(self, engine, batch):
        for r, count in batch:
            r["computed"] += count
            if r["computed"] < sample_groups.total(r):
                continue
            engine["partial"].remove(r)
            r["made"] += 1
            r.setdefault("first", self.now)
            if self.complete(r):
                engine["held"].remove(r)
                self.finish(r)
                if r["move"] is not None:
                    self.cancel(r, r["move"])
            elif engine is self.engines[0] and r.get("by") == "prefill":  # it has begun to decode here before
                r["coming"] = True
                engine["ready"].append(r)
            elif engine is self.engines[0]:
                self.at(self.now, -1, self.handed, r)
            else:
                engine["held"].remove(r)
                engine["running"].append(r)
                r["by"] = engine["name"]
        self.grant(engine)

    def cancel(self, r, move):
        move["over"] = True
        move["queue"] = []
        if not move["left"]:
            self.give_up(r)

    def handed(self, r):
        if r["move"] is None:
            self.ask(r, r["prompt"] + r["made"] - 1)
        move = r["move"]
        move["handed"] = self.now
        self.grant(self.engines[1])  # answers of one token have given their seats back
        if self.engines[1]["waiting"]:
            self.wake(self.engines[1])
        if self.rules.mode == "whole":
            move["queue"].append((self.now, LAYERS, r["place"]["kv"]))
        if r["place"]["granted"] is None:
            move["waits"] = True
            self.unplaced += 1
            if self.rules.fallback is not None:
                self.may_keep(r, move)
        else:
            self.pump(r, move)

    def complete(self, r):
        """Let the answers go that have all their tokens; return whether those are all."""
        r["over"] += r["made"] * sample_groups.leave(r)
        return r["made"] == max(r["answers"])

    def stepped(self, engine):
        before, finished = seats(engine["running"]), []
        for r in engine["running"]:
            r["kv"] += 1
            r["made"] += 1
            if self.complete(r):
                finished.append(r)
        for r in finished:
            engine["running"].remove(r)
            self.finish(r)
        if seats(engine["running"]) < before:
            self.grant(engine)

    def finish(self, r):
        times = r["start"], r["first"], r["wait"], r["moving"], r.get("decode", -1), self.now
        self.done[r["id"]] = (*times, r["preempted"], r.get("by"), r["over"])

    def grant(self, engine):
        while engine["asking"] and not engine["waiting"]:
            place = engine["asking"][0]
            if self.taken(engine) + sequences(place["r"]) > self.limits.max_running:
                return
            if self.used(engine) + held_blocks(place) > engine["total"]:
                return
            engine["asking"].pop(0)
            engine["held"].append(place)
            place["granted"] = self.now
            place["r"]["move"]["r"] = place["r"]
            self.at(self.now, -1, self.granted, place["r"])


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
all_rules = st.one_of(
    st.builds(
        TransferRules,
        mode=st.just("layerwise"),
        direction=st.sampled_from(["push", "pull"]),
        reserve=st.sampled_from(["before_prefill", "on_arrival", "on_prefill_start"]),
        layers_per_message=st.integers(1, 6),
        fallback=st.one_of(st.none(), st.builds(Fallback, after=st.integers(0, 200_000).map("{} ns".format))),
    ),
    st.builds(
        TransferRules,
        direction=st.sampled_from(["push", "pull"]),
        reserve=st.sampled_from(["before_prefill", "on_arrival", "on_prefill_end"]),
        fallback=st.one_of(
            st.none(),
            st.builds(Fallback, after=st.integers(0, 200_000).map("{} ns".format)),
            st.builds(Fallback, waiting=st.integers(1, 3)),
        ),
    ),
)
cases = (
    workloads,
    all_costs,
    st.integers(1, 6),
    st.integers(1, 120),
    st.tuples(st.integers(0, 12), st.integers(0, 12)),
    st.tuples(st.integers(1, 20_011), st.integers(1, 501)),
    all_rules,
    st.one_of(st.just([()] * 20), sample_groups.several(20, 60)),
)


@settings(max_examples=300, deadline=None)
@given(*cases)
def test_equal_to_layer_by_layer(workload, costs, max_running, max_tokens, spare, cable, rules, groups):
    workload = sample_groups.within(workload, groups, max_running)
    prompts = max(ceil(prompt / BLOCK) for _, prompt, *_ in workload)
    each = [{"prompt": w[1], "answers": sample_groups.answers(*w[2:])} for w in workload]
    whole = max(sample_groups.most(group, BLOCK, 1) for group in each)
    blocks = (prompts + spare[0], whole + spare[1])
    limits = Continuous(max_running=max_running, max_batch_tokens=max_tokens)
    found, moved, kept, by_request = moving(workload, costs, limits, blocks, cable, rules)
    assert (found, moved, kept) == Twin(workload, costs, limits, blocks, cable, rules).run()
    assert len(found) == len(workload)
    assert sum(by_request.values()) == moved
    assert {i: row[-1] for i, row in found.items()} == {i: sum(group["answers"]) for i, group in enumerate(each)}


@pytest.mark.nightly
@settings(max_examples=10_000, deadline=None)
@given(*cases)
def test_equal_to_layer_by_layer_at_length(workload, costs, max_running, max_tokens, spare, cable, rules, groups):
    inner_test = test_equal_to_layer_by_layer.hypothesis.inner_test
    inner_test(workload, costs, max_running, max_tokens, spare, cable, rules, groups)


def alone(role, costs, limits, blocks, feed):
    """Run one engine; `feed(env, instance)` is a process that gives it requests."""
    env, done = Clock(), {}

    def finished(request, instance):
        done[request.request_id] = request

    engine = Engine(role, costs, StepTicks(costs), BATCHERS["continuous"].policy, limits, blocks, BLOCK, 0)
    env.process(feed(env, kind_of(engine)(env, role, engine, (0,), Seen(), finished)))
    env.run()
    return done


@settings(max_examples=100, deadline=None)
@given(workloads, all_costs, st.integers(1, 120), all_rules)
def test_an_infinite_network_is_an_ideal_split(workload, costs, max_tokens, rules):
    """Prefill alone, then decode alone of what is prefilled, its keys and values there at once."""
    plenty = sum(ceil((prompt + output) / BLOCK) for _, prompt, output in workload)
    many = Continuous(max_running=len(workload) + 1, max_batch_tokens=max_tokens)

    def prompts(env, instance):
        for index, (gap, prompt, _) in enumerate(workload):
            yield env.timeout(gap)
            instance.submit(Request(index, env.now, prompt, 1))

    first = {i: r.first_token_ns for i, r in alone("prefill", costs, many, plenty, prompts).items()}

    def ready(env, instance):
        for index, at_ns in sorted(first.items(), key=lambda item: (item[1], item[0])):
            _, prompt, output = workload[index]
            if output == 1:
                continue
            if at_ns > env.now:
                yield env.timeout(at_ns - env.now)
            request = Request(index, env.now, prompt, output)
            request.generated = 1
            instance.join(request, instance.reserve(request, prompt))
        yield env.timeout(0)

    last = {i: r.finish_ns for i, r in alone("decode", costs, many, plenty, ready).items()}
    found, _, kept, _ = moving(workload, costs, many, (plenty, plenty), (0, 0), rules)
    assert not kept
    assert {i: (row[1], row[5]) for i, row in found.items()} == {i: (first[i], last.get(i, first[i])) for i in found}
    assert all(row[2] == row[3] == 0 for row in found.values())


def test_one_request_by_hand():
    """30 tokens, five layers, a cable of 3 ns a byte with 1,000 ns behind it; prefill of 20,000 ns."""
    costs = Costs(100.0, 0.0, 0.0, 20_000.0, 0.0, 0.0)
    limits = Continuous(max_running=4, max_batch_tokens=100)

    def arrives(**rules):
        found, moved, _, _ = moving([(5, 30, 3)], costs, limits, (50, 50), (1000, 3), TransferRules(**rules))
        assert moved == 150
        return found[0][4] - found[0][1]  # from the first token to the first decode step

    assert arrives() == 1000 + 150 * 3
    assert arrives(direction="pull") == 2000 + 1000 + 150 * 3
    # what is left when prefill ends: the last layers
    assert arrives(mode="layerwise", layers_per_message=1) == 1000 + 30 * 3
    assert arrives(mode="layerwise", layers_per_message=2) == 1000 + 30 * 3
    assert arrives(mode="layerwise", layers_per_message=3) == 1000 + 60 * 3
    assert arrives(mode="layerwise", layers_per_message=5) == arrives()
    slow = TransferRules(mode="layerwise", layers_per_message=1)
    found, _, _, _ = moving([(0, 30, 3)], costs, limits, (50, 50), (1000, 300), slow)
    assert found[0][4] == 4000 + 150 * 300 + 1000  # the cable is busy from the first layer on
