"""Identities of the families: counts in closed form, isolation, paths against a search, bisection against a flow."""

from fractions import Fraction
from functools import partial
from itertools import product

import pytest
from fabrics import NIC, build, greatest_flow, hops, parameters, tiers, trunks, walk
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from simulator.errors import InputError
from simulator.topology import build_topology, check
from simulator.topology.clos import clos_shape
from simulator.topology.folded import Demand, clos_of
from simulator.topology.lanes import lane_shape
from simulator.topology.presets import BUILDERS

SETTINGS = settings(max_examples=40, deadline=None)
TAPERS = st.sampled_from([1, 1.5, 2, 3])


def drawn(builder, *arguments, **more):
    try:
        return parameters(builder, *arguments, **more)
    except ValidationError as error:
        if "the largest that fits" not in str(error):
            raise
        assume(False)


@st.composite
def three_tiers(draw):
    devices = draw(st.sampled_from([1, 2, 4]))
    nics = draw(st.sampled_from([None, 1, 2, 4, 8]))
    assume(nics is None or nics % devices == 0 or devices % nics == 0)
    return drawn(
        "clos",
        draw(st.sampled_from([4, 6, 8])),
        nodes=draw(st.integers(1, 20)),
        devices_per_node=devices,
        nics_per_node=nics,
        tiers=3,
        split=draw(st.sampled_from([1, 2])),
        taper=draw(TAPERS),
        spine_taper=draw(TAPERS),
        attachment=draw(st.sampled_from(["rail", "node"])),
    )


def fabric(topology):
    return topology.planes[-1]


