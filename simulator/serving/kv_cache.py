"""KV memory of one rank in paged blocks: what is held, what decoding will add, and what may still be given out.

Source: paged attention and the allocator's watermark (vLLM, SOSP 2023).
"""

from collections.abc import Callable, Sequence

from simulator.errors import InvariantError
from simulator.serving.decode_batch import DecodeBatch
from simulator.serving.prefix_cache import PrefixCache
from simulator.serving.speculation import SpeculativeBatch


class KVCache:
    """Blocks in four uses: the decode batch (it grows), held (prefilling, to be moved, reserved), cached, and free.

    Cached units that nobody references give way to whoever needs blocks, so they count as free.
    """

    __slots__ = ("batch", "evicted", "held", "prefixes", "total", "watermark")

    def __init__(
        self,
        total_blocks: int,
        watermark_blocks: int,
        batch: DecodeBatch | SpeculativeBatch,
        prefixes: PrefixCache | None = None,
    ) -> None:
        self.total = total_blocks
        self.watermark = watermark_blocks
        self.held = 0
        self.batch = batch
        self.prefixes = prefixes
        self.evicted: Callable[[Sequence[int]], None] | None = None  # hears of the units that were given up

    @property
    def shared(self) -> int:
        """Blocks of the prefix cache that requests reference."""
        prefixes = self.prefixes
        return prefixes.referenced * prefixes.unit_blocks if prefixes is not None else 0

    @property
    def used(self) -> int:
        """Blocks in use now."""
        prefixes = self.prefixes
        own = self.held + self.batch.blocks
        return own if prefixes is None else own + prefixes.referenced * prefixes.unit_blocks

    def used_after(self, steps: int) -> int:
        """Return the blocks in use after so many more decode steps, when nothing else changes."""
        return self.held + self.batch.blocks_after(steps) + (self.shared if self.prefixes is not None else 0)

    def admissible(self, used: int) -> int:
        """Return the blocks that a newcomer may take: free ones above the watermark; all of them when none is used."""
        return self.total - used - self.watermark if used else self.total

    def steps_that_fit(self, steps: int) -> int:
        """Return how many of the next `steps` decode steps find the blocks that they need (at most `steps`)."""
        room = self.total - self.held - (self.shared if self.prefixes is not None else 0)
        if self.batch.blocks_at_most(steps) <= room or self.batch.blocks_after(steps) <= room:
            return steps
        low, high = 0, steps  # low steps fit (if any do), high do not; growth is monotone
        while high - low > 1:
            middle = (low + high) // 2
            if self.batch.blocks_after(middle) <= room:
                low = middle
            else:
                high = middle
        return low

    def make_room(self) -> None:
        """Evict cached units that blocks in use have taken the place of."""
        prefixes = self.prefixes
        if prefixes is None:
            return
        cached = prefixes.referenced + prefixes.idle
        over = self.held + self.batch.blocks + cached * prefixes.unit_blocks + prefixes.beside_blocks - self.total
        if over > 0:
            gone = prefixes.give_way(over)
            if self.evicted is not None:
                self.evicted(gone)

    def check(self) -> None:
        """Raise InvariantError when blocks are over-committed or do not add up."""
        self.batch.check()
        if self.held < 0 or self.used > self.total:
            raise InvariantError(f"KV cache: {self.held} held + {self.batch.blocks} decoding of {self.total} blocks")
        if self.prefixes is not None:
            self.prefixes.check()
