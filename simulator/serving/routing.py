"""Routers: which instance of a pool takes a request, as small callables over a read-only view of the pool.

Sources: round robin; least loaded = join the shortest queue (Winston 1977), ties in turn.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from simulator.serving.request import Request
from simulator.strict import Strict


class PoolView(Protocol):
    """What a router may read of a pool."""

    @property
    def outstanding(self) -> Sequence[int]:
        """Per instance: requests sent to it that have not left it."""


class Router(Protocol):
    """Chooses the index of an instance for one request."""

    def __call__(self, request: Request, pool: PoolView) -> int:
        """Return the index of the instance that takes `request`."""


class NoParameters(Strict):
    """A policy without parameters."""


class RoundRobin:
    """Each instance in turn, whatever its load."""

    def __init__(self) -> None:
        self._last = -1

    def __call__(self, request: Request, pool: PoolView) -> int:
        """Return the instance after the one that took the previous request."""
        self._last = (self._last + 1) % len(pool.outstanding)
        return self._last


class LeastLoaded:
    """The instance with the fewest outstanding requests; among equals the next in turn, so that load spreads."""

    def __init__(self) -> None:
        self._last = -1

    def __call__(self, request: Request, pool: PoolView) -> int:
        """Return the first least loaded instance after the one chosen last."""
        loads = pool.outstanding
        least = min(loads)
        try:
            self._last = loads.index(least, self._last + 1)
        except ValueError:
            self._last = loads.index(least)
        return self._last


class RouterKind(NamedTuple):
    """A registered router: its parameters as they stand in a scenario, and how to make one from them."""

    parameters: type[Strict]
    make: type


ROUTERS: dict[str, RouterKind] = {
    "round_robin": RouterKind(NoParameters, RoundRobin),
    "least_loaded": RouterKind(NoParameters, LeastLoaded),
}
