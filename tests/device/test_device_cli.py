"""The device commands as a user types them, and the page that is written from the sheets."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from simulator import catalog, cli
from simulator.device.accelerator import load_accelerator
from simulator.report.devices import page

DEVICES = catalog.names("topologies/devices")
DOCS = Path(__file__).parents[2] / "docs"
Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def device(capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Call:
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            cli.main(["device", *arguments])
        out, err = capfd.readouterr()
        assert "Traceback" not in err
        return int(stop.value.code or 0), out, err

    return call


def test_the_list_names_every_sheet_in_80_columns(device: Call) -> None:
    code, out, _ = device("list")
    assert code == 0
    lines = out.splitlines()
    assert max(map(len, lines)) <= 80
    assert [line.split()[0] for line in lines[1 : 1 + len(DEVICES)]] == DEVICES
    l40s = next(line for line in lines if line.startswith("l40s"))
    assert re.sub(" +", " ", l40s) == "l40s 362.1 733 48 864 8 x 31.5 350 h100-sxm-80gb"


def test_the_list_as_data(device: Call) -> None:
    data = json.loads(device("list", "--json")[1])
    assert [entry["name"] for entry in data] == DEVICES
    assert all(entry["memory"]["capacity"] > 10**10 for entry in data)


@pytest.mark.parametrize("name", DEVICES)
def test_show_gives_each_number_with_its_source_in_80_columns(device: Call, name: str) -> None:
    code, out, _ = device("show", name)
    lines = out.splitlines()
    assert code == 0
    assert max(map(len, lines)) <= 80
    for path in ("processors", "memory.bandwidth", "power.tdp"):
        assert [line for line in lines if line.startswith(f"  {path} ") and line.endswith("]")], path
    assert any(line.startswith("  [1]  ") for line in lines)


def test_show_as_data_has_plain_numbers_and_the_constants_in_use(device: Call) -> None:
    data = json.loads(device("show", "h800-sxm-80gb", "--json")[1])
    sheet = load_accelerator("h800-sxm-80gb")
    assert data["memory"] == {"capacity": 81559 << 20, "bandwidth": 3350 * 10**9, "latency": 273}
    large = data["efficiency"]["all_reduce"]["8"]["large"]
    assert large["bandwidth"] == sheet.all_reduce(8).large.bandwidth


def test_a_sheet_of_ones_own_is_shown_by_its_path(device: Call, tmp_path: Path) -> None:
    text = catalog.locate("topologies/devices", "l40s").read_text()
    (tmp_path / "mine.yaml").write_text(text.replace("name: l40s", "name: mine"))
    assert device("show", "mine.yaml")[1].startswith("mine: NVIDIA L40S")


def test_an_unknown_name_is_refused_with_the_nearest(device: Call) -> None:
    code, _, err = device("show", "l40")
    assert code == 2
    assert "unknown device 'l40'" in err


def test_the_page_is_the_generated_one() -> None:
    written = "run: python -m simulator.report.devices docs"
    assert (DOCS / "devices.md").read_text(encoding="utf-8") == page(), written
