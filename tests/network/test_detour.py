"""Ways around dead links on direct networks: the minimal paths that are left, else the shortest longer ones."""

import networkx
import pytest

from simulator.clock import Clock
from simulator.network.carrier import Carrier
from simulator.network.detour import Detours
from simulator.network.fabric import Fabric
from simulator.network.routing import ROUTINGS, ecmp, routing
from simulator.topology import build_topology

TORUS = build_topology("torus-8x8x8", {"dimensions": [3, 4, 2]})
DRAGONFLY = build_topology("dragonfly-h4", {"below": 2, "routers": 4, "across": 2, "groups": 9})
SLIM_FLY = build_topology("slim-fly-q13", {"q": 4})
CLOS = build_topology("clos-h100", {"nodes": 4, "devices_per_node": 4, "switch": {"radix": 8}})
DIRECT = {"torus": TORUS, "dragonfly": DRAGONFLY, "slim fly": SLIM_FLY}
SIZE = 10_000_000


def both_ways(topology, link):
    ends = {topology.links[link].source, topology.links[link].target}
    return [other.index for other in topology.links if {other.source, other.target} == ends]


def hops_left(topology, source, target, dead):
    graph = networkx.DiGraph((ln.source, ln.target) for ln in topology.links if ln.index not in dead)
    return networkx.shortest_path_length(graph, topology.sites[source].name, topology.sites[target].name)


def with_one_path(topology):
    """Return two devices that one path alone joins, and the cable of it between routers that is in its middle."""
    for target in range(1, len(topology.sites)):
        paths = topology.paths(0, target)
        if len(paths) == 1 and len(paths[0]) > 4:
            middle = paths[0][len(paths[0]) // 2]
            return target, both_ways(topology, middle)
    raise AssertionError


@pytest.mark.parametrize("policy", sorted(ROUTINGS))
@pytest.mark.parametrize("family", sorted(DIRECT))
def test_where_the_only_minimal_path_dies_a_longer_one_is_taken(family, policy):
    topology = DIRECT[family]
    target, dead = with_one_path(topology)
    env = Clock()
    fabric = Fabric(env, topology, 3, on_dead_link="reroute", spread=routing(policy))
    first = fabric.transfer([(0, target, SIZE)])
    env.run(until=100_000)  # of 200 us: half is moved
    fabric.set_capacity(dead, 0)
    fabric.check()
    carried = {row[0]: row[5] for row in fabric.link_rows(env.now)}
    env.run()
    assert first.ok
    assert env.now < 250_000  # no byte goes twice, and no repair is waited for
    begun_ns = env.now
    second = fabric.transfer([(0, target, SIZE)])
    env.run()
    fabric.check()
    assert second.ok
    rows = {row[0]: row[5] for row in fabric.link_rows(env.now)}
    assert [rows.get(link, 0) for link in dead] == [carried.get(link, 0) for link in dead]
    assert rows[topology.paths(0, target)[0][0]] == 2 * SIZE
    if policy != "valiant":  # what begins now pays the latency of the longer way
        extra = hops_left(topology, 0, target, dead) - len(topology.paths(0, target)[0])
        hop_ns = topology.links[dead[0]].latency_ns
        alone_ns = topology.path_latency_ns(topology.paths(0, target)[0]) + SIZE * 10**9 // 50_000_000_000
        assert extra > 0
        assert env.now - begun_ns == alone_ns + extra * hop_ns


@pytest.mark.parametrize("family", ["torus", "slim fly"])
def test_what_is_searched_for_is_what_is_left_of_the_minimal_paths(family):
    topology = DIRECT[family]
    between = [link.index for link in topology.links if link.tier == "router-router"]
    dead = dict.fromkeys(other for link in between[::17] for other in both_ways(topology, link))
    around = Detours(topology, ecmp, 0, dead)
    some = 0
    for target in range(1, len(topology.sites)):
        paths = topology.paths(0, target)
        left = [path for path in paths if dead.keys().isdisjoint(path)]
        assert list(around._alive.paths(0, target)) == left or (
            not left and len(around._alive.paths(0, target)[0]) == hops_left(topology, 0, target, dead)
        )
        some += 0 < len(left) < len(paths)
    assert some


@pytest.mark.parametrize("policy", ["valiant", "rail_aligned"])
def test_a_dead_place_on_the_way_does_not_stop_what_can_go_straight(policy):
    # Device 1 of node 0 to device 2 of node 1: by rails over the NIC of device 2 of node 0, which is dead.
    topology, source, target = CLOS, 1, 6
    env = Clock()
    fabric = Fabric(env, topology, 0, on_dead_link="reroute", spread=routing(policy))
    lost = [ln.index for ln in topology.links if ln.source == "node0/nic2" or ln.target == "node0/nic2"]
    lost += [ln.index for ln in topology.links if ln.source.startswith("node3/nic")]
    fabric.set_capacity(lost, 0)
    done = [fabric.transfer([(source, target, SIZE)]) for _ in range(20)]
    env.run()
    fabric.check()
    assert all(each.ok for each in done)


def test_adaptive_routing_in_a_lane_knows_of_all_flows():
    # Eight flows out of a leaf with eight cables up: the least busy one is another one each time.
    topology = build_topology("clos-h100", {"nodes": 16, "switch": {"radix": 16}})

    def took_ns(lane):
        env = Clock()
        fabric = Fabric(env, topology, 1, spread=routing("adaptive"))
        network = Carrier(fabric, topology, 1, None, lane) if lane else fabric
        for source in range(0, 64, 8):
            network.transfer([(source, source + 64, 50_000_000)])
        env.run()
        fabric.check()
        return env.now

    assert took_ns(1) == took_ns(0) == 1_003_700
