"""Strict priority between lanes, engines that flows share, launched flows, and packets stored and forwarded."""

from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.clock import Clock
from simulator.errors import InvariantError
from simulator.network import DeadLinkError, Fabric, Send, Transport
from simulator.topology import Link, Topology, build_topology

NS = 10**9
C = 50 * NS
ALL = 10**6
BOTH = pytest.mark.parametrize("compiled_from", [0, ALL], ids=["compiled", "plain"])


def wires(*capacities, latency_ns=0):
    """Return links that need no topology around them: paths are given."""
    links = [Link(i, f"v{i}", f"v{i + 1}", capacity, latency_ns, "test") for i, capacity in enumerate(capacities)]
    return Topology("test", "none", (), tuple(links), (), (), (), {}, 0, 1.0)


def run(fabric, sends, changes=()):
    """Launch (start, lane, Send) and call (time, change); return when each arrived, with `check()` at every event."""
    env, finish = fabric.env, {}

    def launch(index, start_ns, lane, send):
        yield env.timeout(start_ns)
        try:
            yield fabric.launch([send], lane)
            finish[index] = env.now
        except DeadLinkError:
            finish[index] = ~env.now

    def change(at_ns, act):
        yield env.timeout(at_ns)
        act()
        fabric.check()

    for index, (start_ns, lane, send) in enumerate(sends):
        env.process(launch(index, start_ns, lane, send))
    for at_ns, act in changes:
        env.process(change(at_ns, act))
    while env.peek() < float("inf"):
        env.step()
        fabric.check()
    return [finish.get(index) for index in range(len(sends))]


@BOTH
def test_a_lower_lane_waits_for_the_higher_one(compiled_from):
    # one link c, b bytes in each of three lanes, begun lowest first: they end b/c, 2b/c, 3b/c after
    fabric = Fabric(Clock(), wires(C), 0, compiled_from=compiled_from)
    b = C // 100
    assert run(fabric, [(0, lane, Send((0,), b)) for lane in (7, 3, 0)]) == [30_000_000, 20_000_000, 10_000_000]
    ((*_, moved, busy_ns, fraction, peak, flows),) = fabric.link_rows(fabric.env.now)
    assert (moved, busy_ns, fraction, peak, flows) == (3 * b, 30_000_000, 1.0, C, 3)


