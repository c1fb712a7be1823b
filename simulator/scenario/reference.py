"""What a scenario refers to: shipped data or files of the user's, looked up, and checked against each other.

The cluster must hold every engine, and every engine its model: the memory ledger and the inventory are those of a run.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

from simulator import catalog
from simulator.cluster.inventory import Inventory
from simulator.device.accelerator import Accelerator, load_accelerator
from simulator.device.cost import Subject
from simulator.device.expert_servers import check_servers
from simulator.device.memory import Beside, Ledger, kv_blocks, ledger
from simulator.documents import Document, PathKey
from simulator.errors import InputError, Problem, nearest
from simulator.model.precision import Precision, completed
from simulator.model.split import check_layout
from simulator.model.transformer import Transformer, load_model
from simulator.results.metrics import POOLS
from simulator.scenario.experts import held
from simulator.scenario.pool import Group, Pool, device_of, engine_names
from simulator.scenario.schema import Scenario, Serving
from simulator.scenario.speculation import cost_of
from simulator.topology.presets import resolve_preset
from simulator.topology.wiring import FamilyParameters, NodeParameters
from simulator.units import format_bandwidth

DEVICES = "topologies/devices"
TABLES = "tables"
"""Kind of a list of files, each a path or `{path: ...}`."""
DRAFT = ("speculation", "draft", "model", "name")
"""Where a pool names its draft model."""
REFERENCES: dict[PathKey, str] = {
    ("topology", "preset"): "topologies",
    ("topology", "device"): DEVICES,
    ("topology", "devices", "device"): DEVICES,
    ("serving", "model"): "workloads/models",
    **{("serving", role, "device"): DEVICES for role in POOLS},
    **{("serving", role, *DRAFT): "workloads/models" for role in ("colocated", "decode")},
    ("topology", "graph"): "graphs",
    ("network", "collectives"): "topologies/collectives",
    ("traffic", "flows"): "flows",
    ("traffic", "changes"): "changes",
    ("serving", "cost", "measured", "tables"): TABLES,
    **{("serving", role, "experts", "popularity", "measured", "file"): "experts" for role in POOLS},
    ("workload", "trace"): "traces",
    ("workload", "prompt_tokens", "empirical", "trace"): "traces",
    ("workload", "output_tokens", "empirical", "trace"): "traces",
    ("workload", "sample_tokens", "empirical", "trace"): "traces",
}
"""Where a scenario names shipped data or a file, and of which kind; of a list on the way each item."""

Found = TypeVar("Found")


@dataclass(frozen=True, slots=True)
class Site:
    """A device, its node and its kind, as the inventory wants them."""

    index: int
    node: int
    device: str


class Nodes(Protocol):
    """What most families of topologies know about their nodes without being built."""

    nodes: int
    devices_per_node: int

    def kind_of(self, node: int) -> str:
        """Return the kind of the devices in a node."""


def value_at(document: Document, path: PathKey) -> Any:
    """Return what stands at `path`, or None."""
    value = document.value
    for part in path:
        value = value.get(part) if isinstance(value, dict) else None
    return value


def places(value: Any, path: PathKey, done: PathKey = ()) -> Iterator[tuple[dict[str, Any], PathKey]]:
    """Yield each mapping that has the last key of `path`, and the path to its value; lists are entered on the way."""
    if isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from places(item, path, (*done, index))
    elif isinstance(value, dict) and path[0] in value:
        at = (*done, path[0])
        if len(path) == 1:
            yield value, at
        else:
            yield from places(value[str(path[0])], path[1:], at)


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
    for pattern, kind in REFERENCES.items():
        for holder, path in places(value, pattern):
            key = str(path[-1])
            found = holder[key]
            if isinstance(found, str):
                holder[key] = change(path, kind, found)
            elif kind == TABLES and isinstance(found, tuple | list):
                holder[key] = tuple(_changed(item, (*path, i), change) for i, item in enumerate(found))


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
    devices: dict[str, Accelerator] = field(default_factory=dict)
    model: Transformer | None = None

    def look_up(self) -> None:
        """Find every reference of the document, and fill in the parameters of the topology."""
        # one after the other: a topology that is found fills in what the document says of its device
        for path, kind, name in chain.from_iterable(self._names(*entry) for entry in REFERENCES.items()):
            if kind == DEVICES and value_at(self.document, ("traffic",)) is not None:
                continue  # the network alone computes nothing, so a device needs no data sheet
            if not self._is_readable(path, kind, name):
                continue
            if path == ("topology", "preset"):
                self._resolve_topology(name)
            elif kind == DEVICES:
                sheet = attempt(partial(load_accelerator, name), self.document, self.problems, path)
                self.devices |= {name: sheet} if sheet is not None else {}
            elif path == ("serving", "model"):
                self.model = attempt(partial(load_model, name), self.document, self.problems, path)
                self._take_precision()
            elif path[-len(DRAFT) :] == DRAFT:
                attempt(partial(load_model, name), self.document, self.problems, path)
            elif kind == "traces":
                self._check_trace(path, catalog.locate(kind, name))

    def _names(self, pattern: PathKey, kind: str) -> Iterator[tuple[PathKey, str, str]]:
        for holder, path in places(self.document.value, pattern):
            found = holder[str(path[-1])]
            if isinstance(found, str):
                yield path, kind, found
            elif kind == TABLES and isinstance(found, tuple):
                for index, item in enumerate(found):
                    name = item.get("path") if isinstance(item, dict) else item
                    if isinstance(name, str):
                        yield (*path, index), kind, name

    def _is_readable(self, path: PathKey, kind: str, name: str) -> bool:
        file = attempt(partial(catalog.locate, kind, name), self.document, self.problems, path)
        if file is None:
            return False
        try:
            catalog.unchanged(_head, file, lambda: _head(file))
            return True
        except (OSError, ValueError) as error:  # ValueError: a null character in the name
            beside = sorted(p.name for p in file.parent.glob("*.*")) if file.parent.is_dir() else []
            what = f"cannot read {file}: {getattr(error, 'strerror', None) or error}"
            self.problems.append(self.document.problem(path, what, nearest=nearest(file.name, beside)))
            return False

    def _take_precision(self) -> None:
        """Fill in the formats of the published checkpoint of the parts for which the document names none."""
        section = value_at(self.document, ("serving",))
        named = section.get("precision", {})
        if self.model is not None and self.model.checkpoint is not None and isinstance(named, Mapping):
            section["precision"] = completed(named, self.model.checkpoint)

    def _check_trace(self, path: PathKey, file: Path) -> None:
        reads = value_at(self.document, ("workload", "format")) if path == ("workload", "trace") else None
        if reads in (None, "canonical") and catalog.unchanged(_head, file, lambda: _head(file)) != b"PAR1":
            what = f"{file.name} is no trace in the canonical Parquet schema; name its `format`, or convert it"
            self.problems.append(self.document.problem(path, what))

    def _resolve_topology(self, preset: str) -> None:
        section = value_at(self.document, ("topology",))
        values = {key: value for key, value in section.items() if key not in ("preset", "graph")}
        positions = {path[1:]: at for path, at in self.document.positions.items() if path[:1] == ("topology",)}
        try:
            self.parameters = resolve_preset(preset, Document(self.document.file, values, positions))
        except InputError as error:
            files = {at.file for at in positions.values()}
            for problem in error.problems:
                if problem.file is None:
                    problem = self.document.problem(("topology",), problem.what, problem.allowed, problem.nearest)
                elif problem.file in files:
                    problem = replace(problem, path=".".join(filter(None, ("topology", problem.path))))
                self.problems.append(problem)
            return
        written = self.parameters.model_dump()
        beside = catalog.locate("topologies", preset).parent
        own = [written] if "device" not in values else []
        own += (written.get("devices") or ()) if "devices" not in values else ()
        for holder in own:  # the preset's own; a path in it starts at the preset's folder
            holder["device"] = catalog.canonical(DEVICES, holder["device"], beside)
        self.document.value["topology"] = {"preset": preset, "graph": section.get("graph"), **written}


def check_fit(scenario: Scenario, found: References, document: Document, problems: list[Problem]) -> None:
    """Add what keeps the engines from running: a layout that does not split, too little memory, too few devices."""
    model, parameters, serving = found.model, found.parameters, scenario.serving
    if model is None or parameters is None or serving is None:
        return
    before = len(problems)
    kinds = tuple(dict.fromkeys(parameters.kind_of(node) for node in range(getattr(parameters, "nodes", 1))))
    if any(kind not in found.devices for kind in kinds):
        return
    _check_scale_up(parameters, found, document, problems)
    devices: dict[PathKey, str] = {}
    for group in serving.groups:
        kind = attempt(partial(device_of, group.pool, kinds), document, problems, partial(_engine_key, group))
        if kind is not None:
            devices[group.keys] = kind
            device = found.devices[kind].in_nodes_of(getattr(parameters, "devices_per_node", 1))
            _check_engine(serving, group, model, device, document, problems, len(problems) == before)
    if len(problems) == before and hasattr(parameters, "nodes"):  # other families: the run's inventory sees to it
        _check_devices(serving, cast(Nodes, parameters), devices, document, problems)


def _check_scale_up(
    parameters: FamilyParameters, found: References, document: Document, problems: list[Problem]
) -> None:
    """Add nodes of another device whose scale-up links, left out, would be those of the others."""
    if not isinstance(parameters, NodeParameters) or parameters.devices_per_node == 1:
        return
    for index, kind in enumerate(parameters.devices or ()):
        domain, wire = found.devices[kind.device].scale_up, parameters.nvlink
        if kind.nvlink is None and (domain is None or domain.bandwidth != wire.bandwidth):
            own = f"{format_bandwidth(domain.bandwidth)} each" if domain is not None else "no scale-up links"
            what = f"{kind.device} has {own} by its data sheet, the other nodes {format_bandwidth(wire.bandwidth)}"
            at = ("topology", "devices", index, "device")
            problems.append(document.problem(at, what, "`nvlink` beside it: bandwidth and latency in these nodes"))


def _check_engine(
    serving: Serving,
    group: Group,
    model: Transformer,
    device: Accelerator,
    document: Document,
    problems: list[Problem],
    thoroughly: bool,
) -> None:
    """Add what keeps an engine of a group from running; `thoroughly`: also its memory and costs."""
    pool, before = group.pool, len(problems)
    if any(problem.path and problem.path.startswith(f"{group.at}.speculation") for problem in problems):
        return  # there is no such draft model
    at = partial(_engine_key, group)
    attempt(partial(check_layout, model, pool.layout), document, problems, at)
    if pool.speculation is not None:
        draft = attempt(partial(pool.speculation.model, model), document, problems, at)
        if draft is not None:
            attempt(partial(check_layout, draft, pool.layout), document, problems, at)
    hindrance = pool.hinders_windows(model) if pool.kv.hybrid and model.attention.window is not None else None
    if hindrance is not None:
        what = f"windows that are given back are not modelled beside {hindrance}"
        problems.append(document.problem(("serving", *group.keys, "kv", "hybrid"), what, "false, or leave it out"))
    if len(problems) > before or not thoroughly:
        return
    subject = Subject(model, pool.layout, device, serving.precision, links=lambda shape: (0.0, 0.0, 0.0))
    if pool.expert_servers is None:
        attempt(partial(cost_of, serving.cost, subject, pool.speculation), document, problems, at)
    else:
        share = pool.kv.memory_utilisation
        check = partial(check_servers, model, pool.expert_servers, device, serving.precision, share)
        attempt(check, document, problems, at)
    attempt(partial(kv_blocks_of, pool, model, device, serving.precision), document, problems, at)


def _engine_key(group: Group, problem: Problem) -> PathKey:
    """Return the key of a group, or of all engines for formats, that a problem of an engine names by its own path."""
    parts = tuple((problem.path or "layout.tensor").split("."))
    return ("serving", *parts) if parts[0] in ("model", "precision", "cost") else ("serving", *group.keys, *parts)


def kv_blocks_of(pool: Pool, model: Transformer, device: Accelerator, precision: Precision) -> int:
    """Return the KV blocks of one engine: those given, or what the ledger leaves.

    Raises InputError when none fits, or fewer than one for each rank.
    """
    layout, blocks = pool.layout, pool.kv.blocks
    if blocks is None:
        beside = pool.speculation.beside(model, layout, precision) if pool.speculation is not None else None
        book = ledger_of(pool, model, device, precision, beside)
        blocks = kv_blocks(book, model, layout, pool.kv.block_tokens, precision, beside, pool.gives_back(model))
    if blocks < layout.data * layout.pipeline:
        what = f"{blocks:,} KV blocks for {layout.data * layout.pipeline:,} ranks"
        raise InputError(Problem(what, path="kv.blocks", allowed="a block for each rank at least"))
    return blocks


def ledger_of(
    pool: Pool, model: Transformer, device: Accelerator, precision: Precision, beside: Beside | None = None
) -> Ledger:
    """Return where the memory of a device of one engine goes; raises InputError when nothing is left for its KV."""
    limits, layout = pool.batcher.parameters, pool.layout
    fed = pool.speculation.tokens + 1 if pool.speculation is not None else 1
    most = limits.max_batch_tokens * layout.data, limits.max_running * layout.data * fed
    share, elsewhere = pool.kv.memory_utilisation, pool.expert_servers is not None
    experts = held(pool.experts, model, layout)
    return ledger(model, layout, device, *most, share, precision, elsewhere, experts, beside)


def _check_devices(
    serving: Serving, parameters: Nodes, devices: Mapping[PathKey, str], document: Document, problems: list[Problem]
) -> None:
    """Add the first lease that the cluster cannot grant; `devices` are the kinds of the groups."""
    size = parameters.devices_per_node
    sites = [Site(at, at // size, parameters.kind_of(at // size)) for at in range(parameters.nodes * size)]
    for kind, there in Counter(site.device for site in sites).items():
        groups = [group for group in serving.groups if devices[group.keys] == kind]
        servers = {group.name: group.pool.expert_servers.devices for group in groups if group.pool.expert_servers}
        needed = sum(group.pool.instances * group.pool.layout.devices for group in groups) + sum(servers.values())
        if needed > there:
            parts = " + ".join(f"{group.name} {group.pool.instances} x {group.pool.layout.devices}" for group in groups)
            parts += "".join(f" + {name} experts {count}" for name, count in servers.items())
            of = f" of {kind}" if there < len(sites) else ""
            what = f"the engines need {needed:,} devices{of} ({parts}), the topology has {there:,}"
            problems.append(document.problem(("serving", *groups[0].keys, "instances"), what))
            return
    inventory = Inventory(sites)
    for group, names in zip(serving.groups, engine_names(serving.groups), strict=True):
        pool, at, kind = group.pool, ("serving", *group.keys), devices[group.keys]
        for name in names:
            lease = partial(inventory.lease, name, pool.layout.devices, kind)
            if attempt(lease, document, problems, (*at, "instances")) is None:
                return
        if pool.expert_servers is not None:
            lease = partial(inventory.lease, f"{names[0]}-experts", pool.expert_servers.devices, kind)
            if attempt(lease, document, problems, (*at, "expert_servers", "devices")) is None:
                return


def _head(file: Path) -> bytes:
    with file.open("rb") as stream:
        return stream.read(4)
