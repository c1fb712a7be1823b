"""How fast fabrics of 16,384 devices (multi-plane: 65,536) are built, checked and counted, a process for each.

Run as `python benchmarks/topology.py [PART OF A NAME]`: prints rows and writes benchmarks/out/topology.json. Times are
CPU seconds: *build* to the first route between the first and the last device, *show* what `simulate topology show` does
beyond that (checks, bill of materials, losses), *exchange* the loads of all links when each of 4,096 devices sends to
each other one, on fabrics of about that size; peak is the memory of the whole process by then.
"""

import json
import resource
import subprocess
import sys
import time
from typing import Any

import record

EXCHANGING = 4_096

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "clos, two tiers of 192 ports": ("clos-h100", {"nodes": 2048, "switch": {"radix": 192}}),
    "clos, three tiers": ("clos3-h100", {"nodes": 2048}),
    "clos, multi-rail, three tiers": ("multi-rail-h800", {"nodes": 2048, "tiers": 3}),
    "two zones of 136 ports": ("two-zone-a100", {"nodes": 2048, "switch": {"radix": 136}}),
    "two zones of PCIe nodes, 48 ports": ("fire-flyer-a100", {"nodes": 2048, "switch": {"radix": 48}}),
    "fat-tree, k = 42": ("fat-tree-k16", {"switch": {"radix": 42}, "devices_per_node": 2}),
    "rail-only": ("rail-only-h100", {"nodes": 2048}),
    "rail-only racks of 72": ("rail-only-h100", {"nodes": 228, "devices_per_node": 72}),
    "multi-plane": ("multi-plane-h800", {"nodes": 2048}),
    "multi-plane, 65,536": ("multi-plane-h800", {"nodes": 8192, "tiers": 3}),
    "unified-bus supernodes, 22": ("cloudmatrix384", {"supernodes": 22}),
    "Slim Fly, q = 23": ("slim-fly-q13", {"q": 23}),
    "Dragonfly, h = 8": (
        "dragonfly-h4",
        {"below": 8, "routers": 16, "across": 8, "groups": 129, "switch": {"radix": 31}},
    ),
    "torus, 16 x 32 x 32": ("torus-8x8x8", {"dimensions": [16, 32, 32]}),
}
"""Name: preset and what is set of it."""

EXCHANGES: dict[str, tuple[str, dict[str, Any]]] = {
    "clos, three tiers": ("clos3-h100", {"nodes": 512}),
    "two zones of 72 ports": ("two-zone-a100", {"nodes": 512, "switch": {"radix": 72}}),
    "two zones of PCIe nodes": ("fire-flyer-a100", {"nodes": 512}),
    "fat-tree, k = 28": ("fat-tree-k16", {"switch": {"radix": 28}, "devices_per_node": 4}),
    "rail-only": ("rail-only-h100", {"nodes": 512}),
    "rail-only racks of 72": ("rail-only-h100", {"nodes": 57, "devices_per_node": 72}),
    "multi-plane": ("multi-plane-h800", {"nodes": 512}),
    "unified-bus supernodes, 6": ("cloudmatrix384", {"supernodes": 6}),
    "Slim Fly, q = 16": ("slim-fly-q13", {"q": 16}),
    "Dragonfly, h = 6": (
        "dragonfly-h4",
        {"below": 6, "routers": 12, "across": 6, "groups": 73, "switch": {"radix": 23}},
    ),
    "torus, 8 x 8 x 8 of 8": ("torus-8x8x8", {"devices_per_node": 8, "switch": {"radix": 14}}),
    "torus, 16 x 16 x 16": ("torus-8x8x8", {"dimensions": [16, 16, 16]}),
}


def measure(preset: str, overrides: dict[str, Any]) -> dict[str, Any]:
    """Return the sizes, times and memory of one fabric, in this process."""
    from simulator.topology import bill_of_materials, build_topology, check

    begin = time.process_time()
    topology = build_topology(preset, overrides)
    topology.paths(0, len(topology.sites) - 1)[0]
    built = time.process_time()
    peak_build = peak_mib()
    check(topology)
    bill_of_materials(topology)
    shown = time.process_time()
    return {
        "devices": len(topology.sites),
        "links": len(topology.links),
        "build_cpu_s": built - begin,
        "build_peak_mib": peak_build,
        "show_cpu_s": shown - built,
        "peak_mib": peak_mib(),
    }


def measure_exchange(preset: str, overrides: dict[str, Any]) -> dict[str, Any]:
    """Return the size, time and memory of an exchange among the first 4,096 devices of one fabric, in this process."""
    from simulator.topology import build_topology
    from simulator.topology.spreading import exchange_loads

    topology = build_topology(preset, overrides)
    taken = []
    for _ in range(3):
        begin = time.process_time()
        exchange_loads(topology, range(EXCHANGING), 1)
        taken.append(time.process_time() - begin)
    return {
        "devices": len(topology.sites),
        "links": len(topology.links),
        "first_cpu_s": taken[0],  # routes are looked up for the first time
        "least_cpu_s": min(taken),
        "peak_mib": peak_mib(),
    }


def peak_mib() -> float:
    """Return the most memory that this process has had, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def alone(case: tuple[str, dict[str, Any]], what: str) -> dict[str, Any]:
    """Return what a process of its own measures."""
    call = [sys.executable, __file__, what, json.dumps(case)]
    found = json.loads(subprocess.run(call, check=True, stdout=subprocess.PIPE, text=True).stdout)
    return dict(found)


def main() -> None:
    """Measure each case in a process of its own, print and write."""
    part = sys.argv[1].lower() if len(sys.argv) > 1 else ""
    rows = []
    for name, case in CASES.items():
        if part in name.lower():
            row = {"name": name, **alone(case, "--build")}
            rows.append(row)
            print(
                f"{name:<36}{row['devices']:>8,} devices{row['links']:>10,} links   build {row['build_cpu_s']:>5.2f} s "
                f"{row['build_peak_mib']:>6,.0f} MiB   show {row['show_cpu_s']:>5.2f} s {row['peak_mib']:>6,.0f} MiB",
                flush=True,
            )
    for name, case in EXCHANGES.items():
        if part in name.lower():
            row = {"name": f"exchange, {name}", **alone(case, "--exchange")}
            rows.append(row)
            print(
                f"{row['name']:<36}{row['devices']:>8,} devices{row['links']:>10,} links   "
                f"first {row['first_cpu_s']:>5.2f} s   again {row['least_cpu_s']:>5.2f} s {row['peak_mib']:>6,.0f} MiB",
                flush=True,
            )
    record.write("topology", rows)


if __name__ == "__main__":
    measures = {"--build": measure, "--exchange": measure_exchange}
    if sys.argv[1:] and sys.argv[1] in measures:
        print(json.dumps(measures[sys.argv[1]](*json.loads(sys.argv[2]))))
    else:
        main()
