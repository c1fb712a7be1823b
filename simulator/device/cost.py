"""Time of one engine step: prefill, decode or both; a decode iteration is piecewise affine in the total context.

`roofline` sums the kernels of a model's operators, `measured` too but takes their times from tables where these have
any; `linear` takes the user's own constants.
"""

from collections.abc import Callable
from math import inf
from typing import Annotated, Any, NamedTuple, Protocol, TypeVar

from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema

from simulator import units
from simulator.device.accelerator import Accelerator
from simulator.device.engine import RooflineParameters, overlapped_ns
from simulator.device.kernels import Kernel
from simulator.device.measured.source import MeasuredParameters, measured_times
from simulator.device.timing import Roofline, Times
from simulator.errors import InputError, Problem
from simulator.model.architecture import LatentAttention
from simulator.model.forward import Pass, Work
from simulator.model.layout import Layout
from simulator.model.operators import Collective, Operator, PromptAttention, Shape, TokenAttention
from simulator.model.precision import Precision
from simulator.model.split import check_layout
from simulator.model.transformer import Transformer
from simulator.strict import Strict

Key = TypeVar("Key")
Found = TypeVar("Found")
Links = Callable[[Collective], tuple[float, float]]
"""(latency, time on the links) in ns of a collective of an instance, by its place in a topology."""


class DecodeStep(NamedTuple):
    """One decode iteration of a fixed batch whose contexts sum to C tokens lasts fixed + slope * C nanoseconds.

    The context of a sequence is every position that its new token attends to, itself included. The line holds for
    contexts up to `until` tokens in all; beyond, ask anew.
    """

    fixed_ns: float
    per_context_token_ns: float
    until: float = inf

    def at(self, context: float) -> float:
        """Return the duration at a context, in ns."""
        return self.fixed_ns + self.per_context_token_ns * context


class Cost(Protocol):
    """Durations of the steps of one instance, in ns as float."""

    def prefill_ns(self, tokens: int, attended: int, sequences: int) -> float:
        """Return the duration of computing `tokens` (at least 1) prompt tokens of `sequences` requests in one step.

        `attended` is the number of query-key pairs: for each request n * cached + n (n + 1) / 2.
        """
        ...

    def decode(self, batch: int, context: float) -> DecodeStep:
        """Return the line of one iteration for each of `batch` (at least 1) requests at `context` tokens in all."""
        ...

    def mixed_ns(self, tokens: int, attended: int, sequences: int, batch: int, context: float) -> float:
        """Return the duration of a step that computes prompt tokens and one token of each of `batch` requests."""
        ...


class OperatorTime(NamedTuple):
    """A kind of kernel and all its calls in one step: `flops`, `size_bytes` and `ns` are sums over the calls."""

    name: str
    calls: int
    flops: float
    size_bytes: float
    ns: float
    bound: str
    shape: Shape | None = None


ATTENTION = (PromptAttention, TokenAttention)
KNOTS_PER_OCTAVE = 4
"""Contexts at which a decode step is evaluated where it is no straight line, per factor of two."""


MOST_REMEMBERED = 1 << 16
"""Steps, and parts of steps, remembered at most: what comes back does so soon, and memory stays flat."""


def _remember(known: dict[Key, Found], key: Key, value: Found) -> Found:
    """Write down a value, all others forgotten when there are too many, and return it."""
    if len(known) >= MOST_REMEMBERED:
        known.clear()
    known[key] = value
    return value


class _Rest(NamedTuple):
    """A step but for its attention: kernels, the exchange with experts on other ranks, and how many kernels in all."""

    kernels_ns: float
    exchange_ns: float
    calls: int


