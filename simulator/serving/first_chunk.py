"""When an engine that sends several output tokens at a time sends a request's first.

Model: `stream_interval` of SGLang (up to 0.5.8): tokens of an answer leave when so many more are there, or with the
last. Only the first time is kept, for nothing that an engine does hangs on the others.
"""

from heapq import heappop, heappush
from typing import TYPE_CHECKING

from simulator.serving.request import Request

if TYPE_CHECKING:
    from simulator.serving.decode_batch import DecodeBatch
    from simulator.serving.speculation import SpeculativeBatch


class FirstChunks:
    """Members of a batch whose first `tokens` output tokens are not all there, by the iteration that makes them so."""

    __slots__ = ("_batch", "_due", "tokens")

    def __init__(self, tokens: int, batch: "DecodeBatch | SpeculativeBatch") -> None:
        self.tokens = tokens
        self._batch = batch
        self._due: list[tuple[int, int, Request]] = []

    def joined(self, request: Request, now_ns: int) -> None:
        """Hear of a new member: what it has is sent at once if it is enough."""
        steps = self._left(request)
        if steps is None:
            return
        if steps <= 0:
            request.first_token_ns = now_ns
        else:
            heappush(self._due, (self._batch.iteration + steps, request.request_id, request))

    def steps(self) -> int | None:
        """Return the iterations until the next first chunk; None if every member's is sent."""
        due, batch = self._due, self._batch
        while due and self._left(due[0][2]) != due[0][0] - batch.iteration:  # preempted since: a stale entry
            heappop(due)
        return due[0][0] - batch.iteration if due else None

    def send(self, now_ns: int) -> None:
        """Send what the iteration that has ended has made complete; who finishes with it is still a member."""
        due, batch = self._due, self._batch
        while due and due[0][0] <= batch.iteration:
            at, _, request = heappop(due)
            if self._left(request) == at - batch.iteration:
                request.first_token_ns = now_ns

    def _left(self, request: Request) -> int | None:
        """Return the iterations until a request's first chunk; None if it is sent or the request has gone."""
        if request.first_token_ns >= 0 or request.request_id not in self._batch.members:
            return None
        return self._batch.steps_until(request, min(self.tokens, request.shortest))
