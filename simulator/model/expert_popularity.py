"""How many tokens choose each expert of each layer: laws, counts of a trace, and how they drift.

A popularity is an array of layers x experts: the mean number of tokens that choose an expert, per token; a row sums to
the experts that a token uses and no entry is above one, for no token chooses an expert twice. Source: Zipf's law of
the rank; the bounded power law of `expert_load`; counts such as ESFT's (arXiv:2407.01906).
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def uniform(layers: int, experts: int, active: int) -> Floats:
    """Return the popularity of experts that are all alike."""
    return np.full((layers, experts), active / experts)


def zipf(layers: int, experts: int, active: int, exponent: float, random: np.random.Generator) -> Floats:
    """Return popularities in proportion to 1 / rank^exponent, experts in a random order of their own in each layer."""
    return shuffled(scaled(np.arange(1.0, experts + 1) ** -exponent, active), layers, random)


def power_law(
    layers: int, experts: int, active: int, exponent: float, largest: float, random: np.random.Generator
) -> Floats:
    """Return the quantiles of the density x^-exponent from 1 to `largest`, in a random order in each layer."""
    below = 1 - exponent or 1e-9
    at = (np.arange(experts) + 0.5) / experts
    loads: Floats = ((largest**below - 1) * at + 1) ** (1 / below)
    return shuffled(scaled(loads, active), layers, random)


def counted(counts: Sequence[Sequence[float]] | Floats, active: int) -> Floats:
    """Return the popularity that counts of chosen experts show, layers x experts.

    Raises ValueError when a layer has fewer experts in use than a token needs.
    """
    table = np.array(counts, dtype=float)
    used = (table > 0).sum(axis=1)
    if used.min() < active:
        raise ValueError(f"layer {int(used.argmin())} uses {int(used.min())} experts, and each token {active}")
    return np.stack([scaled(row, active) for row in table])


def scaled(weights: Floats, active: int) -> Floats:
    """Return weights in proportion, their sum `active` and none above one: what is above goes to the others."""
    found: Floats = weights * (active / weights.sum())
    full = np.zeros(len(weights), dtype=bool)
    while (found[~full] > 1).any():
        full |= found >= 1
        found[full] = 1.0
        rest = ~full
        if not rest.any():  # a token needs all of them, and rounding put the sum above
            break
        found[rest] = weights[rest] * ((active - full.sum()) / weights[rest].sum())
    return found


def shuffled(row: Floats, layers: int, random: np.random.Generator) -> Floats:
    """Return the popularity of one layer for all of them, experts in a random order in each."""
    found: Floats = random.permuted(np.tile(row, (layers, 1)), axis=1)
    return found


def redrawn(popularity: Floats, share: float, random: np.random.Generator) -> Floats:
    """Return the popularity after a share of each layer's experts, chosen at random, have changed places at random."""
    layers, experts = popularity.shape
    count = round(share * experts)
    found = popularity.copy()
    for layer in range(layers):
        chosen = random.choice(experts, count, replace=False)
        found[layer, chosen] = popularity[layer, random.permutation(chosen)]
    return found
