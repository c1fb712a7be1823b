"""The arrays that the compiled flow solver works on, and how they grow: one row a flow, one a link, blocks of members.

Model: struct of arrays with free lists; nothing is allocated per event, and memory follows the most flows at once.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

NEVER_NS = 1 << 62
NOWHERE = -1
LEAST_ROOM = 4

FLOW = np.dtype(
    [
        ("level", "f8"),  # the least share of its links, as far as known
        ("weight", "f8"),
        ("bottleneck", "i4"),  # the link of that share; NOWHERE until one is found
        ("hops", "i4"),
        ("rate", "f8"),  # bytes/s since `since_ns`
        ("left", "f8"),  # bytes at `since_ns`
        ("since_ns", "i8"),
        ("finish_ns", "i8"),
        ("size", "i8"),
        ("flows", "i8"),  # of equal flows that it stands for
        ("name", "i8"),  # the caller's number for it
        ("place", "i4"),  # in the heap
        ("changed", "i4"),
    ],
    align=True,
)
LINK = np.dtype(
    [
        ("capacity", "f8"),
        ("share", "f8"),  # infinite while the link limits nobody
        ("load", "f8"),
        ("start", "i8"),  # of its block of `members`
        ("flows", "i4"),
        ("room", "i4"),
        ("queued", "i8"),
        ("bytes", "i8"),  # of flows that ended
        ("busy_ns", "i8"),
        ("busy_since_ns", "i8"),
        ("peak", "f8"),
        ("flow_count", "i8"),
        ("left", "f8"),  # during a full filling: capacity and weight not yet given to fixed flows
        ("pull", "f8"),
        ("key", "f8"),  # in a heap of links
    ],
    align=True,
)

# places in `State.numbers`
SHIFT, ACTIVE, FREE, MEMBERS, QUEUED, CHANGED, HOPS, BEGUN, EVALUATIONS, FILLINGS, BYTE_HOPS = range(11)
NUMBERS = 11


class State(NamedTuple):
    """Everything that the loops read and write; the arrays are grown from outside, between calls.

    Slot `(flow << shift) + hop` of `path` is a link of a flow, of `position` the flow's place among that link's
    `members`, which are slots. `free` is a stack of unused flows, `queue` a heap of links,
    `changed` flows with a new level.
    """

    flows: "NDArray[Any]"
    links: "NDArray[Any]"
    path: "NDArray[np.int32]"
    position: "NDArray[np.int32]"
    members: "NDArray[np.int32]"
    free: "NDArray[np.int32]"
    heap: "NDArray[np.int32]"
    queue: "NDArray[np.int32]"
    changed: "NDArray[np.int32]"
    limits: "NDArray[np.float64]"
    numbers: "NDArray[np.int64]"


class Starts(NamedTuple):
    """Flows to begin, in order of time: flow i crosses `route[offset[i] : offset[i + 1]]`."""

    ready_ns: "NDArray[np.int64]"
    size: "NDArray[np.int64]"
    left: "NDArray[np.float64]"
    weight: "NDArray[np.float64]"
    flows: "NDArray[np.int64]"
    name: "NDArray[np.int64]"
    offset: "NDArray[np.int64]"
    route: "NDArray[np.int32]"


def empty_state(capacities: Sequence[float], flows: int = 64, hops: int = 8) -> State:
    """Return idle links and room for some flows; capacities are bytes/s by link."""
    links = np.zeros(len(capacities), LINK)
    links["capacity"] = capacities
    links["share"] = np.inf
    numbers = np.zeros(NUMBERS, np.int64)
    numbers[SHIFT] = max(1, (hops - 1).bit_length())
    numbers[FREE] = flows
    slots = flows << int(numbers[SHIFT])
    return State(
        flows=np.zeros(flows, FLOW),
        links=links,
        path=np.zeros(slots, np.int32),
        position=np.zeros(slots, np.int32),
        members=np.zeros(4 * slots, np.int32),
        free=np.arange(flows, dtype=np.int32)[::-1].copy(),
        heap=np.zeros(flows, np.int32),
        queue=np.zeros(max(1, len(links)), np.int32),
        changed=np.zeros(flows, np.int32),
        limits=np.zeros(3 * flows, np.float64),
        numbers=numbers,
    )


def grown(state: State, flows: int) -> State:
    """Return the state with room for `flows` flows, and for twice the members that it has."""
    old = len(state.flows)
    more = max(0, flows - old)
    numbers = state.numbers
    slots = more << int(numbers[SHIFT])
    free = np.zeros(old + more, np.int32)
    free[:more] = np.arange(old + more - 1, old - 1, -1)
    free[more : more + numbers[FREE]] = state.free[: numbers[FREE]]
    numbers[FREE] += more
    return _relaid(
        state._replace(
            flows=_longer(state.flows, more),
            path=_longer(state.path, slots),
            position=_longer(state.position, slots),
            free=free,
            heap=_longer(state.heap, more),
            changed=_longer(state.changed, more),
            limits=_longer(state.limits, 3 * more),
        )
    )


def widened(state: State, hops: int) -> State:
    """Return the state with room for paths of `hops` links."""
    old = int(state.numbers[SHIFT])
    new = max(old, (hops - 1).bit_length())
    count = len(state.flows)
    path = np.zeros((count, 1 << new), np.int32)
    position = np.zeros((count, 1 << new), np.int32)
    path[:, : 1 << old] = state.path.reshape(count, 1 << old)
    position[:, : 1 << old] = state.position.reshape(count, 1 << old)
    members = (state.members >> old << new) + (state.members & ((1 << old) - 1))
    state.numbers[SHIFT] = new
    return state._replace(path=path.reshape(-1), position=position.reshape(-1), members=members)


def longer(state: State, capacity: float) -> State:
    """Return the state with one more link."""
    link = np.zeros(1, LINK)
    link["capacity"], link["share"] = capacity, np.inf
    return state._replace(links=np.concatenate([state.links, link]), queue=_longer(state.queue, 1))


def _longer(array: "NDArray[Any]", more: int) -> "NDArray[Any]":
    return np.concatenate([array, np.zeros(more, array.dtype)]) if more else array


def _relaid(state: State) -> State:
    """Lay the links' blocks of members out anew, without gaps, each with room for twice what it holds."""
    links = state.links
    count = links["flows"].astype(np.int64)
    room = np.maximum(LEAST_ROOM, 2 * count)
    room[count == 0] = 0
    start = np.cumsum(room) - room
    used = int(room.sum())
    members = np.zeros(2 * used + 4 * len(state.path), np.int32)
    within = np.arange(int(count.sum())) - np.repeat(np.cumsum(count) - count, count)
    members[np.repeat(start, count) + within] = state.members[np.repeat(links["start"], count) + within]
    links["start"], links["room"] = start, room
    state.numbers[MEMBERS] = used
    return state._replace(members=members)
