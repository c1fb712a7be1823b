"""The page of a sweep: what was varied, what came of it, what lies on its frontiers, what a search found."""

from collections.abc import Mapping
from typing import Any

from simulator.report.page import sweep
from simulator.report.page.html import Page, Section, render
from simulator.report.page.points import value_text
from simulator.results.html import Table, rows_of
from simulator.results.text import NOTHING
from simulator.sweep.dataset import BEGUN, MANIFEST, SweepResult, load_sweep, read_manifest
from simulator.sweep.frontier import DEFAULT
from simulator.sweep.schema import Frontier
from simulator.sweep.store import Store


def holds_sweep(location: str) -> bool:
    """Whether a folder, or a store elsewhere, is that of a sweep."""
    store = Store(location)
    return any(read_manifest(store, name) is not None for name in (MANIFEST, BEGUN))


def sweep_page(location: str) -> str:
    """Return the page of the sweep at a folder or URI as HTML; raises InputError when there is none."""
    result = load_sweep(location)
    manifest, summary, points = result.manifest, result.summary, result.points
    wanted = [
        Frontier(maximise=tuple(one["maximise"]), minimise=tuple(one["minimise"]))
        for one in summary.get("frontiers", ())
    ]
    notices = [] if result.complete else [("bad", "This sweep has not ended; points that are there are shown.")]
    notices += [("warn", note) for note in summary.get("notes", ())]
    confidence = float(manifest["confidence"])
    found = sweep.sections(points, result.axes, wanted or DEFAULT, confidence)
    answers = _answers(summary)
    page = Page(
        title=str(manifest["name"]),
        lead=str(manifest.get("description") or ""),
        subtitle=_subtitle(result),
        notices=tuple(notices),
        cards=sweep.cards(points, result.axes),
        sections=(*answers, *found),
    )
    return render(page)


def _subtitle(result: SweepResult) -> str:
    seeds = result.manifest["seeds"]
    axes = [path for path in result.axes if path != "seed"]
    parts = [f"{len(seeds):,} seeds" if seeds else "one seed", f"varied: {', '.join(axes) or 'nothing else'}"]
    return " · ".join(parts)


def _answers(summary: Mapping[str, Any]) -> tuple[Section, ...]:
    """Return what a search found, a row for each of its searches."""
    answers = summary.get("answers", ())
    if not answers:
        return ()
    rows = []
    for answer in answers:
        setting = answer["setting"] or {}
        said = ", ".join(f"{path} {value_text(value)}" for path, value in setting.items()) or "none"
        bound = "; ".join(answer["binding"]) or NOTHING
        rows.append((said, bound, "; ".join(answer["notes"]) or NOTHING, f"{answer['evaluations']:,}"))
    table = Table(("answer", "bound by", "notes", "settings tried"), rows_of(rows), text=(0, 1, 2))
    return (Section("Answers of the search", (table,)),)
