"""What the ranks of a group send at once, and the bytes that it puts on each link, also where some links are dead.

Model: every flow is spread evenly over its equal-cost paths, or over those that are left where links are dead; the most
loaded link sets the rate of all.
"""

from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import permutations
from math import inf
from typing import Protocol, cast

import numpy as np
from numpy.typing import NDArray

from simulator.errors import InputError
from simulator.network.detour import Alive
from simulator.topology.graph import Topology
from simulator.topology.spreading import exchange_loads, shard_loads

PROBES = 4
"""Devices asked at most to and from which others they have lost paths, before all pairs are looked at."""

Loads = NDArray[np.float64]
"""Bytes on each link, by index."""


class Pattern(Protocol):
    """What devices send at once."""

    def built(self, topology: Topology) -> Loads:
        """Return the loads while all links work; raises InputError where nothing joins two."""

    def around(self, topology: Topology, dead: Container[int]) -> Loads:
        """Return the loads over the paths that dead links leave; raises InputError where some pair has none."""


@dataclass(frozen=True, slots=True)
class Pairs:
    """One byte from the first to the second device of each pair."""

    pairs: Sequence[tuple[int, int]]
    plane: str | None = None

    def built(self, topology: Topology) -> Loads:
        """See `Pattern`."""
        return shard_loads(topology, [(a, b, 1.0) for a, b in self.pairs], self.plane)

    def around(self, topology: Topology, dead: Container[int]) -> Loads:
        """See `Pattern`."""
        return self.built(cast(Topology, Alive(topology, dead)))


@dataclass(frozen=True, slots=True)
class Exchange:
    """Each of `devices` sends `size_bytes` to each other one, but not to those of the same number in `blocks`."""

    devices: Sequence[int]
    size_bytes: float
    plane: str | None = None
    blocks: Sequence[int] | None = None

    def built(self, topology: Topology) -> Loads:
        """See `Pattern`; raises as `exchange_loads` does."""
        return exchange_loads(topology, self.devices, self.size_bytes, self.plane, self.blocks)

    def around(self, topology: Topology, dead: Container[int]) -> Loads:
        """See `Pattern`.

        Mostly all that crosses dead links begins or ends at a few devices, those to which one that is not hit itself
        has lost paths: then only what they send and are sent is looked at pair by pair.
        """
        alive, devices, plane = Alive(topology, dead), self.devices, self.plane
        probes = devices[:: -(-len(devices) // PROBES)]
        hits = [{d for d in devices if d != probe and alive.has_lost(d, probe, plane)} for probe in probes]
        for hit in sorted(filter(None, hits), key=len):
            loads = self._without(hit).built(topology)
            if not any(link in dead for link in np.flatnonzero(loads).tolist()):
                return loads + self._of(hit, alive)
        return self._of(set(devices), alive)

    def _without(self, devices: Container[int]) -> "Exchange":
        kept = [at for at, device in enumerate(self.devices) if device not in devices]
        blocks = None if self.blocks is None else [self.blocks[at] for at in kept]
        return replace(self, devices=[self.devices[at] for at in kept], blocks=blocks)

    def _of(self, devices: Container[int], alive: Alive) -> Loads:
        """Return the loads of what some devices send and are sent."""
        return shard_loads(cast(Topology, alive), self._shards(devices), self.plane)

    def _shards(self, devices: Container[int]) -> Iterator[tuple[int, int, float]]:
        numbered = list(zip(self.devices, self.devices if self.blocks is None else self.blocks, strict=True))
        for (a, here), (b, there) in permutations(numbered, 2):
            if here != there and (a in devices or b in devices):
                yield a, b, self.size_bytes


def loads_left(topology: Topology, pattern: Pattern, built: Loads, capacities: Sequence[float]) -> Loads:
    """Return the loads of a pattern, `built` while all links work, where some have a capacity (bytes/s) of zero.

    Raises InputError where some pair has no way.
    """
    if rate(built, capacities):
        return built
    return pattern.around(topology, {link for link, capacity in enumerate(capacities) if not capacity})


def rate_left(topology: Topology, pattern: Pattern, built: Loads, capacities: Sequence[float]) -> float:
    """Return how many times a second a pattern is carried, as `loads_left` has it; zero where some have no way."""
    try:
        return rate(loads_left(topology, pattern, built, capacities), capacities)
    except InputError:
        return 0.0


def rate(loads: Loads, capacities: Sequence[float]) -> float:
    """Return how many times a second links of `capacities` (bytes/s) carry `loads`, the slowest of them."""
    used = np.flatnonzero(loads)
    return float((np.array([capacities[link] for link in used.tolist()]) / loads[used]).min(initial=inf))
