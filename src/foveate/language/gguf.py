"""Read GGUF files with numpy, and write them: metadata, and tensors of type F32, F16, BF16, Q8_0, Q4_0 and Q4_1.

Tensors of `LIBRARY_TYPES` are read with the package gguf: its formulas, and nothing else of it.

The header is checked before memory is taken for what it announces: every length against the bytes that are left, every
tensor against the size of the file.

Source: GGUF specification (ggml-org/ggml, docs/gguf.md); block layouts of ggml-common.h.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from foveate.core.errors import UserError
from foveate.core.files import atomic_file

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)  # version 1 counts in 32 bits; no converter has written it since 2023
# The largest published models have some 1,800 tensors and 60 fields; without a bound, a header of empty entries would
# take ten times the memory of its file.
_MAX_ENTRIES = 1 << 16
_MAX_DIMENSIONS = 4
_MAX_ALIGNMENT = 1 << 16
_BLOCK = 32
_STRING, _ARRAY = 8, 9
_NUMBER_TYPES = {
    0: "u1",
    1: "i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    7: "?",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}
# By their names in ggml.h, so that a type that is not read is refused by name.
_TYPE_NAMES = dict(
    enumerate(
        "F32 F16 Q4_0 Q4_1 Q4_2 Q4_3 Q5_0 Q5_1 Q8_0 Q8_1 Q2_K Q3_K Q4_K Q5_K Q6_K Q8_K IQ2_XXS IQ2_XS IQ3_XXS IQ1_S "
        "IQ4_NL IQ3_S IQ2_S IQ4_XS I8 I16 I32 I64 F64 IQ1_M BF16 Q4_0_4_4 Q4_0_4_8 Q4_0_8_8 TQ1_0 TQ2_0 IQ4_NL_4_4 "
        "IQ4_NL_4_8 IQ4_NL_8_8 MXFP4".split()
    )
)


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where a tensor lies in the file.

    Attributes:
        shape: outermost axis first, as in torch; the file lists the innermost first.
        type: name in ggml ("Q4_1").
        start, size: bytes from the beginning of the file.
    """

    shape: tuple[int, ...]
    type: str
    start: int
    size: int


