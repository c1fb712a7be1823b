"""The page of shipped topologies, written by `python -m simulator.report.presets docs`: the table and two drawings."""

import sys
from pathlib import Path

from simulator import catalog
from simulator.topology import bill_of_materials, build_topology
from simulator.topology.draw import layout
from simulator.topology.draw_svg import svg
from simulator.topology.presets import load_preset
from simulator.units import format_bandwidth

DRAWN = ("clos-h100", "multi-plane-h800")

_OPENING = """# Topologies

Shipped presets, as `simulate topology show NAME` counts them (written by `python -m simulator.report.presets docs`).
Every one is a starting point: `--set nodes=64` on the command line, or the same keys beside `preset:` in a scenario.

| preset | what it is | nodes | devices | switches | links between switches | transceivers | bisection, one way \
| down:up | diameter | equal-cost paths |
|---|---|---|---|---|---|---|---|---|---|---|
"""

_CLOSING = """
Links between switches leave out the cables to NICs; transceivers are two per cable of both sorts. The diameter is the
longest route between two devices in links, device to NIC included. Equal-cost paths are those to the median device of
another node.

## Looking at one, at several, at a picture

- `simulate topology show NAME`: every parameter with its source; counts by tier and plane; how far the other devices
  are from the first one and over how many equal-cost paths; what the loss of one NIC, switch or plane does.
- `simulate topology compare A B [C]...`: side by side, in all and per device. `--set nodes=64` is for all of them,
  `--set B.nodes=64` or `--set 2.nodes=64` for one.
- `simulate topology draw NAME --out X.svg`: tiers as rows, planes side by side in colours; above 200 vertices, boxes
  stand for many alike and lines for many cables. `X.graphml` and `X.dot` hold every vertex and link for other programs.
- `--json` writes all of it for scripts.

## What a loss does

The worst thing of each kind is taken away, and what is left of each device's way out is followed up the tiers: the
share of a switch's way up is the mean of the shares of what it climbs to, weighted by capacity (as if load were
balanced ideally). *Cut off* means that a device has no way out of its node by NICs of its own, though where a fabric
relays over NVLink its node-mates may still carry its traffic; *slowed* means that some is left, and the worst share is
shown. The loss of an NVLink domain cuts node-mates off from each other.

## Prices and power

`--prices NAME` (shipped: @LISTS@) or `--prices FILE` multiplies the counts by unit figures:

```yaml
prices: {switch: 79.6 k$, inter_switch_link: 0.625 k$}  # or nic, nic_link, transceiver, device, nvlink, a tier: leaf
power: {transceiver: 9 W}
sources: {prices.switch: our quote of May, prices.inter_switch_link: our quote of May, power.transceiver: data sheet}
valid_for: {switch.radix: 64, link.bandwidth: 50 GB/s}  # the fabrics that the figures are for; others are refused
```

What has no figure is named under the total, never counted as free.

| list | item | each | source |
|---|---|---|---|
"""


def page() -> str:
    """Return the page in Markdown."""
    from simulator.topology.costs import format_power, format_price, read_price_list, unit_costs

    lists = catalog.names("topologies/prices")
    rows = []
    for name in lists:
        unit = unit_costs(read_price_list(name))
        for section, figures, write in (("prices", unit.prices, format_price), ("power", unit.power, format_power)):
            rows += [
                f"| {name} | {item} | {write(figure)} | {unit.sources[f'{section}.{item}']} |"
                for item, figure in figures.items()
            ]
    drawings = [f"\n## {name}\n\n![{name}](topologies/{name}.svg)\n" for name in DRAWN]
    closing = _CLOSING.replace("@LISTS@", ", ".join(f"`{name}`" for name in lists))
    table = "\n".join(_row(name) for name in catalog.names("topologies"))
    return _OPENING + table + "\n" + closing + "\n".join(rows) + "\n" + "".join(drawings)


def _row(name: str) -> str:
    bill = bill_of_materials(build_topology(name))
    switches = ", ".join(f"{count:,} {tier}" for tier, count in bill.switches.items() if tier != "nvlink")
    if bill.planes:
        switches += f" in {len(bill.planes)} planes"
    cells = [
        f"`{name}`",
        load_preset(name)[0].description,
        f"{bill.nodes:,}",
        f"{bill.devices:,}",
        switches,
        f"{bill.inter_switch_links:,}",
        f"{bill.transceivers:,}",
        format_bandwidth(bill.bisection_bytes_per_s),
        f"{bill.oversubscription:.3g}:1",
        f"{bill.diameter_hops}",
        f"{bill.typical_paths:,}",
    ]
    return f"| {' | '.join(cells)} |"


def drawing(name: str) -> str:
    """Return the SVG of one preset."""
    return svg(layout(build_topology(name)))


def write(folder: Path) -> None:
    """Write the page and its drawings below `folder`."""
    (folder / "topologies").mkdir(parents=True, exist_ok=True)
    (folder / "topologies.md").write_text(page(), encoding="utf-8")
    for name in DRAWN:
        (folder / "topologies" / f"{name}.svg").write_text(drawing(name), encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
