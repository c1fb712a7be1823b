"""How evenly tokens spread over expert-parallel ranks: what the fullest one computes, and what it sends and receives.

Model: tokens choose independently, each a fixed number of experts of a given popularity, so that the pairs of a rank
are nearly normal; the mean of the largest is an integral over the product of their distributions. Layers differ; a
step is a sum over layers, so what counts is the mean over layers of each layer's largest.
"""

from collections.abc import Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from simulator.model.expert_group import Group
from simulator.model.expert_load import GROUPS, Load, largest, used_share
from simulator.model.expert_placement import Floats, Whole, contiguous, copies_of

POINTS = 32
"""Of the integral over the largest load."""


class ExpertBalance:
    """A popularity (layers x experts, a row's sum is the experts that a token uses) under a placement on ranks.

    Tokens of a rank always go to the same copy of an expert, and all copies are chosen by equally many ranks.
    `shared_copies` of the shared expert, chosen by every token, are experts of ranks like others. `nodes_per_token`
    limits the nodes on which a token's experts lie, as those of DeepSeek-V3's router do (0: no limit).
    """

    def __init__(
        self, popularity: Floats, placement: Whole, group: Group, shared_copies: int = 0, nodes_per_token: int = 0
    ) -> None:
        self.popularity, self.placement, self.group = popularity, placement, group
        self.shared_copies = shared_copies
        self.experts = popularity.shape[1] + bool(shared_copies)
        self.topk = round(float(popularity[0].sum())) + bool(shared_copies)
        self.nodes_per_token = 0 if nodes_per_token >= group.nodes else nodes_per_token
        layers = len(popularity)
        chosen = np.concatenate([popularity, np.ones((layers, 1))], axis=1) if shared_copies else popularity
        copies = np.maximum(copies_of(placement, self.experts), 1)
        rows = np.arange(layers)[:, None, None]
        self._share = (chosen / copies)[rows, placement]  # pairs of each slot, per token
        self._means: Floats = self._share.sum(axis=2)
        self._spreads = self._deviations((chosen * (1 - chosen) / copies)[rows, placement])
        hottest = self._means.argmax(axis=1)
        slots = -np.sort(-self._share[np.arange(layers), hottest], axis=1)
        self._slots: Floats = slots.sum(axis=0) / slots.sum()  # of the fullest rank, by share of its pairs
        self._floor = float(np.mean(self._means.max(axis=1)))
        self._known: dict[int, float] = {}

    @staticmethod
    def even(layers: int, experts: int, active: int, ranks: int) -> "ExpertBalance":
        """Return experts that are all alike, in order on ranks that divide them."""
        group = Group(ranks, experts // ranks)
        return ExpertBalance(np.full((layers, experts), active / experts), contiguous(layers, experts, 0, group), group)

    @property
    def evenness(self) -> float:
        """Return the load of an average rank over that of the fullest, of so many tokens that chance has no part."""
        return self.topk / self.group.ranks / self._floor

    @property
    def fingerprint(self) -> tuple[bytes, bytes]:
        """What two balances of the same pool have in common when they are the same."""
        return self.popularity.tobytes(), self.placement.tobytes()

    def hottest(self, tokens: float) -> float:
        """Return the expected pairs of the fullest rank when `tokens` of the whole group choose, mean over layers.

        Between powers of two it is taken as a tokens + b sqrt(tokens), as noise and popularity make it.
        """
        if tokens <= 0:
            return 0.0
        low = 1 << (max(int(tokens), 1).bit_length() - 1)
        left, right = self._at(low) / low, self._at(2 * low) / (2 * low)
        part = (low**-0.5 - tokens**-0.5) / (low**-0.5 - (2 * low) ** -0.5)
        found = tokens * (left + (right - left) * max(part, 0.0))
        most = tokens * min(self.topk, self.group.slots)
        return float(min(max(found, tokens * self._floor, min(tokens, 1.0)), most))

    def mean_over_maximum(self, tokens: float) -> float:
        """Return the pairs of an average rank over those of the fullest: 1 is perfect balance."""
        return tokens * self.topk / self.group.ranks / self.hottest(tokens)

    def load(self, tokens: int) -> Load:
        """Return the load of the fullest rank: slots from the hottest on, in groups where there are many."""
        slots = self.group.slots
        if tokens <= 0:
            return Load(slots, (0.0,), (0.0,))
        total, count = self.hottest(tokens), min(slots, GROUPS)
        ends = np.interp(np.arange(count + 1) * slots / count, np.arange(slots + 1), np.cumsum([0.0, *self._slots]))
        rows = tuple(float(min(share * total * count / slots, tokens)) for share in np.diff(ends))
        return Load(slots / count, rows, tuple(used_share(row, tokens) for row in rows))

    # -- what is exchanged ----------------------------------------------------------------------------------------

    @cached_property
    def copies(self) -> float:
        """Ranks that a token is sent to, as if all had as much to receive as the busiest, mean over layers."""
        return float(self.group.ranks * self._hits().max(axis=1).mean())

    @cached_property
    def relayed(self) -> float:
        """Nodes that a token is sent to per rank that it is sent to; below one, a node may hand copies on."""
        nodes = self._hit(self._by_node(self._means), self._visits()).sum(axis=1)
        return float(np.mean(nodes / self._hits().sum(axis=1)))

    def _hits(self) -> Floats:
        """Return P(a token is sent to a rank): choices fall on a rank by its share, one by one."""
        if self.group.slots == 1:
            return self._means
        return self._hit(self._means, np.repeat(self._visits(), self.group.ranks_per_node, axis=1))

    def _hit(self, means: Floats, visited: Floats) -> Floats:
        """Return P(one of the choices or more falls on a place of so many on average), if its node is visited."""
        part = np.divide(means, visited * self.topk, out=np.zeros_like(means), where=visited > 0)
        found: Floats = visited * (1 - (1 - np.minimum(part, 1.0)) ** self.topk)
        return found

    def _visits(self) -> Floats:
        """Return P(a node is among those that a token may use): by the share of its experts, certain at most."""
        per_node = self._by_node(self._means)
        if not self.nodes_per_token:
            return np.ones_like(per_node)
        visits = per_node * (self.nodes_per_token / self.topk)
        for _ in range(self.group.nodes):  # what is above certainty goes to the others
            full = visits >= 1
            rest = np.where(full, 0.0, visits)
            left = self.nodes_per_token - full.sum(axis=1, keepdims=True)
            total = rest.sum(axis=1, keepdims=True)
            visits = np.where(full, 1.0, rest * np.divide(left, total, out=np.zeros_like(total), where=total > 0))
        return np.minimum(visits, 1.0)

    def _by_node(self, values: Floats) -> Floats:
        found: Floats = values.reshape(len(values), self.group.nodes, -1).sum(axis=2)
        return found

    # -- the fullest rank -----------------------------------------------------------------------------------------

    def _deviations(self, variances: Floats) -> Floats:
        """Return the deviation of each rank's pairs per square root of tokens, from the variance of each slot.

        Choices are Bernoulli conditioned on their number, and on the nodes that a token may use.
        """
        own = variances.sum(axis=2)
        whole = own.sum(axis=1, keepdims=True)
        experts = self.experts / (self.experts - 1) if self.experts > 1 else 1.0  # drawn without replacement
        found = own * np.clip(1 - np.divide(own, whole, out=np.zeros_like(own), where=whole > 0), 0, None) * experts
        if self.nodes_per_token:
            visits = np.repeat(self._visits(), self.group.ranks_per_node, axis=1)
            found = found + self._means**2 * (np.divide(1.0, visits, out=np.ones_like(visits), where=visits > 0) - 1)
        deviations: Floats = np.sqrt(found)
        return deviations

    def _at(self, tokens: int) -> float:
        known = self._known.get(tokens)
        if known is None:
            means, deviations = tokens * self._means, tokens**0.5 * self._spreads
            known = self._known[tokens] = float(np.mean(expected_maximum(means, deviations)))
        return known


def expected_maximum(means: Floats, deviations: Floats) -> Floats:
    """Return, row by row, the mean of the largest of independent normal variables.

    It is the floor that one of them surely passes and the integral of P(the largest is above) from there on; of
    variables that are all alike the quantiles of their largest say it.
    """
    floor = (means - 4 * deviations).max(axis=1)
    step = ((means + 4 * deviations).max(axis=1) - floor) / POINTS
    at = floor[:, None] + (np.arange(POINTS) + 0.5) * step[:, None]
    reach = np.where(deviations > 0, deviations, 1e-12)
    below = _normal_cdf((at[:, :, None] - means[:, None, :]) / reach[:, None, :]).prod(axis=2)
    found: Floats = floor + step * (1 - below).sum(axis=1)
    alike = (np.ptp(means, axis=1) <= 1e-9 * means.max(axis=1)) & (np.ptp(deviations, axis=1) <= 1e-9)
    return np.where(alike, means.max(axis=1) + largest(means.shape[1])[0] * deviations[:, 0], found)


_TAIL = (0.319381530, -0.356563782, 1.781477937, -1.821255978, 1.330274429)


def _normal_cdf(values: Floats) -> Floats:
    """Return the standard normal distribution, to 1e-7 (Abramowitz and Stegun 26.2.17)."""
    values = np.clip(values, -40.0, 40.0)
    t = 1 / (1 + 0.2316419 * np.abs(values))
    tail = np.exp(-values * values / 2) / np.sqrt(2 * np.pi) * t * _polynomial(t, _TAIL)
    found: Floats = np.where(values > 0, 1 - tail, tail)
    return found


def _polynomial(t: NDArray[np.float64], coefficients: Sequence[float]) -> Floats:
    total: Floats = np.zeros_like(t)
    for coefficient in reversed(coefficients):
        total = total * t + coefficient
    return total
