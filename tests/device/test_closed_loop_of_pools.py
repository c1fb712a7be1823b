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


def case(pools: ModuleType, workers: int, batch: int, clients: int, interval: int = 1) -> object:
    split = (("tensor", 1), ("data", 8), ("expert", 8)), (("tensor", 8), ("data", 1), ("expert", 8))
    sides = pools.Side(1, split[0], clients), pools.Side(workers, split[1], batch)
    form = (("weights", "fp8_block"), ("experts", "fp8_block"), ("kv", "fp8"))
    return pools.Case("deepseek-r1", "gb200", "trtllm", form, *sides, clients, 1024, 256, interval, True)


def test_who_finds_every_seat_taken_waits_as_little_says(pools: ModuleType) -> None:
    """With all seats busy the throughput is seats / service, and clients = throughput x the whole stay (Little)."""
    seats, clients = 3 * 4, 21
    done = pools.replay(case(pools, 3, 4, clients))
    stay = np.array([r.finish_ns - r.arrival_ns for r in done]).mean()
    wait = np.array([r.kv_wait_ns for r in done]).mean()
    service = np.array([r.finish_ns - r.prefill_end_ns - r.kv_wait_ns - r.kv_transfer_ns for r in done]).mean()
    assert wait == pytest.approx(clients * service / seats - (stay - wait), rel=0.15)
    assert wait > 0.5 * service


def test_with_seats_for_all_nobody_waits(pools: ModuleType) -> None:
    found = pools.loop(case(pools, 3, 21, 21))
    assert found.wait == 0
    in_cache = found.prefill + found.moving
    assert in_cache <= found.ttft < in_cache + 1.2 * found.tpot  # it waits for the step that is under way


def test_tokens_that_leave_together_come_as_late_as_the_last_of_them(pools: ModuleType) -> None:
    one, twenty = (pools.loop(case(pools, 3, 21, 21, interval)) for interval in (1, 20))
    assert twenty.prefill == one.prefill
    assert twenty.ttft == pytest.approx(one.ttft + 19 * one.tpot, rel=0.02)
    assert twenty.tpot < one.tpot  # clients divide what is left by all tokens but one


def test_a_recipe_is_found_by_its_pools_and_clients(pools: ModuleType) -> None:
    recipes = importlib.import_module("engines.recipes")
    row = "trtllm", "gb200", "fp8", 8192, 1024
    assert recipes.recipe_of(*row, (1, 3), 63).batch == 16
    assert recipes.recipe_of(*row, (1, 3), 64) is None
    assert recipes.recipe_of(*row, (2, 3), 63) is None
    assert recipes.recipe_of("sglang", *row[1:], (5, 1), 512).interval == 50
    for engine, table in recipes.RECIPES.items():
        for key, found in table.items():
            names = [(recipe.prefill, recipe.decode, clients) for recipe in found for clients in recipe.clients]
            assert len(names) == len(set(names)), (engine, key)
