"""The requests that decode together. Nothing is stepped per token: what each holds follows from when it joined.

Model: iteration-level scheduling (Orca, OSDI 2022); a member that joined at iteration i with c tokens of context holds
c + (n - i) at iteration n, so sums over the batch are linear in n and block counts need only c - i modulo a block.
"""

from collections.abc import Iterator
from heapq import heappop, heappush

from simulator.errors import InvariantError
from simulator.serving.request import Request


class Members:
    """Requests of a batch in the order in which they joined, and the iteration at which each finishes."""

    __slots__ = ("_finishes", "iteration", "members")

    def __init__(self) -> None:
        self.iteration = 0
        self.members: dict[int, Request] = {}
        self._finishes: list[tuple[int, int, Request]] = []

    def __len__(self) -> int:
        return len(self.members)

    def enter(self, request: Request, iterations: int) -> None:
        """Add a request that finishes after so many iterations."""
        request.finish_iteration = self.iteration + iterations
        self.members[request.request_id] = request
        heappush(self._finishes, (request.finish_iteration, request.request_id, request))

    def steps_to_finish(self) -> int:
        """Return the iterations until the first member finishes; the batch must not be empty."""
        finishes = self._finishes
        while finishes[0][2].finish_iteration != finishes[0][0]:  # preempted since: a stale entry
            heappop(finishes)
        return finishes[0][0] - self.iteration

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
    """Tokens fed for each member in an iteration."""

    __slots__ = ("_phases", "block_tokens", "blocks", "context", "ghost_blocks", "ghost_context", "ghosts", "keeps")

    def __init__(self, block_tokens: int, keeps: bool = False) -> None:
        super().__init__()
        self.keeps = keeps  # whether who has finished goes on in the batch, as padding, until all have
        self.ghosts = self.ghost_context = self.ghost_blocks = 0  # of those
        self.block_tokens = block_tokens
        self.context = 0  # tokens whose keys and values the members hold now
        self.blocks = 0  # KV blocks of their own that they hold now
        self._phases = [0] * block_tokens  # members by (iteration - held tokens) modulo a block

    def join(self, request: Request) -> None:
        """Add a request whose prefill is done: it holds `prefill_tokens - 1` tokens; the last one is yet to be fed."""
        held = request.prompt_tokens + request.generated - 1
        request.offset = self.iteration - held
        self.enter(request, request.output_tokens - request.generated)
        self.context += held
        self.blocks += -(-held // self.block_tokens) - request.shared_blocks
        self._phases[request.offset % self.block_tokens] += 1

    def leave(self, request: Request) -> None:
        """Take a member out and write down how many tokens it has generated."""
        del self.members[request.request_id]
        request.generated = self.generated(request)
        request.finish_iteration = -1
        held = self.iteration - request.offset
        self.context -= held
        self.blocks -= -(-held // self.block_tokens) - request.shared_blocks
        self._phases[request.offset % self.block_tokens] -= 1
        if self.ghosts and not self.members:  # finished, preempted or cancelled, the last one leaves no batch behind
            self.drop_padding()

    def generated(self, request: Request, steps: int = 0) -> int:
        """Return the output tokens that a member has generated when so many more iterations are over."""
        return request.output_tokens - (request.finish_iteration - self.iteration) + steps

    def room(self, request: Request, steps: int = 0) -> int:
        """Return a member's KV blocks, shared ones included, when so many more iterations have begun."""
        return -(-(self.iteration - request.offset + steps) // self.block_tokens)

    def advance(self, steps: int) -> None:
        """Let every member generate `steps` tokens."""
        self.blocks = self.blocks_after(steps)
        self.iteration += steps
        self.context += steps * (len(self.members) + self.ghosts)
        self.ghost_context += steps * self.ghosts

    def pop_finished(self) -> list[Request]:
        """Take out the members that finish at this iteration, in order of request id."""
        done = []
        for request in self.due():
            context, blocks = self.context, self.blocks
            self.leave(request)
            done.append(request)
            if self.keeps and self.members:
                self.pad(context - self.context, blocks - self.blocks)
        return done

    def pad(self, context: int, blocks: int) -> None:
        """Keep the place of one who has finished with so much context, until nobody is left."""
        self.ghosts += 1
        self.ghost_context, self.context = self.ghost_context + context, self.context + context
        self.ghost_blocks, self.blocks = self.ghost_blocks + blocks, self.blocks + blocks

    def drop_padding(self) -> None:
        """Give up the places of those who have finished."""
        self.context -= self.ghost_context
        self.blocks -= self.ghost_blocks
        self.ghosts = self.ghost_context = self.ghost_blocks = 0

    def blocks_after(self, steps: int) -> int:
        """Return the KV blocks that the members hold after so many more steps: the sum of ceil(held / block).

        A member takes a block at the step before which its blocks are full: those of phase n do so at iteration n + 1
        and then once every block, so whole rounds add the batch and the rest is a slice of the phases.
        """
        size, phases = self.block_tokens, self._phases
        rounds, rest = divmod(steps, size)
        first = self.iteration % size
        taken = sum(phases[first : first + rest])
        if first + rest > size:
            taken += sum(phases[: first + rest - size])
        return self.blocks + rounds * len(self.members) + taken

    def blocks_at_most(self, steps: int) -> int:
        """Return a bound on `blocks_after(steps)` that costs nothing: every member one token short of another block."""
        size, count = self.block_tokens, len(self.members)
        return (self.context + (steps + size - 1) * count) // size

    def check(self) -> None:
        """Raise InvariantError unless context, phases and finish times agree with the members."""
        held = [self.iteration - r.offset for r in self.members.values()]
        if sum(held) + self.ghost_context != self.context or sum(self._phases) != len(self.members):
            raise InvariantError(f"decode batch: context {self.context} is not the sum over members {sum(held)}")
        shared = sum(r.shared_blocks for r in self.members.values())
        if sum(-(-h // self.block_tokens) for h in held) - shared + self.ghost_blocks != self.blocks:
            raise InvariantError("decode batch: blocks are not the sum over members")
        for r in self.members.values():
            if self.iteration - r.offset != r.prompt_tokens + self.generated(r) - 1:
                raise InvariantError(f"decode batch: {r!r} holds another context than it generated")
