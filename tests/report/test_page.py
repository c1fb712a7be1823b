"""`simulate report`: its figures are those of the rows, its text is only text, its bytes are equal, and it opens."""

import json
import re
import shutil
import subprocess
from fractions import Fraction
from math import ceil, nan
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.build.run import simulate as run_of
from simulator.errors import InputError
from simulator.report.page import html, instances, marks, requests, traffic
from simulator.report.page.charts import Axis, Line, lines, plain
from simulator.report.page.grid import Grid, cut, distribution, grid_over, quantiles_by_window
from simulator.report.page.links import fabric_figures, topology_of
from simulator.report.page.run_page import run_page
from simulator.results.folder import MARKER
from simulator.results.run import Run, load_run
from simulator.scenario.load import load

SECOND = 10**9
SERVING = ("workload.requests=400", "results.interval=2 s", "serving.decode.kv.blocks=1200")
NETWORK = """
schema: 1
description: Flows and collectives while a leaf is gone
topology: {preset: clos-h100, nodes: 4}
network: {collectives: h100-sxm}
traffic:
  on_dead_link: reroute
  pattern: {poisson: {flows: 300, load: 0.3, sizes: {pareto: {shape: 1.2, min: 10 kB, max: 10 MB}}}}
  collectives: [{run: {all_reduce: {bytes: 8 MiB}}, repeat: 3}]
faults: [{what: nic, name: node0/nic0, at: 100 us, repair: 200 us}]
"""


def nearest(values: list[int], share: str) -> int:
    """The textbook nearest rank: the smallest value with at least that share at or below it."""
    ordered = sorted(values)
    return ordered[max(1, ceil(Fraction(share) * len(ordered))) - 1]


@pytest.fixture(scope="module")
def serving(tmp_path_factory) -> Run:
    return run_of(load("quickstart", SERVING), out=tmp_path_factory.mktemp("runs") / "serving")


@pytest.fixture(scope="module")
def network(tmp_path_factory) -> Run:
    folder = tmp_path_factory.mktemp("network")
    (folder / "flows.yaml").write_text(NETWORK)
    return run_of(load(folder / "flows.yaml"), out=folder / "run")


def charts_of(page: str) -> list[dict]:
    return json.loads(re.search(r'<script type="application/json" id="charts">(.*?)</script>', page, re.DOTALL)[1])


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=3000))
def test_every_point_of_a_curve_is_on_the_distribution(values) -> None:
    found, shares = distribution(np.array(values, np.int64))
    assert len(found) <= 400
    assert shares[-1] == 1
    assert found[-1] == max(values)
    ordered = np.sort(values)
    for value, share in zip(found, shares, strict=True):
        assert np.searchsorted(ordered, value, "left") < share * len(values) - 1e-6
        assert share * len(values) - 1e-6 < np.searchsorted(ordered, value, "right")


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 50)), max_size=60))
def test_quantiles_by_window_are_the_textbook_ones(rows) -> None:
    windows, values = (np.array([row[at] for row in rows], np.int64) for at in (0, 1))
    found = quantiles_by_window(windows, values, (0.5, 0.9, 0.99), 5)
    for share, line in zip(("0.5", "0.9", "0.99"), found, strict=True):
        for window in range(5):
            own = [value for at, value in rows if at == window]
            assert np.isnan(line[window]) if not own else line[window] == nearest(own, share)


@given(st.lists(st.tuples(st.integers(0, 99), st.integers(0, 99)), min_size=1), st.integers(1, 40))
def test_cut_intervals_tile_what_was_cut(pairs, length) -> None:
    start = np.array([min(pair) for pair in pairs], np.int64)
    end = np.array([max(pair) for pair in pairs], np.int64)
    grid = Grid(length, max(1, round(100 / length)), 100)  # the last window longer or shorter than the others
    pieces = cut(start, end, grid)
    whole = np.bincount(pieces.row, weights=pieces.length_ns, minlength=len(pairs))
    assert whole.tolist() == (end - start).tolist()
    assert set(pieces.row.tolist()) == set(range(len(pairs)))
    for row, window, piece in zip(pieces.row, pieces.window, pieces.length_ns, strict=True):
        inside = min(end[row], grid.starts_ns[window] + grid.lengths_ns[window]) - max(start[row], window * length)
        assert piece == max(inside, 0)


