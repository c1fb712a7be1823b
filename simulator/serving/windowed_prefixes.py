"""Prefix cache of a model some of whose layers keep only a window of positions.

Model: vLLM's hybrid KV cache: a prefix is found as far as the layers that keep everything have it and those with a
window have the last window of it; units of both kinds give way in one order, and those that a request's windows have
left are free while it goes on. What is in somebody's window is copied here, as far as there is room.
"""

from collections.abc import Sequence

from simulator.errors import InvariantError
from simulator.serving.paging import Windows
from simulator.serving.prefix_cache import PrefixCache
from simulator.serving.request import Request
from simulator.strict import Strict


class WindowedPrefixes(PrefixCache):
    """Units of layers that keep everything, which requests reference, and beside them those of layers with a window."""

    def __init__(
        self,
        unit_tokens: int,
        block_tokens: int,
        windows: Windows,
        eviction: str = "lru",
        parameters: Strict | None = None,
        pin_units: int = 0,
        pin_most: int = 0,
    ) -> None:
        super().__init__(unit_tokens, block_tokens, eviction, parameters, pin_units, pin_most)
        self.tails = PrefixCache(unit_tokens, block_tokens, eviction, parameters, beside=self)
        self.unit_blocks *= windows.full
        self.tails.unit_blocks *= windows.windowed
        self._depth = -(-(windows.tokens - 1) // unit_tokens)  # units before a position that it sees

    def found(self, request: Request) -> int:
        """Return how many units of a request that is to be prefilled are here with the window before their end."""
        return self._reach(request.keys, super().found(request))

    def _reach(self, keys: Sequence[int], units: int) -> int:
        """Return at how many of the first `units`, at most, a prompt may go on: where the last window is there."""
        if not self._depth:
            return units
        together = 0
        for place in range(units - 1, -1, -1):
            together = together + 1 if keys[place] in self.tails else 0
            if together == self._depth:
                return place + together
        return together

    def found_in_use(self, request: Request) -> tuple[int, int]:
        """Return how many units are here as `found`, and how many of them are not among those that may be evicted."""
        return self._in_use(request.keys, self.found(request))

    def acquire(self, keys: Sequence[int], units: int) -> None:
        """Hold the first `units`, which are here."""
        super().acquire(keys, units)
        self._keep(keys, max(0, units - self._depth), units)

    def insert(self, keys: Sequence[int], first: int, last: int) -> None:
        """Hold units `first` to `last` (not included) that have just been computed; those already here are taken."""
        super().insert(keys, first, last)
        self._keep(keys, first, last)

    def _keep(self, keys: Sequence[int], first: int, last: int) -> None:
        """Have units of layers with a window from now on, as used just now."""
        self.tails.insert(keys, first, last)
        self.tails.release(keys, last, first)
        self._weigh()

    def _weigh(self) -> None:
        self.beside_blocks = self.tails.idle * self.tails.unit_blocks

    def give_way(self, blocks: int) -> list[int]:
        """Give up units of either kind until so many blocks are free, or none is left; return their keys."""
        gone: list[int] = []
        while blocks > 0 and (stretch := self._victims.next()) is not None:
            home = self.tails if stretch.windowed else self
            units = min(len(stretch), -(-blocks // home.unit_blocks))
            gone += home._give_up(stretch, units)
            blocks -= units * home.unit_blocks
        self._weigh()
        return gone

    def expire(self, now_ns: int) -> None:
        """Give up what is too old; the time is that of what is released from now on."""
        self.now_ns = self.tails.now_ns = now_ns
        while (stretch := self._victims.expired(now_ns)) is not None:
            (self.tails if stretch.windowed else self)._give_up(stretch, len(stretch))
        self._weigh()

    def check(self) -> None:
        """Raise InvariantError unless units of both kinds are counted once and nobody references those of windows."""
        super().check()
        self.tails.check()
        if self.tails.referenced or self.beside_blocks != self.tails.idle * self.tails.unit_blocks:
            raise InvariantError(f"prefix cache: {self.tails.referenced} units of layers with a window are referenced")
