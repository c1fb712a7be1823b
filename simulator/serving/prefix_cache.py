"""Prefix cache of one rank: KV blocks under keys of the prompt prefixes that they hold, shared and evicted in units.

Sources: hash-keyed blocks with reference counts, tails evicted before their prefixes (vLLM's automatic prefix caching);
a request that computed what another had cached meanwhile takes the cached copy (SGLang's RadixAttention).
"""

from collections.abc import Iterator, Sequence

from simulator.errors import InvariantError
from simulator.serving.eviction import EVICTIONS, Victims
from simulator.serving.prefix_index import PrefixIndex
from simulator.serving.request import Request
from simulator.serving.stretches import Cached, Stretches
from simulator.strict import Strict


class PrefixCache:
    """Units by key: those that requests reference, and those that may be evicted. All counts are in units.

    Keys of a request are in order of its prefix: it holds a prefix of them, so a unit is never without those before it
    while anyone uses it. Units that have always been held together are kept as one stretch.
    """

    _victims: Victims

    def __init__(
        self,
        unit_tokens: int,
        block_tokens: int,
        eviction: str = "lru",
        parameters: Strict | None = None,
        pin_units: int = 0,
        pin_most: int = 0,
        beside: "PrefixCache | None" = None,
    ) -> None:
        """`beside`: the cache whose units give way in one order with these, which are of layers with a window."""
        if unit_tokens % block_tokens:
            raise ValueError(f"units of {unit_tokens} tokens are no whole number of blocks of {block_tokens}")
        self.unit_tokens = unit_tokens
        self.unit_blocks = unit_tokens // block_tokens
        self.now_ns = 0
        self.referenced = self.idle = self.pinned = 0
        self.beside_blocks = 0  # of units of layers with a window, which nobody references
        self.index: PrefixIndex | None = None  # hears under `bit` of the units that come and go
        self.bit = 0
        self.pin_most = pin_most if pin_units else 0
        self._pin_units = pin_units
        kind = EVICTIONS[eviction]
        order = kind.make(parameters or kind.parameters())
        self._from_first = order.first
        self._windowed = beside is not None
        self._victims = Victims(order) if beside is None else beside._victims
        self._stretches: Stretches[Cached] = Stretches(self._victims.parted)
        self._births = 0

    def __contains__(self, key: int) -> bool:
        return key in self._stretches

    def __iter__(self) -> Iterator[Cached]:
        """Yield the stretches of units that are here."""
        return iter(self._stretches)

    def match(self, keys: Sequence[int], most: int) -> int:
        """Return how many units at the beginning of `keys`, at most `most`, are here."""
        return self._stretches.here(keys, 0, min(most, len(keys)))

    def found(self, request: Request) -> int:
        """Return how many units of a request that is to be prefilled are here; its last token is always computed."""
        return self.match(request.keys, usable_units(request, self.unit_tokens))

    def found_in_use(self, request: Request) -> tuple[int, int]:
        """Return how many units are here as `found`, and how many of them are not among those that may be evicted."""
        return self._in_use(request.keys, min(usable_units(request, self.unit_tokens), len(request.keys)))

    def _in_use(self, keys: Sequence[int], most: int) -> tuple[int, int]:
        found = idle = 0
        for stretch, _, units in self._stretches.along(keys, 0, most):
            found += units
            if stretch.place >= 0:
                idle += units
        return found, found - idle

    def acquire(self, keys: Sequence[int], units: int) -> None:
        """Hold the first `units`, which are here."""
        self._hold(keys, 0, min(units, len(keys)))

    def _hold(self, keys: Sequence[int], first: int, last: int) -> None:
        for stretch in self._stretches.cut(keys, first, last):
            if stretch.place >= 0:
                units = len(stretch)
                self._victims.remove(stretch)
                self.idle -= units
                self.referenced += units
            stretch.references += 1
            stretch.uses += 1

    def insert(self, keys: Sequence[int], first: int, last: int) -> None:
        """Hold units `first` to `last` (not included) that have just been computed; those already here are taken."""
        while first < last:
            if keys[first] in self._stretches:
                here = self._stretches.here(keys, first, last)
                self._hold(keys, first, first + here)
                first += here
                continue
            pins = min(last, self._pin_units, first + self.pin_most - self.pinned) - first
            new = Cached(keys, first, first + pins if pins > 0 else last, self._births, pins > 0, self._windowed)
            first += self._take_in(new)

    def _take_in(self, stretch: Cached) -> int:
        keys, first = stretch.keys, stretch.begin
        units = self._stretches.add(stretch)
        self._births += units
        self.referenced += units
        if stretch.pinned:
            self.pinned += units
        if self.index is not None:
            self.index.add(keys, first, first + units, self.bit)
        return units

    def release(self, keys: Sequence[int], units: int, first: int = 0) -> None:
        """Hold units `first` to `units` no longer; of those that nobody holds the last ones are the first to go."""
        for stretch in reversed(self._stretches.cut(keys, first, min(units, len(keys)))):
            stretch.references -= 1
            if not stretch.references and not stretch.pinned:
                self._victims.add(stretch, self.now_ns)
                self.idle += len(stretch)
                self.referenced -= len(stretch)

    def given_up(self, keys: Sequence[int], units: int, dropped: dict[Cached, int]) -> int:
        """Return how many of the first `units` of a prompt, which it holds, nobody would hold if it went.

        Those in `dropped` have lost so many of who holds them already; this one is noted there.
        """
        alone = 0
        for stretch in self._stretches.cut(keys, 0, min(units, len(keys))):
            dropped[stretch] = dropped.get(stretch, 0) + 1
            if dropped[stretch] == stretch.references:
                alone += len(stretch)
        return alone

    def give_way(self, blocks: int) -> list[int]:
        """Give up units that nobody references until so many blocks are free, or none is left; return their keys."""
        return self.evict(min(self.idle, -(-blocks // self.unit_blocks)))

    def evict(self, units: int) -> list[int]:
        """Give up so many units that nobody references, and return their keys."""
        gone: list[int] = []
        while len(gone) < units:
            stretch = self._victims.next()
            if stretch is None:
                raise InvariantError(f"prefix cache: {units} units to give up, {len(gone)} may go")
            gone += self._give_up(stretch, min(units - len(gone), len(stretch)))
        return gone

    def expire(self, now_ns: int) -> None:
        """Give up what is too old; the time is that of what is released from now on."""
        self.now_ns = now_ns
        while (stretch := self._victims.expired(now_ns)) is not None:
            self._give_up(stretch, len(stretch))

    def _give_up(self, stretch: Cached, units: int) -> Sequence[int]:
        begin = stretch.begin if self._from_first else stretch.end - units
        gone = self._stretches.remove(stretch, units, self._from_first)
        self._victims.shrunk(stretch)
        self.idle -= units
        if self.index is not None:
            self.index.drop(stretch.keys, begin, begin + units, self.bit)
        return gone if self._from_first else gone[::-1]

    def check(self) -> None:
        """Raise InvariantError unless every unit is referenced, pinned or evictable, and counted once."""
        self._stretches.check()
        held = sum(len(stretch) for stretch in self if stretch.references > 0 or stretch.pinned)
        if held != self.referenced or len(self._stretches) != self.referenced + self.idle:
            raise InvariantError(
                f"prefix cache: {held} units held and {len(self._stretches)} in all, "
                f"counted {self.referenced} and {self.idle} idle"
            )
        pinned = sum(len(stretch) for stretch in self if stretch.pinned)
        if any(stretch.references < 0 for stretch in self) or self.pinned != pinned:
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
