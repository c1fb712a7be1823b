"""Runs the scenarios of scenarios/network and prints, as Markdown, the tables of docs/network-studies.md.

Run as `python benchmarks/network_studies.py`. Costs are by `topologies/prices/deepseek-v3.yaml`, where it has a price.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from simulator import load, simulate
from simulator.results.run import Run
from simulator.topology import build_topology
from simulator.topology.bill import bill_of_materials
from simulator.topology.costs import costs_of, format_price, read_price_list, unit_costs
from simulator.units import format_bandwidth, format_bytes, format_duration

SCENARIOS = Path(__file__).parent.parent / "scenarios" / "network"
STUDIES: dict[str, tuple[str, ...]] = {
    "Rail-only against Clos": ("rail-only", "clos"),
    "Multi-plane against multi-rail": ("multi-plane", "multi-rail", "multi-plane-no-relay"),
    "A KV cache over three planes": ("kv-over-planes",),
    "Hashing against spraying": ("ecmp", "adaptive", "spray"),
    "A plane lost": ("plane-lost",),
}


def _seconds(value: float | None) -> str:
    return "-" if value is None else format_duration(value * 1e9)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n"


def collectives(runs: dict[str, Run]) -> str:
    """Return a table of the collectives of some runs."""
    rows = []
    for name, run in runs.items():
        for line in run.summary["collectives"]["runs"]:
            bus = line["bus_bytes_per_s"]
            by = " ".join(line[key] for key in ("algorithm", "protocol") if line[key])
            cells = [line["operation"], by, f"{line['ranks']:,}", format_bytes(line["bytes"]), f"{line['completed']:,}"]
            rows.append([name, *cells, _seconds(line["mean_s"]), _seconds(line["ideal_s"]), format_bandwidth(bus or 0)])
    return _table(["scenario", "operation", "by", "ranks", "bytes", "runs", "mean", "closed form", "bus"], rows)


def flows(runs: dict[str, Run]) -> str:
    """Return a table of the flows of some runs: each by itself where they are few, else their statistics."""
    rows = []
    for name, run in runs.items():
        table = run.table("flows").to_pandas()
        if len(table) <= 8:
            for row in table.itertuples():
                start = format_duration(row.start_ns) if row.start_ns else "0 s"
                took, alone = (row.finish_ns - row.start_ns) / 1e9, row.ideal_ns / 1e9
                rows.append(
                    [
                        name,
                        f"{row.src} to {row.dst}, at {start}",
                        format_bytes(row.bytes),
                        _seconds(took),
                        _seconds(alone),
                        "",
                    ]
                )
            continue
        fct, slow = run.summary["fct"], run.summary["slowdown"]
        what = f"{run.summary['flows']['completed']:,} flows"
        size = format_bytes(int(table["bytes"].mean()))
        rows.append(
            [name, what, size, _seconds(fct["mean"]), _seconds(fct["max"]), f"{slow['mean']:.2f} / {slow['max']:.2f}"]
        )
    return _table(
        ["scenario", "flows", "bytes each", "time, or mean", "alone, or longest", "slowdown mean / most"], rows
    )


def counts(names: Sequence[str]) -> str:
    """Return the bills of materials of the scenarios' topologies, and what they cost."""
    rows = []
    unit = unit_costs(read_price_list("deepseek-v3"))
    for name in names:
        section = load(SCENARIOS / f"{name}.yaml").topology
        bill = bill_of_materials(build_topology(str(section.preset), section.parameters))
        switches = sum(bill.switches.values()) - sum(bill.scale_up.values())
        found = [bill.devices, switches, bill.inter_switch_links, bill.transceivers]
        cost = costs_of(bill, unit).dollars
        rows.append([name, *(f"{count:,}" for count in found), "-" if cost is None else format_price(cost)])
    return _table(["scenario", "devices", "switches", "links between switches", "transceivers", "cost"], rows)


def lost_plane(run: Run) -> str:
    """Return the time of each all-to-all before, during and after the loss of a plane."""
    table = run.table("collectives").to_pandas()
    events = run.events.set_index("kind")["time_ns"]
    times = (table["finish_ns"] - table["start_ns"]) / 1e9
    lost, back = int(events["fault"]), int(events["repair"])
    whole = {
        "before": table["finish_ns"] <= lost,
        "while it is lost": (table["start_ns"] >= lost) & (table["finish_ns"] <= back),
        "after": table["start_ns"] >= back,
    }
    whole["across its loss or return"] = ~(whole["before"] | whole["while it is lost"] | whole["after"])
    rows = [[when, str(int(rows.sum())), _seconds(times[rows].mean())] for when, rows in whole.items()]
    return _table(["all-to-alls", "count", "mean"], rows)


def main() -> None:
    """Run every scenario once and print the tables."""
    with tempfile.TemporaryDirectory() as folder:
        for title, names in STUDIES.items():
            runs = {name: simulate(load(SCENARIOS / f"{name}.yaml"), out=Path(folder) / name) for name in names}
            print(f"## {title}\n")
            if len(names) > 1:
                print(counts(names))
            if any(run.summary["collectives"]["total"] for run in runs.values()):
                print(collectives(runs))
            if any(run.summary["flows"]["total"] for run in runs.values()):
                print(flows(runs))
            if "plane-lost" in runs:
                print(lost_plane(runs["plane-lost"]))


if __name__ == "__main__":
    main()
