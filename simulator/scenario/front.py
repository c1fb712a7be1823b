"""The parts of `serving:` that stand before the engines: gateway, limits, time-outs, cancellation, load reports."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from simulator.strict import Count, Duration, Fault, LocatedError, PositiveDuration, Strict


class RouterView(Strict):
    """How old what a router knows may be: engines report at whole multiples of an interval."""

    report_interval: Duration = 0
    """Time between two reports of every engine (requests, tokens, KV use); 0: all is known as it is now."""
    counts_sent: bool = False
    """Whether a router adds what it has itself sent since to what was reported."""

    @model_validator(mode="after")
    def _reports_grow_old(self) -> Self:
        if self.counts_sent and not self.report_interval:
            what = "without a report_interval nothing is old, so there is nothing to add"
            raise LocatedError(Fault(("counts_sent",), what))
        return self


class GatewaySection(Strict):
    """Workers that parse and tokenise each request before it is routed, first come, first served."""

    service: Duration = 0
    """Time of one worker for a request."""
    per_token: Duration = 0
    """Time of one worker for each token of the prompt, on top."""
    workers: Annotated[int, Field(ge=1, le=100_000)] = 1
    """Requests served at a time."""
    queue: Annotated[int, Field(ge=0, le=10**12)] = 10_000
    """Requests that wait for a worker at most; more are rejected."""

    @model_validator(mode="after")
    def _takes_time(self) -> Self:
        if not self.service and not self.per_token:
            raise LocatedError(Fault(("service",), "takes no time, so it has no effect; give service, per_token"))
        return self


class BoundSection(Strict):
    """What may be outstanding, from arrival to the last token."""

    requests: Count | None = None
    """Requests at most; default: no limit."""
    tokens: Count | None = None
    """Prompt and output tokens asked for of those requests at most; default: no limit."""


class AdmissionSection(Strict):
    """What the front end lets in."""

    max_outstanding: BoundSection = BoundSection()
    """Limits of the deployment."""
    tenant: BoundSection = BoundSection()
    """Limits of each tenant; requests without a tenant are one."""
    when_full: Literal["reject", "queue"] = "reject"
    """What happens to a request beyond a limit: it is rejected (HTTP 429), or waits in order of arrival, where a tenant
    at its limit does not hold back the others."""


class TimeoutSection(Strict):
    """After which time a request is given up; its KV is free at the end of the iteration under way."""

    queue: PositiveDuration | None = None
    """From arrival to the first token."""
    total: PositiveDuration | None = None
    """From arrival to the last token."""


class CancelSection(Strict):
    """Clients that give their requests up."""

    fraction: Annotated[float, Field(gt=0, le=1)]
    """Share of the requests, drawn at random, whose clients do so."""
    after: PositiveDuration | None = None
    """Mean time from arrival at which they do, exponentially distributed."""
    after_tokens: Count | None = None
    """Tokens of the answer with which they do, when it has more."""

    @model_validator(mode="after")
    def _one_law(self) -> Self:
        if (self.after is None) == (self.after_tokens is None):
            raise ValueError("exactly one of after and after_tokens is needed")
        return self
