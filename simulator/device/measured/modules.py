"""Whole attention modules with latent keys and values (MLA) that a table times as one: which operators they are.

Source: the attention of DeepSeek-V2 and -V3 (arXiv:2405.04434, 2412.19437), as aiconfigurator's tables time it in vLLM.
"""

from simulator.device.measured.interpolation import Coordinate
from simulator.model.forward import Pass, Work
from simulator.model.layout import Layout
from simulator.model.operators import Elementwise, Gemm, Operator, PromptAttention, TokenAttention
from simulator.model.precision import Precision
from simulator.model.transformer import Transformer

KERNELS = ("attention", "prompt attention")
PARTS = (
    *KERNELS,
    "query and latent projection",
    "latent norm",
    "query projection",
    "rotary positions",
    "latent cache write",
    "key and value projection",
    "key assembly",
    "absorbed key projection",
    "absorbed value projection",
    "quantise",
    "output projection",
)
"""Operators of a layer that its attention module has, by their names in `simulator.model.forward`."""


def module_of(model: Transformer, heads: int, precision: Precision) -> Pass:
    """Return one layer of `model` without experts on a rank that has `heads` of its heads."""
    attention = model.attention.model_copy(update={"heads": heads})
    card = model.model_copy(update={"layers": 1, "attention": attention, "experts": None})
    return Pass(card, Layout(), precision)


def parts(module: Pass, work: Work) -> tuple[Operator, ...]:
    """Return the operators of an attention module, the kernel of attention first."""
    found = [operator for operator in module.operators(work) if operator.name in PARTS]
    return tuple(sorted(found, key=lambda operator: operator.name not in KERNELS))


def work_of(shape: PromptAttention | TokenAttention) -> Work:
    """Return the work of one phase whose attention has this shape."""
    if isinstance(shape, PromptAttention):
        return Work(shape.tokens, shape.pairs, shape.sequences)
    return Work(batch=shape.batch, context=shape.context, queries=shape.queries)


def place_module(operators: tuple[Operator, ...]) -> Coordinate:
    """Return where a module stands: by its formats and widths, its heads, and the sequences and positions."""
    shape = operators[0].shape
    shapes = {operator.name: operator.shape for operator in operators}
    last, written = shapes["output projection"], shapes["latent cache write"]
    assert isinstance(last, Gemm)
    assert isinstance(written, Elementwise)
    held = written.size_bytes / last.rows  # of one position: the widths of a latent, and the format of the cache
    if isinstance(shape, TokenAttention):
        line = (float(shape.batch), max(shape.context / shape.batch, 1.0))
        return Coordinate(("MLA token module", last.format, last.columns, held, shape.queries), (shape.heads,), line)
    assert isinstance(shape, PromptAttention)
    exact = ("MLA prompt module", last.format, last.columns, held)
    each = shape.tokens / shape.sequences
    return Coordinate(exact, (shape.heads,), (float(shape.sequences), each, shape.pairs / shape.tokens))
