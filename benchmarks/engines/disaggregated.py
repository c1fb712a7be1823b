"""Closed loops of clients on prefill and decode pools against the public silicon table, row by row.

The pools, the router between them and the transfer of KV caches are those of the serving engine; what a client sees as
its first token comes from the decode worker, when the cache is there and the request has a seat.
"""

import re
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from simulator import catalog
from simulator.clock import Clock
from simulator.device.accelerator import load_accelerator
from simulator.device.cost import RooflineCost
from simulator.errors import InputError
from simulator.model.layout import Layout
from simulator.model.precision import Precision
from simulator.model.transformer import load_model
from simulator.network.collectives import Collectives
from simulator.network.collectives_constants import load_constants
from simulator.network.fabric import Fabric
from simulator.network.group_times import GroupTimes
from simulator.network.routing import spread_of
from simulator.serving.admission import Admission
from simulator.serving.batching import BATCHERS
from simulator.serving.disaggregation import Caches, KVTransfer
from simulator.serving.frontend import Frontend
from simulator.serving.instance import Engine, Instance, Observer
from simulator.serving.jump import StepTicks
from simulator.serving.kv_layout import KVLayout
from simulator.serving.pool import Pool
from simulator.serving.request import FINISHED, Request
from simulator.serving.routing import RoundRobin
from simulator.serving.transfer_rules import TransferRules
from simulator.topology.graph import Topology
from simulator.topology.presets import build_topology

from . import silicon
from .harness import BLOCK, kv_tokens, tpot_ms, ttft_ms
from .recipes import recipe_of

MOST_TOKENS = 8192
"""Prompt tokens that a rank prefills in one iteration at most, unless one prompt is longer."""


class Side(NamedTuple):
    """The workers of one pool; `batch` is of a rank and at most so much, where it is known."""

    workers: int
    layout: tuple[tuple[str, int], ...]
    batch: int
    kv_tokens: int | None = None
    """Of a rank; None: what its memory holds."""


class Case(NamedTuple):
    """One measured row as the simulator reads it."""

    model: str
    device: str
    backend: str
    precision: tuple[tuple[str, str], ...]
    prefill: Side
    decode: Side
    clients: int
    prompt: int
    output: int
    interval: int
    """Output tokens that the decode workers send together."""
    spread: bool
    """As of aggregated rows."""


class _Shape(NamedTuple):
    """The columns of one pool under the names of aggregated rows."""

    tp_size: float
    attention_dp_size: float
    moe_tp_size: float
    moe_ep_size: float


def read(data: Path) -> pd.DataFrame:
    """Return the disaggregated rows; those without numbers of workers get them from their twin.

    Twins are rows of one measurement, equal in model, device, format, lengths, TTFT and TPOT to the last digit. The
    column `twin` says whose numbers they are: rows of one measurement have one prediction.
    """
    frame = pd.read_csv(data / "aiconfigurator" / "silicon_sample.csv.gz", low_memory=False)
    frame = frame[frame["mode"] == "disagg"].copy()
    same = ["backend", "system", "gemm_quant_mode", "isl", "osl", "silicon_ttft_ms", "silicon_tpot_ms"]
    frame["known"] = frame["prefill_num_workers"].notna()
    frame = frame.sort_values(["known", "id"], ascending=[False, True], kind="stable")
    frame["twin"] = frame.groupby(same, sort=False)["id"].transform("first")
    return frame


def case_of(row: Any) -> Case | str:
    """Return the case of a row, or why it is not covered."""
    model = silicon.MODELS.get(row.model_path)
    if model is None:
        return f"{row.model_path}: an architecture that the catalog does not have"
    if not row.known:
        return "no number of workers, and no other row of the same measurement that has one"
    device = silicon.DEVICES[row.system]
    if device not in catalog.names("topologies/devices"):
        return f"{device}: no sheet"
    workers = int(row.prefill_num_workers), int(row.decode_num_workers)
    found = re.search(r"silicon_concurrency=(\d+)", row.silicon_data_source)
    if found is None:
        return "no number of clients"
    sparse = load_model(model).experts is not None
    layouts = []
    for pool in ("prefill", "decode"):
        sizes = [getattr(row, f"{pool}_{name}") for name in _Shape._fields]
        layouts.append(_layout_of(_Shape(*sizes), sparse))
    clients = int(found[1])
    recipe = recipe_of(row.backend, row.system, row.precision, int(row.isl), int(row.osl), workers, clients)
    batch, interval, kv_most = (recipe.batch, recipe.interval, recipe.kv_tokens) if recipe else (None, 1, None)
    return Case(
        model,
        device,
        row.backend,
        tuple(silicon.precision_of(row, model).items()),
        Side(workers[0], tuple(layouts[0].items()), clients),
        Side(workers[1], tuple(layouts[1].items()), min(batch or clients, clients), kv_most),
        clients,
        int(row.isl),
        int(row.osl),
        interval,
        "1.3.0rc5" not in str(row.backend_version),
    )


