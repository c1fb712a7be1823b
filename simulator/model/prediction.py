"""A layer that predicts further tokens (multi-token prediction) as a model of its own that drafts for the whole one.

Source: DeepSeek-V3 (arXiv:2412.19437, 2.2): the last hidden state and the next token's embedding are joined by a
projection and go through one layer; embedding and head are those of the model.
"""

from typing import Any

from simulator.errors import InputError, Problem
from simulator.model.forward import Pass
from simulator.model.layout import Layout
from simulator.model.operators import Gemm, Operator
from simulator.model.precision import FORMATS, Precision
from simulator.model.split import weight_bytes, weights_per_rank
from simulator.model.transformer import Transformer


def prediction_module(model: Transformer) -> Transformer:
    """Return one such layer: of the kind of the model's last, seeing every position.

    Raises InputError when the model has none.
    """
    if not model.draft_layers:
        what = f"{model.name} has no layers for multi-token prediction"
        raise InputError(Problem(what, path="speculation.draft", allowed="ngram, or model with a name"))
    experts = model.experts.model_copy(update={"layers": 1, "every": 1}) if model.experts is not None else None
    changes: dict[str, Any] = {"name": f"{model.name} (prediction)", "layers": 1, "experts": experts}
    if model.attention.window is not None:
        changes["attention"] = model.attention.model_copy(update={"window": None})
    return model.model_copy(update={**changes, "draft_layers": 0, "vision": None})


def module_weight_bytes(module: Transformer, layout: Layout, precision: Precision) -> int:
    """Return the weight bytes of a prediction module on each rank; every rank has the whole joining projection."""
    own = weight_bytes(weights_per_rank(module, layout, precision)._replace(embeddings=0), precision)
    return own + round(2 * module.hidden**2 * FORMATS[precision.weights].weight_bits / 8)


class PredictionPass(Pass):
    """The pass of a prediction module: the look-up of the embedding is followed by the joining projection."""

    def embedding(self, tokens: int) -> list[Operator]:
        """Return the look-up of so many rows and what joins them to the hidden states."""
        joined = Gemm(tokens, self.model.hidden, 2 * self.model.hidden, self.precision.weights)
        return [*super().embedding(tokens), Operator("joining projection", 1, joined)]
