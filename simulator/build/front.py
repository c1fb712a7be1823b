"""What stands before the engines of a scenario, as parts of the front end: gateway, limits, time-outs, cancellation."""

from collections.abc import Callable, Mapping
from typing import Any

from simulator.errors import InputError, Problem
from simulator.randomness import stream
from simulator.scenario.front import CancelSection
from simulator.scenario.schema import Scenario, Serving
from simulator.serving.admission import Bound, Limits
from simulator.serving.frontend import Cancellation, Patience
from simulator.serving.gateway import Gateway
from simulator.serving.pool_view import Place, Router
from simulator.serving.request import Request
from simulator.serving.routing import ROUTERS, uniforms


def front_parts(serving: Serving, seed: int, recorded: bool = False) -> dict[str, Any]:
    """Return the keyword arguments of a Frontend that the scenario asks for; `recorded`: requests know of cancels."""
    gateway, admission, timeout = serving.gateway, serving.admission, serving.timeout
    whole, tenant = (Bound(part.requests, part.tokens) for part in (admission.max_outstanding, admission.tenant))
    parts: dict[str, Any] = {"patience": Patience(timeout.queue, timeout.total)}
    if gateway is not None:
        parts["gateway"] = Gateway(gateway.service, gateway.per_token, gateway.workers, gateway.queue)
    if whole != Bound() or tenant != Bound():
        parts["limits"] = Limits(whole, tenant, admission.when_full == "queue")
    if serving.cancel is not None:
        parts["cancellation"] = impatience(serving.cancel, seed)
    if recorded:
        parts["cancellation"] = as_recorded(parts.get("cancellation", lambda request: Cancellation()))
    return parts


def as_recorded(drawn: Callable[[Request], Cancellation]) -> Callable[[Request], Cancellation]:
    """Return when the client of each request gives it up: as the trace says or as is drawn, whichever comes first."""

    def when(request: Request) -> Cancellation:
        other, recorded_ns = drawn(request), request.traits.cancel_ns
        if recorded_ns < 0 or 0 <= other.after_ns <= recorded_ns:
            return other
        return other._replace(after_ns=recorded_ns)

    return when


def front_notes(serving: Serving, reads_loads: bool, clients: int | None = None) -> list[str]:
    """Return the inputs before the engines that have no effect, or another than one may think.

    `reads_loads`: some router looks at loads; `clients` are those of a closed loop.
    """
    notes, timeout, admission = [], serving.timeout, serving.admission
    most = admission.max_outstanding.requests
    if clients is not None and most is not None and clients > most and admission.when_full == "reject":
        notes.append(
            f"serving.admission: {clients} clients of a closed loop meet a limit of {most} requests: one that is "
            "rejected sends its next request at once, so most are rejected in no time; `when_full: queue` has them wait"
        )
    if serving.router_view.report_interval and not reads_loads:
        notes.append("serving.router_view has no effect: no router looks at the load of an engine")
    if timeout.queue is not None and timeout.total is not None and timeout.queue >= timeout.total:
        notes.append("serving.timeout.queue has no effect: it is not shorter than the total")
    return notes


def rejected_notes(rejected: Mapping[str, int], clients: int | None) -> list[str]:
    """Return what to know of a run of a closed loop of `clients` in which requests were `rejected`, by reason."""
    busy = sum(rejected.get(reason, 0) for reason in ("gateway's queue full", "tenant's limit", "deployment's limit"))
    if clients is None or not busy:
        return []
    what = f"{busy:,} requests of a closed loop were rejected because there were too many"
    return [f"workload.arrivals: {what}; whose client sends its next one at once, so most in no time"]


def impatience(section: CancelSection, seed: int) -> Callable[[Request], Cancellation]:
    """Return when the client of each request gives it up; requests are asked for in order of arrival."""
    draws, times = uniforms(seed, "cancel"), stream(seed, "cancel/after")

    def when(request: Request) -> Cancellation:
        if next(draws) >= section.fraction:
            return Cancellation()
        if section.after_tokens is not None:
            return Cancellation(after_tokens=section.after_tokens)
        assert section.after is not None  # the schema asks for one of the two
        return Cancellation(after_ns=round(times.exponential(section.after)))

    return when


def router_of(role: str, scenario: Scenario) -> tuple[Router, frozenset[str]]:
    """Return a pool's router and what it reads; raises InputError when it lacks what it decides by."""
    assert scenario.serving is not None
    (choice, path), slo = scenario.serving.router_of(role), scenario.slo
    kind, place = ROUTERS[choice.name], Place(scenario.seed, role, slo.ttft, slo.tpot)
    missing = kind.needs(choice.parameters, place)
    if missing is not None:
        raise InputError(scenario.located(Problem(missing, path=path)))
    return kind.make(choice.parameters, place), kind.reads
