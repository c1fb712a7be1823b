"""Searches over settings: bisection for a capacity, successive halving, Optuna; each asks for evaluations and answers.

Sources: Jamieson and Talwalkar 2016 (successive halving); Bergstra et al. 2011 (tree-structured Parzen estimator).
A search is a generator: it yields settings and is sent an Evaluation of each, so it knows nothing of workers or files.
"""

import math
from collections.abc import Generator, Mapping, Sequence
from typing import Any, NamedTuple

from simulator.errors import InputError, Problem
from simulator.scenario.expectation import Expectation
from simulator.sweep.axes import Quantity, Setting, ends
from simulator.sweep.schema import Capacity, Distribution, Halving, Optuna, Search


class Evaluation(NamedTuple):
    """A setting over all its seeds: means of the metrics, or why there are none."""

    setting: Setting
    figures: Mapping[str, float | None]
    error: str | None = None

    def violated(self, constraints: Sequence[Expectation]) -> tuple[str, ...]:
        """Return what does not hold, as text."""
        if self.error is not None:
            return (self.error,)
        broken = [each for each in constraints if not each.holds(self.figures.get(each.metric))]
        return tuple(f"{each.metric} {each.text}" for each in broken)


class Answer(NamedTuple):
    """What a search found: the best setting, its figures, and what keeps it from being better."""

    best: Evaluation | None
    binding: tuple[str, ...]
    """Constraints that the next better setting breaks."""
    evaluations: int
    notes: tuple[str, ...] = ()


Asking = Generator[list[Setting], list[Evaluation], Answer]


def search_of(search: Search, settings: Sequence[Setting]) -> list[Asking]:
    """Return the searches of a sweep over its settings: one for each, or one among all of them."""
    if search.capacity is not None:
        return [capacity(search.capacity, fixed, search.subject_to) for fixed in settings]
    goal = Goal(search.maximise or search.minimise or "", search.maximise is not None, search.subject_to)
    if search.halving is not None:
        return [halving(search.halving, list(settings), goal)]
    assert search.optuna is not None
    return [optuna_search(search.optuna, fixed, goal) for fixed in settings]


class Goal(NamedTuple):
    """A metric of which the most, or the least, is wanted as long as the constraints hold."""

    metric: str
    most: bool
    constraints: tuple[Expectation, ...]

    def rank(self, found: Evaluation) -> tuple[bool, float]:
        """Return what sorts evaluations, the best first; those that break a constraint come last."""
        value = found.figures.get(self.metric)
        cost = math.inf if value is None else -value if self.most else value
        return bool(found.violated(self.constraints)) or value is None, cost

    def answer(self, found: Sequence[Evaluation], notes: tuple[str, ...] = ()) -> Answer:
        """Return the best of what was found; what binds is broken by those that would have been better."""
        order = sorted(found, key=self.rank)
        best = order[0] if order and not self.rank(order[0])[0] else None
        limit = math.inf if best is None else self.rank(best)[1]
        better = [each for each in found if self.rank(each)[0] and self.rank(each)[1] < limit]
        if best is None:
            better = list(found)
        broken = [text for each in better for text in each.violated(self.constraints)]
        return Answer(best, tuple(dict.fromkeys(broken)), len(found), notes)


# -- capacity ---------------------------------------------------------------------------------------------------------


def capacity(section: Capacity, fixed: Setting, constraints: tuple[Expectation, ...]) -> Asking:
    """Search for the most of one quantity under which all constraints hold, to within the precision.

    Each round tries `at_once` values between the most that held and the least that did not. That holding is monotone is
    taken for granted between values that were tried, and noted where those that were tried deny it.
    """
    low, high = ends(section.low, section.high, section.of)
    whole = all(isinstance(value, int) for value in (section.low, section.high))
    tried: dict[float, Evaluation] = {}

    def ask(numbers: list[float]) -> Generator[list[Setting], list[Evaluation], None]:
        found = yield [{**fixed, section.of: low.text(number)} for number in numbers]
        tried.update(zip(numbers, found, strict=True))

    yield from ask([low.number, high.number])
    if tried[low.number].violated(constraints):
        return Answer(None, tried[low.number].violated(constraints), len(tried), (f"not even {section.low} holds",))
    if not tried[high.number].violated(constraints):
        return Answer(tried[high.number], (), len(tried), (f"{section.high}, where the search ends, still holds",))
    least, most = low.number, high.number
    while numbers := _between(least, most, section, low, whole):
        yield from ask(numbers)
        failed = [number for number in sorted(tried) if tried[number].violated(constraints)]
        most = failed[0]
        least = max(number for number in tried if number < most)
    upper = [number for number in tried if number > most and not tried[number].violated(constraints)]
    notes = (f"it holds again at {low.text(min(upper))}: not monotone",) if upper else ()
    return Answer(tried[least], tried[most].violated(constraints), len(tried), notes)


