"""The topology commands as a user types them, and the page that is written from the presets."""

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from simulator import catalog, cli
from simulator.report.presets import DRAWN, drawing, page
from simulator.topology import bill_of_materials, build_topology

PRESETS = catalog.names("topologies")
DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture
def topology(capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        with pytest.raises(SystemExit) as stop:
            cli.main(["topology", *arguments])
        out, err = capfd.readouterr()
        assert "Traceback" not in err
        return stop.value.code, out, err

    return call


@pytest.mark.parametrize("name", PRESETS)
def test_show_fits_80_columns_and_says_everything(topology, name):
    code, out, _ = topology("show", name)
    assert code == 0
    assert max(map(len, out.splitlines())) <= 80
    bill = bill_of_materials(build_topology(name))
    figures = {line[2:34].rstrip(): line[34:] for line in out.splitlines()}
    assert figures["devices"] == f"{bill.devices:,}"
    assert figures["links between switches"] == f"{bill.inter_switch_links:,}"
    assert figures["diameter"] == f"{bill.diameter_hops} links"
    for tier, count in bill.cables.items():
        assert figures[f"{tier} connections"].startswith(f"{count:,} ")
    if len(bill.failures) > 1:
        assert "when one is lost" in out


def test_show_numbers_its_sources_and_wraps_them(topology):
    _, out, _ = topology("show", "clos-h100", "--set", "switch.radix=32")
    lines = out.splitlines()
    assert "  switch.radix        32                --set" in lines
    assert any(line.startswith("  devices_per_node    8                 [1]") for line in lines)
    assert "  [1]  NVIDIA DGX H100 data sheet, 8 GPUs and 8 ConnectX-7 NICs for compute" in lines


def test_show_prices_what_has_a_price_and_names_the_rest(topology):
    _, out, _ = topology("show", "clos-h100", "--set", "nodes=256", "--prices", "deepseek-v3")
    assert "cost of 96 x switch                              79.6 k$       7.64 M$  [1]" in out
    assert "8.92 M$" in out  # published: 9 M$
    assert "no cost given for: device, nic, nvlink, nic_link, transceiver" in out
    assert max(map(len, out.splitlines())) <= 80
    assert "$" not in topology("show", "clos-h100")[1]


def test_json_has_all_of_it(topology):
    _, out, _ = topology("show", "clos-h100", "--json", "--prices", "deepseek-v3")
    shown = json.loads(out)
    bill = shown["bill_of_materials"]
    assert bill["switches"] == {"leaf": 8, "nvlink": 16, "spine": 2}
    assert bill["routes"][-1] == {
        "hops": 6,
        "devices": 105,
        "latency_ns": 3700,
        "least_paths": 128,
        "most_paths": 128,
    }
    assert {"nic", "leaf", "spine", "nvlink"} == {failure["what"] for failure in bill["failures"]}
    assert shown["costs"]["dollars"] == 10 * 79600 + 128 * 625
    assert shown["per_device"]["dollars"] == shown["costs"]["dollars"] / 128


def column(out, name):
    lines = out.splitlines()
    end = lines[0].index(name) + len(name)
    rows = {}
    for line in lines[1 : lines.index("") if "" in lines else None]:
        label = line[: line.index("  ")] if not line.startswith("  ") else line[: line.index("  ", 2)]
        rows[label] = line[:end].split("  ")[-1].strip()
    return rows


def test_compare_sets_fabrics_side_by_side(topology):
    code, out, _ = topology("compare", "clos-h100", "fat-tree-k16", "--set", "clos-h100.nodes=128")
    assert code == 0
    left, right = column(out, "clos-h100"), column(out, "fat-tree-k16")
    assert (left["nodes"], right["nodes"]) == ("128", "128")
    assert (left["links between switches"], right["links between switches"]) == ("1,024", "2,048")
    assert (left["diameter, links"], right["diameter, links"]) == ("6", "8")
    assert left["per device: links between switches"] == "1"
    assert right["per device: transceivers"] == "6"


def test_compared_costs_say_what_they_leave_out(topology):
    arguments = ("compare", "clos-h100", "multi-plane-h800")
    _, out, _ = topology(*arguments, "--prices", "deepseek-v3", "--set", "nodes=256")
    assert column(out, "clos-h100")["per device: cost"] == "4.36 k$"
    assert "cost without: device, nic, nvlink, nic_link, transceiver" in out
    assert "power without: device, nic, nvlink, switch, nic_link, inter_switch_link" in out
    assert "without" not in topology(*arguments)[1]


def test_one_preset_at_two_sizes_is_addressed_by_place(topology):
    _, out, _ = topology("compare", "clos-h100", "clos-h100", "--set", "1.nodes=16", "--set", "2.nodes=64")
    assert column(out, "1.clos-h100")["nodes"] == "16"
    assert column(out, "2.clos-h100")["nodes"] == "64"


def test_a_setting_without_a_name_is_for_all(topology):
    _, out, _ = topology("compare", "clos-h100", "clos-a100", "--set", "nodes=5", "--json")
    assert [shown["bill_of_materials"]["nodes"] for shown in json.loads(out)] == [5, 5]


def test_many_columns_go_below_each_other_within_80(topology):
    _, out, _ = topology("compare", *(["clos-h100"] * 5))
    lines = out.splitlines()
    assert max(map(len, lines)) <= 80
    assert sum(line.count(".clos-h100") for line in lines) == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compare", "clos-h100"], "two presets or more"),
        (["compare", "clos-h100", "clos-h10"], "did you mean 'clos-h100'"),
        (["compare", "clos-h100", "fat-tree-k16", "--set", "nodes=4"], "unknown key 'nodes'"),
        (["compare", "clos-h100", "fat-tree-k16", "--prices", "deepseek-v3"], "not 16"),
        (["show", "clos-h100", "--prices", "deepseek"], "did you mean 'deepseek-v3'"),
        (["show", "clos-h100", "--prices", "./none.yaml"], "none.yaml: cannot read"),
        (["draw", "clos-h100", "--out", "x.png"], "no drawing ends in '.png'; allowed: .svg, .graphml, .dot"),
        (["draw", "clos-h100", "--out", "none/x.svg"], "cannot write none/x.svg"),
        (["draw", "clos-h100"], "Missing option '--out'"),
        (["draw", "clos-h100", "--out", "x.svg", "--set", "nodes=0"], "greater than or equal to 1"),
    ],
)
def test_mistakes_are_said_and_exit_with_2(topology, arguments, message):
    code, out, err = topology(*arguments)
    assert (code, out) == (2, "")
    assert message in err


