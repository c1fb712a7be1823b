"""Each text format from a few lines: values to the nanosecond, bad rows with their lines and reasons."""

import gzip
from pathlib import Path

import pyarrow as pa
import pytest

from simulator.errors import InputError
from simulator.workload.schema import BATCH_ROWS, OPTIONAL, SCHEMA
from simulator.workload.trace import FORMATS, Trace, open_trace

DATA = Path(__file__).parents[3] / "shared" / "data"
AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\r\n"
BURST = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
BURST_2 = "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type\n"


def opened(tmp_path: Path, text: str, form: str, **options: object) -> Trace:
    path = tmp_path / "source.txt"
    path.write_bytes(text.encode())
    return open_trace(path, form, **options)  # type: ignore[arg-type]


def rows(trace: Trace) -> list[dict[str, object]]:
    return pa.Table.from_batches(trace.batches(), SCHEMA).to_pylist()


def times(trace: Trace) -> list[object]:
    return [row["arrival_ns"] for row in rows(trace)]


def test_azure_2023_is_exact_to_its_100_ns_digits(tmp_path: Path) -> None:
    text = AZURE + "2023-11-16 18:15:46.6805900,374,44\r\n2023-11-16 18:15:50.9951690,396,109\r\n"
    text += "2023-11-16 18:16:00.0000001,1,1"
    trace = opened(tmp_path, text, "azure")
    none = dict.fromkeys(OPTIONAL)
    assert rows(trace) == [
        {"arrival_ns": 0, "prompt_tokens": 374, "output_tokens": 44, **none},
        {"arrival_ns": 4_314_579_000, "prompt_tokens": 396, "output_tokens": 109, **none},
        {"arrival_ns": 13_319_410_100, "prompt_tokens": 1, "output_tokens": 1, **none},
    ]
    assert (trace.report.rows_read, trace.report.bad, trace.columns_present) == (3, {}, ())


def test_azure_2024_has_offsets_and_times_without_a_fraction(tmp_path: Path) -> None:
    text = (
        AZURE + "2024-05-10 23:59:59.999999+00:00,1,2\n2024-05-11 00:00:10+00:00,3,4\n2024-05-11T02:00:10.5+02:00,5,6\n"
    )
    assert times(opened(tmp_path, text, "azure")) == [0, 10_000_001_000, 10_500_001_000]


def test_burstgpt_without_sessions_counts_failed_requests(tmp_path: Path) -> None:
    text = (
        BURST
        + "5,ChatGPT,472,18,490,Conversation log\n45,GPT-4,1087,0,1087,API log\n118.25,GPT-4,417,276,693,API log\n"
    )
    trace = opened(tmp_path, text, "burstgpt")
    assert [(r["arrival_ns"], r["model"], r["session"]) for r in rows(trace)] == [
        (0, "ChatGPT", None),
        (113_250_000_000, "GPT-4", None),
    ]
    assert trace.columns_present == ("model",)
    assert trace.report.rows_read == 3
    assert trace.report.reasons() == ["1 row: Response tokens: no output tokens (line 3)"]


def test_burstgpt_with_sessions_keeps_them(tmp_path: Path) -> None:
    text = (
        BURST_2 + "19440110.0,1722ac82,43,GPT-4,906,446,1352,Conversation log\n19440161.0,,2,ChatGPT,36,29,65,API log\n"
    )
    trace = opened(tmp_path, text, "burstgpt")
    assert [(r["arrival_ns"], r["session"]) for r in rows(trace)] == [(0, "1722ac82"), (51_000_000_000, None)]
    assert trace.columns_present == ("session", "model")


