"""Three binary heaps in compiled code: of links by finish and by key, and of the flows that a link holds."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
from numba import njit

from simulator.network.flow_arrays import NOWHERE, WAITING, State

if TYPE_CHECKING:
    from numpy.typing import NDArray

_OPTIONS: Any = {"cache": True, "_nrt": False, "error_model": "numpy"}
_FILES = [
    Path(__file__).with_name(f"{name}.py")
    for name in ("flow_arrays", "heaps", "holding", "filling", "kernels", "entry")
]
_STAMP = tuple((file.stat().st_mtime, file.stat().st_size) for file in _FILES)
Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function) -> Function:
    """Compile on the first call, kept on disk for later processes.

    No reference is counted inside, for nothing is allocated there; that alone makes the loops a quarter faster.
    """
    return cast(Function, stamped(njit(**_OPTIONS)(function)))


def stamped(dispatcher: Any) -> Any:
    """Tie what is kept on disk to all the modules that are compiled into one another.

    Of itself numba looks at the file of the outermost function alone, and would go on with an old loop in a new one.
    """
    kept = getattr(getattr(dispatcher, "_cache", None), "_cache_file", None)
    if kept is not None:
        kept._source_stamp = _STAMP
    return dispatcher


def inlined(function: Function) -> Function:
    """Compile into each caller: a call hands over a hundred words of array descriptors, more than most loops do."""
    return cast(Function, stamped(njit(**_OPTIONS, forceinline=True)(function)))


@inlined
def sift_link(s: State, place: int) -> None:
    """Put the link at `place` of the heap of finishes where it belongs, up or down."""
    heap, links = s.heap, s.links
    link = heap[place]
    finish_ns = links[link].finish_ns
    while place > 0:
        above = (place - 1) >> 1
        other = heap[above]
        if links[other].finish_ns <= finish_ns:
            break
        heap[place] = other
        links[other].place = place
        place = above
    end = s.numbers[WAITING]
    while True:
        below = 2 * place + 1
        if below >= end:
            break
        if below + 1 < end and links[heap[below + 1]].finish_ns < links[heap[below]].finish_ns:
            below += 1
        other = heap[below]
        if links[other].finish_ns >= finish_ns:
            break
        heap[place] = other
        links[other].place = place
        place = below
    heap[place] = link
    links[link].place = place


@inlined
def leave_finishes(s: State, link: int) -> None:
    """Take a link out of the heap of finishes."""
    s.numbers[WAITING] -= 1
    end, place = s.numbers[WAITING], s.links[link].place
    s.links[link].place = NOWHERE
    if place != end:
        s.heap[place] = s.heap[end]
        sift_link(s, place)


@inlined
def sift_held(s: State, start: int, end: int, place: int) -> None:
    """Put the flow at `place` of the heap that begins at `start` where it belongs, up or down."""
    held, due, flows = s.held[start : start + end], s.due[start : start + end], s.flows
    flow, key = held[place], due[place]
    while place > 0:
        above = (place - 1) >> 1
        if due[above] <= key:
            break
        held[place], due[place] = held[above], due[above]
        flows[held[place]].place = place
        place = above
    while True:
        below = 2 * place + 1
        if below >= end:
            break
        if below + 1 < end and due[below + 1] < due[below]:
            below += 1
        if due[below] >= key:
            break
        held[place], due[place] = held[below], due[below]
        flows[held[place]].place = place
        place = below
    held[place], due[place] = flow, key
    flows[flow].place = place


@inlined
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
