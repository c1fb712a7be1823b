"""Attention whose positions an index chooses: counts by hand, what stays flat and what grows, measured kernels."""

import importlib

import pytest

from benchmarks.operators.fitting import DATA
from simulator.device.accelerator import load_accelerator
from simulator.device.cost import RooflineCost
from simulator.device.measured.source import MeasuredParameters, measured_times
from simulator.errors import InputError
from simulator.model.forward import Pass, Work
from simulator.model.layout import Layout
from simulator.model.operators import IndexScores, PromptAttention, TokenAttention
from simulator.model.precision import Precision
from simulator.model.split import kv_bytes_per_token_per_rank
from simulator.model.training import TrainingPass
from simulator.model.transformer import load_model

V31, V32 = load_model("deepseek-v3.1"), load_model("deepseek-v3.2")
H200 = load_accelerator("h200-sxm-141gb")
EP16 = Layout(data=16, expert=16)


def cost(model=V32):
    return RooflineCost(model, EP16, H200, Precision(weights="fp8_block"), links=lambda shape: (0.0, 0.0, 0.0))


def prompt(tokens, cached=0):
    return Work(tokens, tokens * cached + tokens * (tokens + 1) / 2, 1)


def shapes(work, kind):
    return [o.shape for o in Pass(V32, Layout(), Precision()).operators(work) if isinstance(o.shape, kind)]


def test_parameters_and_memory_by_hand() -> None:
    """Queries 1,536 x 64 x 128, a key and the weights of 64 heads from 7,168, a norm of two times 128; 132 bytes."""
    index = 1536 * 64 * 128 + 7168 * (128 + 64) + 2 * 128
    assert V32.parameters == V31.parameters + 61 * index
    assert V32.kv_bytes_per_token(2) == 61 * (2 * 576 + 132)
    assert V32.kv_bytes_per_token(1) == 61 * (576 + 132)
    assert kv_bytes_per_token_per_rank(V32, EP16) == 61 * (2 * 576 + 132) / 16


def test_published_counts_of_glm_5() -> None:
    """744 B parameters of which 40 B are active."""
    model = load_model("glm-5")
    assert round(model.parameters / 1e9) == 744
    assert round(model.active_parameters / 1e9) in (40, 41)


def test_a_decoding_sequence_is_scored_whole_and_attends_to_what_was_chosen() -> None:
    [scores], [attention] = (shapes(Work(batch=8, context=8 * 50_000), kind) for kind in (IndexScores, TokenAttention))
    assert scores.flops == 8 * 50_000 * 2 * 64 * 128
    assert scores.size_bytes == 8 * 50_000 * (132 + 8)  # a key, and a score written and read
    assert (attention.batch, attention.context) == (8, 8 * 2048)


def test_each_drafted_token_chooses_for_itself() -> None:
    work = Work(batch=8, context=8 * 50_000, queries=2)
    [scores], [attention] = (shapes(work, kind) for kind in (IndexScores, TokenAttention))
    assert (scores.pairs, scores.keys) == (2 * 8 * 50_000, 8 * 50_000)
    assert (attention.batch, attention.queries, attention.context) == (16, 1, 16 * 2048)


def test_prompts_within_reach_are_those_of_the_model_without_an_index() -> None:
    """But for the key that each position needs later."""
    with_index, without = (Pass(model, Layout(), Precision()).operators(prompt(2048)) for model in (V32, V31))
    assert [o for o in with_index if not o.name.startswith("index")] == without
    assert not any(isinstance(o.shape, IndexScores) for o in with_index)


def test_longer_prompts_attend_in_the_form_of_the_latent() -> None:
    [scores], [attention] = (shapes(prompt(3000, 1000), kind) for kind in (IndexScores, PromptAttention))
    assert scores.flops == (3000 * 1000 + 3000 * 3001 / 2) * 2 * 64 * 128
    assert (attention.pairs, attention.key_dim, attention.value_dim) == (3000 * 2048, 576, 512)
    names = [o.name for o in Pass(V32, Layout(), Precision()).operators(prompt(3000, 1000))]
    assert "key and value projection" not in names
    assert "absorbed key projection" in names


def test_decode_grows_by_the_scores_alone() -> None:
    """Per position of context 132 bytes of keys and a score of 4 bytes written and read, in each of 61 layers."""
    steps = cost()
    short, long = (steps.step_ns(Work(batch=256, context=256 * n)) for n in (65_536, 131_072))
    share = H200.fitted.gemm["bf16"].memory
    grown = 61 * 16 * 65_536 * (132 + 8) / (H200.memory.bandwidth * share) * 1e9
    assert long - short == pytest.approx(grown, rel=1e-9)
    assert long < cost(V31).step_ns(Work(batch=256, context=256 * 131_072)) / 2


@pytest.mark.parametrize("each", [100, 2_000, 3_000, 40_000, 900_000])
def test_lines_of_decode_are_the_steps(each: int) -> None:
    work = Work(batch=64, context=64 * each)
    assert cost().decode(64, 64 * each).at(64 * each) == pytest.approx(cost().step_ns(work), rel=1e-3)


def test_what_is_not_modelled_is_refused() -> None:
    with pytest.raises(InputError, match="over context-parallel ranks not modelled; allowed: 1"):
        RooflineCost(V32, Layout(context=2, expert=2), H200, Precision())
    with pytest.raises(InputError, match="its training is not modelled"):
        TrainingPass(V32, Layout())
    parameters = MeasuredParameters(tables=({"path": "nowhere.csv"},))
    with pytest.raises(InputError, match="of which no table has measurements"):
        measured_times(parameters, Pass(V32, EP16, Precision()), H200)


def test_measured_kernels() -> None:
    """Nothing is fitted on them: within a quarter, and none faster than what was measured by more."""
    measured = importlib.import_module("benchmarks.operators.index_scores")
    if not (DATA / measured.FILE).exists():
        pytest.skip("the measured tables are not beside the checkout")
    rows = list(measured.transfer(DATA))
    assert [row["rows"] for row in rows] == [8, 6, 16, 12]
    for row in rows:
        assert row["median"] < 0.25, row
