"""What `simulate topology show` and `compare` print: figures of fabrics in 80 columns."""

import textwrap
from collections.abc import Mapping, Sequence

from simulator.topology.bill import BillOfMaterials
from simulator.topology.costs import Costs, format_power, format_price
from simulator.units import format_bandwidth, format_duration

WIDTH = 80
Rows = list[tuple[str, str]]


def parameter_lines(parameters: Mapping[str, object], sources: Mapping[str, str | None]) -> list[str]:
    """Return a line per parameter with the number of its source, and below them the sources in full."""
    numbers: dict[str, int] = {}
    lines = []
    width = max([18, *map(len, parameters)]) + 2
    for path, value in parameters.items():
        source = sources[path] or ""
        if source and source != "--set":
            source = f"[{numbers.setdefault(source, len(numbers) + 1)}]"
        lines.append(f"  {path:<{width}}{value!s:<18}{source}".rstrip())
    return lines + _numbered(numbers)


def _numbered(numbers: Mapping[str, int]) -> list[str]:
    lines = [""] if numbers else []
    for source, number in numbers.items():
        mark = f"  [{number}]".ljust(7)
        lines += textwrap.wrap(source, WIDTH, initial_indent=mark, subsequent_indent=" " * 7, break_on_hyphens=False)
    return lines


def figure_rows(bill: BillOfMaterials) -> Rows:
    """Return the counts and promises of one fabric, named."""
    rows = [("nodes", f"{bill.nodes:,}"), ("devices", f"{bill.devices:,}")]
    if len(bill.accelerators) > 1:
        rows += [(f"  {kind}", f"{count:,}") for kind, count in bill.accelerators.items()]
    if len(bill.device_kinds) > 1:
        rows += [(f"{kind} endpoints", f"{count:,}") for kind, count in bill.device_kinds.items()]
    rows.append(("NICs", f"{bill.nics:,}"))
    rows += [(f"{tier} switches", f"{count:,}") for tier, count in bill.switches.items() if tier != "nvlink"]
    rows += [("NVLink domains", f"{count:,}") for tier, count in bill.switches.items() if tier == "nvlink"]
    rows += _plane_rows(bill)
    for tier, count in bill.cables.items():
        each = format_bandwidth(bill.cable_bytes_per_s[tier] / count)
        rows.append((f"{tier} connections", f"{count:<10,} {each} each way"))
    rows.append(("links between switches", f"{bill.inter_switch_links:,}"))
    rows.append(("transceivers", f"{bill.transceivers:,}"))
    rows.append(("oversubscription, down:up", f"{bill.oversubscription:.3g}:1"))
    if len(bill.tier_oversubscription) > 1:
        rows += [(f"  of {tier} switches", f"{ratio:.3g}:1") for tier, ratio in bill.tier_oversubscription.items()]
    rows.append(("bisection bandwidth, one way", format_bandwidth(bill.bisection_bytes_per_s)))
    rows.append(("diameter", f"{bill.diameter_hops} links"))
    return rows


def _plane_rows(bill: BillOfMaterials) -> Rows:
    alike: dict[str, list[str]] = {}
    for plane, tiers in bill.planes.items():
        alike.setdefault(", ".join(f"{count:,} {tier}" for tier, count in tiers.items()), []).append(plane)
    rows = [("planes", f"{len(bill.planes):,}")] if bill.planes else []
    for holds, planes in alike.items():
        names = planes[0] if len(planes) == 1 else f"{planes[0]} ... {planes[-1]}, each"
        rows.append((f"  {names}", holds))
    return rows


def route_lines(bill: BillOfMaterials) -> list[str]:
    """Return how far the other devices are from the first one, and over how many equal-cost paths."""
    if not bill.routes and not bill.unreachable:
        return []
    lines = ["", f"  {'to the first device':<32}{'links':>5}{'latency':>12}{'equal-cost paths':>20}"]
    for reach in bill.routes:
        same = reach.least_paths == reach.most_paths
        paths = f"{reach.least_paths:,}" if same else f"{reach.least_paths:,} to {reach.most_paths:,}"
        to = f"from {reach.devices:,} device{'s' if reach.devices > 1 else ''}"
        lines.append(f"  {to:<32}{reach.hops:>5}{format_duration(reach.latency_ns):>12}{paths:>20}")
    if bill.unreachable:
        lines.append(f"  {'unreachable':<32}{bill.unreachable:,} devices")
    return lines


def failure_lines(bill: BillOfMaterials) -> list[str]:
    """Return what the loss of one thing of each kind does to the devices."""
    if not bill.failures:
        return []
    lines = ["", f"  {'when one is lost':<22}{'of':>8}{'cut off':>12}{'slowed':>12}{'bandwidth left':>20}"]
    for domain in bill.failures:
        left = f"{100 * domain.least_share:.4g} %" if domain.slowed else "-"
        name = f"{domain.what} (node-mates)" if domain.scope == "scale-up" else domain.what
        lines.append(f"  {name:<22}{domain.count:>8,}{domain.cut_off:>12,}{domain.slowed:>12,}{left:>20}")
    return lines


