"""Times of the collectives of one instance on its own devices of a topology, each group by itself.

Model: `simulator.network.collectives` for the operations of a library; dispatch and combine as DeepEP's kernels: a
base, and the bytes of a rank over the slower of its link within the node and its way to the other nodes.
"""

from collections.abc import Hashable, Sequence
from itertools import combinations, pairwise
from typing import NamedTuple

from simulator.errors import InputError, Problem
from simulator.model.expert_load import places_hit
from simulator.model.layout import Layout
from simulator.model.operators import Collective
from simulator.network.collectives import Collectives
from simulator.network.collectives_constants import Phase
from simulator.network.collectives_shape import GroupShape
from simulator.topology.graph import Topology
from simulator.units import NS_PER_S

HANDS_ON = 2
"""A node hands copies on where its own links are so many times as fast as its ways out; less is one port for both."""


Group = tuple[int, ...]
"""Devices whose ranks take part in a collective."""


def groups(layout: Layout, name: str, devices: Sequence[int]) -> Sequence[Sequence[Group]]:
    """Return the devices of every group `name` of a layout, those together that go at once.

    Ranks of `tensor` are next to each other in a lease, those of `context` and `data` are `tensor` apart, and the
    stages of a pipeline follow each other: each rank sends to its like in the next, one pair of stages after another.
    """
    if name == "pipeline":
        return [list(zip(here, there, strict=True)) for here, there in pairwise(stages(layout, devices))]
    if name == "expert":
        return [stages(layout, devices)]
    tensor, whole = layout.tensor, layout.tensor * layout.context
    if name == "tensor":
        return [[tuple(devices[first : first + tensor]) for first in range(0, len(devices), tensor)]]
    blocks = range(0, len(devices), whole)
    return [[tuple(devices[first + at : first + whole : tensor]) for first in blocks for at in range(tensor)]]


def stages(layout: Layout, devices: Sequence[int]) -> list[Group]:
    """Return the devices of each stage of a pipeline."""
    size = layout.stage_devices
    return [tuple(devices[first : first + size]) for first in range(0, len(devices), size)]


def surroundings(topology: Topology, devices: Sequence[int]) -> Hashable:
    """Return what tells instances apart whose collectives take unlike times: their slots, and how far nodes are apart.

    Where two have the same slots node by node, and between any two of these nodes paths are as many and as long, links
    carry the same.
    """
    slots: dict[int, list[int]] = {}
    for device in devices:
        slots.setdefault(topology.sites[device].node, []).append(topology.sites[device].slot)
    ways = []
    for here, there in combinations(slots, 2):
        pair = topology.device_at[here, slots[here][0]], topology.device_at[there, slots[there][0]]
        paths = topology.paths(*pair)
        ways.append((len(paths), topology.path_latency_ns(paths[0])))
    return tuple(map(tuple, slots.values())), tuple(ways)


class OnLinks(NamedTuple):
    """A collective on the links of its group."""

    latency_ns: float
    link_ns: float
    """Time on the links, beside the latency."""
    sent_bytes: float = 0.0
    """What keeps a rank's way to other nodes busy, as bytes at the rate of its links; see `sent_loads`."""


