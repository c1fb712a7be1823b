"""The page of one run of any kind: equal runs give equal bytes, so nothing of the clock or the machine is on it."""

from pathlib import Path
from typing import Any

from simulator.documents import read_document
from simulator.errors import InputError
from simulator.report.page import network, serving
from simulator.report.page.html import Page, render
from simulator.report.page.marks import event_marks
from simulator.report.page.shared import lead_of, notices, scenario_section
from simulator.results.folder import SCENARIO
from simulator.results.run import Run, load_run
from simulator.units import NS_PER_S, UnitError, parse_duration_ns

DEFAULT_INTERVAL_NS = 10 * NS_PER_S


def run_page(path: Path) -> str:
    """Return the page of the run in a folder as HTML.

    Raises InputError when there is no run, when it was killed, or when what it wrote cannot be read.
    """
    run = load_run(path)
    scenario = _scenario(run)
    summary, manifest = run.summary, run.manifest
    marks = event_marks(run)
    if "flows" in summary:
        cards, sections = network.cards(summary), network.sections(run, marks)
    else:
        cards, sections = serving.cards(summary), serving.sections(run, _interval_ns(scenario), marks)
    subtitle = f"{lead_of(run)} · seed {manifest.get('seed', 0)} · digest {str(manifest['digest'])[:12]}"
    description = str(scenario.get("description") or "")
    page = Page(
        title=str(manifest.get("scenario", "run")),
        subtitle=subtitle,
        lead=description,
        notices=notices(summary, run.complete),
        cards=cards,
        sections=(*sections, scenario_section(run)),
    )
    return render(page)


def _scenario(run: Run) -> dict[str, Any]:
    try:
        value = read_document(run.path / SCENARIO).value
    except InputError:
        return {}
    return value if isinstance(value, dict) else {}


def _interval_ns(scenario: dict[str, Any]) -> int:
    """Return the windows in which the run recorded its engines."""
    try:
        return max(1, parse_duration_ns(scenario["results"]["interval"]))
    except (KeyError, TypeError, UnitError):
        return DEFAULT_INTERVAL_NS
