"""Time of iterations that verify drafted tokens, and of the passes of a draft model that make them.

Model: the target verifies k drafted tokens and one more for each sequence in one pass; the draft model runs k times
before, a token of each sequence a time (Leviathan et al., arXiv:2211.17192, 3.3), and once over every prompt.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from simulator.device.cost import Cost, RooflineCost
from simulator.device.lines import Line
from simulator.model.forward import Work

if TYPE_CHECKING:  # its arrays take numpy, and a scenario is read without
    from simulator.device.cost import Links
    from simulator.model.expert_balance import ExpertBalance


class SpeculativeLines:
    """Iterations of several ranks: those of the target and the draft model's passes before them."""

    def __init__(self, batches: Sequence[int], target: Any, draft: Any, behind: Sequence[int]) -> None:
        import numpy as np  # only here: a scenario is read without

        self._sizes = np.array(batches)
        self._target, self._draft, self._behind = target, draft, behind

    def at(self, contexts: Any) -> Any:
        """Return the ns of iterations as an array; `contexts` has a row for each, of all ranks."""
        lengths = self._target.at(contexts)
        for behind in self._behind:
            lengths = lengths + self._draft.at(contexts - behind * self._sizes)
        return lengths


class SpeculativeCost:
    """Steps of a target, whose cost is that of k + 1 positions of each sequence, and of a draft model, if there is one.

    Contexts are those of the target: what the sequences keep and their k + 1 positions. There are prompts without
    decoding in steps, but every decoding sequence has its k passes.
    """

    def __init__(self, target: Cost, draft: Cost | None, tokens: int) -> None:
        self.target, self.draft, self.tokens = target, draft, tokens
        # pass j of k attends to so many positions of each sequence fewer than the target
        self._behind = [tokens + 1 - j for j in range(1, tokens + 1)] if draft is not None else []

    def rebalanced(self, balance: "ExpertBalance") -> "SpeculativeCost":
        """Return the cost under another balance of the target's experts; the draft model's are all alike."""
        assert isinstance(self.target, RooflineCost)
        return SpeculativeCost(self.target.rebalanced(balance), self.draft, self.tokens)

    def relinked(self, links: "Links") -> "SpeculativeCost":
        """Return the cost with the collectives of both models over other links."""
        assert isinstance(self.target, RooflineCost)
        assert self.draft is None or isinstance(self.draft, RooflineCost)
        draft = None if self.draft is None else self.draft.relinked(links)
        return SpeculativeCost(self.target.relinked(links), draft, self.tokens)

    @property
    def links(self) -> "Links | None":
        """What times its collectives."""
        return self.target.links if isinstance(self.target, RooflineCost) else None

    def sent_bytes(self, works: Sequence[Work]) -> float:
        """Return what a rank sends to other nodes in a step of both models; see `RooflineCost.sent_bytes`."""
        assert isinstance(self.target, RooflineCost)
        sent = self.target.sent_bytes(works)
        if isinstance(self.draft, RooflineCost):
            sent += self.draft.sent_bytes([work._replace(batch=0, context=0) for work in works])
            sent += self.tokens * self.draft.sent_bytes([Work(batch=work.batch) for work in works])
        return sent

    def prefill_ns(self, tokens: int, attended: int, sequences: int) -> float:
        """Return the duration of a prefill step of both models; see `Cost.prefill_ns`."""
        draft_ns = self.draft.prefill_ns(tokens, attended, sequences) if self.draft is not None else 0.0
        return self.target.prefill_ns(tokens, attended, sequences) + draft_ns

    def decode(self, batch: int, context: float) -> Line:
        """Return the line of an iteration about `context`; see `Cost.decode`."""
        fixed_ns, slope_ns, until = self.target.decode(batch, context)
        for line, back in self._passes(batch, context):
            fixed_ns += line.fixed_ns - line.per_context_token_ns * back
            slope_ns += line.per_context_token_ns
            until = min(until, line.until + back)
        return Line(fixed_ns, slope_ns, until)

    def mixed_ns(self, tokens: int, attended: int, sequences: int, batch: int, context: float) -> float:
        """Return the duration of a step of both phases; see `Cost.mixed_ns`."""
        ns = self.target.mixed_ns(tokens, attended, sequences, batch, context)
        if self.draft is not None:
            ns += self.draft.prefill_ns(tokens, attended, sequences)
        return ns + sum(line.at(context - back) for line, back in self._passes(batch, context))

    def together_ns(self, works: Sequence[Work]) -> float:
        """Return the duration of a step of several ranks; see `Cost.together_ns`."""
        ns = self.target.together_ns(works)
        if self.draft is None:
            return ns
        if any(work.prompt_tokens for work in works):
            ns += self.draft.together_ns([work._replace(batch=0, context=0) for work in works])
        if any(work.batch for work in works):
            for behind in self._behind:
                ns += self.draft.together_ns([Work(batch=b, context=c - behind * b) for *_, b, c, _ in works])
        return ns

    def decode_together(self, batches: Sequence[int]) -> SpeculativeLines:
        """Return the iterations of several ranks; see `Cost.decode_together`."""
        draft = self.draft.decode_together(batches) if self.draft is not None else None
        return SpeculativeLines(batches, self.target.decode_together(batches), draft, self._behind)

    def _passes(self, batch: int, context: float) -> Iterator[tuple[Line, int]]:
        """Yield the line of each pass of the draft model and by how many positions its context is behind."""
        for behind in self._behind:
            assert self.draft is not None
            yield self.draft.decode(batch, max(0.0, context - behind * batch)), behind * batch


LinkedCost = RooflineCost | SpeculativeCost
"""Costs that know of every collective over which links it goes."""
