"""Routers by load: which instance of a pool takes a request, as small callables over a read-only view of the pool.

Sources: least loaded = join the shortest queue (Winston 1977); the power of two choices (Mitzenmacher 2001). The
registry holds these and those of `affinity_routing` and `objective_routing`.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, NamedTuple

from pydantic import Field

from simulator.serving.affinity_routing import PrefixAware, SessionAffinity, prefix_aware, session_affinity
from simulator.serving.objective_routing import CostAware, SLOAware, cost_aware, slo_aware
from simulator.serving.pool_view import (
    BACKLOG,
    KV,
    PREFIX,
    PRICE,
    TOKENS,
    Place,
    PoolView,
    Router,
    in_turn,
)
from simulator.serving.request import Request
from simulator.strict import Strict

__all__ = ["ROUTERS", "NoParameters", "Place", "PoolView", "Router", "RouterKind"]

BLOCK_OF_DRAWS = 4096


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


class Least:
    """The instance with the least of a load; among equals the next in turn, so that it spreads."""

    def __init__(self, loads: Callable[[PoolView], Sequence[Any]]) -> None:
        self._loads = loads
        self._last = -1

    def __call__(self, request: Request, pool: PoolView) -> int:
        """Return the first of the least loaded after the one chosen last."""
        self._last = in_turn(self._loads(pool), self._last)
        return self._last


def requests_of(pool: PoolView) -> Sequence[int]:
    """Return the outstanding requests per instance."""
    return pool.outstanding


def tokens_of(pool: PoolView) -> Sequence[int]:
    """Return the outstanding prompt and expected output tokens per instance."""
    return pool.tokens


def kv_of(pool: PoolView) -> Sequence[tuple[float, int]]:
    """Return the share of KV blocks in use per instance, and its outstanding requests: they have yet to take theirs."""
    share = pool.kv_share
    return [(share(index), requests) for index, requests in enumerate(pool.outstanding)]


def uniforms(seed: int, name: str) -> Iterator[float]:
    """Yield numbers from [0, 1) of a random stream, drawn many at a time."""
    from simulator.randomness import stream  # only here: it takes numpy, and a scenario is read without

    generator = stream(seed, name)
    while True:
        yield from generator.random(BLOCK_OF_DRAWS).tolist()


class Random:
    """Any instance, each as likely."""

    def __init__(self, seed: int, name: str) -> None:
        self._draws = uniforms(seed, name)

    def __call__(self, request: Request, pool: PoolView) -> int:
        """Return an instance drawn at random."""
        return int(next(self._draws) * len(pool.outstanding))


class PowerOfTwo(Strict):
    """The least loaded, by requests, of some instances drawn at random; of equals the one drawn first."""

    choices: Annotated[int, Field(ge=2, le=1024)] = 2
    """Instances drawn, each another (d)."""


class Choices:
    """Draws instances without replacement and takes the least loaded of them."""

    def __init__(self, choices: int, seed: int, name: str) -> None:
        self._choices = choices
        self._draws = uniforms(seed, name)

    def __call__(self, request: Request, pool: PoolView) -> int:
        """Return the instance with the fewest outstanding requests among those drawn."""
        loads, draws = pool.outstanding, self._draws
        count = len(loads)
        if self._choices == 2 and count >= 2:
            first, second = int(next(draws) * count), int(next(draws) * (count - 1))
            second += second >= first
            return second if loads[second] < loads[first] else first
        drawn: list[int] = []
        moved: dict[int, int] = {}  # a shuffle of range(count) from the front, of which only the moved are kept
        for place in range(min(self._choices, count)):
            other = place + int(next(draws) * (count - place))
            drawn.append(moved.get(other, other))
            moved[other] = moved.get(place, place)
        return min(drawn, key=loads.__getitem__)


class RouterKind(NamedTuple):
    """A registered router: its parameters as they stand in a scenario, how to make one, and what it reads of a pool."""

    parameters: type[Strict]
    make: Callable[[Any, Place], Router]
    """(parameters, where it stands) -> the router."""
    reads: frozenset[str] = frozenset()
    """Beyond engines and outstanding requests, of TOKENS, BACKLOG, KV, PREFIX and PRICE."""
    needs: Callable[[Any, Place], str | None] = lambda parameters, place: None
    """(parameters, where it stands) -> what it lacks there, if anything."""
    of_requests: Sequence[str] = ()
    """What it goes by of what a trace may say of a request beyond its lengths: column names."""


def _least(loads: Callable[[PoolView], Sequence[Any]]) -> Callable[[Any, Place], Router]:
    return lambda parameters, place: Least(loads)


ROUTERS: dict[str, RouterKind] = {
    "round_robin": RouterKind(NoParameters, lambda parameters, place: RoundRobin()),
    "random": RouterKind(NoParameters, lambda parameters, place: Random(place.seed, place.stream)),
    "power_of_two": RouterKind(
        PowerOfTwo, lambda parameters, place: Choices(parameters.choices, place.seed, place.stream)
    ),
    "least_loaded": RouterKind(NoParameters, _least(requests_of)),
    "least_requests": RouterKind(NoParameters, _least(requests_of)),
    "least_tokens": RouterKind(NoParameters, _least(tokens_of), frozenset({TOKENS}), of_requests=("predicted_tokens",)),
    "least_kv": RouterKind(NoParameters, _least(kv_of), frozenset({KV})),
    "prefix_aware": RouterKind(PrefixAware, prefix_aware, frozenset({PREFIX})),
    "session_affinity": RouterKind(SessionAffinity, session_affinity, of_requests=("session",)),
    "slo_aware": RouterKind(SLOAware, slo_aware, frozenset({BACKLOG, PREFIX}), SLOAware.unmet_need),
    "cost_aware": RouterKind(
        CostAware, cost_aware, frozenset({BACKLOG, PREFIX, TOKENS, PRICE}), CostAware.unmet_need, ("predicted_tokens",)
    ),
}
