"""Constants that a device borrows, against times measured on it; nothing of these devices was fitted."""

import pytest

from benchmarks.operators.borrowed import SOURCES, row_of
from benchmarks.operators.fitting import DATA


@pytest.mark.parametrize("device", SOURCES)
def test_products_on_a_device_that_was_not_fitted_are_within_a_quarter(device: str) -> None:
    if not (DATA / SOURCES[device]).exists():
        pytest.skip("the measured tables are not beside the checkout")
    row = row_of(DATA, device)
    assert row["rows"] > 100
    assert row["median"] < 0.25
