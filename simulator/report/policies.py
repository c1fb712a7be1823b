"""The page of registries: every policy and law that a scenario names, with the first line of what it says of itself."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from simulator.device.cost import COSTS
from simulator.network.routing import ROUTINGS
from simulator.network.transport import TRANSPORTS
from simulator.scenario.workload import ARRIVALS, LENGTHS, TIMES
from simulator.serving.batching import BATCHERS
from simulator.serving.eviction import EVICTIONS
from simulator.serving.queueing import ORDERS
from simulator.serving.role_policies import SWITCHES
from simulator.serving.routing import ROUTERS, Place
from simulator.serving.swap import PREEMPTIONS
from simulator.topology.presets import BUILDERS

_OPENING = """# Policies

<!-- Written by `python -m simulator.report.reference docs/reference`; do not edit. -->

A policy or law is an entry of a registry, `NAME = {...}` in the module that owns the idea, and its name is a value in a
scenario. A module given by `--plugin` adds entries of its own ([write a policy](../guides/policy-plugin.md)).
Parameters are in the [keys of a scenario](scenario.md), each policy below the key that names it.
"""


class Registry(NamedTuple):
    """A registry as a reader meets it."""

    title: str
    place: str
    """Module and name, as a plug-in imports it."""
    key: str
    """Where the name stands in a scenario."""
    entries: Mapping[str, Any]


REGISTRIES = (
    Registry("Routers", "simulator.serving.routing.ROUTERS", "serving.router", ROUTERS),
    Registry("Batchers", "simulator.serving.batching.BATCHERS", "serving.colocated.batcher", BATCHERS),
    Registry("Orders of the queue", "simulator.serving.queueing.ORDERS", "serving.colocated.queue", ORDERS),
    Registry("Preemption", "simulator.serving.swap.PREEMPTIONS", "serving.colocated.preemption", PREEMPTIONS),
    Registry(
        "Eviction from prefix caches",
        "simulator.serving.eviction.EVICTIONS",
        "serving.colocated.kv.prefix_cache.eviction",
        EVICTIONS,
    ),
    Registry(
        "Engines that change roles", "simulator.serving.role_policies.SWITCHES", "serving.role_switch.policy", SWITCHES
    ),
    Registry("Costs of a step", "simulator.device.cost.COSTS", "serving.cost", COSTS),
    Registry("Routings of the network", "simulator.network.routing.ROUTINGS", "network.routing", ROUTINGS),
    Registry("Transports", "simulator.network.transport.TRANSPORTS", "network.transport", TRANSPORTS),
    Registry("Arrivals", "simulator.scenario.workload.ARRIVALS", "workload.arrivals", ARRIVALS),
    Registry("Lengths", "simulator.scenario.workload.LENGTHS", "workload.prompt_tokens", LENGTHS),
    Registry("Times between turns", "simulator.scenario.workload.TIMES", "workload.sessions.think_time", TIMES),
    Registry("Builders of topologies", "simulator.topology.presets.BUILDERS", "topology.preset", BUILDERS),
)

_LOADS = {
    "least_loaded": "outstanding requests",
    "least_requests": "outstanding requests",
    "least_tokens": "outstanding prompt and expected output tokens",
    "least_kv": "the share of KV blocks in use, then outstanding requests",
}
"""What tells routers apart that are one class over another figure, and so have one docstring."""


def policies_page() -> str:
    """Return the page."""
    return _OPENING + "".join(map(_section, REGISTRIES))


def _section(registry: Registry) -> str:
    rows = "".join(f"| `{name}` | {description(name, entry)} |\n" for name, entry in registry.entries.items())
    where = f"`{registry.key}`" if registry.title != "Builders of topologies" else "`builder:` of a preset"
    return f"\n## {registry.title}\n\n{where}; `{registry.place}`\n\n| name | what it does |\n|---|---|\n{rows}"


def description(name: str, entry: Any) -> str:
    """Return the first line of the docstring of a registered policy: of its parameters, its function or its class."""
    told = next((line for each in _tellers(entry) if (line := _first_line(each))), "")
    return f"{told} Here: {_LOADS[name]}." if name in _LOADS else told


def _tellers(entry: Any) -> Iterator[Any]:
    """Yield what may have a docstring worth reading, the one that speaks of the policy itself first."""
    if isinstance(entry, type):
        yield entry
        return
    builds = getattr(entry, "build", None)
    parameters = entry[0] if isinstance(entry, tuple) else entry.parameters
    if builds is None:
        yield parameters
    yield from (getattr(entry, name, None) for name in ("policy", "decide", "make"))
    yield parameters if builds is not None else None
    yield from _made(entry, parameters)


def _made(entry: Any, parameters: Callable[[], Any]) -> Iterator[type]:
    """Yield the class of what a policy without parameters makes."""
    if getattr(entry, "make", None) is not None and _without_parameters(parameters):
        yield type(entry.make(parameters(), Place()))


def _without_parameters(teller: Any) -> bool:
    return (getattr(teller, "__doc__", None) or "").endswith("without parameters.")


def _first_line(teller: Any) -> str:
    if teller is None or _without_parameters(teller) or getattr(teller, "__name__", "") == "<lambda>":
        return ""
    first, *_ = (teller.__doc__ or "").strip().splitlines() or [""]
    return first