@given(three_tiers())
@SETTINGS
def test_three_tiers_keep_to_their_ports_and_tapers(chosen):
    shape = clos_shape(chosen)
    topology = BUILD["clos"](chosen)
    check(topology)
    assert tiers(topology) == {
        tier: count
        for tier, count in {
            "leaf": shape.leaves,
            "spine": shape.spines * shape.pods,
            "core": shape.spines * shape.cores,
        }.items()
        if count
    }
    assert trunks(topology) == shape.inter_switch_links
    assert sum(tiers(topology).values()) == shape.switches if shape.spines else shape.leaves
    trunk = chosen.trunk.bandwidth
    for vertex in topology.vertices:
        if vertex.kind != "switch":
            continue
        rows = [link for link in topology.links if link.source == vertex.name]
        down = sum(link.tier == "nic-leaf" for link in rows)
        assert -(-down // chosen.split) + len(rows) - down <= chosen.switch.radix
        up = sum(link.capacity_bytes_per_s for link in rows if link.target.startswith(ABOVE[vertex.tier]))
        below = sum(link.capacity_bytes_per_s for link in rows) - up
        taper = {"leaf": chosen.taper, "spine": chosen.spine_taper}.get(vertex.tier)
        if up and taper:
            assert below <= up * Fraction(str(taper))
            assert below > (up - trunk) * Fraction(str(taper)) or down < shape.down or vertex.tier == "spine"


ABOVE = {"leaf": "spine", "spine": "core", "core": "nothing"}
BUILD = {name: partial(family.build, "x") for name, family in BUILDERS.items()}


@given(three_tiers())
@settings(max_examples=25, deadline=None)
def test_three_tier_bisection_is_the_greatest_flow(chosen):
    topology = BUILD["clos"](chosen)
    assert topology.bisection_bytes_per_s == greatest_flow(topology)


@given(three_tiers())
@settings(max_examples=25, deadline=None)
def test_three_tier_paths_are_the_shortest_without_relay(chosen):
    topology = BUILD["clos"](chosen)
    for target in range(1, len(topology.sites)):
        paths = topology.paths(0, target)
        same = topology.sites[target].node == 0
        allowed = lambda v, same=same: v.kind in ("switch", "nic") or (same and v.kind == "nvswitch")  # noqa: E731
        assert len(paths[0]) == hops(topology, allowed, 0, target)
        assert len(set(paths)) == len(paths)
        for path in (paths[0], paths[-1], paths[len(paths) // 2]):
            walk(topology, 0, target, path)


@pytest.mark.parametrize("radix", range(4, 66, 2))
def test_full_networks_have_the_counts_of_their_tiers_for_every_radix(radix):
    # one tier N/R switches; two 3N/R; three 5N/R (arXiv 2307.12169); cables between switches 0, N, 2N
    for tiers_, nodes in ((1, radix), (2, radix**2 // 2), (3, radix**3 // 4)):
        shape = clos_of(Demand(nodes, 1, 1, radix, tiers=3))
        assert shape.switches == (2 * tiers_ - 1) * nodes // radix or tiers_ == 1
        assert shape.inter_switch_links == (tiers_ - 1) * nodes
    assert clos_of(Demand(radix, 1, 1, radix, tiers=3)).leaves == 1


def test_published_counts():
    # endpoints, switches, inter-switch links: arXiv 2505.09343; Slim Fly and Dragonfly by their constructions
    two = clos_shape(parameters("clos", nodes=256, devices_per_node=8))
    assert (2048, two.switches, two.inter_switch_links) == (2048, 96, 2048)
    plane = lane_shape(parameters("multi_plane", nodes=2048, devices_per_node=8, tiers=2))
    assert (8 * 2048, 8 * plane.switches, 8 * plane.inter_switch_links) == (16384, 768, 16384)
    three = clos_shape(parameters("clos", nodes=8192, devices_per_node=8, tiers=3))
    assert (8 * 8192, three.switches, three.inter_switch_links) == (65536, 5120, 131072)


def test_the_published_eight_plane_network_is_built_as_counted():
    topology = build_topology("multi-plane-h800", {"nodes": 2048})
    assert (len(topology.sites), sum(tiers(topology).values()), trunks(topology)) == (16384, 768, 16384)


@given(
    st.sampled_from(["rail_only", "multi_plane"]),
    st.integers(1, 12),
    st.sampled_from([1, 2, 4]),
    st.sampled_from([4, 6, 8]),
    TAPERS,
)
@SETTINGS
def test_lanes_are_disjoint_and_each_is_a_clos(builder, nodes, devices, radix, taper):
    chosen = drawn(builder, radix, nodes=nodes, devices_per_node=devices, taper=taper)
    topology, shape = BUILD[builder](chosen), lane_shape(chosen)
    noun = {"rail_only": "rail", "multi_plane": "plane"}[builder]
    assert sum(tiers(topology).values()) == devices * shape.switches
    assert trunks(topology) == devices * shape.inter_switch_links
    lane = {vertex.name: vertex.plane for vertex in topology.vertices}
    for link in topology.links:
        if link.tier not in ("nvlink", "pcie"):
            assert lane[link.source] == lane[link.target] is not None
    for vertex in topology.vertices:
        if vertex.kind == "nic":
            assert vertex.plane == f"{noun}{vertex.slot}"
    assert topology.bisection_bytes_per_s == greatest_flow(topology)
    for target in range(1, len(topology.sites)):
        visited = walk(topology, 0, target, topology.paths(0, target)[-1])
        site = topology.sites[target]
        inside = [name for name in visited if lane[name]]
        assert {lane[name] for name in inside} == (set() if site.node == 0 else {f"{noun}{site.slot}"})
        relays = [name for name in visited[1:-1] if "/device" in name]
        assert relays == ([] if site.node == 0 or site.slot == 0 else [f"node0/device{site.slot}"])


def test_without_relay_planes_are_apart_and_the_message_says_so():
    topology = build("multi_plane", nodes=4, devices_per_node=2, relay=False)
    assert len(topology.paths(0, 2)) == 1
    with pytest.raises(InputError, match=r"no path joins node0/device0 and node1/device1.*plane0.*plane1"):
        topology.paths(0, 3)
    assert len(topology.paths(0, 1)[0]) == 2  # one node: NVLink


def test_a_lane_can_be_asked_for_with_relays_on_both_sides():
    topology = build("multi_plane", nodes=4, devices_per_node=4)
    visited = walk(topology, 0, 4, topology.paths(0, 4, "plane3")[0])
    assert [name for name in visited if "/device" in name] == [
        *("node0/device0", "node0/device3", "node1/device3", "node1/device0")
    ]
    with pytest.raises(InputError, match="did you mean 'plane3'"):
        topology.paths(0, 4, "plan3")


def test_zones_share_only_the_cables_between_them():
    topology = build("two_zone", 16, nodes=8, devices_per_node=2, zone_links=3)
    assert topology.bisection_bytes_per_s == greatest_flow(topology)
    across = [link for link in topology.links if link.tier == "zone-zone"]
    assert {link.source[:5] for link in across} == {"zone0", "zone1"}
    for source, target in product(range(8), range(8, 16)):
        for path in topology.paths(source, target):
            walk(topology, source, target, path)
            assert sum(topology.links[i].tier == "zone-zone" for i in path) == 1


LINK = {"bandwidth": "50 GB/s", "latency": "1 us"}
SUPER = {
    "supernodes": 2,
    "nodes_per_supernode": 3,
    "npus_per_node": 2,
    "upper_ports": 4,
    "upper_chips": 2,
    "sub_planes": 3,
}


def test_the_sub_planes_of_a_supernode_never_meet():
    topology = build_topology(
        "cloudmatrix384", SUPER | {"die_link": {"bandwidth": "60 GB/s"}, "cpu_link": {"bandwidth": "60 GB/s"}}
    )
    check(topology)
    plane = {vertex.name: vertex.plane for vertex in topology.vertices}
    for link in topology.links:
        if plane[link.source] and plane[link.target]:
            assert plane[link.source] == plane[link.target]
    dies = len(topology.sites)
    assert (dies, len(topology.hosts)) == (2 * 3 * 4, 2 * 3 * 4)
    assert [site.index for site in topology.endpoints] == list(range(2 * dies))
    assert len(topology.paths(0, 1)) == 1  # the other die of the package
    assert len(topology.paths(0, 2)) == 3  # another NPU of the node, over each sub-plane
    assert len(topology.paths(0, 4)) == 3 * 2  # another node: each sub-plane, each upper chip
    for source, target, name in [
        (0, 4, "ub"),
        (0, dies, "ub"),
        (0, 12, "rdma"),
        (0, 4, "rdma"),
        (0, 4, "vpc"),
        (dies, dies + 12, "vpc"),
    ]:
        for path in topology.paths(source, target, name):
            walk(topology, source, target, path)
    assert list(topology.paths(0, 12)) == list(topology.paths(0, 12, "rdma"))  # another supernode
    for path in topology.paths(0, 4, "ub2"):
        assert {plane[topology.links[i].target] for i in path} == {"ub2", None}
    with pytest.raises(InputError, match="no path joins"):
        topology.paths(0, 12, "ub")
    assert topology.bisection_bytes_per_s == greatest_flow(topology)


def test_cloudmatrix_is_as_published():
    topology = build_topology("cloudmatrix384")
    assert (len(topology.sites), len(topology.hosts)) == (768, 192)
    assert {tier: count for tier, count in tiers(topology).items() if tier in ("l1", "l2")} == {"l1": 336, "l2": 112}
    capacity = {}
    for link in topology.links:
        capacity[link.tier, link.source] = capacity.get((link.tier, link.source), 0) + link.capacity_bytes_per_s
    assert capacity["npu-l1", "node0/npu0.0"] == 196 * 10**9
    assert capacity["cpu-l1", "node0/cpu0"] == pytest.approx(160 * 10**9, rel=1e-4)
    assert sum(capacity["l1-l2", f"node0/l1.{i}"] for i in range(7)) == 3136 * 10**9 == 16 * 196 * 10**9
    assert topology.bisection_bytes_per_s == 24 * (3136 + 400) * 10**9
    latency = lambda s, t: topology.path_latency_ns(topology.paths(s, t, "ub")[0])  # noqa: E731
    assert [latency(0, 2), latency(0, 16), latency(0, 768)] == [1200, 1950, 1000]
    write = topology.operation("write", 0, 2)
    assert (write.bytes_per_s, write.latency_ns) == (137 * 10**9, 100)
    assert topology.operation("read", 0, 16).bytes_per_s == int(0.97 * 167 * 10**9)
    assert topology.operation("read", 0, 16, "rdma") is None
    with pytest.raises(InputError, match="did you mean 'read'"):
        topology.operation("reed", 0, 2)


def single(builder, **more):
    family = BUILDERS[builder]
    return family.build("x", family.parameters.model_validate({"device": "test", **more}))


@given(st.integers(2, 9), st.integers(1, 5))
@SETTINGS
def test_nodes_by_themselves(devices, chips):
    switched = single("nvswitch", devices_per_node=devices, switches=chips, link=LINK)
    mesh = single("mesh", devices_per_node=devices, link=LINK)
    assert len(switched.links) == 2 * devices * chips
    assert len(mesh.links) == devices * (devices - 1)
    for topology, ways, length in ((switched, chips, 2), (mesh, 1, 1)):
        assert topology.bisection_bytes_per_s == greatest_flow(topology)
        for source, target in product(range(devices), repeat=2):
            paths = topology.paths(source, target)
            if source != target:
                assert len(set(paths)) == ways
                assert {len(path) for path in paths} == {length}
                walk(topology, source, target, paths[-1])


@pytest.mark.parametrize("shared", [[], [[5, 6]], [[3, 4]], [[0, 7], [1, 2, 3]]])
@pytest.mark.parametrize("port", ["37.5 GB/s", "20 GB/s"])
def test_root_ports_bound_what_shares_them(shared, port):
    wires = {"slot": {"bandwidth": "27 GB/s", "latency": "1 us"}, "port": {"bandwidth": port, "latency": "1 us"}}
    memory = {"bandwidth": "320 GB/s", "latency": "0 ns"}
    topology = single("pcie", devices_per_node=8, shared_ports=shared, **wires, memory=memory)
    assert topology.bisection_bytes_per_s == greatest_flow(topology)
    together = {frozenset((a, b)) for group in shared for a in group for b in group if a != b}
    for source, target in product(range(8), repeat=2):
        if source != target:
            path = topology.paths(source, target)[0]
            assert len(path) == (2 if frozenset((source, target)) in together else 4)
            walk(topology, source, target, path)
    assert len(topology.paths(0, 8)[0]) == 3


@pytest.mark.parametrize(
    ("builder", "more", "message"),
    [
        ("clos", {"nodes": 4, "nics_per_node": 3}, "neither a multiple nor a divisor"),
        ("clos", {"nodes": 10**6, "tiers": 3}, "do not fit three tiers.*the largest that fits is 8192 nodes"),
        ("rail_only", {"nodes": 3000, "tiers": 2}, "the largest that fits is 2048 nodes"),
        ("two_zone", {"nodes": 3, "zone_links": 1}, "even number"),
        (
            "two_zone",
            {"nodes": 512, "zone_links": 9},
            "9 ports of each .* kept to cross; the largest that fits is 384 nodes",
        ),
        ("slim_fly", {"q": 12}, "a power of a prime, found 12; the nearest are 11 and 13"),
        ("slim_fly", {"q": 43}, "ports"),
        ("dragonfly", {"below": 1, "routers": 2, "across": 1, "groups": 4}, "the largest that fits is 3"),
        ("torus", {"dimensions": [40, 40], "radix": 4, "devices_per_node": 1}, "ports"),
        ("dragonfly", {"below": 1, "routers": 3, "across": 1, "groups": 3, "devices_per_node": 2}, "do not divide"),
    ],
)
def test_impossible_fabrics_are_refused(builder, more, message):
    with pytest.raises(ValidationError, match=message):
        parameters(builder, **more)


def test_nic_bandwidth_is_shared_by_devices_that_share_it():
    topology = build("clos", nodes=4, devices_per_node=4, nics_per_node=2)
    assert topology.bisection_bytes_per_s == greatest_flow(topology) == 2 * 2 * NIC
    uplinks = [topology.links[topology.paths(device, 8)[0][1]].source for device in range(4)]
    assert uplinks == ["node0/nic0", "node0/nic0", "node0/nic1", "node0/nic1"]
