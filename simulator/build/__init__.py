"""The only composition root: a scenario becomes a blueprint, then live actors, then a run in its folder."""

from simulator.build.run import run_scenario, simulate

__all__ = ["run_scenario", "simulate"]
