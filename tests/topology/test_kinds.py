"""Clusters whose nodes hold different devices: every site knows its kind, bills count them, and links are their own."""

import pytest

from simulator.documents import parse_document
from simulator.errors import InputError
from simulator.topology import bill_of_materials, build_topology, check
from simulator.topology.costs import costs_of, unit_costs

OTHERS = [{"device": "h20-sxm-96gb", "nodes": 3}, {"device": "a100-sxm-80gb", "nodes": 2}]
FAMILIES = (
    "clos-h100",
    "clos3-h100",
    "rail-only-h100",
    "multi-plane-h800",
    "two-zone-a100",
    "torus-8x8x8",
    "fat-tree-k16",
    "dragonfly-h4",
    "slim-fly-q13",
)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_last_nodes_hold_what_is_named(name):
    topology, plain = build_topology(name, {"devices": OTHERS}), build_topology(name)
    check(topology)
    nodes, size = 1 + topology.sites[-1].node, 1 + max(site.slot for site in topology.sites)
    for site in topology.sites:
        first = plain.device if site.node < nodes - 5 else "h20-sxm-96gb" if site.node < nodes - 2 else "a100-sxm-80gb"
        assert site.device == first
    assert topology.links == plain.links
    kinds = dict(topology.kinds)
    assert kinds["h20-sxm-96gb"] == 3 * size
    assert sum(kinds.values()) == len(topology.sites)
    assert (topology.device, dict(plain.kinds)) == (plain.device, {plain.device: len(plain.sites)})


def test_nodes_may_have_scale_up_links_of_their_own():
    wire = {"bandwidth": "31.5 GB/s", "latency": "2 us"}
    kinds = [{"device": "l40s", "nodes": 1, "nvlink": wire}]
    topology = build_topology("clos-h100", {"nodes": 2, "devices": kinds})
    capacities = {site.device: set() for site in topology.sites}
    for source in topology.sites:
        for target in topology.sites:
            if source.node == target.node and source != target:
                [path] = topology.paths(source.index, target.index)
                capacities[source.device].add((topology.route_bytes_per_s(path), topology.path_latency_ns(path)))
    assert capacities == {"h100-sxm-80gb": {(450 * 10**9, 3330)}, "l40s": {(315 * 10**8, 4000)}}


def test_a_kind_has_its_own_price_before_that_of_every_device():
    bill = bill_of_materials(build_topology("clos-h100", {"nodes": 6, "devices": OTHERS}))
    document = parse_document("prices: {device: 10 $, h20-sxm-96gb: 4 $}\npower: {a100-sxm-80gb: 400 W}\n", "mine.yaml")
    costs = costs_of(bill, unit_costs(document), document)
    assert {line.item: line.total for line in costs.prices} == {"device": 24 * 10, "h20-sxm-96gb": 24 * 4}
    assert {line.item: line.total for line in costs.power} == {"a100-sxm-80gb": 16 * 400}
    assert "device" in costs.unpowered


def test_more_nodes_than_there_are_cannot_be_named():
    with pytest.raises(InputError, match="devices: 5 nodes are named, the cluster has 4"):
        build_topology("clos-h100", {"nodes": 4, "devices": OTHERS})
    for name in ("cloudmatrix384", "pcie-a100", "dgx-h100"):
        with pytest.raises(InputError, match="unknown key 'devices'"):
            build_topology(name, {"devices": OTHERS})
