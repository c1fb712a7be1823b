"""The `workload:` of a scenario: a trace that is replayed, or arrivals and lengths that are drawn.

Laws and formats are those of `simulator.workload`; here they get units, defaults and their place in the file.
"""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator

from simulator.strict import (
    Count,
    Duration,
    Fault,
    LocatedError,
    OneOf,
    PositiveDuration,
    PositiveRate,
    Rate,
    Strict,
    one_of,
)

if TYPE_CHECKING:
    from simulator.workload import arrivals, callers, lengths, synthesis, times

Tokens = Annotated[int, Field(ge=1, le=2**31 - 1)]
PositiveNumber = Annotated[float, Field(gt=0)]


class Constant(Strict):
    """Evenly spaced arrivals."""

    rate: PositiveRate
    """Requests per unit of time."""

    def law(self) -> "arrivals.Constant":
        """Return the arrival process."""
        from simulator.workload.arrivals import Constant

        return Constant(self.rate)


class Poisson(Strict):
    """Poisson arrivals: exponential gaps."""

    rate: PositiveRate
    """Mean requests per unit of time."""

    def law(self) -> "arrivals.Poisson":
        """Return the arrival process."""
        from simulator.workload.arrivals import Poisson

        return Poisson(self.rate)


class Gamma(Strict):
    """A renewal process of Gamma gaps."""

    rate: PositiveRate
    """Mean requests per unit of time."""
    cv: PositiveNumber
    """Coefficient of variation of the gaps: 1 is Poisson, above 1 bursty, below 1 even."""

    def law(self) -> "arrivals.Gamma":
        """Return the arrival process."""
        from simulator.workload.arrivals import Gamma

        return Gamma(self.rate, self.cv)


class State(Strict):
    """One state of a Markov-modulated Poisson process."""

    rate: Rate
    """Requests per unit of time in this state; may be zero."""
    dwell: PositiveDuration
    """Mean time in this state, exponentially distributed."""


class Mmpp(Strict):
    """A Markov-modulated Poisson process that walks its states in a cycle."""

    states: Annotated[tuple[State, ...], Field(min_length=2)]
    """The states in the order of the cycle."""

    @model_validator(mode="after")
    def _some_state_arrives(self) -> Self:
        if not any(state.rate for state in self.states):
            raise LocatedError(Fault(("states",), "at least one state needs a rate above zero"))
        return self

    def law(self) -> "arrivals.Mmpp":
        """Return the arrival process."""
        from simulator.workload.arrivals import Mmpp

        return Mmpp(tuple(state.rate for state in self.states), tuple(state.dwell for state in self.states))


class Diurnal(Strict):
    """A Poisson process whose rate swings as a sine; it begins at the mean, rising."""

    rate: PositiveRate
    """Mean requests per unit of time."""
    peak_to_mean: Annotated[float, Field(ge=1, le=2)]
    """Highest rate over the mean: 1 is plain Poisson, 2 is silent at the trough."""
    period: PositiveDuration = 86_400_000_000_000
    """Length of one swing."""

    def law(self) -> "arrivals.Diurnal":
        """Return the arrival process."""
        from simulator.workload.arrivals import Diurnal

        return Diurnal(self.rate, self.peak_to_mean, self.period)


class ClosedLoop(Strict):
    """So many clients, each of which sends its next request when the one before has ended."""

    clients: Count
    """Requests in flight at most (vLLM's benchmark: --max-concurrency)."""

    def law(self) -> "arrivals.ClosedLoop":
        """Return the arrival process."""
        from simulator.workload.arrivals import ClosedLoop

        return ClosedLoop(self.clients)


class Fixed(Strict):
    """The same number of tokens for every request."""

    value: Tokens

    def law(self) -> "lengths.Fixed":
        """Return the law of lengths."""
        from simulator.workload.lengths import Fixed

        return Fixed(self.value)


