"""Routers as pure choices over a view of a pool, and what old reports show of it."""

from collections import Counter
from math import ceil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.clock import Clock
from simulator.serving.pool import Age, Pool
from simulator.serving.pool_view import BACKLOG, TOKENS, EngineTraits
from simulator.serving.request import Request, Traits
from simulator.serving.routing import ROUTERS, Place


class View:
    """A pool of given loads."""

    def __init__(self, outstanding, tokens=None, backlog=None, kv=None, cached=None, engines=None):
        self.outstanding = list(outstanding)
        count = len(self.outstanding)
        self.tokens = tokens or [0] * count
        self.engines = engines or tuple(EngineTraits(f"e{index}", 1000.0) for index in range(count))
        self._backlog, self._kv, self._cached = backlog or [0] * count, kv or [0.0] * count, cached or [0] * count

    def backlog(self, index):
        return self._backlog[index]

    def kv_share(self, index):
        return self._kv[index]

    def cached_tokens(self, request):
        return self._cached

    def reachable_tokens(self, request):
        return self._cached[::-1]


PLACE, LIVE = Place(seed=5), Age()


def make(name, place=PLACE, **parameters):
    kind = ROUTERS[name]
    return kind.make(kind.parameters(**parameters), place)


def request(number=0, prompt=100, session=None, keys=(1, 2)):
    made = Request(number, 0, prompt, 10, session)
    made.keys = keys
    return made


def place_all(router, view, count, session=str):
    """Send so many requests, none of which ends; return where each went."""
    went = []
    for number in range(count):
        went.append(router(request(number, session=session(number)), view))
        view.outstanding[went[-1]] += 1
    return went


@pytest.mark.parametrize("name", sorted(set(ROUTERS) - {"always_first"}))
@pytest.mark.parametrize("count", [1, 2, 7])
def test_every_router_chooses_an_instance_and_repeats_itself(name, count):
    place = Place(3, "colocated", 50_000_000, 50_000_000)
    runs = [place_all(make(name, place), View([0] * count), 40) for _ in range(2)]
    assert runs[0] == runs[1]
    assert set(runs[0]) <= set(range(count))


@given(st.lists(st.integers(0, 9), min_size=1, max_size=12))
@settings(max_examples=100)
def test_the_least_is_the_least_whichever_load_counts(loads):
    least = min(loads)
    other = [9 - load for load in loads]
    assert loads[make("least_loaded")(request(), View(loads))] == least
    assert loads[make("least_requests")(request(), View(loads))] == least
    assert loads[make("least_tokens")(request(), View(other, tokens=loads))] == least
    assert loads[make("least_kv")(request(), View(other, kv=[load / 9 for load in loads]))] == least
    assert loads[make("slo_aware")(request(), View(other, backlog=loads))] == least


@pytest.mark.parametrize("count", [2, 5, 16])
def test_all_choices_give_the_profile_of_least_loaded(count):
    # With d = n both take a least loaded instance, so the loads in order are the same after every request.
    views = View([0] * count), View([0] * count)
    routers = make("power_of_two", choices=count), make("least_loaded")
    for number in range(10 * count):
        for router, view in zip(routers, views, strict=True):
            view.outstanding[router(request(number), view)] += 1
            if number % 3 == 2:  # one of the most loaded ends
                view.outstanding[view.outstanding.index(max(view.outstanding))] -= 1
        assert sorted(views[0].outstanding) == sorted(views[1].outstanding)


@pytest.mark.parametrize("choices", [2, 3])
def test_choices_are_drawn_evenly_and_each_another(choices):
    # With loads 0 < 1 < 2 ..., instance k is chosen when it is drawn and no lower one is: C(n-1-k, d-1) / C(n, d).
    from math import comb

    router, view, count = make("power_of_two", choices=choices), View(range(5)), 20_000
    found = Counter(router(request(), view) for _ in range(count))
    for index in range(5):
        share = comb(4 - index, choices - 1) / comb(5, choices)
        assert found[index] / count == pytest.approx(share, abs=4 * (share * (1 - share) / count) ** 0.5)


def test_random_is_even():
    found = Counter(place_all(make("random"), View([0] * 8), 16_000))
    assert all(abs(found[index] - 2000) < 4 * (2000 * 7 / 8) ** 0.5 for index in range(8))


def test_streams_of_two_pools_differ():
    runs = [place_all(make("random", Place(5, pool)), View([0] * 8), 50) for pool in ("prefill", "decode")]
    assert runs[0] != runs[1]