class GGUFFile:
    """An open GGUF file: `metadata` (name -> value), `tensors` (name -> where), and `read` for values.

    Raises:
        UserError: the file is missing, no GGUF file, cut short, or its header contradicts itself; a tensor has a type
            that is not read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise UserError(f"{path}: no such file; expected a GGUF file")
        with path.open("rb") as file:
            if file.read(len(_MAGIC)) != _MAGIC:
                raise UserError(f"{path}: not a GGUF file (its first 4 bytes are not 'GGUF')")
            # Memory-mapped, so that a configuration is read without the gigabytes of weights behind it.
            self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        header = _Header(self._data, path)
        version, num_tensors, num_fields = header.read_preamble()
        self.version: int = version
        self.metadata: dict[str, Any] = {}
        for _ in range(num_fields):
            name = header.string("the name of a field")
            if name in self.metadata:
                raise UserError(f"{path}: field '{name}' occurs twice")
            self.metadata[name] = header.value(name)
        listed = [header.tensor() for _ in range(num_tensors)]
        self.tensors: dict[str, TensorInfo] = _place_tensors(listed, self._data_start(header.position), header)

    def _data_start(self, header_end: int) -> int:
        alignment = self.metadata.get("general.alignment", 32)
        # Not `isinstance`: a field may hold a bool, which is an int in Python.
        if type(alignment) is not int or not 8 <= alignment <= _MAX_ALIGNMENT or alignment & (alignment - 1):
            raise UserError(f"{self.path}: field 'general.alignment' must be a power of two, 8 to {_MAX_ALIGNMENT}")
        self._alignment = alignment
        return -(-header_end // alignment) * alignment

    def read(self, name: str) -> NDArray[np.float32]:
        """Return the values of a tensor, float32, in its shape.

        Raises:
            UserError: they hold NaN or infinity: the file is damaged.
        """
        info = self.tensors[name]
        values = _DECODERS.get(info.type, _decode_with_library)(self._data, info)
        if values is None:
            raise UserError(f"{self.path}: tensor '{name}' holds NaN or infinity; the file is damaged")
        return values.reshape(info.shape)


class _Header:
    """The header of a GGUF file, read from front to back."""

    def __init__(self, data: mmap.mmap, path: Path) -> None:
        self.data, self.path, self.position = data, path, len(_MAGIC)

    def read_preamble(self) -> tuple[int, int, int]:
        """Read version, number of tensors, number of fields."""
        (version,) = self._unpack("<I", "its version")
        # In a big-endian file the version is a small number only after its bytes are swapped.
        if version not in _VERSIONS:
            big = (
                " (a file for big-endian machines)"
                if int.from_bytes(version.to_bytes(4), "little") in _VERSIONS
                else ""
            )
            raise UserError(f"{self.path}: GGUF version {version} is not read{big}; expected 2 or 3")
        num_tensors, num_fields = self._unpack("<QQ", "its counts")
        for count, what in ((num_tensors, "tensors"), (num_fields, "fields")):
            if count > _MAX_ENTRIES:
                raise UserError(f"{self.path}: the header announces {count} {what}; at most {_MAX_ENTRIES} are read")
        return version, num_tensors, num_fields

    def string(self, what: str) -> str:
        (length,) = self._unpack("<Q", what)
        try:
            return str(self._take(length, what), "utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"{self.path}: {what} is not UTF-8 ({error.reason})") from error

    def value(self, name: str) -> Any:
        """Read a field's value: int, float, bool, str, a list of str, or an array of numbers."""
        what = f"field '{name}'"
        (kind,) = self._unpack("<I", what)
        if kind == _STRING:
            return self.string(what)
        if kind == _ARRAY:
            inner, count = self._unpack("<IQ", what)
            if inner == _STRING:
                # Each string has 8 bytes of length at least, so the list never outgrows the file.
                self._check_room(count * 8, what)
                return self._strings(count, what)
            return np.frombuffer(
                self._take(count * self._number(inner, what).itemsize, what), self._number(inner, what)
            )
        number = self._number(kind, what)
        return np.frombuffer(self._take(number.itemsize, what), number)[0].item()

    def _strings(self, count: int, what: str) -> list[str]:
        # A vocabulary and its merges are 100,000 strings: one loop without calls takes a third of the time.
        data, position, end, texts = self.data, self.position, len(self.data), list[str]()
        read_length = struct.Struct("<Q").unpack_from
        try:
            for _ in range(count):
                start = position + 8
                position = start + read_length(data, position)[0]
                if position > end:
                    break
                texts.append(data[start:position].decode("utf-8"))
        except struct.error:
            position = end + 1
        except UnicodeDecodeError as error:
            raise UserError(f"{self.path}: {what} is not UTF-8 ({error.reason})") from error
        if position > end:
            raise UserError(f"{self.path}: cut short or damaged: {what} goes on beyond the end of the file")
        self.position = position
        return texts

    def tensor(self) -> tuple[str, tuple[int, ...], str, int]:
        """Read one entry of the list of tensors: name, shape, type, offset in the part that holds the values."""
        name = self.string("the name of a tensor")
        what = f"tensor '{name}'"
        (num_dimensions,) = self._unpack("<I", what)
        if not 1 <= num_dimensions <= _MAX_DIMENSIONS:
            raise UserError(f"{self.path}: {what} has {num_dimensions} dimensions; expected 1 to {_MAX_DIMENSIONS}")
        # GGUF lists the innermost dimension first, PyTorch the outermost.
        shape = self._unpack(f"<{num_dimensions}Q", what)[::-1]
        code, offset = self._unpack("<IQ", what)
        kind = _TYPE_NAMES.get(code, f"number {code}")
        if kind not in (*_DECODERS, *LIBRARY_TYPES):
            expected = ", ".join((*_DECODERS, *LIBRARY_TYPES))
            raise UserError(f"{self.path}: {what} is of type {kind}, which is not read; expected {expected}")
        return name, shape, kind, offset

    def _number(self, kind: int, what: str) -> np.dtype[Any]:
        if kind not in _NUMBER_TYPES:
            # Arrays of arrays are in the specification; no model has any, and nesting has no bound.
            raise UserError(f"{self.path}: {what} has values of type {kind}, which is not read")
        return np.dtype(_NUMBER_TYPES[kind])

    def _unpack(self, layout: str, what: str) -> tuple[Any, ...]:
        return struct.unpack(layout, self._take(struct.calcsize(layout), what))

    def _take(self, size: int, what: str) -> bytes:
        self._check_room(size, what)
        start = self.position
        self.position += size
        return self.data[start : self.position]

    def _check_room(self, size: int, what: str) -> None:
        left = len(self.data) - self.position
        if size > left:
            raise UserError(f"{self.path}: cut short or damaged: {what} needs {size} bytes, and {left} are left")


