"""Routers that send a request where its prefix or its session is known, unless that instance has too much to do.

Sources: prefix hits weighed against load (the routers of SGLang, AIBrix and llm-d score both); consistent hashing with
bounded loads (Mirrokni, Thorup, Zadimoghaddam 2018).
"""

from bisect import bisect_right
from collections.abc import Sequence
from hashlib import blake2b
from math import ceil
from typing import Annotated

from pydantic import Field

from simulator.serving.pool_view import EngineTraits, Place, PoolView, Router, held_tokens, in_turn
from simulator.serving.request import Request
from simulator.strict import Fraction, Strict

POINTS = 64
"""Points of one engine on the ring."""


class PrefixAware(Strict):
    """The best score: share of the prompt found in the engine's prefix cache, less `load_weight` times its excess load.

    The excess is (outstanding - least outstanding) / (1 + mean outstanding). So a prompt that one engine holds whole
    goes there until that engine is (1 + mean) / load_weight requests above the least loaded.
    """

    load_weight: Annotated[float, Field(ge=0, le=1e6)] = 1.0
    """What load counts against hits; 0: hits alone, and load only among equals."""
    threshold: Fraction = 0.0
    """Share of the prompt below which a hit does not count."""
    tiers: bool = False
    """Whether what the tiers below a prefix cache hold is a hit like any other."""


class ByPrefix:
    """Weighs prefix hits against load."""

    def __init__(self, load_weight: float, threshold: float, tiers: bool) -> None:
        self._tiers = tiers
        self._load_weight = load_weight
        self._threshold = threshold
        self._last = -1

    def __call__(self, request: Request, pool: PoolView) -> int:
        """Return the instance of the best score; among equals the least loaded, then the next in turn."""
        loads = pool.outstanding
        least = min(loads)
        penalty = self._load_weight / (1 + sum(loads) / len(loads))
        fewest, prompt = max(1.0, self._threshold * request.prompt_tokens), request.prompt_tokens
        hits = held_tokens(request, pool, self._tiers)
        if max(hits) < fewest:
            self._last = in_turn(loads, self._last)
            return self._last
        idle = {load: (penalty * (load - least), load) for load in dict.fromkeys(loads)}  # what no hit betters
        scores = [idle[load] for load in loads]
        for at, hit in enumerate(hits):
            if hit >= fewest:
                load = loads[at]
                scores[at] = penalty * (load - least) - hit / prompt, load
        self._last = in_turn(scores, self._last)
        return self._last


def prefix_aware(parameters: PrefixAware, place: Place) -> Router:
    """Return a router that weighs prefix hits against load."""
    return ByPrefix(parameters.load_weight, parameters.threshold, parameters.tiers)


class SessionAffinity(Strict):
    """The instance to which the session hashes, or the next on the ring that is not full; no session: least loaded."""

    load_factor: Annotated[float, Field(gt=1, le=1e6)] = 1.25
    """An instance is full when it has this many times its fair share of the outstanding requests, rounded up."""


def point(text: str) -> int:
    """Return where a name falls on the ring of 2^64 points."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big")


class BySession:
    """A ring of hashes: a session keeps its instance, and instances that come or go move few sessions."""

    def __init__(self, load_factor: float) -> None:
        self._load_factor = load_factor
        self._engines: Sequence[EngineTraits] | None = None
        self._points: list[int] = []
        self._owners: list[int] = []
        self._last = -1

    def __call__(self, request: Request, pool: PoolView) -> int:
        """Return the first instance on the ring from the session's point on that is not full."""
        loads = pool.outstanding
        if request.session is None:
            self._last = in_turn(loads, self._last)
            return self._last
        if pool.engines is not self._engines:
            self._place(pool.engines)
        most = ceil(self._load_factor * (sum(loads) + 1) / len(loads))
        owners = self._owners
        place = bisect_right(self._points, point(request.session)) % len(owners)
        while loads[owners[place]] >= most:  # at most the mean plus one on each: one at least has room
            place = (place + 1) % len(owners)
        return owners[place]

    def _place(self, engines: Sequence[EngineTraits]) -> None:
        self._engines = engines
        ring = sorted(
            (point(f"{engine.name}#{copy}"), index) for index, engine in enumerate(engines) for copy in range(POINTS)
        )
        self._points, self._owners = [at for at, _ in ring], [index for _, index in ring]


def session_affinity(parameters: SessionAffinity, place: Place) -> Router:
    """Return a router that keeps sessions where they are."""
    return BySession(parameters.load_factor)
