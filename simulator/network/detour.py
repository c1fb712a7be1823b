"""Routing around dead links: the routing policy is asked again, over the paths that are left.

Model: what a converged routing protocol does, in no time; the policy itself stays as it is.
"""

from collections.abc import Container, Sequence
from typing import Any, cast

from simulator.errors import InputError
from simulator.network.routing import Routing, Spread
from simulator.topology.graph import Path, Topology


class _Alive:
    """A topology whose paths avoid dead links; all else is the topology's own."""

    def __init__(self, topology: Topology, dead: Container[int]) -> None:
        self._topology = topology
        self._dead = dead

    def __getattr__(self, name: str) -> Any:
        return getattr(self._topology, name)

    def paths(self, *arguments: Any, **options: Any) -> Sequence[Path]:
        paths = self._topology.paths(*arguments, **options)
        alive = [path for path in paths if not any(link in self._dead for link in path)]
        if not alive:
            raise InputError("no path is left")
        return alive


def detour(
    topology: Topology, policy: Routing | Spread, seed: int, ends: tuple[int, int], sequence: int, dead: Container[int]
) -> Path | None:
    """Return the path that a policy chooses among those without dead links, of several one by turns; None: no way."""
    try:
        chosen = policy(cast(Topology, _Alive(topology, dead)), seed, *ends, sequence)
    except InputError:
        return None
    if not chosen:
        return None
    one = chosen[sequence % len(chosen)]
    path = cast(Path, one[0] if isinstance(one, tuple) else chosen)
    return None if any(link in dead for link in path) else path
