"""What the fabric keeps of flows that it has launched: one flow, or equal ones of one transfer that go as one.

Model: the shards of a tensor-parallel cache are alike, begin together and mostly have their paths to themselves; they
then end together too, so one object stands for all of them until something else comes onto one of their links.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from simulator.topology.graph import Path

if TYPE_CHECKING:
    from simulator.network.fabric import Transfer


class Flow:
    """A flow that was launched and has not arrived."""

    __slots__ = ("ends", "lane", "name", "path", "private", "through", "transfer", "weight", "wire_bytes")

    def __init__(self, transfer: "Transfer", name: int, path: Path, wire_bytes: int, lane: int) -> None:
        self.transfer = transfer
        self.name = name  # its number in the order of sending
        self.path = path
        self.wire_bytes = wire_bytes
        self.lane = lane
        self.weight: float = 1
        self.ends: tuple[int, int] | None = None  # devices, of a flow that may be routed again
        self.private: int | None = None  # the link that stands for its cap
        self.through: tuple[int, ...] = ()  # engines, and the private link

    @property
    def links(self) -> Path:
        """All that it shares or is held by."""
        return self.path + self.through if self.through else self.path


class Bundle(Flow):
    """Flows of one transfer that are alike but for their paths: it has the name of the first and all their links."""

    __slots__ = ("pairs", "parts")

    def __init__(
        self,
        transfer: "Transfer",
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

    def apart(self) -> list[Flow]:
        """Return its flows, each by itself."""
        flows = []
        for (name, path), ends in zip(self.parts, self.pairs, strict=True):
            flow = Flow(self.transfer, name, path, self.wire_bytes, self.lane)
            flow.ends = ends
            flows.append(flow)
        return flows
