"""Parts of a network by name, faults that overlap, and random ones: a part is up MTBF / (MTBF + repair) of the time."""

import numpy as np
import pytest

from simulator.clock import Clock
from simulator.cluster.faults import (
    Fault,
    LinkHealth,
    Part,
    RandomFaults,
    part,
    parts,
    strike_at,
    strike_at_random,
)
from simulator.errors import InputError
from simulator.topology import build_topology

CLOS = build_topology("clos-h100", {"nodes": 4})
PLANES = build_topology("multi-plane-h800", {"nodes": 128})
SUPERNODE = build_topology("cloudmatrix384")


class Capacities:
    """A network that only remembers the capacity of its links."""

    def __init__(self, topology):
        self.now = [link.capacity_bytes_per_s for link in topology.links]

    def set_capacity(self, links, bytes_per_s):
        for link in links:
            self.now[link] = bytes_per_s


def ends(topology, links):
    return {(topology.links[link].source, topology.links[link].target) for link in links}


def test_a_link_is_one_direction_or_both_and_one_cable_or_all():
    # 4 nodes of 8 on rails: leaf r has 4 downs and as many ups, spread over the spines
    up = part(CLOS, "link", "leaf0.0>spine0").links
    assert ends(CLOS, up) == {("leaf0.0", "spine0")}
    both = part(CLOS, "link", "leaf0.0<>spine0").links
    assert ends(CLOS, both) == {("leaf0.0", "spine0"), ("spine0", "leaf0.0")}
    assert len(both) == 2 * len(up)
    assert part(CLOS, "link", "leaf0.0>spine0#1").links == up[1:2]


def test_a_nic_and_a_switch_and_a_node_take_their_links_with_them():
    assert ends(CLOS, part(CLOS, "nic", "node0/nic3").links) == {
        ("node0/device3", "node0/nic3"),
        ("node0/nic3", "node0/device3"),
        ("node0/nic3", "leaf0.3"),
        ("leaf0.3", "node0/nic3"),
    }
    switch = part(CLOS, "switch", "leaf0.3").links
    assert all("leaf0.3" in (CLOS.links[link].source, CLOS.links[link].target) for link in switch)
    assert len(switch) == sum("leaf0.3" in (link.source, link.target) for link in CLOS.links)
    node = part(CLOS, "node", "2").links
    assert len(node) == 2 * 8 * 3  # NVLink, PCIe and the NIC's cable, both directions
    assert all("node2/" in CLOS.links[link].source + CLOS.links[link].target for link in node)


def test_a_plane_is_a_lane_or_a_whole_network():
    lost = part(PLANES, "plane", "plane3").links
    assert {PLANES.links[link].tier for link in lost} >= {"nic-leaf", "leaf-spine"}
    others = [part(PLANES, "plane", f"plane{i}").links for i in range(8) if i != 3]
    assert not set(lost) & {link for links in others for link in links}
    ub = part(SUPERNODE, "plane", "ub").links
    assert set(part(SUPERNODE, "plane", "ub3").links) < set(ub)
    assert {SUPERNODE.links[link].tier for link in ub} == {"npu-l1", "l1-l2", "cpu-l1"}
    assert {SUPERNODE.links[link].tier for link in part(SUPERNODE, "plane", "rdma").links} >= {"rdma-leaf"}


@pytest.mark.parametrize(
    ("what", "name", "says"),
    [
        ("link", "leaf0.0-spine0", "is no link; write 'a>b'"),
        ("link", "leaf0.0>spine9", "did you mean 'spine0'"),
        ("link", "node0/nic0>spine0", "no link from 'node0/nic0' to 'spine0'"),
        ("link", "leaf0.0>spine0#9", "cables from"),
        ("nic", "node0/nic9", "unknown nic of clos-h100"),
        ("switch", "leaf0.9", "unknown switch of clos-h100"),
        ("node", "9", "there are 0 to 3"),
        ("plane", "rail0", "unknown plane of clos-h100"),
    ],
)
def test_what_is_not_there_is_said(what, name, says):
    with pytest.raises(InputError) as caught:
        part(CLOS, what, name)
    assert says in str(caught.value)


def test_parts_of_a_kind_cover_its_links_once():
    cables = parts(CLOS, "link")
    links = [link for cable in cables for link in cable.links]
    assert sorted(links) == list(range(len(CLOS.links)))  # each direction is in one cable
    for cable in cables:
        one, other = (CLOS.links[link] for link in cable.links)
        assert (one.source, one.target) == (other.target, other.source)
    assert {CLOS.links[link].tier for cable in parts(CLOS, "link", "leaf-spine") for link in cable.links} == {
        "leaf-spine"
    }
    assert len(parts(CLOS, "nic")) == 32
    assert [found.name for found in parts(CLOS, "node")] == ["0", "1", "2", "3"]
    assert parts(CLOS, "node")[2].links == part(CLOS, "node", "2").links
    assert [found.name for found in parts(PLANES, "plane")] == [f"plane{i}" for i in range(8)]
    with pytest.raises(InputError, match="tiers: "):
        parts(CLOS, "switch", "nic-leaf")


def test_overlapping_faults_leave_the_least_and_each_repair_ends_its_own():
    # a link of capacity C: half is left, then a tenth, then the half is repaired, then the rest: C/2, C/10, C/10, C
    network = Capacities(CLOS)
    health = LinkHealth(network, CLOS)
    whole = network.now[0]
    first = health.strike([0], 0.5)
    assert network.now[0] == whole // 2
    second = health.strike([0, 1], 0.1)
    assert network.now[0] == whole // 10
    health.heal(first, [0])
    assert network.now[0] == whole // 10
    health.set_whole([0], whole * 2)
    assert network.now[0] == whole // 5
    health.heal(second, [0, 1])
    assert network.now[:2] == [whole * 2, CLOS.links[1].capacity_bytes_per_s]


def test_a_timed_fault_begins_and_ends_on_the_nanosecond():
    env, network, seen = Clock(), Capacities(CLOS), []
    health = LinkHealth(network, CLOS)
    fault = Fault(Part("x", (0,)), at_ns=100, left=0.0, repair_ns=50)
    env.process(strike_at(env, health, fault, lambda kind, *rest: seen.append((env.now, kind))))
    whole = CLOS.links[0].capacity_bytes_per_s
    for until_ns, capacity in ((100, whole), (101, 0), (150, 0), (151, whole)):
        env.run(until=until_ns)  # but for what happens then
        assert network.now[0] == capacity
    assert seen == [(100, "fault"), (150, "repair")]


def test_random_faults_are_an_alternating_renewal_process():
    # n parts, up Exp(m), down r: over a long time T the down time is n T r / (m + r), each fault lasts exactly r
    env, network = Clock(), Capacities(CLOS)
    health, mean, repair, horizon = LinkHealth(network, CLOS), 9_000, 1_000, 20_000_000
    struck: dict[str, int] = {}
    downs: list[int] = []

    def report(kind, name, detail):
        if kind == "fault":
            assert name not in struck
            struck[name] = env.now
        else:
            downs.append(env.now - struck.pop(name))

    some = tuple(Part(str(i), (i,)) for i in range(10))
    faults = RandomFaults(some, mean, 0.0, repair)
    env.process(strike_at_random(env, health, faults, np.random.default_rng(1), report))
    env.run(until=horizon)
    assert set(downs) == {repair}
    expected = len(some) * horizon / (mean + repair)
    assert abs(len(downs) - expected) < 5 * expected**0.5
