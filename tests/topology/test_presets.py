import json
from dataclasses import replace

import pytest
from click.testing import CliRunner

from simulator import catalog
from simulator.documents import parse_document
from simulator.errors import InputError, InvariantError
from simulator.topology import bill_of_materials, build_topology, check, resolve_preset
from simulator.topology.plane import Plane
from simulator.topology.presets import BUILDERS, load_preset
from simulator.topology_cli import topology as commands

PRESETS = catalog.names("topologies")


def numbers(value, path=""):
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from numbers(inner, f"{path}.{key}" if path else key)
    elif isinstance(value, int | float) or (isinstance(value, str) and value[:1].isdigit()):
        yield path


@pytest.mark.parametrize("name", PRESETS)
def test_every_number_of_a_preset_has_a_source_and_every_source_a_number(name):
    preset, _ = load_preset(name)
    paths = set(numbers(preset.parameters))
    assert paths
    for path in paths:
        ancestors = [path.rsplit(".", n)[0] for n in range(path.count(".") + 1)]
        assert any(preset.sources.get(known, "").strip() for known in ancestors), f"{path} has no source"
    for source in preset.sources:
        assert any(path == source or path.startswith(f"{source}.") for path in paths), f"{source} names no number"


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_builds_and_is_sound(name):
    topology = build_topology(name)
    check(topology)
    assert bill_of_materials(topology).devices == len(topology.sites) > 0


@pytest.mark.parametrize(("name", "nic", "nvlink"), [("clos-h100", 50, 450), ("clos-a100", 25, 300)])
def test_a_preset_has_the_bandwidths_of_its_data_sheets(name, nic, nvlink):
    topology = build_topology(name)
    capacities = {link.tier: link.capacity_bytes_per_s for link in topology.links}
    assert capacities["nic-leaf"] == capacities["leaf-spine"] == nic * 10**9
    assert capacities["nvlink"] == nvlink * 10**9


def test_the_published_latencies_come_back():
    # 64 B, arXiv 2505.09343: InfiniBand 2.8 us below one leaf, 3.7 us across leaves, NVLink 3.33 us
    topology = build_topology("clos-h100")
    measured = [topology.path_latency_ns(topology.paths(0, target)[0]) for target in (8, 9, 1)]
    assert measured == [2800, 3700, 3330]


def test_the_tapered_preset_is_what_it_says_at_every_size_of_whole_groups():
    for nodes in (4, 16, 48, 96):
        assert bill_of_materials(build_topology("clos-h100-tapered", {"nodes": nodes})).oversubscription == 4


def test_overrides_replace_key_by_key():
    parameters = resolve_preset("clos-h100", {"nodes": 3, "link": {"latency": "1 us"}})
    assert parameters.nodes == 3
    assert parameters.link.latency == 1000
    assert parameters.link.bandwidth == 50 * 10**9


def test_faults_stand_where_they_were_written():
    document = parse_document("nodes: 2\nlink:\n  bandwith: 400 Gbps\ntaper: 0\n", "mine.yaml")
    with pytest.raises(InputError) as caught:
        resolve_preset("clos-h100", document)
    unknown, low = map(str, caught.value.problems)
    assert unknown.startswith("mine.yaml:3:3: link.bandwith: unknown key")
    assert unknown.endswith("did you mean 'bandwidth'?")
    assert low.startswith("mine.yaml:4:1: taper: expected greater than or equal to 1")


def test_a_fault_of_a_preset_file_stands_in_that_file(tmp_path):
    (tmp_path / "own.yaml").write_text("description: d\nbuilder: clos\nparameters:\n  nodes: many\nsources: {}\n")
    with pytest.raises(InputError) as caught:
        build_topology("./own.yaml", {"taper": 2}, tmp_path)
    problems = [str(problem) for problem in caught.value.problems]
    assert any(p.endswith("own.yaml:4:3: nodes: expected a whole number, found 'many'") for p in problems)
    assert any("missing key 'device'" in p for p in problems)


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("clos-h10", {}, "did you mean 'clos-h100'"),
        ("clos-h100", {"nodes": 257}, "the largest that fits is 256 nodes"),
        ("clos-h100", {"nodes": 0}, "greater than or equal to 1"),
        ("clos-h100", {"nodes": 2.5}, "a whole number"),
        ("clos-h100", {"link": "400 Gbps"}, "expected a mapping"),
        ("clos-h100", {"link": {"bandwidth": "0 Gbps"}}, "more than zero"),
        ("clos-h100", {"link": {"latency": "50"}}, "no unit"),
        ("clos-h100", {"attachment": "rial"}, "did you mean 'rail'"),
        ("fat-tree-k16", {"nodes": 4}, "unknown key 'nodes'"),
        ("fat-tree-k16", {"switch": {"radix": 15}}, "even radix"),
    ],
)
def test_bad_choices_are_refused_with_what_is_allowed(name, overrides, message):
    with pytest.raises(InputError, match=message):
        resolve_preset(name, overrides)


