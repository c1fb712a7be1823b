"""Callers, shared prefixes and sessions against their laws, at fixed seeds, within several standard errors."""

import math
from itertools import pairwise
from statistics import NormalDist
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.workload.arrivals import ClosedLoop, Constant, Gamma, Poisson
from simulator.workload.callers import Callers, with_callers
from simulator.workload.lengths import Exponential, Fixed, Lognormal, Uniform
from simulator.workload.schema import SCHEMA, rebatch
from simulator.workload.synthesis import MAX_TURNS, Prefixes, Sessions, synthesize
from simulator.workload.times import ConstantTime, ExponentialTime, LognormalTime

ROWS = 60_000
EVERYTHING = Callers({"a": 3.0, "b": 1.0}, {0: 5.0, -2: 2.0, 7: 1.0}, Uniform(1, 4), 0.4)


def made(requests: int = ROWS, seed: int = 4, **more: Any) -> pa.Table:
    laws = {"arrivals": Poisson(50.0), "prompt_tokens": Lognormal(300, 0.8, 9000), "output_tokens": Uniform(50, 400)}
    return pa.Table.from_batches(synthesize(seed, requests, **(laws | more)))


def called(table: pa.Table, callers: Callers, rows: int = 65_536, seed: int = 4) -> pa.Table:
    return pa.Table.from_batches(with_callers(table.to_batches(max_chunksize=rows), seed, callers), SCHEMA)


def test_shares_are_met() -> None:
    table = called(made(), EVERYTHING)
    for column, shares in (("tenant", {"a": 3 / 4, "b": 1 / 4}), ("priority", {0: 5 / 8, -2: 2 / 8, 7: 1 / 8})):
        counts = {row["values"]: row["counts"] for row in table[column].combine_chunks().value_counts().to_pylist()}
        assert set(counts) == set(shares)
        for name, share in shares.items():
            assert abs(counts[name] / ROWS - share) < 5 * math.sqrt(share * (1 - share) / ROWS), (column, name)
    assert set(table["samples"].to_pylist()) == {1, 2, 3, 4}


def test_the_order_in_which_shares_are_written_means_nothing() -> None:
    """A scenario's digest does not cover the order of keys, and equal digests promise equal runs."""
    turned = Callers({"b": 1.0, "a": 3.0}, {7: 1.0, 0: 5.0, -2: 2.0}, Uniform(1, 4), 0.4)
    assert called(made(500), turned).equals(called(made(500), EVERYTHING))


def test_errors_of_prediction_are_lognormal() -> None:
    table = called(made(output_tokens=Fixed(100_000)), Callers(prediction_error=0.4))
    logs = np.sort(np.log(table["predicted_tokens"].to_numpy() / 100_000))
    assert abs(logs.mean()) < 5 * 0.4 / math.sqrt(ROWS)
    assert abs(logs.std() / 0.4 - 1) < 5 / math.sqrt(2 * ROWS)
    law = NormalDist(0, 0.4)
    gap = max(abs(law.cdf(float(x)) - (i + 0.5) / ROWS) for i, x in enumerate(logs))
    assert gap < 2.2 / math.sqrt(ROWS)  # Kolmogorov: exceeded once in 8,000


def test_answers_after_the_first_have_lengths_of_their_own() -> None:
    plain = made()
    alike = called(plain, Callers(samples=Uniform(1, 4)))
    table = called(plain, Callers(samples=Uniform(1, 4), sample_tokens=Uniform(5, 104), prediction_error=0.0))
    assert [name for name in SCHEMA.names if table[name] != alike[name]] == ["sample_tokens", "predicted_tokens"]
    further = table["sample_tokens"].to_pylist()
    assert [1 + len(lengths) for lengths in further] == table["samples"].to_pylist()
    drawn = np.array([length for lengths in further for length in lengths])
    assert (drawn.min(), drawn.max()) == (5, 104)
    assert abs(drawn.mean() - 54.5) < 5 * 28.9 / math.sqrt(len(drawn))
    for row in table.slice(0, 100).to_pylist():  # without an error it is the mean of a request's answers
        answers = [row["output_tokens"], *row["sample_tokens"]]
        assert row["predicted_tokens"] == round(sum(answers) / len(answers))


