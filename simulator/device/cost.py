"""Time of one engine step: prefill of some tokens, or one decode iteration that is affine in the total context.

`roofline` sums the kernels of a dense transformer under tensor parallelism; `linear` takes the user's own constants.
"""

from collections.abc import Callable
from typing import Annotated, Any, NamedTuple, Protocol

from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema

from simulator import units
from simulator.device import kernels
from simulator.device.accelerator import Accelerator
from simulator.device.kernels import Kernel
from simulator.errors import InputError, Problem
from simulator.model.transformer import VALUE_BYTES, Layout, Transformer
from simulator.strict import Duration, Strict


class DecodeStep(NamedTuple):
    """One decode iteration of a fixed batch whose contexts sum to C tokens lasts fixed + slope * C nanoseconds.

    The context of a sequence is every position that its new token attends to, itself included.
    """

    fixed_ns: float
    per_context_token_ns: float


class Cost(Protocol):
    """Durations of the two kinds of step of one instance, in ns as float."""

    def prefill_ns(self, tokens: int, attended: int, sequences: int) -> float:
        """Return the duration of computing `tokens` (at least 1) prompt tokens of `sequences` requests in one step.

        `attended` is the number of query-key pairs: for each request n * cached + n (n + 1) / 2.
        """
        ...

    def decode(self, batch: int) -> DecodeStep:
        """Return the coefficients of one iteration that makes one token for each of `batch` (at least 1) requests."""
        ...


class Operator(NamedTuple):
    """A kind of kernel and all its calls in one step: `flops`, `size_bytes` and `ns` are sums over the calls."""

    name: str
    calls: int
    flops: float
    size_bytes: float
    ns: float
    bound: str


