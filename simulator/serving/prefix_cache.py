"""Prefix cache of one rank: KV blocks under keys of the prompt prefixes that they hold, shared and evicted in units.

Sources: hash-keyed blocks with reference counts, tails evicted before their prefixes (vLLM's automatic prefix caching);
a request that computed what another had cached meanwhile takes the cached copy (SGLang's RadixAttention).
"""

from collections.abc import Iterable, Sequence
from itertools import count

from simulator.errors import InvariantError
from simulator.serving.eviction import EVICTIONS
from simulator.serving.prefix_index import PrefixIndex
from simulator.serving.request import Request
from simulator.strict import Strict


class PrefixCache:
    """Units by key: those that requests reference, and those that may be evicted. All counts are in units.

    Keys of a request are in order of its prefix: it holds a prefix of them, so a unit is never without those before it
    while anyone uses it.
    """

    def __init__(
        self,
        unit_tokens: int,
        block_tokens: int,
        eviction: str = "lru",
        parameters: Strict | None = None,
        pin_units: int = 0,
        pin_most: int = 0,
    ) -> None:
        if unit_tokens % block_tokens:
            raise ValueError(f"units of {unit_tokens} tokens are no whole number of blocks of {block_tokens}")
        self.unit_tokens = unit_tokens
        self.unit_blocks = unit_tokens // block_tokens
        self.now_ns = 0
        self.references: dict[int, int] = {}  # by key: requests that hold the unit
        self.uses: dict[int, int] = {}  # by key: requests that ever held it
        self.born: dict[int, int] = {}  # by key: when it came in
        self.referenced = self.idle = self.pinned = 0
        self.index: PrefixIndex | None = None  # hears under `bit` of the units that come and go
        self.bit = 0
        self._pin_units, self._pin_most = pin_units, pin_most
        self._pins: set[int] = set()
        kind = EVICTIONS[eviction]
        self._victims = kind.make(self, parameters or kind.parameters())
        self._births = count()

    @property
    def keys(self) -> Iterable[int]:
        """The units that are here."""
        return self.references

    def match(self, keys: Sequence[int], most: int) -> int:
        """Return how many units at the beginning of `keys`, at most `most`, are here."""
        there = self.references
        found = 0
        for key in keys[:most]:
            if key not in there:
                break
            found += 1
        return found

    def found(self, request: Request) -> int:
        """Return how many units of a request that is to be prefilled are here; its last token is always computed."""
        return self.match(request.keys, usable_units(request, self.unit_tokens))

    def found_in_use(self, request: Request) -> tuple[int, int]:
        """Return how many units are here as `found`, and how many of them are not among those that may be evicted."""
        references, pins = self.references, self._pins
        units = idle = 0
        for key in request.keys[: usable_units(request, self.unit_tokens)]:
            count = references.get(key)
            if not count:
                if count is None:
                    break
                idle += key not in pins
            units += 1
        return units, units - idle

    def acquire(self, keys: Sequence[int], units: int) -> None:
        """Hold the first `units`, which are here."""
        references, uses, pins = self.references, self.uses, self._pins
        idle = []
        for key in keys[:units]:
            count = references[key]
            if not count and key not in pins:
                idle.append(key)
            references[key] = count + 1
            uses[key] += 1
        if idle:
            self._victims.remove(idle)
            self.idle -= len(idle)
            self.referenced += len(idle)

    def insert(self, keys: Sequence[int], first: int, last: int) -> None:
        """Hold units `first` to `last` (not included) that have just been computed; those already here are taken."""
        references, index = self.references, self.index
        for place in range(first, last):
            key = keys[place]
            if key in references:
                self.acquire((key,), 1)
                continue
            references[key] = self.uses[key] = 1
            self.born[key] = next(self._births)
            self.referenced += 1
            if index is not None:
                index.add(key, self.bit)
            if place < self._pin_units and self.pinned < self._pin_most:
                self._pins.add(key)
                self.pinned += 1

    def release(self, keys: Sequence[int], units: int) -> None:
        """Hold the first `units` no longer; of those that nobody holds the last ones are the first to go."""
        references, pins = self.references, self._pins
        idle = []
        for key in reversed(keys[:units]):
            count = references[key] - 1
            references[key] = count
            if not count and key not in pins:
                idle.append(key)
        if idle:
            self._victims.add(idle, self.now_ns)
            self.idle += len(idle)
            self.referenced -= len(idle)

    def evict(self, units: int) -> list[int]:
        """Give up so many units that nobody references, and return their keys."""
        gone = [self._victims.pop() for _ in range(units)]
        self._forget(gone)
        return gone

    def expire(self, now_ns: int) -> None:
        """Give up what is too old; the time is that of what is released from now on."""
        self.now_ns = now_ns
        self._forget(self._victims.expired(now_ns))

    def _forget(self, keys: Sequence[int]) -> None:
        for key in keys:
            del self.references[key], self.uses[key], self.born[key]
            if self.index is not None:
                self.index.drop(key, self.bit)
        self.idle -= len(keys)

    def check(self) -> None:
        """Raise InvariantError unless every unit is referenced, pinned or evictable, and counted once."""
        held = sum(count > 0 or key in self._pins for key, count in self.references.items())
        if held != self.referenced or len(self.references) != self.referenced + self.idle:
            raise InvariantError(
                f"prefix cache: {held} units held and {len(self.references)} in all, "
                f"counted {self.referenced} and {self.idle} idle"
            )
        if any(count < 0 for count in self.references.values()) or self.pinned != len(self._pins):
            raise InvariantError("prefix cache: a unit was released more often than held")


def usable_units(request: Request, unit_tokens: int) -> int:
    """Return the units of a request that it may find in a cache when it is prefilled: its last token is computed."""
    return (request.prompt_tokens + request.generated - 1) // unit_tokens


def session_keys(session: int, tokens: int, unit_tokens: int) -> range:
    """Return the keys of a context of a session: turns of one session share their beginning, and no other does.

    Model: the prompt of a turn begins with the whole context of the turn before, as far as it is long enough.
    """
    base = -1 - (session << 32)
    return range(base, base - tokens // unit_tokens, -1)
