"""The compiled solver against the textbook, and against the plain one, over sequences of starts, ends and changes."""

import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.network import entry, heaps, incremental, kernels
from simulator.network.component import NEVER_NS, ComponentShares, Start
from simulator.network.incremental import IncrementalShares, packed, promoted, replay_flows
from simulator.network.maxmin import maxmin_rates

NS = 10**9
GB = 10**9


@st.composite
def sequences(draw):
    """Return capacities and steps of (gap in ns, starts, links to change, new capacities)."""
    links = draw(st.integers(1, 9))
    capacity = st.one_of(st.just(0), st.integers(GB, 50 * GB), st.just(10 * GB))
    capacities = draw(st.lists(st.integers(GB, 50 * GB), min_size=links, max_size=links))
    path = st.lists(st.integers(0, links - 1), min_size=1, max_size=links, unique=True).map(tuple)
    portion = st.sampled_from([1.0, 0.5, 1 / 3, 0.125]) if draw(st.booleans()) else None
    portions = st.just(()) if portion is None else st.one_of(st.just(()), st.lists(portion, min_size=9, max_size=9))
    start = st.tuples(path, st.integers(1, 10**8), st.sampled_from([1, 1, 1, 2, 0.5, 3.25]), portions)
    change = st.tuples(st.integers(0, links - 1), capacity)
    step = st.tuples(
        st.sampled_from([0, 1, 10**3, 10**6, 10**7]), st.lists(start, max_size=5), st.lists(change, max_size=2)
    )
    return capacities, draw(st.lists(step, min_size=1, max_size=14))


def verify(shares, paths, weights, capacities):
    """Compare the rates of a solver's flows with a full solve of the same flows."""
    rates = shares.rates()
    names = sorted(rates)
    routes, portions = [[paths[name][at] for name in names] for at in (0, 1)]
    exact = maxmin_rates(routes, capacities, [weights[name] for name in names], portions=portions)
    assert [rates[name] for name in names] == pytest.approx(exact, rel=1e-9, abs=1e-6)


def play(shares, capacities, steps, watch):
    """Run a sequence, calling `watch(shares)` after each event; return the finish of each flow, in ns."""
    paths, weights, capacities = {}, {}, list(capacities)
    now, finish, next_ns = 0, {}, NEVER_NS

    def until(limit):
        nonlocal now, next_ns
        while next_ns <= limit:
            now = next_ns
            ended, next_ns = shares.advance((), now)
            finish.update(dict.fromkeys(ended, now))
            watch(shares, paths, weights, capacities)

    for gap, starts, changes in steps:
        then = now + gap
        until(then)
        now = then
        begun = []
        for path, size, weight, portions in starts:
            name, parts = len(paths), tuple(portions[: len(path)])
            paths[name], weights[name] = (path, parts), weight
            begun.append(Start(name, path, size, size, weight, portions=parts))
        ended, next_ns = shares.advance(begun, now)
        finish.update(dict.fromkeys(ended, now))
        watch(shares, paths, weights, capacities)
        for link, capacity in changes:
            capacities[link] = capacity
            next_ns = shares.set_capacity([link], [capacity], now)
            watch(shares, paths, weights, capacities)
    until(NEVER_NS - 1)
    return finish


@given(sequences())
@settings(max_examples=150, deadline=None)
def test_rates_are_those_of_a_full_solve_after_every_event(sequence):
    capacities, steps = sequence
    play(IncrementalShares(capacities), capacities, steps, verify)


@given(sequences())
@settings(max_examples=150, deadline=None)
def test_finishes_and_bytes_are_those_of_the_plain_solver(sequence):
    capacities, steps = sequence
    plain, compiled = ComponentShares(capacities), IncrementalShares(capacities)
    expected = play(plain, capacities, steps, lambda *_: None)
    finish = play(compiled, capacities, steps, lambda *_: None)
    assert finish.keys() == expected.keys()
    for name, at_ns in expected.items():
        assert abs(finish[name] - at_ns) <= max(1e-12 * at_ns, len(expected))  # each end is rounded up to 1 ns
    end = 10**12
    for ours, theirs in zip(compiled.carried(end), plain.carried(end), strict=True):
        assert ours.flows == theirs.flows
        assert ours.peak_bytes_per_s == pytest.approx(theirs.peak_bytes_per_s, rel=1e-9, abs=1e-6)
    assert compiled.ended_bytes() == plain.ended_bytes()
    assert compiled.byte_hops == plain.byte_hops == sum(plain.ended_bytes())


