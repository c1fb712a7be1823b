"""Discrete-event simulator of AI clusters: requests lease devices, compute on them and move bytes over a fabric.

`load` reads a scenario, `simulate` runs it, `sweep` runs many of them, `compare` holds results against each other,
`report` and `timeline` write a page and a trace of them, `load_run` and `load_sweep` open what is there already. What
they need is imported when they are first called. Wrong input is a `simulator.errors.InputError`.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from simulator.build import simulate as simulate
    from simulator.report.compare import compare as compare
    from simulator.report.page.write import report as report
    from simulator.report.timeline.write import timeline as timeline
    from simulator.results.run import load_run as load_run
    from simulator.scenario.load import load as load
    from simulator.sweep.dataset import load_sweep as load_sweep
    from simulator.sweep.run import sweep as sweep
else:
    from simulator import report, sweep  # packages that can be called
    from simulator.deferred import Call

    compare = Call("simulator.report.compare", "compare")
    load = Call("simulator.scenario.load", "load")
    load_run = Call("simulator.results.run", "load_run")
    load_sweep = Call("simulator.sweep.dataset", "load_sweep")
    simulate = Call("simulator.build", "simulate")
    timeline = Call("simulator.report.timeline.write", "timeline")

__version__ = "0.1.0"
__all__ = ["__version__", "compare", "load", "load_run", "load_sweep", "report", "simulate", "sweep", "timeline"]
