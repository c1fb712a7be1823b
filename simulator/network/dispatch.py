"""Expert exchange of a mixture of experts: the bytes that dispatch and combine move between ranks, and their time.

Model: a rank's tokens go to the ranks of their chosen experts and come back; the most loaded port sets the time.
Source: DeepSeek-V3 (arXiv 2412.19437) for node-limited routing and both forms; DeepEP for what each form sends.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simulator.network.collectives_constants import Phase
from simulator.network.collectives_phases import Shards
from simulator.network.expert_routing import ExpertRouting, Floats
from simulator.randomness import stream
from simulator.units import NS_PER_S


@dataclass(frozen=True, eq=False)
class Copies:
    """How many of each rank's tokens go where; rows are source ranks.

    `experts[s, e]` counts the tokens that choose expert e, `ranks[s, t]` those that choose one or more experts of rank
    t, `nodes[s, b]` those that choose one or more of node b. Expected numbers are fractions, sampled ones whole.
    """

    experts: Floats
    ranks: Floats
    nodes: Floats
    rank_of_expert: NDArray[np.intp]
    node_of_rank: NDArray[np.intp]


@dataclass(frozen=True, eq=False)
class Traffic:
    """Bytes from rank to rank (shape ranks x ranks), one matrix per round; `copies[s]` are those that rank s handles.

    The diagonal is what stays on a rank; it crosses no link.
    """

    phases: tuple[Floats, ...]
    copies: Floats
    copy_bytes: int
    node_of_rank: NDArray[np.intp]

    def reversed(self, copy_bytes: int) -> "Traffic":
        """Return the traffic of the combine: every copy goes back the way it came, with `copy_bytes` each."""
        scale = copy_bytes / self.copy_bytes
        phases = tuple(phase.T * scale for phase in self.phases[::-1])
        return Traffic(phases, self.copies, copy_bytes, self.node_of_rank)

    def ports(self) -> dict[str, Floats]:
        """Return the bytes through each rank's ports: local_out, local_in, network_out and network_in."""
        inside = self.node_of_rank[:, None] == self.node_of_rank[None, :]
        total = sum(self.phases, np.zeros_like(self.phases[0]))
        moved = total * (1 - np.eye(len(total)))
        local, network = moved * inside, moved * ~inside
        return {
            "local_out": local.sum(axis=1),
            "local_in": local.sum(axis=0),
            "network_out": network.sum(axis=1),
            "network_in": network.sum(axis=0),
        }

    def rounds(self, devices: Sequence[int]) -> list[Shards]:
        """Return rounds of shards for `Fabric.transfer`; `devices[r]` is the device of rank r.

        Fractions are rounded along each row so that a rank sends, in all, within one byte of what it should.
        """
        found: list[Shards] = []
        for phase in self.phases:
            whole = np.diff(np.floor(np.cumsum(phase, axis=1) + 0.5), axis=1, prepend=0.0)
            rows, columns = np.nonzero(whole)
            shards = [
                (devices[s], devices[t], int(whole[s, t])) for s, t in zip(rows.tolist(), columns.tolist(), strict=True)
            ]
            found.append([shard for shard in shards if shard[0] != shard[1]])
        return [round_ for round_ in found if round_]


