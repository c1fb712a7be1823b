"""What `simulate device` prints, and the page of data sheets, written by `python -m simulator.report.devices docs`."""

import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from simulator import catalog
from simulator.device.accelerator import KIND, Accelerator, load_accelerator
from simulator.units import format_bandwidth, format_duration

WIDTH = 80
GB = 10**9

_OPENING = """# Devices

Shipped data sheets, `topologies/devices/NAME.yaml` (page written by `python -m simulator.report.devices docs`); one's
own is named by its path. `simulate device show NAME` gives every number with its source.

Peaks are dense, in TFLOPS or TOPS; memory is what the driver reports. The domain is that of tensor parallelism: number
of devices x bandwidth of one of them, one way. `constants of` names the sheet whose fitted efficiencies a device
borrows, because no table of it was measured.

| sheet | device | processors | bf16 | fp8 | int8 | fp4 | memory, GB | GB/s | domain | W | $/h | constants of |
|---|---|---|---|---|---|---|---|---|---|---|---|---|
"""

_CLOSING = """
## Where the numbers are from

Each number of a sheet has a text under `sources`, and a test refuses one without. *Second-hand* is what no paper of the
vendor was at hand for, *computed* follows from other figures by the rule given, *an estimate* or *an assumption* is
what it says. Where a vendor prints the figure with sparsity, the sheet has half of it. Prices are what one source asked
on one day: replace them by your own before you compare costs.

## Borrowed constants

A sheet has fitted constants of its own (`efficiency`, see [the cost model](cost-model.md)) or borrows those of another
by `like`; `sources.like` says why that one. Shares of peak and bandwidth, launch times and pipeline fills are taken as
they are. The all-reduce is scaled: a borrower moves bytes at the lender's share of the link, so each bus bandwidth, and
the message size from which the other protocol is used, is multiplied by the ratio of the two domains' bandwidths;
latencies stay. `scale_up.like` names another sheet for the links alone:

- devices without reduction in their switches borrow the links of A100, not those of Hopper;
- in a `mesh` (each device joined to each) n ranks have only (n - 1) / (ranks - 1) of the bandwidth;
- PCIe cards reach each other through their host. NCCL was measured on L40S, and there 8 cards reduce at 1.5 GB/s, 4 at
  5 and 2 at 20 of the 31.5 GB/s of a slot; other cards borrow that, scaled by the slot. A host that lets cards write
  to each other directly is faster than this.

Attention has times of one processor: a walk over the keys, and what multiplying does not hide. Processors of GPUs
differ little in those, so a borrower counts its own. A device with fewer and larger ones (cores of Ascend, matrix units
of Gaudi and TPU) counts as many as its peak has of the lender's, and so reaches the lender's shares of peak and
bandwidth. Held against what is published of such devices, with nothing fitted:

- 910C: memory-bound latent attention at 84 % of the bandwidth (arXiv 2506.12708v2); here grouped attention in decode
  is at 83 %.
- TPU: 86 % of the bandwidth in decode and 73 % of the peak in prompts on TPU7x (arXiv 2604.15464); here 89 % and 55 %
  to 65 % on v6e. An early kernel on v6e (LLMServingSim's first profile) was 4 to 5 times slower, see
  [accuracy](accuracy.md): [measured times](measured-tables.md) bring in such a table.
- H20 has H100's processors with a fifth of their arithmetic. Queries of a decode step are padded to 64 rows, so it is
  bound by arithmetic: 33 TFLOPS for latent attention of 16 heads (FlashMLA: 32, arXiv 2506.01969v2), and 63 ms for a
  step of 64 sequences of 13,000 tokens of a 32B model over four (70 ms with FlashAttention-3 at 12,000 to 14,000,
  sgl-project/sglang issue 5630; FlashInfer, which pads less, took 32).
"""


def lending(sheet: Accelerator) -> str:
    """Return whose constants a sheet works with: its own or another's."""
    return sheet.like or "its own"


def domain(sheet: Accelerator) -> str:
    """Return the number of devices in one scale-up domain and the bandwidth of one, or a dash."""
    if sheet.scale_up is None:
        return "-"
    return f"{sheet.scale_up.ranks:,} x {sheet.scale_up.bandwidth / GB:g}"


