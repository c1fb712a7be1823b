"""What no run of a scenario can beat: bounds on its figures from costs alone, without queues, for cutting a search.

Model: a request is never served sooner than alone on an idle engine of the fastest kind, its prompt in however many
pieces, and engines never make tokens faster than at their best batch. A step takes no less time with more in it: fitted
kernels keep to that within 2.5 % (tests/laws/test_limits.py), and the bounds are taken 5 % lower.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import chain
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from simulator.build.serving import Blueprint, plan
from simulator.device.cost import RooflineCost
from simulator.device.linear_cost import LinearCost
from simulator.device.timing import Roofline
from simulator.errors import InputError
from simulator.model.forward import Work
from simulator.results.metrics import QUANTILES, UNITS
from simulator.scenario.expectation import Expectation
from simulator.scenario.schema import Scenario
from simulator.serving.engine import Engine
from simulator.units import NS_PER_S, format_duration

SLACK = 0.95
"""Of a duration that is taken for the least: costs are not quite monotone."""
PIECE = 256
"""Tokens of the smallest pieces of a prompt that are tried: smaller ones leave a device idle."""
LENGTHS = 64
"""Lengths, evenly spaced by ratio, of which the durations are computed; between two the lower one counts."""
BATCHES = 1.05
"""Ratio of batch sizes for which the speed of decoding is computed; between two it is bounded by both."""

Lengths = npt.NDArray[np.int64]
Times = npt.NDArray[np.float64]


class Limits(NamedTuple):
    """By metric, in its unit: what no run is below, and what none is above; a metric without a limit is left out."""

    least: Mapping[str, float]
    most: Mapping[str, float]

    def beyond(self, constraints: Iterable[Expectation]) -> dict[Expectation, str]:
        """Return the constraints that no run can satisfy, each as text with the limit that says so."""
        found = {}
        for each in constraints:
            least, most = self.least.get(each.metric), self.most.get(each.metric)
            if each.comparison in ("<=", "<", "==") and least is not None and not _may(each, least, math.inf):
                found[each] = f"{each.metric} {each.text} (at least {_shown(each.metric, least)} in any run)"
            elif each.comparison in (">=", ">", "==") and most is not None and not _may(each, -math.inf, most):
                found[each] = f"{each.metric} {each.text} (at most {_shown(each.metric, most)} in any run)"
        return found


def _may(each: Expectation, least: float, most: float) -> bool:
    """Return whether a value between the two may satisfy a constraint."""
    if each.comparison == "==":
        return least <= each.bound <= most
    return each.holds(least if each.comparison in ("<=", "<") else most)


def _shown(metric: str, value: float) -> str:
    if UNITS[metric] == "s":
        return format_duration(round(value * NS_PER_S))
    return f"{value:.4g}"


def limits_of(blueprint: Blueprint) -> Limits:
    """Return the limits of a serving scenario; raises InputError when its workload cannot be read.

    Engines whose costs are measured tables, whose experts move or whose tokens are drafted set no limit.
    """
    if any(group.experts is not None for group in blueprint.groups) or not all(map(_is_known, _engines(blueprint))):
        return _priced(blueprint, {}, {})
    prompts, outputs, alone = _requests(blueprint)
    if not len(prompts):
        return _priced(blueprint, {}, {})
    first_ns = SLACK * _on_grid(prompts, partial(_prefill_ns, blueprint))
    step_ns = SLACK * _on_grid(prompts, partial(_step_ns, blueprint))
    several = outputs > 1
    e2e_ns = first_ns + (outputs - 1) * step_ns
    serving = blueprint.scenario.serving
    assert serving is not None
    together = np.minimum(outputs, serving.stream_interval)  # tokens that the client gets as the first
    token_ns = step_ns * (outputs - together) / np.maximum(outputs - 1, 1)
    first_ns = first_ns + (together - 1) * step_ns
    each = {"ttft": first_ns, "tpot": token_ns[several], "e2e": e2e_ns}
    least: dict[str, float] = {}
    whole = alone and _all_finish(blueprint)
    for name, times in each.items():
        if len(times):
            least |= {f"{name}.{how}": ns / NS_PER_S for how, ns in _statistics(times, whole).items()}
    most = {}
    if blueprint.scenario.until is None:
        most["goodput"] = _good(blueprint, first_ns, token_ns, e2e_ns)
    decoded = int((outputs - 1).sum())
    if whole and decoded:
        rate = _decode_rate(blueprint, int(prompts.min())) * float(outputs.sum()) / decoded / SLACK
        most["throughput.output_tokens_per_s"] = rate
        most["throughput.output_tokens_per_s_per_device"] = rate / sum(group.devices for group in blueprint.groups)
    return _priced(blueprint, least, most)


def _priced(blueprint: Blueprint, least: dict[str, float], most: dict[str, float]) -> Limits:
    hourly = blueprint.hourly
    if hourly is not None:
        least["price.dollars_per_h"] = most["price.dollars_per_h"] = hourly
        rate = most.get("throughput.output_tokens_per_s")
        if rate:
            least["price.dollars_per_million_output_tokens"] = hourly / 3600 / rate * 1e6
    return Limits(least, most)


# -- engines ----------------------------------------------------------------------------------------------------------


def _engines(blueprint: Blueprint) -> Iterator[Engine]:
    return chain.from_iterable(group.engines for group in blueprint.groups)


def _is_known(engine: Engine) -> bool:
    """Return whether an engine's steps last as its cost says, all the time, and grow with what is in them."""
    cost = engine.cost
    if type(cost) is RooflineCost:
        return type(cost.times) is Roofline and cost.engine.overlap is None and engine.speculation is None
    return type(cost) is LinearCost and engine.speculation is None


