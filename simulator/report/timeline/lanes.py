"""Lanes for slices that overlap: the lowest that is free, in order of time (first fit, so as few as overlap at once)."""

import heapq
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

NONE = -1


def first_fit(
    owners: npt.NDArray[np.int64], starts: npt.NDArray[np.int64], ends: npt.NDArray[np.int64]
) -> npt.NDArray[np.int32]:
    """Return the lane of each span among those of its owner; NONE for a span without length.

    A lane is free again strictly after a span's end, so that no end and beginning on it share a time. Spans that start
    together get theirs in the order in which they are given.
    """
    lanes = np.full(len(starts), NONE, np.int32)
    spans = np.flatnonzero(ends > starts)
    spans = spans[np.lexsort((starts[spans], owners[spans]))]  # stable
    bounds = np.flatnonzero(np.diff(owners[spans])) + 1
    for own in np.split(spans, bounds):
        lanes[own] = _of_one(starts[own].tolist(), ends[own].tolist())
    return lanes


def _of_one(starts: list[int], ends: list[int]) -> list[int]:
    free: list[int] = []
    busy: list[tuple[int, int]] = []  # (end, lane)
    lanes, most = [], 0
    for start, end in zip(starts, ends, strict=True):
        while busy and busy[0][0] < start:
            heapq.heappush(free, heapq.heappop(busy)[1])
        if free:
            lane = heapq.heappop(free)
        else:
            lane, most = most, most + 1
        heapq.heappush(busy, (end, lane))
        lanes.append(lane)
    return lanes


def lane_tracks(
    owners: npt.NDArray[np.int64],
    starts: npt.NDArray[np.int64],
    ends: npt.NDArray[np.int64],
    add: Callable[[int], int],
) -> npt.NDArray[np.int32]:
    """Return the track of each span, 0 for one without length; `add(owner)` makes one more track of an owner's."""
    lanes = first_fit(owners, starts, ends)
    there = np.flatnonzero(lanes != NONE)
    tracks = np.zeros(len(lanes), np.int32)
    names, own = np.unique(owners[there], return_inverse=True)
    most = np.zeros(len(names), np.int64)
    np.maximum.at(most, own, lanes[there] + 1)
    made = np.array([add(owner) for owner, count in zip(names.tolist(), most, strict=True) for _ in range(count)] or [0])
    tracks[there] = made[(np.cumsum(most) - most)[own] + lanes[there]]
    return tracks
