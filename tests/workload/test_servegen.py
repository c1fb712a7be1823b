"""ServeGen profiles: exact counts, the laws of gaps and lengths, parts equal to the whole, faults of the files."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from simulator.errors import InputError
from simulator.trace_cli import trace
from simulator.units import NS_PER_S
from simulator.workload.sampling import Part
from simulator.workload.servegen import WINDOW_NS, ServeGenSource
from simulator.workload.trace import open_trace

DATA = Path(__file__).parents[3] / "shared" / "data" / "servegen"
RATES = [  # client, timestamp, requests, law, shape
    (0, 0, 6000, "Gamma", 0.25),
    (0, 600, 0, None, 0.0),
    (0, 1200, 60, "Weibull", 0.5),
    (2, 0, 3000, "Weibull", 0.6),
    (2, 600, 9, "Gamma", 1e-5),
    (5, 0, 4000, "Gamma", 2.0),
]
LENGTHS = [  # client, window, field, value, weight
    (0, 0, "input_tokens", 10, 0.25),
    (0, 0, "input_tokens", 20, 0.75),
    (0, 0, "output_tokens", 0, 0.5),
    (0, 0, "output_tokens", 7, 0.5),
    (2, 0, "input_tokens", 900, 1.0),
    (2, 0, "output_tokens", 3, 1.0),
    (2, 0, "reason_ratio", 0.5, 1.0),
]


def profile(folder: Path, rates: list[Any] = RATES, lengths: list[Any] = LENGTHS) -> Path:
    path = folder / "small.trace.parquet"
    clients, starts, counts, laws, shapes = zip(*rates, strict=True)
    rate = [count / 600 for count in counts]
    names = ("client", "timestamp", "rate", "pat_name", "pat_arg1")
    pq.write_table(pa.table(dict(zip(names, (clients, starts, rate, laws, shapes), strict=True))), path)
    names = ("client", "window", "field", "value", "prob")
    columns: list[Any] = list(zip(*lengths, strict=True))
    columns[3] = pa.array(columns[3], pa.float64())
    pq.write_table(pa.table(dict(zip(names, columns, strict=True))), folder / "small.dataset.parquet")
    return path


def drawn(path: Path, seed: int = 1, start_ns: int = 0) -> pa.Table:
    return pa.Table.from_batches(open_trace(path, "servegen", seed=seed).batches(start_ns))


def of_client(table: pa.Table, client: int) -> pa.Table:
    return table.filter(pa.compute.equal(table["tenant"], f"client-{client}"))


def test_every_window_has_its_count_in_order(tmp_path: Path) -> None:
    table = drawn(profile(tmp_path))
    times = table["arrival_ns"].to_numpy()
    assert (np.diff(times) >= 0).all()
    for client, start, count, *_ in RATES:
        its = of_client(table, client)["arrival_ns"].to_numpy()
        assert ((its >= start * NS_PER_S) & (its < start * NS_PER_S + WINDOW_NS)).sum() == count
    assert table.num_rows == sum(row[2] for row in RATES)


@pytest.mark.parametrize(
    ("client", "cv"),
    [(0, 2.0), (5, math.sqrt(0.5)), (2, math.sqrt(math.gamma(1 + 2 / 0.6) / math.gamma(1 + 1 / 0.6) ** 2 - 1))],
)
def test_gaps_vary_as_their_law(tmp_path: Path, client: int, cv: float) -> None:
    ratios = []
    for seed in range(8):
        its = of_client(drawn(profile(tmp_path), seed), client)["arrival_ns"].to_numpy()
        gaps = np.diff(its[its < WINDOW_NS])
        ratios.append(gaps.std() / gaps.mean() / cv)
    assert abs(np.mean(ratios) - 1) < 0.05


def test_lengths_come_as_often_as_the_profile_says(tmp_path: Path) -> None:
    table = drawn(profile(tmp_path))
    own = of_client(table, 0)
    prompts, outputs = own["prompt_tokens"].to_numpy(), own["output_tokens"].to_numpy()
    rows = len(prompts)
    assert set(prompts) == {10, 20}
    assert abs((prompts == 20).mean() - 0.75) < 5 * math.sqrt(0.75 * 0.25 / rows)
    assert set(outputs) == {1, 7}  # no tokens become one
    assert abs((outputs == 1).mean() - 0.5) < 5 * math.sqrt(0.25 / rows)
    assert abs(np.corrcoef(prompts, outputs)[0, 1]) < 5 / math.sqrt(rows)
    assert set(of_client(table, 2)["prompt_tokens"].to_pylist()) == {900}


def test_a_client_without_lengths_draws_from_those_of_the_others(tmp_path: Path) -> None:
    path = profile(tmp_path)
    prompts = of_client(drawn(path), 5)["prompt_tokens"].to_numpy()
    share = 3009 / (6060 + 3009)  # of client 2 among the requests of those that have lengths
    assert abs((prompts == 900).mean() - share) < 5 * math.sqrt(share * (1 - share) / len(prompts))
    (note,) = open_trace(path, "servegen").notes
    assert note.startswith("1 of 3 clients, 31% of the requests, have no token lengths in small.dataset.parquet")


def test_a_client_without_lengths_at_the_time_is_told(tmp_path: Path) -> None:
    """Of client 2 none are known in the second 6 h; what it had before does not hold then."""
    rates = [(client, start, 60, "Gamma", 1.0) for start in (0, 21_600) for client in (0, 2)]
    later = [(0, 21_600, *row[2:]) for row in LENGTHS if row[0] == 0]
    (note,) = open_trace(profile(tmp_path, rates, [*LENGTHS, *later]), "servegen").notes
    assert note.startswith("1 of 2 clients, 25% of the requests, have no token lengths")


def test_a_part_is_the_same_as_that_part_of_the_whole(tmp_path: Path) -> None:
    path = profile(tmp_path)
    whole, seen = drawn(path), drawn(path, start_ns=700 * NS_PER_S)
    assert seen.num_rows == 69
    start_ns = 700 * NS_PER_S
    parts = [Part(start_ns).of(table.to_batches()) for table in (whole, seen)]
    assert pa.Table.from_batches(parts[0]) == pa.Table.from_batches(parts[1])


@pytest.mark.parametrize("start_s", [0, 599, 600, 700, 1200, 1500])
def test_a_fraction_of_a_part_is_that_part_of_the_fraction(tmp_path: Path, start_s: int) -> None:
    """Windows that are not drawn are numbered all the same."""
    source, start_ns = open_trace(profile(tmp_path), "servegen", seed=1), start_s * NS_PER_S
    whole = Part(fraction=0.4, seed=1)
    rows = pa.Table.from_batches(whole.of(source.batches()))
    assert whole.taken + whole.left_out == sum(row[2] for row in RATES)
    part = Part(start_ns, fraction=0.4, seed=1)
    found = pa.Table.from_batches(part.of(source.batches(start_ns), source.skipped(start_ns)))
    assert found.combine_chunks() == pa.Table.from_batches(Part(start_ns).of(rows.to_batches())).combine_chunks()
    if start_s == 1200:
        assert source.skipped(start_ns) == sum(row[2] for row in RATES if row[1] < 1200)
        assert part.taken + part.left_out == 60


def test_seeds_differ_and_clients_do_not_shift_each_other(tmp_path: Path) -> None:
    table = drawn(profile(tmp_path))
    assert drawn(profile(tmp_path)) == table
    assert drawn(profile(tmp_path), seed=2)["arrival_ns"] != table["arrival_ns"]
    fewer = drawn(profile(tmp_path, [row for row in RATES if row[0] != 2]))
    assert of_client(fewer, 0) == of_client(table, 0)


@pytest.mark.parametrize(
    ("rates", "lengths", "words"),
    [
        ([(0, 0, 1.5, "Gamma", 1.0)], LENGTHS, "row 1: a rate that is no whole number of requests"),
        ([(0, 0, -1, "Gamma", 1.0)], LENGTHS, "row 1: a rate below zero"),
        ([(0, 7, 1, "Gamma", 1.0)], LENGTHS, "row 1: a window that does not begin at a multiple of 600 s"),
        ([(0, 0, 1, "Pareto", 1.0)], LENGTHS, "row 1: a law of gaps that is not one of Gamma, Weibull"),
        ([(0, 0, 1, "Gamma", 0.0)], LENGTHS, "row 1: a shape of gaps that is not above zero"),
        ([(0, 0, 0, "Gamma", 1.0)], LENGTHS, "no client has any request"),
        ([(0, 0, 1, "Gamma", 1.0), (0, 0, 2, "Gamma", 1.0)], LENGTHS, "row 2: a client that has this window already"),
        (RATES, LENGTHS[:2], "no lengths of output_tokens; it has input_tokens"),
        (RATES, [(0, 0, "text_tokens", 1, 1.0)], "no lengths of input_tokens and output_tokens; it has text_tokens"),
        (RATES, [*LENGTHS[:4], (0, 1, "input_tokens", 1, 1.0)], "window 1: no output_tokens of any client"),
        (RATES, [*LENGTHS[:4], (0, 0, "input_tokens", 1, math.nan)], "a probability that is not zero or more"),
    ],
)
def test_bad_profiles_are_refused(tmp_path: Path, rates: list[Any], lengths: list[Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        open_trace(profile(tmp_path, rates, lengths), "servegen")


def test_files_that_are_no_profile_are_refused(tmp_path: Path) -> None:
    path = profile(tmp_path)
    with pytest.raises(InputError, match=r"X\.trace\.parquet, with X\.dataset\.parquet beside it"):
        open_trace(tmp_path / "small.dataset.parquet", "servegen")
    pq.write_table(pa.table({"a": [1]}), path)
    with pytest.raises(InputError, match="not a file of a ServeGen profile"):
        open_trace(path, "servegen")
    path = profile(tmp_path)
    (tmp_path / "small.dataset.parquet").unlink()
    with pytest.raises(InputError, match=r"small\.dataset\.parquet: no such file"):
        open_trace(path, "servegen")


@pytest.mark.skipif(not DATA.is_dir(), reason="needs the ServeGen profiles in ../shared/data/servegen")
@pytest.mark.parametrize(
    ("name", "requests", "lacking"),
    [("language.m-large", 236_892_826, "37%"), ("reason.deepseek-r1", 1_383_669, None)],
)
def test_published_profiles_are_read_whole(name: str, requests: int, lacking: str | None) -> None:
    path = DATA / f"{name}.trace.parquet"
    source = ServeGenSource(path, 3)
    assert source.requests == requests
    assert [lacking in note for note in source.notes if lacking] == [True] * bool(lacking)
    table = pq.read_table(path)
    last = int(table["timestamp"].to_numpy().max())
    of_last = table.filter(pa.compute.equal(table["timestamp"], last))
    batches = list(open_trace(path, "servegen", seed=3).batches(last * NS_PER_S))
    assert sum(batch.num_rows for batch in batches) == round(of_last["rate"].to_numpy().sum() * 600)


def test_a_part_is_converted_by_the_command_line(tmp_path: Path) -> None:
    path, out = profile(tmp_path), tmp_path / "out.parquet"
    words = ["convert", str(path), "--from", "servegen", "--out", str(out)]
    part = ["--start", "5 min", "--duration", "20 min", "--seed", "1"]
    result = CliRunner().invoke(trace, [*words, *part])
    assert result.exit_code == 0
    assert "1 of 3 clients, 31% of the requests" in result.stderr
    written = open_trace(out)
    expected = pa.Table.from_batches(Part(300 * NS_PER_S, 1200 * NS_PER_S).of(drawn(path).to_batches()))
    assert pa.Table.from_batches(written.batches()).combine_chunks() == expected.combine_chunks()
    assert written.origin["command"].endswith("--start '5 min' --duration '20 min' --seed 1")
    assert "sha256 of small.dataset.parquet" in written.origin
    refused = CliRunner().invoke(trace, ["convert", str(path), "--from", "azure", "--out", str(out), "--seed", "1"])
    assert isinstance(refused.exception, InputError)
    assert "--seed is only for --from servegen" in str(refused.exception)
