"""Packages whose names are loaded when they are first used, and packages that can be called."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any


def load_lazily(package: str, names: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return `__getattr__` and `__dir__` of a package whose names are loaded with their first use.

    Args:
        names: public name -> module that defines it.
    """

    def get(name: str) -> Any:
        if name in names:
            return getattr(importlib.import_module(names[name]), name)
        raise AttributeError(f"module '{package}' has no attribute {name!r}")

    return get, lambda: sorted(names)


def make_callable(package: str, module: str, name: str) -> None:
    """Let a package be called as the function `name` of `module`.

    Importing any module of `foveate.adapt` sets the attribute `adapt` of `foveate` to the package, which hides a
    function of that name: so the package itself answers the call, whichever import came first.
    """

    class CallablePackage(ModuleType):
        @property
        def called(self) -> Any:
            """The function that a call of the package calls, for documentation."""
            return getattr(importlib.import_module(module), name)

        def __call__(self, *arguments: Any, **options: Any) -> Any:
            return self.called(*arguments, **options)

    sys.modules[package].__class__ = CallablePackage
