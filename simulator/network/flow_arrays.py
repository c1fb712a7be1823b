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
NEAR = 1e-9  # a link that limits nobody is looked at again when its load comes this near to its capacity
FULL = 1e-13  # and counts as overloaded from here

FLOW = np.dtype(
    [
        ("left", "f8"),  # bytes to move, when it was last without a bottleneck
        ("weight", "f8"),
        ("size", "i8"),
        ("flows", "i8"),  # of equal flows that it stands for
        ("name", "i8"),  # the caller's number for it
        ("bottleneck", "i4"),  # the link of the least share of its path; NOWHERE until one is found
        ("place", "i4"),  # among the flows that this link holds
        ("rank", "i4"),  # in `active`
        ("hops", "i4"),
    ],
    align=True,
)
LINK = np.dtype(
    [
        ("load", "f8"),
        ("capacity", "f8"),
        ("start", "i8"),  # of its block of `members`
        ("flows", "i4"),
        ("queued", "i4"),
        ("changed", "i4"),  # bits: its load, the flows that it holds
        ("held", "i4"),  # flows whose bottleneck it is
        ("key", "f8"),  # in a heap of links
        ("progress", "f8"),  # bytes that it has given to each unit of weight of the flows it holds, at `since_ns`
        ("since_ns", "i8"),
        ("finish_ns", "i8"),  # of the first of the flows that it holds
        ("place", "i4"),  # in the heap of finishes; NOWHERE if it is not there
        ("moved", "i4"),  # whether it is in `moved`
        ("room", "i8"),
        ("bytes", "i8"),  # of flows that ended
        ("rest", "f8"),  # what sprayed ones have carried beyond whole bytes, and a half
        ("busy_ns", "i8"),
        ("busy_since_ns", "i8"),
        ("peak", "f8"),
        ("flow_count", "i8"),
        ("left", "f8"),  # during a full filling: capacity and weight not yet given to fixed flows
        ("pull", "f8"),
    ],
    align=True,
)

# places in `State.numbers`
(
    SHIFT,
    ACTIVE,
    FREE,
    MEMBERS,
    QUEUED,
    CHANGED,
    HOPS,
    BEGUN,
    EVALUATIONS,
    FILLINGS,
    BYTE_HOPS,
    WAITING,
    AHEAD,
    WATCHED,
    MOVED,
) = range(15)
NUMBERS = 15


class State(NamedTuple):
    """Everything that the loops read and write; the arrays are grown from outside, between calls.

    Slot `(flow << shift) + hop` of `path` is a link of a flow (NOWHERE after the last), of `position` the flow's place
    among that link's `members`, which are slots, and of `part` how much of the flow's rate the link carries. Beside
    each member stand the bottleneck of its flow (`holders`) and its weight there, that of the flow times that part, so
    that a link is looked at without its flows. In the same block a link has a heap of the flows that it
    holds (`held`), by the progress at which each is drained (`due`). `shares` are infinite for links that limit nobody.
    `free` is a stack of unused flows, `active` the others, `heap` has the links by finish, `queue` those to evaluate,
    `changed` those to settle, `moved`, if watched, those whose load or flows may be new since it was last emptied.
    """

    flows: "NDArray[Any]"
    links: "NDArray[Any]"
    shares: "NDArray[np.float64]"
    path: "NDArray[np.int32]"
    position: "NDArray[np.int32]"
    part: "NDArray[np.float64]"
    members: "NDArray[np.int32]"
    holders: "NDArray[np.int32]"
    weights: "NDArray[np.float64]"
    held: "NDArray[np.int32]"
    due: "NDArray[np.float64]"
    free: "NDArray[np.int32]"
    active: "NDArray[np.int32]"
    heap: "NDArray[np.int32]"
    queue: "NDArray[np.int32]"
    changed: "NDArray[np.int32]"
    moved: "NDArray[np.int32]"
    limits: "NDArray[np.float64]"
    numbers: "NDArray[np.int64]"


