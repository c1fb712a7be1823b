"""How many tokens the experts of the fullest rank get: even, chosen at random, or by a power law; closed forms only.

Sources: a bounded power law of loads as AIConfigurator's `power_law_<alpha>` draws them (density x^-alpha from 1 to 0.8
of the tokens); the largest of normal variables at the quantiles of its distribution; Cornish-Fisher for skewed sums.
"""

from functools import cache
from math import sqrt
from statistics import NormalDist
from typing import NamedTuple

GROUPS = 8
"""Equally many experts of a rank, by load, that share one expected load."""
SHARE = 0.8
"""Largest load drawn, as a share of the tokens; AIConfigurator's choice."""
SPARSE = 200.0
"""Largest load over the smallest where there are fewer choices than experts; AIConfigurator's choice."""
NODES = 16
_NORMAL = NormalDist()


class Load(NamedTuple):
    """Tokens of the experts of one rank: `rows[i]` by each of `members` experts, a share `used[i]` of which get any."""

    members: float
    rows: tuple[float, ...]
    used: tuple[float, ...]

    @property
    def total(self) -> float:
        """Expected pairs of a token and an expert of this rank."""
        return self.members * sum(self.rows)

    @property
    def experts_used(self) -> float:
        """Expected experts of this rank that get a token."""
        return self.members * sum(self.used)


def used_share(rows: float, tokens: float) -> float:
    """Return the probability that an expert of `rows` expected of `tokens` gets one: tokens choose independently."""
    return 1 - (1 - min(1.0, rows / tokens)) ** tokens if tokens > 0 else 0.0


def experts_used(tokens: int, topk: int, experts: int) -> float:
    """Return how many of `experts` distinct ones `tokens` use, each choosing `topk` at random."""
    return experts * used_share(tokens * topk / experts, tokens)


def places_hit(places: int, choices: int) -> float:
    """Return how many of `places` (ranks, nodes) with equally many experts a token's choices fall on, at random."""
    return places * (1 - (1 - 1 / places) ** choices)


@cache
def largest(ranks: int) -> tuple[float, float]:
    """Return the mean of the largest of `ranks` standard normal variables, and of its square."""
    if ranks == 1:
        return 0.0, 1.0
    points = [_NORMAL.inv_cdf(((i + 0.5) / NODES) ** (1 / ranks)) for i in range(NODES)]
    return sum(points) / NODES, sum(z * z for z in points) / NODES


def rank_load(tokens: int, topk: int, experts: int, local: int, skew: float = 0.0) -> Load:
    """Return the load of the fullest rank: `local` of `experts` are there, `tokens` of the group choose `topk` each.

    `skew` 0: experts are all alike and tokens choose at random. Above 0: the loads of a batch are drawn from a bounded
    power law of that exponent (1.01 and 1.2 are usual; it is not Zipf's exponent of the rank). More tokens never mean
    fewer rows.
    """
    if tokens <= 0:
        return Load(local, (0.0,), (0.0,))
    if not skew:
        each = _random_rows(tokens, topk, experts, local)
        return Load(local, (each,), (used_share(each, tokens),))
    full = tokens * topk / experts
    # the two ranges meet at one choice per expert; the fall between them is spread out, so that loads still rise
    high = SPARSE if full <= 1 else max(SHARE * tokens, SPARSE / full**2)
    average = _fullest(tokens, topk, experts, local, skew, high)
    rows = _spread(average, min(local, GROUPS), skew, high, float(tokens))
    return Load(local / len(rows), rows, tuple(min(1.0, r) for r in rows))


def even_load(tokens: int, topk: int, experts: int, local: int) -> Load:
    """Return the load of a rank when choices are dealt out evenly: as many rows each, and one each while they last."""
    chosen = tokens * topk
    rows, used = chosen / experts, min(1.0, -(-chosen * local // experts) / local)
    return Load(local, (max(rows, used if chosen < experts else 0.0),), (used,))


def _random_rows(tokens: int, topk: int, experts: int, local: int) -> float:
    """Return rows per expert of the fullest rank: the mean, and the fluctuation of choices without replacement."""
    ranks, share = experts // local, local / experts
    mean = tokens * topk * share
    if ranks == 1:
        return mean / local
    deviation = sqrt(mean * (1 - share) * (experts - topk) / (experts - 1))
    return min(mean + largest(ranks)[0] * deviation, tokens * min(topk, local)) / local


def _moments(skew: float, high: float) -> tuple[float, float, float]:
    """Return mean, standard deviation and skewness of the density x^-skew between 1 and `high`."""
    first, second, third = (_raw(power, skew, high) for power in (1, 2, 3))
    variance = second - first * first
    return first, sqrt(variance), (third - 3 * first * second + 2 * first**3) / variance**1.5


def _raw(power: int, skew: float, high: float) -> float:
    """Return the mean of x^power under the density x^-skew; exponents of exactly one are shifted a hair."""
    below, above = 1 - skew or 1e-9, power + 1 - skew or 1e-9
    return float(below / above * (high**above - 1) / (high**below - 1))


def _fullest(tokens: int, topk: int, experts: int, local: int, skew: float, high: float) -> float:
    """Return the rows per expert of the fullest rank: loads of the law, dealt in whole tokens, summed on each rank.

    No fewer than one pair, and none beyond every token choosing as many experts there as it can.
    """
    ranks, average = experts // local, tokens * topk / experts
    if ranks == 1:
        return average
    mean, deviation, lean = _moments(skew, high)
    if local == 1:
        below = 1 - skew or 1e-9
        width = high**below - 1
        largest_of = [(width * ((i + 0.5) / NODES) ** (1 / ranks) + 1) ** (1 / below) for i in range(NODES)]
        factor = sum(largest_of) / NODES / mean
    else:
        z, square = largest(ranks)
        whole = sqrt((deviation / mean) ** 2 + min(average, 1 / 6) / average**2)
        factor = 1 + (z * whole + deviation / mean * lean / sqrt(local) * (square - 1) / 6) / sqrt(local)
    return float(min(max(factor * average, 1 / local), tokens * min(topk, local) / local))


def _spread(average: float, groups: int, skew: float, high: float, limit: float) -> tuple[float, ...]:
    """Return rising rows of `groups` groups of experts, by quantiles of the law: this average, none above `limit`."""
    below = 1 - skew or 1e-9
    width = high**below - 1
    shape = [(width * ((i + 0.5) / groups) + 1) ** (1 / below) for i in range(groups)]
    scale = average * groups / sum(shape)
    return _capped([scale * x for x in shape], limit)


def _capped(rows: list[float], limit: float) -> tuple[float, ...]:
    """Return rising `rows` with none above `limit`, what is above it going to the others in proportion."""
    total = sum(rows)
    if total >= limit * len(rows):
        return (limit,) * len(rows)
    full = 0
    while rows[-1 - full] > limit:
        full += 1
        rest = sum(rows[: len(rows) - full])
        scale = (total - full * limit) / rest
        rows = [r * scale for r in rows[: len(rows) - full]] + [limit] * full
    return tuple(rows)