class Uniform(Strict):
    """Whole numbers of tokens from `low` to `high`, both included, equally likely."""

    low: Tokens
    high: Tokens

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.low > self.high:
            raise LocatedError(Fault(("high",), f"high ({self.high}) is below low ({self.low})"))
        return self

    def law(self) -> "lengths.Uniform":
        """Return the law of lengths."""
        from simulator.workload.lengths import Uniform

        return Uniform(self.low, self.high)


class Lognormal(Strict):
    """A lognormal, rounded to whole tokens and clipped to 1 and `max`."""

    median: Annotated[float, Field(ge=1)]
    """Median number of tokens."""
    sigma: Annotated[float, Field(ge=0, le=20)]
    """Standard deviation of the natural logarithm."""
    max: Tokens
    """Longest: what would be longer becomes exactly this."""

    @model_validator(mode="after")
    def _median_below_max(self) -> Self:
        if self.median > self.max:
            raise LocatedError(Fault(("median",), f"median ({self.median:g}) is above max ({self.max})"))
        return self

    def law(self) -> "lengths.Lognormal":
        """Return the law of lengths."""
        from simulator.workload.lengths import Lognormal

        return Lognormal(self.median, self.sigma, self.max)


class Exponential(Strict):
    """An exponential rounded up to whole tokens: the geometric law from 1 on."""

    mean: Annotated[float, Field(ge=1, le=2**25 - 1)]
    """Mean number of tokens."""

    def law(self) -> "lengths.Exponential":
        """Return the law of lengths."""
        from simulator.workload.lengths import Exponential

        return Exponential(self.mean)


class Empirical(Strict):
    """Counts drawn with replacement from one column of a canonical trace."""

    trace: str
    """Name of a shipped trace, or the path of one in the canonical Parquet schema."""
    column: Literal["prompt_tokens", "output_tokens"]
    """The column to draw from; two empirical laws are independent of each other."""

    def law(self) -> "lengths.Empirical":
        """Return the law of lengths."""
        from simulator import catalog
        from simulator.workload.lengths import Empirical

        return Empirical(str(catalog.locate("traces", self.trace)), self.column)


ARRIVALS: dict[str, type[Strict]] = {
    "constant": Constant,
    "poisson": Poisson,
    "gamma": Gamma,
    "mmpp": Mmpp,
    "diurnal": Diurnal,
    "closed_loop": ClosedLoop,
}
LENGTHS: dict[str, type[Strict]] = {
    "constant": Fixed,
    "uniform": Uniform,
    "lognormal": Lognormal,
    "exponential": Exponential,
    "empirical": Empirical,
}

if TYPE_CHECKING:
    Arrivals = OneOf
    Lengths = OneOf
else:
    Arrivals = one_of("Arrivals", ARRIVALS)
    Lengths = one_of("Lengths", LENGTHS, number="constant")


class ArrivalColumn(Strict):
    """The column of a plain CSV that holds the times of arrival."""

    column: str
    unit: Literal["s", "ms", "us", "ns", "iso"]
    """Unit of the numbers; `iso` for dates and times as text."""


class Columns(Strict):
    """Which columns of a plain CSV mean what; other columns are left aside."""

    arrival: ArrivalColumn
    prompt_tokens: str
    output_tokens: str
    session: str | None = None
    turn: str | None = None
    model: str | None = None
    tenant: str | None = None
    priority: str | None = None
    samples: str | None = None
    predicted_tokens: str | None = None
    cancel: str | None = None
    """How long after its arrival the client gave up, in the unit of arrival (s when that is iso)."""

    def mapping(self) -> dict[str, Any]:
        """Return the mapping that `simulator.workload.trace.open_trace` takes."""
        return self.model_dump(exclude_none=True)


class Prediction(Strict):
    """Lengths of answers as a predictor expects them."""

    error: Annotated[float, Field(ge=0, le=20)] = 0.0
    """Standard deviation of the logarithm of predicted over true length; 0 is an oracle."""


