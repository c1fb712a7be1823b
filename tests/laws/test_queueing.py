"""Degenerate scenarios are textbook queues; theory gives what the simulator must find.

M/M/1: one engine, one prompt at a time, service time proportional to a geometric number of tokens (1 ms each, mean
1,000). M/D/1: the same with a constant number. M/M/c: one engine with c seats whose steps last 10 ms whatever the
batch, so each seat is a server; prefill takes no time. Tolerances are about three standard errors of the estimate.
"""

from math import exp, factorial, log

import pytest

from simulator import load, simulate

QUEUE = """
schema: 1
seed: 11
topology: {preset: clos-h100, nodes: 1}
workload:
  requests: 100000
  arrivals: {poisson: {rate: 0.6 / s}}
  prompt_tokens: {exponential: {mean: 1000}}
  output_tokens: 1
serving:
  model: llama-3-8b
  max_context: 10000000
  cost: {linear: {prefill: {per_token: 1 ms}}}
  colocated: {instances: 1, kv: {blocks: 100000000}, batcher: {continuous: {max_running: 1, max_batch_tokens: 1000000}}}
"""


def run(tmp_path, text, *overrides):
    path = tmp_path / "queue.yaml"
    path.write_text(text)
    return simulate(load(path, overrides), out=tmp_path / "run", check=True)


def test_mm1(tmp_path):
    # lambda = 0.6 / s, mu = 1 / s: Wq = rho / (mu - lambda) = 1.5 s; the sojourn is exponential at mu - lambda.
    summary = run(tmp_path, QUEUE).summary
    assert summary["queue"]["mean"] == pytest.approx(1.5, rel=0.06)
    assert summary["e2e"]["mean"] == pytest.approx(2.5, rel=0.05)
    for name, q in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99)):
        theory = -2.5 * log(1 - q)
        assert summary["e2e"][name] == pytest.approx(theory, rel=0.08), name
    assert summary["utilisation"]["colocated"]["busy"] == pytest.approx(0.6, rel=0.02)


def test_md1(tmp_path):
    # Pollaczek-Khinchine with no variance: Wq = rho / (2 mu (1 - rho)) = 0.75 s, half of M/M/1.
    summary = run(tmp_path, QUEUE, "workload.prompt_tokens=1000").summary
    assert summary["queue"]["mean"] == pytest.approx(0.75, rel=0.05)
    assert summary["e2e"]["mean"] == pytest.approx(1.75, rel=0.03)


@pytest.mark.parametrize("servers", [2, 4])
def test_mmc(tmp_path, servers):
    # a = lambda / mu; Erlang C: P(wait) = B / (B + (1 - rho) A), A = sum a^k / k!, B = a^c / c!;
    # Wq = P / (c mu - lambda).
    rate = 0.7 * servers
    a, rho = rate, 0.7
    last = a**servers / factorial(servers)
    waits = last / (last + (1 - rho) * sum(a**k / factorial(k) for k in range(servers)))
    theory = waits / (servers - rate)
    run_ = run(
        tmp_path,
        QUEUE,
        f"workload.arrivals.poisson.rate={rate} / s",
        "workload.requests=50000",
        "workload.prompt_tokens=1",
        "workload.output_tokens={exponential: {mean: 101}}",
        "serving.cost={linear: {decode: {fixed: 10 ms}}}",
        f"serving.colocated.batcher.continuous.max_running={servers}",
    )
    wait_s = run_.summary["queue"]["mean"] - 0.005  # half a step: an arrival joins at the next boundary
    assert wait_s == pytest.approx(theory, rel=0.08)
    requests = run_.requests
    waited = (requests.prefill_start_ns - requests.queued_ns > 10_000_000).mean()
    assert waited == pytest.approx(waits * exp(-0.01 * (servers - rate)), rel=0.05)


def test_littles_law(tmp_path):
    # L = lambda W on any system: the time integral of the number in each place is the sum of the times spent there.
    run_ = run(
        tmp_path,
        QUEUE,
        "workload.requests=3000",
        "workload.arrivals.poisson.rate=20 / s",
        "workload.prompt_tokens={lognormal: {median: 700, sigma: 0.9, max: 4000}}",
        "workload.output_tokens={lognormal: {median: 150, sigma: 0.8, max: 1000}}",
        "serving.cost={roofline: {}}",
        "serving.colocated={instances: 3, layout: {tensor: 2}, batcher: {continuous: {max_running: 30}}}",
    )
    requests, windows = run_.requests, run_.instances
    length_ns = windows.end_ns - windows.start_ns
    assert (windows.waiting * length_ns).sum() == pytest.approx(
        (requests.prefill_start_ns - requests.queued_ns).sum(), rel=1e-9
    )
    assert (windows.running * length_ns).sum() == pytest.approx(
        (requests.finish_ns - requests.prefill_start_ns).sum(), rel=1e-9
    )
    assert windows.output_tokens.sum() == requests.generated_tokens.sum() == requests.output_tokens.sum()
    assert length_ns.groupby(windows.instance).sum().eq(run_.manifest["simulated_ns"]).all()
