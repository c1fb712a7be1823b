"""What the observer of an instance has been told: the requests and KV blocks that it believes to be there.

Model: values that stand still, or blocks that grow evenly, between two reports; see simulator.results.windows.
"""

from collections.abc import Callable, Sequence

from simulator.clock import Clock
from simulator.serving.rank import Rank


class Account:
    """Sequences and KV blocks of an instance's ranks as last reported; `tokens` of the jump under way are reported."""

    __slots__ = ("_grown", "_observe", "_only", "_others", "_ranks", "env", "kv_blocks", "running", "tokens", "waiting")

    def __init__(
        self, env: Clock, ranks: Sequence[Rank], observe: Callable[[int, int, int, int, int, int, int], None]
    ) -> None:
        self.env = env
        self.running = self.waiting = self.kv_blocks = self.tokens = 0
        self._observe = observe
        self._ranks = ranks
        self._only = ranks[0] if len(ranks) == 1 else None
        self._others = 0  # KV blocks that no batch holds, of several ranks
        self._grown = (0, 0)  # steps begun of the jump under way, and the batches' KV blocks then

    def begins(self) -> None:
        """Take stock: an iteration begins, or the instance has nothing to do."""
        running = waiting = 0
        for rank in self._ranks:
            running += rank.running - rank.reserved_seats
            waiting += rank.queued + rank.reserved
        self.running, self.waiting = running, waiting
        self.kv_blocks = self.blocks()
        if self._only is None:
            self._others = self.kv_blocks - sum(rank.batch.blocks for rank in self._ranks)
        self.tokens = 0

    def took(self, blocks: int) -> None:
        """Note that so many more KV blocks are in use that no batch holds."""
        self.kv_blocks += blocks
        self._others += blocks

    def passed(self, state: int, kv_blocks: int, tokens: int) -> None:
        """Report what held since the last report; so many blocks are in use now, so many tokens have come since."""
        self._observe(self.env.now, state, self.running, self.waiting, self.kv_blocks, tokens, kv_blocks)
        self.kv_blocks = kv_blocks

    def blocks(self) -> int:
        """Return the KV blocks in use at the end of an iteration."""
        return self._only.kv.used if self._only is not None else sum(rank.kv.used for rank in self._ranks)

    def blocks_after(self, steps: int) -> int:
        """Return the KV blocks in use when so many steps of the jump under way have begun."""
        if not steps:
            return self.blocks()
        if self._only is not None:
            return self._only.kv.used_after(steps)
        if self._grown[0] != steps:
            batches = [(rank.batch, rank.decodes) for rank in self._ranks]
            self._grown = steps, sum(b.blocks_after(steps) if decodes else b.blocks for b, decodes in batches)
        return self._grown[1] + self._others

    def forget_growth(self) -> None:
        """Note that the jump under way has ended."""
        self._grown = (0, 0)
