"""Which of the equal-cost paths a flow takes; policies are pure functions of the topology and of the flow's identity.

Source: RFC 2992 (equal-cost multi-path by hash); the hash is the finaliser of SplitMix64 (Steele, Lea, Flood 2014).
"""

from collections.abc import Callable, Mapping

from simulator.topology.graph import Path, Topology

Routing = Callable[[Topology, int, int, int, int], Path]
"""(topology, seed, source device, target device, sequence number of the flow) to a path."""

_MASK = (1 << 64) - 1


def mix(*words: int) -> int:
    """Return a 64-bit hash of integers, equal on every machine and in every process."""
    state = 0
    for word in words:
        state = (state + word + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state


def ecmp(topology: Topology, seed: int, source: int, target: int, sequence: int) -> Path:
    """Choose one equal-cost path by hash, so that flows may collide on one cable while others stand idle."""
    paths = topology.paths(source, target)
    count = len(paths)
    return paths[mix(seed, source, target, sequence) % count if count > 1 else 0]


ROUTINGS: Mapping[str, Routing] = {"ecmp": ecmp}
