"""Engines whose experts are on servers: what the step is made of, what it costs to be apart, published transport."""

import pytest

from simulator.build.disaggregation import _exchange
from simulator.device.accelerator import load_accelerator
from simulator.device.cost import RooflineCost
from simulator.device.engine import RooflineParameters
from simulator.device.expert_servers import Exchange, ExpertServers, ExpertServersCost, check_servers
from simulator.device.ping_pong import pipelined_ns
from simulator.errors import InputError
from simulator.model.forward import Work
from simulator.model.layout import Layout
from simulator.model.precision import Precision
from simulator.model.transformer import load_model
from simulator.topology.presets import build_topology

MODEL, DEVICE = load_model("deepseek-r1"), load_accelerator("h100-sxm-80gb")
FREE = Exchange(0.0, 0.0, 0.0)
TP8 = Layout(tensor=8)


SERVERS = ExpertServers(devices=32)


def cost(servers=SERVERS, clients=1, out=FREE, back=FREE, layout=TP8):
    return ExpertServersCost(MODEL, layout, DEVICE, Precision(), RooflineParameters(), servers, clients, out, back)


def test_one_micro_batch_is_the_sum_of_its_kernels():
    servers = ExpertServers(devices=32, batches=1, merge="all")
    split, work = cost(servers), Work(batch=64, context=64 * 1000)
    kernels = {o.name: o.calls * k.ns for o, k in split.kernels(work)}
    assert "experts" not in kernels
    expected = sum(kernels.values()) + MODEL.experts.layers * split.experts_ns(64)
    assert split.step_ns(work) == pytest.approx(expected, rel=1e-12)
    away = cost(servers, out=Exchange(7_000.0, 0.0, 0.0), back=Exchange(5_000.0, 0.0, 0.0)).step_ns(work)
    assert away - split.step_ns(work) == pytest.approx(MODEL.experts.layers * 12_000)


def test_the_engine_computes_what_it_would_but_for_its_experts():
    whole = RooflineCost(MODEL, TP8, DEVICE, Precision())
    work = Work(batch=64, context=64 * 1000)
    mine = {o.name: (o.calls, o.shape) for o, _ in cost().kernels(work)}
    theirs = {o.name: (o.calls, o.shape) for o, _ in whole.kernels(work)}
    assert set(theirs) - set(mine) == {"experts"}
    changed = {name for name, row in mine.items() if row != theirs[name]}
    assert changed == {"all-reduce"}  # what comes back from the servers is summed
    assert theirs["all-reduce"][0] - mine["all-reduce"][0] == MODEL.experts.layers


def test_two_micro_batches_are_the_closed_form_of_their_stations():
    servers = ExpertServers(devices=32, batches=2, merge="all")
    one_way = Exchange(20_000.0, 0.0, 0.01)
    split, work = cost(servers, clients=4, out=one_way, back=one_way), Work(batch=64, context=64 * 1000)
    half = Work(batch=32, context=32 * 1000)
    parts = split._parts(half)
    out_ns, back_ns, _ = split._exchanges(32)
    stations = [parts.attention, out_ns, split.experts_ns(4 * 32), back_ns]
    assert out_ns > 20_000
    assert split.step_ns(work) == pytest.approx(pipelined_ns(58, 2, stations) + 2 * parts.rest)


def test_engines_share_servers_and_slow_each_other():
    work = Work(batch=64, context=64 * 1000)
    for merge in ("ready", "all"):
        servers = ExpertServers(devices=32, merge=merge)
        times = [cost(servers, clients=clients).step_ns(work) for clients in (1, 2, 8, 32)]
        assert times == sorted(times)


def test_decode_lines_follow_the_steps():
    split = cost(clients=4)
    for context in (500.0, 64_000.0, 500_000.0):
        assert split.decode(64, context).at(context) == pytest.approx(
            split.step_ns(Work(batch=64, context=context)), rel=0.01
        )


def test_what_does_not_fit_is_refused():
    with pytest.raises(InputError, match="tensor-parallel ranks only"):
        cost(layout=Layout(tensor=4, data=2))
    with pytest.raises(InputError, match="has no experts"):
        check_servers(load_model("llama-3.1-8b"), ExpertServers(devices=8), DEVICE, Precision(), 0.9)
    with pytest.raises(InputError, match="GiB of each of 4 servers"):
        check_servers(MODEL, ExpertServers(devices=4), DEVICE, Precision(weights="fp8"), 0.9)
    check_servers(MODEL, ExpertServers(devices=32), DEVICE, Precision(weights="fp8"), 0.9)


@pytest.mark.parametrize(("many", "size", "published_ms"), [(8, 8 << 20, 1.432), (32, 8 << 20, 5.555)])
def test_exchange_beside_published_transport(many, size, published_ms):
    """EaaS (arXiv:2509.17863): as many clients as servers, so many bytes from each to each, 400 Gb/s a GPU."""
    topology = build_topology("clos-h100", {"nodes": 16})
    clients = [(device,) for device in range(many)]
    way = _exchange(topology, clients, range(64, 64 + many), None, out=True)
    assert (way.fixed_ns + way.together_ns * size * many) / 1e6 == pytest.approx(published_ms, rel=0.1)
