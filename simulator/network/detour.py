"""Routing around dead links: the routing policy is asked again, over the paths that are left.

Model: what a converged routing protocol does, in no time; the policy itself stays as it is. Where a whole lane (a
plane, a rail) is out of reach, the other lanes are tried, by relay if the fabric has one.
"""

from collections.abc import Container, Sequence
from typing import Any, cast

from simulator.errors import InputError
from simulator.network.routing import Routing, Shares, Spread
from simulator.topology.graph import Path, Topology


class _Alive:
    """A topology whose paths avoid dead links; all else is the topology's own."""

    def __init__(self, topology: Topology, dead: Container[int]) -> None:
        self._topology = topology
        self._dead = dead

    def __getattr__(self, name: str) -> Any:
        return getattr(self._topology, name)

    def paths(self, source: int, target: int, plane: str | None = None) -> Sequence[Path]:
        alive = self._without_dead(self._topology.paths(source, target, plane))
        if not alive and plane is None:
            alive = self._by_other_lanes(source, target)
        if not alive:
            raise InputError("no path is left")
        return alive

    def _without_dead(self, paths: Sequence[Path]) -> list[Path]:
        return [path for path in paths if not any(link in self._dead for link in path)]

    def _by_other_lanes(self, source: int, target: int) -> list[Path]:
        """Return what is left of the first plane that has anything left, all its lanes together."""
        for plane in self._topology.planes:
            alive: list[Path] = []
            for lane in plane.lanes or (None,):
                alive += self._without_dead(plane.paths(source, target, lane) or ())
            if alive:
                return alive
        return []


def detour(
    topology: Topology, policy: Routing | Spread, seed: int, ends: tuple[int, int], sequence: int, dead: Container[int]
) -> Shares | None:
    """Return the path or paths that a policy chooses among those without dead links; None: no way."""
    try:
        chosen = policy(cast(Topology, _Alive(topology, dead)), seed, *ends, sequence)
    except InputError:
        return None
    if not chosen:
        return None
    shares = cast(Shares, chosen if isinstance(chosen[0], tuple) else ((chosen, 1.0),))
    return None if any(link in dead for path, _ in shares for link in path) else shares
