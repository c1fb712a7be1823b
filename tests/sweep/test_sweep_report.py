"""`simulate report` of a sweep that was run: its points, its means, its errors, and when the page goes."""

import io
import json
import re

import pytest
from rich.console import Console

from simulator.report.page.sweep_page import sweep_page
from simulator.report.sweep import print_sweep
from simulator.sweep.run import sweep as run_sweep
from simulator.sweep.view import points_table

SWEEP = """
schema: 1
base: synthetic-colocated
description: "a <b>sweep</b>"
set: {workload.requests: 40, serving.colocated.instances: 1, slo.ttft: 25 ms}
grid: {serving.router: [least_loaded, nonesuch], "workload.arrivals.poisson.rate": ["20 / s", "40 / s"]}
seeds: 1..2
"""


def test_a_sweep_is_reported_from_its_folder(simulate, client, tmp_path) -> None:
    (tmp_path / "s.yaml").write_text(SWEEP)
    result = run_sweep(tmp_path / "s.yaml", tmp_path / "out", client=client)
    outcome = simulate("report", "out")
    assert (outcome.code, outcome.out) == (0, "out/report.html\n"), outcome.err
    page = (tmp_path / "out" / "report.html").read_text()
    done = result.points[result.points["status"] == "done"]
    assert len(done) == 4
    assert "nonesuch" in page
    assert "a &lt;b&gt;sweep&lt;/b&gt;" in page
    charts = json.loads(re.search(r'id="charts">(.*?)</script>', page, re.DOTALL)[1])
    first = next(trace for trace in charts[0]["data"] if trace["visible"] and trace.get("name"))
    means = done.groupby("workload.arrivals.poisson.rate")["goodput"].mean()
    assert 0 < means["40 / s"] < means["20 / s"] < 1
    assert (first["x"], first["y"]) == ([20, 40], pytest.approx([means["20 / s"], means["40 / s"]], rel=1e-5))
    assert page == sweep_page(str(tmp_path / "out"))
    narrow = Console(file=io.StringIO(), width=40)  # as of a pipe: nothing is cut away
    print_sweep(result, narrow)
    lines = narrow.file.getvalue().splitlines()
    for row in points_table(result, result.points).rows:
        assert any(all(cell in line for cell in row) for line in lines), row
    run_sweep(tmp_path / "s.yaml", tmp_path / "out", client=client)  # nothing is missing, and the page is gone
    assert not (tmp_path / "out" / "report.html").exists()
    assert simulate("report", "file:///tmp/x").code == 2  # a store elsewhere needs --out
