"""Calls whose modules are imported when they are first called, so that `import simulator` costs next to nothing.

A package can be such a call: `simulator.sweep(...)` runs a sweep, and `simulator.sweep.run` is a module of it. The
import of a submodule binds a package to its name in the package above, so a function of the same name would be hidden
by it sooner or later; here both are one object.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import Any


class Deferred:
    """Calls a function of a module, and has its signature."""

    _function: tuple[str, str]

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """Import the function, if that has not been done, and call it."""
        return self._load()(*arguments, **options)

    @property
    def __signature__(self) -> Any:
        from inspect import signature

        return signature(self._load())

    def _load(self) -> Any:
        module, name = self._function
        return getattr(import_module(module), name)


class Call(Deferred):
    """A call by the name of a function, with its docstring."""

    def __init__(self, module: str, name: str) -> None:
        self._function = module, name

    @property
    def __doc__(self) -> str | None:  # type: ignore[override]
        """The function's own."""
        return str(self._load().__doc__)

    def __repr__(self) -> str:
        return f"<call of {'.'.join(self._function)}>"


class CallablePackage(Deferred, ModuleType):
    """A package whose call is that of a function in one of its modules."""


def make_callable(package: str, module: str, name: str) -> None:
    """Let calling `package` be calling the function `name` in its `module`."""
    found = sys.modules[package]
    found.__class__ = CallablePackage
    found._function = (f"{package}.{module}", name)  # type: ignore[attr-defined]
