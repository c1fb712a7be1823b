"""Comparing within a sweep, along one of its axes, and between two sweeps, setting by setting.

Model: common random numbers, pairs of equal seeds.
"""

from typing import Any

from simulator.errors import InputError, Problem, unknown
from simulator.report.comparison import Comparison, compare_rows
from simulator.sweep.dataset import SweepResult, by_setting
from simulator.sweep.view import setting_text


def along(sweep: SweepResult, path: str, confidence: float) -> list[Comparison]:
    """Return each value of an axis held against its first, for each setting of the other axes."""
    axes = [name for name in sweep.axes if name != "seed"]
    if path not in axes:
        raise InputError(unknown("axis of the sweep", path, axes))
    frame = _seeded(sweep)
    tied = [name for name in axes if name == path or _goes_with(frame, name, path)]
    found = []
    for setting, rows in by_setting(frame, [name for name in axes if name not in tied]):
        (first, one), *rest = by_setting(rows, tied)
        for second, other in rest:
            names = tuple(setting_text(setting | each) for each in (first, second))
            keys = tuple((name, str(first[name]), str(second[name])) for name in tied)
            found.append(compare_rows(one, other, (names[0], names[1]), keys, confidence))
    if not found:
        raise InputError(Problem(f"{path} has one value: nothing to compare", allowed="an axis of two values or more"))
    return found


def _goes_with(frame: Any, name: str, path: str) -> bool:
    """Return whether an axis varies with another and never without it, as zipped ones do."""
    return frame[name].nunique() > 1 and bool((frame.groupby(path, dropna=False)[name].nunique() == 1).all())


def between(first: SweepResult, second: SweepResult, confidence: float) -> list[Comparison]:
    """Return each setting that both sweeps have, held against that of the first."""
    axes = [name for name in first.axes if name != "seed"]
    if axes != [name for name in second.axes if name != "seed"]:
        what = f"the sweeps vary different keys: {', '.join(axes) or 'none'}; {', '.join(second.axes) or 'none'}"
        raise InputError(Problem(what, second.store.location, allowed="sweeps of the same axes"))
    theirs = {tuple(setting.values()): rows for setting, rows in by_setting(_seeded(second), axes)}
    labels = (
        f"{first.manifest['name']} ({first.store.location})",
        f"{second.manifest['name']} ({second.store.location})",
    )
    found = []
    for setting, rows in by_setting(_seeded(first), axes):
        other = theirs.get(tuple(setting.values()))
        if other is not None:
            where = f" at {setting_text(setting)}" if setting else ""
            names = (f"{labels[0]}{where}", f"{labels[1]}{where}")
            found.append(compare_rows(rows, other, names, (), confidence))
    if not found:
        raise InputError(Problem("the sweeps have no setting in common", second.store.location))
    return found


def _seeded(sweep: SweepResult) -> Any:
    """Return the rows of a sweep with a seed; without an axis of seeds all have the scenario's."""
    frame = sweep.points
    return frame if "seed" in frame else frame.assign(seed="the scenario's")
