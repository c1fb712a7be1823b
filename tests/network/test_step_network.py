"""The network in steps: hand-worked loads and latencies, what sees what, dead links, rows of links, a lower bound."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.clock import Clock
from simulator.errors import InvariantError
from simulator.network.bundle import Send
from simulator.network.fabric import DeadLinkError, Fabric
from simulator.network.routing import routing
from simulator.network.step_network import StepNetwork
from simulator.network.transport import Transport
from simulator.topology import build_topology

POD = build_topology("clos-h100", {"nodes": 8, "attachment": "node", "switch": {"radix": 16}})  # a leaf per node
TAPERED = build_topology("clos-h100", {"nodes": 8, "attachment": "node", "switch": {"radix": 24}, "taper": 2})
SPRAY = routing("spray")
NIC = 50  # bytes a nanosecond


def latency_ns(source, target, topology=POD):
    return topology.path_latency_ns(topology.paths(source, target)[0])


def ends(network, *transfers):
    """When each list of shards arrives, all sent at once."""
    found = {}
    for number, shards in enumerate(transfers):
        network.transfer(shards).callbacks.append(lambda _, n=number: found.setdefault(n, network.env.now))
    network.env.run()
    network.check()
    return [found[number] for number in range(len(transfers))]


def step_network(fidelity="load", topology=POD, **options):
    return StepNetwork(Clock(), topology, 0, fidelity, **options)


def test_flows_of_a_step_take_what_the_most_loaded_of_their_links_takes():
    # B from 0 to 8 and 2 B from 1 to 8: the port into 8 has 3 B, so both end at L + 3 B / C; B from 2 to 24 has its own
    size = 10**6
    network = step_network()
    times = ends(network, [(0, 8, size)], [(1, 8, 2 * size)], [(2, 24, size)])
    both, alone = latency_ns(0, 8) + 3 * size // NIC, latency_ns(2, 24) + size // NIC
    assert times == [both, both, alone]
    assert network.completed_flows == 3


def test_alpha_beta_takes_each_transfer_as_if_alone():
    size = 10**6
    times = ends(step_network("alpha_beta"), [(0, 8, size)], [(1, 8, 2 * size)], [(2, 9, size), (3, 9, size)])
    assert times == [latency_ns(0, 8) + size // NIC] + [latency_ns(0, 8) + 2 * size // NIC] * 2


def test_steps_do_not_see_each_other():
    size, network = 10**6, step_network()
    alone = latency_ns(0, 8) + size // NIC

    def second():
        yield network.env.timeout(1)
        yield network.transfer([(1, 8, size)])

    first = network.transfer([(0, 8, size)])
    late = network.env.process(second())
    network.env.run(first)
    assert network.env.now == alone
    network.env.run(late)
    assert network.env.now == alone + 1
    assert network.overloaded(network.env.now) > 0  # and it says so: the port had twice what it carries


def test_nothing_takes_no_time_and_no_bytes_the_latency():
    network = step_network()
    assert ends(network, [(3, 3, 10**6)], [], [(0, 8, 0)]) == [0, 0, latency_ns(0, 8)]
    with pytest.raises(ValueError, match="-1 bytes"):
        network.transfer([(0, 1, -1)])
    with pytest.raises(ValueError, match="capacity"):
        network.set_capacity([0], -1)


def test_chosen_paths_caps_and_engines():
    # a cap of 10 B / ns holds one, an engine of 20 B / ns two of B each through it; the latency is the caller's
    size, network = 10**6, step_network()
    path, other = (POD.paths(source, 8 + source)[0] for source in (0, 1))
    engine = network.add_engine(20e9)
    capped = network.launch([Send(path, size, None, 1, 10e9)])
    network.env.run(capped)
    assert network.env.now == latency_ns(0, 8) + size // 10
    begun = network.env.now
    network.env.run(network.launch([Send(p, size, None, 1, None, (engine,)) for p in (path, other)], latency_ns=0))
    assert network.env.now - begun == 2 * size // 20
    network.release_engine(engine)
    assert network.add_engine(1e9) == engine
    network.check()


def test_a_transport_adds_its_headers_and_its_time():
    transport = Transport(header_bytes=100, payload_bytes=1000, message_latency="1 us")
    [time] = ends(step_network(transport=transport), [(0, 8, 10**6)])
    assert time == latency_ns(0, 8) + 1000 + 1_100_000 // NIC


@pytest.mark.parametrize("fidelity", ["load", "alpha_beta"])
def test_a_dead_link_fails_what_crosses_it_and_a_slow_one_slows(fidelity):
    network = step_network(fidelity)
    port = [link.index for link in POD.links if link.source == "node0/nic0" and link.tier == "nic-leaf"]
    whole = POD.links[port[0]].capacity_bytes_per_s
    network.set_capacity(port, 0)
    lost = network.transfer([(0, 8, 10**6), (2, 10, 10**6)], defused=True)
    assert ends(network, [(1, 9, 10**6)]) == [latency_ns(1, 9) + 10**6 // NIC]
    assert isinstance(lost.value, DeadLinkError)
    assert "node0/nic0" in str(lost.value)
    network.set_capacity(port, whole // 4)
    begun = network.env.now
    network.env.run(network.transfer([(0, 8, 10**6)]))
    assert network.env.now - begun == latency_ns(0, 8) + 4 * 10**6 // NIC
    assert network.capacities[port[0]] == whole // 4


@pytest.mark.parametrize("fidelity", ["load", "alpha_beta"])
def test_rows_of_links_are_those_of_a_fabric(fidelity):
    shards = [(source, (source + 9) % 64, 10**6) for source in range(64)]
    fabric, network = Fabric(Clock(), POD, 0, spread=SPRAY), step_network(fidelity)
    times = [ends(each, shards)[0] for each in (fabric, network)]
    assert times[0] == pytest.approx(times[1], abs=1)
    for idle in (False, True):
        rows = [list(each.link_rows(times[0], idle)) for each in (fabric, network)]
        for ours, theirs in zip(*rows, strict=True):
            assert ours[:5] == theirs[:5]
            assert ours[5] == pytest.approx(theirs[5], abs=8)  # whole bytes on each of eight paths
            assert ours[8] == pytest.approx(theirs[8], rel=0.3)


def test_a_loss_of_bytes_is_seen():
    network = step_network()
    ends(network, [(0, 8, 10**6)])
    network._moved[0] += 1e6
    with pytest.raises(InvariantError, match="link bytes"):
        network.check()


@settings(deadline=None, max_examples=60)
@given(
    shards=st.lists(st.tuples(st.integers(0, 63), st.integers(0, 63), st.integers(0, 10**7)), min_size=1, max_size=30),
    topology=st.sampled_from([POD, TAPERED]),
)
def test_a_step_ends_no_later_than_its_flows_and_no_transfer_alone_does_either(shards, topology):
    # a link cannot carry its bytes S sooner than S / C, however it is shared; over the same paths the last flow of the
    # step is thus no later than the last of the fluid; of transfers by themselves the less
    least = ends(step_network("alpha_beta", topology, spread=SPRAY), *([shard] for shard in shards))
    step = ends(step_network("load", topology, spread=SPRAY), shards)
    flows = ends(Fabric(Clock(), topology, 0, spread=SPRAY), shards)
    longest = max(latency_ns(source, target, topology) for source, target, _ in shards)
    assert max(least) <= step[0] + 1
    assert step[0] <= flows[0] + longest + 1  # the most loaded link's flows need not be those of the longest way