class RooflineCost:
    """Steps of a dense transformer on ranks of one scale-up domain, from the kernels of `simulator.device.kernels`.

    The duration of a step is the sum of its kernels (no overlap) plus `step_overhead_ns`. All ranks do equal work.
    Raises InputError when the layout splits the model unevenly or passes the scale-up domain.
    """

    def __init__(
        self, model: Transformer, layout: Layout, accelerator: Accelerator, step_overhead_ns: float = 0.0
    ) -> None:
        model.check(layout)
        if layout.tensor > accelerator.scale_up.ranks:
            what = f"{layout.tensor} tensor-parallel ranks do not fit one scale-up domain of {accelerator.name}"
            raise InputError(Problem(what, path="layout.tensor", allowed=f"at most {accelerator.scale_up.ranks}"))
        self.model, self.layout, self.accelerator = model, layout, accelerator
        self.step_overhead_ns = step_overhead_ns
        self._heads, self._kv_heads = model.heads // layout.tensor, model.kv_heads_per_rank(layout)
        self._dense: dict[int, float] = {}
        self._head: dict[int, float] = {}
        self._decode: dict[int, DecodeStep] = {}
        one, pair, kv = (self._prefill_attention(*point) for point in ((1, 0, 0), (0, 1, 0), (0, 0, 1)))
        self._launch_ns = model.layers * one.fixed_ns
        self._query_ns = model.layers * one.compute_ns, model.layers * one.memory_ns
        self._pair_ns, self._kv_token_ns = model.layers * pair.compute_ns, model.layers * kv.memory_ns

    def prefill_ns(self, tokens: int, attended: int, sequences: int) -> float:
        """Return the duration of a prefill step; see `Cost.prefill_ns`. One row of logits per sequence."""
        dense_ns = self._dense.get(tokens)
        if dense_ns is None:
            dense_ns = self._dense[tokens] = sum(k.ns * calls for _, calls, k in self._dense_kernels(tokens))
        head_ns = self._head.get(sequences)
        if head_ns is None:
            head_ns = self._head[sequences] = sum(k.ns * calls for _, calls, k in self._head_kernels(sequences))
        compute_ns = self._query_ns[0] * tokens + self._pair_ns * attended
        memory_ns = self._query_ns[1] * tokens + self._kv_token_ns * _kv_tokens(tokens, attended, sequences)
        busy_ns = compute_ns if compute_ns > memory_ns else memory_ns
        return self.step_overhead_ns + dense_ns + head_ns + self._launch_ns + busy_ns

    def decode(self, batch: int) -> DecodeStep:
        """Return the coefficients of a decode iteration; see `Cost.decode`."""
        step = self._decode.get(batch)
        if step is None:
            base, token = self._decode_attention(batch, 0), self._decode_attention(0, 1)
            rest = [*self._dense_kernels(batch), *self._head_kernels(batch), ("attention", self.model.layers, base)]
            fixed_ns = self.step_overhead_ns + sum(k.ns * calls for _, calls, k in rest)
            slope_ns = self.model.layers * token.busy_ns
            step = self._decode[batch] = DecodeStep(fixed_ns, slope_ns)
        return step

    def prefill_operators(self, tokens: int, attended: int, sequences: int) -> list[Operator]:
        """Return the operator table whose times, with the step overhead, sum to `prefill_ns` of the same arguments."""
        attention = self._prefill_attention(tokens, attended, _kv_tokens(tokens, attended, sequences))
        return self._table(tokens, sequences, attention)

    def decode_operators(self, batch: int, context: int) -> list[Operator]:
        """Return the operator table of one iteration of `batch` sequences whose contexts sum to `context` tokens."""
        return self._table(batch, batch, self._decode_attention(batch, context))

    def _table(self, tokens: int, sequences: int, attention: Kernel) -> list[Operator]:
        rows = [*self._dense_kernels(tokens), *self._head_kernels(sequences)]
        names = [name for name, _, _ in rows]
        rows.insert(names.index("output projection"), ("attention", self.model.layers, attention))
        table = [
            Operator(n, calls, calls * k.flops, calls * k.size_bytes, calls * k.ns, k.bound) for n, calls, k in rows
        ]
        if self.step_overhead_ns:
            table.append(Operator("step overhead", 1, 0.0, 0.0, self.step_overhead_ns, "host"))
        return table

    def _prefill_attention(self, tokens: int, attended: float, kv_tokens: float) -> Kernel:
        shape = self._heads, self._kv_heads, self.model.head_dim
        return kernels.prefill_attention(tokens, attended, kv_tokens, *shape, self.accelerator)

    def _decode_attention(self, batch: int, context: float) -> Kernel:
        shape = self._heads, self._kv_heads, self.model.head_dim
        return kernels.decode_attention(batch, context, *shape, self.accelerator)

    def _dense_kernels(self, tokens: int) -> list[tuple[str, int, Kernel]]:
        """Return (name, calls per step, kernel) of everything that sees each token alone, up to the final norm."""
        model, accelerator, tensor = self.model, self.accelerator, self.layout.tensor
        queries, keys = self._heads * model.head_dim, self._kv_heads * model.head_dim
        width, layers, hidden = model.intermediate // tensor, model.layers, model.hidden
        row = VALUE_BYTES * tokens
        norm = kernels.elementwise(row * 4 * hidden, accelerator)  # reads and writes the input and the residual sum
        rows = [
            ("embedding", 1, kernels.elementwise(row * 2 * hidden, accelerator)),
            ("norm and residual", 2 * layers + 1, norm),
            ("QKV projection", layers, kernels.gemm(tokens, queries + 2 * keys, hidden, accelerator)),
            ("rotary positions", layers, kernels.elementwise(row * 2 * (queries + keys), accelerator)),
            ("output projection", layers, kernels.gemm(tokens, hidden, queries, accelerator)),
            ("gate and up projection", layers, kernels.gemm(tokens, 2 * width, hidden, accelerator)),
            ("activation", layers, kernels.elementwise(row * 3 * width, accelerator)),
            ("down projection", layers, kernels.gemm(tokens, hidden, width, accelerator)),
        ]
        if tensor > 1:  # after the embedding, the output projection and the down projection
            rows.append(("all-reduce", 2 * layers + 1, kernels.all_reduce(row * hidden, tensor, accelerator)))
        return rows

    def _head_kernels(self, rows: int) -> list[tuple[str, int, Kernel]]:
        """Return (name, calls, kernel) of the LM head and the sampling of one token for each of `rows` sequences."""
        model, accelerator, tensor = self.model, self.accelerator, self.layout.tensor
        logits = rows * model.vocabulary
        table = [("LM head", 1, kernels.gemm(rows, model.vocabulary_per_rank(self.layout), model.hidden, accelerator))]
        if tensor > 1:
            table.append(("logits gather", 1, kernels.all_gather(VALUE_BYTES * logits, tensor, accelerator)))
        # reads the logits, writes and reads them as 4-byte floats
        table.append(("sampling", 1, kernels.elementwise(logits * (VALUE_BYTES + 4 + 4), accelerator)))
        return table


def _kv_tokens(tokens: int, attended: float, sequences: int) -> float:
    """Return the tokens of keys and values that a prefill reads: exact when all its sequences are of equal length."""
    return attended * sequences / tokens + (tokens - sequences) / 2


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

    def decode(self, batch: int) -> DecodeStep:
        """Return the coefficients of a decode iteration; see `Cost.decode`."""
        return DecodeStep(self._decode.fixed + self._decode.per_sequence * batch, self._decode.per_context_token)


class RooflineParameters(Strict):
    """What the roofline needs beyond model, layout and data sheet."""

    step_overhead: Duration = 0
    """Time that the engine adds to every step: scheduling, input preparation, all that the device waits for."""


Factory = Callable[[Any, Transformer, Layout, Accelerator], Cost]


def _roofline(parameters: RooflineParameters, model: Transformer, layout: Layout, accelerator: Accelerator) -> Cost:
    return RooflineCost(model, layout, accelerator, parameters.step_overhead)


def _linear(parameters: LinearParameters, model: Transformer, layout: Layout, accelerator: Accelerator) -> Cost:
    return LinearCost(parameters)


COSTS: dict[str, tuple[type[Strict], Factory]] = {
    "roofline": (RooflineParameters, _roofline),
    "linear": (LinearParameters, _linear),
}
"""Cost models by name: the model of their parameters and the function (parameters, model, layout, device) -> Cost."""
