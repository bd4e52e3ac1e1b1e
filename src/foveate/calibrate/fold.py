"""Fold gamma into the bias of a checkpoint's classifier: an exported model then needs no extra code.

Only the bytes of that one tensor change; header, order, metadata and every other tensor stay bit-identical. Works on
safetensors of timm, of transformers (sharded ones too) and on bare files.
"""

from __future__ import annotations

import json
import shutil
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foveate.core.errors import UserError, nearest
from foveate.core.files import atomic_file, commit_atomically, read_json, write_json_atomically
from foveate.metrics.class_groups import ClassGroups

# The classifiers of timm and transformers, in the order in which they are looked for.
HEADS = ("head", "classifier", "fc", "head.fc", "last_linear", "classifier.out_proj")
_DTYPES = {"F64": np.dtype("<f8"), "F32": np.dtype("<f4"), "F16": np.dtype("<f2")}


@dataclass(frozen=True)
class Tensor:
    """Location of a tensor's bytes in a safetensors file."""

    file: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class Folded:
    """Outcome of `fold`. `largest_error`: of any bias against the exact sum, by rounding to the file's precision."""

    path: Path
    tensor: str
    gamma: float
    classes: int
    largest_error: float


def read_header(file: Path) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file by name, from its header alone.

    Raises:
        UserError: it is not a safetensors file, or its header does not fit it.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as handle:
            (length,) = struct.unpack("<Q", handle.read(8))
            # `read` of an absurd length, which any file may claim, would raise MemoryError or OverflowError.
            if length > size - 8:
                raise ValueError("its header is longer than the file")
            header: dict[str, Any] = json.loads(handle.read(length))
        tensors = {}
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            start, end = entry["data_offsets"]
            # `fold` writes to these offsets, so a false one would overwrite bytes of something else.
            if not 0 <= start <= end <= size - 8 - length:
                raise ValueError(f"tensor '{name}' lies outside the file")
            # Offsets in the header count from the end of the header.
            tensors[name] = Tensor(
                file, name, entry["dtype"], tuple(entry["shape"]), 8 + length + start, 8 + length + end
            )
        return tensors
    # Anyone may have written the JSON header, and a wrong field can raise any of these errors.
    except (OSError, ValueError, struct.error, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, OSError) and error.errno is not None and not file.exists():
            raise UserError(f"{file}: no such file") from error
        raise UserError(f"{file}: not a safetensors file ({error})") from error


