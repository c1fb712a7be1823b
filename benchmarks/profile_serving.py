"""Where the time of a serving run goes: SimPy, the engine, policies, costs, the fabric, rows; as a profiler has it.

Run `python benchmarks/profile_serving.py scenario.yaml [--set PATH=VALUE]...`. Built-in functions count for those who
call them. The profiler slows calls down, so that shares of many small functions are somewhat too large.
"""

import argparse
import cProfile
import pstats
import tempfile
from pathlib import Path

from simulator import load, simulate

GROUPS = (
    ("SimPy and alarms", ("/simpy/", "simulator/clock.py", "simulator/execution.py")),
    (
        "policies",
        ("serving/batching", "serving/routing", "serving/queueing", "serving/orders", "serving/pool.py"),
    ),
    ("costs", ("simulator/device/", "simulator/model/", "serving/jump.py")),
    (
        "prefix cache and tiers",
        (
            *("serving/prefix_", "serving/stretches", "serving/eviction"),
            *("serving/tiers", "serving/lower_tiers", "serving/fabric_tier", "serving/swap"),
        ),
    ),
    ("fabric", ("simulator/network/", "simulator/topology/", "numba", "networkx", "serving/disaggregation")),
    ("rows", ("simulator/results/", "serving/recording.py", "serving/power.py", "pyarrow")),
    ("arrivals", ("simulator/workload/", "serving/frontend.py", "serving/gateway", "simulator/build/", "numpy")),
    ("engine", ("simulator/serving/",)),
)


def group_of(file: str) -> str:
    """Return the group of a source file."""
    for name, parts in GROUPS:
        if any(part in file for part in parts):
            return name
    return "start-up and other"


def shares(stats: pstats.Stats) -> dict[str, float]:
    """Return the share of the time by group, built-in functions by their callers."""
    found: dict[str, float] = {}
    for (file, _, _), (_, _, own, _, callers) in stats.stats.items():  # type: ignore[attr-defined]
        if file != "~" or not callers:
            found[group_of(file)] = found.get(group_of(file), 0.0) + own
            continue
        for (caller, _, _), (_, _, part, _) in callers.items():
            found[group_of(caller)] = found.get(group_of(caller), 0.0) + part
    whole = sum(found.values())
    return {name: value / whole for name, value in sorted(found.items(), key=lambda item: -item[1])}


def main() -> None:
    """Print the shares of one scenario."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scenario")
    parser.add_argument("--set", action="append", default=[])
    options = parser.parse_args()
    scenario = load(options.scenario, options.set)
    profile = cProfile.Profile()
    with tempfile.TemporaryDirectory() as folder:
        profile.runcall(simulate, scenario, out=Path(folder) / "run")
    for name, share in shares(pstats.Stats(profile)).items():
        print(f"{name:26}{share:7.1%}")


if __name__ == "__main__":
    main()
