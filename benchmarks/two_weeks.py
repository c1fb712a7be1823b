"""Runs two weeks of ServeGen's m-large profile, a twentieth of it, and prints the tables of docs/serving-studies.md.

Run as `python benchmarks/two_weeks.py [RUN]`; with the folder of a run of that scenario its rows are only read. The
data must be beside the project, and the run takes most of an hour.
"""

import sys
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from simulator import load, load_run, simulate
from simulator.results.run import Run
from simulator.units import format_duration

SCENARIO = "traces/servegen-m-large-two-weeks"
HOUR_NS = 3_600 * 10**9
BANDS = (0, 3000, 6000, 9000, 12000, 15000, 18000, 21000, 30000)
"""Hours by their prompt tokens a second."""
COLUMNS = ("TTFT p50", "TTFT p99", "TPOT p50", "TPOT p99", "goodput", "prefilling", "W a device")


class Rows(NamedTuple):
    """What of a run the tables need: requests, and engines' windows with the energy of a device, each with its hour."""

    requests: pd.DataFrame
    windows: pd.DataFrame
    devices: int


def rows_of(run: Run) -> Rows:
    """Return the rows of a run; requests that did not finish have no latencies."""
    names = ["arrival_ns", "first_token_ns", "finish_ns", "generated_tokens", "prompt_tokens", "outcome"]
    table = run.table("requests").select(names)
    arrival, first, finish, tokens, prompts = (table[name].to_numpy() for name in names[:5])
    finished = np.asarray(table["outcome"].to_pandas() == "finished")
    ttft, gaps = (first - arrival) / 1e9, tokens - 1
    tpot = np.where(gaps > 0, (finish - first) / np.maximum(gaps, 1) / 1e9, np.nan)
    slo = load(run.path / "scenario.yaml").slo
    assert slo.ttft is not None
    assert slo.tpot is not None
    good = finished & (ttft <= slo.ttft / 1e9) & ~(tpot > slo.tpot / 1e9)
    hour = (arrival // HOUR_NS).astype(int)
    frame = pd.DataFrame({"hour": hour, "prompt_tokens": prompts, "ttft": ttft, "tpot": tpot, "good": good})
    frame.loc[~finished, ["ttft", "tpot"]] = np.nan
    power = run.power.set_index(["instance", "start_ns"])[["energy_j", "devices"]]
    windows = run.instances.join(power, on=["instance", "start_ns"])
    return Rows(frame, pieces(windows), run.summary["devices"])


def pieces(windows: pd.DataFrame) -> pd.DataFrame:
    """Return windows cut at full hours, which those without work may cross, evenly: nothing happens in them."""
    found = []
    for row in windows.itertuples(index=False):
        first, last = row.start_ns // HOUR_NS, (row.end_ns - 1) // HOUR_NS
        for hour in range(first, last + 1):
            length = min(row.end_ns, (hour + 1) * HOUR_NS) - max(row.start_ns, hour * HOUR_NS)
            share = length / (row.end_ns - row.start_ns)
            figures = row.idle_ns, row.prefill_ns, row.energy_j / row.devices
            found.append((hour, length, *(figure * share for figure in figures)))
    return pd.DataFrame(found, columns=["hour", "ns", "idle_ns", "prefill_ns", "energy_j"])


def quantile(values: pd.Series, share: float) -> str:
    """Return the nearest rank as text."""
    known = values.dropna().to_numpy()
    return format_duration(round(np.quantile(known, share, method="inverted_cdf") * 1e9)) if len(known) else "-"


def cells(rows: Rows, hours: np.ndarray) -> list[str]:
    """Return the figures of some hours."""
    its, windows = rows.requests[rows.requests.hour.isin(hours)], rows.windows[rows.windows.hour.isin(hours)]
    latencies = [quantile(its[name], share) for name in ("ttft", "tpot") for share in (0.5, 0.99)]
    watts = windows.energy_j.sum() / (windows.ns.sum() / 1e9)
    return [*latencies, f"{its.good.mean():.1%}", f"{windows.prefill_ns.sum() / windows.ns.sum():.0%}", f"{watts:,.0f}"]


def print_table(of: tuple[str, ...], lines: list[list[str]]) -> None:
    """Print a Markdown table."""
    head = [*of, *COLUMNS]
    print("\n".join("| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *lines)) + "\n")


def main() -> None:
    """Run or open the run, and print its tables."""
    run = load_run(Path(sys.argv[1])) if sys.argv[1:] else simulate(load(SCENARIO))
    rows = rows_of(run)
    requests = np.bincount(rows.requests.hour) / 3600
    prompts = np.bincount(rows.requests.hour, rows.requests.prompt_tokens) / 3600
    days = []
    for first in range(0, len(requests), 24):
        hours = np.arange(first, min(first + 24, len(requests)))
        loads = [f"{of[hours].mean():,.{digits}f}" for of, digits in ((requests, 1), (prompts, 0))]
        days.append([f"{first // 24 + 1}", *loads, *cells(rows, hours)])
    print_table(("day", "requests/s", "prompt tokens/s"), days)
    bands = []
    for low, high in pairwise(BANDS):
        hours = np.flatnonzero((prompts >= low) & (prompts < high))
        if len(hours):
            rate = f"{requests[hours].mean():.1f}"
            bands.append([f"{low:,} to {high:,}", f"{len(hours)}", rate, *cells(rows, hours)])
    print_table(("prompt tokens/s in the hour", "hours", "requests/s"), bands)
    for what, of in (("requests", requests), ("prompt tokens", prompts)):
        busiest = f"in the busiest hour (from {of.argmax()} h on) {of.max():,.1f}"
        print(f"{what} a second: {of.mean():,.1f}, {busiest}: the mean is {of.mean() / of.max():.1%} of it")
    idle = rows.windows.idle_ns.sum() / rows.windows.ns.sum()
    hours = f"{rows.devices * len(requests):,} device hours"
    print(f"{len(rows.requests):,} requests, {hours}, {idle:.1%} of them without work")


if __name__ == "__main__":
    main()
