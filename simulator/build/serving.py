"""The only composition root: a scenario becomes a blueprint (nothing written yet), then live actors, then a run."""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from simulator import catalog
from simulator.clock import Clock
from simulator.cluster.inventory import Inventory, Lease
from simulator.device.accelerator import load_accelerator
from simulator.device.cost import COSTS
from simulator.errors import InputError, InvariantError, Problem
from simulator.execution import Execution, Progress
from simulator.model.transformer import Transformer, load_model
from simulator.network.fabric import Fabric
from simulator.results.folder import RunFolder
from simulator.results.metrics import lookup
from simulator.results.run import Run, load_run
from simulator.results.summary import summarise
from simulator.results.tables import LINKS
from simulator.scenario.reference import kv_blocks_of
from simulator.scenario.schema import Pool as PoolSection
from simulator.scenario.schema import Scenario
from simulator.scenario.workload import TraceWorkload
from simulator.scenario.write import resolved, scenario_digest
from simulator.serving.batching import BATCHERS
from simulator.serving.disaggregation import KVTransfer
from simulator.serving.frontend import Admission, Arrivals, Frontend
from simulator.serving.instance import Engine, Instance
from simulator.serving.jump import StepTicks
from simulator.serving.pool import Pool
from simulator.serving.recording import Recording
from simulator.serving.request import UNFINISHED, Request
from simulator.serving.routing import ROUTERS, Router
from simulator.topology.graph import Topology
from simulator.topology.presets import build_topology
from simulator.units import NS_PER_S

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class PoolPlan:
    """One pool before it lives: its section of the scenario, what its engines share, and a lease per instance."""

    role: str
    engine: Engine
    router: Router
    leases: tuple[Lease, ...]


@dataclass(frozen=True)
class Blueprint:
    """Everything that a scenario asks for, found, checked and fitted; making it writes nothing and starts nothing."""

    scenario: Scenario
    topology: Topology
    inventory: Inventory
    model: Transformer
    pools: tuple[PoolPlan, ...]
    admission: Admission
    batches: Callable[[], Iterator["pa.RecordBatch"]]
    notes: list[str]
    """Inputs that have no effect, for the user to read; reading the trace adds to them."""


def plan(scenario: Scenario) -> Blueprint:
    """Return the blueprint of a scenario; raises InputError when something in it does not exist or does not fit."""
    serving = scenario.serving
    topology = build_topology(scenario.topology.preset, scenario.topology.parameters)
    inventory = Inventory(topology.sites)
    model = load_model(serving.model)
    notes: list[str] = []
    pools = tuple(
        _plan_pool(role, section, scenario, model, topology, inventory) for role, section in serving.pools.items()
    )
    first, last = pools[0].engine, pools[-1].engine
    admission = Admission(
        serving.max_context or model.max_context,
        first.kv_blocks * first.block_tokens,
        last.kv_blocks * last.block_tokens,
    )
    batches = _workload(scenario, notes)
    return Blueprint(scenario, topology, inventory, model, pools, admission, batches, notes)


def _plan_pool(
    role: str, section: PoolSection, scenario: Scenario, model: Transformer, topology: Topology, inventory: Inventory
) -> PoolPlan:
    serving = scenario.serving
    accelerator = load_accelerator(topology.device)
    batcher, limits = BATCHERS[section.batcher.name], section.batcher.parameters
    block_tokens = section.kv.block_tokens
    blocks = kv_blocks_of(section, model, accelerator)
    _, make_cost = COSTS[serving.cost.name]
    cost = make_cost(serving.cost.parameters, model, section.layout, accelerator)
    watermark = int(section.kv.watermark * blocks)
    engine = Engine(role, cost, StepTicks(cost), batcher.policy, limits, blocks, block_tokens, watermark)
    leases = tuple(inventory.lease(f"{role}-{index}", section.layout.devices) for index in range(section.instances))
    router = section.router or serving.router
    return PoolPlan(role, engine, ROUTERS[router.name].make(**router.parameters.model_dump()), leases)


_NO_EFFECT = {
    "session": "sessions do not wait for each other: requests arrive at their recorded times",
    "turn": "sessions do not wait for each other: requests arrive at their recorded times",
    "prefix_hashes": "there is no prefix cache: every prompt is computed in full",
    "model": "one model serves every request",
    "tenant": "tenants are served alike",
}