@settings(max_examples=20, deadline=None)
@given(rows=st.integers(1, 700))
def test_lengths_of_answers_do_not_depend_on_how_rows_are_batched(rows: int) -> None:
    table, law = made(700), Callers(samples=Uniform(1, 4), sample_tokens=Uniform(5, 104))
    assert called(table, law, rows)["sample_tokens"].to_pylist() == called(table, law)["sample_tokens"].to_pylist()


def test_without_error_prediction_is_an_oracle() -> None:
    table = called(made(), Callers(prediction_error=0.0))
    assert table["predicted_tokens"] == table["output_tokens"]


@pytest.mark.parametrize(
    ("law", "column"),
    [
        (Callers(tenants={"a": 1.0, "c": 9.0}), "tenant"),
        (Callers(priorities={1: 1.0, 2: 1.0}), "priority"),
        (Callers(samples=Fixed(3)), "samples"),
        (Callers(prediction_error=1.0), "predicted_tokens"),
    ],
)
def test_each_law_draws_from_a_stream_of_its_own(law: Callers, column: str) -> None:
    plain = made(3000)
    alone, among = called(plain, law), called(plain, EVERYTHING)
    assert [name for name in SCHEMA.names if alone[name] != plain[name]] == [column]
    changed = {field: getattr(law, field) for field in vars(law) if getattr(law, field) is not None}
    both = called(plain, Callers(**{**vars(EVERYTHING), **changed}))
    assert both[column] == alone[column]
    assert all(both[name] == among[name] for name in SCHEMA.names if name != column)


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(1, 700))
def test_callers_do_not_depend_on_how_rows_are_batched(rows: int) -> None:
    table = made(700)
    assert called(table, EVERYTHING, rows) == called(table, EVERYTHING)


@pytest.mark.parametrize("exponent", [0.0, 0.7, 1.2])
def test_prefixes_are_popular_by_zipf(exponent: float) -> None:
    count, law = 50, Uniform(10, 900)
    table = made(prefixes=Prefixes(count, law, exponent))
    weights = np.arange(1, count + 1) ** -exponent
    shares = weights / weights.sum()
    found = np.bincount(table["prefix"].to_numpy(), minlength=count) / ROWS
    assert (np.abs(found - shares) < 5 * np.sqrt(shares * (1 - shares) / ROWS)).all()
    lengths = set(zip(table["prefix"].to_pylist(), table["prefix_tokens"].to_pylist(), strict=True))
    assert len(lengths) == count  # every prefix has one length
    plain = made()
    assert (table["prompt_tokens"].to_numpy() - table["prefix_tokens"].to_numpy() == plain["prompt_tokens"]).all()
    assert table["output_tokens"] == plain["output_tokens"]
    assert table["arrival_ns"] == plain["arrival_ns"]


SESSIONS = Sessions(Exponential(4.0), ExponentialTime(20 * 10**9))


def by_session(table: pa.Table) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for row in table.to_pylist():
        found.setdefault(row["session"], []).append(row)
    return found


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 99),
    rate=st.sampled_from([0.2, 5.0, 4000.0]),
    turns=st.sampled_from([Fixed(1), Fixed(3), Exponential(3.0)]),
    think=st.sampled_from([ConstantTime(10**9), ExponentialTime(10**11), LognormalTime(10**9, 1.5)]),
    most=st.sampled_from([700, 5000, 2**31 - 1]),
    prefixes=st.sampled_from([None, Prefixes(3, Uniform(1, 500))]),
)
def test_every_turn_repeats_the_conversation(
    seed: int, rate: float, turns: Any, think: Any, most: int, prefixes: Prefixes | None
) -> None:
    sessions = Sessions(turns, think, most)
    table = made(2500, seed, arrivals=Gamma(rate, 1.5), sessions=sessions, prefixes=prefixes)
    assert table.num_rows == 2500
    times = table["arrival_ns"].to_numpy()
    assert (np.diff(times) >= 0).all()
    for rows in by_session(table).values():
        assert [row["turn"] for row in rows] == list(range(len(rows)))
        assert len({row["prefix"] for row in rows}) == 1
        for before, after in pairwise(rows):
            assert after["arrival_ns"] >= before["arrival_ns"]
            assert after["prompt_tokens"] > before["prompt_tokens"] + before["output_tokens"]
            assert after["prompt_tokens"] + after["output_tokens"] <= most


