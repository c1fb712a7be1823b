"""Time of one engine step from the user's own constants, whatever the model and the device."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema

from simulator import units
from simulator.device.lines import Line, Lines
from simulator.model.forward import Work
from simulator.model.layout import Layout
from simulator.strict import Strict

if TYPE_CHECKING:  # it takes numpy, and a scenario is read without
    from simulator.device.ranks import RankLines


def _parse_fine_ns(text: object) -> float:
    """Return a duration such as `12.5 ps` in ns, fractions kept."""
    value = units.parse(text, units.TIME_NS, "duration", "12.5 ns")
    if value < 0:
        raise units.UnitError(f"{text!r} is negative; a duration is zero or more")
    return float(value)


FineDuration = Annotated[
    float,
    BeforeValidator(_parse_fine_ns),
    PlainSerializer(lambda ns: f"{ns!r} ns", return_type=str),
    WithJsonSchema({"type": "string", "description": "a duration with its unit", "examples": ["4 ms", "12.5 ps"]}),
]


class LinearPrefill(Strict):
    """A prefill step lasts fixed + per_token * tokens + per_attended * attended query-key pairs."""

    fixed: FineDuration = 0.0
    per_token: FineDuration = 0.0
    per_attended: FineDuration = 0.0


class LinearDecode(Strict):
    """A decode iteration lasts fixed + per_sequence * batch + per_context_token * total context."""

    fixed: FineDuration = 0.0
    per_sequence: FineDuration = 0.0
    per_context_token: FineDuration = 0.0


class LinearParameters(Strict):
    """The user's own constants; what is left out is zero."""

    prefill: LinearPrefill = LinearPrefill()
    decode: LinearDecode = LinearDecode()


class LinearCost:
    """Steps whose durations are linear with the user's own constants, whatever the model and the device.

    Of several ranks the constants are those of one: the slowest sets the pace.
    """

    def __init__(self, parameters: LinearParameters, layout: Layout | None = None) -> None:
        self._layout = layout or Layout()
        prefill, self._decode = parameters.prefill, parameters.decode
        self._prefill = prefill.fixed, prefill.per_token, prefill.per_attended

    def prefill_ns(self, tokens: int, attended: int, sequences: int) -> float:
        """Return the duration of a prefill step; see `Cost.prefill_ns`. The number of sequences has no part in it."""
        fixed_ns, token_ns, pair_ns = self._prefill
        return fixed_ns + token_ns * tokens + pair_ns * attended

    def mixed_ns(self, tokens: int, attended: int, sequences: int, batch: int, context: float) -> float:
        """Return the duration of a step of both phases: the fixed parts once, the larger of the two, and the rest."""
        prompt, step = self._prefill, self._decode
        rest = prompt[1] * tokens + prompt[2] * attended + step.per_sequence * batch + step.per_context_token * context
        return max(prompt[0], step.fixed) + rest

    def decode(self, batch: int, context: float) -> Line:
        """Return the line of a decode iteration of sequences spread evenly over the ranks; see `Cost.decode`."""
        ranks = self._layout.data * self._layout.pipeline
        fixed_ns, slope_ns, until = self._of_rank(-(-batch // ranks))
        return Line(fixed_ns, slope_ns / ranks, until)

    def _of_rank(self, batch: int) -> Line:
        return Line(self._decode.fixed + self._decode.per_sequence * batch, self._decode.per_context_token)

    def together_ns(self, works: Sequence[Work]) -> float:
        """Return the duration of a step of several ranks; see `Cost.together_ns`."""
        from simulator.device.ranks import round_of

        own, data = [self._own_ns(work) for work in works], self._layout.data
        slowest = [max(own[first : first + data]) for first in range(0, len(own), data)]
        return float(round_of(slowest, self._layout.pipeline))

    def decode_together(self, batches: Sequence[int]) -> "RankLines":
        """Return the decode iterations of several ranks; see `Cost.decode_together`."""
        from simulator.device.ranks import RankLines

        return RankLines(batches, self._layout.data, self._own_lines, lambda own_ns, sizes: own_ns)

    def _own_lines(self, size: int) -> Lines:
        return Lines(self._of_rank(size).at, 1.0)

    def _own_ns(self, work: Work) -> float:
        prompts = work.prompt_tokens, round(work.pairs), work.prompts
        if not work.prompt_tokens:
            return self._of_rank(work.batch).at(work.context) if work.batch else 0.0
        return self.mixed_ns(*prompts, work.batch, work.context) if work.batch else self.prefill_ns(*prompts)
