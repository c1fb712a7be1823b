"""Prints how long the page of a run takes and how large it is, the simulation itself not counted.

Run `python benchmarks/report.py [--requests 100000]`: it simulates scenarios/synthetic-colocated.yaml once with so many
requests, or takes the folder given by `--run`, and writes the page in a process of its own. Wall time of that process,
start-up included, and its peak memory; rows go to standard output and to benchmarks/out/report.json.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import record

from simulator.results.run import load_run

ROOT = Path(__file__).resolve().parent.parent
SIMULATE = (sys.executable, "-m", "simulator.cli")


def simulated(requests: int, folder: Path) -> Path:
    """Run the scenario into `folder`."""
    scenario = ROOT / "scenarios" / "synthetic-colocated.yaml"
    command = [*SIMULATE, str(scenario), "--set", f"workload.requests={requests}", "--out", str(folder / "run")]
    subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    return folder / "run"


def measured(run: Path, page: Path) -> dict[str, float]:
    """Write the page of a run and say what it took."""
    began = time.perf_counter()
    command = [*SIMULATE, "report", str(run), "--out", str(page)]
    subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - began
    return {
        "requests": load_run(run).summary["requests"]["total"],
        "seconds": round(seconds, 2),
        "megabytes": round(page.stat().st_size / 1e6, 2),
    }


def main() -> None:
    """Print one row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--run", type=Path, help="folder of a serving run, in the place of a new one")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        run = arguments.run.resolve() if arguments.run else simulated(arguments.requests, folder)
        row = measured(run, folder / "report.html")
    # of all children; with --run that is the report alone
    row["peak_mib"] = round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)
    print(f"{'requests':>10} {'seconds':>8} {'MB':>6} {'MiB peak':>9}")
    print(f"{row['requests']:>10,} {row['seconds']:>8.2f} {row['megabytes']:>6.2f} {row['peak_mib']:>9,}")
    record.write("report", [row])


if __name__ == "__main__":
    main()
