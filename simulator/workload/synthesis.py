"""Synthetic traces: arrivals, prompts, outputs, shared prefixes and sessions, each from its own random stream.

Models: prefixes popular by Zipf's law; a session whose every turn repeats the whole conversation before its new tokens
and comes a think time after the turn before arrived, whether that has been answered or not (an open loop).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from simulator.errors import InputError
from simulator.randomness import stream
from simulator.workload.arrivals import BLOCK, Arrivals, ClosedLoop
from simulator.workload.lengths import Lengths
from simulator.workload.schema import MAX_TOKENS, make_batch, rebatch
from simulator.workload.times import Times

SESSION_BLOCK = 1_024
MAX_PREFIXES = 1_000_000
MAX_TURNS = 1_000

Whole = NDArray[np.int64]


@dataclass(frozen=True)
class Prefixes:
    """So many beginnings that prompts share, each of a drawn length; the k-th is chosen as often as k^-exponent."""

    count: int
    tokens: Lengths
    exponent: float = 1.0

    def __post_init__(self) -> None:
        if not 1 <= self.count <= MAX_PREFIXES:
            raise ValueError(f"count must be between 1 and {MAX_PREFIXES:,}, not {self.count!r}")
        if not self.exponent >= 0:
            raise ValueError(f"exponent must be zero or more, not {self.exponent!r}")


@dataclass(frozen=True)
class Sessions:
    """Conversations of a drawn number of turns (MAX_TURNS at most), a think time apart.

    A session ends before the turn whose prompt and answer would be longer than `max_tokens`, never before its first.
    """

    turns: Lengths
    think_time: Times
    max_tokens: int = MAX_TOKENS


def synthesize(
    seed: int,
    requests: int,
    arrivals: Arrivals,
    prompt_tokens: Lengths,
    output_tokens: Lengths,
    prefixes: Prefixes | None = None,
    sessions: Sessions | None = None,
) -> Iterator[pa.RecordBatch]:
    """Yield canonical batches of `requests` requests; those of a smaller number are a prefix of them.

    With `sessions` the arrivals are those of sessions, and `prompt_tokens` what a turn adds to the conversation. A
    prefix comes before the drawn prompt, in a session before its first. The random streams are named "arrivals",
    "prompt_tokens", "output_tokens", "prefixes", "prefixes/tokens", "sessions/turns" and "sessions/think_time".
    Raises ValueError when `requests` < 1, and for sessions that all arrive at once.
    """
    if requests < 1:
        raise ValueError(f"requests must be 1 or more, not {requests!r}")
    if sessions is not None and isinstance(arrivals, ClosedLoop):
        raise ValueError("sessions need times of arrival; a closed loop has none")
    laws = (seed, arrivals, prompt_tokens, output_tokens, prefixes)
    blocks = _independent(*laws) if sessions is None else _turns(*laws, sessions)
    return rebatch(_first(blocks, requests))


def _first(blocks: Iterator[dict[str, Any]], requests: int) -> Iterator[pa.RecordBatch]:
    for columns in blocks:
        rows = min(requests, len(columns["arrival_ns"]))
        yield make_batch({name: values[:rows] for name, values in columns.items()}, rows)
        requests -= rows
        if not requests:
            return


class _Beginnings:
    """The prefix of each request or session in order of arrival."""

    def __init__(self, seed: int, prefixes: Prefixes) -> None:
        self._random = stream(seed, "prefixes")
        edges = np.cumsum(np.arange(1, prefixes.count + 1, dtype=float) ** -prefixes.exponent)
        self._edges = edges / edges[-1]
        self._tokens = prefixes.tokens.draw(stream(seed, "prefixes/tokens"), prefixes.count)

    def draw(self, n: int) -> tuple[Whole, Whole]:
        """Return the numbers of the next `n` prefixes and their tokens."""
        chosen = np.searchsorted(self._edges, self._random.random(n), side="right")
        return chosen, self._tokens[chosen]


def _independent(
    seed: int, arrivals: Arrivals, prompt_tokens: Lengths, output_tokens: Lengths, prefixes: Prefixes | None
) -> Iterator[dict[str, Any]]:
    times = _of_size(arrivals.times(stream(seed, "arrivals")), BLOCK)
    prompts, outputs = stream(seed, "prompt_tokens"), stream(seed, "output_tokens")
    beginnings = _Beginnings(seed, prefixes) if prefixes is not None else None
    for arrival_ns in times:
        columns = {
            "arrival_ns": arrival_ns,
            "prompt_tokens": prompt_tokens.draw(prompts, BLOCK),
            "output_tokens": output_tokens.draw(outputs, BLOCK),
        }
        if beginnings is not None:
            columns["prefix"], tokens = beginnings.draw(BLOCK)
            columns["prompt_tokens"] = np.minimum(columns["prompt_tokens"] + tokens, MAX_TOKENS)
            columns["prefix_tokens"] = tokens
        yield columns


def _turns(
    seed: int,
    arrivals: Arrivals,
    prompt_tokens: Lengths,
    output_tokens: Lengths,
    prefixes: Prefixes | None,
    sessions: Sessions,
) -> Iterator[dict[str, Any]]:
    """Yield the turns of sessions in order of time; those of one moment by session and turn."""
    times = _of_size(arrivals.times(stream(seed, "arrivals")), SESSION_BLOCK)
    names = ("prompt_tokens", "output_tokens", "sessions/turns", "sessions/think_time")
    prompts, outputs, lengths, thoughts = (stream(seed, name) for name in names)
    beginnings = _Beginnings(seed, prefixes) if prefixes is not None else None
    held: dict[str, Whole] = {}
    begins_ns = next(times)
    for block in count():
        turns = np.minimum(sessions.turns.draw(lengths, SESSION_BLOCK), MAX_TURNS)
        rows, first = int(turns.sum()), np.cumsum(turns) - turns
        turn = np.arange(rows) - np.repeat(first, turns)
        waits_ns = np.where(turn > 0, sessions.think_time.draw(thoughts, rows), 0)
        new, output = prompt_tokens.draw(prompts, rows), output_tokens.draw(outputs, rows)
        context = _running(new + output, first, turns)
        made = {
            "arrival_ns": np.repeat(begins_ns, turns) + _running(waits_ns, first, turns),
            "session": np.repeat(np.arange(SESSION_BLOCK) + block * SESSION_BLOCK, turns),
            "turn": turn,
        }
        if made["arrival_ns"].min() < 0:
            raise InputError("the turns of sessions run past 292 years, the end of 64-bit nanoseconds")
        if beginnings is not None:
            prefix, tokens = beginnings.draw(SESSION_BLOCK)
            made["prefix"], made["prefix_tokens"] = np.repeat(prefix, turns), np.repeat(tokens, turns)
            context += made["prefix_tokens"]
        made["prompt_tokens"], made["output_tokens"] = np.minimum(context - output, MAX_TOKENS), output
        kept = (context <= min(sessions.max_tokens, MAX_TOKENS)) | (turn == 0)
        held = {name: np.concatenate((held[name], v[kept])) if held else v[kept] for name, v in made.items()}
        begins_ns = next(times)  # no turn of a later session comes before these
        ready = held["arrival_ns"] < begins_ns[0]
        if ready.any():
            yield _in_order({name: values[ready] for name, values in held.items()})
        held = {name: values[~ready] for name, values in held.items()}


def _in_order(columns: dict[str, Whole]) -> dict[str, Any]:
    order = np.lexsort((columns["turn"], columns["session"], columns["arrival_ns"]))
    found: dict[str, Any] = {name: values[order] for name, values in columns.items()}
    return found | {"session": pa.array(found["session"]).cast(pa.string()), "turn": found["turn"].astype(np.int32)}


def _running(values: Whole, first: Whole, turns: Whole) -> Whole:
    """Return running sums that begin anew with each session; differences stay right where the whole sum wraps."""
    sums = np.cumsum(values)
    return sums - np.repeat(sums[first] - values[first], turns)


def _of_size(chunks: Iterator[Whole], size: int) -> Iterator[Whole]:
    """Yield the same numbers in arrays of exactly `size`."""
    held = np.empty(0, np.int64)
    for chunk in chunks:
        held = np.concatenate((held, chunk))
        while len(held) >= size:
            yield held[:size]
            held = held[size:]
