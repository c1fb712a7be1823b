"""Constants that a device borrows, against times measured on it; nothing of these devices was fitted."""

import pytest

from benchmarks.operators.borrowed import SOURCES, row_of
from benchmarks.operators.fitting import DATA
from simulator import catalog
from simulator.device.accelerator import Accelerator, load_accelerator
from simulator.device.timing import time_of
from simulator.model.operators import Gemm, PromptAttention, Shape, TokenAttention

BORROWERS = [name for name in catalog.names("topologies/devices") if load_accelerator(name).like is not None]
S = 8192
LARGE: dict[str, Shape] = {
    "grouped attention of a prompt": PromptAttention(S, S * (S + 1) / 2, S, 1, 32, 8, 128, 128),
    "latent attention of a prompt": PromptAttention(S, S * (S + 1) / 2, S, 1, 128, 128, 192, 128, stored=False),
    "grouped attention in decode": TokenAttention(64, 64 * 4096, 32, 8, 128, 128),
    "latent attention in decode": TokenAttention(480, 480 * 4096, 128, 1, 576, 512, latent=True),
    "a long sequence in decode": TokenAttention(1, 131072, 32, 8, 128, 128),
    "a product": Gemm(S, 8192, 8192),
    "a product of few rows": Gemm(16, 8192, 8192),
}
"""Work that is long against launches, latencies and a last wave, which a borrower has as they are."""


def lender_of(sheet: Accelerator, attention: bool) -> Accelerator:
    like = sheet.attention_like if attention and sheet.attention_like is not None else sheet.like
    assert like is not None
    return load_accelerator(like)


@pytest.mark.parametrize("name", BORROWERS)
@pytest.mark.parametrize("work", LARGE)
def test_a_borrower_of_a_share_of_its_lenders_peaks_has_that_share_of_its_speed(name: str, work: str) -> None:
    """With peaks of 1/f of the lender's and more, work takes at most f times as long, however large its processors are.

    A tenth is for the clock of long products, which come down to what power allows, and for tiles at an edge.
    """
    sheet, shape = load_accelerator(name), LARGE[work]
    lender = lender_of(sheet, not isinstance(shape, Gemm))
    slower = max(
        1.0,
        lender.rate("bf16") / sheet.rate("bf16"),
        lender.memory.bandwidth / sheet.memory.bandwidth,
        # processors of its maker, each with less arithmetic: times of one processor stay
        lender.processors / sheet.processors if sheet.processors > 60 else 1.0,
    )
    assert time_of(shape, sheet).ns <= 1.1 * slower * time_of(shape, lender).ns


@pytest.mark.parametrize("name", BORROWERS)
def test_activations_are_quantised_no_faster_than_memory_moves_them(name: str) -> None:
    sheet = load_accelerator(name)
    form = "fp8" if "fp8" in sheet.peak else "int8" if "int8" in sheet.peak else None
    if form is None:
        pytest.skip("the device has no units of 8 bits")
    bare, whole = (time_of(Gemm(S, 8192, 8192, form, quantise=quantise), sheet).ns for quantise in (False, True))
    assert whole == bare or whole - bare >= S * 8192 * 3 / sheet.memory.bandwidth * 1e9


@pytest.mark.parametrize("device", SOURCES)
def test_products_on_a_device_that_was_not_fitted_are_within_a_quarter(device: str) -> None:
    if not (DATA / SOURCES[device]).exists():
        pytest.skip("the measured tables are not beside the checkout")
    row = row_of(DATA, device)
    assert row["rows"] > 100
    assert row["median"] < 0.25
