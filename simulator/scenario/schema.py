"""The scenario file, version 1, as frozen models; what may stand in it, in which unit, with which default.

Policies and laws come from the registries of the packages that own them, so a registered plug-in is a legal name here.
"""

import re
from itertools import chain
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PrivateAttr,
    WithJsonSchema,
    model_validator,
)

from simulator.device.cost import COSTS
from simulator.documents import Document, path_key
from simulator.errors import Problem, nearest
from simulator.model.precision import Precision
from simulator.results.metrics import FLOW_METRICS, GROUPS, NETWORK_METRICS, Member, member_of
from simulator.scenario.expectation import (
    Expectation,
    expectations_schema,
    parse_expectations,
    write_expectations,
)
from simulator.scenario.front import AdmissionSection, CancelSection, GatewaySection, RouterView, TimeoutSection
from simulator.scenario.network import FaultSection, Network
from simulator.scenario.pool import Group, Pools, Router, groups_of
from simulator.scenario.role_switch import RoleSwitch
from simulator.scenario.traffic import Traffic
from simulator.scenario.workload import SyntheticWorkload, Workload
from simulator.serving.batching import BATCHERS
from simulator.serving.queueing import ORDERS
from simulator.serving.transfer_rules import TransferRules
from simulator.strict import Count, Duration, Fault, LocatedError, OneOf, PositiveDuration, Strict, one_of

if TYPE_CHECKING:
    Cost = OneOf
else:
    Cost = one_of("Cost", {name: parameters for name, (parameters, _) in COSTS.items()})


class Topology(Strict):
    """The cluster: a preset with parameters of its builder that replace the preset's, key by key, or a graph file."""

    model_config = ConfigDict(extra="allow")

    preset: str | None = None
    """Name of a shipped topology, or the path of one's own."""
    graph: str | None = None
    """Path of a graph (networkx node-link JSON, directed; edges with bandwidth_Bps and latency_s) in its place."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.preset is None) == (self.graph is None):
            raise ValueError("exactly one of preset and graph is needed")
        if self.graph is not None and self.model_extra:
            what = "a graph has no parameters"
            raise LocatedError(*(Fault((name,), what) for name in self.model_extra))
        return self

    @property
    def parameters(self) -> dict[str, Any]:
        """The builder's parameters; in a loaded scenario all of them."""
        return dict(self.model_extra or {})


