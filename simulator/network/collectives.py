"""Times of collectives by symmetry: the least, over algorithms and protocols, of an alpha-beta line.

Model: base latency + steps x hop latency + bytes over the rate of the most loaded link (Hockney 1994; Thakur,
Rabenseifner, Gropp 2005 for the algorithms; Sanders, Speck, Traeff 2009 for two trees; NCCL's tuner for the choice).
"""

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from math import inf, log2
from typing import Literal, NamedTuple, get_args

from simulator.network.collectives_constants import CollectiveConstants, Family, Kernel, Protocol
from simulator.network.collectives_phases import two_trees
from simulator.network.collectives_shape import GroupShape, group_shape
from simulator.topology.graph import Topology
from simulator.units import NS_PER_S

Operation = Literal["all_reduce", "reduce_scatter", "all_gather", "broadcast", "all_to_all", "send_receive"]
OPERATIONS: tuple[str, ...] = get_args(Operation)


class Load(NamedTuple):
    """What one algorithm asks of the links, as multiples of the message on the most loaded link of each kind.

    `own` is the part that each rank handles in its own memory. `serial`: the phases within a node and between nodes
    follow each other; otherwise chunks are pipelined through both and the slower sets the pace. `to_all`: within a node
    each rank sends to all others alike, and not to its neighbour only.
    """

    local_hops: float
    network_hops: float
    local: float
    rail: float = 0.0
    cross: float = 0.0
    own: float = 0.0
    serial: bool = False
    to_all: bool = False


class Choice(NamedTuple):
    """One algorithm and protocol on one group: a message of b bytes takes `latency_ns + ns_per_byte * b`."""

    algorithm: str
    protocol: str
    latency_ns: float
    ns_per_byte: float

    def time_ns(self, size_bytes: float) -> float:
        """Return the time of a message, in ns."""
        return self.latency_ns + self.ns_per_byte * size_bytes


Form = Callable[[GroupShape], Load | None]
"""The load of an algorithm on a shape, or None where it does not apply."""


def _ring(passes: int, whole: bool = False) -> Form:
    """`passes` times n - 1 steps of 1/n of the message each; `whole`: a pipeline of the whole message (broadcast).

    As many rings as ranks per node share the NICs. All that a rank sends counts as local, the little that leaves by its
    NIC too: the share of the link that is fitted is what a rank's kernel moves, by whatever way.
    """

    def form(shape: GroupShape) -> Load:
        ranks, nodes = shape.ranks, shape.nodes
        wire = 1.0 if whole else passes * (ranks - 1) / ranks
        own = 0.0 if whole else 1 / ranks
        hops = passes * (ranks - 1)
        if nodes == 1:
            return Load(hops, 0, wire, own=own)
        rings = shape.ranks_per_node if shape.even else 1
        crossings = passes * min(nodes, ranks - 1)
        return Load(hops - crossings, crossings, wire if shape.ranks_per_node > 1 else 0.0, wire / rings, own=own)

    return form


def _tree(shape: GroupShape) -> Load | None:
    """Chains within nodes under two binary trees among nodes; each half of the message goes up and down one tree.

    Across nodes as many such channels as ranks per node, each with another rank at the head, share the NICs. Two ranks
    of a node have no middle of a chain, and nothing to choose it for over their ring.
    """
    if not shape.even or (shape.nodes == 1 and shape.ranks < 3):
        return None
    per_node, nodes = shape.ranks_per_node, shape.nodes
    if nodes == 1:  # one chain: a rank in its middle passes the message on both ways
        return Load(2 * (per_node - 1), 0, 2.0)
    local, rail = 2 * (per_node - 1) / per_node, _most_neighbours(nodes) / 2 / per_node
    return Load(2 * (per_node - 1), 2 * _depth(nodes), local, rail)


@cache
def _most_neighbours(nodes: int) -> int:
    """Return the most neighbours that a node has in both trees together; it sends each of them half a message."""
    neighbours = [0] * nodes
    for parents in two_trees(nodes):
        for child, parent in enumerate(parents):
            if parent is not None:
                neighbours[child] += 1
                neighbours[parent] += 1
    return max(neighbours)


def _in_switch(shape: GroupShape) -> Load | None:
    """Reduction and multicast by the node's switch: each rank sends its message and the sum of its own part."""
    if not shape.even or shape.ranks_per_node < 2:
        return None
    per_node, nodes = shape.ranks_per_node, shape.nodes
    return Load(2, 2 * _depth(nodes), 1 + 1 / per_node, 2 * (nodes - 1) / nodes / per_node)


