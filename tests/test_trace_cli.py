"""`simulate trace`: the commands end to end, what goes to stdout and stderr, and that a failure leaves no file."""

import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from click.testing import CliRunner, Result

from simulator.errors import InputError
from simulator.trace_cli import FORMAT_NAMES, UNIT_NAMES, trace
from simulator.workload.formats import ARRIVAL_UNITS
from simulator.workload.trace import FORMATS, open_trace

AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n2024-05-10 00:00:00,10,20\n2024-05-10 00:00:01,0,1\n"
LAWS = ["--arrivals", "poisson:rate=5 / s", "--prompt", "lognormal:median=700,sigma=0.9,max=8000",
        "--output", "constant:value=9"]  # fmt: skip


def run(*arguments: object) -> Result:
    return CliRunner().invoke(trace, [str(argument) for argument in arguments], catch_exceptions=True)


def table(path: Path) -> pa.Table:
    return pa.Table.from_batches(open_trace(path).batches())


def made(path: Path, requests: int = 500, seed: int = 3) -> Path:
    result = run("synthesize", "--requests", requests, *LAWS, "--seed", seed, "--out", path)
    assert result.exit_code == 0, result.output
    return path


def test_convert_reports_bad_rows_on_stderr_and_keeps_its_command(tmp_path: Path) -> None:
    source, out = tmp_path / "azure.csv", tmp_path / "out.parquet"
    source.write_text(AZURE)
    result = run("convert", source, "--from", "azure", "--out", out)
    assert result.exit_code == 0
    assert result.stdout == f"{out}: 1 requests\n"
    assert "left out 1 of 2 rows (50.00%)" in result.stderr
    assert "1 row: ContextTokens: no prompt tokens (line 3)" in result.stderr
    assert table(out).num_rows == 1
    assert open_trace(out).origin["command"] == f"simulate trace convert {source} --from azure --out {out}"


def test_convert_strict_refuses_and_leaves_nothing(tmp_path: Path) -> None:
    source, out = tmp_path / "azure.csv", tmp_path / "out.parquet"
    source.write_text(AZURE)
    result = run("convert", source, "--from", "azure", "--out", out, "--strict")
    assert isinstance(result.exception, InputError)
    assert str(result.exception) == f"{source}:3: ContextTokens: '0': no prompt tokens"
    assert [path.name for path in tmp_path.iterdir()] == ["azure.csv"]


def test_convert_a_plain_csv(tmp_path: Path) -> None:
    source, out = tmp_path / "plain.csv", tmp_path / "out.parquet"
    source.write_text("t,in,out,who\n1000,5,6,x\n1500,7,8,y\n")
    columns = [word for pair in ("arrival=t", "prompt_tokens=in", "output_tokens=out", "session=who")
               for word in ("--column", pair)]  # fmt: skip
    assert run("convert", source, "--from", "csv", "--out", out, *columns, "--arrival-unit", "ms").exit_code == 0
    assert table(out).to_pydict()["arrival_ns"] == [0, 500_000_000]
    assert table(out).to_pydict()["session"] == ["x", "y"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "needs the names of its columns"),
        (["--column", "arrival=t"], "--arrival-unit is needed"),
        (["--column", "arrival"], "not of the form role=column"),
        (["--column", "session=a", "--column", "session=b"], "given twice"),
        (["--arrival-unit", "s"], "only for --column arrival"),
        (["--column", "arrival=t", "--arrival-unit", "s"], "no column is named for 'prompt_tokens'"),
    ],
)
def test_convert_with_wrong_options(tmp_path: Path, options: list[str], message: str) -> None:
    source = tmp_path / "plain.csv"
    source.write_text("t,in,out\n1,5,6\n")
    result = run("convert", source, "--from", "csv", "--out", tmp_path / "out.parquet", *options)
    assert isinstance(result.exception, InputError)
    assert message in str(result.exception)
    assert not (tmp_path / "out.parquet").exists()


def test_show_prints_statistics_and_bars_in_80_columns(tmp_path: Path) -> None:
    path = made(tmp_path / "t.parquet")
    text = run("show", path).output
    for word in ("requests", "500", "mean rate", "prompt tokens", "output tokens", "arrivals, each", "█", "p99"):
        assert word in text
    assert max(len(line.rstrip()) for line in text.splitlines() if str(tmp_path) not in line) <= 80


def test_show_json_is_json(tmp_path: Path) -> None:
    record = json.loads(run("show", made(tmp_path / "t.parquet"), "--json").stdout)
    assert record["requests"] == sum(record["timeline"]) == 500
    assert record["output_tokens"]["p50"] == 9
    assert record["reuse_share"] is None
    assert record["provenance"]["seed"] == 3


def test_show_a_single_request(tmp_path: Path) -> None:
    result = run("show", made(tmp_path / "t.parquet", requests=1))
    assert result.exit_code == 0, result.output


def test_synthesize_is_the_same_again_and_its_command_says_how(tmp_path: Path) -> None:
    first, second = made(tmp_path / "a.parquet"), made(tmp_path / "b.parquet")
    assert table(first) == table(second) != table(made(tmp_path / "c.parquet", seed=4))
    before = first.read_bytes()
    assert made(first).read_bytes() == before
    command = open_trace(first).origin["command"]
    assert command.startswith("simulate trace synthesize --requests 500 --arrivals 'poisson:rate=5 / s' --prompt")


def test_sample_cuts_and_thins(tmp_path: Path) -> None:
    source, out = made(tmp_path / "t.parquet"), tmp_path / "s.parquet"
    assert run("sample", source, "--out", out, "--start", "10 s", "--duration", "20 s").exit_code == 0
    arrivals = [ns - 10 * 10**9 for ns in table(source)["arrival_ns"].to_pylist() if 10 * 10**9 <= ns < 30 * 10**9]
    assert table(out)["arrival_ns"].to_pylist() == arrivals
    assert run("sample", source, "--out", out, "--requests", "7").exit_code == 0
    assert table(out) == table(source).slice(0, 7)
    assert run("sample", source, "--out", out, "--fraction", "0.5", "--seed", "1").exit_code == 0
    assert 200 < table(out).num_rows < 300
    assert open_trace(out).origin["source_provenance"]["seed"] == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--start", "1 h"], "no requests to write"),
        (["--duration", "5"], "--duration: '5' has no unit"),
        (["--start", "5 GB"], "--start: "),
    ],
)
def test_sample_with_wrong_options_leaves_an_old_file(tmp_path: Path, options: list[str], message: str) -> None:
    source, out = made(tmp_path / "t.parquet"), made(tmp_path / "old.parquet", requests=5)
    before = out.read_bytes()
    result = run("sample", source, "--out", out, *options)
    assert isinstance(result.exception, InputError)
    assert message in str(result.exception)
    assert out.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["old.parquet", "t.parquet"]


@pytest.mark.parametrize(
    "arguments", [["sample", "x", "--out", "y", "--fraction", "0"], ["sample", "x", "--out", "y", "--requests", "0"],
                  ["synthesize", "--requests", "-1"], ["convert", "x", "--from", "excel", "--out", "y"]]
)  # fmt: skip
def test_values_out_of_range_are_usage_errors(arguments: list[str]) -> None:
    assert run(*arguments).exit_code == 2


def test_the_names_on_the_command_line_are_those_of_the_readers() -> None:
    assert sorted(FORMAT_NAMES) == sorted(FORMATS)
    assert UNIT_NAMES == ARRIVAL_UNITS


def test_help_imports_nothing_heavy() -> None:
    code = "import sys, simulator.trace_cli; print([m for m in ('numpy', 'pyarrow', 'rich') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