def _peak(sheet: Accelerator, compute: str) -> str:
    rate = sheet.peak.get(compute) or (sheet.peak.get("fp16") if compute == "bf16" else None)
    if rate is None:
        return "-"
    return f"{rate / 1e12:,.0f}" if rate >= 1e15 else f"{rate / 1e12:.4g}"


_APART = ("name", "title", "sources", "efficiency")


def list_lines(sheets: Sequence[Accelerator]) -> list[str]:
    """Return a line per sheet, of at most 80 columns."""
    lines = [f"{'sheet':<20}{'bf16':>7}{'8 bits':>7}{'GB':>5}{'GB/s':>7}{'domain':>13}{'W':>6}  constants of"]
    for sheet in sheets:
        narrow = _peak(sheet, "fp8" if "fp8" in sheet.peak else "int8")
        memory = f"{sheet.memory.capacity / GB:.0f}"
        lines.append(
            f"{sheet.name:<20}{_peak(sheet, 'bf16'):>7}{narrow:>7}{memory:>5}{sheet.memory.bandwidth / GB:>7.5g}"
            f"{domain(sheet):>13}{sheet.power.tdp:>6.0f}  {lending(sheet)}"
        )
    return [*lines, "", "peaks in TFLOPS or TOPS, dense; domain: devices x GB/s one way"]


def show_lines(sheet: Accelerator, written: dict[str, Any]) -> list[str]:
    """Return every number of a sheet as it is `written`, with its source, and what follows from them."""
    lines = [*textwrap.wrap(f"{sheet.name}: {sheet.title or 'no title'}", WIDTH), ""]
    numbers: dict[str, int] = {}
    for path, value in leaves({key: part for key, part in written.items() if key not in _APART}):
        if path.startswith("scale_up.all_reduce."):
            continue  # as the whole of `efficiency`: many constants, summed up below
        source = source_of(sheet.sources, path)
        mark = "" if source is None else f"[{numbers.setdefault(source, len(numbers) + 1)}]"
        lines.append(f"  {path:<34}{value!s:<20}{mark}".rstrip())
    lines += ["", f"  fitted constants: {lending(sheet)}", *_ridges(sheet), *_reductions(sheet), ""]
    for source, number in numbers.items():
        mark = f"  [{number}]".ljust(7)
        lines += textwrap.wrap(source, WIDTH, initial_indent=mark, subsequent_indent=" " * 7, break_on_hyphens=False)
    return lines


def _ridges(sheet: Accelerator) -> Iterator[str]:
    for compute, rate in sheet.peak.items():
        yield f"  {f'ridge point in {compute}':<34}{rate / sheet.memory.bandwidth:.0f} operations per byte"


def _reductions(sheet: Accelerator) -> Iterator[str]:
    for ranks in (2, 4, 8):
        if ranks <= sheet.domain:
            way = sheet.all_reduce(ranks).large
            what = f"{format_bandwidth(way.bandwidth)} on the bus after {format_duration(way.latency)}"
            yield f"  {f'large all-reduce over {ranks}':<34}{what}"


def leaves(value: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted path and value of everything in nested mappings."""
    for key, inner in value.items():
        if isinstance(inner, dict):
            yield from leaves(inner, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", inner


def source_of(sources: dict[str, str], path: str) -> str | None:
    """Return the source of a path: its own or that of the nearest part above it."""
    while path and path not in sources:
        path = path.rpartition(".")[0]
    return sources.get(path)


def page() -> str:
    """Return the page in Markdown."""
    rows = [_row(load_accelerator(name)) for name in catalog.names(KIND)]
    return _OPENING + "\n".join(rows) + "\n" + _CLOSING


def _row(sheet: Accelerator) -> str:
    hourly = sheet.price.hourly
    cells = [
        f"`{sheet.name}`",
        sheet.title or "",
        f"{sheet.processors:,}",
        *(_peak(sheet, compute) for compute in ("bf16", "fp8", "int8", "fp4")),
        f"{sheet.memory.capacity / GB:.0f}",
        f"{sheet.memory.bandwidth / GB:,.5g}",
        domain(sheet),
        f"{sheet.power.tdp:,.0f}",
        "-" if hourly is None else f"{hourly:.2f}",
        lending(sheet),
    ]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    (Path(sys.argv[1]) / "devices.md").write_text(page(), encoding="utf-8")