class Serving(Strict):
    """Engines that serve one model: one pool for both phases, or one for prefill and one for decode."""

    model: str
    """Name of a shipped model card, or the path of one's own."""
    precision: Precision = Precision()
    """Formats of weights, KV cache and activations; a plain name, such as `fp8`, is that of the weights; default: those
    of the model's published checkpoint, also of the parts that a mapping without `weights` does not name."""
    max_context: Count | None = None
    """Longest request served, prompt and output tokens together; default: the model's. Longer ones are rejected."""
    request_overhead: Duration = 0
    """Time of each request before it can be routed: connection, tokenising, hand-over to the engine's process."""
    gateway: GatewaySection | None = None
    """Workers before the router; default: requests are routed as they arrive."""
    admission: AdmissionSection = AdmissionSection()
    """How much may be outstanding; default: no limit."""
    timeout: TimeoutSection = TimeoutSection()
    """After which time requests are given up; default: never."""
    cancel: CancelSection | None = None
    """Clients that lose patience; default: none."""
    router: Router = Router.model_validate("least_loaded")
    """Who takes a request."""
    router_view: RouterView = RouterView()
    """What routers know of the engines."""
    cost: Cost = Cost.model_validate("roofline")
    """How long an iteration lasts."""
    colocated: Pools | None = None
    """Engines that prefill and decode: alike, or a list of groups."""
    prefill: Pools | None = None
    """Engines that prefill; need `decode`."""
    decode: Pools | None = None
    """Engines that decode; need `prefill`."""
    kv_transfer: TransferRules = TransferRules()
    """How KV caches move from prefill to decode engines."""
    stream_interval: Count = 1
    """Output tokens that the engine that decodes a request sends together, the first ones too (SGLang up to 0.5.8).
    vLLM and TensorRT-LLM send the first at once whatever their interval: 1."""
    first_token: Literal["prefill", "decode"] = "prefill"
    """Which of two pools sends the first token: the prefill engine as it is made, or the decode engine once the KV
    cache is there (SGLang and TensorRT-LLM, with or without Dynamo)."""
    role_switch: RoleSwitch | None = None
    """When an engine goes from one of the two pools to the other; default: never."""

    @model_validator(mode="after")
    def _can_speculate(self) -> Self:
        for group in self.groups:
            pool = group.pool
            if pool.speculation is None:
                continue
            at = (*group.keys, "speculation")
            if group.role == "prefill":
                raise LocatedError(Fault(at, "engines that only prefill draft nothing", "the decode pool"))
            if self.role_switch is not None:
                raise LocatedError(Fault(at, "engines that change roles draft nothing", "one of the two"))
            if self.cost.name == "linear" and pool.speculation.draft.name != "ngram":
                what = "linear constants are those of whole iterations, and say nothing of a draft model's"
                raise LocatedError(Fault((*at, "draft"), what, "ngram"))
        return self

    @model_validator(mode="after")
    def _batches_begin_together(self) -> Self:
        for group in self.groups:
            name = group.pool.batcher.name
            if group.role == "decode" and BATCHERS[name].to_completion:
                what = f"requests join a decode engine one by one as their caches come, so there are no {name} batches"
                raise LocatedError(Fault((*group.keys, "batcher"), what, "continuous, chunked_prefill or orca"))
        return self

    @model_validator(mode="after")
    def _one_arrangement(self) -> Self:
        split = {name for name in ("prefill", "decode") if getattr(self, name) is not None}
        if self.colocated is not None and split:
            what = "colocated engines and prefill/decode pools exclude each other"
            raise LocatedError(*(Fault((name,), what) for name in ("colocated", *sorted(split))))
        if len(split) == 1:
            there = split.pop()
            missing = "decode" if there == "prefill" else "prefill"
            raise LocatedError(Fault((there,), f"a {there} pool needs a {missing} pool; for one pool use `colocated`"))
        if self.colocated is None and not split:
            raise ValueError("no engines: give `colocated`, or both `prefill` and `decode`")
        if self.colocated is not None:
            between = {
                "kv_transfer": self.kv_transfer != TransferRules(),
                "role_switch": self.role_switch is not None,
                "first_token": self.first_token == "decode",
            }
            what = "goes with `prefill` and `decode` pools, and there is one pool for both"
            if any(between.values()):
                raise LocatedError(*(Fault((name,), what) for name, given in between.items() if given))
        return self

    @model_validator(mode="after")
    def _groups_go_together(self) -> Self:
        for role in self.roles:
            groups = [group for group in self.groups if group.role == role]
            routers = [group for group in groups if group.pool.router is not None]
            other = next((group for group in routers if group.pool.router != routers[0].pool.router), None)
            if other is not None:
                what = "one router chooses among all engines of a role, and another group names another"
                raise LocatedError(Fault((*other.keys, "router"), what, "the same, or in one group alone"))
            if self.role_switch is not None and len(groups) > 1:
                what = f"engines change roles between pools of one group each, and {role} has {len(groups)}"
                raise LocatedError(Fault(("role_switch",), what))
            names = [group.pool.name or role for group in groups]  # figures of those without one stand under the role's
            for at, group in enumerate(groups):
                before = [other for other, name in zip(groups, names[:at], strict=False) if name == names[at]]
                if before and any(each.pool.name is not None for each in (group, *before)):
                    raise LocatedError(Fault((*group.keys, "name"), f"another group of {role} is called so"))
        return self

    @model_validator(mode="after")
    def _places_and_prefills_in_one_order(self) -> Self:
        for group in self.groups if self.kv_transfer.reserves == "on_arrival" else ():
            if group.role == "prefill" and group.pool.queue.name != "fcfs":
                what = "places are given in the order of arrival with `on_arrival`; prefills in another can lock up"
                allowed = "fcfs, or `kv_transfer.reserve: before_prefill`"
                raise LocatedError(Fault((*group.keys, "queue"), what, allowed))
        return self

    @model_validator(mode="after")
    def _engines_that_switch_are_alike(self) -> Self:
        if self.role_switch is not None:
            kinds = [(group.pool.layout, group.pool.experts) for group in self.groups]
            if any(experts is not None for _, experts in kinds) and kinds[0] != kinds[1]:
                what = "with `experts` an engine changes roles only between pools of the same layout and experts"
                raise LocatedError(Fault(("role_switch",), what))
        return self

    @model_validator(mode="after")
    def _intervals_are_of_who_sends(self) -> Self:
        if self.stream_interval > 1 and self.colocated is None and self.first_token == "prefill":
            what = "the prefill engine sends the first token alone, so the interval of decode engines changes nothing"
            raise LocatedError(Fault(("stream_interval",), what, "1, or `first_token: decode`"))
        return self

    @property
    def first_chunk(self) -> int:
        """Output tokens that are together when an engine that decodes sends the first; 0 if they go out as made."""
        return self.stream_interval if self.first_token == "decode" or self.stream_interval > 1 else 0

    @property
    def groups(self) -> tuple[Group, ...]:
        """The sections of engines, in the order in which they lease devices."""
        sections = {"colocated": self.colocated, "prefill": self.prefill, "decode": self.decode}
        return tuple(chain.from_iterable(groups_of(role, part) for role, part in sections.items() if part is not None))

    @property
    def crossing(self) -> str | None:
        """What of these engines crosses the network as flows, None when nothing does."""
        if len(self.roles) > 1:
            return "KV caches that move between pools"
        if self.pooled:
            return "a cache tier on the fabric"
        return "experts that move" if self.moves_experts else None

    @property
    def pooled(self) -> bool:
        """Whether a tier below a prefix cache lies on the fabric."""
        return any(group.pool.kv.fabric_tier for group in self.groups)

    @property
    def moves_experts(self) -> bool:
        """Whether weights of experts cross the network."""
        rebalanced = [group.pool.experts and group.pool.experts.rebalance for group in self.groups]
        return any(each and each.moves == "fabric" for each in rebalanced)

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles of engines, a pool each."""
        return tuple(dict.fromkeys(group.role for group in self.groups))

    def router_of(self, role: str) -> tuple[OneOf, str]:
        """Return who takes a request that comes to a role, and where that is said."""
        for group in self.groups:
            if group.role == role and group.pool.router is not None:
                return group.pool.router, f"{group.at}.router"
        return self.router, "serving.router"


class SLO(Strict):
    """Objectives of each request; goodput counts the requests that meet all that are given."""

    ttft: PositiveDuration | None = None
    """Time to first token at most."""
    tpot: PositiveDuration | None = None
    """Mean time per output token after the first at most."""
    e2e: PositiveDuration | None = None
    """Time from arrival to the last token at most."""


def _at_least_1_ms(interval_ns: int) -> int:
    if interval_ns < 1_000_000:
        raise ValueError("a window is 1 ms or longer: each is a row per engine")
    return interval_ns


class Results(Strict):
    """How results are recorded."""

    interval: Annotated[Duration, AfterValidator(_at_least_1_ms)] = 10_000_000_000
    """Window of the rows of `instances.parquet`."""


Expectations = Annotated[
    tuple[Expectation, ...],
    BeforeValidator(parse_expectations),
    PlainSerializer(write_expectations, return_type=dict),
    WithJsonSchema(expectations_schema()),
]


def _folder_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        raise ValueError(
            f"{name[:40]!r} is no name: at most 100 letters, digits, '.', '_' and '-', a letter or digit first"
        )
    return name


class Origin:
    """The document that a scenario was read from, if any; it is no part of what the scenario means."""

    def __init__(self, document: Document | None = None) -> None:
        self.document = document

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Origin)

    __hash__ = None  # type: ignore[assignment]


class Scenario(Strict):
    """A scenario of the simulator: a cluster, a workload, the engines that serve it, and what is expected of them."""

    model_config = ConfigDict(title="Scenario")

    version: Literal[1] = Field(alias="schema")
    """Version of this schema."""
    base: None = None
    """Path of another scenario (or name of a shipped one) that this file extends; what stands here wins."""
    name: Annotated[str, AfterValidator(_folder_name)] = "scenario"
    """Name of the scenario and of its folder of results; default: the file's."""
    description: str | None = None
    """What the scenario is about."""
    seed: Annotated[int, Field(ge=0, le=2**63 - 1)] = 0
    """Seed of every random stream."""
    until: PositiveDuration | None = None
    """Simulated time at which the run stops; default: when the last request has ended."""
    topology: Topology
    """The cluster."""
    workload: Workload | None = None
    """The requests: replayed from a trace, or synthetic; goes with `serving`."""
    serving: Serving | None = None
    """The engines; go with `workload`."""
    traffic: Traffic | None = None
    """Flows and collectives over the network alone, in the place of `workload` and `serving`."""
    network: Network = Network()
    """How the fabric carries bytes."""
    faults: tuple[FaultSection, ...] = ()
    """What breaks in the network, and when."""
    slo: SLO = SLO()
    """Objectives of each request."""
    expect: Expectations = ()
    """Metrics of the summary and what they are compared with; when one fails the exit code is 3."""
    results: Results = Results()
    """How results are recorded."""

    _origin: Origin = PrivateAttr(default_factory=Origin)

    def read_from(self, document: Document) -> Self:
        """Remember the document of this scenario, for `located`; return the scenario."""
        self._origin.document = document
        return self

    def located(self, problem: Problem) -> Problem:
        """Return a problem that knows only its path with the file, line and column where that stands."""
        document = self._origin.document
        if problem.file is not None or problem.path is None or document is None:
            return problem
        return document.problem(path_key(problem.path), problem.what, problem.allowed, problem.nearest)

    @model_validator(mode="after")
    def _one_subject(self) -> Self:
        parts = {"workload": self.workload, "serving": self.serving}
        if self.traffic is None:
            missing = [name for name, part in parts.items() if part is None]
            if missing:
                raise LocatedError(*(Fault((name,), f"missing key {name!r}") for name in missing))
            if self.topology.graph is not None:
                what = "engines need a topology that knows its devices: a preset; a graph serves `traffic` alone"
                raise LocatedError(Fault(("topology", "graph"), what))
            return self
        there = [name for name, part in (parts | {"slo": self.slo if self.slo != SLO() else None}).items() if part]
        if there:
            raise LocatedError(*(Fault((name,), "does not go with `traffic`, the network alone") for name in there))
        return self

    @model_validator(mode="after")
    def _background_is_shared_with_flows(self) -> Self:
        runs = self.traffic.collectives if self.traffic is not None else ()
        where = [index for index, run in enumerate(runs) if run.sharing == "background"]
        if where and self.network.fidelity != "flow":
            what = f"a background goes with `fidelity: flow`, not {self.network.fidelity}"
            raise LocatedError(*(Fault(("traffic", "collectives", index, "sharing"), what) for index in where))
        return self

    @model_validator(mode="after")
    def _what_crosses_survives_faults(self) -> Self:
        if self.serving is None or self.network.fidelity == "flow":
            return self
        crossing = self.serving.crossing
        dead = [index for index, fault in enumerate(self.faults) if not fault.left]
        if crossing and dead:
            what = f"with {crossing} dead links go with `network.fidelity: flow`; below it nothing is routed anew"
            raise LocatedError(*(Fault(("faults", index), what, "`left` above 0") for index in dead))
        return self

    @model_validator(mode="after")
    def _queues_have_what_they_go_by(self) -> Self:
        faults = []
        for group in self.serving.groups if self.serving is not None else ():
            pool, at = group.pool, ("serving", *group.keys)
            order = ORDERS[pool.queue.name]
            if order.needs_ttft and self.slo.ttft is None:
                faults.append(Fault((*at, "queue"), f"{pool.queue.name} needs `slo.ttft`"))
            # A trace may have predicted lengths: that shows when it is opened.
            unknown_length = isinstance(self.workload, SyntheticWorkload) and self.workload.prediction is None
            if "predicted_tokens" in order.reads and unknown_length:
                faults.append(Fault((*at, "queue"), f"{pool.queue.name} needs `workload.prediction`"))
            if pool.preemption.name == "swap" and pool.queue.name == "priority" and pool.queue.parameters.preempt:
                what = "who is swapped out comes back before new prompts, so priorities cannot preempt"
                faults.append(Fault((*at, "preemption"), what, "recompute, or priority with `preempt: false`"))
        if faults:
            raise LocatedError(*faults)
        return self

    @model_validator(mode="after")
    def _random_faults_end(self) -> Self:
        at_random = [index for index, fault in enumerate(self.faults) if fault.mtbf is not None]
        if at_random and self.until is None:
            what = "faults at random need `until`: they never end by themselves"
            raise LocatedError(*(Fault(("faults", index, "mtbf"), what) for index in at_random))
        return self

    @property
    def expected_of(self) -> list[Member]:
        """The groups that something is expected of."""
        return [member for each in self.expect if (member := member_of(each.metric)) is not None]

    def _faults_of_group(self, metric: str, member: Member, objectives: bool) -> list[Fault]:
        """Return what is wrong with a metric of a group, as far as the scenario alone can tell."""
        at, kind, name = ("expect", metric), *member
        if kind in GROUPS:
            faults = []
            if not objectives and metric.startswith(f"{kind}.{name}.goodput"):
                faults.append(Fault(at, "goodput needs objectives; give at least one of slo.ttft, slo.tpot, slo.e2e"))
            shares = getattr(self.workload, GROUPS[kind], None)
            known = [str(int(share)) for share in shares or ()] if kind == "priority" else [*(shares or ())]
            if shares is None and isinstance(self.workload, SyntheticWorkload):
                what = f"the workload draws no {GROUPS[kind]}"
                faults.append(Fault(at, what, f"`workload.{GROUPS[kind]}`, or a trace that has them"))
            elif shares is not None and name not in known:
                faults.append(Fault(at, f"there is no {kind} {name}", ", ".join(known), nearest(name, known)))
            return faults
        groups = [group for group in (self.serving.groups if self.serving else ()) if group.role == kind]
        known = list(dict.fromkeys(group.pool.name or group.role for group in groups))
        if len(known) == 1:
            what = f"the {kind} pool is one group"
            return [Fault(at, what, metric.replace(f".{name}.", ".", 1))]
        return (
            [] if name in known else [Fault(at, f"{kind} has no group {name}", ", ".join(known), nearest(name, known))]
        )

    @model_validator(mode="after")
    def _expected_metrics_exist(self) -> Self:
        objectives = (self.slo.ttft, self.slo.tpot, self.slo.e2e)
        pools = self.serving.roles if self.serving else ()
        faults = []
        for metric, _, _ in self.expect:
            what, _, rest = metric.partition(".")
            if what == "goodput" and objectives == (None, None, None):
                problem = "goodput needs objectives; give at least one of slo.ttft, slo.tpot, slo.e2e"
                faults.append(Fault(("expect", metric), problem))
            if what not in NETWORK_METRICS if self.traffic else what in FLOW_METRICS:
                problem = "no metric of flows" if self.traffic else "a metric of flows, and there is no `traffic`"
                faults.append(Fault(("expect", metric), problem))
                continue
            if what == "utilisation" and (pool := rest.partition(".")[0]) not in pools:
                problem = f"there is no {pool} pool"
                faults.append(Fault(("expect", metric), problem, ", ".join(pools)))
                continue
            if (member := member_of(metric)) is not None:
                faults += self._faults_of_group(metric, member, objectives != (None, None, None))
        if faults:
            raise LocatedError(*faults)
        return self
