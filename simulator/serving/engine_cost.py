"""What an engine asks of a cost model: how long the iterations of one rank, or of several together, last."""

from collections.abc import Sequence
from typing import Any, Protocol

from simulator.model.forward import Work


class RankLines(Protocol):
    """Decode iterations of ranks that step together, for one batch size of each."""

    def lengths(self, contexts: Sequence[int], steps: int) -> Any:
        """Return the ns of the next iterations; the contexts, tokens being fed included, are those of the first."""


class EngineCost(Protocol):
    """Durations of the engine's phases, in nanoseconds; see simulator.device.cost."""

    def prefill_ns(self, tokens: int, attended: int, sequences: int) -> float:
        """Return the time to prefill `tokens` new tokens with `attended` query-key pairs over `sequences` prompts."""

    def decode(self, batch: int, context: float) -> tuple[float, float, float]:
        """Return a decode step's (fixed_ns, per_context_token_ns, last context at which they hold)."""

    def mixed_ns(self, tokens: int, attended: int, sequences: int, batch: int, context: float) -> float:
        """Return the time of a step that prefills as `prefill_ns` and decodes for a batch of so much context in all."""


class RanksCost(EngineCost, Protocol):
    """Durations of steps that several ranks take together."""

    def together_ns(self, works: Sequence[Work]) -> float:
        """Return the time of an iteration of several ranks, each with work of its own."""

    def decode_together(self, batches: Sequence[int]) -> RankLines:
        """Return the decode iterations of several ranks with batches of these sizes."""
