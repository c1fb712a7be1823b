"""Routing around dead links: the routing policy is asked again, over the paths that are left.

Model: what a converged routing protocol does, in no time; the policy itself stays as it is. Of a direct network (a
graph of routers) the shortest paths over the links that are left count, however long. Where a whole lane (a plane, a
rail) is out of reach, the other lanes are tried, by relay if the fabric has one.
"""

from collections.abc import Container, Iterable, Sequence
from typing import Any, cast

from simulator.errors import InputError
from simulator.network.routing import Routing, Shares, Spread, Way, together
from simulator.topology.direct import Minimal
from simulator.topology.graph import Topology
from simulator.topology.paths import Between, Path, PathSequence
from simulator.topology.plane import Plane, joined
from simulator.topology.search import FewestHops, Walks


class Alive:
    """A topology whose paths avoid dead links; all else is the topology's own."""

    def __init__(self, topology: Topology, dead: Container[int]) -> None:
        self._topology = topology
        self._dead = dead
        self._around: dict[str, Between] = {}
        self._shared: dict[int, tuple[Sequence[Path], bool]] = {}  # parts of many paths, and whether one is dead

    def __getattr__(self, name: str) -> Any:
        return getattr(self._topology, name)

    def paths(self, source: int, target: int, plane: str | None = None) -> Sequence[Path]:
        """Return the paths of `Topology.paths` that are left, or ways around; raises InputError where there is none."""
        found = self._topology.paths(source, target, plane)
        if source == target:
            return found
        carrier, lane = (self._carrier(source, target), None) if plane is None else self._topology.plane(plane)
        alive = self._left(carrier, source, target, lane, found)
        if not alive and plane is None:
            alive = self._by_other_lanes(source, target)
        if not alive:
            raise InputError("no path is left")
        return alive

    def has_lost(self, source: int, target: int, plane: str | None = None) -> bool:
        """Return whether paths between two endpoints, one way or the other, have dead links."""
        ways = (source, target), (target, source)
        return any(self._is_any_dead(self._topology.paths(*ends, plane)) for ends in ways)

    def _carrier(self, source: int, target: int) -> Plane | None:
        """Return the first plane that joins two endpoints while every link works."""
        return next((plane for plane in self._topology.planes if plane.paths(source, target) is not None), None)

    def _left(
        self, plane: Plane | None, source: int, target: int, lane: str | None, found: Sequence[Path]
    ) -> Sequence[Path]:
        """Return the shortest paths on a plane that are left, of those `found` while every link works if there is any.

        Of a graph they are searched for, and not picked from what may be very many.
        """
        between = None if plane is None else plane.between
        alive = [] if isinstance(between, FewestHops) else self._without_dead(found)
        if alive or plane is None or not isinstance(between, FewestHops | Minimal):
            return alive
        around = self._around.get(plane.name)
        if around is None:
            around = self._around[plane.name] = between.without(self._dead)
        outs = [way for way in plane.access[source] if not self._is_dead(way.outward)]
        ins = [way for way in plane.access[target] if not self._is_dead(way.inward)]
        return joined(outs, ins, around, lane) or ()

    def _is_dead(self, path: Iterable[int]) -> bool:
        return any(link in self._dead for link in path)

    def _without_dead(self, paths: Sequence[Path]) -> Sequence[Path]:
        return [path for path in paths if not self._is_dead(path)] if self._is_any_dead(paths) else paths

    def _is_any_dead(self, paths: Sequence[Path]) -> bool:
        """Return whether a path has a dead link; what paths between many ends have in common is looked into once."""
        if isinstance(paths, Walks):
            return self._is_dead([link for link, _ in paths.weights()])
        if not isinstance(paths, PathSequence):
            return any(map(self._is_dead, paths))
        links, parts = paths.parts()
        return self._is_dead(links) or any(self._is_part_dead(part) for part, _ in parts)

    def _is_part_dead(self, paths: Sequence[Path]) -> bool:
        known = self._shared.get(id(paths))
        if known is None:
            known = self._shared[id(paths)] = paths, self._is_any_dead(paths)
        return known[1]

    def _by_other_lanes(self, source: int, target: int) -> list[Path]:
        """Return what is left of the first plane that has anything left, all its lanes together."""
        for plane in self._topology.planes:
            alive: list[Path] = []
            for lane in plane.lanes or (None,):
                alive += self._left(plane, source, target, lane, plane.paths(source, target, lane) or ())
            if alive:
                return alive
        return []


class Detours:
    """Ways around the links that are `dead`, by one routing policy; tell it with `forget` when others are."""

    def __init__(self, topology: Topology, policy: Routing | Spread, seed: int, dead: Container[int]) -> None:
        self._topology, self._policy, self._seed, self._dead = topology, policy, seed, dead
        self._alive = Alive(topology, dead)

    def forget(self) -> None:
        """Look anew at what is dead."""
        self._alive = Alive(self._topology, self._dead)

    def __call__(self, ends: tuple[int, int], sequence: int, first: Spread | None = None) -> Way | None:
        """Return the way that the policy chooses among the paths without dead links; None: there is none.

        A policy that is to be asked `first` is that of a flow which keeps to a plane while anything is left of it.
        """
        way = None if first is None else self._around(first, ends, sequence)
        return way or self._around(self._policy, ends, sequence)

    def _around(self, policy: Routing | Spread, ends: tuple[int, int], sequence: int) -> Way | None:
        try:
            chosen = policy(cast(Topology, self._alive), self._seed, *ends, sequence)
        except InputError:
            return None
        if not chosen:
            return None
        shares = cast(Shares, chosen if isinstance(chosen[0], tuple) else ((chosen, 1.0),))
        way = together(self._topology, shares)
        return None if any(link in self._dead for link in way.links) else way