@pytest.mark.parametrize("end_ns", [1, 999, 10**9, 133_690_577_835, 86_400 * 10**9])
def test_a_grid_covers_the_run_in_few_even_windows(end_ns) -> None:
    grid = grid_over(end_ns, 20, 7)
    assert grid.length_ns % 7 == 0
    assert 1 <= grid.count <= 20
    assert grid.lengths_ns.sum() == end_ns
    assert (grid.lengths_ns[:-1] == grid.length_ns).all()
    assert grid.count == 1 or 0.5 * grid.length_ns <= grid.lengths_ns[-1] < 1.5 * grid.length_ns
    assert (grid.window_of(np.array([0, end_ns])) == [0, grid.count - 1]).all()


def test_numbers_keep_six_digits() -> None:
    assert plain(np.array([0.0, 1 / 3, 123456789.0, 2e-9, np.nan, -5.0])) == [0, 0.333333, 123457000, 2e-9, None, -5]


def test_latencies_are_those_of_the_rows(serving: Run) -> None:
    figures = requests.request_figures(serving)
    frame = pd.read_parquet(serving.path / "requests.parquet")
    done = frame[frame["outcome"] == "finished"].astype({"finish_ns": "int64", "first_token_ns": "int64"})
    raw = {
        "ttft": done["first_token_ns"] - done["arrival_ns"],
        "e2e": done["finish_ns"] - done["arrival_ns"],
    }
    for name, values in raw.items():
        found, shares = figures.curves[name]
        assert found.tolist() == sorted(values)  # 400 rows: all of them
        assert shares.tolist() == [at / len(values) for at in range(1, len(values) + 1)]
    windows = done["arrival_ns"] // figures.grid.length_ns
    for name, share in (("p50", "0.5"), ("p90", "0.9"), ("p99", "0.99")):
        expected = raw["ttft"].groupby(windows).agg(lambda values, share=share: nearest(list(values), share))
        line = figures.over_time["ttft"][name]
        assert {at: line[at] for at in range(figures.grid.count) if not np.isnan(line[at])} == expected.to_dict()
    several = done[done["output_tokens"] > 1]
    each = (several["finish_ns"] - several["first_token_ns"]) / (several["output_tokens"] - 1)
    assert figures.curves["tpot"][0] == pytest.approx(sorted(each), abs=0.51)
    for name in ("ttft", "tpot", "e2e"):
        values, shares = figures.curves[name]
        for quantile, share in (("p50", 0.5), ("p99", 0.99)):
            assert values[np.searchsorted(shares, share - 1e-9)] == round(serving.summary[name][quantile] * SECOND)


