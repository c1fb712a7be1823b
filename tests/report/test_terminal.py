"""The terminal's report: the figures are there, it fits 80 columns, and it survives empty runs and poor terminals."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from simulator.report.terminal import print_summary
from simulator.results.histogram import LogHistogram
from simulator.results.metrics import STATISTICS
from simulator.results.summary import summarise
from simulator.results.tables import REQUESTS, TableWriter
from simulator.scenario.expectation import Expectation

MANIFEST = {"scenario": "quick[red]start", "model": "llama-3-70b", "topology": "clos-h100", "seed": 7}
MANIFEST |= {"status": "complete", "wall_s": 2.0, "events": 800_000}


def latency(count, *seconds):
    return {"count": count, **dict(zip(STATISTICS, seconds, strict=True))}


def pool(instances, prefill, decode):
    busy = prefill + decode
    shares = {"busy": busy, "prefill": prefill, "decode": decode, "idle": 1 - busy, "kv_mean": 0.0004, "kv_max": 0.9996}
    return {"instances": instances, **shares}


@pytest.fixture
def summary():
    link = {"link": 3, "source": "node-117/nic-7", "target": "leaf-7", "tier": "nic-leaf", "mean_utilisation": 0.25}
    return {
        "simulated_s": 3000.0,
        "devices": 96,
        "requests": {"total": 1000, "finished": 990, "rejected": 6, "unfinished": 4},
        "goodput": {
            "fraction": 0.9731,
            "requests_per_s": 0.3244,
            "slo": {"ttft": {"limit_s": 2.0, "attained": 0.985}, "tpot": {"limit_s": 0.05, "attained": 1.0}},
        },
        "ttft": latency(990, 0.2134, 0.182, 0.4123, 0.713, 1.93, 12.34),
        "tpot": latency(980, 0.0213, 0.021, 0.0312, 0.034, 0.041, 0.0931),
        "itl": latency(400_000, 0.0201, 0.0199, 0.031, 0.034, 0.0421, 0.512),
        "e2e": latency(990, 7.3, 6.1, 14.1, 17.2, 23.4, 131.2),
        "queue": latency(990, 0.0001, 0.0, 0.0000312, 0.0023, 0.1, 7200.0),
        "kv_transfer": latency(990, 0.0021, 0.0019, 0.0031, 0.0041, 0.0081, 0.031),
        "kv_transfer_share": 0.000003,
        "kv_transfer_bytes": 10**12,
        "throughput": {
            "requests_per_s": 0.33,
            "prompt_tokens_per_s": 5612.1,
            "output_tokens_per_s": 1183.2,
            "output_tokens_per_s_per_device": 12.325,
        },
        "utilisation": {"prefill": pool(4, 0.5, 0.0), "decode": pool(8, 0.02, 0.85)},
        "links": {
            "used": 9,
            "utilisation_max": 0.25,
            "hottest": [{**link, "busy_fraction": 0.5, "peak_utilisation": 1.0}],
        },
        "preemptions": 3,
        "retries": 0,
    }


def printed(summary, manifest=MANIFEST, warnings=(), encoding="utf-8", width=80, **more):
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding, newline="\n")
    print_summary(summary, manifest, warnings, Console(file=stream, width=width), **more)
    stream.flush()
    return raw.getvalue().decode(encoding)


def row(text, name):
    (line,) = (line for line in text.splitlines() if line.strip().startswith(name))
    return " ".join(line.split())


def test_the_figures_are_there(summary):
    text = printed(summary)
    assert text.splitlines()[:3] == [
        "quick[red]start · seed 7",  # a user's text is never markup
        "llama-3-70b on clos-h100 · 96 devices leased",
        "50.0 min simulated in 2 s · 1,500x real time · 400,000 events/s",
    ]
    assert "1,000 arrived · 990 finished · 6 rejected · 4 unfinished · 3 preemptions" in text
    assert "10 left out" in text
    assert row(text, "TTFT  ") == "TTFT 213 ms 182 ms 412 ms 713 ms 1.93 s 12.3 s"
    assert row(text, "Queue") == "Queue 100 us 0 s 31.2 us 2.3 ms 100 ms 2 h 00 min"
    assert "98.5 % ✗ missed by 15 requests" in row(text, "TTFT <= 2 s")
    assert "✓ met by every request" in row(text, "TPOT <= 50 ms")
    assert "97.3 % 0.324 requests/s" in row(text, "all of them")
    assert "1,183 output tokens/s · 12.3 per device" in text
    assert "J per output token" not in text
    energy = {"joules": 7.2e6, "kwh": 2.0, "mean_w": 48_000.0, "joules_per_output_token": 2.5, "pools": {}}
    assert "500 W per device · 2.5 J per output token · 2 kWh" in printed(summary | {"energy": energy})
    assert row(text, "prefill  ") == f"prefill {'█' * 12}{'░' * 12} 50.0 % 4 0.04 % > 99.9 %"
    assert row(text, "node-117") == "node-117/nic-7 → leaf-7 nic-leaf 25.0 % 50.0 % 100 %"
    assert "KV transfer is < 0.001 % of end-to-end time" in text


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1", "cp1252"])
def test_it_fits_eighty_columns_without_colour_in_any_encoding(summary, encoding):
    warnings = ["no effect: serving.decode.layout: " + "a long explanation " * 9]
    expectations = (Expectation("goodput", ">=", 0.95), Expectation("itl.p99", "<=", 1.0))
    text = printed(summary, warnings=warnings, encoding=encoding, expectations=expectations)
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) <= 80
    assert " ".join(text.split()).count("a long explanation") == 9  # wrapped, not cut
    assert ("✓" in text) == (encoding == "utf-8")


def test_expectations_say_by_how_much(summary):
    expectations = (Expectation("goodput", ">=", 0.95), Expectation("ttft.p99", "<=", 1.93 - 1e-9))
    text = printed(summary, expectations=(*expectations, Expectation("e2e.max", "<", 3.0)))
    assert "✓ goodput >= 0.95: passed with 0.9731" in text
    assert "✗ ttft.p99 <= 1929999999 ns: FAILED with 1.93 s" in text
    assert "✗ e2e.max < 3 s: FAILED with 131.2 s" in text


def test_the_folder_is_one_unbroken_line(summary):
    folder = Path("/a" * 70)
    assert printed(summary, folder=folder).splitlines()[-1] == f"Results  {folder}"


def test_a_run_cut_short_says_so(summary):
    assert "partial: cut short" in printed(summary, manifest={**MANIFEST, "status": "partial"}).splitlines()[0]


@pytest.mark.parametrize("slo", [{}, {"ttft": 5}])
def test_an_empty_run_has_a_report(tmp_path, slo):
    TableWriter(tmp_path, REQUESTS).close()
    empty = summarise(tmp_path, slo, LogHistogram(), 0, 0)
    text = printed(empty, manifest={}, expectations=(Expectation("ttft.p99", "<=", 1.0),))
    assert "no request finished" in text
    assert "ttft.p99 <= 1 s: FAILED with no value" in text
    assert "nan" not in text.lower()
    assert "None" not in text
    assert ("no objectives" in text) == (not slo)
