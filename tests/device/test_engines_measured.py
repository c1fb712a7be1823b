"""Whole engines against public measurements that no constant has seen; the tables of docs/accuracy.md, thinned."""

import importlib
from collections.abc import Iterator
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def engines(pytestconfig: pytest.Config) -> Iterator[dict[str, ModuleType]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(pytestconfig.rootpath / "benchmarks"))
        modules = {name: importlib.import_module(f"engines.{name}") for name in ("harness", "silicon", "published")}
        if not (modules["harness"].DATA / "aiconfigurator").is_dir():
            pytest.skip("the measured tables (../shared/data) are not here")
        yield modules


def test_time_per_token_of_engines_of_2025_and_2026(engines: dict[str, ModuleType]) -> None:
    silicon = engines["silicon"]
    found = silicon.evaluate(silicon.read(engines["harness"].DATA).iloc[::40], workers=1)
    known = found[found["why"] == ""]
    assert len(known) > 40
    ratio = known["tpot_model"] / known["tpot"]
    assert (ratio - 1).abs().median() < 0.17
    assert 0.85 < ratio.median() < 1.1
    assert (known["ttft_model"] / known["ttft"]).median() < 1  # the client's first token is never before the engine's
    assert all(found[found["why"] != ""]["why"].str.len() > 8)


def test_a_constant_of_an_engine_carries_from_one_half_to_the_other(engines: dict[str, ModuleType]) -> None:
    rows = list(engines["published"].apex(engines["harness"].DATA))
    fitted = [row for row in rows if row["what"].startswith("APEX+, vLLM (2024), TPOT, ")]
    assert len(fitted) == 2
    assert fitted[0]["what"] == fitted[1]["what"]  # the same overhead per step on two and on four devices
    for row in fitted:
        assert row["mean"] < 0.05, row


def test_launches_of_a_slow_host_set_the_pace_without_graphs(engines: dict[str, ModuleType]) -> None:
    rows = list(engines["published"].splitwise(engines["harness"].DATA))
    tokens = {(row["what"].split(", ")[-1], row["where"]): row for row in rows if ", token, " in row["what"]}
    waits = {where: row for (title, where), row in tokens.items() if title.endswith("a launch")}
    for where in ("a100-sxm-80gb TP4", "h100-sxm-80gb TP4", "a100-sxm-80gb TP8", "h100-sxm-80gb TP8"):
        assert waits[where]["median"] < 0.1 < tokens["kernels", where]["median"]
