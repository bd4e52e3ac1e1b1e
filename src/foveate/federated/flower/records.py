"""Messages as Flower's records, and back. Arrays stay arrays, so that Flower's tools can inspect them."""

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
    """Convert a message to three records: kind and round, values, arrays."""
    records: dict[str, Any] = {
        ABOUT: ConfigRecord({"kind": message.kind, "round": message.round, "schema": SCHEMA}),
        VALUES: ConfigRecord(dict(message.values)),
    }
    if message.arrays:
        records[ARRAYS] = ArrayRecord({name: Array(array) for name, array in message.arrays.items()})
    return RecordDict(records)


def from_records(records: RecordDict) -> Message:
    """Read the message in Flower's records.

    Raises:
        MessageError: foreign records, another schema, or arrays whose bytes do not match their header.
    """
    about = dict(records.config_records.get(ABOUT, {}))
    if about.get("schema") != SCHEMA:
        raise MessageError(
            f"message: field 'schema' must be {SCHEMA} (got {about.get('schema')}); use one version everywhere"
        )
    kind, number = about.get("kind"), about.get("round")
    if not isinstance(kind, str) or type(number) is not int:
        raise MessageError(f"message: kind must be a string and round a whole number (got {kind!r} and {number!r})")
    arrays = {str(name): _read(str(name), array) for name, array in records.array_records.get(ARRAYS, {}).items()}
    values = dict(records.config_records.get(VALUES, {}))
    return Message(kind, number, arrays, values)  # type: ignore[arg-type]


def _read(name: str, array: Array) -> NDArray[Any]:
    if array.stype != "numpy.ndarray":
        raise MessageError(f"array '{name}' must be packed as numpy.ndarray (got '{array.stype}')")
    return read_npy(name, array.data)


def read_npy(name: str, data: bytes) -> NDArray[Any]:
    """Read an array in NumPy's format.

    The header is compared with the number of bytes first, so that a false one cannot make the server reserve memory.

    Raises:
        MessageError: no readable header, a type that no message has, or another number of bytes than the header says.
    """
    content = io.BytesIO(data)
    try:
        version = npy.read_magic(content)
        # Version 3 of the header exists for names of fields, which no allowed type has.
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, by_column, dtype = read(content)
    except ValueError:
        raise MessageError(f"array '{name}' has no readable header") from None
    if str(dtype) not in DTYPES:
        raise MessageError(f"array '{name}' must be one of {', '.join(DTYPES)} (got {dtype})")
    size, num_bytes = math.prod(shape) * dtype.itemsize, len(data) - content.tell()
    if size != num_bytes:
        raise MessageError(f"array '{name}' claims to be {list(shape)} of {dtype}, but has {num_bytes:,} bytes")
    values = np.frombuffer(data, dtype, offset=content.tell())
    return values.reshape(shape, order="F" if by_column else "C")
