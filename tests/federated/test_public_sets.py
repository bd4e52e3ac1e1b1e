"""Public sets and AnnData files as sources: what is read, and what is refused with how to get it."""

from __future__ import annotations

import gzip
from pathlib import Path

import h5py
import numpy as np
import pytest

from foveate.core.errors import UserError
from foveate.federated import public_sets
from foveate.federated.h5ad import read_h5ad
from foveate.federated.sources import gather, read_points
from naming import raises_naming


def idx(values: np.ndarray) -> bytes:
    shape = np.array(values.shape, ">u4").tobytes()
    return bytes([0, 0, 8, values.ndim]) + shape + values.astype(np.uint8).tobytes()


@pytest.fixture
def fashion(tmp_path: Path) -> Path:
    images = np.arange(6 * 4 * 4, dtype=np.uint8).reshape(6, 4, 4)
    (tmp_path / public_sets.FASHION_IMAGES).write_bytes(gzip.compress(idx(images)))
    (tmp_path / public_sets.FASHION_LABELS).write_bytes(gzip.compress(idx(np.array([0, 1, 2, 0, 1, 2]))))
    return tmp_path


def test_a_folder_with_files_of_mnists_kind(fashion: Path) -> None:
    found = read_points(fashion)
    np.testing.assert_allclose(found.points_ND, np.arange(96).reshape(6, 16) / 255)
    assert found.columns["label"].tolist() == [0, 1, 2, 0, 1, 2]
    clients = gather([fashion], label="label", split="even", clients=2)
    assert [len(one) for one in clients.points] == [3, 3]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda data: data[:-30], "gzip file"),
        (lambda data: b"hello", "gzip file"),
        (lambda data: gzip.compress(gzip.decompress(data)[:-1]), "6 x 4 x 4 .*95"),
        (lambda data: gzip.compress(idx(np.zeros(4))), "IDX file .*3 axes"),
        (lambda data: gzip.compress(idx(np.zeros((5, 4, 4)))), "expected 5 labels"),
        (lambda data: gzip.compress(b"\0\0\x08\x03" + b"\xff" * 12), "4294967295 x 4294967295 x 4294967295"),
    ],
)
def test_damaged_files_are_named(fashion: Path, spoil, words: str) -> None:
    path = fashion / public_sets.FASHION_IMAGES
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(UserError, match=words):
        read_points(fashion)


def test_a_file_that_unpacks_to_too_much_is_refused(fashion: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(public_sets, "_MAX_BYTES", 50)
    with pytest.raises(UserError, match="unpacks to more than"):
        read_points(fashion)


def test_what_is_not_installed_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="apt-get install dataset-fashion-mnist"):
        public_sets.fashion_mnist(tmp_path)
    monkeypatch.setattr(public_sets, "cells_file", lambda: None)
    with pytest.raises(UserError, match="pip install scanpy"):
        read_points("pbmc68k")
    with raises_naming(UserError, "fashion-mnist"):
        read_points("fashion-mnis")


def new_layout(path: Path, codes: list[int]) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("obsm/X_pca", data=np.arange(12.0).reshape(4, 3))
        obs = file.create_group("obs")
        obs.attrs["_index"] = "cell"
        obs.create_dataset("cell", data=["a", "b", "c", "d"])
        obs.create_dataset("genes", data=[1, 2, 3, 4])
        obs.create_dataset("kind/categories", data=["B", "T"])
        obs.create_dataset("kind/codes", data=np.array(codes, np.int8))


def old_layout(path: Path) -> None:
    with h5py.File(path, "w") as file:
        obsm = np.zeros(4, dtype=[("X_pca", "f4", (3,)), ("X_umap", "f8", (2,))])
        obsm["X_pca"] = np.arange(12.0).reshape(4, 3)
        file["obsm"] = obsm
        file["obs"] = np.array(
            [(b"a", 0, 1), (b"b", 1, 2), (b"c", 0, 3), (b"d", 1, 4)],
            dtype=[("index", "S1"), ("kind", "i1"), ("genes", "i8")],
        )
        file["uns/kind_categories"] = np.array([b"B", b"T"])


@pytest.mark.parametrize("old", [False, True])
def test_cells_of_both_layouts(tmp_path: Path, old: bool) -> None:
    path = tmp_path / "cells.h5ad"
    old_layout(path) if old else new_layout(path, [0, 1, 0, 1])
    found = read_points(path)
    np.testing.assert_array_equal(found.points_ND, np.arange(12.0).reshape(4, 3))
    assert found.columns["kind"].tolist() == ["B", "T", "B", "T"]
    assert found.columns["genes"].tolist() == [1, 2, 3, 4]
    assert set(found.columns) == {"kind", "genes"}


def test_unknown_kinds_and_bad_files(tmp_path: Path) -> None:
    path = tmp_path / "cells.h5ad"
    new_layout(path, [0, -1, 1, 1])
    assert read_h5ad(path)[1]["kind"].tolist() == ["B", None, "T", "T"]
    new_layout(path, [0, 2, 1, 1])
    with pytest.raises(UserError, match="codes point at no category"):
        read_points(path)
    with h5py.File(path, "w") as file:
        file.create_dataset("obsm/X_umap", data=np.zeros((4, 2)))
    with raises_naming(UserError, "X_umap", "X_pca"):
        read_points(path)
    path.write_bytes(b"no HDF5")
    with raises_naming(UserError, ".h5ad"):
        read_points(path)
