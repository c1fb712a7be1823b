"""The closed loop behind the table of disaggregated engines, against the algebra of a closed network."""

import importlib
from collections.abc import Iterator
from types import ModuleType

import numpy as np
import pytest


@pytest.fixture(scope="module")
def pools(pytestconfig: pytest.Config) -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(pytestconfig.rootpath / "benchmarks"))
        yield importlib.import_module("engines.disaggregated")


def case(pools: ModuleType, workers: int, batch: int, clients: int) -> object:
    split = (("tensor", 1), ("data", 8), ("expert", 8)), (("tensor", 8), ("data", 1), ("expert", 8))
    sides = pools.Side(1, split[0], clients), pools.Side(workers, split[1], batch)
    form = (("weights", "fp8_block"), ("experts", "fp8_block"), ("kv", "fp8"))
    return pools.Case("deepseek-r1", "gb200", "trtllm", form, *sides, clients, 1024, 256, True)


def test_who_finds_every_seat_taken_waits_as_little_says(pools: ModuleType) -> None:
    """With all seats busy the throughput is seats / service, and clients = throughput x the whole stay (Little)."""
    seats, clients = 3 * 4, 21
    done = pools.replay(case(pools, 3, 4, clients))
    stay = np.array([r.finish_ns - r.arrival_ns for r in done]).mean()
    wait = np.array([r.kv_wait_ns for r in done]).mean()
    service = np.array([r.finish_ns - r.first_token_ns - r.kv_wait_ns - r.kv_transfer_ns for r in done]).mean()
    assert wait == pytest.approx(clients * service / seats - (stay - wait), rel=0.15)
    assert wait > 0.5 * service


def test_with_seats_for_all_nobody_waits(pools: ModuleType) -> None:
    found = pools.loop(case(pools, 3, 21, 21))
    assert found.wait == 0
    assert found.ttft == pytest.approx(found.prefill + found.moving)


def test_a_recipe_is_found_by_its_pools_and_clients(pools: ModuleType) -> None:
    recipes = importlib.import_module("engines.recipes")
    assert recipes.batch_of("gb200", "fp8", 8192, 1024, (1, 3), 63) == 16
    assert recipes.batch_of("gb200", "fp8", 8192, 1024, (1, 3), 64) is None
    assert recipes.batch_of("gb200", "fp8", 8192, 1024, (2, 3), 63) is None
    for key, found in recipes.RECIPES.items():
        names = [(recipe.prefill, recipe.decode, clients) for recipe in found for clients in recipe.clients]
        assert len(names) == len(set(names)), key
