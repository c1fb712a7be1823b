"""Holding one against another: two runs, two sweeps, or the settings of one; what `simulate compare` prints.

Columns of the table: what is held against what, the metric, both values, the second less the first with the ends of its
interval, that over the first, and the verdict.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simulator.errors import InputError, Problem
from simulator.report.comparison import Comparison, changed, compare_runs, judge
from simulator.report.sweep_comparison import along, between
from simulator.results.html import Table, fragment
from simulator.results.run import Run, load_run
from simulator.results.text import SHORT
from simulator.sweep.dataset import BEGUN, SweepResult, load_sweep

if TYPE_CHECKING:
    import pandas as pd

Comparable = Run | SweepResult | str | Path
"""A run or a sweep, or where it lies."""


class Comparisons(Sequence[Comparison]):
    """What was held against what: one comparison of two runs, one a setting of sweeps."""

    def __init__(self, found: Sequence[Comparison]) -> None:
        self._found = tuple(found)

    def __len__(self) -> int:
        return len(self._found)

    def __getitem__(self, at: Any) -> Any:
        return self._found[at]

    @property
    def table(self) -> "pd.DataFrame":
        """One row per comparison and metric that either side has.

        Columns: `a`, `b` (names), `metric`, `value_a`, `value_b`, `difference` (b less a), `low`, `high` (of its
        interval; NaN without one), `share` (of value_a), `verdict` (of b: better, worse, or None where chance may be
        all there is). Units are those of the metric: s, 1/s or none.
        """
        import pandas as pd

        rows = [
            {"a": each.names[0], "b": each.names[1], **row.as_row()} for each in self._found for row in each.differences
        ]
        return pd.DataFrame(rows)

    @property
    def keys(self) -> "pd.DataFrame":
        """The keys of the scenarios that differ: `a`, `b` (names), `path`, `value_a`, `value_b` as text."""
        import pandas as pd

        rows = [(*each.names, *key) for each in self._found for key in each.keys]
        return pd.DataFrame(rows, columns=["a", "b", "path", "value_a", "value_b"])

    def as_data(self) -> list[dict[str, Any]]:
        """Return the comparisons as JSON has them."""
        return [each.as_data() for each in self._found]

    def __repr__(self) -> str:
        return f"<Comparisons {'; '.join(f'{a} and {b}' for a, b in (each.names for each in self._found))}>"

    def _repr_html_(self) -> str:
        return "".join(map(_html, self._found))


def compare(first: Comparable, *others: Comparable, by: str | None = None, confidence: float = 0.95) -> Comparisons:
    """Return how others differ from the first, runs or sweeps; or, with `by`, along an axis of one sweep.

    Runs and sweeps are given as such, or as their folder or URI. Intervals are those of `confidence` (0.5 to 0.9999),
    and so are the verdicts of all comparisons together: more of them ask more evidence of each. Raises InputError for
    what is not there, is partial, or does not go together.
    """
    if not 0.5 <= confidence <= 0.9999:
        raise InputError(Problem(f"{confidence} is no confidence", path="confidence", allowed="0.5 to 0.9999"))
    if by is not None:
        if others:
            raise InputError(Problem("--by compares the settings of one sweep", allowed="one folder"))
        return Comparisons(judge(along(_sweep(first), by, confidence), confidence))
    if not others:
        raise InputError(Problem("one folder: nothing to compare it with", allowed="two, or --by PATH of a sweep"))
    kinds = {_is_sweep(each): _where(each) for each in (first, *others)}
    if len(kinds) == 2:
        raise InputError(Problem(f"{kinds[True]} is a sweep and another is not", allowed="only runs, or only sweeps"))
    if True in kinds:
        found = [each for other in others for each in between(_sweep(first), _sweep(other), confidence)]
    else:
        found = [compare_runs(_run(first), _run(other), confidence) for other in others]
    return Comparisons(judge(found, confidence))


def _is_sweep(given: Comparable) -> bool:
    if isinstance(given, Run | SweepResult):
        return isinstance(given, SweepResult)
    return "://" in str(given) or (Path(given) / BEGUN).is_file()


def _where(given: Comparable) -> str:
    return str(given) if isinstance(given, str | Path) else given.location


def _sweep(given: Comparable) -> SweepResult:
    return given if isinstance(given, SweepResult) else load_sweep(_where(given))


def _run(given: Comparable) -> Run:
    return given if isinstance(given, Run) else load_run(_where(given))


def _html(comparison: Comparison) -> str:
    from simulator.report.compare_terminal import figure_cells, main_rows, verdict_text

    first, second = comparison.names
    keys = Table(("path", "A", "B"), comparison.keys, "Keys that differ", text=(0, 1, 2))
    rows = [(SHORT.get(row.metric, row.metric), *figure_cells(row)) for row in main_rows(changed(comparison))]
    figures = Table(("metric", "A", "B", "B - A", "interval", "verdict"), tuple(rows), "Figures that differ")
    lines = [f"Intervals: {comparison.how}", *(f"note: {note}" for note in comparison.notes), verdict_text(comparison)]
    return fragment(
        f"A {first} · B {second}",
        [keys, figures, *([] if rows or not comparison.differences else ["No figure differs."]), *lines],
    )
