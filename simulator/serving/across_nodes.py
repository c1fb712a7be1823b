"""An instance whose ranks meet over links of a network that has other flows and faults: the general engine in all else.

It says what it sends, and can be halted.
"""

from collections.abc import Callable, Sequence

from simulator.device.speculation import LinkedCost
from simulator.model.forward import Work
from simulator.results.windows import IDLE
from simulator.serving.instance import Instance
from simulator.serving.iteration import begin_together, copies_done
from simulator.units import TICKS_PER_NS


class AcrossNodes(Instance):
    """An engine whose cost knows what its collectives send to other nodes."""

    sends: Callable[[float, float], None] | None = None
    """Hears of the (bytes, ns) of each iteration as it begins, or a run of such: what a rank sends in it to other
    nodes, at the rate of its links, and how long it lasts."""
    halted: bool = False

    def halt(self) -> None:
        """Begin no further iteration: some ranks have no way to others."""
        self.halted = True
        if self._jump is not None:
            self._cut(self._mark())

    def go_on(self) -> None:
        """Begin iterations again."""
        self.halted = False
        self._nudge(self._steps_by_now())

    def _decide(self, now: int) -> tuple[int, int | None]:
        kind, wake_ns = super()._decide(now)
        return (IDLE, None) if self.halted else (kind, wake_ns)

    def _iteration(self) -> tuple[float, int]:
        lasts_ns, decoding, works = begin_together(self.ranks, self.cost, self.env.now, self._fit)
        begins = copies_done(self.ranks, self._ticks) if self._copies else self._ticks
        self._tell(works, lasts_ns + (begins - self._ticks) / TICKS_PER_NS)
        return lasts_ns, decoding

    def _begin_jump(self, wake_ns: int | None) -> None:
        before = self._ticks
        super()._begin_jump(wake_ns)
        jump = self._jump
        if jump is not None and self.sends is not None:
            sizes = [rank.batch.sequences + rank.batch.ghosts if rank.decodes else 0 for rank in self.ranks]
            # with what it waits for copies
            self._tell([Work(batch=size) for size in sizes], (jump.end - before) / (jump.steps * TICKS_PER_NS))

    def _begins(self, state: int) -> None:
        super()._begins(state)
        if state == IDLE and self.sends is not None:
            self.sends(0.0, 1.0)

    def _tell(self, works: Sequence[Work], lasts_ns: float) -> None:
        cost = self.cost
        if self.sends is not None and isinstance(cost, LinkedCost):
            self.sends(cost.sent_bytes(works), lasts_ns)