class Starts(NamedTuple):
    """Flows to begin, in order of time: flow i crosses `route[offset[i] : offset[i + 1]]`, with `part` of its rate."""

    ready_ns: "NDArray[np.int64]"
    size: "NDArray[np.int64]"
    left: "NDArray[np.float64]"
    weight: "NDArray[np.float64]"
    flows: "NDArray[np.int64]"
    name: "NDArray[np.int64]"
    offset: "NDArray[np.int64]"
    route: "NDArray[np.int32]"
    part: "NDArray[np.float64]"


def empty_state(capacities: Sequence[float], flows: int = 64, hops: int = 8) -> State:
    """Return idle links and room for some flows; capacities are bytes/s by link."""
    links = _idle(capacities)
    numbers = np.zeros(NUMBERS, np.int64)
    numbers[SHIFT] = max(1, (hops - 1).bit_length())
    numbers[FREE] = flows
    slots = flows << int(numbers[SHIFT])
    blocks = 4 * slots
    return State(
        flows=np.zeros(flows, FLOW),
        links=links,
        shares=np.full(len(links), np.inf),
        path=np.full(slots, NOWHERE, np.int32),
        position=np.zeros(slots, np.int32),
        part=np.ones(slots, np.float64),
        members=np.zeros(blocks, np.int32),
        holders=np.zeros(blocks, np.int32),
        weights=np.zeros(blocks, np.float64),
        held=np.zeros(blocks, np.int32),
        due=np.zeros(blocks, np.float64),
        free=np.arange(flows, dtype=np.int32)[::-1].copy(),
        active=np.zeros(flows, np.int32),
        heap=np.zeros(max(1, len(links)), np.int32),
        queue=np.zeros(max(1, len(links)), np.int32),
        changed=np.zeros(max(1, len(links)), np.int32),
        moved=np.zeros(max(1, len(links)), np.int32),
        limits=np.zeros(3 * flows, np.float64),
        numbers=numbers,
    )


def _idle(capacities: Sequence[float]) -> "NDArray[Any]":
    links = np.zeros(len(capacities), LINK)
    links["capacity"] = capacities
    links["rest"] = 0.5
    links["finish_ns"] = NEVER_NS
    links["place"] = NOWHERE
    return links


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
            part=_longer(state.part, slots),
            free=free,
            active=_longer(state.active, more),
            limits=_longer(state.limits, 3 * more),
        )
    )


def widened(state: State, hops: int) -> State:
    """Return the state with room for paths of `hops` links."""
    old = int(state.numbers[SHIFT])
    new = max(old, (hops - 1).bit_length())
    count = len(state.flows)
    path = np.full((count, 1 << new), NOWHERE, np.int32)
    position = np.zeros((count, 1 << new), np.int32)
    part = np.ones((count, 1 << new), np.float64)
    path[:, : 1 << old] = state.path.reshape(count, 1 << old)
    position[:, : 1 << old] = state.position.reshape(count, 1 << old)
    part[:, : 1 << old] = state.part.reshape(count, 1 << old)
    members = (state.members >> old << new) + (state.members & ((1 << old) - 1))
    state.numbers[SHIFT] = new
    return state._replace(path=path.reshape(-1), position=position.reshape(-1), part=part.reshape(-1), members=members)


def longer(state: State, capacities: Sequence[float]) -> State:
    """Return the state with more links."""
    added = len(capacities)
    more = len(state.links) + added - len(state.queue)
    return state._replace(
        links=np.concatenate([state.links, _idle(capacities)]),
        shares=np.concatenate([state.shares, np.full(added, np.inf)]),
        heap=_longer(state.heap, more),
        queue=_longer(state.queue, more),
        changed=_longer(state.changed, more),
        moved=_longer(state.moved, more),
    )


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
    size = 2 * used + 4 * len(state.path)
    within = np.arange(int(count.sum())) - np.repeat(np.cumsum(count) - count, count)
    old, new = np.repeat(links["start"], count) + within, np.repeat(start, count) + within
    moved = {}
    for name in ("members", "holders", "weights", "held", "due"):
        array = getattr(state, name)
        moved[name] = np.zeros(size, array.dtype)
        moved[name][new] = array[old]
    links["start"], links["room"] = start, room
    state.numbers[MEMBERS] = used
    return state._replace(**moved)
