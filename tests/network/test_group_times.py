"""Collectives of an instance by its place: groups by hand, and times equal to those of the library's closed forms.

Symbols: n ranks on N nodes of g each, B bytes that a rank sends to all n evenly, itself included, r its link inside the
node, q its way out; then (g - 1) / n of B crosses r and (n - g) / n crosses q.
"""

import pytest

from simulator.errors import InputError
from simulator.model.layout import Layout
from simulator.model.operators import Collective
from simulator.network.collectives import Collectives
from simulator.network.collectives_constants import load_constants
from simulator.network.group_times import GroupTimes, exchange, groups
from simulator.topology import build_topology


@pytest.fixture(scope="module")
def collectives() -> Collectives:
    return Collectives(build_topology("clos-h100", {"nodes": 4}), load_constants("h100-sxm"))


def test_groups_by_hand() -> None:
    layout = Layout(tensor=2, data=2, context=2, pipeline=2, expert=4)
    devices = tuple(range(100, 116))
    assert groups(layout, "tensor", devices) == [[(n, n + 1) for n in range(100, 116, 2)]]
    first, second = [(100, 102), (101, 103), (104, 106), (105, 107)], [(108, 110), (109, 111), (112, 114), (113, 115)]
    assert groups(layout, "context", devices) == [first + second]
    assert groups(layout, "expert", devices) == [[tuple(range(100, 108)), tuple(range(108, 116))]]
    assert groups(layout, "pipeline", devices) == [[(n, n + 8) for n in range(100, 108)]]


def slow(collectives: Collectives, name: str, left: float) -> Collectives:
    """Return the collectives of a topology with a part that has a share of its capacity."""
    topology = collectives.topology
    capacities = [c.capacity_bytes_per_s * (left if name in (c.source, c.target) else 1) for c in topology.links]
    return Collectives(topology, collectives.constants, capacities=capacities)


@pytest.mark.parametrize(
    ("layout", "shape", "nic"),
    [
        (Layout(tensor=8, context=2), Collective("all_gather", 8e7, 2, "context"), "node1/nic5"),
        (Layout(tensor=8, pipeline=2), Collective("send_receive", 8e7, 2, "pipeline"), "node0/nic7"),
        (Layout(tensor=16, data=2), Collective("all_to_all", 8e8, 16, "tensor"), "node3/nic1"),
        (Layout(data=16, expert=16, pipeline=2), Collective("combine", 8e8, 16, "expert"), "node2/nic3"),
    ],
)
def test_the_slowest_of_the_groups_of_a_name_sets_the_pace(
    collectives: Collectives, layout: Layout, shape: Collective, nic: str
) -> None:
    """A NIC at a quarter, of no rank of the first group."""
    devices = range(layout.devices)
    whole, hurt = (GroupTimes(each, layout, devices) for each in (collectives, slow(collectives, nic, 0.25)))
    assert hurt(shape).link_ns == pytest.approx(4 * whole(shape).link_ns, rel=5e-3)
    assert hurt(shape).latency_ns == whole(shape).latency_ns
    assert hurt.shapes(8) != whole.shapes(8)


def test_stages_of_one_node_send_each_other_within_it(collectives: Collectives) -> None:
    """Four stages of four ranks on two nodes: of three sends one leaves the node, and the mean is what each takes."""
    shape = Collective("send_receive", 8e7, 2, "pipeline")
    mixed = GroupTimes(collectives, Layout(tensor=4, pipeline=4), range(16))(shape)
    inside = GroupTimes(collectives, Layout(tensor=4, pipeline=2), range(8))(shape)
    across = GroupTimes(collectives, Layout(tensor=4, pipeline=2), [0, 1, 2, 3, 8, 9, 10, 11])(shape)
    assert inside.sent_bytes == 0 < across.sent_bytes
    assert mixed == pytest.approx([(2 * near + far) / 3 for near, far in zip(inside, across, strict=True)])


@pytest.mark.parametrize("operation", ["all_reduce", "all_gather", "reduce_scatter"])
@pytest.mark.parametrize("size", [1e4, 1e8])
def test_library_operations_take_the_librarys_time(collectives: Collectives, operation: str, size: float) -> None:
    times = GroupTimes(collectives, Layout(tensor=16), range(16))
    latency, busy, _ = times(Collective(operation, size, 16, "tensor"))
    assert latency + busy == pytest.approx(collectives.time_ns(operation, range(16), int(size), engine=True))
    assert times.nodes("tensor") == 2


