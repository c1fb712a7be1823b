"""What a scenario refers to: shipped data or files of the user's, looked up, and checked against each other.

The cluster must hold every engine, and every engine its model: the memory ledger and the inventory are those of a run.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

from simulator import catalog
from simulator.cluster.inventory import Inventory
from simulator.device.accelerator import Accelerator, load_accelerator
from simulator.device.cost import Subject
from simulator.device.expert_servers import check_servers
from simulator.device.memory import kv_blocks, ledger
from simulator.documents import Document, PathKey
from simulator.errors import InputError, Problem, nearest
from simulator.model.precision import Precision
from simulator.model.split import check_layout
from simulator.model.transformer import Transformer, load_model
from simulator.scenario.experts import held
from simulator.scenario.schema import Pool, Scenario, Serving
from simulator.scenario.speculation import cost_of
from simulator.topology.presets import resolve_preset
from simulator.topology.wiring import FamilyParameters

TABLES = "tables"
"""Kind of a list of files, each a path or `{path: ...}`."""
DRAFT = ("speculation", "draft", "model", "name")
"""Where a pool names its draft model."""
REFERENCES: dict[PathKey, str] = {
    ("topology", "preset"): "topologies",
    ("topology", "device"): "topologies/devices",
    ("serving", "model"): "workloads/models",
    ("serving", "colocated", *DRAFT): "workloads/models",
    ("serving", "decode", *DRAFT): "workloads/models",
    ("topology", "graph"): "graphs",
    ("network", "collectives"): "topologies/collectives",
    ("traffic", "flows"): "flows",
    ("traffic", "changes"): "changes",
    ("serving", "cost", "measured", "tables"): TABLES,
    **{
        ("serving", role, "experts", "popularity", "measured", "file"): "experts"
        for role in ("colocated", "prefill", "decode")
    },
    ("workload", "trace"): "traces",
    ("workload", "prompt_tokens", "empirical", "trace"): "traces",
    ("workload", "output_tokens", "empirical", "trace"): "traces",
}
"""Where a scenario names shipped data or a file, and of which kind."""

Found = TypeVar("Found")


@dataclass(frozen=True, slots=True)
class Site:
    """A device and its node, as the inventory wants them."""

    index: int
    node: int


class Nodes(Protocol):
    """What most families of topologies know about their nodes without being built."""

    nodes: int
    devices_per_node: int


def value_at(document: Document, path: PathKey) -> Any:
    """Return what stands at `path`, or None."""
    value = document.value
    for part in path:
        value = value.get(part) if isinstance(value, dict) else None
    return value


def attempt(
    call: Callable[[], Found],
    document: Document,
    problems: list[Problem],
    at: PathKey | Callable[[Problem], PathKey] | None = None,
) -> Found | None:
    """Return what `call` returns, or None after adding its problems; those without a place get the place `at`."""
    try:
        return call()
    except InputError as error:
        for problem in error.problems:
            if at is not None and problem.file is None:
                path = at(problem) if callable(at) else at
                problem = document.problem(path, problem.what, problem.allowed, problem.nearest)
            problems.append(problem)
        return None


def change_names(value: Any, change: Callable[[PathKey, str, str], str]) -> None:
    """Replace every name in a scenario's value that refers to something by `change(path, kind, name)`, in place."""
    for path, kind in REFERENCES.items():
        holder: Any = value
        for part in path[:-1]:
            holder = holder.get(part) if isinstance(holder, dict) else None
        found = holder.get(path[-1]) if isinstance(holder, dict) else None
        if isinstance(found, str):
            holder[path[-1]] = change(path, kind, found)
        elif kind == TABLES and isinstance(found, tuple | list):
            holder[path[-1]] = tuple(_changed(item, (*path, i), change) for i, item in enumerate(found))


def _changed(item: Any, path: PathKey, change: Callable[[PathKey, str, str], str]) -> Any:
    if isinstance(item, str):
        return change(path, TABLES, item)
    if isinstance(item, dict) and isinstance(item.get("path"), str):
        return {**item, "path": change((*path, "path"), TABLES, item["path"])}
    return item


