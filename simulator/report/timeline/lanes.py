"""Lanes for slices that overlap: the lowest that is free, in order of time (first fit: as few as overlap at once)."""

import heapq
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]

_PART = 65536  # spans that are Python numbers at once


class Spans:
    """Spans of time of several owners, gathered batch by batch to be given tracks on which they do not overlap."""

    def __init__(self) -> None:
        self._count = 0
        self._kept: list[tuple[npt.NDArray[np.int32], npt.NDArray[np.int32], Integers, Integers]] = []

    def add(self, owners: Integers, starts: Integers, ends: Integers) -> None:
        """Take in spans that follow those before; one without length needs no track."""
        at = np.flatnonzero(ends > starts)
        self._kept.append(((at + self._count).astype(np.int32), owners[at].astype(np.int32), starts[at], ends[at]))
        self._count += len(starts)

    def tracks(self, add: Callable[[int], int]) -> npt.NDArray[np.int32]:
        """Return the track of every span in the order in which they came, 0 for one without length.

        `add(owner)` makes one more track of an owner's. The spans are given up: this can be called once.
        """
        tracks = np.zeros(self._count, np.int32)
        if not self._kept:
            return tracks
        numbers, owners, starts, ends = map(np.concatenate, zip(*self._kept, strict=True))
        self._kept.clear()
        lanes = first_fit(owners, starts, ends)
        names, own = np.unique(owners, return_inverse=True)
        most = np.zeros(len(names), np.int64)
        np.maximum.at(most, own, lanes + 1)
        made = [add(owner) for owner, count in zip(names.tolist(), most.tolist(), strict=True) for _ in range(count)]
        tracks[numbers] = np.array(made, np.int32)[(np.cumsum(most) - most)[own] + lanes]
        return tracks


def first_fit(owners: npt.NDArray[np.int32], starts: Integers, ends: Integers) -> npt.NDArray[np.int32]:
    """Return the lane of each span among those of its owner, from 0.

    A lane is free again strictly after a span's end, so that no end and beginning on it share a time. Spans that start
    together get theirs in the order in which they are given.
    """
    lanes = np.empty(len(starts), np.int32)
    order = np.lexsort((starts, owners))  # stable
    for own in np.split(order, np.flatnonzero(np.diff(owners[order])) + 1):
        free: list[int] = []
        busy: list[tuple[int, int]] = []  # (end, lane)
        for first in range(0, len(own), _PART):
            part = own[first : first + _PART]
            lanes[part] = _fit(free, busy, starts[part].tolist(), ends[part].tolist())
    return lanes


def _fit(free: list[int], busy: list[tuple[int, int]], starts: list[int], ends: list[int]) -> list[int]:
    """Return the lanes of spans in order of start; `free` and `busy` are heaps of all lanes made so far."""
    lanes = []
    for start, end in zip(starts, ends, strict=True):
        while busy and busy[0][0] < start:
            heapq.heappush(free, heapq.heappop(busy)[1])
        lane = heapq.heappop(free) if free else len(busy)
        heapq.heappush(busy, (end, lane))
        lanes.append(lane)
    return lanes
