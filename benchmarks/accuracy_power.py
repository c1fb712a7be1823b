"""Fits the shares of a device's power on half of the measured shapes and says how far the other half is.

Run `python benchmarks/accuracy_power.py`; it prints the shares of simulator/device/power.py and the table of
docs/power.md. Measured: average power of A100 over whole runs of Llama-2-70B inference (splitwise-sim). Its rows of
H100 have no power, so nothing says how well the shares transfer.
"""

import argparse
import itertools
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from simulator.device.accelerator import Accelerator, load_accelerator
from simulator.device.power import Activity, activity, power_w, together, watts
from simulator.model.forward import Pass, Work
from simulator.model.layout import Layout
from simulator.model.precision import Precision
from simulator.model.transformer import load_model

ROOT = Path(__file__).parent.parent
DATA = ROOT.parent / "shared" / "data"
LONGEST = 1024
"""Longer prompts are left out: their averages fall below that of decode alone (0.18 of the TDP at 8,192 tokens), so the
window of the measurement reaches beyond the run."""
PARTS = ("active", "compute", "memory", "link")


class Run(NamedTuple):
    """One measured run: its shape, what the device did by the simulator's kernels, and its average power over TDP."""

    tensor: int
    prompt: int
    batch: int
    prefill: Activity
    decode: Activity
    measured: float

    @property
    def shape(self) -> tuple[int, int]:
        """Prompt and batch, which go to one side of the split whatever the tensor degree."""
        return self.prompt, self.batch

    @property
    def whole(self) -> Activity:
        """Prefill and decode together."""
        return together((self.prefill, self.decode))


def runs(data: Path, device: Accelerator, own_times: bool) -> list[Run]:
    """Return the measured runs; phases last as long as measured, or as their kernels if `own_times`."""
    model = load_model("llama-2-70b")
    frame = pd.read_csv(data / "splitwise-sim" / "perf_model.llama2-70b.csv.gz")
    frame = frame[(frame["hardware"] == "a100-80gb") & (frame["average_power"] > 0)]
    keys = ["tensor_parallel", "prompt_size", "batch_size", "token_size"]
    found = []
    for row in frame.groupby(keys, as_index=False).median(numeric_only=True).itertuples():
        batch, prompt, tokens = row.batch_size, row.prompt_size, row.token_size
        kernels = Pass(model, Layout(tensor=row.tensor_parallel), Precision())
        prefill = activity(kernels.operators(Work(batch * prompt, batch * prompt * (prompt + 1) / 2, batch)), device)
        step = activity(kernels.operators(Work(batch=batch, context=batch * (prompt + tokens / 2))), device)
        decode = Activity(*(tokens * value for value in step))
        if not own_times:
            prefill = prefill._replace(ns=row.prompt_time * 1e6)
            decode = decode._replace(ns=row.token_time * tokens * 1e6)
        found.append(Run(row.tensor_parallel, prompt, batch, prefill, decode, row.average_power))
    return found


def fit(rows: list[Run], idle: float) -> np.ndarray:
    """Return the shares of `PARTS`, none negative, that leave the least relative squares; idle is given."""
    use = np.array([[1.0, *(part / run.whole.ns for part in run.whole[1:])] for run in rows])
    measured = np.array([run.measured for run in rows])
    weighted, wanted = use / measured[:, None], (measured - idle) / measured
    best, least = np.zeros(len(PARTS)), np.inf
    for size in range(1, len(PARTS) + 1):
        for chosen in itertools.combinations(range(len(PARTS)), size):
            shares = np.zeros(len(PARTS))
            shares[list(chosen)] = np.linalg.lstsq(weighted[:, chosen], wanted, rcond=None)[0]
            rest = float(((weighted @ shares - wanted) ** 2).sum())
            if (shares >= 0).all() and rest < least:
                best, least = shares, rest
    return best


def errors(what: str, ratio: list[float]) -> dict[str, Any]:
    """Return one row of the error table from predicted over measured."""
    off = np.abs(np.array(ratio) - 1)
    figures = {"median": np.median(off), "mean": off.mean(), "largest": off.max(), "ratio": np.median(ratio)}
    return {"what": what, "rows": len(ratio)} | {key: float(value) for key, value in figures.items()}


def over_runs(rows: list[Run], device: Accelerator) -> list[float]:
    """Return predicted over measured average power of whole runs."""
    return [power_w(run.whole, device) / device.power.tdp / run.measured for run in rows]


def prefill_by_difference(rows: list[Run], device: Accelerator) -> list[float]:
    """Return predicted over measured power of prefill: what decode at its predicted power leaves of a run's energy."""
    ratios = []
    for run in rows:
        decode = power_w(run.decode, device) * run.decode.ns
        measured = (run.measured * device.power.tdp * run.whole.ns - decode) / run.prefill.ns
        ratios.append(power_w(run.prefill, device) / measured)
    return ratios


def main() -> None:
    """Print the fitted shares and the table of errors, and write both as JSON under `--out`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=DATA, help="folder of measured tables")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "out", help="folder of the JSON")
    options = parser.parse_args()
    device = load_accelerator("a100-sxm-80gb")
    usable = [run for run in runs(options.data, device, own_times=False) if run.prompt <= LONGEST]
    own = [run for run in runs(options.data, device, own_times=True) if run.prompt <= LONGEST]
    shapes = sorted({run.shape for run in usable})
    kept = set(shapes[1::2])
    seen, left = ([run for run in usable if (run.shape in kept) == side] for side in (False, True))
    fitted = dict(zip(PARTS, fit(seen, watts(device).idle / device.power.tdp).tolist(), strict=True))
    print("shares of the TDP:", ", ".join(f"{name} {share:.3f}" for name, share in fitted.items()))
    table = [errors("whole runs, shapes of the fit", over_runs(seen, device))]
    table.append(errors("whole runs, shapes left out", over_runs(left, device)))
    for tensor in (2, 4, 8):
        alike = [run for run in left if run.tensor == tensor]
        table.append(errors(f"left out, {tensor} devices", over_runs(alike, device)))
    few = [run for run in usable if run.batch == 1 and run.prefill.ns < 0.03 * run.whole.ns]
    table.append(errors("decode (97% of the run and more)", over_runs(few, device)))
    many = [run for run in usable if run.prefill.ns > 0.1 * run.whole.ns]
    table.append(errors("prefill, by difference", prefill_by_difference(many, device)))
    alone = [run for run in own if run.shape in kept]
    table.append(errors("left out, the simulator's own times", over_runs(alone, device)))
    print("| average power, A100 | rows | median error | mean error | largest | predicted / measured |")
    print("|---|---|---|---|---|---|")
    for r in table:
        figures = " | ".join(f"{r[key]:.1%}" for key in ("median", "mean", "largest"))
        print(f"| {r['what']} | {r['rows']} | {figures} | {r['ratio']:.2f} |")
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "accuracy_power.json").write_text(json.dumps({"shares": fitted, "errors": table}, indent=1) + "\n")


if __name__ == "__main__":
    main()
