"""Follows the popularity of experts in a pool: steps cost anew when it changes, experts move when they are rebalanced.

Model: experts are placed by the mean popularity since the last time, as a balancer sees it that counts tokens; while
weights move the engine goes on under the old placement (asynchronous rebalancing).
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from simpy import Event

from simulator.clock import Clock
from simulator.device.cost import Cost
from simulator.model.expert_balance import ExpertBalance
from simulator.model.expert_placement import Floats, Move, Whole, moves, settled
from simulator.serving.instance import Instance


class Plan(NamedTuple):
    """How the experts of a pool's engines are balanced, and what becomes of their steps."""

    balance: ExpertBalance
    """At the start."""
    changes: Callable[[], Iterator[tuple[int, Floats]]]
    """(time in ns, popularity) of every later change, in order."""
    place: Callable[[Floats], Whole]
    interval_ns: int | None = None
    """Time between two placements; none: experts stay where they are."""
    moves_cost: bool = True
    """Whether weights that move cross the network."""


class ExpertBalancing:
    """An actor per pool; `transfer(engine, moves)` begins to move experts and `event(kind, subject, detail)` writes.

    `base` returns an engine's present cost under the first balance, `cost_of` what that is under another.
    """

    def __init__(
        self,
        env: Clock,
        pool: str,
        plan: Plan,
        instances: Callable[[], Sequence[Instance]],
        base: Callable[[Instance], Cost],
        cost_of: Callable[[Cost, ExpertBalance], Cost],
        transfer: Callable[[Instance, Sequence[Move]], Event],
        event: Callable[[str, str, str], None],
    ) -> None:
        self._env, self._pool, self._plan = env, pool, plan
        self._instances, self._transfer, self._event = instances, transfer, event
        self._base, self._cost_of = base, cost_of
        self._popularity = plan.balance.popularity
        self._latest = plan.balance.placement
        self._placed: dict[str, Whole] = {}
        self._moving: dict[str, bool] = {}
        self._costs: dict[tuple[int, bytes, bytes], tuple[Cost, Cost]] = {}  # with the base, so that its id is its own
        self.moved_experts = 0
        env.process(self._run())

    def joined(self, instance: Instance) -> None:
        """Take in an engine that came later: its experts are placed as was last found best."""
        self._placed[instance.name] = self._latest
        self.retime(instance)

    def _run(self) -> Generator[Event, Any, None]:
        env, plan = self._env, self._plan
        changes = plan.changes()
        change = next(changes, None)
        due_ns = plan.interval_ns
        seen, since_ns, last_ns = np.zeros_like(self._popularity), env.now, env.now
        # A mean of what is all alike would differ from it in its last digits, and experts of equal load change places.
        steady = True
        while change is not None or due_ns is not None:
            at_ns = min(at for at in (change[0] if change else None, due_ns) if at is not None)
            yield env.timeout(at_ns - env.now)
            seen += self._popularity * (env.now - last_ns)
            last_ns = env.now
            if due_ns is not None and due_ns <= env.now:
                self._rebalance(self._popularity if steady else seen / (env.now - since_ns))
                seen, since_ns, steady = np.zeros_like(seen), env.now, True
                due_ns += plan.interval_ns or 0
            if change is not None and change[0] <= env.now:
                self._popularity, steady = change[1], env.now == since_ns
                self._drifted()
                change = next(changes, None)

    def _drifted(self) -> None:
        for instance in self._instances():
            self.retime(instance)
        first = next(iter(self._instances()), None)
        if first is not None:
            balance = self._balance(self._placement(first))
            self._event("experts drifted", self._pool, f"mean over maximum load {balance.evenness:.3f}")

    def _rebalance(self, popularity: Floats) -> None:
        placement = self._latest = self._plan.place(popularity)
        for instance in self._instances():
            if self._moving.get(instance.name):
                self._event("experts not rebalanced", instance.name, "weights of the last time still move")
                continue
            self._env.process(self._move(instance, placement))

    def _move(self, instance: Instance, placement: Whole) -> Generator[Event, Any, None]:
        group, before = self._plan.balance.group, self._placement(instance)
        placement = settled(before, placement, group)
        wanted = moves(before, placement, group.ranks_per_node)
        count = sum(move.experts for move in wanted)
        self._moving[instance.name] = True
        if wanted and self._plan.moves_cost:
            yield self._transfer(instance, wanted)
        self._moving[instance.name] = False
        self._placed[instance.name] = placement
        self.moved_experts += count
        self.retime(instance)
        evenness = self._balance(placement).evenness
        detail = f"{count} experts moved, mean over maximum load {evenness:.3f}"
        self._event("experts rebalanced", instance.name, detail)

    def _placement(self, instance: Instance) -> Whole:
        return self._placed.get(instance.name, self._plan.balance.placement)

    def _balance(self, placement: Whole) -> ExpertBalance:
        first = self._plan.balance
        return ExpertBalance(self._popularity, placement, first.group, first.shared_copies, first.nodes_per_token)

    def retime(self, instance: Instance) -> None:
        """Have an engine go by its present cost and balance."""
        balance = self._balance(self._placement(instance))
        base = self._base(instance)
        key = id(base), *balance.fingerprint
        known = self._costs.get(key)
        if known is None:
            if len(self._costs) >= MOST_COSTS:
                self._costs.clear()
            known = self._costs[key] = base, self._cost_of(base, balance)
        instance.retime(known[1])


MOST_COSTS = 16
"""Costs remembered: windows of a trace come back, and all engines of a pool are mostly placed alike."""
