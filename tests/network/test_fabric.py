import heapq
import json
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.clock import Clock
from simulator.errors import InvariantError
from simulator.network import ROUTINGS, DeadLinkError, Fabric, Send, Transport, maxmin_rates
from simulator.network.incremental import IncrementalShares
from simulator.network.routing import ecmp, mix
from simulator.topology import Link, Topology, build_topology

NS = 10**9
NIC = 50 * NS
# four nodes of two devices, rails below 4-port leaves in groups of two nodes, tapered 2:1
SMALL = build_topology("clos-h100", {"nodes": 4, "devices_per_node": 2, "switch": {"radix": 4}, "taper": 2})
REFERENCES = Path(__file__).parents[3] / "shared" / "data" / "reference-flows"


def line(*capacities):
    """Return a topology of links in a row, and nothing else."""
    links = [Link(i, f"v{i}", f"v{i + 1}", capacity, 1000, "test") for i, capacity in enumerate(capacities)]
    return wires(links)


def wires(links):
    return Topology("test", "none", (), tuple(links), (), (), (), {}, 0, 1.0)


class Replay:
    """Transfers at given times over given paths (or ECMP), with `check()` after every event."""

    def __init__(self, topology, transfers, paths=None, seed=0, **options):
        self.env = Clock()
        routing = ecmp if paths is None else lambda topology, seed, source, target, sequence: paths[source]
        self.fabric = Fabric(self.env, topology, seed, routing, **options)
        self.finish_ns = {}
        for index, (start_ns, shards) in enumerate(transfers):
            self.env.process(self._send(index, start_ns, shards))

    def _send(self, index, start_ns, shards):
        yield self.env.timeout(start_ns)
        yield self.fabric.transfer(shards)
        self.finish_ns[index] = self.env.now

    def run(self):
        while self.env.peek() < float("inf"):
            self.env.step()
            self.fabric.check()
        return self.finish_ns


def over(paths, topology, sizes, starts=None):
    """Return finish times of flow i of `sizes[i]` bytes over `paths[i]`."""
    starts = starts or [0] * len(paths)
    transfers = [(start, [(i, -1, size)]) for i, (start, size) in enumerate(zip(starts, sizes, strict=True))]
    return list(dict(sorted(Replay(topology, transfers, paths).run().items())).values())


@given(st.integers(0, 10**12), st.integers(1, 7))
def test_one_flow_takes_its_latency_and_its_bytes_over_its_narrowest_link(size, target):
    path = SMALL.paths(0, target)[0]
    narrowest = min(SMALL.links[link].capacity_bytes_per_s for link in path)
    finish = Replay(SMALL, [(5, [(0, target, size)])]).run()[0]
    assert finish == 5 + SMALL.path_latency_ns(path) + -(-size * NS // narrowest)


@given(st.integers(1, 20), st.integers(1, 10**10))
def test_n_flows_on_one_link_take_n_times_as_long(count, size):
    exact = Fraction(count * size * NS, NIC)
    for finish in over([(0,)] * count, line(NIC), [size] * count):
        assert -1e-3 <= finish - 1000 - exact < 1


def test_two_phases_by_hand():
    # A (3 GB) starts at 0, B (1 GB) at 20 ms, on one link c = 50 GB/s. Alone A moves 1 GB by 20 ms; then both get c/2:
    # B needs 40 ms, ends at 60 ms; A has 1 GB left and c to itself: 20 ms more, ends at 80 ms. All 1 us later.
    assert over([(0,), (0,)], line(NIC), [3 * NS, NS], [0, 20_000_000]) == [80_001_000, 60_001_000]


def test_parking_lot_by_hand():
    # L (b bytes) crosses both links of capacity c, A (b) the first, B (b/2) the second. With latency d a link, A and B
    # have d alone at c, then L comes and all have c/2: A ends at d + d + (b - cd) / (c/2) = 2b/c, B at b/c. L has
    # b - c/2 (2b/c - 2d) = cd bytes left when A ends, and c to itself (B's end left A to hold it down): 2b/c + d.
    finish = over([(0, 1), (0,), (1,)], line(NIC, NIC), [NS, NS, NS // 2])
    assert finish == [40_000_000 + 1_000, 40_000_000, 20_000_000]


@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 10**8)), min_size=1, max_size=12))
def test_a_busy_link_is_never_idle_below_its_capacity(flows):
    # work conservation: in a single busy period a link of capacity c carries exactly c x busy time
    topology = line(NIC)
    replay = Replay(topology, [(start, [(0, -1, size)]) for start, size in flows], [(0,)] * len(flows))
    replay.run()
    ((*_, moved, busy_ns, _, peak, count),) = replay.fabric.link_rows(replay.env.now)
    assert moved == sum(size for _, size in flows)
    assert 0 <= busy_ns - moved * NS / NIC <= len(flows)
    assert (peak, count) == (pytest.approx(NIC), len(flows))


