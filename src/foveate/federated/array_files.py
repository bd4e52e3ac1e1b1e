"""Arrays in .npy and .npz files. Type, shape and size are read from the header and checked before any value is read.

Only what such a file needs is understood: numbers, booleans and texts in plain arrays; no objects, records or dates.
Layout: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
"""

from __future__ import annotations

import ast
import math
import re
import struct
import warnings
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from foveate.core.errors import UserError
from foveate.federated.points import ReadOptions

_MAGIC = b"\x93NUMPY"
# NumPy's own bound (`max_header_size`): `ast.literal_eval` can exhaust the interpreter on a large text.
_MAX_HEADER = 10_000
_MAX_ARRAYS = 10_000
# Object types are missing: reading them means unpickling, which can run code from the file.
_TYPE = re.compile(r"[<>|=]?(?:[biu][1248]|b1|f(?:2|4|8|12|16)|[SU][1-9]\d{0,6})")
_DAMAGE = (
    OSError,
    EOFError,
    ValueError,
    LookupError,
    ArithmeticError,
    RuntimeError,
    TypeError,
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
)
"""What `zipfile` raises on damaged archives: most of it is not BadZipFile."""


@dataclass(frozen=True)
class ArrayHeader:
    """Header of an array in NumPy's format.

    Attributes:
        dtype: None for types that are not read (objects, records, dates, complex numbers); `type` names it.
        type: as it stands in the file.
    """

    dtype: np.dtype[Any] | None
    type: str
    shape: tuple[int, ...]
    fortran: bool

    @property
    def num_bytes(self) -> int:
        """Bytes of the values, or of the float64 values that they become, whichever is more."""
        size = 8 if self.dtype is None else max(8, self.dtype.itemsize)
        return math.prod(self.shape) * size


def read_header(stream: IO[bytes], what: str) -> ArrayHeader:
    """Read the header of an array; the stream then stands at its first value.

    Raises:
        UserError: this is no array in NumPy's format, or its header is damaged.
    """
    start = stream.read(8)
    if len(start) < 8 or start[:6] != _MAGIC or start[6] not in (1, 2, 3):
        raise UserError(f"{what}: not a readable file of arrays (it does not begin with NumPy's header)")
    # Version 1 states the length in two bytes, later ones in four.
    width = 2 if start[6] == 1 else 4
    length = int.from_bytes(stream.read(width), "little")
    if length > _MAX_HEADER:
        raise UserError(f"{what}: not a readable file of arrays (a header of {length:,} bytes)")
    text = stream.read(length)
    try:
        with warnings.catch_warnings():
            # Python only warns of some malformed literals, which must not print on the terminal of whoever reads the
            # file.
            warnings.simplefilter("ignore", SyntaxWarning)
            content = ast.literal_eval(text.decode("utf-8" if start[6] == 3 else "latin-1").strip())
        kind, shape, fortran = content["descr"], content["shape"], content["fortran_order"]
    except (ValueError, SyntaxError, TypeError, LookupError, MemoryError, RecursionError):
        raise UserError(f"{what}: not a readable file of arrays (a damaged header)") from None
    # The exact type is compared, because True would otherwise pass as a length.
    is_shape = isinstance(shape, tuple) and all(type(length) is int and length >= 0 for length in shape)
    # More than 32 axes fail in NumPy 1.
    if not is_shape or len(shape) > 32 or not isinstance(fortran, bool):
        raise UserError(f"{what}: not a readable file of arrays (its header has the shape {shape!s:.60})")
    known = isinstance(kind, str) and _TYPE.fullmatch(kind)
    try:
        dtype = np.dtype(kind) if known else None
    except TypeError:  # types that this machine does not have, such as long doubles of another size
        dtype = None
    return ArrayHeader(dtype, f"{kind!s:.60}", shape, fortran)


