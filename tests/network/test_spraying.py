"""A message that is sprayed is one flow on all links of its paths; these laws say what that is worth."""

from math import ceil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.clock import Clock
from simulator.network import DeadLinkError, Fabric
from simulator.network.bundle import Send
from simulator.network.routing import Spraying, routing, together
from simulator.topology import Link, Topology, build_topology

NS = 10**9
CLOS = build_topology("clos-h100", {"nodes": 8, "devices_per_node": 2, "switch": {"radix": 8}, "taper": 1})
SPRAY = routing("spray")
SOLVERS = pytest.mark.parametrize("compiled_from", [10**6, 0], ids=["plain", "compiled"])
transfers = st.lists(
    st.tuples(st.integers(0, 2_000_000), st.integers(0, 15), st.integers(0, 15), st.integers(1, 10**8)),
    min_size=1,
    max_size=14,
)


def run(work, send, **options):
    """Return when each transfer of `work` arrives, `check()` after every event; `send` makes the event of one."""
    env, finish = Clock(), {}
    fabric = Fabric(env, CLOS, 0, **options)

    def one(index, start_ns, source, target, size):
        yield env.timeout(start_ns)
        yield send(fabric, source, target, size)
        finish[index] = env.now

    for index, row in enumerate(work):
        env.process(one(index, *row))
    while env.peek() < float("inf"):
        env.step()
        fabric.check()
    return finish, fabric


@SOLVERS
@given(work=transfers, lanes=st.booleans())
@settings(max_examples=40, deadline=None)
def test_where_all_spray_over_all_paths_it_is_worth_a_flow_on_each_path(work, lanes, compiled_from):
    """Paths between two leaves are alike and carry alike then, so none of them is ahead of the others."""

    def as_one(fabric, source, target, size):
        return fabric.transfer([(source, target, size)], lane=(source % 2) * lanes)

    def path_by_path(fabric, source, target, size):
        shares = SPRAY(CLOS, 0, source, target, 0)
        sends = [Send(path, size // len(shares), None, share) for path, share in shares]
        return fabric.launch(sends, lane=(source % 2) * lanes)

    work = [(at, source, target, size - size % 16) for at, source, target, size in work if size > 16]
    whole, fabric = run(work, as_one, spread=SPRAY, compiled_from=compiled_from)
    parts, other = run(work, path_by_path, compiled_from=compiled_from)
    assert whole.keys() == parts.keys()
    assert all(abs(whole[index] - at) <= 2 * len(work) for index, at in parts.items())  # each end is rounded up
    ours, theirs = ({row[0]: row[5] for row in each.link_rows(each.env.now)} for each in (fabric, other))
    assert ours.keys() == theirs.keys()
    assert all(abs(ours[link] - moved) <= 1 for link, moved in theirs.items())


@SOLVERS
@given(st.integers(1, 10**10), st.integers(0, 15), st.integers(0, 15), st.integers(1, 8))
@settings(max_examples=60, deadline=None)
def test_alone_it_takes_its_latency_and_its_bytes_over_its_most_loaded_link(compiled_from, size, source, target, paths):
    spread = routing("spray", Spraying(paths=paths))
    send = lambda fabric, *row: fabric.transfer([row])  # noqa: E731
    finish, _ = run([(0, source, target, size)], send, spread=spread, compiled_from=compiled_from)
    shares = spread(CLOS, 0, source, target, 1)
    if not shares:
        assert finish == {0: 0}
        return
    way = together(CLOS, shares)
    most = max(
        portion / CLOS.links[link].capacity_bytes_per_s
        for link, portion in zip(way.links, way.portions or [1] * len(way.links), strict=True)
    )
    expected = CLOS.path_latency_ns(way.path) + ceil(size * most * NS - 1e-3)
    assert finish[0] == pytest.approx(expected, rel=1e-12, abs=1)


def two_paths(policy, compiled_from):
    """A NIC of 2 GB/s, then two links of 1 GB/s each between the same switches; half goes over each."""
    links = [Link(0, "a", "s", 2 * NS, 0, "nic"), Link(1, "s", "b", NS, 0, ""), Link(2, "s", "b", NS, 0, "")]
    topology = Topology("test", "none", (), tuple(links), (), (), (), {}, 0, 1.0)

    def spread(topology, seed, source, target, sequence):
        paths = topology.paths(source, target)
        return tuple((path, 1 / len(paths)) for path in paths)

    object.__setattr__(topology, "paths", lambda source, target, plane=None: ((0, 1), (0, 2)))
    env = Clock()
    return env, Fabric(env, topology, 0, spread=spread, on_dead_link=policy, compiled_from=compiled_from)


@SOLVERS
@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        # 2 s of bytes at 2 GB/s; after 1 s a path dies: the rest, 2 GB, has 1 GB/s
        ("reroute", 3 * NS),
        # it waits from 1 s to 5 s
        ("stall", 6 * NS),
        ("fail", None),
    ],
)
def test_a_path_that_dies_under_it(policy, expected, compiled_from):
    env, fabric = two_paths(policy, compiled_from)
    sent = fabric.transfer([(0, 1, 4 * NS)])
    sent.defused = True
    ended = []
    sent.callbacks.append(lambda event: ended.append((env.now, event.ok)))

    def faults():
        yield env.timeout(NS)
        fabric.set_capacity([2], 0)
        fabric.check()
        yield env.timeout(4 * NS)
        fabric.set_capacity([2], NS)

    env.process(faults())
    env.run()
    fabric.check()
    assert ended == [(NS, False) if expected is None else (expected, True)]
    if expected is None:
        assert isinstance(sent.value, DeadLinkError)
    carried = {row[0]: row[5] for row in fabric.link_rows(env.now)}
    assert carried == {"reroute": {0: 4 * NS, 1: 3 * NS, 2: NS}, "stall": {0: 4 * NS, 1: 2 * NS, 2: 2 * NS}}.get(
        policy, {0: 2 * NS, 1: NS, 2: NS}
    )


def test_what_begins_while_a_path_is_dead_goes_over_the_others():
    env, fabric = two_paths("reroute", 100)
    fabric.set_capacity([1], 0)
    done = fabric.transfer([(0, 1, NS)])
    env.run()
    assert done.ok
    assert env.now == NS
    assert [row[0] for row in fabric.link_rows(env.now)] == [0, 2]
