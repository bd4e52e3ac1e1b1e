"""YAML from untrusted files: plain values of bounded size only."""

from __future__ import annotations

from typing import Any

import yaml

from foveate.core.errors import UserError

MAX_VALUES = 100_000
MAX_DEPTH = 50
_MAX_INTEGER = 2**63
# PyYAML raises more than YAMLError: Python's own errors for impossible dates, numbers and tags pass through it.
_UNREADABLE = (
    yaml.YAMLError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    OverflowError,
    RecursionError,
)


def read_yaml(text: str, *, where: str, kind: str = "a YAML file") -> Any:
    """Parse YAML to mappings, lists, strings, numbers, booleans and None.

    Args:
        where: the file or option, for errors.
        kind: what the text should be, for errors.

    Raises:
        UserError: it is not YAML, is nested deeper than 50 levels or contains itself, has more than 100,000 values, a
            date, binary data, or an integer beyond 64 bits.
    """
    try:
        value = yaml.safe_load(text)
    except RecursionError as error:
        raise UserError(f"{where}: nested too deeply; expected at most {MAX_DEPTH} levels") from error
    except _UNREADABLE as error:
        raise UserError(f"{where}: not {kind} ({' '.join(str(error).split())[:300]})") from error
    _check(value, where)
    return value


def _check(value: Any, where: str) -> None:
    # Without recursion, since depth is what is checked. An alias counts each time that it is used: a "billion laughs"
    # text of a few lines would else stand for gigabytes.
    count = 0
    pending = [(value, 0)]
    while pending:
        item, depth = pending.pop()
        count += 1
        if depth > MAX_DEPTH:
            raise UserError(f"{where}: nested too deeply; expected at most {MAX_DEPTH} levels")
        if count > MAX_VALUES:
            raise UserError(f"{where}: more than {MAX_VALUES:,} values, counting every use of an alias")
        if isinstance(item, dict):
            pending.extend((inner, depth + 1) for pair in item.items() for inner in pair)
        elif isinstance(item, list):
            pending.extend((inner, depth + 1) for inner in item)
        elif isinstance(item, int) and abs(item) >= _MAX_INTEGER:
            raise UserError(f"{where}: an integer beyond 64 bits")
        elif item is not None and not isinstance(item, str | int | float):
            raise UserError(
                f"{where}: contains a {type(item).__name__}; expected strings, numbers, lists and mappings (quote it)"
            )