def _layout_of(shape: _Shape, is_sparse: bool) -> dict[str, int]:
    """Return the layout of a worker. Experts that tensor ranks split under data-parallel attention count as spread.

    A device has as many of their bytes either way.
    """
    layout = silicon.layout_of(shape, is_sparse)
    if is_sparse and layout["data"] > 1 and shape.moe_ep_size <= 1 < shape.moe_tp_size:
        layout["expert"] = layout["tensor"] * layout["data"]
    return layout


@lru_cache(maxsize=32)
def cluster(device: str, devices: int) -> tuple[Topology, Collectives]:
    """Return a topology of at least so many devices, on the links of the device's sheet, and its collectives."""
    sheet = load_accelerator(device)
    assert sheet.scale_up is not None
    if sheet.scale_up.ranks >= devices:
        if sheet.scale_up.ranks == 72:
            topology = build_topology("nvl72", {"device": device})
        else:
            topology = build_topology("dgx-h100", {"device": device, "link": {"bandwidth": _rate(sheet.scale_up, 4)}})
    else:
        size = sheet.scale_up.ranks
        nodes = -(-devices // size)
        links = {
            "nvlink": {"bandwidth": _rate(sheet.scale_up)},
            "link": {"bandwidth": _rate(sheet.ports["nic"])},
            "pcie": {"bandwidth": _rate(sheet.ports["pcie"])},
        }
        topology = build_topology("clos-h100", {"device": device, "nodes": nodes, "devices_per_node": size, **links})
    constants = "b200-sxm" if device == "b300-sxm" else device.removesuffix("-80gb")
    return topology, Collectives(topology, load_constants(constants))


def _rate(port: Any, parts: int = 1) -> str:
    return f"{port.bandwidth / parts / 1e9:.6g} GB/s"


@lru_cache(maxsize=64)
def cost_of(
    model: str, device: str, precision: tuple[tuple[str, str], ...], layout: tuple[tuple[str, int], ...], devices: int
) -> RooflineCost:
    """Return the cost of one worker, on the first devices of a cluster."""
    topology, collectives = cluster(device, devices)
    shape = Layout(**dict(layout))
    node = 1 + max(site.slot for site in topology.sites)
    sheet = load_accelerator(device).in_nodes_of(node)
    links = None
    if shape.devices > shape.tensor or shape.tensor > sheet.domain:
        links = GroupTimes(collectives, shape, range(shape.devices))
    return RooflineCost(load_model(model), shape, sheet, Precision(**dict(precision)), links=links)


def devices_of(case: Case) -> int:
    """Return how many devices both pools have."""
    return sum(side.workers * Layout(**dict(side.layout)).devices for side in (case.prefill, case.decode))


def engine_of(case: Case, role: str, side: Side) -> Engine:
    """Return what the workers of a pool share; raises InputError when the model does not fit."""
    cost = cost_of(case.model, case.device, case.precision, side.layout, devices_of(case))
    ranks = cost.layout.data
    tokens = MOST_TOKENS
    name = "continuous" if role == "prefill" else silicon.BATCHER[case.backend]
    limits = BATCHERS[name].parameters(max_running=side.batch, max_batch_tokens=max(tokens, side.batch))
    blocks = kv_tokens(cost, tokens * ranks, min(side.batch * ranks, case.clients)) // BLOCK // ranks
    if side.kv_tokens is not None:
        blocks = min(blocks, side.kv_tokens // BLOCK)
    given = role, cost, StepTicks(cost), BATCHERS[name].policy, limits, blocks, BLOCK, blocks // 100, ranks
    return Engine(*given, first_chunk=case.interval)


def replay(case: Case) -> list[Request]:
    """Return the finished requests of a closed loop on both pools."""
    env: Clock = Clock()
    topology, _ = cluster(case.device, devices_of(case))
    fabric = Fabric(env, topology, 0, spread=spread_of(topology))
    pools = Pool("prefill", RoundRobin(), env), Pool("decode", RoundRobin(), env)
    engines = engine_of(case, "prefill", case.prefill), engine_of(case, "decode", case.decode)
    model = engines[0].cost.model
    layouts: dict[str, KVLayout] = {}
    each = round(model.attention.stored_per_token(1) * engines[0].cost.precision.kv_bytes)
    transfer = KVTransfer(env, fabric, *pools, Caches(layouts, model.layers, each), TransferRules())
    done: list[Request] = []
    finished = env.event()
    most = [engine.kv_blocks * BLOCK for engine in engines]
    front = Frontend(
        env, pools[0], Admission(1 << 30, *most), done.append, finished, case.clients, enter=transfer.enter
    )
    silent = Observer(*(lambda *_: None for _ in Observer._fields))
    first = 0
    for pool, engine in zip(pools, engines, strict=True):
        side = case.prefill if pool.role == "prefill" else case.decode
        hears = (transfer.hand_over, transfer.began) if pool.role == "prefill" else (None, None)

        def ended(request: Request, instance: Instance, pool: Pool = pool) -> None:
            pool.left(instance, request)
            transfer.ended(request)
            front.finish(request)

        for number in range(side.workers):
            devices = range(first, first := first + engine.cost.layout.devices)
            name = f"{pool.role}-{number}"
            layouts[name] = KVLayout.of(model, engine.cost.layout)
            pool.add(Instance(env, name, engine, devices, silent, ended, *hears))
    arrivals = silicon.requests(case)
    env.process(front.replay([arrivals]))
    env.run(until=finished)
    return [request for request in done if request.outcome == FINISHED]


class Found(NamedTuple):
    """Means of a closed loop in ms: until a prompt is computed, its place, its cache; the client's TTFT and TPOT."""

    prefill: float
    wait: float
    moving: float
    ttft: float
    tpot: float
    median: float
    """Of the times to the client's first token."""


def loop(case: Case) -> Found:
    """Return what a closed loop on both pools gives; raises InputError where a model does not fit."""
    done = replay(case)
    prefill = np.array([r.prefill_end_ns - r.arrival_ns for r in done]) / 1e6
    wait = np.array([r.kv_wait_ns for r in done]) / 1e6
    moving = np.array([r.kv_transfer_ns for r in done]) / 1e6
    ttft = ttft_ms(done)
    means = (float(values.mean()) for values in (prefill, wait, moving, ttft, tpot_ms(done)))
    return Found(*means, float(np.median(ttft)))


def predicted(case: Case) -> Found | str:
    """Return what the closed loop gives, or why there is none."""
    try:
        return loop(case)
    except InputError as error:
        return str(error.problems[0].what)[:80]


def evaluate(frame: pd.DataFrame, workers: int) -> pd.DataFrame:
    """Return one row per row of the table with what was measured and predicted, or why not."""
    cases = [case_of(row) for row in frame.itertuples()]
    twins = dict(zip(frame["id"], zip(cases, frame["known"], strict=True), strict=True))
    found = [twins.get(twin, (case, False)) for case, twin in zip(cases, frame["twin"], strict=True)]
    cases = [its if known else case for case, (its, known) in zip(cases, found, strict=True)]
    runnable = list(dict.fromkeys(case for case in cases if isinstance(case, Case)))
    runnable.sort(key=lambda case: -case.clients * case.output)  # the longest first
    with ProcessPoolExecutor(workers) as pool:
        answers = dict(zip(runnable, pool.map(predicted, runnable), strict=True))
    return pd.DataFrame(
        [
            _line(row, case, answers[case] if isinstance(case, Case) else case)
            for case, row in zip(cases, frame.itertuples(), strict=True)
        ]
    )


def _line(row: Any, case: Case | str, answer: Found | str) -> dict[str, Any]:
    found = answer if isinstance(answer, Found) else Found(*[np.nan] * len(Found._fields))
    known = isinstance(case, Case)
    return {
        "model": silicon.MODELS.get(row.model_path, row.model_path),
        "device": silicon.DEVICES[row.system],
        "engine": row.backend,
        "format": str(row.gemm_quant_mode),
        "layout": f"{_named(case.prefill)} + {_named(case.decode)}" if known else "",
        "batch": case.decode.batch if known else np.nan,
        "clients": case.clients if known else np.nan,
        "isl": row.isl,
        "osl": row.osl,
        "measurement": row.twin,
        "ttft": row.silicon_ttft_ms,
        "tpot": row.silicon_tpot_ms,
        **{f"{name}_model": value for name, value in found._asdict().items()},
        "why": "" if isinstance(answer, Found) else answer,
    }


def _named(side: Side) -> str:
    return f"{side.workers} x {Layout(**dict(side.layout))}"


def report(data: Path, out: Path, every: int = 1, workers: int = 2) -> Iterator[str]:
    """Yield the errors by engine, device and lengths, one row per measurement, and why others are not covered."""
    rows = read(data)
    kept = rows["twin"].isin(rows["twin"].unique()[::every])
    found = evaluate(rows[kept], workers)
    found.to_csv(out / "disaggregated.csv", index=False)
    covered = int((found["why"] == "").sum())
    once = found.drop_duplicates("measurement")
    known = silicon.delivered(once)
    for what, note in (("tpot", "no constant of an engine"), ("ttft", "to the first token that the engine sends")):
        error = (known[f"{what}_model"] / known[what] - 1).abs().median()
        yield f"- {what.upper()}: median error {error:.1%} of {len(known)} measurements ({note})"
    yield f"- covered: {covered} of {len(found)} rows, which are {len(once)} measurements"
    yield ""
    for by in (("engine",), ("device", "engine", "format"), ("engine", "isl", "osl")):
        yield from silicon.summary(once, *by)
        yield ""
    yield from silicon.delivery_table(known)
    yield "\nNot covered:\n"
    for why, count in found[found["why"] != ""]["why"].value_counts().items():
        yield f"- {why}: {count} rows"