def _place_tensors(
    listed: list[tuple[str, tuple[int, ...], str, int]], start: int, header: _Header
) -> dict[str, TensorInfo]:
    """Turn offsets into places in the file; every tensor must lie inside it, and no two may share bytes."""
    path, end = header.path, len(header.data)
    tensors: dict[str, TensorInfo] = {}
    for name, shape, kind, offset in listed:
        if name in tensors:
            raise UserError(f"{path}: tensor '{name}' occurs twice")
        block, size_of_block = _block_sizes(kind, f"{path}: tensor '{name}'")
        # Python's integers do not overflow: a product beyond 2**64 is compared as it is.
        count = math.prod(shape)
        if count == 0 or shape[-1] % block:
            raise UserError(f"{path}: tensor '{name}' has shape {shape}; its last axis must be a multiple of {block}")
        size = count // block * size_of_block
        if offset + size > end - start:
            raise UserError(
                f"{path}: cut short or damaged: tensor '{name}' ends at byte {start + offset + size} of {end}"
            )
        tensors[name] = TensorInfo(shape, kind, start + offset, size)
    # Tensors that share bytes would let a small file ask for any amount of memory.
    by_start = sorted(tensors.items(), key=lambda item: item[1].start)
    for (_, before), (name, after) in zip(by_start, by_start[1:], strict=False):
        if before.start + before.size > after.start:
            raise UserError(f"{path}: tensor '{name}' shares bytes with another")
    return tensors


