"""Fits the all-reduce of devices that reach each other through their host, on NCCL's times on L40S.

Run `python -m benchmarks.operators.host_links`: it prints the `scale_up.all_reduce` block of the sheet and the errors
on the message sizes left out. Two constants for each protocol and number of ranks, and the size at which they change.
"""

import argparse
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.operators.fitting import DATA, Columns, error, left_out, search

TABLE = Path("aiconfigurator/l40s/comm.nccl.2.27.3.nccl_perf.parquet")
VALUE_BYTES = 2


def measured(data: Path) -> pd.DataFrame:
    """Return NCCL's all-reduce in 16 bits: `num_gpus`, `size` in bytes of the message, `ns`."""
    frame = pd.read_parquet(data / TABLE)
    frame = frame[(frame["op_name"] == "all_reduce") & (frame["nccl_dtype"] == "half")]
    frame = frame.groupby(["num_gpus", "message_size"], as_index=False)["latency"].median()
    return frame.assign(size=frame["message_size"] * VALUE_BYTES, ns=frame["latency"] * 1e6)


def predict(theta: np.ndarray, c: Columns) -> np.ndarray:
    """Return ns of a message: theta is latency in ns and bus bandwidth in bytes per second."""
    return np.asarray(theta[0] + 2 * (c["num_gpus"] - 1) / c["num_gpus"] * c["size"] / theta[1] * 1e9)


def fit(rows: pd.DataFrame) -> tuple[int, np.ndarray, np.ndarray]:
    """Return the size at which the protocol changes and the constants below it and from it on; time never falls."""
    found = []
    for below, switch in list(pairwise(sorted(rows["size"])))[4:-4]:
        small, large = (
            {name: part[name].to_numpy(dtype=float) for name in ("num_gpus", "size", "ns")}
            for part in (rows[rows["size"] <= below], rows[rows["size"] >= switch])
        )
        first = search(predict, small, [5000.0, 1e10], [1e6, 1e12])
        second = search(predict, large, [5000.0, 1e10], [1e6, 1e12])
        at = {"num_gpus": rows["num_gpus"].iloc[0], "size": switch}
        if predict(first, at) > predict(second, at):
            continue  # a larger message would be the faster one
        loss = sum(np.abs(np.log(predict(t, c) / c["ns"])).sum() for t, c in ((first, small), (second, large)))
        found.append((float(loss), int(switch), first, second))
    _, switch, first, second = min(found, key=lambda one: one[0])
    return switch, first, second


def main() -> None:
    """Print the block of the sheet and the errors on what was left out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA, help="folder of measured tables")
    frame = measured(parser.parse_args().data)
    kept_out = left_out(frame, "message_size")
    print("  all_reduce:")
    for ranks, rows in frame.groupby("num_gpus"):
        mask = kept_out[rows.index]
        switch, small, large = fit(rows[~mask])
        print(f"    {ranks}:\n      switch: {switch >> 10} KiB")
        for name, theta in (("small", small), ("large", large)):
            print(f"      {name}: {{latency: {theta[0]:.0f} ns, bandwidth: {theta[1] / 1e9:.4g} GB/s}}")
        c = {name: rows[mask][name].to_numpy(dtype=float) for name in ("num_gpus", "size", "ns")}
        guess = np.where(c["size"] < switch, predict(small, c), predict(large, c))
        row = error("all-reduce", "l40s", "bf16", guess, c["ns"])
        print(f"    # left out: {row['rows']} sizes, median {row['median']:.1%}, mean {row['mean']:.1%}")


if __name__ == "__main__":
    main()