@given(sequences(), st.integers(0, 13))
@settings(max_examples=60, deadline=None)
def test_taking_over_from_the_plain_solver_changes_nothing(sequence, after):
    capacities, steps = sequence

    class Switching:
        """The plain solver for some calls, the compiled one for the rest."""

        def __init__(self):
            self.shares, self.calls = ComponentShares(capacities), 0

        def advance(self, starts, now_ns):
            ended, next_ns = self.shares.advance(starts, now_ns)
            self.calls += 1
            if self.calls == after:
                self.shares, more, next_ns = promoted(self.shares, now_ns)
                ended += more
            return ended, next_ns

        def set_capacity(self, *arguments):
            return self.shares.set_capacity(*arguments)

    expected = play(ComponentShares(capacities), capacities, steps, lambda *_: None)
    finish = play(Switching(), capacities, steps, lambda *_: None)
    assert finish.keys() == expected.keys()
    assert all(abs(finish[name] - at) <= max(1e-12 * at, len(expected) + 1) for name, at in expected.items())


def flows_at(times, links, seed):
    """Return random flows at `times` over `links` links, as a list of (time, Start)."""
    rng = np.random.default_rng(seed)
    found = []
    for name, at in enumerate(times):
        path = tuple(rng.permutation(links)[: rng.integers(1, 7)].tolist())
        size = int(rng.lognormal(14, 1.5)) + 1
        found.append((int(at), Start(name, path, size, size)))
    return found


@pytest.mark.parametrize("seed", range(3))
def test_many_flows_in_chunks_finish_as_in_an_exact_simulation_of_one_solve_per_event(seed):
    rng = np.random.default_rng(seed)
    capacities = rng.integers(5, 50, 60) * GB
    flows = flows_at(np.sort(rng.integers(0, 2_000_000, 600)), 60, seed)
    chunks = [flows[i : i + 97] for i in range(0, 600, 97)]
    arrays = [
        packed([start for _, start in chunk], 0)._replace(ready_ns=np.array([at for at, _ in chunk]))
        for chunk in chunks
    ]
    finish = {}
    for names, times in replay_flows(capacities.tolist(), arrays):
        assert (np.diff(times) >= 0).all()
        finish.update(zip(names.tolist(), times.tolist(), strict=True))
    expected = exact_finishes(flows, capacities.tolist())
    assert finish.keys() == expected.keys()
    assert all(finish[name] == pytest.approx(at, rel=1e-12, abs=600) for name, at in expected.items())
    assert len({finish[name] for name in finish}) > 500


def exact_finishes(flows, capacities):
    """Advance from event to event in unrounded time, solving all flows anew each time."""
    now, left, paths, finish, waiting = 0.0, {}, {}, {}, list(flows)
    while left or waiting:
        names = list(left)
        rates = dict(zip(names, maxmin_rates([paths[name] for name in names], capacities), strict=True))
        ends = {name: now + left[name] / rates[name] * NS for name in names}
        then = min([*ends.values(), *[at for at, _ in waiting[:1]]])
        for name in names:
            left[name] -= rates[name] * (then - now) / NS
            if ends[name] <= then:
                finish[name] = then
                del left[name]
        now = then
        while waiting and waiting[0][0] <= now:
            _, start = waiting.pop(0)
            left[start.name], paths[start.name] = float(start.size), start.path
    return finish


@pytest.mark.parametrize("collide", [True, False], ids=["ecmp", "balanced"])
def test_a_staggered_all_to_all_is_that_of_unrounded_time(collide):
    # 4 leaves of 4 hosts, 4 spines: up, leaf to spine, spine to leaf, down; 1 us a link, so two waves begin
    hosts, rng = 16, np.random.default_rng(3)
    flows = []
    for source in range(hosts):
        for target in range(hosts):
            up, down, leaf, last = source, 16 + target, source // 4, target // 4
            spine = int(rng.integers(4)) if collide else (source + target) % 4
            path = (up, down) if leaf == last else (up, 32 + 4 * leaf + spine, 48 + 4 * last + spine, down)
            if source != target:
                flows.append(
                    (1000 * len(path), Start(16 * source + target, path, 10**6 + (source if collide else 0), 1))
                )
    flows = [(at, start._replace(left=start.size)) for at, start in flows]
    flows.sort(key=lambda flow: (flow[0], flow[1].name))
    capacities = [10 * GB] * 64
    arrays = packed([start for _, start in flows], 0)._replace(ready_ns=np.array([at for at, _ in flows]))
    finish = {}
    for names, times in replay_flows(capacities, [arrays]):
        finish.update(zip(names.tolist(), times.tolist(), strict=True))
    expected = exact_finishes(flows, capacities)
    assert finish.keys() == expected.keys()
    assert all(finish[name] == pytest.approx(at, rel=1e-12, abs=len(flows)) for name, at in expected.items())
    assert (len(set(finish.values())) > 100) == collide