class ConstantTime(Strict):
    """Always the same time."""

    value: PositiveDuration

    def law(self) -> "times.ConstantTime":
        """Return the law of durations."""
        from simulator.workload.times import ConstantTime

        return ConstantTime(self.value)


class ExponentialTime(Strict):
    """Exponentially distributed times."""

    mean: PositiveDuration

    def law(self) -> "times.ExponentialTime":
        """Return the law of durations."""
        from simulator.workload.times import ExponentialTime

        return ExponentialTime(self.mean)


class LognormalTime(Strict):
    """Lognormal times."""

    median: PositiveDuration
    sigma: Annotated[float, Field(ge=0, le=20)]
    """Standard deviation of the natural logarithm."""

    def law(self) -> "times.LognormalTime":
        """Return the law of durations."""
        from simulator.workload.times import LognormalTime

        return LognormalTime(self.median, self.sigma)


TIMES: dict[str, type[Strict]] = {
    "constant": ConstantTime,
    "exponential": ExponentialTime,
    "lognormal": LognormalTime,
}

if TYPE_CHECKING:
    Times = OneOf
else:
    Times = one_of("Times", TIMES)


class Prefixes(Strict):
    """Beginnings that prompts share, such as system prompts and templates; they come before the drawn prompt."""

    count: Annotated[int, Field(ge=1, le=1_000_000)]
    """How many different ones there are."""
    tokens: Lengths
    """Tokens of each: a whole number, or a law from which each gets its own."""
    exponent: Annotated[float, Field(ge=0, le=20)] = 1.0
    """Zipf's exponent of their popularity; 0: all alike."""

    def law(self) -> "synthesis.Prefixes":
        """Return what synthesis takes."""
        from simulator.workload.synthesis import Prefixes

        return Prefixes(self.count, self.tokens.parameters.law(), self.exponent)


class Sessions(Strict):
    """Conversations: each turn's prompt repeats all that was said, then comes the drawn prompt."""

    turns: Lengths
    """Turns of a session, 1,000 at most: a whole number, or a law."""
    think_time: Times
    """Time from the arrival of a turn to that of the next, whether it has been answered or not."""
    max_tokens: Tokens = 2**31 - 1
    """A session ends before the turn whose prompt and answer are longer together; its first turn always comes."""

    def law(self) -> "synthesis.Sessions":
        """Return what synthesis takes."""
        from simulator.workload.synthesis import Sessions

        return Sessions(self.turns.parameters.law(), self.think_time.parameters.law(), self.max_tokens)


Shares = Annotated[dict[str, PositiveNumber], Field(min_length=1)]


def _whole_numbers(shares: dict[str, float]) -> dict[str, float]:
    for name in shares:
        if not re.fullmatch(r"0|-?[1-9]\d{0,8}", name):  # one way to write each, so that no two are one
            raise ValueError(f"priority {name!r} is no whole number")
    return shares


class Callers(Strict):
    """What callers say of their requests beyond lengths."""

    tenants: Shares | None = None
    """Shares of requests by tenant, in the place of a trace's."""
    priorities: Annotated[Shares, AfterValidator(_whole_numbers)] | None = None
    """Shares of requests by priority, a whole number: the higher, the sooner."""
    samples: Lengths | None = None
    """Answers that each request wants of its prompt in parallel: a whole number, or a law."""
    sample_tokens: Lengths | None = None
    """Tokens of each answer after the first, each drawn by itself; default: the law of `output_tokens`, or in a trace
    what it records, else as many as the first.
    """
    prediction: Prediction | None = None
    """Predicted lengths of answers, for policies that go by them."""

    def laws(self) -> "callers.Callers":
        """Return the laws of what is drawn of callers."""
        from simulator.workload.callers import Callers

        shares = self.priorities
        priorities = {int(name): share for name, share in shares.items()} if shares is not None else None
        samples, lengths = (
            choice.parameters.law() if choice is not None else None for choice in (self.samples, self._further_answers)
        )
        error = self.prediction.error if self.prediction is not None else None
        return Callers(self.tenants, priorities, samples, error, lengths)

    @property
    def _further_answers(self) -> OneOf | None:
        """The law of the lengths of answers after the first, if they are drawn."""
        return self.sample_tokens


