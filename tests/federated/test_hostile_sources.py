"""Files that would crash a reader, fill the memory, read another file, or end a run in its last step."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from foveate import FederatedNeighborEmbedding
from foveate.cli.main import cli
from foveate.core.errors import UserError
from foveate.federated.sources import read_points
from foveate.metrics.neighbors import as_points
from naming import raises_naming


def npy(kind: Any, shape: Any, values: bytes = b"\0" * 64) -> bytes:
    header = repr({"descr": kind, "fortran_order": False, "shape": shape}).encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + values


@pytest.mark.parametrize(
    ("content", "names"),
    [
        (npy("<f8", (10**9, 3)), ("22.35 GiB", "--max-gib 1")),
        (npy("<f8", (10**6, 3)), ("1000000 x 3", "64")),
        (npy([("a", [("b", "<f8")])], (3,)), ("a", "b")),
        (npy("<f8", (True, 2)), ("True",)),
        (npy("<f8", (-1, 2)), ("-1",)),
        (npy("|O", (2, 2)), ("|O",)),
        (npy("<c16", (2, 2)), ("<c16",)),
        (npy("<M8[s]", (2, 2)), ("<M8[s]",)),
        (npy("<U1", (2, 2), "1234".encode("utf-32-le")), ("<U1",)),
        (b"\x93NUMPY\x01\x00\x04\x00[[[[", ("header",)),
        (b"\x93NUMPY\x02\x00\xff\xff\xff\x7f{", ("2,147,483,647",)),
    ],
)
def test_arrays_that_are_no_points(tmp_path: Path, content: bytes, names: tuple[str, ...]) -> None:
    path = tmp_path / "x.npy"
    path.write_bytes(content)
    with raises_naming(UserError, path, *names):
        read_points(path)


def test_an_archive_that_unpacks_to_two_gib_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "bomb.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("points.npy", "w") as member:
        member.write(npy("<f8", (2**28, 1), b""))
        for _ in range(64):  # the header is believed for the bound, whatever follows
            member.write(bytes(1 << 20))
    with raises_naming(UserError, path, "2 GiB", "--max-gib 1"):
        read_points(path)


@pytest.mark.parametrize(
    ("columns", "names"),
    [
        ({"points": [["a", "b"], ["c", "d"]]}, ("points", "string")),
        ({"points": [["1", "2"], ["3", "4"]]}, ("points", "string")),
        ({"points": [[[1.0, 2.0]], [[3.0, 4.0]]]}, ("points", "list")),
        ({"points": [[], []]}, ("points",)),
        ({"x": [1.5, 1e200]}, ("row 1", "'x'", "1e+200")),
        ({"x": [1.5, float("inf")]}, ("row 1", "'x'", "inf")),
        ({"x": [1.5, None]}, ("row 1", "'x'", "--drop-missing")),
    ],
)
def test_tables_that_are_no_points(tmp_path: Path, columns: dict[str, Any], names: tuple[str, ...]) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table(columns), path)
    with raises_naming(UserError, path, *names):
        read_points(path)


def test_labels_that_are_no_text_are_read_as_text(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"x": [1.5, 2.5], "label": [b"\xff\xfe", b"a"]}), path)
    assert read_points(path).column("label", "column").tolist()[1] == "a"


def _external(file: h5py.File, other: Path) -> None:
    file.create_group("obsm")["X_pca"] = h5py.ExternalLink(str(other), "/secret")


def _external_group(file: h5py.File, other: Path) -> None:
    file["obsm"] = h5py.ExternalLink(str(other), "/")


def _soft(file: h5py.File, other: Path) -> None:
    file["elsewhere"] = h5py.ExternalLink(str(other), "/")
    file.create_group("obsm")["X_pca"] = h5py.SoftLink("/elsewhere/secret")


def _virtual(file: h5py.File, other: Path) -> None:
    layout = h5py.VirtualLayout(shape=(10**9, 50), dtype="f8")
    layout[0:4, 0:2] = h5py.VirtualSource(str(other), "secret", shape=(4, 2))
    file.create_virtual_dataset("obsm/X_pca", layout)


def _external_data(file: h5py.File, other: Path) -> None:
    file.create_dataset("obsm/X_pca", shape=(4, 2), dtype="f8", external=[(str(other), 0, 64)])


def _unwritten(file: h5py.File, other: Path) -> None:
    file.create_dataset("obsm/X_pca", shape=(10**9, 50), dtype="f8", chunks=(100, 50))


def _short_labels(file: h5py.File, other: Path) -> None:
    file["obsm/X_pca"] = np.zeros((4, 2))
    file["obs/label"] = np.arange(3)


def _complex(file: h5py.File, other: Path) -> None:
    file["obsm/X_pca"] = np.zeros((4, 2), complex)


@pytest.mark.parametrize(
    ("write", "names"),
    [
        (_external, ("X_pca", "link")),
        (_external_group, ("obsm", "link")),
        (_soft, ("X_pca", "link")),
        (_virtual, ("X_pca", "other files")),
        (_external_data, ("X_pca", "other files")),
        (_unwritten, ("X_pca", "372.5 GiB", "--max-gib")),
        (_short_labels, ("obs/label", "3", "4")),
        (_complex, ("X_pca", "complex128")),
    ],
)
def test_cells_that_leave_their_file_or_do_not_fit(
    tmp_path: Path, write: Callable[[h5py.File, Path], None], names: tuple[str, ...]
) -> None:
    path, other = tmp_path / "cells.h5ad", tmp_path / "other.h5"
    with h5py.File(other, "w") as file:
        file["secret"] = np.ones((4, 2))
    with h5py.File(path, "w") as file:
        file.create_group("obs")
        write(file, other)
    with raises_naming(UserError, path, *names):
        read_points(path)


@pytest.mark.parametrize("verb", ["cluster", "embed", "features"])
@pytest.mark.parametrize("huge", [1e200, 1e20])
def test_a_huge_value_is_refused_before_the_work(tmp_path: Path, verb: str, huge: float) -> None:
    points = np.random.default_rng(0).normal(size=(40, 3))
    points[3, 1] = huge
    np.savez(tmp_path / "x.npz", points=points, label=np.arange(40) % 2)
    arguments = [tmp_path / "x.npz", "--label", "label", "--split", "even", "--clients", "2", "--out", tmp_path / "r"]
    done = CliRunner().invoke(cli, ["federated", verb, *map(str, arguments), "--quiet"])
    if verb == "cluster" and huge == 1e20:
        assert done.exit_code == 0
    else:
        assert isinstance(done.exception, UserError)
        assert f"{huge:.3g}" in str(done.exception)
        assert not (tmp_path / "r" / "result.json").exists()


@pytest.mark.parametrize(
    "values",
    [
        np.ones((3, 2), complex),
        np.array([["1", "2"], ["3", "4"]]),
        np.array([["2020-01-01", "2020-01-02"]], "M8[D]"),
        np.array([["1", 2.0]], dtype=object),
    ],
)
def test_complex_numbers_dates_and_texts_are_no_numbers(values: np.ndarray) -> None:
    with raises_naming(UserError, values.dtype):
        as_points(values)
    with raises_naming(UserError, "client 1", values.dtype):
        FederatedNeighborEmbedding(n_rounds=1).fit([np.ones((3, 2)), values])
