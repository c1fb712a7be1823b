"""One small cluster of workers for all tests of sweeps: to start it takes longer than most of them."""

from collections.abc import Iterator
from typing import Any

import pytest

from simulator.sweep.farm import workers


@pytest.fixture(scope="session")
def client() -> Iterator[Any]:
    with workers(2) as found:
        yield found
