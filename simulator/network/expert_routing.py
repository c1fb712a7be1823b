"""Which experts tokens choose: k distinct experts on at most M nodes, with given loads; expected and sampled.

Model: the set A of a token and its set B of M nodes have a probability in proportion to the product of the weights of
A, for every A within B (conditional Poisson sampling: Chen, Dempster, Liu 1994). With equal weights that is M nodes and
then k experts on them, all equally likely. Every probability is a coefficient of a product of polynomials: exact.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
FIT_ROUNDS = 2_000
FIT_TOLERANCE = 1e-10


@dataclass(frozen=True, eq=False)
class ExpertRouting:
    """Routing of tokens to experts.

    `node_of_expert[e]` is the node (0, 1, ...) that holds expert e. `loads[e]` is the relative number of tokens that
    choose expert e, such as measured counts (default all equal). A token chooses `top_k` distinct experts on at most
    `node_limit` nodes (default any). Raises ValueError when that cannot be.
    """

    node_of_expert: tuple[int, ...]
    top_k: int
    loads: tuple[float, ...] | None = None
    node_limit: int | None = None

    def __post_init__(self) -> None:
        per_node = sorted(np.bincount(self.node_of_expert).tolist(), reverse=True)
        limit = len(per_node) if self.node_limit is None else self.node_limit
        if not 1 <= limit <= len(per_node):
            raise ValueError(f"a limit of {limit} nodes of {len(per_node)}")
        if not 1 <= self.top_k <= sum(per_node[:limit]):
            raise ValueError(f"{self.top_k} distinct experts do not exist on {limit} nodes")
        if self.loads is not None:
            if len(self.loads) != len(self.node_of_expert) or min(self.loads) < 0 or not sum(self.loads) > 0:
                raise ValueError("loads need a number of zero or more for each expert, and one above zero")
            if self.top_k * max(self.loads) > sum(self.loads) * (1 + 1e-9):
                raise ValueError(f"a load above 1/{self.top_k} of all: no token chooses an expert twice")

    @cached_property
    def limit(self) -> int:
        """The nodes that a token may use."""
        return self._nodes if self.node_limit is None else self.node_limit

    @cached_property
    def _nodes(self) -> int:
        return max(self.node_of_expert) + 1

    @cached_property
    def _experts(self) -> list[NDArray[np.intp]]:
        nodes = np.array(self.node_of_expert)
        return [np.flatnonzero(nodes == node) for node in range(self._nodes)]

    @cached_property
    def weights(self) -> Floats:
        """The weights under which the experts get their loads, by iterative scaling; mean one.

        Raises ValueError when no weights give the loads, as when a node limit leaves a hot node too few tokens.
        """
        count = len(self.node_of_expert)
        weights: Floats = np.ones(count)
        if self.loads is None:
            return weights
        target = self.top_k * np.array(self.loads) / sum(self.loads)
        weights = target / target.mean()
        pace, worst = 1.0, np.inf
        for _ in range(FIT_ROUNDS):
            found = self._inclusion(weights)
            off = float(np.max(np.abs(found - target)))
            if off < FIT_TOLERANCE:
                return weights
            if off > worst:  # it swings: experts of one node rise and fall together
                pace /= 2
            worst = off
            scale = np.divide(target, found, out=np.ones(count), where=found > 0)
            scale *= np.where(target < 1, (1 - found) / np.maximum(1 - target, FIT_TOLERANCE), 1.0)
            weights = weights * np.clip(scale, 0.1, 10) ** pace
            weights = weights / weights.mean()
        if np.max(np.abs(self._inclusion(weights) - target)) > 1e-3:
            raise ValueError("no routing of distinct experts within the node limit has these loads")
        return weights

    @cached_property
    def expert_probability(self) -> Floats:
        """The probability that a token chooses each expert; they sum to `top_k`."""
        return self._inclusion(self.weights)

    def hit_probability(self, groups: Sequence[Sequence[int]]) -> Floats:
        """Return, for groups of experts that share a node (such as those of a rank), P(a token chooses one or more).

        Raises ValueError for a group that spans nodes.
        """
        weights, found = self.weights, np.zeros(len(groups))
        rests, total = self._rests(weights)
        for index, group in enumerate(groups):
            nodes = {self.node_of_expert[e] for e in group}
            if len(nodes) > 1:
                raise ValueError(f"experts {list(group)} stand on several nodes")
            if nodes:
                node = nodes.pop()
                left = np.setdiff1d(self._experts[node], group)
                missed = self._at_k(_elementary(weights[left], self.top_k), rests[node][0]) + rests[node][1][self.top_k]
                found[index] = 1 - missed / total
        return np.clip(found, 0.0, 1.0)

    def node_probability(self) -> Floats:
        """Return the probability that a token chooses one or more experts of each node."""
        return self.hit_probability([experts.tolist() for experts in self._experts])

    def sample(self, tokens: int, random: np.random.Generator) -> NDArray[np.bool_]:
        """Return the choices of some tokens as booleans of shape (tokens, experts), drawn expert by expert."""
        weights, k = self.weights, self.top_k
        after = self._suffixes(weights)
        chosen = np.zeros((tokens, len(self.node_of_expert)), dtype=bool)
        need, nodes = np.full(tokens, k), np.full(tokens, self.limit)
        for node, experts in enumerate(self._experts):
            within = _suffix_elementary(weights[experts], k)
            # ways[i][s, j]: weight of what is to come if the node is in B, s nodes and j experts are still to be chosen
            ways = [self._convolve_all(poly, after[node + 1]) for poly in within]
            inside = np.divide(ways[0][nodes, need], after[node][nodes, need])
            entered = random.random(tokens) < inside
            for i, expert in enumerate(experts):
                weight_in = weights[expert] * np.where(need > 0, ways[i + 1][nodes, np.maximum(need - 1, 0)], 0.0)
                whole = ways[i][nodes, need]
                chance = np.divide(weight_in, whole, out=np.zeros(tokens), where=whole > 0)
                taken = entered & (random.random(tokens) < chance)
                chosen[:, expert] = taken
                need = need - taken
            nodes = nodes - entered
        return chosen

    def _inclusion(self, weights: Floats) -> Floats:
        rests, total = self._rests(weights)
        found = np.zeros(len(weights))
        for node, experts in enumerate(self._experts):
            if not len(experts):
                continue
            without = _leave_one_out(weights[experts], self.top_k - 1)
            rest = rests[node][0][: self.top_k][::-1]
            found[experts] = weights[experts] * (without @ rest) / total
        return found

    def _rests(self, weights: Floats) -> tuple[list[tuple[Floats, Floats]], float]:
        """Return, for each node, the polynomials of M - 1 and of M of the other nodes; and the sum over everything."""
        polys = [_elementary(weights[experts], self.top_k) for experts in self._experts]
        before, after = self._prefixes(polys), self._suffixes(weights)
        rests = []
        for node in range(self._nodes):
            pair = []
            for wanted in (self.limit - 1, self.limit):
                poly = np.zeros(self.top_k + 1)
                for left in range(wanted + 1):
                    poly += np.convolve(before[node][left], after[node + 1][wanted - left])[: self.top_k + 1]
                pair.append(poly)
            rests.append((pair[0], pair[1]))
        return rests, float(after[0][self.limit, self.top_k])

    def _prefixes(self, polys: Sequence[Floats]) -> list[Floats]:
        tables = [self._nothing()]
        for poly in polys:
            tables.append(tables[-1] + self._convolve_all(poly, tables[-1]))
        return tables

    def _suffixes(self, weights: Floats) -> list[Floats]:
        """Return, for each node, the table [s, j] of the weight of s of the nodes from it on with j experts."""
        tables = [self._nothing()]
        for experts in reversed(self._experts):
            tables.append(tables[-1] + self._convolve_all(_elementary(weights[experts], self.top_k), tables[-1]))
        return tables[::-1]

    def _nothing(self) -> Floats:
        table = np.zeros((self.limit + 1, self.top_k + 1))
        table[0, 0] = 1.0
        return table

    def _convolve_all(self, poly: Floats, table: Floats) -> Floats:
        """Return `table` with one node more, whose experts have the polynomial `poly`."""
        out = np.zeros_like(table)
        for j, factor in enumerate(poly):
            out[1:, j:] += factor * table[:-1, : table.shape[1] - j]
        return out

    def _at_k(self, poly: Floats, rest: Floats) -> float:
        return float(poly @ rest[::-1])


def _elementary(weights: Floats, degree: int) -> Floats:
    """Return the elementary symmetric polynomials 0..degree of the weights."""
    return _suffix_elementary(weights, degree)[0]


def _suffix_elementary(weights: Floats, degree: int) -> list[Floats]:
    """Return the elementary symmetric polynomials of the weights from each index on, and of none at the end."""
    poly = np.zeros(degree + 1)
    poly[0] = 1.0
    found = [poly]
    for weight in weights[::-1]:
        poly = found[-1].copy()
        poly[1:] += weight * found[-1][:-1]
        found.append(poly)
    return found[::-1]


def _leave_one_out(weights: Floats, degree: int) -> Floats:
    """Return, in row i, the elementary symmetric polynomials of all weights but the i-th."""
    rows = np.zeros((len(weights), degree + 1))
    rows[:, 0] = 1.0
    for j, weight in enumerate(weights):
        factor = np.full((len(weights), 1), weight)
        factor[j] = 0.0
        rows[:, 1:] += factor * rows[:, :-1]
    return rows
