"""The keys of a sweep file: what varies around a scenario, over which seeds, what is kept, and what is searched for."""

import re
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema, model_validator

from simulator.results.metrics import member_of
from simulator.results.tables import TABLES
from simulator.scenario.expectation import parse_expectations
from simulator.scenario.schema import Expectations
from simulator.scenario.write import SCHEMA_ID
from simulator.strict import Count, Fault, Fraction, LocatedError, Strict

MAX_POINTS = 1_000_000
Axes = dict[str, tuple[Any, ...]]
"""By path of the scenario: the values that it takes."""

_RANGE = re.compile(r"(\d{1,9})\s*\.\.\s*(\d{1,9})")


def _seeds(value: object) -> object:
    """Return the seeds of `1..20` as a tuple; anything else is left to the type."""
    match = _RANGE.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        if isinstance(value, str):
            raise ValueError(f"expected seeds such as 1..20 or [1, 2, 3], found {value[:40]!r}")
        return value
    first, last = int(match[1]), int(match[2])
    if not 0 <= last - first < MAX_POINTS:
        raise ValueError(f"{value!r} is no range of at most {MAX_POINTS:,} seeds")
    return tuple(range(first, last + 1))


def _some_values(axes: Axes) -> Axes:
    empty = [path for path, values in axes.items() if not values]
    if empty:
        raise LocatedError(*(Fault((path,), "no values") for path in empty))
    return axes


def _equally_long(axes: Axes) -> Axes:
    lengths = {path: len(values) for path, values in axes.items()}
    if len(set(lengths.values())) > 1:
        path, length = next(iter(lengths.items()))
        other = next(name for name, found in lengths.items() if found != length)
        what = f"{lengths[other]} values beside {length} of {path}; zipped axes go together"
        raise LocatedError(Fault((other,), what))
    return axes


Seeds = Annotated[
    tuple[Annotated[int, Field(ge=0, le=2**63 - 1)], ...],
    BeforeValidator(_seeds),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "pattern": rf"^\s*{_RANGE.pattern}\s*$", "examples": ["1..20"]},
                {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 2**63 - 1}},
            ]
        }
    ),
]


class Span(Strict):
    """Values between two ends, which have the same unit."""

    low: Any = Field(alias="from")
    """The least."""
    high: Any = Field(alias="to")
    """The most."""


class Distribution(Strict):
    """What a sampled axis is drawn from: exactly one of these."""

    uniform: Span | None = None
    """Evenly between two values."""
    log_uniform: Span | None = None
    """Evenly between the logarithms of two values that are more than zero."""
    integer: Span | None = None
    """Whole numbers between two, both included."""
    choice: tuple[Any, ...] | None = None
    """One of these."""

    @model_validator(mode="after")
    def _one(self) -> Self:
        if len(self.model_fields_set) != 1:
            raise ValueError(f"exactly one of {', '.join(type(self).model_fields)} is needed")
        return self


class Sample(Strict):
    """Points drawn at random; the same seed draws the same ones."""

    points: Annotated[int, Field(ge=1, le=MAX_POINTS)]
    """How many."""
    seed: Annotated[int, Field(ge=0, le=2**63 - 1)] = 0
    """Of what is drawn here; the seeds of the runs are `seeds`."""
    axes: dict[str, Distribution]
    """By path of the scenario: what its values are drawn from."""


class Capacity(Strict):
    """The most of one quantity under which every objective of `subject_to` still holds, by bisection."""

    of: str
    """Path of the scenario: what is raised, such as workload.arrivals.poisson.rate."""
    low: Any = Field(alias="from")
    """Where the search begins."""
    high: Any = Field(alias="to")
    """Where it ends, if the objectives hold even there."""
    precision: Annotated[float, Field(gt=0, lt=1)] = 0.02
    """The answer and the next value that fails differ by this share at most."""
    at_once: Annotated[int, Field(ge=1, le=64)] = 3
    """Values that are tried in each round, evenly spaced: as many as there are workers is quickest."""


class Halving(Strict):
    """Successive halving: all points with a small budget, the best again with a larger one, and so on."""

    budget: str
    """Path of the scenario: what is raised from round to round, such as workload.requests or until."""
    low: Any = Field(alias="from")
    """The first budget."""
    high: Any = Field(alias="to")
    """The last budget."""
    factor: Annotated[int, Field(ge=2, le=100)] = 3
    """One in so many goes on to a budget larger by as much."""


class Optuna(Strict):
    """Points asked of Optuna's tree-structured Parzen estimator, for spaces of numbers and choices."""

    points: Annotated[int, Field(ge=1, le=100_000)]
    """How many."""
    at_once: Annotated[int, Field(ge=1, le=1000)] = 4
    """Points of each round."""
    seed: Annotated[int, Field(ge=0, le=2**32 - 1)] = 0
    """Of the estimator."""
    axes: dict[str, Distribution]
    """By path of the scenario: what it may be."""


