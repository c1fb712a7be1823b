"""What a scenario expects of a run: a metric of the summary compared with a bound, such as `ttft.p95: "<= 2 s"`.

Model: acceptance checks for automation; a bound carries the unit of its metric, so seconds and shares never mix.
"""

import operator
import re
from collections.abc import Callable, Mapping
from math import isfinite
from typing import Any, NamedTuple

from simulator import units
from simulator.results.metrics import GROUP_METRICS, GROUPS, POOLS, UNITS, metric_of, unit_of, unknown_metric
from simulator.strict import Fault, LocatedError

OPERATORS: Mapping[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
    "==": operator.eq,
}
_EXAMPLES = {"": ">= 0.95", "s": "<= 2 s", "1/s": ">= 100 / s"}
_TEXT = re.compile(r"\s*(<=|>=|==|<|>)\s*(.+?)\s*", re.DOTALL)


class Expectation(NamedTuple):
    """A metric, how it is compared, and the bound in the metric's unit (seconds, per second, or a plain number)."""

    metric: str
    comparison: str
    bound: float

    def holds(self, observed: float | None) -> bool:
        """Return whether `observed` satisfies the bound; a metric that has no value never does."""
        return observed is not None and OPERATORS[self.comparison](observed, self.bound)

    @property
    def text(self) -> str:
        """The comparison as it stands in a scenario, such as `<= 2 s`."""
        unit = unit_of(self.metric)
        if unit == "s":
            return f"{self.comparison} {units.exact_duration(round(self.bound * units.NS_PER_S))}"
        number = str(int(self.bound)) if self.bound.is_integer() and abs(self.bound) < 1e15 else repr(self.bound)
        return f"{self.comparison} {number}{' / s' if unit == '1/s' else ''}"


def parse_expectations(value: object) -> object:
    """Return the mapping of `expect:` as a tuple of Expectation; raises LocatedError with every fault in it."""
    if not isinstance(value, Mapping):
        return value
    found: list[Expectation] = []
    faults: list[Fault] = []
    for metric, text in value.items():
        if not isinstance(metric, str) or metric_of(metric) is None:
            problem = unknown_metric(str(metric))
            faults.append(Fault((metric,), problem.what, problem.allowed, problem.nearest))
            continue
        try:
            found.append(_parse(metric, text))
        except ValueError as error:
            faults.append(Fault((metric,), str(error)))
    if faults:
        raise LocatedError(*faults)
    return tuple(found)


def write_expectations(expectations: tuple[Expectation, ...]) -> dict[str, str]:
    """Return expectations as the mapping that `parse_expectations` reads."""
    return {expectation.metric: expectation.text for expectation in expectations}


def expectations_schema() -> dict[str, Any]:
    """Return the JSON schema of the mapping, one property per metric."""
    comparison = {"type": "string", "pattern": r"^\s*(<=|>=|==|<|>)"}
    properties = {metric: comparison | {"examples": [_EXAMPLES[unit]]} for metric, unit in UNITS.items()}
    of_requests = rf"^({'|'.join(GROUPS)})\..+\.({'|'.join(map(re.escape, GROUP_METRICS))})$"
    of_engines = rf"^utilisation\.({'|'.join(POOLS)})\..+\.(busy|kv_mean|kv_max)$"
    groups = {of_requests: comparison, of_engines: comparison}
    return {"type": "object", "additionalProperties": False, "properties": properties, "patternProperties": groups}


def _parse(metric: str, text: object) -> Expectation:
    unit = unit_of(metric)
    example = _EXAMPLES[unit]
    match = _TEXT.fullmatch(text) if isinstance(text, str) and len(text) <= 100 else None
    if match is None:
        shown = repr(text)[:60]
        raise ValueError(f"expected a comparison such as {example!r}, found {shown}; operators: {', '.join(OPERATORS)}")
    comparison, bound = match.groups()
    if unit == "s":
        return Expectation(metric, comparison, units.parse_duration_ns(bound) / units.NS_PER_S)
    if unit == "1/s":
        return Expectation(metric, comparison, units.parse_rate(bound))
    try:
        number = float(bound)
    except ValueError:
        raise ValueError(f"{bound!r} is not a plain number; write the comparison such as {example!r}") from None
    if not isfinite(number):
        raise ValueError(f"{bound!r} is not a finite number")
    return Expectation(metric, comparison, number)