class TraceWorkload(Callers):
    """Requests replayed from a trace."""

    trace: str
    """Name of a shipped trace, or a path; Parquet in the canonical schema unless `format` says otherwise."""
    format: Literal["canonical", "azure", "burstgpt", "mooncake", "csv", "servegen"] = "canonical"
    """Format of the file; a ServeGen profile (X.trace.parquet beside X.dataset.parquet) is drawn from with the seed."""
    columns: Columns | None = None
    """For `format: csv`: the columns of the file."""
    strict_rows: bool = False
    """Refuse the first bad row of a text format; the default counts and skips it, and says so."""
    start: Duration = 0
    """Leave out what arrives before this time of the trace; the run's time 0 is here."""
    duration: PositiveDuration | None = None
    """Length of the part that is replayed, in the trace's own time; default: to its end."""
    fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the requests that is replayed, chosen by the seed: sessions whole, a smaller share part of a larger."""
    requests: Count | None = None
    """Replay at most this many requests, counted from `start`, of those that `fraction` keeps."""
    speedup: PositiveNumber = 1.0
    """Times of arrival are divided by this, after the part was cut out."""

    @model_validator(mode="after")
    def _columns_go_with_csv(self) -> Self:
        if self.format == "csv" and self.columns is None:
            raise LocatedError(Fault(("format",), "format csv needs `columns` that name the file's columns"))
        if self.format != "csv" and self.columns is not None:
            what = f"format {self.format} has its own columns; only csv takes their names"
            raise LocatedError(Fault(("columns",), what))
        return self


class SyntheticWorkload(Callers):
    """Requests drawn from arrival and length laws, each from its own random stream."""

    refused: ClassVar[Mapping[str, str]] = {
        "fraction": "there is no trace to take a fraction of: draw fewer requests, at a lower rate of `arrivals`",
    }

    requests: Count
    """How many requests arrive."""
    arrivals: Arrivals
    """The arrival process; with `sessions`, that of their first turns."""
    prompt_tokens: Lengths
    """Tokens of each prompt, beyond what it shares: a whole number, or a law."""
    output_tokens: Lengths
    """Tokens of each output: a whole number, or a law."""
    prefixes: Prefixes | None = None
    """Beginnings that prompts share; default: nothing is known of what is in them."""
    sessions: Sessions | None = None
    """Conversations of several turns; default: every request stands alone."""

    @property
    def _further_answers(self) -> OneOf | None:
        return self.sample_tokens if self.samples is None else self.sample_tokens or self.output_tokens

    @property
    def clients(self) -> int | None:
        """How many clients a closed loop has; None of other arrivals."""
        return self.arrivals.parameters.clients if self.arrivals.name == "closed_loop" else None

    @model_validator(mode="after")
    def _sessions_arrive(self) -> Self:
        if self.sessions is not None and self.clients is not None:
            raise LocatedError(Fault(("sessions",), "a closed loop has no times of arrival for sessions"))
        return self


def workload_kind(value: Any) -> str:
    """Return `trace` or `synthetic`, the kind of workload that a mapping (or a loaded workload) describes."""
    if isinstance(value, dict):
        drawn = any(key in value for key in ("arrivals", "prompt_tokens", "output_tokens"))
        return "synthetic" if drawn and "trace" not in value else "trace"
    return "synthetic" if isinstance(value, SyntheticWorkload) else "trace"


Workload = Annotated[
    Annotated[TraceWorkload, Tag("trace")] | Annotated[SyntheticWorkload, Tag("synthetic")],
    Discriminator(workload_kind),
]
