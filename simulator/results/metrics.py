"""The figures of a summary by name: what `expect:` may compare, in which unit, and what vLLM calls the same figure.

Source of the vLLM names: its Prometheus endpoint `/metrics` (docs/design/metrics.md of vllm-project/vllm).
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from simulator.errors import InputError, Problem, nearest

QUANTILES = {"p50": 0.50, "p90": 0.90, "p95": 0.95, "p99": 0.99}
STATISTICS = ("mean", *QUANTILES, "max")
SLOS = ("ttft", "tpot", "e2e")
POOLS = ("colocated", "prefill", "decode")


class Metric(NamedTuple):
    """A figure of summary.json: name, where it stands, unit (s, 1/s or none), meaning, and what vLLM calls it."""

    name: str
    path: tuple[str, ...]
    unit: str
    doc: str
    vllm: str = ""


DURATIONS: Mapping[str, tuple[str, str]] = {
    "ttft": ("first token less arrival", "vllm:time_to_first_token_seconds"),
    "tpot": (
        "(finish less first token) / (generated tokens - 1), of requests with two tokens or more",
        "vllm:request_time_per_output_token_seconds",
    ),
    "itl": (
        "gap between a token and the one before it, of every request, finished or not; quantiles within 0.4 %",
        "vllm:inter_token_latency_seconds",
    ),
    "e2e": ("finish less arrival", "vllm:e2e_request_latency_seconds"),
    "queue": ("start of the prefill less entry into the queue", "vllm:request_queue_time_seconds"),
    "kv_wait": ("wait for KV memory and a seat on the decode side, of requests whose cache was moved", ""),
    "kv_transfer": ("time of the KV cache on the network, of requests whose cache was moved", ""),
}


def _metrics() -> tuple[Metric, ...]:
    found = [
        Metric(
            "goodput",
            ("goodput", "fraction"),
            "",
            "share of all requests that arrived which finished and met every objective under `slo:`",
        ),
        Metric("goodput.requests_per_s", ("goodput", "requests_per_s"), "1/s", "such requests per simulated second"),
    ]
    found += [
        Metric(f"{what}.{how}", (what, how), "s", f"{how} of {doc}", vllm)
        for what, (doc, vllm) in DURATIONS.items()
        for how in STATISTICS
    ]
    rates = (
        ("requests_per_s", "finished requests per simulated second", "vllm:request_success_total"),
        ("prompt_tokens_per_s", "prompt tokens of requests that reached their first token", "vllm:prompt_tokens_total"),
        ("output_tokens_per_s", "output tokens of every request, finished or not", "vllm:generation_tokens_total"),
        ("output_tokens_per_s_per_device", "the same over the leased devices", ""),
    )
    found += [Metric(f"throughput.{name}", ("throughput", name), "1/s", doc, vllm) for name, doc, vllm in rates]
    counts = (
        ("total", "requests that arrived", ""),
        ("finished", "requests that got their whole answer", "vllm:request_success_total"),
        ("rejected", "requests that were turned away", ""),
        ("timed_out", "requests given up after `serving.timeout`", ""),
        ("cancelled", "requests that their clients gave up", ""),
        ("unfinished", "requests still open at the end of the run", ""),
    )
    found += [Metric(name, ("requests", name), "", doc, vllm) for name, doc, vllm in counts]
    found.append(
        Metric("preemptions", ("preemptions",), "", "times a request lost its KV blocks", "vllm:num_preemptions_total")
    )
    shares = (
        ("busy", "share of its instances' time in an iteration", ""),
        ("kv_mean", "mean share of KV blocks in use", "vllm:kv_cache_usage_perc"),
        ("kv_max", "highest share of one instance's KV blocks in use", "vllm:kv_cache_usage_perc"),
    )
    found += [
        Metric(f"utilisation.{pool}.{name}", ("utilisation", pool, name), "", f"pool {pool}: {doc}", vllm)
        for pool in POOLS
        for name, doc, vllm in shares
    ]
    energies = (
        ("kwh", "energy of all engines' devices in kWh, idle power included"),
        ("mean_w", "their mean power in W"),
        ("joules_per_output_token", "that energy in J over the output tokens of every request"),
    )
    found += [Metric(f"energy.{name}", ("energy", name), "", doc) for name, doc in energies]
    found += [
        Metric("kv_transfer_share", ("kv_transfer_share",), "", "network time of KV caches over end-to-end time"),
        Metric("link_utilisation_max", ("links", "utilisation_max"), "", "mean utilisation of the hottest link"),
        Metric("simulated_s", ("simulated_s",), "s", "simulated duration of the run"),
    ]
    return tuple(found + _prices() + _flow_metrics())


def _prices() -> list[Metric]:
    prices = (
        ("dollars_per_h", "rent of all leased devices, in dollars per hour"),
        ("dollars", "that over the simulated duration"),
        ("dollars_per_request", "that over finished requests"),
        ("dollars_per_million_output_tokens", "that over the output tokens of every request, for a million"),
    )
    return [Metric(f"price.{name}", ("price", name), "", doc) for name, doc in prices]


def _flow_metrics() -> list[Metric]:
    found: list[Metric] = []
    found += [
        Metric(f"fct.{how}", ("fct", how), "s", f"{how} of the completion time of flows: finish less start")
        for how in STATISTICS
    ]
    found += [
        Metric(f"slowdown.{how}", ("slowdown", how), "", f"{how} of completion time over that of the flow alone")
        for how in STATISTICS
    ]
    found += [
        Metric(f"collective.{how}", ("collectives", "time", how), "s", f"{how} of the time of collectives")
        for how in STATISTICS
    ]
    found += [
        Metric(
            f"collective_slowdown.{how}", ("collectives", "slowdown", how), "", f"{how} of that over the closed form"
        )
        for how in STATISTICS
    ]
    found += [
        Metric(f"collectives.{name}", ("collectives", name), "", f"collectives that {what}")
        for name, what in (("total", "started"), ("completed", "reached every rank"))
    ]
    found += [
        Metric(f"flows.{name}", ("flows", name), "", f"flows that {what}")
        for name, what in (("total", "started"), ("completed", "arrived"), ("failed", "lost their path"))
    ]
    return found


FLOW_METRICS = ("fct", "slowdown", "flows", "collective", "collective_slowdown", "collectives")
"""First words of the metrics of a run of flows alone."""
NETWORK_METRICS = (*FLOW_METRICS, "link_utilisation_max", "simulated_s")
"""First words of all metrics that such a run has."""


METRICS = _metrics()
UNITS: Mapping[str, str] = {metric.name: metric.unit for metric in METRICS}
_BY_NAME = {metric.name: metric for metric in METRICS}

GROUPS: Mapping[str, str] = {"tenant": "tenants", "priority": "priorities"}
"""Kinds of groups of requests that have metrics of their own, and where their figures stand in a summary."""
_OF_REQUESTS = ("goodput", "ttft", "tpot", "e2e", "queue", "kv_wait", "kv_transfer", "throughput", "requests")
GROUP_METRICS: Mapping[str, Metric] = {
    metric.name: metric
    for metric in METRICS
    if metric.path[0] in (*_OF_REQUESTS, "preemptions") and not metric.name.endswith("_per_device")
}
"""What a group of requests has: `tenant.gold.ttft.p95`, `priority.0.goodput`."""
_OF_ENGINES = ("busy", "kv_mean", "kv_max")


class Member(NamedTuple):
    """A group of requests or of engines that a metric is of."""

    kind: str
    """`tenant`, `priority`, or a pool for a group of its engines."""
    name: str


def metric_of(name: str) -> Metric | None:
    """Return the metric of this name, of the whole run or of a group; None if there is none."""
    return _BY_NAME.get(name) or (found[1] if (found := _grouped(name)) is not None else None)


def member_of(name: str) -> Member | None:
    """Return the group that a metric is of; None if it is of the whole run."""
    found = _grouped(name)
    return None if found is None else found[0]


def unit_of(name: str) -> str:
    """Return the unit of a metric that there is."""
    metric = metric_of(name)
    assert metric is not None
    return metric.unit


def _grouped(name: str) -> tuple[Member, Metric] | None:
    kind, _, rest = name.partition(".")
    if kind in GROUPS:
        ends = [metric for each, metric in GROUP_METRICS.items() if rest.endswith(f".{each}") and rest != f".{each}"]
        if not ends:
            return None
        metric = max(ends, key=lambda each: len(each.name))
        group = rest[: -len(metric.name) - 1]
        path = (GROUPS[kind], group, *metric.path)
        return Member(kind, group), metric._replace(name=name, path=path, doc=f"{kind} {group}: {metric.doc}")
    pool, _, rest = rest.partition(".")
    group, _, figure = rest.rpartition(".")
    if kind != "utilisation" or pool not in POOLS or not group or figure not in _OF_ENGINES:
        return None
    metric = _BY_NAME[f"utilisation.{pool}.{figure}"]
    path = ("utilisation", pool, "groups", group, figure)
    return Member(pool, group), metric._replace(name=name, path=path, doc=f"group {group} of {metric.doc}")


def unknown_metric(name: str) -> Problem:
    """Return the problem of a name that no metric has, of the whole run or of a group."""
    kind, _, rest = name.partition(".")
    group = rest.partition(".")[0]
    if kind in GROUPS and group:
        near = nearest(name, [f"{kind}.{group}.{metric}" for metric in GROUP_METRICS])
        return Problem(f"unknown metric {name!r} of a {kind}", allowed=", ".join(GROUP_METRICS), nearest=near)
    family = [each for each in _BY_NAME if each.partition(".")[0] == kind]
    kinds = [f"{each}.<name>.<metric>" for each in GROUPS]
    near = nearest(name, (*_BY_NAME, *GROUPS))
    return Problem(f"unknown metric {name!r}", allowed=", ".join(family or [*_BY_NAME, *kinds]), nearest=near)


def lookup(summary: Mapping[str, Any], name: str) -> float | None:
    """Return the figure `name` of a summary; None when the run has no such value (nothing finished, no such pool).

    Raises InputError with the nearest name when `name` is neither in METRICS nor one of a group.
    """
    metric = metric_of(name)
    if metric is None:
        raise InputError(unknown_metric(name))
    value: Any = summary
    for key in metric.path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return None if value is None else float(value)
