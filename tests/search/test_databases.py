"""Search by LanceDB and Qdrant finds what exact search finds, and leaves tables that others can ask."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import foveate
import tiny
from foveate.core.errors import UserError
from foveate.records.removal import remove_images
from foveate.search import databases
from foveate.search.databases import Vectors
from naming import raises_naming

PACKAGES = {"lancedb": "lancedb", "qdrant": "qdrant_client"}
each = pytest.mark.parametrize(
    "backend",
    [
        pytest.param(name, marks=pytest.mark.skipif(importlib.util.find_spec(package) is None, reason=f"no {package}"))
        for name, package in PACKAGES.items()
    ],
)


@pytest.fixture(scope="module")
def made(tiny_collection: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_index(tmp_path_factory.mktemp("databases"), tiny_collection)


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "copy")
    return tmp_path / "copy"


def open_copy(folder: Path) -> foveate.SearchIndex:
    return foveate.open_index(folder / "my-index", collection=folder / "my-images")


def found(index: foveate.SearchIndex, backend: str, **options: Any) -> list[tuple[Any, ...]]:
    hits = index.search("a red disc", count=7, backend=backend, **options)
    return [(hit.key, hit.kind, hit.score, hit.box, hit.z, hit.text) for hit in hits]


@each
def test_hits_scores_and_order_are_those_of_exact_search(backend: str, folder: Path) -> None:
    index = open_copy(folder)
    for options in ({}, {"kind": "regions", "per_image": 2}, {"kind": "images"}):
        assert found(index, backend, **options) == found(index, "exact", **options)
    assert (folder / "my-index" / backend).is_dir()


@each
def test_the_copy_is_made_once_and_again_after_a_change(
    backend: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index = open_copy(folder)
    found(index, backend)
    assert "copying" in capsys.readouterr().err
    del index
    again = open_copy(folder)
    first = found(again, backend)
    assert "copying" not in capsys.readouterr().err
    # What the collection has removed is not found, though the copy has it.
    removed = first[0][0]
    del again
    remove_images(folder / "my-images", [removed])
    left = found(open_copy(folder), backend)
    assert left
    assert removed not in {key for key, *_ in left}


@each
def test_a_folder_of_the_user_is_taken(backend: str, folder: Path, tmp_path: Path) -> None:
    index = open_copy(folder)
    assert found(index, f"{backend}:{tmp_path / 'mine'}") == found(index, "exact")
    assert (tmp_path / "mine").is_dir()
    assert not (folder / "my-index" / backend).exists()


def vectors_of(index: foveate.SearchIndex, kind: str) -> Vectors:
    rows = index.index.rows_of(kind)
    return Vectors(rows.vectors, rows.segments, rows.rows)


@pytest.mark.skipif(importlib.util.find_spec("lancedb") is None, reason="no lancedb")
def test_others_find_keys_boxes_and_phrases_in_lancedb(folder: Path) -> None:
    import lancedb

    index = open_copy(folder)
    found(index, "lancedb")
    vectors = vectors_of(index, "region")
    table = lancedb.connect(str(folder / "my-index" / "lancedb")).open_table(vectors.name).to_arrow().sort_by("row")
    for name in ("key", "kind", "phrase", "x1", "y1", "x2", "y2"):
        assert table[name].to_pylist() == vectors.rows[name].to_pylist()
    np.testing.assert_array_equal(np.stack(table["vector"].to_pylist()), np.concatenate(vectors.parts))


@pytest.mark.skipif(importlib.util.find_spec("lancedb") is None, reason="no lancedb")
def test_many_vectors_get_lists_and_half_a_copy_is_made_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import lancedb

    monkeypatch.setattr(databases, "_LISTS_FROM", 1)
    index = open_copy(folder)
    assert found(index, "lancedb", kind="regions") == found(index, "exact", kind="regions")
    vectors = vectors_of(index, "region")
    table = lancedb.connect(str(folder / "my-index" / "lancedb")).open_table(vectors.name)
    assert table.list_indices()
    table.delete("row >= 3")
    capsys.readouterr()
    again = open_copy(folder)
    assert found(again, "lancedb", kind="regions") == found(index, "exact", kind="regions")
    assert "copying" in capsys.readouterr().err


@pytest.mark.parametrize("backend", PACKAGES)
def test_without_the_library_it_says_what_to_install(
    backend: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, PACKAGES[backend], None)
    with raises_naming(UserError, f"backend '{backend}'", f"foveate[{backend}]"):
        found(open_copy(folder), backend)


@pytest.mark.skipif(importlib.util.find_spec("qdrant_client") is None, reason="no qdrant_client")
def test_a_server_that_is_away_is_a_sentence(folder: Path) -> None:
    with raises_naming(UserError, "backend 'qdrant'", "http://127.0.0.1:9"):
        found(open_copy(folder), "qdrant:http://127.0.0.1:9")


@pytest.mark.parametrize("backend", ["lance", "lancedb:", "exact:1", "qdrnt"])
def test_a_backend_that_does_not_exist_is_refused(backend: str, folder: Path) -> None:
    with raises_naming(UserError, "backend", "lancedb", "qdrant"):
        found(open_copy(folder), backend)
