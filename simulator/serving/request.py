"""One inference call on its way through the cluster: what was asked, when each phase began, how it ended."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

FINISHED, REJECTED, UNFINISHED = "finished", "rejected", "unfinished"
TIMED_OUT, CANCELLED = "timed_out", "cancelled"


class Traits(NamedTuple):
    """What a caller says of a request beyond its lengths; most say nothing and share `PLAIN`."""

    tenant: str | None = None
    priority: int = 0
    """The higher, the sooner."""
    predicted_tokens: int = -1
    """Output tokens that a predictor expects; -1 when nobody predicts."""
    samples: int = 1
    """Answers drawn from one prompt in parallel (vLLM: n)."""
    cancel_ns: int = -1
    """How long after its arrival the client gives it up; -1: it does not."""
    sample_tokens: Sequence[int] | None = None
    """Lengths of the answers after the first; None: all are as long as the first."""


PLAIN = Traits()


class AwaitsPrefill(Protocol):
    """Whoever counts a request until its prompt is computed."""

    def prefilled(self, request: "Request") -> None:
        """Hear that the prompt of a request is computed."""


class Request:
    """A call of `prompt_tokens` in and `samples` answers out, drawn side by side; the longest has `output_tokens`.

    Answers that are complete leave it, so that `samples`, `lengths` and `shortest` are of those that go on.
    Times are in nanoseconds, -1 while they have not come.
    """

    __slots__ = (
        "arrival_ns",
        "awaited_by",
        "blocks",
        "cached_tokens",
        "complete_tokens",
        "computed",
        "decode_instance",
        "decode_start_ns",
        "finish_iteration",
        "finish_ns",
        "first_answer_tokens",
        "first_token_ns",
        "generated",
        "keys",
        "kv_transfer_bytes",
        "kv_transfer_ns",
        "kv_wait_ns",
        "last_token_ns",
        "lengths",
        "offset",
        "outcome",
        "output_tokens",
        "preemptions",
        "prefill_end_ns",
        "prefill_instance",
        "prefill_start_ns",
        "prompt_tokens",
        "queued_ns",
        "rank",
        "reason",
        "request_id",
        "samples",
        "session",
        "shared_blocks",
        "shortest",
        "traits",
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
        keys: Sequence[int] = (),
        traits: Traits = PLAIN,
    ) -> None:
        self.request_id = request_id
        self.arrival_ns = arrival_ns
        self.prompt_tokens = prompt_tokens
        self.output_tokens = self.shortest = self.first_answer_tokens = output_tokens
        self.session = session
        self.turn = turn
        self.keys = keys  # of the prompt's prefixes, one per unit of the cache; none: nothing is known of its content
        self.traits = traits
        self.samples = traits.samples  # sequences that decode side by side and have as many tokens each
        self.lengths: list[int] = []  # tokens that each will have in the end, the longest first; all alike: none
        self.complete_tokens = 0  # of answers that have left while others go on
        if traits.sample_tokens:
            lengths = sorted((output_tokens, *traits.sample_tokens), reverse=True)
            if lengths[0] > lengths[-1]:
                self.lengths, self.output_tokens, self.shortest = lengths, lengths[0], lengths[-1]
        self.awaited_by: tuple[AwaitsPrefill, ...] = ()  # until its prefill ends
        self.rank = 0  # which of its engine's ranks has it
        self.cached_tokens = 0  # prompt tokens that a cache held when it was admitted
        self.shared_blocks = 0  # KV blocks of its context that it shares, so that they are not its own
        self.blocks = 0  # KV blocks of its own that it holds while it does not decode
        self.generated = 0  # tokens of each sequence
        self.computed = 0  # tokens whose keys and values a prefill under way has computed
        self.queued_ns = -1
        self.prefill_start_ns = -1
        self.prefill_end_ns = -1
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
        return self.prompt_tokens + self.samples * self.generated

    @property
    def context_tokens(self) -> int:
        """Tokens of each of its sequences: the prompt, and what it has generated."""
        return self.prompt_tokens + self.generated

    @property
    def answer_tokens(self) -> int:
        """Tokens that its answers that go on will have in the end, all together."""
        return sum(self.lengths) if self.lengths else self.samples * self.output_tokens

    @property
    def made_tokens(self) -> int:
        """Tokens that all its answers have together."""
        return self.complete_tokens + self.samples * self.generated

    def end_prefill(self, now_ns: int) -> None:
        """Note that the prompt is computed, and tell whoever waits for that."""
        self.prefill_end_ns = now_ns
        for each in self.awaited_by:
            each.prefilled(self)

    def stop_after(self, tokens: int) -> None:
        """Let no answer be longer than so many tokens."""
        self.output_tokens, self.shortest = min(self.output_tokens, tokens), min(self.shortest, tokens)
        self.first_answer_tokens = min(self.first_answer_tokens, tokens)
        self.lengths = [min(length, tokens) for length in self.lengths]

    def part(self) -> int:
        """Let the answers leave that are complete while others go on; return how many those are."""
        lengths, before = self.lengths, self.samples
        while lengths[-1] == self.generated:
            lengths.pop()
        self.samples, self.shortest = len(lengths), lengths[-1]
        self.complete_tokens += (before - self.samples) * self.generated
        return before - self.samples

    def __repr__(self) -> str:
        return f"Request({self.request_id}, {self.prompt_tokens}+{self.generated}/{self.output_tokens}, {self.outcome})"