@given(st.lists(st.tuples(st.integers(0, 10**7), st.integers(1, 10**9)), min_size=2, max_size=10))
def test_one_more_flow_on_a_link_never_makes_another_end_earlier(flows):
    starts, sizes = zip(*flows, strict=True)
    fewer = over([(0,)] * (len(flows) - 1), line(NIC), sizes[1:], starts[1:])
    more = over([(0,)] * len(flows), line(NIC), sizes, starts)[1:]
    assert all(after >= before - len(flows) for before, after in zip(fewer, more, strict=True))


transfers_between = st.lists(
    st.tuples(
        st.integers(0, 3_000_000),
        st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7), st.integers(0, 10**8)), max_size=4),
    ),
    max_size=12,
)


def twin(topology, transfers, seed):
    """Advance from event to event, solving all flows anew each time, in exact time: slow and obviously right."""
    numbered = sorted(range(len(transfers)), key=lambda index: transfers[index][0])
    waiting, finish, sequence = [], {}, 0
    for index in numbered:
        start, shards = transfers[index]
        finish[index] = Fraction(start)
        for source, target, size in shards:
            sequence += 1
            path = ecmp(topology, seed, source, target, sequence)
            heapq.heappush(waiting, (Fraction(start + topology.path_latency_ns(path)), sequence, index, path, size))
    capacities = [link.capacity_bytes_per_s for link in topology.links]
    now, left, of, paths = Fraction(0), {}, {}, {}
    while waiting or left:
        flows = list(left)
        rates = [Fraction(rate) / NS for rate in maxmin_rates([paths[f] for f in flows], capacities)]
        ends = [now + left[f] / rate for f, rate in zip(flows, rates, strict=True)]
        then = min([*ends, *(waiting[0][:1] if waiting else ())])
        for f, rate, end in zip(flows, rates, ends, strict=True):
            left[f] -= rate * (then - now)
            if end == then:
                finish[of[f]] = max(finish[of[f]], then)
                del left[f]
        now = then
        while waiting and waiting[0][0] == now:
            _, f, index, path, size = heapq.heappop(waiting)
            if path and size:
                left[f], of[f], paths[f] = Fraction(size), index, path
            finish[index] = max(finish[index], now)
    return finish


@given(transfers_between, st.integers(0, 2**64))
@settings(max_examples=120, deadline=None)
def test_agrees_with_full_filling_at_every_event_and_conserves_bytes(transfers, seed):
    replay = Replay(SMALL, transfers, seed=seed)
    finish = replay.run()
    expected = twin(SMALL, transfers, seed)
    shards = sum(len(shards) for _, shards in transfers)
    assert finish.keys() == expected.keys()
    for index, exact in expected.items():
        # each end before it, rounded up to the nanosecond, may hold a flow back by less than one
        assert -1 < finish[index] - exact < shards + 1
    carried = {}
    for sequence, (source, target, size) in enumerate(
        (shard for _, shards in sorted(transfers, key=lambda t: t[0]) for shard in shards), start=1
    ):
        for link in ecmp(SMALL, seed, source, target, sequence) if size else ():
            carried[link] = carried.get(link, 0) + size
    assert {row[0]: row[5] for row in replay.fabric.link_rows(replay.env.now)} == carried


