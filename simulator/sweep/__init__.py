"""Sweeps: points of a grid, a sample or a search, as Dask tasks, into one dataset; what is there is not run again.

`simulator.sweep(source, out=None, ...)` runs what is missing of one, see `simulator.sweep.run.sweep`.
"""

from simulator.deferred import make_callable

make_callable(__name__, "run", "sweep")