def test_an_exchange_over_four_nodes_by_hand(collectives: Collectives) -> None:
    # n = 32, N = 4, g = 8: 7/32 of B inside, 24/32 outside; the way out (400 Gbps a device) is the slower
    times = GroupTimes(collectives, Layout(data=32, expert=32), range(32))
    size = 64e6
    base, busy, sent = times(Collective("dispatch", size, 32, "expert"))
    forms = collectives.constants.low_latency, collectives.constants.high_throughput
    bounds = []
    for form in forms:
        assert form is not None
        network = 24 / 32 * size / (form.dispatch.network_share * 50e9)
        local = 7 / 32 * size / (form.dispatch.local_share * 450e9)
        bounds.append(form.dispatch.base + form.dispatch.network_base + 1e9 * max(network, local))
    assert base + busy == pytest.approx(min(bounds))
    # the way out, the slower of the two, is busy all the while
    assert sent == pytest.approx(busy * 50)


def test_a_node_gets_one_copy_of_a_token_and_hands_it_on(collectives: Collectives) -> None:
    """n = 16, N = 2, 8 choices by chance: 6.45 ranks a token, half on the other node, which gets 0.996 copies."""
    times = GroupTimes(collectives, Layout(data=16, expert=16), range(16))
    ranks, other = 16 * (1 - (15 / 16) ** 8), 1 - 0.5**8
    form, size = collectives.constants.high_throughput, 64e6 * ranks
    assert form is not None
    base, busy, sent = times(Collective("dispatch", size, 16, "expert", choices=8))
    network = 64e6 * other / (form.dispatch.network_share * 50e9)
    assert base == form.dispatch.base + form.dispatch.network_base
    assert busy == pytest.approx(network * 1e9)
    assert sent == pytest.approx(busy * 50)
    _, apart, _ = times(Collective("dispatch", size, 16, "expert"))
    assert apart > 2 * busy


def test_on_a_unified_bus_nothing_is_handed_on() -> None:
    """What a node hands on goes over the ports by which it came."""
    bus = Collectives(build_topology("cloudmatrix384", {}), load_constants("h100-sxm"))
    times = GroupTimes(bus, Layout(data=32, expert=32), range(32))
    assert times.nodes("expert") == 2
    by_chance, limited, apart = (
        times(Collective("combine", 64e6, 32, "expert", relayed, choices))
        for relayed, choices in ((1, 8), (0.3, 0), (1, 0))
    )
    assert by_chance == limited == apart


def test_within_a_node_nothing_leaves_it(collectives: Collectives) -> None:
    shape = collectives.shape(tuple(range(8)))
    phase = load_constants("h100-sxm").low_latency
    assert phase is not None
    base, busy, sent = exchange(phase.combine, 8e6, shape)
    assert base == phase.combine.base
    assert sent == 0
    assert busy == pytest.approx(7 / 8 * 8e6 / (phase.combine.local_share * 450e9) * 1e9)


def test_a_larger_message_or_group_is_never_faster(collectives: Collectives) -> None:
    before = 0.0
    for ranks in (8, 16, 32):
        times = GroupTimes(collectives, Layout(data=ranks, expert=ranks), range(ranks))
        small, large = (sum(times(Collective("combine", size, ranks, "expert"))[:2]) for size in (1e5, 1e7))
        assert before < small < large
        before = small


def test_what_the_library_cannot_do_is_an_error(collectives: Collectives) -> None:
    times = GroupTimes(collectives, Layout(tensor=4), range(4))
    with pytest.raises(InputError, match="unknown operation"):
        times(Collective("all_sum", 1, 4, "tensor"))


def test_on_a_unified_bus_what_stays_in_a_node_and_what_leaves_it_share_the_ports() -> None:
    """n = 32 on 2 nodes of 16 dies: of B what neither stays nor goes to the other die of a package leaves by its ports.

    The low-latency form on 910C: a base, a time for each rank, and 30/32 of B at a share of the ports.
    """
    bus = Collectives(build_topology("cloudmatrix384", {}), load_constants("ascend-910c"))
    times = GroupTimes(bus, Layout(data=32, expert=32), range(32))
    form, size = bus.constants.low_latency, 8e6
    assert form is not None
    latency, busy, sent = times(Collective("dispatch", size, 32, "expert"))
    assert latency == form.dispatch.base + 32 * form.dispatch.rank_time
    assert busy == pytest.approx(30 / 32 * size / (form.dispatch.network_share * 196))
    assert sent == pytest.approx(31 / 32 * size / form.dispatch.network_share)