def _workload(scenario: Scenario, notes: list[str]) -> Callable[[], Iterator["pa.RecordBatch"]]:
    """Return what streams the workload's canonical batches, from the start at each call."""
    section = scenario.workload
    if not isinstance(section, TraceWorkload):
        from simulator.workload.synthesis import synthesize

        laws = [choice.parameters.law() for choice in (section.arrivals, section.prompt_tokens, section.output_tokens)]
        return lambda: synthesize(scenario.seed, section.requests, *laws)
    from simulator.workload.sampling import first_requests, window
    from simulator.workload.trace import open_trace

    path = catalog.locate("traces", section.trace)
    mapping = section.columns.mapping() if section.columns is not None else None
    trace = open_trace(path, section.format, mapping, section.strict_rows)
    reasons: dict[str, list[str]] = {}
    for column in trace.columns_present:
        reasons.setdefault(_NO_EFFECT[column], []).append(column)
    notes.extend(f"trace column {', '.join(columns)} has no effect: {why}" for why, columns in reasons.items())

    def batches() -> Iterator["pa.RecordBatch"]:
        rows = window(trace.batches(), section.start, section.duration)
        yield from rows if section.requests is None else first_requests(rows, section.requests)
        notes.extend(f"trace {path.name}: {reason}" for reason in trace.report.reasons())

    return batches


def arrivals(batches: Iterator["pa.RecordBatch"], speedup: float) -> Iterator[Arrivals]:
    """Yield canonical batches as plain columns, arrival times divided by `speedup` and rounded to the nanosecond."""
    for batch in batches:
        times = batch.column("arrival_ns").to_numpy()
        if speedup != 1:
            times = np.rint(times / speedup).astype(np.int64)
        prompts, outputs = batch.column("prompt_tokens").tolist(), batch.column("output_tokens").tolist()
        names = (batch.column(name) for name in ("session", "turn"))
        session, turn = (repeat(None) if c.null_count == len(c) else c.to_pylist() for c in names)
        yield Arrivals(times.tolist(), prompts, outputs, session, turn)


class System:
    """The live actors of a blueprint on one environment."""

    def __init__(self, blueprint: Blueprint, recording: Recording) -> None:
        scenario = blueprint.scenario
        self.blueprint = blueprint
        self.env = Clock()
        self.fabric = Fabric(self.env, blueprint.topology, scenario.seed)
        self.recording = recording
        self.pools = [Pool(plan.role, plan.router) for plan in blueprint.pools]
        self.frontend = Frontend(self.env, self.pools[0], blueprint.admission, recording.ended)
        model = blueprint.model
        self.transfer = KVTransfer(
            self.env, self.fabric, self.pools[0], self.pools[-1], model.kv_heads, model.kv_bytes_per_token()
        )
        for pool, plan in zip(self.pools, blueprint.pools, strict=True):
            self._populate(pool, plan, hands_over=len(self.pools) > 1 and pool is self.pools[0])
        speedup = scenario.workload.speedup if isinstance(scenario.workload, TraceWorkload) else 1.0
        self.env.process(self.frontend.replay(arrivals(blueprint.batches(), speedup)))

    def _populate(self, pool: Pool, plan: PoolPlan, hands_over: bool) -> None:
        def finished(request: Request, instance: Instance) -> None:
            pool.left(instance)
            self.frontend.finish(request)

        for lease in plan.leases:
            observer = self.recording.observer(lease.owner, plan.role, plan.engine.kv_blocks)
            prefilled = self.transfer.hand_over if hands_over else None
            pool.add(Instance(self.env, lease.owner, plan.engine, lease.devices, observer, finished, prefilled))
            self.recording.event(0, "lease", lease.owner, f"devices {_ranges(lease.devices)}")

    def check(self) -> None:
        """Raise InvariantError unless requests, KV blocks, devices and link bytes are all accounted for."""
        self.frontend.check()
        self.blueprint.inventory.check()
        self.fabric.check()
        for pool in self.pools:
            for instance in pool.instances:
                instance.check()

    def settle(self, expected_end: bool) -> None:
        """Bring every record up to now; requests still open become rows. `expected_end`: none should be open."""
        now = self.env.now
        for pool in self.pools:
            for instance in pool.instances:
                instance.settle()
        open_requests = list(self.frontend.in_flight.values())
        if open_requests and expected_end:
            raise InvariantError(f"{len(open_requests)} requests never ended, the first is {open_requests[0]!r}")
        for request in open_requests:
            request.outcome = UNFINISHED
            request.reason = "open when the run stopped"
            self.recording.ended(request)
        self.recording.close(now)


def _ranges(devices: tuple[int, ...]) -> str:
    """Return device numbers as text, runs folded: `0-3, 8`."""
    runs: list[list[int]] = []
    for device in devices:
        if runs and device == runs[-1][-1] + 1:
            runs[-1][1:] = [device]
        else:
            runs.append([device])
    return ", ".join("-".join(map(str, run)) for run in runs)