@pytest.mark.parametrize("load_weight", [0.5, 1.0, 4.0])
def test_a_hot_prefix_does_not_drown_one_engine(load_weight):
    # Every prompt is whole in engine 0: it stays within (1 + mean) / load_weight of the least, and one for rounding.
    router, view = make("prefix_aware", load_weight=load_weight), View([0] * 8, cached=[100] + [0] * 7)
    for number in range(400):
        view.outstanding[router(request(number), view)] += 1
        mean = sum(view.outstanding) / 8
        assert view.outstanding[0] <= min(view.outstanding) + (1 + mean) / load_weight + 1
    assert view.outstanding[0] >= max(view.outstanding)


@given(
    st.lists(st.tuples(st.integers(0, 6), st.sampled_from([0, 0, 0, 20, 40, 100])), min_size=1, max_size=12),
    st.sampled_from([0.0, 0.3, 1.0, 7.0]),
    st.sampled_from([0.0, 0.3]),
)
def test_the_best_score_is_that_of_a_list_of_all(engines, load_weight, threshold):
    loads, hits = [load for load, _ in engines], [hit for _, hit in engines]
    router, last = make("prefix_aware", load_weight=load_weight, threshold=threshold), -1
    for _ in range(4):
        penalty = load_weight / (1 + sum(loads) / len(loads))
        counted = [hit / 100 if hit >= max(1, threshold * 100) else 0.0 for hit in hits]
        scores = [(penalty * (load - min(loads)) - hit, load) for load, hit in zip(loads, counted, strict=True)]
        best = [at for at, score in enumerate(scores) if score == min(scores)]
        last = next((at for at in best if at > last), best[0])
        assert router(request(), View(loads, cached=hits)) == last
        loads[last] += 1


def test_hits_count_from_the_threshold_on_and_load_alone_without_them():
    view = View([3, 1, 1], cached=[40, 0, 0])
    assert make("prefix_aware", load_weight=0.0)(request(), view) == 0
    assert make("prefix_aware", load_weight=0.0, threshold=0.5)(request(), view) == 1
    assert make("prefix_aware", load_weight=0.0)(request(keys=()), view) == 1


@given(st.lists(st.integers(0, 40), min_size=1, max_size=300), st.floats(1.01, 3), st.integers(1, 9))
@settings(max_examples=60, deadline=None)
def test_sessions_stay_and_loads_are_bounded(sessions, load_factor, count):
    router, view, homes = make("session_affinity", load_factor=load_factor), View([0] * count), {}
    free = View([0] * count)
    for number, session in enumerate(sessions):
        chosen = router(request(number, session=str(session)), view)
        view.outstanding[chosen] += 1
        assert view.outstanding[chosen] <= ceil(load_factor * (number + 1) / count)
        home = router(request(number, session=str(session)), free)  # an idle pool has room everywhere
        assert homes.setdefault(session, home) == home


def test_an_engine_that_goes_moves_only_its_own_sessions():
    router, view = make("session_affinity"), View([0] * 8)
    before = {s: router(request(session=str(s)), view) for s in range(400)}
    fewer = View([0] * 7, engines=view.engines[:7])
    after = {s: router(request(session=str(s)), fewer) for s in range(400)}
    assert all(after[s] == before[s] for s in before if before[s] != 7)
    assert 10 < sum(home == 7 for home in before.values()) < 120


def test_objectives():
    # Prefill takes 1 us a token: predictions of 100 own tokens behind these are 0.3, 0.2 and 0.6 ms.
    view = View([0, 0, 0], backlog=[200, 100, 500])
    assert make("slo_aware")(request(), view) == 1
    assert make("slo_aware", choose="least_slack", ttft="0.4 ms")(request(), view) == 0
    assert make("slo_aware", choose="least_slack", ttft="0.1 ms")(request(), view) == 1
    assert make("slo_aware")(request(), View([0] * 3, backlog=[200, 100, 500], cached=[0, 0, 99])) == 1
    assert make("slo_aware")(request(), View([0] * 3, backlog=[200, 100, 150], cached=[0, 0, 99])) == 2


def test_the_cheapest_that_meets_the_objective():
    def step_ns(batch, context):
        return batch * 1e6

    engines = (
        EngineTraits("fast", 500.0, lambda batch, context: batch * 5e5, 8.0),
        EngineTraits("slow", 2000.0, step_ns, 2.0),
        EngineTraits("slow too", 2000.0, step_ns, 2.0),
    )
    route = make("cost_aware", ttft="1 ms", tpot="2 ms")
    assert route(request(), View([0, 1, 0], backlog=[0, 100, 0], engines=engines)) == 2
    assert route(request(), View([0, 1, 2], backlog=[0, 100, 0], engines=engines)) == 1  # the other decodes too slowly
    assert route(request(), View([0, 1, 1], backlog=[0, 450, 450], engines=engines)) == 0
    assert route(request(), View([0, 1, 1], backlog=[9000, 450, 500], engines=engines)) == 1  # none meets: the soonest
    needs = ROUTERS["cost_aware"].needs
    assert "objective" in needs(ROUTERS["cost_aware"].parameters(), Place())
    assert needs(ROUTERS["cost_aware"].parameters(), Place(ttft_ns=1)) is None


