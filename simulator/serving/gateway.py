"""The gateway: workers that parse and tokenise each request before it is routed, first come, first served.

Model: a queue of c workers with known service times, so departures follow from arrivals by the recursion of Kiefer and
Wolfowitz (1955): a request starts when it has come and the worker that is free first is free. No event per worker.
"""

from collections import deque
from heapq import heapreplace


class Gateway:
    """Workers and the line before them; requests must come in order of time."""

    def __init__(self, service_ns: int, token_ns: int, workers: int, queue: int) -> None:
        self._service_ns = service_ns
        self._token_ns = token_ns
        self._queue = queue
        self._free_ns = [0] * workers  # a heap: when each worker is free
        self._starts: deque[int] = deque()  # of those who wait; they start in the order in which they came

    def admit(self, now_ns: int, tokens: int) -> int | None:
        """Return when a request that comes now with a prompt of so many tokens is done, or None when the line is full.

        Who starts at `now_ns` does not wait any more.
        """
        starts, free_ns = self._starts, self._free_ns
        while starts and starts[0] <= now_ns:
            starts.popleft()
        start_ns = free_ns[0]
        if start_ns <= now_ns:
            start_ns = now_ns
        elif len(starts) >= self._queue:
            return None
        else:
            starts.append(start_ns)
        done_ns = start_ns + self._service_ns + tokens * self._token_ns
        heapreplace(free_ns, done_ns)
        return done_ns