class Search(Strict):
    """What is looked for: one method, an objective where it needs one, and what must hold."""

    capacity: Capacity | None = None
    """Bisection for the most that can be served, at each point of the axes."""
    halving: Halving | None = None
    """Successive halving among the points of the axes."""
    optuna: Optuna | None = None
    """A guided search over axes of its own, at each point of the others."""
    maximise: str | None = None
    """Metric of which the most is wanted."""
    minimise: str | None = None
    """Metric of which the least is wanted."""
    subject_to: Expectations = ()
    """Metrics, means over the seeds, and what they must be."""

    @model_validator(mode="after")
    def _of_whole_runs(self) -> Self:
        named: dict[tuple[str, ...], str] = {("subject_to", each.metric): each.metric for each in self.subject_to}
        named |= {(name,): metric for name in ("maximise", "minimise") if (metric := getattr(self, name)) is not None}
        what = "is of a group, and a sweep's rows have the figures of whole runs"
        allowed = "a metric of the whole run; `expect:` of the base may name groups"
        faults = [Fault(at, f"{name} {what}", allowed) for at, name in named.items() if member_of(name) is not None]
        if faults:
            raise LocatedError(*faults)
        return self

    @model_validator(mode="after")
    def _whole(self) -> Self:
        methods = [name for name in ("capacity", "halving", "optuna") if getattr(self, name) is not None]
        if len(methods) != 1:
            raise ValueError(f"exactly one of capacity, halving, optuna; found {', '.join(methods) or 'none'}")
        objectives = [name for name in ("maximise", "minimise") if getattr(self, name) is not None]
        if methods == ["capacity"]:
            if objectives:
                raise LocatedError(Fault((objectives[0],), "capacity maximises its own quantity, `of`"))
            if not self.subject_to:
                raise LocatedError(Fault(("subject_to",), "capacity needs what must hold, such as ttft.p99: <= 2 s"))
        elif len(objectives) != 1:
            raise ValueError(f"{methods[0]} needs one objective: maximise or minimise, and a metric")
        else:
            metric = getattr(self, objectives[0])
            # the mapping of expectations knows which metrics there are, and the nearest to a wrong one
            try:
                parse_expectations({metric: ">= 0"})
            except LocatedError as error:
                wrong = [fault for fault in error.faults if fault.what.startswith("unknown")]
                if wrong:
                    raise LocatedError(*(fault._replace(path=(objectives[0],)) for fault in wrong)) from None
        return self


class Frontier(Strict):
    """Two metrics that cannot both be best: the points that no other beats in both are marked."""

    maximise: tuple[str, ...] = ()
    """Metrics of which more is better."""
    minimise: tuple[str, ...] = ()
    """Metrics of which less is better."""


class Sweep(Strict):
    """A sweep: a scenario, and what varies around it. Axes of different kinds multiply."""

    version: Literal[1] = Field(alias="schema")
    """Version of this schema."""
    base: str
    """Path of the scenario, or name of a shipped one."""
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")] = "sweep"
    """Name of the sweep and of its folder of results; default: the file's."""
    description: str | None = None
    """What it is for."""
    set: dict[str, Any] = Field(default_factory=dict)
    """Values laid over the scenario at every point, by path."""
    grid: Annotated[Axes, AfterValidator(_some_values)] = Field(default_factory=dict)
    """Axes of which every combination is a point."""
    zip: Annotated[Axes, AfterValidator(_some_values), AfterValidator(_equally_long)] = Field(default_factory=dict)
    """Axes that go together: the first values of all, then the second ones."""
    points: tuple[dict[str, Any], ...] = ()
    """Points written down, each a mapping of paths to values."""
    random: Sample | None = None
    """Points drawn independently."""
    latin_hypercube: Sample | None = None
    """Points drawn so that each axis is covered evenly."""
    seeds: Seeds = ()
    """Seeds with which every point is run: the same for all, so that points may be compared in pairs."""
    keep: tuple[Literal[tuple(table.name for table in TABLES)], ...] = ()  # type: ignore[valid-type]
    """Tables of every run that are kept beside its figures."""
    frontier: tuple[Frontier, ...] = ()
    """Frontiers to report; default: throughput per device against time per token, and cost against goodput."""
    search: Search | None = None
    """What is looked for among the points; default: all are run."""
    confidence: Fraction = 0.95
    """Level of the intervals over seeds."""
    most_points: Count = 100_000
    """More points than this are refused: a slip of a factor is easily made."""

    @model_validator(mode="after")
    def _each_path_once(self) -> Self:
        seen: dict[str, str] = {"seed": "seeds"} if self.seeds else {}
        faults = []
        for kind, paths in self.axes_by_kind():
            for path in paths:
                if path in seen:
                    faults.append(Fault((kind,), f"{path} varies already, by `{seen[path]}`"))
                seen.setdefault(path, kind)
        for at, point in enumerate(self.points):
            if point.keys() != self.points[0].keys():
                faults.append(Fault(("points", at), "every point must give the same paths", ", ".join(self.points[0])))
        if faults:
            raise LocatedError(*faults)
        return self

    def axes_by_kind(self) -> list[tuple[str, tuple[str, ...]]]:
        """Return the paths that vary, by the key that says how."""
        found = [("grid", tuple(self.grid)), ("zip", tuple(self.zip))]
        found.append(("points", tuple(self.points[0]) if self.points else ()))
        for kind in ("random", "latin_hypercube"):
            sample = getattr(self, kind)
            found.append((kind, tuple(sample.axes) if sample is not None else ()))
        if self.search is not None:
            search = self.search
            inner: tuple[str, ...] = ()
            if search.capacity is not None:
                inner = (search.capacity.of,)
            elif search.halving is not None:
                inner = (search.halving.budget,)
            elif search.optuna is not None:
                inner = tuple(search.optuna.axes)
            found.append(("search", inner))
        return found


def json_schema() -> dict[str, Any]:
    """Return the JSON schema (2020-12) of sweep files, for editors."""
    schema = Sweep.model_json_schema(by_alias=True)
    schema["$defs"] = dict(sorted(schema["$defs"].items()))
    return {"$schema": SCHEMA_ID, **schema}