class GroupTimes:
    """Latency and time on the links of a collective by the group that it runs in, on the devices of one instance.

    Groups of a name wait for the slowest of those that go at once; what stages send each other is the mean over them.
    """

    def __init__(self, collectives: Collectives, layout: Layout, devices: Sequence[int]) -> None:
        self.collectives, self.layout, self.devices = collectives, layout, tuple(devices)
        self._unlike: dict[str, list[list[Group]]] = {}  # by name: a group for each shape of those that go at once

    def __call__(self, shape: Collective) -> OnLinks:
        """Return the time of a collective; raises InputError where no algorithm of the library applies."""
        turns = self._unlike.get(shape.group)
        if turns is None:
            turns = self._unlike[shape.group] = [
                list({self.collectives.shape(members): members for members in reversed(turn)}.values())
                for turn in groups(self.layout, shape.group, self.devices)
            ]
        slowest = [
            max((self._of(shape, members) for members in turn), key=lambda each: each.latency_ns + each.link_ns)
            for turn in turns
        ]
        if all(each == slowest[0] for each in slowest):
            return slowest[0]
        return OnLinks(*(sum(each) / len(slowest) for each in zip(*slowest, strict=True)))

    def _of(self, shape: Collective, members: Group) -> OnLinks:
        if shape.operation in ("dispatch", "combine"):
            return self._exchange(shape, members)
        try:
            choice = self.collectives.choose(shape.operation, members, round(shape.size_bytes), engine=True)
        except ValueError as error:
            raise InputError(Problem(str(error), path="layout")) from None
        sent = self.collectives.sent(shape.operation, choice, members)
        return OnLinks(choice.latency_ns, choice.ns_per_byte * shape.size_bytes, sent * shape.size_bytes)

    def nodes(self, name: str) -> int:
        """Return how many nodes a group `name` spans at most."""
        every = [members for turn in groups(self.layout, name, self.devices) for members in turn]
        return max(self.collectives.shape(members).nodes for members in every)

    def shapes(self, domain: int) -> tuple[GroupShape, ...]:
        """Return the shapes of the groups whose times depend on their place: equal ones take equal times.

        Tensor-parallel ranks within a scale-up `domain` go by constants of their device.
        """
        layout = self.layout
        sizes = {
            "tensor": layout.tensor,
            "context": layout.context,
            "expert": layout.stage_devices,
            "pipeline": layout.pipeline,
        }
        names = [name for name, size in sizes.items() if size > (domain if name == "tensor" else 1)]
        turns = [turn for name in names for turn in groups(layout, name, self.devices)]
        return tuple(self.collectives.shape(members) for turn in turns for members in turn)

    def _exchange(self, shape: Collective, members: Group) -> OnLinks:
        constants, group = self.collectives.constants, self.collectives.shape(members)
        # in the high-throughput form a node gets one copy of a token and hands it on to its ranks
        relayed = shape.relayed
        if shape.choices:
            relayed = places_hit(group.nodes, shape.choices) / places_hit(group.ranks, shape.choices)
        if group.rate_inside(to_all=True) < HANDS_ON * group.cross_bytes_per_s:
            relayed = 1.0
        forms = [(constants.low_latency, 1.0), (constants.high_throughput, relayed)]
        phases: list[tuple[Phase, float]] = [
            (getattr(form, shape.operation), relayed) for form, relayed in forms if form is not None
        ]
        fitting = [each for each in phases if each[0].most_bytes is None or shape.size_bytes <= each[0].most_bytes]
        phases = fitting or phases[-1:]
        if not phases:  # constants of a library alone: its all-to-all
            return self._of(shape._replace(operation="all_to_all"), members)
        found = [exchange(phase, shape.size_bytes, group, relayed) for phase, relayed in phases]
        return min(found, key=lambda each: each.latency_ns + each.link_ns)


def exchange(phase: Phase, size_bytes: float, group: GroupShape, relayed: float = 1.0) -> OnLinks:
    """Return the time of an exchange in which each rank sends `size_bytes` evenly to all ranks, itself included.

    Of what goes to other nodes only the share `relayed` crosses, and is handed on there.
    """
    inside = (group.ranks_per_node - 1) / group.ranks * size_bytes
    outside = (group.ranks - group.ranks_per_node) / group.ranks * size_bytes
    inside += (1 - relayed) * outside  # what a node hands on
    outside *= relayed
    local = inside / (phase.local_share * group.rate_inside(to_all=True)) if inside else 0.0
    network = outside / (phase.network_share * group.cross_bytes_per_s) if outside else 0.0
    start_ns = phase.start_ns(group.ranks, group.nodes)
    sent = outside
    if outside and group.all_bytes_per_s is not None:  # the same links carry both
        sent += inside
        network = max(network, sent / (max(phase.local_share, phase.network_share) * group.all_bytes_per_s))
    return OnLinks(start_ns, max(local, network) * NS_PER_S, sent / phase.network_share)