def token_bytes(hidden: int, value_bits: int, scale_block: int = 0, scale_bytes: int = 4) -> int:
    """Return the bytes of one copy of a token: `hidden` values, a scale for each `scale_block` of them (0: none)."""
    scales = -(-hidden // scale_block) * scale_bytes if scale_block else 0
    return -(-hidden * value_bits // 8) + scales


def expected_copies(tokens: Sequence[float], routing: ExpertRouting, rank_of_expert: Sequence[int]) -> Copies:
    """Return the expected copies of `tokens[s]` tokens on each rank s; `rank_of_expert[e]` holds expert e.

    Exact for the routing's model. Raises ValueError when a rank's experts stand on several nodes, or a rank has none.
    """
    places = _groups(routing, rank_of_expert, len(tokens))
    per_rank = np.array(tokens, dtype=float)
    return Copies(
        np.outer(per_rank, routing.expert_probability),
        np.outer(per_rank, routing.hit_probability(places)),
        np.outer(per_rank, routing.node_probability()),
        np.array(rank_of_expert),
        _node_of_rank(routing, places),
    )


def sampled_copies(
    tokens: Sequence[int], routing: ExpertRouting, rank_of_expert: Sequence[int], seed: int, name: str = "dispatch"
) -> Copies:
    """Return copies of tokens whose experts are drawn from the stream `name/rank` of each rank; raises as expected."""
    places = _groups(routing, rank_of_expert, len(tokens))
    nodes = _node_of_rank(routing, places)
    of_expert = np.array(routing.node_of_expert)
    rows: list[tuple[Floats, Floats, Floats]] = []
    for rank, count in enumerate(tokens):
        chosen = routing.sample(count, stream(seed, f"{name}/{rank}"))
        on_rank = [chosen[:, place].any(axis=1).sum() for place in places]
        on_node = [chosen[:, of_expert == node].any(axis=1).sum() for node in range(max(routing.node_of_expert) + 1)]
        rows.append((chosen.sum(axis=0).astype(float), np.array(on_rank, float), np.array(on_node, float)))
    experts, ranks, on_nodes = (np.array(part) for part in zip(*rows, strict=True))
    return Copies(experts, ranks, on_nodes, np.array(rank_of_expert), nodes)


def low_latency(copies: Copies, copy_bytes: int) -> Traffic:
    """Return the dispatch of the low-latency form: one copy per chosen expert, straight to its rank."""
    ranks = len(copies.ranks)
    matrix = np.zeros((ranks, ranks))
    np.add.at(matrix.T, copies.rank_of_expert, copies.experts.T)
    return Traffic((matrix * copy_bytes,), matrix.sum(axis=1), copy_bytes, copies.node_of_rank)


def high_throughput(copies: Copies, copy_bytes: int) -> Traffic:
    """Return the dispatch of the high-throughput form: one copy per node to the rank of like place, then one per rank.

    Raises ValueError when nodes hold different numbers of ranks.
    """
    nodes = copies.node_of_rank
    members = [np.flatnonzero(nodes == node) for node in range(nodes.max() + 1)]
    if len({len(member) for member in members}) > 1:
        raise ValueError(f"needs as many ranks on every node, found {[len(member) for member in members]}")
    ranks = len(nodes)
    between, inside = np.zeros((ranks, ranks)), np.zeros((ranks, ranks))
    for source in range(ranks):
        place = int(np.flatnonzero(members[nodes[source]] == source)[0])
        for node, member in enumerate(members):
            relay = member[place]
            if node != nodes[source]:
                between[source, relay] += copies.nodes[source, node]
            inside[relay, member] += copies.ranks[source, member]
    phases = (between * copy_bytes, inside * copy_bytes)
    return Traffic(phases, inside.sum(axis=1), copy_bytes, nodes)


def exchange_ns(
    traffic: Traffic, phase: Phase, local_bytes_per_s: float, network_bytes_per_s: float, processors: int | None = None
) -> float:
    """Return the time of one exchange in ns: its base and the most loaded of all ports, or of the processors.

    `local_bytes_per_s` and `network_bytes_per_s` are a rank's links one way. `processors` (streaming multiprocessors
    that the kernel may use; default: they do not limit) share the copies that a rank handles.
    """
    ports = traffic.ports()
    local = max(ports["local_out"].max(), ports["local_in"].max()) / (phase.local_share * local_bytes_per_s)
    between = max(ports["network_out"].max(), ports["network_in"].max())
    network = between / (phase.network_share * network_bytes_per_s) if between else 0.0
    busy_ns = max(local, network) * NS_PER_S
    return float(start_ns(traffic, phase) + max(busy_ns, work_ns(traffic, phase, local_bytes_per_s, processors)))


def start_ns(traffic: Traffic, phase: Phase) -> int:
    """Return the time of an exchange beside its bytes."""
    return phase.start_ns(len(traffic.copies), len(np.unique(traffic.node_of_rank)))


def work_ns(traffic: Traffic, phase: Phase, local_bytes_per_s: float, processors: int | None) -> float:
    """Return the time that the processors given to the kernel need for the copies; zero where they do not limit."""
    if processors is None or phase.processor_share is None:
        return 0.0
    each_ns = traffic.copy_bytes / (phase.processor_share * local_bytes_per_s) * NS_PER_S
    return float(traffic.copies.max() * (phase.copy_processor_time + each_ns) / processors)


def _groups(routing: ExpertRouting, rank_of_expert: Sequence[int], ranks: int) -> list[list[int]]:
    if len(rank_of_expert) != len(routing.node_of_expert):
        raise ValueError(f"{len(rank_of_expert)} placed experts of {len(routing.node_of_expert)}")
    groups: list[list[int]] = [[] for _ in range(ranks)]
    for expert, rank in enumerate(rank_of_expert):
        groups[rank].append(expert)
    if not all(groups):
        raise ValueError(f"ranks without an expert: {[rank for rank, group in enumerate(groups) if not group]}")
    return groups


def _node_of_rank(routing: ExpertRouting, groups: Sequence[Sequence[int]]) -> NDArray[np.intp]:
    return np.array([routing.node_of_expert[group[0]] for group in groups])
