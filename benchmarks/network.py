"""How fast bandwidth is shared, against the floor of bare SimPy events of the same run.

Run as `python benchmarks/network.py`: prints rows and writes benchmarks/out/network.json; with the name of a case, that
one. Each case has a process of its own, so its peak of memory is its own. Times are CPU seconds, after the solver has
been loaded. Flows arrive in a Poisson process with lognormal sizes (sigma 1.5) between random hosts of the 1,024-host
k = 16 fat-tree, routed by ECMP, at a share of all NICs' bandwidth; the solver alone replays arrays, the fabric runs
under SimPy. All-to-all is of 1 MiB for each pair, sent at once, exact; "staggered" where each link takes 1 us, so that
flows of unlike hops begin at unlike times.
"""

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import record
import simpy
from floor import bare_events_per_s

from simulator.clock import Clock
from simulator.network import Fabric
from simulator.network.collectives import Collectives
from simulator.network.collectives_constants import load_constants
from simulator.network.flow_arrays import Starts
from simulator.network.incremental import IncrementalShares, replay_flows
from simulator.network.operations import collective, run
from simulator.network.step_network import StepNetwork
from simulator.randomness import stream
from simulator.topology import build_topology

K = 16
HOSTS = K**3 // 4
LINKS = 2 * HOSTS + 4 * HOSTS
LATENCY_NS = 1_000  # a link
NIC_BYTES_PER_S = 50_000_000_000
MEAN_BYTES = 20_000_000
SIGMA = 1.5
CHUNK = 20_000
Array = np.ndarray[Any, np.dtype[Any]]


def cpu_s(work: Callable[[], object]) -> float:
    """Return the CPU seconds of one call."""
    begin = time.process_time()
    work()
    return time.process_time() - begin


def routes(source: Array, target: Array, pick: Array) -> tuple[Array, Array]:
    """Return offsets and links of paths in the k-ary fat-tree: host, edge, aggregation, core, and down again.

    `pick` chooses among the (k/2)² ways through the cores, or the k/2 within a pod.
    """
    half = K // 2
    edge, last_edge = source // half, target // half
    pod, last_pod = edge // half, last_edge // half
    way, core = pick % half, pick // half % half
    columns = [
        source,
        2 * HOSTS + edge * half + way,
        4 * HOSTS + (pod * half + way) * half + core,
        5 * HOSTS + (last_pod * half + way) * half + core,
        3 * HOSTS + last_edge * half + way,
        HOSTS + target,
    ]
    used = np.ones((len(source), 6), bool)
    used[edge == last_edge, 1:5] = False
    used[pod == last_pod, 2:4] = False
    offset = np.concatenate([[0], used.sum(axis=1).cumsum()])
    return offset, np.stack(columns, axis=1)[used].astype(np.int32)


def as_starts(
    at_ns: Array,
    size: Array,
    source: Array,
    target: Array,
    pick: Array,
    first_name: int = 0,
    latency_ns: int = LATENCY_NS,
) -> Starts:
    """Return flows as arrays, sorted by the time at which they begin to share."""
    offset, route = routes(source, target, pick)
    ready = at_ns + np.diff(offset) * latency_ns
    order = np.argsort(ready, kind="stable")
    hops = np.diff(offset)[order]
    starts = np.concatenate([[0], hops.cumsum()])
    within = np.arange(len(route)) - np.repeat(starts[:-1], hops)
    count = len(size)
    return Starts(
        ready_ns=ready[order],
        size=size[order],
        left=size[order].astype(np.float64),
        weight=np.ones(count),
        flows=np.ones(count, np.int64),
        name=first_name + order,
        offset=starts,
        route=route[np.repeat(offset[:-1][order], hops) + within],
        part=np.ones(len(route)),
    )


def poisson_chunks(load: float, flows: int, seed: int = 1) -> Iterator[Starts]:
    """Yield Poisson flows in chunks that follow each other in time."""
    draw = stream(seed, f"network benchmark {load}")
    gap_ns = MEAN_BYTES / (load * HOSTS * NIC_BYTES_PER_S) * 1e9
    now = 0.0
    for first in range(0, flows, CHUNK):
        count = min(CHUNK, flows - first)
        at = now + draw.exponential(gap_ns, count).cumsum()
        now = at[-1] + 6 * LATENCY_NS  # no flow of a later chunk begins before one of this
        size = (MEAN_BYTES * draw.lognormal(-(SIGMA**2) / 2, SIGMA, count)).astype(np.int64) + 1
        source = draw.integers(0, HOSTS, count)
        target = (source + draw.integers(1, HOSTS, count)) % HOSTS
        yield as_starts(at.astype(np.int64), size, source, target, draw.integers(0, 1 << 30, count), first)