def _between(least: float, most: float, section: Capacity, unit: Quantity, whole: bool) -> list[float]:
    """Return the values to try next, none when the two are close enough."""
    parts = section.at_once + 1
    if whole:
        steps = [math.floor(least + (most - least) * k / parts) for k in range(1, parts)]
        return [float(step) for step in dict.fromkeys(steps) if least < step < most] or (
            [least + 1.0] if most - least > 1 else []
        )
    if most - least <= section.precision * max(abs(least), abs(most)):
        return []
    numbers = [float(f"{least + (most - least) * k / parts:.6g}") for k in range(1, parts)]
    return [number for number in dict.fromkeys(numbers) if least < number < most]


# -- successive halving -----------------------------------------------------------------------------------------------


def budgets(section: Halving) -> list[Any]:
    """Return the budgets of the rounds: the last one, and those smaller by the factor, down to the first."""
    low, high = ends(section.low, section.high, section.budget)
    rounds = 1 + math.floor(math.log(high.number / low.number) / math.log(section.factor) + 1e-9)
    whole = all(isinstance(value, int) for value in (section.low, section.high))
    numbers = [high.number / section.factor**back for back in range(rounds - 1, -1, -1)]
    return [low.text(float(math.floor(number)) if whole else number) for number in numbers]


def halving(section: Halving, settings: list[Setting], goal: Goal) -> Asking:
    """Search among settings: of each round the best, one in `factor`, go on with a budget larger by as much."""
    left, count, last = settings, 0, []
    for budget in budgets(section):
        last = yield [{**setting, section.budget: budget} for setting in left]
        count += len(last)
        order = sorted(range(len(left)), key=lambda at: (goal.rank(last[at]), at))
        left = [left[at] for at in sorted(order[: -(-len(left) // section.factor)])]
    return goal.answer(last)._replace(evaluations=count)


# -- Optuna -----------------------------------------------------------------------------------------------------------


def optuna_search(section: Optuna, fixed: Setting, goal: Goal) -> Asking:
    """Search by Optuna's estimator, in rounds of `at_once`; constraints guide it as well."""
    try:
        import optuna
    except ImportError:
        what = "Optuna is not installed"
        raise InputError(Problem(what, path="search.optuna", allowed="pip install 'simulator[search]'")) from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    sampler = optuna.samplers.TPESampler(seed=section.seed)
    study = optuna.create_study(direction="maximize" if goal.most else "minimize", sampler=sampler)
    found: list[Evaluation] = []
    while len(found) < section.points:
        trials = [study.ask() for _ in range(min(section.at_once, section.points - len(found)))]
        asked = [{path: _suggest(trial, path, law) for path, law in section.axes.items()} for trial in trials]
        results = yield [{**fixed, **values} for values in asked]
        for trial, result in zip(trials, results, strict=True):
            for each, distance in zip(goal.constraints, _distances(result, goal.constraints), strict=True):
                trial.set_constraint(each.metric, distance)
            value = result.figures.get(goal.metric)
            if value is None:
                study.tell(trial, state=optuna.trial.TrialState.FAIL)
            else:
                study.tell(trial, value)
        found += results
    return goal.answer(found)


def _distances(found: Evaluation, constraints: Sequence[Expectation]) -> tuple[float, ...]:
    """Return by how much of its bound each constraint is broken; zero or less where it holds."""
    away = []
    for each in constraints:
        value = found.figures.get(each.metric)
        if value is None:
            away.append(1e9)
        elif each.holds(value):
            away.append(0.0)
        else:
            away.append(abs(value - each.bound) / (abs(each.bound) or 1.0) or 1e-12)
    return tuple(away)


def _suggest(trial: Any, path: str, law: Distribution) -> Any:
    if law.choice is not None:
        return law.choice[trial.suggest_categorical(path, list(range(len(law.choice))))]
    span = law.uniform or law.log_uniform or law.integer
    assert span is not None
    low, high = ends(span.low, span.high, path)
    if law.integer is not None:
        return low.text(trial.suggest_int(path, int(low.number), int(high.number)))
    return low.text(trial.suggest_float(path, low.number, high.number, log=law.log_uniform is not None))
