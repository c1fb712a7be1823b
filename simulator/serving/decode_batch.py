"""The requests that decode together. Nothing is stepped per token: what each holds follows from when it joined.

Model: iteration-level scheduling (Orca, OSDI 2022); a member that joined at iteration i with c tokens of context holds
c + (n - i) at iteration n, so sums over the batch are linear in n and block counts need only c - i modulo a block.
"""

from collections.abc import Iterator
from heapq import heappop, heappush

from simulator.errors import InvariantError
from simulator.serving.paging import Paging
from simulator.serving.request import Request


class Members:
    """Requests of a batch in the order in which they joined, and the iteration at which each finishes."""

    __slots__ = ("_finishes", "iteration", "members", "sequences")

    def __init__(self) -> None:
        self.iteration = 0
        self.members: dict[int, Request] = {}
        self.sequences = 0  # of the members: each decodes as many as it has samples
        self._finishes: list[tuple[int, int, Request]] = []

    def __len__(self) -> int:
        return len(self.members)

    def enter(self, request: Request, iterations: int) -> None:
        """Add a request that finishes after so many iterations."""
        request.finish_iteration = self.iteration + iterations
        self.members[request.request_id] = request
        self.sequences += request.samples
        heappush(self._finishes, (request.finish_iteration, request.request_id, request))

    def steps_to_finish(self) -> int:
        """Return the iterations until the first member finishes; the batch must not be empty."""
        finishes = self._finishes
        while finishes[0][2].finish_iteration != finishes[0][0]:  # preempted since: a stale entry
            heappop(finishes)
        return finishes[0][0] - self.iteration

    @property
    def first_finish(self) -> int:
        """The iteration before which nobody finishes; the batch must not be empty."""
        return self._finishes[0][0]

    def due(self) -> Iterator[Request]:
        """Yield the members that finish at this iteration, in order of request id; each must leave before the next."""
        finishes = self._finishes
        while finishes and finishes[0][0] <= self.iteration:
            at, _, request = heappop(finishes)
            if request.finish_iteration == at:
                yield request