class Still:
    """An instance that does nothing."""

    def __init__(self, name):
        self.name = name


def pool_of(count, router, env, reads=(), age=LIVE):
    pool = Pool("colocated", router, env, reads, age)
    for index in range(count):
        pool.add(Still(f"e{index}"))
    return pool


class Look:
    """A router that notes what it sees and does as it is told."""

    def __init__(self):
        self.seen, self.next = None, 0

    def __call__(self, request, view):
        count = len(view.outstanding)
        self.seen = list(view.outstanding), list(view.tokens), [view.backlog(index) for index in range(count)]
        return self.next


moves = st.lists(
    st.tuples(st.integers(0, 60), st.sampled_from(["send", "first", "end"]), st.integers(0, 9)), max_size=60
)


@given(moves, st.integers(1, 40), st.booleans())
@settings(max_examples=200, deadline=None)
def test_reports_hold_what_was_at_the_last_multiple_of_the_interval(steps, interval, adds_sent):
    # The twin writes the live counts down at every multiple of the interval, before anything else of that nanosecond.
    env, look = Clock(), Look()
    pool = pool_of(3, look, env, (TOKENS, BACKLOG), Age(interval, adds_sent))
    live = [[0] * 3, [0] * 3, [0] * 3]
    known = [[0] * 3, [0] * 3, [0] * 3]
    waiting, running = [], []
    for number, (wait, what, which) in enumerate(steps):
        if env.now + wait > env.now:
            boundary = env.now - env.now % interval + interval
            env.run(until=env.now + wait)
            if boundary <= env.now:
                known = [list(values) for values in live]
        if what == "send":
            sent = Request(number, env.now, 10 + which, 5)
            sent.traits = Traits(predicted_tokens=which)
            look.next = which % 3
            pool.choose(sent)
            assert list(look.seen) == known
            tokens = sent.prompt_tokens + which
            for values in (live, known) if adds_sent else (live,):
                for value, more in zip(values, (1, tokens, sent.prompt_tokens), strict=True):
                    value[look.next] += more
            waiting.append((sent, look.next))
        elif what == "first" and waiting:
            sent, index = waiting.pop(which % len(waiting))  # in any order: not all queues are first come, first served
            sent.end_prefill(env.now)
            live[2][index] -= sent.prompt_tokens
            running.append((sent, index))
        elif what == "end" and (running or waiting):  # finished, or given up before it was prefilled
            came = running or waiting
            sent, index = came.pop(which % len(came))
            pool.left(pool.instances[index], sent)
            live[2][index] -= sent.prompt_tokens if sent.prefill_end_ns < 0 else 0
            live[0][index] -= 1
            live[1][index] -= sent.prompt_tokens + sent.traits.predicted_tokens


def test_an_engine_that_goes_keeps_the_counts_of_the_others():
    env, look = Clock(), Look()
    pool = pool_of(3, look, env, (TOKENS,), Age(10, adds_sent=True))
    gone, last = pool.instances[1], pool.instances[2]
    sent = []
    for number, index in enumerate((1, 2, 2)):
        look.next = index
        sent.append(request(number))
        assert pool.choose(sent[-1]).name == f"e{index}"
    pool.remove(gone)
    look.next = 1
    assert pool.choose(request(9)) is last
    assert look.seen[0] == [0, 2]
    pool.left(gone, sent[0])
    pool.left(last, sent[1])
    assert pool.outstanding == [0, 2]


def test_with_old_reports_the_least_loaded_is_taken_in_turn():
    env = Clock()
    pool = pool_of(4, make("least_loaded"), env, (), Age(10**15))
    assert [pool.choose(request(number)).name for number in range(8)] == ["e0", "e1", "e2", "e3"] * 2


@pytest.mark.parametrize(("name", "more"), [("prefix_aware", {}), ("slo_aware", {}), ("cost_aware", {"ttft": "1 ns"})])
def test_tiers_count_where_they_are_to(name, more):
    for tiers, best in ((False, 0), (True, 1)):
        assert make(name, tiers=tiers, **more)(request(), View([0, 0], cached=[99, 0])) == best
