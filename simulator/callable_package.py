"""A package that can be called: `simulator.sweep(...)` runs a sweep, and `simulator.sweep.run` is a module of it.

The import of a submodule binds a package to its name in the package above, so a function of the same name would be
hidden by it sooner or later; here both are one object. Nothing is imported before the first call.
"""

import sys
from importlib import import_module
from inspect import Signature, signature
from types import ModuleType
from typing import Any


class CallablePackage(ModuleType):
    """A package whose call is that of a function in one of its modules, of which it has the signature."""

    _function: tuple[str, str]

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """Call the function."""
        return self._load()(*arguments, **options)

    @property
    def __signature__(self) -> Signature:
        return signature(self._load())

    def _load(self) -> Any:
        module, name = self._function
        return getattr(import_module(module), name)


def make_callable(package: str, module: str, name: str) -> None:
    """Let calling `package` be calling the function `name` in its `module`."""
    found = sys.modules[package]
    found.__class__ = CallablePackage
    found._function = (f"{package}.{module}", name)  # type: ignore[attr-defined]