@BOTH
def test_what_a_higher_lane_cannot_use_goes_down(compiled_from):
    # link 0 of c, link 1 of c/4. H (lane 0) crosses both: c/4. Two flows of lane 1 on link 0 share 3c/4: 3c/8 each,
    # and L on link 1 alone gets nothing until H ends. H has b, ends at 4b/c; the others have 3b, moved 3b/2 by then,
    # have c/2 each after and end 3b/c later. L has b/4: from 4b/c on it needs b/c.
    fabric = Fabric(Clock(), wires(C, C // 4), 0, compiled_from=compiled_from)
    b = C // 1000
    sends = [(0, 0, Send((0, 1), b)), (0, 1, Send((0,), 3 * b)), (0, 1, Send((0,), 3 * b)), (0, 1, Send((1,), b // 4))]
    assert run(fabric, sends) == pytest.approx([4_000_000, 7_000_000, 7_000_000, 5_000_000], abs=1)
    first, second = fabric.link_rows(fabric.env.now)
    assert first[5:] == (7 * b, fabric.env.now, 1.0, C, 3)
    assert second[5:7] == (b + b // 4, pytest.approx(5_000_000, abs=1))


@BOTH
def test_a_link_is_busy_once_and_its_peak_is_of_all_lanes(compiled_from):
    # caps of c/4 (lane 0, b bytes, from 0) and c/2 (lane 1, b bytes, from b/c): 4b/c and b/c + 2b/c. Busy: 4b/c.
    # Peak: 3c/4. A third flow in lane 2 from 6b/c on for b/c: busy 5b/c, peak c.
    fabric = Fabric(Clock(), wires(C), 0, compiled_from=compiled_from)
    b = C // 1000
    sends = [
        (0, 0, Send((0,), b, cap_bytes_per_s=C // 4)),
        (1_000_000, 1, Send((0,), b, cap_bytes_per_s=C // 2)),
    ]
    assert run(fabric, sends) == [4_000_000, 3_000_000]
    ((*_, busy_ns, _, peak, flows),) = fabric.link_rows(fabric.env.now)
    assert (busy_ns, peak, flows) == (4_000_000, 0.75 * C, 2)
    assert run(fabric, [(2_000_000, 2, Send((0,), b))]) == [7_000_000]
    ((*_, busy_ns, _, peak, flows),) = fabric.link_rows(fabric.env.now)
    assert (busy_ns, peak, flows) == (5_000_000, C, 3)


@BOTH
def test_background_and_capacity_take_from_the_lowest_lane_first(compiled_from):
    # c: lane 0 has a cap of c/2, lane 1 the rest. With half of c taken, lane 1 gets nothing.
    fabric = Fabric(Clock(), wires(C), 0, compiled_from=compiled_from)
    b = C // 1000
    sends = [(0, 0, Send((0,), 4 * b, cap_bytes_per_s=C // 2)), (0, 1, Send((0,), 2 * b))]
    changes = [
        (1_000_000, lambda: fabric.set_background([0], "storage", 0.5)),
        (3_000_000, lambda: fabric.set_background([0], "storage", 0)),
        (4_000_000, lambda: fabric.set_capacity([0], C // 2)),
        (5_000_000, lambda: fabric.set_capacity([0], C)),
    ]
    # lane 1 moves b/2 in each of [0, 1], [3, 4], [5, 6], [6, 7] b/c
    assert run(fabric, sends, changes) == [8_000_000, 7_000_000]


@BOTH
@pytest.mark.parametrize("policy", ["stall", "fail"])
def test_a_link_dies_for_all_lanes(policy, compiled_from):
    fabric = Fabric(Clock(), wires(C, C), 0, on_dead_link=policy, compiled_from=compiled_from)
    b = C // 1000
    sends = [(0, 0, Send((0, 1), 2 * b)), (0, 1, Send((0,), 2 * b)), (0, 2, Send((1,), b))]
    changes = [(1_000_000, lambda: fabric.set_capacity([0], 0)), (2_000_000, lambda: fabric.set_capacity([0], C))]
    stalled = [3_000_000, 5_000_000, 2_000_000]  # the third has link 1 for itself while the first stalls
    assert run(fabric, sends, changes) == (stalled if policy == "stall" else [~1_000_000, ~1_000_000, 2_000_000])
    late = fabric.launch([Send((0,), 1)], 5)
    fabric.set_capacity([0], 0)
    if policy == "fail":
        with pytest.raises(DeadLinkError):
            fabric.env.run(until=late)


@BOTH
def test_a_flow_of_a_lower_lane_is_routed_around_in_its_lane(compiled_from):
    tree = build_topology("clos-h100", {"nodes": 16, "switch": {"radix": 32}})
    fabric = Fabric(Clock(), tree, 0, on_dead_link="reroute", compiled_from=compiled_from)
    ((path, share),) = fabric.route(0, 127)
    assert (path in tree.paths(0, 127), share) == (True, 1.0)
    assert fabric.route(3, 3) == ()
    fabric.launch([Send(path[:1], 10 * C // 1000)], 0)
    below = fabric.launch([Send(path, 10 * C // 1000, ends=(0, 127))], 4)
    fabric.env.run(until=1_000_000)
    fabric.set_capacity([path[2]], 0)
    fabric.check()
    fabric.env.run(until=below)
    fabric.check()
    rows = {row[0]: row[5] for row in fabric.link_rows(fabric.env.now)}
    assert path[2] not in rows or rows[path[2]] == 0
    assert rows[path[-1]] == 10 * C // 1000


@BOTH
def test_check_sees_a_lower_lane_that_takes_what_it_must_not(compiled_from):
    for lane, rate in ((0, 0.5 * C), (1, 0.5 * C)):  # the higher has no bottleneck, or both together too much
        fabric = Fabric(Clock(), wires(C), 0, compiled_from=ALL)
        fabric.launch([Send((0,), C)], 0)
        fabric.launch([Send((0,), C)], 1)
        fabric.env.run(until=10)
        fabric.check()
        (flow,) = fabric._shares._lanes[lane].shares._on(0)
        flow.rate = rate
        with pytest.raises(InvariantError, match="bottleneck" if lane == 0 else "carries"):
            fabric.check()


def exact_rates(paths, weights, capacities):
    """Progressive filling in fractions."""
    rates, rising, left = [Fraction(0)] * len(paths), set(range(len(paths))), list(capacities)
    while rising:
        pulls = {link: sum(weights[f] for f in rising if link in paths[f]) for f in rising for link in paths[f]}
        step = min(left[link] / pull for link, pull in pulls.items())
        for f in rising:
            rates[f] += step * weights[f]
        for link, pull in pulls.items():
            left[link] -= step * pull
        rising = {f for f in rising if all(left[link] > 0 for link in paths[f])}
    return rates, left


def lane_by_lane(flows, capacities):
    """Advance in exact time; at each event solve lane after lane on what is left. Return finishes in ns."""
    now, left, finish = Fraction(0), {}, {}
    waiting = sorted(range(len(flows)), key=lambda f: flows[f][0])
    while waiting or left:
        rates, room = {}, [Fraction(capacity, NS) for capacity in capacities]
        for lane in sorted({flows[f][1] for f in left}):
            members = [f for f in left if flows[f][1] == lane]
            found, room = exact_rates([flows[f][2] for f in members], [Fraction(flows[f][4]) for f in members], room)
            rates.update(zip(members, found, strict=True))
        ends = {f: now + left[f] / rate for f, rate in rates.items() if rate}
        then = min([*ends.values(), *[Fraction(flows[f][0]) for f in waiting[:1]]])
        for f, rate in rates.items():
            left[f] -= rate * (then - now)
            if ends.get(f) == then:
                finish[f] = then
                del left[f]
        now = then
        while waiting and flows[waiting[0]][0] == now:
            left[waiting[0]] = Fraction(flows[waiting[0]][3])
            waiting.pop(0)
    return finish


@st.composite
def laned(draw):
    """Return capacities and flows of (start, lane, path, bytes, weight)."""
    links = draw(st.integers(1, 5))
    capacities = draw(st.lists(st.sampled_from([10 * NS, 20 * NS, 25 * NS]), min_size=links, max_size=links))
    path = st.lists(st.integers(0, links - 1), min_size=1, max_size=links, unique=True).map(tuple)
    start = st.integers(0, 3_000_000) | st.sampled_from([0, 1_000_000])
    flow = st.tuples(start, st.integers(0, 3), path, st.integers(10**6, 10**8), st.sampled_from([1, 1, 2, 0.5]))
    return capacities, draw(st.lists(flow, min_size=1, max_size=10))


@given(laned())
@settings(max_examples=100, deadline=None)
@pytest.mark.parametrize("compiled_from", [0, 2, ALL], ids=["compiled", "mixed", "plain"])
def test_agrees_with_solving_lane_after_lane_at_every_event(compiled_from, case):
    capacities, flows = case
    fabric = Fabric(Clock(), wires(*capacities), 0, compiled_from=compiled_from)
    sends = [(start, lane, Send(path, size, weight=weight)) for start, lane, path, size, weight in flows]
    finish, expected = run(fabric, sends), lane_by_lane(flows, capacities)
    for f, at_ns in enumerate(finish):
        # every end before it is rounded up by less than 1 ns, and what that holds back may weigh ten times as much
        assert abs(at_ns - expected[f]) <= 1 + 10 * len(flows)
    carried = {row[0]: row[5:] for row in fabric.link_rows(fabric.env.now)}
    for link in range(len(capacities)):
        over = [f for f, flow in enumerate(flows) if link in flow[2]]
        if over:
            moved, busy_ns, _, peak, count = carried[link]
            assert (moved, count) == (sum(flows[f][3] for f in over), len(over))
            assert 0 < peak <= capacities[link]
            spans = sorted((flows[f][0], finish[f]) for f in over)
            until, union = 0, 0
            for begin, end in spans:
                union += max(0, end - max(begin, until))
                until = max(until, end)
            assert busy_ns == union


@given(laned(), st.integers(1, 9))
@settings(max_examples=60, deadline=None)
@pytest.mark.parametrize("compiled_from", [0, ALL], ids=["compiled", "plain"])
def test_only_the_order_of_lanes_counts(compiled_from, case, shift):
    # with all flows in one lane it is as if there were none, and with all shifted by some lanes as if they were not
    capacities, flows = case

    def finishes(lane_of):
        fabric = Fabric(Clock(), wires(*capacities), 0, compiled_from=compiled_from)
        sends = [(start, lane_of(lane), Send(path, size)) for start, lane, path, size, _ in flows]
        return run(fabric, sends), list(fabric.link_rows(fabric.env.now)), fabric._shares

    assert finishes(lambda lane: lane)[:2] == finishes(lambda lane: 2 * lane + shift)[:2]
    assert finishes(lambda _: 0)[:2] == finishes(lambda _: shift)[:2]
    assert not hasattr(finishes(lambda _: shift)[2], "_lanes")  # one lane is shared by its solver alone


@given(laned())
@settings(max_examples=40, deadline=None)
def test_the_highest_lane_never_knows_of_the_others(case):
    capacities, flows = case
    sends = [(start, lane, Send(path, size)) for start, lane, path, size, _ in flows]
    top = [send for send in sends if send[1] == 0]
    alone = run(Fabric(Clock(), wires(*capacities), 0), top)
    among = run(Fabric(Clock(), wires(*capacities), 0), sends)
    assert alone == [at_ns for at_ns, send in zip(among, sends, strict=True) if send[1] == 0]


@BOTH
def test_flows_share_an_engine_that_is_no_link(compiled_from):
    # two links of c, an engine of c/2 that a flow over each goes through: c/4 each; a third flow beside the first gets
    # 3c/4. With b bytes each: the third ends at 4b/3c, the others at 4b/c.
    fabric = Fabric(Clock(), wires(C, C, latency_ns=1000), 0, compiled_from=compiled_from)
    engine = fabric.add_engine(C // 2)
    b = C // 1000
    sends = [Send((0,), b, through=(engine,)), Send((1,), b, through=(engine,)), Send((0,), b)]
    assert run(fabric, [(0, 0, send) for send in sends]) == pytest.approx([4_001_000, 4_001_000, 1_334_334], abs=1)
    assert [row[0] for row in fabric.link_rows(fabric.env.now, idle=True)] == [0, 1]
    with pytest.raises(ValueError, match="twice"):
        fabric.launch([Send((0,), b, through=(engine, engine))])
    fabric.launch([sends[0]])
    with pytest.raises(ValueError, match="a flow goes through"):
        fabric.release_engine(engine)
    fabric.env.run()
    fabric.release_engine(engine)
    with pytest.raises(ValueError, match="not all of these are engines"):
        fabric.launch([sends[0]])
    assert fabric.add_engine(C) == engine
    assert run(fabric, [(0, 0, sends[0])]) == [fabric.env.now] == [4_001_000 + 2_001_000 + 1_001_000]
    with pytest.raises(ValueError, match="no engine"):
        fabric.release_engine(0)
    with pytest.raises(ValueError, match="engine of -1"):
        fabric.add_engine(-1)


@BOTH
@pytest.mark.parametrize("lane", [0, 1])
def test_what_a_lost_flow_leaves_of_an_engine_goes_to_the_others(lane, compiled_from):
    # an engine of c/2, a flow over each of two links of c: c/4 each, in unlike lanes c/2 and none. At b/c the first
    # dies; the second has moved b/4 or none, and the rest takes c/2.
    fabric = Fabric(Clock(), wires(C, C), 0, on_dead_link="fail", compiled_from=compiled_from)
    engine = fabric.add_engine(C // 2)
    b = C // 1000
    sends = [(0, 0, Send((0,), b, through=(engine,))), (0, lane, Send((1,), b, through=(engine,)))]
    finish = run(fabric, sends, [(1_000_000, lambda: fabric.set_capacity([0], 0))])
    assert finish == [~1_000_000, 3_000_000 if lane else 2_500_000]
    fabric.release_engine(engine)


@BOTH
def test_engines_and_caps_hold_across_lanes(compiled_from):
    # an engine of c/2: lane 0 has a cap of c/8, lane 1 gets 3c/8 through the engine, lane 2 without it the c/2 left
    fabric = Fabric(Clock(), wires(C), 0, compiled_from=compiled_from)
    engine = fabric.add_engine(C // 2)
    fabric.launch([Send((0,), C, cap_bytes_per_s=C // 8, through=(engine,))], 0)
    fabric.launch([Send((0,), C, through=(engine,))], 1)
    fabric.launch([Send((0,), C)], 2)
    fabric.env.run(until=1000)
    fabric.check()
    assert fabric._shares.rates() == pytest.approx({1: C / 8, 2: 3 * C / 8, 3: C / 2}, rel=1e-12)
    fabric.env.run()
    fabric.check()


@BOTH
def test_a_cap_taken_over_at_the_very_end_of_another_flow_loses_nothing(compiled_from):
    # lanes 0 and 1 with b each on a link of their own, both drained at b/c; in that nanosecond, before the network has
    # its turn, one more comes whose cap is a link that was used before
    fabric = Fabric(Clock(), wires(C, C), 0, compiled_from=compiled_from)
    b = C // 1000
    first = fabric.launch([Send((0,), 1, cap_bytes_per_s=C)], 0)
    fabric.env.run(until=first)
    begun = fabric.env.now
    sends = [(0, 0, Send((0,), b)), (0, 1, Send((1,), b)), (1_000_000, 1, Send((0,), b, cap_bytes_per_s=C // 2))]
    assert run(fabric, sends) == [begun + 1_000_000, begun + 1_000_000, begun + 3_000_000]


def test_a_launch_fires_when_its_last_flow_has_arrived_and_may_have_a_latency_of_its_own():
    transport = Transport(message_latency="3 us", store_and_forward=True)
    for options, latency_ns in (({}, 2000), ({"transport": transport}, 5000 + 4096 * NS // C)):
        fabric = Fabric(Clock(), wires(C, C // 2, latency_ns=1000), 0, **options)
        done = fabric.launch([Send((0,), C // 1000), Send((0, 1), C // 1000)])
        fabric.env.run(until=done)
        assert fabric.env.now == pytest.approx(latency_ns + 2_000_000, abs=1)
        done = fabric.launch([Send((0, 1), C // 1000)], latency_ns=70)
        begun = fabric.env.now
        fabric.env.run(until=done)
        assert fabric.env.now - begun == 70 + 2_000_000
    empty = fabric.launch([])
    fabric.env.run(until=empty)
    assert fabric.env.now == begun + 70 + 2_000_000


def test_wrong_launches_are_refused_and_leave_nothing_behind():
    fabric = Fabric(Clock(), wires(C), 0)
    for wrong in (Send((), 1), Send((0,), -1), Send((0,), 1, weight=0), Send((0,), 1, cap_bytes_per_s=-1)):
        with pytest.raises(ValueError, match="a flow of"):
            fabric.launch([Send((0,), 1), wrong])
    with pytest.raises(ValueError, match="lane -1"):
        fabric.launch([Send((0,), 1)], -1)
    with pytest.raises(ValueError, match="lane -1"):
        Fabric(Clock(), build_topology("clos-h100"), 0).transfer([(0, 1, 1)], lane=-1)
    with pytest.raises(ValueError, match="-5 ns"):
        fabric.launch([Send((0,), 1)], latency_ns=-5)
    fabric.env.run()
    assert fabric.completed_flows == 0


def packet_by_packet(size, payload, header, capacities):
    """Return when the last packet has left the last link, in ns: each link sends one at a time, in order."""
    free = [Fraction(0)] * len(capacities)
    while size > 0:
        packet = min(size, payload) + header
        at = Fraction(0)
        for hop, capacity in enumerate(capacities):
            at = free[hop] = max(at, free[hop]) + Fraction(packet * NS, capacity)
        size -= payload
    return at


@given(st.integers(1, 40_000), st.integers(1, 4096), st.integers(0, 100), st.integers(1, 6))
@settings(max_examples=150, deadline=None)
def test_a_message_over_equal_links_is_a_pipeline_of_packets(size, payload, header, hops):
    transport = Transport(payload_bytes=payload, header_bytes=header, store_and_forward=True)
    fabric = Fabric(Clock(), wires(*[C] * hops, latency_ns=1000), 0, transport=transport)
    (finish,) = run(fabric, [(0, 0, Send(tuple(range(hops)), size))])
    exact = packet_by_packet(size, payload, header, [C] * hops)
    packet = min(size, payload) + header
    assert exact == Fraction((transport.wire_bytes(size) + (hops - 1) * packet) * NS, C)
    assert 0 <= finish - 1000 * hops - exact + Fraction(1, 100) < 2.01  # the latency and the drain are each rounded up


@given(st.integers(1, 30), st.lists(st.sampled_from([C, C // 2, C // 4, 2 * C]), min_size=1, max_size=6))
def test_over_unlike_links_whole_packets_drain_at_the_slowest(packets, capacities):
    transport = Transport(payload_bytes=1000, store_and_forward=True)
    fabric = Fabric(Clock(), wires(*capacities), 0, transport=transport)
    (finish,) = run(fabric, [(0, 0, Send(tuple(range(len(capacities))), packets * 1000))])
    assert 0 <= finish - packet_by_packet(packets * 1000, 1000, 0, capacities) < 2


def test_nothing_is_forwarded_of_an_empty_message_or_by_default():
    assert Transport(store_and_forward=True).forwarding_ns(0, [C, C]) == 0
    assert Transport().forwarding_ns(10**6, [C, C]) == 0
    times = [Transport(store_and_forward=True).forwarding_ns(size, [C] * 3) for size in (1, 100, 4096, 10**6)]
    assert all(before <= after for before, after in pairwise(times))
    assert times[-1] == times[-2] == -(-2 * 4096 * NS // C)


POD = build_topology("clos-h100", {"nodes": 4, "devices_per_node": 4, "switch": {"radix": 8}, "taper": 2})


def everything(seed, policy, compiled_from, flows=90):
    """Run random flows in four lanes, with weights, caps and engines, while links die, shrink and fill up."""
    rng = np.random.default_rng(seed)
    env, finish, links = Clock(), {}, len(POD.links)
    fabric = Fabric(env, POD, seed, on_dead_link=policy, compiled_from=compiled_from)
    engines = [fabric.add_engine(float(rng.integers(1, 60)) * NS) for _ in range(3)]

    def act():
        for index in range(flows):
            yield env.timeout(int(rng.integers(0, 60_000)))
            source, target, lane, size = (int(rng.integers(top)) for top in (16, 16, 4, 3_000_000))
            weight, cap, latency_ns = float(rng.choice([0.5, 1, 2])), rng.choice([None, 20 * NS]), rng.choice([None, 9])
            through = tuple(engines[: rng.integers(0, 4)])
            if shares := fabric.route(source, target):
                send = Send(shares[0][0], size, (source, target), weight, cap, through)
                done = fabric.launch([send], lane, latency_ns, defused=True)
                done.callbacks.append(lambda event, index=index: finish.update({index: (env.now, event.ok)}))
            if index % 5 == 0:
                fabric.set_capacity([int(rng.integers(links))], int(rng.choice([0, 10, 50])) * NS)
            if index % 7 == 0:
                fabric.set_background([int(rng.integers(links))], "other", float(rng.choice([0, 0.3, 1])))
        fabric.set_capacity(range(links), C)
        fabric.set_background(range(links), "other", 0)

    env.process(act())
    while env.peek() < float("inf"):
        env.step()
        fabric.check()
    for engine in engines:
        fabric.release_engine(engine)
    return finish, {row[0]: row[5:] for row in fabric.link_rows(env.now)}


@pytest.mark.parametrize("policy", ["stall", "fail", "reroute"])
@pytest.mark.parametrize("seed", range(3))
def test_everything_at_once_is_the_same_in_both_solvers(seed, policy):
    finish, rows = everything(seed, policy, ALL)
    assert len(finish) > 70
    for compiled_from in (0, 4):
        other, others = everything(seed, policy, compiled_from)
        assert other.keys() == finish.keys()
        assert all(other[index][1] == ok for index, (_, ok) in finish.items())
        assert all(abs(other[index][0] - at_ns) <= len(finish) for index, (at_ns, _) in finish.items())
        assert others.keys() == rows.keys()
        for link, (moved, busy_ns, _, peak, count) in rows.items():
            assert others[link][4] == count
            assert others[link][:2] == pytest.approx((moved, busy_ns), rel=1e-6, abs=10**4)
            assert others[link][3] == pytest.approx(peak, rel=1e-9)


def test_a_lane_hears_of_links_that_fall_idle_in_the_nanosecond_in_which_the_compiled_solver_takes_over():
    # in lane 0 the flow of link 0 ends after 1 ms, when three of link 1 begin; lane 1 has link 0 from then on
    fabric = Fabric(Clock(), wires(C, C), 0, compiled_from=2)
    fabric.send((0,), C // 1000)
    low = fabric.launch([Send((0,), C // 1000)], lane=1)
    fabric.launch([Send((1,), C // 1000)] * 3, latency_ns=10**6)
    low.callbacks.append(lambda _: seen.append(fabric.env.now))
    seen = []
    fabric.env.run()
    fabric.check()
    assert seen == [2 * 10**6]
