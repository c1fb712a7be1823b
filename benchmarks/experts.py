"""How well a popularity of experts says what the fullest rank gets, on measured routing of DeepSeek-V2-Lite (ESFT).

Run as `python benchmarks/experts.py [FOLDER]` (default ../shared/data/esft beside the checkout): popularity is that of
the first half of a file's requests, batches are drawn from the other half and counted. `mixed`: every token of a batch
is of a request drawn at random, as in decode; `packed`: requests follow one another whole, as in prefill. Columns are
the largest over the mean load of eight or more ranks, mean over 26 layers, predicted and counted, and the error of that
mean, of the median layer and of the worst one. Rows go to benchmarks/out/experts.json too.
"""

import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from simulator.model.expert_balance import ExpertBalance
from simulator.model.expert_group import Group
from simulator.model.expert_placement import Whole, balanced, contiguous
from simulator.model.expert_popularity import counted

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT.parent / "shared" / "data" / "esft"
OUT = Path(__file__).parent / "out" / "experts.json"
TASKS = ("intent", "summary", "translation")
LAYERS, EXPERTS, ACTIVE = 26, 64, 6
BATCHES = 40


class Routing(NamedTuple):
    """Chosen experts by layer, of the requests that are known and of those that are predicted."""

    known: list[Any]
    other: list[Any]


def routing(folder: Path, task: str) -> Routing:
    """Return the choices of a file, requests in order."""
    frame = pd.read_parquet(folder / f"expert_ids.{task}.parquet")
    samples = np.sort(frame["sample"].unique())
    first = (frame["sample"] < samples[len(samples) // 2]).to_numpy()
    chosen = frame[[f"expert_{i}" for i in range(ACTIVE)]].to_numpy(dtype=np.int64)
    layers = [frame["layer"].to_numpy() == layer for layer in range(1, LAYERS + 1)]
    return Routing([chosen[first & at] for at in layers], [chosen[~first & at] for at in layers])


def batches(chosen: Any, tokens: int, packed: bool, random: np.random.Generator) -> list[Any]:
    """Return batches of tokens of one layer."""
    if packed:
        return [chosen[at : at + tokens] for at in range(0, len(chosen) - tokens + 1, tokens)]
    return [chosen[random.integers(0, len(chosen), tokens)] for _ in range(BATCHES)]


def fullest(batch: Any, placement: Any) -> int:
    """Return the pairs of the fullest rank; the tokens of each rank keep to one copy of an expert."""
    ranks = len(placement)
    holders = [np.flatnonzero((placement == expert).any(axis=1)) for expert in range(EXPERTS)]
    copies = np.array([len(held) for held in holders])
    table = np.array([np.resize(held, copies.max()) for held in holders])
    source = np.arange(len(batch))[:, None]
    return int(np.bincount(table[batch, source % copies[batch]].ravel(), minlength=ranks).max())


def row(task: str, what: str, found: Routing, group: Group, placement: Whole, tokens: int, packed: bool) -> Any:
    """Return predicted and counted maximum over mean load."""
    counts = np.stack([np.bincount(ids.ravel(), minlength=EXPERTS) for ids in found.known])
    popularity = counted(counts, ACTIVE)
    mean = tokens * ACTIVE / group.ranks
    balance = ExpertBalance(popularity, placement, group)
    by_layer = [ExpertBalance(popularity[[i]], placement[[i]], group).hottest(tokens) / mean for i in range(LAYERS)]
    seen = []
    for layer, ids in enumerate(found.other):
        drawn = batches(ids, tokens, packed, np.random.default_rng(layer))
        if not drawn:
            return None
        seen.append(np.mean([fullest(batch, placement[layer]) for batch in drawn]) / mean)
    errors = np.abs(np.array(by_layer) / seen - 1)
    predicted, actual = balance.hottest(tokens) / mean, float(np.mean(seen))
    return {
        "task": task,
        "ranks": what,
        "batch": "packed" if packed else "mixed",
        "tokens": tokens,
        "predicted": round(predicted, 3),
        "counted": round(actual, 3),
        "error": round(predicted / actual - 1, 4),
        "median_layer": round(float(np.median(errors)), 4),
        "worst_layer": round(float(errors.max()), 4),
    }


def main() -> None:
    """Print and write all rows."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else DATA
    if not folder.is_dir():
        sys.exit(f"{folder} is absent: give the folder of expert_ids.*.parquet")
    rows = []
    for task in TASKS:
        found = routing(folder, task)
        popularity = counted(np.stack([np.bincount(i.ravel(), minlength=EXPERTS) for i in found.known]), ACTIVE)
        eight, copies, many = Group(8, 8), Group(8, 10), Group(32, 2)
        cases = [
            ("EP8", eight, contiguous(LAYERS, EXPERTS, 0, eight)),
            ("EP8 eplb +16", copies, balanced(popularity, 0, copies)),
            ("EP32", many, contiguous(LAYERS, EXPERTS, 0, many)),
        ]
        for what, group, placement in cases:
            for packed in (False, True):
                lines = (row(task, what, found, group, placement, n, packed) for n in (64, 256, 1024, 4096))
                rows += [line for line in lines if line is not None]
    print(pd.DataFrame(rows).to_string(index=False))
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