def test_sessions_have_their_turns_and_thoughts() -> None:
    table = made(sessions=SESSIONS, arrivals=Poisson(5.0))
    last_ns = table["arrival_ns"].to_numpy()[-1]
    # Those that began early enough are whole: a session of n turns lasts n - 1 thoughts.
    whole = [rows for rows in by_session(table).values() if rows[0]["arrival_ns"] < last_ns - 1200 * 10**9]
    turns = np.array([len(rows) for rows in whole])
    assert len(turns) > 500
    assert abs(turns.mean() - 4) < 5 * math.sqrt(12 / len(turns))  # geometric from 1: variance m (m - 1)
    gaps = np.array([b["arrival_ns"] - a["arrival_ns"] for rows in whole for a, b in pairwise(rows)]) / 20e9
    assert abs(gaps.mean() - 1) < 5 / math.sqrt(len(gaps))


def test_sessions_of_one_turn_are_independent_requests() -> None:
    plain, single = made(5000), made(5000, sessions=Sessions(Fixed(1), ConstantTime(1)))
    same = ("arrival_ns", "prompt_tokens", "output_tokens")
    assert all(plain[name] == single[name] for name in same)
    assert single["session"].to_pylist() == [str(number) for number in range(5000)]


@pytest.mark.parametrize(
    "more", [{}, {"sessions": SESSIONS}, {"sessions": SESSIONS, "prefixes": Prefixes(9, Fixed(7))}]
)
def test_fewer_requests_are_a_prefix_and_bytes_do_not_depend_on_batches(more: dict[str, Any]) -> None:
    long = made(20_000, **more)
    for requests in (1, 1023, 8192, 19_999):
        assert made(requests, **more) == long.slice(0, requests)
    parts = rebatch(long.to_batches(), 777)
    assert pa.Table.from_batches(parts).combine_chunks() == long.combine_chunks()


def test_what_turns_add_does_not_depend_on_thinking() -> None:
    def told(think: Any) -> dict[str, list[int]]:
        table = made(8000, sessions=Sessions(Exponential(4.0), think))
        return {name: [row["prompt_tokens"] for row in rows] for name, rows in by_session(table).items()}

    quick, slow = told(ConstantTime(10**6)), told(ExponentialTime(10**10))
    for name in quick.keys() & slow.keys():
        shorter = min(len(quick[name]), len(slow[name]))
        assert quick[name][:shorter] == slow[name][:shorter]


def test_senseless_sessions_and_prefixes_are_refused() -> None:
    with pytest.raises(ValueError, match="closed loop"):
        made(10, arrivals=ClosedLoop(4), sessions=SESSIONS)
    with pytest.raises(ValueError, match="count"):
        Prefixes(0, Fixed(1))
    with pytest.raises(ValueError, match="exponent"):
        Prefixes(1, Fixed(1), -1.0)
    for law, words in ((ConstantTime, (0,)), (ExponentialTime, (-1,)), (LognormalTime, (10**9, -1.0))):
        with pytest.raises(ValueError, match=r"more than zero|zero or more"):
            law(*words)
    assert len(by_session(made(3000, arrivals=Constant(1.0), sessions=Sessions(Fixed(10**6), ConstantTime(1)))))
    assert max(
        len(rows) for rows in by_session(made(3000, sessions=Sessions(Fixed(10**6), ConstantTime(1)))).values()
    ) == (MAX_TURNS)