def test_own_prices_come_from_a_file(topology, tmp_path):
    (tmp_path / "mine.yaml").write_text("prices: {switch: 10 k$}\n")
    _, out, _ = topology("show", "clos-h100", "--prices", "mine.yaml")
    assert "100 k$" in out
    (tmp_path / "mine.yaml").write_text("prices: {switch: 10 k$, spin: 3 $}\n")
    code, _, err = topology("show", "clos-h100", "--prices", "mine.yaml")
    assert code == 2
    assert err.startswith("mine.yaml:1:25: prices.spin: unknown item 'spin'")


@pytest.mark.parametrize("suffix", [".svg", ".graphml", ".dot"])
def test_draw_writes_by_suffix(topology, tmp_path, suffix):
    out = tmp_path / f"x{suffix}"
    assert topology("draw", "clos-h100", "--out", str(out), "--set", "nodes=2") == (0, "", "")
    text = out.read_text()
    if suffix == ".dot":
        assert text.startswith('digraph "clos-h100" {')
    else:
        assert ET.fromstring(text).tag.endswith(suffix[1:])


def test_the_page_is_the_generated_one():
    written = "run: python -m simulator.report.presets docs"
    assert (DOCS / "topologies.md").read_text(encoding="utf-8") == page(), written
    for name in DRAWN:
        assert (DOCS / "topologies" / f"{name}.svg").read_text(encoding="utf-8") == drawing(name), written
