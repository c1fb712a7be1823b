"""The summary against the same figures worked out row by row in fractions, and in the cases where there is nothing."""

import json
from fractions import Fraction
from math import ceil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.errors import InputError, InvariantError
from simulator.results import tables
from simulator.results.histogram import LogHistogram
from simulator.results.metrics import METRICS, lookup
from simulator.results.summary import summarise
from simulator.results.tables import INSTANCES, LINKS, REQUESTS, TableWriter

NAMES = [column.name for column in REQUESTS.columns]
BLANK = {
    **dict.fromkeys(NAMES, 0),
    **dict.fromkeys(("session", "turn", "prefill_instance", "decode_instance", "reason"), None),
    **dict.fromkeys(("queued_ns", "prefill_start_ns", "prefill_end_ns"), -1),
    **dict.fromkeys(("first_token_ns", "decode_start_ns", "finish_ns"), -1),
    "outcome": "unfinished",
}
SLO = {"ttft": 40, "tpot": 7, "e2e": 150}
GAP = st.integers(0, 60)


@st.composite
def requests(draw):
    row = {**BLANK, "arrival_ns": draw(st.integers(0, 10**15)), "prompt_tokens": draw(st.integers(1, 99))}
    row["outcome"] = draw(
        st.sampled_from(("finished", "finished", "finished", "rejected", "timed_out", "cancelled", "unfinished"))
    )
    row["preemptions"] = draw(st.integers(0, 2))
    row["output_tokens"] = draw(st.integers(1, 9))
    if row["outcome"] == "rejected":
        return row
    row["queued_ns"] = row["arrival_ns"] + draw(GAP)
    row["prefill_start_ns"] = row["queued_ns"] + draw(GAP)
    row["kv_transfer_bytes"] = draw(st.sampled_from((0, 8, 2**50)))
    row["kv_transfer_ns"] = draw(GAP)
    if row["outcome"] == "finished" or draw(st.booleans()):
        row["prefill_end_ns"] = row["prefill_start_ns"] + draw(GAP)
        row["first_token_ns"] = row["prefill_end_ns"] + draw(GAP)
        row["generated_tokens"] = row["output_tokens"]
    if row["outcome"] == "finished":
        row["finish_ns"] = row["first_token_ns"] + (draw(GAP) if row["output_tokens"] > 1 else 0)
    return row


def write(folder, table, rows):
    writer = TableWriter(folder, table)
    for row in rows:
        writer.append(tuple(row.values()) if isinstance(row, dict) else row)
    writer.close()


def summary_of(folder, rows, slo=SLO, itl=None, duration_ns=10**9, devices=4):
    write(folder, REQUESTS, rows)
    return summarise(folder, slo, itl or LogHistogram(), duration_ns, devices)


def expected_latency(values):
    ordered = sorted(values)
    if not ordered:
        return {"count": 0, **dict.fromkeys(("mean", "p50", "p90", "p95", "p99", "max"))}
    ranks = {f"p{p}": ordered[ceil(Fraction(p, 100) * len(ordered)) - 1] for p in (50, 90, 95, 99)}
    times = {"mean": float(Fraction(sum(ordered), len(ordered))), **ranks, "max": ordered[-1]}
    return {"count": len(ordered), **{name: pytest.approx(ns / 1e9, rel=1e-12) for name, ns in times.items()}}


