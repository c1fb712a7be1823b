"""The page of a sweep: intervals and frontiers are the textbook ones, every point is in it, failed ones say why."""

import itertools
import json
import re

import numpy as np
import pandas as pd
import pytest

from simulator.report.page import sweep
from simulator.report.page.html import Page, render
from simulator.report.page.points import places_of, value_text

AXES = {
    "workload.arrivals.poisson.rate": [20, 40, 60],
    "serving.router": ["least_loaded", "<b>x</b>"],
    "seed": [1, 2, 3],
}


def points() -> pd.DataFrame:
    draw = np.random.default_rng(1)
    rows = []
    for number, (rate, router, seed) in enumerate(itertools.product(*AXES.values())):
        failed = number == 4
        metrics = {
            "goodput": 1 - rate / 200 + draw.normal() / 100,
            "ttft.p99": rate / 100,
            "tpot.mean": 0.01 + rate / 5000,
            "throughput.output_tokens_per_s_per_device": rate * (2 if router == "least_loaded" else 3),
            "price.dollars_per_million_output_tokens": 10 / rate,
        }
        rows.append(
            {
                "point": f"p{number}",
                **dict(zip(AXES, (rate, router, seed), strict=True)),
                "status": "failed" if failed else "done",
                "error": "no <i>room</i>" if failed else None,
                **{name: np.nan if failed else value for name, value in metrics.items()},
                "fct.p99": np.nan,
            }
        )
    return pd.DataFrame(rows)


def page_of(frame: pd.DataFrame, axes: dict) -> str:
    return render(Page("s", "", "", (), sweep.cards(frame, axes), sweep.sections(frame, axes)))


def charts_of(page: str) -> list[dict]:
    return json.loads(re.search(r'<script type="application/json" id="charts">(.*?)</script>', page, re.DOTALL)[1])


def test_lines_are_means_over_seeds() -> None:
    frame = points()
    page = page_of(frame, AXES)
    first = charts_of(page)[0]
    shown = [trace for trace in first["data"] if trace["visible"] and trace.get("name")]
    assert [trace["name"] for trace in shown] == ["serving.router least_loaded", "serving.router &lt;b&gt;x&lt;/b&gt;"]
    done = frame[frame["status"] == "done"]
    for trace, router in zip(shown, AXES["serving.router"], strict=True):
        rows = done[done["serving.router"] == router]
        means = rows.groupby("workload.arrivals.poisson.rate")["goodput"].mean()
        assert trace["x"] == list(means.index)
        assert trace["y"] == pytest.approx(list(means), rel=1e-5)
    heat = charts_of(page)[2]["data"][0]
    expected = done.groupby(["serving.router", "workload.arrivals.poisson.rate"])["goodput"].mean()
    for row, router in zip(heat["z"], AXES["serving.router"], strict=True):
        assert row == pytest.approx([expected[router, rate] for rate in (20, 40, 60)], rel=1e-5)
    assert heat["x"] == ["20", "40", "60"]


def test_every_metric_can_be_chosen_and_none_is_empty() -> None:
    import plotly.graph_objects as go

    page = page_of(points(), AXES)
    charts = charts_of(page)
    for number, text in re.findall(r'<select data-chart="(\d+)"[^>]*>(.*?)</select>', page):
        options = re.findall(r'data-traces="(.*?)" data-axis="(.*?)">(.*?)</option>', text)
        assert len(options) == 5  # fct.p99 has no value
        groups = [json.loads(traces) for traces, _, _ in options]
        assert sorted(itertools.chain(*groups)) == list(range(len(charts[int(number)]["data"])))
        assert all(groups)
    for chart in charts:
        go.Figure(chart)


def test_all_points_and_the_errors_of_failed_ones_are_there() -> None:
    page = page_of(points(), AXES)
    for number in range(18):
        assert f">p{number}</td>" in page
    assert "no &lt;i&gt;room&lt;/i&gt;" in page
    assert "<i>room" not in page
    assert page == page_of(points(), AXES)


def test_what_is_not_there_is_said() -> None:
    frame = points()
    seeds = frame[(frame["workload.arrivals.poisson.rate"] == 60) & (frame["serving.router"] == "least_loaded")]
    page = page_of(seeds, {"seed": [1, 2, 3]})
    assert "nothing but the seed was varied" in page
    page = page_of(frame.drop(columns=["price.dollars_per_million_output_tokens"]), AXES)
    assert "no point has price.dollars_per_million_output_tokens." in page
    failed = frame.assign(status="failed")
    assert "no point is done." in page_of(failed, AXES)


def test_axes_of_one_unit_are_of_numbers() -> None:
    rates = places_of("rate", ["100 / s", "20 / s", "20 / s"])
    assert (rates.texts, rates.at, rates.unit) == (("20 / s", "100 / s"), {"20 / s": 20, "100 / s": 100}, "/ s")
    mixed = places_of("ttft", ["2 s", "500 ms"])
    assert (mixed.texts, mixed.numeric) == (("2 s", "500 ms"), False)
    assert [value_text(value) for value in (4, 4.0, np.float64(0.5), "4 s", {"tensor": 4}, [1, None], True)] == [
        "4", "4", "0.5", "4 s", "{tensor: 4}", "[1, null]", "true",
    ]  # fmt: skip


def test_samples_are_points_and_not_lines() -> None:
    draw = np.random.default_rng(2)
    frame = pd.DataFrame(
        {"point": range(30), "a": draw.random(30), "b": draw.random(30), "status": "done", "goodput": draw.random(30)}
    ).assign(error=None)
    charts = charts_of(page_of(frame, {"a": list(frame["a"]), "b": list(frame["b"])}))
    assert len(charts) == 2  # one for each axis: a map of 900 cells would be empty
    for chart, axis in zip(charts, "ab", strict=True):
        (trace,) = chart["data"]
        assert trace["mode"] == "markers"
        assert trace["x"] == pytest.approx(list(frame[axis]), rel=1e-5)
        assert trace["y"] == pytest.approx(list(frame["goodput"]), rel=1e-5)


def test_the_frontier_is_that_of_the_means() -> None:
    frame = points()
    (chart,) = [
        c for c in charts_of(page_of(frame, AXES)) if c["layout"]["xaxis"]["title"]["text"].startswith("1 / tpot")
    ]
    settings, best = chart["data"]
    done = frame[frame["status"] == "done"]
    paths = ["workload.arrivals.poisson.rate", "serving.router"]
    means = done.groupby(paths, sort=False)[["tpot.mean", "throughput.output_tokens_per_s_per_device"]].mean()
    assert settings["x"] == pytest.approx(list(1 / means["tpot.mean"]), rel=1e-5)
    assert settings["y"] == pytest.approx(list(means["throughput.output_tokens_per_s_per_device"]), rel=1e-5)
    everyone = list(zip(settings["x"], settings["y"], strict=True))
    unbeaten = [a for a in everyone if not any(b[0] >= a[0] and b[1] >= a[1] and b != a for b in everyone)]
    assert list(zip(best["x"], best["y"], strict=True)) == sorted(unbeaten)