@dataclass
class References:
    """What the names in a document stand for, as far as they stand for something."""

    document: Document
    problems: list[Problem]
    parameters: FamilyParameters | None = None
    device: Accelerator | None = None
    model: Transformer | None = None

    def look_up(self) -> None:
        """Find every reference of the document, and fill in the parameters of the topology."""
        # one after the other: a topology that is found fills in what the document says of its device
        for path, kind, name in chain.from_iterable(self._names(*entry) for entry in REFERENCES.items()):
            if path == ("topology", "device") and value_at(self.document, ("traffic",)) is not None:
                continue  # the network alone computes nothing, so a device needs no data sheet
            if not self._is_readable(path, kind, name):
                continue
            if path == ("topology", "preset"):
                self._resolve_topology(name)
            elif path == ("topology", "device"):
                self.device = attempt(partial(load_accelerator, name), self.document, self.problems, path)
            elif path == ("serving", "model"):
                self.model = attempt(partial(load_model, name), self.document, self.problems, path)
                self._take_precision()
            elif path[-len(DRAFT) :] == DRAFT:
                attempt(partial(load_model, name), self.document, self.problems, path)
            elif kind == "traces":
                self._check_trace(path, catalog.locate(kind, name))

    def _names(self, path: PathKey, kind: str) -> list[tuple[PathKey, str, str]]:
        found = value_at(self.document, path)
        if isinstance(found, str):
            return [(path, kind, found)]
        if kind != TABLES or not isinstance(found, tuple):
            return []
        names = (((*path, i), item.get("path") if isinstance(item, dict) else item) for i, item in enumerate(found))
        return [(at, kind, name) for at, name in names if isinstance(name, str)]

    def _is_readable(self, path: PathKey, kind: str, name: str) -> bool:
        file = attempt(partial(catalog.locate, kind, name), self.document, self.problems, path)
        if file is None:
            return False
        try:
            with file.open("rb"):
                return True
        except (OSError, ValueError) as error:  # ValueError: a null character in the name
            beside = sorted(p.name for p in file.parent.glob("*.*")) if file.parent.is_dir() else []
            what = f"cannot read {file}: {getattr(error, 'strerror', None) or error}"
            self.problems.append(self.document.problem(path, what, nearest=nearest(file.name, beside)))
            return False

    def _take_precision(self) -> None:
        """Fill in the formats of the published checkpoint where the document names none."""
        section = value_at(self.document, ("serving",))
        if self.model is not None and self.model.checkpoint is not None and "precision" not in section:
            section["precision"] = self.model.checkpoint.model_dump(exclude_none=True)

    def _check_trace(self, path: PathKey, file: Path) -> None:
        reads = value_at(self.document, ("workload", "format")) if path == ("workload", "trace") else None
        if reads in (None, "canonical"):
            with file.open("rb") as stream:
                if stream.read(4) != b"PAR1":
                    what = f"{file.name} is no trace in the canonical Parquet schema; name its `format`, or convert it"
                    self.problems.append(self.document.problem(path, what))

    def _resolve_topology(self, preset: str) -> None:
        section = value_at(self.document, ("topology",))
        values = {key: value for key, value in section.items() if key not in ("preset", "graph")}
        positions = {path[1:]: at for path, at in self.document.positions.items() if path[:1] == ("topology",)}
        try:
            self.parameters = resolve_preset(preset, Document(self.document.file, values, positions))
        except InputError as error:
            own = {at.file for at in positions.values()}
            for problem in error.problems:
                if problem.file is None:
                    problem = self.document.problem(("topology",), problem.what, problem.allowed, problem.nearest)
                elif problem.file in own:
                    problem = replace(problem, path=".".join(filter(None, ("topology", problem.path))))
                self.problems.append(problem)
            return
        written = self.parameters.model_dump()
        if "device" not in values:  # the preset's own; a path in it starts at the preset's folder
            beside = catalog.locate("topologies", preset).parent
            written["device"] = catalog.canonical("topologies/devices", written["device"], beside)
        self.document.value["topology"] = {"preset": preset, "graph": section.get("graph"), **written}


