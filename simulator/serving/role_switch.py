"""Engines that go from the prefill to the decode pool and back as the load of the two changes.

Model: now and then a policy (simulator.serving.role_policies) names a pool that gives an engine to the other; that
engine is sent nothing more, serves what it has, is made ready for its other role in a fixed time and joins.
"""

from collections.abc import Callable, Generator
from typing import Any, NamedTuple, Protocol

from simpy import Event

from simulator.clock import Clock
from simulator.serving.instance import Instance
from simulator.serving.pool import Pool
from simulator.serving.pool_view import EngineTraits
from simulator.serving.role_policies import PoolLoad, View


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

    def __call__(self, instance: Instance, role: str) -> tuple[Instance, EngineTraits]:
        """Return the engine, which is in no pool yet, and what routers may know of it."""


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
            joins, traits = self._joins(leaves, target.role)
            target.add(joins, traits)
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
