"""The workload of a serving scenario: what streams its requests, and the keys by which their prompts are known."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import repeat
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from simulator import catalog
from simulator.build.callers import Drawn, SharedPrefixes
from simulator.errors import InputError, Problem
from simulator.scenario.schema import KV, Scenario
from simulator.scenario.workload import Callers, Prefixes, TraceWorkload
from simulator.serving.frontend import Arrivals
from simulator.serving.prefix_cache import PrefixCache, session_keys
from simulator.serving.queueing import ORDERS

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
    prefixes: Prefixes | None = None
    """What drawn prompts share."""

    def arrivals(self, speedup: float, seed: int, callers: Callers) -> Iterator[Arrivals]:
        """Yield plain columns, arrival times divided by `speedup` and rounded to the nanosecond."""
        sessions: dict[str, int] = {}
        drawn = Drawn(seed, callers)
        shared = SharedPrefixes(seed, self.prefixes) if self.prefixes is not None else None
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
            if shared is not None:
                prompts = [tokens + shared.tokens for tokens in prompts]
            if self.unit_tokens is not None:
                if shared is not None:
                    keys = shared.keys(batch.num_rows, self.unit_tokens)
                elif self.hash_tokens is not None:
                    keys = _hashes(batch, self.hash_tokens)
                else:
                    keys = _of_sessions(batch, sessions, self.unit_tokens)
            yield Arrivals(times.tolist(), prompts, outputs, session, turn, keys, drawn.traits(batch))


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
    caches = _caches(scenario)
    notes += _unread(scenario, section)
    if not isinstance(section, TraceWorkload):
        from simulator.workload.synthesis import synthesize

        laws = [choice.parameters.law() for choice in (section.arrivals, section.prompt_tokens, section.output_tokens)]
        unit = None
        if caches and section.prefixes is None:
            notes.append("kv.prefix_cache: drawn prompts have no `prefixes`, so none begin alike")
        elif caches:
            unit = _one_unit(caches, None)
        elif section.prefixes is not None:
            notes.append("workload.prefixes: no kv.prefix_cache, so prompts are only longer by them")
        draw = partial(synthesize, scenario.seed, section.requests, *laws)
        return Workload(draw, unit_tokens=unit, prefixes=section.prefixes)
    from simulator.workload.trace import open_trace

    path = catalog.locate("traces", section.trace)
    mapping = section.columns.mapping() if section.columns is not None else None
    trace = open_trace(path, section.format, mapping, section.strict_rows)
    present = set(trace.columns_present)
    known = "prefix_hashes" if "prefix_hashes" in present else "session" if "session" in present else None
    if caches:
        if known is None:
            notes.append(
                f"kv.prefix_cache: trace {path.name} has no prefix_hashes and no session, so no prompts begin alike"
            )
        present -= {known} | ({"turn"} if known == "session" else set())
    if "tenant" in _read(scenario):
        present -= {"tenant"}
    reasons: dict[str, list[str]] = {}
    for column in trace.columns_present:
        if column in present:
            reasons.setdefault(_NO_EFFECT[column], []).append(column)
    notes.extend(f"trace column {', '.join(columns)} has no effect: {why}" for why, columns in reasons.items())
    hash_tokens = trace.prefix_block_tokens if known == "prefix_hashes" else None
    unit = _one_unit(caches, hash_tokens) if known and caches else None
    return Workload(partial(_replayed, scenario, trace, notes), hash_tokens, unit)


def _read(scenario: Scenario) -> set[str]:
    """Return what the policies of a scenario read of the traits of requests."""
    serving = scenario.serving
    assert serving is not None
    read: set[str] = set()
    for pool in serving.pools.values():
        read.update(ORDERS[pool.queue.name].reads)
        if (pool.router or serving.router).name in ("least_tokens", "slo_aware", "cost_aware"):
            read.add("predicted_tokens")
    if serving.admission.tenant != type(serving.admission.tenant)():
        read.add("tenant")
    return read


def _unread(scenario: Scenario, callers: Callers) -> list[str]:
    """Return notes on what callers say and no policy reads."""
    keys = {"tenants": "tenant", "priorities": "priority", "prediction": "predicted_tokens"}
    read = _read(scenario)
    given = [key for key, trait in keys.items() if getattr(callers, key) is not None and trait not in read]
    return [f"workload.{key} has no effect: no queue, router or limit reads it" for key in given]


def _one_unit(caches: dict[str, KV], hash_tokens: int | None) -> int:
    units = {_unit(role, kv, hash_tokens) for role, kv in caches.items()}
    if len(units) > 1:
        what = f"prefix caches of one workload have one unit, not {' and '.join(map(str, sorted(units)))} tokens"
        raise InputError(Problem(what, path=f"serving.{next(iter(caches))}.kv.prefix_cache.unit_tokens"))
    return units.pop()


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