def check_fit(scenario: Scenario, found: References, document: Document, problems: list[Problem]) -> None:
    """Add what keeps the engines from running: a layout that does not split, too little memory, too few devices."""
    model, device, parameters = found.model, found.device, found.parameters
    serving = scenario.serving
    if model is None or device is None or parameters is None or serving is None:
        return
    before = len(problems)
    device = device.in_nodes_of(getattr(parameters, "devices_per_node", 1))
    for role, pool in serving.pools.items():
        if any(problem.path and problem.path.startswith(f"serving.{role}.speculation") for problem in problems):
            continue  # there is no such draft model
        at = partial(_engine_key, role)
        attempt(partial(check_layout, model, pool.layout), document, problems, at)
        if pool.speculation is not None:
            draft = attempt(partial(pool.speculation.model, model), document, problems, at)
            if draft is not None:
                attempt(partial(check_layout, draft, pool.layout), document, problems, at)
        if len(problems) == before:
            subject = Subject(model, pool.layout, device, serving.precision, links=lambda shape: (0.0, 0.0))
            if pool.expert_servers is None:
                attempt(partial(cost_of, serving.cost, subject, pool.speculation), document, problems, at)
            else:
                share = pool.kv.memory_utilisation
                check = partial(check_servers, model, pool.expert_servers, device, serving.precision, share)
                attempt(check, document, problems, at)
            attempt(partial(kv_blocks_of, pool, model, device, serving.precision), document, problems, at)
    if len(problems) == before and hasattr(parameters, "nodes"):  # other families: the run's inventory sees to it
        _check_devices(serving, cast(Nodes, parameters), document, problems)


def _engine_key(role: str, problem: Problem) -> PathKey:
    """Return the key of a pool, or of all pools for formats, that a problem of an engine names by its own path."""
    parts = tuple((problem.path or "layout.tensor").split("."))
    return ("serving", *parts) if parts[0] in ("model", "precision", "cost") else ("serving", role, *parts)


def kv_blocks_of(pool: Pool, model: Transformer, device: Accelerator, precision: Precision) -> int:
    """Return the KV blocks of one engine: those given, or what the ledger leaves.

    Raises InputError when none fits, or fewer than one for each rank.
    """
    limits, layout = pool.batcher.parameters, pool.layout
    blocks = pool.kv.blocks
    if blocks is None:
        fed, beside = 1, None
        if pool.speculation is not None:
            fed, beside = pool.speculation.tokens + 1, pool.speculation.beside(model, layout, precision)
        most = limits.max_batch_tokens * layout.data, limits.max_running * layout.data * fed
        share, elsewhere = pool.kv.memory_utilisation, pool.expert_servers is not None
        experts = held(pool.experts, model, layout)
        book = ledger(model, layout, device, *most, share, precision, elsewhere, experts, beside)
        blocks = kv_blocks(book, model, layout, pool.kv.block_tokens, precision, beside)
    if blocks < layout.data * layout.pipeline:
        what = f"{blocks:,} KV blocks for {layout.data * layout.pipeline:,} ranks"
        raise InputError(Problem(what, path="kv.blocks", allowed="a block for each rank at least"))
    return blocks


def _check_devices(serving: Serving, parameters: Nodes, document: Document, problems: list[Problem]) -> None:
    pools = serving.pools
    there = parameters.nodes * parameters.devices_per_node
    servers = {role: pool.expert_servers.devices for role, pool in pools.items() if pool.expert_servers is not None}
    needed = sum(pool.instances * pool.layout.devices for pool in pools.values()) + sum(servers.values())
    if needed > there:
        parts = " + ".join(f"{role} {pool.instances} x {pool.layout.devices}" for role, pool in pools.items())
        parts += "".join(f" + {role} experts {count}" for role, count in servers.items())
        what = f"the engines need {needed:,} devices ({parts}), the topology has {there:,}"
        problems.append(document.problem(("serving", next(iter(pools)), "instances"), what))
        return
    inventory = Inventory([Site(index, index // parameters.devices_per_node) for index in range(there)])
    for role, pool in pools.items():
        for index in range(pool.instances):
            owner = f"{role}-{index}"
            lease = partial(inventory.lease, owner, pool.layout.devices)
            if attempt(lease, document, problems, ("serving", role, "instances")) is None:
                return
        if role in servers:
            lease = partial(inventory.lease, f"{role}-experts", servers[role])
            if attempt(lease, document, problems, ("serving", role, "expert_servers", "devices")) is None:
                return
