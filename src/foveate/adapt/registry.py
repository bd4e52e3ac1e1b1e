"""Methods by name, as `foveate.adapt.methods.METHODS` lists them; `-` and `_` are the same."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from functools import cache
from typing import Any

from foveate.adapt.adapter import Method, MethodSettings
from foveate.adapt.methods import METHODS
from foveate.core.errors import UserError, choose
from foveate.core.recipes import validate


@cache
def method_names() -> tuple[str, ...]:
    """Return the names of all methods, as a user writes them."""
    return tuple(sorted(METHODS))


def get_method(name: str) -> Method:
    """Return the method of a name; `-` and `_` are the same.

    Raises:
        UserError: there is no such method; the nearest is named.
    """
    # Chosen among names with `-`, so that the error lists them as a user writes them.
    module, _, attribute = METHODS[choose(name.replace("_", "-"), method_names(), "method")].partition(":")
    method: Method = getattr(importlib.import_module(f"foveate.adapt.methods.{module}"), attribute)
    return method


def parse_settings(config: MethodSettings | Mapping[str, Any] | str) -> MethodSettings:
    """Check the settings of a method, given as settings, as a mapping with `method`, or as a method's name.

    Raises:
        UserError: unknown method or option; allowed ones and the nearest are named.
    """
    if isinstance(config, MethodSettings):
        return config
    options = {"method": config} if isinstance(config, str) else dict(config)
    name = options.pop("method", None)
    if not isinstance(name, str):
        raise UserError(f"field 'method' is missing; expected one of {', '.join(method_names())}")
    return validate(get_method(name).settings, options, where=f"method '{name}'")
