"""Preemption by swap: a request that must give up KV blocks is copied to host memory and comes back without a prefill.

Sources: swapping of paged blocks (vLLM, SOSP 2023); copies in groups of blocks, beside computing (FastSwitch, 2024).
"""

from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

from simulator.errors import InvariantError
from simulator.serving.request import Request
from simulator.strict import Bandwidth, Count, Duration, Size, Strict
from simulator.units import TICKS_PER_NS


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


class Host:
    """Memory beside the devices of one data-parallel rank, and the link to it, which copies one thing after the other.

    The micro-batches of a pipeline share it, as they share the devices.
    """

    __slots__ = ("_block_bytes", "_until", "terms", "total", "used")

    def __init__(self, terms: Swap, block_bytes: int) -> None:
        """A device's share of a KV block has `block_bytes` bytes."""
        self.terms = terms
        self.total = terms.host // block_bytes
        self.used = 0  # blocks taken
        self._until = 0  # tick at which the link is free
        self._block_bytes = block_bytes

    def copy(self, blocks: int, now: int) -> int:
        """Copy so many blocks as soon as the link is free; return the tick at which it is done."""
        lasts = round(copy_ns(blocks, self._block_bytes, self.terms) * TICKS_PER_NS)
        self._until = max(self._until, now) + lasts
        return self._until


class SwapSpace:
    """What one rank has in host memory: who waits there, and who is coming back.

    Times are in ticks of the engine's clock (2^-20 ns); `now` is when the iteration to come may begin.
    """

    __slots__ = ("_held", "coming", "host", "now", "out", "overlap", "ready")

    def __init__(self, host: Host) -> None:
        self.out: deque[Request] = deque()  # in the order in which they come back
        self.coming: list[Coming] = []
        self.now = 0
        self.ready = 0  # when the copies are done that the engine waits for
        self.overlap = host.terms.overlap
        self.host = host
        self._held: dict[int, int] = {}  # host blocks by request

    @property
    def blocks(self) -> int:
        """Host blocks that those of this rank take."""
        return sum(self._held.values())

    def take(self, request: Request, blocks: int) -> bool:
        """Copy out a request of so many blocks if there is room, before all others; return whether there was."""
        host = self.host
        if host.used + blocks > host.total:
            return False
        self._held[request.request_id] = blocks
        host.used += blocks
        self.out.appendleft(request)  # the last to join is the first to go: they come back in the order they joined
        self.ready = host.copy(blocks, self.now)
        return True

    def sort(self, key: Callable[[Request], Any]) -> None:
        """Let those who are out come back in the order of a key."""
        self.out = deque(sorted(self.out, key=key))

    def bring(self, blocks: int) -> Request:
        """Copy so many blocks of the next in line back (the others are on the device) and return it."""
        request = self.out.popleft()
        end = self.host.copy(blocks, self.now)
        if not self.overlap:
            self.ready = end
        self.coming.append(Coming(end, request))
        return request

    def arrived(self) -> list[Request]:
        """Take out those who are back by now, or for whom the engine waits; their host blocks are free."""
        by = self.now if self.overlap else max(self.now, self.ready)
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
        self.host.used -= self._held.pop(request.request_id)

    def check(self) -> None:
        """Raise InvariantError unless the host blocks are those of the requests that wait here or come back."""
        there = [request.request_id for request in (*self.out, *(row.request for row in self.coming))]
        host = self.host
        if sorted(there) != sorted(self._held) or not self.blocks <= host.used <= host.total:
            raise InvariantError(f"swap space: {self.blocks} of {host.used} host blocks for {len(there)} requests")


def spaces(terms: Swap, block_bytes: int, data: int = 1, pipeline: int = 1) -> list[SwapSpace]:
    """Return the host memory of an engine's ranks, in their order: micro-batch by micro-batch."""
    hosts = [Host(terms, block_bytes) for _ in range(data)]
    return [SwapSpace(host) for _ in range(pipeline) for host in hosts]
