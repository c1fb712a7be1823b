"""One inference call on its way through the cluster: what was asked, when each phase began, how it ended."""

FINISHED, REJECTED, UNFINISHED = "finished", "rejected", "unfinished"


class Request:
    """A call of `prompt_tokens` in and `output_tokens` out; times in nanoseconds, -1 while they have not come."""

    __slots__ = (
        "arrival_ns",
        "computed",
        "decode_instance",
        "decode_start_ns",
        "finish_iteration",
        "finish_ns",
        "first_token_ns",
        "generated",
        "kv_transfer_bytes",
        "kv_transfer_ns",
        "kv_wait_ns",
        "last_token_ns",
        "offset",
        "outcome",
        "output_tokens",
        "preemptions",
        "prefill_instance",
        "prefill_start_ns",
        "prompt_tokens",
        "queued_ns",
        "reason",
        "request_id",
        "session",
        "turn",
    )

    def __init__(
        self,
        request_id: int,
        arrival_ns: int,
        prompt_tokens: int,
        output_tokens: int,
        session: str | None = None,
        turn: int | None = None,
    ) -> None:
        self.request_id = request_id
        self.arrival_ns = arrival_ns
        self.prompt_tokens = prompt_tokens
        self.output_tokens = output_tokens
        self.session = session
        self.turn = turn
        self.generated = 0
        self.computed = 0  # tokens whose keys and values a prefill under way has computed
        self.queued_ns = -1
        self.prefill_start_ns = -1
        self.first_token_ns = -1
        self.last_token_ns = -1
        self.decode_start_ns = -1
        self.finish_ns = -1
        self.finish_iteration = -1
        self.offset = 0
        self.kv_wait_ns = 0
        self.kv_transfer_ns = 0
        self.kv_transfer_bytes = 0
        self.preemptions = 0
        self.prefill_instance: str | None = None
        self.decode_instance: str | None = None
        self.outcome = UNFINISHED
        self.reason: str | None = None

    @property
    def prefill_tokens(self) -> int:
        """Tokens whose keys and values a prefill computes: the prompt, and after a preemption what was generated."""
        return self.prompt_tokens + self.generated

    def __repr__(self) -> str:
        return f"Request({self.request_id}, {self.prompt_tokens}+{self.generated}/{self.output_tokens}, {self.outcome})"
