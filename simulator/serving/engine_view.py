"""What a batcher reads of a rank between two iterations, and what it says of the next one."""

from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple, Protocol

from simulator.serving.paging import Paging
from simulator.serving.request import Request


class Victim(NamedTuple):
    """One who may be preempted: KV blocks that become free with it, and how many of `step_blocks` are its own."""

    request: Request
    blocks: int
    due: int


class EngineView(Protocol):
    """What a batcher may read of an engine between two iterations."""

    paging: Paging

    @property
    def waiting(self) -> Collection[Request]:
        """The queue, the next in line first."""

    def claim(self, request: Request) -> tuple[int, int]:
        """Return (tokens that a prefill of a waiting request computes, KV blocks that all of it takes from the free).

        Those are fewer than its context has when a cache holds the beginning of it.
        """

    @property
    def partial(self) -> Sequence[Request]:
        """Prompts begun and not ended, in order of admission; `computed` tokens of each are done."""

    @property
    def running(self) -> int:
        """Seats taken by requests that decode, that are partly prefilled, or that hold a reserved place."""

    @property
    def decoding(self) -> int:
        """Sequences that take part in a decode step."""

    @property
    def admissible_blocks(self) -> int:
        """KV blocks that new prompts may take, the watermark left free."""

    @property
    def free_blocks(self) -> int:
        """KV blocks that nothing holds."""

    @property
    def step_blocks(self) -> int:
        """KV blocks that those who decode take for one step more."""

    @property
    def decoded(self) -> int:
        """Decode steps since the last iteration with prompts."""

    @property
    def positions(self) -> int:
        """Tokens that each sequence that decodes feeds in a step: one, and those that were drafted for it."""

    @property
    def growth_blocks(self) -> int:
        """KV blocks that those who run will still take until they have all their tokens."""

    @property
    def now_ns(self) -> int:
        """The time at which the iteration begins."""

    def latest(self) -> Iterator[Victim]:
        """Yield who may be preempted, the first to go first: prompts begun last, then decodes, or by priority."""


class Step(NamedTuple):
    """The next iteration. Without prompts it is a decode step, and the engine decodes on until something changes."""

    prompts: Sequence[tuple[Request, int]] = ()
    """Whom to prefill and how many tokens: some of those begun, then as many from the head of the queue as are new."""
    decodes: bool = False
    """Whether those who decode take part in an iteration with prompts."""
    reserves: bool = False
    """Whether a new prompt takes KV blocks for all of itself at once, or as its parts are computed."""
    steps: int | None = None
    """Of a decode step: how many of them at most before the engine decides anew."""
    wake_ns: int | None = None
    """When an engine that has nothing to do decides anew, if nothing comes before."""
    padded: bool = False
    """Whether all prompts are computed as long as the longest."""
    preempts: int = 0
    """How many give up their KV blocks first and go back to the queue, in the order of `EngineView.latest`."""

    def of_begun(self) -> "Step":
        """Return this step without the prompts that are new."""
        return self._replace(prompts=[(request, count) for request, count in self.prompts if request.computed])


DECODE_ON = Step()
"""Nobody is taken: those who decode go on until something changes."""
