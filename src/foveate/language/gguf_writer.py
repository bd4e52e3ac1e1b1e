"""Write GGUF files of version 3: metadata, and tensors of type F32.

Source: GGUF specification (ggml-org/ggml, docs/gguf.md).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from foveate.core.files import atomic_file

Value = bool | int | float | str | Sequence[str] | Sequence[int] | Sequence[float]
"""What a field holds; as llama.cpp reads them, integers have 32 bits, in lists with a sign, and floats 32."""

_ALIGNMENT = 32  # of tensors, where no field says otherwise
_UINT32, _INT32, _FLOAT32, _BOOL, _STRING, _ARRAY = 4, 5, 6, 7, 8, 9
_F32 = 0


def write_gguf(path: Path, fields: Mapping[str, Value], tensors: Mapping[str, Tensor]) -> None:
    """Write a GGUF file, tensor by tensor.

    Args:
        fields: metadata in the order of the file; an empty list is one of texts.
        tensors: name -> values, outermost axis first; written as float32.
    """
    header = [b"GGUF", struct.pack("<IQQ", 3, len(tensors), len(fields))]
    for name, value in fields.items():
        header += [_pack_text(name), _pack_value(value)]
    offset = 0
    for name, tensor in tensors.items():
        # The file lists the innermost axis first.
        shape = tuple(reversed(tensor.shape))
        header += [_pack_text(name), struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, _F32, offset)]
        offset += _padded(4 * tensor.numel())
    content = b"".join(header)
    with atomic_file(path) as file:
        file.write(content.ljust(_padded(len(content)), b"\0"))
        for tensor in tensors.values():
            # One at a time: a model of 7B parameters is 28 GB in float32.
            values = np.ascontiguousarray(tensor.detach().float().cpu().numpy(), dtype="<f4").tobytes()
            file.write(values.ljust(_padded(len(values)), b"\0"))


def _padded(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _pack_text(text: str) -> bytes:
    content = text.encode("utf-8")
    return struct.pack("<Q", len(content)) + content


def _pack_value(value: Value) -> bytes:
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _pack_text(value)
    # Python's bool is an int as well.
    if isinstance(value, bool):
        return struct.pack("<I?", _BOOL, value)
    if isinstance(value, int):
        return struct.pack("<II", _UINT32, value)
    if isinstance(value, float):
        return struct.pack("<If", _FLOAT32, value)
    if not value or isinstance(value[0], str):
        return struct.pack("<IIQ", _ARRAY, _STRING, len(value)) + b"".join(_pack_text(str(text)) for text in value)
    kind, letter = (_FLOAT32, "f") if isinstance(value[0], float) else (_INT32, "i")
    return struct.pack(f"<IIQ{len(value)}{letter}", _ARRAY, kind, len(value), *value)
