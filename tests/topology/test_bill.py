from dataclasses import replace

import pytest

from simulator import catalog
from simulator.documents import parse_document
from simulator.errors import InputError
from simulator.topology import bill_of_materials, build_topology
from simulator.topology.costs import (
    costs_of,
    format_power,
    format_price,
    quantities,
    read_price_list,
    require_valid,
    unit_costs,
)
from simulator.units import UnitError, parse_price

PRESETS = catalog.names("topologies")


@pytest.fixture(scope="module")
def bills():
    return {name: (topology, bill_of_materials(topology)) for name in PRESETS for topology in [build_topology(name)]}


@pytest.mark.parametrize("name", PRESETS)
def test_identities_of_every_preset(bills, name):
    topology, bill = bills[name]
    assert len(topology.links) == 2 * sum(bill.cables.values())
    assert sum(link.capacity_bytes_per_s for link in topology.links) == 2 * sum(bill.cable_bytes_per_s.values())
    assert sum(reach.devices for reach in bill.routes) + bill.unreachable == bill.devices - 1
    assert bill.transceivers == 2 * (bill.nic_links + bill.inter_switch_links)
    assert max((reach.hops for reach in bill.routes), default=0) <= bill.diameter_hops
    assert [(r.hops, r.latency_ns) for r in bill.routes] == sorted({(r.hops, r.latency_ns) for r in bill.routes})
    assert sum(bill.switches.values()) == sum(v.kind in ("switch", "nvswitch") for v in topology.vertices)
    for plane, tiers in bill.planes.items():
        switches = [v for v in topology.vertices if v.plane == plane and v.kind in ("switch", "nvswitch")]
        assert sum(tiers.values()) == len(switches)


@pytest.mark.parametrize("name", PRESETS)
def test_routes_are_those_that_every_device_has_to_the_first(bills, name):
    topology, bill = bills[name]
    if bill.devices > 1100:
        pytest.skip("the slow twin asks for every pair with the first device")
    counted: dict[tuple[int, int], list[int]] = {}
    for target in range(1, bill.devices):
        paths = topology.paths(target, 0)
        counted.setdefault((len(paths[0]), topology.path_latency_ns(paths[0])), []).append(len(paths))
    assert counted.keys() == {(reach.hops, reach.latency_ns) for reach in bill.routes}
    for reach in bill.routes:
        paths = counted[reach.hops, reach.latency_ns]
        assert (reach.devices, reach.least_paths, reach.most_paths) == (len(paths), min(paths), max(paths))
    others = [len(topology.paths(s.index, 0)) for s in topology.sites if s.node != topology.sites[0].node]
    assert not others or bill.typical_paths in others
    assert bill.farthest_paths == min(counted[max(counted)])


def test_planes_without_a_relay_leave_devices_unreachable():
    bill = bill_of_materials(build_topology("multi-plane-h800", {"nodes": 64, "relay": False}))
    # reached: 7 node-mates by NVLink and the same slot of the 63 other nodes
    assert bill.unreachable == 512 - 1 - 7 - 63
    assert sum(reach.devices for reach in bill.routes) == 7 + 63


def test_the_largest_fabric_of_the_product_is_counted_in_seconds():
    bill = bill_of_materials(build_topology("multi-plane-h800", {"nodes": 2048}))
    # 16,384 endpoints, 768 switches, 16,384 links between them in eight planes: arXiv 2505.09343
    assert (bill.devices, bill.switches["leaf"] + bill.switches["spine"], bill.inter_switch_links) == (
        16384,
        768,
        16384,
    )
    unit = unit_costs(read_price_list("deepseek-v3"))
    assert costs_of(bill, unit).dollars == pytest.approx(72e6, rel=0.02)


