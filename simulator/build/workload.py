"""The workload of a serving scenario: what streams its requests, and the keys by which their prompts are known."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import repeat
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from simulator import catalog
from simulator.errors import InputError, Problem
from simulator.results.metrics import GROUPS, member_of
from simulator.scenario.pool import KV
from simulator.scenario.schema import Scenario
from simulator.scenario.workload import Callers, SyntheticWorkload, TraceWorkload
from simulator.serving.frontend import Arrivals
from simulator.serving.paging import Windows
from simulator.serving.prefix_cache import PrefixCache, session_keys
from simulator.serving.queueing import ORDERS
from simulator.serving.request import PLAIN, Traits
from simulator.serving.routing import ROUTERS
from simulator.serving.windowed_prefixes import WindowedPrefixes

if TYPE_CHECKING:
    import pyarrow as pa

    from simulator.workload.sampling import Part
    from simulator.workload.trace import Trace

_WITHOUT_EFFECT = {
    "session": "no prefix cache and no router goes by sessions, and they do not wait: requests arrive as recorded",
    "turn": "no prefix cache and no router goes by sessions, and they do not wait: requests arrive as recorded",
    "prefix_hashes": "there is no prefix cache: every prompt is computed in full",
    "prefix": "there is no prefix cache: every prompt is computed in full",
    "prefix_tokens": "there is no prefix cache: every prompt is computed in full",
    "model": "one model serves every request",
    "tenant": "no queue and no limit goes by tenants",
    "priority": "no queue goes by priorities",
    "predicted_tokens": "no queue and no router goes by predicted lengths",
}
"""Why an optional column of a trace has no effect, where nothing reads it."""
_DRAWN = {
    "tenants": "tenant",
    "priorities": "priority",
    "samples": "samples",
    "sample_tokens": "sample_tokens",
    "prediction": "predicted_tokens",
    "prefixes": "prefix",
    "sessions": "session",
}
"""Sections of `workload:` that draw a column."""
_ALL_ALIKE = {"tenant": "no request says whose it is: all are one tenant's", "priority": "no request has a priority"}
"""What follows where something goes by a column that neither a trace nor a law says anything of."""
_TRAITS = {"tenant": None, "priority": 0, "predicted_tokens": -1, "samples": 1, "cancel_ns": -1, "sample_tokens": None}
"""The columns that become `Traits`, in their order, and what stands for null."""


class Workload(NamedTuple):
    """What streams the canonical batches of a workload, from the start at each call, and what their prompts go by."""

    batches: Callable[[], Iterator["pa.RecordBatch"]]
    hash_tokens: int | None = None
    """Tokens of a prefix hash, when prompts are known by them."""
    unit_tokens: int | None = None
    """Tokens of a unit of the prefix cache, when there is one and anything is known of the prompts."""
    cancels: bool = False
    """Whether clients give requests up at recorded times."""
    drawn: bool = False
    """Whether anything of it comes from the seed."""
    part: "Part | None" = None
    """What is taken of a trace, and how many requests its fraction has left out so far."""

    def arrivals(self, speedup: float) -> Iterator[Arrivals]:
        """Yield plain columns, arrival times divided by `speedup` and rounded to the nanosecond."""
        from simulator.workload.keys import context_keys, hash_keys

        for batch in self.batches():
            times = batch.column("arrival_ns").to_numpy()
            if speedup != 1:
                if len(times) and int(times[-1]) / speedup >= 2**62:
                    what = f"with speedup {speedup:g} requests arrive more than 146 years from the start"
                    raise InputError(Problem(what, path="workload.speedup", allowed="a larger speedup"))
                times = np.rint(times / speedup).astype(np.int64)
            prompts, outputs = batch.column("prompt_tokens").tolist(), batch.column("output_tokens").tolist()
            names = (batch.column(name) for name in ("session", "turn"))
            session, turn = (repeat(None) if c.null_count == len(c) else c.to_pylist() for c in names)
            keys: Iterator[Sequence[int]] = repeat(())
            if self.unit_tokens is not None and self.hash_tokens is not None:
                keys = hash_keys(batch, self.hash_tokens)
            elif self.unit_tokens is not None:
                keys = context_keys(batch, self.unit_tokens, session_keys)
            yield Arrivals(times.tolist(), prompts, outputs, session, turn, keys, _traits(batch))


def _traits(batch: "pa.RecordBatch") -> Iterator[Traits]:
    """Yield what callers say of each request; requests that say the same share one object where few things are said."""
    columns = {name: batch.column(name) for name in _TRAITS}
    said = [name for name, column in columns.items() if column.null_count < len(column)]
    if not said:
        return repeat(PLAIN, batch.num_rows)
    lists: list[Any] = [
        (column if default is None else column.fill_null(default)).to_pylist() if name in said else repeat(default)
        for (name, column), default in zip(columns.items(), _TRAITS.values(), strict=True)
    ]
    rows = zip(*lists, strict=False)
    if not {"predicted_tokens", "cancel_ns", "sample_tokens"}.isdisjoint(said):
        return map(Traits._make, rows)
    known: dict[tuple[Any, ...], Traits] = {}
    return (known.get(row) or known.setdefault(row, Traits._make(row)) for row in rows)


def plan_workload(scenario: Scenario, notes: list[str]) -> Workload:
    """Return the workload of a scenario; raises InputError when its trace cannot be read or does not fit a cache."""
    from simulator.workload.callers import with_callers

    section = scenario.workload
    assert section is not None
    read = _read(scenario)
    notes += _unread(section, read)
    plan = _plan_trace if isinstance(section, TraceWorkload) else _plan_drawn
    workload = plan(scenario, read, notes)
    laws = section.laws()
    if laws == type(laws)():
        return workload
    recorded = workload.batches
    return workload._replace(batches=lambda: with_callers(recorded(), scenario.seed, laws), drawn=True)


def _plan_drawn(scenario: Scenario, read: set[str], notes: list[str]) -> Workload:
    from simulator.workload.lengths import Fixed
    from simulator.workload.synthesis import synthesize

    section, caches = scenario.workload, _caches(scenario)
    assert isinstance(section, SyntheticWorkload)
    _check_samples(scenario, False)
    choices = section.arrivals, section.prompt_tokens, section.output_tokens
    arrivals, prompts, outputs = (choice.parameters.law() for choice in choices)
    several, further = _wants_several(section, False), section.laws().sample_tokens
    differ = several and not (isinstance(outputs, Fixed) and further == outputs)
    notes += _check_answers(scenario, several, differ, section.sessions is not None)
    notes += _unsaid(scenario, _drawn_columns(section))
    prefixes = section.prefixes.law() if section.prefixes is not None else None
    sessions = section.sessions.law() if section.sessions is not None else None
    draw = partial(synthesize, scenario.seed, section.requests, arrivals, prompts, outputs, prefixes, sessions)
    if caches and prefixes is None and sessions is None:
        notes.append("kv.prefix_cache: drawn prompts have neither `prefixes` nor `sessions`, so none begin alike")
        return Workload(draw, drawn=True)
    return Workload(draw, unit_tokens=_one_unit(caches, None) if caches else None, drawn=True)


def _plan_trace(scenario: Scenario, read: set[str], notes: list[str]) -> Workload:
    from simulator.workload.kept import KEPT
    from simulator.workload.sampling import Part

    section, caches = scenario.workload, _caches(scenario)
    assert isinstance(section, TraceWorkload)
    path = catalog.locate("traces", section.trace)
    mapping = section.columns.mapping() if section.columns is not None else None
    trace = KEPT.open(path, section.format, mapping, section.strict_rows, scenario.seed)
    present = set(trace.columns_present)
    _check_predicted(scenario, present)
    _check_expected(scenario, present)
    _check_samples(scenario, "samples" in present)
    notes += [f"trace {path.name}: {note}" for note in trace.notes]
    hashed, known = "prefix_hashes" in present, bool(present & {"prefix_hashes", "session", "prefix"})
    differ = section.sample_tokens is not None or ("sample_tokens" in present and section.samples is None)
    several = _wants_several(section, "samples" in present)
    notes += _check_answers(scenario, several, differ, "session" in present and not hashed)
    if caches and not known:
        what = f"trace {path.name} has no prefix_hashes, session or prefix, so no prompts begin alike"
        notes.append(f"kv.prefix_cache: {what}")
    why_not = dict(_WITHOUT_EFFECT)
    if caches and hashed:
        why_not |= dict.fromkeys(("session", "turn", "prefix", "prefix_tokens"), "prompts are known by prefix_hashes")
        read -= {"prefix", "prefix_tokens", *(() if _routed_by_session(scenario) else ("session", "turn"))}
    drawn = _drawn_columns(section)
    notes += _unsaid(scenario, present | drawn)
    drawn |= {"sample_tokens"} if "samples" in drawn else set()
    reasons: dict[str, list[str]] = {}
    for column in trace.columns_present:
        if column in drawn:
            reasons.setdefault("it is drawn anew", []).append(column)
        elif column not in read:
            reasons.setdefault(why_not[column], []).append(column)
    notes.extend(f"trace column {', '.join(columns)} has no effect: {why}" for why, columns in reasons.items())
    hash_tokens = trace.prefix_block_tokens if hashed else None
    unit = _one_unit(caches, hash_tokens) if known and caches else None
    part = Part(section.start, section.duration, section.fraction, scenario.seed, section.requests)
    cancels, drawn_from = "cancel_ns" in present, section.format == "servegen" or section.fraction < 1
    return Workload(partial(_replayed, trace, part, notes), hash_tokens, unit, cancels, drawn_from, part)


def _routed_by_session(scenario: Scenario) -> bool:
    return any("session" in columns for columns in _router_columns(scenario))


def _router_columns(scenario: Scenario) -> Iterator[Sequence[str]]:
    serving = scenario.serving
    assert serving is not None
    for role in serving.roles:
        columns = ROUTERS[serving.router_of(role)[0].name].of_requests
        # The engines of a prefill pool let go of a request before its answer's length matters.
        yield [name for name in columns if name != "predicted_tokens" or role != "prefill"]


def _read(scenario: Scenario) -> set[str]:
    """Return which columns of a trace something in the scenario goes by."""
    serving = scenario.serving
    assert serving is not None
    read = {"cancel_ns", "samples", "sample_tokens"}
    for group in serving.groups:
        read.update(ORDERS[group.pool.queue.name].reads)
        if group.pool.kv.prefix_cache is not None:
            read.update(("prefix_hashes", "prefix", "prefix_tokens", "session", "turn"))
    for columns in _router_columns(scenario):
        read.update(columns)
    read.update(member.kind for member in scenario.expected_of if member.kind in GROUPS)
    if "session" in read:
        read.add("turn")
    if serving.admission.tenant != type(serving.admission.tenant)():
        read.add("tenant")
    return read


def _unread(section: Callers, read: set[str]) -> list[str]:
    """Return notes on what is drawn and nothing goes by."""
    notes = []
    for key, column in _DRAWN.items():
        if getattr(section, key, None) is not None and column not in read:
            why = _WITHOUT_EFFECT[column]
            if key in ("prefixes", "sessions"):
                why = "there is no prefix cache, so prompts are only longer by what they share"
            notes.append(f"workload.{key} has no effect: {why}")
    return notes


def _drawn_columns(section: Callers) -> set[str]:
    """Return the columns of a trace that are drawn by laws."""
    return {column for key, column in _DRAWN.items() if getattr(section, key, None) is not None}


def _unsaid(scenario: Scenario, said: set[str]) -> list[str]:
    """Return notes on what goes by the tenants or priorities of requests when nothing says those."""
    serving = scenario.serving
    assert serving is not None
    queues = [(f"{group.at}.queue", ORDERS[group.pool.queue.name].reads) for group in serving.groups]
    if serving.admission.tenant != type(serving.admission.tenant)():
        queues.append(("serving.admission.tenant", ("tenant",)))
    return [f"{at}: {why}" for at, reads in queues for column, why in _ALL_ALIKE.items() if column in {*reads} - said]


def _check_predicted(scenario: Scenario, present: set[str]) -> None:
    """Raise InputError where a queue goes by predicted lengths that the trace does not have and nobody draws."""
    assert scenario.serving is not None
    assert scenario.workload is not None
    if scenario.workload.prediction is not None or "predicted_tokens" in present:
        return
    for group in scenario.serving.groups:
        queue = group.pool.queue.name
        if "predicted_tokens" in ORDERS[queue].reads:
            what = f"{queue} needs `workload.prediction`, or a trace with predicted_tokens"
            raise InputError(scenario.located(Problem(what, path=f"{group.at}.queue")))


def _check_expected(scenario: Scenario, present: set[str]) -> None:
    """Raise InputError where something is expected of tenants or priorities that neither trace nor law has."""
    for each in scenario.expect:
        member = member_of(each.metric)
        if member is None or member.kind not in GROUPS or member.kind in present:
            continue
        if getattr(scenario.workload, GROUPS[member.kind]) is None:
            what = f"the trace has no {GROUPS[member.kind]}"
            allowed = f"a trace with the column {member.kind}, or `workload.{GROUPS[member.kind]}`"
            raise InputError(scenario.located(Problem(what, path=f"expect.{each.metric}", allowed=allowed)))


def _wants_several(section: Callers, recorded: bool) -> bool:
    """Return whether some request may want several answers of one prompt; `recorded`: the trace says how many."""
    from simulator.workload.lengths import Fixed

    return recorded if section.samples is None else section.samples.parameters.law() != Fixed(1)


def _check_samples(scenario: Scenario, recorded: bool) -> None:
    """Raise InputError where tokens are drafted for requests that want several answers of one prompt."""
    assert scenario.serving is not None
    assert scenario.workload is not None
    if not _wants_several(scenario.workload, recorded):
        return
    for group in scenario.serving.groups:
        if group.pool.speculation is not None:
            what = "tokens are drafted for one answer of each prompt only"
            problem = Problem(what, path=f"{group.at}.speculation", allowed="none, or `workload.samples: 1`")
            raise InputError(scenario.located(problem))


def _check_answers(scenario: Scenario, several: bool, differ: bool, sessions: bool) -> list[str]:
    """Return notes on lengths of answers; raises InputError where a prefix cache cannot keep the first of several.

    When it ends before the others, the unit in which the prompt ends is its own and holds blocks of theirs, unless a
    unit is a block.
    """
    assert scenario.workload is not None
    if not several:
        unused = scenario.workload.sample_tokens is not None
        return ["workload.sample_tokens has no effect: every request wants one answer"] if unused else []
    for at, kv in _caches(scenario).items() if differ and sessions else ():
        unit = _unit(at, kv, None)
        if unit != kv.block_tokens:
            what = f"units of {unit} tokens cannot keep the first of several answers that end at different times"
            path, allowed = f"{at}.kv.prefix_cache.unit_tokens", f"kv.block_tokens, {kv.block_tokens}"
            raise InputError(scenario.located(Problem(what, path=path, allowed=allowed)))
    return []


def _one_unit(caches: dict[str, KV], hash_tokens: int | None) -> int:
    units = {_unit(at, kv, hash_tokens) for at, kv in caches.items()}
    if len(units) > 1:
        what = f"prefix caches of one workload have one unit, not {' and '.join(map(str, sorted(units)))} tokens"
        raise InputError(Problem(what, path=f"{next(iter(caches))}.kv.prefix_cache.unit_tokens"))
    return units.pop()


def _caches(scenario: Scenario) -> dict[str, KV]:
    """Return the sections of KV memory with a prefix cache, by where their group stands."""
    assert scenario.serving is not None
    return {group.at: group.pool.kv for group in scenario.serving.groups if group.pool.kv.prefix_cache is not None}


def _unit(at: str, kv: KV, hash_tokens: int | None) -> int:
    """Return the tokens of a unit of a pool's prefix caches; raises InputError when blocks or hashes do not fit it."""
    assert kv.prefix_cache is not None
    unit = kv.prefix_cache.unit_tokens or hash_tokens or kv.block_tokens
    path = f"{at}.kv.prefix_cache.unit_tokens"
    if hash_tokens is not None and unit != hash_tokens:
        what = f"the trace's prefix hashes are of {hash_tokens} tokens each, not {unit}"
        raise InputError(Problem(what, path=path, allowed=f"{hash_tokens}"))
    if unit % kv.block_tokens:
        what = f"units of {unit} tokens are no whole number of KV blocks of {kv.block_tokens}"
        raise InputError(Problem(what, path=path, allowed="a multiple of kv.block_tokens"))
    return unit