@given(transfers_between)
@settings(max_examples=30, deadline=None)
def test_twice_the_capacity_halves_the_time(transfers):
    at_once = [(0, shards) for _, shards in transfers]
    instant = replace(SMALL, links=tuple(replace(link, latency_ns=0) for link in SMALL.links))
    doubled = replace(
        instant, links=tuple(replace(k, capacity_bytes_per_s=2 * k.capacity_bytes_per_s) for k in instant.links)
    )
    once, twice = Replay(instant, at_once).run(), Replay(doubled, at_once).run()
    shards = sum(len(shards) for _, shards in transfers)
    assert all(abs(once[index] - 2 * twice[index]) <= 2 * shards + 2 for index in once)


def test_nothing_to_move_takes_no_time_and_no_bytes_take_the_latency():
    transfers = [(7, []), (7, [(3, 3, 10**9)]), (7, [(0, 1, 0)]), (7, [(0, 1, 0), (2, 4, 0)])]
    replay = Replay(SMALL, transfers)
    far = SMALL.path_latency_ns(SMALL.paths(2, 4)[0])
    assert replay.run() == {0: 7, 1: 7, 2: 7 + 3330, 3: 7 + max(far, 3330)}
    assert list(replay.fabric.link_rows(replay.env.now)) == []
    assert len(list(replay.fabric.link_rows(replay.env.now, idle=True))) == len(SMALL.links)


