"""How long a group of ranks on a supernode takes to find its rates and loads anew when a link dies.

Run `python benchmarks/dead_links.py`; rows go to benchmarks/out/dead_links.json too. CPU seconds: *built* with all
links working, *port* with one port of a die dead, *uplink* with one link from a node up; *pair by pair* is one exchange
of the three that these look at, every pair by itself (up to 96 ranks).
"""

import time
from itertools import permutations
from typing import Any, cast

import record

from simulator.network.collectives_shape import group_shape, sent_loads
from simulator.network.detour import Alive
from simulator.topology import build_topology
from simulator.topology.graph import Topology
from simulator.topology.spreading import shard_loads

RANKS = (32, 96, 320)
MOST_PAIRS = 96
"""Ranks whose pairs are looked at one by one."""


def cpu_s(topology: Topology, ranks: int, capacities: list[float]) -> float:
    """Return the time to the shape of the first ranks and what they send each other."""
    begin = time.process_time()
    shape = group_shape(topology, range(ranks), capacities)
    sent_loads(topology, range(ranks), shape, capacities, to_all=True)
    return time.process_time() - begin


def measure(topology: Topology, ranks: int) -> dict[str, Any]:
    """Return one row."""
    way = topology.paths(5, ranks - 1)[0]
    whole = [float(link.capacity_bytes_per_s) for link in topology.links]
    cpu_s(topology, ranks, whole)  # routes are looked up for the first time
    row: dict[str, Any] = {"ranks": ranks, "built_cpu_s": cpu_s(topology, ranks, whole)}
    for name, link in (("port", way[0]), ("uplink", way[1])):
        capacities = [*whole]
        capacities[link] = 0.0
        row[f"{name}_cpu_s"] = cpu_s(topology, ranks, capacities)
    if ranks <= MOST_PAIRS:
        begin = time.process_time()
        shards = ((a, b, 1.0) for a, b in permutations(range(ranks), 2))
        shard_loads(cast(Topology, Alive(topology, {way[0]})), shards)
        row["pair_by_pair_cpu_s"] = time.process_time() - begin
    return row


def main() -> None:
    """Print a row for each number of ranks and write them."""
    topology = build_topology("cloudmatrix384")
    rows = []
    for ranks in RANKS:
        rows.append(measure(topology, ranks))
        print(
            "  ".join(f"{k} {v:.2f}" if isinstance(v, float) else f"{k} {v}" for k, v in rows[-1].items()), flush=True
        )
    record.write("dead_links", rows)


if __name__ == "__main__":
    main()