def read_values(stream: IO[bytes], header: ArrayHeader, what: str) -> NDArray[Any]:
    """Read the values after a header.

    Raises:
        UserError: a type that is not read, fewer bytes than the header claims, or text that is none.
    """
    if header.dtype is None:
        raise UserError(f"{what}: must be real numbers (got type {header.type})")
    count = math.prod(header.shape) * header.dtype.itemsize
    content = stream.read(count)
    if len(content) != count:
        shape = " x ".join(map(str, header.shape))
        raise UserError(
            f"{what}: its header claims {shape} values of {header.type}, but it ends after {len(content):,} bytes"
        )
    order = "F" if header.fortran else "C"
    # A view of the bytes that were read: the values are not copied a second time.
    values = np.ndarray(header.shape, header.dtype, buffer=content, order=order)
    if values.dtype.kind == "U":
        # NumPy takes any four bytes for a character; a bad one fails only later, when the text is used or written.
        codes = np.frombuffer(content, np.dtype("u4").newbyteorder(header.dtype.byteorder))
        if ((codes > 0x10FFFF) | ((codes >= 0xD800) & (codes < 0xE000))).any():
            raise UserError(f"{what}: holds characters that do not exist")
    return values


def read_npy(path: Path, options: ReadOptions) -> NDArray[Any]:
    """Read a .npy file.

    Raises:
        UserError: the file is damaged, of a type that is not read, or larger than allowed.
    """
    with path.open("rb") as file:
        header = read_header(file, str(path))
        options.check_size(str(path), header.num_bytes)
        # Compared before the read: a short file must not make the reader reserve what its header claims.
        left = path.stat().st_size - file.tell()
        if header.dtype is not None and math.prod(header.shape) * header.dtype.itemsize > left:
            shape = " x ".join(map(str, header.shape))
            raise UserError(f"{path}: its header claims {shape} values of {header.type}; it has {left:,} bytes")
        return read_values(file, header, str(path))


def read_npz(path: Path, options: ReadOptions, point_names: Sequence[str]) -> tuple[str, dict[str, NDArray[Any]]]:
    """Read the points of an archive of arrays, and all arrays with one number or text per point.

    Args:
        point_names: what the array of the points may be called; the first one that is there counts.

    Returns:
        Name of the points, and arrays by name.

    Raises:
        UserError: the archive is damaged, has no points, or is larger than allowed when unpacked.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return _read_archive(path, archive, options, point_names)
    except UserError:
        raise
    except _DAMAGE as error:
        raise UserError(f"{path}: not a readable file of arrays ({type(error).__name__}: {error!s:.120})") from None


def _read_archive(
    path: Path, archive: zipfile.ZipFile, options: ReadOptions, point_names: Sequence[str]
) -> tuple[str, dict[str, NDArray[Any]]]:
    members = {info.filename.removesuffix(".npy"): info for info in archive.infolist() if not info.is_dir()}
    if len(members) > _MAX_ARRAYS:
        raise UserError(f"{path}: holds {len(members):,} arrays; expected at most {_MAX_ARRAYS:,}")
    headers = {}
    for name, info in members.items():
        # Other methods than NumPy's take memory that depends on what the archive says.
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise UserError(f"{path}: '{name}' is packed in a way that NumPy does not write")
        with archive.open(info) as member:
            headers[name] = read_header(member, f"{path}: {name}")
    points = next((name for name in point_names if name in headers), None)
    if points is None:
        raise UserError(
            f"{path}: no array of points; expected one of {', '.join(point_names)} (got {_listed(headers)})"
        )
    if not headers[points].shape:
        raise UserError(f"{path}: {points} must be a matrix [points, features] (got shape [])")
    rows = headers[points].shape[:1]
    selected = [points] + [
        name for name, header in headers.items() if name != points and header.shape == rows and header.dtype is not None
    ]
    # A small archive may unpack to any size: the sum is checked before the first value is read.
    options.check_size(str(path), sum(headers[name].num_bytes for name in selected))
    arrays = {}
    for name in selected:
        with archive.open(members[name]) as member:
            arrays[name] = read_values(member, read_header(member, f"{path}: {name}"), f"{path}: {name}")
    return points, arrays


def _listed(names: Sequence[str] | dict[str, Any]) -> str:
    listed = ", ".join(list(names)[:20])
    return (listed + (" and more" if len(names) > 20 else "")) or "nothing"
