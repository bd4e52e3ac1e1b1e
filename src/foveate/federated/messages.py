"""Messages between a server and its clients: named arrays and values, with nothing hidden in them.

A `Message` is all that ever leaves a client. It can be listed (`notes`), counted (`size`), compared (`digest`), written
to bytes without pickle, and checked against a `MessageRule` before it is believed. Nothing here knows a network.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from foveate.core.errors import UserError

SCHEMA = 3
"""Version of the messages' format, names of options and arrays included. Another version is refused."""

MAX_WHOLE, MAX_NUMBER = 1 << 53, 1e250
"""Larger whole numbers are not exact in float64; larger values, times counts, may become infinite. Both are refused."""

# Honest options have some hundred characters; a longer text would cost a client time to parse.
MAX_OPTIONS_LENGTH = 10_000

DTYPES = ("bool", "uint8", "int32", "int64", "float32", "float64")
Value = bool | int | float | str

_NAME = re.compile(r"^[a-z][a-z0-9_.\-]*$")


class MessageError(UserError):
    """An invalid message: names the field, its value and what is allowed."""


@dataclass(frozen=True, slots=True)
class ArrayNote:
    """Description of an array without its content. `size` counts bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    size: int


# A generated `__eq__` would compare arrays, whose comparison has no single truth value; `digest` compares messages.
@dataclass(frozen=True, eq=False)
class Message:
    """One message, to a client or from it.

    Attributes:
        kind: of request or answer, such as "query.centroids"; an answer has the kind of its request.
        round: number of the round, from 0. Randomness comes from (seed, round, client, purpose).
        arrays: by name. They are copied, C-ordered, and can no longer be written to.
        values: single numbers, strings and switches, by name.

    Raises:
        MessageError: a name with odd characters, an array of another type than `DTYPES`, a value of another type.
    """

    kind: str
    round: int = 0
    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    values: Mapping[str, Value] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in (self.kind, *self.arrays, *self.values):
            if not isinstance(name, str) or not _NAME.match(name):
                raise MessageError(f"name {name!r} in a message: allowed are lower-case letters, digits and . _ -")
        # The dataclass is frozen; the checked copies replace what was passed.
        object.__setattr__(self, "arrays", {name: _frozen(name, array) for name, array in self.arrays.items()})
        object.__setattr__(self, "values", {name: _plain(name, value) for name, value in self.values.items()})

    @property
    def size(self) -> int:
        """Bytes of the content: arrays as they are, 8 per number, strings as UTF-8; without names and envelopes."""
        values = sum(len(value.encode()) if isinstance(value, str) else 8 for value in self.values.values())
        return values + sum(array.nbytes for array in self.arrays.values())

    def notes(self) -> list[ArrayNote]:
        """Describe the arrays: name, type, shape, bytes."""
        return [ArrayNote(name, str(array.dtype), array.shape, array.nbytes) for name, array in self.arrays.items()]

    def array(self, name: str) -> NDArray[Any]:
        """Return the array of that name.

        Raises:
            MessageError: there is none.
        """
        if name not in self.arrays:
            raise MessageError(
                f"message '{self.kind}' has no array '{name}'; it has {', '.join(self.arrays) or 'none'}"
            )
        return self.arrays[name]

    def number(self, name: str) -> float:
        """Return the number of that name; bool and strings are refused.

        Raises:
            MessageError: there is none.
        """
        value = self.values.get(name)
        if isinstance(value, bool | str) or value is None:
            raise MessageError(f"message '{self.kind}' has no number '{name}'")
        return value

    def options_text(self) -> str:
        """Return the options of a job that a request carries, as text.

        Raises:
            MessageError: there are none, or the text is too long to be parsed for a server that is not trusted.
        """
        text = self.values.get("options")
        if not isinstance(text, str) or len(text) > MAX_OPTIONS_LENGTH:
            raise MessageError(f"message '{self.kind}' has no 'options' of at most {MAX_OPTIONS_LENGTH:,} characters")
        return text

    def answer(self, *, arrays: Mapping[str, ArrayLike] | None = None, **values: Value) -> Message:
        """Make a message of the same kind and round."""
        converted = {name: np.asarray(array) for name, array in (arrays or {}).items()}
        return Message(self.kind, self.round, converted, values)

    def digest(self) -> str:
        """SHA-256 of the whole content: equal messages have equal digests, on every machine."""
        # Sort by name: the order in which arrays and values were added does not matter.
        result = hashlib.sha256(json.dumps([self.kind, self.round, sorted(self.values.items())]).encode())
        for name in sorted(self.arrays):
            array = self.arrays[name]
            result.update(f"|{name}|{array.dtype}|{array.shape}|".encode())
            result.update(np.ascontiguousarray(array).tobytes())
        return result.hexdigest()

    def to_bytes(self) -> bytes:
        """Serialize as a safetensors file, values in its metadata. No pickle: a client must not run a server's code."""
        about = {"kind": self.kind, "round": self.round, "values": dict(self.values), "schema": SCHEMA}
        return save(
            {name: np.ascontiguousarray(array) for name, array in self.arrays.items()}, {"message": json.dumps(about)}
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> Message:
        """Read what `to_bytes` wrote.

        Raises:
            MessageError: the bytes are not a message, or one of another schema.
        """
        try:
            # `load` does not return the metadata; the header is JSON behind an 8-byte length.
            arrays = load(data)
            length = int.from_bytes(data[:8], "little")
            about = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["message"])
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            raise MessageError(f"these {len(data)} bytes are not a message ({type(error).__name__})") from None
        if not isinstance(about, dict) or about.get("schema") != SCHEMA:
            schema = about.get("schema") if isinstance(about, dict) else None
            raise MessageError(f"message: field 'schema' must be {SCHEMA} (got {schema}); use one version everywhere")
        return cls(about.get("kind", ""), about.get("round", 0), arrays, about.get("values", {}))