def test_ranks_beyond_those_that_were_measured_add_no_time_of_their_own() -> None:
    bus = Collectives(build_topology("cloudmatrix384", {}), load_constants("ascend-910c"))
    latencies = [
        GroupTimes(bus, Layout(data=n, expert=n), range(n))(Collective("dispatch", 8e6, n, "expert")).latency_ns
        for n in (16, 32, 64, 320)
    ]
    assert latencies[0] < latencies[1] == latencies[2] == latencies[3]


def test_large_messages_go_by_the_form_that_takes_them() -> None:
    bus = Collectives(build_topology("cloudmatrix384", {}), load_constants("ascend-910c"))
    times = GroupTimes(bus, Layout(data=64, expert=64), range(64))
    low, high = bus.constants.low_latency, bus.constants.high_throughput
    assert low is not None
    assert high is not None
    assert low.dispatch.most_bytes is not None
    below, above = (times(Collective("dispatch", low.dispatch.most_bytes + n, 64, "expert")) for n in (0, 1))
    assert below.latency_ns == low.dispatch.start_ns(64, 4)
    assert above.latency_ns == high.dispatch.start_ns(64, 4)


def test_on_links_of_their_own_nothing_is_shared(collectives: Collectives) -> None:
    assert collectives.shape(tuple(range(32))).all_bytes_per_s is None


@pytest.mark.parametrize(
    ("preset", "parameters", "ranks"),
    [
        ("clos-h100", {"nodes": 8}, 32),
        ("clos-h100-tapered", {"nodes": 16}, 32),
        ("rail-only-h100", {"nodes": 4}, 32),
        ("multi-plane-h800", {"nodes": 4}, 32),
        ("two-zone-a100", {"nodes": 8}, 32),
        ("cloudmatrix384", {}, 32),
        ("cloudmatrix384", {}, 8),
    ],
)
@pytest.mark.parametrize("left", [0.0, 0.3])
def test_a_link_that_is_hurt_never_makes_an_exchange_faster(
    preset: str, parameters: dict, ranks: int, left: float
) -> None:
    topology = build_topology(preset, parameters)
    constants = load_constants("ascend-910c")
    layout, shape = Layout(data=ranks, expert=ranks), Collective("combine", 3e7, ranks, "expert")
    built = sum(GroupTimes(Collectives(topology, constants), layout, range(ranks))(shape)[:2])
    tiers: dict[str, list[int]] = {}
    for link in topology.links:
        tiers.setdefault(link.tier, []).append(link.index)
    slower = 0
    for links in tiers.values():
        capacities = [link.capacity_bytes_per_s * (left if link.index in links[:1] else 1.0) for link in topology.links]
        times = GroupTimes(Collectives(topology, constants, None, capacities), layout, range(ranks))
        found = times.collectives.shape(range(ranks))
        if 0 in (found.cross_bytes_per_s, found.rate_inside(to_all=True)):
            continue  # cut off
        hurt = sum(times(shape)[:2])
        assert hurt >= built * (1 - 1e-9)
        slower += hurt > built * 1.001
    assert slower or left == 0


def test_h800_has_its_own_exchange_of_few_tokens_and_the_other_of_h100() -> None:
    own, lender = load_constants("h800-sxm"), load_constants("h100-sxm")
    assert own.high_throughput == lender.high_throughput is not None
    assert own.kernels == lender.kernels
    assert own.low_latency != lender.low_latency
    # 2,048 tokens of 14 KiB on each of 32 ranks: by the form for few tokens alone each copy would cross for itself
    shape = Collective("combine", 2048 * 7.18 * 14_336, 32, "expert", choices=8)
    times = [
        GroupTimes(Collectives(build_topology("clos-h100", {"nodes": 4}), of), Layout(data=32, expert=32), range(32))
        for of in (own, lender)
    ]
    assert times[0](shape) == times[1](shape)
    assert times[0](shape).link_ns < 2.5e6
