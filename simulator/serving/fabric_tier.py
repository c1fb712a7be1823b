"""A lower tier of a prefix cache in the memory of all nodes, which engines read and write over the cluster's fabric.

Model: a unit lies whole in one memory, that of the highest hash of unit and memory (rendezvous hashing, Thaler and
Ravishankar 1998). Units that a request loads, or that are stored together, move at once, as flows between memories and
devices. Sources: Mooncake's store (FAST 2025); the elastic memory service of CloudMatrix384 (arXiv 2506.12708).
"""

from collections.abc import Generator, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

from simpy import Event

from simulator.clock import Clock
from simulator.errors import InvariantError
from simulator.network.routing import mix
from simulator.serving.tiers import Copy, Store, TierSection
from simulator.units import TICK_BITS

NEVER = 1 << 200
"""The tick at which a copy is complete whose last byte has no time yet."""


class Network(Protocol):
    """Moves bytes between endpoints (see simulator.network)."""

    def transfer(self, shards: Sequence[tuple[int, int, int]]) -> Event:
        """Return an event that fires when every (source, target, bytes) has arrived."""


class Reach(NamedTuple):
    """What the devices of a rank have to do with a unit, as (device, bytes) each."""

    reads: tuple[tuple[int, int], ...]
    """What each takes when a unit is loaded: all that it holds of it, a copy of what others hold too included."""
    writes: tuple[tuple[int, int], ...]
    """What each sends when a unit is stored: every byte once."""


NOWHERE = Reach((), ())
"""Of a rank without tiers on the fabric."""


class Memories(NamedTuple):
    """Where memory is joined to the fabric."""

    ends: tuple[tuple[int, ...], ...]
    """Of each memory the endpoints, in the order of the slots of the devices that go by way of them."""
    slots: tuple[int, ...]
    """Of each device, by index."""

    def place(self, key: int) -> int:
        """Return the memory that a unit lies in."""
        return max(range(len(self.ends)), key=lambda place: mix(key, place))

    def end(self, place: int, device: int) -> int:
        """Return by way of which endpoint a device reaches a memory."""
        ends = self.ends[place]
        return ends[self.slots[device] % len(ends)]


class FabricTier(Store):
    """A store that all engines of a group share, on a fabric that `connect` joins it to before anything moves."""

    __slots__ = ("_env", "_launch_ns", "_memories", "_network", "_owed", "_place", "_writes", "_writing", "moved_bytes")

    def __init__(self, section: TierSection, unit_bytes: int, memories: Memories) -> None:
        super().__init__(section, unit_bytes)
        self._launch_ns = section.launch
        self._memories = memories
        self._env: Clock | None = None
        self._network: Network | None = None
        self._place: dict[int, int] = {}  # memory of each unit that is here
        self._writes = 0  # begun so far
        self._writing: dict[int, int] = {}  # the number of the write that each unit comes with
        self._owed = self.moved_bytes = 0  # of units that have begun to move: what they have in all, and in flows

    def connect(self, env: Clock, network: Network) -> None:
        """Move units over this network from now on."""
        self._env, self._network = env, network

    def put(self, copies: Sequence[Copy], reach: Reach) -> list[Copy]:
        """Write what is not here as soon as all of that may be read, the latest last; return what has no place."""
        if not self.units:
            return list(copies)
        new = {key: since for key, since in copies if key not in self}
        self._write(new, max(new.values(), default=0), reach)
        return self._add([Copy(key, NEVER) for key, _ in copies])

    def store(self, keys: Sequence[int], now: int, reach: Reach) -> list[Copy]:
        """Write of one prompt's beginning what is not here; of it the beginning is the last to go."""
        return self.put([Copy(key, now) for key in reversed(keys)], reach)

    def read(self, keys: Sequence[int], reach: Reach) -> Event:
        """Load units that it offers to the devices of a rank; the event fires when the last byte is there."""
        self.use(keys)
        self.loaded += len(keys)
        flows = self._flows(keys, reach.reads)
        return self._move(self._launch_ns, [(end, device, size) for (end, device), size in flows.items()])

    def _write(self, keys: dict[int, int], since: int, reach: Reach) -> None:
        if not keys:
            return
        assert self._env is not None
        self.written += len(keys)
        self._writes += 1
        for key in keys:
            self._place[key] = self._memories.place(key)
            self._writing[key] = self._writes
        flows = self._flows(list(keys), reach.writes)
        wait_ns = max(0, -(-since >> TICK_BITS) - self._env.now) + self._launch_ns
        end = self._move(wait_ns, [(device, memory, size) for (memory, device), size in flows.items()])
        end.callbacks.append(partial(self._written, list(keys), self._writes))

    def _written(self, keys: Sequence[int], write: int, event: Event) -> None:
        """Let units be read whose copies are complete, but for those that have been given up meanwhile."""
        assert self._env is not None
        now = self._env.now << TICK_BITS
        for key in keys:
            if self._writing.get(key) == write:
                del self._writing[key]
                self._since[key] = now

    def _flows(self, keys: Sequence[int], parts: Sequence[tuple[int, int]]) -> dict[tuple[int, int], int]:
        """Return the bytes between each endpoint of memories and each device, for units with such parts."""
        flows: dict[tuple[int, int], int] = {}
        for key in keys:
            place = self._place[key]
            for device, size in parts:
                pair = self._memories.end(place, device), device
                flows[pair] = flows.get(pair, 0) + size
        self._owed += len(keys) * sum(size for _, size in parts)
        self.moved_bytes += sum(flows.values())
        return flows

    def _move(self, wait_ns: int, shards: Sequence[tuple[int, int, int]]) -> Event:
        env, network = self._env, self._network
        assert env is not None
        assert network is not None

        def moved() -> Generator[Event, Any, None]:
            yield env.timeout(wait_ns)
            yield network.transfer(shards)

        return env.process(moved())

    def _add(self, copies: Sequence[Copy]) -> list[Copy]:  # type: ignore[override]
        gone = super()._add(copies)
        for key, _ in gone:
            del self._place[key]
            self._writing.pop(key, None)
        return gone

    def check(self) -> None:
        """Raise InvariantError unless all bytes of units that moved are flows, and what may not be read is coming."""
        super().check()
        if self.moved_bytes != self._owed:
            raise InvariantError(f"cache tier on the fabric: {self.moved_bytes} bytes of flows, {self._owed} of units")
        coming = {key for key, since in self._since.items() if since == NEVER}
        if coming != self._writing.keys() or self._place.keys() != self._since.keys():
            raise InvariantError(f"cache tier on the fabric: {len(coming)} units to come, {len(self._writing)} written")
