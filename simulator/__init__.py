"""Discrete-event simulator of AI clusters: requests lease devices, compute on them and move bytes over a fabric.

`load` reads a scenario, `simulate` runs it, `sweep` runs many of them, `compare` holds results against each other,
`report` and `timeline` write a page and a trace of them, `load_run` and `load_sweep` open what is there already. All
are imported on first use, so that `import simulator` stays cheap. Wrong input is a `simulator.errors.InputError`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from simulator.build import simulate as simulate
    from simulator.report.compare import compare as compare
    from simulator.report.page.write import report as report
    from simulator.report.timeline.write import timeline as timeline
    from simulator.results.run import load_run as load_run
    from simulator.scenario.load import load as load
    from simulator.sweep.dataset import load_sweep as load_sweep
    from simulator.sweep.run import sweep as sweep

__version__ = "0.1.0"
__all__ = ["__version__", "compare", "load", "load_run", "load_sweep", "report", "simulate", "sweep", "timeline"]

_CALLS = {
    "compare": "simulator.report.compare",
    "load": "simulator.scenario.load",
    "load_run": "simulator.results.run",
    "load_sweep": "simulator.sweep.dataset",
    "simulate": "simulator.build",
    "timeline": "simulator.report.timeline.write",
}


def __getattr__(name: str) -> Any:
    """Import the public calls on first use (PEP 562)."""
    if name in _CALLS:
        return getattr(import_module(_CALLS[name]), name)
    if name in ("report", "sweep"):
        return import_module(f"simulator.{name}")  # packages that can be called
    raise AttributeError(f"module 'simulator' has no attribute {name!r}")
