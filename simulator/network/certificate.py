"""The certificate of max-min fairness: each flow has a full link on which no flow has a higher level.

Model: Bertsekas and Gallager, Data Networks, section 6.5.2, lane by lane on what the lanes above leave.
"""

from collections.abc import Iterable, Sequence
from itertools import repeat
from typing import NamedTuple

from simulator.errors import InvariantError

TOLERANCE = 1e-9


class Rated(NamedTuple):
    """A flow under way: its lane, its links, its bytes/s, its weight, and how much of it crosses each link (all)."""

    lane: int
    links: Sequence[int]
    rate: float
    weight: float
    portions: Sequence[float] = ()

    def loads(self) -> Iterable[tuple[int, float]]:
        """Return (link, bytes/s) for each of its links."""
        return zip(self.links, (self.rate * part for part in self.portions or repeat(1, len(self.links))), strict=True)


def verify_shares(flows: Iterable[Rated], capacities: Sequence[float]) -> None:
    """Raise InvariantError for a link above its capacity (bytes/s by link), or a flow without a bottleneck."""
    lanes: dict[int, list[Rated]] = {}
    for flow in flows:
        lanes.setdefault(flow.lane, []).append(flow)
    loads = [0.0] * len(capacities)
    for lane in sorted(lanes):
        tops: dict[int, float] = {}
        for flow in lanes[lane]:
            level = flow.rate / flow.weight
            for link, load in flow.loads():
                loads[link] += load
                tops[link] = max(tops.get(link, 0.0), level)
        full = {link for link in tops if loads[link] >= capacities[link] * (1 - TOLERANCE)}
        for flow in lanes[lane]:
            level = flow.rate / flow.weight * (1 + TOLERANCE)
            if not any(link in full and tops[link] <= level for link in flow.links):
                raise InvariantError(
                    f"a flow over {flow.links} at {flow.rate} bytes/s has no bottleneck in lane {lane}"
                )
    for link, load in enumerate(loads):
        if load > capacities[link] * (1 + TOLERANCE):
            raise InvariantError(f"link {link} carries {load} of {capacities[link]} bytes/s")
