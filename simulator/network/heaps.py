"""Two binary heaps in compiled code: of flows by finish, with their places kept, and of links by key."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
from numba import njit

from simulator.network.flow_arrays import ACTIVE, State

if TYPE_CHECKING:
    from numpy.typing import NDArray

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function) -> Function:
    """Compile on the first call, kept on disk for later processes.

    No reference is counted inside, for nothing is allocated there; that alone makes the loops a quarter faster.
    """
    options: Any = {"cache": True, "_nrt": False, "error_model": "numpy"}
    return cast(Function, njit(**options)(function))


@compiled
def sift(s: State, place: int) -> None:
    """Put the flow at `place` of the finish heap where it belongs, up or down."""
    heap, flows = s.heap, s.flows
    flow = heap[place]
    finish_ns = flows[flow].finish_ns
    while place > 0:
        above = (place - 1) >> 1
        other = heap[above]
        if flows[other].finish_ns <= finish_ns:
            break
        heap[place] = other
        flows[other].place = place
        place = above
    end = s.numbers[ACTIVE]
    while True:
        below = 2 * place + 1
        if below >= end:
            break
        if below + 1 < end and flows[heap[below + 1]].finish_ns < flows[heap[below]].finish_ns:
            below += 1
        other = heap[below]
        if flows[other].finish_ns >= finish_ns:
            break
        heap[place] = other
        flows[other].place = place
        place = below
    heap[place] = flow
    flows[flow].place = place


@compiled
def sink(links: "NDArray[Any]", heap: "NDArray[np.int32]", end: int, place: int) -> None:
    """Restore a heap of links by `key` below `place`."""
    link = heap[place]
    key = links[link].key
    while True:
        below = 2 * place + 1
        if below >= end:
            break
        if below + 1 < end and links[heap[below + 1]].key < links[heap[below]].key:
            below += 1
        if links[heap[below]].key >= key:
            break
        heap[place] = heap[below]
        place = below
    heap[place] = link