@given(rows=st.lists(requests(), max_size=30), group=st.integers(1, 8))
@settings(max_examples=60, deadline=None)
def test_every_figure_is_that_of_the_rows(tmp_path_factory, rows, group):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "BATCH_ROWS", group)
        patch.setattr(tables, "ROW_GROUP_ROWS", group)
        summary = summary_of(tmp_path_factory.mktemp("s"), rows)
    done = [row for row in rows if row["outcome"] == "finished"]
    several = [row for row in done if row["generated_tokens"] > 1]
    per_token = [Fraction(r["finish_ns"] - r["first_token_ns"], r["generated_tokens"] - 1) for r in several]
    assert summary["ttft"] == expected_latency(r["first_token_ns"] - r["arrival_ns"] for r in done)
    assert summary["tpot"] == expected_latency(int(t + Fraction(1, 2)) for t in per_token)
    assert summary["e2e"] == expected_latency(r["finish_ns"] - r["arrival_ns"] for r in done)
    assert summary["queue"] == expected_latency(r["prefill_start_ns"] - r["queued_ns"] for r in done)
    assert summary["kv_transfer"] == expected_latency(r["kv_transfer_ns"] for r in done if r["kv_transfer_bytes"])

    met = {"ttft": 0, "tpot": 0, "e2e": 0}
    good = 0
    for r in done:
        gaps = max(r["generated_tokens"] - 1, 1)
        within = {
            "ttft": r["first_token_ns"] - r["arrival_ns"] <= SLO["ttft"],
            "tpot": Fraction(r["finish_ns"] - r["first_token_ns"], gaps) <= SLO["tpot"],
            "e2e": r["finish_ns"] - r["arrival_ns"] <= SLO["e2e"],
        }
        good += all(within.values())
        met = {name: met[name] + within[name] for name in met}
    assert summary["goodput"]["fraction"] == (good / len(rows) if rows else None)
    assert summary["goodput"]["requests_per_s"] == good
    for name, count in met.items():
        assert summary["goodput"]["slo"][name]["attained"] == (count / len(rows) if rows else None)
    counts = dict.fromkeys(("finished", "rejected", "timed_out", "cancelled", "unfinished"), 0)
    for row in rows:
        counts[row["outcome"]] += 1
    assert summary["requests"] == {"total": len(rows), **counts}
    assert summary["throughput"] == {
        "requests_per_s": len(done),
        "prompt_tokens_per_s": sum(r["prompt_tokens"] for r in rows if r["prefill_end_ns"] >= 0),
        "output_tokens_per_s": sum(r["generated_tokens"] for r in rows),
        "output_tokens_per_s_per_device": sum(r["generated_tokens"] for r in rows) / 4,
    }
    assert summary["preemptions"] == sum(r["preemptions"] for r in rows)
    assert summary["kv_transfer_bytes"] == sum(r["kv_transfer_bytes"] for r in rows)
    total = sum(r["finish_ns"] - r["arrival_ns"] for r in done)
    assert summary["kv_transfer_share"] == (sum(r["kv_transfer_ns"] for r in done) / total if total else None)


def test_nothing_at_all_is_null_and_never_nan(tmp_path):
    summary = summary_of(tmp_path, [], duration_ns=0, devices=0)
    json.dumps(summary, allow_nan=False)
    zero = {"total", "finished", "rejected", "timed_out", "cancelled", "unfinished", "preemptions", "simulated_s"}
    for metric in METRICS:
        assert lookup(summary, metric.name) == (0 if metric.name in zero else None), metric.name


def test_without_objectives_every_finished_request_is_good(tmp_path):
    row = {**BLANK, "outcome": "finished", "queued_ns": 0, "prefill_start_ns": 0, "first_token_ns": 5, "finish_ns": 5}
    summary = summary_of(tmp_path, [row, BLANK], slo={})
    assert summary["goodput"] == {"fraction": 0.5, "requests_per_s": 1.0, "slo": {}}


