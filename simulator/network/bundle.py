"""What the fabric is told of flows, and keeps of those under way: one, or equal ones of one transfer that go as one.

Model: the shards of a tensor-parallel cache are alike, begin together and mostly have their paths to themselves; they
then end together too, so one object stands for all of them until something else comes onto one of their links.
"""

from collections.abc import Sequence
from typing import NamedTuple

from simpy import Event

from simulator.network.component import Start
from simulator.network.routing import Spread, Way
from simulator.topology.graph import Path

MOST_SHARDS = 64
"""Shards that may go as one; a transfer of more, such as an all-to-all, hardly has paths that are disjoint."""


class Send(NamedTuple):
    """One flow to launch: bytes over a path (link indices, not empty), at `weight` times the share of its links.

    One that goes over several paths at once has a `way`, and the latency of `path`. `ends` are the endpoints (indices)
    of a flow that may be routed anew where its path dies; without them it keeps its path. `cap_bytes_per_s` bounds its
    rate; `through` are engines (see `Fabric.add_engine`) that it shares with others. `spread` is asked for another path
    before the network's routing is, for a flow that is bound to a plane.
    """

    path: Path
    size_bytes: int
    ends: tuple[int, int] | None = None
    weight: float = 1
    cap_bytes_per_s: float | None = None
    through: tuple[int, ...] = ()
    way: Way | None = None
    spread: Spread | None = None


class Transfer(Event):
    """Fires when the last of its shards has arrived, fails when one is lost; `outstanding` counts those under way."""

    outstanding = 0


class Flow:
    """A flow that was launched and has not arrived."""

    __slots__ = (
        "ends",
        "lane",
        "name",
        "path",
        "portions",
        "private",
        "spread",
        "through",
        "transfer",
        "weight",
        "wire_bytes",
    )

    def __init__(self, transfer: Transfer, name: int, path: Path, wire_bytes: int, lane: int) -> None:
        self.transfer = transfer
        self.name = name  # its number in the order of sending
        self.path = path
        self.wire_bytes = wire_bytes
        self.lane = lane
        self.weight = 1.0
        self.portions: tuple[float, ...] = ()  # of it, that cross each link of the path; none: all of it
        self.ends: tuple[int, int] | None = None  # devices, of a flow that may be routed again
        self.spread: Spread | None = None  # by what first; else, and without, as the network routes
        self.private: int | None = None  # the link that stands for its cap
        self.through: tuple[int, ...] = ()  # engines, and the private link

    @property
    def links(self) -> Path:
        """All that it shares or is held by."""
        return self.path + self.through if self.through else self.path

    @property
    def parts_on_links(self) -> tuple[float, ...]:
        """How much of it crosses each of `links`, as `portions` say."""
        return self.portions + (1.0,) * len(self.through) if self.portions else ()


class Bundle(Flow):
    """Flows of one transfer that are alike but for their paths: it has the name of the first and all their links."""

    __slots__ = ("pairs", "parts")

    def __init__(
        self,
        transfer: Transfer,
        parts: Sequence[tuple[int, Path]],
        pairs: Sequence[tuple[int, int]],
        wire_bytes: int,
        lane: int,
    ) -> None:
        path: Path = ()
        for _, way in parts:
            path += way
        super().__init__(transfer, parts[0][0], path, wire_bytes, lane)
        self.parts = tuple(parts)  # the name and the path of each
        self.pairs = pairs  # the devices of each, between which it may be routed again

    def start(self) -> Start:
        """Return what a solver is told of it."""
        return Start(self.name, self.path, self.wire_bytes, self.wire_bytes, lane=self.lane, parts=self.parts)

    def apart(self) -> list[Flow]:
        """Return its flows, each by itself."""
        flows = []
        for (name, path), ends in zip(self.parts, self.pairs, strict=True):
            flow = Flow(self.transfer, name, path, self.wire_bytes, self.lane)
            flow.ends = ends
            flows.append(flow)
        return flows