class RooflineCost:
    """Steps of a model from the kernels of its operators on one device kind.

    The duration of a step is the sum of its kernels, or the host's chain of launches if that is longer, plus the
    engine's overhead; two micro-batches may overlap. All ranks do equal work.
    Raises InputError when the layout splits the model unevenly or passes the scale-up domain, or the device does not
    multiply in the precision.
    """

    def __init__(
        self,
        model: Transformer,
        layout: Layout,
        accelerator: Accelerator,
        precision: Precision | None = None,
        engine: RooflineParameters | None = None,
        links: Links | None = None,
        times: Times | None = None,
    ) -> None:
        if model.encoder is not None:
            what = f"{model.name} has an encoder: such models are counted, their training steps timed, but not served"
            raise InputError(Problem(what, path="model", allowed="a decoder-only model"))
        check_layout(model, layout)
        self.times = times or Roofline(accelerator)
        self._links = links
        self.model, self.layout, self.accelerator = model, layout, accelerator
        self.precision = precision or Precision()
        self.engine = engine or RooflineParameters()
        self._pass = Pass(model, layout, self.precision)
        self._latent = isinstance(model.attention, LatentAttention)
        self._rest: dict[tuple[int, ...], _Rest] = {}
        self._kernels: dict[tuple[str, type, Shape], Kernel] = {}
        self._decode: dict[int, list[DecodeStep]] = {}
        self._steps: dict[tuple[int, int, int, int, float], float] = {}
        for operator in self._pass.operators(Work(1, 1, 1, 1, 1)):
            self._time(operator)  # every format and group is known, or the error comes now

    def prefill_ns(self, tokens: int, attended: int, sequences: int) -> float:
        """Return the duration of a prefill step; see `Cost.prefill_ns`. One row of logits per sequence."""
        return self.mixed_ns(tokens, attended, sequences, 0, 0.0)

    def mixed_ns(self, tokens: int, attended: int, sequences: int, batch: int, context: float) -> float:
        """Return the duration of a step of both phases; see `Cost.mixed_ns`."""
        key = tokens, attended, sequences, batch, context
        known = self._steps.get(key)
        if known is None:
            known = _remember(self._steps, key, self.step_ns(Work(*key)))
        return known

    def step_ns(self, work: Work) -> float:
        """Return the duration of any step."""
        work = self._batch(work)
        rest, engine = self._rest_of(work), self.engine
        if engine.overlap is not None and rest.exchange_ns and work.tokens > 1:
            half = work.halved()
            part = self._rest_of(half)
            kernels_ns = part.kernels_ns + self._attention_ns(half)
            busy_ns = overlapped_ns(kernels_ns, part.exchange_ns, self.model.layers, engine.overlap)
        else:
            busy_ns = rest.kernels_ns + rest.exchange_ns + self._attention_ns(work)
        if engine.launch and not engine.is_captured(work.prompt_tokens > 0):
            busy_ns = max(busy_ns, rest.calls * engine.launch)
        return engine.step_overhead + busy_ns

    def decode(self, batch: int, context: float) -> DecodeStep:
        """Return the line of a decode iteration about `context`; see `Cost.decode`."""
        pieces = self._decode.get(batch)
        if pieces is None:
            pieces = self._decode[batch] = []
        for piece in pieces:
            if context <= piece.until:
                return piece
        while True:
            piece = self._next_piece(batch, pieces)
            pieces.append(piece)
            if context <= piece.until:
                return piece

    def operators(self, work: Work) -> list[OperatorTime]:
        """Return the operator table whose times, with the step overhead, sum to `step_ns` of the same work."""
        table = [
            OperatorTime(o.name, o.calls, o.calls * k.flops, o.calls * k.size_bytes, o.calls * k.ns, k.bound, o.shape)
            for o, k in self.kernels(work)
        ]
        engine, busy_ns = self.engine, sum(row.ns for row in table)
        gap_ns = self.step_ns(work) - engine.step_overhead - busy_ns
        if abs(gap_ns) > 1e-9 * busy_ns:
            slower = "two smaller micro-batches" if engine.overlap else "waiting for launches"
            name = "hidden behind the other micro-batch" if gap_ns < 0 else slower
            table.append(OperatorTime(name, 1, 0.0, 0.0, gap_ns, "overlap" if engine.overlap else "host"))
        if engine.step_overhead:
            table.append(OperatorTime("step overhead", 1, 0.0, 0.0, engine.step_overhead, "host"))
        return table

    def kernels(self, work: Work) -> list[tuple[Operator, Kernel]]:
        """Return the operators of one step with the kernel of one call of each, in order."""
        operators = self._pass.operators(self._batch(work))
        together = iter(self.times.attention([o for o in operators if isinstance(o.shape, ATTENTION)]))
        return [(o, next(together) if isinstance(o.shape, ATTENTION) else self._time(o)) for o in operators]

    def _batch(self, work: Work) -> Work:
        """Return what one micro-batch of a decode step has.

        A pipeline of p stages decodes p of them at once, each waiting for its own last token: an iteration of all lasts
        as long as one takes through every stage.
        """
        stages = self.layout.pipeline
        if stages == 1 or work.prompt_tokens:
            return work
        return work._replace(batch=-(-work.batch // stages), context=work.context / stages)

    def _time(self, operator: Operator) -> Kernel:
        shape = operator.shape
        key = operator.name, type(shape), shape
        kernel = self._kernels.get(key)
        if kernel is None:
            time = self._collective if isinstance(shape, Collective) else self.times.kernel
            kernel = time(operator)
            if not isinstance(shape, ATTENTION):
                _remember(self._kernels, key, kernel)
        return kernel

    def _collective(self, operator: Operator) -> Kernel:
        """Return a collective by the device's own constants within a scale-up domain, by the topology beyond it."""
        shape = operator.shape
        assert isinstance(shape, Collective)
        if shape.ranks <= self.accelerator.domain and shape.group == "tensor":
            return self.times.kernel(operator)
        if self._links is not None:
            latency_ns, link_ns = self._links(shape)
            return Kernel(link_ns=link_ns, fixed_ns=latency_ns)
        if self.layout.devices > self.accelerator.domain:
            what = (
                f"{shape.ranks} {shape.group}-parallel ranks do not fit one scale-up domain of {self.accelerator.name}"
            )
            raise InputError(Problem(what, path="layout", allowed=f"at most {self.accelerator.domain}, or a topology"))
        return self.times.kernel(operator)

    def _rest_of(self, work: Work) -> "_Rest":
        """Return everything but attention over the context: it follows from the numbers of tokens."""
        key = work.prompt_tokens, work.prompts, work.batch, round(work.kv_tokens) if self._latent else 0
        known = self._rest.get(key)
        if known is None:
            kernels = exchange = 0.0
            calls = 0
            for operator in self._pass.operators(work):
                calls += operator.calls
                if isinstance(operator.shape, ATTENTION):
                    continue
                ns = operator.calls * self._time(operator).ns
                if isinstance(operator.shape, Collective) and operator.shape.operation in ("dispatch", "combine"):
                    exchange += ns
                else:
                    kernels += ns
            known = _remember(self._rest, key, _Rest(kernels, exchange, calls))
        return known

    def _attention_ns(self, work: Work) -> float:
        operators = self._pass.attention(work)
        kernels = self.times.attention(operators)
        return sum(o.calls * kernel.ns for o, kernel in zip(operators, kernels, strict=True))

    def _next_piece(self, batch: int, pieces: list[DecodeStep]) -> DecodeStep:
        """Return the line of decode steps from the end of the last piece on, to the next knot or for ever."""
        start = pieces[-1].until if pieces else 0.0
        here = pieces[-1].at(start) if pieces else self._decode_ns(batch, 0.0)
        end = max(32.0 * batch, start * 2 ** (1 / KNOTS_PER_OCTAVE))
        there = self._decode_ns(batch, end)
        slope = (there - here) / (end - start)
        straight = len(pieces) < 2 and self._goes_on(batch, end, there, slope)
        return DecodeStep(here - slope * start, slope, inf if straight else end)

    def _goes_on(self, batch: int, end: float, there: float, slope: float) -> bool:
        """Return whether the line through (end, there) holds for contexts far beyond, so that no knot is needed."""
        far = self._decode_ns(batch, 64 * end)
        return abs(there + slope * 63 * end - far) <= 1e-9 * far

    def _decode_ns(self, batch: int, context: float) -> float:
        return self.step_ns(Work(batch=batch, context=context))


def _parse_fine_ns(text: object) -> float:
    """Return a duration such as `12.5 ps` in ns, fractions kept."""
    value = units.parse(text, units.TIME_NS, "duration", "12.5 ns")
    if value < 0:
        raise units.UnitError(f"{text!r} is negative; a duration is zero or more")
    return float(value)


FineDuration = Annotated[
    float,
    BeforeValidator(_parse_fine_ns),
    PlainSerializer(lambda ns: f"{ns!r} ns", return_type=str),
    WithJsonSchema({"type": "string", "description": "a duration with its unit", "examples": ["4 ms", "12.5 ps"]}),
]


class LinearPrefill(Strict):
    """A prefill step lasts fixed + per_token * tokens + per_attended * attended query-key pairs."""

    fixed: FineDuration = 0.0
    per_token: FineDuration = 0.0
    per_attended: FineDuration = 0.0


class LinearDecode(Strict):
    """A decode iteration lasts fixed + per_sequence * batch + per_context_token * total context."""

    fixed: FineDuration = 0.0
    per_sequence: FineDuration = 0.0
    per_context_token: FineDuration = 0.0


class LinearParameters(Strict):
    """The user's own constants; what is left out is zero."""

    prefill: LinearPrefill = LinearPrefill()
    decode: LinearDecode = LinearDecode()


class LinearCost:
    """Steps whose durations are linear with the user's own constants, whatever the model and the device."""

    def __init__(self, parameters: LinearParameters) -> None:
        prefill, self._decode = parameters.prefill, parameters.decode
        self._prefill = prefill.fixed, prefill.per_token, prefill.per_attended

    def prefill_ns(self, tokens: int, attended: int, sequences: int) -> float:
        """Return the duration of a prefill step; see `Cost.prefill_ns`. The number of sequences has no part in it."""
        fixed_ns, token_ns, pair_ns = self._prefill
        return fixed_ns + token_ns * tokens + pair_ns * attended

    def mixed_ns(self, tokens: int, attended: int, sequences: int, batch: int, context: float) -> float:
        """Return the duration of a step of both phases: the fixed parts once, the larger of the two, and the rest."""
        prompt, step = self._prefill, self._decode
        rest = prompt[1] * tokens + prompt[2] * attended + step.per_sequence * batch + step.per_context_token * context
        return max(prompt[0], step.fixed) + rest

    def decode(self, batch: int, context: float) -> DecodeStep:
        """Return the line of a decode iteration; see `Cost.decode`."""
        return DecodeStep(self._decode.fixed + self._decode.per_sequence * batch, self._decode.per_context_token)


class Subject(NamedTuple):
    """What steps are timed of: a model under a layout on a device kind, in formats, with the links of its place."""

    model: Transformer
    layout: Layout
    accelerator: Accelerator
    precision: Precision
    links: Links | None = None


Factory = Callable[[Any, Subject], Cost]


def _roofline(parameters: RooflineParameters, of: Subject) -> Cost:
    return RooflineCost(of.model, of.layout, of.accelerator, of.precision, parameters, of.links)


def _measured(parameters: MeasuredParameters, of: Subject) -> Cost:
    times = measured_times(parameters, Pass(of.model, of.layout, of.precision), of.accelerator)
    return RooflineCost(of.model, of.layout, of.accelerator, of.precision, parameters, of.links, times)


def _linear(parameters: LinearParameters, of: Subject) -> Cost:
    return LinearCost(parameters)


COSTS: dict[str, tuple[type[Strict], Factory]] = {
    "roofline": (RooflineParameters, _roofline),
    "measured": (MeasuredParameters, _measured),
    "linear": (LinearParameters, _linear),
}
"""Cost models by name: the model of their parameters and the function that makes one for a model on a device kind."""