def test_what_a_preset_leaves_out_is_placed_where_the_user_wrote_it(tmp_path):
    (tmp_path / "own.yaml").write_text("description: d\nbuilder: clos\nparameters: {device: x}\nsources: {}\n")
    document = parse_document("pcie:\n  bandwidth: 1 GB\nnvlink: {latency: 1 us}\n", "mine.yaml")
    with pytest.raises(InputError) as caught:
        resolve_preset("own.yaml", document, tmp_path)
    problems = [str(problem) for problem in caught.value.problems]
    assert any(p.startswith("mine.yaml:2:3: pcie.bandwidth: '1 GB' has unit 'GB'") for p in problems)
    assert any(p.startswith("mine.yaml:3:1: nvlink.bandwidth: missing key 'bandwidth'") for p in problems)
    assert any(p.startswith("mine.yaml:1:1: nodes: missing key 'nodes'") for p in problems)


def test_an_unknown_builder_is_refused(tmp_path):
    (tmp_path / "own.yaml").write_text("description: d\nbuilder: cloz\nparameters: {}\nsources: {}\n")
    with pytest.raises(InputError, match=r"own.yaml:2:1: builder: unknown builder 'cloz'.*did you mean 'clos'"):
        build_topology("own.yaml", None, tmp_path)


def test_every_builder_is_shipped_as_a_preset():
    assert {load_preset(name)[0].builder for name in PRESETS} == set(BUILDERS)


def test_graph_is_frozen_and_keeps_parallel_cables_apart():
    topology = build_topology("clos-h100")
    assert topology.graph.number_of_edges("leaf0.0", "spine0") == 8
    assert topology.graph.number_of_edges() == len(topology.links)
    with pytest.raises(Exception, match="Frozen"):
        topology.graph.add_node("x")


def test_check_sees_damage():
    topology = build_topology("clos-h100", {"nodes": 2})
    last = topology.links[-1]
    ways = topology.planes[1].access
    swapped = Plane("fabric", (ways[1], *ways[1:]), topology.planes[1].between)
    for damage in (
        {"links": topology.links[:-1]},
        {"links": (*topology.links[:-1], replace(last, capacity_bytes_per_s=0))},
        {"links": (*topology.links[:-1], replace(last, index=0))},
        {"links": (*topology.links[:-1], replace(last, target="nowhere"))},
        {"sites": topology.sites[::-1]},
        {"planes": (topology.planes[0], swapped)},
    ):
        with pytest.raises(InvariantError):
            check(replace(topology, **damage))


def test_show_prints_the_bill_and_says_what_was_set():
    result = CliRunner().invoke(commands, ["show", "clos-h100", "--set", "nodes=64"], catch_exceptions=False)
    assert result.exit_code == 0
    assert "leaf-spine connections          512" in result.output
    assert "nodes               64                --set" in result.output


def test_show_json_has_parameters_with_sources_and_the_bill():
    arguments = ["show", "clos-h100", "--json", "--set", "link.bandwidth=200 Gbps"]
    shown = json.loads(CliRunner().invoke(commands, arguments, catch_exceptions=False).output)
    assert shown["parameters"]["link.bandwidth"] == {"value": "25 GB/s", "source": "--set"}
    assert "Quantum-2" in shown["parameters"]["switch.radix"]["source"]
    assert shown["bill_of_materials"]["bisection_bytes_per_s"] == 64 * 25 * 10**9


@pytest.mark.parametrize("word", ["nodes", "=3", "link..latency=1 us", "nodes.x=1"])
def test_show_refuses_settings_that_are_none(word):
    result = CliRunner().invoke(commands, ["show", "clos-h100", "--set", word])
    assert isinstance(result.exception, InputError)
