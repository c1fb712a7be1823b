"""Collectives and expert exchanges at three fidelities: where the group is healthy, symmetric and alone, they agree.

Group of n ranks, p per node, a message of m bytes. The closed form is base + hops + m (load of the busiest link / its
rate) + own part; `load` runs serial phases, each as long as its most loaded link; `flow` shares links max-min fairly.
"""

from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.build.collectives import groups_of
from simulator.clock import Clock
from simulator.errors import InputError
from simulator.network.collectives import FORMS, Collectives, kernels_of
from simulator.network.collectives_constants import CollectiveConstants, Kernel, load_constants
from simulator.network.collectives_phases import phases
from simulator.network.collectives_shape import group_nodes
from simulator.network.dispatch import exchange_ns, expected_copies, high_throughput, low_latency, token_bytes
from simulator.network.expert_routing import ExpertRouting
from simulator.network.fabric import DeadLinkError, Fabric
from simulator.network.operations import collective, expert_exchange, run, run_together
from simulator.network.routing import routing
from simulator.network.step_network import StepNetwork
from simulator.network.transport import RoceV2
from simulator.scenario.collective import CollectiveRun
from simulator.topology import build_topology

RAILS = build_topology("clos-h100", {"nodes": 8})  # every rail within one leaf
ONE_NODE = build_topology("clos-h100", {"nodes": 1})
SPRAYED = build_topology("clos-h100", {"nodes": 8, "attachment": "node", "switch": {"radix": 16}})  # a leaf per node
H100, IDEAL = load_constants("h100-sxm"), load_constants("ideal")
SPRAY = routing("spray")
SIZE = 10_080 << 10  # splits into whole bytes for every number of ranks, rings and trees used here
GROUPS = {f"1x{n}": tuple(range(n)) for n in (2, 3, 4, 5, 6, 7, 8)}
GROUPS |= {f"{k}x8": tuple(range(8 * k)) for k in (2, 3, 4, 5, 8)}
GROUPS |= {f"{k}x1": tuple(range(0, 8 * k, 8)) for k in (2, 3, 4, 5, 7)}
GROUPS |= {f"{k}x3": tuple(8 * i + j for i in range(k) for j in (0, 1, 5)) for k in (2, 3, 4)}
GROUPS |= {f"{k}x2": tuple(8 * i + j for i in range(k) for j in (0, 1)) for k in (2, 3, 4)}
GROUPS["uneven"] = (0, 1, 2, 8, 17, 18)


def took_ns(network, operations, lanes=None):
    env = network.env
    for number, operation in enumerate(operations):
        env.process(run(env, network, network.topology, operation, lanes[number] if lanes else 0))
    env.run()
    network.check()
    return env.now


def flow_ns(topology, *operations, spread=SPRAY, **options):
    return took_ns(Fabric(Clock(), topology, 1, spread=spread, **options), operations)


def load_ns(topology, *operations, **options):
    return took_ns(StepNetwork(Clock(), topology, 1, "load", **options), operations)


def closed_ns(topology, *operations):
    return took_ns(StepNetwork(Clock(), topology, 1, "alpha_beta"), operations)


def rounding_ns(operation):
    """A nanosecond for each phase, one for the two waits, and float error."""
    return len(operation.phases) + 1 + 1e-9 * operation.ideal_ns


def every_one(collectives, devices, size=SIZE):
    """Yield every operation by every algorithm and protocol that suits a group."""
    for operation, forms in FORMS.items():
        for algorithm, (family, form) in forms.items():
            if form(collectives.shape(devices)) is not None:
                for protocol in kernels_of(collectives.constants, family):
                    yield operation, collective(collectives, operation, devices, size, algorithm, protocol)


def assert_all_agree(topology, devices):
    seen = 0
    collectives = Collectives(topology, H100)
    for operation, one in every_one(collectives, devices):
        line = collectives.choose(operation, devices, SIZE, [one.algorithm], one.protocol)
        assert line.time_ns(SIZE) == pytest.approx(one.ideal_ns, abs=rounding_ns(one), rel=0), (operation, line)
        for ns in (flow_ns(topology, one), load_ns(topology, one), closed_ns(topology, one)):
            assert ns == pytest.approx(one.ideal_ns, abs=rounding_ns(one), rel=0), (operation, one.algorithm)
        seen += 1
    assert seen >= 10