def run_id(scenario: Scenario) -> str:
    """Return the name of a run's default folder: equal scenarios, seeds included, have equal names."""
    return scenario_digest(scenario)[:12]


def simulate(scenario: Scenario, seed: int | None = None, out: Path | str | None = None, check: bool = False) -> Run:
    """Run a scenario and return its run: `run.summary`, `run.requests` and the other tables as DataFrames.

    `seed` replaces the scenario's; `out` names the run folder (default: results/<scenario>/<run id>). With `check`
    every invariant is verified throughout. Raises InputError for what does not fit, OutputError when the disk refuses.
    """
    if seed is not None:
        if not 0 <= seed < 2**63:
            raise InputError(Problem(f"{seed} is no seed", path="seed", allowed="a whole number from 0 to 2^63 - 1"))
        scenario = scenario.model_copy(update={"seed": seed})
    return run_scenario(scenario, None if out is None else Path(out), check)


def run_scenario(
    scenario: Scenario,
    out: Path | None = None,
    check: bool = False,
    progress: Callable[[System, int], None] | None = None,
) -> Run:
    """Run a scenario into a folder; `progress` is called now and then with the live system and the events so far."""
    blueprint = plan(scenario)
    path = out if out is not None else Path("results") / scenario.name / run_id(scenario)
    existed = path.exists()
    try:
        with RunFolder.create(path) as folder:
            _run_into(folder, blueprint, check, progress)
    except InputError:
        if not existed:
            shutil.rmtree(path, ignore_errors=True)  # a fault met while the workload streamed leaves nothing behind
        raise
    return load_run(path)


def _run_into(
    folder: RunFolder, blueprint: Blueprint, check: bool, progress: Callable[[System, int], None] | None
) -> None:
    scenario = blueprint.scenario
    recording = Recording(folder, scenario.results.interval)
    system = System(blueprint, recording)
    execution = Execution()
    tick: Progress | None = None if progress is None else lambda now_ns, events: progress(system, events)
    execution.run(system.env, scenario.until, tick, system.check if check else None)
    system.check()
    system.settle(expected_end=scenario.until is None and not execution.interrupted)
    now_ns = system.env.now
    if execution.interrupted:
        recording.event(now_ns, "interrupted", scenario.name, "stopped by a signal; what was done is kept")
    _write_links(folder, system, now_ns)
    recording.finish()
    summary = _summary(folder, system)
    folder.write_text("scenario.yaml", resolved(scenario, folder.path.resolve()))
    folder.write_json("summary.json", summary)
    manifest = {
        "scenario": scenario.name,
        "scenario_digest": scenario_digest(scenario),
        "seed": scenario.seed,
        "simulated_ns": now_ns,
        "events": execution.events,
        "wall_s": round(execution.wall_s, 3),
        "model": blueprint.model.name,
        "topology": blueprint.topology.name,
        "device": blueprint.topology.device,
        "devices": len(blueprint.topology.sites),
        "devices_leased": blueprint.inventory.leased,
    }
    if execution.interrupted:
        folder.abandon(manifest)
    else:
        folder.finish(manifest)


def _write_links(folder: RunFolder, system: System, now_ns: int) -> None:
    links = folder.writer(LINKS)
    for index, source, target, tier, capacity, moved, busy_ns, busy, peak, flows in system.fabric.link_rows(now_ns):
        utilisation = moved * NS_PER_S / (capacity * now_ns) if now_ns else 0.0
        links.append((index, source, target, tier, capacity, moved, flows, busy_ns, busy, utilisation, peak))
    if not links.rows:
        system.blueprint.notes.append("topology: no byte crossed a link; only the number and kind of devices mattered")
    links.close()


def _summary(folder: RunFolder, system: System) -> dict[str, Any]:
    blueprint, scenario = system.blueprint, system.blueprint.scenario
    slo = scenario.slo.model_dump(mode="python", exclude_none=True)
    limits = {name: getattr(scenario.slo, name) for name in slo}
    now_ns = system.env.now
    summary = summarise(folder.path, limits, system.recording.itl, now_ns, blueprint.inventory.leased)
    if not limits:
        blueprint.notes.append("slo: none given, so goodput counts every finished request")
    observed = [(e, lookup(summary, e.metric)) for e in scenario.expect]
    summary["expect"] = [
        {"metric": e.metric, "expected": e.text, "observed": value, "holds": e.holds(value)} for e, value in observed
    ]
    summary["warnings"] = list(dict.fromkeys(blueprint.notes))
    return summary