class DecodeBatch(Members):
    """Members in the order in which they joined, their total context, and the iteration at which each finishes."""

    lookahead = 0
    """Tokens beyond the next that an iteration needs KV blocks for."""
    positions = 1
    """Tokens fed for each sequence in an iteration."""

    __slots__ = (
        "_copies",
        "_phases",
        "blocks",
        "context",
        "ghost_blocks",
        "ghost_context",
        "ghosts",
        "keeps",
        "paging",
        "parted",
    )

    def __init__(self, paging: Paging, keeps: bool = False) -> None:
        super().__init__()
        self.keeps = keeps  # whether who has finished goes on in the batch, as padding, until all have
        self.ghosts = self.ghost_context = self.ghost_blocks = 0  # of those
        self.parted: list[Request] = []  # members some of whose answers have just left, for who cares to clear
        self.paging = paging
        self.context = 0  # tokens that a step attends to beside those it feeds: all that each sequence holds
        self.blocks = 0  # KV blocks of their own that they hold now
        self._phases = [0] * paging.size  # sequences by (iteration - held tokens) modulo a block
        self._copies = 0  # blocks that the next step takes for copies of prompts' last blocks

    def join(self, request: Request) -> None:
        """Add a request whose prefill is done: it holds `prefill_tokens - 1` tokens; the last one is yet to be fed."""
        held = request.prompt_tokens + request.generated - 1
        request.offset = self.iteration - held
        self.enter(request, request.shortest - request.generated)
        self._count(request, held, 1)

    def leave(self, request: Request) -> None:
        """Take a member out and write down how many tokens it has generated."""
        del self.members[request.request_id]
        request.generated = self.generated(request)
        request.finish_iteration = -1
        self.sequences -= request.samples
        self._count(request, self.iteration - request.offset, -1)
        if self.ghosts and not self.members:  # finished, preempted or cancelled, the last one leaves no batch behind
            self.drop_padding()

    def _count(self, request: Request, held: int, sign: int) -> None:
        """Count what a member holds, `held` tokens in each sequence, in (+1) or out (-1)."""
        size = self.paging.size
        if request.samples == 1:
            self.context += sign * held
            self.blocks += sign * (-(-held // size) - request.shared_blocks)
            self._phases[request.offset % size] += sign
        else:
            self._count_sequences(request, held, sign)

    def _count_sequences(self, request: Request, held: int, sign: int) -> None:
        """As `_count`, for any number of sequences and any blocks."""
        self.context += sign * held * request.samples
        self.blocks += sign * (self.paging.held(request, held) - request.shared_blocks)
        self._phases[request.offset % self.paging.size] += sign * request.samples
        self._copies += sign * self._due_copies(request, held)

    def _due_copies(self, request: Request, held: int) -> int:
        """Return the copies of its prompt's last block that a member still has to make, with its first step."""
        return request.samples - 1 if held == request.prompt_tokens and held % self.paging.size else 0

    def generated(self, request: Request, steps: int = 0) -> int:
        """Return the output tokens of each sequence of a member when so many more iterations are over."""
        return request.shortest - (request.finish_iteration - self.iteration) + steps

    def steps_until(self, request: Request, tokens: int) -> int:
        """Return the iterations until a member has so many output tokens in each sequence."""
        return tokens - self.generated(request)

    def room(self, request: Request, steps: int = 0) -> int:
        """Return a member's KV blocks, shared ones included, when so many more iterations have begun."""
        return self.paging.held(request, self.iteration - request.offset + steps)

    def advance(self, steps: int) -> None:
        """Let every sequence generate `steps` tokens, one at least."""
        self.blocks = self.blocks_after(steps)
        self._copies = 0
        self.iteration += steps
        self.context += steps * (self.sequences + self.ghosts)
        self.ghost_context += steps * self.ghosts

    def pop_finished(self) -> list[Request]:
        """Take out the members that finish at this iteration, in order of request id, and answers of other members."""
        done = []
        finishes, iteration = self._finishes, self.iteration
        while finishes and finishes[0][0] <= iteration:
            at, _, request = heappop(finishes)
            if request.finish_iteration != at:  # preempted since: a stale entry
                continue
            context, blocks, ended = self.context, self.blocks, request.samples
            if request.shortest < request.output_tokens:
                ended = self._part(request)
            else:
                self.leave(request)
                done.append(request)
            if self.keeps and self.members:
                self.pad(ended, context - self.context, blocks - self.blocks)
        return done

    def _part(self, request: Request) -> int:
        """Take out the answers of a member that are complete, and return how many those are; the others go on."""
        held = self.iteration - request.offset
        request.generated = self.generated(request)
        self._count(request, held, -1)
        ended = request.part()
        self._count(request, held, 1)
        self.sequences -= ended
        request.finish_iteration = self.iteration + request.shortest - request.generated
        heappush(self._finishes, (request.finish_iteration, request.request_id, request))
        self.parted.append(request)
        return ended

    def pad(self, sequences: int, context: int, blocks: int) -> None:
        """Keep the places of sequences that have finished with so much context in all, until nobody is left."""
        self.ghosts += sequences
        self.ghost_context, self.context = self.ghost_context + context, self.context + context
        self.ghost_blocks, self.blocks = self.ghost_blocks + blocks, self.blocks + blocks

    def drop_padding(self) -> None:
        """Give up the places of those who have finished."""
        self.context -= self.ghost_context
        self.blocks -= self.ghost_blocks
        self.ghosts = self.ghost_context = self.ghost_blocks = 0

    def blocks_after(self, steps: int) -> int:
        """Return the KV blocks that the members hold after so many more steps: the sum of ceil(held / block).

        A sequence takes a block at the step before which its blocks are full: those of phase n at iteration n + 1 and
        then once every block, so whole rounds add the batch and the rest is a slice of the phases.
        """
        size, phases = self.paging.size, self._phases
        rounds, rest = divmod(steps, size)
        first = self.iteration % size
        taken = sum(phases[first : first + rest])
        if first + rest > size:
            taken += sum(phases[: first + rest - size])
        return self.blocks + rounds * self.sequences + taken + (self._copies if steps else 0)

    def blocks_at_most(self, steps: int) -> int:
        """Return a bound on `blocks_after(steps)` that costs nothing: every sequence a token short of a block."""
        size, count = self.paging.size, self.sequences
        return (self.context - self.ghost_context + (steps + size - 1) * count) // size + self.ghost_blocks

    def check(self) -> None:
        """Raise InvariantError unless context, phases and finish times agree with the members."""
        held = [(r, self.iteration - r.offset) for r in self.members.values()]
        context = sum(r.samples * tokens for r, tokens in held)
        if self.sequences != sum(self._phases) or self.sequences != sum(r.samples for r, _ in held):
            raise InvariantError(f"decode batch: {self.sequences} sequences are not the sum over members")
        if context + self.ghost_context != self.context:
            raise InvariantError(f"decode batch: context {self.context} is not the sum over members {context}")
        shared = sum(r.shared_blocks for r in self.members.values())
        if sum(self.room(r) for r, _ in held) - shared + self.ghost_blocks != self.blocks:
            raise InvariantError("decode batch: blocks are not the sum over members")
        if sum(self._due_copies(r, tokens) for r, tokens in held) != self._copies:
            raise InvariantError("decode batch: copies to make are not the sum over members")
        for r in self.members.values():
            if self.iteration - r.offset != r.prompt_tokens + self.generated(r) - 1:
                raise InvariantError(f"decode batch: {r!r} holds another context than it generated")