def _halving_doubling(shape: GroupShape) -> Load | None:
    if not shape.even or shape.ranks & (shape.ranks - 1):
        return None
    per_node, nodes = shape.ranks_per_node, shape.nodes
    local, rail = 2 * (per_node - 1) / per_node, 2 * (nodes - 1) / nodes / per_node
    return Load(2 * log2(per_node), 2 * log2(nodes), local, rail, own=1 / shape.ranks, serial=True)


def _hierarchical(passes: int) -> Form:
    """Within the node to a part per rank, rings along the rails, back within the node; half of it for one pass."""

    def form(shape: GroupShape) -> Load | None:
        if not shape.even:
            return None
        per_node, nodes = shape.ranks_per_node, shape.nodes
        local, rail = passes * (per_node - 1) / per_node, passes * (nodes - 1) / nodes / per_node
        hops = passes * (per_node - 1), passes * (nodes - 1)
        return Load(*hops, local, rail, own=1 / shape.ranks, serial=True)

    return form


def _direct(shape: GroupShape) -> Load:
    """Every rank sends 1/n of its message to each other at once."""
    per_node, ranks = shape.ranks_per_node, shape.ranks
    fewest = per_node if shape.even else 1
    return Load(
        per_node - 1, shape.nodes - 1, (per_node - 1) / ranks, 0, (ranks - fewest) / ranks, 1 / ranks, to_all=True
    )


def _relayed(serial: bool) -> Form:
    """All-to-all by way of the rank that owns the target's rail: first within the node, then along the rail."""

    def form(shape: GroupShape) -> Load | None:
        if not shape.even or shape.nodes == 1:
            return None
        per_node, nodes = shape.ranks_per_node, shape.nodes
        local, rail = (per_node - 1) / per_node, (nodes - 1) / nodes
        return Load(per_node - 1, nodes - 1, local, rail, own=1 / shape.ranks, serial=serial, to_all=True)

    return form


def _send(shape: GroupShape) -> Load | None:
    if shape.ranks != 2:
        return None
    return Load(1, 0, 1) if shape.nodes == 1 else Load(0, 1, 0, 1)


def _one_shot(shape: GroupShape) -> Load | None:
    return Load(shape.ranks - 1, 0, shape.ranks - 1, to_all=True) if shape.nodes == 1 else None


def _two_shot(shape: GroupShape) -> Load | None:
    ranks = shape.ranks
    return Load(2 * (ranks - 1), 0, 2 * (ranks - 1) / ranks, to_all=True) if shape.nodes == 1 else None


def _depth(nodes: int) -> int:
    return (nodes - 1).bit_length()


FORMS: Mapping[str, Mapping[str, tuple[Family, Form]]] = {
    "all_reduce": {
        "ring": ("ring", _ring(2)),
        "tree": ("tree", _tree),
        "in_switch": ("in_switch", _in_switch),
        "halving_doubling": ("ring", _halving_doubling),
        "hierarchical": ("ring", _hierarchical(2)),
        "one_shot": ("one_shot", _one_shot),
        "two_shot": ("two_shot", _two_shot),
    },
    "reduce_scatter": {
        "ring": ("ring", _ring(1)),
        "direct": ("direct", _direct),
        "hierarchical": ("ring", _hierarchical(1)),
    },
    "all_gather": {
        "ring": ("ring", _ring(1)),
        "direct": ("direct", _direct),
        "hierarchical": ("ring", _hierarchical(1)),
    },
    "broadcast": {"ring": ("ring", _ring(1, whole=True))},
    "all_to_all": {
        "direct": ("direct", _direct),
        "hierarchical": ("direct", _relayed(serial=True)),
        "pxn": ("direct", _relayed(serial=False)),
    },
    "send_receive": {"direct": ("send", _send)},
}
"""By operation and algorithm: the family of constants and the load."""

STAND_IN: Mapping[Family, Family] = {"tree": "ring", "send": "direct"}
"""The family whose constants stand in for one that has none of its own."""

