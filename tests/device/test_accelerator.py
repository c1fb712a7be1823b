"""Data sheets: every number has its source, the numbers obey what holds of all devices, and borrowing scales links."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from simulator import catalog
from simulator.device.accelerator import Accelerator, load_accelerator
from simulator.device.links import collective
from simulator.documents import read_document
from simulator.errors import InputError
from simulator.model.operators import Collective

DEVICES = catalog.names("topologies/devices")
SHEETS = {name: load_accelerator(name) for name in DEVICES}

PUBLISHED = {  # dense 16-bit TFLOPS, GB/s of memory, GB of memory, GB/s of the domain one way, W
    "a10": (125, 600, 24, 31.5, 150),
    "a40": (149.7, 696, 48, 31.5, 300),
    "a100-pcie-40gb": (312, 1555, 40, 31.5, 250),
    "a100-pcie-80gb": (312, 1935, 80, 31.5, 300),
    "a100-sxm-40gb": (312, 1555, 40, 300, 400),
    "a100-sxm-80gb": (312, 2039, 80, 300, 400),
    "ascend-910b": (313, 1600, 64, 196, 400),
    "ascend-910c-die": (376, 1600, 64, 196, 390),
    "b200-sxm": (2250, 8000, 180, 900, 1000),
    "b300-sxm": (2250, 8000, 288, 900, 1100),
    "epyc-9654": (14.75, 460.8, 768, 0, 360),
    "gaudi-3": (1835, 3670, 128, 525, 900),
    "gb200": (2500, 8000, 186, 900, 1200),
    "gb300": (2500, 8000, 288, 900, 1400),
    "gh200-96gb": (990, 4000, 96, 450, 900),
    "h100-pcie-80gb": (756.5, 2039, 80, 63, 350),
    "h100-sxm-80gb": (989, 3350, 80, 450, 700),
    "h20-sxm-96gb": (148, 4000, 96, 450, 500),
    "h200-sxm-141gb": (989, 4800, 141, 450, 700),
    "h800-sxm-80gb": (989, 3350, 80, 200, 700),
    "kunpeng-920": (5.32, 187.7, 512, 0, 195),
    "l40s": (362.05, 864, 48, 31.5, 350),
    "mi250x-gcd": (191.5, 1638, 64, 150, 280),
    "mi300x": (1307.4, 5300, 192, 448, 750),
    "rtx-4090": (165.2, 1008, 24, 31.5, 450),
    "rtx-pro-6000": (503.8, 1792, 96, 63, 600),
    "rtx-pro-6000-server": (467.8, 1792, 96, 63, 600),
    "sn40l": (638, 1800, 64, 0, 625),
    "tpu-v3": (123, 900, 32, 328, 262),
    "tpu-v4": (275, 1200, 32, 300, 192),
    "tpu-v6e": (918, 1638, 32, 400, 310),
    "v100-sxm-16gb": (125, 900, 16, 150, 300),
    "v100-sxm-32gb": (125, 900, 32, 150, 300),
    "xeon-6980p": (262.1, 844.8, 768, 0, 500),
    "xeon-8592plus": (124.5, 358.4, 512, 0, 350),
}

CYCLE = {  # dense operations in 16 bits of one processor and cycle, from the architectures' papers
    "v100": 1024,
    "a100": 2048,
    "a10": 1024,
    "a40": 1024,
    "l40s": 1024,
    "rtx-4090": 512,  # accumulation in fp32
    "rtx-pro": 1024,
    "h100": 4096,
    "h200": 4096,
    "h800": 4096,
    "gh200": 4096,
    "b200": 8192,
    "gb200": 8192,
    "mi250x": 1024,
    "mi300x": 2048,
    "tpu-v3": 2 * 128 * 128,
    "tpu-v4": 2 * 128 * 128,
    "xeon": 1024,
    "epyc": 64,
    "kunpeng": 32,
}


def numbers(value: object, path: str = "") -> Iterator[str]:
    """Yield the dotted path of every number or quantity under `value`."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if (path, key) not in (("", "sources"), ("", "name"), ("", "title")):
                yield from numbers(inner, f"{path}.{key}" if path else str(key))
    elif not isinstance(value, str) or value[:1].isdigit():
        yield path


