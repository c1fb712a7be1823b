"""The resolved text of any scenario loads back to an equal one, and its digest is that of its meaning."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from simulator import catalog
from simulator.documents import core_scalar, parse_document
from simulator.results.metrics import FLOW_METRICS, UNITS
from simulator.scenario.load import load, resolved, scenario_digest
from simulator.scenario.schema import Scenario
from simulator.scenario.write import _scalar

number = st.floats(0.001, 1e6)
durations = st.builds("{} {}".format, st.integers(1, 10**6), st.sampled_from(["us", "ms", "s", "min", "h"]))
windows = st.builds("{} {}".format, st.integers(1, 10**6), st.sampled_from(["ms", "s", "min", "h"]))
rates = st.builds("{!r} / {}".format, number, st.sampled_from(["s", "min", "h", "d"]))
counts = st.integers(1, 10**6)


def fields(**strategies: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=strategies)


arrivals = st.one_of(
    st.fixed_dictionaries({"poisson": st.fixed_dictionaries({"rate": rates})}),
    st.fixed_dictionaries({"gamma": st.fixed_dictionaries({"rate": rates, "cv": number})}),
    st.fixed_dictionaries(
        {
            "mmpp": st.fixed_dictionaries(
                {"states": st.lists(st.fixed_dictionaries({"rate": rates, "dwell": durations}), min_size=2, max_size=4)}
            )
        }
    ),
    st.fixed_dictionaries(
        {
            "diurnal": st.fixed_dictionaries(
                {"rate": rates, "peak_to_mean": st.floats(1, 2)}, optional={"period": durations}
            )
        }
    ),
)
lengths = st.one_of(
    counts,
    st.fixed_dictionaries(
        {
            "lognormal": st.fixed_dictionaries(
                {"median": st.floats(1, 9e5), "sigma": st.floats(0, 5), "max": st.just(10**6)}
            )
        }
    ),
    st.just({"empirical": {"trace": "conversation-sample", "column": "prompt_tokens"}}),
    st.fixed_dictionaries({"uniform": st.fixed_dictionaries({"low": st.integers(1, 9), "high": st.integers(9, 99)})}),
)
workloads = st.one_of(
    st.fixed_dictionaries(
        {"requests": counts, "arrivals": arrivals, "prompt_tokens": lengths, "output_tokens": lengths}
    ),
    st.fixed_dictionaries(
        {"trace": st.just("conversation-sample")},
        optional={"speedup": number, "start": durations, "duration": durations, "requests": counts},
    ),
)
pools = st.fixed_dictionaries(
    {"instances": st.integers(1, 4)},
    optional={
        "layout": fields(tensor=st.sampled_from([1, 2, 4])),
        "batcher": st.one_of(
            st.just("continuous"), st.fixed_dictionaries({"continuous": fields(max_running=st.integers(1, 99))})
        ),
        "kv": fields(block_tokens=st.integers(1, 64), watermark=st.floats(0, 0.9), blocks=counts),
        "router": st.sampled_from(["round_robin", "least_loaded"]),
    },
)
servings = st.builds(
    lambda common, pools: common | pools,
    st.fixed_dictionaries(
        {"model": st.sampled_from(["llama-3-8b", "llama-2-7b"])},
        optional={
            "router": st.sampled_from(["round_robin", {"least_loaded": {}}]),
            "max_context": counts,
            "cost": st.one_of(
                st.just("roofline"),
                st.fixed_dictionaries(
                    {"linear": fields(decode=fields(fixed=durations, per_context_token=st.just("3 ps")))}
                ),
            ),
        },
    ),
    st.one_of(st.fixed_dictionaries({"colocated": pools}), st.fixed_dictionaries({"prefill": pools, "decode": pools})),
)
bounds = {"s": durations, "1/s": rates, "": st.builds(repr, number)}
expectations = st.fixed_dictionaries(
    {},
    optional={
        metric: st.builds("{} {}".format, st.sampled_from(["<", "<=", ">", ">=", "=="]), bounds[unit])
        for metric, unit in UNITS.items()
        if metric.partition(".")[0] not in FLOW_METRICS
        if not metric.startswith("utilisation.")
    },
)
scenarios = st.fixed_dictionaries(
    {
        "schema": st.just(1),
        "topology": st.fixed_dictionaries(
            {"preset": st.sampled_from(["clos-h100", "clos-a100"]), "nodes": st.integers(4, 30)},
            optional={"taper": st.floats(1, 4), "link": fields(latency=durations)},
        ),
        "workload": workloads,
        "serving": servings,
        "slo": fields(ttft=durations, tpot=durations, e2e=durations),
    },
    optional={
        "seed": st.integers(0, 2**63 - 1),
        "description": st.text(max_size=40),
        "until": durations,
        "results": fields(interval=windows),
        "expect": expectations,
    },
)


def written(value: object) -> str:
    """Write a value as YAML in flow style, by other means than those under test."""
    if isinstance(value, dict):
        return "{" + ", ".join(f'"{key}": {written(item)}' for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(written, value)) + "]"
    if isinstance(value, str):
        return '"' + "".join(f"\\U{ord(c):08x}" if c in '"\\' or not 32 <= ord(c) < 127 else c for c in value) + '"'
    return repr(value)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(scenarios)
def test_resolved_text_loads_back_to_an_equal_scenario(tmp_path: Path, value: dict[str, Any]) -> None:
    if not value["slo"]:
        value["expect"] = {k: v for k, v in value.get("expect", {}).items() if not k.startswith("goodput")}
    path, again = tmp_path / "scenario.yaml", tmp_path / "again.yaml"
    path.write_text(written(value), encoding="utf-8")
    scenario = load(path)
    again.write_text(resolved(scenario, tmp_path), encoding="utf-8")
    assert load(again) == scenario
    assert scenario_digest(load(again)) == scenario_digest(scenario)
    assert resolved(load(again), tmp_path) == again.read_text(encoding="utf-8")


def test_every_default_is_spelled_out() -> None:
    def keys(value: Any, at: tuple[str, ...] = ()) -> set[tuple[str, ...]]:
        if not isinstance(value, dict):
            return set()
        return {(*at, key) for key in value} | {path for key, item in value.items() for path in keys(item, (*at, key))}

    scenario = load("quickstart")
    text = parse_document(resolved(scenario), "resolved").value
    assert keys(text) == keys(scenario.model_dump(by_alias=True, exclude={"base"}))
    assert {"seed", "until", "expect", "results", "slo"} <= set(text)
    assert text["topology"]["nvlink"] == {"bandwidth": "450 GB/s", "latency": "1665 ns"}
    assert text["serving"]["decode"]["kv"]["memory_utilisation"] == 0.9


@given(st.text(max_size=30) | st.sampled_from(["null", "1", "1e3", "true", "~", "", "010", "0x1f", "a: b", "- a", "#"]))
def test_a_written_text_is_read_as_that_text(text: str) -> None:
    document = parse_document(f"key: {_scalar(text)}\nlist: [{_scalar(text)}, {_scalar(text)}]", "text")
    assert document.value == {"key": text, "list": (text, text)}


@given(st.floats(allow_nan=False, allow_infinity=False) | st.integers() | st.booleans() | st.none())
def test_a_written_value_is_read_as_that_value(value: float | None) -> None:
    assert core_scalar(_scalar(value)) == value


@pytest.mark.parametrize("name", catalog.names("scenarios"))
def test_shipped_scenarios_are_valid_and_name_their_schema(name: str) -> None:
    path = catalog.locate("scenarios", name)
    scenario = load(path)
    assert isinstance(scenario, Scenario)
    assert load(name) == scenario
    assert scenario.description
    up = "../" * (1 + name.count("/"))
    assert path.read_text().startswith(f"# yaml-language-server: $schema={up}schema/scenario.v1.json\n")