@pytest.mark.parametrize("group", ["1x2", "1x3", "1x8", "2x8", "3x3", "4x1", "uneven"])
def test_flow_load_and_closed_form_agree_to_the_nanosecond(group):
    assert_all_agree(RAILS, GROUPS[group])


@pytest.mark.nightly
@pytest.mark.parametrize("topology", [RAILS, SPRAYED], ids=["rails", "nodes"])
@pytest.mark.parametrize("group", GROUPS)
def test_flow_load_and_closed_form_agree_for_every_shape(group, topology):
    assert_all_agree(topology, GROUPS[group])


@pytest.mark.parametrize("group", ["2x8", "3x8", "5x8"])
def test_what_stays_on_rails_of_one_leaf_needs_no_spraying(group):
    for operation, one in every_one(Collectives(RAILS, H100), GROUPS[group]):
        if one.algorithm != "direct":
            assert flow_ns(RAILS, one, spread=None) == pytest.approx(one.ideal_ns, abs=rounding_ns(one)), operation


@settings(deadline=None)
@given(
    devices=st.sets(st.integers(0, 63), min_size=2, max_size=20),
    operation=st.sampled_from(["all_reduce", "all_gather", "all_to_all", "broadcast"]),
    size=st.integers(1, 1 << 26),
)
def test_load_and_flow_agree_on_any_group_alone(devices, operation, size):
    # Weighted max-min with weights in proportion to bytes: on a link with bytes S and capacity C a flow of b bytes gets
    # b C / S or more, so it ends by S / C; the most loaded link is never idle, so the last ends at S / C of that link.
    one = collective(Collectives(SPRAYED, IDEAL), operation, sorted(devices), size)
    load = load_ns(SPRAYED, one, spread=SPRAY)
    assert load == pytest.approx(flow_ns(SPRAYED, one), abs=2 * len(one.phases), rel=1e-6)


@settings(deadline=None, max_examples=40)
@given(
    devices=st.sets(st.integers(0, 63), min_size=2, max_size=24),
    operation=st.sampled_from(["all_reduce", "reduce_scatter", "all_to_all", "broadcast"]),
    size=st.integers(1, 1 << 26),
    seed=st.integers(0, 100),
)
def test_the_load_is_a_lower_bound_of_flows_whose_hashes_collide(devices, operation, size, seed):
    # Non-blocking: spread evenly, no cable of the core is fuller than a NIC, so the bound is one of access links, which
    # every route of a flow takes.
    one = collective(Collectives(SPRAYED, H100), operation, sorted(devices), size)
    flow = took_ns(Fabric(Clock(), SPRAYED, seed), [one])
    assert load_ns(SPRAYED, one) <= flow + rounding_ns(one)


FAMILIES = {
    "cloudmatrix384": (0, 1, 2, 3, 16, 17, 18, 19),  # within a node and between nodes bytes go by the same links
    "mi300x-mesh": range(8),  # a link for each pair
    "pcie-a100": range(8),  # two root ports share a way between the sockets
    "torus-8x8x8": range(27),
    "slim-fly-q13": range(16),
    "dragonfly-h4": range(16),
    "rail-only-h100": range(16),
    "multi-plane-h800": range(24),
}


