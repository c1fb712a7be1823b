"""One network of a cluster: who takes part, by which ways in, and the paths that it offers; lanes never mix.

Model: lanes are parts of a network that exchange nothing (rails, planes of a multi-plane fabric, sub-planes of a switch
fabric); a relay is another network over which a device hands its bytes to a neighbour in the lane that it lacks.
Source: rail-only networks, arXiv 2307.12169; multi-plane fabrics and PXN relays, arXiv 2505.09343.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from simulator.topology.paths import HERE, Between, EqualCostPaths, Joined, Path, shortest


@dataclass(frozen=True, slots=True)
class Access:
    """One way of a device into a network: the links out to a switch, back in from it, and the lane that it leads to."""

    switch: str
    outward: Path
    inward: Path
    lane: str = ""


def joined(
    outs: Sequence[Access], ins: Sequence[Access], between: Between, lane: str | None = None
) -> Sequence[Path] | None:
    """Return every shortest path by one of the ways out and one of the ways in (of one lane, if asked for), or None."""
    ways = [
        EqualCostPaths(out.outward, middles, back.inward)
        for out in outs
        for back in ins
        if out.lane == back.lane
        and (lane is None or out.lane == lane)
        and (middles := between(out.switch, back.switch)) is not None
    ]
    return shortest(ways)


class Plane:
    """One network: `access[i]` are the ways in of endpoint i (none: it takes no part), `between` joins switches.

    With `relay`, an endpoint that lacks a lane reaches it through the endpoint of its own node that has it:
    `nodes[i]` is the node of endpoint i. The sender's side hands over, unless a lane is asked for that neither has.
    """

    def __init__(
        self,
        name: str,
        access: Sequence[Sequence[Access]],
        between: Between,
        relay: "Plane | None" = None,
        nodes: Sequence[int] = (),
    ) -> None:
        self.name = name
        self.access = access
        self.lanes = tuple(dict.fromkeys(way.lane for ways in access for way in ways if way.lane))
        self.between = between
        self.relay = relay
        self.nodes = nodes
        self._owners: dict[tuple[int, str], int] = {}
        for endpoint, node in enumerate(nodes):
            for way in access[endpoint]:
                self._owners.setdefault((node, way.lane), endpoint)

    def paths(self, source: int, target: int, lane: str | None = None) -> Sequence[Path] | None:
        """Return every shortest path from one endpoint to another (in one lane, if asked for), or None.

        Raises IndexError for an endpoint that does not exist.
        """
        outs, ins = self.access[source], self.access[target]
        direct: Sequence[Path] | None = None
        if lane is None and len(outs) == 1 == len(ins):  # nearly always
            out, back = outs[0], ins[0]
            if out.lane == back.lane and (middles := self.between(out.switch, back.switch)) is not None:
                return EqualCostPaths(out.outward, middles, back.inward)
        elif outs and ins:
            direct = self._direct(source, target, lane)
        return direct if direct is not None or self.relay is None else self._relayed(source, target, lane)

    def _direct(self, source: int, target: int, lane: str | None) -> Sequence[Path] | None:
        return joined(self.access[source], self.access[target], self.between, lane)

    def _relayed(self, source: int, target: int, lane: str | None) -> Sequence[Path] | None:
        """Hand over to the lane's owner beside the source and, where the target lacks the lane, beside the target."""
        lanes = [lane] if lane is not None else list(dict.fromkeys(way.lane for way in self.access[target]))
        ways = []
        for via in lanes:
            first, last = self.owner(source, via), self.owner(target, via)
            if first is None or last is None or first == last:
                continue
            parts = (self._hand_over(source, first), self._direct(first, last, via), self._hand_over(last, target))
            whole = [part for part in parts if part is not None]
            if len(whole) == len(parts):
                ways.append(Joined(*whole))
        return shortest(ways)

    def owner(self, endpoint: int, lane: str) -> int | None:
        """Return the endpoint by which an endpoint enters a lane: itself, or one of its node; None where none is."""
        if any(way.lane == lane for way in self.access[endpoint]):
            return endpoint
        return self._owners.get((self.nodes[endpoint], lane))

    def _hand_over(self, source: int, target: int) -> Sequence[Path] | None:
        assert self.relay is not None
        return HERE if source == target else self.relay.paths(source, target)
