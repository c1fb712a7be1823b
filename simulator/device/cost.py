"""Time of one engine step: prefill, decode or both; a decode iteration is piecewise affine in the total context.

`roofline` sums the kernels of a model's operators, `measured` too but takes their times from tables where these have
any; `linear` takes the user's own constants.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import copy
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

from simulator.device.accelerator import Accelerator
from simulator.device.engine import RooflineParameters, alternating_ns, two_streams_ns
from simulator.device.kernels import Kernel
from simulator.device.linear_cost import LinearCost, LinearParameters
from simulator.device.lines import Line, Lines
from simulator.device.measured.source import MeasuredParameters, measured_times
from simulator.device.timing import Roofline, Times
from simulator.errors import InputError, Problem
from simulator.model.architecture import LatentAttention
from simulator.model.forward import Pass, Work, longest, together
from simulator.model.layout import Layout
from simulator.model.operators import Collective, Experts, IndexScores, Operator, PromptAttention, Shape, TokenAttention
from simulator.model.precision import Precision
from simulator.model.prediction import PredictionPass
from simulator.model.split import check_layout
from simulator.model.transformer import Transformer
from simulator.strict import Strict

if TYPE_CHECKING:  # these take numpy, and a scenario is read without
    from simulator.device.ranks import RankLines
    from simulator.model.expert_balance import ExpertBalance

Key = TypeVar("Key")
Found = TypeVar("Found")
Links = Callable[[Collective], tuple[float, float, float]]
"""(latency, time on the links) in ns of a collective of an instance, by its place in a topology, and the bytes, at the
rate of its links, that keep a rank's way to other nodes busy."""


class Iterations(Protocol):
    """Decode iterations of several ranks, for one batch size of each."""

    def at(self, contexts: Any) -> Any:
        """Return the ns of iterations as an array; `contexts` has a row for each, of all ranks, tokens fed included."""
        ...


class Cost(Protocol):
    """Durations of the steps of one instance, in ns as float."""

    def prefill_ns(self, tokens: int, attended: int, sequences: int) -> float:
        """Return the duration of computing `tokens` (at least 1) prompt tokens of `sequences` requests in one step.

        `attended` is the number of query-key pairs: for each request n * cached + n (n + 1) / 2.
        """
        ...

    def decode(self, batch: int, context: float) -> Line:
        """Return the line of one iteration for each of `batch` (at least 1) requests at `context` tokens in all.

        The context of a sequence is every position that its new token attends to, itself included.
        """
        ...

    def mixed_ns(self, tokens: int, attended: int, sequences: int, batch: int, context: float) -> float:
        """Return the duration of a step that computes prompt tokens and one token of each of `batch` requests."""
        ...

    def together_ns(self, works: Sequence[Work]) -> float:
        """Return the duration of a step of several ranks, of which each has work of its own.

        Rank m * data + d is data-parallel rank d of micro-batch m, of as many as the pipeline has stages.
        """
        ...

    def decode_together(self, batches: Sequence[int]) -> Iterations:
        """Return the decode iterations of several ranks with batches of these sizes, in that order."""
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


ATTENTION = (PromptAttention, TokenAttention, IndexScores)
MOST_REMEMBERED = 1 << 16
"""Steps, and parts of steps, remembered at most: what comes back does so soon, and memory stays flat."""


def _remember(known: dict[Key, Found], key: Key, value: Found) -> Found:
    """Write down a value, all others forgotten when there are too many, and return it."""
    if len(known) >= MOST_REMEMBERED:
        known.clear()
    known[key] = value
    return value