@pytest.mark.parametrize("preset", FAMILIES)
def test_on_any_fabric_the_closed_form_is_the_load_and_the_sprayed_flows(preset):
    topology = build_topology(preset)
    for operation, one in every_one(Collectives(topology, IDEAL), FAMILIES[preset], SIZE // 16):
        for ns in (flow_ns(topology, one), load_ns(topology, one), closed_ns(topology, one)):
            assert ns == pytest.approx(one.ideal_ns, abs=rounding_ns(one) + 1, rel=1e-6), (operation, one.algorithm)


def test_a_mesh_exchanges_over_all_its_links_and_a_ring_over_one():
    # n ranks, a link of C for each pair: a rank sends m / n to each other one, over a link for it alone
    mesh = build_topology("mi300x-mesh")
    collectives, ranks, rate = Collectives(mesh, IDEAL), range(8), 64
    assert collectives.shape(ranks).local_bytes_per_s == 64e9
    assert collectives.shape(ranks).rate_inside(to_all=True) == pytest.approx(7 * 64e9)
    direct, ring = (collective(collectives, "all_gather", ranks, SIZE, algorithm) for algorithm in ("direct", "ring"))
    assert direct.ideal_ns == pytest.approx(SIZE / 8 / rate)
    assert collectives.choose("all_gather", ranks, SIZE, ["direct"]).time_ns(SIZE) == pytest.approx(SIZE / 8 / rate)
    assert ring.ideal_ns == pytest.approx(7 * SIZE / 8 / rate)


def test_hashes_do_collide():
    # a ring of two nodes below a leaf each: eight flows each way over eight cables, k of them on one take k times as
    # long; sprayed, none of them meets another
    one = collective(Collectives(SPRAYED, IDEAL), "all_reduce", range(16), SIZE, "ring")
    alone_ns = load_ns(SPRAYED, one) - one.latency_ns
    assert flow_ns(SPRAYED, one) - one.latency_ns == pytest.approx(alone_ns, abs=3)
    times = (flow_ns(SPRAYED, one, spread=None) - one.latency_ns) / alone_ns
    assert times == pytest.approx(round(times), rel=1e-3)
    assert times > 1.5


def test_a_ring_is_the_textbook_one():
    # n ranks on one switch of rate B, hop a: 2 (n - 1) (a + m / n / B); all-gather and reduce-scatter half of it
    hop = Kernel(base="0 ns", local_hop="700 ns", local_share=1.0)
    constants = CollectiveConstants(device="x", kernels={"ring": {"Simple": hop}}, sources={})
    collectives = Collectives(ONE_NODE, constants)
    for ranks in (2, 3, 5, 8):
        for operation, passes in (("all_reduce", 2), ("all_gather", 1), ("reduce_scatter", 1)):
            one = collective(collectives, operation, range(ranks), SIZE, "ring")
            expected_ns = passes * (ranks - 1) * (700 + SIZE / ranks / 450)
            for of in (flow_ns, load_ns, closed_ns):
                assert of(ONE_NODE, one) == pytest.approx(expected_ns, abs=2)


def test_groups_on_links_of_their_own_do_not_slow_each_other_and_on_the_same_they_take_turns():
    # B bytes over a NIC of C take B / C: of two rings on one rail each gets C / 2, so both take 2 B / C; hops as before
    collectives = Collectives(RAILS, IDEAL)
    one, other = (collective(collectives, "all_reduce", [r, 8 + r], SIZE, "ring") for r in (0, 1))  # rails 0 and 1
    again = collective(collectives, "all_reduce", [0, 8], SIZE, "ring")
    for of in (flow_ns, load_ns):
        alone = of(RAILS, one)
        assert of(RAILS, one, other) == alone
        assert of(RAILS, one, again) == pytest.approx(one.latency_ns + 2 * (alone - one.latency_ns), abs=2)
    assert closed_ns(RAILS, one, again) == closed_ns(RAILS, one)  # each as if alone


@pytest.mark.parametrize("algorithm", ["ring", "tree", "hierarchical"])
@pytest.mark.parametrize("width", [1, 4, 8])
def test_on_a_nic_a_collective_claims_what_one_flow_does(algorithm, width):
    # R bytes of each rank's edge to the other node and R of a plain flow on one NIC of C: both have C / 2 until 2 R / C
    group = [*range(width), *range(8, 8 + width)]
    one = collective(Collectives(RAILS, IDEAL), "all_reduce", group, SIZE, algorithm)
    [rail] = [phase for phase in one.phases if any(source < 8 <= target for source, target, _ in phase.shards)]
    edge = sum(size for source, target, size in rail.shards if source == 0 and target >= 8)
    network, ended = Fabric(Clock(), RAILS, 1), []
    before_ns = one.latency_ns + (closed_ns(RAILS, one) - one.latency_ns - edge / 50) / 2 * (
        algorithm == "hierarchical"
    )

    def other():
        yield network.env.timeout(round(before_ns) - RAILS.path_latency_ns(RAILS.paths(0, 8)[0]))
        yield network.transfer([(0, 8, edge)])
        ended.append(network.env.now)

    network.env.process(other())
    took_ns(network, [one])
    assert ended == [pytest.approx(before_ns + 2 * edge / 50, abs=4)]


def test_a_lane_above_goes_first():
    one, again = (collective(Collectives(RAILS, IDEAL), "all_reduce", [0, 8], SIZE, "ring") for _ in range(2))
    ends = []
    network = Fabric(Clock(), RAILS, 1)
    for operation, lane in ((one, 1), (again, 0)):
        process = network.env.process(run(network.env, network, RAILS, operation, lane))
        process.callbacks.append(lambda _: ends.append(network.env.now))
    network.env.run()
    alone = flow_ns(RAILS, one)
    assert ends == pytest.approx([alone, 2 * alone - one.latency_ns], abs=2)


@pytest.mark.parametrize("stride", [1, 8])
def test_equal_groups_of_all_devices_take_the_time_of_one(stride):
    # tensor parallel groups have links of their own; data parallel ones, a rail each, too
    collectives = Collectives(RAILS, H100)
    starts = range(0, 64, 8) if stride == 1 else range(8)
    groups = [range(start, start + 8 * stride - stride + 1, stride) for start in starts]
    several = [collective(collectives, "all_reduce", group, SIZE) for group in groups]
    assert sorted(device for group in groups for device in group) == list(range(64))
    for of in (partial(flow_ns, spread=None), load_ns, closed_ns):
        assert of(RAILS, *several) == pytest.approx(several[0].ideal_ns, abs=rounding_ns(several[0]))


@pytest.mark.parametrize("left", [0.5, 0.1, 0.03])
def test_a_slow_rail_slows_a_ring_by_its_share_at_every_fidelity(left):
    # the NIC of rank 3 has f of its rate: the edge of the ring that leaves by it takes 1 / f of the time, and so all
    collectives = Collectives(RAILS, IDEAL)
    one = collective(collectives, "all_reduce", range(16), SIZE, "ring")
    slow = [link.index for link in RAILS.links if link.source == "node0/nic3" and link.tier == "nic-leaf"]
    rate = round(RAILS.links[slow[0]].capacity_bytes_per_s * left)
    expected_ns = one.latency_ns + (one.ideal_ns - one.latency_ns) / left
    networks = [Fabric(Clock(), RAILS, 1), *(StepNetwork(Clock(), RAILS, 1, f) for f in ("load", "alpha_beta"))]
    for network in networks:
        network.set_capacity(slow, rate)
        assert took_ns(network, [one]) == pytest.approx(expected_ns, abs=rounding_ns(one))
    collectives.update(networks[0].capacities)
    ring = collectives.choose("all_reduce", range(16), SIZE, ["ring"])
    assert ring.time_ns(SIZE) == pytest.approx(expected_ns, rel=1e-9)


@pytest.mark.parametrize("group", ["1x8", "2x8", "3x3"])
def test_twice_the_rates_take_half_the_time_beside_the_waits(group):
    # every link, and with the links every engine and every rank's own part, twice as fast: only the hops stay
    rates = {"nvlink": "900 GB/s", "pcie": "126.02 GB/s", "link": "800 Gbps"}
    faster = build_topology("clos-h100", {"nodes": 8} | {name: {"bandwidth": rate} for name, rate in rates.items()})
    pairs = zip(RAILS.links, faster.links, strict=True)
    assert all(2 * slow.capacity_bytes_per_s == fast.capacity_bytes_per_s for slow, fast in pairs)
    before, after = (list(every_one(Collectives(t, H100), GROUPS[group])) for t in (RAILS, faster))
    for (operation, slow), (_, fast) in zip(before, after, strict=True):
        assert fast.latency_ns == slow.latency_ns
        for of in (flow_ns, load_ns, closed_ns):
            expected_ns = slow.latency_ns + (of(RAILS, slow) - slow.latency_ns) / 2
            assert of(faster, fast) == pytest.approx(expected_ns, abs=rounding_ns(slow)), operation


def carried(network):
    return {row[0]: row[5] for row in network.link_rows(network.env.now)}


@pytest.mark.parametrize("group", ["1x8", "2x8", "4x1", "uneven"])
def test_links_carry_the_same_bytes_at_every_fidelity(group):
    for operation, one in every_one(Collectives(RAILS, H100), GROUPS[group]):
        networks = [Fabric(Clock(), RAILS, 1, spread=SPRAY)]
        networks += [StepNetwork(Clock(), RAILS, 1, fidelity) for fidelity in ("load", "alpha_beta")]
        found = []
        for network in networks:
            took_ns(network, [one])
            found.append(carried(network))
        assert found[0].keys() == found[1].keys() == found[2].keys(), (operation, one.algorithm)
        for link, moved in found[0].items():
            assert found[1][link] == found[2][link]
            assert found[1][link] == pytest.approx(moved, abs=128, rel=1e-6), (operation, one.algorithm)


def test_links_carry_the_bytes_of_a_ring():
    # a ring all-reduce of n ranks in one node: each rank's link out carries 2 (n - 1) / n of the message, and one in
    one = collective(Collectives(ONE_NODE, H100), "all_reduce", range(8), 8 << 20, "ring", "Simple")
    for network in (Fabric(Clock(), ONE_NODE, 1), StepNetwork(Clock(), ONE_NODE, 1, "load")):
        took_ns(network, [one])
        rows = [row for row in network.link_rows(network.env.now) if row[3] == "nvlink"]
        assert len(rows) == 16
        assert {row[5] for row in rows} == {14 << 20}
        assert {row[9] for row in rows} == {1}


@pytest.mark.parametrize("operation", ["all_reduce", "all_gather", "all_to_all", "broadcast"])
def test_a_transport_adds_as_much_to_flows_as_to_loads(operation):
    # packets of q bytes with h of headers, on every link and through every engine: 1 + h / q of the bytes' time
    for protocol in ("LL", "Simple"):
        one = collective(Collectives(RAILS, H100), operation, range(16), 64 * SIZE, None, protocol)
        load, flow = load_ns(RAILS, one, transport=RoceV2()), flow_ns(RAILS, one, transport=RoceV2())
        bytes_ns = load_ns(RAILS, one) - one.latency_ns - one.last_ns
        assert load - one.latency_ns - one.last_ns == pytest.approx(bytes_ns * (1 + 82 / 4096), rel=1e-4)
        assert flow == pytest.approx(load, rel=1e-4)  # whole packets: a sprayed flow has more of them


@pytest.mark.parametrize("algorithm", ["ring", "direct"])
def test_a_dead_link_fails_a_group_that_needs_it_and_no_other(algorithm):
    collectives = Collectives(RAILS, H100)
    hurt, whole = (collective(collectives, "all_gather", group, SIZE, algorithm) for group in ((0, 8), (1, 9)))
    dead = [link.index for link in RAILS.links if link.source == "node0/nic0" and link.tier == "nic-leaf"]
    networks = [Fabric(Clock(), RAILS, 1, on_dead_link="fail")]
    networks += [StepNetwork(Clock(), RAILS, 1, fidelity) for fidelity in ("load", "alpha_beta")]
    for network in networks:
        network.set_capacity(dead, 0)
        with pytest.raises(DeadLinkError, match="dead"):
            took_ns(network, [hurt])
        begun = network.env.now
        assert took_ns(network, [whole]) - begun == pytest.approx(whole.ideal_ns, abs=rounding_ns(whole))


@pytest.mark.parametrize("fidelity", ["flow", "load", "alpha_beta"])
def test_groups_that_are_lost_stop_no_other_and_are_told_when_all_have_ended(fidelity):
    # of eight groups, a rail each, the NICs of rails 2 and 5 are dead; the last of the others ends when it would alone
    collectives = Collectives(RAILS, H100)
    groups = [collective(collectives, "all_gather", (rail, 8 + rail), (1 + rail) * SIZE, "ring") for rail in range(8)]
    network = Fabric(Clock(), RAILS, 1, on_dead_link="fail")
    if fidelity != "flow":
        network = StepNetwork(Clock(), RAILS, 1, fidelity)
    dead = [
        link.index for link in RAILS.links if link.source in ("node0/nic2", "node0/nic5") and link.tier == "nic-leaf"
    ]
    network.set_capacity(dead, 0)
    env, ended = network.env, []

    def part(operation):
        yield from run(env, network, RAILS, operation)
        ended.append(operation)

    with pytest.raises(DeadLinkError, match="node0/nic2"):
        env.run(env.process(run_together(env, [part(group) for group in groups])))
    assert ended == [group for rail, group in enumerate(groups) if rail not in (2, 5)]
    assert env.now == pytest.approx(groups[7].ideal_ns, abs=rounding_ns(groups[7]))
    network.check()


def test_what_is_no_dead_link_is_not_kept():
    env = Clock()

    def wrong():
        yield env.timeout(1)
        raise ValueError("a defect")

    def long():
        yield env.timeout(100)

    with pytest.raises(ValueError, match="a defect"):
        env.run(env.process(run_together(env, [long(), wrong()])))
    assert env.now == 1


def test_a_stalled_operation_ends_after_the_repair():
    # the link dies half way through the bytes for R: the second half waits for it
    one = collective(Collectives(RAILS, IDEAL), "all_gather", (0, 8), SIZE, "ring")
    network = Fabric(Clock(), RAILS, 1, on_dead_link="stall")
    link = next(link for link in RAILS.links if link.source == "node0/nic0" and link.tier == "nic-leaf")

    def fault():
        yield network.env.timeout(one.latency_ns + round(one.ideal_ns - one.latency_ns) // 2)
        network.set_capacity([link.index], 0)
        yield network.env.timeout(10**6)
        network.set_capacity([link.index], link.capacity_bytes_per_s)

    network.env.process(fault())
    assert took_ns(network, [one]) == pytest.approx(one.ideal_ns + 10**6, abs=3)


def exchanged(topology, ranks, form, direction="dispatch", loads=None, constants=H100):
    nodes = [topology.sites[device].node for device in range(ranks)]
    experts = 4 * ranks
    held = [e * ranks // experts for e in range(experts)]
    moe = ExpertRouting(tuple(nodes[rank] for rank in held), 8, loads)
    traffic = {"low_latency": low_latency, "high_throughput": high_throughput}[form](
        expected_copies([128] * ranks, moe, held), token_bytes(7168, 8, 128)
    )
    if direction == "combine":
        traffic = traffic.reversed(token_bytes(7168, 16))
    return traffic, getattr(getattr(constants, form), direction)


def exchange(topology, ranks, form, direction="dispatch", loads=None, constants=H100):
    traffic, phase = exchanged(topology, ranks, form, direction, loads, constants)
    return expert_exchange(Collectives(topology, constants), range(ranks), traffic, phase, form)


def test_few_processors_bound_an_exchange_at_every_fidelity():
    # c copies of a rank, each t on one of P processors: c t / P where that is more than the ports take
    traffic, phase = exchanged(RAILS, 16, "high_throughput")
    collectives = Collectives(RAILS, H100)
    shape = collectives.shape(range(16))
    times = []
    for processors in (None, 8, 4, 2):
        one = expert_exchange(collectives, range(16), traffic, phase, "high_throughput", processors)
        ports_ns = exchange_ns(traffic, phase, shape.local_bytes_per_s, shape.rail_bytes_per_s, processors)
        for ns in (one.ideal_ns, flow_ns(RAILS, one), load_ns(RAILS, one), closed_ns(RAILS, one)):
            assert ns == pytest.approx(ports_ns, abs=2)
        times.append(ports_ns - one.latency_ns)
    assert times[3] == pytest.approx(2 * times[2])
    assert times[0] < times[3]


@pytest.mark.parametrize("form", ["low_latency", "high_throughput"])
@pytest.mark.parametrize("direction", ["dispatch", "combine"])
@pytest.mark.parametrize("ranks", [4, 8, 16, 24, 32])
def test_expert_exchanges_agree(form, direction, ranks):
    topology = SPRAYED if form == "low_latency" else RAILS
    one = exchange(topology, ranks, form, direction)
    # expected copies are fractions: each flow is within a byte, n flows share a port; LL's slowest port has 0.49 B / ns
    slack = rounding_ns(one) + ranks / 40
    shape = Collectives(topology, H100).shape(range(ranks))
    network = shape.cross_bytes_per_s if form == "low_latency" else shape.rail_bytes_per_s
    ports_ns = exchange_ns(*exchanged(topology, ranks, form, direction), shape.local_bytes_per_s, network)
    assert ports_ns == pytest.approx(one.ideal_ns, abs=slack)
    for of in (flow_ns, load_ns, closed_ns):
        assert of(topology, one) == pytest.approx(one.ideal_ns, abs=slack)


@settings(deadline=None, max_examples=15)
@given(exponent=st.floats(0, 0.5), form=st.sampled_from(["low_latency", "high_throughput"]), seed=st.integers(0, 99))
def test_skewed_exchanges_take_at_least_their_load(exponent, form, seed):
    # Zipf: the k-th of 64 experts in proportion to k^-s, up to an s at which no expert is asked for twice by a token
    loads = np.random.default_rng(seed).permutation((1.0 + np.arange(64)) ** -exponent)
    one = exchange(SPRAYED, 16, form, loads=tuple(loads.tolist()))
    load, flow = load_ns(SPRAYED, one), flow_ns(SPRAYED, one)
    assert load <= flow + 3
    assert load == pytest.approx(one.ideal_ns, abs=rounding_ns(one))
    # below non-blocking leaves no link is fuller than a port, so that is what the most loaded port takes
    shape = Collectives(SPRAYED, H100).shape(range(16))
    network = shape.cross_bytes_per_s if form == "low_latency" else shape.rail_bytes_per_s
    sent = exchanged(SPRAYED, 16, form, loads=tuple(loads.tolist()))
    assert load == pytest.approx(exchange_ns(*sent, shape.local_bytes_per_s, network), abs=rounding_ns(one) + 1)


@pytest.mark.parametrize(("ranks", "dispatch_us", "combine_us"), [(8, 77, 114), (32, 155, 273)])
def test_published_exchanges_come_back_at_every_fidelity(ranks, dispatch_us, combine_us):
    # DeepEP's table, on H800 (NVLink 200 GB/s a way, 8 x 400G): 128 tokens per rank, hidden 7168, top 8
    topology = build_topology(
        "clos-h100", {"nodes": 4, "attachment": "node", "switch": {"radix": 16}, "nvlink": {"bandwidth": "200 GB/s"}}
    )
    for direction, us in (("dispatch", dispatch_us), ("combine", combine_us)):
        one = exchange(topology, ranks, "low_latency", direction, constants=load_constants("h800-sxm"))
        for of in (flow_ns, load_ns, closed_ns):
            assert of(topology, one) / 1e3 == pytest.approx(us, rel=0.06)


def test_an_exchange_of_many_devices_is_taken_as_a_whole():
    topology = build_topology("clos-h100", {"nodes": 64})
    one = collective(Collectives(topology, H100), "all_to_all", range(512), 512 << 20, "direct")
    assert load_ns(topology, one) == pytest.approx(one.ideal_ns, abs=rounding_ns(one))
    network = StepNetwork(Clock(), topology, 1, "load")
    took_ns(network, [one])
    assert network.completed_flows == 512 * 511
    nvlinks = [row for row in network.link_rows(network.env.now) if row[3] == "nvlink"]
    assert {row[5] for row in nvlinks} == {7 << 20}
    assert {row[9] for row in nvlinks} == {7}


def test_phases_of_large_groups_have_an_edge_for_each_neighbour():
    topology = build_topology("clos-h100", {"nodes": 64})
    [ring] = phases(topology, "all_reduce", "ring", group_nodes(topology, range(512)), 512 << 20)
    assert len(ring.shards) == 64 * (8 + 8)  # in each node eight edges in a circle, and eight to the next node


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
