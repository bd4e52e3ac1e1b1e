"""What goes between a server and its clients: named arrays and values, with nothing hidden in them.

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

SCHEMA = 1
"""Version of the messages' form. A message of another version is refused."""

LARGEST_WHOLE, LARGEST_NUMBER = 1 << 53, 1e250
"""Whole numbers of an answer beyond the first are not exact in float64; numbers beyond the second, times counts, may be
infinite. Both are refused."""

DTYPES = ("bool", "uint8", "int32", "int64", "float32", "float64")
Value = bool | int | float | str

_NAME = re.compile(r"^[a-z][a-z0-9_.\-]*$")


class MessageError(UserError):
    """A message that is not what it should be: the sentence names the field, what it holds and what is allowed."""


@dataclass(frozen=True, slots=True)
class ArrayNote:
    """What is said of an array without showing it. `size` counts bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    size: int


@dataclass(frozen=True, eq=False)
class Message:
    """One message, to a client or from it.

    Attributes:
        kind: what is asked or answered, such as "query.centroids"; an answer has the kind of its question.
        round: number of the round, from 0. Randomness comes from (seed, round, client, purpose).
        arrays: by name. They are copied, C-ordered, and can no longer be written to.
        values: single numbers, words and switches, by name.

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
        object.__setattr__(self, "arrays", {name: _frozen(name, array) for name, array in self.arrays.items()})
        object.__setattr__(self, "values", {name: _plain(name, value) for name, value in self.values.items()})

    @property
    def size(self) -> int:
        """Bytes of the content: arrays as they are, 8 for a number, words as UTF-8. Names and envelopes not counted."""
        words = sum(len(value.encode()) if isinstance(value, str) else 8 for value in self.values.values())
        return words + sum(array.nbytes for array in self.arrays.values())

    def notes(self) -> list[ArrayNote]:
        """The arrays in words: name, type, shape, bytes."""
        return [ArrayNote(name, str(one.dtype), one.shape, one.nbytes) for name, one in self.arrays.items()]

    def array(self, name: str) -> NDArray[Any]:
        """The array of that name.

        Raises:
            MessageError: there is none.
        """
        if name not in self.arrays:
            raise MessageError(
                f"message '{self.kind}' has no array '{name}'; it has {', '.join(self.arrays) or 'none'}"
            )
        return self.arrays[name]

    def number(self, name: str) -> float:
        """The number of that name, bool and words refused.

        Raises:
            MessageError: there is none.
        """
        value = self.values.get(name)
        if isinstance(value, bool | str) or value is None:
            raise MessageError(f"message '{self.kind}' has no number '{name}'")
        return value

    def answer(self, *, arrays: Mapping[str, ArrayLike] | None = None, **values: Value) -> Message:
        """A message of the same kind and round, back to who asked."""
        taken = {name: np.asarray(array) for name, array in (arrays or {}).items()}
        return Message(self.kind, self.round, taken, values)

    def digest(self) -> str:
        """SHA-256 of the whole content: equal messages have equal digests, on every machine."""
        found = hashlib.sha256(json.dumps([self.kind, self.round, sorted(self.values.items())]).encode())
        for name in sorted(self.arrays):
            array = self.arrays[name]
            found.update(f"|{name}|{array.dtype}|{array.shape}|".encode())
            found.update(np.ascontiguousarray(array).tobytes())
        return found.hexdigest()

    def to_bytes(self) -> bytes:
        """The message as a safetensors file; the rest of it is in the file's metadata."""
        about = {"kind": self.kind, "round": self.round, "values": dict(self.values), "schema": SCHEMA}
        return save(
            {name: np.ascontiguousarray(one) for name, one in self.arrays.items()}, {"message": json.dumps(about)}
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> Message:
        """The message that `to_bytes` wrote.

        Raises:
            MessageError: the bytes are no message, or one of another schema.
        """
        try:
            arrays = load(data)
            length = int.from_bytes(data[:8], "little")
            about = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["message"])
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            raise MessageError(f"these {len(data)} bytes are no message ({type(error).__name__})") from None
        if not isinstance(about, dict) or about.get("schema") != SCHEMA:
            found = about.get("schema") if isinstance(about, dict) else None
            raise MessageError(f"message of schema {found}; this version of Foveate speaks {SCHEMA}")
        return cls(about.get("kind", ""), about.get("round", 0), arrays, about.get("values", {}))