def checkpoint_tensors(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a file, or of the safetensors files of a folder.

    Raises:
        UserError: no weights there, pickles only, the same tensor in two files.
    """
    if path.is_file():
        if path.suffix != ".safetensors":
            raise UserError(f"{path}: expected a folder or a .safetensors file; pickles are not read")
        return read_header(path)
    if not path.is_dir():
        raise UserError(f"{path}: no such file or folder")
    files = sorted(path.glob("*.safetensors"))
    if not files:
        raise UserError(f"{path} has no *.safetensors file; pickles are not read")
    tensors: dict[str, Tensor] = {}
    for file in files:
        for name, tensor in read_header(file).items():
            if name in tensors:
                raise UserError(f"{path}: tensor '{name}' is both in {tensors[name].file.name} and {file.name}")
            tensors[name] = tensor
    return tensors


def find_bias(path: Path, *, classes: int, head: str | None = None) -> Tensor:
    """Find the bias of the checkpoint's classifier.

    Args:
        head: its module's name, such as "head.fc"; known names are looked for where None.

    Raises:
        UserError: no classifier, one without bias, one of another number of classes, or of integers.
    """
    tensors = checkpoint_tensors(path)
    # The name in timm's config comes first: where several known names occur, it decides.
    modules = [head] if head is not None else [name for name in _heads_of(path) if f"{name}.weight" in tensors]
    if not modules:
        heads = ", ".join(HEADS)
        raise UserError(f"{path}: no classifier found (looked for {heads}); say which module it is with --head")
    module = modules[0]
    if f"{module}.weight" not in tensors:
        names = sorted({name.rpartition(".")[0] for name in tensors})
        raise UserError(f"{path}: no tensor '{module}.weight'{nearest(module, names)}")
    if f"{module}.bias" not in tensors:
        raise UserError(
            f"{path}: its classifier '{module}' has no bias, so gamma cannot be folded in; add gamma to the logits "
            "of the absent classes instead (Calibrator.decision_function)"
        )
    bias = tensors[f"{module}.bias"]
    if bias.shape != (classes,):
        raise UserError(
            f"{path}: '{bias.name}' has shape {list(bias.shape)}, but gamma was found for {classes} classes"
        )
    # NumPy has no bfloat16: `_decode` and `_encode` convert it by its bits.
    if bias.dtype not in _DTYPES and bias.dtype != "BF16":
        raise UserError(f"{path}: '{bias.name}' must be of type F64, F32, F16 or BF16 (got {bias.dtype})")
    return bias


def _heads_of(path: Path) -> tuple[str, ...]:
    """Return known names of heads, first the one in timm's config.json."""
    config = path / "config.json"
    content: Any = read_json(config) if path.is_dir() and config.is_file() else {}
    head = (content.get("pretrained_cfg") or {}).get("classifier") if isinstance(content, dict) else None
    return (head, *HEADS) if isinstance(head, str) else HEADS


def fold(path: Path, *, gamma: float, groups: ClassGroups, to: Path, head: str | None = None) -> Folded:
    """Copy a checkpoint to `to` with gamma added to the classifier's bias of the absent classes.

    Args:
        path: a folder with config.json and safetensors, or one safetensors file.
        to: must not exist. A folder also gets `calibration.json`: gamma and the absent classes.

    Raises:
        UserError: see `find_bias`; `to` exists; gamma is not finite or leaves the range of the file's numbers.
    """
    groups.need_absent("folding gamma")
    if not np.isfinite(gamma):
        raise UserError(f"gamma must be a finite number (got {gamma})")
    if to.exists():
        raise UserError(f"{to} exists already; give another path for the calibrated checkpoint")
    bias = find_bias(path, classes=groups.classes, head=head)
    # The bytes of one tensor, not the whole file: a shard may be larger than the memory.
    with bias.file.open("rb") as handle:
        handle.seek(bias.start)
        before = _decode(handle.read(bias.end - bias.start), bias.dtype)
    # In float64, so that the only rounding is the one to the type of the file.
    exact = before.copy()
    exact[groups.absent] += gamma
    data = _encode(exact, bias.dtype)
    written = _decode(data, bias.dtype)
    if not np.isfinite(written).all():
        raise UserError(f"{path}: gamma {gamma:g} leaves the range of {bias.dtype} in '{bias.name}'")
    untouched = np.setdiff1d(np.arange(groups.classes), groups.absent)
    assert np.array_equal(written[untouched], before[untouched]), "biases of other classes must not change"
    to.parent.mkdir(parents=True, exist_ok=True)
    if path.is_file():
        with atomic_file(to) as target:
            _copy_with(path, bias, data, target)
    else:
        _fold_folder(path, bias, data, to, gamma=gamma, groups=groups)
    error = float(np.abs(written - exact).max())
    return Folded(to, bias.name, gamma, groups.classes, error)


def _fold_folder(path: Path, bias: Tensor, data: bytes, to: Path, *, gamma: float, groups: ClassGroups) -> None:
    """Copy the folder under a temporary name, which then appears at once."""
    # The temporary folder is a sibling, so that the final rename stays on one file system and is atomic.
    temporary = to.with_name(f".{to.name}.tmp")
    # A killed run leaves its temporary folder behind.
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        shutil.copytree(path, temporary)
        # In place: every byte outside of this one tensor stays.
        with (temporary / bias.file.relative_to(path)).open("r+b") as handle:
            handle.seek(bias.start)
            handle.write(data)
        note = {"gamma": gamma, "absent": groups.absent.tolist(), "tensor": bias.name}
        write_json_atomically(temporary / "calibration.json", note)
        commit_atomically(temporary, to)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _copy_with(path: Path, bias: Tensor, data: bytes, target: Any) -> None:
    with path.open("rb") as source:
        shutil.copyfileobj(source, target)
    target.seek(bias.start)
    target.write(data)
    target.seek(0, 2)


def _decode(data: bytes, dtype: str) -> NDArray[np.float64]:
    if dtype == "BF16":
        # A bfloat16 is the upper half of a float32.
        return (np.frombuffer(data, dtype="<u2").astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return np.frombuffer(data, dtype=_DTYPES[dtype]).astype(np.float64)


def _encode(values: NDArray[np.float64], dtype: str) -> bytes:
    """Round to nearest, ties to even; beyond the type's range to infinity."""
    with np.errstate(over="ignore"):
        if dtype != "BF16":
            return values.astype(_DTYPES[dtype]).tobytes()
        single = values.astype(np.float32)
    # By way of float32 rounded to odd: rounded to nearest there, a sum beside the middle of two bfloat16 would become
    # the middle itself and be rounded a second time.
    single = np.where(np.abs(single.astype(np.float64)) > np.abs(values), np.nextafter(single, np.float32(0)), single)
    # The last bit is set wherever something was cut off (a sticky bit), so that no such value looks like a tie below.
    bits = single.view(np.uint32) | (single.astype(np.float64) != values)
    # Adding 0x7FFF and the last bit that is kept rounds to nearest, ties to even.
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes()
