"""The sheets against single measured kernels, and runs of vLLM replayed with the layer tables of their machines."""

import importlib
from collections.abc import Iterator
from types import ModuleType

import pytest

from simulator.device.accelerator import load_accelerator
from simulator.device.cost import RooflineCost
from simulator.device.timing import time_of
from simulator.model.layout import Layout
from simulator.model.operators import Collective, Gemm, PromptAttention, TokenAttention
from simulator.model.transformer import load_model


@pytest.fixture(scope="module")
def replay(pytestconfig: pytest.Config) -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(pytestconfig.rootpath / "benchmarks"))
        module = importlib.import_module("replay_vllm")
        if not (module.DATA / "llmservingsim").is_dir():
            pytest.skip("the measured runs (../shared/data) are not here")
        yield module


def test_a_few_measured_kernels() -> None:
    """Single rows of the public aiconfigurator tables, so that a wrong factor shows without them."""
    prompt = PromptAttention(8192, 8192 * 8193 / 2, 8192, 1, 64, 8, 128, 128)
    token = TokenAttention(32, 32 * 4096, 64, 8, 128, 128)
    rows = [
        ("a100-sxm-80gb", Gemm(8192, 8192, 8192), 3743.4),
        ("h100-sxm-80gb", Gemm(8192, 8192, 8192), 1541.7),
        ("a100-sxm-80gb", Gemm(16, 8192, 8192), 100.6),
        ("h100-sxm-80gb", Gemm(16, 8192, 8192), 46.4),
        ("a100-sxm-80gb", prompt, 6203.6),
        ("h100-sxm-80gb", prompt, 1834.7),
        ("a100-sxm-80gb", token, 421.1),
        ("h100-sxm-80gb", token, 188.1),
        ("a100-sxm-80gb", Collective("all_reduce", 134_217_728, 8, "tensor"), 1160.9),
        ("h100-sxm-80gb", Collective("all_reduce", 131_072, 8, "tensor"), 7.9),
    ]
    for device, shape, us in rows:
        assert time_of(shape, load_accelerator(device)).ns / 1e3 == pytest.approx(us, rel=0.25), (device, shape)


def test_decode_of_llama_3_8b_is_near_what_weights_and_bandwidth_allow() -> None:
    cost = RooflineCost(load_model("llama-3-8b"), Layout(), load_accelerator("h100-sxm-80gb"))
    floor_ms = 2 * 7.5e9 / 3.35e12 * 1e3
    assert 1.2 < cost.decode(1, 32).fixed_ns / 1e6 / floor_ms < 1.6


@pytest.mark.parametrize("folder", ["RTXPRO6000/Llama-3.1-8B", "RTXPRO6000/Qwen3-32B", "RTX4090/Llama-3.1-8B"])
def test_runs_of_vllm_replayed_with_their_layer_tables(replay: ModuleType, folder: str) -> None:
    run = next(run for run in replay.RUNS if run.folder == folder)
    measured = replay.read(run, replay.DATA)
    requests, _ = replay.replay(run, measured, replay.cost_of(run, "measured", replay.DATA, 0.0), "described")
    here, there = replay.figures(measured.requests), replay.figures(requests)
    for name, most in (("TPOT mean ms", 0.08), ("TTFT p50 s", 0.15), ("tokens/s", 0.05)):
        assert there[name] == pytest.approx(here[name], rel=most), name