def test_mooncake_keeps_block_hashes_and_their_size(tmp_path: Path) -> None:
    text = '{"timestamp": 27482, "input_length": 513, "output_length": 52, "hash_ids": [46, 47]}\n\n'
    text += '{"timestamp": 27482.25, "input_length": 512, "output_length": 7, "hash_ids": [46]}\n'
    trace = opened(tmp_path, text, "mooncake")
    assert [(r["arrival_ns"], r["prompt_tokens"], r["prefix_hashes"]) for r in rows(trace)] == [
        (0, 513, [46, 47]),
        (250_000, 512, [46]),
    ]
    assert (trace.prefix_block_tokens, trace.columns_present) == (512, ("prefix_hashes",))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (
            '{"timestamp": 1, "input_length": 513, "output_length": 5, "hash_ids": [1]}',
            "hash_ids: not one hash per block",
        ),
        ('{"timestamp": 1, "input_length": 5, "output_length": 5}', "hash_ids: missing"),
        ('{"timestamp": NaN, "input_length": 5, "output_length": 5, "hash_ids": [1]}', "not JSON"),
        ('{"timestamp": 1, "input_length": true, "output_length": 5, "hash_ids": [1]}', "input_length: not a whole"),
        ('{"timestamp": 1, "input_length": 5.5, "output_length": 5, "hash_ids": [1]}', "input_length: not a whole"),
        ('{"timestamp": "1", "input_length": 5, "output_length": 5, "hash_ids": [1]}', "timestamp: not a number"),
        ('{"timestamp": -1, "input_length": 5, "output_length": 5, "hash_ids": [1]}', "timestamp: negative"),
        ('{"timestamp": 1, "input_length": 5, "output_length": 5, "hash_ids": [1.0]}', "hash_ids: not a list of whole"),
        ('{"timestamp": 1, "input_length": 5, "output_length": 5, "hash_ids": [9223372036854775808]}', "out of range"),
        ('{"timestamp": 1e400, "input_length": 5, "output_length": 5, "hash_ids": [1]}', "timestamp: "),
        ("[1, 2]", "not a JSON object"),
        ("[" * 100_000, "not JSON"),
        ('{"timestamp": 1, "input_', "not JSON"),
    ],
)
def test_mooncake_bad_rows_are_counted_and_the_rest_is_read(tmp_path: Path, line: str, reason: str) -> None:
    good = '{"timestamp": 0, "input_length": 5, "output_length": 5, "hash_ids": [1]}\n'
    trace = opened(tmp_path, good + line + "\n" + good, "mooncake")
    assert len(rows(trace)) == 2
    (found,) = trace.report.bad.items()
    assert reason in found[0]
    assert found[1].first_lines == [2]
    with pytest.raises(InputError, match=r"source\.txt:2: "):
        rows(opened(tmp_path, good + line, "mooncake", strict=True))


MAPPING = {
    "arrival": {"column": "t", "unit": "s"},
    "prompt_tokens": "in",
    "output_tokens": "out",
    "session": "who",
    "turn": "n",
    "tenant": "team",
}


def test_a_plain_csv_is_read_through_its_mapping(tmp_path: Path) -> None:
    text = '\ufeffnote,out,who,n,in,t,team\n"a ""b"", c",7,s1,0,10,1.5,x\nd,8.0,,,11,2.000000001,\n'
    trace = opened(tmp_path, text, "csv", mapping=MAPPING)
    assert [tuple(row.values())[:8] for row in rows(trace)] == [
        (0, 10, 7, "s1", 0, None, None, "x"),
        (500_000_001, 11, 8, None, None, None, None, None),
    ]
    assert trace.columns_present == ("session", "turn", "tenant")


def test_a_plain_csv_says_what_callers_want(tmp_path: Path) -> None:
    roles = {"priority": "p", "samples": "k", "predicted_tokens": "guess", "cancel": "left"}
    text = "t,in,out,p,k,guess,left\n1,10,7,-3,4,9,0.25\n2,10,7,,,,\n"
    plain = {"arrival": {"column": "t", "unit": "s"}, "prompt_tokens": "in", "output_tokens": "out"}
    trace = opened(tmp_path, text, "csv", mapping=plain | roles)
    names = ("priority", "samples", "predicted_tokens", "cancel_ns")
    assert [tuple(row[name] for name in names) for row in rows(trace)] == [(-3, 4, 9, 250_000_000), (None,) * 4]
    assert trace.columns_present == names
    bad = "t,in,out,p,k,guess,left\n1,10,7,,0,,\n1,10,7,x,,,\n1,10,7,,,0,\n1,10,7,,,,-1\n1,1,1,,,,\n"
    trace = opened(tmp_path, bad, "csv", mapping=plain | roles)
    assert len(rows(trace)) == 1
    assert sorted(trace.report.bad) == [
        "guess: no predicted tokens",
        "k: no sample",
        "left: negative",
        "p: not a number",
    ]


@pytest.mark.parametrize(
    ("unit", "second", "expected"),
    [
        ("s", "1.123456789", 1_123_456_789),
        ("ms", "1.5", 1_500_000),
        ("us", "0.001", 1),
        ("ns", "17", 17),
        ("s", "1e-9", 1),
        ("s", "0.0000000005", 0),
        ("s", "0.0000000015", 2),
        ("s", "9223372036", 9_223_372_036_000_000_000),
    ],
)
def test_units_of_arrival(tmp_path: Path, unit: str, second: str, expected: int) -> None:
    mapping = {"arrival": {"column": "t", "unit": unit}, "prompt_tokens": "a", "output_tokens": "b"}
    assert times(opened(tmp_path, f"t,a,b\n0,1,1\n{second},1,1\n", "csv", mapping=mapping)) == [0, expected]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("1,x,5", "a: not a number"),
        ("1,,5", "a: empty"),
        ("1,nan,5", "a: not a number"),
        ("1,1.5,5", "a: not a whole number"),
        ("1,-3,5", "a: negative"),
        ("1,0,5", "a: no prompt tokens"),
        ("1,5,0", "b: no output tokens"),
        ("1,2147483648,5", "a: out of range"),
        ("1," + "9" * 5000 + ",5", "a: not a number"),
        ("nan,1,5", "t: not a number"),
        ("inf,1,5", "t: not a number"),
        ("-1,1,5", "t: negative"),
        ("1_0,1,5", "t: not a number"),
        ("99999999999,1,5", "t: out of range"),
        ("1,1", "2 columns in the place of 3"),
        ("1,1,1,1", "4 columns in the place of 3"),
    ],
)
def test_bad_csv_rows_are_counted_or_refused(tmp_path: Path, row: str, reason: str) -> None:
    mapping = {"arrival": {"column": "t", "unit": "s"}, "prompt_tokens": "a", "output_tokens": "b"}
    text = f't,a,b\n0,1,1\n\n{row}\n"2",1,1\n'
    trace = opened(tmp_path, text, "csv", mapping=mapping)
    assert times(trace) == [0, 2_000_000_000]
    assert trace.report.rows_read == 3
    assert {key: bad.first_lines for key, bad in trace.report.bad.items()} == {reason: [4]}
    with pytest.raises(InputError, match=r"source\.txt:4: ") as caught:
        times(opened(tmp_path, text, "csv", mapping=mapping, strict=True))
    assert reason.split(": ")[-1] in str(caught.value)