def prefixes_of(
    kv: KV, blocks: int, unit_tokens: int | None, windows: Windows | None = None
) -> Callable[[], PrefixCache] | None:
    """Return what makes the prefix cache of one rank of so many blocks, or None when there is none."""
    caching = kv.prefix_cache
    if caching is None or unit_tokens is None:
        return None
    pins, unit_blocks = caching.pin, unit_tokens // kv.block_tokens * (windows.full if windows else 1)
    most = int(pins.share * blocks) // unit_blocks if pins is not None else 0
    eviction = caching.eviction
    pin_units = pins.units if pins is not None else 0
    rest = eviction.name, eviction.parameters, pin_units, most
    if windows is not None:
        return lambda: WindowedPrefixes(unit_tokens, kv.block_tokens, windows, *rest)
    return lambda: PrefixCache(unit_tokens, kv.block_tokens, *rest)


def _replayed(trace: "Trace", part: "Part", notes: list[str]) -> Iterator["pa.RecordBatch"]:
    yield from part.of(trace.batches(part.start_ns), trace.skipped(part.start_ns))
    if not part.taken and part.left_out:
        what = f"none of the {part.left_out:,} requests of {trace.path.name} in the part that is replayed is kept"
        raise InputError(Problem(what, path="workload.fraction", allowed="a larger fraction"))
    if not part.taken:
        what = f"no request of {trace.path.name} arrives in the part that is replayed"
        raise InputError(Problem(what, path="workload.start", allowed="times within the trace"))
    if part.requests is not None and part.taken < part.requests:
        has = "the trace has" if part.fraction == 1 else "the fraction leaves"
        notes.append(f"workload.requests: {part.requests:,} asked for, {has} {part.taken:,}")
    notes.extend(f"trace {trace.path.name}: {reason}" for reason in trace.report.reasons())