@pytest.mark.parametrize(
    ("switches", "links", "published"),
    [
        (96, 2048, 9e6),
        (768, 16384, 72e6),
        (5120, 131072, 491e6),
        (1568, 32928, 146e6),
        (16352, 384272, 1522e6),
    ],
    ids=["two-layer fat-tree", "multi-plane", "three-layer fat-tree", "Slim Fly", "Dragonfly"],
)
def test_published_costs_come_back_within_2_percent(bills, switches, links, published):
    # arXiv 2505.09343, table of topologies: counts and costs; the unit prices are those of the shipped list
    bill = replace(bills["clos-h100"][1], switches={"leaf": switches, "nvlink": 16}, inter_switch_links=links)
    costs = costs_of(bill, unit_costs(read_price_list("deepseek-v3")))
    assert costs.dollars == pytest.approx(published, rel=0.02)
    assert costs.dollars == switches * 79600 + links * 625
    assert set(costs.unpriced) == {"device", "nic", "nvlink", "nic_link", "transceiver"}


def unit(text):
    document = parse_document(text, "mine.yaml")
    return unit_costs(document), document


def test_a_tier_has_its_own_price_and_nothing_is_counted_twice(bills):
    bill = bills["clos-h100"][1]
    figures, document = unit("prices: {switch: 2 $, leaf: 5 $}\npower: {switch: 1 W, leaf: 3 W, transceiver: 9 W}\n")
    costs = costs_of(bill, figures, document)
    assert costs.dollars == 8 * 5 + 2 * 2
    assert costs.watts == 8 * 3 + 2 * 1 + 512 * 9
    assert {line.item: line.count for line in costs.prices} == {"switch": 2, "leaf": 8}
    assert quantities(bill)["switch"] == 10


def test_what_has_no_figure_is_named_and_nothing_is_free(bills):
    costs = costs_of(bills["clos-h100"][1], unit("prices: {nic: 1 $}\n")[0])
    assert "switch" in costs.unpriced
    assert "nic" not in costs.unpriced
    assert set(costs.unpowered) == set(quantities(bills["clos-h100"][1]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prices: {swich: 2 $}\n", "mine.yaml:1:10: prices.swich: unknown item 'swich'.*did you mean 'switch'"),
        ("power: {aggregation: 2 W}\n", "unknown item 'aggregation'"),
    ],
)
def test_a_figure_of_an_item_that_is_not_there_is_refused(bills, text, message):
    figures, document = unit(text)
    with pytest.raises(InputError, match=message):
        costs_of(bills["clos-h100"][1], figures, document)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prices: {switch: 2}\n", "mine.yaml:1:10: prices.switch: 2 has no unit"),
        ("prices: {switch: 2 W}\n", "no unit of price"),
        ("prices: {switch: -2 $}\n", "negative"),
        ("power: {switch: 2 k$}\n", "no unit of power"),
    ],
)
def test_bad_figures_are_refused_with_their_place(text, message):
    with pytest.raises(InputError, match=message):
        unit(text)


def test_prices_of_other_hardware_are_refused():
    figures = unit_costs(read_price_list("deepseek-v3"))
    document = read_price_list("deepseek-v3")
    require_valid(figures, {"switch.radix": 64, "link.bandwidth": "50 GB/s"}, document)
    with pytest.raises(InputError, match=r"the prices are for switch.radix 64, not 16"):
        require_valid(figures, {"switch.radix": 16, "link.bandwidth": "50 GB/s"}, document)
    with pytest.raises(InputError, match="not none"):
        require_valid(figures, {"switch.radix": 64}, document)


@pytest.mark.parametrize("name", catalog.names("topologies/prices"))
def test_every_figure_of_a_shipped_list_has_a_source(name):
    figures = unit_costs(read_price_list(name))
    paths = {f"prices.{item}" for item in figures.prices} | {f"power.{item}" for item in figures.power}
    assert paths == set(figures.sources)
    assert figures.valid_for


@pytest.mark.parametrize(
    ("dollars", "text"),
    [(0, "0 $"), (0.625e3, "625 $"), (79600, "79.6 k$"), (8.9216e6, "8.92 M$"), (1.54e9, "1.54 B$")],
)
def test_prices_read_as_people_write_them(dollars, text):
    assert format_price(dollars) == text
    assert parse_price(text) == pytest.approx(dollars, rel=0.005)
    with pytest.raises(UnitError):
        parse_price("79.6")


@pytest.mark.parametrize(("watts", "text"), [(0, "0 W"), (9, "9 W"), (18432, "18.4 kW"), (1.25e6, "1.25 MW")])
def test_powers_read_as_people_write_them(watts, text):
    assert format_power(watts) == text
