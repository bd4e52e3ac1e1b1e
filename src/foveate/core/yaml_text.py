"""YAML from a person's hands or from somebody else: plain values only, of bounded size, or a sentence why not."""

from __future__ import annotations

from typing import Any

import yaml

from foveate.core.errors import UserError

MOST_VALUES = 100_000
DEEPEST = 50
_LARGEST_INTEGER = 2**63
# Beside its own errors PyYAML lets out what Python says of a date, a number or a tag that cannot be.
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
    """The value of a YAML text: mappings, lists, texts, numbers, true, false and null.

    Aliases count as often as they are used, so that a short text cannot stand for a huge value.

    Raises:
        UserError: `where` holds no YAML (it is not `kind`), is nested deeper than 50 levels or around itself, has more
            than 100,000 values, a date, binary data, or a whole number beyond 64 bits.
    """
    try:
        value = yaml.safe_load(text)
    except RecursionError as error:
        raise UserError(f"{where}: nested too deeply, allowed are {DEEPEST} levels") from error
    except _UNREADABLE as error:
        raise UserError(f"{where}: not {kind} ({' '.join(str(error).split())[:300]})") from error
    _check(value, where)
    return value


def _check(value: Any, where: str) -> None:
    count = 0
    waiting = [(value, 0)]
    while waiting:
        one, depth = waiting.pop()
        count += 1
        if depth > DEEPEST:
            raise UserError(f"{where}: nested too deeply, allowed are {DEEPEST} levels")
        if count > MOST_VALUES:
            raise UserError(f"{where}: more than {MOST_VALUES:,} values, with every alias written out")
        if isinstance(one, dict):
            waiting.extend((inner, depth + 1) for pair in one.items() for inner in pair)
        elif isinstance(one, list):
            waiting.extend((inner, depth + 1) for inner in one)
        elif isinstance(one, int) and abs(one) >= _LARGEST_INTEGER:
            raise UserError(f"{where}: a whole number beyond 64 bits")
        elif one is not None and not isinstance(one, str | int | float):
            raise UserError(
                f"{where}: a {type(one).__name__}, allowed are texts, numbers, lists and mappings; quote it"
            )
