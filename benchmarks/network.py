"""How fast the fabric moves flows, against the floor of bare SimPy events of the same run.

Run as `python benchmarks/network.py`: prints rows and writes benchmarks/out/network.json. Times are CPU seconds.
Transfers of four shards one after another (as a KV cache moves), Poisson flows of lognormal sizes between random
devices of a 1,024-NIC fat-tree at a share of all NICs' bandwidth, the solver alone on incasts, and building.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path

import simpy
from floor import bare_events_per_s

from simulator.clock import Clock
from simulator.network import Fabric, maxmin_rates
from simulator.randomness import stream
from simulator.topology import Topology, build_topology

OUT = Path(__file__).parent / "out" / "network.json"
MEAN_BYTES = 20_000_000
SIGMA = 1.5


def cpu_s(work: Callable[[], object]) -> float:
    """Return the CPU seconds of one call."""
    begin = time.process_time()
    work()
    return time.process_time() - begin


def sequential(topology: Topology, transfers: int) -> tuple[int, float]:
    """Return flows and CPU seconds of transfers of four shards, one after another."""
    env = Clock()
    fabric = Fabric(env, topology, seed=1)

    def send() -> simpy.events.ProcessGenerator:
        for i in range(transfers):
            first = 4 * i % 64
            yield fabric.transfer([(first + j, 64 + (12 * i + j) % 64, 10_000_000 + i) for j in range(4)])

    env.process(send())
    taken_s = cpu_s(env.run)
    fabric.check()
    return 4 * transfers, taken_s


def poisson(topology: Topology, load: float, flows: int) -> tuple[int, float]:
    """Return flows and CPU seconds of random flows that offer `load` of the bandwidth of all NICs."""
    draw = stream(1, f"network benchmark {load}")
    devices = len(topology.sites)
    nic_bytes_per_s = topology.links[topology.access[0].outward[1]].capacity_bytes_per_s
    gap_ns = MEAN_BYTES / (load * devices * nic_bytes_per_s) * 1e9
    starts = draw.exponential(gap_ns, flows).cumsum().astype(int).tolist()
    sizes = (MEAN_BYTES * draw.lognormal(-(SIGMA**2) / 2, SIGMA, flows)).astype(int).tolist()
    pairs = draw.integers(0, devices, (flows, 2)).tolist()
    env = Clock()
    fabric = Fabric(env, topology, seed=1)

    def send() -> simpy.events.ProcessGenerator:
        for start_ns, size_bytes, (source, target) in zip(starts, sizes, pairs, strict=True):
            if start_ns > env.now:
                yield env.timeout(start_ns - env.now)
            fabric.transfer([(source, target, size_bytes)])

    env.process(send())
    taken_s = cpu_s(env.run)
    fabric.check()
    return flows, taken_s


def solves(count: int, rounds: int) -> tuple[int, float]:
    """Return solver calls and CPU seconds of an incast of `count` flows over six links each."""
    paths = [(0, 1, *range(2 + 4 * i, 6 + 4 * i)) for i in range(count)]
    capacities = [50_000_000_000] * (2 + 4 * count)
    return rounds, cpu_s(lambda: [maxmin_rates(paths, capacities) for _ in range(rounds)])


def main() -> None:
    """Measure, print and write."""
    floor = bare_events_per_s()
    rows: list[dict[str, object]] = [{"name": "bare SimPy", "unit": "events", "per_s": floor}]
    clos, tree = build_topology("clos-h100"), build_topology("fat-tree-k16")
    loads = ((0.05, 4_000), (0.1, 4_000), (0.2, 1_000), (0.3, 1_000))
    large = {"nodes": 256}
    cases: list[tuple[str, str, Callable[[], tuple[int, float]]]] = [
        ("transfers of 4 shards, one after another", "flows", lambda: sequential(clos, 20_000)),
        *((f"Poisson, 1,024 NICs, load {x}", "flows", lambda x=x, n=n: poisson(tree, x, n)) for x, n in loads),
        *((f"solver, incast of {n}", "solves", lambda n=n: solves(n, 4_000 // n)) for n in (2, 4, 16, 64)),
        ("build 2,048 devices, 64-port Clos", "builds", lambda: (1, cpu_s(lambda: build_topology("clos-h100", large)))),
    ]  # fmt: skip
    for name, unit, case in cases:
        count, taken_s = case()
        rows.append({"name": name, "unit": unit, "count": count, "cpu_s": taken_s, "per_s": count / taken_s})
    for row in rows:
        per_s = float(str(row["per_s"]))
        print(f"{row['name']!s:<44}{per_s:>12,.0f} {row['unit']}/s{per_s / floor:>9.3f} of the floor")
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
