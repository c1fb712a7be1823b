"""Collectives and expert exchanges at three fidelities: where the group is healthy, symmetric and alone, they agree.

Group of n ranks, p per node, a message of m bytes. The closed form is base + hops + m (load of the busiest link / its
rate); `load` runs serial phases, each as long as its most loaded link; `flow` shares the links max-min fairly.
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.build.collectives import groups_of
from simulator.clock import Clock
from simulator.errors import InputError
from simulator.network.collectives import FORMS, Collectives
from simulator.network.collectives_constants import load_constants
from simulator.network.dispatch import expected_copies, high_throughput, low_latency, token_bytes
from simulator.network.expert_routing import ExpertRouting
from simulator.network.fabric import Fabric
from simulator.network.operations import collective, expert_exchange, run
from simulator.network.routing import routing
from simulator.network.step_network import StepNetwork
from simulator.scenario.collective import CollectiveRun
from simulator.topology import build_topology

RAILS = build_topology("clos-h100", {"nodes": 8})  # every rail within one leaf
ONE_NODE = build_topology("clos-h100", {"nodes": 1})
SPRAYED = build_topology("clos-h100", {"nodes": 8, "attachment": "node"})
H100, IDEAL = load_constants("h100-sxm"), load_constants("ideal")
SIZE = 1 << 24


def took_ns(network, topology, operations):
    env = network.env
    for operation in operations:
        env.process(run(env, network, topology, operation))
    env.run()
    network.check()
    return env.now


def flow_ns(topology, operations, spread=None):
    return took_ns(Fabric(Clock(), topology, 1, spread=spread), topology, operations)


def load_ns(topology, operations, spread=None):
    return took_ns(StepNetwork(Clock(), topology, 1, "load", spread=spread), topology, operations)


def protocols(operation, algorithm, constants):
    from simulator.network.collectives import _kernels

    return list(_kernels(constants, FORMS[operation][algorithm][0]))


EXACT = [
    (operation, algorithm, ranks)
    for operation, forms in FORMS.items()
    for algorithm in forms
    for ranks in (2, 4, 8, 16, 32, 64)
    if not (algorithm in ("one_shot", "two_shot") and ranks > 8)
    and not (operation == "send_receive" and ranks > 2)
    and not (operation in ("all_to_all",) and algorithm in ("pxn", "hierarchical") and ranks <= 8)
    and not (algorithm == "direct" and ranks > 8)  # crosses rails, where hashes collide: below, sprayed
    and not (algorithm == "tree" and ranks == 2)  # the line counts a rank in the middle of a chain, and there is none
]


@pytest.mark.parametrize(("operation", "algorithm", "ranks"), EXACT)
def test_flow_load_and_closed_form_agree(operation, algorithm, ranks):
    collectives = Collectives(RAILS, H100)
    for protocol in protocols(operation, algorithm, H100):
        one = collective(collectives, operation, range(ranks), SIZE, algorithm, protocol)
        slack = 20 + 1e-6 * one.ideal_ns  # whole bytes in rings of rings, and a nanosecond a phase
        assert load_ns(RAILS, [one]) == pytest.approx(one.ideal_ns, abs=slack)
        assert flow_ns(RAILS, [one]) == pytest.approx(one.ideal_ns, abs=slack)


@pytest.mark.parametrize("operation", ["all_to_all", "all_gather", "reduce_scatter"])
@pytest.mark.parametrize("ranks", [16, 32])
def test_direct_exchanges_agree_when_sprayed(operation, ranks):
    spread = routing("spray")
    one = collective(Collectives(SPRAYED, H100), operation, range(ranks), SIZE, "direct", "Simple")
    assert load_ns(SPRAYED, [one], spread) == pytest.approx(one.ideal_ns, rel=1e-4)
    assert flow_ns(SPRAYED, [one], spread) == pytest.approx(one.ideal_ns, rel=1e-4)
    assert load_ns(SPRAYED, [one]) == pytest.approx(one.ideal_ns, rel=1e-4)  # hashes count as spread evenly


@given(
    devices=st.sets(st.integers(0, 63), min_size=2, max_size=20),
    operation=st.sampled_from(["all_reduce", "all_gather", "all_to_all", "broadcast"]),
    size=st.integers(1, 1 << 26),
)
def test_load_and_flow_agree_on_any_group_alone(devices, operation, size):
    # Weighted max-min with weights in proportion to bytes: on a link with bytes S and capacity C a flow of b bytes gets
    # b C / S or more, so it ends by S / C; the most loaded link is never idle, so the last ends at S / C of that link.
    spread = routing("spray")
    one = collective(Collectives(SPRAYED, IDEAL), operation, sorted(devices), size)
    phases = len(one.phases)
    assert load_ns(SPRAYED, [one], spread) == pytest.approx(flow_ns(SPRAYED, [one], spread), abs=2 * phases, rel=1e-6)


def test_a_ring_is_the_textbook_one():
    # n ranks on one switch of rate B, hop a: 2 (n - 1) (a + m / n / B), and nothing else for ideal constants
    for ranks in (2, 3, 5, 8):
        one = collective(Collectives(ONE_NODE, IDEAL), "all_reduce", range(ranks), 8_400_000, "ring")
        expected_ns = 2 * (ranks - 1) * 8_400_000 / ranks / 450
        assert flow_ns(ONE_NODE, [one]) == pytest.approx(expected_ns, abs=2)


def test_groups_on_links_of_their_own_do_not_slow_each_other_and_on_the_same_they_take_turns():
    collectives = Collectives(RAILS, IDEAL)
    one, other = (collective(collectives, "all_reduce", [r, 8 + r], SIZE, "ring") for r in (0, 1))  # rails 0 and 1
    alone = flow_ns(RAILS, [one])
    assert flow_ns(RAILS, [one, other]) == alone
    again = collective(collectives, "all_reduce", [0, 8], SIZE, "ring")
    twice = one.latency_ns + 2 * (alone - one.latency_ns)  # hops take no turns
    assert flow_ns(RAILS, [one, again]) == pytest.approx(twice, abs=3)
    assert load_ns(RAILS, [one, again]) == pytest.approx(twice, abs=3)


def test_a_slow_rail_slows_a_ring_by_its_share_at_every_fidelity():
    collectives = Collectives(RAILS, IDEAL)
    one = collective(collectives, "all_reduce", range(16), SIZE, "ring")
    slow = [link.index for link in RAILS.links if link.source == "node0/nic3" and link.tier == "nic-leaf"]
    networks = Fabric(Clock(), RAILS, 1), StepNetwork(Clock(), RAILS, 1, "load")
    for network in networks:
        network.set_capacity(slow, RAILS.links[slow[0]].capacity_bytes_per_s // 10)
        expected_ns = one.latency_ns + 10 * (one.ideal_ns - one.latency_ns)
        assert took_ns(network, RAILS, [one]) == pytest.approx(expected_ns, rel=1e-4)
    collectives.update(networks[0].capacities)
    ring = collectives.choose("all_reduce", range(16), SIZE, ["ring"])
    assert ring.time_ns(SIZE) == pytest.approx(expected_ns, rel=1e-4)


def exchange(topology, ranks, form, constants, direction="dispatch"):
    nodes = [topology.sites[device].node for device in range(ranks)]
    experts = 4 * ranks
    moe = ExpertRouting(tuple(nodes[e * ranks // experts] for e in range(experts)), 8)
    copies = expected_copies([128] * ranks, moe, [e * ranks // experts for e in range(experts)])
    traffic = {"low_latency": low_latency, "high_throughput": high_throughput}[form](copies, token_bytes(7168, 8, 128))
    if direction == "combine":
        traffic = traffic.reversed(token_bytes(7168, 16))
    phase = getattr(getattr(constants, form), direction)
    return expert_exchange(Collectives(topology, constants), range(ranks), traffic, phase, form)


@pytest.mark.parametrize("form", ["low_latency", "high_throughput"])
@pytest.mark.parametrize("direction", ["dispatch", "combine"])
@pytest.mark.parametrize("ranks", [8, 16, 32])
def test_expert_exchanges_agree(form, direction, ranks):
    topology = SPRAYED if form == "low_latency" else RAILS
    one, spread = exchange(topology, ranks, form, H100, direction), routing("spray")
    assert load_ns(topology, [one], spread) == pytest.approx(one.ideal_ns, rel=2e-3)
    assert flow_ns(topology, [one], spread) == pytest.approx(one.ideal_ns, rel=2e-3)


def test_links_carry_the_bytes_of_the_collective_at_both_fidelities():
    # a ring all-reduce of 8 ranks in one node: each rank's link out carries 2 (n - 1) / n of the message
    one = collective(Collectives(ONE_NODE, H100), "all_reduce", range(8), 8 << 20, "ring", "Simple")
    for network in (Fabric(Clock(), ONE_NODE, 1), StepNetwork(Clock(), ONE_NODE, 1, "load")):
        took_ns(network, ONE_NODE, [one])
        rows = [row for row in network.link_rows(network.env.now) if row[3] == "nvlink"]
        assert len(rows) == 16
        assert {row[5] for row in rows} == {14 << 20}


def test_groups_tile_the_devices():
    def groups(there, **section):
        return groups_of(CollectiveRun.model_validate({"run": {"all_reduce": {"bytes": "1 B"}}, **section}), there)

    assert groups(4) == ((0, 1, 2, 3),)
    assert groups(8, group=2) == ((0, 1), (2, 3), (4, 5), (6, 7))
    assert groups(8, group=2, stride=4) == ((0, 4), (1, 5), (2, 6), (3, 7))
    assert groups(9, devices=8, group=2, stride=2) == ((0, 2), (1, 3), (4, 6), (5, 7))
    for devices, section in ((8, {"group": 3}), (8, {"devices": 9}), (8, {"group": 4, "stride": 4})):
        with pytest.raises(InputError):
            groups(devices, **section)


@given(size=st.integers(1, 9), stride=st.integers(1, 9), blocks=st.integers(1, 9))
def test_every_device_is_in_one_group(size, stride, blocks):
    section = CollectiveRun.model_validate({"run": {"all_reduce": {"bytes": "1 B"}}, "group": size, "stride": stride})
    found = groups_of(section, size * stride * blocks)
    assert sorted(device for group in found for device in group) == list(range(size * stride * blocks))
    assert {len(group) for group in found} == {size}
