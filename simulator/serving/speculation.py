"""Speculative decoding of a batch: each iteration verifies drafted tokens, and a member gains those that are accepted.

Model: speculative sampling (Leviathan et al., arXiv:2211.17192): drafted token j is accepted with a probability of its
own as long as all before it were, and the target model adds one token, so that at least one comes of every iteration.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from simulator.errors import InvariantError
from simulator.randomness import stream
from simulator.serving.decode_batch import Members
from simulator.serving.paging import Paging
from simulator.serving.request import Request

FIRST_ITERATIONS = 256
"""Iterations ahead for which sums are kept at first; longer requests double them."""


class Speculation(NamedTuple):
    """How many tokens an engine drafts for each request and iteration, and how many of them turn out right."""

    acceptance: tuple[float, ...]
    """Of drafted token j: the probability that it is accepted when all before it were."""
    seed: int

    @property
    def tokens(self) -> int:
        """Tokens drafted for a request in one iteration."""
        return len(self.acceptance)

    @property
    def mean_gain(self) -> float:
        """Expected tokens of an iteration for one request: 1 + a1 + a1 a2 + ..."""
        return 1.0 + float(np.sum(np.cumprod(self.acceptance)))

    def gains(self, request: Request) -> Any:
        """Return the tokens that a request gains in its next iterations until it has all of its output.

        They are drawn from a stream of the request and of how far it is, so they depend on nobody beside it. What the
        last iteration makes beyond the output is discarded.
        """
        left = request.output_tokens - request.generated
        if not self.acceptance:
            return np.ones(left, dtype=np.int64)
        draws = stream(self.seed, f"speculation/{request.request_id}/{request.generated}").random(left)
        reached = np.cumprod(self.acceptance)[::-1]  # ascending: so many are accepted at least with probability ...
        gains = 1 + len(reached) - np.searchsorted(reached, draws, side="right")
        made = np.cumsum(gains)
        iterations = int(np.searchsorted(made, left)) + 1
        gains = gains[:iterations]
        gains[-1] -= int(made[iterations - 1]) - left
        return gains


class SpeculativeBatch(Members):
    """Members in the order in which they joined, as `DecodeBatch`, but each gains tokens at a pace of its own.

    They have one sequence each.
    What a member gains is known as it joins, so what the batch gains in each iteration to come is a sum kept in a ring.
    A member's KV blocks hold the drafted tokens too, from the beginning of an iteration on, and are not given back.
    """

    ghosts = 0
    keeps = False
    """Nobody who has finished stays in the batch."""
    parted: Sequence[Request] = ()

    __slots__ = (
        "_growth",
        "_rooms",
        "_totals",
        "blocks",
        "context",
        "lookahead",
        "paging",
        "positions",
        "speculation",
    )

    def __init__(self, paging: Paging, speculation: Speculation) -> None:
        super().__init__()
        self.paging = paging
        self.speculation = speculation
        self.lookahead = speculation.tokens  # tokens beyond the next that an iteration needs KV blocks for
        self.positions = speculation.tokens + 1  # fed for each member in an iteration
        self.context = 0  # tokens whose keys and values the members keep now
        self.blocks = 0  # KV blocks of their own that they hold now
        self._totals: dict[int, Any] = {}  # by member: tokens kept after 0, 1, ... iterations
        self._rooms: dict[int, Any] = {}  # by member: KV blocks, shared ones included, once so many have begun
        self._growth = np.zeros((2, FIRST_ITERATIONS), dtype=np.int64)  # of context and blocks, by iteration

    def join(self, request: Request) -> None:
        """Add a request whose prefill is done: it holds `prefill_tokens - 1` tokens; the last one is yet to be fed."""
        held = request.prompt_tokens + request.generated - 1
        gains = self.speculation.gains(request)
        kept = np.empty(len(gains) + 1, dtype=np.int64)
        kept[0] = held
        np.cumsum(gains, out=kept[1:])
        kept[1:] += held
        rooms = np.empty_like(kept)
        rooms[0] = held
        rooms[1:] = kept[:-1] + self.positions
        rooms = self.paging.rooms(rooms)
        request.offset = self.iteration
        self.enter(request, len(gains))
        key = request.request_id
        self._totals[key], self._rooms[key] = kept, rooms
        self.context += held
        self.blocks += int(rooms[0]) - request.shared_blocks
        self._add(kept, rooms, 0, 1)

    def leave(self, request: Request) -> None:
        """Take a member out and write down how many tokens it has generated."""
        request.generated = self.generated(request)
        key, done = request.request_id, self.iteration - request.offset
        kept, rooms = self._totals.pop(key), self._rooms.pop(key)
        del self.members[key]
        self.sequences -= request.samples
        request.finish_iteration = -1
        self.context -= int(kept[done])
        self.blocks -= int(rooms[done]) - request.shared_blocks
        self._add(kept, rooms, done, -1)

    def _add(self, kept: Any, rooms: Any, done: int, sign: int) -> None:
        """Add what a member, so many of whose iterations are done, gains and takes in those to come; or take it off."""
        left = len(kept) - 1 - done
        if not left:  # it has finished
            return
        while left > self._growth.shape[1]:
            self._widen()
        at = (self.iteration + np.arange(left)) % self._growth.shape[1]
        self._growth[0, at] += sign * np.diff(kept[done:])
        self._growth[1, at] += sign * np.diff(rooms[done:])

    def _widen(self) -> None:
        """Keep the sums of twice as many iterations."""
        width = self._growth.shape[1]
        wide = np.zeros((2, 2 * width), dtype=np.int64)
        wide[:, (self.iteration + np.arange(width)) % (2 * width)] = self._ahead(width)
        self._growth = wide

    def _ahead(self, steps: int) -> Any:
        """Return what context and blocks grow by in each of the next iterations, a row each."""
        width = self._growth.shape[1]
        first = self.iteration % width
        if first + steps <= width:
            return self._growth[:, first : first + steps]
        if steps > width:
            found = np.zeros((2, steps), dtype=np.int64)
            found[:, :width] = self._ahead(width)
            return found
        return np.concatenate((self._growth[:, first:], self._growth[:, : first + steps - width]), axis=1)

    def generated(self, request: Request, steps: int = 0) -> int:
        """Return the output tokens that a member has generated when so many more iterations are over."""
        return self.held(request, steps) - request.prompt_tokens + 1

    def steps_until(self, request: Request, tokens: int) -> int:
        """Return the iterations until a member has so many output tokens, or more."""
        kept = self._totals[request.request_id]
        return int(np.searchsorted(kept, request.prompt_tokens + tokens - 1)) - (self.iteration - request.offset)

    def held(self, request: Request, steps: int = 0) -> int:
        """Return the tokens whose keys and values are kept for a member when so many more iterations are over."""
        return int(self._totals[request.request_id][self.iteration - request.offset + steps])

    def room(self, request: Request, steps: int = 0) -> int:
        """Return a member's KV blocks, shared ones included, when so many more iterations have begun."""
        return int(self._rooms[request.request_id][self.iteration - request.offset + steps])

    def advance(self, steps: int) -> None:
        """Let so many iterations go by."""
        ahead = self._ahead(steps)
        self.context += int(ahead[0].sum())
        self.blocks += int(ahead[1].sum())
        width = self._growth.shape[1]
        self._growth[:, (self.iteration + np.arange(min(steps, width))) % width] = 0
        self.iteration += steps

    def pop_finished(self) -> list[Request]:
        """Take out the members that finish at this iteration, in order of request id."""
        done = []
        for request in self.due():
            self.leave(request)
            done.append(request)
        return done

    def tokens(self, steps: int) -> Any:
        """Return the tokens that all members together gain in each of the next iterations."""
        return self._ahead(steps)[0]

    def contexts(self, steps: int) -> Any:
        """Return the positions that the members attend to in each of the next iterations, those fed included."""
        gained = self.tokens(steps)
        return self.context + self.positions * len(self.members) + np.cumsum(gained) - gained

    def blocks_after(self, steps: int) -> int:
        """Return the KV blocks that the members hold when so many more iterations have begun."""
        return self.blocks + int(self._ahead(steps)[1].sum())

    def blocks_at_most(self, steps: int) -> int:
        """Return a bound on `blocks_after(steps)`; it is the sum itself."""
        return self.blocks_after(steps)

    def check(self) -> None:
        """Raise InvariantError unless context and blocks, now and to come, agree with the members."""
        members = self.members.values()
        if sum(self.held(r) for r in members) != self.context:
            raise InvariantError(f"speculative batch: context {self.context} is not the sum over members")
        if sum(self.room(r) - r.shared_blocks for r in members) != self.blocks:
            raise InvariantError("speculative batch: blocks are not the sum over members")
        left = [(r, r.finish_iteration - self.iteration) for r in members]
        if any(self.generated(r, steps) != r.output_tokens for r, steps in left):
            raise InvariantError("speculative batch: a member does not end with its output")
        sums = [sum(int(of[r.request_id][-1]) for r in members) for of in (self._totals, self._rooms)]
        shared = sum(r.shared_blocks for r in members)
        if [self.context, self.blocks + shared] != [
            s - int(g) for s, g in zip(sums, self._growth.sum(axis=1), strict=True)
        ]:
            raise InvariantError("speculative batch: what is to come is not the sum over members")
