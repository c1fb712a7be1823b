"""A closed loop keeps its clients busy: request i of a client arrives when its request i - 1 has ended.

With one client nothing ever waits, so each request takes its own service time; with N clients N are in flight until the
requests run out, and Little's law N = X W holds for the throughput X and the time W that a request is in flight.
"""

from pathlib import Path

import numpy as np
import pytest

from simulator import load, simulate
from simulator.results.run import Run

LOOP = """
schema: 1
topology: {preset: clos-h100, nodes: 1}
workload:
  requests: 400
  arrivals: {closed_loop: {clients: 1}}
  prompt_tokens: {uniform: {low: 1, high: 400}}
  output_tokens: {uniform: {low: 1, high: 20}}
serving:
  model: llama-3-8b
  cost: {linear: {prefill: {per_token: 1 us}, decode: {fixed: 3 ms}}}
  colocated: {instances: 1}
"""


def run(tmp_path: Path, *overrides: str) -> Run:
    path = tmp_path / "loop.yaml"
    path.write_text(LOOP)
    return simulate(load(path, overrides), out=tmp_path / "run", check=True)


def test_one_client_sends_one_request_after_another(tmp_path: Path) -> None:
    rows = run(tmp_path).requests.sort_values("arrival_ns")
    assert rows["arrival_ns"].iloc[0] == 0
    assert (rows["arrival_ns"].to_numpy()[1:] == rows["finish_ns"].to_numpy()[:-1]).all()
    service = rows["prompt_tokens"] * 1_000 + (rows["output_tokens"] - 1) * 3_000_000
    assert (rows["finish_ns"] - rows["arrival_ns"] == service).all()


@pytest.mark.parametrize("clients", [2, 7, 64])
def test_as_many_are_in_flight_as_there_are_clients(tmp_path: Path, clients: int) -> None:
    rows = run(tmp_path, f"workload.arrivals.closed_loop.clients={clients}").requests
    arrive, finish = np.sort(rows["arrival_ns"].to_numpy()), np.sort(rows["finish_ns"].to_numpy())
    assert (arrive[:clients] == 0).all()
    assert (arrive[clients:] == finish[: len(rows) - clients]).all()  # Little: N = X W at every moment till the end
    until = arrive[-1]
    inside = (rows["finish_ns"].clip(upper=until) - rows["arrival_ns"]).sum()
    assert inside == clients * until


def test_overhead_of_a_request_comes_before_its_queue(tmp_path: Path) -> None:
    # one client: nothing else waits, so each request lasts its own service time and the overhead
    rows = run(tmp_path, "serving.request_overhead=7 ms").requests
    service = rows["prompt_tokens"] * 1_000 + (rows["output_tokens"] - 1) * 3_000_000
    assert (rows["finish_ns"] - rows["arrival_ns"] == service + 7_000_000).all()
    assert (rows["queued_ns"] - rows["arrival_ns"] == 7_000_000).all()


def test_a_rejected_request_does_not_keep_its_client(tmp_path: Path) -> None:
    rows = run(tmp_path, "serving.max_context=200", "workload.arrivals.closed_loop.clients=3").requests
    assert 0 < (rows["outcome"] == "rejected").sum() < len(rows)
    assert set(rows["outcome"]) == {"rejected", "finished"}
