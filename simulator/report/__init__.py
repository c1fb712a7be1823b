"""What people see of results: terminal tables, HTML pages, traces for Perfetto, comparisons.

`simulator.report(results, out=None)` writes the page of a run or a sweep, see `simulator.report.page.write.report`.
"""

from simulator.deferred import make_callable

make_callable(__name__, "page.write", "report")
