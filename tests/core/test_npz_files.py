"""Npz files that others wrote: read by name, and refused in one sentence where they are damaged or something else."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from foveate.adapt.data import load_images
from foveate.adapt.recipe import AdaptData
from foveate.core.errors import UserError
from foveate.core.npz_files import read_npz
from foveate.species.sources import read_features
from foveate.training.logit_files import read_logits
from foveate.vision.preprocess import Preprocess
from naming import raises_naming


def write_damaged(path: Path) -> None:
    """A compressed member whose first block is of a kind that does not exist: zlib refuses it before any checksum."""
    np.savez_compressed(path, key=np.zeros((9, 9)))
    with zipfile.ZipFile(path) as file:
        start = file.getinfo("key.npy").header_offset
    content = bytearray(path.read_bytes())
    name, extra = (int.from_bytes(content[start + offset : start + offset + 2], "little") for offset in (26, 28))
    content[start + 30 + name + extra] = 0xFF
    path.write_bytes(content)


def write_single(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.zeros(3))


READERS: dict[str, Callable[[Path], object]] = {
    "npz": read_npz,
    "logits": read_logits,
    "images": lambda path: load_images(path, AdaptData(), Preprocess(8, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))),
    "features": lambda path: read_features(path, ["a"], np.array([0])),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("write", [write_damaged, write_single])
def test_what_is_no_npz_file_is_refused(reader: str, write: Callable[[Path], None], tmp_path: Path) -> None:
    write(tmp_path / "a.npz")
    with raises_naming(UserError, tmp_path / "a.npz"):
        READERS[reader](tmp_path / "a.npz")


def test_arrays_by_name(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", key=np.arange(3), vector=np.ones((3, 2)))
    assert list(read_npz(tmp_path / "a.npz")) == ["key", "vector"]
    assert list(read_npz(tmp_path / "a.npz", ("vector", "missing"))) == ["vector"]
    np.savez(tmp_path / "objects.npz", key=np.array([{}], dtype=object))
    for name in ("objects.npz", "none.npz"):
        with raises_naming(UserError, tmp_path / name):
            read_npz(tmp_path / name)