LIBRARY: Mapping[str, tuple[str, ...]] = {
    "all_reduce": ("ring", "tree", "in_switch"),
    "reduce_scatter": ("ring",),
    "all_gather": ("ring",),
    "broadcast": ("ring",),
    "all_to_all": ("direct", "pxn"),
    "send_receive": ("direct",),
}
"""What a collective library has to choose from, by operation; every other algorithm is taken only when it is named."""

ENGINE = ("one_shot", "two_shot")
"""All-reduces of a serving engine by loads and stores within a node, for messages below the constants' limit."""


def line(kernel: Kernel, load: Load, shape: GroupShape) -> tuple[float, float]:
    """Return (latency in ns, ns per byte) of an algorithm's load under one kernel's constants on a shape."""
    network_hop = max(kernel.network_hop, shape.latency_ns)
    latency_ns = kernel.base + load.local_hops * kernel.local_hop + load.network_hops * network_hop
    local = load.local / (kernel.local_share * shape.rate_inside(load.to_all)) if load.local else 0.0
    rail = load.rail / shape.rail_bytes_per_s if load.rail else 0.0
    cross = load.cross / shape.cross_bytes_per_s if load.cross else 0.0
    network = max(rail, cross) / kernel.network_share
    slope = local + network if load.serial else max(local, network)
    if kernel.own_share is not None and load.own and shape.local_bytes_per_s < inf:
        slope += load.own / (kernel.own_share * shape.local_bytes_per_s)
    return latency_ns, slope * NS_PER_S


def choices(
    operation: str,
    shape: GroupShape,
    constants: CollectiveConstants,
    algorithms: Sequence[str] | None = None,
    protocol: Protocol | None = None,
) -> list[Choice]:
    """Return every applicable choice among `algorithms` (default the library's), each with its line.

    Raises ValueError for an unknown operation or algorithm, or when nothing applies to the shape.
    """
    forms = FORMS.get(operation)
    if forms is None:
        raise ValueError(f"unknown operation {operation!r}; allowed: {', '.join(FORMS)}")
    found, apart = [], []
    for algorithm in algorithms or LIBRARY[operation]:
        if algorithm not in forms:
            raise ValueError(f"{operation} has no algorithm {algorithm!r}; allowed: {', '.join(forms)}")
        family, form = forms[algorithm]
        load = form(shape)
        kernels = kernels_of(constants, family)
        if load is not None and cut_off(load, shape):
            apart.append(algorithm)
        elif load is not None:
            found += [
                Choice(algorithm, name, *line(kernel, load, shape))
                for name, kernel in kernels.items()
                if protocol in (None, name)
            ]
    if not found and apart:
        raise ValueError(f"{operation} ({', '.join(apart)}) needs ways between ranks that no working network joins")
    if not found:
        what = f"no constants or algorithm for {operation} on {shape.ranks} ranks in {shape.nodes} nodes"
        raise ValueError(f"{what}: {', '.join(algorithms or LIBRARY[operation])}, protocol {protocol or 'any'}")
    return found


def cut_off(load: Load, shape: GroupShape) -> bool:
    """Return whether a load needs links that carry nothing."""
    needs = ((load.local, shape.rate_inside(load.to_all)), (load.rail, shape.rail_bytes_per_s))
    return any(asked and not rate for asked, rate in (*needs, (load.cross, shape.cross_bytes_per_s)))


def kernels_of(constants: CollectiveConstants, family: Family) -> Mapping[Protocol, Kernel]:
    """Return the constants of a family by protocol, its own or those that stand in for it."""
    return constants.kernels.get(family) or constants.kernels.get(STAND_IN.get(family, family)) or {}


def kernel_of(constants: CollectiveConstants, operation: str, algorithm: str, protocol: str) -> Kernel:
    """Return the constants of a choice."""
    kernels = kernels_of(constants, FORMS[operation][algorithm][0])
    return next(kernel for name, kernel in kernels.items() if name == protocol)


