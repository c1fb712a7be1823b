"""The closed form of a step over expert servers equals a simulation that moves every micro-batch through every layer.

With servers that merge what is ready the closed form is a mean over random moments; the simulation is held to it.
"""

from heapq import heappop, heappush
from itertools import count
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.device.ping_pong import merged_when_ready, pipelined_ns


def walk(clients, batches, layers, attention, link, service, back, merges=False, jitter=0.0, seed=0):
    """Return (time of all, micro-batches served at once, mean); every station serves in order of arrival."""
    rng, order, agenda, free = Random(seed), count(), [], {}
    there, served, ends, busy = [], [], [], [False]

    def at(time, act, *what):
        heappush(agenda, (time, next(order), act, what))

    def through(station, time, lasts):
        free[station] = max(time, free.get(station, 0.0)) + lasts
        return free[station]

    def attend(time, client, layer):
        if layer == layers:
            ends.append(time)
            return
        at(through(("attention", client), time, attention * rng.uniform(1 - jitter, 1 + jitter)), out, client, layer)

    def out(time, client, layer):
        at(through(("out", client), time, link), comes, client, layer)

    def comes(time, client, layer):
        there.append((client, layer))
        at(time, serve)

    def serve(time):
        if busy[0] or not there:
            return
        taken = there[:] if merges else there[:1]
        del there[: len(taken)]
        served.append(len(taken))
        busy[0] = True
        at(time + service(len(taken)), done, taken)

    def done(time, taken):
        busy[0] = False
        for client, layer in taken:
            at(through(("back", client), time, back), attend, client, layer + 1)
        at(time, serve)

    for client in range(clients):
        for _ in range(batches):
            at(rng.uniform(0, 10 * attention) if clients > 1 else 0.0, attend, client, 0)
    while agenda:
        time, _, act, what = heappop(agenda)
        act(time, *what)
    return max(ends), sum(served) / len(served)


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 5), st.integers(1, 20), st.lists(st.integers(0, 50), min_size=4, max_size=4))
def test_one_engine_is_exact(batches, layers, stations):
    attention, link, experts, back = stations
    found, _ = walk(1, batches, layers, attention, link, lambda n: experts, back)
    assert found == pipelined_ns(layers, batches, stations)


def test_it_is_the_bound_of_megascale_infer_where_that_applies():
    """T = (T_a + T_e + 2 T_c) + T_f (m L - 1) with T_f = max(T_a, T_e), if m T_f covers a round and T_c < T_f."""
    attention, experts, link, layers = 8.0, 10.0, 3.0, 61
    for batches in (3, 4):
        expected = attention + experts + 2 * link + experts * (batches * layers - 1)
        assert pipelined_ns(layers, batches, [attention, link, experts, link]) == expected
    assert pipelined_ns(layers, 1, [attention, link, experts, link]) == layers * (attention + experts + 2 * link)


@given(st.integers(1, 6), st.integers(1, 60), st.lists(st.floats(0, 1e6), min_size=4, max_size=4))
def test_more_micro_batches_take_longer_in_all_and_less_each(batches, layers, stations):
    few, more = (pipelined_ns(layers, count, stations) for count in (batches, batches + 1))
    assert more >= few
    assert more / (batches + 1) <= few / batches * (1 + 1e-12)


@pytest.mark.parametrize("clients", [2, 4, 8, 32])
@pytest.mark.parametrize("batches", [1, 2])
@pytest.mark.parametrize(("fixed", "each"), [(2.0, 0.1), (2.0, 0.5), (5.0, 0.05), (0.5, 0.05), (10.0, 0.2)])
@pytest.mark.parametrize("attention", [3.0, 10.0])
def test_servers_that_merge_what_is_ready(clients, batches, fixed, each, attention):
    def service(merged):
        return fixed + each * merged

    layers = 400
    found, merged = walk(clients, batches, layers, attention, 1.0, service, 1.0, merges=True, jitter=0.3)
    model = merged_when_ready(service, clients * batches, attention + 2.0, batches * attention)
    round_ns = max(batches * attention, attention + 2.0 + model.ns)
    assert round_ns == pytest.approx(found / layers, rel=0.12)
    assert model.merged == pytest.approx(merged, rel=0.35, abs=0.3)


def test_one_micro_batch_of_one_engine_never_waits():
    served = merged_when_ready(lambda merged: 5.0 * merged, 1, 10.0, 0.0)
    assert served == (1.0, 5.0)
