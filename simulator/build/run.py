"""Runs a scenario into its folder: plan, live, settle, summarise, and the manifest last."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from simpy import Event

from simulator.build import serving, traffic
from simulator.clock import Clock
from simulator.errors import InputError, Problem
from simulator.execution import Execution, Progress, held_signals
from simulator.results.folder import RunFolder
from simulator.results.metrics import lookup
from simulator.results.output import writing
from simulator.results.run import Run, load_run
from simulator.results.tables import LINKS
from simulator.scenario.load import load
from simulator.scenario.schema import Scenario
from simulator.scenario.write import resolved, scenario_digest
from simulator.units import NS_PER_S

if TYPE_CHECKING:
    from simulator.build.network import Live


class System(Protocol):
    """The live actors of one scenario, of whatever kind, as the run sees them."""

    env: Clock
    notes: list[str]
    """Inputs that had no effect, for the user to read."""
    finished: Event
    """Happens when all work has ended; what may still come, such as faults, is not waited for."""

    @property
    def draws(self) -> bool:
        """Whether the seed has any part in this run."""

    @property
    def fabric(self) -> "Live":
        """The live network."""

    def engine_bytes(self) -> dict[int, int]:
        """What collectives of engines have kept links busy with, by link."""

    @property
    def ended(self) -> int:
        """Requests, or flows, that have their outcome."""

    def check(self) -> None:
        """Raise InvariantError unless every conserved quantity is accounted for."""

    def settle(self, expected_end: bool) -> None:
        """Bring every record up to now; what is still open becomes rows. `expected_end`: nothing should be open."""

    def event(self, kind: str, subject: str, detail: str) -> None:
        """Write a row of what happened to the run as a whole."""

    def finish(self) -> None:
        """Close the tables."""

    def summary(self, folder: Path) -> dict[str, Any]:
        """Return the figures of the closed tables in `folder`."""

    def facts(self) -> dict[str, Any]:
        """Return what the manifest says of the system."""


Watch = Callable[[System, int], None]
"""Called now and then with the live system and the events so far."""


def run_id(scenario: Scenario) -> str:
    """Return the name of a run's default folder: equal scenarios, seeds included, have equal names."""
    return scenario_digest(scenario)[:12]


def simulate(
    scenario: Scenario | str | Path | Mapping[str, Any],
    seed: int | None = None,
    out: Path | str | None = None,
    check: bool = False,
) -> Run:
    """Run a scenario and return its run: `run.summary`, `run.requests` and the other tables as DataFrames.

    The scenario is one that `load` has read, or what it reads. `seed` replaces the scenario's; `out` names the run
    folder (default: results/<scenario>/<run id>). With `check` every invariant is verified throughout. Raises
    InputError for what does not fit, OutputError when the disk refuses.
    """
    if not isinstance(scenario, Scenario):
        scenario = load(scenario)
    if seed is not None:
        if not 0 <= seed < 2**63:
            raise InputError(Problem(f"{seed} is no seed", path="seed", allowed="a whole number from 0 to 2^63 - 1"))
        scenario = scenario.model_copy(update={"seed": seed})
    return run_scenario(scenario, None if out is None else Path(out), check)


def run_scenario(
    scenario: Scenario,
    out: Path | None = None,
    check: bool = False,
    progress: Watch | None = None,
    lasting: bool = True,
) -> Run:
    """Run a scenario into a folder (default: results/<scenario>/<run id>) and return its run.

    A folder that is not `lasting` is about to be thrown away, and need not have reached the disk.
    """
    assemble = plan(scenario)
    path = out if out is not None else Path("results") / scenario.name / run_id(scenario)
    existed = path.exists()
    try:
        with RunFolder.create(path, lasting) as folder, held_signals() as pending:  # until it is finished or abandoned
            _run_into(folder, scenario, assemble(folder), check, progress, pending)
    except InputError:
        if not existed:
            shutil.rmtree(path, ignore_errors=True)  # a fault met while the workload streamed leaves nothing behind
        raise
    return load_run(path)


def plan(scenario: Scenario) -> Callable[[RunFolder], System]:
    """Return what brings a scenario to life in a folder; raises InputError now for all that does not exist or fit."""
    try:
        if scenario.traffic is not None:
            network = traffic.plan(scenario, scenario.traffic)
            return lambda folder: traffic.System(network, folder)
        blueprint = serving.plan(scenario)
        return lambda folder: serving.System(blueprint, folder)
    except InputError as error:
        raise InputError([scenario.located(problem) for problem in error.problems]) from None


def _run_into(
    folder: RunFolder,
    scenario: Scenario,
    system: System,
    check: bool,
    progress: Watch | None,
    pending: Sequence[int],
) -> None:
    execution = Execution()
    tick: Progress | None = None if progress is None else lambda now_ns, events: progress(system, events)
    execution.run(system.env, scenario.until, tick, system.check if check else None, pending, system.finished)
    system.check()
    system.settle(expected_end=scenario.until is None and not execution.interrupted)
    if execution.interrupted:
        system.event("interrupted", scenario.name, "stopped by a signal; what was done is kept")
    _write_links(folder, system)
    system.finish()
    with writing(folder.path):  # the tables may be gone
        summary = system.summary(folder.path)
    observed = [(e, lookup(summary, e.metric)) for e in scenario.expect]
    summary["expect"] = [
        {"metric": e.metric, "expected": e.text, "observed": value, "holds": e.holds(value)} for e, value in observed
    ]
    if scenario.seed and not system.draws:
        system.notes.append("seed has no effect: nothing in this scenario is drawn at random")
    summary["warnings"] = list(dict.fromkeys(system.notes))
    folder.write_text("scenario.yaml", resolved(scenario, folder.path.resolve()))
    folder.write_json("summary.json", summary)
    manifest = {
        "scenario": scenario.name,
        "scenario_digest": scenario_digest(scenario),
        "seed": scenario.seed,
        "simulated_ns": system.env.now,
        "events": execution.events,
        "wall_s": round(execution.wall_s, 3),
        **system.facts(),
    }
    if execution.interrupted:
        folder.abandon(manifest)
    else:
        folder.finish(manifest)


def _write_links(folder: RunFolder, system: System) -> None:
    links, now_ns, of_engines = folder.writer(LINKS), system.env.now, system.engine_bytes()
    rows = system.fabric.link_rows(now_ns, idle=bool(of_engines))
    for index, source, target, tier, capacity, moved, busy_ns, busy, peak, flows in rows:
        own = of_engines.get(index, 0)
        if flows or own:
            utilisation = (moved + own) * NS_PER_S / (capacity * now_ns) if now_ns else 0.0
            links.append((index, source, target, tier, capacity, moved, flows, own, busy_ns, busy, utilisation, peak))
    if not links.rows:
        system.notes.append("topology: no byte crossed a link; only the number and kind of devices mattered")
    links.close()
