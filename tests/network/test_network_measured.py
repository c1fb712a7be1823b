"""Collectives and expert exchange against measured tables: wrong by a factor of two anywhere in the middle fails."""

import importlib
from collections.abc import Iterator
from types import ModuleType

import numpy as np
import pytest

from simulator.network.collectives import Collectives
from simulator.network.collectives_constants import load_constants
from simulator.topology import build_topology


@pytest.fixture(scope="module")
def accuracy(pytestconfig: pytest.Config) -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(pytestconfig.rootpath / "benchmarks"))
        module = importlib.import_module("accuracy_network")
        if not (module.DATA / "aiconfigurator").is_dir():
            pytest.skip("the measured tables (../shared/data) are not here")
        yield module


@pytest.fixture(scope="module")
def constants() -> dict:
    return {name: load_constants(name) for name in ("a100-sxm", "h100-sxm", "b200-sxm", "gb200", "h800-sxm")}


def test_a_few_measured_collectives() -> None:
    """Single rows of public tables, so that a wrong factor shows without them."""
    for preset, name, measured in (
        ("clos-h100", "h100-sxm", [("all_gather", 2, 1038.6), ("all_reduce", 8, 2111.1), ("all_to_all", 8, 1490.4)]),
        (
            "clos-a100",
            "a100-sxm",
            [("all_gather", 8, 2288.0), ("all_reduce", 4, 3716.3), ("reduce_scatter", 8, 2207.1)],
        ),
    ):
        collectives = Collectives(build_topology(preset), load_constants(name))
        for operation, ranks, us in measured:
            assert collectives.time_ns(operation, range(ranks), 1 << 29) / 1e3 == pytest.approx(us, rel=0.15)


def test_fitted_tables(accuracy: ModuleType, constants: dict) -> None:
    tables = accuracy.library(accuracy.DATA, constants)
    for row in tables["all"]:
        assert row["mean"] < 0.10, row
        assert 0.95 < row["ratio"] < 1.05, row
    for key in ("operation and ranks", "operation and decade of bytes"):
        assert len(tables[key]) >= 36
        for row in tables[key]:
            assert row["mean"] < 0.20, row
            assert 0.8 < row["ratio"] < 1.25, row


def test_tables_never_fitted(accuracy: ModuleType, constants: dict) -> None:
    rows = {(row["what"], row["where"]): row for row in accuracy.elsewhere(accuracy.DATA, constants)}
    for row in [*rows.values(), *accuracy.between_nodes(accuracy.DATA, constants)]:
        assert 0.5 < row["ratio"] < 2, row
    assert rows["Vidur, all_reduce", "a100-sxm"]["median"] < 0.15
    assert rows["Vidur, all_reduce", "h100-sxm"]["median"] < 0.15


def test_a_group_size_left_out(accuracy: ModuleType) -> None:
    calibrate = importlib.import_module("calibrate_network")
    frame = calibrate.nccl_table(accuracy.DATA, "h100-sxm")
    frame = frame[frame["operation"] == "all_to_all"]
    names = ["direct.LL", "direct.Simple"]
    fitted = calibrate.assemble(calibrate.fit("h100-sxm", frame[frame["ranks"] != 4], names), names)
    four = frame[frame["ranks"] == 4].reset_index(drop=True)
    model = calibrate.least_ns(fitted, "h100-sxm", four)
    assert np.mean(np.abs(model / four["ns"].to_numpy() - 1)) < 0.15


def test_sheets_hold_what_the_fit_gives(accuracy: ModuleType, constants: dict) -> None:
    calibrate = importlib.import_module("calibrate_network")
    frame = calibrate.engine_table(accuracy.DATA, "b200-sxm")
    frame = frame[frame["bytes"] < calibrate.ENGINE_LIMIT]
    names = ["one_shot.Simple", "two_shot.Simple"]
    theta = calibrate.fit("b200-sxm", frame, names, engine=True)
    for name in names:
        family, protocol = name.split(".")
        fit, shipped = calibrate.kernel(theta, name), constants["b200-sxm"].kernels[family][protocol]
        assert fit.base == pytest.approx(shipped.base, rel=0.01)
        assert fit.local_share == pytest.approx(shipped.local_share, rel=0.01)


def test_expert_exchange(accuracy: ModuleType, constants: dict) -> None:
    rows = {(row["what"], row["where"]): row for row in accuracy.exchanges(accuracy.DATA, constants)}
    fitted = [row for (what, _), row in rows.items() if what.startswith("fitted")]
    assert len(fitted) == 10
    for row in fitted:
        assert row["mean"] < 0.15, row
        assert 0.95 < row["ratio"] < 1.05, row
    for row in accuracy.published(accuracy.DATA, constants["h800-sxm"]):
        assert row["mean"] < 0.10, row


def test_expert_exchange_of_the_high_throughput_form_across_nodes_is_predicted(accuracy: ModuleType) -> None:
    rows = list(accuracy.published_normal(accuracy.DATA))
    assert len(rows) == 8
    assert max(row["mean"] for row in rows) < 0.15


def test_expert_exchange_between_dies_of_a_supernode(accuracy: ModuleType) -> None:
    rows = list(accuracy.supernode())
    assert len(rows) == 16
    assert max(row["mean"] for row in rows) < 0.13
    assert sum(row["mean"] for row in rows) / len(rows) < 0.03
