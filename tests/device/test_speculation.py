"""Time and memory of drafting and verification: sums of passes that are timed one by one."""

import numpy as np
import pytest

from simulator.device.accelerator import load_accelerator
from simulator.device.cost import RooflineCost
from simulator.device.speculation import SpeculativeCost
from simulator.errors import InputError
from simulator.model.forward import Work
from simulator.model.layout import Layout
from simulator.model.precision import Precision
from simulator.model.prediction import PredictionPass, module_weight_bytes, prediction_module
from simulator.model.transformer import load_model

H100 = load_accelerator("h100-sxm-80gb").in_nodes_of(8)
LLAMA, SMALL, DEEPSEEK = load_model("llama-3.1-70b"), load_model("llama-3.2-1b"), load_model("deepseek-v3")
TP4 = Layout(tensor=4)
K = 3
PLAIN, VERIFIED = RooflineCost(LLAMA, TP4, H100), RooflineCost(LLAMA, TP4, H100, queries=K + 1)
DRAFT = RooflineCost(SMALL, TP4, H100)
BOTH = SpeculativeCost(VERIFIED, DRAFT, K)


@pytest.mark.parametrize(("batch", "context"), [(1, 500), (32, 64_000), (256, 400_000)])
def test_an_iteration_is_its_passes(batch, context):
    passes = sum(DRAFT.step_ns(Work(batch=batch, context=context - (K + 1 - j) * batch)) for j in range(1, K + 1))
    whole = VERIFIED.step_ns(Work(batch=batch, context=context, queries=K + 1)) + passes
    # lines are exact at their knots and within a thousandth between them
    assert BOTH.decode(batch, context).at(context) == pytest.approx(whole, rel=2e-3)
    assert BOTH.mixed_ns(100, 5050, 1, batch, context) > BOTH.decode(batch, context).at(context)
    assert BOTH.prefill_ns(100, 5050, 1) == PLAIN.prefill_ns(100, 5050, 1) + DRAFT.prefill_ns(100, 5050, 1)


def test_no_draft_is_the_target_alone():
    free = SpeculativeCost(VERIFIED, None, K)
    assert free.decode(32, 64_000) == VERIFIED.decode(32, 64_000)
    assert free.mixed_ns(10, 55, 1, 32, 64_000) == VERIFIED.mixed_ns(10, 55, 1, 32, 64_000)


def test_verification_is_almost_free_while_weights_set_the_pace_and_not_when_products_do():
    def ratio(batch):
        fed = K + 1
        verified = VERIFIED.step_ns(Work(batch=batch, context=1000 * batch, queries=fed))
        return verified / PLAIN.step_ns(Work(batch=batch, context=1000 * batch))

    assert 1 <= ratio(1) < 1.1
    assert ratio(1024) > 2


def test_lines_of_ranks_are_their_steps():
    layout = Layout(data=2, tensor=2)
    both = SpeculativeCost(RooflineCost(LLAMA, layout, H100, queries=K + 1), RooflineCost(SMALL, layout, H100), K)
    sizes, contexts = [16, 8], np.array([[16_000, 9_000], [16_040, 9_020]])
    lengths = both.decode_together(sizes).at(contexts)
    for row, length in zip(contexts.tolist(), lengths, strict=True):
        works = [Work(batch=b, context=c) for b, c in zip(sizes, row, strict=True)]
        assert length == pytest.approx(both.together_ns(works), rel=2e-3)
    prompts = [Work(100, 5050, 1, 16, 16_000), Work(batch=8, context=9_000)]
    assert both.together_ns(prompts) > lengths[0]


def test_a_prediction_module_is_the_drafting_layers_of_the_card():
    module, precision, layout = prediction_module(DEEPSEEK), Precision(weights="fp8"), Layout(tensor=1)
    assert (module.layers, module.experts.layers) == (1, 1)
    # DeepSeek-V3's model card: 11.5 billion parameters of the module are its own, embedding and head shared
    assert module_weight_bytes(module, layout, precision) == pytest.approx(11.5e9, rel=0.02)
    names = [
        operator.name for operator in PredictionPass(module, layout, precision).operators(Work(batch=8, context=80))
    ]
    assert names.count("joining projection") == 1
    assert "LM head" in names
    with pytest.raises(InputError, match="no layers for multi-token prediction"):
        prediction_module(LLAMA)
