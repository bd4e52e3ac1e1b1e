"""A kind is a module: methods, backends, importers and verbs are found by the name of their file.

Nothing is registered and no central list grows: a new kind is one new module in the right package.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from types import ModuleType
from typing import Any

from foveate.core.errors import choose


def module_names(package: str) -> list[str]:
    """List the public modules of a package, sorted, without importing them.

    Args:
        package: dotted name; the package itself is imported. Names that begin with `_` are helpers and left out.
    """
    path = importlib.import_module(package).__path__
    return sorted(module.name for module in pkgutil.iter_modules(path) if not module.name.startswith("_"))


def load_module(package: str, name: str, *, label: str) -> ModuleType:
    """Import one module of a package by name.

    Args:
        label: what the modules are, for the error ("captioner backend").

    Raises:
        UserError: there is no such module; the sentence lists all and the nearest match.
    """
    choose(name, module_names(package), label)
    return importlib.import_module(f"{package}.{name}")


def load_plugin(package: str, name: str, attribute: str, *, label: str) -> Any:
    """Import one module of a package by name and return its `attribute` (see `load_module`)."""
    return getattr(load_module(package, name, label=label), attribute)


def load_all(package: str, attribute: str) -> dict[str, Any]:
    """Import every module of a package; return {module name: its `attribute`} for those that have one."""
    modules = {name: importlib.import_module(f"{package}.{name}") for name in module_names(package)}
    return {name: getattr(module, attribute) for name, module in modules.items() if hasattr(module, attribute)}