def cost_lines(costs: Costs, devices: int) -> list[str]:
    """Return the price and power of a fabric item by item, what has no figure, and where the figures come from."""
    if not costs.prices and not costs.power:
        return []
    numbers: dict[str, int] = {}
    lines = []
    for name, items, missing, write, total in (
        ("cost", costs.prices, costs.unpriced, format_price, costs.dollars),
        ("power", costs.power, costs.unpowered, format_power, costs.watts),
    ):
        if not items:
            continue
        lines.append("")
        for line in items:
            mark = f"[{numbers.setdefault(line.source, len(numbers) + 1)}]" if line.source else ""
            what = f"{name} of {line.count:,} x {line.item}"
            lines.append(f"  {what:<44}{write(line.unit):>12}{write(line.total):>14}  {mark}".rstrip())
        per_device = f"{write(total / devices)} per device"
        lines.append(f"  {name:<44}{'':>12}{write(total):>14}")
        lines.append(f"  {'':<44}{per_device:>26}")
        if missing:
            lines += textwrap.wrap(f"no {name} given for: {', '.join(missing)}", WIDTH, initial_indent="  ")
    return lines + _numbered(numbers)


def compared_rows(bill: BillOfMaterials, costs: Costs) -> dict[str, str]:
    """Return one column of a comparison: figure by name, with those per device at the end."""
    switches = sum(bill.switches.values()) - sum(bill.scale_up.values())
    row = {
        "nodes": f"{bill.nodes:,}",
        "devices": f"{bill.devices:,}",
        **({f"  {kind}": f"{n:,}" for kind, n in bill.accelerators.items()} if len(bill.accelerators) > 1 else {}),
        "NICs": f"{bill.nics:,}",
        "planes": f"{len(bill.planes) or 1}",
        "switches": f"{switches:,}",
        **{f"  {tier}": f"{count:,}" for tier, count in bill.switches.items() if tier not in bill.scale_up},
        "links between switches": f"{bill.inter_switch_links:,}",
        "transceivers": f"{bill.transceivers:,}",
        "oversubscription": f"{bill.oversubscription:.3g}:1",
        "bisection, one way": format_bandwidth(bill.bisection_bytes_per_s),
        "diameter, links": f"{bill.diameter_hops}",
        "equal-cost paths, typical": f"{bill.typical_paths:,}",
        "equal-cost paths, farthest": f"{bill.farthest_paths:,}",
        "unreachable from device 0": f"{bill.unreachable:,}",
    }
    for domain in bill.failures:
        if domain.scope == "scale-out":
            row[f"one {domain.what} lost: cut off"] = f"{domain.cut_off:,}"
            row[f"one {domain.what} lost: slowed"] = f"{domain.slowed:,}"
    if costs.prices:
        row["cost"] = format_price(costs.dollars)
    if costs.power:
        row["power"] = format_power(costs.watts)
    per_device = {
        "switches": f"{switches / bill.devices:.4g}",
        "links between switches": f"{bill.inter_switch_links / bill.devices:.4g}",
        "transceivers": f"{bill.transceivers / bill.devices:.4g}",
        "bisection": format_bandwidth(bill.bisection_bytes_per_s / bill.devices),
        **({"cost": format_price(costs.dollars / bill.devices)} if costs.prices else {}),
        **({"power": format_power(costs.watts / bill.devices)} if costs.power else {}),
    }
    return row | {f"per device: {name}": figure for name, figure in per_device.items()}


def missing_lines(all_costs: Sequence[Costs]) -> list[str]:
    """Return what the totals of a comparison leave out, so that no part of a fabric looks free."""
    lines = []
    for name, given, left_out in (
        ("cost", [c.prices for c in all_costs], [c.unpriced for c in all_costs]),
        ("power", [c.power for c in all_costs], [c.unpowered for c in all_costs]),
    ):
        items = dict.fromkeys(item for missing in left_out for item in missing)
        if any(given) and items:
            lines += textwrap.wrap(f"{name} without: {', '.join(items)}", WIDTH)
    return ["", *lines] if lines else []


def side_by_side(names: Sequence[str], columns: Sequence[Mapping[str, str]]) -> list[str]:
    """Return a table of columns in 80 columns of text: as many side by side as fit, the others below."""
    labels: list[str] = []
    for column in columns:  # keep each column's own order, new rows where they stand in it
        at = 0
        for label in column:
            if label in labels:
                at = labels.index(label) + 1
            else:
                labels.insert(at, label)
                at += 1
    first = max(map(len, labels)) + 1
    lines: list[str] = []
    rest = list(zip(names, columns, strict=True))
    while rest:
        widths: list[int] = []
        for name, column in rest:
            width = 2 + max(len(name), *(len(text) for text in column.values()))
            if widths and first + sum(widths) + width > WIDTH:
                break
            widths.append(width)
        block, rest = rest[: len(widths)], rest[len(widths) :]
        lines += [""] if lines else []
        lines.append(" " * first + "".join(f"{name:>{w}}" for (name, _), w in zip(block, widths, strict=True)))
        for label in labels:
            cells = [f"{column.get(label, '-'):>{w}}" for (_, column), w in zip(block, widths, strict=True)]
            lines.append(f"{label:<{first}}" + "".join(cells))
    return lines