def test_rates_count_every_request(serving: Run) -> None:
    figures = requests.request_figures(serving)
    frame = pd.read_parquet(serving.path / "requests.parquet")
    length = figures.grid.lengths_ns / SECOND
    expected = (frame["arrival_ns"] // figures.grid.length_ns).value_counts()
    assert (figures.arrived_per_s * length).round(6).tolist() == [
        expected.get(at, 0) for at in range(figures.grid.count)
    ]
    assert (figures.finished_per_s * length).sum() == pytest.approx((frame["outcome"] == "finished").sum())


def test_engines_are_those_of_the_rows(serving: Run) -> None:
    figures = instances.instance_figures(serving, 2 * SECOND)
    assert figures is not None
    assert figures.grid.length_ns == 2 * SECOND
    assert figures.names == ("prefill-0", "prefill-1", "decode-0", "decode-1")
    frame = pd.read_parquet(serving.path / "instances.parquet")
    assert (figures.output_tokens_per_s * figures.grid.lengths_ns / SECOND).sum() == pytest.approx(
        frame["output_tokens"].sum()
    )
    for role, rows in frame.groupby("role"):
        integral = (rows["running"] * (rows["end_ns"] - rows["start_ns"])).sum()
        assert (figures.running[role] * figures.grid.lengths_ns).sum() == pytest.approx(integral)
    ends = figures.grid.starts_ns + figures.grid.lengths_ns
    for at, name in enumerate(figures.names):
        for window, (start, end) in enumerate(zip(figures.grid.starts_ns, ends, strict=True)):
            busy = used = blocks = 0.0
            for row in frame[frame["instance"] == name].itertuples():
                share = max(min(end, row.end_ns) - max(start, row.start_ns), 0) / (row.end_ns - row.start_ns)
                busy += share * (row.prefill_ns + row.decode_ns)
                used += share * (row.end_ns - row.start_ns) * row.kv_blocks
                blocks += share * (row.end_ns - row.start_ns) * row.kv_total_blocks
            assert figures.busy[at, window] == pytest.approx(busy / (end - start))
            assert figures.kv[at, window] == pytest.approx(used / blocks)
    power = pd.read_parquet(serving.path / "power.parquet")
    joules = sum((line * figures.grid.lengths_ns / SECOND).sum() for line in figures.power_w.values())
    assert joules == pytest.approx(power["energy_j"].sum())
    assert instances.pool_energy(serving) == pytest.approx(power.groupby("role")["energy_j"].sum().to_dict())


def test_rents_of_pools_add_up(serving: Run) -> None:
    price = serving.summary["price"]
    assert list(price["pools"]) == ["prefill", "decode"]
    assert sum(price["pools"].values()) == pytest.approx(price["dollars_per_h"])
    assert all(f'<td class="text">{pool}</td><td>2</td>' in run_page(serving.path) for pool in price["pools"])


def test_many_engines_are_folded_by_time_and_group() -> None:
    names = [f"decode-{at}" for at in range(200)] + [f"prefill-{at}" for at in range(3)]
    bands = instances._bands(names)
    assert [at for band in bands for at in band] == list(range(203))
    assert len(bands) <= instances.MOST_ROWS
    assert all(len({names[at].partition("-")[0] for at in band}) == 1 for band in bands)
    assert instances._band_name([names[at] for at in bands[0]]) == "decode-0 to 2"


def test_links_are_coloured_by_what_they_carried(serving: Run) -> None:
    figures = fabric_figures(serving)
    assert not isinstance(figures, str), figures
    frame = pd.read_parquet(serving.path / "links.parquet")
    seconds = serving.manifest["simulated_ns"] / SECOND
    moved = frame.groupby(["source", "target"])["bytes"].sum()
    highest = frame.groupby(["source", "target"])["mean_utilisation"].max()
    boxes = figures.drawing.boxes
    assert all(box.count == 1 for box in boxes)  # two nodes are drawn one by one
    for wire, found in zip(figures.drawing.wires, figures.wires, strict=True):
        lower, upper = boxes[wire.lower].name, boxes[wire.upper].name
        could = wire.bytes_per_s * seconds
        assert found.up == pytest.approx(moved.get((lower, upper), 0) / could)
        assert found.down == pytest.approx(moved.get((upper, lower), 0) / could)
        assert found.busiest == pytest.approx(max(highest.get(ends, 0) for ends in ((lower, upper), (upper, lower))))
    assert max(found.busiest for found in figures.wires) == pytest.approx(serving.summary["links"]["utilisation_max"])


def test_flows_and_collectives_are_those_of_the_rows(network: Run) -> None:
    figures = traffic.flow_figures(network)
    assert figures is not None
    frame = pd.read_parquet(network.path / "flows.parquet")
    done = frame[frame["completed"]]
    spent = (done["finish_ns"] - done["start_ns"]).astype("int64")
    assert figures.completion[0][-1] == spent.max()
    at = np.searchsorted(figures.completion[1], 0.5 - 1e-9)
    if len(done) <= 400:
        assert figures.completion[0][at] == nearest(list(spent), "0.5")
    seconds = figures.grid.lengths_ns / SECOND
    assert (figures.arrived_bytes_per_s * seconds).sum() == pytest.approx(done["bytes"].sum())
    open_ns = (frame["finish_ns"].fillna(network.manifest["simulated_ns"]) - frame["start_ns"]).sum()
    assert (figures.under_way * figures.grid.lengths_ns).sum() == pytest.approx(open_ns)
    (repeats,) = traffic.collective_repeats(network)
    rows = pd.read_parquet(network.path / "collectives.parquet").sort_values("start_ns")
    assert repeats.time_ns.tolist() == (rows["finish_ns"] - rows["start_ns"]).tolist()
    assert [kind.kind for kind in marks.event_marks(network)] == ["fault", "repair"]


def test_charts_are_what_plotly_knows(serving: Run, network: Run) -> None:
    import plotly.graph_objects as go

    for run in (serving, network):
        charts = charts_of(run_page(run.path))
        assert len(charts) >= 6
        for chart in charts:
            go.Figure(chart)  # raises ValueError for a property or a value that plotly.js would ignore
            assert chart["layout"]["xaxis"]["title"]["text"].endswith(")")  # the unit


def test_text_of_a_scenario_is_never_markup(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script><img src=x onerror=alert(2)>"
    run = run_of(
        load("quickstart", ["workload.requests=20", f'description="{evil}"', "results.interval=1 min"]),
        out=tmp_path / "run",
    )
    summary = json.loads((run.path / "summary.json").read_text())
    summary["warnings"] = [evil]
    text = json.dumps(summary)
    (run.path / "summary.json").write_text(text)
    manifest = json.loads((run.path / "manifest.json").read_text())
    manifest["scenario"] = evil
    manifest["files"]["summary.json"]["bytes"] = len(text.encode())
    (run.path / "manifest.json").write_text(json.dumps(manifest))
    page = run_page(run.path)
    assert "<script>alert" not in page
    assert "<img" not in page.replace(html._plotly(), "")
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 4  # title, heading, description, warning, scenario


def test_nothing_in_a_chart_ends_its_script() -> None:
    spec = {"data": [{"type": "scatter", "name": "</script><script>alert(1)</script>\u2028"}], "layout": {}}
    section = html.Section("a", (html.Chart("t", spec),))
    page = html.render(html.Page("p", "s", "l", (), (), (section,)))
    assert "</script><script>alert" not in page
    assert charts_of(page) == [spec]


def test_equal_runs_give_equal_pages(serving: Run, tmp_path: Path) -> None:
    again = run_of(load("quickstart", SERVING), out=tmp_path / "elsewhere")
    first = run_page(serving.path)
    assert run_page(again.path) == first == run_page(serving.path)
    assert len(first.encode()) < 6_000_000


def test_a_page_beside_a_run_is_cleared_with_it(simulate, tmp_path: Path) -> None:
    arguments = ("quickstart", "--set", "workload.requests=20", "--out", "r")
    assert simulate(*arguments).code == 0
    outcome = simulate("report", "r")
    assert (outcome.code, outcome.out) == (0, "r/report.html\n"), outcome.err
    assert load_run(tmp_path / "r").complete
    assert simulate(*arguments).code == 0
    assert not (tmp_path / "r" / "report.html").exists()
    assert simulate("report", "r", "--out", "page.html").code == 0
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")


def test_what_cannot_be_reported_is_one_clear_error(simulate, tmp_path: Path, network: Run) -> None:
    (tmp_path / "killed").mkdir()
    (tmp_path / "killed" / MARKER).touch()
    shutil.copytree(network.path, tmp_path / "lost")
    (tmp_path / "lost" / "flows.parquet").unlink()
    shutil.copytree(network.path, tmp_path / "broken")
    size = (tmp_path / "broken" / "flows.parquet").stat().st_size
    (tmp_path / "broken" / "flows.parquet").write_bytes(b"x" * size)
    for arguments, said in (
        (("nowhere",), "no run here"),
        (("killed",), "still going, or was killed"),
        (("lost",), "flows.parquet: the manifest lists this file but it is missing"),
        (("broken",), "flows.parquet: cannot be read as the table 'flows'"),
        ((str(network.path), "--out", "no/such/folder/x.html"), "cannot write no/such/folder/x.html: No such file"),
        ((str(network.path), "--out", "."), "cannot write .: Is a directory"),
    ):
        outcome = simulate("report", *arguments)
        assert outcome.code == 2, arguments
        assert said in outcome.err
        assert outcome.err.count("\n") == 1


def test_a_fabric_that_is_gone_is_said_in_one_line(network: Run, tmp_path: Path) -> None:
    shutil.copytree(network.path, tmp_path / "run")
    scenario = tmp_path / "run" / "scenario.yaml"
    scenario.write_text(scenario.read_text().replace("preset: clos-h100", "preset: ./gone.yaml"))
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    manifest["files"]["scenario.yaml"]["bytes"] = scenario.stat().st_size
    (tmp_path / "run" / "manifest.json").write_text(json.dumps(manifest))
    run = load_run(tmp_path / "run")
    with pytest.raises(InputError):
        topology_of(run)
    assert "cannot be built here" in run_page(run.path)


def chromium(page: Path, folder: Path, width: int) -> tuple[str, str]:
    """Return the page as a browser has it once its script has run, and what the browser logged."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no chromium here (apt-get install chromium)")
    options = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    options += " --disable-component-update --disable-sync --disable-dev-shm-usage --enable-logging=stderr"
    command = [browser, *options.split(), f"--user-data-dir={folder}", f"--window-size={width},900"]
    command += ["--virtual-time-budget=5000", "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, done.stderr


@pytest.mark.parametrize(("kind", "width"), [("serving", 500), ("network", 1280)])
def test_a_browser_draws_every_chart_without_a_complaint(request, tmp_path: Path, kind: str, width: int) -> None:
    text = run_page(request.getfixturevalue(kind).path)
    measure = "<script>document.title = 'wide ' + document.documentElement.scrollWidth;</script></body>"
    page = tmp_path / "page.html"
    page.write_text(text.replace("</body>", measure), encoding="utf-8")
    dom, log = chromium(page, tmp_path / "profile", width)
    assert "CONSOLE" not in log, log
    charts = len(charts_of(text))
    assert dom.count('class="chart js-plotly-plot"') == charts
    assert dom.count('<svg class="main-svg"') >= charts
    assert int(re.search(r"<title>wide (\d+)</title>", dom)[1]) <= width  # nothing sticks out at the side
    assert dom.count('<svg class="fabric"') == 1
    assert 'data-title="Share' not in dom  # plotly's button that would send the data away
    assert "All figures by name" in dom


@pytest.mark.parametrize(
    ("values", "mode"),
    [
        ([3.0], "lines+markers"),
        ([3.0, 4.0], "lines"),
        ([3.0, nan, 4.0], "lines+markers"),
        ([nan, 3.0, 4.0], "lines"),
        ([], "lines"),
    ],
)
def test_a_value_without_a_neighbour_is_drawn_as_a_point(values: list[float], mode: str) -> None:
    """A run shorter than a window has one value; a line through it alone would not be seen."""
    spec = lines(np.arange(len(values)), [Line("running", np.array(values))], Axis("s"), Axis("requests"))
    assert spec["data"][0]["mode"] == mode