def _step_of(engine: Engine, work: Work, others: Work) -> float:
    """Return the duration of a step in which one rank has some work, and each other one has other work."""
    if engine.ranks > 1:
        return engine.cost.together_ns([work, *[others] * (engine.ranks - 1)])
    if work.batch:
        return engine.cost.decode(work.batch, work.context).at(work.context)
    return engine.cost.prefill_ns(work.prompt_tokens, round(work.pairs), work.prompts)


def _alone_ns(engine: Engine, work: Work) -> float:
    """Return the duration of a step in which one rank has something to do and no other."""
    return _step_of(engine, work, Work())


def _prefill_ns(blueprint: Blueprint, prompt: int) -> float:
    """Return the least duration of a prefill; of a prompt that a cache may hold only the last token is computed."""
    if blueprint.workload.unit_tokens is not None:
        return min(_alone_ns(engine, Work(1, prompt, 1)) for engine in _engines(blueprint))
    return min(least_prefill_ns(partial(_alone_ns, engine), prompt) for engine in _engines(blueprint))


def least_prefill_ns(step_ns: Callable[[Work], float], prompt: int) -> float:
    """Return the least duration of computing a prompt at once, or in 2, 4, 8 ... equal pieces."""
    pairs, least = prompt * (prompt + 1) // 2, math.inf
    for count in (1 << k for k in range(max(1, (prompt // PIECE).bit_length()))):
        least = min(least, count * step_ns(Work(prompt // count, pairs // count, 1)))
    return least


def _step_ns(blueprint: Blueprint, prompt: int) -> float:
    """Return the least duration of a decode step after a prompt."""
    return min(_alone_ns(engine, Work(batch=1, context=prompt + 1)) for engine in _engines(blueprint))


def _decode_rate(blueprint: Blueprint, prompt: int) -> float:
    """Return a bound of the tokens per second that all engines together decode, each context being a prompt at least.

    For batches between two of the sizes that are tried, the tokens are those of the larger and the time is that of the
    smaller one.
    """
    rate = 0.0
    for group in blueprint.groups:
        rate += len(group.leases) * max(_best_rate(engine, prompt) for engine in group.engines)
    return rate


def _best_rate(engine: Engine, prompt: int) -> float:
    limit = engine.limits.max_running
    if engine.prefixes is None:  # else contexts may have most of their blocks in common
        limit = min(limit, max(1, engine.paging.sequences(engine.kv_blocks, prompt)))
    sizes = sorted({min(limit, math.ceil(BATCHES**k)) for k in range(math.ceil(math.log(limit, BATCHES)) + 1)} | {1})
    best = 0.0
    for size, larger in zip(sizes, [*sizes[1:], limit], strict=True):
        work = Work(batch=size, context=size * (prompt + 1))
        ns = _step_of(engine, work, work)
        best = max(best, larger * engine.ranks * NS_PER_S / ns if ns > 0 else math.inf)
    return best


# -- requests ---------------------------------------------------------------------------------------------------------


def _requests(blueprint: Blueprint) -> tuple[Lengths, Lengths, bool]:
    """Return the tokens of prompts and longest answers of requests that may come in, and whether each wants but one."""
    from simulator.workload.answers import longest_answers

    admission, batches = blueprint.admission, list(blueprint.workload.batches())
    if not batches:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), True
    prompts = np.concatenate([batch.column("prompt_tokens").to_numpy() for batch in batches])
    outputs = np.concatenate(
        [longest_answers(batch.column("output_tokens").to_numpy(), batch.column("sample_tokens")) for batch in batches]
    )
    whole = prompts + outputs
    fit = (whole <= admission.max_context) & (prompts <= admission.prefill_tokens)
    fit &= whole - 1 <= admission.decode_tokens
    alone = all(batch.column("samples").null_count == len(batch) for batch in batches)
    return prompts[fit], outputs[fit], alone


def _all_finish(blueprint: Blueprint) -> bool:
    """Return whether every request that may come in has to finish: figures are then over all of them."""
    scenario = blueprint.scenario
    serving = scenario.serving
    assert serving is not None
    loses = (serving.timeout, serving.admission)
    plain = all(section == type(section)() for section in loses) and serving.cancel is None and serving.gateway is None
    return plain and scenario.until is None and not scenario.faults and not blueprint.workload.cancels


def _on_grid(lengths: Lengths, duration_ns: Callable[[int], float]) -> Times:
    """Return the duration for each length: that of the nearest one computed that is not longer, or of a longer one."""
    low, high = int(lengths.min()), int(lengths.max())
    points = np.unique(np.rint(np.geomspace(low, high, LENGTHS)).astype(np.int64))
    points[0] = low
    times = np.array([duration_ns(int(point)) for point in points])
    times = np.minimum.accumulate(times[::-1])[::-1]
    found: Times = times[np.searchsorted(points, lengths, side="right") - 1]
    return found


def _statistics(times: Times, whole: bool) -> dict[str, float]:
    """Return the least that each statistic can be; unless all requests finish only the best one counts."""
    best = float(times.min())
    if not whole:
        return dict.fromkeys(("mean", *QUANTILES, "max"), best)
    order = np.sort(times)
    ranks = {name: float(order[math.ceil(share * len(order)) - 1]) for name, share in QUANTILES.items()}
    return {"mean": float(times.mean()), **ranks, "max": float(order[-1])}


def _good(blueprint: Blueprint, first_ns: Times, step_ns: Times, whole_ns: Times) -> float:
    """Return the share of the requests that may come in which might meet every objective."""
    good = np.ones(len(first_ns), bool)
    for name, times in (("ttft", first_ns), ("tpot", step_ns), ("e2e", whole_ns)):
        limit_ns = getattr(blueprint.scenario.slo, name)
        if limit_ns is not None:
            good &= times <= limit_ns
    return float(good.mean())


def cut(scenario: Scenario, constraints: Iterable[Expectation]) -> dict[Expectation, str]:
    """Return the constraints that no run of a scenario can satisfy, as text; none where it cannot run at all."""
    if scenario.serving is None:
        return {}
    try:
        return limits_of(plan(scenario)).beyond(constraints)
    except InputError:
        return {}
