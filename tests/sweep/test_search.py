"""Searches against functions whose best point is known: each is played by answering what it asks."""

import math

import pytest

from simulator.scenario.expectation import Expectation
from simulator.sweep.axes import quantity
from simulator.sweep.frontier import frontier, non_dominated
from simulator.sweep.schema import Capacity, Frontier, Halving, Optuna
from simulator.sweep.search import Evaluation, Goal, budgets, capacity, halving, optuna_search

WAIT = Expectation("queue.mean", "<=", 2.0)


def play(search, measure):
    """Answer a search with what `measure(setting)` says, a mapping of metrics or an error."""
    asked = next(search)
    rounds = [asked]
    try:
        while True:
            found = [measure(setting) for setting in asked]
            asked = search.send(
                [
                    Evaluation(s, {}, f) if isinstance(f, str) else Evaluation(s, f)
                    for s, f in zip(asked, found, strict=True)
                ]
            )
            rounds.append(asked)
    except StopIteration as end:
        return end.value, rounds


@pytest.mark.parametrize("at_once", [1, 3, 8])
@pytest.mark.parametrize("precision", [0.05, 0.001])
def test_capacity_of_mm1_is_its_closed_form(at_once, precision):
    # M/M/1 with mu = 1: wait rho / (1 - rho) <= 2  <=>  rho <= 2/3
    section = Capacity.model_validate(
        {"of": "rate", "from": "0.01 / s", "to": "0.99 / s", "precision": precision, "at_once": at_once}
    )

    def wait(setting):
        rho = quantity(setting["rate"], "rate").number
        return {"queue.mean": rho / (1 - rho)}

    answer, rounds = play(capacity(section, {"other": 1}, (WAIT,)), wait)
    found = quantity(answer.best.setting["rate"], "rate").number
    assert 2 / 3 * (1 - 1.01 * precision) <= found <= 2 / 3
    assert answer.best.setting["other"] == 1
    assert answer.binding == ("queue.mean <= 2 s",)
    # each round leaves one part in (at_once + 1) of the range
    assert len(rounds) <= 2 + math.ceil(math.log(0.98 / (precision * 0.6)) / math.log(at_once + 1))


@pytest.mark.parametrize("limit", range(1, 13))
def test_capacity_in_whole_numbers_is_exact(limit):
    section = Capacity.model_validate({"of": "n", "from": 1, "to": 12})
    answer, _ = play(capacity(section, {}, (WAIT,)), lambda s: {"queue.mean": 1.0 if s["n"] <= limit else 3.0})
    assert answer.best.setting == {"n": limit}
    assert bool(answer.notes) == (limit == 12)


def test_capacity_says_when_nothing_holds_when_all_does_and_when_it_is_not_monotone():
    section = Capacity.model_validate({"of": "n", "from": 1, "to": 100})
    answer, _ = play(capacity(section, {}, (WAIT,)), lambda s: {"queue.mean": 3.0})
    assert answer.best is None
    assert answer.binding == ("queue.mean <= 2 s",)
    answer, _ = play(capacity(section, {}, (WAIT,)), lambda s: "no memory for this")
    assert answer.binding == ("no memory for this",)
    answer, _ = play(
        capacity(section, {}, (WAIT,)), lambda s: {"queue.mean": 3.0 if 20 < s["n"] < 40 or s["n"] > 90 else 1.0}
    )
    assert "not monotone" in answer.notes[0]
    assert answer.best.setting["n"] == 20


def test_halving_keeps_the_best_and_raises_the_budget():
    section = Halving.model_validate({"budget": "requests", "from": 10, "to": 270, "factor": 3})
    assert budgets(section) == [10, 30, 90, 270]
    settings = [{"x": x} for x in range(27)]
    goal = Goal("goodput", True, (Expectation("ttft.p99", "<=", 2.0),))

    # more x is better until 20, where the constraint breaks
    def measure(setting):
        return {"goodput": setting["x"] / 100, "ttft.p99": 1.0 if setting["x"] <= 20 else 3.0}

    answer, rounds = play(halving(section, settings, goal), measure)
    assert [len(asked) for asked in rounds] == [27, 9, 3, 1]
    assert answer.best.setting == {"x": 20, "requests": 270}
    assert answer.evaluations == 40


def test_a_budget_of_time_keeps_its_unit():
    section = Halving.model_validate({"budget": "until", "from": "10 s", "to": "40 s", "factor": 2})
    assert budgets(section) == ["10 s", "20 s", "40 s"]


def test_optuna_finds_the_best_of_a_mixed_space_and_says_what_binds():
    axes = {"x": {"uniform": {"from": "0 ms", "to": "10 ms"}}, "k": {"choice": ("a", "b")}}
    section = Optuna.model_validate({"points": 60, "at_once": 4, "axes": axes})
    goal = Goal("goodput", True, (Expectation("ttft.p99", "<=", 2.0),))

    def measure(setting):
        x = quantity(setting["x"], "x").number
        return {"goodput": x / 10 if setting["k"] == "b" else x / 100, "ttft.p99": x / 3}

    answer, rounds = play(optuna_search(section, {"fixed": 1}, goal), measure)
    assert sum(map(len, rounds)) == 60
    assert answer.best.setting["k"] == "b"
    assert 5 < quantity(answer.best.setting["x"], "x").number <= 6  # the constraint allows 6
    assert answer.binding == ("ttft.p99 <= 2 s",)
    again, _ = play(optuna_search(section, {"fixed": 1}, goal), measure)
    assert again == answer


def test_frontier_equals_the_definition():
    import numpy as np

    source = np.random.default_rng(4)
    costs = source.integers(0, 12, (300, 3)).tolist()
    plain = [
        at
        for at, mine in enumerate(costs)
        if not any(all(a <= b for a, b in zip(o, mine, strict=True)) and o != mine for o in costs)
    ]
    assert non_dominated(costs) == plain


def test_frontier_leaves_out_what_has_no_value():
    section = Frontier(maximise=("goodput",), minimise=("ttft.p99",))
    rows = [{"goodput": 1.0, "ttft.p99": 2.0}, {"goodput": 0.5, "ttft.p99": 1.0}, {"goodput": 0.4, "ttft.p99": 1.5}, {}]
    assert frontier(section, rows) == [0, 1]
