"""Modules of the user's that register policies when they are imported."""

import importlib
import os
import sys

from simulator.errors import InputError


def import_plugins(plugins: tuple[str, ...]) -> None:
    """Import the modules that register policies; raises InputError for one that cannot be."""
    sys.path.insert(0, os.getcwd())  # as `python -m` does, so that a module beside the scenario is found
    try:
        for plugin in plugins:
            try:
                importlib.import_module(plugin)
            except ModuleNotFoundError as error:
                if error.name is None or not (plugin == error.name or plugin.startswith(f"{error.name}.")):
                    raise
                raise InputError(f"--plugin {plugin}: no such module") from None
    finally:
        sys.path.pop(0)