def _plain(name: str, value: Any) -> Value:
    """Convert a value to Python's own type."""
    value = value.item() if isinstance(value, np.generic) else value
    if not isinstance(value, bool | int | float | str):
        raise MessageError(f"value '{name}' must be a number, string or bool (got {type(value).__name__})")
    return value


def _frozen(name: str, values: ArrayLike) -> NDArray[Any]:
    """Copy an array, read-only: in one process client and server would otherwise share memory."""
    array = np.asarray(values)
    if str(array.dtype) not in DTYPES:
        raise MessageError(f"array '{name}' must be one of {', '.join(DTYPES)} (got {array.dtype})")
    # A fixed memory order: digests and bytes must not depend on how an array was made.
    array = np.array(array, order="C", copy=True)
    array.flags.writeable = False
    return array


@dataclass(frozen=True, slots=True)
class ArrayRule:
    """Rule of an array.

    Attributes:
        dtype: its type.
        shape: one entry per dimension: a number; a name, which means the same length wherever the message has it;
            None for any length.
        finite: NaN and infinities are refused; `nan` allows NaN only.
        low, high: the smallest and the largest value allowed.
    """

    dtype: str
    shape: tuple[int | str | None, ...]
    finite: bool = True
    nan: bool = False
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class MessageRule:
    """Rule of a message; anything that it does not list is refused, so that nothing leaves a client unlisted.

    Attributes:
        kind: its kind.
        arrays: by name. values: by name, their types; a number may be int where float is asked.
        max_bytes: the largest size, of arrays and values together.
        optional: names that may be missing.
    """

    kind: str
    arrays: Mapping[str, ArrayRule] = field(default_factory=dict)
    values: Mapping[str, type] = field(default_factory=dict)
    max_bytes: int = 1 << 31
    optional: frozenset[str] = frozenset()

    def check(self, message: Message) -> None:
        """Raise MessageError for the first thing that breaks the rule."""
        if message.kind != self.kind:
            raise MessageError(f"must be a '{self.kind}' (got '{message.kind}')")
        # Check the size before the content: a check of a huge array would be the very cost that the limit avoids.
        if message.size > self.max_bytes:
            raise MessageError(f"must have at most {self.max_bytes:,} bytes (got {message.size:,})")
        allowed = {*self.arrays, *self.values}
        for name in (*message.arrays, *message.values):
            if name not in allowed:
                raise MessageError(f"holds '{name}'; expected only {', '.join(sorted(allowed)) or 'nothing'}")
        missing = sorted(allowed - self.optional - set(message.arrays) - set(message.values))
        if missing:
            raise MessageError(f"lacks {', '.join(missing)}")
        for name, kind in self.values.items():
            if name in message.values:
                _check_value(name, message.values[name], kind)
        lengths: dict[str, int] = {}
        # `lengths` is shared by all arrays of the message: a name in a shape means one length everywhere.
        for name, rule in self.arrays.items():
            if name in message.arrays:
                _check_array(name, message.arrays[name], rule, lengths)


def _check_value(name: str, value: Value, kind: type) -> None:
    # `type`, not `isinstance`: bool is a subclass of int, and True would pass as a count of 1.
    if type(value) is not kind and not (kind is float and type(value) is int):
        raise MessageError(f"value '{name}' must be {kind.__name__} (got {value!r})")
    if isinstance(value, bool | str):
        return
    limit = MAX_WHOLE if kind is int else MAX_NUMBER
    if isinstance(value, float) and not math.isfinite(value):
        raise MessageError(f"value '{name}' must be finite (got {value})")
    # Beyond this a float64 sum of counts is inexact, or infinite.
    if abs(value) > limit:
        raise MessageError(f"value '{name}' must lie within {-limit:.3g} and {limit:.3g}")


def _check_array(name: str, array: NDArray[Any], rule: ArrayRule, lengths: dict[str, int]) -> None:
    if str(array.dtype) != rule.dtype:
        raise MessageError(f"array '{name}' must be {rule.dtype} (got {array.dtype})")
    expected_shape = ", ".join("any" if length is None else str(length) for length in rule.shape)
    if array.ndim != len(rule.shape):
        raise MessageError(f"array '{name}' must have shape [{expected_shape}] (got {list(array.shape)})")
    for length, expected in zip(array.shape, rule.shape, strict=True):
        if isinstance(expected, str):
            expected = lengths.setdefault(expected, length)
        if expected is not None and length != expected:
            raise MessageError(f"array '{name}' must have shape [{expected_shape}] (got {list(array.shape)})")
    if array.dtype.kind != "f":
        bad = 0
    elif rule.nan:
        bad = int(np.isinf(array).sum())
    else:
        bad = int((~np.isfinite(array)).sum()) if rule.finite else 0
    if bad:
        raise MessageError(f"array '{name}' has {bad} values that are NaN or infinite")
    if rule.low is not None and array.size and (array < rule.low).any():
        raise MessageError(f"array '{name}' must be at least {rule.low:g} (got {array.min()})")
    if rule.high is not None and array.size and (array > rule.high).any():
        raise MessageError(f"array '{name}' must be at most {rule.high:g} (got {array.max()})")
