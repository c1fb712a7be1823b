"""Engines that go from the prefill to the decode pool and back as the load of the two changes.

Model: now and then a policy, a pure function of what it sees of both pools, names a pool that gives an engine to the
other; that engine is sent nothing more, serves what it has, is made ready for its other role in a fixed time and joins.
Sources: instance flip of TetriInfer (arXiv:2401.11181), mixed pool of Splitwise (ISCA 2024).
"""

from collections.abc import Callable, Generator
from typing import Any, NamedTuple, Protocol

from pydantic import Field
from simpy import Event

from simulator.clock import Clock
from simulator.serving.instance import Instance
from simulator.serving.pool import Pool
from simulator.strict import Count, Strict


class PoolLoad(NamedTuple):
    """What a policy sees of a pool."""

    engines: int
    queued: int
    """Requests that wait: for their prefill, or for a place to decode."""
    running: int
    kv_share: float
    """KV blocks in use, of those of all its engines."""


class View(NamedTuple):
    """Both pools at one moment."""

    prefill: PoolLoad
    decode: PoolLoad


class Thresholds(Strict):
    """A pool takes an engine when it is above its limit and the other stays below its own without that engine."""

    queued: Count = 4
    """Requests that wait per prefill engine at most."""
    kv_share: float = Field(default=0.8, gt=0, le=1)
    """Share of the decode engines' KV blocks in use at most."""
    margin: float = Field(default=0.25, ge=0, lt=1)
    """By which share of its limit the pool that gives stays below it, so that engines do not go to and fro."""


def thresholds(limits: Thresholds, view: View) -> str | None:
    """Return the pool that gives an engine, or None."""
    prefill, decode = view
    left = 1 - limits.margin
    if prefill.queued > limits.queued * prefill.engines:
        if decode.engines > 1 and not decode.queued:
            after = decode.kv_share * decode.engines / (decode.engines - 1)
            return "decode" if after <= limits.kv_share * left else None
    elif (decode.kv_share > limits.kv_share or decode.queued) and prefill.engines > 1:
        return "prefill" if prefill.queued <= limits.queued * left * (prefill.engines - 1) else None
    return None


class Balance(Strict):
    """Engines in proportion to the requests of each pool, of which a prefill engine serves fewer at once."""

    prefill_requests: Count = 1
    """Requests of a prefill engine, waiting or running, that are as much load as"""
    decode_requests: Count = 32
    """so many of a decode engine."""
    margin: float = Field(default=0.75, ge=0.5)
    """Engines by which a pool must be off its share before one goes; half an engine is off by rounding alone."""


def balance(limits: Balance, view: View) -> str | None:
    """Return the pool that gives an engine, or None; no pool gives its last."""
    prefill, decode = view
    works = [
        (load.queued + load.running) / each
        for load, each in ((prefill, limits.prefill_requests), (decode, limits.decode_requests))
    ]
    if not sum(works):
        return None
    engines = prefill.engines + decode.engines
    off = prefill.engines - min(max(engines * works[0] / sum(works), 1), engines - 1)
    if off > limits.margin and prefill.engines > 1:
        return "prefill"
    return "decode" if off < -limits.margin and decode.engines > 1 else None


class SwitchPolicy(NamedTuple):
    """A registered policy: its parameters as they stand in a scenario, and the function over them."""

    parameters: type[Strict]
    decide: Callable[[Any, View], str | None]


SWITCHES: dict[str, SwitchPolicy] = {
    "thresholds": SwitchPolicy(Thresholds, thresholds),
    "balance": SwitchPolicy(Balance, balance),
}


class Times(NamedTuple):
    """Times of the switching."""

    interval_ns: int
    """From one look to the next; none is taken while an engine is on its way."""
    delay_ns: int
    """To make an engine ready for its other role."""
    cooldown_ns: int
    """From an engine's arrival to where the next interval begins."""


class Joins(Protocol):
    """Makes an engine in a role on the devices of another that has served in the other role."""

    def __call__(self, instance: Instance, role: str) -> Instance:
        """Return the engine; it is in no pool yet."""


class RoleSwitching:
    """The actor that looks at the pools and moves engines; `switched` of them have arrived."""

    def __init__(
        self,
        env: Clock,
        pools: tuple[Pool, Pool],
        decide: Callable[[View], str | None],
        times: Times,
        joins: Joins,
        event: Callable[[str, str, str], None],
    ) -> None:
        self.switched = 0
        self._env = env
        self._pools = {pool.role: pool for pool in pools}
        self._decide = decide
        self._times = times
        self._joins = joins
        self._event = event
        env.process(self._run())

    def _run(self) -> Generator[Event, Any, None]:
        env, times = self._env, self._times
        while True:
            yield env.timeout(times.interval_ns)
            giver = self._decide(self.view())
            if giver is None:
                continue
            source, target = self._pools[giver], self._pools["decode" if giver == "prefill" else "prefill"]
            if len(source.instances) < 2:
                continue
            leaves = self._least_loaded(source)
            yield self._drained(source, leaves)
            if times.delay_ns:
                yield env.timeout(times.delay_ns)
            joins = self._joins(leaves, target.role)
            target.add(joins)
            self.switched += 1
            self._event("joins pool", joins.name, f"was {leaves.name}")
            if times.cooldown_ns:
                yield env.timeout(times.cooldown_ns)

    def _least_loaded(self, pool: Pool) -> Instance:
        """Return the engine with the fewest requests, of those alike the last."""
        index = min(range(len(pool.instances)), key=lambda at: (pool.outstanding[at], -at))
        self._event("leaves pool", pool.instances[index].name, f"{pool.outstanding[index]} requests to serve")
        return pool.instances[index]

    def _drained(self, pool: Pool, instance: Instance) -> Event:
        """Take an engine out of its pool; the event fires when it has nothing left to do."""
        empty = Event(self._env)

        def drained(_: Instance) -> None:
            empty.succeed()

        pool.drain(instance, drained)
        return empty

    def view(self) -> View:
        """Return what the policy sees now; an engine that is leaving is in neither pool."""
        return View(self._load("prefill"), self._load("decode"))

    def _load(self, role: str) -> PoolLoad:
        engines = self._pools[role].instances
        blocks = sum(engine.kv_total_blocks for engine in engines)
        return PoolLoad(
            len(engines),
            sum(engine.queued for engine in engines),
            sum(engine.running for engine in engines),
            sum(engine.used_blocks() for engine in engines) / blocks,
        )
