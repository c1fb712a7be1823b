"""What a message costs beside its bytes: headers, a start-up time, and the bandwidth that small messages do not reach.

Model: the linear cost of a message, with the message size of half the bandwidth (Hockney, Parallel Computing 20, 1994).
"""

from typing import Annotated

from pydantic import Field

from simulator.strict import Duration, Size, Strict


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

    def wire_bytes(self, size_bytes: int) -> int:
        """Return the bytes that load the links for a message of `size_bytes`; none for an empty one."""
        if not size_bytes:
            return 0
        headers = -(-size_bytes // self.payload_bytes) * self.header_bytes
        return size_bytes + headers + (self.half_bandwidth_bytes or 0)


PLAIN = Transport()