class _Rest(NamedTuple):
    """A step but for its attention: a rank's own kernels, routed experts, the exchange with them there and back, how
    many kernels, and what all collectives send to other nodes."""

    kernels_ns: float
    experts_ns: float
    dispatch_ns: float
    combine_ns: float
    calls: int
    sent_bytes: float

    @property
    def exchange_ns(self) -> float:
        """There and back."""
        return self.dispatch_ns + self.combine_ns

    def then(self, others: "Iterable[_Rest]") -> "_Rest":
        """Return the sum of this and others, added up in their order."""
        kernels, experts, dispatch, combine, calls, sent = self
        for other in others:
            kernels += other[0]
            experts += other[1]
            dispatch += other[2]
            combine += other[3]
            calls += other[4]
            sent += other[5]
        return _Rest(kernels, experts, dispatch, combine, calls, sent)


_NOTHING = _Rest(0.0, 0.0, 0.0, 0.0, 0, 0.0)


class RooflineCost:
    """Steps of a model from the kernels of its operators on one device kind.

    The duration of a step is the sum of its kernels, or the host's chain of launches if that is longer, plus the
    engine's overhead; two micro-batches may overlap. All ranks do equal work but for routed experts, of which a
    `balance` knows what the fullest rank has.
    Raises InputError when the layout splits the model unevenly or passes the scale-up domain, or the device does not
    multiply in the precision.
    """

    experts_elsewhere = False
    """Whether routed experts are on other devices than those of the layout."""

    def __init__(
        self,
        model: Transformer,
        layout: Layout,
        accelerator: Accelerator,
        precision: Precision | None = None,
        engine: RooflineParameters | None = None,
        links: Links | None = None,
        times: Times | None = None,
        balance: "ExpertBalance | None" = None,
        queries: int = 1,
        predicts: bool = False,
    ) -> None:
        """`queries` positions are fed for each decoding sequence; a model that `predicts` is a prediction module."""
        if model.encoder is not None:
            what = f"{model.name} has an encoder: such models are counted, their training steps timed, but not served"
            raise InputError(Problem(what, path="model", allowed="a decoder-only model"))
        check_layout(model, layout)
        self.times = times or Roofline(accelerator)
        self._links = links
        self.model, self.layout, self.accelerator = model, layout, accelerator
        self.precision = precision or Precision()
        self.engine = engine or RooflineParameters()
        self.balance = balance
        self._pass = (PredictionPass if predicts else Pass)(model, layout, self.precision, balance=balance)
        self._queries = queries
        self._latent = isinstance(model.attention, LatentAttention)
        self._rest: dict[tuple[float, ...], _Rest] = {}
        self._bodies: dict[tuple[float, ...], _Rest] = {}
        self._ends: dict[tuple[int, float], Sequence[_Rest]] = {}
        self._kernels: dict[tuple[str, type, Shape], Kernel] = {}
        self._decode: dict[int, Lines] = {}
        self._own: dict[int, Lines] = {}
        self._steps: dict[tuple[int, int, int, int, float], float] = {}
        for operator in self._pass.operators(Work(1, 1, 1, 1, 1)):
            self._time(operator)  # every format and group is known, or the error comes now

    def rebalanced(self, balance: "ExpertBalance") -> "RooflineCost":
        """Return the cost under another balance of the same ranks and slots: only routed experts are timed anew."""
        found = copy(self)
        found.balance = balance
        found._pass = Pass(self.model, self.layout, self.precision, balance=balance)
        found._rest, found._bodies, found._decode, found._steps = {}, {}, {}, {}
        found._kernels = {key: kernel for key, kernel in self._kernels.items() if key[1] is not Experts}
        if balance.shared_copies and not (self.balance and self.balance.shared_copies):
            found._own = {}  # shared experts were each rank's own
        return found

    def relinked(self, links: Links) -> "RooflineCost":
        """Return the cost with collectives over other links: only they are timed anew."""
        found = copy(self)
        found._links = links
        found._rest, found._bodies, found._ends = {}, {}, {}
        found._decode, found._own, found._steps = {}, {}, {}
        found._kernels = {key: kernel for key, kernel in self._kernels.items() if key[1] is not Collective}
        return found

    @property
    def links(self) -> Links | None:
        """What times its collectives."""
        return self._links

    def sent_bytes(self, works: Sequence[Work]) -> float:
        """Return what a rank sends to other nodes in a step, on average, where each has work of its own.

        In bytes at the rate of its links, all its collectives together; see `Cost.together_ns` for the order of ranks.
        """
        data, stages, sent = self.layout.data, self.layout.pipeline, 0.0
        for first in range(0, len(works), data):
            batch = together(works[first : first + data])._replace(queries=self._queries)
            if batch.tokens:
                sent += self._rest_of(batch).sent_bytes
        return sent / stages

    def prefill_ns(self, tokens: int, attended: int, sequences: int) -> float:
        """Return the duration of a prefill step; see `Cost.prefill_ns`. One row of logits per sequence."""
        return self.mixed_ns(tokens, attended, sequences, 0, 0.0)

    def mixed_ns(self, tokens: int, attended: int, sequences: int, batch: int, context: float) -> float:
        """Return the duration of a step of both phases; see `Cost.mixed_ns`."""
        key = tokens, attended, sequences, batch, context
        known = self._steps.get(key)
        if known is None:
            known = _remember(self._steps, key, self.step_ns(Work(*key, self._queries)))
        return known

    def step_ns(self, work: Work) -> float:
        """Return the duration of any step."""
        work = self._batch(work)
        return float(self._joined(self._own_ns(work), work, work))

    def together_ns(self, works: Sequence[Work]) -> float:
        """Return the duration of a step of several ranks; see `Cost.together_ns`."""
        from simulator.device.ranks import round_of

        data, stages = self.layout.data, self.layout.pipeline
        if self._queries > 1:
            works = [work._replace(queries=self._queries) for work in works]
        traversals = [self._traversal_ns(works[first : first + data]) for first in range(0, len(works), data)]
        return float(round_of(traversals, stages))

    def decode_together(self, batches: Sequence[int]) -> "RankLines":
        """Return the decode iterations of several ranks; see `Cost.decode_together`."""
        from simulator.device.ranks import RankLines

        return RankLines(batches, self.layout.data, self._own_lines, self._decode_joined)

    def _traversal_ns(self, works: Sequence[Work]) -> float:
        """Return the time of one micro-batch through every stage."""
        data = self.layout.data
        if not any(work.tokens for work in works):
            return 0.0
        slowest = longest(works) if self.times.grows else works  # of all ranks: the others need not be looked at
        alike = [work.times(data) for work in slowest]  # as if every rank had as much as this one
        busiest = max(alike, key=lambda work: work.tokens)
        return float(self._joined(max(map(self._own_ns, alike)), busiest, together(works)))

    def _decode_joined(self, own_ns: Any, sizes: Sequence[int]) -> Any:
        if not any(sizes):
            return own_ns
        busiest, whole = max(sizes) * self.layout.data, sum(sizes)
        return self._joined(own_ns, *(Work(batch=size, queries=self._queries) for size in (busiest, whole)))

    def _own_lines(self, size: int) -> Lines:
        """Return the own kernels of a data-parallel rank that decodes for `size` sequences, over its context."""
        lines = self._own.get(size)
        if lines is None:
            n, fed = self.layout.data, self._queries
            work = Work(batch=n * size, queries=fed)
            lines = self._own[size] = Lines(lambda c: self._own_ns(work._replace(context=n * c)), 32.0 * size)
        return lines

    def _own_ns(self, work: Work) -> float:
        """Return the time of the kernels but routed experts, of one of two micro-batches where these overlap."""
        if not work.tokens:
            return 0.0
        if not self._overlaps(work):
            return self._rest_of(work).kernels_ns + self._attention_ns(work)
        half, share = work.halved_on(self.layout), self._attention_share
        return self._rest_of(half, share).kernels_ns + self._attention_ns(half, share)

    def _joined(self, own_ns: Any, busiest: Work, whole: Work) -> Any:
        """Return the duration of a step whose slowest rank's own kernels take `own_ns`, a number or an array.

        The exchange is that of the busiest rank, as if all had as much; the routed experts get the tokens of all.
        """
        engine = self.engine
        if engine.overlap is not None and self._overlaps(busiest):
            share = self._attention_share
            sent = self._rest_of(busiest.halved_on(self.layout), share)
            times = self._rest_of(whole.halved(), share).experts_ns, sent.dispatch_ns, sent.combine_ns
            if share == 1:
                busy_ns = alternating_ns(own_ns, *times, self.model.layers, engine.overlap)
            else:
                busy_ns = two_streams_ns(own_ns, sum(times), self.model.layers, engine.overlap)
        else:
            busy_ns = own_ns + self._rest_of(whole).experts_ns + self._rest_of(busiest).exchange_ns
        if engine.launch and not engine.is_captured(whole.prompt_tokens > 0):
            import numpy as np

            busy_ns = np.maximum(busy_ns, self._rest_of(busiest).calls * engine.launch)
        return engine.step_overhead + busy_ns

    @property
    def _attention_share(self) -> float:
        """Share of the processors that a rank's own kernels have beside the other stream; 1: they have them all."""
        return (self.engine.overlap and self.engine.overlap.attention_share) or 1.0

    def _overlaps(self, work: Work) -> bool:
        if self.engine.overlap is None or not self._rest_of(work).exchange_ns:
            return False
        rank = work.of_rank(self.layout)
        return rank.prompt_tokens + rank.batch > 1  # one token alone is no two batches

    def decode(self, batch: int, context: float) -> Line:
        """Return the line of a decode iteration about `context`; see `Cost.decode`."""
        lines = self._decode.get(batch)
        if lines is None:
            work = Work(batch=batch, queries=self._queries)
            lines = self._decode[batch] = Lines(lambda c: self.step_ns(work._replace(context=c)), 32.0 * batch)
        return lines.at(context)

    def operators(self, work: Work) -> list[OperatorTime]:
        """Return the operator table whose times, with the step overhead, sum to `step_ns` of the same work."""
        table = [
            OperatorTime(o.name, o.calls, o.calls * k.flops, o.calls * k.size_bytes, o.calls * k.ns, k.bound, o.shape)
            for o, k in self.kernels(work)
        ]
        engine, busy_ns = self.engine, sum(row.ns for row in table)
        gap_ns = self.step_ns(work) - engine.step_overhead - busy_ns
        if abs(gap_ns) > 1e-9 * busy_ns:
            name, bound = engine.gap(gap_ns, self.experts_elsewhere)
            table.append(OperatorTime(name, 1, 0.0, 0.0, gap_ns, bound))
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
        as long as the fullest takes through every stage.
        """
        stages = self.layout.pipeline
        if stages == 1 or work.prompt_tokens or not work.batch:
            return work
        size = -(-work.batch // stages)
        return work._replace(batch=size, context=work.context * (size / work.batch))

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
            latency_ns, link_ns, sent_bytes = self._links(shape)
            return Kernel(link_ns=link_ns, fixed_ns=latency_ns, sent_bytes=sent_bytes)
        if self.layout.devices > self.accelerator.domain:
            what = (
                f"{shape.ranks} {shape.group}-parallel ranks do not fit one scale-up domain of {self.accelerator.name}"
            )
            raise InputError(Problem(what, path="layout", allowed=f"at most {self.accelerator.domain}, or a topology"))
        return self.times.kernel(operator)

    def _rest_of(self, work: Work, share: float = 1.0) -> "_Rest":
        """Return everything but attention over the context: it follows from the numbers of tokens.

        On a share of the processors, below one, experts have those that it leaves.
        """
        prompts = work.prompt_tokens, work.prompts, round(work.kv_tokens) if self._latent else 0
        key = *prompts, work.batch, work.queries, share
        known = self._rest.get(key)
        if known is None:
            rank = work.of_rank(self.layout)
            known = _remember(self._rest, key, self._body(work, rank.tokens, share).then(self._end(rank.rows, share)))
        return known

    def _body(self, work: Work, tokens: int, share: float) -> "_Rest":
        """Return the same without the head, with so many tokens on each rank: it comes back far more often."""
        if self._latent:
            return _NOTHING.then(self._timed(self._pass.body(work), share))
        key = tokens, work.tokens, work.prompt_tokens > 0, work.batch > 0, share
        known = self._bodies.get(key)
        if known is None:
            known = _remember(self._bodies, key, _NOTHING.then(self._timed(self._pass.body(work), share)))
        return known

    def _end(self, rows: int, share: float) -> "Sequence[_Rest]":
        """Return what each operator of the head of so many positions adds."""
        known = self._ends.get((rows, share))
        if known is None:
            known = _remember(self._ends, (rows, share), tuple(self._timed(self._pass.end(rows), share)))
        return known

    def _timed(self, operators: Iterable[Operator], share: float) -> "Iterator[_Rest]":
        """Yield what each operator adds; attention over the context only how often it is called."""
        for operator in operators:
            shape, calls = operator.shape, operator.calls
            if isinstance(shape, ATTENTION):
                yield _NOTHING._replace(calls=calls)
                continue
            kernel = self._time(operator)
            ns, sent = calls * kernel.on(share), calls * kernel.sent_bytes
            if isinstance(shape, Collective) and shape.operation == "dispatch":
                yield _Rest(0.0, 0.0, ns, 0.0, calls, sent)
            elif isinstance(shape, Collective) and shape.operation == "combine":
                yield _Rest(0.0, 0.0, 0.0, ns, calls, sent)
            elif isinstance(shape, Experts):
                yield _Rest(0.0, calls * kernel.on(1 - share if share < 1 else 1.0), 0.0, 0.0, calls, sent)
            else:
                yield _Rest(ns, 0.0, 0.0, 0.0, calls, sent)

    def _attention_ns(self, work: Work, share: float = 1.0) -> float:
        operators = self._pass.attention(work)
        kernels = self.times.attention(operators)
        return sum(o.calls * kernel.on(share) for o, kernel in zip(operators, kernels, strict=True))


class Subject(NamedTuple):
    """What steps are timed of: a model under a layout on a device kind, in formats, with the links of its place."""

    model: Transformer
    layout: Layout
    accelerator: Accelerator
    precision: Precision
    links: Links | None = None
    balance: "ExpertBalance | None" = None
    queries: int = 1
    """Positions fed for each decoding sequence: 1, or more when drafted tokens are verified."""
    predicts: bool = False
    """Whether the model is a module of multi-token prediction."""


Factory = Callable[[Any, Subject], Cost]


def _roofline(parameters: RooflineParameters, of: Subject) -> Cost:
    given = of.model, of.layout, of.accelerator, of.precision, parameters, of.links
    return RooflineCost(*given, None, of.balance, of.queries, of.predicts)


def _measured(parameters: MeasuredParameters, of: Subject) -> Cost:
    times = measured_times(parameters, Pass(of.model, of.layout, of.precision), of.accelerator)
    given = of.model, of.layout, of.accelerator, of.precision, parameters, of.links
    return RooflineCost(*given, times, of.balance, of.queries, of.predicts)


def _linear(parameters: LinearParameters, of: Subject) -> Cost:
    return LinearCost(parameters, of.layout)


COSTS: dict[str, tuple[type[Strict], Factory]] = {
    "roofline": (RooflineParameters, _roofline),
    "measured": (MeasuredParameters, _measured),
    "linear": (LinearParameters, _linear),
}
"""Cost models by name: the model of their parameters and the function that makes one for a model on a device kind."""
