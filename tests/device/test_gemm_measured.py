"""Matrix products against aiconfigurator's tables: weights that were left out of the fit, per device and format."""

import importlib
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from simulator.device.accelerator import load_accelerator
from simulator.device.gemm import gemm
from simulator.model.operators import Gemm

WORST = {
    ("a100-sxm-80gb", "bf16"): (0.08, 0.12),
    ("h100-sxm-80gb", "bf16"): (0.06, 0.08),
    ("h100-sxm-80gb", "fp8"): (0.07, 0.10),
    ("h100-sxm-80gb", "fp8_block"): (0.06, 0.09),
    ("b200-sxm", "bf16"): (0.07, 0.10),
    ("b200-sxm", "fp8"): (0.07, 0.12),
    ("b200-sxm", "fp8_block"): (0.08, 0.13),
    ("b200-sxm", "nvfp4"): (0.07, 0.09),
    ("gb200", "bf16"): (0.07, 0.10),
    ("gb200", "fp8"): (0.06, 0.09),
    ("gb200", "fp8_block"): (0.14, 0.17),
    ("gb200", "nvfp4"): (0.07, 0.09),
}
"""Median and mean error that no device and format may pass."""


@pytest.fixture(scope="module")
def tables(pytestconfig: pytest.Config) -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(pytestconfig.rootpath / "benchmarks"))
        module = importlib.import_module("operators.gemm")
        if not (importlib.import_module("operators.fitting").DATA / "aiconfigurator").is_dir():
            pytest.skip("the measured tables (../shared/data) are not here")
        yield module


def data(tables: ModuleType) -> Any:
    return importlib.import_module("operators.fitting").DATA


def test_a_few_measured_products() -> None:
    """Single rows of the public tables, in us, so that a wrong factor shows without them."""
    measured = [
        ("a100-sxm-80gb", Gemm(8192, 8192, 8192), 3743.4),
        ("a100-sxm-80gb", Gemm(16, 8192, 8192), 100.6),
        ("h100-sxm-80gb", Gemm(8192, 8192, 8192), 1541.7),
        ("h100-sxm-80gb", Gemm(16, 8192, 8192), 46.4),
        ("h100-sxm-80gb", Gemm(8192, 8192, 8192, "fp8", quantise=True), 836.1),
        ("b200-sxm", Gemm(4096, 8192, 8192), 322.2),
        ("b200-sxm", Gemm(4096, 8192, 8192, "fp8", quantise=True), 231.2),
        ("b200-sxm", Gemm(4096, 8192, 8192, "nvfp4", quantise=True), 129.8),
        ("gb200", Gemm(16, 8192, 8192, "nvfp4", quantise=True), 15.6),
    ]
    for name, shape, us in measured:
        assert gemm(shape, load_accelerator(name)).ns / 1e3 == pytest.approx(us, rel=0.25), (name, shape)


def test_products_on_left_out_weights(tables: ModuleType) -> None:
    rows = {
        (r["device"], r["format"]): r
        for r in tables.errors(data(tables))
        if (r["what"], r["decade"]) == ("gemm", "all")
    }
    assert rows.keys() == WORST.keys()
    for key, row in rows.items():
        median, mean = WORST[key]
        assert row["rows"] > 300
        assert row["median"] < median, row
        assert row["mean"] < mean, row
        assert 0.93 < row["bias"] < 1.07, row


def test_products_of_another_engine_in_16_bits_are_as_near(tables: ModuleType) -> None:
    (row,) = (r for r in tables.transfer(data(tables)) if (r["format"], r["decade"]) == ("bf16", "all"))
    assert row["rows"] > 5000
    assert row["median"] < 0.07, row
    assert row["mean"] < 0.09, row


def test_the_fit_times_shapes_as_the_simulator_does(tables: ModuleType) -> None:
    for name, form in (("a100-sxm-80gb", "bf16"), ("h100-sxm-80gb", "fp8"), ("b200-sxm", "nvfp4")):
        device, frame = load_accelerator(name), tables.table(data(tables), name)
        rows = frame[frame["format"] == form].iloc[::97]
        fit = device.fitted.gemm[form]
        constants = {key: getattr(fit, key) for key in tables.START if getattr(fit, key, None) is not None}
        if fit.quantise is not None:
            constants |= fit.quantise.model_dump()
            constants["launch"] += device.fitted.kernel_launch
        columns = {key: rows[key].to_numpy(dtype=float) for key in "mnk"}
        assert np.allclose(
            tables.predict(constants, columns, form, device), tables.times_ns(rows, form, device), rtol=1e-9
        )


def test_sheets_hold_what_the_fit_gives(tables: ModuleType) -> None:
    for name in ("a100-sxm-80gb", "h100-sxm-80gb"):
        fitted, sheet = tables.fit(data(tables), name), load_accelerator(name).fitted.gemm
        assert fitted.keys() == sheet.keys()
        for form, constants in fitted.items():
            for key, value in constants.items():
                if not isinstance(value, dict):
                    assert getattr(sheet[form], key.removesuffix("_ns")) == pytest.approx(value, rel=0.01, abs=0.01)
