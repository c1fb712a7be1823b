"""The workload of a serving scenario: what streams its requests, and the keys by which their prompts are known."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import repeat
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from simulator import catalog
from simulator.errors import InputError, Problem
from simulator.scenario.schema import KV, Scenario
from simulator.scenario.workload import TraceWorkload
from simulator.serving.frontend import Arrivals
from simulator.serving.prefix_cache import PrefixCache, session_keys

if TYPE_CHECKING:
    import pyarrow as pa

    from simulator.workload.trace import Trace

_SESSIONS = "sessions do not wait for each other: requests arrive at their recorded times"
_NO_EFFECT = {
    "session": _SESSIONS,
    "turn": _SESSIONS,
    "prefix_hashes": "there is no prefix cache: every prompt is computed in full",
    "model": "one model serves every request",
    "tenant": "tenants are served alike",
}


class Workload(NamedTuple):
    """What streams the canonical batches of a workload, from the start at each call, and what their prompts go by."""

    batches: Callable[[], Iterator["pa.RecordBatch"]]
    hash_tokens: int | None = None
    """Tokens of a prefix hash, when prompts are known by them."""
    unit_tokens: int | None = None
    """Tokens of a unit of the prefix cache, when there is one and anything is known of the prompts."""

    def arrivals(self, speedup: float) -> Iterator[Arrivals]:
        """Yield plain columns, arrival times divided by `speedup` and rounded to the nanosecond."""
        sessions: dict[str, int] = {}
        for batch in self.batches():
            times = batch.column("arrival_ns").to_numpy()
            if speedup != 1:
                if len(times) and times[-1] / speedup >= 2**62:
                    what = f"with speedup {speedup:g} requests arrive more than 146 years from the start"
                    raise InputError(Problem(what, path="workload.speedup", allowed="a larger speedup"))
                times = np.rint(times / speedup).astype(np.int64)
            prompts, outputs = batch.column("prompt_tokens").tolist(), batch.column("output_tokens").tolist()
            names = (batch.column(name) for name in ("session", "turn"))
            session, turn = (repeat(None) if c.null_count == len(c) else c.to_pylist() for c in names)
            keys: Iterator[Sequence[int]] = repeat(())
            if self.unit_tokens is not None:
                if self.hash_tokens is not None:
                    keys = _hashes(batch, self.hash_tokens)
                else:
                    keys = _of_sessions(batch, sessions, self.unit_tokens)
            yield Arrivals(times.tolist(), prompts, outputs, session, turn, keys)


def _hashes(batch: "pa.RecordBatch", hash_tokens: int) -> Iterator[Sequence[int]]:
    """Yield the hashes of each prompt's full blocks: a block that the prompt does not fill cannot be shared."""
    column = batch.column("prefix_hashes")
    offsets, values = column.offsets.to_numpy(), column.values.to_numpy()
    full = offsets[:-1] + np.minimum(np.diff(offsets), batch.column("prompt_tokens").to_numpy() // hash_tokens)
    rows = values.tolist()
    return (tuple(rows[first:last]) for first, last in zip(offsets[:-1].tolist(), full.tolist(), strict=True))


def _of_sessions(batch: "pa.RecordBatch", known: dict[str, int], unit_tokens: int) -> Iterator[Sequence[int]]:
    """Yield the keys of each request's whole context by its session; without a session there are none."""
    columns = (batch.column(name).to_pylist() for name in ("session", "prompt_tokens", "output_tokens"))
    for session, prompt, output in zip(*columns, strict=True):
        if session is None:
            yield ()
        else:
            yield session_keys(known.setdefault(session, len(known)), prompt + output, unit_tokens)


def plan_workload(scenario: Scenario, notes: list[str]) -> Workload:
    """Return the workload of a scenario; raises InputError when its trace cannot be read or does not fit a cache."""
    section = scenario.workload
    assert section is not None
    if not isinstance(section, TraceWorkload):
        from simulator.workload.synthesis import synthesize

        laws = [choice.parameters.law() for choice in (section.arrivals, section.prompt_tokens, section.output_tokens)]
        if _caches(scenario):
            notes.append("kv.prefix_cache: nothing is known of the content of drawn prompts, so none begin alike")
        return Workload(partial(synthesize, scenario.seed, section.requests, *laws))
    from simulator.workload.trace import open_trace

    path = catalog.locate("traces", section.trace)
    mapping = section.columns.mapping() if section.columns is not None else None
    trace = open_trace(path, section.format, mapping, section.strict_rows)
    present, caches = set(trace.columns_present), _caches(scenario)
    known = "prefix_hashes" if "prefix_hashes" in present else "session" if "session" in present else None
    if caches:
        if known is None:
            notes.append(
                f"kv.prefix_cache: trace {path.name} has no prefix_hashes and no session, so no prompts begin alike"
            )
        present -= {known} | ({"turn"} if known == "session" else set())
    reasons: dict[str, list[str]] = {}
    for column in trace.columns_present:
        if column in present:
            reasons.setdefault(_NO_EFFECT[column], []).append(column)
    notes.extend(f"trace column {', '.join(columns)} has no effect: {why}" for why, columns in reasons.items())
    hash_tokens = trace.prefix_block_tokens if known == "prefix_hashes" else None
    units = {_unit(role, kv, hash_tokens) for role, kv in caches.items()} if known else set()
    if len(units) > 1:
        what = f"prefix caches of one workload have one unit, not {' and '.join(map(str, sorted(units)))} tokens"
        raise InputError(Problem(what, path=f"serving.{next(iter(caches))}.kv.prefix_cache.unit_tokens"))
    return Workload(partial(_replayed, scenario, trace, notes), hash_tokens, next(iter(units), None))


def _caches(scenario: Scenario) -> dict[str, KV]:
    assert scenario.serving is not None
    return {role: pool.kv for role, pool in scenario.serving.pools.items() if pool.kv.prefix_cache is not None}


def _unit(role: str, kv: KV, hash_tokens: int | None) -> int:
    """Return the tokens of a unit of a pool's prefix caches; raises InputError when blocks or hashes do not fit it."""
    assert kv.prefix_cache is not None
    unit = kv.prefix_cache.unit_tokens or hash_tokens or kv.block_tokens
    path = f"serving.{role}.kv.prefix_cache.unit_tokens"
    if hash_tokens is not None and unit != hash_tokens:
        what = f"the trace's prefix hashes are of {hash_tokens} tokens each, not {unit}"
        raise InputError(Problem(what, path=path, allowed=f"{hash_tokens}"))
    if unit % kv.block_tokens:
        what = f"units of {unit} tokens are no whole number of KV blocks of {kv.block_tokens}"
        raise InputError(Problem(what, path=path, allowed="a multiple of kv.block_tokens"))
    return unit


def prefixes_of(kv: KV, blocks: int, unit_tokens: int | None) -> Callable[[], PrefixCache] | None:
    """Return what makes the prefix cache of one rank of so many blocks, or None when there is none."""
    caching = kv.prefix_cache
    if caching is None or unit_tokens is None:
        return None
    pins, unit_blocks = caching.pin, unit_tokens // kv.block_tokens
    most = int(pins.share * blocks) // unit_blocks if pins is not None else 0
    eviction = caching.eviction
    pin_units = pins.units if pins is not None else 0
    return lambda: PrefixCache(unit_tokens, kv.block_tokens, eviction.name, eviction.parameters, pin_units, most)


def _replayed(scenario: Scenario, trace: "Trace", notes: list[str]) -> Iterator["pa.RecordBatch"]:
    from simulator.workload.sampling import first_requests, window

    section, path = scenario.workload, trace.path
    assert isinstance(section, TraceWorkload)
    rows = window(trace.batches(), section.start, section.duration)
    found = 0
    for batch in rows if section.requests is None else first_requests(rows, section.requests):
        found += batch.num_rows
        yield batch
    if not found:
        what = f"no request of {path.name} arrives in the part that is replayed"
        raise InputError(Problem(what, path="workload.start", allowed="times within the trace"))
    if section.requests is not None and found < section.requests:
        notes.append(f"workload.requests: {section.requests:,} asked for, the trace has {found:,}")
    notes.extend(f"trace {path.name}: {reason}" for reason in trace.report.reasons())
