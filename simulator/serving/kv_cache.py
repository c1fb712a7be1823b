"""KV memory of one engine in paged blocks: what is held, what decoding will add, and what may still be given out.

Source: paged attention and the allocator's watermark (vLLM, SOSP 2023).
"""

from simulator.errors import InvariantError
from simulator.serving.decode_batch import DecodeBatch


class KVCache:
    """Blocks in three uses: the decode batch (it grows), held (prefilling, to be moved, reserved), and free."""

    __slots__ = ("batch", "block_tokens", "held", "total", "watermark")

    def __init__(self, total_blocks: int, block_tokens: int, watermark_blocks: int, batch: DecodeBatch) -> None:
        self.total = total_blocks
        self.block_tokens = block_tokens
        self.watermark = watermark_blocks
        self.held = 0
        self.batch = batch

    def blocks_for(self, tokens: int) -> int:
        """Return the blocks that hold `tokens` tokens of one request."""
        return -(-tokens // self.block_tokens)

    @property
    def used(self) -> int:
        """Blocks in use now."""
        return self.held + self.batch.blocks

    def used_after(self, steps: int) -> int:
        """Return the blocks in use after so many more decode steps, when nothing else changes."""
        return self.held + self.batch.blocks_after(steps)

    def admissible(self, used: int) -> int:
        """Return the blocks that a newcomer may take: free ones above the watermark; all of them when none is used."""
        return self.total - used - self.watermark if used else self.total

    def steps_that_fit(self, steps: int) -> int:
        """Return how many of the next `steps` decode steps find the blocks that they need (at most `steps`)."""
        room = self.total - self.held
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

    def check(self) -> None:
        """Raise InvariantError when blocks are over-committed or do not add up."""
        self.batch.check()
        if self.held < 0 or self.used > self.total:
            raise InvariantError(f"KV cache: {self.held} held + {self.batch.blocks} decoding of {self.total} blocks")