# A block of weights shares a scale; two weights of four bits share a byte.
_BLOCKS = {
    "Q8_0": np.dtype([("scale", "<f2"), ("quants", "i1", (_BLOCK,))]),
    "Q4_0": np.dtype([("scale", "<f2"), ("quants", "u1", (_BLOCK // 2,))]),
    "Q4_1": np.dtype([("scale", "<f2"), ("minimum", "<f2"), ("quants", "u1", (_BLOCK // 2,))]),
}


_SIZES = {"F32": (1, 4), "F16": (1, 2), "BF16": (1, 2)} | {name: (_BLOCK, b.itemsize) for name, b in _BLOCKS.items()}
LIBRARY_TYPES = ("Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS")
"""Types whose formulas are those of the package gguf."""


def _block_sizes(kind: str, what: str) -> tuple[int, int]:
    """Weights and bytes of one block of a type."""
    if kind in _SIZES:
        return _SIZES[kind]
    # Loaded here: most files have none of its types, and it takes up to a second.
    try:
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
    except ImportError as error:
        raise UserError(f"{what} is of type {kind}, which needs gguf; run `pip install 'foveate[gguf]'`") from error
    return GGML_QUANT_SIZES[GGMLQuantizationType[kind]]


def _decode_with_library(data: mmap.mmap, info: TensorInfo) -> NDArray[np.float32] | None:
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    rows = np.frombuffer(data, np.uint8, count=info.size, offset=info.start).reshape(math.prod(info.shape[:-1]), -1)
    # Damaged scales are infinite; the values say so.
    with np.errstate(all="ignore"):
        values = dequantize(rows, GGMLQuantizationType[info.type])
    return values if np.isfinite(values).all() else None


def _decode_floats(data: mmap.mmap, info: TensorInfo) -> NDArray[np.float32] | None:
    dtype = np.dtype({"F32": "<f4", "F16": "<f2", "BF16": "<u2"}[info.type])
    values = np.frombuffer(data, dtype, count=info.size // dtype.itemsize, offset=info.start)
    # A bfloat16 is the upper half of a float32. Both ways copy: an array on a read-only map cannot be written to, and
    # torch warns about it.
    is_half = info.type == "BF16"
    values = (values.astype("<u4") << np.uint32(16)).view("<f4") if is_half else values.astype(np.float32)
    return values if np.isfinite(values).all() else None


def _scaled(data: mmap.mmap, info: TensorInfo, field: str = "scale") -> tuple[NDArray[Any], NDArray[np.float32]]:
    dtype = _BLOCKS[info.type]
    blocks = np.frombuffer(data, dtype, count=info.size // dtype.itemsize, offset=info.start)
    return blocks, blocks[field].astype(np.float32)[:, None]


def _decode_q8_0(data: mmap.mmap, info: TensorInfo) -> NDArray[np.float32] | None:
    blocks, scale_N1 = _scaled(data, info)
    # Integers times a finite half-precision scale stay finite in float32, so checking the scales is enough.
    return blocks["quants"] * scale_N1 if np.isfinite(scale_N1).all() else None


def _unpack_nibbles(blocks: NDArray[Any]) -> NDArray[Any]:
    """Unpack [N, 16] bytes to [N, 32]: the low halves are the first 16 weights of a block, the high halves the rest."""
    quants = blocks["quants"]
    return np.concatenate([quants & 15, quants >> 4], axis=1)


def _decode_q4_0(data: mmap.mmap, info: TensorInfo) -> NDArray[np.float32] | None:
    blocks, scale_N1 = _scaled(data, info)
    if not np.isfinite(scale_N1).all():
        return None
    # As int8: subtracting 8 from an unsigned byte below 8 would wrap around.
    return (_unpack_nibbles(blocks).view(np.int8) - np.int8(8)) * scale_N1


def _decode_q4_1(data: mmap.mmap, info: TensorInfo) -> NDArray[np.float32] | None:
    blocks, scale_N1 = _scaled(data, info)
    minimum_N1 = blocks["minimum"].astype(np.float32)[:, None]
    if not (np.isfinite(scale_N1).all() and np.isfinite(minimum_N1).all()):
        return None
    values = _unpack_nibbles(blocks) * scale_N1
    values += minimum_N1
    return values


_DECODERS: dict[str, Callable[[mmap.mmap, TensorInfo], NDArray[np.float32] | None]] = {
    "F32": _decode_floats,
    "F16": _decode_floats,
    "BF16": _decode_floats,
    "Q8_0": _decode_q8_0,
    "Q4_0": _decode_q4_0,
    "Q4_1": _decode_q4_1,
}


# Write GGUF files of version 3: metadata, and tensors of type F32.
#
# Source: GGUF specification (ggml-org/ggml, docs/gguf.md).


Value = bool | int | float | str | Sequence[str] | Sequence[int] | Sequence[float]
"""What a field holds; as llama.cpp reads them, integers have 32 bits, in lists with a sign, and floats 32."""

_ALIGNMENT = 32  # of tensors, where no field says otherwise
_UINT32, _INT32, _FLOAT32, _BOOL = 4, 5, 6, 7
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
