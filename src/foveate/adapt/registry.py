"""Methods by name: `x-y` is the module `foveate.adapt.methods.x_y`. A new method is one new module there."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from functools import cache
from typing import Any

import foveate.adapt.methods
from foveate.adapt.adapter import Method, MethodSettings
from foveate.core.errors import UserError, choose
from foveate.core.recipes import validate


@cache
def method_names() -> tuple[str, ...]:
    """Names of all methods, as a user writes them."""
    names = [module.name for module in pkgutil.iter_modules(foveate.adapt.methods.__path__)]
    return tuple(sorted(name.replace("_", "-") for name in names))


def method(name: str) -> Method:
    """The method of a name; - and _ are the same.

    Raises:
        UserError: when there is none, with the nearest.
    """
    chosen = choose(name.replace("_", "-"), method_names(), "method")
    return importlib.import_module(f"foveate.adapt.methods.{chosen.replace('-', '_')}").METHOD


def settings_of(given: MethodSettings | Mapping[str, Any] | str) -> MethodSettings:
    """Checked settings from settings, a mapping with `method`, or a method's name.

    Raises:
        UserError: for an unknown method or option, naming the allowed ones and the nearest.
    """
    if isinstance(given, MethodSettings):
        return given
    options = {"method": given} if isinstance(given, str) else dict(given)
    name = options.pop("method", None)
    if not isinstance(name, str):
        raise UserError(f"field 'method' is missing: allowed are {', '.join(method_names())}")
    return validate(method(name).settings, options, where=f"method '{name}'")
