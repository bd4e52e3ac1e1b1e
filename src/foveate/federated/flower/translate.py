"""Messages of the wing as Flower's records and back. Arrays stay arrays, so that Flower's tools can look at them."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict  # pyrefly: ignore[missing-import]
from numpy.lib import format as npy
from numpy.typing import NDArray

from foveate.federated.messages import DTYPES, SCHEMA, Message, MessageError

ABOUT, VALUES, ARRAYS = "foveate", "values", "arrays"


def to_records(message: Message) -> RecordDict:
    """A message as three records: what it is, its values, its arrays."""
    records: dict[str, Any] = {
        ABOUT: ConfigRecord({"kind": message.kind, "round": message.round, "schema": SCHEMA}),
        VALUES: ConfigRecord(dict(message.values)),
    }
    if message.arrays:
        records[ARRAYS] = ArrayRecord({name: Array(array) for name, array in message.arrays.items()})
    return RecordDict(records)


def from_records(records: RecordDict) -> Message:
    """The message in Flower's records.

    Raises:
        MessageError: records that are none of ours, of another schema, or with arrays that are not what they say.
    """
    about = dict(records.config_records.get(ABOUT, {}))
    if about.get("schema") != SCHEMA:
        raise MessageError(f"message of schema {about.get('schema')}; this version of Foveate speaks {SCHEMA}")
    kind, number = about.get("kind"), about.get("round")
    if not isinstance(kind, str) or type(number) is not int:
        raise MessageError(f"message of kind {kind!r} and round {number!r}: a word and a whole number are wanted")
    arrays = {str(name): _read(str(name), array) for name, array in records.array_records.get(ARRAYS, {}).items()}
    values = dict(records.config_records.get(VALUES, {}))
    return Message(kind, number, arrays, values)  # type: ignore[arg-type]


def _read(name: str, array: Array) -> NDArray[Any]:
    """The numbers of Flower's array. What its header says is compared with its bytes before memory is taken for it."""
    if array.stype != "numpy.ndarray":
        raise MessageError(f"array '{name}' is packed as '{array.stype}'; numpy.ndarray is wanted")
    content = io.BytesIO(array.data)
    try:
        version = npy.read_magic(content)
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, by_column, dtype = read(content)
    except ValueError:
        raise MessageError(f"array '{name}' has no readable header") from None
    if str(dtype) not in DTYPES:
        raise MessageError(f"array '{name}' has type {dtype}; allowed are {', '.join(DTYPES)}")
    size, found = math.prod(shape) * dtype.itemsize, len(array.data) - content.tell()
    if size != found:
        raise MessageError(f"array '{name}' says that it is {list(shape)} of {dtype}, and has {found:,} bytes")
    numbers = np.frombuffer(array.data, dtype, offset=content.tell())
    return numbers.reshape(shape, order="F" if by_column else "C")
