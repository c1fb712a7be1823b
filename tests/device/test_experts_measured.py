"""Experts behind an exchange against the table of SGLang's wide expert parallelism: ranks left out of the fit."""

import importlib
from collections.abc import Iterator
from types import ModuleType

import pytest

from simulator.device.accelerator import load_accelerator
from simulator.device.experts import loaded_experts
from simulator.model.expert_load import even_load
from simulator.model.operators import Experts


@pytest.fixture(scope="module")
def wide(pytestconfig: pytest.Config) -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(pytestconfig.rootpath / "benchmarks"))
        if not (importlib.import_module("operators.fitting").DATA / "aiconfigurator").is_dir():
            pytest.skip("the measured tables (../shared/data) are not here")
        yield importlib.import_module("operators.dispatched_experts")


def test_a_few_measured_layers() -> None:
    """Single rows of the public table in us, DeepSeek-V3's experts, so that a wrong factor shows without it."""
    sheet = load_accelerator("h100-sxm-80gb")
    for ranks, tokens, us in ((32, 512, 152), (64, 1024, 88), (128, 2048, 56)):
        here = 256 // ranks
        shape = Experts(tokens, 7168, 2048, 8, 256, here, "fp8_block", dispatched=True)
        assert loaded_experts(shape, even_load(tokens, 8, 256, here), sheet).ns / 1e3 == pytest.approx(us, rel=0.2)


def test_layers_left_out_of_the_fit(wide: ModuleType) -> None:
    rows = wide.errors(importlib.import_module("operators.fitting").DATA)
    found = {row["what"]: row for row in rows if row["decade"] == "all"}
    prompts, tokens = (
        found["experts, SGLang wide EP, prompts (launch of the table)"],
        found["experts, SGLang wide EP, tokens"],
    )
    assert prompts["rows"] > 100
    assert prompts["median"] < 0.15
    assert prompts["mean"] < 0.3
    assert tokens["median"] < 0.06
    assert tokens["mean"] < 0.09


def test_other_experts_and_formats_keep_their_constants() -> None:
    fitted = load_accelerator("h100-sxm-80gb").fitted
    assert fitted.experts_in("fp8_block", dispatched=True) != fitted.experts_in("fp8_block")
    assert fitted.experts_in("bf16", dispatched=True) == fitted.experts_in("bf16")
