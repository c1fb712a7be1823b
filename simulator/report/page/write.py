"""`simulate report`: the page of a run or a sweep as a file."""

from pathlib import Path
from typing import TYPE_CHECKING

from simulator.errors import InputError, Problem
from simulator.results.folder import MANIFEST, PARTIAL, REPORT, read_manifest
from simulator.results.output import write_named

if TYPE_CHECKING:
    from simulator.results.run import Run
    from simulator.sweep.dataset import SweepResult


def report(results: "Run | SweepResult | str | Path", out: str | Path | None = None) -> Path:
    """Write one HTML page of a run or a sweep and return where it is (default: report.html in the folder of either).

    `results` is the run or sweep itself, or its folder, or the URI of a sweep, which needs `out`. Raises InputError
    when there is neither, when a run was killed, or when the page cannot be written.
    """
    location = str(results) if isinstance(results, str | Path) else results.location
    if "://" in location and out is None:
        what = "A sweep in an object store needs --out: where the page goes on this machine."
        raise InputError(Problem(what, location))
    page = _page(location)
    target = Path(location) / REPORT if out is None else Path(out)
    write_named(target, page)
    return target


def _page(location: str) -> str:
    here = "://" not in location
    if not (here and any(read_manifest(Path(location) / name) for name in (MANIFEST, PARTIAL))):
        from simulator.report.page.sweep_page import holds_sweep, sweep_page  # half a second that a run does not need

        if not here or holds_sweep(location):
            return sweep_page(location)
    from simulator.report.page.run_page import run_page

    return run_page(Path(location))
