"""Discrete-event simulator of AI clusters: requests lease devices, compute on them and move bytes over a fabric.

`load` reads a scenario file, `simulate` runs it; both are imported on first use so that `import simulator` stays cheap.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from simulator.build import simulate as simulate
    from simulator.scenario.load import load as load

__version__ = "0.1.0"
__all__ = ["__version__", "load", "simulate"]


def __getattr__(name: str) -> Any:
    """Import the public calls on first use (PEP 562)."""
    if name == "load":
        from simulator.scenario.load import load

        return load
    if name == "simulate":
        from simulator.build import simulate

        return simulate
    raise AttributeError(f"module 'simulator' has no attribute {name!r}")