def test_lines_are_physical_even_after_a_line_break_in_quotes(tmp_path: Path) -> None:
    mapping = {"arrival": {"column": "t", "unit": "s"}, "prompt_tokens": "a", "output_tokens": "b"}
    text = 't,a,b,note\n0,1,1,"two\nlines"\n1,0,1,x\n2,1,0,"three\n\nlines"\n3,0,1,x\n'
    trace = opened(tmp_path, text, "csv", mapping=mapping)
    assert times(trace) == [0]
    assert {key: bad.first_lines for key, bad in trace.report.bad.items()} == {
        "a: no prompt tokens": [4, 8],
        "b: no output tokens": [5],
    }


def test_only_the_first_five_lines_of_a_reason_are_kept(tmp_path: Path) -> None:
    trace = opened(tmp_path, AZURE + "2024-05-10 00:00:00,1,1\n" + "2024-05-10 00:00:00,0,1\n" * 1234, "azure")
    rows(trace)
    assert trace.report.bad_rows == 1234
    assert trace.report.reasons() == ["1,234 rows: ContextTokens: no prompt tokens (lines 3, 4, 5, 6, 7, ...)"]


def test_many_batches_lose_no_row_and_can_be_read_twice(tmp_path: Path) -> None:
    count = 2 * BATCH_ROWS + 777
    body = "".join(f"{second},{1 + second % 1000},1\n" for second in range(count))
    mapping = {"arrival": {"column": "t", "unit": "ms"}, "prompt_tokens": "a", "output_tokens": "b"}
    trace = opened(tmp_path, "t,a,b\n" + body, "csv", mapping=mapping)
    batches = list(trace.batches())
    assert [batch.num_rows for batch in batches] == [BATCH_ROWS, BATCH_ROWS, 777]
    table = pa.Table.from_batches(batches)
    assert table["arrival_ns"].to_pylist() == [ms * 10**6 for ms in range(count)]
    assert table["prompt_tokens"].to_pylist() == [1 + ms % 1000 for ms in range(count)]
    assert sum(batch.num_rows for batch in trace.batches()) == trace.report.rows_read == count


def test_gzip_is_known_by_its_content(tmp_path: Path) -> None:
    path = tmp_path / "azure.csv"
    path.write_bytes(gzip.compress((AZURE + "2023-11-16 18:15:46.6805900,374,44\n").encode()))
    assert len(rows(open_trace(path, "azure"))) == 1


def test_equal_times_are_in_order(tmp_path: Path) -> None:
    assert times(opened(tmp_path, AZURE + "2024-05-10 00:00:00,1,1\n" * 3, "azure")) == [0, 0, 0]


def test_the_public_azure_conversation_trace() -> None:
    path = DATA / "azure-llm-2023" / "AzureLLMInferenceTrace_conv.csv.gz"
    if not path.exists():
        pytest.skip("the public Azure trace is not on this machine")
    trace = open_trace(path, "azure", strict=True)
    table = pa.Table.from_batches(trace.batches())
    assert table.num_rows == trace.report.rows_read == 19_366
    assert table["arrival_ns"][-1].as_py() == 3_501_721_937_000
    assert sum(table["prompt_tokens"].to_pylist()) == 22_361_870
    assert sum(table["output_tokens"].to_pylist()) == 4_088_665


def test_the_public_mooncake_conversation_trace() -> None:
    path = DATA / "mooncake" / "conversation_trace.jsonl.gz"
    if not path.exists():
        pytest.skip("the public Mooncake trace is not on this machine")
    table = pa.Table.from_batches(open_trace(path, "mooncake", strict=True).batches())
    assert table.num_rows == 12_031
    assert table["arrival_ns"][-1].as_py() == 3_536_999_000_000
    assert len(table["prefix_hashes"].combine_chunks().flatten()) == 288_500


def test_the_registry_names_every_format() -> None:
    assert sorted(FORMATS) == ["azure", "burstgpt", "canonical", "csv", "mooncake", "servegen"]
