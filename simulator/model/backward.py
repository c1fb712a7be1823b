"""The backward pass of each operator: gradients of what goes in, and apart from them the gradients of the weights.

Source: the split as in Zero Bubble pipelines (arXiv:2401.10241); Y = X W has dX = dY W' and dW = X' dY, each with the
operations of the forward product; a scatter's gradient is a gather and the reverse (arXiv:2205.05198).
"""

from simulator.model.operators import (
    AttentionGradient,
    Collective,
    Elementwise,
    Experts,
    Gemm,
    Operator,
    PromptAttention,
    Shape,
)
from simulator.model.precision import FORMATS, VALUES

GRADIENT_OF = {"reduce_scatter": "all_gather", "all_gather": "reduce_scatter"}
"""Collectives whose gradient is another one; an all-reduce, an all-to-all and a send have their own kind."""

TRAFFIC = {"gated activation": 5 / 3, "plain activation": 3 / 2, "softmax": 3 / 2}
"""Bytes backward over bytes forward where they differ: a gated activation reads three columns and writes two, a plain
one and a softmax read two and write one."""

LOSS_SUMS = "loss sums"
NO_GRADIENT = ("quantise", LOSS_SUMS)
"""Operators that the backward pass leaves out: it takes rounding as the identity and has the sums of the loss."""

ACTIVATIONS = ("scores", "softmax", "weighted values")
"""Operators of unfused attention: products of two activations, so that both operands have gradients and no weights."""


def flops_of(shape: Shape) -> float:
    """Return the operations of a shape; of experts those of the tokens that an even choice sends here."""
    if isinstance(shape, Experts):
        sent = shape.tokens * shape.topk * shape.local / shape.experts
        return 2 * (3 if shape.gated else 2) * sent * shape.hidden * shape.intermediate
    return shape.flops


def input_gradient(operator: Operator, gated: bool) -> list[Operator]:
    """Return the kernels that turn the gradient of an operator's result into that of what went in."""
    name, calls, shape = operator
    if name in NO_GRADIENT:
        return []
    if isinstance(shape, Gemm):
        return _product(name, calls, shape)
    if isinstance(shape, PromptAttention):
        return [Operator(f"{name} backward", calls, AttentionGradient(shape))]
    if isinstance(shape, Collective):
        if name.startswith("context exchange (pass_kv)"):  # handed around again, and their gradients home
            back = shape._replace(operation="reduce_scatter")
            return [operator, Operator(f"{name} backward", calls, back)]
        turned = shape._replace(operation=GRADIENT_OF.get(shape.operation, shape.operation))
        return [Operator(f"{name} backward", calls, turned)]
    if isinstance(shape, Elementwise):
        key = ("gated activation" if gated else "plain activation") if name.endswith("activation") else name
        return [Operator(f"{name} backward", calls, Elementwise(shape.size_bytes * TRAFFIC.get(key, 1.0)))]
    return [Operator(f"{name} backward", calls, shape)]


def _product(name: str, calls: int, shape: Gemm) -> list[Operator]:
    turned = shape._replace(columns=shape.inner, inner=shape.columns)
    rows = [Operator(f"{name} backward", calls, turned)]
    if name in ACTIVATIONS:
        other = shape._replace(rows=shape.inner, inner=shape.rows)
        return [*rows, Operator(f"{name} backward", calls, other)]
    if FORMATS[shape.format].scaled:
        narrow = FORMATS[shape.format].activation_bits / 8
        # the gradient along both dimensions, and the input once more along the other
        moved = shape.rows * (shape.columns * (2 + 2 * narrow) + shape.inner * narrow * 2)
        rows.insert(0, Operator("quantise backward", calls, Elementwise(moved * shape.batch)))
    return rows


def weight_gradient(operator: Operator, gradients: str) -> list[Operator]:
    """Return the kernels that add a micro-batch to the gradients of an operator's weights, held as `gradients`.

    The sum is fused into the product, whose result counts once as written; operators without weights have none.
    """
    name, calls, shape = operator
    if isinstance(shape, Gemm) and name not in ACTIVATIONS:
        turned = Gemm(shape.inner, shape.columns, shape.rows, shape.format, shape.batch, gradients)
        return [Operator(f"{name} weights", calls, turned)]
    if isinstance(shape, Experts):
        rows = max(1, round(shape.tokens * shape.topk / shape.experts))
        width = (2 if shape.gated else 1) * shape.intermediate
        up = Gemm(shape.hidden, width, rows, shape.format, shape.local, gradients)
        down = Gemm(shape.intermediate, shape.hidden, rows, shape.format, shape.local, gradients)
        return [Operator(f"{name} weights", calls, up), Operator(f"{name} weights", calls, down)]
    return []


def embedding_gradient(tokens: int, hidden: int, value_bytes: float, gradients: str) -> Operator:
    """Return the sum of gradients into the rows of the embedding: each is read, and its row read and written."""
    moved = tokens * hidden * (value_bytes + 2 * VALUES[gradients] / 8)
    return Operator("embedding weights", 1, Elementwise(moved))
