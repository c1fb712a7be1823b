"""A decode batch of a model some of whose layers keep only a window of positions.

Model: a group of layers that keeps everything grows as in any batch; of those with a window only the members grow that
have not filled it, and each is looked at for itself: they are few where windows are short.
"""

from simulator.errors import InvariantError
from simulator.serving.decode_batch import DecodeBatch
from simulator.serving.paging import Paging, WindowedPaging
from simulator.serving.request import Request


class WindowedBatch(DecodeBatch):
    """Members in the order in which they joined, and those of them whose windows are not full."""

    __slots__ = ("_growing", "windowed")

    def __init__(self, paging: WindowedPaging, keeps: bool = False) -> None:
        super().__init__(paging, keeps)
        self.windowed = paging
        self._growing: dict[int, Request] = {}

    def _count(self, request: Request, held: int, sign: int) -> None:
        self._count_sequences(request, held, sign)
        if sign > 0 and self.windowed.grows(request, held):
            self._growing[request.request_id] = request
        else:
            self._growing.pop(request.request_id, None)

    def advance(self, steps: int) -> None:
        """Let every sequence generate `steps` tokens, one at least."""
        super().advance(steps)
        grows, iteration = self.windowed.grows, self.iteration
        for request in [r for r in self._growing.values() if not grows(r, iteration - r.offset)]:
            del self._growing[request.request_id]

    def blocks_after(self, steps: int) -> int:
        """Return the KV blocks that the members hold after so many more steps."""
        paging, iteration = self.windowed, self.iteration
        blocks = self.blocks + paging.full * (super().blocks_after(steps) - self.blocks)
        for request in self._growing.values():
            held = iteration - request.offset
            blocks += paging.windowed * (paging.windows(request, held + steps) - paging.windows(request, held))
        return blocks

    def blocks_at_most(self, steps: int) -> int:
        """Return a bound on `blocks_after(steps)`: as if no window were ever full."""
        paging, ghosts = self.windowed, self.ghost_blocks
        return (paging.full + paging.windowed) * (super().blocks_at_most(steps) - ghosts) + ghosts

    def check(self) -> None:
        """Raise InvariantError unless what `DecodeBatch.check` compares agrees, and who grows is known."""
        super().check()
        growing = {r.request_id for r in self.members.values() if self.windowed.grows(r, self.iteration - r.offset)}
        if growing != set(self._growing):
            raise InvariantError("decode batch: those whose windows are not full are not those that are looked at")


def batch_of(paging: Paging, keeps: bool) -> DecodeBatch:
    """Return an empty batch of an engine with such blocks; `keeps` as in `DecodeBatch`."""
    return WindowedBatch(paging, keeps) if isinstance(paging, WindowedPaging) else DecodeBatch(paging, keeps)
