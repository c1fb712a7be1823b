"""Runs one engine of the simulator on given requests, without a scenario or results on disk."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from simulator.clock import Clock
from simulator.device.cost import RooflineCost
from simulator.device.memory import kv_blocks, ledger
from simulator.serving.admission import Admission
from simulator.serving.batching import BATCHERS
from simulator.serving.frontend import Arrivals, Frontend
from simulator.serving.instance import Engine, Instance, Observer
from simulator.serving.jump import StepTicks
from simulator.serving.pool import Pool
from simulator.serving.request import FINISHED, Request
from simulator.serving.routing import RoundRobin

ROOT = Path(__file__).resolve().parent.parent.parent
DATA = ROOT.parent / "shared" / "data"
OUT = ROOT / "benchmarks" / "out"
BLOCK = 16
Row = dict[str, Any]


def kv_tokens(cost: RooflineCost, batch_tokens: int = 8192, sequences: int = 256, utilisation: float = 0.9) -> int:
    """Return the tokens of KV cache that one instance holds; raises InputError when the model does not fit."""
    shape = cost.model, cost.layout
    book = ledger(*shape, cost.accelerator, batch_tokens, sequences, utilisation, cost.precision)
    return BLOCK * kv_blocks(book, *shape, BLOCK, cost.precision)


def serve(
    cost: RooflineCost,
    batcher: str,
    arrivals: Arrivals,
    clients: int | None = None,
    max_running: int = 256,
    max_batch_tokens: int = 8192,
) -> list[Request]:
    """Return the finished requests of one instance: an open loop, or a closed one of so many clients.

    Raises InputError when the model does not fit the device.
    """
    limits = BATCHERS[batcher].parameters(max_running=max_running, max_batch_tokens=max_batch_tokens)
    blocks = kv_tokens(cost, max_batch_tokens, max_running) // BLOCK
    env: Clock = Clock()
    done: list[Request] = []
    pool = Pool("colocated", RoundRobin())
    engine = Engine("colocated", cost, StepTicks(cost), BATCHERS[batcher].policy, limits, blocks, BLOCK, blocks // 100)
    most = blocks * BLOCK
    finished = env.event()
    front = Frontend(env, pool, Admission(most, most, most), done.append, finished, clients)

    def ended(request: Request, instance: Instance) -> None:
        pool.left(instance, request)
        front.finish(request)

    silent = Observer(*(lambda *_: None for _ in Observer._fields))
    pool.add(Instance(env, "0", engine, range(cost.layout.devices), silent, ended))
    env.process(front.replay([arrivals]))
    env.run(until=finished)
    return [request for request in done if request.outcome == FINISHED]


def ttft_ms(requests: Sequence[Request]) -> np.ndarray:
    """Return the time to the first token of each request."""
    return np.array([r.first_token_ns - r.arrival_ns for r in requests]) / 1e6


def tpot_ms(requests: Sequence[Request]) -> np.ndarray:
    """Return the mean time per output token after the first of each request that has more than one."""
    many = [r for r in requests if r.output_tokens > 1]
    return np.array([(r.finish_ns - r.first_token_ns) / (r.output_tokens - 1) for r in many]) / 1e6


def decode_ms(cost: RooflineCost, batch: int, context: float) -> float:
    """Return one iteration of `batch` sequences of `context` tokens each."""
    step = cost.decode(batch, batch * context)
    return (step.fixed_ns + step.per_context_token_ns * batch * context) / 1e6


def prefill_ms(cost: RooflineCost, batch: int, tokens: int) -> float:
    """Return one step that prefills `batch` prompts of `tokens` tokens each."""
    return cost.prefill_ns(batch * tokens, batch * tokens * (tokens + 1) // 2, batch) / 1e6


def static_ms(cost: RooflineCost, batch: int, prompt: int, output: int) -> tuple[float, float]:
    """Return (prefill, all of decode) in ms of one batch of equal requests, by Simpson's rule over the contexts."""
    first = prefill_ms(cost, batch, prompt)
    ends = (prompt + 1, prompt + output / 2, prompt + output - 1)
    begin, middle, end = (decode_ms(cost, batch, context) for context in ends)
    return first, (output - 1) * (begin + 4 * middle + end) / 6


def error_row(what: str, where: str, predicted: Sequence[float], measured: Sequence[float]) -> Row:
    """Return one row of an error table; times or rates in any one unit."""
    ratio = np.asarray(predicted) / np.asarray(measured)
    off = np.abs(ratio - 1)
    return {
        "what": what,
        "where": where,
        "rows": len(ratio),
        "median": float(np.median(off)),
        "mean": float(np.mean(off)),
        "bias": float(np.median(ratio)),
    }


class Timed(NamedTuple):
    """One measured time in ms, what the kernels alone predict, and over how many steps of the engine."""

    predicted: float
    measured: float
    steps: float = 1.0


def error_rows(what: str, where: str, cases: Sequence[Timed]) -> Iterator[Row]:
    """Yield the errors of kernels alone, and of kernels with every fourth case's overhead per step on the rest."""
    yield error_row(what, where, [c.predicted for c in cases], [c.measured for c in cases])
    rest = [case for index, case in enumerate(cases) if index % 4]
    if len(rest) < 6:
        return
    overhead = max(0.0, float(np.median([(c.measured - c.predicted) / c.steps for c in cases[::4]])))
    predicted = [c.predicted + overhead * c.steps for c in rest]
    yield error_row(f"{what}, {overhead:.1f} ms a step", where, predicted, [c.measured for c in rest])
