"""The gateway against workers walked tick by tick; limits, time-outs and cancellation: each request has one outcome."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.clock import Clock
from simulator.randomness import stream
from simulator.serving.admission import Admission, Bound, Limits
from simulator.serving.batching import BATCHERS, Continuous
from simulator.serving.frontend import Arrivals, Cancellation, Frontend, Patience
from simulator.serving.gateway import Gateway
from simulator.serving.instance import Engine, Observer
from simulator.serving.jump import StepTicks
from simulator.serving.lone_rank import kind_of
from simulator.serving.pool import Pool
from simulator.serving.request import CANCELLED, FINISHED, REJECTED, TIMED_OUT, Request, Traits
from simulator.serving.routing import ROUTERS, Place

arrivals = st.lists(st.tuples(st.integers(0, 30), st.integers(1, 20)), min_size=1, max_size=60)


@given(arrivals, st.integers(0, 25), st.integers(0, 3), st.integers(1, 4), st.integers(0, 5))
@settings(max_examples=200, deadline=None)
def test_gateway_equals_workers_walked_tick_by_tick(gaps, service, per_token, workers, queue):
    gateway, now, line, busy, twin, found = Gateway(service, per_token, workers, queue), 0, [], [], {}, {}

    def walk(until):
        """Let workers end and take the next in line, nanosecond by nanosecond, up to and with `until`."""
        nonlocal now
        for tick in range(now, until + 1):
            now = tick
            while True:
                busy[:] = [end for end in busy if end > now]
                if not line or len(busy) >= workers:
                    break
                number, tokens = line.pop(0)
                twin[number] = now + service + per_token * tokens
                busy.append(twin[number])

    at = 0
    for number, (gap, tokens) in enumerate(gaps):
        at += gap
        walk(at)
        found[number] = gateway.admit(at, tokens)
        if len(busy) >= workers and len(line) >= queue:
            twin[number] = None
        else:
            line.append((number, tokens))
            walk(at)
    walk(at + 60 * (service + 20 * per_token) + 1)
    assert found == twin


@pytest.mark.parametrize("rho", [0.5, 0.8])
def test_gateway_of_one_worker_is_md1(rho):
    # Pollaczek-Khinchine: Wq = rho / (2 (1 - rho)) services.
    service, gaps = 1_000_000, stream(4, "gateway").exponential(1_000_000 / rho, 300_000)
    gateway, at, waited = Gateway(service, 0, 1, 10**9), 0.0, 0
    for gap in gaps:
        at += gap
        waited += gateway.admit(round(at), 1) - round(at) - service
    assert waited / len(gaps) / service == pytest.approx(rho / (2 * (1 - rho)), rel=0.05)


class Steady:
    """A token takes 1 ms to prefill; a decode step lasts 10 ms."""

    def prefill_ns(self, tokens, attended, sequences):
        return tokens * 1e6

    def mixed_ns(self, tokens, attended, sequences, batch, context):
        return max(tokens * 1e6, 10e6)

    def decode(self, batch, context):
        return 10e6, 0.0, float("inf")


def serve(workload, instances=1, seats=4, batcher="continuous", **options):
    """Serve (gap in ns, prompt, output) with what stands before engines of so many seats; return frontend and rows."""
    env, rows = Clock(), []
    pool = Pool("colocated", ROUTERS["least_loaded"].make(None, Place()), env)
    finished = env.event()

    def withdraw(request):
        assert pool.instances[int(request.prefill_instance)].cancel(request)

    def ended(request, instance):
        pool.left(instance, request)
        front.finish(request)

    front = Frontend(env, pool, Admission(10**9, 10**9, 10**9), rows.append, finished, withdraw=withdraw, **options)
    limits, cost = Continuous(max_running=seats), Steady()
    engine = Engine("colocated", cost, StepTicks(cost), BATCHERS[batcher].policy, limits, 5000, 4, 0)
    silent = Observer(*(lambda *_: None for _ in Observer._fields))
    for index in range(instances):
        pool.add(kind_of(engine)(env, str(index), engine, (index,), silent, ended))
    at, columns = 0, []
    for gap, prompt, output in workload:
        at += gap
        columns.append((at, prompt, output, None, None))
    env.process(front.replay([Arrivals(*map(list, zip(*columns, strict=True)))]))
    env.run(until=finished)
    front.check()
    assert pool.outstanding == [0] * instances
    assert all(instance.used_blocks() == 0 and not instance.queued for instance in pool.instances)
    assert sorted(request.request_id for request in rows) == list(range(len(workload)))
    return front, sorted(rows, key=lambda request: request.request_id)


def outcomes(rows):
    return Counter(request.outcome for request in rows)


MS = 1_000_000


def test_the_gateway_delays_and_turns_away():
    # One worker of 5 ms and a line of one: of four at once the first is routed after 5 ms, the second after 10.
    front, rows = serve([(0, 1, 1)] * 4, gateway=Gateway(5 * MS, 0, 1, 1), overhead_ns=MS)
    assert [request.queued_ns for request in rows] == [6 * MS, 11 * MS, -1, -1]
    assert front.reasons == {"gateway's queue full": 2}


def test_limits_refuse_or_let_wait():
    work = [(0, 10, 1)] * 3
    front, rows = serve(work, limits=Limits(Bound(requests=2), Bound(), waits=False))
    assert [request.outcome for request in rows] == [FINISHED, FINISHED, REJECTED]
    assert front.reasons == {"deployment's limit": 1}
    _, rows = serve(work, limits=Limits(Bound(requests=1), Bound(), waits=True))
    assert [request.queued_ns for request in rows] == [0, 10 * MS, 20 * MS]  # one prefill after another
    front, rows = serve([(0, 10, 1), (0, 50, 1)], limits=Limits(Bound(tokens=20), Bound(), waits=True))
    assert front.reasons == {"larger than the deployment's limit of tokens": 1}


def test_who_waits_counts_for_what_it_asks_for_although_it_will_cancel():
    """Each asks for 30 tokens, of which 40 may be outstanding, and cancels with its fifth: one after another."""
    work = [(0, 10, 20)] * 3
    _, rows = serve(
        work,
        limits=Limits(Bound(tokens=40), Bound(), waits=True),
        cancellation=lambda r: Cancellation(after_tokens=5),
    )
    assert [r.queued_ns for r in rows] == [0, 50 * MS, 100 * MS]
    assert [(r.outcome, r.output_tokens) for r in rows] == [(CANCELLED, 20)] * 3


def test_who_cancels_does_not_hang_on_who_is_let_in():
    def cancelled(limits):
        draws = iter([False, True] * 6)
        _, rows = serve(
            [(40 * MS, 30, 20)] * 12,
            limits=limits,
            cancellation=lambda r: Cancellation(after_tokens=5 if next(draws) else -1),
        )
        return {r.request_id: r.outcome for r in rows if r.outcome != REJECTED}

    all_in, some = cancelled(None), cancelled(Limits(Bound(requests=3), Bound(), waits=False))
    assert 3 < len(some) < 12
    assert some == {number: all_in[number] for number in some}


def test_a_full_tenant_does_not_hold_back_another():
    limits, made = Limits(Bound(requests=3), Bound(requests=1), waits=True), []
    for number, tenant in enumerate("aabb"):
        request = Request(number, 0, 1, 1)
        request.traits = Traits(tenant=tenant)
        made.append(request)
    asked = [limits.ask(made[0]), limits.ask(made[1])]
    limits.hold(made[1])
    asked.append(limits.ask(made[2]))
    assert asked == [None, "tenant's limit", None]
    limits.hold(made[3])
    limits.leave(made[2])
    assert list(limits.next_in()) == [made[3]]
    limits.leave(made[0])
    assert list(limits.next_in()) == [made[1]]


def test_time_outs_of_the_queue_and_of_all():
    # One seat: the first prefills for 100 ms and decodes 10 steps; the second waits until 80 ms after it came.
    work = [(0, 100, 11), (MS, 5, 1), (MS, 5, 1)]
    front, rows = serve(work, seats=1, patience=Patience(queue_ns=150 * MS))
    assert [request.outcome for request in rows] == [FINISHED, TIMED_OUT, TIMED_OUT]
    assert rows[0].finish_ns == 200 * MS
    assert front.timed_out == 2
    _, rows = serve(work, seats=1, patience=Patience(total_ns=125 * MS))
    # Given up at 125 ms, in the third decode step, whose token counts; the others then have until 126 and 127 ms.
    assert [(r.outcome, r.generated) for r in rows] == [(TIMED_OUT, 4), (TIMED_OUT, 0), (TIMED_OUT, 0)]


def test_a_client_that_cancels_with_its_tokens_costs_what_a_shorter_answer_costs():
    work = [(7 * MS, 30, 20)] * 12
    shorter = [(gap, prompt, 5 if number % 3 == 0 else output) for number, (gap, prompt, output) in enumerate(work)]
    _, rows = serve(work, cancellation=lambda r: Cancellation(after_tokens=5 if r.request_id % 3 == 0 else -1))
    _, twin = serve(shorter)
    assert [(r.finish_ns, r.first_token_ns, r.generated) for r in rows] == [
        (r.finish_ns, r.first_token_ns, r.generated) for r in twin
    ]
    assert [r.outcome for r in rows] == [CANCELLED if r.request_id % 3 == 0 else FINISHED for r in rows]
    assert all(r.output_tokens == 20 for r in rows)


options = st.fixed_dictionaries(
    {
        "instances": st.integers(1, 3),
        "seats": st.integers(1, 4),
        "overhead_ns": st.sampled_from([0, 3 * MS]),
        "gateway": st.one_of(st.none(), st.builds(Gateway, st.just(4 * MS), st.just(0), st.just(2), st.just(3))),
        "limits": st.one_of(
            st.none(),
            st.builds(
                Limits,
                st.builds(Bound, st.sampled_from([None, 3]), st.sampled_from([None, 120])),
                st.just(Bound()),
                st.booleans(),
            ),
        ),
        "patience": st.builds(
            Patience, st.sampled_from([None, 20 * MS, 90 * MS]), st.sampled_from([None, 100 * MS, 400 * MS])
        ),
        "cancellation": st.sampled_from(
            [
                None,
                lambda r: Cancellation(after_ns=(r.request_id % 5) * 37 * MS),
                lambda r: Cancellation(-1, r.request_id % 4),
            ]
        ),
    }
)


@given(
    st.lists(st.tuples(st.integers(0, 20 * MS), st.integers(1, 60), st.integers(1, 30)), min_size=1, max_size=30),
    options,
)
@settings(max_examples=200, deadline=None)
def test_every_request_has_one_outcome_and_nothing_is_kept(workload, chosen):
    front, rows = serve(workload, **chosen)
    found = outcomes(rows)
    assert found[FINISHED] == front.finished
    assert found[REJECTED] == front.rejected == sum(front.reasons.values())
    assert (found[TIMED_OUT], found[CANCELLED]) == (front.timed_out, front.cancelled)
    for request in rows:
        if request.outcome == FINISHED:
            assert request.generated == request.output_tokens
            for limit, end in zip(chosen["patience"], (request.first_token_ns, request.finish_ns), strict=True):
                assert limit is None or end - request.arrival_ns < limit
