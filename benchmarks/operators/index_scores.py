"""Attention whose positions an index chooses (DSA) on H800 (InferSim), of which nothing was fitted.

Attention of decoding sequences is in bf16 over a cache in fp8, 64 of them; prompts have 4,096 new positions.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from simulator.device.accelerator import load_accelerator
from simulator.device.index_scores import scores_alone
from simulator.device.kernels import Kernel
from simulator.device.timing import time_of
from simulator.model.forward import Pass, Work
from simulator.model.layout import Layout
from simulator.model.operators import IndexScores, PromptAttention, TokenAttention
from simulator.model.precision import Precision
from simulator.model.transformer import load_model

from .fitting import Row, error

DEVICE = "h800-sxm-80gb"
FILE = "infersim/h800.dsa.csv"


def transfer(data: Path) -> Iterator[Row]:
    """Yield the errors of both kernels, of prompts and of decoding sequences."""
    frame = pd.read_csv(data / FILE)
    frame["scores"] = frame["file"].str.startswith("logits")
    for (scores, phase), rows in frame.groupby(["scores", "phase"]):
        found = np.array([_predicted(row, bool(scores)).ns for row in rows.itertuples()])
        what = f"{'scores of an index' if scores else 'chosen positions'}, {phase}"
        yield error(what, DEVICE, "fp8" if scores else "bf16", found, rows["latency_us"].to_numpy() * 1e3)


def _predicted(row: Any, scores: bool) -> Kernel:
    decodes = row.phase == "decode"
    if not decodes:
        work = _prompt(int(row.s_q), int(row.s_kv))
    elif scores:
        work = Work(batch=int(row.batchsize), context=row.batchsize * row.s_kv, queries=int(row.next_n))
    else:
        work = Work(batch=64, context=64 * row.kv_len)
    kind = IndexScores if scores else TokenAttention if decodes else PromptAttention
    device, precision = load_accelerator(DEVICE), Precision(kv="fp8" if decodes else "bf16")
    operators = Pass(load_model("deepseek-v3.2"), Layout(), precision).attention(work)
    [shape] = [operator.shape for operator in operators if isinstance(operator.shape, kind)]
    return scores_alone(shape, device) if isinstance(shape, IndexScores) else time_of(shape, device)


def _prompt(new: int, whole: int) -> Work:
    return Work(new, new * (whole - new) + new * (new + 1) / 2, 1)