def lends(value: object, path: str = "") -> Iterator[str]:
    """Yield the path of every name of another sheet."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key in ("like", "attention_like"):
                yield f"{path}.{key}" if path else key
            elif key != "sources":
                yield from lends(inner, f"{path}.{key}" if path else str(key))


@pytest.mark.parametrize("name", DEVICES)
def test_every_number_of_a_sheet_has_a_source_and_every_source_a_number(name: str) -> None:
    values = read_document(catalog.locate("topologies/devices", name)).value
    sources = values["sources"]
    found = [*numbers(values), *lends(values)]
    assert len(found) >= 8
    for path in found:
        parts = path.split(".")
        assert any(".".join(parts[:depth]) in sources for depth in range(1, len(parts) + 1)), f"{path} has no source"
    for path, text in sources.items():
        assert any(number == path or number.startswith(f"{path}.") for number in found), f"{path} names no number"
        assert len(text) > 20, path
        if not path.endswith("like"):
            assert re.search(r"\d", text), f"the source of {path} has no year, figure or table: {text}"


def test_all_sheets_are_in_the_list_of_published_figures() -> None:
    assert set(DEVICES) == set(PUBLISHED)


@pytest.mark.parametrize("name", DEVICES)
def test_sheets_carry_the_published_figures(name: str) -> None:
    device = SHEETS[name]
    tflops, bandwidth, capacity, link, tdp = PUBLISHED[name]
    assert device.name == name
    assert device.title
    assert device.rate("bf16") == pytest.approx(tflops * 1e12, rel=1e-12)
    assert device.rate("fp16") == device.rate("bf16") or name == "gaudi-3"
    assert device.memory.bandwidth == round(bandwidth * 10**9)
    assert 0.93 * capacity * 10**9 < device.memory.capacity <= capacity * 2**30
    assert (device.scale_up.bandwidth if device.scale_up else 0) == round(link * 10**9)
    assert device.power.tdp == tdp


@pytest.mark.parametrize("name", [name for name in DEVICES if SHEETS[name].clock])
def test_a_peak_is_processors_times_clock_times_operations_of_a_cycle(name: str) -> None:
    # dense, so a figure with sparsity would be off by two; data sheets round the clock
    device = SHEETS[name]
    family = max((known for known in CYCLE if name.startswith(known)), key=len)
    assert device.rate("bf16") / device.processors / device.clock.boost == pytest.approx(CYCLE[family], rel=0.02)


@pytest.mark.parametrize("name", DEVICES)
def test_narrow_types_are_as_much_faster_as_the_architecture_makes_them(name: str) -> None:
    # fp8 = 2 x bf16, fp4 = 2 x fp8, tf32 = bf16 / 2: a figure with sparsity in one row only breaks this
    peak = SHEETS[name].peak
    ultra = name in ("b300-sxm", "gb300")  # fp4 was raised by half, int8 given up
    if "fp8" in peak and name != "gaudi-3":  # whose matrix engines take both at one rate
        assert peak["fp8"] / peak["bf16"] == pytest.approx(2, rel=0.03)
    if "fp4" in peak:
        assert peak["fp4"] / peak["fp8"] == pytest.approx(3 if ultra else 2, rel=0.01)
    if "tf32" in peak and name != "gaudi-3":
        assert peak["tf32"] / peak["bf16"] == pytest.approx(0.5, rel=0.02)
    if "int8" in peak and not ultra:
        ratio = {"rtx-4090": 4, "tpu-v4": 1, "mi250x-gcd": 1}.get(name, 2)
        assert peak["int8"] / SHEETS[name].rate("bf16") == pytest.approx(ratio, rel=0.03)
    assert peak.get("fp32", 0) <= SHEETS[name].rate("fp16") / 2


@pytest.mark.parametrize("name", DEVICES)
def test_no_number_is_out_of_the_range_of_its_kind(name: str) -> None:
    device = SHEETS[name]
    ridge = device.rate("bf16") / device.memory.bandwidth
    assert 20 < ridge < 600  # operations per byte; L40S with sparsity would be at 838
    if device.memory.latency:  # Little's law: bytes in flight at full bandwidth, per processor
        assert 2**10 < device.memory.bandwidth * device.memory.latency / 1e9 / device.processors < 2**17
    assert 0.01 < device.rate("bf16") / 1e12 / device.power.tdp < 4  # TFLOPS per watt
    if device.power.idle is not None:
        assert 0.03 * device.power.tdp < device.power.idle < 0.5 * device.power.tdp
    if device.clock is not None:
        clocks = [clock for clock in (device.clock.minimum, device.clock.base, device.clock.boost) if clock]
        assert clocks == sorted(clocks)
    for tier, memory in device.tiers.items():
        nearer = tier == "sram"
        assert (memory.bandwidth > device.memory.bandwidth) == nearer
        assert (memory.capacity < device.memory.capacity) or not nearer


@pytest.mark.parametrize("name", [name for name in DEVICES if SHEETS[name].scale_up])
def test_a_domain_is_no_faster_than_the_ports_it_goes_over(name: str) -> None:
    device = SHEETS[name]
    ways = [port.bandwidth * port.count for port in device.ports.values()]
    assert device.scale_up.bandwidth <= max(ways)
    if device.scale_up.like == "l40s" or name == "l40s":
        assert device.scale_up.bandwidth == device.ports["pcie"].bandwidth


@pytest.mark.parametrize(
    ("less", "more", "what"),
    [
        ("a100-pcie-80gb", "a100-sxm-80gb", "bandwidth link tdp"),
        ("a100-sxm-40gb", "a100-sxm-80gb", "bandwidth capacity"),
        ("v100-sxm-32gb", "a100-sxm-40gb", "bf16 bandwidth capacity link tdp"),
        ("a10", "a40", "bf16 bandwidth capacity tdp"),
        ("a100-sxm-80gb", "h100-sxm-80gb", "bf16 bandwidth link tdp"),
        ("h100-pcie-80gb", "h100-sxm-80gb", "bf16 bandwidth link tdp"),
        ("h800-sxm-80gb", "h100-sxm-80gb", "link"),
        ("h20-sxm-96gb", "h100-sxm-80gb", "bf16 tdp"),
        ("h100-sxm-80gb", "h200-sxm-141gb", "bandwidth capacity"),
        ("h200-sxm-141gb", "b200-sxm", "bf16 bandwidth capacity link tdp"),
        ("b200-sxm", "gb200", "bf16 capacity tdp"),
        ("b200-sxm", "b300-sxm", "capacity tdp"),
        ("gb200", "gb300", "capacity tdp"),
        ("rtx-4090", "rtx-pro-6000", "bf16 bandwidth capacity link tdp"),
        ("rtx-pro-6000-server", "rtx-pro-6000", "bf16"),
        ("mi250x-gcd", "mi300x", "bf16 bandwidth capacity link tdp"),
        ("tpu-v3", "tpu-v4", "bf16 bandwidth"),
        ("tpu-v4", "tpu-v6e", "bf16 bandwidth link"),
        ("ascend-910b", "ascend-910c-die", "bf16"),
        ("kunpeng-920", "epyc-9654", "bf16 bandwidth tdp"),
        ("epyc-9654", "xeon-6980p", "bf16 bandwidth tdp"),
    ],
)
def test_devices_stand_in_the_order_of_their_makers(less: str, more: str, what: str) -> None:
    def figures(device: Accelerator) -> dict[str, float]:
        return {
            "bf16": device.rate("bf16"),
            "bandwidth": device.memory.bandwidth,
            "capacity": device.memory.capacity,
            "link": device.scale_up.bandwidth if device.scale_up else 0,
            "tdp": device.power.tdp,
        }

    low, high = figures(SHEETS[less]), figures(SHEETS[more])
    for figure in what.split():
        assert low[figure] < high[figure], figure


# What is borrowed


@pytest.mark.parametrize("name", [name for name in DEVICES if SHEETS[name].scale_up])
def test_a_larger_message_never_takes_the_faster_protocol(name: str) -> None:
    device = SHEETS[name]
    for ranks in range(2, min(device.domain, 9)):
        fit = device.all_reduce(ranks)
        moved = 2 * (ranks - 1) / ranks * fit.switch * 1e9
        small, large = (way.latency + moved / way.bandwidth for way in (fit.small, fit.large))
        assert small <= large * (1 + 1e-6)  # rounded to whole bytes


def test_a_number_of_ranks_between_two_takes_the_larger() -> None:
    device = load_accelerator("h100-sxm-80gb")
    assert device.all_reduce(3) == device.all_reduce(4)
    assert device.all_reduce(5) == device.all_reduce(8)
    assert device.all_reduce(2) != device.all_reduce(4)


def test_a_borrowed_all_reduce_moves_its_bytes_at_the_same_share_of_the_link() -> None:
    # H100: 450 GB/s, H800: 200 GB/s one way; latencies stay
    lender, borrower = load_accelerator("h100-sxm-80gb"), load_accelerator("h800-sxm-80gb")
    for ranks in (2, 4, 8):
        for way in ("small", "large"):
            lent, borrowed = (getattr(device.all_reduce(ranks), way) for device in (lender, borrower))
            assert borrowed.latency == lent.latency
            assert borrowed.bandwidth == pytest.approx(lent.bandwidth * 200 / 450, rel=1e-6)
        assert borrower.all_reduce(ranks).switch == pytest.approx(lender.all_reduce(ranks).switch * 200 / 450, abs=1)
    assert borrower.fitted.gemm == lender.fitted.gemm


def test_two_of_a_mesh_have_one_link() -> None:
    # seven links of 64 GB/s: two ranks share one, four have three, eight have all
    mesh, lender = load_accelerator("mi300x"), load_accelerator("a100-sxm-80gb")
    for ranks in (2, 4, 8):
        share = lender.all_reduce(ranks).large.bandwidth / 300e9
        assert mesh.all_reduce(ranks).large.bandwidth == pytest.approx(share * (ranks - 1) * 64e9, rel=1e-6)


@pytest.mark.parametrize("name", ["a10", "l40s", "rtx-4090", "rtx-pro-6000", "a100-pcie-80gb", "h100-pcie-80gb"])
def test_cards_reduce_through_their_host_and_slowly(name: str) -> None:
    card, nvlink = load_accelerator(name), load_accelerator("h100-sxm-80gb")
    for ranks in (2, 4, 8):
        for size in (2**20, 2**26):
            shape = Collective("all_reduce", size, ranks, "tensor")
            assert collective(shape, card).ns > 3 * collective(shape, nvlink).ns
        assert card.all_reduce(ranks).large.bandwidth < card.ports["pcie"].bandwidth


def sheet(folder: Path, name: str, old: str = "", new: str = "", source: str = "h800-sxm-80gb") -> str:
    text = catalog.locate("topologies/devices", source).read_text()
    assert old in text
    path = folder / f"{name}.yaml"
    path.write_text(text.replace(old, new) if old else text)
    return str(path)


def test_lenders_are_found_beside_a_sheet_and_may_borrow_themselves(tmp_path: Path) -> None:
    sheet(tmp_path, "middle", "  bandwidth: 200 GB/s", "  bandwidth: 100 GB/s")
    mine = load_accelerator(
        sheet(tmp_path, "mine", "like: h100-sxm-80gb\nsources", f"like: {tmp_path}/middle.yaml\nsources")
    )
    assert mine.all_reduce(8).large.bandwidth == pytest.approx(
        load_accelerator("h800-sxm-80gb").all_reduce(8).large.bandwidth, rel=1e-6
    )


def test_sheets_that_borrow_from_each_other_are_refused(tmp_path: Path) -> None:
    first, second = f"{tmp_path}/first.yaml", f"{tmp_path}/second.yaml"
    sheet(tmp_path, "first", "like: h100-sxm-80gb\n", f"like: {second}\n")
    sheet(tmp_path, "second", "like: h100-sxm-80gb\n", f"like: {first}\n")
    with pytest.raises(InputError, match=r"sheets borrow from each other: .*first.*second.*first"):
        load_accelerator(first)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("    compute: 0.", "    compute: 1.2 #", "less than or equal to 1"),
        ("    compute: 0.", "    compute: 0 #", "greater than 0"),
        ("  ranks: 8", "  ranks: 16", "needs one for all 16"),
        ("  bf16:", "  bf8:", "peak: needs an entry for bf16"),
        ("  bandwidth: 3350 GB/s", "  bandwidth: 3350", "no unit"),
        ("  ranks: 8", "  ranks: 0", "greater than or equal to 1"),
        ("kernel_launch", "kernel_lunch", "did you mean 'kernel_launch'"),
        ("  ranks: 8", "  ranks: 8\n  like: l40s", "given by efficiency.all_reduce already"),
        ("  ranks: 8", "  ranks: 8\n  joined: ring", "switch"),
        ("efficiency:", "like: a100-sxm-80gb\nefficiency:", "or borrows it"),
    ],
)
def test_a_broken_sheet_is_refused_with_its_reason(tmp_path: Path, old: str, new: str, said: str) -> None:
    text = catalog.locate("topologies/devices", "h100-sxm-80gb").read_text()
    if old == "  bf16:":  # one entry for 16 bits is enough
        text = text.replace("  fp16:", "  fp15:", 1)
    assert old in text
    path = tmp_path / "mine.yaml"
    path.write_text(text.replace(old, new))
    with pytest.raises(InputError, match=said):
        load_accelerator(str(path))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("like: h100-sxm-80gb\n", "like: h100-sxm-8gb\n", "unknown device 'h100-sxm-8gb'"),
        ("  ranks: 8", "  ranks: 8\n  like: sn40l", "no scale-up domain whose all-reduce could be borrowed"),
    ],
)
def test_a_sheet_that_borrows_what_is_not_there_is_refused(tmp_path: Path, old: str, new: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        load_accelerator(sheet(tmp_path, "mine", old, new))
