"""Protobuf's wire format, of one message in plain Python and of columns of alike messages in numpy.

Source: https://protobuf.dev/programming-guides/encoding (tag = field number << 3 | wire type; varints: 7 bits a byte).
A part of many messages is a matrix of octets, a row for each message, and a mask of those that are there: what stands
side by side is concatenated, what is embedded has the mask's sum as its length, and the masked matrix is the bytes.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

VARINT, FIXED64, LENGTH = 0, 1, 2
"""Wire types."""

Mask = npt.NDArray[np.bool_]
Array = npt.NDArray[Any]


def varint(value: int) -> bytes:
    """Return a whole number >= 0 in groups of 7 bits, the least first."""
    octets = bytearray()
    while value > 0x7F:
        octets.append(value & 0x7F | 0x80)
        value >>= 7
    octets.append(value)
    return bytes(octets)


def tag(field: int, wire: int) -> bytes:
    """Return what stands before a field's value."""
    return varint(field << 3 | wire)


def number(field: int, value: int) -> bytes:
    """Return a field that holds an unsigned number, a bool or an enumeration."""
    return tag(field, VARINT) + varint(value)


def text(field: int, value: str | bytes) -> bytes:
    """Return a field that holds a text, bytes or an embedded message."""
    value = value.encode() if isinstance(value, str) else value
    return tag(field, LENGTH) + varint(len(value)) + value


class Cells(NamedTuple):
    """A part of many messages: that of message i is `octets[i][there[i]]`."""

    octets: npt.NDArray[np.uint8]
    there: Mask

    def where(self, condition: Mask) -> "Cells":
        """Return the part as one that only some messages have."""
        return Cells(self.octets, self.there & condition[:, None])

    def of(self, rows: Array) -> "Cells":
        """Return the part of some of the messages."""
        return Cells(self.octets[rows], self.there[rows])

    def tobytes(self) -> bytes:
        """Return the messages one after the other."""
        return self.octets[self.there].tobytes()


def constant(value: bytes, rows: int) -> Cells:
    """Return the same bytes for every message."""
    octets = np.frombuffer(value, np.uint8)
    return Cells(np.broadcast_to(octets, (rows, len(octets))), np.broadcast_to(np.True_, (rows, len(octets))))


def varints(values: Array) -> Cells:
    """Return whole numbers >= 0, one for each message."""
    values = values.astype(np.uint64)
    width = max(1, (int(values.max(initial=0)).bit_length() + 6) // 7)
    groups = values[:, None] >> (7 * np.arange(width, dtype=np.uint64))
    there = groups != 0
    there[:, 0] = True
    octets = (groups & np.uint64(0x7F)).astype(np.uint8)
    octets[:, :-1] |= there[:, 1:].astype(np.uint8) << 7  # more follows
    return Cells(octets, there)


def fixed64(values: Array) -> Cells:
    """Return 8 bytes each: doubles, or whole numbers."""
    octets = np.ascontiguousarray(values.astype("<f8" if values.dtype.kind == "f" else "<u8")).view(np.uint8)
    return Cells(octets.reshape(len(values), 8), np.ones((len(values), 8), np.bool_))


def texts(values: Sequence[str | None]) -> Cells:
    """Return texts of any length, each after its length; one that is None has no bytes."""
    encoded = [value.encode() if value is not None else b"" for value in values]
    lengths = np.fromiter(map(len, encoded), np.int64, len(encoded))
    there = np.arange(lengths.max(initial=0)) < lengths[:, None]
    octets = np.zeros(there.shape, np.uint8)
    octets[there] = np.frombuffer(b"".join(encoded), np.uint8)
    known = np.fromiter((value is not None for value in values), np.bool_, len(encoded))
    return joined(varints(lengths), Cells(octets, there)).where(known)


def joined(*parts: Cells) -> Cells:
    """Return parts side by side."""
    return Cells(
        np.concatenate([part.octets for part in parts], axis=1), np.concatenate([part.there for part in parts], axis=1)
    )


def embedded(field: int, *parts: Cells) -> Cells:
    """Return a field that holds a message of these parts."""
    content = joined(*parts)
    lengths = varints(content.there.sum(axis=1))
    return joined(constant(tag(field, LENGTH), len(lengths.octets)), lengths, content)
