"""A step whose layers alternate between attention devices and expert devices, several micro-batches on their way.

Model: a cycle of stations (attention, link, experts, link back), each of which serves one micro-batch at a time in the
order of arrival; a micro-batch goes round once per layer. Sources: ping-pong pipeline of MegaScale-Infer
(arXiv:2504.02263), whose bound is met here exactly; servers that merge what is ready as EaaS (arXiv:2509.17863).
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple


class Served(NamedTuple):
    """Expert servers in steady state: micro-batches served at once, and ns that each is there, its wait included."""

    merged: float
    ns: float


def pipelined_ns(layers: int, batches: int, stations: Sequence[float]) -> float:
    """Return the time from the first layer of the first micro-batch to the last of the last.

    Each goes round `layers` times through stations that take so many ns. The slowest station sets the pace when there
    are enough micro-batches to keep it busy, else the way round does. Exact for times that do not vary.
    """
    round_ns, slowest_ns = sum(stations), max(stations)
    return round_ns + (batches - 1) * slowest_ns + (layers - 1) * max(round_ns, batches * slowest_ns)


def merged_when_ready(
    service_ns: Callable[[float], float], on_the_way: int, elsewhere_ns: float, least_ns: float
) -> Served:
    """Return what servers do that poll, and serve at once all micro-batches that are there.

    Each of `on_the_way` spends `elsewhere_ns` between two visits, and comes back after `least_ns` at the soonest.
    Clients are not in step with each other, so one comes at a random moment: it waits for half of a service when the
    servers are busy with others, and those that come during a service make the next. `service_ns(n)` is the time of n
    at once.
    """

    def stay_ns(merged: float, busy: float) -> float:
        return service_ns(merged) * (1 + busy / 2)

    def round_ns(merged: float, busy: float) -> float:
        return max(least_ns, elsewhere_ns + stay_ns(merged, busy))

    alone, others = service_ns(1.0), (on_the_way - 1) / on_the_way
    low, high = 0.0, 1.0
    for _ in range(50):  # the part of the time in which one alone is served; what it waits for grows with it
        busy = (low + high) / 2
        low, high = (busy, high) if on_the_way * alone / round_ns(1.0, busy * others) > busy else (low, busy)
    if high < 1.0 or on_the_way == 1:
        return Served(1.0, stay_ns(1.0, high * others))
    few, many = 1.0, float(on_the_way)
    for _ in range(50):
        merged = (few + many) / 2
        comes = on_the_way * service_ns(merged) / round_ns(merged, 1.0)
        few, many = (merged, many) if comes > merged else (few, merged)
    return Served(many, stay_ns(many, 1.0))
