"""Flows that have their links to themselves, and equal ones that go as one, against flows that are entered one by one.

The slow twin enters every flow into the rows of its links when it begins and searches its component at each change; all
that can be asked of a solver has to be equal to the last bit, after every event.
"""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.clock import Clock
from simulator.network import Fabric
from simulator.network.component import NEVER_NS, ComponentShares, Start
from simulator.network.incremental import promoted
from simulator.topology import build_topology

GB = 10**9
SMALL = build_topology("clos-h100", {"nodes": 8, "devices_per_node": 4, "switch": {"radix": 8}, "taper": 1})


class OneByOne(ComponentShares):
    """Takes every flow for one that has company."""

    def _start(self, start, now_ns, touched):
        for part in start.apart():
            self._meet(part, now_ns)
            touched.append(part.path[0])


@st.composite
def sequences(draw):
    """Return capacities and steps of (gap in ns, starts, links to change, flow to stop)."""
    links = draw(st.integers(4, 16))
    wide = st.sampled_from([10 * GB, 10 * GB, 10 * GB, 25 * GB, 40 * GB])
    capacities = draw(st.lists(wide, min_size=links, max_size=links))
    change = st.tuples(st.integers(0, links - 1), st.one_of(st.just(0), wide))
    size = st.one_of(st.sampled_from([10**6, 4 * 10**7]), st.integers(1, 10**8))
    steps = []
    for _ in range(draw(st.integers(1, 14))):
        starts = []
        for _ in range(draw(st.integers(0, 3))):
            order, parts = draw(st.permutations(range(links))), draw(st.integers(1, 4))
            hops = draw(st.integers(1, max(1, links // (2 * parts))))
            paths = [tuple(order[at * hops : at * hops + hops]) for at in range(parts)]
            if draw(st.booleans()):
                paths[-1] = paths[0]  # then they are not disjoint
            starts.append((paths, draw(size)))
        gap = draw(st.sampled_from([0, 1, 10**3, 10**5, 10**6, 10**7]))
        steps.append((gap, starts, draw(st.lists(change, max_size=2)), draw(st.integers(0, 12))))
    return capacities, steps


def play(shares, capacities, steps, together):
    """Run a sequence; return all that was to be seen after each event."""
    now, next_ns, names, seen, live = 0, NEVER_NS, 0, [], []

    def note(ended):
        for name in ended:
            live.remove(name)
        on = [shares.on(link) for link in range(len(capacities))]
        flows = list(shares.rates().items())
        rows = [shares.carried(now), shares.past(now), shares.ended_bytes(), shares.byte_hops, shares.active]
        seen.append((now, sorted(ended), next_ns, on, flows, *rows, shares.under_way(now), shares.moved()))

    def until(limit):
        nonlocal now, next_ns
        while next_ns <= limit:
            now = next_ns
            ended, next_ns = shares.advance((), now)
            note(ended)

    shares.watch()
    for gap, starts, changes, stopped in steps:
        then = now + gap
        until(then)
        now, begun = then, []
        for paths, size in starts:
            parts = tuple((names + at, path) for at, path in enumerate(paths))
            names += len(parts)
            live += [name for name, _ in parts]
            whole = Start(parts[0][0], sum(paths, ()), size, size, parts=parts)
            begun += [whole] if together and len(parts) > 1 else whole.apart()
        ended, next_ns = shares.advance(begun, now)
        note(ended)
        for link, capacity in changes:
            next_ns = shares.set_capacity([link], [capacity], now)
            note(())
        if stopped < len(live):
            path = next(start.path for start in shares.under_way(now) if start.name == live[stopped])
            left = shares.stop([live[stopped]], now)
            next_ns = shares.set_capacity(path, [shares.capacities[link] for link in path], now)
            note([live[stopped]])
            seen.append(left)
    until(NEVER_NS - 1)
    return seen


@pytest.mark.parametrize("together", [False, True], ids=["alone", "as one"])
@given(sequences())
@settings(max_examples=160, deadline=None)
def test_flows_alone_or_as_one_are_as_if_entered_one_by_one(together, sequence):
    capacities, steps = sequence
    expected = play(OneByOne(capacities), capacities, steps, together=False)
    assert play(ComponentShares(capacities), capacities, steps, together) == expected


def test_equal_flows_on_paths_of_their_own_are_one_until_another_comes():
    shares = ComponentShares([10 * GB] * 4)
    parts = tuple((name, (name,)) for name in range(4))
    shares.advance([Start(0, (0, 1, 2, 3), GB, GB, parts=parts)], 0)
    assert len({id(flow) for flow in shares._flows.values()}) == 1
    shares.advance([Start(4, (2,), GB, GB)], 10)
    assert len({id(flow) for flow in shares._flows.values()}) == 5
    assert [shares._flows[name].alone for name in range(5)] == [True, True, False, True, False]


def test_what_goes_as_one_is_taken_over_by_the_compiled_solver_flow_by_flow():
    shares = ComponentShares([10 * GB] * 4)
    parts = tuple((name, (2 * name, 2 * name + 1)) for name in range(2))
    shares.advance([Start(0, (0, 1, 2, 3), GB, GB, parts=parts)], 0)
    compiled, ended, next_ns = promoted(shares, 10**7)
    assert (ended, next_ns) == ([], 10**8)
    assert compiled.advance((), next_ns)[0] == [0, 1]
    assert compiled.carried(next_ns) == [(GB, 10**8, 10.0 * GB, 1)] * 4


class Single(Fabric):
    """A fabric that launches the shards of a transfer one by one."""

    def _launch_together(self, transfer, shards, lane):
        for source, target, size_bytes in shards:
            self._names += 1
            if path := self._way(source, target, self._names):
                self._launch(transfer, path, size_bytes, lane).ends = source, target


@st.composite
def traffic(draw):
    """Return transfers as (gap in ns, shards, lane), changes as (time, link, bytes/s), whether to check all along."""
    transfers = []
    for _ in range(draw(st.integers(1, 12))):
        source, target = draw(st.integers(0, 7)) * 4, draw(st.integers(0, 7)) * 4
        size = draw(st.sampled_from([0, 10**6, 10**8]))
        sizes = [size + draw(st.sampled_from([0, 0, 0, 0, 1])) for _ in range(4)]
        shards = [(source + at, target + at, size) for at, size in enumerate(sizes)]
        gap = draw(st.sampled_from([0, 1, 10**5, 10**6, 2 * 10**6]))
        transfers.append((gap, shards, draw(st.sampled_from([0, 0, 0, 0, 0, 1]))))
    at = st.integers(0, 10**7)
    change = st.tuples(at, st.integers(0, len(SMALL.links) - 1), st.sampled_from([0, 10 * GB, 50 * GB]))
    return transfers, draw(st.lists(change, max_size=4)), draw(st.booleans())


def run(kind, transfers, changes, checks, **options):
    """Return when each transfer arrived, and the rows of links on the way and at the end."""
    env = Clock()
    fabric = kind(env, SMALL, 3, **options)
    seen = []

    def send():
        for number, (gap, shards, lane) in enumerate(transfers):
            yield env.timeout(gap)
            event = fabric.transfer(shards, defused=True, lane=lane)
            event.callbacks.append(lambda event, number=number: seen.append((env.now, number, event.ok)))

    def change(at_ns, link, bytes_per_s):
        yield env.timeout(at_ns)
        fabric.set_capacity([link], bytes_per_s)

    def look():
        for _ in range(6):
            yield env.timeout(1_700_000)
            seen.append(list(fabric.link_rows(env.now)))

    for process in (send(), look(), *(change(*each) for each in changes)):
        env.process(process)
    while env.peek() < float("inf"):
        env.step()
        if checks:  # which looks at every flow by itself
            fabric.check()
    fabric.check()
    return seen, list(fabric.link_rows(env.now)), fabric.completed_flows


@pytest.mark.parametrize("on_dead_link", ["stall", "fail", "reroute"])
@pytest.mark.parametrize("compiled_from", [100, 6])
@given(traffic())
@settings(max_examples=40, deadline=None)
def test_a_transfer_as_one_is_as_if_its_shards_were_launched_one_by_one(on_dead_link, compiled_from, plan):
    options = {"on_dead_link": on_dead_link, "compiled_from": compiled_from}
    assert run(Fabric, *plan, **options) == run(Single, *plan, **options)
