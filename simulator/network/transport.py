"""What a message costs beside its bytes: headers, a start-up time, packets, the bandwidth that small ones do not reach.

Model: the linear cost of a message, with the message size of half the bandwidth (Hockney, Parallel Computing 20, 1994);
packets that are stored and forwarded at each hop (Kurose and Ross, Computer Networking, section 1.3.1).
"""

from collections.abc import Iterable
from math import ceil
from typing import Annotated

from pydantic import Field

from simulator.network.component import FORGIVEN_NS
from simulator.strict import Duration, Size, Strict
from simulator.units import NS_PER_S


class Transport(Strict):
    """The parameters of a transport; the defaults change nothing."""

    header_bytes: Annotated[int, Field(ge=0)] = 0
    """Bytes of headers that go with each packet."""
    payload_bytes: Annotated[int, Field(ge=1)] = 4096
    """Bytes of a message that fit one packet."""
    half_bandwidth_bytes: Size | None = None
    """Size of a message that reaches half of the bandwidth: n bytes reach n / (n + this) of it. None: all reach it."""
    message_latency: Duration | None = None
    """Time that each message takes beside the latency of its path."""
    store_and_forward: bool = False
    """Each hop takes a packet in whole before it sends it on: the first packet pays for every hop but the slowest,
    where the message drains."""

    def wire_bytes(self, size_bytes: int) -> int:
        """Return the bytes that load the links for a message of `size_bytes`; none for an empty one."""
        if not size_bytes:
            return 0
        headers = -(-size_bytes // self.payload_bytes) * self.header_bytes
        return size_bytes + headers + (self.half_bandwidth_bytes or 0)

    def forwarding_ns(self, size_bytes: int, capacities: Iterable[int]) -> int:
        """Return what storing and forwarding adds to the latency of a message over links of `capacities` bytes/s.

        The first packet is serialised once on every link; on the slowest the rest of the message follows it, and there
        it counts as part of the drain. So a message alone on h equal links of c bytes/s takes, beside latencies, its
        bytes / c and h - 1 packets / c. An empty message adds nothing.
        """
        if not size_bytes or not self.store_and_forward:
            return 0
        packet = min(size_bytes, self.payload_bytes) + self.header_bytes
        each_ns = [packet * NS_PER_S / capacity for capacity in capacities if capacity]
        return max(0, ceil(sum(each_ns) - max(each_ns, default=0) - FORGIVEN_NS))


class RoceV2(Transport):
    """RDMA over Ethernet: per packet 38 bytes of Ethernet with preamble and gap, IPv4 20, UDP 8, BTH 12, ICRC 4.

    Source: InfiniBand Architecture Specification, annex A17, and IEEE 802.3; an RDMA MTU of 4,096 bytes.
    """

    header_bytes: Annotated[int, Field(ge=0)] = 82
    """Bytes of headers that go with each packet."""
    store_and_forward: bool = True
    """Each hop takes a packet in whole before it sends it on."""


class InfiniBand(Transport):
    """InfiniBand within a subnet: per packet LRH 8, BTH 12, ICRC 4, VCRC 2 bytes; switches cut through.

    Source: InfiniBand Architecture Specification, volume 1, packet format; an MTU of 4,096 bytes.
    """

    header_bytes: Annotated[int, Field(ge=0)] = 26
    """Bytes of headers that go with each packet."""


TRANSPORTS: dict[str, type[Transport]] = {"plain": Transport, "roce_v2": RoceV2, "infiniband": InfiniBand}
"""By name; each is its parameters."""

PLAIN = Transport()
