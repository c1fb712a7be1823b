"""Says how far interpolated tables are from what was left out of them: whole shapes, and points at random.

Run `python benchmarks/operators/measured.py`; it prints every row, then the table of docs/measured-tables.md. It
needs the public tables in `../shared/data`. Every fourth shape (weight matrix, numbers of heads, sizes of experts) is
left out with all its points; then, apart from that, every tenth point, drawn with a fixed seed.
"""

import argparse
import json
import random
import sys
from collections.abc import Iterator
from math import exp
from pathlib import Path
from typing import Any

import numpy as np

from simulator.device.accelerator import Accelerator, load_accelerator
from simulator.device.measured.formats import read
from simulator.device.measured.interpolation import Coordinate
from simulator.device.measured.points import place
from simulator.device.measured.table import Measured
from simulator.device.measured.times import MeasuredTimes
from simulator.device.timing import time_of
from simulator.model.forward import Pass
from simulator.model.layout import Layout
from simulator.model.precision import Precision
from simulator.model.transformer import load_model

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT.parent / "shared" / "data"
SYSTEMS = {"a100-sxm-80gb": "a100_sxm", "h100-sxm-80gb": "h100_sxm", "b200-sxm": "b200_sxm", "gb200": "gb200"}
TABLES = ("_attention_", "custom_allreduce", "gemm.trtllm", "gemm.vllm", "mla", "moe.vllm")
SHAPES_EVERY, POINTS_EVERY = 4, 10
MOST = 2000
"""Left-out points of one family that are predicted; more only cost time."""

Row = dict[str, Any]


def groups(measured: list[Measured]) -> dict[str, list[Measured]]:
    """Return measurements by kind of operator and number format."""
    found: dict[str, list[Measured]] = {}
    for one in measured:
        exact = place(one.operators).exact
        found.setdefault(f"{exact[0]} {exact[1]}", []).append(one)
    return dict(sorted(found.items()))


def _sizes(at: Coordinate) -> tuple[Any, ...]:
    """Return what makes a shape: of experts their sizes, however unevenly they are chosen."""
    return (at.exact, at.shape[:-1] if at.exact[0] == "experts" else at.shape)


def split_by_shape(measured: list[Measured]) -> tuple[list[Measured], list[Measured]]:
    """Return what stays and what is left out: every fourth shape, in an order drawn with a fixed seed."""
    whole = [_sizes(place(one.operators)) for one in measured]
    shapes = sorted(set(whole), key=str)
    random.Random(5).shuffle(shapes)
    out = set(shapes[::SHAPES_EVERY])
    apart = [sizes in out for sizes in whole]
    return [m for m, o in zip(measured, apart, strict=True) if not o], [
        m for m, o in zip(measured, apart, strict=True) if o
    ]


def split_by_point(measured: list[Measured]) -> tuple[list[Measured], list[Measured]]:
    """Return what stays and what is left out: every tenth point, all repeats of it."""
    order = sorted({place(one.operators) for one in measured}, key=str)
    random.Random(6).shuffle(order)
    out = set(order[::POINTS_EVERY])
    stay: list[Measured] = []
    apart: list[Measured] = []
    for one in measured:
        (apart if place(one.operators) in out else stay).append(one)
    return stay, apart


def errors(what: str, device: Accelerator, stay: list[Measured], apart: list[Measured]) -> Row:
    """Return the errors of interpolation, and of the roofline, on what was left out."""
    times = MeasuredTimes(device, stay)
    if len(apart) > MOST:
        apart = random.Random(7).sample(apart, MOST)
    found, roofline = [], []
    for operators, ns in apart:
        estimate = times.estimate(operators)
        base = sum(time_of(operator.shape, device).ns for operator in operators)
        roofline.append(base / ns)
        if estimate is not None:
            found.append(base * exp(estimate.log_ratio) / ns)
    off = np.abs(np.array(found) - 1)
    return {
        "what": what,
        "device": device.name,
        "points": len(apart),
        "covered": len(found) / len(apart),
        "median": float(np.median(off)) if found else None,
        "mean": float(np.mean(off)) if found else None,
        "bias": float(np.mean(found) - 1) if found else None,
        "roofline mean": float(np.mean(np.abs(np.array(roofline) - 1))),
    }


def rows(systems: dict[str, str], tables: tuple[str, ...]) -> Iterator[Row]:
    """Yield the errors of every table by number format, shapes left out and then points."""
    forward = Pass(load_model("llama-3.1-8b"), Layout(), Precision())  # of no account: these tables name no layers
    for name, folder in systems.items():
        device = load_accelerator(name)
        for path in sorted((DATA / "aiconfigurator" / folder).glob("*.parquet")):
            if not any(part in path.name for part in tables):
                continue
            for kind, measured in groups(read(path, forward).measured).items():
                engine = path.name.split(".")[1]
                for left_out, split in (("shapes", split_by_shape), ("points", split_by_point)):
                    stay, apart = split(measured)
                    if stay and apart and not (left_out == "shapes" and kind.startswith("collective")):
                        yield {"left out": left_out, "engine": engine, **errors(kind, device, stay, apart)}


def summary(found: list[Row]) -> list[str]:
    """Return the table of the docs: mean errors on left-out shapes and on left-out points, per device."""
    devices = list(dict.fromkeys(row["device"] for row in found))
    lines = ["| operator | engine | " + " | ".join(devices) + " |", "|---|---|" + "---|" * len(devices)]
    errors_of: dict[tuple[str, str], dict[tuple[str, str], float]] = {}
    for row in found:
        if row["mean"] is not None:
            at = errors_of.setdefault((row["what"], row["engine"]), {})
            at[row["device"], row["left out"]] = row["mean"]
    for (what, engine), at in sorted(errors_of.items()):
        cells = []
        for device in devices:
            pair = [at.get((device, left_out)) for left_out in ("shapes", "points")]
            shown = " / ".join("-" if value is None else f"{value:.1%}" for value in pair)
            cells.append("" if pair == [None, None] else shown)
        kind, form = what.rsplit(" ", 1)
        lines.append(f"| {kind.replace('_', ' ')}, {form} | {engine} | " + " | ".join(cells) + " |")
    return lines


def main() -> None:
    """Print the table and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=SYSTEMS, action="append")
    parser.add_argument("--table", action="append", help="part of a file's name")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    systems = {name: SYSTEMS[name] for name in options.device or SYSTEMS}
    columns = ("what", "device", "engine", "left out", "points", "covered", "median", "mean", "bias", "roofline mean")
    print("| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))
    found = []
    for row in rows(systems, tuple(options.table or TABLES)):
        found.append(row)
        shown = (f"{row[c]:.1%}" if isinstance(row[c], float) else str(row[c]) for c in columns)
        print("| " + " | ".join(shown) + " |", flush=True)
    print("", *summary(found), sep="\n")
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
