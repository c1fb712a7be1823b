"""Preemption by swap: a request that must give up KV blocks is copied to host memory and comes back without a prefill.

Sources: swapping of paged blocks (vLLM, SOSP 2023); copies in groups of blocks, beside computing (FastSwitch, 2024).
"""

from collections import deque
from typing import NamedTuple

from simulator.errors import InvariantError
from simulator.serving.jump import TICKS_PER_NS
from simulator.serving.request import Request
from simulator.strict import Bandwidth, Count, Duration, Size, Strict


class Recompute(Strict):
    """Who is preempted loses its KV blocks and is prefilled anew, with all that it has generated."""


class Swap(Strict):
    """Who is preempted while it decodes is copied to host memory, and back when its blocks fit again.

    Bandwidth and host memory are those of one device; the devices of an engine copy their shares at the same time.
    """

    bandwidth: Bandwidth = 25_000_000_000
    """Between a device and its host memory."""
    launch: Duration = 10_000
    """Time to start one copy."""
    group_blocks: Count = 1
    """KV blocks that one copy moves at most: 1 for scattered blocks, more where neighbours lie together."""
    host: Size = 64 << 30
    """Host memory for swapped blocks, per device; who does not fit is recomputed."""
    overlap: bool = True
    """Whether the engine computes while a request comes back, or waits for it. It always waits for one that goes."""


PREEMPTIONS: dict[str, type[Strict]] = {"recompute": Recompute, "swap": Swap}


def copy_ns(blocks: int, block_bytes: int, terms: Swap) -> float:
    """Return the time to copy so many KV blocks: a launch for each group, and their bytes at the link's bandwidth."""
    return -(-blocks // terms.group_blocks) * terms.launch + blocks * block_bytes * 1e9 / terms.bandwidth


class Coming(NamedTuple):
    """A request on its way back, and the tick at which its last block has come."""

    end: int
    request: Request


class SwapSpace:
    """Host memory of one rank: who waits in it, who is coming back, and the link, which copies one after the other.

    Times are in ticks of the engine's clock (2^-20 ns); `now` is when the iteration to come may begin.
    """

    __slots__ = ("_block_bytes", "_held", "_until", "coming", "now", "out", "ready", "terms", "total", "used")

    def __init__(self, terms: Swap, block_bytes: int) -> None:
        self.terms = terms
        self.total = terms.host // block_bytes
        self.used = 0  # host blocks taken
        self.out: deque[Request] = deque()  # in the order in which they come back
        self.coming: list[Coming] = []
        self.now = 0
        self.ready = 0  # when the copies are done that the engine waits for
        self._until = 0  # when the link is free
        self._block_bytes = block_bytes
        self._held: dict[int, int] = {}  # host blocks by request

    def take(self, request: Request, blocks: int) -> bool:
        """Copy out a request of so many blocks if there is room, before all others; return whether there was."""
        if self.used + blocks > self.total:
            return False
        self._held[request.request_id] = blocks
        self.used += blocks
        self.out.appendleft(request)  # the last to join is the first to go: they come back in the order they joined
        self.ready = self._copy(blocks)
        return True

    def bring(self, blocks: int) -> Request:
        """Copy so many blocks of the next in line back (the others are on the device) and return it."""
        request = self.out.popleft()
        end = self._copy(blocks)
        if not self.terms.overlap:
            self.ready = end
        self.coming.append(Coming(end, request))
        return request

    def arrived(self) -> list[Request]:
        """Take out those who are back by now, or for whom the engine waits; their host blocks are free."""
        by = max(self.now, self.ready) if not self.terms.overlap else self.now
        done = [request for end, request in self.coming if end <= by]
        del self.coming[: len(done)]  # the link copies in order, so they are the first
        for request in done:
            self._free(request)
        return done

    def withdraw(self, request: Request) -> bool:
        """Forget a request that waits here or comes back; return whether its blocks on the device were taken."""
        self._free(request)
        if request in self.out:
            self.out.remove(request)
            return False
        self.coming = [row for row in self.coming if row.request is not request]
        return True

    def __contains__(self, request: object) -> bool:
        return isinstance(request, Request) and request.request_id in self._held

    def _free(self, request: Request) -> None:
        self.used -= self._held.pop(request.request_id)

    def _copy(self, blocks: int) -> int:
        self._until = max(self._until, self.now) + round(
            copy_ns(blocks, self._block_bytes, self.terms) * TICKS_PER_NS
        )
        return self._until

    def check(self) -> None:
        """Raise InvariantError unless the host blocks are those of the requests that wait here or come back."""
        there = [request.request_id for request in (*self.out, *(row.request for row in self.coming))]
        if sorted(there) != sorted(self._held) or not 0 <= self.used == sum(self._held.values()) <= self.total:
            raise InvariantError(f"swap space: {self.used} of {self.total} host blocks for {len(there)} requests")