def test_years_of_work_do_not_blur_the_nanosecond():
    # beside a flow that has had c for 10^8 s (5 EB, where a float counts in KiB), b bytes come: c/2 each, so 2b/c
    shares = IncrementalShares([50 * GB])
    shares.advance([Start(0, (0,), 8 * 10**18, 8 * 10**18)], 0)
    for at in range(10**17, 10**17 + 10**9, 10**8 + 1):
        _, next_ns = shares.advance([Start(1, (0,), 10**6, 10**6)], at)
        assert next_ns == at + 40_000
        assert shares.advance((), next_ns)[0] == [1]
    assert shares.on(0) == [0]


def test_a_bundle_is_worth_its_flows():
    # two links of capacity c: n equal flows over both, m over the first: n + m share c equally, until the smaller end
    capacities = [12 * GB, 20 * GB]
    bundle = IncrementalShares(capacities)
    bundle.advance([Start(0, (0, 1), 4 * GB, 4 * GB, 4, 4), Start(1, (0,), 8 * GB, 8 * GB, 2, 2)], 0)
    single = IncrementalShares(capacities)
    flows = [Start(i, (0, 1), GB, GB) for i in range(4)] + [Start(i, (0,), 4 * GB, 4 * GB) for i in range(4, 6)]
    single.advance(flows, 0)
    assert bundle.rates() == {0: 8 * GB, 1: 4 * GB}
    assert single.rates() == dict.fromkeys(range(6), 2 * GB)
    assert bundle.advance((), NS // 2)[0] == [0]
    assert sorted(single.advance((), NS // 2)[0]) == [0, 1, 2, 3]
    assert [row[:1] + row[3:] for row in bundle.carried(NS // 2)] == [
        row[:1] + row[3:] for row in single.carried(NS // 2)
    ]


def test_all_of_many_flows_that_begin_at_once_are_solved_once():
    # n flows over a shared link of capacity c, each with a link of its own of c/2n for every other: c/2n and 3c/2n
    count = 1000
    shares = IncrementalShares([count * GB] + [GB // 2 if i % 2 else 2 * GB for i in range(count)])
    shares.advance([Start(i, (0, i + 1), GB, GB) for i in range(count)], 0)
    rates = shares.rates()
    assert all(rates[i] == pytest.approx(GB / 2 if i % 2 else 1.5 * GB, rel=1e-12) for i in range(count))


def test_paths_longer_than_any_before_and_links_added_later():
    shares = IncrementalShares([GB] * 40)
    shares.advance([Start(0, (0, 1), GB, GB)], 0)
    shares.add_links([GB / 4, GB / 8])
    paths = [tuple(range(40)), (5, 40), (6, 41)]
    shares.advance([Start(name, path, GB, GB) for name, path in enumerate(paths, 1)], 0)
    assert shares.rates() == {0: GB / 2, 1: GB / 2, 2: GB / 4, 3: GB / 8}


def test_what_is_kept_on_disk_hangs_on_every_module_that_is_compiled():
    folder = Path(heaps.__file__).parent
    compiled = [
        path for path in folder.glob("*.py") if re.search(r"^@(compiled|inlined)|numba", path.read_text(), re.M)
    ]
    assert {*compiled, folder / "flow_arrays.py"} - {folder / "incremental.py"} == set(heaps._FILES)
    stamp = [(path.stat().st_mtime, path.stat().st_size) for path in heaps._FILES]
    for loop in (kernels.advance, kernels.share, entry.enter):
        assert list(loop._cache._cache_file._source_stamp) == stamp


LIGHT = """
import sys
from simulator.clock import Clock
from simulator.network import Fabric
from simulator.topology import build_topology
fabric = Fabric(Clock(), build_topology("clos-h100"), 0)
fabric.transfer([(i % 64, 64 + i % 64, 10**6) for i in range(COUNT)])
fabric.env.run()
fabric.check()
print(fabric.completed_flows, "numba" in sys.modules)
"""


@pytest.mark.parametrize(("count", "loaded"), [(100, "False"), (101, "True")])
def test_only_many_flows_at_once_load_the_compiler(count, loaded):
    code = LIGHT.replace("COUNT", str(count))
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.split() == [str(count), loaded]


def test_a_slow_first_use_says_what_it_does(monkeypatch, capsys):
    monkeypatch.setattr(incremental, "_announced", threading.Event())
    monkeypatch.setattr(incremental, "PATIENCE_S", 0.01)
    monkeypatch.setattr(incremental.kernels, "advance", lambda *_: time.sleep(0.5))
    IncrementalShares([GB])
    assert capsys.readouterr().err == "compiling the flow solver (once per machine) ...\n"
    IncrementalShares([GB])
    assert capsys.readouterr().err == ""
