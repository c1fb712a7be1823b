"""Sweeps: two workers against one, what a point costs beside its simulation, and the client's memory over many points.

The floor is measured in the same run: the simulations alone, one after another in one process, and a process pool of
two without any scheduler. Run: python benchmarks/sweep.py [--points N] [--many N]; rows go to
benchmarks/out/sweep.json too.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import record

SCENARIO = """
schema: 1
topology: {preset: clos-h100, nodes: 2}
workload:
  requests: %d
  arrivals: {poisson: {rate: 40 / s}}
  prompt_tokens: {lognormal: {median: 700, sigma: 0.9, max: 8000}}
  output_tokens: {lognormal: {median: 150, sigma: 0.8, max: 2000}}
serving:
  model: llama-3.1-8b
  colocated: {instances: 4, layout: {tensor: 2}}
"""


def write(folder: Path, requests: int, points: int) -> Path:
    """Write a scenario and a sweep of so many points of different seeds."""
    (folder / "base.yaml").write_text(SCENARIO % requests)
    file = folder / "study.yaml"
    file.write_text(f"schema: 1\nbase: base.yaml\nseeds: 1..{points}\nmost_points: 1000000\n")
    return file


def alone(given: tuple[Path, int]) -> float:
    """Run one scenario by itself; return seconds."""
    from simulator.build.run import run_scenario
    from simulator.scenario.load import load

    file, seed = given
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        run_scenario(load(file, [f"seed={seed}"]), Path(folder) / "run")
    return time.perf_counter() - begun


def swept(file: Path, out: Path, count: int) -> tuple[float, float]:
    """Run a sweep on `count` workers that are up already; return seconds, and the client's peak memory in MiB."""
    from simulator.sweep.farm import workers
    from simulator.sweep.run import sweep

    with workers(count) as client:
        base = file.parent / "base.yaml"
        every = enumerate(client.nthreads())
        warm = [client.submit(alone, (base, at), pure=False, workers=[worker]) for at, worker in every]
        client.gather(warm)  # imports and compiled loops: of a process, not of a point
        begun = time.perf_counter()
        sweep(file, out, client=client)
        seconds = time.perf_counter() - begun
    return seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Print the rows and write them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, default=24, help="CPU-bound points of the comparison of workers")
    parser.add_argument("--requests", type=int, default=6000, help="requests of each of them")
    parser.add_argument("--many", type=int, default=1000, help="tiny points for the overhead of each")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.part:
        print(json.dumps(part(given)))
        return
    rows = {}
    for name in ("speed", "tiny"):  # in processes of their own: memory is that of one part
        words = [sys.executable, __file__, "--part", name, *("--points", str(given.points))]
        words += ["--requests", str(given.requests), "--many", str(given.many)]
        rows |= json.loads(subprocess.run(words, check=True, stdout=subprocess.PIPE, env=os.environ).stdout)
    for name, value in rows.items():
        print(f"{name:58} {value:>12,.3f}")
    record.write("sweep", rows)


def part(given: argparse.Namespace) -> dict[str, float]:
    """Return the rows of one part."""
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        if given.part == "speed":
            return speed(folder, given.points, given.requests)
        return tiny(folder, given.many)


def speed(folder: Path, points: int, requests: int) -> dict[str, float]:
    """Return how two workers fare against one, and two processes without a scheduler against one."""
    file = write(folder, requests, points)
    base = folder / "base.yaml"
    seeds = [(base, seed) for seed in range(1, points + 1)]
    alone(seeds[0])
    begun = time.perf_counter()
    for each in seeds:
        alone(each)
    serial = time.perf_counter() - begun
    with ProcessPoolExecutor(2) as pool:
        list(pool.map(alone, seeds[:2]))
        begun = time.perf_counter()
        list(pool.map(alone, seeds))
        pooled = time.perf_counter() - begun
    # turns about, so that a slow minute is not one side's alone; the first pays what a client imports
    times = [[swept(file, folder / f"{count}-{turn}", count)[0] for count in (1, 2)] for turn in range(3)]
    one, two = (min(each) for each in zip(*times, strict=True))
    return {
        f"{points} points of {requests} requests in one process, s": serial,
        "the same in a pool of two processes, s": pooled,
        "the same as a sweep on one worker, s": one,
        "the same as a sweep on two workers, s": two,
        "two workers against one": one / two,
        "two processes against one (floor)": serial / pooled,
    }


def tiny(folder: Path, points: int) -> dict[str, float]:
    """Return what a point costs beside its simulation, and the client's memory."""
    file = write(folder, 20, points)
    base = folder / "base.yaml"
    alone((base, 1))
    begun = time.perf_counter()
    for seed in range(1, 101):
        alone((base, seed))
    each = (time.perf_counter() - begun) / 100
    few = write(folder, 20, max(100, points // 10))
    _, before = swept(few, folder / "few", 1)
    file = write(folder, 20, points)
    seconds, after = swept(file, folder / "many", 1)
    return {
        "a tiny run alone, ms": each * 1e3,
        f"a point of {points} on one worker, ms": seconds / points * 1e3,
        "overhead of a point, ms": (seconds / points - each) * 1e3,
        f"client's peak memory at {max(100, points // 10)} points, MiB": before,
        f"client's peak memory at {points} points, MiB": after,
    }


if __name__ == "__main__":
    main()