def _plain(name: str, given: Any) -> Value:
    """The value as Python's own type."""
    value = given.item() if isinstance(given, np.generic) else given
    if not isinstance(value, bool | int | float | str):
        raise MessageError(f"value '{name}' is a {type(given).__name__}; allowed are numbers, words, true and false")
    return value


def _frozen(name: str, given: ArrayLike) -> NDArray[Any]:
    """A copy that nobody writes to."""
    array = np.asarray(given)
    if str(array.dtype) not in DTYPES:
        raise MessageError(f"array '{name}' has type {array.dtype}; allowed are {', '.join(DTYPES)}")
    array = np.array(array, order="C", copy=True)
    array.flags.writeable = False
    return array


@dataclass(frozen=True, slots=True)
class ArrayRule:
    """What an array must be.

    Attributes:
        dtype: its type.
        shape: one entry a dimension: a number; a word, which stands for the same length wherever the message has it;
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
    """What a message must hold; anything else in it is refused, so that nothing leaves a client unlisted.

    Attributes:
        kind: its kind.
        arrays: by name. values: by name, their types; a number may be int where float is asked.
        most_bytes: the largest size.
        optional: names that may be missing.
    """

    kind: str
    arrays: Mapping[str, ArrayRule] = field(default_factory=dict)
    values: Mapping[str, type] = field(default_factory=dict)
    most_bytes: int = 1 << 31
    optional: frozenset[str] = frozenset()

    def check(self, message: Message) -> None:
        """Returns where the message obeys.

        Raises:
            MessageError: the first thing that is wrong, in words.
        """
        if message.kind != self.kind:
            raise MessageError(f"is a '{message.kind}' where a '{self.kind}' is wanted")
        if message.size > self.most_bytes:
            raise MessageError(f"has {message.size:,} bytes; at most {self.most_bytes:,} are allowed")
        wanted = {*self.arrays, *self.values}
        for name in (*message.arrays, *message.values):
            if name not in wanted:
                raise MessageError(f"holds '{name}', which is not among {', '.join(sorted(wanted)) or 'nothing'}")
        missing = sorted(wanted - self.optional - set(message.arrays) - set(message.values))
        if missing:
            raise MessageError(f"lacks {', '.join(missing)}")
        for name, kind in self.values.items():
            if name in message.values:
                _check_value(name, message.values[name], kind)
        lengths: dict[str, int] = {}
        for name, rule in self.arrays.items():
            if name in message.arrays:
                _check_array(name, message.arrays[name], rule, lengths)


def _check_value(name: str, value: Value, kind: type) -> None:
    if type(value) is not kind and not (kind is float and type(value) is int):
        raise MessageError(f"value '{name}' is {value!r}; a {kind.__name__} is wanted")
    if isinstance(value, bool | str):
        return
    most = LARGEST_WHOLE if kind is int else LARGEST_NUMBER
    if isinstance(value, float) and not math.isfinite(value):
        raise MessageError(f"value '{name}' is {value}")
    if abs(value) > most:
        raise MessageError(f"value '{name}' lies beyond {'-' * (value < 0)}{most:.3g}")


def _check_array(name: str, array: NDArray[Any], rule: ArrayRule, lengths: dict[str, int]) -> None:
    if str(array.dtype) != rule.dtype:
        raise MessageError(f"array '{name}' has type {array.dtype}; {rule.dtype} is wanted")
    shown = ", ".join("any" if one is None else str(one) for one in rule.shape)
    if array.ndim != len(rule.shape):
        raise MessageError(f"array '{name}' has shape {list(array.shape)}; [{shown}] is wanted")
    for length, wanted in zip(array.shape, rule.shape, strict=True):
        if isinstance(wanted, str):
            wanted = lengths.setdefault(wanted, length)
        if wanted is not None and length != wanted:
            raise MessageError(f"array '{name}' has shape {list(array.shape)}; [{shown}] is wanted")
    if array.dtype.kind != "f":
        bad = 0
    elif rule.nan:
        bad = int(np.isinf(array).sum())
    else:
        bad = int((~np.isfinite(array)).sum()) if rule.finite else 0
    if bad:
        raise MessageError(f"array '{name}' has {bad} values that are NaN or infinite")
    if rule.low is not None and array.size and (array < rule.low).any():
        raise MessageError(f"array '{name}' has the value {array.min()}; at least {rule.low:g} is wanted")
    if rule.high is not None and array.size and (array > rule.high).any():
        raise MessageError(f"array '{name}' has the value {array.max()}; at most {rule.high:g} is wanted")
