from collections.abc import Iterator
from pathlib import Path

import pytest

from simulator import catalog
from simulator.device.accelerator import load_accelerator
from simulator.documents import read_document
from simulator.errors import InputError

DEVICES = catalog.names("topologies/devices")


def numbers(value: object, path: str = "") -> Iterator[str]:
    """Yield the dotted path of every number or quantity under `value`."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if (path, key) != ("", "sources") and (path, key) != ("", "name"):
                yield from numbers(inner, f"{path}.{key}" if path else key)
    else:
        yield path


@pytest.mark.parametrize("name", DEVICES)
def test_every_number_of_a_sheet_has_a_source(name: str) -> None:
    values = read_document(catalog.locate("topologies/devices", name)).value
    sources = values["sources"]
    found = list(numbers(values))
    assert len(found) > 10
    for path in found:
        parts = path.split(".")
        assert any(".".join(parts[:depth]) in sources for depth in range(1, len(parts) + 1)), path
    for path, text in sources.items():
        assert any(number == path or number.startswith(f"{path}.") for number in found), path
        assert len(text) > 20


@pytest.mark.parametrize("name", DEVICES)
def test_sheets_carry_the_published_peaks(name: str) -> None:
    device = load_accelerator(name)
    bf16, bandwidth, link, tdp = {
        "a100-sxm-40gb": (312e12, 1555, 300, 400),
        "a100-sxm-80gb": (312e12, 2039, 300, 400),
        "b200-sxm": (2250e12, 8000, 900, 1000),
        "gb200": (2500e12, 8000, 900, 1200),
        "h100-sxm-80gb": (989e12, 3350, 450, 700),
    }[name]
    assert device.name == name
    assert device.peak["bf16"] == device.peak["fp16"] == bf16
    assert device.memory.bandwidth == bandwidth * 10**9
    assert device.scale_up.bandwidth == link * 10**9
    assert device.power.tdp == tdp
    assert 39 < device.memory.capacity / 2**30 <= 192


@pytest.mark.parametrize("name", DEVICES)
def test_a_larger_message_never_takes_the_faster_protocol(name: str) -> None:
    device = load_accelerator(name)
    for ranks in range(2, device.scale_up.ranks + 1):
        fit = device.all_reduce(ranks)
        moved = 2 * (ranks - 1) / ranks * fit.switch * 1e9
        assert fit.small.latency + moved / fit.small.bandwidth <= fit.large.latency + moved / fit.large.bandwidth


def test_a_number_of_ranks_between_two_takes_the_larger() -> None:
    device = load_accelerator("h100-sxm-80gb")
    assert device.all_reduce(3) == device.all_reduce(4)
    assert device.all_reduce(5) == device.all_reduce(8)
    assert device.all_reduce(2) != device.all_reduce(4)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("    compute: 0.911", "    compute: 1.2", "less than or equal to 1"),
        ("    compute: 0.911", "    compute: 0", "greater than 0"),
        ("  ranks: 8", "  ranks: 16", "needs one for all 16"),
        ("  bf16:", "  bf8:", "peak needs an entry for bf16"),
        ("  bandwidth: 3350 GB/s", "  bandwidth: 3350", "no unit"),
        ("  ranks: 8", "  ranks: 0", "greater than or equal to 1"),
        ("kernel_launch", "kernel_lunch", "did you mean 'kernel_launch'"),
    ],
)
def test_a_broken_sheet_is_refused_with_its_reason(tmp_path: Path, old: str, new: str, said: str) -> None:
    text = catalog.locate("topologies/devices", "h100-sxm-80gb").read_text()
    assert old in text
    path = tmp_path / "mine.yaml"
    path.write_text(text.replace(old, new))
    with pytest.raises(InputError, match=said):
        load_accelerator(str(path))
