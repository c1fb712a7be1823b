"""Who may come in: what an engine could never hold is refused; beyond limits of the deployment or of a tenant requests
are refused too (HTTP 429), or wait in order of arrival, a tenant at its limit not holding back the others.
"""

from collections import deque
from collections.abc import Collection, Iterator
from typing import NamedTuple

from simulator.serving.paging import Paging
from simulator.serving.request import Request


class Admission(NamedTuple):
    """What a request must not exceed, or no engine could ever serve it."""

    max_context: int
    prefill_tokens: int
    """Tokens of KV that a prefill engine holds in all."""
    decode_tokens: int
    """Tokens of KV that a decode engine holds in all; with one pool for both phases the same."""
    seats: int = 2**31
    """Sequences that run at once on an engine, prefill or decode."""
    decode_caches: Collection[tuple[int, Paging]] = ()
    """KV blocks of decode engines and how requests take them: what copies of a prompt's last block have to fit in."""

    def refusal(self, request: Request) -> str | None:
        """Return why a request cannot be served, or None. The last token generated needs no KV."""
        prompt, most = request.prompt_tokens, request.prompt_tokens + request.output_tokens
        if most > self.max_context:
            return "longer than max_context"
        if prompt > self.prefill_tokens:
            return "prompt larger than the prefill KV cache"
        if most - 1 > self.decode_tokens:
            return "larger than the decode KV cache"
        if request.samples == 1:
            return None
        if request.samples > self.seats:
            return "more samples than seats"
        if any(paging.most(request) > blocks for blocks, paging in self.decode_caches):
            return "larger than the decode KV cache"
        return None


class Bound(NamedTuple):
    """Outstanding requests and tokens (prompt and all answers asked for) at most; None is no limit."""

    requests: int | None = None
    tokens: int | None = None


class Count:
    """Requests and tokens that count against one bound."""

    __slots__ = ("bound", "requests", "tokens")

    def __init__(self, bound: Bound) -> None:
        self.bound = bound
        self.requests = self.tokens = 0

    def has_room(self, tokens: int) -> bool:
        """Return whether a request of so many tokens is within the bound."""
        requests, most = self.bound
        return (requests is None or self.requests < requests) and (most is None or self.tokens + tokens <= most)

    def add(self, sign: int, tokens: int) -> None:
        """Count a request in (+1) or out (-1)."""
        self.requests += sign
        self.tokens += sign * tokens


class Limits:
    """Counts what is outstanding, in all and per tenant; `waits` says whether what is beyond waits or is refused."""

    def __init__(self, deployment: Bound, tenant: Bound, waits: bool) -> None:
        self.waits = waits
        self._all = Count(deployment)
        self._tenant = tenant
        self._tenants: dict[str | None, Count] = {}
        self._held: dict[str | None, deque[Request]] = {}
        self._let_in: dict[int, int] = {}  # tokens of those who count
        self._asked: dict[int, int] = {}  # of those in line: some will cancel before they have all that they ask for

    def ask(self, request: Request) -> str | None:
        """Let a request in and return None, or say why it may not come in now."""
        tokens, tenant = _asked_tokens(request), request.traits.tenant
        own = self._tenants.get(tenant)
        if own is None:
            own = self._tenants[tenant] = Count(self._tenant)
        for whose, bound in (("deployment's", self._all.bound), ("tenant's", self._tenant)):
            if bound.tokens is not None and tokens > bound.tokens:
                return f"larger than the {whose} limit of tokens"
        if self._held.get(tenant) or not own.has_room(tokens):
            return "tenant's limit"
        if self._first_in_line() is not None or not self._all.has_room(tokens):
            return "deployment's limit"
        self._enter(request, tokens)
        return None

    def may_wait(self, reason: str) -> bool:
        """Return whether a request that was not let in for `reason` may wait."""
        return self.waits and not reason.startswith("larger")

    def hold(self, request: Request) -> None:
        """Put a request at the end of the line."""
        self._held.setdefault(request.traits.tenant, deque()).append(request)
        self._asked[request.request_id] = _asked_tokens(request)

    def drop(self, request: Request) -> None:
        """Take a request that was not let in out of the line."""
        self._held[request.traits.tenant].remove(request)
        del self._asked[request.request_id]

    def counts(self, request: Request) -> bool:
        """Return whether the request was let in and has not left."""
        return request.request_id in self._let_in

    def leave(self, request: Request) -> None:
        """Count a request that was let in no longer."""
        tokens = self._let_in.pop(request.request_id)
        self._all.add(-1, tokens)
        self._tenants[request.traits.tenant].add(-1, tokens)

    def next_in(self) -> Iterator[Request]:
        """Let in, and yield, those in line for whom there is room now: in order of arrival, full tenants skipped."""
        while (request := self._first_in_line()) is not None:
            tokens = self._asked[request.request_id]
            if not self._all.has_room(tokens):
                return
            self._held[request.traits.tenant].popleft()
            del self._asked[request.request_id]
            self._enter(request, tokens)
            yield request

    def _first_in_line(self) -> Request | None:
        """Return the one who came first among those whose tenant has room."""
        first: Request | None = None
        for tenant, line in self._held.items():
            if line and (first is None or line[0].request_id < first.request_id):
                request = line[0]
                if self._tenants[tenant].has_room(self._asked[request.request_id]):
                    first = request
        return first

    def _enter(self, request: Request, tokens: int) -> None:
        self._let_in[request.request_id] = tokens
        self._all.add(1, tokens)
        self._tenants[request.traits.tenant].add(1, tokens)


def _asked_tokens(request: Request) -> int:
    return request.prompt_tokens + request.answer_tokens
