"""Balancing as an actor: costs follow popularity at once and placement when weights have moved, by what was counted."""

from operator import attrgetter
from types import SimpleNamespace

import numpy as np

from simulator.clock import Clock
from simulator.model.expert_balance import ExpertBalance
from simulator.model.expert_group import Group
from simulator.model.expert_placement import balanced, moves, settled
from simulator.model.expert_popularity import zipf
from simulator.randomness import stream
from simulator.serving.expert_balance import ExpertBalancing, Plan

GROUP = Group(4, 5)
OWN = object()
FIRST, SECOND = (zipf(3, 16, 2, 0.9, stream(seed, "p")) for seed in (1, 2))


class FakeEngine:
    def __init__(self, env, name):
        self.env, self.name, self.costs = env, name, []
        self.engine = SimpleNamespace(cost=OWN)

    def retime(self, cost):
        self.costs.append((self.env.now, cost))


def place(popularity):
    return balanced(popularity, 0, GROUP)


def run(changes, interval_ns, until_ns, moving_ns=0, engines=2):
    env = Clock()
    plan = Plan(ExpertBalance(FIRST, place(FIRST), GROUP), lambda: iter(changes), place, interval_ns)
    found = [FakeEngine(env, f"e{i}") for i in range(engines)]
    made, sent, events = [], [], []

    def cost_of(own, balance):
        assert own is OWN
        made.append(balance)
        return balance

    def transfer(engine, wanted):
        sent.append((env.now, engine.name, list(wanted)))
        return env.timeout(moving_ns)

    def event(kind, subject, detail):
        events.append((env.now, kind, subject))

    base = attrgetter("engine.cost")
    actor = ExpertBalancing(env, "decode", plan, lambda: found, base, cost_of, transfer, event)
    env.run(until=until_ns)
    return actor, found, made, sent, events


def test_popularity_changes_the_cost_at_once_and_only_then():
    _, engines, made, sent, events = run([(100, SECOND), (300, FIRST)], None, 1000)
    assert [at for at, _ in engines[0].costs] == [100, 300]
    assert np.array_equal(engines[0].costs[0][1].popularity, SECOND)
    assert np.array_equal(engines[0].costs[0][1].placement, place(FIRST))
    assert engines[0].costs == engines[1].costs  # the same cost serves both
    assert len(made) == 2
    assert not sent
    assert events == [(100, "experts drifted", "decode"), (300, "experts drifted", "decode")]


def test_what_comes_back_costs_nothing_anew():
    changes = [(100 * i, (FIRST, SECOND)[i % 2]) for i in range(1, 9)]
    _, engines, made, _, _ = run(changes, None, 1000)
    assert len(engines[0].costs) == 8
    assert len(made) == 2


def test_placement_changes_when_weights_have_moved():
    actor, engines, _, sent, events = run([(100, SECOND)], 400, 700, moving_ns=50)
    seen = (FIRST * 100 + SECOND * 300) / 400
    assert [(at, name) for at, name, _ in sent] == [(400, "e0"), (400, "e1")]
    placement = settled(place(FIRST), place(seen), GROUP)
    assert sent[0][2] == moves(place(FIRST), placement, GROUP.ranks)
    assert [at for at, _ in engines[0].costs] == [100, 450]
    assert np.array_equal(engines[0].costs[1][1].placement, placement)
    assert actor.moved_experts == 2 * sum(move.experts for move in sent[0][2])
    assert (450, "experts rebalanced", "e0") in events


def test_a_time_that_comes_while_weights_move_is_left_out():
    _, engines, _, sent, events = run([(100, SECOND)], 200, 700, moving_ns=250, engines=1)
    assert [at for at, _, _ in sent][:2] == [200, 600]
    assert (400, "experts not rebalanced", "e0") in events
    assert engines[0].costs[1][0] == 450


def test_an_engine_that_comes_later_is_placed_as_the_last_were():
    actor, engines, _, _, _ = run([(100, SECOND)], 400, 700, engines=1)
    late = FakeEngine(engines[0].env, "late")
    actor.joined(late)
    [(_, balance)] = late.costs
    assert np.array_equal(balance.popularity, SECOND)
    assert np.array_equal(balance.placement, place((FIRST * 100 + SECOND * 300) / 400))


def test_nothing_moves_where_nothing_changed():
    _, _, _, sent, events = run([], 100, 350, engines=1)
    assert not sent
    assert [kind for _, kind, _ in events] == ["experts rebalanced"] * 3
