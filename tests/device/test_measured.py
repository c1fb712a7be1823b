"""The sheets against measured tables: kernels on shapes left out of the fit, and engines that no constant has seen."""

import importlib
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from simulator.device import kernels
from simulator.device.accelerator import load_accelerator
from simulator.device.cost import RooflineCost
from simulator.model.transformer import Layout, load_model


@pytest.fixture(scope="module")
def accuracy(pytestconfig: pytest.Config) -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(pytestconfig.rootpath / "benchmarks"))
        module = importlib.import_module("accuracy")
        if not (module.DATA / "aiconfigurator").is_dir():
            pytest.skip("the measured tables (../shared/data) are not here")
        yield module


def by_what(rows: list[dict[str, Any]]) -> dict[tuple[str, str], dict[str, Any]]:
    return {(row["what"], row["where"]): row for row in rows}


def test_a_few_measured_kernels() -> None:
    """Single rows of the public aiconfigurator tables, so that a wrong factor shows without them."""
    a100, h100 = load_accelerator("a100-sxm-80gb"), load_accelerator("h100-sxm-80gb")
    measured_us = [
        (kernels.gemm(8192, 8192, 8192, a100), 3743.4),
        (kernels.gemm(8192, 8192, 8192, h100), 1541.7),
        (kernels.gemm(16, 8192, 8192, a100), 100.6),
        (kernels.gemm(16, 8192, 8192, h100), 46.4),
        (kernels.prefill_attention(8192, 8192 * 8193 / 2, 8192, 64, 8, 128, a100), 6203.6),
        (kernels.prefill_attention(8192, 8192 * 8193 / 2, 8192, 64, 8, 128, h100), 1834.7),
        (kernels.decode_attention(32, 32 * 4096, 64, 8, 128, a100), 421.1),
        (kernels.decode_attention(32, 32 * 4096, 64, 8, 128, h100), 188.1),
        (kernels.all_reduce(134_217_728, 8, a100), 1160.9),
        (kernels.all_reduce(131_072, 8, h100), 7.9),
    ]
    for kernel, us in measured_us:
        assert kernel.ns / 1e3 == pytest.approx(us, rel=0.25)


def test_kernels_on_left_out_shapes(accuracy: ModuleType) -> None:
    rows = list(accuracy.left_out_kernels(accuracy.DATA))
    assert len(rows) == 16
    for row in rows:
        assert row["rows"] >= 5
        assert 0.93 < row["ratio"] < 1.07, row
        assert row["median"] < 0.13, row
        assert row["mean"] < 0.17, row


def test_sheets_hold_what_the_fit_gives(accuracy: ModuleType) -> None:
    calibrate = importlib.import_module("calibrate")
    frame, mask = calibrate.tables(accuracy.DATA, *calibrate.SYSTEMS["h100-sxm-80gb"])["gemm"]
    device = load_accelerator("h100-sxm-80gb")
    fit, shipped = calibrate.fit_gemm(frame[~mask], device), device.efficiency.gemm
    assert fit["compute"] == pytest.approx(shipped.compute, rel=0.01)
    assert fit["memory"] == pytest.approx(shipped.memory, rel=0.01)
    assert fit["launch_ns"] == pytest.approx(shipped.launch, rel=0.01)
    assert fit["fill"] == pytest.approx(shipped.fill, rel=0.01)
    assert fit["tile_loss"] == pytest.approx(shipped.tile_loss, rel=0.01)


def test_engine_of_the_tables_generation_is_predicted(accuracy: ModuleType) -> None:
    rows = by_what(list(accuracy.silicon(accuracy.DATA)))
    assert len(rows) == 4
    for row in rows.values():
        assert row["rows"] >= 40
        assert 0.75 < row["ratio"] < 1.1, row
    assert rows["TensorRT-LLM 1.0, TPOT (2025)", "h100-sxm-80gb x1"]["mean"] < 0.05
    assert rows["TensorRT-LLM 1.0, TPOT (2025)", "h100-sxm-80gb x2"]["mean"] < 0.10


def test_older_engines_are_slower_than_their_kernels(accuracy: ModuleType) -> None:
    for row in accuracy.splitwise(accuracy.DATA):
        assert 0.25 < row["ratio"] < 1.0, row
    for row in accuracy.argonne(accuracy.DATA):
        assert 0.5 < row["ratio"] < 1.2, row


def test_decode_of_llama_3_8b_is_near_what_weights_and_bandwidth_allow() -> None:
    cost = RooflineCost(load_model("llama-3-8b"), Layout(), load_accelerator("h100-sxm-80gb"))
    floor_ms = 2 * 7.5e9 / 3.35e12 * 1e3
    assert 1.2 < cost.decode(1).fixed_ns / 1e6 / floor_ms < 1.6


def test_errors_are_those_of_the_ratios(accuracy: ModuleType) -> None:
    row = accuracy.error("x", "y", np.array([1.0, 2.0, 6.0]), np.array([1.0, 1.0, 4.0]))
    assert (row["rows"], row["median"], row["mean"], row["ratio"]) == (3, 0.5, 0.5, 1.5)