class Envelope:
    """The least of some lines as a function of the message: exact, and found by bisection.

    Lines sorted by falling slope; `starts[i]` is the message from which `parts[i]` is the least.
    """

    __slots__ = ("parts", "starts")

    def __init__(self, lines: Sequence[Choice]) -> None:
        self.parts: list[Choice] = []
        self.starts: list[float] = []
        for choice in sorted(lines, key=lambda c: (-c.ns_per_byte, c.latency_ns)):
            start = 0.0
            while self.parts:
                start = self._overtakes(choice)
                if start > self.starts[-1]:
                    break
                self.parts.pop()
                self.starts.pop()
                start = 0.0
            if start < inf:
                self.parts.append(choice)
                self.starts.append(start)

    def _overtakes(self, choice: Choice) -> float:
        last = self.parts[-1]
        if choice.latency_ns <= last.latency_ns:
            return 0.0 if choice.ns_per_byte < last.ns_per_byte or choice.latency_ns < last.latency_ns else inf
        gap = last.ns_per_byte - choice.ns_per_byte
        return (choice.latency_ns - last.latency_ns) / gap if gap > 0 else inf

    def at(self, size_bytes: float) -> Choice:
        """Return the choice with the least time for a message."""
        return self.parts[bisect_right(self.starts, size_bytes) - 1]


class Collectives:
    """Times of collectives on one topology, with the least-time choice cached per group shape.

    Times are affine in the message for each choice, so the cache holds their lower envelope, which is exact for every
    size. `capacities` are bytes/s by link index (default: the topology's), and `health` counts how often `update` has
    been told of others. `plane`, where given, carries all.
    """

    def __init__(
        self,
        topology: Topology,
        constants: CollectiveConstants,
        plane: str | None = None,
        capacities: Sequence[float] | None = None,
    ) -> None:
        self.topology, self.constants, self.plane = topology, constants, plane
        self.health = 0
        own = [link.capacity_bytes_per_s for link in topology.links]
        self.capacities: Sequence[float] = own if capacities is None else capacities
        self._shapes: dict[tuple[int, ...], GroupShape] = {}
        self._envelopes: dict[tuple[str, GroupShape, tuple[str, ...] | None, Protocol | None], Envelope] = {}

    def update(self, capacities: Sequence[float]) -> None:
        """Take other capacities (bytes/s by link index) from now on, such as `Fabric.capacities` after a failure."""
        self.health += 1
        self.capacities = list(capacities)
        self._shapes.clear()

    def shape(self, devices: Sequence[int]) -> GroupShape:
        """Return the shape of a group under the present capacities; raises as `group_shape` does."""
        key = tuple(sorted(devices))
        shape = self._shapes.get(key)
        if shape is None:
            shape = self._shapes[key] = group_shape(self.topology, devices, self.capacities, self.plane)
        return shape

    def choose(
        self,
        operation: str,
        devices: Sequence[int],
        size_bytes: int,
        algorithms: Sequence[str] | None = None,
        protocol: Protocol | None = None,
        engine: bool = False,
    ) -> Choice:
        """Return the algorithm and protocol with the least time, among those named or the library's.

        `size_bytes` is counted as by nccl-tests: the buffer of one rank (of an all-gather its output, of a
        reduce-scatter its input, of an all-to-all all that it sends). With `engine`, an all-reduce below the
        constants' limit within one node goes by an engine's own kernels. Raises ValueError for a negative size, for an
        unknown operation or algorithm, and where nothing applies.
        """
        if size_bytes < 0:
            raise ValueError(f"a collective of {size_bytes} bytes")
        shape = self.shape(devices)
        if shape.ranks == 1:
            return Choice("none", "none", 0.0, 0.0)
        small = engine and operation == "all_reduce" and shape.nodes == 1 and size_bytes < self.constants.engine_limit
        named = ENGINE if small and algorithms is None else tuple(algorithms) if algorithms is not None else None
        key = operation, shape, named, protocol
        envelope = self._envelopes.get(key)
        if envelope is None:
            envelope = self._envelopes[key] = Envelope(choices(operation, shape, self.constants, named, protocol))
        return envelope.at(size_bytes)

    def sent(self, operation: str, choice: Choice, devices: Sequence[int]) -> float:
        """Return the bytes, for each byte of a message, that keep a rank's way to other nodes busy at full rate."""
        shape = self.shape(devices)
        if shape.nodes == 1 or shape.ranks == 1:
            return 0.0
        load = FORMS[operation][choice.algorithm][1](shape)
        assert load is not None
        kernel = kernel_of(self.constants, operation, choice.algorithm, choice.protocol)
        return (load.rail + load.cross) / kernel.network_share

    def time_ns(self, operation: str, devices: Sequence[int], size_bytes: int, engine: bool = False) -> float:
        """Return the time of a collective on an otherwise idle network, in ns; see `choose`."""
        return self.choose(operation, devices, size_bytes, engine=engine).time_ns(size_bytes)
