"""Shortest paths of any directed graph, by breadth-first search from the target; the twin of all paths by structure.

Model: all paths of the fewest hops are equal in cost. Their number from each vertex is summed up once per target, so
that one of very many is found by walking: at each vertex the index says which edge to take.
"""

from collections.abc import Container, Iterable, Iterator, Sequence

from simulator.topology.paths import HERE, Path, PathSequence

CACHED_DISTANCES = 1 << 22

Edges = dict[str, list[tuple[str, int]]]


class Walks(PathSequence):
    """The shortest paths from one vertex to the target to which `ways` counts the paths and `hops` the edges."""

    __slots__ = ("_edges", "_hops", "_source", "_ways")

    def __init__(self, edges: Edges, hops: dict[str, int], ways: dict[str, int], source: str) -> None:
        self._edges, self._hops, self._ways, self._source = edges, hops, ways, source

    def __len__(self) -> int:
        return self._ways[self._source]

    def at(self, index: int) -> Path:
        """Return the path of a non-negative index."""
        place, path = self._source, []
        for left in range(self._hops[place], 0, -1):
            for near, link in self._edges[place]:
                if self._hops.get(near) == left - 1:
                    if index < self._ways[near]:
                        path.append(link)
                        place = near
                        break
                    index -= self._ways[near]
        return tuple(path)

    def weights(self) -> Iterator[tuple[int, float]]:
        """Yield each link that the paths take with the share of them that take it."""
        front = {self._source: 1.0}
        for left in range(self._hops[self._source], 0, -1):
            nearer: dict[str, float] = {}
            for place, share in front.items():
                for near, link in self._edges[place]:
                    if self._hops.get(near) == left - 1:
                        part = share * self._ways[near] / self._ways[place]
                        yield link, part
                        nearer[near] = nearer.get(near, 0.0) + part
            front = nearer


class FewestHops:
    """Joins any two vertices of a graph of (source, target, link index) by all paths of the fewest hops."""

    def __init__(self, edges: Iterable[tuple[str, str, int]]) -> None:
        self.out: Edges = {}
        self.into: dict[str, list[str]] = {}
        for source, target, link in edges:
            self.out.setdefault(source, []).append((target, link))
            self.into.setdefault(target, []).append(source)
        self._found: dict[str, tuple[dict[str, int], dict[str, int]]] = {}
        self._cached = 0

    def __call__(self, source: str, target: str) -> Sequence[Path] | None:
        """Return the paths from one vertex to another, or None."""
        if source == target:
            return HERE
        if target not in self._found:
            if self._cached > CACHED_DISTANCES:
                self._found.clear()
                self._cached = 0
            self._found[target] = self._search(target)
            self._cached += len(self._found[target][0])
        hops, ways = self._found[target]
        return Walks(self.out, hops, ways, source) if source in hops else None

    def without(self, dead: Container[int]) -> "FewestHops":
        """Return the same graph without some links."""
        edges = ((place, near, link) for place, nears in self.out.items() for near, link in nears)
        return FewestHops(edge for edge in edges if edge[2] not in dead)

    def _search(self, target: str) -> tuple[dict[str, int], dict[str, int]]:
        hops, ways = {target: 0}, {target: 1}
        front = [target]
        while front:
            farther = []
            for place in front:
                for near in self.into.get(place, ()):  # once per parallel edge
                    if near not in hops:
                        hops[near], ways[near] = hops[place] + 1, 0
                        farther.append(near)
                    if hops[near] == hops[place] + 1:
                        ways[near] += ways[place]
            front = farther
        return hops, ways
