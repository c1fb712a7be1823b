"""Routers in front of textbook queues: splitting a Poisson stream, joining the shortest queue, equal replicas.

Engines serve one prompt at a time, service time proportional to a geometric number of tokens (mean 1 s) as in
`test_queueing`; tolerances are about three standard errors of the estimate.
"""

from math import factorial

import pytest

from simulator import load, simulate

QUEUE = """
schema: 1
seed: 12
topology: {preset: clos-h100, nodes: 1}
workload:
  requests: 100000
  arrivals: {poisson: {rate: 2.8 / s}}
  prompt_tokens: {exponential: {mean: 1000}}
  output_tokens: 1
serving:
  model: llama-3-8b
  max_context: 10000000
  cost: {linear: {prefill: {per_token: 1 ms}}}
  colocated: {instances: 4, kv: {blocks: 100000000}, batcher: {continuous: {max_running: 1, max_batch_tokens: 1000000}}}
"""
SERVERS, RATE = 4, 2.8


def run(tmp_path, *overrides):
    path = tmp_path / "queue.yaml"
    path.write_text(QUEUE)
    return simulate(load(path, overrides), out=tmp_path / "run", check=True)


def mmc_wait(rate, servers):
    """Return the mean wait in an M/M/c queue of unit servers (Erlang C)."""
    last = rate**servers / factorial(servers)
    spare = 1 - rate / servers
    waits = last / (last + spare * sum(rate**k / factorial(k) for k in range(servers)))
    return waits / (servers - rate)


def test_random_splits_a_poisson_stream_into_queues_of_one_server(tmp_path):
    # Each engine is M/M/1 at a quarter of the rate: Wq = rho / (1 - rho).
    requests = run(tmp_path, "serving.router=random").requests
    waits = (requests.prefill_start_ns - requests.arrival_ns) / 1e9
    rho = RATE / SERVERS
    assert waits.mean() == pytest.approx(rho / (1 - rho), rel=0.06)
    for _, own in waits.groupby(requests.prefill_instance):
        assert len(own) == pytest.approx(100_000 / SERVERS, rel=0.03)
        assert own.mean() == pytest.approx(rho / (1 - rho), rel=0.2)


def test_what_a_router_knows_orders_its_waits(tmp_path):
    # One common queue bounds all from below; the less a router knows, the longer the wait, up to no knowledge at all.
    names = ("least_loaded", "power_of_two", "round_robin", "random")
    waits = [mmc_wait(RATE, SERVERS)]
    for name in names:
        (tmp_path / name).mkdir()
        found = run(tmp_path / name, f"serving.router={name}", "workload.requests=30000")
        waits.append(found.summary["queue"]["mean"])
    assert waits == sorted(waits)


@pytest.mark.parametrize(("interval", "router"), [("0 s", "least_loaded"), ("100 d", "round_robin")])
def test_reports_that_are_live_or_never_come(tmp_path, interval, router):
    # Reports of age zero are live; with none at all least loaded sees equals and takes them in turn: round robin.
    few = "workload.requests=5000"
    (tmp_path / "plain").mkdir()
    found = run(tmp_path, few, "serving.router=least_loaded", f"serving.router_view.report_interval={interval}")
    plain = run(tmp_path / "plain", few, f"serving.router={router}")
    assert found.requests.equals(plain.requests)


def test_equal_replicas_are_symmetric_under_round_robin(tmp_path):
    # Requests all alike, evenly spaced, as many for each: every engine does the same, shifted by a gap.
    requests = run(
        tmp_path,
        "workload.requests=400",
        "workload.arrivals={constant: {rate: 3.7 / s}}",
        "workload.prompt_tokens=900",
        "workload.output_tokens=30",
        "serving.cost.linear.decode={fixed: 7 ms, per_context_token: 3 us}",
        "serving.colocated.batcher.continuous.max_running=8",
        "serving.router=round_robin",
    ).requests
    rows = requests.sort_values("request_id")
    times = ("queued_ns", "prefill_start_ns", "first_token_ns", "finish_ns")
    shapes = [
        [tuple(row[name] - row.arrival_ns for name in times) for _, row in own.iterrows()]
        for _, own in rows.groupby("prefill_instance")
    ]
    assert len(shapes) == SERVERS
    assert all(len(shape) == 100 for shape in shapes)
    for shape in shapes[1:]:  # gaps are rounded to the nanosecond, so may differ by one
        pairs = zip(shape, shapes[0], strict=True)
        assert all(abs(a - b) <= 1 for one, two in pairs for a, b in zip(one, two, strict=True))


def test_gateway_is_md1(tmp_path):
    # With c = 1, Pollaczek-Khinchine; engines that take no time show the gateway alone.
    requests = run(
        tmp_path,
        "workload.prompt_tokens=1",
        "workload.arrivals.poisson.rate=700 / s",
        "serving.cost.linear.prefill.per_token=0 s",
        "serving.gateway={service: 1 ms}",
    ).requests
    waits_s = ((requests.queued_ns - requests.arrival_ns) / 1e9).mean() - 0.001
    assert waits_s == pytest.approx(0.001 * 0.7 / (2 * 0.3), rel=0.05)