def solver_poisson(load: float, flows: int) -> tuple[int, float]:
    """Return flows and CPU seconds of the solver alone."""
    chunks, ended = poisson_chunks(load, flows), 0
    begin = time.process_time()
    for names, _ in replay_flows([NIC_BYTES_PER_S] * LINKS, chunks):
        ended += len(names)
    taken_s = time.process_time() - begin
    if ended != flows:
        raise RuntimeError(f"{ended} of {flows} flows ended")
    return flows, taken_s


def all_to_all(devices: int, balanced: bool, latency_ns: int) -> tuple[int, float]:
    """Return flows and CPU seconds, arrays included, of 1 MiB from each device to each other one."""
    begin = time.process_time()
    source = np.repeat(np.arange(devices), devices - 1)
    target = (source + np.tile(np.arange(1, devices), devices)) % devices
    count = len(source)
    pick = target if balanced else stream(1, "all-to-all").integers(0, 1 << 30, count)
    spread = np.arange(devices) * (HOSTS // devices)  # over all pods
    size = np.full(count, 1 << 20, np.int64)
    starts = as_starts(np.zeros(count, np.int64), size, spread[source], spread[target], pick, latency_ns=latency_ns)
    shares = IncrementalShares([NIC_BYTES_PER_S] * LINKS)
    names, times, _ = shares.run(starts, 1 << 61)
    taken_s = time.process_time() - begin
    loads = np.bincount(starts.route) * (1 << 20)
    if len(names) != count or times[-1] < int(loads.max() / NIC_BYTES_PER_S * 1e9):
        raise RuntimeError("flows are missing, or faster than the most loaded link")
    return count, taken_s


def poisson_transfers(load: float, devices: int, flows: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield (time in ns, bytes, source, target), drawn a chunk at a time."""
    draw = stream(1, f"network benchmark {load}")
    gap_ns = MEAN_BYTES / (load * devices * NIC_BYTES_PER_S) * 1e9
    now = 0.0
    for first in range(0, flows, CHUNK):
        count = min(CHUNK, flows - first)
        at = now + draw.exponential(gap_ns, count).cumsum()
        now = at[-1]
        sizes = (MEAN_BYTES * draw.lognormal(-(SIGMA**2) / 2, SIGMA, count)).astype(int).tolist()
        sources, targets = draw.integers(0, devices, (2, count)).tolist()
        yield from zip(at.astype(int).tolist(), sizes, sources, targets, strict=True)


def fabric_poisson(load: float, flows: int, lanes: int = 1) -> tuple[int, float]:
    """Return flows and CPU seconds under SimPy, routes looked up one by one, lanes taken by turns."""
    topology = build_topology("fat-tree-k16")
    env = Clock()
    fabric = Fabric(env, topology, seed=1)

    def send() -> simpy.events.ProcessGenerator:
        drawn = poisson_transfers(load, len(topology.sites), flows)
        for turn, (start_ns, size_bytes, source, target) in enumerate(drawn):
            if start_ns > env.now:
                yield env.timeout(start_ns - env.now)
            fabric.transfer([(source, target, size_bytes)], lane=turn % lanes)

    env.process(send())
    taken_s = cpu_s(env.run)
    fabric.check()
    return flows, taken_s


def fabric_all_to_all(devices: int) -> tuple[int, float]:
    """Return flows and CPU seconds under SimPy of one transfer for each pair, with the preset's latencies."""
    topology = build_topology("fat-tree-k16")
    env = Clock()
    fabric = Fabric(env, topology, seed=1)
    apart = len(topology.sites) // devices

    def send() -> simpy.events.ProcessGenerator:
        for device in range(devices):
            for offset in range(1, devices):
                fabric.transfer([(device * apart, (device + offset) % devices * apart, 1 << 20)])
        return
        yield

    env.process(send())
    taken_s = cpu_s(env.run)
    fabric.check()
    if fabric.completed_flows != devices * (devices - 1):
        raise RuntimeError("flows are missing")
    return fabric.completed_flows, taken_s


def load_all_to_all(preset: str, nodes: int) -> tuple[int, float]:
    """Return flows and CPU seconds of an all-to-all at fidelity `load`, the fabric's building included."""
    begin = time.process_time()
    topology = build_topology(preset, {"nodes": nodes})
    devices = range(len(topology.sites))
    network = StepNetwork(Clock(), topology, 1, "load")
    one = collective(Collectives(topology, load_constants("ideal")), "all_to_all", devices, 1 << 32, "direct")
    network.env.process(run(network.env, network, topology, one))
    network.env.run()
    network.check()
    return len(devices) * (len(devices) - 1), time.process_time() - begin


def sequential(transfers: int) -> tuple[int, float]:
    """Return flows and CPU seconds of transfers of four shards, one after another, as a KV cache moves."""
    env = Clock()
    fabric = Fabric(env, build_topology("clos-h100"), seed=1)

    def send() -> simpy.events.ProcessGenerator:
        for i in range(transfers):
            first = 4 * i % 64
            yield fabric.transfer([(first + j, 64 + (12 * i + j) % 64, 10_000_000 + i) for j in range(4)])

    env.process(send())
    taken_s = cpu_s(env.run)
    fabric.check()
    return 4 * transfers, taken_s


CASES: dict[str, Callable[[], tuple[int, float]]] = {
    "load, all-to-all of 4,096, three tiers": lambda: load_all_to_all("clos3-h100", 512),
    "load, all-to-all of 4,096, eight planes": lambda: load_all_to_all("multi-plane-h800", 512),
    "solver, Poisson, load 0.3": lambda: solver_poisson(0.3, 200_000),
    "solver, Poisson, load 0.6": lambda: solver_poisson(0.6, 200_000),
    "solver, Poisson, load 0.5, 10,000 flows": lambda: solver_poisson(0.5, 10_000),
    "solver, Poisson, load 0.5, 100,000 flows": lambda: solver_poisson(0.5, 100_000),
    "solver, Poisson, load 0.3, 1,000,000 flows": lambda: solver_poisson(0.3, 1_000_000),
    "solver, all-to-all of 1,024, at once": lambda: all_to_all(1024, balanced=False, latency_ns=0),
    "solver, all-to-all of 256, staggered": lambda: all_to_all(256, balanced=False, latency_ns=LATENCY_NS),
    "solver, all-to-all of 1,024, balanced": lambda: all_to_all(1024, balanced=True, latency_ns=LATENCY_NS),
    "solver, all-to-all of 1,024, staggered": lambda: all_to_all(1024, balanced=False, latency_ns=LATENCY_NS),
    "fabric, 4 shards one after another": lambda: sequential(10_000),
    "fabric, Poisson, load 0.3": lambda: fabric_poisson(0.3, 60_000),
    "fabric, Poisson, load 0.6": lambda: fabric_poisson(0.6, 60_000),
    "fabric, Poisson, load 0.3, two lanes": lambda: fabric_poisson(0.3, 20_000, lanes=2),
    "fabric, Poisson, load 0.3, 100,000 flows": lambda: fabric_poisson(0.3, 100_000),
    "fabric, Poisson, load 0.3, 1,000,000 flows": lambda: fabric_poisson(0.3, 1_000_000),
    "fabric, all-to-all of 256": lambda: fabric_all_to_all(256),
    "fabric, all-to-all of 1,024": lambda: fabric_all_to_all(1024),
}


def measure(name: str) -> dict[str, Any]:
    """Run one case in this process."""
    IncrementalShares([1.0])
    count, taken_s = CASES[name]()
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "name": name,
        "unit": "flows",
        "count": count,
        "cpu_s": taken_s,
        "per_s": count / taken_s,
        "peak_mib": peak_mib,
    }


def line(row: dict[str, Any], floor: float) -> str:
    """Return a row for people."""
    tail = f"{row['cpu_s']:>9.2f} s {row['peak_mib']:>7.0f} MiB" if "cpu_s" in row else ""
    return f"{row['name']!s:<44}{row['per_s']:>12,.0f} {row['unit']}/s{row['per_s'] / floor:>9.3f} of the floor{tail}"


def main(names: list[str]) -> None:
    """Measure, print and write."""
    if names:
        for name in names:
            print(json.dumps(measure(name)))
        return
    floor = bare_events_per_s()
    begin = time.process_time()
    IncrementalShares([1.0])
    loading_s = time.process_time() - begin
    rows: list[dict[str, Any]] = [
        {"name": "bare SimPy", "unit": "events", "per_s": floor},
        {"name": "load the compiled solver", "unit": "times", "per_s": 1 / loading_s},
    ]
    for row in rows:
        print(line(row, floor))
    for name in CASES:
        done = subprocess.run([sys.executable, __file__, name], check=True, stdout=subprocess.PIPE, text=True)
        rows.append(json.loads(done.stdout))
        print(line(rows[-1], floor), flush=True)
    record.write("network", rows)


if __name__ == "__main__":
    main(sys.argv[1:])