def test_rows_count_flows_under_way_up_to_now():
    replay = Replay(line(NIC, NIC // 2), [(0, [(0, -1, NS)]), (0, [(1, -1, NS)])], [(0, 1), (0,)])
    replay.env.run(until=10_000_000)
    # latencies 2 us and 1 us: the second flow has c for 1 us, then both c/2 up to 10 ms
    first, second = replay.fabric.link_rows(10_000_000)
    share = NIC // 2 * (10_000_000 - 2_000) // NS
    assert first == (0, "v0", "v1", "test", NIC, 2 * share + 50_000, 9_999_000, 0.9999, NIC, 2)
    assert second == (1, "v1", "v2", "test", NIC // 2, share, 9_998_000, 0.9998, NIC // 2, 1)


def test_negative_sizes_and_unknown_devices_are_refused():
    fabric = Fabric(Clock(), SMALL, 0)
    with pytest.raises(ValueError, match="-1 bytes"):
        fabric.transfer([(0, 1, -1)])
    with pytest.raises(IndexError):
        fabric.transfer([(0, 8, 1)])


def test_check_sees_damage():
    for damage in (
        lambda fabric, flow: setattr(flow, "rate", 2.0 * NIC),
        lambda fabric, flow: setattr(flow, "rate", 0.5 * NIC),
        lambda fabric, flow: fabric._shares._bytes.__setitem__(0, 1),
        lambda fabric, flow: fabric._flows.clear(),
    ):
        replay = Replay(line(NIC, NIC), [(0, [(0, -1, NS)])], [(0, 1)])
        replay.env.run(until=10_000)
        replay.fabric.check()
        damage(replay.fabric, next(iter(replay.fabric._shares._flows.values())))
        with pytest.raises(InvariantError):
            replay.fabric.check()


def test_a_capacity_that_changes_takes_effect_at_once():
    # b = 1 GB after 1 us of latency: 10 ms at c move b/2, 10 ms at c/2 move b/4, 10 ms at none, the last b/4 at c
    replay = Replay(line(NIC), [(0, [(0, -1, NS)])], [(0,)])

    def change():
        for wait, capacity in ((10_001_000, NIC // 2), (10_000_000, 0), (10_000_000, NIC)):
            yield replay.env.timeout(wait)
            replay.fabric.set_capacity([0], capacity)

    replay.env.process(change())
    assert replay.run() == {0: 1_000 + 10_000_000 + 10_000_000 + 10_000_000 + 5_000_000}


def test_the_entries_of_superseded_rates_do_not_pile_up():
    count = 100
    replay = Replay(line(NIC), [(i * 1000, [(0, -1, 10**9 + i)]) for i in range(count)], [(0,)] * count)
    fabric, most = replay.fabric, 0
    while replay.env.peek() < float("inf"):
        replay.env.step()
        most = max(most, len(fabric._shares._ending))
    assert most < 64 + 5 * count  # every start and end re-rates all flows: 100 x 100 entries without tidying


def test_ecmp_is_pure_spreads_evenly_and_is_fixed_for_good():
    topology = build_topology("clos-h100")
    paths = list(topology.paths(0, 9))
    counts = [0] * len(paths)
    for sequence in range(100 * len(paths)):
        counts[paths.index(ecmp(topology, 1, 0, 9, sequence))] += 1
    mean, square = 100, sum((count - 100) ** 2 for count in counts) / 100
    assert sum(counts) == mean * len(paths)
    assert abs(square - (len(paths) - 1)) < 4 * (2 * len(paths)) ** 0.5  # chi-square of its degrees of freedom
    assert mix(0) == 0xE220A8397B1DCDAF  # the first output of SplitMix64 from seed 0, as published
    assert mix(1, 2, 3) != mix(1, 3, 2)
    assert len({ecmp(topology, seed, 0, 9, 1) for seed in range(64)}) > 32
    assert "ecmp" in ROUTINGS


PROBE = """
from simulator.clock import Clock
from simulator.network import Fabric
from simulator.topology import build_topology
env = Clock()
fabric = Fabric(env, build_topology("clos-h100-tapered"), 7)
def send(k):
    for i in range(6):
        yield fabric.transfer([((k + j) % 128, (k * 31 + i * 17 + j) % 128, 10**7 + k * i) for j in range(4)])
for k in range(32):
    env.process(send(k))
env.run()
print(env.now, list(fabric.link_rows(env.now)))
"""


def test_the_same_seed_gives_the_same_rows_in_processes_of_other_hash_seeds():
    rows = [
        subprocess.run(
            [sys.executable, "-c", PROBE], env={"PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2")
    ]
    assert rows[0] == rows[1]
    assert len(rows[0]) > 1000


SEND = 10**9  # 20 ms alone on a NIC


def run_with_change(on_dead_link, changes, compiled_from=10**6, transfers=((0, [(0, 2, SEND)]),), **options):
    """Run transfers over SMALL while links change; return the finish or the failure of each and the fabric."""
    env = Clock()
    fabric = Fabric(env, SMALL, 3, on_dead_link=on_dead_link, compiled_from=compiled_from, **options)
    outcome = {}

    def send(index, start, shards):
        yield env.timeout(start)
        try:
            yield fabric.transfer(shards)
            outcome[index] = env.now
        except DeadLinkError as error:
            outcome[index] = f"{env.now}: {error}"

    def change():
        for at, links, capacity in changes:
            yield env.timeout(at - env.now)
            fabric.set_capacity(links, capacity)
            fabric.check()

    for index, (start, shards) in enumerate(transfers):
        env.process(send(index, start, shards))
    env.process(change())
    while env.peek() < float("inf"):
        env.step()
        fabric.check()
    return outcome, fabric


PATH = ecmp(SMALL, 3, 0, 2, 1)
ALONE = run_with_change("stall", [])[0][0]
MODES = pytest.mark.parametrize("compiled_from", [0, 10**6], ids=["compiled", "plain"])


@MODES
def test_a_stalled_flow_waits_out_the_repair(compiled_from):
    repaired = [(5_000_000, [PATH[1]], 0), (12_000_000, [PATH[1]], NIC)]
    outcome, fabric = run_with_change("stall", repaired, compiled_from)
    assert outcome[0] == pytest.approx(ALONE + 7_000_000, abs=2)
    assert {row[0]: row[5] for row in fabric.link_rows(fabric.env.now)} == dict.fromkeys(PATH, SEND)


@MODES
def test_a_failed_transfer_says_where_and_frees_its_links(compiled_from):
    # both flows leave device 0 by one NIC: c/2 each until one fails at 10 ms, then the other has c
    to = next(t for t in range(2, 8) if PATH[2] not in SMALL.paths(0, t)[0])
    outcome, fabric = run_with_change(
        "fail", [(10_000_000, [PATH[-1]], 0)], compiled_from, [(0, [(0, 2, SEND)]), (0, [(0, to, SEND)])]
    )
    dead = SMALL.links[PATH[-1]]
    assert outcome[0].startswith(f"10000000: link {dead.index} from {dead.source} to {dead.target} is dead")
    assert outcome[1] == pytest.approx(10_000_000 + 15_000_000, rel=1e-3)
    # a transfer over the dead link fails as soon as it would begin
    late = fabric.transfer([(0, 2, 1000), (0, to, 1000)], defused=True)
    fabric.env.run()
    assert not late.ok
    assert isinstance(late.value, DeadLinkError)


def test_a_failure_that_nobody_waits_for_stops_the_run():
    env = Clock()
    fabric = Fabric(env, line(NIC), 0, lambda *_: (0,), on_dead_link="fail")
    fabric.transfer([(0, 1, SEND)])
    env.run(until=10_000)
    fabric.set_capacity([0], 0)
    with pytest.raises(DeadLinkError, match="link 0 from v0 to v1"):
        env.run()


TREE = build_topology("clos-h100", {"nodes": 16, "switch": {"radix": 32}})


@MODES
def test_a_flow_is_routed_around_and_keeps_what_it_moved(compiled_from):
    path = ecmp(TREE, 0, 0, 127, 1)
    up = path[2]
    assert any(up not in other for other in TREE.paths(0, 127))
    env = Clock()
    fabric = Fabric(env, TREE, 0, on_dead_link="reroute", compiled_from=compiled_from)
    done = fabric.transfer([(0, 127, SEND)])
    env.run(until=10_000_000)
    fabric.set_capacity([up], 0)
    fabric.check()
    assert not fabric._shares.on(up)
    env.run()
    fabric.check()
    assert done.ok
    alone = TREE.path_latency_ns(path) + 20_000_000
    assert env.now == pytest.approx(alone, abs=2)  # all paths are alike, and nothing is sent twice
    rows = {row[0]: row[5] for row in fabric.link_rows(env.now)}
    assert 0 < rows[up] < SEND
    assert rows[path[0]] == SEND
    assert sum(rows[link] for link in rows if link in {k for p in TREE.paths(0, 127) for k in p[2:3]}) == SEND


@MODES
def test_where_no_way_is_left_a_flow_stalls_until_any_way_is_repaired(compiled_from):
    ups = sorted({path[2] for path in TREE.paths(0, 127)})
    env = Clock()
    fabric = Fabric(env, TREE, 0, on_dead_link="reroute", compiled_from=compiled_from)
    done = fabric.transfer([(0, 127, SEND)])
    env.run(until=10_000_000)
    fabric.set_capacity(ups, 0)
    env.run(until=30_000_000)
    assert not done.triggered
    own = ecmp(TREE, 0, 0, 127, 1)[2]
    fabric.set_capacity([next(up for up in ups if up != own)], NIC)
    env.run()
    fabric.check()
    assert done.ok
    assert env.now == pytest.approx(TREE.path_latency_ns(TREE.paths(0, 127)[0]) + 40_000_000, abs=2)


@MODES
def test_background_takes_its_fraction_of_a_link(compiled_from):
    env = Clock()
    fabric = Fabric(env, line(NIC), 0, lambda *_: (0,), compiled_from=compiled_from)
    fabric.set_background([0], "all-reduce", 0.5)
    fabric.set_background([0], "storage", 0.25)
    done = fabric.transfer([(0, 1, NIC // 1000)])
    env.run(until=2_000_000 + 1_000)  # at c/4 half is moved in 2 ms
    fabric.check()
    fabric.set_background([0], "storage", 0)
    fabric.set_background([0], "all-reduce", 0)
    env.run(until=done)
    assert env.now == 1_000 + 2_000_000 + 500_000
    with pytest.raises(ValueError, match=r"1\.5"):
        fabric.set_background([0], "storage", 1.5)


@MODES
def test_weights_and_caps_divide_a_link(compiled_from):
    # capacity c: weights 1 and 3 share what a cap of c/5 leaves: c/5, 4c/5 x 1/4, 4c/5 x 3/4
    env = Clock()
    fabric = Fabric(env, line(NIC), 0, compiled_from=compiled_from)
    fabric.send((0,), SEND, weight=9, cap_bytes_per_s=NIC // 5)
    fabric.send((0,), SEND)
    fabric.send((0,), SEND, weight=3)
    env.run(until=10_000)
    fabric.check()
    assert fabric._shares.rates() == pytest.approx({1: NIC / 5, 2: NIC / 5, 3: 3 * NIC / 5}, rel=1e-12)
    env.run()
    again = fabric.send((0,), SEND, cap_bytes_per_s=NIC // 2)
    env.run()
    assert again.ok
    assert len(fabric._shares.carried(env.now)) == 2  # the link that stood for the first cap serves the second


def test_links_for_caps_are_made_many_at_once():
    # 100 flows with caps of c/200: the solver, whose arrays are copied each time, is asked for 1, 1, 2, 4, ... 64 links
    fabric = Fabric(Clock(), line(NIC), 0, compiled_from=0)
    add_links = IncrementalShares.add_links
    with patch.object(IncrementalShares, "add_links", autospec=True, side_effect=add_links) as made:
        fabric.launch([Send((0,), SEND)])
        fabric.env.run(until=2_000)
        fabric.launch([Send((0,), SEND, cap_bytes_per_s=NIC // 200) for _ in range(100)])
        fabric.env.run(until=10_000)
    fabric.check()
    assert fabric._shares.rates() == pytest.approx({1: NIC / 2} | dict.fromkeys(range(2, 102), NIC / 200), rel=1e-9)
    assert [len(call.args[1]) for call in made.call_args_list] == [1, 1, 2, 4, 8, 16, 32, 64]


def test_a_transport_adds_headers_time_and_the_bandwidth_that_small_messages_lack():
    plain = Transport()
    assert [plain.wire_bytes(size) for size in (0, 1, 10**9)] == [0, 1, 10**9]
    transport = Transport(header_bytes=66, payload_bytes=1000, half_bandwidth_bytes="64 KiB", message_latency="3 us")
    assert transport.wire_bytes(0) == 0
    assert transport.wire_bytes(1001) == 1001 + 2 * 66 + 65536
    env = Clock()
    fabric = Fabric(env, line(NIC), 0, lambda *_: (0,), transport=transport)
    done = fabric.transfer([(0, 1, 50_000_000)])
    env.run()
    assert done.ok
    assert env.now == 1_000 + 3_000 + -(-transport.wire_bytes(50_000_000) // 50)


def test_a_spread_transfer_uses_all_its_paths_at_once():
    def spread(*_):
        return (((0,), 0.5), ((1,), 0.5))

    env = Clock()
    fabric = Fabric(env, line(NIC, NIC), 0, spread=spread)
    done = fabric.transfer([(0, 1, SEND + 1)])
    env.run()
    assert done.ok
    assert env.now == 1_000 + 10_000_001  # half the bytes each
    assert [row[5] for row in fabric.link_rows(env.now)] == [SEND // 2 + 1] * 2  # half a byte each, rounded
    assert [row[9] for row in fabric.link_rows(env.now)] == [1, 1]
    assert fabric.completed_flows == 1


def test_wrong_capacities_and_flows_are_refused():
    fabric = Fabric(Clock(), SMALL, 0)
    with pytest.raises(ValueError, match="-1 bytes/s"):
        fabric.set_capacity([0], -1)
    for arguments in (((), 1), ((0,), -1), ((0,), 1, 0), ((0,), 1, 1, -1)):
        with pytest.raises(ValueError, match="a flow of"):
            fabric.send(*arguments)


@given(transfers_between, st.lists(st.tuples(st.integers(0, 4_000_000), st.integers(0, 63)), max_size=4))
@settings(max_examples=40, deadline=None)
@pytest.mark.parametrize("policy", ["stall", "fail", "reroute"])
def test_links_that_come_and_go_hurt_both_solvers_alike(policy, transfers, dips):
    links = len(SMALL.links)
    changes = [(at, [link % links], 0) for at, link in dips]
    changes += [(at + 1_500_000, [link % links], 20 * NS) for at, link in dips]
    changes.sort(key=lambda change: change[0])
    plain, fabric = run_with_change(policy, changes, 10**6, transfers)
    compiled, other = run_with_change(policy, changes, 0, transfers)
    assert plain.keys() == compiled.keys() == set(range(len(transfers)))
    for index, finish in plain.items():
        if isinstance(finish, str):
            assert compiled[index].split(",")[0] == finish.split(",")[0]
        else:
            assert abs(compiled[index] - finish) <= 20
    ours, theirs = (sum(row[5] for row in each.link_rows(each.env.now)) for each in (fabric, other))
    assert abs(ours - theirs) <= 10 * links


@pytest.mark.skipif(not REFERENCES.is_dir(), reason="the reference flows are not at hand")
@pytest.mark.parametrize("compiled_from", [0, 10**6], ids=["compiled", "plain"])
@pytest.mark.parametrize("on_dead_link", ["stall", "fail"])
@pytest.mark.parametrize("name", ["single_flow", "parking_lot", "dumbbell_hetero", "incast_16", "leafspine16_link_down",
                                  "leafspine64_4to1_permutation"])  # fmt: skip
def test_agrees_with_an_established_flow_level_simulator(name, on_dead_link, compiled_from):
    case = json.loads((REFERENCES / f"{name}.json").read_text())
    links = [
        Link(k["id"], k["src"], k["dst"], round(k["bandwidth_Bps"]), round(k["latency_s"] * NS), "")
        for k in case["links"]
    ]
    flows = case["flows"]
    env, finish, failed = Clock(), {}, {}
    fabric = Fabric(env, wires(links), 0, on_dead_link=on_dead_link, compiled_from=compiled_from)

    def send(index, flow):
        yield env.timeout(round(flow["start_s"] * NS))
        try:
            yield fabric.send(tuple(flow["path"]), round(flow["bytes"]))
            finish[index] = env.now
        except DeadLinkError:
            failed[index] = env.now

    def change():
        for at in case["capacity_changes"]:
            yield env.timeout(round(at["time_s"] * NS) - env.now)
            fabric.set_capacity([at["link"]], round(at["bandwidth_Bps"]))

    for index, flow in enumerate(flows):
        env.process(send(index, flow))
    env.process(change())
    env.run()
    fabric.check()
    assert any(flow["completed"] for flow in flows)
    for index, flow in enumerate(flows):
        assert (index in finish) == flow["completed"]
        assert (index in failed) == (not flow["completed"] and on_dead_link == "fail")
        if flow["completed"]:
            duration = (flow["finish_s"] - flow["start_s"]) * NS
            assert abs(finish[index] - flow["finish_s"] * NS) <= max(10, 1e-6 * duration)