def test_gaps_between_tokens_come_from_the_histogram(tmp_path):
    itl = LogHistogram()
    itl.add(200, 99)
    itl.add(10**9)
    assert summary_of(tmp_path, [], itl=itl)["itl"] == {
        "count": 100,
        "mean": pytest.approx((99 * 200 + 10**9) / 100 / 1e9),
        **dict.fromkeys(("p50", "p90", "p95", "p99"), 200 / 1e9),
        "max": 1.0,
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [({"first_token_ns": -1}, "ttft"), ({"finish_ns": 1}, "e2e|tpot"), ({"outcome": "lost"}, "outcome")],
)
def test_rows_that_contradict_themselves_are_a_defect(tmp_path, change, message):
    row = {**BLANK, "outcome": "finished", "arrival_ns": 3, "queued_ns": 3, "prefill_start_ns": 3}
    row |= {"first_token_ns": 5, "finish_ns": 9, "generated_tokens": 2} | change
    with pytest.raises(InvariantError, match=message):
        summary_of(tmp_path, [row])


def instance(name, role, start, end, prefill, decode, kv, kv_max, kv_total):
    idle = end - start - prefill - decode
    return (name, role, start, end, "idle", prefill, decode, idle, 0.0, 0, 0.0, 0, kv, kv_max, kv_total, 0)


def test_pools_and_links(tmp_path):
    write(
        tmp_path,
        INSTANCES,
        [
            instance("p0", "prefill", 0, 10, 6, 0, 2.0, 4, 10),
            instance("d0", "decode", 0, 10, 1, 8, 5.0, 10, 10),
            instance("p0", "prefill", 10, 40, 0, 0, 0.0, 0, 10),
            instance("d1", "decode", 30, 40, 0, 0, 5.0, 5, 30),
        ],
    )
    moved = {1: (40, 0), 2: (0, 0), 3: (90, 0), 4: (90, 0), 5: (10, 0), 6: (0, 20), 7: (10, 20)}
    write(
        tmp_path,
        LINKS,
        [
            (i, "a", f"b{i}", "leaf", 100, flows, 1, engines, 5, 0.5, (flows + engines) / 100, 2.0 * flows)
            for i, (flows, engines) in moved.items()
        ],
    )
    summary = summary_of(tmp_path, [])
    assert list(summary["utilisation"]) == ["prefill", "decode"]
    assert summary["utilisation"]["prefill"] == {
        "instances": 1,
        "busy": 6 / 40,
        "prefill": 6 / 40,
        "decode": 0.0,
        "idle": 34 / 40,
        "kv_mean": 20 / 400,
        "kv_max": 0.4,
    }
    assert summary["utilisation"]["decode"] == {
        "instances": 0.5,
        "busy": 9 / 20,
        "prefill": 1 / 20,
        "decode": 8 / 20,
        "idle": 11 / 20,
        "kv_mean": 100 / 400,
        "kv_max": 1.0,
    }
    assert [link["link"] for link in summary["links"]["hottest"]] == [3, 4, 1, 7, 6]
    assert summary["links"]["hottest"][0]["peak_utilisation"] == 1.8
    assert (summary["links"]["used"], summary["links"]["utilisation_max"]) == (6, 0.9)
    assert lookup(summary, "utilisation.decode.kv_max") == 1.0
    assert lookup(summary, "utilisation.colocated.busy") is None
    assert lookup(summary, "link_utilisation_max") == 0.9


def test_metric_names_are_unique_and_an_unknown_one_has_a_neighbour():
    assert len({metric.name for metric in METRICS}) == len(METRICS)
    with pytest.raises(InputError, match=r"did you mean 'ttft\.p99'"):
        lookup({}, "ttft.p999")


def test_long_runs_do_not_overflow(tmp_path):
    year_ns = 365 * 86400 * 10**9
    row = {**BLANK, "outcome": "finished", "queued_ns": 0, "prefill_start_ns": 0, "first_token_ns": 10 * year_ns}
    row |= {"finish_ns": 290 * year_ns, "generated_tokens": 2}
    summary = summary_of(tmp_path, [row] * 4, slo={"tpot": 2**62}, duration_ns=year_ns)
    assert summary["e2e"]["mean"] == summary["e2e"]["max"] == 290 * year_ns / 1e9
    assert summary["goodput"]["fraction"] == 0.0  # 280 years are more than 2**62 ns
