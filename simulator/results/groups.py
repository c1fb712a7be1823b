"""Figures of groups of requests, by tenant and by priority: those of a summary, over the rows of one group."""

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from simulator.errors import nearest
from simulator.results.metrics import GROUPS, Member
from simulator.results.summary import requests_summary, row_groups
from simulator.results.tables import CALLERS, REQUESTS

_MOST_NAMED = 10


def add_groups(
    summary: dict[str, Any], folder: Path, wanted: Iterable[Member], slo: Mapping[str, int], seconds: float
) -> list[str]:
    """Add the figures of the groups of requests that are wanted to a summary; return notes on those that never came.

    A group that never came has no figures at all, so that nothing holds of it.
    """
    notes: list[str] = []
    for kind, section in GROUPS.items():
        names = dict.fromkeys(member.name for member in wanted if member.kind == kind)
        if not names:
            continue
        there = _there(folder, kind)
        summary[section] = {
            name: requests_summary(partial(_rows, folder, kind, name), slo, seconds) for name in names if name in there
        }
        notes += [_never_came(kind, name, there) for name in names if name not in there]
    return notes


def _there(folder: Path, kind: str) -> list[str]:
    found: dict[str, None] = {}
    for group in row_groups(folder / CALLERS.file, (kind,)):
        found.update(dict.fromkeys(group[kind].drop_null().unique().to_pylist()))
    return sorted(found)


def _rows(folder: Path, kind: str, name: str, columns: tuple[str, ...]) -> Iterator[Any]:
    """Yield columns of the requests of one group; the two tables have their rows, and groups of rows, in one order."""
    import pyarrow.compute as pc

    callers = row_groups(folder / CALLERS.file, (kind,))
    for requests, of in zip(row_groups(folder / REQUESTS.file, columns), callers, strict=True):
        yield requests.filter(pc.fill_null(pc.equal(of[kind], name), False))


def _never_came(kind: str, name: str, there: list[str]) -> str:
    close, more = nearest(name, there), len(there) - _MOST_NAMED
    came = ", ".join(there[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
    hint = f"; did you mean {close}?" if close is not None else ""
    return f"expect: no request of {kind} {name} came, so what is expected of it fails{hint} (there: {came or 'none'})"
