"""Whole engines against public measurements that no constant has seen; the tables of docs/accuracy.md, thinned."""

import importlib
from collections.abc import Iterator
from types import ModuleType

import pytest

from simulator.device.provenance import REACHED

NAMES = ("harness", "silicon", "published", "disaggregated", "deployments")


@pytest.fixture(scope="module")
def engines(pytestconfig: pytest.Config) -> Iterator[dict[str, ModuleType]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(pytestconfig.rootpath / "benchmarks"))
        modules = {name: importlib.import_module(f"engines.{name}") for name in NAMES}
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


def test_prefill_and_decode_pools_of_2025_and_2026(engines: dict[str, ModuleType]) -> None:
    pools = engines["disaggregated"]
    rows = pools.read(engines["harness"].DATA)
    few = rows["silicon_data_source"].str.extract(r"silicon_concurrency=(\d+)")[0].astype(float) <= 60
    found = pools.evaluate(rows[rows["known"] & few].iloc[::2], workers=1)
    known = found[found["why"] == ""]
    assert len(known) > 25
    ratio = known["tpot_model"] / known["tpot"]
    assert (ratio - 1).abs().median() < 0.13
    assert 0.95 < ratio.median() < 1.15
    streamed = known["ttft_model"] + 20 * known["tpot_model"]  # `stream_interval: 20` in the recipes
    off = (streamed / known["ttft"] - 1).abs()
    assert off[known["engine"] == "trtllm"].median() < 0.3
    assert off.median() < 0.35


def test_rows_of_one_measurement_have_one_prediction(engines: dict[str, ModuleType]) -> None:
    pools = engines["disaggregated"]
    rows = pools.read(engines["harness"].DATA)
    twins = rows.groupby("twin").filter(lambda group: len(group) > 1 and group["known"].any())
    first = twins[twins["silicon_data_source"].str.contains("silicon_concurrency=12;")]
    found = pools.evaluate(first, workers=1)
    covered = found[found["why"] == ""]
    assert len(covered) > covered["measurement"].nunique() > 0
    assert (covered.groupby("measurement")["ttft_model"].nunique() == 1).all()


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


def test_published_deployments_of_wide_expert_parallelism(engines: dict[str, ModuleType]) -> None:
    deployments = engines["deployments"]
    ratio = {figure: deployments.predicted(figure) / figure.measured for figure in deployments.FIGURES}
    on_hopper = {figure: found for figure, found in ratio.items() if figure.topology != deployments.GB200}
    assert all(0.95 < found < 1.22 for figure, found in on_hopper.items() if figure.balanced)
    assert all(0.95 < found < 1.45 for found in on_hopper.values())  # texts choose some experts more than others
    assert all(found > 0.7 for found in ratio.values())
    lowest, highest = (f"{1 / bound(on_hopper.values()):.0%}"[:-1] for bound in (max, min))
    assert f"reached {lowest} to {highest} %" in REACHED
