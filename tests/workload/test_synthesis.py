"""Synthetic traces: prefixes, independence of the streams, refusal of senseless parameters, and the one-line specs."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from simulator.errors import InputError
from simulator.randomness import stream
from simulator.workload.arrivals import ARRIVALS, BLOCK, Constant, Diurnal, Gamma, Mmpp, Poisson
from simulator.workload.lengths import LENGTHS, Empirical, Exponential, Fixed, Lognormal, Uniform
from simulator.workload.schema import BATCH_ROWS, SCHEMA, make_batch
from simulator.workload.spec import parse_arrivals, parse_lengths
from simulator.workload.synthesis import synthesize
from simulator.workload.trace import write_trace


def table(requests: int, seed: int = 5, **laws: Any) -> pa.Table:
    law = {"arrivals": Gamma(10.0, 2.0), "prompt_tokens": Lognormal(700, 0.9, 8000), "output_tokens": Uniform(1, 300)}
    return pa.Table.from_batches(synthesize(seed, requests, **(law | laws)))


@pytest.mark.parametrize("arrivals", [Poisson(50.0), Diurnal(50.0, 1.9, 10**10), Mmpp((1.0, 90.0), (10**9, 10**9))])
def test_fewer_requests_are_a_prefix_of_more(arrivals: Any) -> None:
    long = table(BATCH_ROWS + 3, arrivals=arrivals)
    assert long.schema == SCHEMA
    assert [batch.num_rows for batch in long.to_batches()] == [BATCH_ROWS, 3]
    for requests in (1, BLOCK - 1, BLOCK, BLOCK + 1, BATCH_ROWS):
        assert table(requests, arrivals=arrivals) == long.slice(0, requests)


@pytest.mark.parametrize(
    ("name", "law"),
    [("arrivals", Poisson(10.0)), ("prompt_tokens", Fixed(3)), ("output_tokens", Exponential(9.0))],
)
def test_a_change_of_one_law_moves_no_other_column(name: str, law: Any) -> None:
    before, after = table(20_000), table(20_000, **{name: law})
    changed = [column for column in SCHEMA.names if before[column] != after[column]]
    assert changed == ["arrival_ns" if name == "arrivals" else name]


def test_the_seed_changes_every_column() -> None:
    first, second = table(1000), table(1000, seed=6)
    assert all(first[name] != second[name] for name in ("arrival_ns", "prompt_tokens", "output_tokens"))
    assert first == table(1000)


def test_prompts_and_outputs_are_not_linked() -> None:
    made = table(50_000)
    link = np.corrcoef(made["prompt_tokens"].to_numpy(), made["output_tokens"].to_numpy())[0, 1]
    assert abs(link) < 5 / np.sqrt(50_000)


def test_empirical_lengths_come_as_often_as_in_the_trace(tmp_path: Path) -> None:
    path = tmp_path / "trace.parquet"
    prompts = [5] * 70 + [9] * 20 + [1000] * 10
    columns = {"arrival_ns": range(100), "prompt_tokens": prompts, "output_tokens": [4] * 100}
    write_trace(path, [make_batch(columns, 100)], {})
    values = Empirical(str(path), "prompt_tokens").draw(stream(1, "x"), 100_000)
    share = {value: count / 100_000 for value, count in Counter(values.tolist()).items()}
    assert share == pytest.approx({5: 0.7, 9: 0.2, 1000: 0.1}, abs=0.008)
    assert set(Empirical(str(path), "output_tokens").draw(stream(1, "x"), 50).tolist()) == {4}
    with pytest.raises(InputError, match="cannot read"):
        Empirical(str(tmp_path / "absent.parquet"), "prompt_tokens").draw(stream(1, "x"), 1)


@pytest.mark.parametrize(
    ("law", "parameters", "message"),
    [
        (Poisson, {"rate_per_s": 0}, "rate must be more than zero"),
        (Poisson, {"rate_per_s": float("nan")}, "rate must be"),
        (Constant, {"rate_per_s": float("inf")}, "rate must be"),
        (Gamma, {"rate_per_s": 1.0, "cv": 0.0}, "cv must be"),
        (Gamma, {"rate_per_s": -1.0, "cv": 1.0}, "rate must be"),
        (Mmpp, {"rates_per_s": (1.0,), "dwell_ns": (1,)}, "two states"),
        (Mmpp, {"rates_per_s": (1.0, 2.0), "dwell_ns": (1,)}, "as many rates as dwells"),
        (Mmpp, {"rates_per_s": (0.0, 0.0), "dwell_ns": (1, 1)}, "at least one rate"),
        (Mmpp, {"rates_per_s": (1.0, -1.0), "dwell_ns": (1, 1)}, "rate must be"),
        (Mmpp, {"rates_per_s": (1.0, 1.0), "dwell_ns": (1, 0)}, "dwell must be"),
        (Mmpp, {"rates_per_s": (1.0, 2.0), "dwell_ns": (10**6, 10**6)}, "plain poisson"),
        (Diurnal, {"rate_per_s": 1.0, "peak_to_mean": 2.1, "period_ns": 1}, "between 1 and 2"),
        (Diurnal, {"rate_per_s": 1.0, "peak_to_mean": 1.5, "period_ns": 0}, "period must be"),
        (Fixed, {"value": 0}, "whole number of tokens"),
        (Fixed, {"value": 1.5}, "whole number of tokens"),
        (Uniform, {"low": 5, "high": 4}, "low must not be above high"),
        (Lognormal, {"median": 0, "sigma": 1.0}, "median must be"),
        (Lognormal, {"median": 10, "sigma": -1.0}, "sigma must be"),
        (Lognormal, {"median": 10, "sigma": 1.0, "max": 9}, "median must be between 1 and max"),
        (Exponential, {"mean": 0.5}, "mean must be"),
        (Empirical, {"path": "x", "column": "session"}, "column must be"),
    ],
)
def test_senseless_parameters_are_refused(law: Any, parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        law(**parameters)
    with pytest.raises(ValueError, match="requests must be 1 or more"):
        synthesize(1, 0, Poisson(1.0), Fixed(1), Fixed(1))


@pytest.mark.parametrize(
    "process", [Poisson(1e-12), Gamma(1e-9, 2.0), Constant(1e-9), Mmpp((1e-9, 0.0), (10**18, 10**18))]
)
def test_times_beyond_64_bits_are_an_error_not_a_wrap(process: Any) -> None:
    with pytest.raises(InputError, match="292 years"):
        for _, _ in zip(process.times(stream(1, "arrivals")), range(1000), strict=False):
            pass


@pytest.mark.parametrize(
    ("text", "law"),
    [
        ("poisson:rate=10 / s", Poisson(10.0)),
        ("gamma:rate=600/min, cv=2", Gamma(10.0, 2.0)),
        ("constant:rate=1 / s", Constant(1.0)),
        ("mmpp:rates=5 / s;50 / s,dwell=10 s;500 ms", Mmpp((5.0, 50.0), (10**10, 5 * 10**8))),
        ("diurnal:rate=1 / s,peak_to_mean=1.5,period=1 d", Diurnal(1.0, 1.5, 86_400 * 10**9)),
    ],
)
def test_arrival_specs(text: str, law: Any) -> None:
    assert parse_arrivals(text) == law


@pytest.mark.parametrize(
    ("text", "law"),
    [
        ("lognormal:median=700,sigma=0.9,max=8000", Lognormal(700, 0.9, 8000)),
        ("lognormal:median=700,sigma=0.9", Lognormal(700, 0.9)),
        ("constant:value=5", Fixed(5)),
        ("uniform:low=1,high=9", Uniform(1, 9)),
        ("exponential:mean=2.5", Exponential(2.5)),
        ("empirical:path=a.parquet,column=output_tokens", Empirical("a.parquet", "output_tokens")),
    ],
)
def test_length_specs(text: str, law: Any) -> None:
    assert parse_lengths(text) == law


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("poison:rate=1 / s", "unknown arrival process 'poison'; allowed: .*did you mean 'poisson'"),
        ("poisson:rate=10", "rate: '10' has no unit"),
        ("poisson:rate=10 s", "has unit 's'"),
        ("poisson", "poisson also needs rate"),
        ("gamma:rate=1 / s,vc=2", "'vc=2' is not an option of gamma; allowed: rate=..., cv=..."),
        ("gamma:rate=1 / s,cv=two", "cv: 'two' is not a number"),
        ("gamma:rate=1 / s,cv=1,cv=2", "cv is given twice"),
        ("gamma:rate=1 / s,cv=-2", "cv must be more than zero"),
        ("mmpp:rates=1 / s;2 / s,dwell=1 s", "as many rates as dwells"),
        ("", "unknown arrival process ''"),
    ],
)
def test_wrong_specs(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_arrivals(text)


def test_the_registries_hold_what_the_scenario_names() -> None:
    assert sorted(ARRIVALS) == ["constant", "diurnal", "gamma", "mmpp", "poisson"]
    assert sorted(LENGTHS) == ["constant", "empirical", "exponential", "lognormal", "uniform"]
